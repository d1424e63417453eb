"""What is asked of a server, each question one SELECT that answers with one JSON document."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .info import DatabaseInfo, Setting
from .machine import Session
from .model import Database
from .postgres import identifier, literal

# A role's or database's own time-outs must not end a dump that is going well; the last names exist since 17 and 14.
_PATIENT = """
select count(set_config(name, '0', false)) from pg_settings where name in
  ('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout',
   'transaction_timeout', 'idle_session_timeout')
"""
# With it a backend notices within seconds that its client is gone, also while it waits for a lock.
_NOTICE = """
do $$ begin
  perform set_config('client_connection_check_interval', '2s', false);
exception when others then null; end $$
"""
_SERVER = """
select json_build_object(
  'version', split_part(current_setting('server_version'), ' ', 1),
  'number', current_setting('server_version_num')::int,
  'notices', coalesce(current_setting('client_connection_check_interval', true), '0') <> '0',
  'standby', pg_is_in_recovery(),
  'superuser', current_setting('is_superuser') = 'on',
  'createdb', (select rolcreatedb or rolsuper from pg_roles where rolname = current_user),
  'user', current_user,
  'encoding', (select pg_encoding_to_char(encoding) from pg_database where datname = current_database()),
  'bytes', pg_database_size(current_database()))
"""
_DATABASE = """
select json_build_object(
  'owner', pg_get_userbyid(d.datdba),
  'encoding', pg_encoding_to_char(d.encoding),
  'collate', d.datcollate,
  'ctype', d.datctype,
  'locale_provider', coalesce(to_jsonb(d) ->> 'datlocprovider', 'c'),
  'locale', coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale'),
  'comment', shobj_description(d.oid, 'pg_database'),
  'acl', d.datacl::text[],
  'connection_limit', d.datconnlimit,
  'bytes', pg_database_size(d.oid),
  'settings', (
    select coalesce(json_agg(json_build_object(
      'role', r.rolname,
      'name', split_part(entry, '=', 1),
      'value', substr(entry, strpos(entry, '=') + 1)) order by r.rolname nulls first, place), '[]')
    from pg_db_role_setting s left join pg_roles r on r.oid = s.setrole,
      unnest(s.setconfig) with ordinality as u(entry, place)
    where s.setdatabase = d.oid),
  'extensions', (select coalesce(json_object_agg(extname, extversion), '{}') from pg_extension))
from pg_database d where d.datname = current_database()
"""
# What belongs to an extension is the extension's to make again, its rows too.
_TABLES = """
select coalesce(json_agg(json_build_object(
  'table', n.nspname || '.' || c.relname,
  'bytes', pg_table_size(c.oid),
  'readable', has_table_privilege(c.oid, 'SELECT') and has_schema_privilege(n.oid, 'USAGE'),
  'hidden', row_security_active(c.oid))), '[]')
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'r' and c.relpersistence <> 't'
  and n.nspname <> 'information_schema' and n.nspname not like 'pg\\_%'
  and not exists (select from pg_depend e where e.classid = 'pg_class'::regclass
    and e.objid = c.oid and e.deptype = 'e')
"""
_OBJECTS = """
select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname <> 'information_schema' and n.nspname not like 'pg\\_%'
  and not exists (select from pg_depend e where e.classid = 'pg_class'::regclass
    and e.objid = c.oid and e.deptype = 'e')
"""
_TABLE_NAMES = """
select coalesce(json_agg(json_build_array(n.nspname, c.relname)), '[]')
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'r' and c.relpersistence <> 't'
  and n.nspname <> 'information_schema' and n.nspname not like 'pg\\_%'
"""
# Where the usual migration tools keep what they have applied: table, the name, which rows count, their order.
_LEDGERS = (
    ("_prisma_migrations", "migration_name",
     "finished_at is not null and rolled_back_at is null", "started_at"),
    ("__drizzle_migrations", "hash", "true", "id"),
    ("knex_migrations", "name", "true", "id"),
    ("SequelizeMeta", "name", "true", "name"),
    ("pgmigrations", "name", "true", "id"),
    ("schema_migrations", "version::text", "true", "version"),
    ("flyway_schema_history", "script", "success", "installed_rank"),
)  # fmt: skip
_COUNTED_AT_ONCE = 200


@dataclass(frozen=True)
class Server:
    """What a server says of itself and of whoever is connected; *bytes* is the database's size on its disk."""

    version: str
    number: int
    notices: bool
    standby: bool
    superuser: bool
    createdb: bool
    user: str
    encoding: str
    bytes: int

    @property
    def major(self) -> int:
        """The major version, as in 17."""
        return self.number // 10000

    @property
    def options(self) -> str:
        """PGOPTIONS that make the server end a session soon after its client is gone."""
        return "-c client_connection_check_interval=2s" if self.notices else ""


@dataclass(frozen=True)
class Table:
    """A table whose rows a dump holds; *hidden* if row-level security hides some from this user."""

    table: str
    bytes: int
    readable: bool
    hidden: bool


def answer(session: Session, sql: str) -> Any:
    """Return the JSON document that one SELECT answers with."""
    return json.loads(session.ask(sql))


def be_patient(session: Session) -> None:
    """Let no time-out of the role or the database end this session, and let the server notice our death."""
    session.ask(_PATIENT)
    session.ask(_NOTICE)


def server(session: Session) -> Server:
    """Return what the server says of itself."""
    return Server(**answer(session, _SERVER))


def export_snapshot(session: Session) -> str:
    """Begin the transaction that every dump of a backup looks through; return its snapshot's name."""
    session.ask("begin isolation level repeatable read, read only")
    return session.ask("select pg_export_snapshot()")


def describe(session: Session, database: Database) -> tuple[DatabaseInfo, dict[str, str]]:
    """Return what belongs to the database and is in no dump, and its extensions' versions."""
    found = answer(session, _DATABASE)
    extensions: dict[str, str] = found.pop("extensions")
    settings = [Setting(**s) for s in found.pop("settings")]
    info = DatabaseInfo(
        name=database.name,
        host=database.host,
        port=database.port,
        user=database.user,
        settings=settings,
        **found,
    )
    return info, extensions


def tables(session: Session) -> list[Table]:
    """Return the tables a dump will hold."""
    return [Table(**row) for row in answer(session, _TABLES)]


def count_objects(session: Session) -> int:
    """Return how many tables, views, sequences and the like the database holds beside its extensions'."""
    return int(session.ask(_OBJECTS))


def migrations(session: Session) -> list[str] | None:
    """Return the names of the migrations applied, from whichever ledger is there; None without one."""
    present = {name: schema for schema, name in answer(session, _TABLE_NAMES)}
    for table, name, condition, order in _LEDGERS:
        if table in present:
            place = f"{identifier(present[table])}.{identifier(table)}"
            sql = f"select coalesce(json_agg({name} order by {order}), '[]') from {place} where {condition}"
            found: list[str] = answer(session, sql)
            return found
    return None


def count_rows(session: Session, wanted: set[str]) -> dict[str, int]:
    """Return the exact rows of each table in *wanted* that exists, by `schema.table`."""
    places = {
        f"{schema}.{name}": f"{identifier(schema)}.{identifier(name)}" for schema, name in answer(session, _TABLE_NAMES)
    }
    names = sorted(wanted & places.keys())
    rows: dict[str, int] = {}
    for start in range(0, len(names), _COUNTED_AT_ONCE):
        pairs = ", ".join(
            f"({literal(n)}, (select count(*) from {places[n]}))" for n in names[start : start + _COUNTED_AT_ONCE]
        )
        rows |= answer(session, f"select json_object_agg(n, c) from (values {pairs}) as v(n, c)")
    return rows


def database_exists(session: Session, name: str) -> bool:
    """Whether the server has a database of that name."""
    return session.ask(f"select count(*) from pg_database where datname = {literal(name)}") == "1"


def role_names(session: Session) -> set[str]:
    """Return the names of the server's roles."""
    return set(answer(session, "select json_agg(rolname) from pg_roles"))


def available_extensions(session: Session) -> set[str]:
    """Return the names of the extensions that can be created on this server."""
    return set(answer(session, "select json_agg(name) from pg_available_extensions"))

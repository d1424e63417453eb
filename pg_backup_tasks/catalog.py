"""What is asked of a server, each question one SELECT that answers with one JSON document."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from .ability import Role
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
  'maintenance', (select setting::int from pg_settings where name = 'maintenance_work_mem'),
  'notices', coalesce(current_setting('client_connection_check_interval', true), '0') <> '0',
  'standby', pg_is_in_recovery(),
  'superuser', current_setting('is_superuser') = 'on',
  'createdb', (select rolcreatedb or rolsuper from pg_roles where rolname = current_user),
  'user', current_user,
  'encoding', (select pg_encoding_to_char(encoding) from pg_database where datname = current_database()))
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
_DUMPED = """
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'r' and c.relpersistence <> 't'
  and n.nspname <> 'information_schema' and n.nspname not like 'pg\\_%'
  and not exists (select from pg_depend e where e.classid = 'pg_class'::regclass
    and e.objid = c.oid and e.deptype = 'e')
"""
_TABLES = f"""
select coalesce(json_agg(json_build_object(
  'table', n.nspname || '.' || c.relname,
  'readable', has_table_privilege(c.oid, 'SELECT') and has_schema_privilege(n.oid, 'USAGE'),
  'hidden', row_security_active(c.oid))), '[]')
{_DUMPED}"""
_TABLE_BYTES = f"""
select json_build_array(coalesce(sum(bytes), 0), coalesce(max(bytes), 0)) from (
  select pg_relation_size(c.oid) + case when c.reltoastrelid <> 0 then pg_relation_size(c.reltoastrelid) else 0 end
  {_DUMPED}) t(bytes)
"""
# Not an extension's, not the schema public, not what every database is born with.
_OBJECTS = """
select count(*) from (
  select 'pg_class'::regclass as catalog, oid from pg_class c
  where relkind in ('r', 'p', 'v', 'm', 'f', 'S', 'c') and oid >= 16384
  union all select 'pg_proc'::regclass, oid from pg_proc where oid >= 16384
  union all select 'pg_type'::regclass, oid from pg_type where oid >= 16384 and typtype in ('d', 'e', 'r')
  union all select 'pg_namespace'::regclass, oid from pg_namespace where oid >= 16384 and nspname not like 'pg\\_%'
  union all select 'pg_operator'::regclass, oid from pg_operator where oid >= 16384
  union all select 'pg_collation'::regclass, oid from pg_collation where oid >= 16384
  union all select 'pg_event_trigger'::regclass, oid from pg_event_trigger
  union all select 'pg_publication'::regclass, oid from pg_publication
  union all select 'pg_foreign_server'::regclass, oid from pg_foreign_server
  union all select 'pg_largeobject'::regclass, oid from pg_largeobject_metadata) o
where not exists (select from pg_depend e
    where e.classid = o.catalog and e.objid = o.oid and e.deptype = 'e')
  and (o.catalog <> 'pg_class'::regclass or exists (
    select from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.oid = o.oid and n.nspname not like 'pg\\_%'))
"""
_TABLE_NAMES = f"""
select coalesce(json_agg(json_build_array(n.nspname, c.relname,
  has_table_privilege(c.oid, 'SELECT') and has_schema_privilege(n.oid, 'USAGE'))), '[]')
{_DUMPED}"""
_LEDGER_TABLES = f"""
select coalesce(json_agg(json_build_array(n.nspname, c.relname) order by n.nspname), '[]')
{_DUMPED} and c.relname in ({{names}})"""
# ONLY: a table that others inherit from has their rows in its dump as little as here.
_CHECK_ROWS = """
declare
  wanted record;
  place text;
  counted bigint;
  total bigint;
begin
  for wanted in
    select e.key as name, e.value::bigint as rows, coalesce(bool_or(row_security_active(t.oid)
        or not has_table_privilege(t.oid, 'SELECT') or not has_schema_privilege(t.relnamespace, 'USAGE')), false)
        as hidden,
      array_agg(format('%I.%I', t.nspname, t.relname)) filter (where t.oid is not null) as places
    from json_each_text({expected}) e left join (
      select c.oid, c.relnamespace, c.relname, n.nspname
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where c.relkind = 'r' and c.relpersistence <> 't') t on t.nspname || '.' || t.relname = e.key
    group by 1, 2
  loop
    continue when wanted.hidden;
    total := null;
    foreach place in array coalesce(wanted.places, '{{}}') loop
      execute 'select count(*) from only ' || place into counted;
      total := coalesce(total, 0) + counted;
    end loop;
    if total is distinct from wanted.rows then
      raise exception '% has % rows after the restore; the backup has %.',
        wanted.name, coalesce(total::text, 'no'), wanted.rows;
    end if;
  end loop;
end
"""
_ROLE = """
select json_build_object(
  'name', current_user,
  'superuser', current_setting('is_superuser') = 'on',
  'createdb', (select rolcreatedb or rolsuper from pg_roles where rolname = current_user),
  'roles', (select json_agg(rolname) from pg_roles),
  'extensions', (
    select coalesce(json_object_agg(v.name, v.trusted or not v.superuser), '{}')
    from pg_available_extensions e join pg_available_extension_versions v
      on v.name = e.name and v.version = e.default_version),
  'settable', (select json_agg(lower(name)) from pg_settings where context = 'user'),
  'parameters', to_regclass('pg_catalog.pg_parameter_acl') is not null)
"""
# Since 15 others than superusers may be granted some.
_GRANTED_PARAMETERS = """
select coalesce(json_agg(lower(parname)), '[]') from pg_parameter_acl where has_parameter_privilege(parname, 'SET')
"""
# Whether a session *a* of pg_stat_activity is ours to end: anybody's for a superuser, else those of roles whose rights
# we have, which to be able to become them is not.
OURS_TO_END = """(current_setting('is_superuser') = 'on' or (
    not (select rolsuper from pg_roles where oid = a.usesysid)
    and (pg_has_role(a.usesysid, 'USAGE') or pg_has_role('pg_signal_backend', 'USAGE'))))"""
# What would be lost with a database *d*, and is no use to another that has its name.
_BOUND = """'slots', (select coalesce(json_agg(slot_name order by slot_name), '[]') from pg_replication_slots
    where database = d.datname and not temporary),
  'subscriptions', (select coalesce(json_agg(subname order by subname), '[]') from pg_subscription
    where subdbid = d.oid),
  'prepared', (select coalesce(json_agg(gid order by gid), '[]') from pg_prepared_xacts where database = d.datname)"""
# What would be lost with the database, or kept from being made again, whoever asks for it.
_PRESENT = """
select json_build_object(
  'bytes', pg_database_size(d.oid),
  'tablespace', t.spcname,
  'template', d.datistemplate,
  'ours', pg_has_role(d.datdba, 'USAGE'),
  'tables', (select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p') and n.nspname <> 'information_schema' and n.nspname not like 'pg\\_%'),
  {bound},
  'strangers', (select coalesce(json_agg(distinct a.usename), '[]') from pg_stat_activity a
    where a.datid = d.oid and a.usesysid is not null and a.pid <> pg_backend_pid() and not {ours_to_end}),
  'sessions', (select count(*) from pg_stat_activity a where a.datid = d.oid and a.backend_type = 'client backend'
    and a.pid <> pg_backend_pid()))
from pg_database d join pg_tablespace t on t.oid = d.dattablespace where d.datname = current_database()
"""
# Where the usual migration tools keep what they have applied: table, the name, their order, which rows count. Asked as
# JSON, in which a column that another tool's table of that name does not have is null and no error.
_BEING_FILLED = """
select coalesce(json_agg(distinct format('%I.%I', n.nspname, c.relname)), '[]')
from pg_locks l join pg_class c on c.oid = l.relation join pg_namespace n on n.oid = c.relnamespace
where l.database = (select oid from pg_database where datname = current_database())
  and l.mode = 'RowExclusiveLock' and l.granted and l.pid <> pg_backend_pid()
  and c.relkind = 'r' and not c.relhassubclass
  and n.nspname not like 'pg\\_%' and n.nspname <> 'information_schema'
"""
_TO_ANALYZE = """
select coalesce(json_agg(json_build_array(
  format('%I.%I', n.nspname, c.relname),
  not exists(select from pg_index i where i.indrelid = c.oid and i.indexprs is not null)
    and not exists(select from pg_statistic_ext s where s.stxrelid = c.oid)
) order by c.relpages desc), '[]')
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'm', 'p') and n.nspname not like 'pg\\_%' and n.nspname <> 'information_schema'
"""
_LEDGERS = (
    ("_prisma_migrations", "migration_name", "started_at",
     "r ->> 'finished_at' is not null and r ->> 'rolled_back_at' is null"),
    ("__drizzle_migrations", "hash", "id", "true"),
    ("knex_migrations", "name", "id", "true"),
    ("SequelizeMeta", "name", "name", "true"),
    ("pgmigrations", "name", "id", "true"),
    ("schema_migrations", "version", "version", "true"),
    ("flyway_schema_history", "script", "installed_rank", "r ->> 'success' = 'true'"),
)  # fmt: skip
LEDGERS = frozenset(table for table, *_ in _LEDGERS)
_COUNTED_AT_ONCE = 200
# So many transactions are looked for one by one.
_FEW = 1000
# A row has the lower half of its transaction's number.
_HALF = 1 << 32
# The first number a transaction can have (access/transam.h).
_FIRST = 3
_MAINTENANCE = 256 << 10


@dataclass(frozen=True)
class Server:
    """What a server says of itself and of whoever is connected.

    *maintenance* is the memory for building an index, in kB.
    """

    version: str
    number: int
    maintenance: int
    notices: bool
    standby: bool
    superuser: bool
    createdb: bool
    user: str
    encoding: str

    @property
    def major(self) -> int:
        """The major version, as in 17."""
        return self.number // 10000

    @property
    def options(self) -> str:
        """PGOPTIONS that make the server end a session soon after its client is gone."""
        return "-c client_connection_check_interval=2s" if self.notices else ""

    @property
    def dumping_options(self) -> str:
        """PGOPTIONS for a dump: of many tables its questions look so dear that each would be compiled first."""
        return f"{self.options} -c jit=off".strip()

    @property
    def loading_options(self) -> str:
        """PGOPTIONS that make a load quick, and free of what the role or the database would have it do."""
        # Until the end of the load nobody but us needs what it writes.
        quick = "-c synchronous_commit=off -c default_transaction_read_only=off"
        memory = f"-c maintenance_work_mem={_MAINTENANCE}kB" if self.maintenance < _MAINTENANCE else ""
        return " ".join(filter(None, (self.options, quick, memory)))


@dataclass(frozen=True)
class Table:
    """A table whose rows a dump holds; *hidden* if row-level security hides some from this user."""

    table: str
    readable: bool
    hidden: bool


@dataclass(frozen=True)
class Bound:
    """What stays with a database that gives its name away, and would be lost with it."""

    slots: list[str]
    subscriptions: list[str]
    prepared: list[str]


@dataclass(frozen=True)
class Present(Bound):
    """A database that a restore is to change: its size, what would be lost with it, whose sessions cannot be ended."""

    bytes: int
    tablespace: str
    template: bool
    ours: bool
    tables: int
    strangers: list[str]
    sessions: int


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


def export_snapshot(session: Session, lock_timeout: int) -> str:
    """Begin the transaction that every dump of a backup looks through; return its snapshot's name.

    What is asked in it waits *lock_timeout* seconds for a lock (0: for ever): what a table's size and its rows need.
    """
    session.ask("begin isolation level repeatable read, read only")
    session.ask(f"set local lock_timeout = '{lock_timeout}s'")
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


def table_bytes(session: Session) -> tuple[int, int]:
    """Return the bytes of all tables a dump will hold, and of the largest; it looks at each, and waits for its lock."""
    total, largest = answer(session, _TABLE_BYTES)
    return int(total), int(largest)


def size(session: Session) -> int:
    """Return the bytes the database takes on its server's disk."""
    return int(session.ask("select pg_database_size(current_database())"))


def count_objects(session: Session) -> int:
    """Return how many tables, functions, types and the like the database holds beside its extensions'."""
    return int(session.ask(_OBJECTS))


def migrations(session: Session) -> list[str] | None:
    """Return the names of the migrations applied, from whichever ledger is there; None without one."""
    names = ", ".join(literal(table) for table in LEDGERS)
    present = {name: schema for schema, name in answer(session, _LEDGER_TABLES.format(names=names))}
    for table, name, order, condition in _LEDGERS:
        if table in present:
            place = f"{identifier(present[table])}.{identifier(table)}"
            sql = (
                f"select coalesce(json_agg(r ->> '{name}' order by r -> '{order}'), '[]') "
                f"from {place} t, to_jsonb(t) r where r ->> '{name}' is not null and {condition}"
            )
            found: list[str] = answer(session, sql)
            return found
    return None


def check_rows(expected: dict[str, int]) -> str:
    """Return SQL that fails, naming it, where a table has other rows than *expected* by `schema.table`.

    A table whose rows this user cannot see all of, for row-level security or the lack of a grant, goes uncounted.
    """
    names = sorted(expected)
    batches = [names[i : i + _COUNTED_AT_ONCE] for i in range(0, len(names), _COUNTED_AT_ONCE)]
    documents = [json.dumps({n: expected[n] for n in batch}, ensure_ascii=False) for batch in batches]
    blocks = [f"do {literal(_CHECK_ROWS.format(expected=literal(d)))};\n" for d in documents]
    # A dump leaves its own encoding behind.
    return "".join(["set client_encoding to 'UTF8';\n", *blocks])


def count_written(session: Session, since: int) -> tuple[dict[str, int], set[str]]:
    """Count the rows of every table a dump will hold that can be read, by `schema.table`.

    Return with them the tables that hold rows written after the transaction of the number *since*.
    """
    names = [(schema, table) for schema, table, readable in answer(session, _TABLE_NAMES) if readable]
    newer = _newer(since, int(session.ask("select pg_snapshot_xmax(pg_current_snapshot())")))
    counted: dict[str, list[int]] = {}
    for first in range(0, len(names), _COUNTED_AT_ONCE):
        counts = " union all ".join(
            f"select {literal(f'{schema}.{table}')} as name, count(*) as rows, count(*) filter (where {newer}) as new "
            f"from only {identifier(schema)}.{identifier(table)}"
            for schema, table in names[first : first + _COUNTED_AT_ONCE]
        )
        counted |= answer(session, f"select json_object_agg(name, array[rows, new]) from ({counts}) t")
    return {name: rows for name, (rows, _) in counted.items()}, {name for name, (_, new) in counted.items() if new}


def _newer(since: int, following: int) -> str:
    """Return the SQL that tells a row written by a transaction after *since* and before *following*."""
    if following > since + _FEW:
        # Of age only the session itself can speak, and not those that help it to scan.
        return f"age(xmin) between 0 and age('{since % _HALF}'::xid) - 1"
    numbers = [n % _HALF for n in range(since + 1, following) if n % _HALF >= _FIRST]
    return f"xmin = any('{{{','.join(map(str, numbers))}}}'::xid[])" if numbers else "false"


def being_filled(session: Session) -> set[str]:
    """Return the tables without children that others are writing to now, as SQL names them; waits for no lock."""
    return set(answer(session, _BEING_FILLED))


def to_analyze(session: Session, done: Collection[str] = ()) -> list[str]:
    """Return the tables and materialized views that `analyze` goes through, as SQL names them, the largest first.

    Those *done* already are left out, unless something beside their columns has statistics as well.
    """
    return [name for name, only_columns in answer(session, _TO_ANALYZE) if name not in done or not only_columns]


def database_exists(session: Session, name: str) -> bool:
    """Whether the server has a database of that name."""
    return session.ask(f"select count(*) from pg_database where datname = {literal(name)}") == "1"


def transaction_status(session: Session, number: int) -> str:
    """Return `committed`, `aborted` or `in progress`; empty for one that the server no longer knows of."""
    # What lies too far back is no longer known; to ask for what a server, made anew, never gave out is an error.
    given_out = f"'{number}'::xid8 < pg_current_xact_id()"
    return session.ask(f"select case when {given_out} then pg_xact_status('{number}') end")


def role_names(session: Session) -> set[str]:
    """Return the names of the server's roles."""
    return set(answer(session, "select json_agg(rolname) from pg_roles"))


def role(session: Session) -> Role:
    """Return who is connected, and what there is for it to name."""
    found = answer(session, _ROLE)
    if found.pop("parameters"):
        found["settable"] += answer(session, _GRANTED_PARAMETERS)
    found |= {key: frozenset(found[key]) for key in ("roles", "settable")}
    return Role(**found)


def present(session: Session) -> Present:
    """Return what a restore needs to know of the database that is there."""
    return Present(**answer(session, _PRESENT.format(bound=_BOUND, ours_to_end=OURS_TO_END)))


def bound(session: Session, name: str) -> Bound:
    """Return what would be lost with the database *name*."""
    sql = f"select json_build_object({_BOUND}) from pg_database d where d.datname = {literal(name)}"
    return Bound(**answer(session, sql))


def available_extensions(session: Session) -> set[str]:
    """Return the names of the extensions that can be created on this server."""
    return set(answer(session, "select json_agg(name) from pg_available_extensions"))

"""Emptying a database in place: what is the user's goes, what nobody could make again stays, and a dump goes in."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import nasty
import pytest
from conftest import Server, clean_environ

from pg_backup_tasks import emptying
from pg_backup_tasks.emptying import Kept, Locks, Survey
from pg_backup_tasks.model import Item
from pg_backup_tasks.sqltext import SqlDump

SLOW = pytest.mark.slow
Owner = nasty.Owner | None


def run(server: Server, database: str, sql: str | bytes, owner: Owner = None) -> subprocess.CompletedProcess[bytes]:
    """Feed SQL to psql as a restore does."""
    url = owner.url(server, database) if owner else server.url(database)
    return subprocess.run(
        [str(server.embedded.bin / "psql"), "-XAtq", "--set=ON_ERROR_STOP=1", url],
        input=sql.encode() if isinstance(sql, str) else sql,
        env=clean_environ() | {"PGCLIENTENCODING": "UTF8"},
        capture_output=True,
        check=False,
    )


def ask(server: Server, database: str, sql: str, owner: Owner = None) -> str:
    done = run(server, database, sql, owner)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def survey(server: Server, database: str, extensions: Iterable[str] = (), owner: Owner = None) -> Survey:
    return emptying.read_survey(json.loads(ask(server, database, emptying.survey(extensions) + ";", owner)))


def empty(server: Server, database: str, extensions: Iterable[str] = (), owner: Owner = None) -> None:
    ask(server, database, f"begin;\n{emptying.empty(extensions)}commit;\n", owner)


def dump(server: Server, database: str, owner: Owner = None) -> bytes:
    """Return what pg_restore prints of pg_dump's archive."""
    url = owner.url(server, database) if owner else server.url(database)
    archive = subprocess.run(
        [str(server.embedded.bin / "pg_dump"), "-Fc", url], env=clean_environ(), capture_output=True, check=False
    )
    assert archive.returncode == 0, archive.stderr.decode()
    printed = subprocess.run(
        [str(server.embedded.bin / "pg_restore"), "-f", "-"], input=archive.stdout, capture_output=True, check=True
    )
    return printed.stdout


def extensions_of(server: Server, database: str) -> list[str]:
    return server.sql("select extname from pg_extension", database).split()


def items_of(sql: bytes) -> Sequence[Item]:
    reader = SqlDump(headings=True)
    reader.feed(sql)
    return reader.items


def put_back(server: Server, database: str, sql: bytes, extensions: Sequence[str], owner: Owner = None) -> Survey:
    """Empty a database and load its dump in one transaction, leaving out what stays."""
    found = survey(server, database, extensions, owner)
    assert found.obstacles == ()
    reader = SqlDump(one_transaction=True, leave_out=emptying.leave_out(found.kept))
    loading = reader.feed(sql) + reader.close()
    before = emptying.empty(extensions) + emptying.owners(found.kept, items_of(sql))
    done = run(server, database, b"begin;\n" + before.encode() + loading + b"\ncommit;\n", owner)
    assert done.returncode == 0, done.stderr.decode()
    return found


def differences(wanted: dict[str, str], found: dict[str, str]) -> dict[str, tuple[str | None, str | None]]:
    keys = sorted({*wanted, *found})
    return {k: (wanted.get(k), found.get(k)) for k in keys if wanted.get(k) != found.get(k)}


@contextmanager
def databases(server: Server) -> Iterator[Callable[..., str]]:
    """Give what makes databases; they go at the end."""
    made: list[str] = []

    def make(sql: str = "", owner: Owner = None) -> str:
        name = f"e_{secrets.token_hex(4)}"
        made.append(name)
        server.sql(f"create database {name} template template0" + (f" owner {owner.name}" if owner else ""))
        if sql:
            server.sql(nasty.as_role(owner.name, f"{sql};") if owner else sql, name)
        return name

    try:
        yield make
    finally:
        for name in made:
            server.sql(f"drop database if exists {name} with (force)")


@pytest.fixture
def make(server: Server) -> Iterator[Callable[..., str]]:
    with databases(server) as maker:
        yield maker


@pytest.fixture
def owner(server: Server) -> nasty.Owner:
    server.sql(nasty.ROLES)
    return nasty.make_owner(server, createdb=False)


@pytest.fixture(params=[15, pytest.param(17, marks=SLOW), 18])
def any_server(request: pytest.FixtureRequest, servers: Callable[[int], Server]) -> Server:
    return servers(request.param)


# Everything comes back


@pytest.mark.parametrize("lose", [False, True], ids=["changed", "lost"])
@pytest.mark.parametrize("owned", [False, True], ids=["superuser", "owner"])
def test_what_a_bad_migration_did_is_undone_in_one_transaction(any_server: Server, owned: bool, lose: bool) -> None:
    server = any_server
    database = f"nasty_{secrets.token_hex(4)}"
    owner = nasty.make_owner(server, createdb=False) if owned else None
    nasty.build(server, database, owner)
    try:
        wanted = nasty.everything(server, database)
        sql, extensions = dump(server, database, owner), extensions_of(server, database)
        nasty.change(server, database, owner, lose=lose)
        assert server.dump_schema(database) != wanted["schema"]
        found = put_back(server, database, sql, extensions, owner)
        assert differences(wanted, nasty.everything(server, database)) == {}
        assert [k.name for k in found.kept if not k.mine] == (["plpgsql"] if owned else [])
        assert sorted(extensions_of(server, database)) == sorted(extensions)
    finally:
        server.sql(f'drop database "{database}" with (force)')


IS_FRESH = """
select (select count(*) from pg_largeobject_metadata), (select count(*) from pg_default_acl),
  (select count(*) from pg_namespace where oid >= 16384 and nspname not like 'pg\\_%' and nspname <> 'public'),
  (select string_agg(extname, ' ') from pg_extension), (select count(*) from pg_class where oid >= 16384
    and relnamespace <> 'pg_toast'::regnamespace),
  (select count(*) from pg_proc where oid >= 16384), (select count(*) from pg_type where oid >= 16384),
  (select count(*) from pg_cast where oid >= 16384), (select count(*) from pg_operator where oid >= 16384),
  (select count(*) from pg_opfamily where oid >= 16384), (select count(*) from pg_am where oid >= 16384),
  (select count(*) from pg_language where oid >= 16384), (select count(*) from pg_foreign_data_wrapper),
  nspowner::regrole, nspacl, obj_description(n.oid, 'pg_namespace')
from pg_namespace n where nspname = 'public'
"""


@pytest.mark.parametrize("lose", [False, True], ids=["changed", "lost"])
@pytest.mark.parametrize("owned", [False, True], ids=["superuser", "owner"])
def test_an_emptied_database_is_like_a_fresh_one(any_server: Server, owned: bool, lose: bool) -> None:
    server = any_server
    owner = nasty.make_owner(server, createdb=False) if owned else None
    database = f"nasty_{secrets.token_hex(4)}"
    nasty.build(server, database, owner)
    try:
        nasty.change(server, database, owner, lose=lose)
        empty(server, database, owner=owner)
        with databases(server) as make:
            fresh = make(owner=owner)
            assert server.dump_schema(database) == server.dump_schema(fresh)
            assert server.sql(IS_FRESH, database) == server.sql(IS_FRESH, fresh)
            empty(server, fresh, owner=owner)
            assert server.sql(IS_FRESH, database) == server.sql(IS_FRESH, fresh)
    finally:
        server.sql(f'drop database "{database}" with (force)')


def test_the_session_keeps_its_settings(server: Server, make: Callable[..., str]) -> None:
    database = make("create schema s; create table s.t (id int); create view v as select * from s.t")
    show = (
        "select json_object_agg(name, setting order by name) from pg_settings "
        "where name !~ '^(transaction|plpgsql|client_min_messages)'"
    )
    sql = f"set search_path to s, public;\n{show};\nbegin;\n{emptying.empty([])}{show};\ncommit;\n{show};\n"
    done = run(server, database, f"{sql}show client_min_messages;\n")
    *shown, level = done.stdout.decode().splitlines()
    before, within, after = map(json.loads, shown)
    assert before == within == after
    assert (level, done.stderr) == ("notice", b"")


def test_the_language_it_is_written_in_may_be_gone(server: Server, make: Callable[..., str]) -> None:
    database = make("drop extension plpgsql; create table t (id int)")
    empty(server, database)
    assert extensions_of(server, database) == ["plpgsql"]
    assert server.sql("select count(*) from pg_tables where schemaname = 'public'", database) == "0"


@pytest.mark.parametrize("path", ["public, pg_catalog", "public"], ids=["before the catalogs", "in the usual place"])
def test_names_of_the_users_do_not_stand_for_the_catalogs(server: Server, make: Callable[..., str], path: str) -> None:
    database = make("create table pg_class (oid oid); create table t (id int)")
    sql = f"set search_path to {path};\nbegin;\n{emptying.empty([])}commit;\n"
    ask(server, database, sql)
    assert server.sql("select count(*) from pg_tables where schemaname = 'public'", database) == "0"


# What stays

MANAGED = """
create extension pageinspect;
create extension postgres_fdw;
create extension hstore;
create function pg_catalog.watching() returns event_trigger language plpgsql as $$ begin end $$;
create event trigger "theirs %" on ddl_command_end execute function pg_catalog.watching();
comment on event trigger "theirs %" is 'x';
create publication "their ""pub"" !" for all tables;
create server far foreign data wrapper postgres_fdw;
comment on server far is 'far away';
create user mapping for {owner} server far options (user 'x');
grant usage on foreign server far to {owner};
create cast (bytea as json) without function;
comment on cast (bytea as json) is 'bold';
alter default privileges in schema public grant select on tables to public;
alter default privileges grant select on sequences to public;
create schema theirs;
grant all on schema theirs to {owner};
comment on schema theirs is 'shared';
"""
ON_TOP = """
create table t (id int primary key, h hstore);
insert into t values (1, 'a=>b');
create table theirs.mine (id int);
alter default privileges in schema public grant insert on tables to {reader};
alter default privileges in schema theirs grant select on sequences to public;
"""


def test_what_the_user_could_not_make_again_stays(any_server: Server) -> None:
    server = any_server
    server.sql(nasty.ROLES)
    owner = nasty.make_owner(server, createdb=False)
    with databases(server) as make:
        database = make(owner=owner)
        server.sql(MANAGED.replace("{owner}", owner.name), database)
        server.sql(nasty.as_role(owner.name, nasty.filled(ON_TOP)), database)
        wanted = nasty.everything(server, database)
        sql, extensions = dump(server, database, owner), extensions_of(server, database)
        server.sql(nasty.as_role(owner.name, "drop table t; create table theirs.more (); create schema new;"), database)
        found = put_back(server, database, sql, extensions, owner)
        assert differences(wanted, nasty.everything(server, database)) == {}
    assert {(k.kind, k.name) for k in found.kept} == {
        ("EXTENSION", "pageinspect"), ("EXTENSION", "postgres_fdw"), ("EXTENSION", "hstore"), ("EXTENSION", "plpgsql"),
        ("EVENT TRIGGER", "theirs %"), ("PUBLICATION", 'their "pub" !'), ("SERVER", "far"),
        ("USER MAPPING", f"USER MAPPING {owner.name} SERVER far"), ("CAST", "CAST (bytea AS json)"),
        ("SCHEMA", "theirs"), ("DEFAULT ACL", "DEFAULT PRIVILEGES FOR TABLES"),
        ("DEFAULT ACL", "DEFAULT PRIVILEGES FOR SEQUENCES"),
    }  # fmt: skip


def test_an_extension_in_a_schema_of_the_users_stays_with_its_schema(any_server: Server) -> None:
    server = any_server
    owner = nasty.make_owner(server, createdb=False)
    server.sql(nasty.ROLES)
    with databases(server) as make:
        filling = nasty.filled(
            'create schema "My Tools"; comment on schema "My Tools" is \'tools\';'
            'grant usage on schema "My Tools" to {reader};'
            'create extension hstore schema "My Tools"; create table "My Tools".t (h "My Tools".hstore);'
        )
        database = make(filling, owner)
        wanted = nasty.everything(server, database)
        sql, extensions = dump(server, database, owner), extensions_of(server, database)
        oid = server.sql("select oid from pg_extension where extname = 'hstore'", database)
        server.sql(
            nasty.filled(
                f'set role {owner.name}; drop table "My Tools".t; create view "My Tools".v as select 1; reset role;'
                'comment on schema "My Tools" is null;'
                'grant all on schema "My Tools" to {writer}; alter schema "My Tools" owner to {reader};'
                f"grant {nasty.quoted(nasty.READER)} to {owner.name}"
            ),
            database,
        )
        put_back(server, database, sql, extensions, owner)
        assert differences(wanted, nasty.everything(server, database)) == {}
        assert server.sql("select oid from pg_extension where extname = 'hstore'", database) == oid
        server.sql(f"revoke {nasty.quoted(nasty.READER)} from {owner.name}")


def test_an_extension_that_the_backup_lacks_goes_where_the_user_may(
    server: Server, make: Callable[..., str], owner: nasty.Owner
) -> None:
    database = make("create schema s; create extension hstore schema s", owner)
    server.sql("create extension pageinspect", database)
    assert [(k.name, k.mine) for k in survey(server, database, owner=owner).kept] == [
        ("pageinspect", False),
        ("plpgsql", False),
    ]
    empty(server, database, owner=owner)
    assert sorted(extensions_of(server, database)) == ["pageinspect", "plpgsql"]
    assert server.sql("select count(*) from pg_namespace where nspname = 's'", database) == "0"


CONFIGURED = """
create extension hstore;
create table settings (id int, who text);
alter extension hstore add table settings;
update pg_extension set extconfig = array['settings'::regclass::oid], extcondition = array['where id > 1']
  where extname = 'hstore';
insert into settings values (1, 'its own'), (2, 'the user''s'), (3, 'the user''s');
"""


@pytest.mark.parametrize("writable", [True, False])
def test_an_extensions_rows_that_are_in_the_dump_do_not_double(
    server: Server, make: Callable[..., str], owner: nasty.Owner, writable: bool
) -> None:
    database = make(owner=owner)
    server.sql(CONFIGURED, database)
    words = "select, insert, delete" if writable else "select"
    server.sql(f"grant {words} on settings to {owner.name}", database)
    # The owner's dump would hold this grant, which is the superuser's to give.
    sql = b"".join(dump(server, database, owner).partition(b"GRANT ")[:1])
    found = survey(server, database, ["hstore"], owner)
    assert [k.name for k in found.kept if k.kind == "TABLE DATA"] == ([] if writable else ["settings"])
    reader = SqlDump(one_transaction=True, leave_out=emptying.leave_out(found.kept))
    loading = reader.feed(sql) + reader.close()
    done = run(server, database, b"begin;\n" + emptying.empty(["hstore"]).encode() + loading + b"\ncommit;\n", owner)
    assert done.returncode == 0, done.stderr.decode()
    assert server.sql("select string_agg(id::text, ' ' order by id) from settings", database) == "1 2 3"


SUBSCRIPTION = """
create table t (id int);
create subscription "su b" connection 'dbname=x' publication p
  with (connect = false, slot_name = none, enabled = false);
"""


def test_a_subscription_stays_unless_it_writes_here(server: Server, make: Callable[..., str]) -> None:
    database = make(SUBSCRIPTION)
    try:
        empty(server, database)
        assert ("SUBSCRIPTION", "su b") in {(k.kind, k.name) for k in survey(server, database).kept}
        server.sql(
            "create table u (id int); insert into pg_subscription_rel (srsubid, srrelid, srsubstate) "
            "select oid, 'u'::regclass, 'r' from pg_subscription where subname = 'su b'",
            database,
        )
        assert survey(server, database).obstacles == ('subscription "su b" writes into tables here',)
    finally:
        server.sql('drop subscription "su b"', database)


# What stands in the way

OBSTACLES = {
    "a table": ("create table public.x (id int)", "table public.x belongs to postgres"),
    "a view": ('create view "s p".v as select 1', 'view "s p".v belongs to postgres'),
    "a routine": ("create function f(int) returns int language sql as 'select 1'", "function public.f(integer)"),
    "a large object": ("select lo_from_bytea(4711, 'x')", "large object 4711 belongs to postgres"),
    "a type": ("create type e as enum ()", "type public.e belongs to postgres"),
    "an operator family": (
        "create operator family o using btree; alter operator family o using btree owner to {owner}",
        "operator family public.o USING btree can be made again by a superuser only",
    ),
    "an event trigger": (
        "create event trigger watching on ddl_command_end execute function watch()",
        "event trigger watching uses function public.watch()",
    ),
    "a publication": (
        "create publication p for table t",
        "publication relation public.t in publication p uses table public.t",
    ),
    "default privileges": (
        'alter default privileges in schema "s p" grant select on tables to public',
        'default acl for role postgres in schema "s p" on tables uses schema "s p"',
    ),
}


@pytest.mark.parametrize("what", OBSTACLES)
def test_what_belongs_to_others_stands_in_the_way(
    server: Server, make: Callable[..., str], owner: nasty.Owner, what: str
) -> None:
    database = make(
        'create schema "s p"; create table t (id int);'
        "create function watch() returns event_trigger language plpgsql as 'begin end'",
        owner,
    )
    sql, sentence = OBSTACLES[what]
    server.sql(sql.replace("{owner}", owner.name), database)
    before = nasty.everything(server, database)
    found = survey(server, database, owner=owner)
    assert len(found.obstacles) >= 1
    assert any(sentence in each for each in found.obstacles), found.obstacles
    done = run(server, database, f"begin;\n{emptying.empty([])}commit;\n", owner)
    assert done.returncode == 3
    assert "in the way: " in done.stderr.decode() and sentence in done.stderr.decode()
    assert nasty.everything(server, database) == before
    assert survey(server, database).obstacles == ()
    empty(server, database)


def test_a_survey_touches_nothing(server: Server, make: Callable[..., str]) -> None:
    database = make("create table t (id int)")
    ask(server, database, f"begin read only; {emptying.survey([])}; {emptying.locks()}; commit;")


def test_many_obstacles_are_named_by_the_first(server: Server, make: Callable[..., str], owner: nasty.Owner) -> None:
    database = make(owner=owner)
    server.sql("; ".join(f"create table t{i} (id int)" for i in range(9)), database)
    done = run(server, database, f"begin;\n{emptying.empty([])}commit;\n", owner)
    assert "public.t2 belongs to postgres; and 6 more" in done.stderr.decode()


def test_an_extension_that_is_gone_and_cannot_be_made_stands_in_the_way(
    server: Server, make: Callable[..., str], owner: nasty.Owner
) -> None:
    database = make(owner=owner)
    assert survey(server, database, ["hstore", "pageinspect"], owner).obstacles == (
        "extension pageinspect is gone and this user may not create it",
    )
    assert survey(server, database, ["hstore", "pageinspect"]).obstacles == ()


# Room for locks

MANY = """
create procedure many(n int) language plpgsql as $$
begin
  for i in 1 .. n loop
    execute format('create table t%s (id serial primary key, v text unique, other int references t1)', i);
    if i % 200 = 0 then commit; end if;
  end loop;
end $$;
"""


def needed(server: Server, database: str) -> Locks:
    return emptying.read_locks(json.loads(ask(server, database, emptying.locks() + ";")), ())


def test_as_many_locks_are_foreseen_as_are_needed(server: Server, make: Callable[..., str]) -> None:
    database = make(MANY.replace("references t1", ""))
    server.sql("call many(150)", database)
    sql = dump(server, database)
    said = needed(server, database)
    counting = b"""select count(distinct (locktype, relation, classid, objid)) from pg_locks
        where pid = pg_backend_pid() and not fastpath;\n"""
    done = run(server, database, b"begin;\n" + emptying.empty([]).encode() + sql + counting + b"commit;\n")
    assert done.returncode == 0, done.stderr.decode()
    taken = int(done.stdout.split()[-1])
    assert taken <= said.needed <= 2 * taken
    assert said.capacity == 6400


@SLOW
@pytest.mark.parametrize(("tables", "fits"), [(200, True), (5000, False)])
def test_too_many_tables_are_seen_beforehand(server: Server, make: Callable[..., str], tables: int, fits: bool) -> None:
    database = make(MANY.replace(", other int references t1", ""))
    server.sql(f"call many({tables})", database)
    said = needed(server, database)
    assert (said.needed <= said.capacity) is fits
    if fits:
        put_back(server, database, dump(server, database), [])


# What a dump must not say again


def kept(kind: str, name: str, quoted: str = "", schema: str = "-", owner: str = "boss", mine: bool = False) -> Kept:
    return Kept(kind, name, quoted or name, schema, owner, mine)


def item(kind: str, name: str, schema: str = "-", owner: str = "boss") -> Item:
    return Item(kind=kind, schema=schema, name=name, owner=owner)


@pytest.mark.parametrize(
    ("stays", "left", "said"),
    [
        (kept("EVENT TRIGGER", "a b", '"a b"'), item("EVENT TRIGGER", "a b"), item("EVENT TRIGGER", "a")),
        (kept("EVENT TRIGGER", "a\nb", '"a\nb"'), item("EVENT TRIGGER", "a b"), item("TRIGGER", "a b")),
        (kept("EVENT TRIGGER", "a b", '"a b"'), item("COMMENT", 'EVENT TRIGGER "a b"'), item("COMMENT", "SERVER a")),
        (kept("SERVER", "far"), item("ACL", "FOREIGN SERVER far"), item("ACL", "TABLE far", "public")),
        (kept("PROCEDURAL LANGUAGE", "l"), item("ACL", "LANGUAGE l"), item("PROCEDURAL LANGUAGE", "m")),
        (kept("EXTENSION", "e"), item("COMMENT", "EXTENSION e"), item("COMMENT", "EXTENSION f")),
        (kept("SCHEMA", "s", mine=True), item("SCHEMA", "s"), item("COMMENT", "SCHEMA s")),
        (kept("SCHEMA", "s"), item("ACL", "SCHEMA s"), item("TABLE", "s", "s")),
        (kept("CAST", "CAST (a AS b)"), item("COMMENT", "CAST (a AS b)"), item("CAST", "CAST (b AS a)")),
        (kept("TABLE DATA", "t", schema="s"), item("TABLE DATA", "t", "s"), item("TABLE DATA", "t", "public")),
        (
            kept("DEFAULT ACL", "DEFAULT PRIVILEGES FOR TABLES", schema="s"),
            item("DEFAULT ACL", "DEFAULT PRIVILEGES FOR TABLES", "s"),
            item("DEFAULT ACL", "DEFAULT PRIVILEGES FOR TABLES", "s", "boss2"),
        ),
    ],
)
def test_exactly_what_stays_is_left_out(stays: Kept, left: Item, said: Item) -> None:
    leave_out = emptying.leave_out([stays])
    assert leave_out(left)
    assert not leave_out(said)


def test_what_the_user_may_alter_is_said_again() -> None:
    leave_out = emptying.leave_out([kept("EXTENSION", "e", mine=True)])
    assert not leave_out(item("EXTENSION", "e"))
    assert not leave_out(item("COMMENT", "EXTENSION e"))

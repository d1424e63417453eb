"""Whether a role can make a dump's objects again: certain, or not."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import nasty
import pytest
from benches import Bench
from conftest import Server, clean_environ
from described import but

from pg_backup_tasks import ability, archive
from pg_backup_tasks.ability import Role
from pg_backup_tasks.info import DatabaseInfo, Setting
from pg_backup_tasks.model import Item

OWNER = Role(
    "bar", False, True, frozenset({"bar", "other"}), {"hstore": True, "dblink": False}, frozenset({"work_mem"})
)
INFO = but(owner="bar")


def item(kind: str, definition: str = "", owner: str = "bar", name: str = "x", id_: int = 7) -> Item:
    return Item(id=id_, kind=kind, schema="s", name=name, owner=owner, definition=definition)


@pytest.mark.parametrize(
    ("found", "certain"),
    [
        (item("TABLE"), True),
        (item("TABLE", owner="other"), False),
        (item("SCHEMA", owner="pg_database_owner"), True),
        (item("EXTENSION", owner="", name="hstore"), True),
        (item("EXTENSION", owner="", name="dblink"), False),
        (item("EXTENSION", owner="", name="unheard_of"), False),
        (item("EVENT TRIGGER"), False),
        (item("A KIND OF THE FUTURE"), False),
        (item("FUNCTION", "CREATE FUNCTION s.x() RETURNS int\n    LANGUAGE sql\n    AS $$select 1$$;"), True),
        (item("FUNCTION", "CREATE FUNCTION s.x() RETURNS int\n    LANGUAGE c\n    AS '$libdir/x';"), False),
        (item("FUNCTION", "CREATE FUNCTION s.x() RETURNS int\n    LANGUAGE sql LEAKPROOF\n    AS $$$$;"), False),
        (item("FUNCTION", id_=0), False),
        (item("TYPE", "CREATE TYPE s.x AS ENUM ('a');"), True),
        (item("TYPE", "CREATE TYPE s.x (\n    INPUT = s.i,\n    OUTPUT = s.o\n);"), False),
        (item("PUBLICATION", "CREATE PUBLICATION x WITH (publish = 'insert');"), True),
        (item("PUBLICATION", "CREATE PUBLICATION x FOR ALL TABLES;"), False),
        (item("ACL", "GRANT SELECT ON TABLE s.x TO other;"), True),
        (item("ACL", "SET SESSION AUTHORIZATION other;\nGRANT SELECT ON TABLE s.x TO bar;"), False),
    ],
)
def test_objects(found: Item, certain: bool) -> None:
    assert (ability.doubts([found], INFO, OWNER) == []) is certain
    assert ability.doubts([found], INFO, replace(OWNER, superuser=True)) == []
    assert ability.doubts([found], INFO, replace(OWNER, createdb=False)) == ["bar may not create databases"]


@pytest.mark.parametrize(
    ("info", "certain"),
    [
        (INFO, True),
        (but(owner="other"), False),
        (but(owner="bar", settings=[Setting(None, "work_mem", "1MB")]), True),
        (but(owner="bar", settings=[Setting(None, "app.tenant", "1")]), False),
        (but(owner="bar", settings=[Setting(None, "Work_Mem", "1MB")]), True),
        (but(owner="bar", settings=[Setting(None, "log_statement", "all")]), False),
        (but(owner="bar", settings=[Setting("other", "work_mem", "1MB")]), False),
        (but(owner="bar", acl=["=Tc/bar", "bar=CTc/bar"]), True),
        (but(owner="bar", acl=["=Tc/bar", "other=c/somebody"]), False),
    ],
)
def test_what_belongs_to_the_database(info: DatabaseInfo, certain: bool) -> None:
    assert (ability.doubts([], info, OWNER) == []) is certain


def test_roles_that_are_missing() -> None:
    items = [
        item("TABLE", owner="gone"),
        item("ACL", 'GRANT SELECT ON TABLE s.x TO "Nasty ""one""";\nREVOKE ALL ON TABLE s.x FROM PUBLIC;\n'),
        item("DEFAULT ACL", "ALTER DEFAULT PRIVILEGES FOR ROLE bar GRANT ALL ON TABLES TO late WITH GRANT OPTION;"),
        item("SCHEMA", owner="pg_database_owner"),
        item("COMMENT", "COMMENT ON TABLE s.x IS 'GRANT SELECT ON TABLE s.x TO nobody;';", owner=""),
        item("POLICY", 'CREATE POLICY "x TO y" ON s.x FOR SELECT TO bar, "P 1", p2 USING (true);\n'),
        item("POLICY", "CREATE POLICY x ON s.x USING ((t = ' TO nobody;'));\n"),
        item("USER MAPPING", "CREATE USER MAPPING FOR m SERVER far;\n", name="USER MAPPING m SERVER far"),
        item("USER MAPPING", "CREATE USER MAPPING FOR public SERVER far;\n", name="USER MAPPING public SERVER far"),
    ]
    assert ability.missing_roles(items, OWNER) == ['Nasty "one"', "P 1", "gone", "late", "m", "p2"]


def test_extensions_that_are_missing() -> None:
    items = [item("EXTENSION", owner="", name=name) for name in ("hstore", "dblink", "unheard_of")]
    assert ability.missing_extensions(items, OWNER) == ["unheard_of"]


@pytest.fixture
def owned(
    servers: Callable[[int], Server], request: pytest.FixtureRequest
) -> Iterator[tuple[Server, nasty.Owner, str]]:
    server = servers(request.param)
    owner = nasty.make_owner(server, createdb=True)
    name = f"t_{owner.name}"
    nasty.build(server, name, owner)
    yield server, owner, name
    server.drop(name)


@pytest.mark.parametrize("owned", [15, 17, 18], indirect=True)
def test_all_that_a_plain_owner_has_made_it_can_make_again(
    owned: tuple[Server, nasty.Owner, str], tmp_path: Path
) -> None:
    server, owner, name = owned
    path = tmp_path / "dump"
    subprocess.run(
        [str(server.embedded.bin / "pg_dump"), "-Fc", f"--file={path}", f"--dbname={owner.url(server, name)}"],
        env={**clean_environ(), "PGPASSWORD": owner.password},
        check=True,
    )
    with path.open("rb") as file:
        contents, _ = archive.read_contents(file)
    roles = json.loads(server.sql("select json_agg(rolname) from pg_roles"))
    role = Role(
        owner.name, False, True, frozenset(roles), {"hstore": True, "citext": True, "plpgsql": True}, frozenset()
    )
    items = list(contents.entries.values())
    assert ability.doubts(items, but(owner=owner.name), role) == []
    assert ability.missing_roles(items, role) == []


@pytest.mark.parametrize(
    "major", [pytest.param(15, marks=pytest.mark.slow), pytest.param(17, marks=pytest.mark.slow), 18]
)
def test_a_setting_of_ones_own_is_not_lost(bench_of: Callable[[int], Bench], major: int) -> None:
    bench = bench_of(major)
    owner = nasty.make_owner(bench.server, createdb=True)
    database = bench.create("create table t (id int)", f"owner {owner.name}")
    bench.server.sql(f"alter table t owner to {owner.name}; alter database {database} set app.tenant to 'x'", database)
    url = owner.url(bench.server, database)
    bench.project.use(url)
    name = bench.project.inv("db.backup", "--json", "--formats", "dump").json["name"]
    settings = "select setconfig from pg_db_role_setting join pg_database d on d.oid = setdatabase where datname = "
    ways = []
    for grant in ("", f"grant set on parameter app.tenant to {owner.name}"):
        bench.server.sql(grant)
        done = bench.restore(name, database, url=url)
        assert done.code == 0, done.err
        assert bench.server.sql(settings + f"'{database}'") == "{app.tenant=x}"
        ways.append(done.json["how"])
    assert ways == ["in place", "swap"]
    bench.server.sql(f"revoke set on parameter app.tenant from {owner.name}")

"""What a restore would lose, or cannot bring: named before anything is touched."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import nasty
import pytest
from benches import Bench
from conftest import TASKS, Project, Server, clean_environ

from pg_backup_tasks.embedded import EmbeddedServer, find_bin

WAYS = pytest.mark.parametrize("in_place", ["false", "true"], ids=["swap", "in place"])


@pytest.fixture(scope="module")
def logical(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that keeps replication slots and prepared transactions."""
    with EmbeddedServer(find_bin(), settings={"wal_level": "logical", "max_prepared_transactions": "4"}) as embedded:
        yield Server(embedded, int(embedded.version.split(".")[0]))


@pytest.fixture
def there(logical: Server, tmp_path: Path) -> Iterator[tuple[Bench, str, str]]:
    """A database there with a table, and its backup."""
    (tmp_path / "tasks.py").write_text(TASKS)
    bench = Bench(logical, Project(tmp_path))
    database = bench.create("create table t (id int); insert into t values (1)")
    name = bench.backup(database)
    yield bench, database, name
    bench.clear()


@WAYS
@pytest.mark.parametrize(
    ("make", "gone", "what"),
    [
        (
            "select pg_create_logical_replication_slot('our_slot', 'pgoutput')",
            "select pg_drop_replication_slot('our_slot')",
            "replication slot our_slot",
        ),
        (
            "create subscription ours connection 'host=nowhere' publication p with (connect = false, slot_name = none)",
            "drop subscription ours",
            "subscription ours",
        ),
        ("begin; insert into t values (2); prepare transaction 'ours'", "rollback prepared 'ours'", "transaction ours"),
    ],
    ids=["slot", "subscription", "prepared"],
)
def test_what_no_dump_holds_is_not_lost(
    there: tuple[Bench, str, str], make: str, gone: str, what: str, in_place: str
) -> None:
    bench, database, name = there
    for statement in make.split("; ") if "prepare" not in make else [make]:
        bench.server.sql(statement, database)
    done = bench.restore(name, database, env={"INVOKE_DB_IN_PLACE": in_place})
    assert done.code == 2, done.err
    assert what in done.json["error"]
    assert done.json["try"]
    bench.server.sql(gone, database)
    done = bench.restore(name, database, env={"INVOKE_DB_IN_PLACE": in_place})
    assert done.code == 0, done.err


@pytest.mark.slow
def test_what_comes_while_it_loads_is_not_lost(there: tuple[Bench, str, str]) -> None:
    bench, database, _ = there
    bench.server.sql("insert into t select generate_series(1, 200000)", database)
    name = bench.backup(database, "--formats", "dump")
    over = threading.Event()

    def subscribe() -> None:
        while not over.wait(0.01):
            if bench.leftovers():
                bench.server.sql("select pg_create_logical_replication_slot('late', 'pgoutput')", database)
                return

    other = threading.Thread(target=subscribe)
    other.start()
    done = bench.restore(name, database)
    over.set()
    other.join()
    assert done.code == 2, done.err
    assert "replication slot late" in done.json["error"]
    assert bench.server.sql("select count(*) from t", database) == "200001"
    assert bench.leftovers() == ""
    bench.server.sql("select pg_drop_replication_slot('late')", database)


@pytest.fixture
def barred(logical: Server) -> Iterator[Callable[[str], None]]:
    """Return what lets everybody in to the databases named only."""
    path = logical.embedded.folder / "data" / "pg_hba.conf"
    before = path.read_text()

    def let_in(names: str) -> None:
        path.write_text(f"host {names} all 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 reject\n{before}")
        assert logical.sql("select pg_reload_conf()") == "t"

    yield let_in
    path.write_text(before)
    subprocess.run(
        [str(logical.embedded.bin / "psql"), "-Xqc", "select pg_reload_conf()"],
        env={**clean_environ(), **logical.embedded.environment(), "PGHOST": str(logical.embedded.folder)},
        check=True,
        capture_output=True,
    )


def test_a_server_that_lets_nobody_in_to_a_new_database(
    there: tuple[Bench, str, str], barred: Callable[[str], None]
) -> None:
    bench, database, name = there
    bench.server.sql("insert into t values (2)", database)
    barred(f"postgres,{database}")
    done = bench.restore(name, database)
    assert done.code == 1
    assert "INVOKE_DB_IN_PLACE" in done.json["try"]
    assert bench.server.sql("select count(*) from t", database) == "2"
    assert bench.leftovers() == ""
    done = bench.restore(name, database, env={"INVOKE_DB_IN_PLACE": "true"})
    assert done.code == 0, done.err
    assert bench.server.sql("select count(*) from t", database) == "1"


def test_a_server_that_lets_in_to_one_database_only(
    there: tuple[Bench, str, str], barred: Callable[[str], None]
) -> None:
    bench, database, name = there
    barred(f"{database}")
    done = bench.restore(name, database)
    assert done.code == 0, done.err
    assert done.json["how"] == "in place"
    assert "in to this database only" in done.err


@WAYS
@pytest.mark.parametrize("format_", ["dump", "sql"])
def test_a_role_that_is_missing_is_named_first(bench: Bench, in_place: str, format_: str) -> None:
    owner, reader = f"gone_{secrets.token_hex(4)}", f"gone_{secrets.token_hex(4)}"
    bench.server.sql(f"create role {owner}; create role {reader}")
    database = bench.create(
        f"create table t (id int); grant select on t to {reader}; create schema s authorization {owner}"
    )
    name = bench.backup(database)
    bench.server.sql(f"drop owned by {owner}; drop owned by {reader}; create table later (id int)", database)
    bench.server.sql(f"drop role {owner}; drop role {reader}")
    before = nasty.everything(bench.server, database)
    path = f"backups/postgres/{name}.{format_}"
    done = bench.restore(path, database, env={"INVOKE_DB_IN_PLACE": in_place})
    assert done.code == 1
    assert owner in done.json["error"]
    assert "not touched" in done.json["error"]
    assert "create role" in done.json["try"]
    assert nasty.everything(bench.server, database) == before
    # Whom plain SQL grants something, no heading of it says: that the load finds.
    bench.server.sql(f"create role {owner}")
    done = bench.restore(path, database, env={"INVOKE_DB_IN_PLACE": in_place})
    assert done.code == 1
    assert reader in done.json["error"]
    assert nasty.everything(bench.server, database) == before
    bench.server.sql(f"drop role {owner}")


@WAYS
@pytest.mark.parametrize("format_", ["dump", "tar", "sql"])
def test_an_extension_that_is_missing_is_named_first(bench: Bench, in_place: str, format_: str) -> None:
    folder = Path(
        subprocess.run(
            [str(bench.server.embedded.bin / "pg_config"), "--sharedir"], capture_output=True, text=True, check=False
        ).stdout.strip()
        or str(bench.server.embedded.bin.parent / "share")
    )
    controls = list(folder.rglob("hstore.control"))
    assert controls, folder
    control = controls[0]
    ours = control.with_name("bartools.control")
    script = control.with_name("bartools--1.0.sql")
    ours.write_text("default_version = '1.0'\nrelocatable = true\ntrusted = true\n")
    script.write_text("create function bartools() returns int language sql as 'select 1';\n")
    try:
        database = bench.create("create extension bartools; create table t (id int)")
        name = bench.backup(database)
        bench.server.sql("drop extension bartools", database)
    finally:
        ours.unlink()
        script.unlink()
    before = nasty.everything(bench.server, database)
    done = bench.restore(f"backups/postgres/{name}.{format_}", database, env={"INVOKE_DB_IN_PLACE": in_place})
    assert done.code == 1
    assert "bartools" in done.json["error"]
    assert "not touched" in done.json["error"]
    assert nasty.everything(bench.server, database) == before
    missing = bench.name()
    assert bench.restore(name, missing).code == 1
    assert not bench.has(missing)


@WAYS
def test_a_backup_that_is_gone_cannot_be_undone_with(bench: Bench, in_place: str) -> None:
    database = bench.create("create table t (id int)")
    name = bench.backup(database)
    assert bench.project.inv("db.undo", "--force").code == 2
    assert bench.restore(name, database, env={"INVOKE_DB_IN_PLACE": in_place}).code == 0
    for file in bench.project.backups.glob("backup_pre_restore_*"):
        file.unlink()
    aside = f"select datname from pg_database where datname like '{database}_before_%'"
    for each in bench.server.sql(aside).splitlines():
        bench.server.sql(f"drop database {each}")
    done = bench.project.inv("db.undo", "--force")
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("Try:")


@pytest.mark.slow
def test_nothing_else_lies_about(bench: Bench) -> None:
    database = bench.create("create table t (id int)")
    name = bench.backup(database)
    for _ in range(3):
        assert bench.restore(name, database).code == 0
        assert bench.project.inv("db.undo", "--force").code == 0
    aside = f"select count(*) from pg_database where datname like '{database}_before_%'"
    assert bench.server.sql(aside) == "1"
    assert bench.project.inv("db.restore", name, "--force", env={"INVOKE_DB_ASIDE_HOURS": "0"}).code == 0
    assert bench.server.sql(aside) == "1"
    shutil.rmtree(bench.project.backups)
    assert bench.project.inv("db.undo", "--force").code == 2


@pytest.mark.slow
def test_a_lock_table_that_is_too_small_is_said_before_anything_is_touched(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    small = {"max_locks_per_transaction": "10", "max_connections": "12", "max_worker_processes": "0"}
    with EmbeddedServer(find_bin(), settings=small) as embedded:
        bench = Bench(Server(embedded, int(embedded.version.split(".")[0])), Project(tmp_path))
        tables = "".join(f"create table t{n} (id int primary key, t text);" for n in range(60))
        database = bench.create(tables + "insert into t1 values (1, 'x')")
        name = bench.backup(database, "--formats", "dump")
        bench.server.sql("insert into t1 values (2, 'y'); drop table t2", database)
        before = nasty.everything(bench.server, database)
        done = bench.restore(name, database, env={"INVOKE_DB_IN_PLACE": "true"})
        assert done.code == 2, done.err
        assert "too many objects for one transaction" in done.json["error"]
        assert "max_locks_per_transaction" in done.json["try"]
        assert nasty.everything(bench.server, database) == before
        drop = "".join(f"drop table t{n};" for n in range(60) if n != 2)
        for half in (drop[: len(drop) // 2].rpartition(";")[0], drop[len(drop) // 2 :].partition(";")[2]):
            bench.server.sql(half, database)
        done = bench.restore(name, database, env={"INVOKE_DB_IN_PLACE": "true"})
        assert done.code == 2, done.err
        assert "too many objects for one transaction" in done.json["error"]
        assert not list(bench.project.backups.glob("backup_pre_restore_*"))
        done = bench.restore(name, database)
        assert done.code == 0, done.err
        assert bench.server.sql("select count(*) from t1", database) == "1"
        done = bench.restore(name, database, "--data-only")
        assert done.code == 2, done.err
        assert "The rows of 60 tables cannot be replaced in one transaction" in done.json["error"]
        assert "max_locks_per_transaction" in done.json["try"]


def test_to_restore_the_latest_twice_is_to_restore_the_same(bench: Bench) -> None:
    in_place = {"INVOKE_DB_IN_PLACE": "true"}
    database = bench.create("create table t (id int); insert into t values (1)")
    name = bench.backup(database)
    bench.server.sql("insert into t values (2)", database)
    for _ in range(2):
        done = bench.restore("latest", database, env=in_place)
        assert done.json["backup"] == name, done.err
        assert bench.server.sql("select count(*) from t", database) == "1"
    safety = bench.restore("latest:pre_restore", database, env=in_place)
    assert "pre_restore" in safety.json["backup"]


def test_what_is_kept_aside_is_listed(bench: Bench) -> None:
    database = bench.create("create table t (id int)")
    name = bench.backup(database)
    assert bench.project.inv("db.list", "--json").json["aside"] == []
    assert bench.restore(name, database).code == 0
    (aside,) = bench.project.inv("db.list", "--json").json["aside"]
    assert (aside["name"], aside["backup"], aside["host"]) == (database, name, "127.0.0.1")
    assert bench.has(aside["before"])
    listed = bench.project.inv("db.list").out.splitlines()[-3:]
    assert listed[0].startswith(f"Kept aside: {aside['before']} on 127.0.0.1, ")
    assert listed[1] == f"  {database} as it was before db.restore of {name}"
    assert listed[2] == "  inv db.undo puts it back; a cleanup drops it in 24 h"
    assert max(map(len, listed)) <= 80
    listed = bench.project.inv("db.list", env={"INVOKE_DB_ASIDE_HOURS": "0"}).out.splitlines()[-1:]
    assert listed == ["  inv db.undo puts it back; the next cleanup drops it"]


@pytest.mark.parametrize("format_", ["dump", "sql"])
def test_a_password_in_a_statement_that_fails_reaches_no_log(bench: Bench, format_: str) -> None:
    role, password = f"map_{secrets.token_hex(4)}", f"secret_{secrets.token_hex(4)}"
    bench.server.sql(f"create role {role}")
    mapping = f"create user mapping for {role} server far options (user 'u', password '{password}')"
    far = "create foreign data wrapper w; create server far foreign data wrapper w"
    database = bench.create(f"{far}; {mapping}; create function f() returns int language sql as 'select 1'")
    name = bench.backup(database, "--formats", format_)
    path = bench.project.backups / f"{name}.{format_}"
    # Without its .info nobody knows that it is not what was written: the load itself meets what is wrong.
    path.with_suffix(".info").unlink()
    path.write_bytes(path.read_bytes().replace(b"OPTIONS (\n", b"OPTIONX (\n"))
    done = bench.restore(str(path), database)
    assert done.code == 1, done.err
    written = [p.read_text(errors="replace") for p in bench.project.path.rglob("*log*") if p.is_file()]
    assert any("ERROR" in text for text in written)
    assert [text for text in [done.out, done.err, *written] if password in text] == []
    bench.server.sql(f"drop user mapping for {role} server far; drop role {role}", database)


@pytest.mark.parametrize("said", ["comment on large object 4711 is 'c'", "grant select on large object 4711 to public"])
def test_structure_alone_has_nothing_to_say_of_large_objects(bench: Bench, said: str) -> None:
    database = bench.create(f"create table t (id int); select lo_from_bytea(4711, 'x'); {said}")
    name = bench.backup(database, "--formats", "dump,sql")
    for format_ in ("dump", "sql"):
        done = bench.restore(f"backups/postgres/{name}.{format_}", database, "--schema-only", "--into", bench.name())
        assert done.code == 0, done.err


def test_a_role_that_reads_only_unless_it_says_otherwise(bench: Bench) -> None:
    owner = nasty.make_owner(bench.server, createdb=True)
    database = bench.create("create table t (id int)", f"owner {owner.name}")
    bench.server.sql(f"alter table t owner to {owner.name}", database)
    url = owner.url(bench.server, database)
    bench.project.use(url)
    name = bench.project.inv("db.backup", "--json", "--formats", "dump").json["name"]
    bench.server.sql(f"alter role {owner.name} set default_transaction_read_only to on")
    done = bench.restore(name, database, url=url)
    assert done.code == 0, done.err
    assert done.json["how"] == "swap"

"""The moment in which two databases change places: whoever is on either of them, and whatever hangs on them."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nasty
import pytest
from aftermath import wait_until
from benches import Bench
from conftest import Server, clean_environ

ASIDE = "select datname from pg_database where datname like '{}_before_%'"


@contextmanager
def session(server: Server, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """Somebody else's session, which stays as long as it is let."""
    name = f"other_{secrets.token_hex(4)}"
    command = [str(server.embedded.bin / "psql"), "-X", url, "-c", "select pg_sleep(60)"]
    run = subprocess.Popen(command, env=clean_environ() | {"PGAPPNAME": name}, stderr=subprocess.DEVNULL)
    try:
        wait_until(
            lambda: server.sql(f"select count(*) from pg_stat_activity where application_name = '{name}'") == "1",
            "somebody else's session",
        )
        yield run
    finally:
        run.kill()
        run.wait()


@pytest.fixture
def standard(server: Server) -> Iterator[str]:
    """The database that is always there, as some hosts have it for the user's own."""
    server.sql("create table t (id int); insert into t values (1)")
    yield "postgres"
    server.sql("drop table if exists t")


@pytest.mark.slow
def test_a_database_that_has_the_standard_name(bench: Bench, standard: str) -> None:
    name = bench.backup(standard, "--formats", "dump")
    bench.server.sql("insert into t values (2)")
    done = bench.restore(name, standard)
    try:
        assert done.code == 0, done.err
        assert done.json["how"] == "swap"
        assert bench.server.sql("select count(*) from t") == "1"
        undone = bench.project.inv("db.undo", "--force")
        assert undone.code == 0, undone.err
        assert bench.server.sql("select count(*) from t") == "2"
    finally:
        for aside in bench.server.sql(ASIDE.format(standard), "template1").splitlines():
            bench.server.sql(f"drop database {aside} with (force)", "template1")


def test_a_session_that_is_not_ours_to_end_is_found_beforehand(bench: Bench) -> None:
    owner, other = (nasty.make_owner(bench.server, createdb=True) for _ in range(2))
    # Whoever may become another, but has not what that one may, may not end its sessions.
    bench.server.sql(f"grant {other.name} to {owner.name} with inherit false")
    database = bench.create("", f"owner {owner.name}")
    bench.server.sql(nasty.as_role(owner.name, "create table t (id int);"), database)
    url = owner.url(bench.server, database)
    bench.project.use(url)
    taken = bench.project.inv("db.backup", "--json", "--formats", "dump")
    with session(bench.server, other.url(bench.server, database)) as theirs:
        done = bench.restore(taken.json["name"], database, url=url)
        assert done.code == 0, done.err
        assert done.json["how"] == "in place"
        assert f"may not end the sessions of {other.name}" in done.err
        assert theirs.poll() is None


@pytest.mark.slow
def test_a_session_on_what_is_to_take_the_name(bench: Bench) -> None:
    rows = "create table t (id int); insert into t values (1)"
    database = bench.create(rows)
    name = bench.backup(database, "--formats", "dump")
    over = threading.Event()
    sent: list[subprocess.Popen[bytes]] = []

    def look_on() -> None:
        while not over.wait(0.01):
            for fresh in bench.leftovers().split():
                if not sent or sent[-1].poll() is not None:
                    command = [str(bench.server.embedded.bin / "psql"), "-X", bench.server.url(fresh)]
                    sent.append(subprocess.Popen([*command, "-c", "select pg_sleep(60)"], stderr=subprocess.DEVNULL))

    watcher = threading.Thread(target=look_on)
    watcher.start()
    try:
        done = bench.restore(name, database)
        bench.server.sql(f"drop database {database} with (force)")
        made = bench.restore(name, database)
    finally:
        over.set()
        watcher.join()
        for each in sent:
            each.kill()
            each.wait()
    assert done.code == 0, done.err
    assert made.code == 0, made.err
    assert sent


@pytest.mark.slow
def test_a_session_on_what_is_kept_aside(bench: Bench) -> None:
    database = bench.create("create table t (id int); insert into t values (1)")
    name = bench.backup(database, "--formats", "dump")
    bench.server.sql("insert into t values (2)", database)
    for there in (True, False):
        assert bench.restore(name, database).code == 0
        with session(bench.server, bench.server.url(bench.server.sql(ASIDE.format(database)))):
            if not there:
                bench.server.sql(f"drop database {database}")
            undone = bench.project.inv("db.undo", "--force")
        assert undone.code == 0, undone.err
        assert bench.server.sql("select count(*) from t", database) == "2"


def cut_off(bench: Bench, database: str, backup: str, transaction: int) -> None:
    """Leave behind what a restore in place leaves that has died."""
    change = {"name": database, "host": "127.0.0.1", "port": bench.server.embedded.port, "task": "db.restore of x"}
    change |= {"backup": backup, "how": "in place", "before": "backup_pre_restore_20260101_000000"}
    change |= {"at": "2026-01-01T00:00:00Z", "bytes": 1, "presence": "1|x"}
    (bench.project.backups / ".restoring.json").write_text(json.dumps(change))
    (bench.project.backups / ".restoring.transaction").write_text(f"{transaction}\n")


@pytest.mark.parametrize("there", [True, False], ids=["server made anew", "database dropped"])
def test_a_restore_that_nobody_knows_of_any_more_is_in_nobodys_way(bench: Bench, there: bool) -> None:
    database = bench.create("create table t (id int)")
    name = bench.backup(database, "--formats", "dump")
    cut_off(bench, database, name, 999_999_999 if there else 700)
    if not there:
        bench.server.sql(f"drop database {database}")
    done = bench.restore(name, database)
    assert done.code == 0, done.err
    assert "nobody can say whether it was done" in done.err
    assert bench.project.hidden_files() == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", [(), ("--data-only",), ("--table", "log")], ids=["all", "rows", "table"])
def test_what_others_have_written_meanwhile_is_in_the_safety_backup_or_still_there(
    bench: Bench, mode: tuple[str, ...]
) -> None:
    rows = "insert into t select generate_series(1, 50000)"
    database = bench.create(f"create table log (i int); create table t (id int); {rows}")
    name = bench.backup(database, "--formats", "dump")
    written: list[int] = []
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            try:
                bench.server.sql(f"set lock_timeout = '50ms'; insert into log values ({len(written)})", database)
            except AssertionError:
                continue
            written.append(len(written))
            # Once it has been taken, whatever is written is missing in it.
            if list(bench.project.backups.glob("backup_pre_restore_*.info")):
                return

    other = threading.Thread(target=write)
    other.start()
    done = bench.restore(name, database, *mode, env={"INVOKE_DB_IN_PLACE": "true"})
    over.set()
    other.join()
    if done.code == 0:
        assert bench.project.inv("db.undo", "--force").code == 0
    else:
        assert "Others have written to public.log" in done.json["error"]
        assert "stop the applications" in done.json["try"]
    kept = bench.server.json("select coalesce(json_agg(i order by i), '[]') from log", database)
    assert set(written) <= set(kept)
    quiet = bench.restore(name, database, *mode, env={"INVOKE_DB_IN_PLACE": "true"})
    assert quiet.code == 0, quiet.err


def test_the_number_of_a_transaction_is_on_the_disk_before_it_does_anything(bench: Bench, tmp_path: Path) -> None:
    """Where the machine dies right after the commit, it is all that tells that there was one."""
    synced = tmp_path / "synced"
    shim = tmp_path / "bin" / "sync"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\necho "$1: $(cat "$1")" >> "{synced}"; exec /bin/sync "$1"\n')
    shim.chmod(0o755)
    database = bench.create("create table t (id int)")
    name = bench.backup(database)
    path = {"INVOKE_DB_IN_PLACE": "true", "PATH": f"{shim.parent}:{os.environ['PATH']}"}
    done = bench.restore(name, database, env=path)
    assert done.code == 0, done.err
    assert re.fullmatch(r".*/\.restoring\.transaction: \d+\n", synced.read_text())


def test_what_cannot_be_dropped_yet_is_not_forgotten(bench: Bench) -> None:
    owner = nasty.make_owner(bench.server, createdb=True)
    database = bench.create("create table t (id int)", f"owner {owner.name}")
    bench.server.sql(f"alter table t owner to {owner.name}", database)
    url = owner.url(bench.server, database)
    bench.project.use(url)
    name = bench.project.inv("db.backup", "--json", "--formats", "dump").json["name"]
    assert bench.restore(name, database, url=url).code == 0
    aside = bench.server.sql(ASIDE.format(database))
    with session(bench.server, bench.server.url(aside)):
        cleaned = bench.project.inv("db.cleanup", env={"INVOKE_DB_ASIDE_HOURS": "0"})
        assert cleaned.code == 0, cleaned.err
        assert "could not be dropped" in cleaned.err
        assert f"Dropped {aside}" not in cleaned.err
        assert [each["before"] for each in bench.project.inv("db.list", "--json").json["aside"]] == [aside]


def test_a_database_made_anew_does_not_go_back_to_what_was_before_it(bench: Bench) -> None:
    database = bench.create("create table t (id int)")
    name = bench.backup(database, "--formats", "dump")
    assert bench.restore(name, database).code == 0
    bench.server.sql(f"drop database {database}")
    assert bench.restore(name, database).code == 0
    undone = bench.project.inv("db.undo", "--force")
    assert undone.code == 2, undone.err
    assert bench.server.sql(ASIDE.format(database)) == ""


@pytest.mark.slow
def test_whoever_interrupts_the_last_step_is_told_that_it_was_done(bench: Bench) -> None:
    database = bench.create(
        """
        create table t (id int); insert into t values (1);
        create function slow(int) returns int language plpgsql immutable as $$ begin
          if current_query() ilike 'analyze%' then perform pg_sleep(3); end if; return $1;
        end $$;
        create index on t (slow(id));
        """
    )
    name = bench.backup(database, "--formats", "dump")
    bench.server.sql("insert into t values (2)", database)
    run = bench.project.start("db.restore", name, "--force", env={"INVOKE_DB_IN_PLACE": "true"})
    analyzing = f"select count(*) from pg_stat_activity where datname = '{database}' and query ilike 'analyze%'"
    wait_until(lambda: bench.server.sql(analyzing) == "1", "the last step")
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert f"{database} had been restored" in err
    assert "inv db.undo takes it back" in err
    assert bench.server.sql("select count(*) from t", database) == "1"

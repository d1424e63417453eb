"""A migration is made, or the database is exactly as it was: schema, rows, sequences, grants, settings."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import nasty
import pytest
from aftermath import processes, wait_until
from conftest import ROOT, TASKS, Project, Ran, Server, slowly
from sshd import an_sshd

from bench.sshd import HOST, Sshd
from pg_backup_tasks.embedded import EmbeddedServer, find_bin
from pg_backup_tasks.here import Here
from pg_backup_tasks.migration import Migration, Migrations
from pg_backup_tasks.model import Database

TABLES = """
create table drinks (id serial primary key, name text);
insert into drinks (name) select 'drink ' || n from generate_series(1, 300) n;
create table orders (id int primary key, drink int references drinks);
insert into orders select n, n from generate_series(1, 100) n;
create schema drizzle; create table drizzle.__drizzle_migrations (id serial primary key, hash text, created_at bigint);
insert into drizzle.__drizzle_migrations (hash) values ('first');
"""
GOOD = (
    "alter table drinks add column price int; insert into drizzle.__drizzle_migrations (hash) values ('second');"
    "insert into orders values (101, 1);"
)


@dataclass
class Shop:
    """A repository, its database, and how it is migrated: here, or on another machine."""

    project: Project
    server: Server
    database: str
    host: tuple[str, ...] = ()

    def inv(self, *args: str, **options: object) -> Ran:
        return self.project.inv(*args, *self.host, **options)  # type: ignore[arg-type]

    def sql(self, sql: str) -> str:
        return self.server.sql(sql, self.database)

    def migration(self, sql: str, then: str = "") -> tuple[str, ...]:
        """Return the task with a command that runs *sql*, and *then* something else."""
        psql = self.server.embedded.bin / "psql"
        command = f'{psql} -Xq --set=ON_ERROR_STOP=1 "$DATABASE_URL" --command {shlex.quote(sql)}'
        return ("db.migrate", "--command", f"{command}; {then}" if then else command)

    def state(self) -> dict[str, str]:
        return nasty.everything(self.server, self.database)

    def is_as_before(self, before: dict[str, str]) -> None:
        """Prove that everything is as it was, and that the next good migration goes in cleanly."""
        assert self.state() == before
        done = self.inv(*self.migration(GOOD), "--json")
        assert done.code == 0, done.err
        assert done.json["outcome"] == "migrated"
        assert done.json["migrations"] == {"before": ["first"], "after": ["first", "second"]}


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    with an_sshd() as sshd:
        yield sshd


@pytest.fixture
def here(ready: Project, server: Server, database: str) -> Shop:
    server.sql(TABLES, database)
    return Shop(ready, server, database)


@pytest.fixture(params=["here", "far"])
def shop(request: pytest.FixtureRequest, here: Shop, tmp_path: Path) -> Shop:
    return here if request.param == "here" else there(request, here, tmp_path)


@pytest.fixture(params=["here", pytest.param("far", marks=pytest.mark.slow)])
def any_shop(request: pytest.FixtureRequest, here: Shop, tmp_path: Path) -> Shop:
    """The same, where what is tried is no other thing on another machine."""
    return here if request.param == "here" else there(request, here, tmp_path)


def there(request: pytest.FixtureRequest, here: Shop, tmp_path: Path) -> Shop:
    """Return the shop as another machine has it."""
    sshd: Sshd = request.getfixturevalue("sshd")
    far = tmp_path / "far project"
    (here.project.path / "packages").rename(tmp_path / "packages")
    far.mkdir()
    (tmp_path / "packages").rename(far / "packages")
    bin_ = {"pg_bin": str(here.server.embedded.bin)}
    (here.project.path / "invoke.yaml").write_text(
        json.dumps({"db": {"ssh_config": sshd.config, "hosts": {"prod": {"ssh": HOST, "project": str(far)} | bin_}}})
    )
    here.host = ("--host", "prod")
    return here


# Migrated


def test_a_migration_that_works(shop: Shop) -> None:
    done = shop.inv(*shop.migration(GOOD, "echo all went well"))
    assert done.code == 0, done.err
    assert "all went well" in done.err
    assert "Applied  second" in done.out
    assert "Rows     public.orders: 100, then 101" in done.out
    (listed,) = shop.inv("db.list", "--json").json["backups"]
    assert listed["type"] == "pre_migrate"
    done = shop.inv(*shop.migration("select 1"), "--json")
    assert done.json == {
        "outcome": "migrated",
        "backup": done.json["backup"],
        "command_exit": 0,
        "seconds": done.json["seconds"],
        "migrations": {"before": ["first", "second"], "after": ["first", "second"]},
        "changed": {"schema": False, "tables": {}},
    }


def test_what_is_an_extensions_is_no_difference(here: Shop) -> None:
    here.sql("create table an_extensions as select 1 as n; alter extension plpgsql add table an_extensions")
    done = here.inv("db.migrate", "--command", "true", "--json")
    assert done.code == 0, done.err
    assert done.json["changed"] == {"schema": False, "tables": {}}


def test_the_command_is_the_settings(here: Shop) -> None:
    here.project.environ["INVOKE_DB_MIGRATE"] = "touch migrated; pwd"
    done = here.inv("db.migrate")
    assert done.code == 0, done.err
    assert (here.project.path / "migrated").exists()
    assert str(here.project.path) in done.err


def test_it_works_on_the_very_database_that_was_backed_up(here: Shop) -> None:
    names = ("DATABASE_URL", "DIRECT_URL", "DATABASE_URL_UNPOOLED")
    wrong = {"DIRECT_URL": "postgresql://nobody@127.0.0.1:1/wrong", "PGHOST": "wrong", "LANG": "C.UTF-8"}
    show = " ".join(f'"${name}"' for name in names)
    seen = here.project.path / "seen"
    done = here.inv("db.migrate", "--command", f'printf "%s\\n" {show} "$PGHOST" "$LANG" >seen', env=wrong)
    assert done.code == 0, done.err
    url = here.server.url(here.database)
    assert seen.read_text().splitlines() == [url, url, url, "", "C.UTF-8"]


def test_no_password_is_shown(shop: Shop) -> None:
    password = shop.server.embedded.environment("x")["PGPASSWORD"]
    done = shop.inv("-e", "db.migrate", "--command", 'echo "$DATABASE_URL"; ps -axww -o args=')
    assert done.code == 0, done.err
    assert "***" in done.err
    log = (shop.project.path / "backups/pg_backup_tasks.log").read_text()
    assert all(password not in text for text in (done.out, done.err, log))


# Rolled back

PROPERTIES = """
do $$ begin
  execute format('alter database %I set work_mem to ''9MB''', current_database());
  execute format('grant create on database %I to public', current_database());
  execute format('comment on database %I is ''x''', current_database());
  execute format('alter database %I connection limit 7', current_database());
end $$;
grant all on drinks to public; select setval('drinks_id_seq', 9999)
"""
# What a migration can do before it fails: the SQL, and what comes after.
BAD = {
    "halfway": ("alter table drinks add column price int; insert into drinks values (0, 'x'); select 1 / 0", ""),
    "transaction": ("begin; drop table orders; select 1 / 0", ""),
    "a column": ("alter table drinks drop column name", "exit 3"),
    "everything": ("drop schema public cascade; drop schema drizzle cascade", "exit 1"),
    "itself": ("delete from orders", "kill -9 $$"),
    "properties": (PROPERTIES, "exit 1"),
}


@pytest.mark.parametrize("kind", ["halfway", "everything", "properties", *slowly("transaction", "a column", "itself")])
def test_a_migration_that_fails_leaves_no_trace(any_shop: Shop, kind: str) -> None:
    shop = any_shop
    before = shop.state()
    done = shop.inv(*shop.migration(*BAD[kind]))
    assert done.code == 1, done.err
    assert done.err.splitlines()[-1].endswith(f"{shop.database} was rolled back: schema and rows are as before.")
    shop.is_as_before(before)


@pytest.mark.parametrize("many", [0, 1200])
def test_what_had_changed_is_told(here: Shop, many: int) -> None:
    """By a few transactions, of which each is looked for, and by more than that."""
    loop = f"begin for i in 1..{many} loop perform pg_current_xact_id(); commit; end loop; end"
    here.sql(f"create procedure go() language plpgsql as '{loop}'")
    changes = "drop table orders; delete from drinks where id > 100; update drizzle.__drizzle_migrations set hash = 'x'"
    go = f'{here.server.embedded.bin / "psql"} -Xq "$DATABASE_URL" --command "call go()"'
    done = here.inv(*here.migration(changes, f"{go}; exit 3"), "--json")
    assert done.code == 1
    assert (done.json["outcome"], done.json["command_exit"]) == ("rolled back", 3)
    assert done.json["changed"] == {
        "schema": True,
        "tables": {
            "drizzle.__drizzle_migrations": [1, 1],
            "public.drinks": [300, 100],
            "public.orders": [100, None],
        },
    }
    assert here.inv("db.undo", "--force").code == 0
    assert here.sql("select count(*) from drinks") == "100"


LEFT = """
create table half (id int)
select pg_create_logical_replication_slot('left_behind', 'pgoutput')
create subscription left_behind connection 'host=nowhere' publication p with (connect = false, slot_name = none)
begin; insert into orders values (900, 1); prepare transaction 'left behind'
"""


@pytest.mark.slow
@pytest.mark.parametrize("in_place", ["false", "true"], ids=["swap", "in place"])
def test_what_a_restore_would_refuse_to_lose_goes_where_the_migration_has_left_it(
    ready: Project, in_place: str
) -> None:
    with EmbeddedServer(find_bin(), settings={"wal_level": "logical", "max_prepared_transactions": "4"}) as embedded:
        server = Server(embedded, int(embedded.version.split(".")[0]))
        server.sql("create database shop")
        server.sql(TABLES, "shop")
        ready.use(server.url("shop"))
        shop = Shop(ready, server, "shop")
        before = shop.state()
        psql = f'{embedded.bin / "psql"} -Xq --set=ON_ERROR_STOP=1 "$DATABASE_URL" --command'
        steps = " && ".join(f"{psql} {shlex.quote(sql)}" for sql in LEFT.strip().splitlines())
        done = shop.inv("db.migrate", "--command", f"{steps}; exit 3", env={"INVOKE_DB_IN_PLACE": in_place})
        assert done.code == 1, done.err
        assert "The migration ended with exit code 3. Putting" in done.err
        assert "shop was rolled back: schema and rows are as before." in done.err
        assert shop.state() == before
        for left in ("pg_replication_slots", "pg_subscription", "pg_prepared_xacts"):
            assert shop.sql(f"select count(*) from {left}") == "0", left
        # So that it may go in again.
        shop.is_as_before(before)


def test_nothing_is_put_back_where_nothing_was_written(here: Shop) -> None:
    number = here.sql(f"select oid from pg_database where datname = '{here.database}'")
    done = here.inv("db.migrate", "--command", "exit 124")
    assert done.code == 1
    assert "The migration ended with exit code 124." in done.err
    assert "Nothing had been written since" in done.err
    assert here.sql(f"select oid from pg_database where datname = '{here.database}'") == number


def left_running(shop: Shop, *statements: str) -> tuple[str, ...]:
    """Return the task with a command that fails while sessions of its own are still within *statements*."""
    psql = f'{shop.server.embedded.bin / "psql"} -XAtq "$DATABASE_URL" --command'
    leave = "".join(f"setsid {psql} {shlex.quote(sql)} >/dev/null 2>&1 &\n" for sql in statements)
    asleep = f"select count(*) from pg_stat_activity where wait_event = 'PgSleep' and datname = '{shop.database}'"
    until = f'until [ "$({psql} {shlex.quote(asleep)})" = {len(statements)} ]; do sleep 0.05; done'
    return ("db.migrate", "--command", f"{leave}{until}; exit 1")


@pytest.mark.parametrize(
    "statement",
    [
        "delete from orders where pg_sleep(60) is null",
        *slowly("begin; delete from orders; select pg_sleep(60); commit"),
    ],
)
def test_what_is_still_running_is_ended_before_anything_is_called_as_before(here: Shop, statement: str) -> None:
    before = here.state()
    done = here.inv(*left_running(here, statement))
    assert done.code == 1, done.err
    others = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    assert here.sql(others) == "0"
    here.is_as_before(before)


def test_a_sequence_that_has_gone_on_is_put_back(here: Shop) -> None:
    # The server writes down 32 numbers at once: those are taken without a transaction's number.
    here.sql("select nextval('drinks_id_seq')")
    before = here.state()
    assert here.inv(*here.migration("select nextval('drinks_id_seq')", "exit 1")).code == 1
    assert here.state() == before


def test_row_locks_do_not_bar_the_way_back_in_place(here: Shop) -> None:
    here.project.environ |= {"INVOKE_DB_IN_PLACE": "true", "INVOKE_DB_LOCK_TIMEOUT": "5"}
    before = here.state()
    *task, command = left_running(here, "begin; delete from orders; select pg_sleep(60)")
    done = here.inv(*task, f"{here.migration('delete from orders where id < 5')[2]}; {command}")
    assert done.code == 1, done.err
    assert here.state() == before


def test_what_a_migration_made_does_not_bar_the_way_back(here: Shop) -> None:
    before = here.state()
    close = f"alter database {here.database} allow_connections false"
    psql = f'{here.server.embedded.bin / "psql"} -Xq "{here.server.url("postgres")}" --command'
    subscribe = "create subscription s connection 'dbname=x' publication p with (connect = false)"
    done = here.inv(*here.migration(f"delete from orders; {subscribe}", f"{psql} {shlex.quote(close)}; exit 1"))
    assert done.code == 1, done.err
    assert here.state() == before


def test_a_session_that_is_left_open(any_shop: Shop) -> None:
    shop = any_shop
    before = shop.state()
    psql = shop.server.embedded.bin / "psql"
    said = '(echo "begin; lock table drinks; delete from orders;"; sleep 60)'
    leave = f"setsid sh -c '{said} | {psql} -Xq \"$DATABASE_URL\"' >/dev/null 2>&1 & sleep 1; exit 1"
    done = shop.inv(*shop.migration("insert into drinks values (-1, 'x')", leave))
    assert done.code == 1, done.err
    shop.is_as_before(before)


def test_a_command_that_never_ends(any_shop: Shop) -> None:
    shop = any_shop
    before = shop.state()
    done = shop.inv(*shop.migration("delete from orders", "sleep 97"), "--timeout", "1")
    assert done.code == 1, done.err
    assert "The migration had not ended after 1.0 s." in done.err
    assert not [words for _, words in processes() if "sleep 97" in words]
    shop.is_as_before(before)


@pytest.mark.parametrize("check", ["select count(*) = 300 from drinks", "select count(*) from nowhere", "false"])
def test_a_check_that_fails_rolls_back(here: Shop, check: str) -> None:
    before = here.state()
    here.project.environ["INVOKE_DB_SMOKE"] = check
    done = here.inv(*here.migration("delete from orders; delete from drinks where id > 200"))
    assert done.code == 1, done.err
    assert "The check after the migration" in done.err
    assert ("failed: relation" in done.err) == ("nowhere" in check)
    del here.project.environ["INVOKE_DB_SMOKE"]
    here.is_as_before(before)


@pytest.mark.parametrize("check", ["select count(*) = 300 from drinks -- none is lost", "with-env true"])
def test_a_check_that_passes(here: Shop, check: str) -> None:
    command = here.project.path / "with-env"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    path = f"{here.project.path}:{os.environ['PATH']}"
    done = here.inv(*here.migration(GOOD), env={"INVOKE_DB_SMOKE": check, "PATH": path})
    assert done.code == 0, done.err


@pytest.mark.slow
def test_a_check_that_never_ends_rolls_back(here: Shop) -> None:
    before = here.state()
    here.project.environ["INVOKE_DB_SMOKE"] = "select pg_sleep(60)"
    done = here.inv(*here.migration("delete from orders"), "--timeout", "2")
    assert done.code == 1, done.err
    assert "The check after the migration failed: canceling statement due to statement timeout." in done.err
    assert here.state() == before


def test_a_database_that_is_gone_is_not_migrated(here: Shop) -> None:
    before = here.state()
    psql = f'{here.server.embedded.bin / "psql"} -Xq "{here.server.url("postgres")}" --command'
    done = here.inv("db.migrate", "--command", f"{psql} 'drop database {here.database}'")
    assert done.code == 1, done.err
    assert "There is no database" in done.err
    here.is_as_before(before)


def test_what_outlives_a_migration_and_holds_its_output(any_shop: Shop) -> None:
    done = any_shop.inv("db.migrate", "--command", r"setsid sleep 61 & printf '1%%\r2%%\r\nlast'")
    assert done.code == 0, done.err
    assert {"1%", "2%", "last"} <= set(done.err.splitlines())
    for number, words in processes():
        if words == "sleep 61":
            os.kill(number, signal.SIGKILL)


@pytest.mark.parametrize("renamed", [True, False])
def test_what_cannot_be_written_down_is_no_less_migrated(shop: Shop, tmp_path: Path, renamed: bool) -> None:
    """As on a full disk, where a file still gets another name; and where not even that goes."""
    other = "" if renamed else "rm backups/postgres/..migrations.json.migrated.new; "
    done = shop.inv(*shop.migration(GOOD, f"{other}mkdir backups/postgres/..migrations.json.new"), "--json")
    assert done.code == 0, done.err
    assert done.json["outcome"] == "migrated"
    assert (f"{shop.database} IS MIGRATED, but that could not be written down: " in done.err) is not renamed
    (obstacle,) = tmp_path.rglob("..migrations.json.new")
    obstacle.rmdir()
    again = shop.inv(*shop.migration("select 1"))
    assert again.code == (0 if renamed else 2), again.err


# Interrupted


def begun(shop: Shop) -> subprocess.Popen[str]:
    """Start a migration that deletes all orders and goes on for long; return once it has deleted them."""
    run = shop.project.start(*shop.migration("delete from orders", "sleep 98"), *shop.host)
    wait_until(lambda: shop.sql("select count(*) from orders") == "0", "the migration to have begun")
    return run


def test_a_cancelled_deploy_rolls_back(shop: Shop) -> None:
    rolls_back(shop, signal.SIGINT)


@pytest.mark.parametrize("signum", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_signal_rolls_back(any_shop: Shop, signum: signal.Signals) -> None:
    rolls_back(any_shop, signum)


def rolls_back(shop: Shop, signum: signal.Signals) -> None:
    before = shop.state()
    run = begun(shop)
    run.send_signal(signum)
    # Who is impatient is heard as little as any other.
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate()
    assert run.returncode == 128 + signum, err
    assert "was rolled back: schema and rows are as before." in err
    shop.is_as_before(before)


def test_a_run_that_is_killed_is_told_and_put_back(any_shop: Shop, tmp_path: Path) -> None:
    shop = any_shop
    before = shop.state()
    run = begun(shop)
    run.kill()
    run.communicate()
    ready = "..migrations.json.migrated.new"
    assert len(list(tmp_path.rglob(ready))) == 1
    says = f"db.migrate of {shop.database} was cut off at"
    tries = "inv db.rollback --host prod" if shop.host else "inv db.rollback"
    fetch = [("db.fetch", "latest")] if shop.host else []
    # Cron's silent task too.
    for task in (("db.list",), ("db.verify", "latest"), ("db.backup-auto",), ("db.cleanup",), *fetch):
        done = shop.inv(*task)
        assert says in done.err, (task, done.err)
        assert tries in done.err
    assert list(tmp_path.rglob(ready)) == []
    done = shop.inv(*shop.migration(GOOD))
    assert done.code == 2
    assert done.err.splitlines()[-1] == f"Try: {tries} puts it back as it was"
    assert shop.inv("db.rollback").code == 2
    done = shop.inv("db.rollback", "--force")
    assert done.code == 0, done.err
    assert says not in shop.inv("db.list").err
    assert "rolled back already" in shop.inv("db.rollback", "--force").err
    shop.is_as_before(before)


def disturbed(shop: Shop, *lines: str) -> None:
    """Let something happen within the tasks: *lines* are in their tasks.py."""
    imports = "import os, signal\nfrom pg_backup_tasks import here, migration, signals\n"
    interrupt = "def interrupt():\n    os.kill(os.getpid(), signal.SIGINT)\n    signals.check()\n"
    (shop.project.path / "tasks.py").write_text("\n".join((TASKS, imports, interrupt, *lines)))


WHILE_WRITING = """
real = migration.Migrations.remember
def remember(self, what):
    real(self, what)
    if what.state == {state!r}:
        interrupt()
migration.Migrations.remember = remember
"""


def test_a_signal_before_it_is_migrated_rolls_back(here: Shop) -> None:
    disturbed(here, WHILE_WRITING.format(state="under way"))
    done = here.inv(*here.migration(GOOD))
    assert done.code == 130, done.err
    assert "was rolled back: schema and rows are as before." in done.err
    assert "cut off" not in here.inv("db.list").err


def test_a_signal_after_it_is_migrated_comes_too_late(here: Shop) -> None:
    disturbed(here, WHILE_WRITING.format(state="migrated"))
    done = here.inv(*here.migration(GOOD))
    assert done.code == 0, done.err
    assert here.sql("select count(*) from orders") == "101"


def test_trouble_of_any_kind_rolls_back(here: Shop) -> None:
    disturbed(here, "def follow(*_):\n    raise ValueError('embedded null byte')\nhere.Here.follow = follow")
    done = here.inv(*here.migration(GOOD))
    assert done.code == 1
    assert "The migration broke off: embedded null byte." in done.err
    assert "was rolled back: schema and rows are as before." in done.err
    assert "cut off" not in here.inv("db.list").err


@pytest.mark.slow
def test_what_a_login_shell_reads_has_not_the_last_word(
    here: Shop, tmp_path: Path, request: pytest.FixtureRequest, sshd: Sshd
) -> None:
    shop = there(request, here, tmp_path)
    profiles = [sshd.folder / name for name in (".profile", ".bash_profile")]
    for profile in profiles:
        profile.write_text("export DATABASE_URL=postgresql://127.0.0.1:1/other\ncd /\n")
    done = shop.inv(
        "db.migrate", "--command", 'pwd; env | grep -c PG_BACKUP_TASKS; [ "$DATABASE_URL" = "$DIRECT_URL" ]'
    )
    for profile in profiles:
        profile.unlink()
    assert done.code == 0, done.err
    # Of ours it is told only that it is within a migration.
    assert done.err.splitlines()[-2:] == [str(tmp_path / "far project"), "1"]


def test_a_line_that_is_cut_in_a_migration(here: Shop, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    shop = there(request, here, tmp_path)
    before = shop.state()
    run = begun(shop)
    ((keeper, _), *_) = [(number, words) for number, words in processes() if "#whole" in words]
    parent = int(Path(f"/proc/{keeper}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(parent, signal.SIGKILL)
    _, err = run.communicate()
    assert run.returncode == 5, err
    assert "NEITHER MIGRATED NOR ROLLED BACK: The connection to prod was lost" in err
    assert err.splitlines()[-1].startswith("Try: inv db.rollback --host prod --force")
    wait_until(lambda: not [words for _, words in processes() if "sleep 98" in words], "the end of the far migration")
    assert "was cut off at" in shop.inv("db.list").err
    assert shop.inv("db.rollback", "--force").code == 0
    shop.is_as_before(before)


@pytest.mark.slow
def test_a_session_that_outlived_its_run_does_not_bar_the_way_back(here: Shop) -> None:
    here.project.environ |= {"INVOKE_DB_IN_PLACE": "true", "INVOKE_DB_LOCK_TIMEOUT": "5"}
    before = here.state()
    *task, command = left_running(here, "begin; delete from orders; select pg_sleep(60)")
    run = here.project.start(*task, command.replace("exit 1", "touch left; sleep 98"))
    wait_until((here.project.path / "left").exists, "the session to be left")
    run.kill()
    run.communicate()
    done = here.inv("db.rollback", "--force")
    assert done.code == 0, done.err
    here.is_as_before(before)


def test_a_way_back_that_is_killed_is_gone_once_more(here: Shop) -> None:
    before = here.state()
    run = begun(here)
    run.send_signal(signal.SIGTERM)
    wait_until((here.project.backups / ".restoring.json").exists, "the way back")
    run.kill()
    run.communicate()
    assert here.inv("db.rollback", "--force").code == 0
    here.is_as_before(before)


def damaging(shop: Shop, *names: str) -> str:
    files = " ".join(f"{shlex.quote(str(shop.project.backups))}/{name}" for name in names)
    return f"for f in {files}; do echo x >>$f; done; exit 1"


def test_neither_is_told_in_the_strongest_words(here: Shop) -> None:
    damage = damaging(here, "*.dump", "*.tar", "*.sql", "*.sql.gz")
    here.project.environ["INVOKE_DB_PROTECTED"] = here.database
    done = here.inv(*here.migration("delete from orders", damage), "--confirm", here.database)
    assert done.code == 5
    *_, why, tries = done.err.splitlines()
    assert f"{here.database} is NEITHER MIGRATED NOR ROLLED BACK: The migration ended with exit code 1." in why
    assert tries.startswith(f"Try: inv db.rollback --confirm {here.database}, now")
    assert here.sql("select count(*) from orders") == "0"


def test_one_whole_file_is_enough_to_go_back(here: Shop) -> None:
    before = here.state()
    done = here.inv(*here.migration("delete from orders", damaging(here, "*.dump", "*.tar")))
    assert done.code == 1, done.err
    assert here.state() == before


# Not begun


def test_nothing_is_migrated_without_a_backup(here: Shop) -> None:
    here.sql("create table other (); alter table other owner to postgres")
    here.server.sql(f"create role o_{here.database} login password 'x'")
    here.project.use(here.server.url(here.database).replace("postgres:", f"o_{here.database}:"))
    done = here.inv("db.migrate", "--command", "touch begun")
    assert done.code in (1, 4)
    assert not (here.project.path / "begun").exists()
    here.server.sql(f"drop role o_{here.database}")


def test_what_is_protected_or_only_planned_is_not_migrated(here: Shop) -> None:
    done = here.inv("db.migrate", "--command", "touch begun; exit 0", env={"INVOKE_DB_PROTECTED": here.database})
    assert done.code == 2
    assert "is protected" in done.err
    assert not (here.project.path / "begun").exists()
    done = here.inv("--dry", "db.migrate", "--command", "touch begun")
    assert (done.code, "Would back up" in done.err) == (0, True)
    assert here.project.final_files() == []
    done = here.inv("db.migrate", "--command", "true", "--confirm", here.database)
    assert done.code == 0, done.err
    assert here.inv("db.migrate", "--timeout", "soon").code == 2


# Back to the last


def test_a_rollback_is_to_exactly_that_backup(here: Shop) -> None:
    before = here.state()
    assert here.inv(*here.migration(GOOD)).code == 0
    name = here.inv("db.list", "--json").json["backups"][0]["name"]
    assert here.inv("db.backup-pre-migrate", "--formats", "dump").code == 0
    assert here.inv("db.cleanup", "--keep", "1").code == 0
    assert (here.project.backups / f"{name}.dump").exists()
    info = here.project.backups / f"{name}.info"
    whole = info.read_text()
    info.write_text(whole.replace('"sha256": "', '"sha256": "0', 1))
    done = here.inv("db.rollback", "--force")
    assert done.code == 1
    assert "is not the backup that was taken before the migration" in done.err
    info.write_text(whole)
    assert here.inv("db.rollback", "--force").code == 0
    assert here.state() == before
    for file in here.project.backups.glob(f"{name}*"):
        file.unlink()
    assert here.inv(*here.migration(GOOD)).code == 0
    newest = here.inv("db.list", "--json").json["backups"][0]["name"]
    for file in here.project.backups.glob(f"{newest}*"):
        file.unlink()
    assert here.inv("db.rollback", "--force").code == 2


def test_a_rollback_with_nothing_remembered(here: Shop) -> None:
    assert here.inv("db.rollback", "--force").code == 2
    before = here.state()
    name = here.inv("db.backup-pre-migrate", "--json").json["name"]
    here.sql("drop table orders")
    done = here.inv("db.rollback", "--force")
    assert done.code == 0, done.err
    assert f"the newest backup of type pre_migrate is {name}" in done.err
    assert here.state() == before


@pytest.mark.slow
def test_a_rollback_that_was_undone_can_be_had_again(here: Shop) -> None:
    before = here.state()
    assert here.inv(*here.migration(GOOD)).code == 0
    for _ in range(2):
        assert here.inv("db.rollback", "--force").code == 0
        assert here.state() == before
        assert "Would do nothing" in here.inv("--dry", "db.rollback").err
        done = here.inv("db.rollback", "--force", "--json")
        name = done.json["backup"]
        nothing = {"backup": name, "database": here.database, "mode": "full", "how": None, "seconds": 0}
        assert (done.code, done.json) == (0, nothing)
        assert here.inv("db.undo", "--force").code == 0
        assert here.sql("select count(*) from orders") == "101"


@pytest.mark.slow
@pytest.mark.parametrize("type_", ["manual", "pre_migrate"])
def test_a_restore_ends_what_was_cut_off(here: Shop, type_: str) -> None:
    before = here.state()
    assert here.inv("db.backup").code == 0
    run = begun(here)
    run.kill()
    run.communicate()
    assert here.inv("db.restore", f"latest:{type_}", "--force").code == 0
    here.is_as_before(before)


def test_what_is_remembered_follows_what_is_done(tmp_path: Path) -> None:
    migrations, database = Migrations(Here(), str(tmp_path)), Database("bar", "localhost")
    cut_off = Migration("bar", "localhost", 5432, "backup", "sha", "now", "under way", "1")
    other = replace(cut_off, name="other")
    migrations.remember(other)

    def now() -> str | None:
        last = migrations.last(database)
        return last.state if last else None

    for backup, state in (("backup", "rolled back"), ("another", None)):
        migrations.remember(cut_off)
        migrations.undone(database, "db.restore", "backup")
        assert now() == "under way"
        migrations.replaced(database, backup)
        assert now() == state
    migrations.ended(cut_off, "rolled back")
    for task, backup, state in (
        ("db.restore", "another", "rolled back"),
        ("db.rollback", "backup", "migrated"),
        ("db.undo", "backup", "rolled back"),
        ("db.undo", "backup", "migrated"),
        ("db.restore", "backup", "migrated"),
    ):
        migrations.undone(database, task, backup)
        assert now() == state
        migrations.replaced(database, "another")
    assert other in migrations.all()


# A deploy


@dataclass
class Deploy:
    """The steps of the README's deploy, run as a runner runs them."""

    shop: Shop
    steps: dict[str, str]

    def start(self, name: str, **env: str) -> subprocess.Popen[str]:
        script = self.shop.project.path / "step.sh"
        script.write_text(self.steps[name] + "\n")
        env = self.shop.project.environment(env)
        words = ["bash", "-e", str(script)]
        pipe = subprocess.PIPE
        return subprocess.Popen(words, cwd=self.shop.project.path, env=env, stdout=pipe, stderr=pipe, text=True)

    def step(self, name: str, **env: str) -> Ran:
        with self.start(name, **env) as run:
            out, err = run.communicate()
        return Ran(run.returncode, out, err)


@pytest.fixture
def deploy(here: Shop) -> Deploy:
    text = (ROOT / "README.md").read_text().partition("A deploy with GitHub Actions:")[2]
    steps = dict(re.findall(r"- name: (.*)\n(?:        if: .*\n)?        run: (.*)$", text, re.MULTILINE)[:3])
    door = here.project.path / "scripts" / "inv"
    door.parent.mkdir()
    door.write_text(f'#!/bin/sh\nexec {shlex.join(here.project.command())} "$@"\n')
    door.chmod(0o755)
    return Deploy(here, steps)


def test_the_readmes_deploy(deploy: Deploy) -> None:
    shop = deploy.shop
    before = shop.state()
    first, second = {"GITHUB_RUN_ID": "1"}, {"GITHUB_RUN_ID": "2"}
    good = {"INVOKE_DB_MIGRATE": shop.migration(GOOD)[2]}
    # The tests fail after a good migration.
    assert deploy.step("Migrate", **first, **good).code == 0
    assert deploy.step("Roll back", **first).code == 0
    assert shop.state() == before
    # The migration fails and has put things back itself.
    assert deploy.step("Migrate", **first, INVOKE_DB_MIGRATE="exit 1").code == 1
    assert "rolled back already" in deploy.step("Roll back", **first).err
    # All goes well; the next deploy, or the same once more, is cancelled before it has begun anything.
    assert deploy.step("Migrate", **first, **good).code == 0
    migrated = shop.state()
    for other in (second, first | {"GITHUB_RUN_ATTEMPT": "2"}):
        done = deploy.step("Roll back", **other)
        assert (done.code, "is not this run's" in done.err) == (0, True)
    assert shop.state() == migrated
    # Whoever sits before a terminal means what they say.
    assert deploy.step("Roll back").code == 0
    assert shop.state() == before


def test_the_first_deploy_rolls_nobodys_work_back(deploy: Deploy) -> None:
    assert deploy.shop.inv("db.backup-pre-migrate", "--formats", "dump").code == 0
    deploy.shop.sql("insert into orders values (999, 1)")
    done = deploy.step("Roll back", GITHUB_RUN_ID="1")
    assert (done.code, "this run (GITHUB_RUN_ID=1) made none" in done.err) == (0, True)
    assert deploy.shop.sql("select count(*) from orders where id = 999") == "1"


def test_a_deploy_that_the_runner_cancels(deploy: Deploy) -> None:
    shop, mine = deploy.shop, {"GITHUB_RUN_ID": "7"}
    before = shop.state()
    run = deploy.start("Migrate", **mine, INVOKE_DB_MIGRATE=shop.migration("delete from orders", "sleep 98")[2])
    wait_until(lambda: shop.sql("select count(*) from orders") == "0", "the migration to have begun")
    # As a runner does it, to the step's shell alone: SIGINT, then SIGTERM, and soon after that an end to all of it.
    run.send_signal(signal.SIGINT)
    wait_until((shop.project.backups / ".restoring.json").exists, "the way back")
    run.send_signal(signal.SIGTERM)
    run.kill()
    run.communicate()
    assert deploy.step("Roll back", **mine).code == 0
    shop.is_as_before(before)


def test_a_migration_that_calls_itself(here: Shop) -> None:
    done = here.inv("db.migrate", "--command", f"{sys.executable} -m invoke db.migrate")
    assert done.code == 1
    assert "The command that is to migrate calls db.migrate itself." in done.err
    assert "was rolled back" in done.err
    scripts = {"db:migrate": "scripts/inv db.migrate"}
    (here.project.path / "package.json").write_text(json.dumps({"scripts": scripts}))
    number = len(here.project.final_files())
    done = here.inv("db.migrate")
    assert done.code == 2
    assert "The command that is to migrate calls db.migrate itself." in done.err
    assert len(here.project.final_files()) == number

"""A run that is interrupted or killed at any moment: all or nothing, and nobody left behind."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import re
import secrets
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from aftermath import holding, wait_until
from conftest import ROOT, TASKS, Project, Server

from pg_backup_tasks import bulk, process, signals
from pg_backup_tasks.crew import Crew
from pg_backup_tasks.errors import Interrupted
from pg_backup_tasks.here import Here
from pg_backup_tasks.machine import CommandError, Job
from pg_backup_tasks.model import Command

MARK = "TEST_INTERRUPTION"
FINAL = re.compile(r"(backup_manual_\d{8}_\d{6})(\.info|\.dump|\.tar|\.sql|\.sql\.gz)")
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGKILL: -9}
EVERY_SIGNAL = tuple(CODES)
# Longer than any run may take to end once it was told to.
SOON = 10.0

STOCK = """
create table guests (id int primary key, name text, note text);
insert into guests select i, 'Guest ' || i, md5(i::text) || md5((i * 7)::text) from generate_series(1, 25000) i;
create index on guests (name);
create table orders (id int primary key, guest int references guests, what jsonb);
insert into orders select i, i, jsonb_build_object('drink', md5(i::text)) from generate_series(1, 10000) i;
create view regulars as select * from guests where id < 100;
select lo_from_bytea(0, decode(repeat('68617070790a', 5000), 'hex'));
comment on database {database} is 'the bar''s';
alter database {database} set work_mem = '5MB';
"""
# Each row takes its time to arrive, so that a restore can be met while it loads.
SLOW = """
create function slow(id int) returns boolean language sql as 'select true';
create table guests (id int check (slow(id)));
insert into guests select generate_series(1, 120);
create or replace function slow(id int) returns boolean language plpgsql as
  $$ begin perform pg_sleep(0.01); return true; end $$;
"""


def slow(*values: Any) -> Any:
    """Return the parameters of a case that can wait for the slow tests, others having shown most of it."""
    return pytest.param(*values, marks=pytest.mark.slow)


def mostly(*fast: signal.Signals) -> list[Any]:
    """Return every signal, those that are not *fast* for the slow tests."""
    return [each if each in fast else slow(each) for each in EVERY_SIGNAL]


@dataclass
class Bar:
    """A project and the server it works on, watched: what runs for it, what is left of it."""

    project: Project
    server: Server
    database: str

    def __post_init__(self) -> None:
        self.mark = secrets.token_hex(8)
        self.project.environ[MARK] = self.mark
        self.project.use(self.server.url(self.database))

    def start(self, *args: str, **popen: Any) -> subprocess.Popen[str]:
        """Start `inv ARGS` in a group of its own."""
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            self.project.command(*args),
            cwd=self.project.path,
            env=self.project.environment(popen.pop("env", None)),
            text=True,
            **{"start_new_session": True, **options, **popen},
        )

    def processes(self) -> list[str]:
        """Return what runs for this project: all that has its environment, detached or not."""
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_text().replace("\0", " ")[:100] or entry.name)
        return found

    def sessions(self) -> str:
        """Return what sessions there are beside the one that asks."""
        return self.server.sql(
            "select datname, pid, state, query from pg_stat_activity "
            "where backend_type = 'client backend' and pid <> pg_backend_pid()"
        )

    def asks(self, what: str) -> bool:
        """Whether a session is at a statement that begins so."""
        return (
            self.server.sql(
                f"select count(*) from pg_stat_activity where state = 'active' and query ilike '{what}%' "
                "and pid <> pg_backend_pid()"
            )
            != "0"
        )

    def partial(self) -> list[Path]:
        """Return the files that are coming to be."""
        return list(self.project.backups.glob(".partial_*/*"))

    def databases(self) -> set[str]:
        return set(self.server.sql("select datname from pg_database").splitlines())

    def scratch(self) -> set[str]:
        """Return the databases being filled under a name of ours."""
        return {name for name in self.databases() if name.startswith("pg_backup_tasks_")}

    def leaves_nobody(self) -> None:
        """Soon there is no process and no session of the run any more."""
        wait_until(lambda: not self.processes(), f"the end of {self.processes()}")
        wait_until(lambda: not self.sessions(), f"the end of {self.sessions()}")

    def whole_backups(self) -> set[str]:
        """Return the names of the backups that can be seen, each of which must be whole."""
        names = self.project.final_files()
        found = {match[1] for name in names if (match := FINAL.fullmatch(name))}
        for name in found:
            assert f"{name}.info" in names, names
            for extension, recorded in json.loads((self.project.backups / f"{name}.info").read_text())["files"].items():
                data = (self.project.backups / f"{name}{extension}").read_bytes()
                assert recorded == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        unknown = [n for n in names if not FINAL.fullmatch(n) and not (self.project.backups / n).is_symlink()]
        assert unknown == []
        dangling = [n for n in names if not (self.project.backups / n).exists()]
        assert dangling == []
        return found

    def next_backup_works(self) -> None:
        """The next run succeeds, clears what is left, and says of which backups."""
        before = self.whole_backups()
        unfinished = {n.removeprefix(".partial_") for n in self.project.hidden_files() if n.startswith(".partial_")}
        ran = self.project.inv("db.backup", "--json")
        assert ran.code == 0, ran.err
        for name in unfinished - before:
            assert f"Cleared what an earlier run left of {name}," in ran.err
        assert self.project.hidden_files() == []
        assert self.whole_backups() == before | {ran.json["name"]}


@pytest.fixture
def bar(project: Project, server: Server, database: str) -> Bar:
    """A bar with a stock."""
    server.sql(STOCK.format(database=database), database)
    return Bar(project, server, database)


def end(run: subprocess.Popen[str], within: float = SOON) -> tuple[int, str]:
    """Return the exit code and what was said on standard error; fail if it does not end soon."""
    try:
        _, err = run.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        run.kill()
        run.communicate()
        raise AssertionError(f"still there after {within} s") from None
    return run.returncode, err


def interrupted(run: subprocess.Popen[str], signum: signal.Signals, within: float = SOON) -> None:
    """Send a signal; the run must end by it, soon, and say so in one sentence."""
    run.send_signal(signum)
    code, err = end(run, within)
    assert code == CODES[signum], err
    assert "Traceback" not in err
    if signum is not signal.SIGKILL:
        assert err.splitlines()[-1] == f"Ended by {signum.name}."


# A backup, met at every stage


def at_the_lock(bar: Bar) -> bool:
    return ".lock" in bar.project.hidden_files()


def in_the_folder(bar: Bar) -> bool:
    return any(n.startswith(".partial_") for n in bar.project.hidden_files())


def when_sql_grows(bar: Bar) -> bool:
    return any(p.suffix == ".sql" and p.stat().st_size for p in bar.partial() if p.exists())


STAGES: dict[str, Callable[[Bar], bool]] = {f.__name__: f for f in (at_the_lock, in_the_folder, when_sql_grows)}


def stopped_for_good(bar: Bar, before: set[str], signum: signal.Signals) -> None:
    """Hold what an interrupted backup leaves against what it may."""
    bar.leaves_nobody()
    assert bar.whole_backups() == before
    if signum is not signal.SIGKILL:
        assert bar.project.hidden_files() == []
    bar.next_backup_works()


@pytest.mark.parametrize("signum", mostly(signal.SIGTERM))
@pytest.mark.parametrize("stage", STAGES)
def test_a_backup_interrupted(bar: Bar, stage: str, signum: signal.Signals) -> None:
    run = bar.start("db.backup")
    wait_until(lambda: STAGES[stage](bar) or run.poll() is not None, stage)
    interrupted(run, signum)
    stopped_for_good(bar, set(), signum)


@pytest.mark.parametrize("signum", mostly(signal.SIGKILL))
def test_a_backup_interrupted_while_pg_dump_waits_for_a_lock(bar: Bar, signum: signal.Signals) -> None:
    bar.server.sql("create table parts (id int) partition by range (id)", bar.database)
    with holding(bar.server, bar.database, "lock table parts"):
        run = bar.start("db.backup")
        wait_until(lambda: bar.asks("lock table"), "pg_dump to wait")
        interrupted(run, signum)
        wait_until(lambda: not bar.asks("lock table"), "the end of pg_dump's sessions")
        wait_until(lambda: not bar.processes(), "the end of its processes")
    stopped_for_good(bar, set(), signum)


@contextmanager
def gate(bar: Bar, program: str, times: int = 1) -> Iterator[tuple[Callable[[], bool], Callable[[], None]]]:
    """Stop our runs where they call *program* for the nth time; give whether one has come, and what lets it on."""
    folder = bar.project.path.parent / f"gate_{program}"
    folder.mkdir()
    real = next(p for p in (Path("/usr/bin", program), Path("/bin", program)) if p.exists())
    script = folder / program
    script.write_text(
        f"#!/bin/sh\necho >>{folder}/calls\n"
        f'if [ "$(wc -l <{folder}/calls)" -eq {times} ]; then\n'
        f"  until [ -e {folder}/open ]; do sleep 0.02; done\nfi\n"
        f'exec {real} "$@"\n'
    )
    script.chmod(0o755)
    path = bar.project.environ.get("PATH") or os.environ["PATH"]
    bar.project.environ["PATH"] = f"{folder}:{path}"

    def come() -> bool:
        return (folder / "calls").exists() and len((folder / "calls").read_text()) >= times

    def let_on() -> None:
        (folder / "open").touch()

    try:
        yield come, let_on
    finally:
        let_on()
        bar.project.environ["PATH"] = path


@pytest.mark.parametrize("signum", mostly(signal.SIGINT))
def test_a_backup_interrupted_with_every_dump_whole(bar: Bar, signum: signal.Signals) -> None:
    """`git` is asked when the dumps are done, and before there is an .info."""
    with gate(bar, "git") as (come, _):
        run = bar.start("db.backup", "--formats", "dump,sql")
        wait_until(come, "the dumps")
        assert {p.suffix for p in bar.partial()} == {".dump", ".sql"}
        interrupted(run, signum)
    stopped_for_good(bar, set(), signum)


@pytest.mark.parametrize(("signum", "times"), [(signal.SIGINT, 1), (signal.SIGTERM, 3), (signal.SIGHUP, 5)])
def test_a_signal_while_it_publishes_comes_too_late(bar: Bar, signum: signal.Signals, times: int) -> None:
    with gate(bar, "mv", times) as (come, let_on):
        run = bar.start("db.backup")
        wait_until(come, "the publishing")
        os.killpg(run.pid, signum)
        let_on()
        assert end(run)[0] == 0
    bar.leaves_nobody()
    assert len(bar.whole_backups()) == 1
    assert bar.project.hidden_files() == []


@pytest.mark.parametrize("times", [slow(1), 2, slow(5), slow(6)])
def test_killed_while_it_publishes_it_is_published_all_the_same(bar: Bar, times: int) -> None:
    with gate(bar, "mv", times) as (come, let_on):
        run = bar.start("db.backup")
        wait_until(come, "the publishing")
        os.killpg(run.pid, signal.SIGKILL)
        assert end(run)[0] == -9
        let_on()
        bar.leaves_nobody()
    assert len(bar.whole_backups()) == 1
    assert len([p for p in bar.project.backups.iterdir() if p.is_symlink() and p.name != ".lock"]) == 5
    bar.next_backup_works()


@pytest.mark.parametrize("times", [slow(1), slow(2), 5, slow(6)])
def test_what_a_dead_run_still_publishes_when_the_next_one_comes(bar: Bar, times: int) -> None:
    """The next run does not wait for it: it finishes nothing any more, or had finished."""
    with gate(bar, "mv", times) as (come, let_on):
        first = bar.start("db.backup")
        wait_until(come, "the publishing")
        first.kill()
        assert end(first)[0] == -9
        second = bar.project.inv("db.backup", "--json", env={"PATH": os.environ["PATH"]})
        assert second.code == 0, second.err
        let_on()
        bar.leaves_nobody()
    finished = times == 6
    assert ("Cleared" in second.err) is not finished
    assert len(bar.whole_backups()) == 1 + finished
    assert second.json["name"] in bar.whole_backups()
    assert bar.project.hidden_files() == []


def test_a_publishing_that_fails_takes_its_names_back(bar: Bar) -> None:
    with gate(bar, "mv", 3) as (come, let_on):
        run = bar.start("db.backup")
        wait_until(come, "the publishing")
        name = next(p.stem for p in bar.partial() if p.suffix == ".info")
        (bar.project.backups / f"{name}.info").write_text("somebody's")
        let_on()
        code, err = end(run)
    assert code == 1
    assert "Traceback" not in err
    assert bar.project.final_files() == [f"{name}.info"]
    assert bar.project.hidden_files() == []


def test_a_backup_killed_by_its_group(bar: Bar) -> None:
    run = bar.start("db.backup")
    wait_until(lambda: in_the_folder(bar), "the dumps")
    os.killpg(run.pid, signal.SIGTERM)
    assert end(run)[0] == 143
    stopped_for_good(bar, set(), signal.SIGTERM)


@pytest.mark.parametrize("signum", mostly(signal.SIGKILL))
def test_a_backup_killed_with_every_process_of_it(bar: Bar, signum: signal.Signals) -> None:
    run = bar.start("db.backup")
    wait_until(lambda: in_the_folder(bar), "the dumps")
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and f"{MARK}={bar.mark}".encode() in (entry / "environ").read_bytes():
                os.kill(int(entry.name), signum)
    assert end(run)[0] in (CODES[signum], 1)
    bar.leaves_nobody()
    assert bar.whole_backups() == set()
    bar.next_backup_works()


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGINT, signal.SIGINT), slow(signal.SIGTERM, signal.SIGINT), slow(signal.SIGHUP, signal.SIGTERM)],
)
@pytest.mark.parametrize("apart", [0.0, 0.03])
def test_the_second_signal_cuts_nothing_short(
    bar: Bar, first: signal.Signals, second: signal.Signals, apart: float
) -> None:
    run = bar.start("db.backup")
    wait_until(lambda: when_sql_grows(bar) or run.poll() is not None, "the dumps")
    run.send_signal(first)
    time.sleep(apart)
    with suppress(ProcessLookupError):
        run.send_signal(second)
    code, err = end(run)
    # Two signals that are there at once come in the order of their numbers.
    assert code in {CODES[first], CODES[second] if not apart else CODES[first]}
    assert "Traceback" not in err
    stopped_for_good(bar, set(), first)


def test_in_the_background_of_a_script_ctrl_c_is_not_meant_for_it(bar: Bar) -> None:
    bar.server.sql("create table parts (id int) partition by range (id)", bar.database)
    with ExitStack() as stack:
        stack.enter_context(holding(bar.server, bar.database, "lock table parts"))
        run = bar.start("db.backup", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
        wait_until(lambda: bar.asks("lock table"), "pg_dump to wait")
        os.killpg(run.pid, signal.SIGINT)
        time.sleep(0.5)
        assert run.poll() is None
        stack.close()
        assert end(run, 30)[0] == 0
    assert len(bar.whole_backups()) == 1


@pytest.mark.slow
def test_where_everything_is_ignored_kill_still_leaves_nobody(bar: Bar) -> None:
    """Commands inherit that they ignore TERM; those that end them know stronger words."""

    def deaf() -> None:
        for each in signals.SIGNALS:
            signal.signal(each, signal.SIG_IGN)

    bar.server.sql("create table parts (id int) partition by range (id)", bar.database)
    with holding(bar.server, bar.database, "lock table parts"):
        run = bar.start("db.backup", preexec_fn=deaf)
        wait_until(lambda: bar.asks("lock table"), "pg_dump to wait")
        run.terminate()
        time.sleep(0.3)
        assert run.poll() is None
        run.kill()
        end(run)
        wait_until(lambda: not bar.processes(), "the end of its processes")


@contextmanager
def in_a_terminal(bar: Bar, *args: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start `inv ARGS` in a terminal of its own; give it and our end of the terminal."""
    ours, theirs = pty.openpty()
    run = bar.start(
        *args,
        env={"TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    try:
        yield run, ours
    finally:
        run.kill()
        run.wait()
        with suppress(OSError):
            os.close(ours)


def read_until(terminal: int, text: bytes) -> bytes:
    """Return what a terminal shows up to *text*."""
    shown = b""
    while text not in shown:
        shown += os.read(terminal, 4096)
    return shown


def drain(terminal: int) -> threading.Thread:
    """Read all that a terminal will show, as terminals do."""

    def read() -> None:
        with suppress(OSError):
            while os.read(terminal, 4096):
                pass

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def test_ctrl_c_in_a_terminal(bar: Bar) -> None:
    with in_a_terminal(bar, "db.backup") as (run, terminal):
        read_until(terminal, b"Dumping")
        drain(terminal)
        os.write(terminal, b"\x03")
        assert run.wait(SOON) == 130
    stopped_for_good(bar, set(), signal.SIGINT)


def test_the_terminal_is_closed(bar: Bar) -> None:
    with in_a_terminal(bar, "db.backup") as (run, terminal):
        read_until(terminal, b"Dumping")
        os.close(terminal)
        assert run.wait(SOON) == 129
    stopped_for_good(bar, set(), signal.SIGHUP)


def test_ctrl_c_at_the_question(bar: Bar) -> None:
    assert bar.project.inv("db.backup").code == 0
    bar.server.sql(f"drop database {bar.database}")
    with in_a_terminal(bar, "db.restore", "latest") as (run, terminal):
        read_until(terminal, b"[y/N]")
        os.write(terminal, b"\x03")
        drain(terminal)
        assert run.wait(SOON) == 130
    bar.leaves_nobody()
    assert bar.database not in bar.databases()
    assert bar.project.hidden_files() == []


# Servers that have stopped answering


@contextmanager
def frozen(bar: Bar, which: str) -> Iterator[None]:
    """Stop a server's sessions (those that *which* is true of), or all of it; set them going again afterwards."""
    if which == "everything":
        pids = processes_of(bar.server)
    else:
        pids = [int(pid) for pid in bar.server.sql(f"select pid from pg_stat_activity where {which}").splitlines()]
        assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        # Whoever was born meanwhile may have been stopped by its parent's fate.
        for pid in {*pids, *processes_of(bar.server)}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def processes_of(server: Server) -> list[int]:
    """Return the postmaster and its children."""
    postmaster = int((server.embedded.folder / "data" / "postmaster.pid").read_text().splitlines()[0])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    return [postmaster, *map(int, children)]


@pytest.mark.parametrize("which", ["query like 'LOCK TABLE%' and state = 'active'", slow("everything")])
@pytest.mark.parametrize("signum", [signal.SIGTERM, slow(signal.SIGKILL)])
def test_a_backup_of_a_frozen_server(bar: Bar, which: str, signum: signal.Signals) -> None:
    bar.server.sql("create table parts (id int) partition by range (id)", bar.database)
    with holding(bar.server, bar.database, "lock table parts"):
        run = bar.start("db.backup")
        wait_until(lambda: bar.asks("lock table"), "pg_dump to wait")
        with frozen(bar, which):
            interrupted(run, signum)
            wait_until(lambda: not bar.processes(), "the end of its processes")
            assert bar.whole_backups() == set()
    stopped_for_good(bar, set(), signum)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["query like 'COPY%' and state = 'active'", "everything"])
@pytest.mark.parametrize("present", [True, False], ids=["empty", "missing"])
def test_a_restore_into_a_frozen_server(slowly: Bar, present: bool, which: str) -> None:
    run = slow_restore(slowly, present)
    with frozen(slowly, which):
        # Three seconds are pg_restore's to end by itself, six a server's to answer that is slow only.
        interrupted(run, signal.SIGTERM, within=15.0)
        wait_until(lambda: not slowly.processes(), "the end of its processes")
    slowly.leaves_nobody()
    assert as_before(slowly, present)
    # What the frozen server kept, the next restore drops.
    restores(slowly)


# A restore


@pytest.fixture
def slowly(project: Project, server: Server, database: str) -> Bar:
    """A bar whose guests take some seconds to come back."""
    server.sql(SLOW, database)
    bar = Bar(project, server, database)
    assert project.inv("db.backup").code == 0
    return bar


def make_room(bar: Bar, present: bool) -> None:
    """Let there be an empty database, or none."""
    bar.server.sql(f"drop database if exists {bar.database} with (force)")
    if present:
        bar.server.sql(f"create database {bar.database}")


def slow_restore(bar: Bar, present: bool) -> subprocess.Popen[str]:
    make_room(bar, present)
    run = bar.start("db.restore", "latest", "--force")
    wait_until(lambda: bar.asks("copy public.guests"), "the guests to come")
    return run


def as_before(bar: Bar, present: bool) -> bool:
    """Whether the database is empty still, or missing."""
    if not present:
        return bar.database not in bar.databases()
    return bar.server.sql("select count(*) from pg_class where oid >= 16384", bar.database) == "0"


def restores(bar: Bar) -> None:
    """The next restore succeeds and leaves no database that is filled half."""
    ran = bar.project.inv("db.restore", "latest", "--force")
    assert ran.code == 0, ran.err
    assert bar.scratch() == set()
    assert bar.project.hidden_files() == []


@pytest.mark.parametrize(
    ("present", "signum"),
    [(True, signal.SIGKILL), (False, signal.SIGTERM)]
    + [slow(True, s) for s in EVERY_SIGNAL if s is not signal.SIGKILL]
    + [slow(False, s) for s in EVERY_SIGNAL if s is not signal.SIGTERM],
)
def test_a_restore_interrupted_while_it_loads(slowly: Bar, present: bool, signum: signal.Signals) -> None:
    run = slow_restore(slowly, present)
    interrupted(run, signum)
    slowly.leaves_nobody()
    assert as_before(slowly, present)
    if signum is not signal.SIGKILL:
        assert slowly.scratch() == set()
        assert slowly.project.hidden_files() == []
    restores(slowly)


# ANALYZE evaluates what an index is made of, and nothing else that a restore says does so for ten minutes.
LONG_ANALYSIS = """
create table long_names (name text);
insert into long_names select 'n' || i from generate_series(1, 100) i;
create function patient(text) returns text immutable language plpgsql as $$
begin
  if current_query() ilike 'analyze%' then perform pg_sleep(600); end if;
  return $1;
end $$;
create index on long_names (patient(name));
"""


@pytest.mark.parametrize("in_place", ["false", "true"], ids=["swap", "in place"])
def test_a_restore_interrupted_while_it_analyzes(bar: Bar, in_place: str) -> None:
    bar.server.sql(LONG_ANALYSIS, bar.database)
    assert bar.project.inv("db.backup").code == 0
    bar.server.sql("create table since (id int)", bar.database)
    run = bar.start("db.restore", "latest", "--force", env={"INVOKE_DB_IN_PLACE": in_place})
    wait_until(lambda: bar.asks("analyze"), "it to analyze")
    run.send_signal(signal.SIGINT)
    code, err = end(run)
    assert code == 130, err
    bar.leaves_nobody()
    assert bar.scratch() == set()
    there = bar.server.sql("select to_regclass('since')", bar.database)
    if in_place == "true":
        assert "inv db.undo takes it back" in err
        assert there == ""
    else:
        assert there == "since"


@pytest.mark.parametrize("signum", [slow(signal.SIGTERM), signal.SIGKILL])
def test_a_restore_test_interrupted(slowly: Bar, signum: signal.Signals) -> None:
    run = slowly.start("db.verify", "latest", "--restore")
    wait_until(lambda: slowly.asks("copy public.guests"), "the guests to come")
    assert slowly.scratch()
    interrupted(run, signum)
    slowly.leaves_nobody()
    if signum is not signal.SIGKILL:
        assert slowly.scratch() == set()
    ran = slowly.project.inv("db.verify", "latest", "--restore")
    assert ran.code == 0, ran.err
    assert ("Dropped" in ran.err) is (signum is signal.SIGKILL)
    assert slowly.scratch() == set()
    assert slowly.project.hidden_files() == []


@pytest.mark.slow
def test_what_a_living_restore_fills_is_left_alone(slowly: Bar, tmp_path: Path) -> None:
    """Another project on the same server, with a folder and a lock of its own."""
    run = slow_restore(slowly, present=False)
    assert len(slowly.scratch()) == 1
    other = Bar(Project(tmp_path / "other"), slowly.server, "postgres")
    (other.project.path / "tasks.py").write_text(TASKS)
    ran = other.project.inv("db.verify", str(slowly.project.backups / "backup_manual_latest.dump"), "--restore")
    assert "Dropped" not in ran.err
    assert end(run, 60)[0] == 0
    assert not as_before(slowly, present=False)
    assert slowly.scratch() == set()


def test_a_scratch_database_without_a_mark(slowly: Bar) -> None:
    """Killed between making it and marking it; the next restore drops it, and nothing that only looks like it."""
    slowly.server.sql("create database pg_backup_tasks_0123abcd")
    slowly.server.sql("create database pg_backup_tasks_mine")
    try:
        make_room(slowly, present=True)
        ran = slowly.project.inv("db.restore", "latest", "--force")
        assert ran.code == 0
        assert "Dropped pg_backup_tasks_0123abcd, which an earlier run had not finished" in ran.err
        assert slowly.scratch() == {"pg_backup_tasks_mine"}
    finally:
        slowly.server.sql("drop database pg_backup_tasks_mine")


# Every moment


# A slow machine tries fewer moments, all over the run nevertheless.
LONG_ENOUGH = 60.0


def moments(number: int, longest: float) -> Iterator[float]:
    """Yield *number* moments evenly spread over a run, far from each other first, as long as there is time."""
    until = time.monotonic() + LONG_ENOUGH
    for i in sorted(range(number), key=lambda i: f"{i:08b}"[::-1]):
        if time.monotonic() < until:
            yield longest * (i + 0.5) / number


def seconds_of(run: Callable[[], Any]) -> float:
    run()
    began = time.monotonic()
    run()
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("signum", EVERY_SIGNAL)
def test_a_backup_interrupted_at_any_moment(bar: Bar, signum: signal.Signals) -> None:
    longest = seconds_of(lambda: bar.project.inv("db.backup"))
    before = bar.whole_backups()
    for moment in moments(25, longest * 1.05):
        run = bar.start("db.backup")
        time.sleep(moment)
        run.send_signal(signum)
        code, err = end(run)
        bar.leaves_nobody()
        after = bar.whole_backups()
        assert len(after - before) <= 1
        if after != before:
            # It was too late for the signal, or came as the process was ending.
            assert code in (0, -signum), err
        else:
            assert code in (CODES[signum], -signum, 1 if signum is signal.SIGINT else CODES[signum]), err
            # Python's own word for a Ctrl-C that comes before there is a task.
            assert code != 1 or not (bar.project.hidden_files()), err
        if signum is not signal.SIGKILL:
            assert bar.project.hidden_files() == []
        before = after
        if signum is signal.SIGKILL:
            bar.next_backup_works()
            before = bar.whole_backups()
    bar.next_backup_works()


@pytest.mark.slow
@pytest.mark.parametrize("present", [True, False], ids=["empty", "missing"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_restore_interrupted_at_any_moment(bar: Bar, present: bool, signum: signal.Signals) -> None:
    assert bar.project.inv("db.backup").code == 0
    stock = whole(bar)

    def once() -> None:
        make_room(bar, present)
        assert bar.project.inv("db.restore", "latest", "--force").code == 0

    for moment in moments(20, seconds_of(once) * 1.05):
        make_room(bar, present)
        run = bar.start("db.restore", "latest", "--force")
        time.sleep(moment)
        run.send_signal(signum)
        code, err = end(run)
        bar.leaves_nobody()
        assert code in (0, CODES[signum], -signum), err
        if code == 0:
            assert whole(bar) == stock
        else:
            assert as_before(bar, present) or whole(bar) == stock
        if signum is not signal.SIGKILL:
            assert bar.scratch() == set()
            assert bar.project.hidden_files() == []
        else:
            make_room(bar, present)
            restores(bar)
    assert bar.scratch() == set()


def whole(bar: Bar) -> dict[str, str]:
    """Return all that a restore must bring back."""
    described = bar.server.sql(
        "select shobj_description(d.oid, 'pg_database') || coalesce(s.setconfig::text, '') from pg_database d "
        f"left join pg_db_role_setting s on s.setdatabase = d.oid where datname = '{bar.database}'"
    )
    return {"": described} | bar.server.fingerprint(bar.database)


# Signals, in this process


@pytest.fixture
def handlers() -> Iterator[None]:
    """Put the handlers back: a block that was interrupted stays deaf."""
    before = {each: signal.getsignal(each) for each in signals.SIGNALS}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.usefixtures("handlers")
class TestSignals:
    def test_are_raised_where_it_waits_and_nowhere_else(self) -> None:
        steps = []
        with pytest.raises(Interrupted) as caught, signals.interruptible():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            steps.append("went on")
            with signals.waiting():
                steps.append("waited")
        assert steps == ["went on"]
        assert caught.value.code == 143

    def test_end_a_wait_that_has_begun(self) -> None:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGHUP)).start()
        began = time.monotonic()
        with pytest.raises(Interrupted) as caught, signals.interruptible():
            signals.sleep(30)
        assert time.monotonic() - began < 5
        assert caught.value.code == 129

    def test_come_once(self) -> None:
        with pytest.raises(Interrupted), signals.interruptible():
            try:
                signal.raise_signal(signal.SIGINT)
                signals.check()
            finally:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGTERM)
                signals.sleep(0)
                signals.check()
        signal.raise_signal(signal.SIGTERM)

    def test_come_too_late_once_it_is_closed(self) -> None:
        with signals.interruptible():
            signals.close()
            signal.raise_signal(signal.SIGINT)
            signals.sleep(0)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_closing_lets_in_what_came_before(self) -> None:
        with pytest.raises(Interrupted), signals.interruptible():
            signal.raise_signal(signal.SIGINT)
            signals.close()

    def test_whoever_asks_again_in_vain_is_heard_everywhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(signals, "_IN_VAIN", 0.05)
        with pytest.raises(Interrupted), signals.interruptible():
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.1)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("not heard")

    def test_that_are_ignored_stay_so(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with signals.interruptible():
            signal.raise_signal(signal.SIGINT)
            signals.check()
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN

    def test_concern_the_main_thread_only(self) -> None:
        seen = []

        def work() -> None:
            with signals.waiting():
                seen.append(True)
            signals.check()

        with pytest.raises(Interrupted), signals.interruptible():
            signal.raise_signal(signal.SIGINT)
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            signals.check()
        assert seen == [True]

    def test_are_not_inherited_as_ignored(self) -> None:
        with pytest.raises(Interrupted), signals.interruptible():
            try:
                signal.raise_signal(signal.SIGINT)
                signals.check()
            finally:
                status = process.run(Command(("grep", "SigIgn", "/proc/self/status"))).out
                ignored = int(status.split()[1], 16)
                assert not ignored & (1 << (signal.SIGTERM - 1) | 1 << (signal.SIGHUP - 1))


# Commands, in this process


def group_of(run: process.Process) -> list[str]:
    """Return the processes of a command's group."""
    done = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True)
    lines = (line.split(None, 2) for line in done.stdout.splitlines())
    return [args for pgid, stat, args in lines if int(pgid) == run._popen.pid and not stat.startswith("Z")]


@pytest.mark.parametrize(
    ("script", "within"),
    [
        ("sleep 600", 1),
        ("sleep 600 & sleep 600", 1),
        ("trap '' TERM; sleep 600; sleep 600; sleep 600", 5),
        ("kill -STOP $$", 1),
    ],
)
def test_a_command_is_stopped_with_all_it_started(script: str, within: float) -> None:
    with process.Process(Command(("sh", "-c", script))) as run:
        wait_until(lambda: any(args.endswith(script) for args in group_of(run)), "the command")
        time.sleep(0.1)
        began = time.monotonic()
    assert time.monotonic() - began < within
    assert group_of(run) == []


@pytest.mark.parametrize("conversation", [False, True])
@pytest.mark.parametrize("script", ["sleep 600", slow("trap '' TERM; sleep 600; sleep 600; sleep 600")])
def test_a_command_ends_with_us(script: str, conversation: bool) -> None:
    program = (
        "import time; from pg_backup_tasks.process import Process; from pg_backup_tasks.model import Command\n"
        f"p = Process(Command(('sh', '-c', {script!r})), conversation={conversation})\n"
        "print(p._popen.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE) as us:
        assert us.stdout
        leader = int(us.stdout.readline())
        time.sleep(0.3)
        us.kill()

    def gone() -> bool:
        try:
            os.killpg(leader, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(gone, "the end of the group")


@pytest.mark.slow
def test_a_command_whose_shell_is_killed_ends_when_we_let_go() -> None:
    with process.Process(Command(("sleep", "600"))) as run:
        wait_until(lambda: "sleep 600" in group_of(run), "the command")
        os.kill(run._popen.pid, signal.SIGKILL)
        run.wait()
    wait_until(lambda: group_of(run) == [], "the end of the group")


def test_a_conversation_that_ends_itself() -> None:
    with process.Process(Command(("sh", "-c", "read word; echo $word >&2; exit 7")), conversation=True) as run:
        run.send(b"hello\n")
        done = run.wait()
    assert (done.code, done.err) == (7, "hello\n")
    assert group_of(run) == []


def test_what_a_command_says_is_its_own() -> None:
    """Some shells tell how a command was ended; that is not what pg_dump said."""
    done = process.run(Command(("sh", "-c", "echo because >&2; kill -KILL $$")))
    assert done.err == "because\n"
    assert done.code == 137


def test_an_answer_is_not_taken_for_the_next_questions(bar: Bar, handlers: None) -> None:
    psql = Command(
        (str(bar.server.embedded.bin / "psql"), "-XAtq", "--set=ON_ERROR_STOP=1"),
        env=tuple(bar.server.embedded.environment(bar.database).items()),
    )
    with process.converse(psql) as session:
        with pytest.raises(Interrupted), signals.interruptible():
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
            session.ask("select pg_sleep(0.5); select 'old'")
        assert session.ask("select 'new'") == "new"
        assert session.attempt("select 'newer'") is None
        began = time.monotonic()
        with pytest.raises(CommandError):
            session.ask("select pg_sleep(60)", patience=0.3)
        assert time.monotonic() - began < 5


class _Writing:
    """A dump that goes on for ever."""

    def poll(self) -> int | None:
        return None


def test_a_pipeline_is_cancelled_while_it_is_full(tmp_path: Path) -> None:
    """The reader takes no more of what it is fed, and prints what nobody reads any more."""
    machine, file = Here(), tmp_path / "plain"

    def work() -> None:
        writer = cast("Job", _Writing())
        machine.derive(Command(("yes",)), "/dev/zero", "utf-8", plain=str(file), packed=None, writer=writer)

    def run() -> None:
        with Crew(machine) as crew:
            crew.submit(work)
            wait_until(lambda: file.exists() and file.stat().st_size > 1 << 22, "the stream to flow")
            raise KeyboardInterrupt

    def quietly() -> None:
        with suppress(KeyboardInterrupt):
            run()

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    thread.join(SOON)
    assert not thread.is_alive()
    assert not [t for t in threading.enumerate() if "_follow" in t.name]


@pytest.mark.parametrize("suffix", [".tar", ".dump", ".sql"])
def test_reading_a_dump_is_cancelled(bar: Bar, suffix: str) -> None:
    from pg_backup_tasks.model import Format

    assert bar.project.inv("db.backup").code == 0
    path = next(p for p in bar.project.backups.glob(f"*{suffix}") if not p.is_symlink())
    machine = Here()
    format_ = next(f for f in Format if f.extension == suffix)
    assert machine.examine(str(path), format_, "utf-8").problem is None
    machine.cancel()
    with pytest.raises(bulk.Cancelled):
        machine.examine(str(path), format_, "utf-8")


def test_nothing_stays_open(tmp_path: Path) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    def use() -> None:
        process.run(Command(("true",)))
        with process.Process(Command(("sleep", "600"))):
            pass
        with process.Process(Command(("cat",)), output=True, conversation=True) as run:
            run.send(b"x\n")
            assert run.output.readline() == b"x\n"
        Here().derive(Command(("cat",)), __file__, "utf-8", plain=str(tmp_path / "x"), packed=str(tmp_path / "y"))
        with pytest.raises(CommandError):
            Here().derive(Command(("false",)), __file__, "utf-8", plain=None, packed=str(tmp_path / "y"))

    use()
    before, threads = opened(), threading.active_count()
    for _ in range(10):
        use()
    assert opened() == before
    assert threading.active_count() == threads

"""A restore killed or frozen between any two statements: it is the old database or the new; the next run says which."""

from __future__ import annotations

import json
import re
import signal
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nasty
import pytest
from aftermath import wait_until
from benches import Bench, changed

# Stands where psql should be: passes on what it is told, line by line, and kills the run before or after one of them.
_PSQL = """\
#!{python} -SEs
import fcntl, os, signal, subprocess, sys, time
folder, real = {folder!r}, {real!r}
if "--version" in sys.argv:
    os.execv(real, [real, *sys.argv[1:]])
with open(folder + "/at") as file:
    at = int(file.read())

def count(line):
    with open(folder + "/told", "ab+") as told:
        fcntl.flock(told, fcntl.LOCK_EX)
        told.write(line)
        told.seek(0)
        return told.read().count(b"\\n")

def kill():
    while not os.path.exists(folder + "/pid"):
        time.sleep(0.001)
    with open(folder + "/pid") as file:
        os.kill(int(file.read()), {signum})
    if {signum} == signal.SIGSTOP:
        signal.pause()

psql = subprocess.Popen([real, *sys.argv[1:]], stdin=subprocess.PIPE)
looks_on, renames = False, 0
for line in sys.stdin.buffer:
    # How often that session asks is a matter of time, and nothing hangs on it.
    looks_on = looks_on or b"lock_timeout = '100ms'" in line
    if looks_on:
        psql.stdin.write(line)
        psql.stdin.flush()
        continue
    number = 2 * count(line)
    if number == at:
        kill()
        break
    psql.stdin.write(line)
    psql.stdin.flush()
    renames += line.startswith(b"alter database ") and b" rename to " in line
    # How many lines come before is a matter of time as well; what ends a statement stands on the next line.
    if number + 1 == at or ({signum} == signal.SIGSTOP and renames == 2 and line == b";\\n"):
        kill()
        break
try:
    psql.stdin.close()
except OSError:
    pass
sys.exit(psql.wait())
"""
OLD = """
create table guests (id serial primary key, name text);
insert into guests (name) select 'new ' || i from generate_series(1, 50) i;
create table wrong (id int references guests);
insert into wrong values (1);
create view names as select name from guests;
"""
NEW = """
create table guests (id serial primary key, name text);
insert into guests (name) select 'guest ' || i from generate_series(1, 30) i;
create table drinks (id int primary key);
insert into drinks values (1), (2);
"""
# Where most is at stake.
_TURNS = re.compile(r"^(commit|alter database .* rename|analyze)")


@dataclass
class Killer:
    """A database that is restored again and again, each time killed a little later."""

    bench: Bench
    folder: Path
    old: str
    backup: str
    database: str
    env: dict[str, str]

    def prepare(self) -> None:
        """Put a psql of ours before the real one."""
        for tool in ("pg_dump", "pg_restore"):
            (self.folder / tool).symlink_to(self.bench.server.embedded.bin / tool)
        self.arm(signal.SIGKILL)
        self.env |= {"INVOKE_DB_PG_BIN": str(self.folder)}

    def arm(self, signum: signal.Signals) -> None:
        """Let that be the signal that meets the run; SIGSTOP once both names have been given, before the commit."""
        psql = self.folder / "psql"
        real = str(self.bench.server.embedded.bin / "psql")
        values = {"python": sys.executable, "folder": str(self.folder), "real": real, "signum": signum.value}
        psql.write_text(_PSQL.format(**values))
        psql.chmod(psql.stat().st_mode | stat.S_IXUSR)

    def begin(self, at: int, *command: str) -> subprocess.Popen[str]:
        """Start a task that is met before (even) or after (odd) line *at* / 2."""
        for name in ("pid", "told"):
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / "at").write_text(str(at))
        run = self.bench.project.start(*command, env=self.env)
        (self.folder / "pid.new").write_text(str(run.pid))
        (self.folder / "pid.new").rename(self.folder / "pid")
        return run

    def run(self, at: int, *command: str) -> int:
        """Run such a task to its end; return its exit code."""
        run = self.begin(at, *command)
        try:
            run.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            run.kill()
            raise
        wait_until(lambda: self.bench.server.sessions(self.database) == 0, "the end of its sessions")
        return run.returncode

    def told(self) -> list[str]:
        """Return the lines that psql was told."""
        return (self.folder / "told").read_text().splitlines()

    def again(self) -> None:
        """Make the database what it was before the first restore, with nothing to undo."""
        self.bench.server.drop(self.database)
        self.bench.server.sql(f"create database {self.database} template {self.old}")
        (self.bench.project.backups / ".undo.json").unlink(missing_ok=True)

    def state(self) -> dict[str, str]:
        return nasty.everything(self.bench.server, self.database)

    def journal(self) -> Path:
        return self.bench.project.backups / ".restoring.json"


@pytest.fixture(params=["swap", "in place"])
def killer(bench: Bench, tmp_path: Path, request: pytest.FixtureRequest) -> Killer:
    """A database to be restored, by either way."""
    name = bench.backup(bench.create(NEW), "--formats", "dump,sql")
    old, database = bench.create(OLD), bench.name()
    folder = tmp_path / "bin"
    folder.mkdir()
    env = {"INVOKE_DB_IN_PLACE": "true"} if request.param == "in place" else {}
    killer = Killer(bench, folder, old, name, database, env)
    bench.project.use(bench.server.url(database))
    killer.prepare()
    return killer


def moments(lines: list[str], *, every: bool) -> list[int]:
    """Return the moments at which a run that told psql *lines* is to be killed: *every* one, or some that turn it."""
    turns = {at for n, line in enumerate(lines, 1) if _TURNS.match(line) for at in (2 * n, 2 * n + 1)}
    others = {2 * n for n, line in enumerate(lines, 1) if line.endswith(";") and "end of answer" not in line}
    some = sorted(turns)
    # The last turns turn it for good; where a run says a little more than the first one did, its last word has.
    return sorted(turns | others if every else {*some[::24], *some[-3:], 2 * len(lines) + 1})


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["turns", "every"])
def test_killed_between_any_two_statements(killer: Killer, every: bool) -> None:
    killer.again()
    old = killer.state()
    command = ("db.restore", f"backups/postgres/{killer.backup}.sql", "--force")
    assert killer.run(0, *command) == 0
    new = killer.state()
    assert changed(old, new)
    ends = set()
    for at in moments(killer.told(), every=every):
        killer.again()
        code = killer.run(at, *command)
        assert code in (0, -9)
        ends.add(_as_it_says(killer, old, new, f"{at}: {killer.told()[-1]}"))
    assert ends == {"old", "new"}


def _as_it_says(killer: Killer, old: dict[str, str], new: dict[str, str], where: str) -> str:
    """Check that the database is as it was or as it was to be, and that the next commands say which; return it."""
    found = killer.state()
    assert found in (old, new), (where, changed(old, found), changed(new, found))
    end = "new" if found == new else "old"
    project = killer.bench.project
    cut_off = killer.journal().exists()
    if not cut_off and end == "old":
        return end
    if cut_off:
        listed = project.inv("db.list")
        assert listed.code == 0, listed.err
        assert "was cut off at" in listed.err
        assert json.loads(killer.journal().read_text())["name"] == killer.database
    taken = project.inv("db.backup", "--formats", "dump")
    assert taken.code == 0, taken.err
    if cut_off:
        assert ("It had been done" if end == "new" else "is as it was before") in taken.err, (where, end, taken.err)
    assert killer.state() == found, where
    assert project.hidden_files() == [], where
    assert killer.bench.leftovers() == "", where
    if end == "new":
        undone = project.inv("db.undo", "--force", env=killer.env | {"INVOKE_DB_PG_BIN": ""})
        assert undone.code == 0, (where, undone.err)
        assert killer.state() == old, where
    else:
        assert project.inv("db.undo", "--force").code == 2, where
    return end


@pytest.mark.slow
@pytest.mark.parametrize("killer", ["swap"], indirect=True)
def test_frozen_between_the_names_it_keeps_nobody_out_for_long(killer: Killer) -> None:
    killer.again()
    old = killer.state()
    command = ("db.restore", f"backups/postgres/{killer.backup}.sql", "--force")
    killer.arm(signal.SIGSTOP)
    run = killer.begin(0, *command)
    server = killer.bench.server
    between = "state = 'idle in transaction' and query ilike 'alter database % rename %'"
    try:
        wait_until(
            lambda: server.sql(f"select count(*) from pg_stat_activity where {between}") == "1",
            "it to stand between the names",
        )
        # Who comes in now waits for the end of that, which is the server's to bring about.
        assert killer.state() == old
    finally:
        run.kill()
        run.communicate()
    killer.arm(signal.SIGKILL)
    assert _as_it_says(killer, old, {}, "frozen") == "old"

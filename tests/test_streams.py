"""Standard streams that are closed, full, or read by nobody: what was done stays done, and its exit code with it."""

from __future__ import annotations

import os
import pty
import shlex
import stat
import subprocess

import pytest
from conftest import Project, Ran, Server, slowly

# What stands around a command in a shell; the exit code is the command's own.
ENDS = {
    "nobody reads": "{ %s; echo $? >code; } | true",
    "closed": "%s >&-; echo $? >code",
    "full": "%s >/dev/full; echo $? >code",
    "all closed": "%s <&- >&- 2>&-; echo $? >code",
}


def run(project: Project, end: str, *words: str) -> Ran:
    """Run `inv WORDS` with its streams as *end* has them; return its code and what else could be heard."""
    done = subprocess.run(
        ["sh", "-c", ENDS.get(end, end) % shlex.join(project.command(*words))],
        cwd=project.path,
        env=project.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr and "bug in" not in done.stderr and "Exception" not in done.stderr
    return Ran(int((project.path / "code").read_text()), done.stdout, done.stderr)


@pytest.mark.parametrize("end", ["nobody reads", "all closed", *slowly("closed", "full")])
@pytest.mark.parametrize("json", [[], *slowly(["--json"])])
def test_a_backup_that_was_taken(ready: Project, server: Server, database: str, end: str, json: list[str]) -> None:
    server.sql("create table t as select generate_series(1, 10) as id", database)
    ran = run(ready, end, "db.backup", "--formats", "dump,sql", *json)
    assert ran.code == 0, ran.err
    assert ("could not be printed: No space left" in ran.err) == (end == "full")
    whole = ready.inv("db.verify", "latest")
    assert whole.code == 0, whole.out


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_a_restore_that_was_made(ready: Project, server: Server, database: str, end: str) -> None:
    server.sql("create table t as select generate_series(1, 10) as id", database)
    assert ready.inv("db.backup").code == 0
    server.sql("drop table t", database)
    ran = run(ready, end, "db.restore", "latest", "--force")
    assert ran.code == 0, ran.err
    assert server.sql("select count(*) from t", database) == "10"


@pytest.mark.slow
@pytest.mark.parametrize("json", [[], ["--json"]])
@pytest.mark.parametrize("end", ENDS)
def test_a_migration_that_was_made_or_not(
    ready: Project, server: Server, database: str, end: str, json: list[str]
) -> None:
    server.sql("create table t as select generate_series(1, 10) as id", database)
    tools = server.embedded.bin
    for failing, code in (("true", 0), ("false", 1)):
        command = f'{tools}/psql "$DATABASE_URL" -qc "create table m (id int)" && {failing}'
        ran = run(ready, end, "db.migrate", "--command", command, *json)
        assert ran.code == code, ran.err
        server.sql("select * from m" if not code else "drop table m", database)
        assert server.sql("select to_regclass('m') is null", database) == ("t" if code else "f")


def many(project: Project) -> None:
    """Give the project more backups than a pipe holds, as an old script left them."""
    project.backups.mkdir(parents=True)
    for number in range(1500):
        for extension in (".sql", ".info"):
            name = f"backup_manual_20260101_{number // 60 // 60:02}{number // 60 % 60:02}{number % 60:02}{extension}"
            (project.backups / name).touch()


def test_a_list_that_is_read_in_part_or_not_at_all(project: Project) -> None:
    many(project)
    ran = run(project, "{ %s; echo $? >code; } | head -2", "db.list", "--json")
    assert (ran.code, ran.out.splitlines()) == (0, ["{", '  "backups": ['])
    assert run(project, "all closed", "db.list").code == 0


def test_a_list_that_cannot_be_written_has_failed(project: Project) -> None:
    project.backups.mkdir(parents=True)
    for words in (["db.list"], ["db.list", "--json"], ["db.cleanup", "--dry-run"]):
        ran = run(project, "full", *words)
        assert (ran.code, ran.err.splitlines()[:1]) == (
            1,
            [f"Standard output cannot be written: {os.strerror(28)}."],
        ), ran.err


def in_a_terminal(project: Project, *words: str, typed: bytes, env: dict[str, str] | None = None) -> Ran:
    """Run `inv WORDS` in a terminal of its own in which *typed* is typed; its words are in `out`."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        project.command(*words),
        cwd=project.path,
        env=project.environment(env),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as run:
        os.close(theirs)
        os.write(ours, typed)
        said = b""
        while True:
            try:
                said += (more := os.read(ours, 1 << 16))
            except OSError:  # Linux's way to say that nobody is there any more
                break
            if not more:
                break
    os.close(ours)
    return Ran(run.returncode, said.decode(), "")


def test_a_choice_that_is_not_made(project: Project) -> None:
    project.backups.mkdir(parents=True)
    for extension in (".sql", ".info"):
        (project.backups / f"backup_manual_20260101_000000{extension}").touch()
    ran = in_a_terminal(project, "db.verify", "pick", typed=b"\x04")
    assert (ran.code, "Nothing was picked." in ran.out, "bug in" in ran.out) == (2, True, False), ran.out


def test_the_log_is_its_owners_also_after_it_rotated(project: Project) -> None:
    log = project.path / "backups" / "pg_backup_tasks.log"
    log.parent.mkdir()
    log.write_bytes(b"x" * (1 << 20))
    log.chmod(0o600)
    old = os.umask(0o022)
    try:
        assert project.inv("db.verify", "nothing").code == 2
    finally:
        os.umask(old)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in log.parent.glob("*.log*")}
    assert modes == {"pg_backup_tasks.log": 0o600, "pg_backup_tasks.log.1": 0o600}

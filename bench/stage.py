"""The place of one measurement: whose tasks, which server, where the backups go."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from pg_backup_tasks.embedded import EmbeddedServer

from . import databases
from .databases import Database, clean_environment
from .measure import MB, peak_memory, seconds

FORMATS = (".dump", ".tar", ".sql", ".sql.gz")

OUR_TASKS = """
from invoke import Collection

import pg_backup_tasks as db

ns = Collection(db)
ns.configure(db.config())
"""


@dataclass(frozen=True)
class Sample:
    """One run that left files behind."""

    seconds: float
    sizes: dict[str, int]


@dataclass(frozen=True)
class Bench:
    """The place of one measurement: whose tasks, which server, where the backups go."""

    root: Path
    work: Path
    server: EmbeddedServer
    rounds: int
    scale: float

    @property
    def env(self) -> dict[str, str]:
        env = clean_environment(os.environ)
        # The same tools for both sides, whatever else the machine has.
        env["PATH"] = os.pathsep.join([str(self.server.bin), env.get("PATH", os.defpath)])
        env["PYTHONPATH"] = str(self.root)
        return env

    @property
    def project(self) -> Path:
        return self.work / "project"

    def aim(self, database: Database) -> None:
        """Make the project one whose database this is."""
        folder = self.project / "packages" / "database"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".env").write_text(f'DATABASE_URL="{database.url}"\n', encoding="utf-8")
        self.lay_tasks()

    def lay_tasks(self) -> None:
        """Make the project one of ours."""
        (self.project / "tasks.py").write_text(OUR_TASKS, encoding="utf-8")

    def ours(self, *flags: str) -> Sample:
        try:
            elapsed = seconds(inv("db.backup", *flags), self.project, self.env)
            return Sample(elapsed, _sizes(self.project / "backups" / "postgres"))
        finally:
            self.forget(self.project / "backups")

    def naive(self, database: Database) -> Sample:
        script, prefix = databases.HERE / "naive-backup.sh", self.work / "naive" / "backup"
        return self._theirs(["bash", str(script), str(prefix), database.url])

    def plain_dump(self, database: Database) -> Sample:
        file = self.work / "naive" / "backup.dump"
        return self._theirs(["pg_dump", "--format=custom", f"--file={file}", database.url])

    def memory(self) -> float:
        try:
            return peak_memory(inv("db.backup"), self.project, self.env) / MB
        finally:
            self.forget(self.project / "backups")

    def _theirs(self, argv: list[str]) -> Sample:
        folder = self.work / "naive"
        folder.mkdir()
        try:
            return Sample(seconds(argv, self.work, self.env), _sizes(folder))
        finally:
            self.forget(folder)

    def inv(self, *words: str) -> list[str]:
        """Return the command that runs our tasks."""
        return inv(*words)

    def say(self, line: str) -> None:
        say(line)

    def forget(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)


def inv(*words: str) -> list[str]:
    # As from a package that pip has installed, or by scripts/inv: with all modules compiled.
    return [sys.executable, "-m", "invoke", "--write-pyc", *words]


def _sizes(folder: Path) -> dict[str, int]:
    """Return the size of each format; the links to the latest backup are none."""
    found: dict[str, int] = {}
    for path in folder.iterdir():
        name = path.name.partition(".")
        if not path.is_symlink() and "." + name[2] in FORMATS:
            found["." + name[2]] = path.stat().st_size
    return found


def say(line: str) -> None:
    """Tell whoever watches what is being measured."""
    print(line, file=sys.stderr, flush=True)

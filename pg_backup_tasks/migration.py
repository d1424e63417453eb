"""What is remembered of the last migration of each database: the backup it began with, and how it ended."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from . import url
from .errors import TaskError
from .machine import CommandError, Machine
from .model import Command, Database

State = Literal["under way", "migrated", "rolled back"]

_FILE = ".migrations.json"
# What a dead run leaves of it goes as all that is temporary does.
_READY = f".{_FILE}.migrated.new"


@dataclass(frozen=True)
class Migration:
    """One migration: *backup* and the SHA-256 of its dump, taken right before; *at* is ISO 8601 in UTC.

    *run* is the run of CI that made it, empty for a person's.
    """

    name: str
    host: str
    port: int
    backup: str
    sha256: str
    at: str
    state: State
    presence: str
    run: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        """Which database it migrated."""
        return self.name, url.place(self.host), self.port


@dataclass(frozen=True)
class Migrations:
    """The last migration of each database, in a backup folder; written under its lock only."""

    machine: Machine
    folder: str

    def all(self) -> list[Migration]:
        """Return the last migration of every database."""
        try:
            found = json.loads(self.machine.read(f"{self.folder}/{_FILE}") or b"[]")
        except ValueError:
            return []
        return [m for m in map(_migration, found if isinstance(found, list) else []) if m]

    def last(self, database: Database) -> Migration | None:
        """Return the last migration of *database*."""
        return next((m for m in self.all() if m.key == url.key(database)), None)

    def remember(self, migration: Migration) -> None:
        """Write down how a migration stands."""
        self._write(self._with(migration))

    def begin(self, migration: Migration) -> None:
        """Write down that a migration is under way, and have ready what there will be to say of it once it is made."""
        self._write(self._with(replace(migration, state="migrated")), _READY)
        self.remember(migration)

    def ended(self, migration: Migration, state: State) -> None:
        """Write down how a migration has ended; that it is made can be said on a full disk, too."""
        try:
            self.remember(replace(migration, state=state))
        except (TaskError, OSError):
            if state != "migrated":
                raise
            command = Command(("mv", "-f", "--", self._ready, f"{self.folder}/{_FILE}"))
            if (done := self.machine.run(command)).code:
                raise CommandError(command, done) from None
        else:
            with suppress(TaskError, OSError):
                self.machine.remove(self._ready)

    def replaced(self, database: Database, backup: str) -> None:
        """Take note that a database has become *backup* as a whole: a migration of it that was cut off is over."""
        last = self.last(database)
        if last is None or last.state != "under way":
            return
        if backup == last.backup:
            self.ended(last, "rolled back")
        else:
            self._write([m for m in self.all() if m.key != last.key])

    def undone(self, database: Database, task: str, backup: str) -> None:
        """Take note that a *task*, which had made *backup* of a database, was undone."""
        last = self.last(database)
        if last is None or last.backup != backup:
            return
        if last.state == "rolled back":
            self.ended(last, "migrated")
        elif last.state == "migrated" and task == "db.undo":
            # That was undone before, and is as it was again.
            self.ended(last, "rolled back")

    @property
    def _ready(self) -> str:
        return f"{self.folder}/{_READY}"

    def _with(self, migration: Migration) -> list[Migration]:
        return [*(m for m in self.all() if m.key != migration.key), migration]

    def _write(self, migrations: list[Migration], file: str = _FILE) -> None:
        document = json.dumps([asdict(m) for m in migrations], indent=2)
        self.machine.write(f"{self.folder}/{file}", document.encode() + b"\n")


def _migration(found: Any) -> Migration | None:
    try:
        return Migration(**found)
    except TypeError:
        return None

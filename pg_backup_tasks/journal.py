"""What a restore is about to do to a database, written down first; and what it did, as long as it can be undone."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Literal

from . import url
from .machine import Machine
from .model import Database, Mode

How = Literal["swap", "in place"]

_UNDER_WAY = ".restoring.json"
_DONE = ".undo.json"
# What was under way on another server when a restore was begun.
_ELSEWHERE = ".restoring.elsewhere.json"
# What pg_restore is to take out of an archive.
_LIST = ".restoring.list"
# psql writes the number of its transaction here, before that changes anything.
_TRANSACTION = ".restoring.transaction"


@dataclass(frozen=True)
class Change:
    """One change of a database, and how it was before: *before* names a database kept aside, or a safety backup.

    *at* is ISO 8601 in UTC; *bytes* is the database's size before; *comment* is what the database aside had for one.
    *mode* says how much of the database it changed, *tables* (schema and name) which tables where only those.
    Of one that is not *undoable* a database is left that could not be dropped yet. *transaction* is the number of the
    one that makes it, where it has been cut off.
    """

    name: str
    host: str
    port: int
    task: str
    backup: str
    how: How
    before: str
    at: str
    bytes: int
    presence: str
    comment: str | None = None
    mode: str = Mode.FULL.value
    tables: tuple[tuple[str, str], ...] = ()
    undoable: bool = True
    transaction: int | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        """Which database it changed."""
        return self.name, url.place(self.host), self.port

    def age(self, now: datetime) -> float:
        """Return how many seconds it lies back."""
        return (now - datetime.fromisoformat(self.at)).total_seconds()


@dataclass(frozen=True)
class Journal:
    """The change under way and those that can be undone, in a backup folder; written under its lock only."""

    machine: Machine
    folder: str

    @property
    def transaction_path(self) -> str:
        """Where the transaction that makes a change in place says its number."""
        return f"{self.folder}/{_TRANSACTION}"

    @property
    def list_path(self) -> str:
        """Where pg_restore is told what to take out of an archive."""
        return f"{self.folder}/{_LIST}"

    def begin(self, change: Change) -> None:
        """Write down what is about to be done; what is under way elsewhere is found out when that is reached again."""
        if (other := self.under_way()) and other.key[1:] != change.key[1:]:
            left = [c for c in self.elsewhere() if c != other]
            self._write(_ELSEWHERE, [asdict(c) for c in (*left, other)])
        self.machine.remove(self.transaction_path)
        self._write(_UNDER_WAY, asdict(change))

    def transaction(self) -> int | None:
        """Return the number of the transaction that makes the change under way, None if it did not get that far."""
        text = (self.machine.read(self.transaction_path) or b"").decode("ascii", "replace").strip()
        return int(text) if text.isdecimal() else None

    def end(self) -> None:
        """Forget the change under way: it was not made, or it is remembered as done."""
        self.machine.remove(f"{self.folder}/{_UNDER_WAY}", self.transaction_path, self.list_path)

    def under_way(self) -> Change | None:
        """Return the change a run was making: ours, or that of a run that did not come to its end."""
        change = _change(self._read(_UNDER_WAY))
        return change and replace(change, transaction=self.transaction())

    def elsewhere(self) -> list[Change]:
        """Return the changes that were cut off on other servers than the one that was worked on since."""
        return self._changes(_ELSEWHERE)

    def end_elsewhere(self, change: Change) -> None:
        """Forget a change that was cut off: it was not made, or it is remembered as done."""
        if left := [asdict(c) for c in self.elsewhere() if c != change]:
            self._write(_ELSEWHERE, left)
        else:
            self.machine.remove(f"{self.folder}/{_ELSEWHERE}")

    def remember(self, change: Change) -> None:
        """Let *change*, now made, be the one to undo for its database."""
        others = [c for c in self.done() if c.key != change.key or not c.undoable]
        self._keep([*others, change])

    def forget(self, gone: Callable[[Change], bool]) -> None:
        """Remember no more what *gone* says cannot be undone any longer."""
        done = self.done()
        kept = [c for c in done if not gone(c)]
        if kept != done:
            self._keep(kept)

    def supersede(self, gone: Collection[Change], stuck: Collection[Change]) -> None:
        """Forget what is *gone*; *stuck* can be undone no longer either, but has left a database behind."""
        done = self.done()
        kept = [replace(c, undoable=False) if c in stuck else c for c in done if c not in gone]
        if kept != done:
            self._keep(kept)

    def done(self) -> list[Change]:
        """Return the changes that can be undone, one for each database, and those that have left one behind."""
        return self._changes(_DONE)

    def _changes(self, name: str) -> list[Change]:
        found = self._read(name)
        changes = map(_change, found if isinstance(found, list) else [])
        return [c for c in changes if c]

    def last(self, database: Database) -> Change | None:
        """Return the change of *database* that can be undone."""
        return next((c for c in self.done() if c.undoable and c.key == url.key(database)), None)

    def _keep(self, changes: Iterable[Change]) -> None:
        self._write(_DONE, [asdict(c) for c in changes])

    def _write(self, name: str, document: Any) -> None:
        self.machine.write(f"{self.folder}/{name}", json.dumps(document, indent=2).encode() + b"\n")

    def _read(self, name: str) -> Any:
        try:
            return json.loads(self.machine.read(f"{self.folder}/{name}") or b"null")
        except ValueError:
            return None


def _change(found: Any) -> Change | None:
    try:
        change = Change(**found)
        return replace(change, tables=tuple((schema, name) for schema, name in change.tables))
    except (TypeError, ValueError):
        return None

"""Remove the backups that no rule keeps, say why each of the others stays, and clear what dead runs have left."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime

from . import retention, switching
from .desk import Desk
from .model import BackupName
from .retention import Candidate, Fate, Only
from .store import Backup
from .units import listed


@dataclass(frozen=True)
class Order:
    """What is asked for; *type* for backups of one type only, *wait* is seconds for another run's end."""

    type: str | None = None
    only: Only = field(default_factory=Only)
    wait: float = 0


@dataclass(frozen=True)
class Shelf:
    """Every backup with its fate, newest first, as of *now*."""

    now: datetime
    fates: list[Fate]
    backups: dict[str, Backup]

    @property
    def going(self) -> list[Backup]:
        """The backups that are to be removed."""
        return [self.backups[str(fate.name)] for fate in self.fates if not fate.kept]


def look(desk: Desk, order: Order) -> Shelf:
    """Return what would be kept and what removed."""
    backups = {b.name: b for b in desk.store.backups(order.type)}
    warn_of_damaged(desk, backups.values())
    needed = _needed(desk)
    candidates = [
        Candidate(name, backup.complete, needed.get(backup.name, ""))
        for backup in backups.values()
        if (name := BackupName.parse(backup.name))
    ]
    of = retention.policies(desk.settings.retention)
    now = desk.clock()
    return Shelf(now, retention.plan(candidates, of, now, order.only), backups)


def clean(desk: Desk, order: Order, show: Callable[[Shelf], None]) -> Shelf:
    """Show every backup's fate, then remove what no rule keeps. Raises TaskError; then no half of one looks whole."""
    with desk.at_work("db.cleanup", order.wait):
        for name in desk.store.end_removal():
            desk.report.say(f"Cleared what an earlier cleanup had left of {name}.")
        switching.tell(desk)
        shelf = look(desk, order)
        show(shelf)
        desk.store.remove(shelf.going)
        switching.expire(desk)
    return shelf


def warn_of_damaged(desk: Desk, backups: Iterable[Backup]) -> None:
    """Say whose `.info` can be read no more."""
    if damaged := [b.name for b in backups if b.damaged]:
        desk.report.warn(f"No .info to be read, so not known to be whole: {listed(damaged)}.")


def _needed(desk: Desk) -> dict[str, str]:
    """Return the backups that something remembered here would miss."""
    needed = {change.before: "db.undo needs it" for change in desk.journal.done() if change.how == "in place"}
    migrations = (m for m in desk.migrations.all() if m.state != "rolled back")
    needed |= {migration.backup: "db.rollback needs it" for migration in migrations}
    if change := desk.journal.under_way():
        needed |= dict.fromkeys((change.before, change.backup), f"{change.task} was cut off")
    return needed

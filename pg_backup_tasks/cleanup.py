"""Remove the backups that no rule keeps, say why each of the others stays, and clear what dead runs have left."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from . import aside, retention
from .desk import Desk
from .errors import Failed, Interrupted
from .model import BackupName
from .retention import Candidate, Fate, Only
from .store import Backup
from .units import counted, listed

_READ = "a db.fetch reads it"


@dataclass(frozen=True)
class Order:
    """What is asked for; *type* for backups of one type only, *wait* is seconds for another run's end."""

    type: str | None = None
    only: Only = field(default_factory=Only)
    wait: float = 0


@dataclass(frozen=True)
class Shelf:
    """Every backup with its fate, newest first, and what the fates of a type follow from."""

    fates: list[Fate]
    backups: dict[str, Backup]
    links: dict[str, str]
    rules: dict[str, str]

    @property
    def going(self) -> list[Backup]:
        """The backups that are to be removed."""
        return [self.backups[str(fate.name)] for fate in self.fates if not fate.kept]


def look(desk: Desk, order: Order) -> Shelf:
    """Return what would be kept and what removed; what has been begun to be removed goes whatever the rules are now."""
    stock = desk.store.stock(order.type)
    backups = {b.name: b for b in stock.backups}
    warn_of_damaged(desk, backups.values())
    warn_of_no_type(desk, order.type, backups.values())
    needed = _needed(desk, stock.used)
    begun = desk.store.begun()
    candidates = [
        Candidate(
            name,
            backup.complete,
            needed.get(backup.name, ""),
            # One that has its .info still had not been touched.
            backup.name in begun and not backup.has_info,
            backup.bytes,
        )
        for backup in backups.values()
        if (name := BackupName.parse(backup.name))
    ]
    of = retention.policies(desk.settings.retention)
    fates = retention.plan(candidates, of, desk.clock(), order.only)
    types = {backup.type for backup in backups.values()}
    rules = {t: f"This time: {order.only}" if order.only.given else f"Policy: {of(t)}" for t in sorted(types)}
    return Shelf(fates, backups, stock.links, rules)


def rehearse(desk: Desk, order: Order, show: Callable[[Shelf], None]) -> Shelf:
    """Show every backup's fate, and say what else a cleanup would let go; nothing is changed."""
    shelf = look(desk, order)
    show(shelf)
    aside.tell_expiring(desk)
    return shelf


def clean(desk: Desk, order: Order, show: Callable[[Shelf], None]) -> Shelf:
    """Show every backup's fate, then remove what no rule keeps. Raises TaskError; then no half of one looks whole.

    What cannot be removed keeps nothing else from going, and nothing aside from expiring.
    """
    stuck: Failed | None = None
    with desk.at_work("db.cleanup", order.wait):
        aside.tell(desk)
        shelf = look(desk, order)
        show(shelf)
        shelf = _spare(desk, shelf)
        _note(desk, shelf)
        try:
            desk.store.remove(shelf.going, shelf.links)
        except Failed as error:
            stuck = error
        except Interrupted as end:
            raise Interrupted(end.signum, _how_far(desk, shelf.going)) from None
        aside.expire(desk)
    if stuck:
        raise stuck
    return shelf


def _spare(desk: Desk, shelf: Shelf) -> Shelf:
    """Return the shelf on which stays what somebody has begun to read since it was looked at, having said so."""
    going = {backup.name for backup in shelf.going if backup.has_info}
    used = desk.store.used() & going if going else set()
    late = {fate.name for fate in shelf.fates if str(fate.name) in used}
    for name in sorted(late):
        desk.report.say(f"{name} stays after all: {_READ}.")
    fates = [f._replace(kept=True, reasons=(_READ,)) if f.name in late else f for f in shelf.fates]
    return replace(shelf, fates=fates) if late else shelf


def _how_far(desk: Desk, going: Sequence[Backup]) -> str:
    """Return how many are gone where not all are, for a sentence."""
    left = desk.store.left({backup.name for backup in going})
    gone = len(going) - len(left)
    return f"; {gone:,} of {counted(len(going), 'backup')} were removed, and the next cleanup goes on"


def _note(desk: Desk, shelf: Shelf) -> None:
    """Write to the log what goes and why: of a run by cron it is the only trace."""
    by_reason: dict[str, list[str]] = {}
    for fate in shelf.fates:
        if not fate.kept:
            by_reason.setdefault(", ".join(fate.reasons), []).append(str(fate.name))
    for reason, going in by_reason.items():
        desk.report.note(f"removing ({reason}): {', '.join(going)}")


def warn_of_damaged(desk: Desk, backups: Iterable[Backup]) -> None:
    """Say whose `.info` can be read no more."""
    # Whether one is damaged takes long to say, and none is that has a gist.
    if damaged := [b.name for b in backups if not b.gist and b.damaged]:
        desk.report.warn(f"No .info to be read, so not known to be whole: {listed(damaged)}.")


def warn_of_no_type(desk: Desk, type_: str | None, backups: Collection[Backup]) -> None:
    """Say which types there are, where there is none of the one asked for."""
    types = desk.store.types() if type_ and not backups else []
    if types:
        desk.report.warn(f"There are no backups of type {type_}; there are {listed(types)}.")


def _needed(desk: Desk, used: set[str]) -> dict[str, str]:
    """Return the backups that something remembered here would miss, and those that are *used*."""
    needed = dict.fromkeys(used, _READ)
    needed |= {change.before: "db.undo needs it" for change in desk.journal.done() if change.how == "in place"}
    migrations = (m for m in desk.migrations.all() if m.state != "rolled back")
    needed |= {migration.backup: "db.rollback needs it" for migration in migrations}
    under_way = desk.journal.under_way()
    for change in (*desk.journal.elsewhere(), *([under_way] if under_way else [])):
        needed |= dict.fromkeys((change.before, change.backup), f"{change.task} was cut off")
    return needed

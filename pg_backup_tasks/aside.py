"""What earlier runs have left to be told of and let go: changes that were cut off, databases kept aside.

Every listing and every cleanup looks here and nearly always finds nothing: what it takes to speak to a server is
imported where there is something to do.
"""

from __future__ import annotations

from typing import NamedTuple

from . import url
from .desk import Connection, Desk
from .errors import TaskError
from .journal import Change
from .model import Database
from .units import counted


class Aside(NamedTuple):
    """A database kept aside by a change, and how many seconds a cleanup leaves it yet, 0 for none."""

    change: Change
    left: float


def kept(desk: Desk) -> list[Aside]:
    """Return the databases kept aside, on whatever server."""
    now, hours = desk.clock(), desk.settings.aside_hours
    changes = [change for change in desk.journal.done() if change.how == "swap"]
    return [Aside(c, max(0, hours * 3600 - c.age(now)) if c.undoable else 0) for c in changes]


def tell(desk: Desk) -> None:
    """Say that a dead run was making a change, without looking how it ended."""
    tell_of_migrations(desk)
    under_way = desk.journal.under_way()
    for change in (*desk.journal.elsewhere(), *([under_way] if under_way else [])):
        if desk.machine.alive(change.presence):
            continue
        desk.report.warn(f"{cut_off(change)} The next backup, restore or undo finds out how it ended.")


def tell_of_migrations(desk: Desk) -> None:
    """Say which migrations were cut off."""
    for migration in desk.migrations.all():
        if migration.state == "under way" and not desk.machine.alive(migration.presence):
            desk.report.warn(
                f"db.migrate of {migration.name} was cut off at {migration.at}: what it left is neither migrated nor "
                "as before. inv db.rollback puts it back.",
                loud=True,
            )


def cut_off(change: Change) -> str:
    """Return the sentence about a change whose run is dead."""
    return f"{change.task} on {change.name} was cut off at {change.at}."


def let_go(desk: Desk, server: Connection, key: tuple[str, str, int], but: str = "") -> None:
    """Let no earlier change of a database be undone, and drop what it kept aside, all *but* one; or drop it later."""
    earlier = [c for c in desk.journal.done() if c.key == key and c.before != but]
    stuck = [c for c in earlier if c.how == "swap" and not drop_aside(desk, server, c)]
    desk.journal.supersede([c for c in earlier if c not in stuck], stuck)


def drop_aside(desk: Desk, server: Connection, change: Change) -> bool:
    """Drop the database a change has kept aside, if it is there still; one that cannot be dropped is said."""
    from .postgres import identifier

    name = identifier(change.before)
    if refused := server.session.attempt(f"drop database if exists {name} with (force)"):
        desk.report.warn(f"{change.before}, kept aside by an earlier {change.task}, could not be dropped: {refused}")
    return not refused


def tell_expiring(desk: Desk) -> None:
    """Say what a cleanup would drop, without asking the server whether it is there."""
    if not _expired(desk):
        return
    try:
        for change in _expired_on(desk.choice.database, desk):
            desk.report.say(f"Would drop {_described(desk, change)}.")
    except TaskError as error:
        _say_it_stays(desk, error)


def expire(desk: Desk) -> None:
    """Drop what has been kept aside for longer than the setting; a server that cannot be reached is said."""
    if not _expired(desk):
        return
    from . import loading

    try:
        with loading.maintenance(desk, desk.choice.database) as server:
            drop_expired(desk, server)
    except TaskError as error:
        _say_it_stays(desk, error)


def drop_expired(desk: Desk, server: Connection) -> None:
    """Drop the databases of this server kept aside for longer than the setting."""
    from . import catalog

    dropped = []
    for change in _expired_on(server.database, desk):
        was_there = catalog.database_exists(server.session, change.before)
        if drop_aside(desk, server, change):
            dropped.append(change)
            what = _described(desk, change)
            desk.report.say(f"Dropped {what}." if was_there else f"{what}, is there no more.")
    if dropped:
        desk.journal.forget(lambda change: change in dropped)


def _expired(desk: Desk) -> list[Change]:
    """Return what has expired, on whatever server."""
    return [change for change, left in kept(desk) if not left]


def _expired_on(server: Database, desk: Desk) -> list[Change]:
    return [change for change in _expired(desk) if change.key[1:] == url.key(server)[1:]]


def _described(desk: Desk, change: Change) -> str:
    why = f"for more than {counted(desk.settings.aside_hours, 'hour')}" if change.undoable else f"by {change.task}"
    return f"{change.before}, kept aside {why}"


def _say_it_stays(desk: Desk, error: TaskError) -> None:
    desk.report.warn(f"What restores have kept aside for too long stays: {error.message}")

"""Two databases change places: the one under the name goes aside, another takes the name; both or neither.

Both renames stand in one transaction, so there is no moment without a database under the name, whoever dies. The
first rename keeps everybody out until the end; who is in is sent away by a second session meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from time import monotonic

from . import aside, catalog, loading, signals, url
from .catalog import Bound, Present
from .crew import Crew
from .desk import Connection, Desk
from .errors import Failed, Refused, TaskError
from .journal import Change, How
from .machine import CommandError
from .model import STAMP, Database
from .postgres import identifier, literal

_LONGEST_NAME = 63
_AGAIN = 0.02
_NEXT_SECOND = 0.2
_PATIENCE = "15s"
_FAREWELL = 5.0
_ON = "datname in ({names}) and pid <> pg_backend_pid() and usesysid is not null"
_END = f"select count(pg_terminate_backend(pid)) from pg_stat_activity a where {_ON} and {catalog.OURS_TO_END}"


def aside_name(name: str, at: datetime) -> str:
    """Return what a database is called once it is aside: its name, shortened if need be, and when it went."""
    suffix = f"_before_{at.strftime(STAMP)}"
    kept = name.encode()[: _LONGEST_NAME - len(suffix)].decode(errors="ignore")
    return kept + suffix


def free_name(desk: Desk, server: Connection, name: str) -> str:
    """Return a name for what goes aside that is still free."""
    while catalog.database_exists(server.session, free := aside_name(name, desk.clock())):
        desk.sleep(_NEXT_SECOND)
    return free


def refuse_what_would_be_lost(name: str, bound: Bound) -> None:
    """Raise Refused where the database that is there has what stays with it, and is no use to another."""
    for lost, what, remedy in (
        (bound.slots, "replication slot", "select pg_drop_replication_slot('{}')"),
        (bound.subscriptions, "subscription", "drop subscription {}"),
        (bound.prepared, "prepared transaction", "rollback prepared '{}'"),
    ):
        if lost:
            raise Refused(
                f"{name} has the {what} {lost[0]}, which would be lost.",
                hint=remedy.format(lost[0]) + ", if nobody needs it any more",
            )


def begun(
    desk: Desk,
    database: Database,
    task: str,
    backup: str,
    present: Present,
    how: How,
    before: str,
    comment: str | None = None,
) -> Change:
    """Return a change that is about to be made."""
    return Change(
        name=database.name,
        host=database.host,
        port=database.port,
        task=task,
        backup=backup,
        how=how,
        before=before,
        at=desk.clock().strftime("%Y-%m-%dT%H:%M:%SZ"),
        bytes=present.bytes,
        presence=desk.machine.presence(),
        comment=comment,
    )


def switch(desk: Desk, server: Connection, change: Change, fresh: str, finish: Callable[[], None]) -> None:
    """Put the database *fresh* under the change's name, and what is there now aside; *finish* says the rest.

    Raises Failed where it cannot be done; then everything is as it was. No signal is heard after it.
    """
    aside = identifier(change.before)
    mark = f"Kept aside from {change.name} at {change.at} by {change.task}: inv db.undo puts it back."
    try:
        begin(server)
        with sending_away(desk, server, change.name, fresh) as rename:
            rename(change.name, change.before)
            # Nobody can come in any more, nor leave anything more behind.
            refuse_what_would_be_lost(change.name, catalog.bound(server.session, change.before))
            server.session.ask(f"comment on database {aside} is {literal(mark)}")
            rename(fresh, change.name)
        finish()
    except CommandError as error:
        if "is being accessed by other users" in error.done.err or "lock timeout" in error.done.err:
            raise Failed(
                f"The sessions on {change.name} could not be ended, so it was left as it is.",
                hint="stop the applications, or have a superuser run it",
            ) from None
        raise
    signals.close()
    server.session.ask("commit")


def begin(server: Connection) -> None:
    """Begin a transaction that renames; whoever waits for it waits for no longer than it takes."""
    server.session.ask("begin")
    server.session.ask(f"set local lock_timeout = '{_PATIENCE}'")
    # A client that is frozen now would keep everybody out of the database.
    server.session.ask(f"set local idle_in_transaction_session_timeout = '{_PATIENCE}'")


@contextmanager
def sending_away(desk: Desk, server: Connection, *names: str) -> Iterator[Callable[[str, str], None]]:
    """Yield what renames a database while the sessions on all of *names* are being ended: nobody can come in then."""
    ending = _END.format(names=", ".join(map(literal, names)))
    with desk.connect(server.database) as second, Crew(desk.machine, 1) as crew:

        def rename(old: str, new: str) -> None:
            statement = f"alter database {identifier(old)} rename to {identifier(new)}"
            renamed = crew.submit(server.session.ask, statement)
            while not renamed.done():
                second.session.ask(ending)
                signals.sleep(_AGAIN)
            renamed.result()

        yield rename


def end_sessions(connection: Connection, which: str = "true") -> bool:
    """End the other sessions that are on this database now, *which* says (SQL) of them; return whether they are gone.

    Who comes in later is left in peace.
    """
    session, names = connection.session, literal(connection.database.name)
    pids = f"select coalesce(json_agg(pid), '[]') from pg_stat_activity where {_ON.format(names=names)}"
    found = catalog.answer(session, f"{pids} and ({which})")
    deadline = monotonic() + _FAREWELL
    while found:
        these = f"pid in ({', '.join(map(str, found))})"
        endable = session.ask(f"{_END.format(names=names)} and {these}")
        found = catalog.answer(session, f"{pids} and {these}")
        if found and (endable == "0" or monotonic() > deadline):
            return False
        signals.sleep(_AGAIN)
    return True


def conclude(desk: Desk, server: Connection, change: Change) -> None:
    """Remember a change that was made as the one to undo, and let go of what an earlier one kept aside."""
    _remember(desk, server, change)
    desk.journal.end()


def _remember(desk: Desk, server: Connection, change: Change) -> None:
    aside.let_go(desk, server, change.key, change.before)
    desk.journal.remember(change)


def settle(desk: Desk) -> None:
    """Find out how the changes ended that dead runs were making, and say so; only under the lock."""
    aside.tell_of_migrations(desk)
    database, change = desk.choice.database, desk.journal.under_way()
    here = url.key(database)[1:]
    if change and change.key[1:] != here:
        desk.report.warn(aside.cut_off(change) + " Whether it was done is found out by the next task that works on it.")
        change = None
    changes = [c for c in desk.journal.elsewhere() if c.key[1:] == here]
    if not (change or changes):
        return
    with loading.maintenance(desk, database) as server:
        loading.clear_scratch(desk, server)
        for each in changes:
            _settle(desk, server, each, partial(desk.journal.end_elsewhere, each))
        if change:
            _settle(desk, server, change, desk.journal.end)


def _settle(desk: Desk, server: Connection, change: Change, end: Callable[[], None]) -> None:
    made = was_made(desk, server, change)
    if made:
        _remember(desk, server, change)
    end()
    if made:
        desk.report.say(
            f"{aside.cut_off(change)} It had been done: {change.name} is what it was to be; inv db.undo takes it back."
        )
    elif made is None:
        gone = f"{change.name} or its server has been made anew since then, so nobody can say whether it was done."
        desk.report.warn(f"{aside.cut_off(change)} {gone}")
    else:
        desk.report.say(f"{aside.cut_off(change)} {change.name} is as it was before.")


def was_made(desk: Desk, server: Connection, change: Change) -> bool | None:
    """Whether the server has committed a change that was begun; None where it cannot know of it any more."""
    if change.how == "swap":
        return catalog.database_exists(server.session, change.before)
    if change.transaction is None:
        return False
    if not catalog.database_exists(server.session, change.name):
        return None
    # The number is this database's server's; a session of the dead run may still be ending.
    with desk.connect(url.elsewhere(server.database, change.name)) as connection:
        while (status := catalog.transaction_status(connection.session, change.transaction)) == "in progress":
            signals.sleep(_AGAIN * 10)
    return status == "committed" if status else None


def undo_the_mark(server: Connection, change: Change) -> None:
    """Give the database that a change had put aside, back under its name, the comment it had."""
    comment = "null" if change.comment is None else literal(change.comment)
    server.session.ask(f"comment on database {identifier(change.name)} is {comment}")


def abandon(desk: Desk, server: Connection, change: Change, fresh: str | None = None) -> None:
    """After a failure: find out whether the change was made all the same; if not, drop what was filled for it."""
    # Where nobody answers, the next run finds out.
    with suppress(TaskError), loading.answering(desk, server) as asked:
        if was_made(desk, asked, replace(change, transaction=desk.journal.transaction())):
            conclude(desk, asked, change)
            return
        if fresh:
            loading.discard(desk, asked, fresh)
        desk.journal.end()

"""What the planner has to know of tables just loaded, found out as soon as that costs nobody any time."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress

from . import catalog, loading
from .crew import Crew
from .desk import Connection, Desk
from .errors import Unreachable
from .loading import Dump, Target
from .machine import CommandError, Session

_LOOK = 0.05
# ANALYZE gives way to the load before the server has to choose between them (deadlock_timeout: a second).
_PATIENCE = "100ms"


@contextmanager
def ahead(desk: Desk, connection: Connection) -> Iterator[set[str]]:
    """Analyze in this block, beside what loads the database, each table that has got all its rows.

    Yields their names, which are complete after the block; what cannot be done now is left out.
    """
    done: set[str] = set()
    over = threading.Event()
    with ExitStack() as stack:
        try:
            beside = stack.enter_context(desk.connect(connection.database))
        except Unreachable:  # no more sessions for this user, perhaps
            yield done
            return
        crew = stack.enter_context(Crew(desk.machine, 1))
        stack.enter_context(_given_up(beside))
        work = crew.submit(_follow, beside.session, done, over)
        try:
            yield done
        finally:
            over.set()
        crew.result(work)


@contextmanager
def _given_up(*connections: Connection) -> Iterator[None]:
    """Where the block is left early, end what the server is still at: a large table takes long."""
    try:
        yield
    except BaseException:
        for connection in connections:
            connection.session.end()
        raise


def _follow(session: Session, done: set[str], over: threading.Event) -> None:
    filling: set[str] = set()
    with suppress(CommandError):
        session.ask(f"set lock_timeout = '{_PATIENCE}'")
        while not over.wait(_LOOK):
            before, filling = filling, catalog.being_filled(session)
            for table in before - filling:
                if not over.is_set() and session.attempt(f"analyze {table}") is None:
                    done.add(table)


def analyze(desk: Desk, target: Target, dump: Dump | None = None, done: Collection[str] = ()) -> None:
    """Analyze what is not *done*, several tables at a time, and meanwhile count every table's rows of *dump*.

    Raises Failed where they are others than the backup has recorded. An end that comes early ends the sessions too.
    """
    connection = target.connection
    tables = catalog.to_analyze(connection.session, done)
    jobs = max(1, min(desk.settings.jobs, len(tables)))
    # The largest first, dealt out like cards: they are about equal then.
    shares = [tables[first::jobs] for first in range(jobs)]
    # Who counts as well takes the share that begins with the smallest.
    *others, last = shares
    with ExitStack() as stack:
        connections = [stack.enter_context(desk.connect(connection.database)) for _ in others]
        crew = stack.enter_context(Crew(desk.machine, len(shares)))
        stack.enter_context(_given_up(connection, *connections))
        work = [crew.submit(_analyze, c, share) for c, share in zip(connections, others, strict=True)]
        work.append(crew.submit(_count_and_analyze, target, dump, last))
        for ended in work:
            crew.result(ended)


def _count_and_analyze(target: Target, dump: Dump | None, tables: list[str]) -> None:
    if dump:
        loading.count(target, dump)
    _analyze(target.connection, tables)


def _analyze(connection: Connection, tables: list[str]) -> None:
    if tables:
        connection.session.ask(f"analyze {', '.join(tables)}")

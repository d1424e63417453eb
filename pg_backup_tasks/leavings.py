"""What a migration has left of itself: what it may have written, and what keeps others from undoing that."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from . import catalog, loading, switching
from .desk import Connection, Desk
from .errors import TaskError, Unreachable
from .machine import Session
from .postgres import identifier, literal

# Whatever writes takes a number, and so does asking; only sequences may go on a little without one.
_MARK = """
select json_build_object(
  'transaction', pg_current_xact_id()::text::bigint,
  'sequences', (select coalesce(json_object_agg(format('%I.%I', schemaname, sequencename), last_value), '{}')
    from pg_sequences),
  'sessions', (select json_agg(pid) from pg_stat_activity where datname = current_database()),
  'at', clock_timestamp())
"""


@dataclass(frozen=True)
class Mark:
    """A database at one moment: a transaction's number, where its sequences are, who is in and what the time is."""

    transaction: int
    sequences: dict[str, int | None]
    sessions: list[int]
    at: str

    def untouched(self, session: Session) -> bool:
        """Whether it is certain that nothing has been written since; to be asked once."""
        now = mark(session)
        return (now.transaction, now.sequences) == (self.transaction + 1, self.sequences)

    @property
    def newer_sessions(self) -> str:
        """The SQL that tells a session begun since; of strangers only the number can be seen."""
        known = ", ".join(map(str, self.sessions))
        return f"pid not in ({known}) or backend_start >= {literal(self.at)}"


def mark(session: Session) -> Mark:
    """Return the database as it is now."""
    return Mark(**catalog.answer(session, _MARK))


def open_again(desk: Desk) -> None:
    """Let sessions in to a database that has been closed to them."""
    database = desk.choice.database
    try:
        with desk.connect(database):
            return
    except Unreachable:
        name = identifier(database.name)
        with loading.maintenance(desk, database) as server:
            server.session.attempt(f"alter database {name} allow_connections true")
            server.session.attempt(f"alter database {name} connection limit -1")


def clear(connection: Connection) -> None:
    """End every other session, and take away what a restore would refuse to lose: nothing of that was there before."""
    session = connection.session
    switching.end_sessions(connection)
    present = catalog.present(session)
    for prepared in present.prepared:
        session.attempt(f"rollback prepared {literal(prepared)}")
    for each in map(identifier, present.subscriptions):
        # One whose publisher does not answer cannot take its slot over there with it.
        if session.attempt(f"drop subscription {each}"):
            session.attempt(f"alter subscription {each} disable")
            session.attempt(f"alter subscription {each} set (slot_name = none)")
            session.attempt(f"drop subscription {each}")
    for slot in catalog.present(session).slots:
        session.attempt(f"select pg_drop_replication_slot({literal(slot)})")


def clear_the_way(desk: Desk) -> None:
    """Do for the configured database what can be done of `open_again` and `clear`: the restore tells what could not."""
    with suppress(TaskError):
        open_again(desk)
        with desk.connect(desk.choice.database) as connection:
            clear(connection)

"""Put a database back as it was before the last restore; once more, and it is as it was after that."""

from __future__ import annotations

from dataclasses import replace
from time import monotonic

from . import catalog, loading, switching, units, verify
from .consent import Consent
from .desk import Connection, Desk
from .errors import Refused
from .journal import Change
from .loading import Dump
from .looking import Order
from .model import Database, Mode
from .postgres import identifier
from .restore import Result, Work

_TASK = "db.undo"


def undo(desk: Desk, yes: Consent, wait: float) -> Result:
    """Take back the last restore, undo or rollback of the database. Raises Refused where there is none."""
    database = desk.choice.database
    yes.check(database.name)
    with desk.at_work(f"{_TASK} on {database.name}", wait):
        switching.settle(desk)
        change = desk.journal.last(database)
        if change is None:
            raise _nothing(database)
        desk.report.say(f"Undo     {change.task} at {change.at}")
        if change.how == "swap":
            result = _switch_back(desk, change, database, yes)
        else:
            result = _restore_safety(desk, change, database, yes)
        desk.migrations.undone(database, change.task, change.backup)
        return result


def _restore_safety(desk: Desk, change: Change, database: Database, yes: Consent) -> Result:
    """Put back what was changed in place, from the safety backup taken before. Raises Refused where that is gone."""
    safety = desk.store.by_name(change.before)
    if safety is None:
        raise Refused(f"{change.before}, taken before {change.task}, is not there any more.", hint="inv db.list")
    dump = verify.open_dump(desk, safety)
    return Work(desk, replace(_order(change, dump), heedful=True), dump, database, _TASK).run(yes)


def plan(desk: Desk) -> str:
    """Return what `undo` would do, as far as that is known without looking."""
    database = desk.choice.database
    change = desk.journal.last(database)
    if change is None:
        raise _nothing(database)
    return f"Would put {database} back as it was before {change.task} at {change.at}."


def _order(change: Change, dump: Dump) -> Order:
    """Return what takes back no more than was changed: what else the database has is nothing to this change."""
    if change.mode == Mode.DATA_ONLY.value:
        return Order(Mode.DATA_ONLY)
    if change.mode != Mode.TABLE.value:
        return Order()
    there = {(item.schema, item.name) for item in dump.items if item.kind == "TABLE"}
    names = (f"{identifier(schema)}.{identifier(name)}" for schema, name in change.tables if (schema, name) in there)
    return Order(Mode.TABLE, tables=tuple(names), dropped=tuple(t for t in change.tables if t not in there))


def _nothing(database: Database) -> Refused:
    return Refused(f"There is nothing to undo: no restore of {database.name} is remembered here.", hint="inv db.list")


def _switch_back(desk: Desk, change: Change, database: Database, yes: Consent) -> Result:
    journal = desk.journal
    with loading.maintenance(desk, database) as server:
        if not catalog.database_exists(server.session, change.before):
            journal.forget(lambda c: c == change)
            raise Refused(f"There is nothing to undo: {change.before} has been dropped.", hint="inv db.list")
        redo = _redo(desk, server, change, database)
        yes.obtain(desk.report, database.name, f"Put {database.name} back?")
        began = monotonic()
        if redo is None:
            _put_back(desk, server, change)
            journal.forget(lambda c: c == change)
        else:
            journal.begin(redo)
            try:
                switching.switch(desk, server, redo, change.before, lambda: switching.undo_the_mark(server, change))
                switching.conclude(desk, server, redo)
            except BaseException:
                switching.abandon(desk, server, redo)
                raise
    return Result(change.backup, database.name, "swap", round(monotonic() - began, 3), undo=redo is not None)


def _redo(desk: Desk, server: Connection, change: Change, database: Database) -> Change | None:
    """Return the change that is about to be made; None where nothing is under the name that could go aside."""
    if not catalog.database_exists(server.session, database.name):
        desk.report.say(f"Into     {database}, which is missing")
        return None
    with desk.connect(database) as connection:
        present = catalog.present(connection.session)
        switching.refuse_what_would_be_lost(database.name, present)
        now, _ = catalog.describe(connection.session, database)
    what = f"{units.counted(present.tables, 'table')}, {units.size(present.bytes)}"
    desk.report.say(f"Into     {database}: {what}")
    desk.report.say("Kept     aside as it is now, for a redo")
    before = switching.free_name(desk, server, database.name)
    return switching.begun(desk, database, _TASK, change.backup, present, "swap", before, now.comment)


def _put_back(desk: Desk, server: Connection, change: Change) -> None:
    switching.begin(server)
    with switching.sending_away(desk, server, change.before) as rename:
        rename(change.before, change.name)
    switching.undo_the_mark(server, change)
    server.session.ask("commit")

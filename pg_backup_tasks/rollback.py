"""Restore the backup that the last migration began with: exactly that one, or none."""

from __future__ import annotations

from . import switching
from .consent import Consent
from .desk import Desk
from .errors import Failed, Refused
from .looking import Order
from .migrate import TYPE, back, whole_dump
from .migration import Migration
from .model import Database, Format
from .restore import Result, Work
from .store import Backup

_TASK = "db.rollback"


def rollback(desk: Desk, yes: Consent, wait: float) -> Result | None:
    """Put the database back as it was before its last migration; return None where that has been done already.

    Nor is anything done in a run of CI that did not make the last migration: it is another deploy's, and stands.

    Raises Refused where no such backup is there, Failed where it is not the one that was taken.
    """
    database = desk.choice.database
    yes.check(database.name)
    with desk.at_work(f"{_TASK} of {database.name}", wait):
        switching.settle(desk)
        last = desk.migrations.last(database)
        if last and last.state == "rolled back":
            desk.report.say(f"The migration of {last.name} at {last.at} has been rolled back already.")
            return None
        if last and last.state == "migrated" and desk.run not in ("", last.run):
            desk.report.say(
                f"The last migration of {last.name}, at {last.at}, is not this run's ({desk.run}); it stays as it is."
            )
            return None
        if last is None and desk.run:
            desk.report.say(f"No migration of {database.name} is remembered here, so this run ({desk.run}) made none.")
            return None
        backup = _remembered(desk, last) if last else _newest(desk, database)
        if last and last.state == "under way":
            # As its own run would have, had it lived.
            desk.report.say(f"Back to  {backup.name}, taken before the migration at {last.at} that was cut off")
            yes.obtain(desk.report, database.name, f"Put {database.name} back as it was?")
            result = back(desk, backup, _TASK)
        else:
            dump = whole_dump(desk, backup)
            result = Work(desk, Order(), dump, database, _TASK, ready=switching.end_sessions).run(yes)
        if last:
            desk.migrations.ended(last, "rolled back")
        return result


def plan(desk: Desk) -> str:
    """Return what `rollback` would do, as far as that is known without looking."""
    database = desk.choice.database
    last = desk.migrations.last(database)
    return f"Would restore {(last.backup if last else _newest(desk, database).name)} into {database}."


def _remembered(desk: Desk, last: Migration) -> Backup:
    backup = desk.store.by_name(last.backup)
    if backup is None:
        raise Refused(
            f"{last.backup}, taken before the migration at {last.at}, is not there any more.", hint="inv db.list"
        )
    recorded = backup.info.files.get(Format.DUMP.extension) if backup.info else None
    if recorded is None or recorded.sha256 != last.sha256:
        raise Failed(
            f"{last.backup} is not the backup that was taken before the migration at {last.at}; nothing was touched.",
            hint=f"inv db.verify {last.backup}",
        )
    return backup


def _newest(desk: Desk, database: Database) -> Backup:
    for backup in desk.store.backups(TYPE):
        if backup.complete and (backup.info is None or backup.info.database.name == database.name):
            desk.report.say(f"No migration is remembered here; the newest backup of type {TYPE} is {backup.name}.")
            return backup
    raise Refused(
        f"There is nothing to roll back to: no migration of {database.name} is remembered.", hint="inv db.list"
    )

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


def rollback(desk: Desk, yes: Consent, wait: float) -> Result:
    """Put the database back as it was before its last migration; *how* is None where there is nothing to put back.

    Nor is there in a run of CI that did not make the last migration: it is another deploy's, and stands.

    Raises Refused where no such backup is there, Failed where it is not the one that was taken.
    """
    database = desk.choice.database
    yes.check(database.name)
    with desk.at_work(f"{_TASK} of {database.name}", wait):
        switching.settle(desk)
        last = desk.migrations.last(database)
        if done := _nothing_to_do(desk, last):
            desk.report.say(done)
            return Result(last.backup if last else None, database.name, None, 0)
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
    if done := _nothing_to_do(desk, last):
        return f"Would do nothing. {done}"
    return f"Would restore {(last.backup if last else _newest(desk, database).name)} into {database}."


def _nothing_to_do(desk: Desk, last: Migration | None) -> str | None:
    """Return why nothing is to be put back, None where something is."""
    if last is None:
        name = desk.choice.database.name
        return f"No migration of {name} is remembered here, so this run ({desk.run}) made none." if desk.run else None
    if last.state == "rolled back":
        return f"The migration of {last.name} at {last.at} has been rolled back already."
    if last.state == "migrated" and desk.run not in ("", last.run):
        return f"The last migration of {last.name}, at {last.at}, is not this run's ({desk.run}); it stays as it is."
    return None


def _remembered(desk: Desk, last: Migration) -> Backup:
    backup = desk.store.by_name(last.backup)
    # A restore of another ends what was cut off as well.
    other = "inv db.restore BACKUP, of one that inv db.list shows"
    if backup is None:
        raise Refused(f"{last.backup}, taken before the migration at {last.at}, is not there any more.", hint=other)
    recorded = backup.info.files.get(Format.DUMP.extension) if backup.info else None
    if recorded is None or recorded.sha256 != last.sha256:
        raise Failed(
            f"{last.backup} is not the backup that was taken before the migration at {last.at}; nothing was touched.",
            hint=f"inv db.verify {last.backup}; or {other}",
        )
    return backup


def _newest(desk: Desk, database: Database) -> Backup:
    for backup in desk.store.backups(TYPE):
        if backup.complete and (backup.gist is None or backup.gist.database == database.name):
            desk.report.say(f"No migration is remembered here; the newest backup of type {TYPE} is {backup.name}.")
            return backup
    raise Refused(
        f"There is nothing to roll back to: no migration of {database.name} is remembered.", hint="inv db.list"
    )

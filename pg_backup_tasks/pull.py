"""A far database's backup into the one here, with the owners this one has; nothing is written over there."""

from __future__ import annotations

from dataclasses import dataclass

from . import backup, fetch, restore
from .consent import Consent
from .desk import Desk
from .errors import Refused, Unreachable
from .looking import Order
from .model import Format
from .restore import Result
from .store import Backup

# Who a server is, as far as this user may know: two databases with the same answer are the same database.
_IDENTITY = """
select coalesce((select system_identifier::text from pg_control_system()
    where has_function_privilege('pg_control_system()', 'EXECUTE')), pg_postmaster_start_time()::text)
  || ' ' || (select oid from pg_database where datname = current_database())
"""


@dataclass(frozen=True)
class Pull:
    """What is asked for: a *fresh* backup, or the newest there is."""

    fresh: bool = False
    wait: float = 0


def pull(far: Desk, near: Desk, order: Pull, yes: Consent) -> Result:
    """Make the database here what the far one was when its backup was taken.

    Raises Refused where both are the same database or nobody says yes.
    """
    near_database = near.choice.database
    yes.check(near_database.name)
    _refuse_the_same(far, near)
    chosen = _fresh(far, order) if order.fresh else far.find("latest")
    fetched = fetch.fetch(far, near, chosen, order.wait, (chosen.format_to_restore(),))
    near.report.speak_of("")
    task = f"db.pull of {chosen.name} from {far.machine.name}"
    return restore.restore(near, fetched.backup, Order(owned=False, wait=order.wait), yes, task)


def _fresh(far: Desk, order: Pull) -> Backup:
    """Take a backup over there, which reads its database and nothing else."""
    database = far.choice.database
    asked = backup.Order("manual", "For db.pull", (Format.DUMP,))
    with far.at_work(f"db.pull of {database.name}", order.wait), far.connect(database) as connection:
        return backup.at_work(far, asked, connection)


def _refuse_the_same(far: Desk, near: Desk) -> None:
    there = _identity(far)
    try:
        here = _identity(near)
    except Unreachable:
        return  # a database that is missing is not that one; whatever else it is, the restore will say
    if here == there:
        raise Refused(
            f"{far.choice.database.name} on {far.machine.name} is the very database that is configured here.",
            hint=f"another database in {near.settings.env_file}",
        )


def _identity(desk: Desk) -> str:
    with desk.connect(desk.choice.database) as connection:
        return connection.session.ask(_IDENTITY)

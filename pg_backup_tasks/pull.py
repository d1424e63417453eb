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

# What any user may know of where they are: the server's start, the database, whether it follows another server; and
# whether they may know of which cluster it is.
_IDENTITY = """
select extract(epoch from pg_postmaster_start_time()) || '|' || oid || '|' || pg_is_in_recovery()
  || '|' || has_function_privilege('pg_control_system()', 'EXECUTE')
from pg_database where datname = current_database()
"""
_CLUSTER = "select system_identifier from pg_control_system()"


@dataclass(frozen=True)
class Identity:
    """Which database it is: on a server that *began* then; *cluster* is empty where that may not be known."""

    began: str
    oid: str
    follows: bool = False
    cluster: str = ""

    def is_same(self, other: Identity) -> bool:
        """Whether what is done to one is done to the other: both are one, or one of them follows the other.

        A copy of all the server's files that goes its own way is not the same.
        """
        if self.oid != other.oid:
            return False
        follows = (self.follows or other.follows) and bool(self.cluster)
        return self.began == other.began or (follows and self.cluster == other.cluster)


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
    if here.is_same(there):
        raise Refused(
            f"{far.choice.database.name} on {far.machine.name} is the very database that is configured here.",
            hint=f"another database in {near.settings.env_file}",
        )


def _identity(desk: Desk) -> Identity:
    with desk.connect(desk.choice.database) as connection:
        began, oid, follows, known = connection.session.ask(_IDENTITY).split("|")
        cluster = connection.session.ask(_CLUSTER) if known == "true" else ""
        return Identity(began, oid, follows == "true", cluster)

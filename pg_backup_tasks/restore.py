"""Restore a backup into a database that is missing or empty; replacing one that is not comes with its own care."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from time import monotonic

from . import catalog, loading, verify
from .desk import Connection, Desk
from .errors import Failed, Refused, Unreachable
from .loading import Target
from .model import Database, Format
from .postgres import identifier
from .properties import Statement
from .store import Backup
from .url import elsewhere


@dataclass(frozen=True)
class Result:
    """What a restore did; *seconds* from the answer to the prompt on."""

    backup: str
    database: str
    how: str
    seconds: float
    mode: str = "full"


def restore(desk: Desk, backup: Backup, *, force: bool, interactive: bool, wait: float) -> Result:
    """Make the missing or empty database what the backup is, or leave it as it was.

    Raises Refused where it is not empty or nobody says yes, Failed where the file is damaged or does not load.
    """
    database = desk.choice.database
    format_ = backup.format_to_restore()
    if not force and not interactive:
        raise Refused("There is no terminal to ask in whether to restore.", hint="--force answers yes beforehand")
    with desk.at_work(f"db.restore into {database.name}", wait):
        _refuse_damaged(desk, backup, format_)
        with _present(desk, database) as connection:
            missing = connection is None
            if connection and (objects := catalog.count_objects(connection.session)):
                raise Refused(
                    f"{database} is not empty: it holds {objects} tables, views and the like.",
                    hint="DATABASE_URL of a database that is missing or empty",
                )
            _announce(desk, backup, format_, database, missing)
            if not force and not desk.report.confirm(f"Restore into {database.name}?"):
                raise Refused("Nothing was restored.")
            began = monotonic()
            if connection:
                _into_empty(desk, backup, format_, connection)
            else:
                _into_new(desk, backup, format_, database)
    return Result(backup.name, database.name, "in place" if not missing else "swap", round(monotonic() - began, 3))


def plan(desk: Desk, backup: Backup) -> str:
    """Return what `restore` would do, as far as that is known without looking."""
    return f"Would restore {backup.path(backup.format_to_restore())} into {desk.choice.database}."


def _refuse_damaged(desk: Desk, backup: Backup, format_: Format) -> None:
    if verify.info_is_damaged(desk, backup):
        desk.report.warn(f"{backup.name}: its .info is damaged; restoring without what it knew.")
    elif backup.info is None:
        desk.report.say(f"{backup.name}: no checksum known; read to its end instead.")
    if problems := verify.examine(desk, backup, format_):
        raise Failed(
            f"{backup.path(format_)} {problems[0]}; the database was not touched.",
            hint=f"inv db.verify {backup.name} says which of its files are whole",
        )


@contextmanager
def _present(desk: Desk, database: Database) -> Iterator[Connection | None]:
    """Hold a session on the database, or None where its server has none of that name."""
    with ExitStack() as stack:
        connection: Connection | None = None
        try:
            connection = stack.enter_context(desk.connect(database))
        except Unreachable:
            # The server says why in its own language; whether the database is there is a question of its own.
            if _exists(desk, database):
                raise
        else:
            loading.clear_scratch(desk, connection)
        yield connection


def _exists(desk: Desk, database: Database) -> bool:
    with loading.maintenance(desk, database) as server:
        loading.clear_scratch(desk, server)
        return catalog.database_exists(server.session, database.name)


def _announce(desk: Desk, backup: Backup, format_: Format, database: Database, missing: bool) -> None:
    taken = backup.created_at.strftime("%Y-%m-%d %H:%M:%S UTC") if backup.created_at else "at an unknown time"
    was = backup.info.database if backup.info else None
    origin = f" of {was.name} on {was.host or 'a local socket'}" if was else ""
    desk.report.say(
        f"Backup   {backup.name}{format_.extension if backup.type else ''}, taken {taken}{origin}, "
        f"{backup.sizes[format_] / 1e6:,.1f} MB"
    )
    desk.report.say(f"Into     {database}, which {'is missing and will be created' if missing else 'is empty'}")


def _into_empty(desk: Desk, backup: Backup, format_: Format, connection: Connection) -> None:
    """Load in one transaction: the database stays empty, and what it was, unless everything arrives."""
    properties: tuple[Statement, ...] = ()
    if backup.info:
        now, _ = catalog.describe(connection.session, connection.database)
        properties = loading.properties_of(desk, connection, backup.info.database, connection.database.name, now)
    loading.load(desk, backup, format_, Target(connection, whole=True, properties=properties))
    loading.analyze(connection)


def _into_new(desk: Desk, backup: Backup, format_: Format, database: Database) -> None:
    """Load under a name of our own and rename at the end: the database appears when it is whole."""
    described = backup.info.database if backup.info else None
    with loading.maintenance(desk, database) as server:
        if not server.server.createdb:
            raise Refused(
                f"{database.name} is missing and this user may not create databases.",
                hint=f"let a superuser run: createdb --owner={server.server.user} {database.name}",
            )
        name = loading.scratch_name()
        try:
            loading.create_beside(desk, server, described, name)
            with desk.connect(elsewhere(database, name)) as connection:
                loading.load(desk, backup, format_, Target(connection, whole=False))
                loading.analyze(connection)
            server.session.ask("begin")
            server.session.ask(f"comment on database {identifier(name)} is null")
            server.session.ask(f"alter database {identifier(name)} rename to {identifier(database.name)}")
            if described:
                loading.apply_properties(desk, server, described, database.name)
            server.session.ask("commit")
        except BaseException:
            loading.discard(desk, server, name)
            raise

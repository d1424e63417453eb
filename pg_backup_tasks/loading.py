"""Putting a dump into an empty database, from any format, and proving that every row arrived."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from . import catalog, postgres, properties
from .desk import Connection, Desk
from .errors import Failed, TaskError, Unreachable
from .info import DatabaseInfo
from .machine import CommandError, Load
from .model import Database, Format, Item
from .postgres import identifier, literal
from .properties import Statement
from .store import Backup
from .url import elsewhere

SCRATCH = "pg_backup_tasks_"
MAINTENANCE = ("postgres", "template1")
# The server itself waits five seconds for the end of a database's sessions.
_PATIENCE = 6.0
# What a dump's head sets that a server of before this version does not know.
_SETTINGS_SINCE = {"transaction_timeout": 17}
# What a server can lack, and how it comes by it.
_MISSING = {
    r'^role "[^"]*" does not exist': "create the role (create role NAME), then run it again",
    r'^extension "[^"]*" is not available': "install the extension on the server, then run it again",
    r"^out of shared memory": "raise max_locks_per_transaction on the server",
    r"No space left on device": "make room where the server keeps its data",
}


@dataclass(frozen=True)
class Part:
    """What of a dump is wanted, and the SQL before and after it in the same transaction.

    *counted* are the tables (`schema.name`) whose rows must then be as recorded, None for all of them.
    """

    wanted: Callable[[Item], bool]
    before: str = ""
    after: str = ""
    counted: frozenset[str] | None = None


@dataclass(frozen=True)
class Target:
    """Where a dump goes.

    *whole* asks for one transaction, for a database that others can see already, and *properties* are given to it
    in that; *owned* asks for owners and grants; *part* for less than the whole dump.
    """

    connection: Connection
    whole: bool
    owned: bool = True
    properties: tuple[Statement, ...] = ()
    part: Part | None = None


def load(desk: Desk, backup: Backup, format_: Format, target: Target) -> None:
    """Load a dump, and count each table where the backup says how many rows there must be.

    Raises Failed where psql refuses a statement, the file ends early, or a table has other rows than recorded.
    """
    connection = target.connection
    server = connection.server
    # The newest tools read every archive, and what they say that an older server does not know is left out.
    tools = postgres.any_tools(desk.tools)
    newer = frozenset(name for name, major in _SETTINGS_SINCE.items() if server.major < major)
    command = postgres.psql_loading(tools, connection.database, server.options)
    after = catalog.check_rows(backup.info.tables if backup.info else {}) + properties.leniently(target.properties)
    job = Load(
        psql=command,
        path=backup.path(format_),
        codec=postgres.codec(backup.info.database.encoding if backup.info else "UTF8"),
        reader=postgres.print_sql(tools) if format_.is_archive else None,
        before="begin;\n" if target.whole else "",
        after=after + ("commit;\n" if target.whole else ""),
        skip_settings=newer,
        skip_restrict=not tools.knows_restrict,
        skip_owners=not target.owned,
    )
    moved = 0

    with desk.report.gauge("Restoring", {format_.extension: _stream_size(backup, format_)}) as gauge:

        def progress(size: int) -> None:
            nonlocal moved
            moved += size
            gauge.update({format_.extension: moved})

        try:
            done = desk.machine.load(job, progress)
        except CommandError as error:
            raise postgres.explain(error, connection.database, "restore") from None
    if done.code:
        desk.report.note(done.err)
        raise _refusal(CommandError(command, done), connection.database)
    for statement in properties.refused(done.err, target.properties):
        _say_refused(desk, statement)


def _refusal(error: CommandError, database: Database) -> TaskError:
    """Return why psql did not take a dump."""
    # With 3 psql was connected and a statement failed: whatever it says is said of the dump.
    said = re.search(r"ERROR:\s+(?P<reason>.*)", error.done.err) if error.done.code == 3 else None
    if not said:
        return postgres.explain(error, database, "restore")
    hints = (re.search(pattern, said["reason"]) and hint for pattern, hint in _MISSING.items())
    return Failed(f"Cannot restore {database}: {said['reason'].rstrip('.')}.", hint=next(filter(None, hints), None))


def _stream_size(backup: Backup, format_: Format) -> int:
    """Return the bytes that will have gone by: of the SQL for an archive, of the file itself else."""
    if format_.is_archive and backup.info and (sql := backup.info.files.get(Format.SQL.extension)):
        return sql.bytes
    return backup.sizes[format_] * (3 if format_ is Format.DUMP else 1)


def analyze(connection: Connection) -> None:
    """Let the planner know the new data."""
    connection.session.ask("analyze")


@contextmanager
def maintenance(desk: Desk, database: Database) -> Iterator[Connection]:
    """Hold a session on the same server, on a database that is always there."""
    with ExitStack() as stack:
        first, second = (elsewhere(database, name) for name in MAINTENANCE)
        try:
            connection = stack.enter_context(desk.connect(first))
        except Unreachable:
            connection = stack.enter_context(desk.connect(second))
        yield connection


def scratch_name() -> str:
    """Return a name for a database that is ours and nobody's yet."""
    return f"{SCRATCH}{secrets.token_hex(4)}"


def create_beside(desk: Desk, connection: Connection, info: DatabaseInfo | None, name: str) -> None:
    """Create an empty database like the one recorded, marked as this run's until it is renamed.

    A locale the server does not have gives way to the server's own, and that is said.
    """
    # Before the mark is on it and after it is off, the session's name says whose it is.
    connection.session.ask(f"set application_name to {literal(name)}")
    if info is None:
        connection.session.ask(f"create database {identifier(name)} template template0")
    else:
        _create_like(desk, connection, info, name)
    mark = f"{SCRATCH}{desk.machine.presence()}"
    connection.session.ask(f"comment on database {identifier(name)} is {literal(mark)}")


def _create_like(desk: Desk, connection: Connection, info: DatabaseInfo, name: str) -> None:
    exact, *others = properties.creations(info, name, connection.server.major)
    if connection.session.attempt(exact) is None:
        return
    for statement in others[:-1]:
        if connection.session.attempt(statement) is None:
            break
    else:
        connection.session.ask(others[-1])
    desk.report.warn(f"The server has no locale {info.locale or info.collate}; the new database sorts another way.")


def drop(connection: Connection, name: str, patience: float | None = None) -> None:
    """Drop a database of ours, ending whatever still looks at it."""
    connection.session.ask(_dropping(name), patience)


def _dropping(name: str) -> str:
    return f"drop database if exists {identifier(name)} with (force)"


def discard(desk: Desk, connection: Connection, name: str) -> None:
    """Drop a database of ours after a failure; what cannot be dropped soon, a later run drops."""
    try:
        connection.session.ask("rollback", _PATIENCE)
        drop(connection, name, _PATIENCE)
    except CommandError as error:
        desk.report.note(f"{name} is still there: {error.done.err}")


def clear_scratch(desk: Desk, connection: Connection) -> None:
    """Drop the databases that dead runs of ours were filling."""
    sql = (
        "select coalesce(json_agg(json_build_array(datname, shobj_description(oid, 'pg_database'), "
        "exists(select from pg_stat_activity where application_name = pg_database.datname))), '[]') "
        # Exactly the names we give: whoever calls a database of theirs after us keeps it.
        f"from pg_database where datname ~ {literal(f'^{SCRATCH}[0-9a-f]{{8}}$')}"
    )
    for name, comment, in_use in catalog.answer(connection.session, sql):
        mark = (comment or "").removeprefix(SCRATCH)
        abandoned = not in_use or (mark != comment and not desk.machine.alive(mark))
        # Another user's is for that user to drop.
        if abandoned and connection.session.attempt(_dropping(name)) is None:
            desk.report.say(f"Dropped {name}, which an earlier run had not finished filling.")


def apply_properties(desk: Desk, connection: Connection, info: DatabaseInfo, name: str) -> None:
    """Give database *name*, just made, its recorded owner, grants, settings, comment; say what could not be given."""
    for statement in properties_of(desk, connection, info, name):
        if connection.session.attempt(statement.sql) is not None:
            _say_refused(desk, statement)


def properties_of(
    desk: Desk, connection: Connection, info: DatabaseInfo, name: str, now: DatabaseInfo | None = None
) -> tuple[Statement, ...]:
    """Return what gives database *name* its recorded owner, grants, settings and comment; say whose are left out.

    *now* is what it has, None for a database just made.
    """
    roles = catalog.role_names(connection.session)
    if missing := properties.missing_roles(info, roles):
        desk.report.warn(f"The server has no role {', '.join(missing)}; what was theirs is left out.")
    return tuple(properties.statements(info, name, roles, now))


def _say_refused(desk: Desk, statement: Statement) -> None:
    desk.report.warn(f"The server does not let this user set {statement.what}.")

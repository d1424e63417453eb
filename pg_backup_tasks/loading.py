"""Putting a dump into an empty database, from any format, and proving that every row arrived."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from . import catalog, postgres, properties
from .desk import Connection, Desk
from .errors import Failed, Unreachable
from .info import DatabaseInfo
from .machine import CommandError, Load
from .model import Database, Format
from .postgres import identifier, literal
from .store import Backup
from .url import elsewhere

SCRATCH = "pg_backup_tasks_"
MAINTENANCE = ("postgres", "template1")
# What a dump's head sets that a server of before this version does not know.
_SETTINGS_SINCE = {"transaction_timeout": 17}


@dataclass(frozen=True)
class Target:
    """Where a dump goes.

    *whole* asks for one transaction, for a database that others can see already; *owned* for owners and grants.
    """

    connection: Connection
    whole: bool
    owned: bool = True


def load(desk: Desk, backup: Backup, format_: Format, target: Target) -> dict[str, int] | None:
    """Load a dump; return the rows of each table where the backup says how many there must be.

    Raises Failed where psql refuses a statement, the file ends early, or a table has other rows than recorded.
    """
    connection = target.connection
    server = connection.server
    # The newest tools read every archive, and what they say that an older server does not know is left out.
    tools = postgres.any_tools(desk.tools)
    newer = frozenset(name for name, major in _SETTINGS_SINCE.items() if server.major < major)
    path = backup.path(format_)
    command = postgres.psql_loading(tools, connection.database, server.options)
    job = Load(
        psql=command,
        path=path,
        codec=postgres.codec(backup.info.database.encoding if backup.info else "UTF8"),
        reader=postgres.print_sql(tools) if format_.is_archive else None,
        before="begin;\n" if target.whole else "",
        after="commit;\n" if target.whole else "",
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
        raise postgres.explain(CommandError(command, done), connection.database, "restore")
    return backup.info.tables if backup.info else None


def _stream_size(backup: Backup, format_: Format) -> int:
    """Return the bytes that will have gone by: of the SQL for an archive, of the file itself else."""
    if format_.is_archive and backup.info and (sql := backup.info.files.get(Format.SQL.extension)):
        return sql.bytes
    return backup.sizes[format_] * (3 if format_ is Format.DUMP else 1)


def check_rows(connection: Connection, expected: dict[str, int]) -> None:
    """Raise Failed, naming it, where a table has other rows than *expected*, or is not there."""
    found = catalog.count_rows(connection.session, set(expected))
    for table, rows in expected.items():
        if found.get(table) != rows:
            raise Failed(f"{table} has {found.get(table, 'no')} rows after the restore; the backup has {rows}.")


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
    if info is None:
        connection.session.ask(f"create database {identifier(name)} template template0")
    else:
        _create_like(desk, connection, info, name)
    mark = f"{SCRATCH}{desk.machine.presence()}"
    connection.session.ask(f"comment on database {identifier(name)} is {literal(mark)}")


def _create_like(desk: Desk, connection: Connection, info: DatabaseInfo, name: str) -> None:
    if connection.session.attempt(properties.create(info, name, with_locale=True)) is None:
        return
    connection.session.ask(properties.create(info, name, with_locale=False))
    desk.report.warn(
        f"The server has no locale {info.locale or info.collate}; the new database sorts by the server's own."
    )


def drop(connection: Connection, name: str) -> None:
    """Drop a database of ours, ending whatever still looks at it."""
    connection.session.ask(f"drop database if exists {identifier(name)} with (force)")


def clear_scratch(desk: Desk, connection: Connection) -> None:
    """Drop the databases that dead runs of ours were filling."""
    sql = (
        "select coalesce(json_agg(json_build_array(datname, shobj_description(oid, 'pg_database'))), '[]') "
        f"from pg_database where datname like {literal(SCRATCH.replace('_', chr(92) + '_') + '%')}"
    )
    for name, comment in catalog.answer(connection.session, sql):
        presence = (comment or "").removeprefix(SCRATCH)
        if comment and comment.startswith(SCRATCH) and not desk.machine.alive(presence):
            drop(connection, name)
            desk.report.say(f"Dropped {name}, which an earlier run had not finished filling.")


def apply_properties(desk: Desk, connection: Connection, info: DatabaseInfo, name: str) -> None:
    """Give database *name* its recorded owner, grants, settings and comment; say what could not be given."""
    roles = catalog.role_names(connection.session)
    if missing := properties.missing_roles(info, roles):
        desk.report.warn(f"The server has no role {', '.join(missing)}; what was theirs is left out.")
    for statement in properties.statements(info, name, roles):
        if connection.session.attempt(statement.sql) is not None:
            desk.report.warn(f"The server does not let this user set {statement.what}.")

"""Putting a dump into an empty database, from any format, and proving that every row arrived."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from time import monotonic

from . import catalog, postgres, properties, signals
from .catalog import Server
from .desk import Connection, Desk
from .errors import Failed, TaskError, Unreachable
from .info import DatabaseInfo, FileInfo
from .machine import CommandError, Load
from .model import Command, Database, Format, Item
from .postgres import Tools, identifier, literal
from .properties import Statement
from .store import Backup
from .url import elsewhere

SCRATCH = "pg_backup_tasks_"
MAINTENANCE = ("postgres", "template1")
# The server itself waits five seconds for the end of a database's sessions.
_PATIENCE = 6.0
# What a dump's head sets that a server of before this version does not know.
_SETTINGS_SINCE = {"transaction_timeout": 17}
# A dump sets these to wait for ever; in a database that others use we say how long.
_OURS_TO_SET = frozenset({"lock_timeout"})
# Entries of an archive that say how to read the others.
_HEAD = frozenset({"ENCODING", "STDSTRINGS", "SEARCHPATH"})
_LOOK = 0.02
_SIZE_EVERY = 0.5
_TOLD = re.compile(
    r"(?:(?:psql|pg_restore)[^ ]*: )?(?:(?:error|warning): .*|(?:ERROR|FATAL|PANIC|WARNING|DETAIL|HINT): )", re.DOTALL
)
# What a server can lack, and how it comes by it.
_MISSING = {
    r'^role "[^"]*" does not exist': "create the role (create role NAME), then run it again",
    r'^extension "[^"]*" is not available': "install the extension on the server, then run it again",
    r"^out of shared memory": "raise max_locks_per_transaction on the server",
    r"^Others have (?:written|made)": "stop the applications, then run it again",
    r"No space left on device": "make room where the server keeps its data",
}


@dataclass(frozen=True)
class Dump:
    """One dump file of a backup, and its objects, where they have been listed; by another of its files, perhaps."""

    backup: Backup
    format: Format
    items: tuple[Item, ...] = ()

    @property
    def path(self) -> str:
        """Where it is."""
        return self.backup.path(self.format)

    @property
    def encoding(self) -> str:
        """PostgreSQL's name for the encoding its text is in."""
        return self.backup.info.database.encoding if self.backup.info else "UTF8"

    @property
    def recorded(self) -> FileInfo | None:
        """Its size and digest when it was written, where that is recorded."""
        return self.backup.info.files.get(self.format.extension) if self.backup.info else None

    @property
    def rows(self) -> dict[str, int]:
        """The rows recorded for each table; none where nothing is recorded."""
        return self.backup.info.tables if self.backup.info else {}

    @property
    def tables(self) -> frozenset[str]:
        """Its tables by `schema.table`, as far as anybody knows."""
        return frozenset(self.rows) or frozenset(item.table for item in self.items if item.kind == "TABLE")

    @property
    def has_ids(self) -> bool:
        """Whether its objects can be told apart for pg_restore: it is an archive, and we could list it."""
        return self.format.is_archive and any(item.id for item in self.items)


@dataclass(frozen=True)
class Part:
    """What of a dump is wanted, and the SQL before and after it in the same transaction.

    *counted* are the tables (`schema.name`) whose rows must then be as recorded, *replaced* those, as SQL names them,
    whose rows give way; None for all of them.
    """

    wanted: Callable[[Item], bool]
    before: str = ""
    after: str = ""
    counted: frozenset[str] | None = None
    replaced: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Target:
    """Where a dump goes.

    *whole* asks for one transaction, for a database that others can see already, and *properties* are given to it
    in that, after *opening* has been said; *owned* asks for owners and grants; *part* for less than the whole dump.
    *called* is the database that it is to be, where that is another yet.
    """

    connection: Connection
    whole: bool
    owned: bool = True
    properties: tuple[Statement, ...] = ()
    part: Part | None = None
    opening: str = ""
    called: Database | None = None

    @property
    def database(self) -> Database:
        """The database that is spoken of."""
        return self.called or self.connection.database


def load(desk: Desk, dump: Dump, target: Target) -> None:
    """Load a dump; with *target.whole* also count every table's rows, before it is done.

    Raises Failed where the server refuses a statement, the file ends early, or a table has other rows than recorded.
    """
    if target.part is None and not target.whole and (tools := _parallel_tools(desk, dump, target.connection.server)):
        _load_side_by_side(desk, dump, target, tools)
    else:
        _load_as_one_stream(desk, dump, target)


def _parallel_tools(desk: Desk, dump: Dump, server: Server) -> Tools | None:
    """Return the pg_restore that can itself put the dump into the server; None where we have to mediate."""
    info = dump.backup.info
    if dump.format is not Format.DUMP or info is None:
        return None
    dumper = int(info.tools.get("pg_dump", "0").split(".")[0])
    able = [t for t in desk.tools if t.major >= max(dumper, server.major)]
    tools = postgres.choose_tools(able, server.major) if able else None
    # What pg_restore sets first of all, an older server does not know.
    unknown = tools and any(server.major < since <= tools.major for since in _SETTINGS_SINCE.values())
    return None if unknown else tools


def _load_side_by_side(desk: Desk, dump: Dump, target: Target, tools: Tools) -> None:
    connection = target.connection
    command = postgres.pg_restore(
        tools,
        connection.database,
        dump.path,
        jobs=desk.settings.jobs,
        owned=target.owned,
        options=connection.server.loading_options,
    )
    info = dump.backup.info
    expected = {dump.format.extension: info.database.bytes if info else 1}
    with desk.report.gauge("Restoring", expected) as gauge, desk.machine.start(command) as job:
        looked = 0.0
        while job.poll() is None:
            signals.sleep(_LOOK)
            if (now := monotonic()) - looked > _SIZE_EVERY:
                looked = now
                gauge.update({dump.format.extension: catalog.size(connection.session)})
        done = job.wait()
    desk.report.note(_told(done.err) or f"pg_restore took {dump.path}")
    if done.code:
        raise _refusal(CommandError(command, done), target.database)


def _load_as_one_stream(desk: Desk, dump: Dump, target: Target) -> None:
    connection, part, server = target.connection, target.part, target.connection.server
    # The newest tools read every archive, and what they say that an older server does not know is left out.
    tools = postgres.any_tools(desk.tools)
    command = postgres.psql_loading(tools, connection.database, server.loading_options)
    job = Load(
        psql=command,
        path=dump.path,
        codec=postgres.codec(dump.encoding),
        reader=_reader(desk, dump, part, tools),
        before=_before(target),
        after=_after(dump, target),
        skip_settings=frozenset(name for name, major in _SETTINGS_SINCE.items() if server.major < major)
        | (_OURS_TO_SET if target.whole else frozenset()),
        skip_restrict=not tools.knows_restrict,
        skip_owners=not target.owned,
        leave_out=_unwanted(part) if part and not dump.has_ids else None,
    )
    moved = 0

    with desk.report.gauge("Restoring", {dump.format.extension: _stream_size(dump)}) as gauge:

        def progress(size: int) -> None:
            nonlocal moved
            moved += size
            gauge.update({dump.format.extension: moved})

        try:
            done = desk.machine.load(job, progress)
        except CommandError as error:
            raise postgres.explain(error, target.database, "restore") from None
        finally:
            desk.machine.remove(desk.journal.list_path)
    if done.code:
        desk.report.note(_told(done.err))
        raise _refusal(CommandError(command, done), target.database)
    for statement in properties.refused(done.err, target.properties):
        _say_refused(desk, statement)


def _reader(desk: Desk, dump: Dump, part: Part | None, tools: Tools) -> Command | None:
    """Return what prints an archive's SQL, all of it or the part that is wanted; None for what is SQL already."""
    if not dump.format.is_archive:
        return None
    if part is None or not dump.has_ids:
        return postgres.print_sql(tools)
    path = desk.journal.list_path
    ids = [f"{item.id};\n" for item in dump.items if item.kind in _HEAD or part.wanted(item)]
    desk.machine.write(path, "".join(ids).encode())
    return postgres.print_items(tools, path)


def _unwanted(part: Part) -> Callable[[Item], bool]:
    return lambda item: not part.wanted(item)


def _before(target: Target) -> str:
    return f"begin;\n{target.opening}{target.part.before if target.part else ''}" if target.whole else ""


def _after(dump: Dump, target: Target) -> str:
    rows = dump.rows
    if target.part and target.part.counted is not None:
        rows = {table: count for table, count in rows.items() if table in target.part.counted}
    middle = target.part.after if target.part else ""
    if not target.whole:
        return middle
    end = "set local synchronous_commit to on;\ncommit;\n"
    return middle + catalog.check_rows(rows) + properties.leniently(target.properties) + end


def _told(said: str) -> str:
    """Return what went wrong, without the statements and rows it went wrong at: there may be passwords in them."""
    return "\n".join(line for line in said.splitlines() if _TOLD.match(line))


def _refusal(error: CommandError, database: Database) -> TaskError:
    """Return why psql did not take a dump."""
    # With 3 psql was connected and a statement failed: whatever it says is said of the dump.
    inside = error.done.code == 3 or error.command.program == "pg_restore"
    said = re.search(r"ERROR:\s+(?P<reason>.*)", error.done.err) if inside else None
    if not said:
        return postgres.explain(error, database, "restore")
    hints = (re.search(pattern, said["reason"]) and hint for pattern, hint in _MISSING.items())
    return Failed(f"Cannot restore {database}: {said['reason'].rstrip('.')}.", hint=next(filter(None, hints), None))


def _stream_size(dump: Dump) -> int:
    """Return the bytes that will have gone by: of the SQL for an archive, of the file itself else."""
    backup = dump.backup
    if dump.format.is_archive and backup.info and (sql := backup.info.files.get(Format.SQL.extension)):
        return sql.bytes
    return backup.sizes[dump.format] * (3 if dump.format is Format.DUMP else 1)


def count(target: Target, dump: Dump) -> None:
    """Count every table's rows. Raises Failed where they are others than the backup has recorded."""
    try:
        target.connection.session.ask(catalog.check_rows(dump.rows))
    except CommandError as error:
        raise _refusal(error, target.database) from None


@contextmanager
def maintenance(desk: Desk, database: Database) -> Iterator[Connection]:
    """Hold a session on the same server, on a database that is always there."""
    with ExitStack() as stack:
        # From within itself no database is renamed, nor found missing.
        *first, last = (elsewhere(database, name) for name in MAINTENANCE if name != database.name)
        connection: Connection | None = None
        for place in first:
            with suppress(Unreachable):
                connection = stack.enter_context(desk.connect(place))
        connection = connection or stack.enter_context(desk.connect(last))
        # A role may be told to read only, unless it says otherwise.
        connection.session.ask("set default_transaction_read_only to off")
        yield connection


def scratch_name() -> str:
    """Return a name for a database that is ours and nobody's yet."""
    return f"{SCRATCH}{secrets.token_hex(4)}"


def create_beside(
    desk: Desk, connection: Connection, info: DatabaseInfo | None, name: str, tablespace: str = "pg_default"
) -> None:
    """Create an empty database like the one recorded, marked as this run's until it is renamed.

    A locale the server does not have gives way to the server's own, and that is said.
    """
    # Before the mark is on it and after it is off, the session's name says whose it is.
    connection.session.ask(f"set application_name to {literal(name)}")
    if info is None:
        connection.session.ask(f"create database {identifier(name)} template template0")
    else:
        place = "" if tablespace == "pg_default" else f" tablespace {identifier(tablespace)}"
        _create_like(desk, connection, info, name, place)
    mark = f"{SCRATCH}{desk.machine.presence()}"
    connection.session.ask(f"comment on database {identifier(name)} is {literal(mark)}")


def _create_like(desk: Desk, connection: Connection, info: DatabaseInfo, name: str, place: str) -> None:
    exact, *others = (sql + place for sql in properties.creations(info, name, connection.server.major))
    if connection.session.attempt(exact) is None:
        return
    for statement in others[:-1]:
        if connection.session.attempt(statement) is None:
            break
    else:
        connection.session.ask(others[-1])
    desk.report.warn(f"The server has no locale {info.locale or info.collate}; the new database sorts another way.")


def _dropping(name: str) -> str:
    return f"drop database if exists {identifier(name)} with (force)"


@contextmanager
def answering(desk: Desk, connection: Connection) -> Iterator[Connection]:
    """Hold a session after a failure: this one, once it has ended what it was at; another, if the server has ended it.

    Raises TaskError where neither answers soon.
    """
    began = monotonic()
    try:
        connection.session.ask("rollback", _PATIENCE)
    except CommandError:
        if monotonic() - began > _PATIENCE / 2:
            raise
        with maintenance(desk, connection.database) as other:
            yield other
    else:
        yield connection


def discard(desk: Desk, connection: Connection, name: str) -> None:
    """Drop a database of ours after a failure; what cannot be dropped soon, a later run drops."""
    try:
        with answering(desk, connection) as asked:
            asked.session.ask(_dropping(name), _PATIENCE)
    except TaskError as error:
        desk.report.note(f"{name} is still there: {error}")


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
    return tuple(properties.statements(info, name, roles, connection.server.user, now))


def _say_refused(desk: Desk, statement: Statement) -> None:
    desk.report.warn(f"The server does not let this user set {statement.what}.")

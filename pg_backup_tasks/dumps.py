"""The dumps of one backup while they are made: side by side, watched, read back before they count."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from . import postgres, signals
from .crew import Crew
from .desk import Connection, Desk
from .errors import Failed
from .machine import CommandError, Derived, Examined, Job
from .model import Command, Digest, Format
from .store import Staging

_LOOK = 0.1


@contextmanager
def dumping(
    desk: Desk, formats: tuple[Format, ...], connection: Connection, staging: Staging, snapshot: str
) -> Iterator[Dumps]:
    """Write the dumps of *snapshot* for this block, which is to call `finish`; whatever is still at work then ends."""
    dumps = Dumps(desk, formats, connection, staging, snapshot)
    with Crew(desk.machine) as crew, ExitStack() as running:
        dumps.begin(crew, running)
        yield dumps


@dataclass
class Dumps:
    """The dumps of one backup while they are made."""

    desk: Desk
    formats: tuple[Format, ...]
    connection: Connection
    staging: Staging
    snapshot: str
    jobs: dict[Format, Job] = field(default_factory=dict)
    checks: dict[Format, Future[Examined]] = field(default_factory=dict)
    listings: list[Future[None]] = field(default_factory=list)
    derived: Future[Derived] | None = None

    def begin(self, crew: Crew, running: ExitStack) -> None:
        """Start the dumps, and what reads them while they are written.

        The custom archive is read while pg_dump writes it: the SQL formats come from what pg_restore prints of
        it. That proves it readable, and the server is asked for the data once less.
        """
        for format_ in self._archives():
            self.jobs[format_] = running.enter_context(self.desk.machine.start(self._pg_dump(format_)))
        if self._sql_formats():
            self.derived = crew.submit(self._derive)
        for format_ in self.jobs:
            self.checks[format_] = crew.submit(self._check, format_)
            self.listings.append(crew.submit(self._list, format_))

    def finish(self, expected: dict[Format, int]) -> tuple[dict[Format, Digest], dict[str, int]]:
        """Wait for every format, of *expected* bytes; return the files' digests and the rows of each table."""
        self._watch(expected)
        return self._results()

    def _archives(self) -> list[Format]:
        wanted = [f for f in self.formats if f.is_archive]
        # .sql and .sql.gz come out of a custom archive, even if nobody keeps it.
        return wanted if Format.DUMP in wanted or not self._sql_formats() else [Format.DUMP, *wanted]

    def _sql_formats(self) -> list[Format]:
        return [f for f in self.formats if not f.is_archive]

    def _path(self, format_: Format) -> str:
        return self.staging.file(format_.extension if format_ in self.formats else ".unpublished")

    def _pg_dump(self, format_: Format) -> Command:
        connection = self.connection
        return postgres.pg_dump(
            connection.tools,
            connection.database,
            archive="custom" if format_ is Format.DUMP else "tar",
            path=self._path(format_),
            snapshot=self.snapshot,
            lock_timeout=self.desk.settings.lock_timeout,
            options=connection.server.dumping_options,
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
        """Read an archive to its end, where SQL made of it has not done that already."""
        machine, path, job = self.desk.machine, self._path(format_), self.jobs[format_]
        if self._is_read_by_pg_restore(format_):
            job.wait()
            return Examined(machine.digest(path))
        return machine.examine(path, format_, self._codec, job, postgres.print_sql(self.connection.tools))

    def _is_read_by_pg_restore(self, format_: Format) -> bool:
        return format_ is Format.DUMP and self.derived is not None

    def _list(self, format_: Format) -> None:
        """Let pg_restore itself accept the finished archive's table of contents; keep what pg_dump warned of."""
        done = self.jobs[format_].wait()
        if said := done.err.strip():
            self.desk.report.note(f"pg_dump {format_.extension}: {said}")
        if done.code or self._is_read_by_pg_restore(format_):
            return
        command = postgres.list_archive(self.connection.tools, self._path(format_))
        listed = self.desk.machine.run(command)
        if listed.code:
            raise CommandError(command, listed)

    def _watch(self, expected: dict[Format, int]) -> None:
        """Wait for everything, showing progress; return early if something has failed."""
        pending: set[Future[Any]] = {*self.checks.values(), *self.listings}
        if self.derived:
            pending.add(self.derived)
        paths = {f.extension: self._path(f) for f in self.formats}
        sizes = {f.extension: size for f, size in expected.items()}
        looked = 0.0
        with self.desk.report.gauge("Dumping", sizes) as gauge:
            while pending and not any(job.poll() for job in self.jobs.values()):
                done, pending = wait(pending, _LOOK, FIRST_EXCEPTION)
                if any(f.exception() for f in done):
                    return
                signals.check()
                if (now := monotonic()) - looked >= self.desk.machine.glance:
                    looked = now
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
        for listing in self.listings:
            listing.result()
        for format_, check in self.checks.items():
            examined = check.result()
            if examined.problem:
                raise Failed(f"The {format_.extension} that was just written {examined.problem}.")
            if rows is not None and examined.rows not in (None, rows):
                raise Failed(f"The {format_.extension} that was just written holds other rows than the .dump.")
            rows = examined.rows if rows is None else rows
            digests[format_] = examined.digest
        # The order files are published and listed in, the same for every backup.
        return {f: digests[f] for f in self.formats}, rows or {}

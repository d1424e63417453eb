"""Dumps between programs on this computer: what pg_restore prints into files, what psql is sent."""

from __future__ import annotations

import fcntl
import io
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from . import bulk, process
from .archive import DamagedError
from .errors import Failed
from .machine import Derived, Done, Job, Load, Progress
from .model import Command
from .sqltext import SqlDump


def derive(
    reader: Command,
    archive: str,
    codec: str,
    plain: str | None,
    packed: str | None,
    writer: Job | None,
    cancelled: threading.Event,
) -> Derived:
    """Run *reader* on the *archive* given to it as standard input, its SQL into the files named; see Machine.derive."""
    dump = SqlDump(codec)
    file = bulk.Hashing(plain) if plain else None
    packer = bulk.Packer(packed) if packed else None
    try:
        with _reading(reader, archive, writer, cancelled) as job:
            for data in bulk.chunks(job.output, cancelled):
                if packer:
                    packer.write(data)
                if file:
                    file.write(data)
                dump.feed(data)
            job.check()
    except BaseException:
        for unfinished in (packer, file):
            if unfinished:
                unfinished.abandon()
        raise
    packed_digest = packer.close() if packer else None
    plain_digest = file.close() if file else None
    return Derived(dump.rows, dump.complete, plain_digest, packed_digest)


@contextmanager
def _reading(
    reader: Command, archive: str, writer: Job | None, cancelled: threading.Event
) -> Iterator[process.Process]:
    """Run *reader* on an archive, also on one that is still being written."""
    if writer is None:
        with process.Process(reader, standard_input=archive, output=True) as job:
            yield job
        return
    out, into = _pipe()
    with ExitStack() as stack:
        source = os.fdopen(into, "wb", buffering=0)
        feeder = threading.Thread(target=_follow, args=(archive, writer, source, cancelled))
        feeder.start()
        # Joined after the reader's end: until then the feeder may be stuck in what nobody reads any more.
        stack.callback(feeder.join)
        try:
            job = stack.enter_context(
                process.Process(reader, standard_input=f"/dev/fd/{out}", output=True, pass_fds=(out,))
            )
        finally:
            os.close(out)
        yield job


def _follow(path: str, writer: Job, into: io.FileIO, cancelled: threading.Event) -> None:
    # Whatever ends this early is told by the reader, which then lacks the rest, or by the writer.
    with (
        suppress(BrokenPipeError, bulk.Cancelled, FileNotFoundError),
        into,
        bulk.Growing(path, writer, cancelled) as growing,
    ):
        for data in bulk.chunks(growing, cancelled):
            bulk.write_all(into, data)


def load(load: Load, progress: Progress, cancelled: threading.Event) -> Done:
    """Send a dump through psql; psql gets the last words only if the dump came whole."""
    out, into = _pipe()
    with ExitStack() as stack:
        target = os.fdopen(into, "wb", buffering=0)
        stack.callback(_close_quietly, target)
        try:
            psql = stack.enter_context(process.Process(load.psql, standard_input=f"/dev/fd/{out}", pass_fds=(out,)))
        finally:
            os.close(out)
        try:
            _pour(load, target, progress, cancelled)
        except BrokenPipeError:
            pass  # psql gave up; why stands in what it said
        except DamagedError as error:
            # Without the last words psql commits nothing.
            raise Failed(f"{load.path} {error}; nothing was restored from it.") from None
        _close_quietly(target)
        return psql.wait()


def _pour(load: Load, target: io.FileIO, progress: Progress, cancelled: threading.Event) -> None:
    dump = load.editor()
    bulk.write_all(target, load.before.encode())
    with ExitStack() as stack:
        if load.reader:
            job = stack.enter_context(process.Process(load.reader, standard_input=load.path, output=True))
            for data in bulk.chunks(bulk.Watched(job.output, progress), cancelled):
                bulk.write_all(target, dump.feed(data))
            job.check()
        else:
            for data in bulk.sql_chunks(load.path, cancelled, progress):
                bulk.write_all(target, dump.feed(data))
    bulk.write_all(target, dump.close())
    if not dump.complete:
        raise DamagedError("ends before pg_dump's closing line")
    bulk.write_all(target, load.after.encode())


def _pipe() -> tuple[int, int]:
    """Return the two ends of a pipe; the numbers below 10 are the guarding shell's to use."""
    ends = os.pipe()
    try:
        out, into = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    finally:
        for end in ends:
            os.close(end)
    return out, into


def _close_quietly(file: io.FileIO) -> None:
    with suppress(BrokenPipeError):
        file.close()

"""Moving a dump's bytes on this computer: hashed, counted, packed and unpacked on the way, in little memory."""

from __future__ import annotations

import hashlib
import io
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Protocol

from isal import isal_zlib
from isal.igzip_lib import IsalError

from . import archive, signals
from .errors import Failed
from .machine import Examined, Job
from .model import Digest, Format, Item, format_of
from .sqltext import SqlDump

CHUNK = archive.CHUNK
_PACKED_AHEAD = 32
_GZIP = 31  # zlib's window bits for a gzip header around deflate
# A thousand times as much may come out of a chunk as went in.
_UNPACKED_AT_ONCE = 1 << 20
_FLUSH_EVERY = 0.3
_LEVEL = 2  # as quick as level 1 and 3 % smaller


class Cancelled(Failed):
    """The run is ending; nobody waits for this result."""

    def __init__(self) -> None:
        super().__init__("The run was ended.")


class Growing(io.RawIOBase):
    """A file that *writer* may still be writing: its end is the end only once the writer has ended."""

    def __init__(self, path: str, writer: Job | None, cancelled: threading.Event) -> None:
        self._writer = writer
        self._cancelled = cancelled
        while writer is not None and not os.path.exists(path) and writer.poll() is None:
            self._pause()
        self._fd = os.open(path, os.O_RDONLY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            _go_on(self._cancelled)
            ended = self._writer is None or self._writer.poll() is not None
            if size := os.readv(self._fd, [buffer]):
                return size
            if ended:
                return 0
            self._pause()

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()

    def _pause(self) -> None:
        if self._cancelled.wait(0.02):
            raise Cancelled


def _go_on(cancelled: threading.Event) -> None:
    signals.check()
    if cancelled.is_set():
        raise Cancelled


def write_all(file: io.FileIO, data: bytes) -> None:
    """Write all of *data* to an unbuffered file, which may take it in pieces."""
    view = memoryview(data)
    while view:
        with signals.waiting():
            written = file.write(view)
        view = view[written:]


def _for_us_alone(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class Hashing:
    """Writes a file, which only its owner may read, and knows its digest; on disk when closed."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "wb", buffering=0, opener=_for_us_alone)  # noqa: SIM115 - closed by close()
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> None:
        write_all(self._file, data)
        self._hash.update(data)
        self._size += len(data)

    def flush(self) -> None:
        """Return when what has been written is on disk."""
        os.fdatasync(self._file.fileno()) if hasattr(os, "fdatasync") else os.fsync(self._file.fileno())

    @property
    def digest(self) -> Digest:
        """The digest of what has been written."""
        return Digest(self._size, self._hash.hexdigest())

    def close(self) -> Digest:
        os.fsync(self._file.fileno())
        self._file.close()
        return self.digest

    def abandon(self) -> None:
        """Close it without waiting for the disk."""
        self._file.close()


class Packer(threading.Thread):
    """Packs what it is given into a gzip file, on a core of its own."""

    def __init__(self, path: str) -> None:
        super().__init__(daemon=True)
        self._file = Hashing(path)
        self._queue: queue.Queue[bytes | None] = queue.Queue(_PACKED_AHEAD)
        self._abandoned = False
        self._error: Exception | None = None
        self._digest: Digest | None = None
        self.start()

    def run(self) -> None:
        packing = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _GZIP)
        ended = False
        try:
            while (data := self._queue.get()) is not None:
                self._file.write(packing.compress(data))
            ended = True
            if self._abandoned:
                self._file.abandon()
                return
            self._file.write(packing.flush())
            self._digest = self._file.close()
        except Exception as error:  # noqa: BLE001 - handed to whoever waits for the digest
            self._error = error
            # Whoever still fills the queue must not find it full; nobody does after the last word.
            while not ended and self._queue.get() is not None:
                pass

    def write(self, data: bytes) -> None:
        if self._error:
            raise self._error
        self._queue.put(data)

    def close(self) -> Digest:
        self._queue.put(None)
        self.join()
        if self._error:
            raise self._error
        assert self._digest is not None
        return self._digest

    def abandon(self) -> None:
        """End without waiting for the disk."""
        self._abandoned = True
        self._queue.put(None)
        self.join()


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def chunks(stream: Readable, cancelled: threading.Event) -> Iterator[bytes]:
    """Yield what *stream* holds, piece by piece, until it ends or the run does."""
    while data := stream.read(CHUNK):
        _go_on(cancelled)
        yield data


class Keeper(threading.Thread):
    """Writes a file on a core of its own, and on to the disk all along: little is left to wait for at the end."""

    def __init__(self, path: str) -> None:
        super().__init__(daemon=True)
        self._file = Hashing(path)
        self._queue: queue.Queue[bytes | None] = queue.Queue(_PACKED_AHEAD)
        self._ended = threading.Event()
        self._error: Exception | None = None
        self._flusher = threading.Thread(target=self._flush, daemon=True)
        self._flusher.start()
        self.start()

    def run(self) -> None:
        while (data := self._queue.get()) is not None:
            try:
                if not self._error:
                    self._file.write(data)
            except Exception as error:  # noqa: BLE001 - handed to whoever gives us more
                self._error = error
        self._ended.set()

    def _flush(self) -> None:
        while not self._ended.wait(_FLUSH_EVERY):
            try:
                self._file.flush()
            except OSError as error:
                # It is told but once, and the flush that makes the file last would hear nothing of it.
                self._error = error

    def write(self, data: bytes) -> None:
        if self._error:
            raise self._error
        self._queue.put(data)

    def close(self) -> Digest:
        """Return the digest once all is written, most of it on disk and the rest on its way."""
        self._join()
        self._file.abandon()
        if self._error:
            raise self._error
        return self._file.digest

    def abandon(self) -> None:
        """End without waiting for the disk."""
        self._join()
        self._file.abandon()

    def _join(self) -> None:
        self._queue.put(None)
        self.join()
        self._flusher.join()


@contextmanager
def keeping(path: str) -> Iterator[Keeper]:
    """Write a file in this block; what has ended early is nobody's to wait for."""
    file = Keeper(path)
    try:
        yield file
    except BaseException:
        file.abandon()
        raise


def digest(path: str, cancelled: threading.Event) -> Digest:
    """Return the digest of a whole file."""
    total, size = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file:
        for data in chunks(file, cancelled):
            total.update(data)
            size += len(data)
    return Digest(size, total.hexdigest())


def copy(
    files: Mapping[str, str], progress: Callable[[str, int], None], cancelled: threading.Event
) -> Generator[Digest, None, None]:
    """Copy files to others, yielding their digests as they have come; see Machine.bring."""
    for path, target in files.items():
        with open(path, "rb", buffering=0) as source, keeping(target) as file:
            for data in chunks(source, cancelled):
                file.write(data)
                progress(path, len(data))
        yield file.close()


def sniff(path: str, cancelled: threading.Event) -> Format | None:
    """Return the dump format that a file's first bytes show, None for anything else."""
    with open(path, "rb") as file:
        head = file.read(512)
    if head[:2] != b"\x1f\x8b":
        return format_of(head)
    with suppress(archive.DamagedError):
        inside = next(sql_chunks(path, cancelled), b"")
        return Format.SQL_GZ if format_of(inside) is Format.SQL else None
    return None


def examine(
    path: str,
    format_: Format,
    codec: str,
    writer: Job | None,
    cancelled: threading.Event,
) -> Examined:
    """Read a dump file to its end, unpacking all of it; see Machine.examine."""
    try:
        rows = _READERS[format_](path, codec, writer, cancelled)
    except archive.DamagedError as error:
        return Examined(digest(path, cancelled), problem=str(error))
    except archive.UnsupportedError:
        return Examined(digest(path, cancelled))
    return Examined(digest(path, cancelled), rows)


def contents(path: str, format_: Format, codec: str, cancelled: threading.Event) -> tuple[Item, ...] | None:
    """Return the objects a whole dump file holds; see Machine.contents."""
    if not format_.is_archive:
        return tuple(_read_sql(path, SqlDump(codec, headings=True), cancelled).items)
    try:
        with io.BufferedReader(Growing(path, None, cancelled), CHUNK) as file:
            return tuple(archive.contents(file, format_, codec).entries.values())
    except archive.UnsupportedError:
        return None


def _rows_of_dump(path: str, codec: str, writer: Job | None, cancelled: threading.Event) -> dict[str, int]:
    with io.BufferedReader(Growing(path, writer, cancelled), CHUNK) as file:
        return archive.scan_custom(file, codec)


def _rows_of_tar(path: str, codec: str, writer: Job | None, cancelled: threading.Event) -> dict[str, int]:
    # pg_dump writes it from front to back, as it would into a pipe.
    with io.BufferedReader(Growing(path, writer, cancelled), CHUNK) as file:
        return archive.scan_tar(file, codec)


def _rows_of_sql(path: str, codec: str, writer: Job | None, cancelled: threading.Event) -> dict[str, int]:
    _wait_for(writer, cancelled)
    return _read_sql(path, SqlDump(codec), cancelled).rows


def _read_sql(path: str, dump: SqlDump, cancelled: threading.Event) -> SqlDump:
    """Let *dump* read the SQL in a file to its end. Raises DamagedError where that is missing."""
    for data in sql_chunks(path, cancelled):
        dump.feed(data)
    if not dump.complete:
        raise archive.DamagedError("ends before pg_dump's closing line")
    return dump


def _wait_for(writer: Job | None, cancelled: threading.Event) -> None:
    while writer is not None and writer.poll() is None:
        if cancelled.wait(0.02):
            raise Cancelled


_READERS: dict[Format, Callable[[str, str, Job | None, threading.Event], dict[str, int]]] = {
    Format.DUMP: _rows_of_dump,
    Format.TAR: _rows_of_tar,
    Format.SQL_GZ: _rows_of_sql,
    Format.SQL: _rows_of_sql,
}


def sql_chunks(path: str, cancelled: threading.Event, progress: Callable[[int], None] | None = None) -> Iterator[bytes]:
    """Yield the SQL in a plain or gzip file (told by its first bytes); *progress* gets the bytes read of it.

    Raises DamagedError where packed data is damaged or ends in the middle.
    """
    with open(path, "rb", buffering=0) as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        yield from (_unpack if packed else chunks)(Watched(file, progress), cancelled)


class Watched:
    """A stream that tells how many bytes were read from it."""

    def __init__(self, file: Readable, progress: Callable[[int], None] | None) -> None:
        self._file = file
        self._progress = progress

    def read(self, size: int, /) -> bytes:
        data = self._file.read(size)
        if self._progress:
            self._progress(len(data))
        return data


def _unpack(stream: Readable, cancelled: threading.Event) -> Iterator[bytes]:
    unpacking = isal_zlib.decompressobj(_GZIP)
    fresh = True
    try:
        for chunk in chunks(stream, cancelled):
            rest, more = chunk, False
            while rest or more:
                if unpacking.eof:  # another member may follow, as `cat a.gz b.gz` leaves them
                    unpacking = isal_zlib.decompressobj(_GZIP)
                unpacked = unpacking.decompress(rest, _UNPACKED_AT_ONCE)
                yield unpacked
                fresh = False
                more = len(unpacked) == _UNPACKED_AT_ONCE and not unpacking.eof
                rest = unpacking.unused_data if unpacking.eof else unpacking.unconsumed_tail
    except IsalError:  # type: ignore[misc]  # its stub forgets the base class
        raise archive.DamagedError("holds packed data that is damaged") from None
    if fresh or not unpacking.eof:
        raise archive.DamagedError("ends in the middle")

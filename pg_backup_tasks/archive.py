"""Reading pg_dump's archives, custom and tar, without pg_restore: every byte is unpacked, every row counted.

The formats are PostgreSQL's (src/bin/pg_dump/pg_backup_archiver.c and pg_backup_custom.c, archive versions 1.12
to 1.16). Reading them here takes a third of the processor time of `pg_restore -f /dev/null`, finds what
`pg_restore --list` passes over, and ends on a truncated tar, where pg_restore spins forever.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from isal import isal_zlib
from isal.igzip_lib import IsalError

OLDEST, NEWEST = (1, 12), (1, 16)
CUSTOM, TAR = 1, 3
NONE, GZIP = 0, 1
COPY_END = b"\\.\n\n\n"
TABLE_DATA = "TABLE DATA"
_DATA, _BLOBS = 1, 3
# Larger pieces are slower: the allocator maps and unmaps them one by one.
CHUNK = 1 << 16


class Source(Protocol):
    """What an archive is read from: `read(n)` gives n bytes, fewer only at the end."""

    def read(self, size: int, /) -> bytes: ...


class DamagedError(Exception):
    """The file is not the archive it claims to be; the text says what is wrong with it."""


class UnsupportedError(Exception):
    """A newer or differently compressed archive: only its own pg_restore can read it."""


@dataclass(frozen=True)
class Entry:
    """One line of an archive's table of contents."""

    id: int
    kind: str
    schema: str
    name: str
    owner: str
    definition: str
    copy: str
    member: str

    @property
    def table(self) -> str:
        """`schema.name`, as `.info` names tables."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True)
class Contents:
    """An archive's header and table of contents."""

    version: tuple[int, int]
    compression: int
    database: str
    server_version: str
    dump_version: str
    entries: dict[int, Entry]

    @property
    def tables(self) -> set[str]:
        """The tables whose rows the archive holds."""
        return {e.table for e in self.entries.values() if e.kind == TABLE_DATA}


class _Reader:
    """Integers and strings as pg_backup_archiver.c writes them."""

    def __init__(self, source: Source, codec: str) -> None:
        self._read = source.read
        self._codec = codec
        self.int_size = self.offset_size = 4

    def exactly(self, size: int) -> bytes:
        data = self._read(size)
        if len(data) != size:
            raise DamagedError("ends in the middle")
        return data

    def byte(self) -> int:
        return self.exactly(1)[0]

    def int(self) -> int:
        data = self.exactly(1 + self.int_size)
        value = int.from_bytes(data[1:], "little")
        return -value if data[0] else value

    def text(self) -> str | None:
        size = self.int()
        if size > 1 << 30:
            raise DamagedError("has a damaged table of contents")
        return None if size < 0 else self.exactly(size).decode(self._codec, "surrogateescape")


def read_contents(source: Source, codec: str = "utf-8") -> tuple[Contents, _Reader]:
    """Read an archive's table of contents from its first byte on, leaving *source* at the data behind it.

    Raises DamagedError, and UnsupportedError for archive versions that are not known here.
    """
    reader = _Reader(source, codec)
    if reader.exactly(5) != b"PGDMP":
        raise DamagedError("is no pg_dump archive")
    version = (reader.byte(), reader.byte())
    reader.byte()
    if not OLDEST <= version <= NEWEST:
        raise UnsupportedError(f"archive version {version[0]}.{version[1]}")
    reader.int_size, reader.offset_size = reader.byte(), reader.byte()
    kind = reader.byte()
    if reader.int_size not in (4, 8) or reader.offset_size not in (4, 8) or kind not in (CUSTOM, TAR):
        raise DamagedError("has a damaged header")
    compression = reader.byte() if version >= (1, 15) else _older_compression(reader.int())
    for _ in range(7):  # when it was dumped, in that machine's local time
        reader.int()
    database, server, dumper = reader.text(), reader.text(), reader.text()
    entries = {}
    for _ in range(_plausible(reader.int())):
        entry = _entry(reader, version, kind)
        entries[entry.id] = entry
    contents = Contents(version, compression, database or "", server or "", dumper or "", entries)
    return contents, reader


def _older_compression(level: int) -> int:
    return NONE if level == 0 else GZIP


def _plausible(count: int) -> int:
    if not 0 <= count < 1 << 26:
        raise DamagedError("has a damaged table of contents")
    return count


def _entry(reader: _Reader, version: tuple[int, int], kind: int) -> Entry:
    number = reader.int()
    reader.int()  # whether data follows for it
    reader.text(), reader.text()  # its catalog's and its own oid
    tag, what = reader.text() or "", reader.text() or ""
    reader.int()  # section
    definition = reader.text() or ""
    reader.text()  # the statement that drops it
    copy, schema = reader.text() or "", reader.text() or ""
    reader.text()  # tablespace
    if version >= (1, 14):
        reader.text()  # access method
    if version >= (1, 16):
        reader.int()  # relkind
    owner = reader.text() or ""
    reader.text()  # WITH OIDS, long gone
    while reader.text() is not None:
        pass  # what it depends on
    if kind == TAR:
        member = reader.text() or ""
    else:
        member = ""
        reader.exactly(1 + reader.offset_size)
    return Entry(number, what, schema, tag, owner, definition, copy, member)


def scan_custom(source: Source, codec: str = "utf-8") -> tuple[Contents, dict[str, int]]:
    """Unpack a whole custom archive; return its contents and the rows of each table dumped with COPY.

    Raises DamagedError for anything that does not unpack, or is missing; UnsupportedError as read_contents.
    """
    contents, reader = read_contents(source, codec)
    if contents.compression not in (NONE, GZIP):
        raise UnsupportedError(f"compression {contents.compression}")
    rows: dict[str, int] = {}
    while kind := source.read(1):
        entry = contents.entries.get(reader.int())
        if entry is None or kind[0] not in (_DATA, _BLOBS):
            raise DamagedError("has a block that belongs to nothing")
        try:
            if kind[0] == _BLOBS:
                while reader.int():
                    _count(_unpacked(reader, contents.compression))
            elif (count := _count(_unpacked(reader, contents.compression))) is not None:
                rows[entry.table] = count
        except IsalError:  # type: ignore[misc]  # its stub forgets the base class
            raise DamagedError(f"has damaged data for {entry.table}") from None
    return contents, _complete(contents, rows)


def _chunks(reader: _Reader) -> Iterator[bytes]:
    while size := reader.int():
        if not 0 < size < 1 << 30:
            raise DamagedError("has a block of an impossible size")
        yield reader.exactly(size)


def _unpacked(reader: _Reader, compression: int) -> Iterator[bytes]:
    if compression == NONE:
        yield from _chunks(reader)
        return
    stream = isal_zlib.decompressobj()
    for packed in _chunks(reader):
        yield stream.decompress(packed)
    if not stream.eof:
        raise DamagedError("has a block that ends in the middle")


def _count(chunks: Iterator[bytes]) -> int | None:
    """Return the rows in a table's COPY data, None where it is something else (INSERTs, a large object)."""
    lines, tail = 0, b""
    for chunk in chunks:
        lines += chunk.count(b"\n")
        tail = (tail + chunk)[-len(COPY_END) :] if len(chunk) < len(COPY_END) else chunk[-len(COPY_END) :]
    return lines - COPY_END.count(b"\n") if tail == COPY_END else None


def scan_tar(file: BinaryIO, codec: str = "utf-8") -> tuple[Contents, dict[str, int]]:
    """Read a whole tar archive from front to back; return its contents and the rows of each table.

    Raises DamagedError for a truncated or damaged one; UnsupportedError as read_contents.
    """
    contents: Contents | None = None
    tables: dict[str, str] = {}
    rows: dict[str, int] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                data = tar.extractfile(member)
                if data is None:
                    continue
                if contents is None:
                    contents, _ = read_contents(data, codec)
                    tables = {e.member: e.table for e in contents.entries.values() if e.member}
                    continue
                count = _count(iter(lambda: data.read(CHUNK), b""))  # noqa: B023 - used at once
                if count is not None and member.name in tables:
                    rows[tables[member.name]] = count
    except (tarfile.TarError, EOFError) as error:
        raise DamagedError(f"is no whole tar file ({error})") from None
    if contents is None:
        raise DamagedError("is no tar file of pg_dump's")
    return contents, _complete(contents, rows)


def _complete(contents: Contents, rows: dict[str, int]) -> dict[str, int]:
    expected = {e.table for e in contents.entries.values() if e.kind == TABLE_DATA and e.copy}
    if missing := sorted(expected - rows.keys()):
        raise DamagedError(f"has no data for {missing[0]}")
    return rows

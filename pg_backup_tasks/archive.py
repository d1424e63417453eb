"""Reading pg_dump's archives, custom and tar, without pg_restore: every byte is unpacked, every row counted.

The formats are PostgreSQL's (src/bin/pg_dump/pg_backup_archiver.c and pg_backup_custom.c, archive versions 1.12
to 1.16). Reading them here takes a third of the processor time of `pg_restore -f /dev/null`, finds what
`pg_restore --list` passes over, and ends on a truncated tar, where pg_restore spins forever.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any, Protocol

from isal import isal_zlib
from isal.igzip_lib import IsalError

from .model import Format, Item

OLDEST, NEWEST = (1, 12), (1, 16)
CUSTOM, TAR = 1, 3
NONE, GZIP = 0, 1
COPY_END = b"\\.\n\n\n"
TABLE_DATA, BLOBS = "TABLE DATA", "BLOBS"
# A tar's large objects are not where its table of contents says: together until version 15, then by entry.
_BLOBS_MEMBER = re.compile(r"blobs(?:_([0-9]+))?\.toc")
_DATA, _BLOBS = 1, 3
# Larger pieces are slower: the allocator maps and unmaps them one by one.
CHUNK = 1 << 16
_BLOCK = 512
# A damaged length must not make us read, or unpack, a whole archive into memory.
_LONGEST_TEXT = 1 << 26
_LONGEST_ID = 18
_UNPACKED_AT_ONCE = 1 << 20
# A number, or a text's length, by the bytes it has beside its sign.
_HEADS = {4: Struct("<BI"), 8: Struct("<BQ")}
_TEXT = (True,)


class Source(Protocol):
    """What an archive is read from: `read(n)` gives n bytes, fewer only at the end."""

    def read(self, size: int, /) -> bytes: ...


class DamagedError(Exception):
    """The file is not the archive it claims to be; the text says what is wrong with it."""


class UnsupportedError(Exception):
    """A newer or differently compressed archive: only its own pg_restore can read it."""


@dataclass(frozen=True, kw_only=True)
class Entry(Item):
    """One line of an archive's table of contents; *member* is its file in a tar."""

    member: str


@dataclass(frozen=True)
class Contents:
    """An archive's header and table of contents."""

    version: tuple[int, int]
    compression: int
    database: str
    server_version: str
    dump_version: str
    entries: dict[int, Entry]


class _Reader:
    """Integers and strings as pg_backup_archiver.c writes them.

    It reads ahead: a table of contents is hundreds of thousands of short texts, and calls are what they cost.
    """

    def __init__(self, source: Source, codec: str) -> None:
        self._source = source
        self._codec = codec
        self._ahead = b""
        self._at = 0
        self.head, self.offset_size = _HEADS[4], 4

    def some(self, size: int) -> bytes:
        """Return *size* bytes, a chunk at most; fewer at the end."""
        if self._at + size > len(self._ahead):
            self._ahead = self._ahead[self._at :] + self._source.read(CHUNK)
            self._at = 0
        data = self._ahead[self._at : self._at + size]
        self._at += len(data)
        return data

    def exactly(self, size: int) -> bytes:
        # Who asks for more than is there gets as much memory first: a damaged length must not be believed.
        data = self.some(size) if size <= CHUNK else b"".join(self.pieces(size))
        if len(data) != size:
            raise DamagedError("ends in the middle")
        return data

    def pieces(self, size: int) -> Iterator[bytes]:
        """Yield *size* bytes a little at a time."""
        while size > 0:
            piece = self.exactly(min(size, CHUNK))
            size -= len(piece)
            yield piece

    def byte(self) -> int:
        return self.exactly(1)[0]

    def int(self) -> int:
        value: int
        negative, value = self.head.unpack(self.exactly(self.head.size))
        if negative > (value != 0):
            raise DamagedError("has a damaged number")
        return -value if negative else value

    def text(self) -> str:
        """Return a text, empty where there is none."""
        return self.decoded(self.raw())

    def raw(self) -> bytes | None:
        """Return a text as it stands there, None where there is none."""
        found: bytes | None = self.fields(_TEXT)[0]
        return found

    def fields(self, shape: Sequence[bool]) -> list[Any]:
        """Return the next numbers and texts: an int where *shape* has False, bytes or None where it has True."""
        found: list[Any] = []
        ahead, at, width, unpack_from = self._ahead, self._at, self.head.size, self.head.unpack_from
        for is_text in shape:
            # What lies ahead whole, as nearly all does, costs no call of ours.
            if (start := at + width) <= len(ahead):
                negative, value = unpack_from(ahead, at)
                if negative == 0 and (end := start + value if is_text else start) <= len(ahead):
                    found.append(ahead[start:end] if is_text else value)
                    at = end
                    continue
            self._at = at
            found.append(self._far_raw() if is_text else self.int())
            ahead, at = self._ahead, self._at
        self._at = at
        return found

    def _far_raw(self) -> bytes | None:
        """Return a text that does not lie ahead whole, or is none."""
        size = self.int()
        if size > _LONGEST_TEXT:
            raise DamagedError("has a damaged table of contents")
        return None if size < 0 else self.exactly(size)

    def decoded(self, raw: bytes | None) -> str:
        """Return what `raw` and `fields` have left as it stands, empty where there is none."""
        return raw.decode(self._codec, "surrogateescape") if raw else ""


def read_contents(source: Source, codec: str = "utf-8", *, only_data: bool = False) -> tuple[Contents, _Reader]:
    """Read an archive's table of contents from its first byte on; the reader returned beside it goes on behind it.

    With *only_data* it has the entries that have data and no others, which takes less time. Raises DamagedError, and
    UnsupportedError for archive versions that are not known here.
    """
    reader = _Reader(source, codec)
    if reader.exactly(5) != b"PGDMP":
        raise DamagedError("is no pg_dump archive")
    version = (reader.byte(), reader.byte())
    reader.byte()
    if not OLDEST <= version <= NEWEST:
        raise UnsupportedError(f"archive version {version[0]}.{version[1]}")
    int_size, reader.offset_size, kind = reader.byte(), reader.byte(), reader.byte()
    if int_size not in _HEADS or reader.offset_size not in (4, 8) or kind not in (CUSTOM, TAR):
        raise DamagedError("has a damaged header")
    reader.head = _HEADS[int_size]
    compression = reader.byte() if version >= (1, 15) else _older_compression(reader.int())
    for _ in range(7):  # when it was dumped, in that machine's local time
        reader.int()
    database, server, dumper = reader.text(), reader.text(), reader.text()
    entries = {}
    shape = _shape(version)
    for _ in range(_plausible(reader.int())):
        if entry := _entry(reader, shape, kind, only_data):
            entries[entry.id] = entry
    contents = Contents(version, compression, database, server, dumper, entries)
    return contents, reader


def _shape(version: tuple[int, int]) -> tuple[bool, ...]:
    """Return which of an entry's fields are texts, up to what it needs."""
    number, text = False, True
    access_method = (text,) if version >= (1, 14) else ()
    kind_of_relation = (number,) if version >= (1, 16) else ()
    # Its number, whether it has data; its catalog's oid and its own, name, kind; section; definition, the statement
    # that drops it, COPY, schema, tablespace; ...; owner, and WITH OIDS, long gone.
    first = (number, number, text, text, text, text, number, text, text, text, text, text)
    return (*first, *access_method, *kind_of_relation, text, text)


def _older_compression(level: int) -> int:
    return NONE if level == 0 else GZIP


def _plausible(count: int) -> int:
    if not 0 <= count < 1 << 26:
        raise DamagedError("has a damaged table of contents")
    return count


def _entry(reader: _Reader, shape: Sequence[bool], kind: int, only_data: bool) -> Entry | None:
    number, has_data, _, _, name, what, _, definition, _, copy, schema, *_, owner, _ = reader.fields(shape)
    needs = [*iter(reader.raw, None)]
    member = None
    if kind == TAR:
        member = reader.raw()
    else:
        reader.exactly(1 + reader.offset_size)
    if only_data and not has_data:
        return None
    text = reader.decoded
    return Entry(
        id=number,
        kind=text(what),
        schema=text(schema),
        name=text(name),
        owner=text(owner),
        definition=text(definition),
        copy=text(copy),
        needs=frozenset(map(_id, needs)),
        member=text(member),
    )


def _id(raw: bytes) -> int:
    if not raw.isdigit() or len(raw) > _LONGEST_ID:
        raise DamagedError("has a damaged table of contents")
    return int(raw)


def scan_custom(source: Source, codec: str = "utf-8") -> dict[str, int]:
    """Unpack a whole custom archive; return the rows of each table dumped with COPY.

    Raises DamagedError for anything that does not unpack, or is missing; UnsupportedError as read_contents.
    """
    contents, reader = read_contents(source, codec, only_data=True)
    if contents.compression not in (NONE, GZIP):
        raise UnsupportedError(f"compression {contents.compression}")
    rows: dict[str, int] = {}
    seen: set[int] = set()
    while kind := reader.some(1):
        entry = contents.entries.get(reader.int())
        if entry is None or kind[0] not in (_DATA, _BLOBS):
            raise DamagedError("has a block that belongs to nothing")
        seen.add(entry.id)
        try:
            if kind[0] == _BLOBS:
                while reader.int():
                    _count(_unpacked(reader, contents.compression))
            elif (count := _count(_unpacked(reader, contents.compression))) is not None:
                _add(rows, entry.table, count)
        except IsalError:  # type: ignore[misc]  # its stub forgets the base class
            raise DamagedError(f"has damaged data for {entry.table}") from None
    _refuse_incomplete(contents, seen)
    return rows


def _chunks(reader: _Reader) -> Iterator[bytes]:
    while size := reader.int():
        if not 0 < size < 1 << 30:
            raise DamagedError("has a block of an impossible size")
        if size <= CHUNK:
            yield reader.exactly(size)
        else:
            yield from reader.pieces(size)


def _unpacked(reader: _Reader, compression: int) -> Iterator[bytes]:
    if compression == NONE:
        yield from _chunks(reader)
        return
    stream = isal_zlib.decompressobj()
    for packed in _chunks(reader):
        if stream.eof:
            raise DamagedError("has a block that goes on behind its end")
        unpacked = stream.decompress(packed, _UNPACKED_AT_ONCE)
        yield unpacked
        while stream.unconsumed_tail or len(unpacked) == _UNPACKED_AT_ONCE:
            unpacked = stream.decompress(stream.unconsumed_tail, _UNPACKED_AT_ONCE)
            yield unpacked
    if not stream.eof or stream.unused_data:
        raise DamagedError("has a block that ends in the middle")


def _count(chunks: Iterator[bytes]) -> int | None:
    """Return the rows in a table's COPY data, None where it is something else (INSERTs, a large object)."""
    lines, tail = 0, b""
    for chunk in chunks:
        lines += chunk.count(b"\n")
        tail = (tail + chunk)[-len(COPY_END) :] if len(chunk) < len(COPY_END) else chunk[-len(COPY_END) :]
    return lines - COPY_END.count(b"\n") if tail == COPY_END else None


def contents(source: Source, format_: Format, codec: str) -> Contents:
    """Return the contents of an archive of either format; raise UnsupportedError for a version we cannot read."""
    if format_ is Format.TAR:
        return _tar_contents(source, codec, only_data=False)
    return read_contents(source, codec)[0]


def _tar_contents(source: Source, codec: str, *, only_data: bool) -> Contents:
    """Read a tar archive's table of contents, leaving *source* at the members behind it; see read_contents."""
    # tarfile takes a damaged header in the middle for the end, and would believe in gigabytes of extended header.
    member = _next_member(source)
    if member is None or member.name != "toc.dat":
        raise DamagedError("is no tar file of pg_dump's")
    contents, _ = read_contents(member, codec, only_data=only_data)
    member.skip()
    return contents


def scan_tar(source: Source, codec: str = "utf-8") -> dict[str, int]:
    """Read a whole tar archive from front to back; return the rows of each table.

    Raises DamagedError for a truncated or damaged one; UnsupportedError as read_contents.
    """
    contents = _tar_contents(source, codec, only_data=True)
    members = {e.member: e for e in contents.entries.values() if e.member}
    rows: dict[str, int] = {}
    seen: set[int] = set()
    while member := _next_member(source):
        count = _count(member.chunks())
        member.skip()
        if blobs := _BLOBS_MEMBER.fullmatch(member.name):
            seen |= {int(blobs[1])} if blobs[1] else {e.id for e in contents.entries.values() if e.kind == BLOBS}
        elif entry := members.get(member.name):
            seen.add(entry.id)
            if count is not None:
                _add(rows, entry.table, count)
    _refuse_incomplete(contents, seen)
    return rows


class _Member:
    """One file in a tar, read as it goes by."""

    def __init__(self, source: Source, name: str, size: int) -> None:
        self.name = name
        self._source = source
        self._left = size
        self._padding = -size % _BLOCK

    def read(self, size: int, /) -> bytes:
        """Return *size* bytes of it, fewer only at its end."""
        data = self._source.read(min(size, self._left))
        self._left -= len(data)
        return data

    def chunks(self) -> Iterator[bytes]:
        """Yield what is left of it."""
        while self._left and (data := self.read(CHUNK)):
            yield data

    def skip(self) -> None:
        """Go to the end of it, which must be there."""
        for _ in self.chunks():
            pass
        padding = self._source.read(self._padding)
        if self._left or len(padding) != self._padding:
            raise DamagedError("ends in the middle")
        if padding.strip(b"\0"):
            raise DamagedError(f"is damaged behind {self.name}")


def _next_member(source: Source) -> _Member | None:
    """Return what comes next in a tar, None at its end. Raises DamagedError for anything else."""
    header = source.read(_BLOCK)
    if len(header) != _BLOCK:
        raise DamagedError("ends in the middle")
    if not header.strip(b"\0"):
        _refuse_more(source)
        return None
    try:
        name = header[:100].partition(b"\0")[0].decode("ascii")
        checksum = int(header[148:156].strip(b" \0"), 8)
        size = _tar_number(header[124:136])
    except ValueError:
        raise DamagedError("is no whole tar file") from None
    # Its own field counts as blanks.
    if header[257:262] != b"ustar" or checksum != sum(header) - sum(header[148:156]) + 8 * 32:
        raise DamagedError("has a damaged tar header")
    return _Member(source, name, size)


def _tar_number(field: bytes) -> int:
    # A member of 8 GB or more has its size in binary.
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b" \0"), 8)


def _refuse_more(source: Source) -> None:
    """Read the end of a tar: two blocks of zeros, of which one is read, and perhaps more zeros."""
    found = 0
    while data := source.read(CHUNK):
        found += len(data)
        if data.strip(b"\0"):
            raise DamagedError("has a damaged tar header")
    if found < _BLOCK:
        raise DamagedError("ends in the middle")


def _add(rows: dict[str, int], table: str, count: int) -> None:
    # Two tables may have one such name: a.b in the schema c, and b in the schema c.a.
    rows[table] = rows.get(table, 0) + count


def _refuse_incomplete(contents: Contents, seen: set[int]) -> None:
    """Raise DamagedError unless all that has data has been *seen*."""
    for entry in contents.entries.values():
        if entry.id not in seen:
            raise DamagedError(f"has no data for {entry.table if entry.kind == TABLE_DATA else entry.name}")

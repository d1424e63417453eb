"""Archives read without pg_restore: they agree with it, and damage never gets further than a sentence."""

from __future__ import annotations

import io
import random
import re
import subprocess
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import nasty
import pytest
from conftest import Server, clean_environ, slowly
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pg_backup_tasks import archive
from pg_backup_tasks.archive import DamagedError, UnsupportedError
from pg_backup_tasks.model import Format

DATABASE = "archived"


@dataclass(frozen=True)
class Dumps:
    """A server with a nasty database, and pg_dump's output for it."""

    server: Server
    rows: dict[str, int]
    made: dict[tuple[str, ...], bytes]

    def dump(self, *options: str) -> bytes:
        if options not in self.made:
            self.made[options] = self.run("pg_dump", None, *options)
        return self.made[options]

    def run(self, program: str, given: bytes | None, *options: str) -> bytes:
        return subprocess.run(
            [str(self.server.embedded.bin / program), *options],
            env={**clean_environ(), **self.server.embedded.environment(DATABASE)},
            input=given,
            capture_output=True,
            check=True,
        ).stdout


@pytest.fixture(scope="module")
def dumps(servers: Callable[[int], Server]) -> Iterator[Callable[[int], Dumps]]:
    made: dict[int, Dumps] = {}

    def get(major: int) -> Dumps:
        if major not in made:
            server = servers(major)
            nasty.build(server, DATABASE)
            made[major] = Dumps(server, _rows(server), {})
        return made[major]

    yield get
    for each in made.values():
        each.server.sql(f"drop database {DATABASE} with (force)")


def _rows(server: Server) -> dict[str, int]:
    tables = server.sql(
        "select n.nspname || '.' || relname || chr(9) || format('%I.%I', n.nspname, relname) from pg_class c"
        " join pg_namespace n on n.oid = relnamespace where relkind = 'r'"
        " and n.nspname <> 'information_schema' and n.nspname not like 'pg\\_%'",
        DATABASE,
    )
    pairs = [line.split("\t") for line in tables.splitlines()]
    return {name: int(server.sql(f"select count(*) from only {quoted}", DATABASE)) for name, quoted in pairs}


def custom(raw: bytes) -> dict[str, int]:
    return archive.scan_custom(io.BytesIO(raw))


def tar(raw: bytes) -> dict[str, int]:
    return archive.scan_tar(io.BytesIO(raw))


def scan(raw: bytes) -> tuple[set[str], dict[str, int]]:
    """Return the tables whose rows an archive holds, and how many they are."""
    contents = contents_of(raw)
    tables = {e.table for e in contents.entries.values() if e.kind == archive.TABLE_DATA}
    return tables, custom(raw) if raw.startswith(b"PGDMP") else tar(raw)


def contents_of(raw: bytes) -> archive.Contents:
    format_ = Format.DUMP if raw.startswith(b"PGDMP") else Format.TAR
    return archive.contents(io.BytesIO(raw), format_, "utf-8")


def survives(raw: bytes, scan_: Callable[[bytes], object]) -> bool:
    """Whether a damaged archive is taken for whole; anything but our two errors is a bug."""
    try:
        scan_(raw)
    except (DamagedError, UnsupportedError):
        return False
    return True


@pytest.mark.parametrize("major", [15, 17, 18])
@pytest.mark.parametrize("options", [("-Fc",), ("-Fc", "-Z0"), ("-Fc", "-Z1"), ("-Fc", "-Z9"), ("-Ft",)], ids=" ".join)
def test_rows_and_contents_are_what_pg_restore_says(
    dumps: Callable[[int], Dumps], major: int, options: tuple[str, ...]
) -> None:
    made = dumps(major)
    raw = made.dump(*options)
    tables, rows = scan(raw)
    assert rows == made.rows
    assert tables == set(made.rows)
    contents = contents_of(raw)
    assert contents.database == DATABASE
    assert contents.dump_version.startswith(str(major))
    listed = made.run("pg_restore", raw, "--list").decode().splitlines()
    of_pg_restore = {int(line.partition(";")[0]): line for line in listed if line and not line.startswith(";")}
    # What belongs to the dump as a whole or to the database, --list leaves out.
    unlisted = ("ENCODING", "STDSTRINGS", "SEARCHPATH", "DATABASE", "DATABASE PROPERTIES")
    ours = {
        e.id: e
        for e in contents.entries.values()
        if e.kind not in unlisted and not (e.kind in ("ACL", "COMMENT") and e.name.startswith("DATABASE "))
    }
    assert set(ours) == set(of_pg_restore)
    for number, entry in ours.items():
        shown = of_pg_restore[number]
        name = entry.name.replace("\n", " ").replace("\r", " ")
        assert f" {entry.kind} {entry.schema or '-'} {name} {entry.owner}" in f"{shown} ".replace("  ", " ")


@pytest.mark.parametrize("options", [("-Fc",), ("-Ft",), ("-Fc", "-Z0")], ids=" ".join)
def test_inserts_have_no_copy_rows_and_are_whole(dumps: Callable[[int], Dumps], options: tuple[str, ...]) -> None:
    tables, rows = scan(dumps(18).dump("--inserts", *options))
    assert rows == {}
    assert tables


@pytest.mark.parametrize("options", [("-Fc",), ("-Fc", "-Z0"), ("-Ft",)], ids=" ".join)
def test_schema_only_is_whole(dumps: Callable[[int], Dumps], options: tuple[str, ...]) -> None:
    assert scan(dumps(18).dump("--schema-only", *options))[1] == {}


@pytest.mark.parametrize("method", ["lz4", "zstd"])
def test_another_compression_is_unsupported_and_not_damaged(dumps: Callable[[int], Dumps], method: str) -> None:
    raw = bytearray(dumps(18).dump("-Fc", "-Z0"))
    header = len(b"PGDMP") + 3 + 2 + 1
    assert raw[header] == archive.NONE
    raw[header] = {"lz4": 2, "zstd": 3}[method]
    with pytest.raises(UnsupportedError):
        custom(bytes(raw))


def test_a_custom_archive_without_its_last_block_is_damaged() -> None:
    rows = b"1\n\\.\n\n\n"
    assert not survives(small_archive(), custom)
    assert survives(small_archive() + b"\1" + number(1) + number(len(rows)) + rows + number(0), custom)


def test_a_newer_archive_is_unsupported(dumps: Callable[[int], Dumps]) -> None:
    raw = bytearray(dumps(18).dump("-Fc"))
    raw[6] += 1
    with pytest.raises(UnsupportedError):
        custom(bytes(raw))


# Damage


@pytest.mark.parametrize("options", [("-Fc",), ("-Fc", "-Z0"), ("-Ft",)], ids=" ".join)
def test_cut_anywhere_it_is_damaged(dumps: Callable[[int], Dumps], options: tuple[str, ...]) -> None:
    raw = dumps(18).dump(*options)
    scan_ = tar if "-Ft" in options else custom
    cuts = {0, 1, 5, 12, len(raw) - 1, *random.Random(7).sample(range(len(raw)), 60)}
    if "-Ft" in options:
        cuts |= {
            len(raw) - 512,
            len(raw) - 1024,
            *(512 * random.Random(8).randrange(len(raw) // 512) for _ in range(40)),
        }
    assert [cut for cut in sorted(cuts) if survives(raw[:cut], scan_)] == []


def test_each_block_that_is_gone_is_missed(dumps: Callable[[int], Dumps]) -> None:
    raw = dumps(18).dump("-Ft")
    starts = [*_tar_headers(raw), len(raw)]
    missed = 0
    for start, following in pairwise(starts):
        name = raw[start : start + 100].rstrip(b"\0")
        if re.fullmatch(rb"[0-9]+\.dat|blobs.*\.toc", name):
            assert not survives(raw[:start] + raw[following:], tar), name
            missed += 1
    assert missed > len(dumps(18).rows)


# What is found without a checksum, measured with single bits flipped anywhere: of packed rows everything but the
# numbers of large objects and deflate's few unused bits; of a table of contents a quarter (its texts have nothing
# to check them by); of a tar its headers and padding, half of a file of small tables; of rows that are not packed
# next to nothing. Hence the SHA-256 in `.info`.
@pytest.mark.parametrize(
    ("options", "region", "least"),
    [
        (("-Fc",), "data", 0.95),
        (("-Fc",), "contents", 0.15),
        (("-Fc", "-Z0"), "contents", 0.15),
        (("-Fc", "-Z0"), "data", 0.0),
        (("-Ft",), "header", 1.0),
        (("-Ft",), "data", 0.0),
    ],
)
def test_a_flipped_bit_is_found_or_passed_over_but_never_worse(
    dumps: Callable[[int], Dumps], options: tuple[str, ...], region: str, least: float
) -> None:
    raw = dumps(18).dump(*options)
    scan_ = tar if "-Ft" in options else custom
    chance = random.Random(42)
    if region == "header":
        places = [at for start in _tar_headers(raw) for at in chance.sample(range(start, start + 512), 12)]
    else:
        end = 512 if "-Ft" in options else _end_of_contents(raw)
        first, last = (0, end) if region == "contents" else (end, len(raw))
        places = [chance.randrange(first, last) for _ in range(300)]
    found = 0
    for place in places:
        damaged = bytearray(raw)
        damaged[place] ^= 1 << chance.randrange(8)
        found += not survives(bytes(damaged), scan_)
    assert found >= least * len(places)


def _tar_headers(raw: bytes) -> list[int]:
    places, position = [], 0
    while raw[position] != 0:
        places.append(position)
        position += 512 + -(-int(raw[position + 124 : position + 135], 8) // 512) * 512
    return places


def _end_of_contents(raw: bytes) -> int:
    _, reader = archive.read_contents(io.BytesIO(raw))
    return len(raw) - sum(map(len, iter(lambda: reader.some(archive.CHUNK), b"")))


MUTATIONS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["set", "cut", "insert", "drop", "ff"]),
        st.binary(max_size=12),
    ),
    min_size=1,
    max_size=6,
)


def mutated(raw: bytes, mutations: list[tuple[float, str, bytes]]) -> bytes:
    data = bytearray(raw)
    for where, how, what in mutations:
        at = int(where * len(data))
        if how == "set":
            data[at : at + len(what)] = what
        elif how == "cut":
            del data[at + len(what) * 1000 :]
        elif how == "insert":
            data[at:at] = what * 50
        elif how == "drop":
            del data[at : at + len(what) + 1]
        else:
            data[at : at + 9] = b"\0\xff\xff\xff\x3f\xff\xff\xff\x7f"
    return bytes(data)


DUMPS = [("-Fc",), ("-Ft",), *slowly(("-Fc", "-Z0"), ("-Fc", "--schema-only"))]


@pytest.mark.parametrize("options", DUMPS, ids=" ".join)
def test_no_damage_is_a_bug_or_takes_memory(dumps: Callable[[int], Dumps], options: tuple[str, ...]) -> None:
    raw = dumps(18).dump(*options)
    scan_ = tar if "-Ft" in options else custom

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(MUTATIONS)
    def try_it(mutations: list[tuple[float, str, bytes]]) -> None:
        survives(mutated(raw, mutations), scan_)

    tracemalloc.start()
    try:
        try_it()
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_damaged_or_unsupported(tail: bytes, known: bool) -> None:
    for head in (b"", b"PGDMP", b"PGDMP\x01\x10\x00\x04\x08\x01" if known else b"PGDMP\x01\x0e\x05\x04\x08\x01"):
        assert not survives(head + tail, custom)
        assert not survives(head + tail, tar)


class Endless:
    """A source that never ends, to see that nobody reads it all into memory."""

    def __init__(self, head: bytes) -> None:
        self._head = head
        self.given = 0

    def read(self, size: int, /) -> bytes:
        data, self._head = self._head[:size], self._head[size:]
        data += bytes(size - len(data))
        self.given += size
        if self.given > 3 << 30:
            return b""
        return data


def number(value: int) -> bytes:
    return (b"\1" if value < 0 else b"\0") + abs(value).to_bytes(4, "little")


def text(value: bytes | None) -> bytes:
    return number(-1) if value is None else number(len(value)) + value


def small_archive(compression: int = archive.NONE) -> bytes:
    """Write the table of contents of one table, as pg_backup_archiver.c does; the data is to follow."""
    entry = [
        number(1), number(1), text(b"0"), text(b"0"), text(b"t"), text(b"TABLE DATA"), number(3), text(b""), text(b""),
        text(b"COPY public.t (id) FROM stdin;\n"), text(b"public"), text(b""), text(b""), number(0), text(b"me"),
        text(b"false"), text(None), b"\2" + bytes(8),
    ]  # fmt: skip
    head = b"PGDMP\x01\x10\x00\x04\x08\x01" + bytes([compression]) + number(0) * 7
    return head + text(b"bar") + text(b"18.1") + text(b"18.1") + number(1) + b"".join(entry)


def test_the_archive_written_here_is_read() -> None:
    rows = b"1\n2\n\\.\n\n\n"
    assert custom(small_archive() + b"\1" + number(1) + number(len(rows)) + rows + number(0)) == {"public.t": 2}
    packed = zlib.compress(rows)
    data = b"\1" + number(1) + number(len(packed)) + packed + number(0)
    assert custom(small_archive(archive.GZIP) + data) == {"public.t": 2}


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(small_archive() + b"\1" + number(1) + number((1 << 30) - 1), id="a block of a gigabyte"),
        pytest.param(small_archive()[:47] + number((1 << 30) - 1), id="a name of a gigabyte"),
        pytest.param(
            small_archive(archive.GZIP) + b"\1" + number(1) + number(1 << 20) + zlib.compress(bytes(1 << 28)),
            id="a gigabyte's worth of zeros, packed",
        ),
    ],
)
def test_a_damaged_length_takes_no_memory(raw: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DamagedError):
            archive.scan_custom(Endless(raw))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_long_name_that_is_not_there_takes_no_memory() -> None:
    raw = small_archive()[:47] + number(60 << 20) + b"bar"
    tracemalloc.start()
    try:
        with pytest.raises(DamagedError):
            archive.scan_custom(io.BufferedReader(io.BytesIO(raw)))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_what_follows_the_end_of_packed_data_is_damage() -> None:
    packed = zlib.compress(b"1\n\\.\n\n\n")
    block = number(len(packed)) + packed
    head = small_archive(archive.GZIP) + b"\1" + number(1)
    with pytest.raises(DamagedError):
        custom(head + block + block + number(0))
    with pytest.raises(DamagedError):
        custom(head + number(len(packed) + 3) + packed + b"abc" + number(0))


def test_two_tables_of_one_name_are_counted_together() -> None:
    rows = b"1\n\\.\n\n\n"
    data = b"\1" + number(1) + number(len(rows)) + rows + number(0)
    assert custom(small_archive() + data + data) == {"public.t": 2}

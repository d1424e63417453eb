"""Plain SQL dumps as they stream by: rows counted, and the lines left out that this server or psql cannot take."""

from __future__ import annotations

import re

_HEADING = re.compile(rb"-- (?:Data for )?Name: .*; Type: (?P<kind>[A-Z ]+); Schema: ")
_COPY = re.compile(rb"COPY (?P<what>.*) FROM stdin;$")
_SET = re.compile(rb"SET (?P<name>\w+) = .*;$")
_OWNERSHIP = re.compile(rb"ALTER .* OWNER TO .*;$|(?:GRANT|REVOKE|ALTER DEFAULT PRIVILEGES) .*;$")
_NAME = re.compile(r'(?P<schema>"(?:[^"]|"")*"|[^".\s]+)\.(?P<name>"(?:[^"]|"")*"|[^"\s(]+)')
_END_OF_ROWS = b"\n\\.\n"
_COMPLETE = b"-- PostgreSQL database dump complete"


class SqlDump:
    """A plain dump fed in chunks of any size; tells SQL from rows, and counts the rows.

    *skip_settings* are SET statements of the dump's head to leave out; *skip_restrict* leaves out `\\restrict`
    and `\\unrestrict`, which a psql of before August 2025 dies on; *one_transaction* leaves out the BEGIN and
    COMMIT that pg_dump puts around large objects, which would end a transaction around the whole; *skip_owners*
    leaves out who owns and may use what.
    """

    def __init__(
        self,
        codec: str = "utf-8",
        *,
        skip_settings: frozenset[str] = frozenset(),
        skip_restrict: bool = False,
        one_transaction: bool = False,
        skip_owners: bool = False,
    ) -> None:
        self._codec = codec
        self._skip_settings = skip_settings
        self._skip_restrict = skip_restrict
        self._one_transaction = one_transaction
        self._skip_owners = skip_owners
        self._edits = bool(skip_settings or skip_restrict or one_transaction or skip_owners)
        self._rest = b""
        self._kind = b""
        self._table: str | None = None
        self.complete = False
        self.rows: dict[str, int] = {}

    def feed(self, chunk: bytes) -> bytes:
        """Take the next *chunk*; return what is to be passed on, at most a line later.

        Where nothing is left out, that is the chunk itself.
        """
        data, self._rest = self._rest + chunk, b""
        passed: list[bytes] = []
        position = 0
        while position < len(data):
            step = self._take_rows if self._table is not None else self._take_lines
            following = step(data, position, passed)
            if following == position:
                break
            position = following
        self._rest = data[position:]
        return b"".join(passed) if self._edits else chunk

    def close(self) -> bytes:
        """Return what is left when the dump has ended, a last line without its newline."""
        rest, self._rest = self._rest, b""
        return rest if self._edits else b""

    def _take_rows(self, data: bytes, start: int, passed: list[bytes]) -> int:
        """Pass rows on from *start*, which is the newline before the next row."""
        assert self._table is not None
        end = data.find(_END_OF_ROWS, start)
        stop = end if end >= 0 else max(start, len(data) - len(_END_OF_ROWS) + 1)
        self.rows[self._table] += data.count(b"\n", start, stop)
        if end >= 0:
            self._table = None
            stop += len(_END_OF_ROWS)
        if self._edits:
            passed.append(data[start:stop])
        return stop

    def _take_lines(self, data: bytes, start: int, passed: list[bytes]) -> int:
        while (end := data.find(b"\n", start)) >= 0:
            line = data[start:end]
            copy = _COPY.match(line) if self._kind == b"TABLE DATA" else None
            if copy:
                self._table = _table_name(copy["what"].decode(self._codec, "surrogateescape"))
                self.rows[self._table] = 0
                passed.append(line)
                return end
            if self._keeps(line) and self._edits:
                passed.append(data[start : end + 1])
            start = end + 1
        return start

    def _keeps(self, line: bytes) -> bool:
        if line.startswith(b"--"):
            if heading := _HEADING.match(line):
                self._kind = heading["kind"]
            self.complete = self.complete or line == _COMPLETE
            return True
        if self._skip_restrict and line.startswith((b"\\restrict ", b"\\unrestrict ")):
            return bool(self._kind) and not self.complete
        if self._one_transaction and line in (b"BEGIN;", b"COMMIT;"):
            return self._kind != b"BLOBS"
        if self._skip_owners and self._kind and _OWNERSHIP.match(line):
            return False
        if not self._kind and (setting := _SET.match(line)):
            return setting["name"].decode() not in self._skip_settings
        return True


def _table_name(copy: str) -> str:
    match = _NAME.match(copy)
    if not match:
        return copy.partition(" ")[0]
    return f"{_unquote(match['schema'])}.{_unquote(match['name'])}"


def _unquote(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name

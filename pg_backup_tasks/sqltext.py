"""Plain SQL dumps as they stream by: rows counted, and the lines left out that this server or psql cannot take."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from .definitions import unquoted
from .model import Item

_HEADING = re.compile(
    rb"-- (?:Data for )?Name: (?P<name>.*); Type: (?P<kind>[A-Z -]+); "
    rb"Schema: (?P<schema>.*); Owner: (?P<owner>.*?)(?:; Tablespace: .*)?$"
)
# Said before the heading of what it is for, so at the end of what stands before that.
_OF_THE_NEXT = (b"SET default_tablespace = ", b"SET default_table_access_method = ")
_SET = re.compile(rb"SET (?P<name>\w+) = (?P<value>.*);$")
_OWNERSHIP = re.compile(rb"ALTER .* OWNER TO .*;$|(?:GRANT|REVOKE|ALTER DEFAULT PRIVILEGES) .*;$")
# What `pg_dump --clean` says before all else, of what is not there (any more) where its dump goes.
_CLEANING = re.compile(rb"(?:DROP |ALTER (?:TABLE|DOMAIN|PUBLICATION) .* DROP |SELECT pg_catalog\.lo_unlink\().*;$")
_NAME = re.compile(r'(?P<schema>"(?:[^"]|"")*"|[^".\s]+)\.(?P<name>"(?:[^"]|"")*"|[^"\s(]+)')
_QUOTE = re.compile(rb"['\"$]|--")
_DOLLARS = re.compile(rb"\$(?:[A-Za-z_\x80-\xff][\w\x80-\xff]*)?\$")
_IN_ESCAPES = re.compile(rb"[^'\\]+|\\.|''|'", re.DOTALL)
_WORD = re.compile(rb"[\w$\x80-\xff]")
_COPY, _FROM_STDIN = b"COPY ", b" FROM stdin;"
_END_OF_ROWS = b"\n\\.\n"
_BEGINNING, _COMPLETE = b"-- PostgreSQL database dump", b"-- PostgreSQL database dump complete"
# An escape string, E'...', in which a backslash takes the next character along.
_ESCAPES = b"E'"
_DATABASES = (b"DATABASE", b"DATABASE PROPERTIES")
_OF_A_DATABASE = (b"COMMENT", b"ACL", b"SECURITY LABEL")
# Whole lines at once that close all their quotes and say nothing to us: all else is looked at line by line.
# The loops around groups are not possessive: before Python 3.11.5 such a one could match too little.
_BORING = rb"""(?:
    (?!COPY[ ]|SET[ ]|\\|--[ ]PostgreSQL%s) (?: [^'"$\n-]++ | -(?!-) | "[^"\n]*+" | '[^'\\\n]*+' )* (?:--[^\n]*+)? \n
)+"""
_HEADED = rb"|--[ ]Name:[ ]|--[ ]Data[ ]for[ ]"
_EDITED = rb"|--[ ]Name:[ ]|--[ ]Data[ ]for[ ]|BEGIN;|COMMIT;|ALTER[ ]|GRANT[ ]|REVOKE[ ]|DROP[ ]|SELECT[ ]"
_BORING_TO_A_READER = re.compile(_BORING % b"", re.VERBOSE)
_BORING_TO_A_LIBRARIAN = re.compile(_BORING % _HEADED, re.VERBOSE)
_BORING_TO_AN_EDITOR = re.compile(_BORING % _EDITED, re.VERBOSE)
# A line longer than this is taken in pieces if it is within quotes: one value can have a gigabyte.
_LONG_LINE = 1 << 18


class SqlDump:
    """A plain dump fed in chunks of any size; tells SQL from rows and from quoted text, and counts the rows.

    *skip_settings* are SET statements of the dump's head to leave out; *skip_restrict* leaves out `\\restrict`
    and `\\unrestrict`, which a psql of before August 2025 dies on; *one_transaction* leaves out the BEGIN and
    COMMIT that pg_dump puts around large objects, which would end a transaction around the whole; *skip_owners*
    leaves out who owns and may use what; *one_database* what `pg_dump --create` adds to make (or drop) the
    database of the dump's own choice and go on in that one, and what `--clean` adds to empty it first;
    *leave_out* tells of each object whether it is to be left out. *headings* asks for the objects to be listed in
    `items`, those with rows with their COPY statement.
    """

    def __init__(
        self,
        codec: str = "utf-8",
        *,
        skip_settings: frozenset[str] = frozenset(),
        skip_restrict: bool = False,
        one_transaction: bool = False,
        skip_owners: bool = False,
        one_database: bool = False,
        leave_out: Callable[[Item], bool] | None = None,
        headings: bool = False,
    ) -> None:
        self._codec = codec
        self._skip_settings = skip_settings
        self._skip_restrict = skip_restrict
        self._one_transaction = one_transaction
        self._skip_owners = skip_owners
        self._one_database = one_database
        self._leave_out = leave_out
        self._headings = headings
        self._edits = any(
            (skip_settings, skip_restrict, one_transaction, skip_owners, one_database, leave_out is not None)
        )
        reader = _BORING_TO_A_LIBRARIAN if headings else _BORING_TO_A_READER
        self._boring = _BORING_TO_AN_EDITOR if self._edits else reader
        self._rest = b""
        self._passed: list[bytes] = []
        self._begun = False
        self._kind = b""
        self._skipping = False
        self._quote = b""
        self._all_escapes = False
        self._fresh = True
        self._copy: bytes | None = None
        self._table: str | None = None
        self._ended = False
        self._restricted_by: bytes | None = None
        self.rows: dict[str, int] = {}
        self.items: list[Item] = []

    @property
    def complete(self) -> bool:
        """Whether the dump's last words have come."""
        return self._ended and self._restricted_by is None

    def feed(self, chunk: bytes) -> bytes:
        """Take the next *chunk*; return what is to be passed on, at most a line later.

        Where nothing is left out, that is the chunk itself.
        """
        data = self._rest + chunk
        position = 0
        while position < len(data):
            if self._table is not None:
                following = self._take_rows(data, position)
            elif self._quote:
                following = self._take_quoted(data, position)
            else:
                following = self._take_lines(data, position)
            if following == position:
                break
            position = following
        self._rest = data[position:]
        passed, self._passed = self._passed, []
        return b"".join(passed) if self._edits else chunk

    def close(self) -> bytes:
        """Return what is left when the dump has ended, a last line without its newline."""
        rest, self._rest = self._rest, b""
        return rest if self._edits else b""

    def _pass(self, piece: bytes, *, always: bool = False) -> None:
        if self._edits and (always or not self._skipping):
            self._passed.append(piece)

    def _take_rows(self, data: bytes, start: int) -> int:
        """Pass rows on from *start*, which is the newline before the next row."""
        assert self._table is not None
        end = data.find(_END_OF_ROWS, start)
        stop = end if end >= 0 else max(start, len(data) - len(_END_OF_ROWS) + 1)
        self.rows[self._table] += data.count(b"\n", start, stop)
        if end >= 0:
            self._table = None
            stop += len(_END_OF_ROWS)
        self._pass(data[start:stop])
        return stop

    def _take_quoted(self, data: bytes, start: int) -> int:
        """Pass on what is within quotes, with the closing one if it is there."""
        stop, closed = _end_of_quote(data, start, self._quote)
        if closed:
            self._quote = b""
        if self._copy is not None:
            self._copy += data[start:stop]
        self._pass(data[start:stop])
        return stop

    def _take_lines(self, data: bytes, start: int) -> int:
        """Pass on whole lines, up to rows or a quote that a line leaves open."""
        while self._table is None and not self._quote:
            if self._fresh and (boring := self._boring.match(data, start)):
                self._pass(boring[0])
                start = boring.end()
            end = data.find(b"\n", start)
            if end < 0:
                return self._take_long_line(data, start) if len(data) - start > _LONG_LINE else start
            start = self._take_line(data, start, end)
        return start

    def _take_line(self, data: bytes, start: int, end: int) -> int:
        """Pass on the line that ends at *end*, or as much of it as stands before a quote it leaves open."""
        opened = self._open_quote(data, start, end)
        if opened is not None:
            return self._take_until(data, start, opened)
        line = data[start:end]
        if self._copy is not None or (self._fresh and line.startswith(_COPY)):
            self._copy = (self._copy or b"") + line
            if line.endswith(_FROM_STDIN):
                self._begin_rows()
                self._pass(line)
                return end
            self._copy = None
        keep = not self._fresh or self._keeps(line)
        self._fresh = True
        if keep:
            self._pass(data[start : end + 1], always=self._skipping and line.startswith(_OF_THE_NEXT))
        return end + 1

    def _begin_rows(self) -> None:
        assert self._copy is not None
        self._table = _table_name(self._copy[len(_COPY) :].decode(self._codec, "surrogateescape"))
        # Two tables may have one such name: a.b in the schema c, and b in the schema c.a.
        self.rows.setdefault(self._table, 0)
        if self.items and self.items[-1].kind == "TABLE DATA":
            # With its newline, as archives have it.
            copy = self._copy.decode(self._codec, "surrogateescape") + "\n"
            self.items[-1] = replace(self.items[-1], copy=copy)
        self._copy = None
        self._fresh = True

    def _take_long_line(self, data: bytes, start: int) -> int:
        opened = self._open_quote(data, start, len(data))
        return start if opened is None else self._take_until(data, start, opened)

    def _take_until(self, data: bytes, start: int, opened: int) -> int:
        """Pass on the beginning of a line and the quote that it leaves open."""
        piece = data[start:opened]
        if self._copy is not None or (self._fresh and piece.startswith(_COPY)):
            self._copy = (self._copy or b"") + piece
        self._fresh = False
        self._pass(piece)
        return opened

    def _open_quote(self, data: bytes, start: int, end: int) -> int | None:
        """Return where the text begins that the line leaves open, None where it closes all its quotes."""
        position = start
        while match := _QUOTE.search(data, position, end):
            quote = self._opening(data, match.start(), start, end)
            if quote == b"--":
                return None
            position = match.end() if not quote.startswith(b"$") else match.start() + len(quote)
            if not quote:
                continue
            position, closed = _end_of_quote(data, opened := position, quote, end)
            if not closed:
                self._quote = quote
                return opened
        return None

    def _opening(self, data: bytes, at: int, start: int, end: int) -> bytes:
        """Return the quote that opens at *at*: what closes it, or E', or a comment's dashes; empty for none."""
        sign = data[at : at + 1]
        before = data[at - 1 : at] if at > start else b""
        if sign == b"$":
            dollars = _DOLLARS.match(data, at, end)
            return dollars[0] if dollars and not _WORD.match(before) else b""
        if sign == b"'":
            marked = before in (b"e", b"E") and not (at - 2 >= start and _WORD.match(data, at - 2))
            return _ESCAPES if marked or self._all_escapes else sign
        return sign if sign == b'"' else b"--"

    def _keeps(self, line: bytes) -> bool:
        if line.startswith(b"--"):
            self._take_comment(line)
            return True
        if line.startswith(b"\\"):
            return self._keeps_command(line)
        if self._one_transaction and line in (b"BEGIN;", b"COMMIT;"):
            return False
        if self._kind:
            return not (self._skip_owners and _OWNERSHIP.match(line))
        if self._one_database and (line.startswith(b"DROP DATABASE ") or (self._begun and _CLEANING.match(line))):
            return False
        return self._keeps_setting(line)

    def _take_comment(self, line: bytes) -> None:
        if heading := _HEADING.match(line):
            self._kind = heading["kind"]
            self._skipping = self._unwanted(heading)
        elif line == _COMPLETE:
            self._ended = True
            self._skipping = False
        elif line == _BEGINNING:  # another dump behind the first
            self._begun, self._ended, self._kind = True, False, b""

    def _unwanted(self, heading: re.Match[bytes]) -> bool:
        if self._headings or self._leave_out:
            kind, schema, name, owner = (
                heading[part].decode(self._codec, "surrogateescape") for part in ("kind", "schema", "name", "owner")
            )
            item = Item(kind=kind, schema=_or_none(schema), name=name, owner=_or_none(owner))
            if self._headings:
                self.items.append(item)
            if self._leave_out and self._leave_out(item):
                return True
        return self._one_database and (
            self._kind in _DATABASES or (self._kind in _OF_A_DATABASE and heading["name"].startswith(b"DATABASE "))
        )

    def _keeps_command(self, line: bytes) -> bool:
        command, _, key = line.partition(b" ")
        if command == b"\\restrict":
            self._restricted_by = key
            return not self._skip_restrict
        if command == b"\\unrestrict":
            self._restricted_by = None if key == self._restricted_by else self._restricted_by
            self._skipping = False  # it stands before \connect
            return not self._skip_restrict
        if command == b"\\connect" and self._one_database:
            # The head is said once more to the new connection.
            self._kind, self._skipping = b"", False
            return False
        return True

    def _keeps_setting(self, line: bytes) -> bool:
        setting = _SET.match(line)
        if not setting:
            return True
        name = setting["name"].decode()
        if name == "standard_conforming_strings":
            self._all_escapes = setting["value"] == b"off"
        return name not in self._skip_settings


def _end_of_quote(data: bytes, start: int, quote: bytes, end: int | None = None) -> tuple[int, bool]:
    """Return the place behind what closes *quote*, and True; else how far it surely stays open, and False."""
    end = len(data) if end is None else end
    if quote != _ESCAPES:
        found = data.find(quote, start, end)
        return (found + len(quote), True) if found >= 0 else (max(start, end - len(quote) + 1), False)
    position = start
    for match in _IN_ESCAPES.finditer(data, start, end):
        if match[0] == b"'":
            # With the last byte at hand it may be the first of two, which stand for one.
            return (match.end(), True) if match.end() < len(data) else (match.start(), False)
        position = match.end()
    return position, False


def _or_none(name: str) -> str:
    """Return what a heading has for a name, where archives have none."""
    return "" if name == "-" else name


def _table_name(copy: str) -> str:
    match = _NAME.match(copy)
    if not match:
        return copy.partition(" ")[0]
    return f"{unquoted(match['schema'])}.{unquoted(match['name'])}"

"""Pure values every floor above speaks in: formats, names, backups, databases, commands."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from functools import lru_cache
from operator import attrgetter

from .errors import Refused

STAMP = "%Y%m%d_%H%M%S"
INFO = ".info"
RESERVED_TYPES = frozenset({"latest", "all", "pick"})
# What a restore takes before it changes a database in place; `latest` means another.
SAFETY = "pre_restore"
LONGEST_TYPE = 64


class Format(Enum):
    """A dump format, in the order in which a restore prefers them."""

    DUMP = "dump"
    TAR = "tar"
    SQL_GZ = "sql.gz"
    SQL = "sql"

    # There is one of each; Enum's own is no C, and asked for with every file of a shelf of thousands.
    __hash__ = object.__hash__

    def __init__(self, value: str) -> None:
        self.extension = f".{value}"
        """The file name's ending, with its dot."""

    @property
    def is_archive(self) -> bool:
        """Whether pg_restore reads it (psql reads the others)."""
        return self in (Format.DUMP, Format.TAR)


class Mode(Enum):
    """What a restore brings back."""

    FULL = "full"
    DATA_ONLY = "data-only"
    SCHEMA_ONLY = "schema-only"
    TABLE = "table"


ALL_FORMATS = tuple(Format)
EXTENSIONS = (*(f.extension for f in Format), INFO)


def format_of(head: bytes) -> Format | None:
    """Return the format of the dump that begins with *head* (512 bytes are enough), None for anything else."""
    if head.startswith(b"PGDMP"):
        return Format.DUMP
    if head.startswith(b"toc.dat") and head[257:262] == b"ustar":
        return Format.TAR
    if b"-- PostgreSQL database dump\n" in head[:200]:
        return Format.SQL
    return None


def parse_formats(text: str) -> tuple[Format, ...]:
    """Return the formats named in a comma-separated list, once each, in restore order.

    Raises Refused for an unknown name or an empty list.
    """
    names = [part.strip().lstrip(".") for part in text.split(",") if part.strip()]
    known = {f.value: f for f in Format}
    for name in names:
        if name not in known:
            raise Refused(f"There is no backup format {name!r}.", hint="--formats dump,tar,sql,sql.gz")
    if not names:
        raise Refused("No backup format is named.", hint="--formats dump,tar,sql,sql.gz")
    return tuple(f for f in Format if f.value in names)


def parse_type(text: str) -> str:
    """Return the backup type as it is stored: lower-case letters, digits and `_`.

    Raises Refused for anything else, and for the words BACKUP gives a meaning to.
    """
    name = text.replace("-", "_")
    # What begins with a `-` is an option that went astray.
    if not re.fullmatch(r"[a-z0-9_][a-z0-9_-]*", text) or len(name) > LONGEST_TYPE:
        raise Refused(
            f"{text[:80]!r} cannot be a backup type.",
            hint=f"lower-case letters, digits and _, at most {LONGEST_TYPE}: --type before_v2",
        )
    if name in RESERVED_TYPES:
        raise Refused(f"{name!r} has a meaning of its own and cannot be a backup type.")
    return name


@dataclass(frozen=True, order=True)
class BackupName:
    """`backup_TYPE_YYYYMMDD_HHMMSS`, the time in UTC; ordered by time, then type."""

    at: datetime
    type: str

    # Python 3.14 takes 24:00 for the next day's beginning.
    _PATTERN = re.compile(r"backup_(?P<type>[a-z0-9_]+)_(?P<stamp>[1-9][0-9]{7}_(?!24)[0-9]{6})")

    @classmethod
    @lru_cache(maxsize=1 << 15)  # the five files of a backup have one name
    def parse(cls, text: str) -> BackupName | None:
        """Return the name that *text* spells exactly, or None."""
        match = cls._PATTERN.fullmatch(text)
        if not match or match["type"] in RESERVED_TYPES:
            return None
        type_, stamp = match.groups()
        try:
            # Thirty times as quick as strptime, for shelves of many thousands.
            at = datetime.fromisoformat(f"{stamp}Z")
        except ValueError:
            return None
        name = cls(at, type_)
        # Names are asked for their text more often than for anything else.
        object.__setattr__(name, "_text", text)
        return name

    def __hash__(self) -> int:
        return hash(self.at)

    def __str__(self) -> str:
        text: str | None = self.__dict__.get("_text")
        if text:
            return text
        at = self.at
        # A third of strftime's time.
        return f"backup_{self.type}_{at.year:04}{at.month:02}{at.day:02}_{at.hour:02}{at.minute:02}{at.second:02}"


# The order of names, six times as quick as asking two of them.
BY_TIME = attrgetter("at", "type")


def split_file(filename: str) -> tuple[BackupName, str] | None:
    """Return a backup file's name and extension (`.dump`, `.info`, ...), or None if it is not ours."""
    # A name has no dot in it.
    stem, dot, ending = filename.partition(".")
    extension = dot + ending
    name = BackupName.parse(stem) if extension in EXTENSIONS else None
    return (name, extension) if name else None


def latest_link(type_: str, extension: str) -> str:
    """Return the name of the link to a type's newest file of one format."""
    return f"backup_{type_}_latest{extension}"


@dataclass(frozen=True)
class Digest:
    """A file's size in bytes and its SHA-256 in hexadecimal."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Item:
    """One object of a dump, as its heading names it; the last four are known of archives only.

    *needs* are the ids of what must be there before it, *copy* is the COPY statement before its rows.
    """

    kind: str
    schema: str
    name: str
    owner: str
    id: int = 0
    definition: str = ""
    copy: str = ""
    needs: frozenset[int] = frozenset()

    @property
    def table(self) -> str:
        """`schema.name`, as `.info` names tables."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True)
class Database:
    """Where a database is and how to log in; what libpq needs, never shown with its password."""

    name: str
    host: str = ""
    port: int = 5432
    user: str = ""
    password: str = field(default="", repr=False)
    parameters: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    source: str = ""

    def __str__(self) -> str:
        host = self.host or "the local socket"
        host = f"[{host}]" if ":" in host else host
        who = f" as {self.user}" if self.user else ""
        return f"{self.name} on {host}:{self.port}{who}"


@dataclass(frozen=True)
class Command:
    """A program and its arguments; *secrets* reach it as variables over standard input, never in argv."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    secrets: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @property
    def program(self) -> str:
        """The program's bare name, for messages."""
        return self.argv[0].rsplit("/", 1)[-1]

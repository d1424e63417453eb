"""The `.info` document: what a backup is, and all that a restore needs and no dump holds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

VERSION = 1


class FileInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One file of a backup: its size in bytes and its SHA-256."""

    bytes: int
    sha256: str


class DatabaseInfo(msgspec.Struct, frozen=True, gc=False):
    """The database as it was: what CREATE DATABASE and ALTER DATABASE take, and where it lived."""

    name: str
    host: str
    port: int
    user: str
    owner: str
    encoding: str
    collate: str
    ctype: str
    comment: str | None
    acl: list[str] | None
    settings: list[Setting]
    connection_limit: int
    bytes: int
    locale_provider: str = "c"
    locale: str | None = None


class Setting(msgspec.Struct, frozen=True, gc=False):
    """One `ALTER DATABASE ... SET`, or `ALTER ROLE role IN DATABASE ... SET`; *value* as pg_settings shows it."""

    role: str | None
    name: str
    value: str


class Git(msgspec.Struct, frozen=True, gc=False):
    """The checkout a backup was taken from."""

    commit: str
    branch: str


class Restored(msgspec.Struct, frozen=True, gc=False):
    """The last time this backup was proven by restoring it."""

    at: str
    server_version: str
    seconds: float


class Info(msgspec.Struct, frozen=True, gc=False):
    """The document itself; times are ISO 8601 in UTC, sizes bytes, durations seconds."""

    version: int
    name: str
    type: str
    description: str
    created_at: str
    seconds: float
    database: DatabaseInfo
    server_version: str
    tools: dict[str, str]
    extensions: dict[str, str]
    migrations: list[str] | None
    git: Git | None
    tables: dict[str, int]
    files: dict[str, FileInfo]
    restored: Restored | None
    restore: list[str]


class _Version(msgspec.Struct, frozen=True, gc=False):
    version: int


class Gist(NamedTuple):
    """What a backup on a shelf of thousands is judged by: its database, its files' sizes in bytes, its last proof."""

    database: str
    files: dict[str, int]
    restored_at: str | None


class _Skimmed(msgspec.Struct, frozen=True, gc=False):
    """The document without what is long in it, which is only seen to be there: in half the time."""

    version: int
    name: msgspec.Raw
    type: msgspec.Raw
    description: msgspec.Raw
    created_at: msgspec.Raw
    seconds: msgspec.Raw
    database: DatabaseInfo
    server_version: msgspec.Raw
    tools: msgspec.Raw
    extensions: msgspec.Raw
    migrations: msgspec.Raw
    git: Git | None
    tables: msgspec.Raw
    files: dict[str, FileInfo]
    restored: Restored | None
    restore: msgspec.Raw


# The last is of brackets in brackets in brackets, which the others do not name.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
# What no text in any encoding of the old scripts' days has in it.
_NO_TEXT = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")
_DECODER = msgspec.json.Decoder(Info)
_SKIMMER = msgspec.json.Decoder(_Skimmed)


def encode(info: Info) -> bytes:
    """Return the document as indented JSON, ending in a newline."""
    return msgspec.json.format(msgspec.json.encode(info), indent=2) + b"\n"


@lru_cache(maxsize=8)  # who works on a backup asks for it time and again
def decode(raw: bytes) -> Info | None:
    """Return the document, or None where *raw* is another tool's `.info` or is damaged."""
    try:
        # What msgspec skips, it does not look at for being text at all.
        raw.decode()
        info: Info = _DECODER.decode(raw)
    except _UNREADABLE:
        return None
    return info if info.version == VERSION else None


def gist(raw: bytes) -> Gist | None:
    """Return the document's gist, or None where it is another tool's or is damaged.

    No single wrong bit is trouble to this and not to decode(), nor the other way round; tests/test_store.py tries each.
    """
    try:
        raw.decode()
        found: _Skimmed = _SKIMMER.decode(raw)
    except _UNREADABLE:
        return None
    if found.version != VERSION:
        return None
    sizes = {extension: file.bytes for extension, file in found.files.items()}
    return Gist(found.database.name, sizes, found.restored.at if found.restored else None)


def is_damaged(raw: bytes) -> bool:
    """Whether *raw* was a document of ours once; the `.info` of the old scripts is plain text."""
    if decode(raw) or _is_newer(raw):
        return False
    # A disk that lost its power may leave blanks, zeros, or what was another file's.
    return raw.strip()[:1] in (b"", b"{") or b'"sha256"' in raw or bool(_NO_TEXT.search(raw)) or _is_json(raw)


def _is_json(raw: bytes) -> bool:
    try:
        msgspec.json.decode(raw)
    except _UNREADABLE:
        return False
    return True


def _is_newer(raw: bytes) -> bool:
    """Whether *raw* is a whole document of a later version of ours."""
    try:
        return msgspec.json.decode(raw, type=_Version).version > VERSION
    except _UNREADABLE:
        return False


def with_proof(info: Info, restored: Restored) -> Info:
    """Return the document with the proof that its backup restores."""
    return msgspec.structs.replace(info, restored=restored)


def with_files(info: Info, extensions: Iterable[str]) -> Info:
    """Return the document for some of its files only."""
    return msgspec.structs.replace(info, files={e: f for e, f in info.files.items() if e in set(extensions)})


def with_own(database: DatabaseInfo, now: DatabaseInfo) -> DatabaseInfo:
    """Return *database* with what belongs to it and not to its contents as it is *now*."""
    own = {name: getattr(now, name) for name in ("owner", "comment", "acl", "settings", "connection_limit")}
    return msgspec.structs.replace(database, **own)


def as_json(value: Any) -> Any:
    """Return *value* as plain lists and dicts."""
    return msgspec.to_builtins(value)

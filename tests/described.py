"""A database as `.info` describes one, for tests that care for a word or two of it."""

from __future__ import annotations

import msgspec

from pg_backup_tasks.info import DatabaseInfo

PLAIN = DatabaseInfo(
    name="d",
    host="h",
    port=5432,
    user="u",
    owner="owner",
    encoding="UTF8",
    collate="C",
    ctype="C",
    comment=None,
    acl=None,
    settings=[],
    connection_limit=-1,
    bytes=0,
)


def but(**changes: object) -> DatabaseInfo:
    """Return it with these values instead."""
    return msgspec.structs.replace(PLAIN, **changes)

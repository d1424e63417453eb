"""Take a backup: every format from one snapshot, checked while it is written, published whole or not at all."""

from __future__ import annotations

import errno
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from . import catalog, info, postgres, signals, switching
from .catalog import Table
from .desk import Connection, Desk
from .dumps import dumping
from .errors import Failed
from .info import DatabaseInfo, FileInfo, Git, Info
from .machine import CommandError
from .model import INFO, Command, Digest, Format
from .store import Backup, Staging
from .units import listed, size

_MARGIN = 1.1
_SMALLEST_ROOM = 1 << 20
_OF_A_HOOK = "GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_COMMON_DIR GIT_OBJECT_DIRECTORY"
_TAR_TEMPORARY = "/tmp"  # noqa: S108 - pg_dump's choice (tmpfile), not ours
# What a table's bytes on the server become: text is a little smaller than pages, and packs to a third.
_SHARE = {Format.SQL: 1.0, Format.TAR: 1.0, Format.DUMP: 0.4, Format.SQL_GZ: 0.4}


@dataclass(frozen=True)
class Order:
    """What is asked for; *wait* is how many seconds to wait for another run's end."""

    type: str
    description: str
    formats: tuple[Format, ...]
    wait: float = 0


def take(desk: Desk, order: Order) -> Backup:
    """Take the backup and return it as it lies on the shelf.

    Raises TaskError; then no file has a final name, and no process or session is left.
    """
    database = desk.choice.database
    with desk.at_work(f"db.backup of {database.name}", order.wait), desk.connect(database) as connection:
        switching.settle(desk)
        return at_work(desk, order, connection, last=True)


def at_work(desk: Desk, order: Order, connection: Connection, *, last: bool = False) -> Backup:
    """Take a backup as part of the work going on; with *last* no signal is heard any more once it is published."""
    started = time.monotonic()
    snapshot = catalog.export_snapshot(connection.session, desk.settings.lock_timeout)
    described, extensions = catalog.describe(connection.session, connection.database)
    expected = _expected(desk, order, connection, described)
    name = desk.store.free_name(order.type, desk.clock, desk.sleep)
    staging = desk.store.staging(name, order.formats)
    try:
        with _explained(desk):
            with dumping(desk, order.formats, connection, staging, snapshot) as dumps:
                # What takes its time in a database of many tables, and writes nothing, need not go first.
                tables = catalog.tables(connection.session)
                _refuse_unreadable(tables)
                digests, rows = dumps.finish(expected)
            source = _Source(connection, described, extensions, tables)
            document = _document(desk, order, source, staging, digests, rows, started)
            staging.complete(info.encode(document))
        if last:
            signals.close()
        staging.publish()
    finally:
        staging.discard()
    connection.session.ask("commit")
    backup = desk.store.by_name(str(name))
    assert backup is not None
    return backup


def plan(desk: Desk, order: Order) -> str:
    """Return what `take` would do, as far as that is known without looking."""
    files = ", ".join(f.extension for f in order.formats)
    return (
        f"Would back up {desk.choice.database} into {desk.store.folder}/backup_{order.type}_YYYYMMDD_HHMMSS "
        f"({files}, {INFO})."
    )


@dataclass(frozen=True)
class _Source:
    """What is backed up, as the snapshot shows it."""

    connection: Connection
    described: DatabaseInfo
    extensions: dict[str, str]
    tables: list[Table]


def _refuse_unreadable(tables: list[Table]) -> None:
    if unreadable := [t.table for t in tables if not t.readable]:
        raise Failed(
            f"This user may not read {listed(sorted(unreadable), 3)}, so a dump would not be whole.",
            hint="connect as the tables' owner, or GRANT pg_read_all_data to the user",
        )
    if hidden := [t.table for t in tables if t.hidden]:
        raise Failed(
            f"Row-level security hides rows of {listed(sorted(hidden), 3)} from this user; a dump would not be whole.",
            hint="connect as the tables' owner or a role with BYPASSRLS",
        )


def _expected(desk: Desk, order: Order, connection: Connection, described: DatabaseInfo) -> dict[Format, int]:
    """Return the bytes each format will probably take. Raises Failed where there is no room for them."""
    last = _last(desk, order, described)
    # The whole database, its indexes too, is more than its tables; each of them is asked only where that matters.
    total = largest = described.bytes
    expected = _guess(order, total) | last
    if _lack_of_room(desk, expected, largest):
        total, largest = catalog.table_bytes(connection.session)
        expected = _guess(order, total) | last
        if lack := _lack_of_room(desk, expected, largest):
            raise lack
    return expected


def _guess(order: Order, tables: int) -> dict[Format, int]:
    return {f: int(tables * _SHARE[f]) for f in order.formats}


def _last(desk: Desk, order: Order, now: DatabaseInfo) -> dict[Format, int]:
    """Return the bytes of the files of this database's last backup, scaled to its size *now*."""
    for backup in desk.store.backups():
        last = backup.info
        if last and (last.database.name, last.database.host) == (now.name, now.host):
            growth = now.bytes / max(1, last.database.bytes)
            known = {f: last.files.get(f.extension) for f in order.formats}
            return {f: int(i.bytes * growth) for f, i in known.items() if i}
    return {}


def _lack_of_room(desk: Desk, expected: dict[Format, int], largest: int) -> Failed | None:
    """Return what is to be said where the files, or the *largest* table of a tar on its way, do not fit."""
    folder = desk.store.folder
    needed = int(sum(expected.values()) * _MARGIN) + _SMALLEST_ROOM
    if (free := desk.machine.free(folder)) < needed:
        return Failed(
            f"{folder} has {size(free)} free; the backup is expected to take {size(needed)}.",
            hint="make room, or take fewer formats: --formats dump",
        )
    # pg_dump puts each table of a tar there first, and does not ask TMPDIR.
    if Format.TAR in expected and (free := desk.machine.free(_TAR_TEMPORARY)) < largest:
        return Failed(
            f"{_TAR_TEMPORARY} has {size(free)} free; for .tar pg_dump puts each table there first, up to "
            f"{size(largest)}.",
            hint=f"make room in {_TAR_TEMPORARY}, or leave .tar out: --formats dump,sql,sql.gz",
        )
    return None


@contextmanager
def _explained(desk: Desk) -> Iterator[None]:
    try:
        yield
    except CommandError as error:
        desk.report.note(error.done.err)
        raise postgres.explain(error, desk.choice.database, "dump") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Failed(
            f"The disk of {desk.store.folder} became full during the backup.",
            hint="make room, or take fewer formats: --formats dump",
        ) from None


def _document(
    desk: Desk,
    order: Order,
    source: _Source,
    staging: Staging,
    digests: dict[Format, Digest],
    rows: dict[str, int],
    started: float,
) -> Info:
    connection, described = source.connection, source.described
    expected = sorted(t.table for t in source.tables)
    if missing := [t for t in expected if t not in rows]:
        raise Failed(f"The dump lacks {listed(sorted(missing), 3)}, though the database has it.")
    name = str(staging.name)
    return Info(
        version=info.VERSION,
        name=name,
        type=order.type,
        description=order.description,
        created_at=staging.name.at.isoformat().replace("+00:00", "Z"),
        seconds=round(time.monotonic() - started, 3),
        database=described,
        server_version=connection.server.version,
        tools=dict.fromkeys(("pg_dump", "pg_restore", "psql"), connection.tools.version),
        extensions=source.extensions,
        migrations=catalog.migrations(connection.session),
        git=_git(desk),
        tables={t: rows[t] for t in expected},
        files={f.extension: FileInfo(d.bytes, d.sha256) for f, d in digests.items()},
        restored=None,
        restore=_how_to_restore(name, [*digests], connection.database.name),
    )


def _git(desk: Desk) -> Git | None:
    # Within a hook they name the repository that is committed to, whatever folder git is pointed at.
    git = ("sh", "-c", f'unset {_OF_A_HOOK}; exec git "$@"', "git", "-C", desk.settings.root)
    commit = desk.machine.run(Command((*git, "rev-parse", "--verify", "-q", "HEAD")))
    if commit.code:
        return None
    branch = desk.machine.run(Command((*git, "symbolic-ref", "-q", "--short", "HEAD")))
    return Git(commit.out.strip(), branch.out.strip())


def _how_to_restore(name: str, formats: list[Format], database: str) -> list[str]:
    """Return how it comes back: with this tool, and without it from the first format of those that were made."""
    into = shlex.quote(database)
    loads = f"psql -X --set=ON_ERROR_STOP=1 --dbname={into}"
    ways = {
        Format.DUMP: f"pg_restore --exit-on-error --dbname={into} {name}.dump",
        Format.TAR: f"pg_restore --exit-on-error --dbname={into} {name}.tar",
        Format.SQL_GZ: f"gunzip -c {name}.sql.gz | {loads}",
        Format.SQL: f"{loads} --file={name}.sql",
    }
    first = [f for f in (Format.DUMP, Format.TAR) if f in formats][:1]
    plain = [f for f in (Format.SQL_GZ, Format.SQL) if f in formats][:1]
    creates = f"createdb --template=template0 {into}"
    return [f"inv db.restore {name}", *(f"{creates} && {ways[f]}" for f in first + plain)]

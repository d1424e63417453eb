"""What a shelf, a cleanup, a verdict and a migration look like: tables and lines for a terminal, documents for JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

from . import columns
from .columns import Style, Table
from .model import ALL_FORMATS, BackupName
from .retention import NOT_WHOLE
from .units import duration, listed, short_age, size, until

if TYPE_CHECKING:
    from .aside import Aside
    from .cleanup import Shelf
    from .journal import Change
    from .migrate import Verdict as Outcome
    from .retention import Fate
    from .store import Backup
    from .verify import Verdict

# Compiled where they are used, which in a wide terminal is never.
_SHORTER = r"^(daily|monthly) \S+$|one of the (last)"
_WEEK = r"^(weekly) \S+$"
_DAYS = r"([0-9]+) days?"
_BROKEN = "NOT WHOLE"
# The places that what becomes of a backup, and why, needs beside its name: "kept: daily weekly monthly".
LEAST_WHY = 26


def shelf_table(backups: list[Backup], now: datetime, *, numbered: bool = False) -> Table:
    """Return the table of a shelf, its heading first; *numbered* for one to choose from."""
    states = [_state(backup, now) for backup in backups]
    parts = [
        ["BACKUP", *(backup.name for backup in backups)],
        ["AGE", *(_age(backup, now) for backup in backups)],
        ["SIZE", *(size(backup.bytes) for backup in backups)],
        ["DATABASE", *(_database(backup) for backup in backups)],
        ["FILES", *(_files(backup) for backup in backups)],
        ["STATE", *states],
    ]
    numbers = [["#", *map(str, range(1, len(backups) + 1))]] if numbered else []
    styles = [Style.ALARM if state == _BROKEN else Style.PLAIN for state in states]
    return Table([*numbers, *parts], [Style.HEADING, *styles])


def fates_document(shelf: Shelf) -> dict[str, Any]:
    """Return what becomes of each backup as JSON has it."""
    parts: dict[str, Any] = {"kept": [], "removed": []}
    for fate in shelf.fates:
        parts["kept" if fate.kept else "removed"].append({"name": str(fate.name), "reasons": list(fate.reasons)})
    return parts


@lru_cache  # of a shelf of thousands most go, or stay, for the same reason
def _why(kept: bool, reasons: tuple[str, ...], *, count: int, broken: int, room: int) -> str:
    """Return what becomes of *count*, of which so many are *broken*, and why, in words that fit if there are any."""
    verb = "kept" if kept else "removed"
    head = f"{_BROKEN}, {verb}: " if broken else f"{verb}: "
    if count > 1:
        some = f", {broken:,} {_BROKEN}" if broken else ""
        head = f"{count:,} {verb}{some}: "
    said = head
    for said in _shorter_and_shorter(head, reasons, goes=broken > 0 and not kept):
        if columns.cells(said) <= room:
            break
    return said


def _shorter_and_shorter(head: str, reasons: Sequence[str], *, goes: bool) -> Iterator[str]:
    yield head + ", ".join(reasons)
    # A week cannot be told from the name beside it; a day and a month can.
    shorter = [re.sub(_SHORTER, r"\1\2", reason) for reason in reasons]
    yield head + ", ".join(shorter)
    short = [re.sub(_WEEK, r"\1", re.sub(_DAYS, r"\1 d", reason)) for reason in shorter]
    yield head + ", ".join(short)
    yield head + " ".join(short)
    if goes:
        yield head.removesuffix(": ")


def fates_table(fates: list[Fate], width: int, together: int) -> Table:
    """Return the table of one type; more than *together* that go alike, one after the other, are one."""
    parts = list(_alike(fates, together))
    names = [_which(part) for part in parts]
    bytes_ = [size(sum(fate.bytes for fate in part)) for part in parts]
    broken = [sum(not fate.whole for fate in part) for part in parts]
    room = columns.room(width, LEAST_WHY, max(map(len, names)), max(map(len, bytes_)))
    whys, styles = [], []
    for part, count in zip(parts, broken, strict=True):
        whys.append(_why(*_fate(part[0]), count=len(part), broken=count, room=room))
        styles.append(_style(part, count))
    return Table([names, bytes_, whys], styles)


def _alike(fates: list[Fate], together: int) -> Iterator[list[Fate]]:
    """Yield each by itself, but more than *together* that go alike, one after the other, as one."""
    for _, run in groupby(fates, _fate):
        same = list(run)
        if len(same) > together and not same[0].kept:
            yield same
        else:
            yield from ([fate] for fate in same)


def _which(alike: list[Fate]) -> str:
    newest, oldest = alike[0].name, alike[-1].name
    if newest is oldest:
        return str(newest)
    if newest.at.date() == oldest.at.date():
        return f"{oldest.at:%Y-%m-%d %H:%M} to {newest.at:%H:%M}"
    return f"{oldest.at:%Y-%m-%d} to {newest.at:%Y-%m-%d}"


def _style(alike: list[Fate], broken: int) -> Style:
    """Return how they are seen: what goes steps back, what is not whole stands out."""
    if broken == len(alike):
        return Style.ALARM
    return Style.PLAIN if alike[0].kept else Style.DIM


def _fate(fate: Fate) -> tuple[bool, tuple[str, ...]]:
    """Return what is the same of fates that are alike: whether they are whole is told beside it."""
    if NOT_WHOLE not in fate.reasons:
        return fate.kept, fate.reasons
    return fate.kept, tuple(reason for reason in fate.reasons if reason != NOT_WHOLE)


def _age(backup: Backup, now: datetime) -> str:
    return short_age((now - backup.created_at).total_seconds()) if backup.created_at else "?"


def _database(backup: Backup) -> str:
    name = backup.gist.database if backup.gist else "?"
    return name if name.isprintable() else "".join(c if c.isprintable() else "?" for c in name)


def _files(backup: Backup) -> str:
    if len(backup.sizes) == len(ALL_FORMATS):
        return f"all {len(ALL_FORMATS)}"
    lacking = [f.value for f in ALL_FORMATS if f not in backup.sizes]
    return f"no {lacking[0]}" if len(lacking) == 1 else " ".join(f.value for f in backup.sizes)


def sizes(backup: Backup) -> str:
    """Return each file of a backup with its size."""
    return ", ".join(f"{f.extension} {size(s)}" for f, s in backup.sizes.items())


def _state(backup: Backup, now: datetime) -> str:
    if not backup.complete:
        return _BROKEN
    if backup.gist is None:
        return "no checksums"
    if backup.gist.restored_at is None:
        return "whole"
    # A time without its zone cannot be told from now.
    with suppress(ValueError, TypeError):
        at = datetime.fromisoformat(backup.gist.restored_at)
        return f"proven {short_age((now - at).total_seconds())}"
    return "proven"


def listed_document(backup: Backup) -> dict[str, Any]:
    """Return what `db.list` says of a backup, as JSON has it."""
    gist = backup.gist
    return {
        "name": backup.name,
        "type": backup.type,
        "created_at": backup.created_at.isoformat().replace("+00:00", "Z") if backup.created_at else None,
        "bytes": backup.bytes,
        "database": gist.database if gist else None,
        "formats": [f.value for f in backup.sizes],
        "complete": backup.complete,
        "restored_at": gist.restored_at if gist else None,
    }


def aside_document(change: Change) -> dict[str, Any]:
    """Return what `db.list` says of a database kept aside, as JSON has it."""
    return {key: getattr(change, key) for key in ("name", "host", "port", "before", "at", "bytes", "task", "backup")}


def aside_lines(aside: Aside, now: datetime) -> Iterator[str]:
    """Yield what is said of a database kept aside."""
    change = aside.change
    where = change.host or "a local socket"
    yield f"Kept aside: {change.before} on {where}, {size(change.bytes)}, {short_age(change.age(now))}"
    yield f"  {change.name} as it was before {change.task}"
    undo = "inv db.undo puts it back" if change.undoable else "it could not be dropped yet"
    yield f"  {undo}; {f'a cleanup drops it in {until(aside.left)}' if aside.left else 'the next cleanup drops it'}"


def verdict_document(verdict: Verdict) -> dict[str, Any]:
    """Return what was found of a backup, as JSON has it."""
    from .info import as_json

    return {
        "name": verdict.name,
        "ok": verdict.ok,
        "problems": list(verdict.problems),
        "restored": as_json(verdict.restored) if verdict.restored else None,
        "untestable": verdict.untestable,
    }


def way_out(verdicts: list[Verdict], now: datetime) -> str:
    """Return what there is to try where a backup is not healthy, nothing where all are."""
    if all(v.ok for v in verdicts):
        return ""
    past = (v for v in verdicts if v.ok and not ((name := BackupName.parse(v.name)) and name.at > now))
    whole = [f"{v.name} is the newest that is whole" for v in past][:1]
    others = ["inv db.verify all says which others are whole"] if len(verdicts) == 1 else []
    return "; ".join([*whole, *others, "inv db.backup takes a new one"])


def verdict_lines(verdict: Verdict) -> Iterator[str]:
    """Yield what was found of a backup."""
    if not verdict.ok:
        yield f"{verdict.name}: NOT HEALTHY"
        for problem in verdict.problems:
            yield f"  {problem}"
        return
    how = "whole, every checksum matches" if verdict.checked else "reads to its end; no checksum known"
    if verdict.untestable:
        how += f"; a restore cannot be tested here: {verdict.untestable}"
    elif verdict.restored:
        how += (
            f"; restored on {verdict.restored.at[:10]} with every row "
            f"(PostgreSQL {verdict.restored.server_version}, {duration(verdict.restored.seconds)})"
        )
    yield f"{verdict.name}: {how}"


def how_many(staying: int, going: int) -> str:
    """Return how many of a type's backups stay and go."""
    return f"{staying:,} {'stays' if staying == 1 else 'stay'}, {going:,} {'goes' if going == 1 else 'go'}"


def what_changed(verdict: Outcome) -> Iterator[str]:
    """Yield what a migration applied and what differs from before it."""
    past = "" if verdict.outcome == "migrated" else " had"
    new = [name for name in verdict.after or [] if name not in (verdict.before or [])]
    if new:
        yield f"Applied  {listed(new)}"
    if verdict.changed is None:
        return
    if verdict.changed.schema:
        yield f"Schema  {past} changed"
    for table, (before, after) in verdict.changed.tables.items():
        then = "not the same" if before == after else f"then {'gone' if after is None else after}"
        yield f"Rows     {table}: {'none' if before is None else before}, {then}"

"""A shelf of ten thousand backups, listed and cleaned."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from pg_backup_tasks import info
from pg_backup_tasks.info import DatabaseInfo, FileInfo, Info

from .databases import scaled
from .measure import MB, Figure, Judged, can_watch_memory, peak_memory, seconds
from .stage import Bench

BACKUPS = 10_000
FEW = 5
TYPES = ("auto", "auto", "auto", "manual", "pre_migrate")
EXTENSIONS = (".dump", ".tar", ".sql", ".sql.gz")
DATABASE = DatabaseInfo(
    name="happy_bar",
    host="db.example.com",
    port=5432,
    user="bar",
    owner="bar",
    encoding="UTF8",
    collate="C",
    ctype="C",
    comment=None,
    acl=None,
    settings=[],
    connection_limit=-1,
    bytes=1,
)
DOCUMENT = Info(
    version=info.VERSION,
    name="",
    type="",
    description="Automatic backup",
    created_at="2026-11-22T02:00:00Z",
    seconds=1.0,
    database=DATABASE,
    server_version="18.1",
    tools={"pg_dump": "18.1"},
    extensions={},
    migrations=None,
    git=None,
    tables={f"public.table_{number}": number for number in range(30)},
    files={extension: FileInfo(4, "0" * 64) for extension in EXTENSIONS},
    restored=None,
    restore=["inv db.restore NAME"],
)


def of_shelves(bench: Bench) -> Iterator[Figure]:
    """Measure `db.list` and then `db.cleanup` of a full shelf: what each takes, and both together.

    Beside the cleanup that leaves little stands what `rm` takes for those files alone: between file systems that
    differs by ten times.
    """
    count = scaled(BACKUPS, bench.scale)
    bench.say(f"measuring a shelf of {count:,} backups ...")
    bench.project.mkdir(exist_ok=True)
    bench.lay_tasks()
    for key, both_key, what, policy in (
        ("shelf.most", "shelf.time", "most", "{}"),
        ("shelf.few", "shelf.night", "a few", _all_but_a_few(count)),
    ):
        (bench.project / "invoke.yaml").write_text(f"db: {{retention: {policy}}}\n", encoding="utf-8")
        rounds = [_listed_and_cleaned(bench, count) for _ in range(bench.rounds)]
        removed = tuple(_removed(bench, count) for _ in range(bench.rounds)) if policy == "{}" else ()
        listed, cleaned = zip(*rounds, strict=True)
        both = tuple(map(sum, rounds))
        if policy == "{}":
            yield _figure("shelf.list", f"{count:,} listed", listed)
        yield _figure(key, f"{count:,}, {what} cleaned", cleaned, removed)
        yield _figure(both_key, f"{count:,} listed, {what} cleaned", both, removed)
    if can_watch_memory():
        _fill(bench.project / "backups" / "postgres", count)
        commands = (bench.inv("db.list"), bench.inv("db.cleanup"))
        peaks = tuple(peak_memory(command, bench.project, bench.env) / MB for command in commands)
        yield Figure("shelf.memory", f"memory, {count:,} backups", "MB", 120, peaks, judged=Judged.PEAK)
        bench.forget(bench.project / "backups")


def _all_but_a_few(count: int) -> str:
    """Return the policy under which a night's few go, and all that came before stay."""
    of_auto = count * TYPES.count("auto") // len(TYPES)
    return f"{{all: {{last: {count}}}, auto: {{last: {max(1, of_auto - FEW)}}}}}"


def _figure(key: str, what: str, ours: tuple[float, ...], theirs: tuple[float, ...] = ()) -> Figure:
    return Figure(key, what, "s", 2, ours, theirs, judged=Judged.PEAK)


def _listed_and_cleaned(bench: Bench, count: int) -> tuple[float, float]:
    try:
        _fill(bench.project / "backups" / "postgres", count)
        listed = seconds(bench.inv("db.list"), bench.project, bench.env)
        return listed, seconds(bench.inv("db.cleanup"), bench.project, bench.env)
    finally:
        bench.forget(bench.project / "backups")


def _removed(bench: Bench, count: int) -> float:
    folder = bench.project / "backups" / "postgres"
    _fill(folder, count)
    return seconds(("rm", "-rf", str(folder)), bench.project, bench.env)


def _fill(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    newest = datetime.now(UTC).replace(microsecond=0)
    for number in range(count):
        type_ = TYPES[number % len(TYPES)]
        name = f"backup_{type_}_{newest - timedelta(hours=2 * number):%Y%m%d_%H%M%S}"
        for extension in EXTENSIONS:
            (folder / f"{name}{extension}").write_bytes(b"dump")
        (folder / f"{name}.info").write_bytes(info.encode(msgspec.structs.replace(DOCUMENT, name=name, type=type_)))

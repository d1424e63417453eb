"""`scripts/inv bench`: build two databases, measure, show the figures, write them down."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pg_backup_tasks.embedded import EmbeddedServer
from pg_backup_tasks.errors import TaskError

from . import databases
from .databases import BenchError, Database
from .measure import MB, Figure, Judged, can_watch_memory, paired, seconds
from .migrating import of_migrating
from .reaching import of_reaching
from .restoring import of_restoring
from .shelves import of_shelves
from .stage import Bench, Sample, inv, say

PARTS = ("app", "tables", "dump", "restore", "migrate", "far", "shelf", "memory", "start")
# Short runs scatter more: so many starts for one backup.
STARTS = 4

# Close to what a small production server has; the rest is as PostgreSQL ships it.
SERVER = {"shared_buffers": "256MB", "max_wal_size": "4GB", "max_parallel_workers": "2"}

BARE_TASKS = """
from invoke import task


@task
def nothing(c):
    "Does nothing."
"""


def main(root: Path, *, rounds: int = 5, scale: float = 1.0, only: str = "", output: str = "") -> int:
    """Measure; return 0 when everything ran, whatever the figures say."""
    parts = tuple(part.strip() for part in only.split(",") if part.strip()) or PARTS
    unknown = sorted(set(parts) - set(PARTS))
    if unknown or rounds < 1 or scale <= 0:
        wrong = f"there is no part {unknown[0]!r}" if unknown else "rounds and scale start above 0"
        say(f"bench: {wrong}; the parts are {', '.join(PARTS)}.")
        return 2
    try:
        document, figures = _measure(root.resolve(), parts, rounds, scale)
    except (BenchError, TaskError, OSError) as error:
        say(f"bench: {error}")
        return 1
    _show(figures, document)
    _write(document, Path(output) if output else root / "bench" / "results" / "latest.json")
    return 0


def _measure(root: Path, parts: tuple[str, ...], rounds: int, scale: float) -> tuple[dict[str, Any], list[Figure]]:
    started, load = datetime.now(UTC), os.getloadavg()[0]
    built: list[Database] = []
    with (
        tempfile.TemporaryDirectory(prefix="pg-backup-bench-") as work,
        EmbeddedServer(settings=SERVER) as server,
    ):
        bench = Bench(root, Path(work), server, rounds, scale)
        figures = [*_of_databases(bench, parts, built)]
        if "shelf" in parts:
            figures += of_shelves(bench)
        if "start" in parts:
            figures += _of_starting(bench)
        document = {
            "version": 1,
            "date": started.isoformat(timespec="seconds"),
            "seconds": round((datetime.now(UTC) - started).total_seconds(), 1),
            "rounds": rounds,
            "scale": scale,
            "machine": _machine() | {"postgresql": server.version, "load_before": load},
            "server_settings": SERVER,
            "databases": [_without_url(database) for database in built],
            "figures": [figure.document() for figure in figures],
        }
    return document, figures


def _of_databases(bench: Bench, parts: tuple[str, ...], built: list[Database]) -> Iterator[Figure]:
    if {"app", "dump", "memory", "restore", "migrate", "far"} & set(parts):
        with _database(bench, databases.app, built) as database:
            yield from _of_app(bench, parts, database)
    if {"tables", "memory"} & set(parts):
        with _database(bench, databases.tables, built) as database:
            yield from _of_tables(bench, parts, database)


@contextmanager
def _database(
    bench: Bench, build: Callable[[EmbeddedServer, float], Database], built: list[Database]
) -> Iterator[Database]:
    say(f"building a database ({build.__name__}) ...")
    database = build(bench.server, bench.scale)
    size = f"{database.bytes / MB:.0f} MB, {database.tables} tables"
    say(f"{database.name}: {size}, built in {database.build_seconds:.0f} s")
    built.append(database)
    bench.aim(database)
    yield database
    databases.drop(bench.server, database)


def _of_app(bench: Bench, parts: tuple[str, ...], database: Database) -> Iterator[Figure]:
    size = f"{database.bytes / MB:.0f} MB"
    if "app" in parts:
        yield from _four_formats(bench, database, "app", size, 0.35)
    if "dump" in parts:
        say(f"measuring .dump alone, {size} ...")
        pairs = paired(
            lambda: bench.ours("--formats", "dump"),
            lambda: bench.plain_dump(database),
            bench.rounds,
        )
        yield _times(pairs, "dump", f".dump alone, {size}", 0.50)
        yield _weights(pairs, "dump", ".dump", size)
    if "memory" in parts:
        yield from _memory(bench, "app", size)
    if "restore" in parts:
        yield from of_restoring(bench, database, size)
    if "migrate" in parts:
        yield from of_migrating(bench, database, size)
    if "far" in parts:
        yield from of_reaching(bench, size)


def _of_tables(bench: Bench, parts: tuple[str, ...], database: Database) -> Iterator[Figure]:
    count = f"{database.tables:,} tables"
    if "tables" in parts:
        yield from _four_formats(bench, database, "tables", count, 0.60)
    if "memory" in parts:
        yield from _memory(bench, "tables", count)


def _four_formats(bench: Bench, database: Database, key: str, which: str, limit: float) -> Iterator[Figure]:
    say(f"measuring all four formats, {which} ...")
    pairs = paired(bench.ours, lambda: bench.naive(database), bench.rounds)
    yield _times(pairs, key, f"all four formats, {which}", limit)
    yield _weights(pairs, key, ".dump", which)
    yield _weights(pairs, key, ".sql.gz", which)


def _memory(bench: Bench, key: str, which: str) -> Iterator[Figure]:
    if not can_watch_memory():
        say("the peak memory is not measured: it takes Linux's /proc.")
        return
    say(f"watching the memory, {which} ...")
    peaks = tuple(bench.memory() for _ in range(max(1, bench.rounds // 2)))
    yield Figure(f"{key}.memory", f"peak memory, {which}", "MB", 100, peaks, judged=Judged.PEAK)


def _times(pairs: list[tuple[Sample, Sample]], key: str, what: str, limit: float) -> Figure:
    ours, theirs = zip(*((a.seconds, b.seconds) for a, b in pairs), strict=True)
    return Figure(f"{key}.time", what, "s", limit, ours, theirs)


def _weights(pairs: list[tuple[Sample, Sample]], key: str, ext: str, which: str) -> Figure:
    missing = [who for pair in pairs for who in pair if not who.sizes.get(ext)]
    if missing:
        raise BenchError(f"a run ended well and left no {ext} behind.")
    ours, theirs = zip(*((a.sizes[ext] / MB, b.sizes[ext] / MB) for a, b in pairs), strict=True)
    return Figure(f"{key}{ext}", f"size of {ext}, {which}", "MB", 1.15, ours, theirs)


def _of_starting(bench: Bench) -> Iterator[Figure]:
    say("measuring the start ...")
    rounds = bench.rounds * STARTS
    bare = bench.work / "bare"
    bare.mkdir()
    (bare / "tasks.py").write_text(BARE_TASKS, encoding="utf-8")
    pairs = paired(
        lambda: seconds(inv("-l"), bench.root, bench.env),
        lambda: seconds(inv("-l"), bare, bench.env),
        rounds,
    )
    yield Figure("start.list", "inv -l, over an empty task", "s", 1.5, *_columns(pairs))
    door, inside = bench.root / "scripts" / "inv", bench.root / ".venv" / "bin" / "inv"
    if not inside.exists():
        say(f"scripts/inv is not measured: {inside} is not there yet.")
        return
    pairs = paired(
        lambda: seconds([str(door), "-l"], bench.root, bench.env),
        lambda: seconds([str(inside), "-l"], bench.root, bench.env),
        rounds,
    )
    what = "scripts/inv -l, over inv -l"
    yield Figure("start.door", what, "s", 0.3, *_columns(pairs), judged=Judged.EXTRA)


def _columns(pairs: list[tuple[float, float]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(ours for ours, _ in pairs), tuple(theirs for _, theirs in pairs)


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MB,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _without_url(database: Database) -> dict[str, Any]:
    return {key: value for key, value in asdict(database).items() if key != "url"}


def _show(figures: list[Figure], document: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    machine = document["machine"]
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        title=f"Medians of {document['rounds']} pairs (starts: {STARTS * document['rounds']})",
        caption=f"{machine['cores']} cores, Python {machine['python']},"
        f" PostgreSQL {machine['postgresql']}" + _scale_note(document["scale"]),
    )
    table.add_column("measured", no_wrap=True)
    for name in ("ours", "theirs", "ratio", "limit"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("met", no_wrap=True)
    for figure in figures:
        table.add_row(*_row(figure))
    Console(width=80).print(table)


def _scale_note(scale: float) -> str:
    return "" if scale == 1 else f"\nat scale {scale:g}; the limits are meant for 1"


def _row(figure: Figure) -> list[str]:
    document = figure.document()
    ours, theirs = document["ours_median"], document["theirs_median"]
    unit = "" if figure.judged is Judged.RATIO else f" {figure.unit}"
    sign = "+" if figure.judged is Judged.EXTRA else ""
    return [
        figure.what,
        f"{_number(ours)} {figure.unit}",
        f"{_number(theirs)} {figure.unit}" if figure.theirs else "",
        f"{figure.value:{sign}.{0 if figure.judged is Judged.PEAK else 2}f}{unit}",
        f"{figure.limit:g}{unit}",
        "yes" if figure.met else "no",
    ]


def _number(value: float) -> str:
    """Three digits that matter, at most three behind the point."""
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0}f}"


def _write(document: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    say(f"written to {path}")

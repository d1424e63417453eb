"""What a migration costs beside the backup it begins with, and what it takes to put the database back."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

from .databases import BenchError, Database
from .measure import Figure, Judged, paired, seconds
from .restoring import Restores, longest_silence
from .stage import Bench

# A migration that writes something and fails.
FAILING = 'psql -Xq "$DATABASE_URL" --command "create table half_a_migration ()"; exit 1'


def of_migrating(bench: Bench, database: Database, size: str) -> Iterator[Figure]:
    """Measure migrations of *database*: one of no cost, and one that fails."""
    bench.say(f"measuring a migration of no cost, {size} ...")
    pairs = paired(lambda: _taken(bench, *_free()), lambda: _taken(bench, "db.backup-pre-migrate"), bench.rounds)
    ours, theirs = zip(*pairs, strict=True)
    yield Figure("migrate.free", f"db.migrate over backup, {size}", "s", 1.15, ours, theirs)
    bench.say(f"measuring how one that fails is put back, {size} ...")
    with Restores(bench, database) as restores:
        back = paired(lambda: _told(restores, *_failing()), lambda: _told(restores, *_plain(restores)), bench.rounds)
        ours, theirs = zip(*back, strict=True)
        yield Figure("migrate.back", f"rollback over restore, {size}", "s", 1.2, ours, theirs)
        gaps = tuple(
            longest_silence(bench, database, lambda: _told(restores, *_failing())) for _ in range(bench.rounds)
        )
        yield Figure("migrate.locked", f"locked out, rollback, {size}", "s", 0.5, gaps, judged=Judged.PEAK)


def _free() -> tuple[str, ...]:
    return ("db.migrate", "--command", "true")


def _failing() -> tuple[str, ...]:
    return ("db.migrate", "--json", "--command", FAILING)


def _plain(restores: Restores) -> tuple[str, ...]:
    return ("db.restore", str(restores.file(".dump")), "--force", "--json")


def _taken(bench: Bench, *words: str) -> float:
    try:
        return seconds(bench.inv(*words), bench.project, bench.env)
    finally:
        bench.forget(bench.project / "backups")


def _told(restores: Restores, *words: str) -> float:
    """Return the seconds that a task says it took, the backup before a migration not among them."""
    bench = restores.bench
    done = subprocess.run(
        bench.inv(*words), cwd=bench.project, env=bench.env, capture_output=True, text=True, check=False
    )
    restores.clear()
    try:
        return float(json.loads(done.stdout)["seconds"])
    except (ValueError, KeyError):
        raise BenchError(f"{words[0]} ended with {done.returncode}: {done.stderr.strip()[-2000:]}") from None

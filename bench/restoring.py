"""A restore over a live database, against filling an empty one the plain way; and how long nobody gets in."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from . import databases
from .databases import Database
from .measure import MB, Figure, Judged, can_watch_memory, paired, peak_memory, seconds
from .stage import Bench

FILLED = "bench_filled"
# What ours says to the server, said by theirs too.
SAME = "-c synchronous_commit=off -c maintenance_work_mem=256MB"
# Each of them asks anew as soon as it has been answered.
CLIENTS = 2


def of_restoring(bench: Bench, database: Database, size: str) -> Iterator[Figure]:
    """Measure restores of *database* over itself."""
    with Restores(bench, database) as restores:
        for ext, against in ((".dump", "pg_restore -j2"), (".sql.gz", "gzip | psql")):
            bench.say(f"measuring a restore from {ext}, {size} ...")
            pairs = paired(lambda ext=ext: restores.ours(ext), lambda ext=ext: restores.theirs(ext), bench.rounds)  # type: ignore[misc]
            ours, theirs = zip(*pairs, strict=True)
            yield Figure(f"restore{ext}", f"{ext} over {against}, {size}", "s", 1.15, ours, theirs)
        bench.say("measuring how long nobody gets in ...")
        gaps = tuple(longest_silence(bench, database, lambda: restores.ours(".dump")) for _ in range(bench.rounds))
        yield Figure("restore.locked", f"locked out, {size}", "s", 0.5, gaps, judged=Judged.PEAK)
        if can_watch_memory():
            yield Figure(
                "restore.memory", f"memory of a restore, {size}", "MB", 100, (restores.memory(),), judged=Judged.PEAK
            )


class Restores:
    """A backup of a database, to be restored again and again."""

    def __init__(self, bench: Bench, database: Database) -> None:
        self.bench = bench
        self.database = database
        self.same = bench.env | {"PGOPTIONS": SAME}

    def __enter__(self) -> Restores:
        seconds(self.bench.inv("db.backup", "--formats", "dump,sql.gz"), self.bench.project, self.bench.env)
        return self

    def __exit__(self, *_: object) -> None:
        self.bench.forget(self.bench.project / "backups")

    def file(self, ext: str) -> Path:
        """Return the backup's file of one format."""
        return self.bench.project / "backups" / "postgres" / f"backup_manual_latest{ext}"

    def ours(self, ext: str) -> float:
        """Return the seconds of a restore over what is there; what that keeps aside is dropped off the clock."""
        try:
            return seconds(self._command(ext), self.bench.project, self.bench.env)
        finally:
            self.clear()

    def clear(self) -> None:
        """Drop what restores have kept aside."""
        asked = f"select datname from pg_database where datname like '{self.database.name}_before_%'"
        for name in databases.psql(self.bench.server, "postgres", "-c", asked).splitlines():
            databases.psql(self.bench.server, "postgres", "-c", f"drop database {name}")

    def _command(self, ext: str) -> list[str]:
        return self.bench.inv("db.restore", str(self.file(ext)), "--force")

    def theirs(self, ext: str) -> float:
        """Return the seconds of filling a new database the plain way."""
        script = databases.HERE / "naive-restore.sh"
        server = self.database.url.rpartition("/")[0] + "/"
        try:
            return seconds(["bash", str(script), str(self.file(ext)), server, FILLED], self.bench.work, self.same)
        finally:
            databases.psql(self.bench.server, "postgres", "-c", f"drop database if exists {FILLED}")

    def memory(self) -> float:
        """Return the megabytes that our own processes held at most in a restore."""
        return peak_memory(self._command(".dump"), self.bench.project, self.bench.env) / MB


def longest_silence(bench: Bench, database: Database, work: Callable[[], object]) -> float:
    """Return the longest time between two answers that a client of the database got during *work*."""
    over = threading.Event()
    silences = [0.0] * CLIENTS
    clients = [threading.Thread(target=_ask, args=(bench, database, over, silences, i)) for i in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        work()
    finally:
        over.set()
        for client in clients:
            client.join()
    return max(silences)


def _ask(bench: Bench, database: Database, over: threading.Event, silences: list[float], number: int) -> None:
    command = [str(bench.server.bin / "psql"), "-XqAt", "--command=select count(*) from users", database.url]
    answered = time.perf_counter()
    while not over.is_set():
        done = subprocess.run(command, env=bench.env, capture_output=True, check=False)
        if done.returncode == 0:
            now = time.perf_counter()
            silences[number] = max(silences[number], now - answered)
            answered = now

"""The two databases the benchmark dumps, made by the server itself and the same on every run."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pg_backup_tasks.embedded import EmbeddedServer

HERE = Path(__file__).resolve().parent
LITTLE = (
    *("the", "a", "of", "and", "to", "in", "was", "it", "for", "with", "on"),
    *("at", "by", "from", "that", "this", "is", "we", "they", "had", "not", "but"),
)
ENDINGS = ("", "s", "ed", "ing", "er")

# At scale 1 these make a database of some 520 MB, 385 MB of it as plain SQL.
APP_ROWS = {
    "users": 40_000,
    "posts": 110_000,
    "comments": 400_000,
    "events": 500_000,
    "orders": 180_000,
    "sentences": 200_000,
}
TABLES = 5_000


class BenchError(Exception):
    """Something that was to be measured did not work."""


@dataclass(frozen=True)
class Database:
    """A database that was built, and what it has become."""

    name: str
    url: str = field(repr=False)
    bytes: int
    tables: int
    build_seconds: float


def vocabulary() -> list[str]:
    """The little words first, then every stem with every ending in an order that means nothing."""
    stems = (HERE / "words.txt").read_text(encoding="utf-8").split()
    large = {stem + ending for stem in stems for ending in ENDINGS}
    return [*LITTLE, *sorted(large, key=lambda word: hashlib.sha256(word.encode()).digest())]


def scaled(count: int, scale: float) -> int:
    return max(10, round(count * scale))


def app(server: EmbeddedServer, scale: float) -> Database:
    words = vocabulary()
    counts = {name: str(scaled(count, scale)) for name, count in APP_ROWS.items()}
    sizes = {"little": str(len(LITTLE)), "large": str(len(words) - len(LITTLE))}
    return build(server, "bench_app", "app.sql", {**counts, **sizes, "words": " ".join(words)})


def tables(server: EmbeddedServer, scale: float) -> Database:
    return build(server, "bench_tables", "tables.sql", {"tables": str(scaled(TABLES, scale))})


def build(server: EmbeddedServer, name: str, script: str, variables: Mapping[str, str]) -> Database:
    started = time.perf_counter()
    # Not template1: whatever somebody added there would be dumped along.
    psql(server, "postgres", "-c", f"CREATE DATABASE {name} TEMPLATE template0")
    given = [f"--set={key}={value}" for key, value in variables.items()]
    psql(server, name, *given, "-f", str(HERE / script))
    seconds = time.perf_counter() - started
    size = psql(server, name, "-c", "SELECT pg_database_size(current_database())")
    count = psql(server, name, "-c", "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
    return Database(name, server.url(name), int(size), int(count), seconds)


def drop(server: EmbeddedServer, database: Database) -> None:
    psql(server, "postgres", "-c", f"DROP DATABASE {database.name} WITH (FORCE)")


def psql(server: EmbeddedServer, database: str, *arguments: str) -> str:
    command = [str(server.bin / "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", *arguments]
    done = subprocess.run(
        command,
        env=clean_environment(os.environ) | server.environment(database),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchError(f"psql on {database}: {done.stderr.strip()[-2000:]}")
    return done.stdout.strip()


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment without anything that steers PostgreSQL's tools, Python, Invoke or ours.

    Where Python may not write its bytecode, as in many a container, every start would compile us anew.
    """
    steers = ("PG", "INVOKE_", "PYTHON", "DATABASE_URL", "DIRECT_URL")
    return {key: value for key, value in environment.items() if not key.startswith(steers)}

"""This repository's tasks: the db collection as any monorepo uses it, and what its developers need beside it."""

import sys
from pathlib import Path

from invoke import Collection, Context, Exit, task

import pg_backup_tasks as db

ROOT = Path(__file__).resolve().parent
# Each worker has servers of its own.
SIDE_BY_SIDE = "-n auto --maxprocesses 4 --dist worksteal"


@task(auto_shortflags=False)
def demo(_: Context) -> None:
    """Watch a database being backed up, lost and brought back (needs no PostgreSQL)."""
    from demo.story import tell

    raise Exit(code=tell(ROOT))


@task(auto_shortflags=False)
def lint(c: Context) -> None:
    """Check style and types."""
    with c.cd(str(ROOT)):
        for command in ("ruff check .", "ruff format --check .", "mypy"):
            c.run(f"{sys.executable} -m {command}", in_stream=False)


@task(
    auto_shortflags=False,
    help={
        "all": "the slow tests too, after the others",
        "slow": "the slow tests and nothing else",
        "minutes": "how long slow tests are begun; those it did not come to are named",
        "only": "what pytest is to run, instead of everything",
    },
)
def test(c: Context, all: bool = False, slow: bool = False, minutes: int = 30, only: str = "") -> None:  # noqa: A002 - the flag's name
    """Run every check: style, types and all tests but the slow ones."""
    if not (only or slow):
        lint(c)
    which = "-m slow" if slow else "" if all else '-m "not slow"'
    everything = f"{SIDE_BY_SIDE} {which} --slow-for {minutes * 60} --durations 10"
    with c.cd(str(ROOT)):
        done = c.run(f"{sys.executable} -m pytest {only or everything}", in_stream=False, warn=True)
    raise Exit(code=done.exited if done else 1)


@task(
    auto_shortflags=False,
    help={
        "rounds": "measured pairs",
        "scale": "1 is 500 MB",
        "only": "app,tables,dump,restore,migrate,far,shelf,memory,start",
        "output": "JSON",
    },
)
def bench(_: Context, rounds: int = 5, scale: float = 1.0, only: str = "", output: str = "") -> None:
    """Measure ours against the scripts it replaces, in pairs."""
    from bench.run import main

    raise Exit(code=main(ROOT, rounds=rounds, scale=scale, only=only, output=output))


ns = Collection(demo, lint, test, bench, db)
ns.configure(db.config(root=ROOT))

"""What README tells its readers to type, typed."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT, Project, Server

README = (ROOT / "README.md").read_text()
# Whoever is asked says yes.
ASKS = ("db.restore", "db.undo")


def section(title: str) -> str:
    """Return what stands under a heading, up to the next of its kind."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    assert found, f"README has no section {title!r}"
    return found[1]


def commands(title: str) -> list[list[str]]:
    """Return the tasks that a section's examples call, with their flags, in order."""
    return [line.split() for line in re.findall(r"^    scripts/inv (db\..*?)(?: +#.*)?$", section(title), re.MULTILINE)]


@pytest.mark.slow
def test_every_command_for_a_bad_day(ready: Project, server: Server, database: str) -> None:
    # The database that --into makes goes with the others.
    copy = f"{database}_before_1"
    ready.environ["INVOKE_DB_MIGRATE"] = "true"
    server.sql("create table orders (id int); insert into orders select generate_series(1, 5)", database)
    for task in ("db.backup-pre-migrate", "db.backup-auto", "db.backup"):
        assert ready.inv(task).code == 0
    whole = server.fingerprint(database)
    server.drop(database)
    typed = commands("On a bad day")
    assert len(typed) >= 10
    for task, *flags in typed:
        words = [task, *(copy if flag == "happy_bar_then" else flag for flag in flags)]
        done = ready.inv(*words, *(["--force"] if task in ASKS else []))
        assert done.code == 0, f"{words}: {done.err}"
    assert server.fingerprint(database) == whole
    assert server.fingerprint(copy) == whole

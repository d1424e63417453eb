"""Nobody's database is changed without a yes, and a protected one not without its name."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from pathlib import Path

import nasty
import pytest
from aftermath import wait_until
from benches import Bench
from conftest import clean_environ

from pg_backup_tasks.consent import Consent
from pg_backup_tasks.errors import Refused


class Asked:
    """Somebody at a terminal who answers everything alike."""

    def __init__(self, answer: str) -> None:
        self.answer = answer
        self.questions: list[str] = []

    def ask(self, question: str) -> str:
        self.questions.append(question)
        return self.answer

    def confirm(self, question: str) -> bool:
        return self.ask(question) == "y"


def agrees(consent: Consent, answer: str = "") -> tuple[bool, bool]:
    """Return whether *consent* comes about for the database `bar`, and whether anybody was asked."""
    asked = Asked(answer)
    try:
        consent.check("bar")
        consent.obtain(asked, "bar", "Restore into bar?")  # type: ignore[arg-type]
    except Refused:
        return False, bool(asked.questions)
    return True, bool(asked.questions)


@pytest.mark.parametrize(
    ("consent", "answer", "expected"),
    [
        (Consent(), "y", (False, False)),
        (Consent(force=True), "", (True, False)),
        (Consent(interactive=True), "y", (True, True)),
        (Consent(interactive=True), "", (False, True)),
        (Consent(confirm="bar"), "", (True, False)),
        (Consent(confirm="Bar", force=True), "", (False, False)),
        (Consent(confirm="other"), "", (False, False)),
        (Consent(protected=("bar",)), "bar", (False, False)),
        (Consent(protected=("bar",), force=True), "bar", (False, False)),
        (Consent(protected=("bar",), force=True, interactive=True), "bar", (False, False)),
        (Consent(protected=("bar",), interactive=True), "bar", (True, True)),
        (Consent(protected=("bar",), interactive=True), "y", (False, True)),
        (Consent(protected=("bar",), confirm="bar"), "", (True, False)),
        (Consent(protected=("bars", "b"), force=True), "", (True, False)),
    ],
)
def test_who_is_asked_and_what_counts_as_yes(consent: Consent, answer: str, expected: tuple[bool, bool]) -> None:
    assert agrees(consent, answer) == expected


def test_a_protected_database(bench: Bench) -> None:
    database = bench.create("create table t (id int); insert into t values (1)")
    name = bench.backup(database)
    bench.server.sql("insert into t values (2)", database)
    before = nasty.everything(bench.server, database)
    env = {"INVOKE_DB_PROTECTED": f"production, {database}"}
    for task in (("db.restore", name), ("db.undo",)):
        for args in (("--force",), ("--confirm", "production"), ()):
            done = bench.project.inv(*task, *args, env=env)
            assert done.code == 2, done.err
            assert database in done.err
    assert nasty.everything(bench.server, database) == before
    done = bench.project.inv("db.restore", name, "--confirm", database, env=env)
    assert done.code == 0, done.err
    assert bench.server.sql("select count(*) from t", database) == "1"


def typed(bench: Bench, answer: str, *command: str, protected: str = "") -> tuple[int, str]:
    """Run a task in a terminal of 80 columns, type *answer* at its question; return the exit code and the screen."""
    ours, theirs = pty.openpty()
    env = bench.project.environment({"INVOKE_DB_PROTECTED": protected, "TERM": "dumb", "COLUMNS": "80"})
    run = subprocess.Popen(
        bench.project.command(*command), cwd=bench.project.path, env=env, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    screen = b""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.05)[0]:
            try:
                screen += os.read(ours, 65536)
            except OSError:
                break
        if answer and (screen.endswith((b"[y/N] ", b"go on: "))):
            os.write(ours, answer.encode() + b"\n")
            answer = ""
    run.wait(timeout=30)
    os.close(ours)
    return run.returncode, screen.decode().replace("\r\n", "\n")


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("\x04", 2), ("nonsense", 2)])
def test_the_question_says_all_that_matters(bench: Bench, answer: str, code: int) -> None:
    database = bench.create("create table t (id int); insert into t select generate_series(1, 9)")
    name = bench.backup(database)
    bench.server.sql("create table later (id int)", database)
    got, screen = typed(bench, answer, "db.restore", "latest")
    assert got == code, screen
    for word in (f"{name}.dump", "UTC)", f"{database} on 127.0.0.1", ": 2 tables", "public.later", "undo", "[y/N]"):
        assert word in screen, word
    assert (bench.server.sql("select to_regclass('later') is null", database) == "t") is (code == 0)
    assert ("Nothing was changed." in screen) is (code == 2)


@pytest.mark.parametrize(
    ("flags", "becomes", "lost"),
    [
        ((), "all that is in the backup, 2 tables, 9 rows", "whatever has changed since"),
        (
            ("--schema-only", "--clean"),
            "the structure in the backup, 2 tables without any rows",
            "what the backup lacks: public.later; and all rows",
        ),
        (
            ("--data-only",),
            "the backup's rows in 2 tables; all else stays as it is",
            "what has changed in these rows since the backup",
        ),
        (("--table", "t"), "the backup's public.t", "what these tables are and hold now"),
    ],
    ids=["all", "structure", "rows", "table"],
)
def test_every_mode_says_what_will_be_and_what_is_lost(
    bench: Bench, flags: tuple[str, ...], becomes: str, lost: str
) -> None:
    database = bench.create("create table t (id int); insert into t select generate_series(1, 9); create table u ()")
    name = bench.backup(database, "--formats", "dump")
    if "--clean" in flags:
        bench.server.sql("create table later (id int)", database)
    said = bench.restore(name, database, *flags).err.splitlines()
    told = [line for line in said if line.startswith(("Becomes", "Lost"))]
    assert told == [
        f"Becomes  {becomes}",
        f"Lost     {lost}",
    ]


@pytest.mark.parametrize(("format_", "option"), [("dump", "-Fc"), ("sql", "-Fp")])
def test_a_dump_of_one_table_says_which_others_are_lost(bench: Bench, format_: str, option: str) -> None:
    database = bench.create("create table t (id int); create table precious (id int)")
    path = bench.project.path / f"t.{format_}"
    command = [str(bench.server.embedded.bin / "pg_dump"), option, "-t", "t", "-f", str(path)]
    environ = {**clean_environ(), **bench.server.embedded.environment(database)}
    subprocess.run(command, env=environ, check=True)
    done = bench.restore(str(path), database)
    assert done.code == 0, done.err
    assert "Lost     what the backup lacks: public.precious;" in done.err


def test_the_name_is_typed(bench: Bench) -> None:
    database = bench.create("create table t (id int)")
    bench.backup(database)
    assert typed(bench, "y", "db.restore", "latest", protected=database)[0] == 2
    code, screen = typed(bench, database, "db.restore", "latest", protected=database)
    assert code == 0, screen
    assert "is protected" in screen


def test_pick_and_change_ones_mind(bench: Bench, tmp_path: Path) -> None:
    database = bench.create("create table t (id int)")
    bench.backup(database)
    ours, theirs = pty.openpty()
    run = subprocess.Popen(
        bench.project.command("db.restore", "pick"),
        cwd=bench.project.path,
        env=bench.project.environment({"TERM": "dumb"}),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    os.write(ours, b"1\nn\n")
    wait_until(lambda: run.poll() is not None, "the end")
    screen = os.read(ours, 65536).decode()
    os.close(ours)
    assert run.returncode == 2, screen
    assert "Nothing was changed." in screen

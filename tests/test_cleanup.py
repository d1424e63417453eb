"""A cleanup on a real shelf: what goes goes as a whole, what is not ours stays, the next one ends what was killed."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from benches import Bench, desk_of
from conftest import ROOT, Project, Server, missing

from bench.shelves import DOCUMENT
from pg_backup_tasks import info
from pg_backup_tasks.cleanup import Order, Shelf, clean
from pg_backup_tasks.here import Here
from pg_backup_tasks.info import Restored
from pg_backup_tasks.journal import Change
from pg_backup_tasks.model import BackupName, Format
from pg_backup_tasks.report import Report
from pg_backup_tasks.retention import USUAL, Candidate, Only, Policy, plan
from pg_backup_tasks.store import Backup, Store

EXTENSIONS = (".dump", ".tar", ".sql", ".sql.gz")
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def stock(project: Project, moments: list[datetime], type_: str = "auto", *, whole: bool = True) -> list[str]:
    """Put backups on the shelf; return their names, newest first."""
    project.backups.mkdir(parents=True, exist_ok=True)
    names = []
    for at in sorted(moments, reverse=True):
        name = f"backup_{type_}_{at:%Y%m%d_%H%M%S}"
        for extension in EXTENSIONS:
            (project.backups / f"{name}{extension}").write_bytes(b"dump")
        (project.backups / f"{name}.info").write_text("an old script's")
        if not whole:
            (project.backups / f"{name}.info").unlink()
        names.append(name)
    return names


def nights(count: int) -> list[datetime]:
    return [TODAY - timedelta(days=n) for n in range(count)]


def names(project: Project) -> set[str]:
    return {p.name.partition(".")[0] for p in project.backups.iterdir() if p.name.startswith("backup_")}


def test_shown_and_done(project: Project) -> None:
    stocked = stock(project, nights(40))
    for args in (("--dry-run",), ()):
        done = project.inv("db.cleanup", *args)
        assert done.code == 0, done.err
        assert done.out.startswith("auto: ")
        assert all(f"\n{name}  " in done.out for name in stocked)
        assert f"kept: daily {TODAY - timedelta(days=1):%Y-%m-%d}" in done.out
        assert "removed: no rule keeps it" in done.out
        assert max(map(len, done.out.splitlines())) <= 80
        assert (len(names(project)) == 40) is bool(args)
    left = names(project)
    assert set(stocked[:7]) <= left < set(stocked)
    assert all((project.backups / f"{n}{e}").exists() for n in left for e in (*EXTENSIONS, ".info"))
    assert project.hidden_files() == []
    again = project.inv("db.cleanup", "--json")
    assert again.json["removed"] == []
    assert {each["name"] for each in again.json["kept"]} == left


def test_json_and_dry(project: Project) -> None:
    stock(project, nights(20))
    done = project.inv("db.cleanup", "--keep", "3", "--json", "--dry-run").json
    assert done["dry_run"] is True
    assert [len(done[part]) for part in ("kept", "removed")] == [3, 17]
    assert done["removed"][0]["reasons"] == ["not one of the last 3"]
    dry = project.inv("--dry", "db.cleanup", "--keep", "3")
    assert dry.code == 0
    assert "Would remove 17 of 20" in dry.out
    assert len(names(project)) == 20
    assert project.inv("db.cleanup", "--older-than", "5", "--keep", "8").code == 0
    assert len(names(project)) == 8


def test_only_one_type(project: Project) -> None:
    stock(project, nights(20), "manual")
    autos = stock(project, nights(20), "auto")
    assert project.inv("db.cleanup", "--type", "manual", "--keep", "1").code == 0
    assert len([n for n in names(project) if "manual" in n]) == 1
    assert set(autos) <= names(project)


def test_one_whose_info_is_damaged_takes_no_place_from_one_that_is_whole(project: Project) -> None:
    damaged, whole = stock(project, nights(2))
    (project.backups / f"{damaged}.info").write_text('{"version": 1, "name": "backup_auto_20')
    done = project.inv("db.cleanup", "--keep", "1")
    assert done.code == 0
    assert damaged in done.err
    assert whole in names(project)
    assert damaged in project.inv("db.list").err


@pytest.mark.parametrize(
    "args",
    [
        ("--keep", "0"),
        ("--keep", "-3"),
        ("--keep", "x"),
        ("--older-than", "0"),
        ("--older-than", "1.5"),
        ("--type", "la/test"),
        ("--type", ""),
        ("--keep", ""),
        ("--older-than", ""),
        ("--confirm", "other"),
        ("--wait", "-1"),
    ],
    ids=" ".join,
)
def test_wrong_use_removes_nothing(ready: Project, args: tuple[str, ...]) -> None:
    stock(ready, nights(40))
    # What Invoke's own parser refuses is its own 1.
    done = ready.inv("db.cleanup", *args)
    assert done.code in (1, 2) if args[1].startswith("-") else done.code == 2, done.err
    assert "Traceback" not in done.err
    assert len(names(ready)) == 40


def test_a_type_there_is_none_of_is_answered_with_those_there_are(project: Project) -> None:
    stock(project, nights(2), "manual")
    stock(project, nights(2), "auto")
    for task in ("db.list", "db.cleanup"):
        done = project.inv(task, "--type", "manaul")
        assert done.code == 0
        assert "no backups of type manaul; there are auto, manual." in done.err
    said = f"No backups of type manaul in {project.backups}. inv db.backup --type manaul takes one.\n"
    assert project.inv("db.list", "--type", "manaul").out == said
    assert project.inv("db.list", "--type", "").code == 2


@pytest.mark.parametrize("value", ['{"auto": {"dayly": 3}}', '{"auto": {"daily": -1}}', '{"auto": 3}', "5"])
def test_a_policy_that_is_wrong_removes_nothing(project: Project, value: str) -> None:
    stock(project, nights(40))
    (project.path / "invoke.json").write_text(f'{{"db": {{"retention": {value}}}}}')
    done = project.inv("db.cleanup")
    assert done.code == 2, done.err
    assert "Try:" in done.err
    assert len(names(project)) == 40


def test_policies_come_from_where_settings_do(project: Project) -> None:
    stock(project, nights(40))
    stock(project, nights(40), "nightly")
    (project.path / "invoke.yaml").write_text("db:\n  retention:\n    nightly: {daily: 2, weekly: 0, monthly: 0}\n")
    assert project.inv("db.cleanup").code == 0
    assert len([n for n in names(project) if "nightly" in n]) == 2
    assert len([n for n in names(project) if "auto" in n]) > 7


def test_what_is_not_ours_stays(project: Project) -> None:
    stock(project, nights(40))
    strangers = [
        "backup_auto_20200101_000000.dump.bak",
        "backup_auto_20200101_000000.txt",
        "backup_auto_20201301_000000.dump",
        "backup_auto_20200101_000000 2.dump",
        "backup_\n_20200101_000000.dump",
        "backup_auto_20200101_000000",
        "notes 20200101.sql",
        ".backup_auto_20200101_000000.dump",
        "-rf",
    ]
    for name in strangers:
        (project.backups / name).write_text("mine")
    folder = project.backups / "backup_auto_20190101_000000.dump"
    folder.mkdir()
    (folder / "backup_auto_20190101_000000.dump").write_text("mine")
    link = project.backups / "backup_auto_20180101_000000.dump"
    link.symlink_to(project.path / "tasks.py")
    assert project.inv("db.cleanup", "--keep", "1").code == 0
    assert all((project.backups / name).read_text() == "mine" for name in strangers)
    assert (folder / "backup_auto_20190101_000000.dump").exists()
    assert link.is_symlink()


def test_one_that_may_only_be_read_or_is_being_read(project: Project) -> None:
    stocked = stock(project, nights(3))
    for file in project.backups.iterdir():
        file.chmod(0o400)
    with (project.backups / f"{stocked[-1]}.dump").open("rb") as reader:
        assert project.inv("db.cleanup", "--keep", "1").code == 0
        assert reader.read() == b"dump"
    assert names(project) == {stocked[0]}


def test_what_somebody_begins_to_read_while_it_is_shown_stays(project: Project) -> None:
    newest, *others = stock(project, nights(4))
    # But for one whose proof an earlier cleanup has taken already.
    (project.backups / f"{others[2]}.info").unlink()
    (project.backups / ".removing").write_text(json.dumps([others[2]]))
    desk = desk_of(project)
    with ExitStack() as reading:

        def show(shelf: Shelf) -> None:
            assert [str(fate.name) for fate in shelf.fates if fate.kept] == [newest]
            for name in others[1:]:
                reading.enter_context(desk.store.in_use(name))

        shelf = clean(desk, Order(only=Only(keep=1)), show)
    assert {str(f.name): f.reasons for f in shelf.fates if f.kept}[others[1]] == ("a db.fetch reads it",)
    assert names(project) == {newest, others[1]}
    clean(desk, Order(only=Only(keep=1)), lambda _: None)
    assert names(project) == {newest}


def test_the_links_of_no_other_type_are_left_hanging(project: Project) -> None:
    newest, old = stock(project, nights(2))
    (project.backups / "backup_prod_latest.dump").symlink_to(f"{old}.dump")
    assert project.inv("db.cleanup", "--type", "auto", "--keep", "1").code == 0
    assert names(project) == {newest}


def test_each_is_shown_with_its_size(project: Project) -> None:
    stock(project, nights(1))
    assert re.search(r"backup_auto_\S+ +16 B +kept: ", project.inv("db.cleanup", "--dry-run").out)


def test_the_latest_links_stay_right(ready: Project, server: Server, database: str) -> None:
    server.sql("create table t (id int)", database)
    old = stock(ready, nights(9)[2:], "manual")
    newest = ready.inv("db.backup", "--formats", "dump", "--json").json["name"]
    for extension in (".sql", ".tar"):
        (ready.backups / f"backup_manual_latest{extension}").symlink_to(f"{old[-1]}{extension}")
    assert ready.inv("db.cleanup", "--keep", "1").code == 0
    assert names(ready) == {newest, "backup_manual_latest"}
    links = {p.name: p.readlink().name for p in ready.backups.iterdir() if p.is_symlink()}
    assert links == {"backup_manual_latest.dump": f"{newest}.dump", "backup_manual_latest.info": f"{newest}.info"}


def test_what_undo_needs_stays_and_what_is_aside_expires(bench: Bench) -> None:
    database = bench.create("create table t (id int)")
    name = bench.backup(database)
    in_place = {"INVOKE_DB_IN_PLACE": "true"}
    assert bench.restore(name, database, env=in_place).code == 0
    safety = next(n for n in names(bench.project) if "pre_restore" in n and "latest" not in n)
    stock(bench.project, [datetime.now(UTC) + timedelta(minutes=-1, seconds=n) for n in range(3)], "pre_restore")
    cleaned = bench.project.inv("db.cleanup", "--keep", "1", "--json").json
    assert {"name": safety, "reasons": ["db.undo needs it"]} in cleaned["kept"] or any(
        each["name"] == safety and "one of the last 1" in each["reasons"] for each in cleaned["kept"]
    )
    assert bench.restore(name, database).code == 0
    aside = f"select count(*) from pg_database where datname like '{database}_before_%'"
    assert bench.server.sql(aside) == "1"
    assert bench.project.inv("db.cleanup").code == 0
    assert bench.server.sql(aside) == "1"
    at_once = {"INVOKE_DB_ASIDE_HOURS": "0"}
    assert "Would drop" not in bench.project.inv("db.cleanup", "--dry-run").err
    kept = f"{bench.server.sql(aside.replace('count(*)', 'datname'))}, kept aside for more than 0 hours"
    for dry in (("db.cleanup", "--dry-run"), ("db.cleanup", "--dry-run", "--json"), ("--dry", "db.cleanup")):
        assert f"Would drop {kept}.\n" in bench.project.inv(*dry, env=at_once).err
    assert bench.server.sql(aside) == "1"
    done = bench.project.inv("db.cleanup", env=at_once)
    assert done.code == 0
    assert f"Dropped {kept}.\n" in done.err
    assert bench.server.sql(aside) == "0"
    assert bench.project.inv("db.undo", "--force").code == 2


def test_what_was_aside_and_is_gone_was_not_dropped_by_us(bench: Bench) -> None:
    database = bench.create("create table t (id int)")
    assert bench.restore(bench.backup(database), database).code == 0
    (aside,) = bench.project.inv("db.list", "--json").json["aside"]
    bench.server.sql(f'drop database "{aside["before"]}"')
    done = bench.project.inv("db.cleanup", env={"INVOKE_DB_ASIDE_HOURS": "0"})
    assert done.code == 0
    assert f"{aside['before']}, kept aside for more than 0 hours, is there no more.\n" in done.err
    assert "Dropped" not in done.err
    assert bench.project.inv("db.list", "--json").json["aside"] == []


def test_a_server_that_is_gone_keeps_nobody_from_cleaning(project: Project) -> None:
    stock(project, nights(40))
    project.use("postgresql://bar:secret@127.0.0.1:1/bar")
    change = Change(
        name="bar",
        host="127.0.0.1",
        port=1,
        task="db.restore of x",
        backup="x",
        how="swap",
        before="bar_before",
        at="2020-01-01T00:00:00Z",
        bytes=1,
        presence="1",
    )
    (project.backups / ".undo.json").write_text(json.dumps([asdict(change)]))
    done = project.inv("db.cleanup")
    assert done.code == 0
    assert "stays" in done.err
    assert len(names(project)) < 40


# Killed


def killed_after(project: Project, steps: int) -> int:
    """Run a cleanup that is killed after so many of the machine's changes; return how it ended."""
    done = signalled_after(project, steps, signal.SIGKILL)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def signalled_after(project: Project, steps: int, signum: signal.Signals) -> subprocess.CompletedProcess[str]:
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from pg_backup_tasks import here
left = {steps}
def counted(method):
    def call(self, *args):
        global left
        for one in args or ((),):
            if left == 0:
                os.kill(os.getpid(), {signum.value})
            left -= 1
            method(self, *((one,) if args else ()))
    return call
def before(method):
    return lambda self, *args: (counted(lambda s: None)(self), method(self, *args))[1]
here.Here.remove = counted(here.Here.remove)
for name in ("write", "flush", "publish"):
    setattr(here.Here, name, before(getattr(here.Here, name)))
from invoke.main import program
program.run(["inv", "db.cleanup", "--keep", "2"])
"""
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=project.path,
        env=project.environment(),
        capture_output=True,
        text=True,
        check=False,
    )


# Its lock, the note, the links, the six .info and the folder, then their dumps.
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 6, 9, 10, 14, 20, 30, 33])
def test_killed_in_between_it_leaves_none_that_looks_whole(project: Project, steps: int) -> None:
    stocked = stock(project, nights(8))
    (project.backups / "backup_auto_latest.dump").symlink_to(f"{stocked[-1]}.dump")
    assert killed_after(project, steps) == -signal.SIGKILL
    link = project.backups / "backup_auto_latest.dump"
    assert link.exists()
    store = Store(Here(), str(project.backups))
    for backup in store.backups():
        files = {e for e in EXTENSIONS if os.path.lexists(f"{project.backups}/{backup.name}{e}")}
        assert not backup.complete or len(files) == 4, (backup.name, files)
    assert {b.name for b in store.backups() if b.complete} >= set(stocked[:2])
    assert project.inv("db.cleanup", "--keep", "3").code == 0
    assert names(project) - {"backup_auto_latest"} <= set(stocked[:3])
    assert names(project) >= set(stocked[:2])
    assert link.resolve().name == f"{stocked[0]}.dump"
    assert project.hidden_files() == []


# In the note, in the .info, and in the dumps, which are soon removed.
@pytest.mark.parametrize(("steps", "ended"), [(2, True), (5, True), (20, False)])
def test_ended_in_between_it_says_how_far_it_came(project: Project, steps: int, ended: bool) -> None:
    stocked = stock(project, nights(8))
    done = signalled_after(project, steps, signal.SIGTERM)
    assert done.returncode == (143 if ended else 0)
    said = "Ended by SIGTERM; 0 of 6 backups were removed, and the next cleanup goes on.\n"
    assert done.stderr.endswith(said) is ended
    assert names(project) == set(stocked if ended else stocked[:2])
    assert project.inv("db.cleanup", "--keep", "2").code == 0
    assert names(project) == set(stocked[:2])


def test_to_its_end_it_takes_no_more_steps_than_those_it_is_killed_after(project: Project) -> None:
    stock(project, nights(8))
    assert killed_after(project, 40) == 0


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    """Let nobody remove *path*, nor what is in it."""
    if subprocess.run(["chattr", "+i", str(path)], check=False, capture_output=True).returncode:
        missing("files that nobody may remove", "as root, on a file system that knows chattr +i")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(path)], check=True)


def test_a_folder_that_may_not_be_written_is_said(project: Project) -> None:
    stock(project, nights(40))
    with immutable(project.backups):
        done = project.inv("db.cleanup")
    assert done.code == 1
    assert "cannot be used" in done.err
    assert len(done.err.splitlines()) == 2
    assert len(names(project)) == 40


def test_a_file_that_cannot_be_removed_stops_nothing_else(project: Project) -> None:
    stocked = stock(project, nights(8))
    with immutable(project.backups / f"{stocked[5]}.dump"):
        for _ in range(2):
            done = project.inv("db.cleanup", "--keep", "2")
            assert done.code == 1
            assert f"could not be removed (Operation not permitted): {stocked[5]}." in done.err
            assert names(project) == {*stocked[:2], stocked[5]}
        assert project.inv("db.cleanup", "--dry-run").code == 0
    assert project.inv("db.cleanup").code == 0
    assert names(project) == set(stocked[:2])
    assert project.hidden_files() == []


def test_with_a_shelf_that_is_not_there(project: Project) -> None:
    done = project.inv("db.cleanup")
    assert done.code == 0, done.err
    assert "Removed 0 of 0" in done.out


# After a backup


def test_backup_auto_cleans_after_it_succeeded(ready: Project) -> None:
    stock(ready, nights(40)[1:])
    done = ready.inv("db.backup-auto", "--cleanup")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert len(names(ready)) < 25
    before = names(ready)
    ready.use("postgresql://bar:secret@127.0.0.1:1/bar")
    done = ready.inv("db.backup-auto", "--cleanup", env={"INVOKE_DB_RETENTION": ""})
    assert done.code != 0
    assert names(ready) == before


def test_its_json_has_both(ready: Project) -> None:
    stock(ready, nights(40)[1:])
    done = ready.inv("db.backup-auto", "--cleanup", "--json")
    assert done.code == 0
    assert done.json["cleanup"]["removed"]
    assert done.json["name"] in {each["name"] for each in done.json["cleanup"]["kept"]}


# Pictures of a shelf


class Terminal(io.StringIO):
    """What is shown to somebody at a screen of 80 columns."""

    def isatty(self) -> bool:
        return True


def shelf_of(count: int, type_: str = "auto", only: Only = Only(), *, gaps: int = 9) -> Shelf:  # noqa: B008 - frozen
    """Return a shelf of nights of one type, and of one more, of which some are not whole."""
    found = {}
    for number, at in enumerate(nights(count)):
        its = type_ if number % 2 else "manual"
        name = f"backup_{its}_{at:%Y%m%d_%H%M%S}"
        raw = b"an old script's" if number % gaps else None
        found[name] = Backup(name, "/b", its, at, {Format.DUMP: 987_654_321}, raw)
    candidates = [
        Candidate(parsed, b.complete, bytes=b.bytes) for b in found.values() if (parsed := BackupName.parse(b.name))
    ]
    rules = {t: f"Policy: {USUAL.get(t, Policy())}" for t in sorted({b.type for b in found.values()})}
    return Shelf(plan(candidates, lambda t: USUAL.get(t, Policy()), TODAY, only), found, {}, rules)


def picture(monkeypatch: pytest.MonkeyPatch, show: Callable[[Report], None], stream: io.StringIO) -> list[str]:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stdout", stream)
    show(Report())
    monkeypatch.undo()
    return stream.getvalue().splitlines()


def bare(line: str) -> str:
    return re.sub(r"\x1b\[[0-9]*m", "", line)


def whole_rows(shown: list[str]) -> list[str]:
    """Return the rows of a table, one whose name has a line of its own in one piece."""
    rows: list[str] = []
    for line in shown:
        if bare(line).startswith("  "):
            rows[-1] += line
        else:
            rows.append(line)
    return rows


@pytest.mark.parametrize("only", [Only(), Only(30, 3)], ids=["policy", "flags"])
@pytest.mark.parametrize("type_", ["a", "pre_migrate", "as_long_as_a_type_is_wont_to_be"])
@pytest.mark.parametrize("count", [0, 1, 3, 500])
def test_what_a_cleanup_does_is_a_picture(monkeypatch: pytest.MonkeyPatch, count: int, type_: str, only: Only) -> None:
    shelf = shelf_of(count, type_, only)
    for stream in (Terminal(), io.StringIO()):
        shown = picture(monkeypatch, lambda report: report.fates(shelf), stream)
        assert all(len(bare(line)) <= 80 for line in shown)
        rows = whole_rows(shown)
        if stream.isatty():
            assert all(("\x1b[31m" in row) == ("  NOT WHOLE" in row) for row in rows)
        verdict = re.compile(r"  (NOT WHOLE, )?(kept: \w|removed: \w|removed(\x1b|$))")
        assert all(verdict.search(row) for row in rows if "backup_" in row)
        named = {bare(line).split(" ")[0] for line in shown}
        # Each that stays has its line, and off the terminal each that goes.
        stays = {str(fate.name) for fate in shelf.fates if fate.kept}
        assert (stays if stream.isatty() else set(shelf.backups)) <= named
        assert count < 500 or not stream.isatty() or len(rows) < 80
        together = [int(found[1]) for line in shown if (found := re.search(" ([0-9]+) rem", line))]
        alone = [line for line in shown if line.count("backup_") and bare(line).split(" ")[0] not in stays]
        assert sum(together) + len(alone) == len(shelf.going)


def test_without_colours_it_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = shelf_of(40)
    coloured = picture(monkeypatch, lambda report: report.fates(shelf), Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    plain = picture(monkeypatch, lambda report: report.fates(shelf), Terminal())
    assert any("\x1b[2m" in line for line in coloured)
    assert [bare(line) for line in coloured] == plain
    assert plain[0] == "auto: 11 stay, 9 go. Policy: 7 daily, 4 weekly, 12 monthly"


@pytest.mark.parametrize("type_", ["auto", "pre_migrate", "as_long_as_a_type_is_wont_to_be"])
def test_a_list_fits_the_screen(monkeypatch: pytest.MonkeyPatch, type_: str) -> None:
    database = msgspec.structs.replace(DOCUMENT.database, name="a_database_with_a_long_name")
    proven = Restored((TODAY - timedelta(days=1)).isoformat(), "18.1", 1.0)
    document = msgspec.structs.replace(DOCUMENT, database=database, restored=proven, files={})
    name = f"backup_{type_}_{TODAY:%Y%m%d_%H%M%S}"
    raw = info.encode(document)
    whole = Backup(name, "/b", type_, TODAY, dict.fromkeys(Format, 249_900_000), raw, info.gist(raw))
    later = TODAY + timedelta(days=80)
    for backup in (whole, whole._replace(raw=None, gist=None)):

        def show(report: Report, backup: Backup = backup) -> None:
            report.shelf([backup], [], "/b", later)

        lines = picture(monkeypatch, show, Terminal())
        assert max(len(bare(line)) for line in lines) <= 80
        _, shown = whole_rows(lines)
        assert bare(shown).split("  ")[-1] == ("proven 81 d" if backup.complete else "NOT WHOLE")
        assert ("\x1b[31m" in shown) is not backup.complete


def log(project: Project) -> str:
    return (project.path / "backups" / "pg_backup_tasks.log").read_text()


def test_what_cron_removed_stands_in_the_log(ready: Project) -> None:
    gone = stock(ready, nights(40)[1:])[-1]
    assert ready.inv("db.backup-auto", "--cleanup").code == 0
    removed = next(line for line in log(ready).splitlines() if "removing (no rule keeps it): " in line)
    assert gone in removed
    assert not set(removed.partition(": ")[2].split(", ")) & names(ready)


def test_a_cleanup_that_fails_does_not_hide_the_backup(ready: Project) -> None:
    stuck = stock(ready, nights(40)[1:])[-2]
    before = names(ready)
    with immutable(ready.backups / f"{stuck}.tar"):
        done = ready.inv("db.backup-auto", "--cleanup", "--json")
    (name,) = names(ready) - before - {"backup_auto_latest"}
    assert done.code == done.json["exit"] == 1
    assert done.json["error"].startswith(f"{name} was taken; the cleanup after it failed: 1 of ")
    assert done.err.startswith(f"{name} was taken")
    assert f"took {name}" in log(ready)


def test_a_cleanup_after_a_backup_hears_signals_again(ready: Project) -> None:
    stock(ready, nights(40)[1:])
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from invoke.main import program
from pg_backup_tasks import cleanup
clean = cleanup.clean
def ended(*args):
    os.kill(os.getpid(), signal.SIGTERM)
    return clean(*args)
cleanup.clean = ended
program.run(["inv", "db.backup-auto", "--cleanup"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ready.path,
        env=ready.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 143, done.stderr
    assert "was taken; the cleanup after it failed: Ended by SIGTERM; 0 of 30 backups were removed" in done.stderr
    assert ready.inv("db.cleanup").code == 0
    assert ready.hidden_files() == []


def test_dry_it_says_that_it_would_clean(ready: Project) -> None:
    done = ready.inv("--dry", "db.backup-auto", "--cleanup")
    assert done.code == 0
    assert "Then would remove the backups that no rule keeps" in done.err
    assert "Then" not in ready.inv("--dry", "db.backup-auto").err

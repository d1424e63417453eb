"""What a restore writes down before it changes a database, and what can be undone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pg_backup_tasks import switching
from pg_backup_tasks.here import Here
from pg_backup_tasks.journal import Change, Journal
from pg_backup_tasks.migration import Migration, Migrations
from pg_backup_tasks.model import Database
from pg_backup_tasks.store import Store

CHANGE = Change(
    name="bar",
    host="h",
    port=5432,
    task="db.restore of x",
    backup="x",
    how="swap",
    before="bar_before_20261122_143022",
    at="2026-11-22T14:30:22Z",
    bytes=7,
    presence="1|2",
    comment='it\'s a "comment"\n',
)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(Here(), str(tmp_path))


def test_nothing_has_been_done_yet(journal: Journal) -> None:
    assert journal.under_way() is None
    assert journal.done() == []
    assert journal.transaction() is None
    journal.end()
    journal.forget(lambda _: True)
    assert list(Path(journal.folder).iterdir()) == []


def test_a_change_is_begun_made_remembered_and_replaced(journal: Journal) -> None:
    journal.begin(CHANGE)
    assert journal.under_way() == CHANGE
    assert journal.done() == []
    journal.remember(CHANGE)
    journal.end()
    assert journal.under_way() is None
    other = replace(CHANGE, name="other", how="in place", before="backup_pre_restore_20261122_143022")
    elsewhere = replace(CHANGE, port=5433)
    for change in (other, elsewhere):
        journal.remember(change)
    assert journal.last(Database("bar", "h", 5432)) == CHANGE
    later = replace(CHANGE, before="later")
    journal.remember(later)
    assert journal.last(Database("bar", "h", 5432)) == later
    assert len(journal.done()) == 3
    journal.forget(lambda change: change.name == "bar")
    assert journal.done() == [other]


def test_only_the_owner_may_read_it(journal: Journal) -> None:
    journal.begin(CHANGE)
    journal.remember(CHANGE)
    assert {p.stat().st_mode & 0o777 for p in Path(journal.folder).iterdir()} == {0o600}


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"{}", b"[1]", b'{"name": 1}', b"\xff\xfe", b'[{"name": "x"}]'])
def test_what_is_damaged_is_none(journal: Journal, raw: bytes) -> None:
    for name in (".restoring.json", ".undo.json"):
        (Path(journal.folder) / name).write_bytes(raw)
    assert journal.under_way() is None
    assert journal.done() == []


@pytest.mark.parametrize(("raw", "number"), [(b"765\n", 765), (b"", None), (b"76x", None), (b"\xff", None)])
def test_the_number_of_a_transaction(journal: Journal, raw: bytes, number: int | None) -> None:
    Path(journal.transaction_path).write_bytes(raw)
    assert journal.transaction() == number
    journal.begin(CHANGE)
    assert journal.transaction() is None


def test_how_long_it_lies_back() -> None:
    assert CHANGE.age(datetime.fromisoformat(CHANGE.at) + timedelta(hours=25)) == 25 * 3600


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=70))
@example("ü" * 31)
@example("x" * 63)
def test_a_name_for_what_goes_aside_fits_and_says_whose_it_is(name: str) -> None:
    aside = switching.aside_name(name, datetime(2026, 11, 22, 14, 30, 22, tzinfo=UTC))
    assert len(aside.encode()) <= 63
    kept, _, rest = aside.rpartition("_before_")
    assert rest == "20261122_143022"
    assert name.startswith(kept)
    assert kept == name or len(aside.encode()) > 59


def test_what_a_run_that_dies_while_it_writes_leaves_is_cleared(journal: Journal) -> None:
    journal.begin(CHANGE)
    journal.remember(CHANGE)
    folder = Path(journal.folder)
    Migrations(journal.machine, journal.folder).remember(Migration("d", "h", 1, "b", "0", "at", "migrated", ""))
    written = {p.name for p in folder.iterdir()} | {".removing", Path(journal.list_path).name}
    for name in written:
        (folder / f".{name}.new").touch()
    (folder / "..theirs.new").touch()
    assert Store(Here(), journal.folder).clear_remains(Here().entries(journal.folder, ".") or []) == []
    assert {p.name for p in folder.glob(".*.new")} == {"..theirs.new"}
    assert journal.under_way() == CHANGE


def test_what_is_under_way_on_another_server_is_not_forgotten(journal: Journal) -> None:
    journal.begin(CHANGE)
    Path(journal.transaction_path).write_text("765")
    here, third = replace(CHANGE, host="here"), replace(CHANGE, host="third")
    for change in (here, third):
        journal.begin(change)
        assert journal.under_way() == change
    cut_off = [replace(CHANGE, transaction=765), here]
    assert journal.elsewhere() == cut_off
    journal.end()
    journal.end_elsewhere(here)
    assert journal.elsewhere() == cut_off[:1]
    journal.end_elsewhere(cut_off[0])
    assert list(Path(journal.folder).iterdir()) == []


def test_loopback_names_are_equal(journal: Journal) -> None:
    change = replace(CHANGE, host="localhost")
    journal.remember(change)
    assert journal.last(Database("bar", "127.0.0.1", 5432)) == change
    migrations = Migrations(journal.machine, journal.folder)
    migrations.remember(migration := Migration("bar", "LOCALHOST", 5432, "b", "0", "at", "migrated", ""))
    assert migrations.last(Database("bar", "::1", 5432)) == migration


def test_what_could_not_be_dropped_is_remembered_and_not_undone(journal: Journal) -> None:
    earlier, other = replace(CHANGE, before="earlier"), replace(CHANGE, name="other")
    for change in (earlier, other):
        journal.remember(change)
    journal.supersede([other], [earlier])
    assert journal.done() == [replace(earlier, undoable=False)]
    assert journal.last(Database("bar", "h", 5432)) is None
    journal.remember(CHANGE)
    assert journal.last(Database("bar", "h", 5432)) == CHANGE
    assert len(journal.done()) == 2

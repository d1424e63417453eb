"""The shelf: what in a folder is a backup, and which one a word means."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar, cast

import pytest
from described import PLAIN
from hypothesis import given
from hypothesis import strategies as st

from pg_backup_tasks import info
from pg_backup_tasks.errors import Failed, Refused
from pg_backup_tasks.here import Here
from pg_backup_tasks.info import FileInfo, Info
from pg_backup_tasks.machine import Machine, Survey
from pg_backup_tasks.model import BackupName, Format, split_file
from pg_backup_tasks.store import Backup, Store

T = TypeVar("T")

AT = datetime(2026, 11, 22, 14, 30, 22, tzinfo=UTC)
HEADS = {
    ".dump": b"PGDMP\x01\x0e\x00",
    ".tar": b"toc.dat".ljust(257, b"\0") + b"ustar00",
    ".sql": b"--\n-- PostgreSQL database dump\n--\n",
}


def document(name: str, sizes: dict[str, int]) -> bytes:
    return info.encode(
        Info(
            version=1,
            name=name,
            type="t",
            description="",
            created_at="2026-11-22T14:30:22Z",
            seconds=1.0,
            database=PLAIN,
            server_version="18.1",
            tools={},
            extensions={},
            migrations=None,
            git=None,
            tables={},
            files={extension: FileInfo(size, "0" * 64) for extension, size in sizes.items()},
            restored=None,
            restore=[],
        )
    )


@dataclass
class Shelf:
    """A project with a backup folder, and hands that put things into it."""

    root: Path
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.store = Store(Here(), str(self.folder))

    @property
    def folder(self) -> Path:
        return self.root / "backups" / "postgres"

    def put(self, name: str, *extensions: str, proof: bool = True, folder: Path | None = None) -> str:
        place = folder or self.folder
        for extension in extensions:
            (place / f"{name}{extension}").write_bytes(HEADS[extension])
        if proof:
            sizes = {extension: len(HEADS[extension]) for extension in extensions}
            (place / f"{name}.info").write_bytes(document(name, sizes))
        return name

    def find(self, word: str, cwd: Path | None = None) -> Backup:
        return self.store.find(word, str(cwd or self.root), lambda backups: backups[-1])

    def names(self, type_: str | None = None) -> list[str]:
        return [b.name for b in self.store.backups(type_)]


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "a project")


OLD, NEW, AUTO = "backup_manual_20251122_143022", "backup_manual_20261122_143022", "backup_auto_20260101_000000"


# What is in use


def cleared(store: Store) -> list[str]:
    return store.clear_remains(store.machine.entries(store.folder, ".") or [])


def test_a_backup_is_in_use_as_long_as_its_reader_lives(shelf: Shelf) -> None:
    shelf.put(OLD, ".dump")
    with shelf.store.in_use(OLD):
        assert shelf.store.used() == {OLD}
        cleared(shelf.store)
        assert shelf.store.used() == {OLD}
        assert [b.name for b in shelf.store.backups()] == [OLD]
    assert shelf.store.used() == set()
    number, *more = Here().presence().split("|")
    dead = "|".join((number, "another time", *more[1:]))
    mark = shelf.folder / f".in_use_{OLD}.0"
    mark.symlink_to(dead)
    assert shelf.store.used() == set()
    cleared(shelf.store)
    assert not mark.is_symlink()


def test_a_backup_that_is_only_readable_can_be_in_use(shelf: Shelf) -> None:
    with Store(Here(), str(shelf.folder / "none")).in_use(OLD):
        pass
    assert list(shelf.folder.iterdir()) == []


# What is there


def test_a_folder_that_is_not_there_has_no_backups(tmp_path: Path) -> None:
    store = Store(Here(), str(tmp_path / "none"))
    assert store.backups() == []
    with pytest.raises(Refused) as caught:
        store.some()
    assert "inv db.backup" in str(caught.value)


def test_files_of_one_name_are_one_backup_and_the_newest_comes_first(shelf: Shelf) -> None:
    shelf.put(OLD, ".dump")
    shelf.put(NEW, ".dump", ".sql")
    shelf.put(AUTO, ".tar")
    assert shelf.names() == [NEW, AUTO, OLD]
    assert shelf.names("manual") == [NEW, OLD]
    assert shelf.names("man") == []
    newest = shelf.store.backups()[0]
    assert newest.sizes == {Format.DUMP: 8, Format.SQL: 34}
    assert newest.bytes == 42
    assert newest.type == "manual"
    assert newest.created_at == AT
    assert newest.complete


def test_what_is_not_ours_is_no_backup(shelf: Shelf) -> None:
    odd = [
        *("backup_manual_latest.dump", "backup_Manual_20261122_143022.dump", "backup_manual_20261322_143022.dump"),
        *(f"{NEW}.dump.new", f".partial_{NEW}", f".{NEW}.info.new", f"x{NEW}.dump", f"{NEW}.dump ", f"{NEW}.dump\n"),
        *("backup_manual_2026\n1122_143022.dump", " ", "notes.txt", f"{NEW}.sql.bz2", f"{NEW}", "-n", "ü\udcff.dump"),
    ]  # fmt: skip
    for name in odd:
        (shelf.folder / name).write_bytes(HEADS[".dump"])
    (shelf.folder / f"{AUTO}.dump").mkdir()
    (shelf.folder / f"{AUTO}.tar").symlink_to("nowhere")
    (shelf.folder / f"{AUTO}.info").symlink_to(f"{AUTO}.info")
    os.mkfifo(shelf.folder / f"{AUTO}.sql")
    assert shelf.names() == []
    shelf.put(NEW, ".dump")
    assert shelf.names() == [NEW]
    assert list(shelf.store.backups()[0].sizes) == [Format.DUMP]


@pytest.mark.parametrize(
    "raw", [b"Database: old\r\nDate: then\n", b'{"version": 2}', b"\xff\xfe", b"[INFO] caf\xe9\t\x1b[1mbar\x1b[0m\f"]
)
def test_the_info_of_another_tool_is_no_trouble(shelf: Shelf, raw: bytes) -> None:
    shelf.put(OLD, ".dump", ".sql", proof=False)
    (shelf.folder / f"{OLD}.info").write_bytes(raw)
    (backup,) = shelf.store.backups()
    assert backup.info is None
    assert backup.has_info
    assert backup.complete
    assert backup.missing == []


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b" \n", b"{}", b"\0" * 200, b"{}" + b"[" * 200_000, document(NEW, {".dump": 8})[:200]),
        *(b"[1, 2]", b"null\n", b"\x7fELF\x02\x01", b"PGDMP\x01\x0f", b"Database: old\nDate: \0\0\0\0\n"),
    ],
)
def test_an_info_of_ours_that_is_damaged_proves_nothing(shelf: Shelf, raw: bytes) -> None:
    shelf.put(OLD, ".dump")
    shelf.put(NEW, ".dump", proof=False)
    (shelf.folder / f"{NEW}.info").write_bytes(raw)
    backup = shelf.store.backups()[0]
    assert (backup.name, backup.has_info, backup.damaged, backup.complete) == (NEW, True, True, False)
    assert shelf.find("latest").name == OLD
    assert shelf.find(f"backups/postgres/{NEW}.dump").damaged


def test_an_info_that_is_not_what_its_gist_promises_is_damaged_for_who_reads_it(shelf: Shelf) -> None:
    shelf.put(NEW, ".dump")
    path = shelf.folder / f"{NEW}.info"
    path.write_bytes(path.read_bytes().replace(b'"tables": {}', b'"tables": 5'))
    backup = shelf.find("latest")
    assert (backup.name, backup.info, backup.damaged) == (NEW, None, True)


@pytest.mark.parametrize("key", Info.__struct_fields__)
def test_an_info_that_lacks_something_has_no_gist(shelf: Shelf, key: str) -> None:
    shelf.put(NEW, ".dump")
    path = shelf.folder / f"{NEW}.info"
    path.write_bytes(path.read_bytes().replace(f'\n  "{key}":'.encode(), f'\n  "{key[:-1]}":'.encode(), 1))
    (backup,) = shelf.store.backups()
    assert (backup.gist, backup.info, backup.damaged, backup.complete) == (None, None, True, False)


def test_no_single_wrong_bit_that_damages_an_info_leaves_its_gist() -> None:
    raw = document(NEW, {".dump": 8, ".sql.gz": 12})
    raw = raw.replace(b'"tables": {}', b'"tables": {"public.\xc3\xa9": 5, "b.c": 12}').replace(
        b'"restored": null', b'"restored": {"at": "2026-11-22T14:30:22Z", "server_version": "18", "seconds": 1.5}'
    )
    assert info.decode(raw)
    for bit in range(8 * len(raw)):
        wrong = bytearray(raw)
        wrong[bit // 8] ^= 1 << bit % 8
        assert bool(info.gist(bytes(wrong))) == bool(info.decode(bytes(wrong))), bytes(wrong)


class Strict(Here):
    """A machine on which one file may not be read, and another goes away between two looks."""

    def survey(
        self, folder: str, starting: tuple[str, ...], ending: str, make: Callable[[bytes], T]
    ) -> Survey[T] | None:
        found = super().survey(folder, starting, ending, bytes)
        assert found
        texts = {name: make(b"" if NEW in name else text) for name, text in found.texts.items() if AUTO not in name}
        return Survey(found.sizes, texts, found.links)


def test_an_info_that_cannot_be_read_is_no_trouble_for_the_others(shelf: Shelf) -> None:
    for name in (OLD, NEW, AUTO):
        shelf.put(name, ".dump")
    store = Store(Strict(), str(shelf.folder))
    newest, auto, oldest = store.backups()
    assert (newest.has_info, newest.damaged, newest.complete) == (True, True, False)
    assert (auto.has_info, auto.damaged, auto.complete) == (False, False, False)
    assert oldest.complete
    assert store.find(str(shelf.folder / f"{NEW}.dump"), "/", lambda found: found[0]).damaged


def test_whole_is_what_has_every_file_in_its_size(shelf: Shelf) -> None:
    shelf.put(NEW, ".dump", ".tar")
    assert shelf.store.backups()[0].complete
    (shelf.folder / f"{NEW}.dump").write_bytes(b"PGDMP")
    assert not shelf.store.backups()[0].complete
    assert shelf.store.backups()[0].missing == []
    (shelf.folder / f"{NEW}.dump").unlink()
    assert not shelf.store.backups()[0].complete
    assert shelf.store.backups()[0].missing == [".dump"]


def test_without_its_info_it_was_never_finished(shelf: Shelf) -> None:
    shelf.put(NEW, ".dump", proof=False)
    (backup,) = shelf.store.backups()
    assert not backup.complete
    assert not backup.has_info


def test_only_an_info_is_no_whole_backup(shelf: Shelf) -> None:
    shelf.put(NEW, ".dump")
    (shelf.folder / f"{NEW}.dump").unlink()
    (backup,) = shelf.store.backups()
    assert not backup.complete
    with pytest.raises(Refused, match="no dump file left"):
        backup.format_to_restore()


class Memory:
    """A machine with one folder, in memory."""

    def __init__(self, files: set[str]) -> None:
        self._files = files

    def survey(self, folder: str, starting: tuple[str, ...], ending: str, make: Callable[[bytes], T]) -> Survey[T]:
        sizes = {name: 1 for name in self._files if name.startswith(starting)}
        return Survey(sizes, {name: make(b"an old script's") for name in sizes if name.endswith(ending)}, {})


stamps = st.datetimes(datetime(2000, 1, 1), datetime(2099, 12, 31)).map(  # noqa: DTZ001
    lambda at: at.replace(microsecond=0, tzinfo=UTC)
)
backup_names = st.builds(BackupName, stamps, st.sampled_from(["manual", "auto", "pre_migrate", "manual_2"]))
files = st.builds("{}{}".format, backup_names, st.sampled_from([".dump", ".tar", ".sql", ".sql.gz", ".info", ".txt"]))
found_files = st.sets(files | st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=20), max_size=20)


@given(found_files)
def test_every_file_of_ours_belongs_to_exactly_one_backup(names: set[str]) -> None:
    store = Store(cast(Machine, Memory(names)), "/b", lambda: datetime(2100, 1, 1, tzinfo=UTC))
    backups = store.backups()
    ours = {name for name in names if split_file(name)}
    grouped = [f"{b.name}{f.extension}" for b in backups for f in b.sizes]
    grouped += [f"{b.name}.info" for b in backups if b.has_info]
    assert sorted(grouped) == sorted(ours)
    times = [str(b.created_at) for b in backups]
    assert times == sorted(times, reverse=True)
    for backup in backups:
        assert store.find(backup.name, "/elsewhere", lambda found: found[0]) == backup
        assert backup in store.backups(backup.type)
    whole = [b for b in backups if b.complete]
    if whole:
        assert store.find("latest", "/elsewhere", lambda found: found[0]) == whole[0]


# Which one a word means


def test_a_name(shelf: Shelf) -> None:
    shelf.put(NEW, ".tar", ".sql")
    found = shelf.find(NEW)
    assert (found.name, found.chosen, found.format_to_restore()) == (NEW, None, Format.TAR)
    assert found.path(Format.SQL) == f"{shelf.folder}/{NEW}.sql"
    assert found.info_path == f"{shelf.folder}/{NEW}.info"


def test_the_latest_is_the_newest_that_is_whole(shelf: Shelf) -> None:
    shelf.put(OLD, ".dump")
    shelf.put(AUTO, ".dump")
    shelf.put(NEW, ".dump", proof=False)
    assert shelf.find("latest").name == AUTO
    assert shelf.find("latest:manual").name == OLD
    assert shelf.find("latest:auto").name == AUTO
    shelf.put("backup_pre_migrate_20200101_000000", ".dump")
    assert shelf.find("latest:pre-migrate").name == "backup_pre_migrate_20200101_000000"


def test_what_is_dated_in_the_future_is_the_latest_only_where_nothing_else_is(shelf: Shelf) -> None:
    said: list[str] = []
    store = Store(Here(), str(shelf.folder), lambda: AT, said.append)
    future = shelf.put("backup_manual_20360101_000000", ".dump")
    assert store.find("latest", "/", lambda found: found[0]).name == future
    # Clocks of two machines are never quite the same.
    shelf.put("backup_manual_20261122_150000", ".dump")
    shelf.put(OLD, ".dump")
    assert store.find("latest:manual", "/", lambda found: found[0]).name == "backup_manual_20261122_150000"
    assert said == [f"{future} is dated in the future; the latest is taken to be backup_manual_20261122_150000."]


@pytest.mark.parametrize("word", ["latest", "latest:auto", "latest:none"])
def test_no_latest(shelf: Shelf, word: str) -> None:
    shelf.put(NEW, ".dump", proof=False)
    with pytest.raises(Refused, match="no whole backup"):
        shelf.find(word)


@pytest.mark.parametrize("word", ["latest:", "latest:all", "latest:Manual", "latest:a b"])
def test_no_type(shelf: Shelf, word: str) -> None:
    shelf.put(NEW, ".dump")
    with pytest.raises(Refused):
        shelf.find(word)


def test_pick_asks(shelf: Shelf) -> None:
    with pytest.raises(Refused, match="no backups"):
        shelf.find("pick")
    shelf.put(OLD, ".dump")
    shelf.put(NEW, ".dump")
    assert shelf.find("pick").name == OLD


@pytest.mark.parametrize("extension", [".dump", ".tar", ".sql"])
def test_a_path_fixes_the_format(shelf: Shelf, extension: str) -> None:
    shelf.put(NEW, ".dump", ".tar", ".sql")
    for word, cwd in (
        (f"backups/postgres/{NEW}{extension}", shelf.root),
        (f"./backups/../backups//postgres/{NEW}{extension}", shelf.root),
        (f"{NEW}{extension}", shelf.folder),
        (f"../postgres/{NEW}{extension}", shelf.folder),
        (f"{shelf.folder}/{NEW}{extension}", Path("/")),
    ):
        found = shelf.find(word, cwd)
        assert found.name == NEW
        assert found.format_to_restore().extension == extension
        assert os.path.samefile(found.path(found.format_to_restore()), shelf.folder / f"{NEW}{extension}")
        assert found.complete


def test_a_path_to_the_info_leaves_the_format_open(shelf: Shelf) -> None:
    shelf.put(NEW, ".tar", ".sql")
    found = shelf.find(f"backups/postgres/{NEW}.info")
    assert (found.name, found.chosen, found.format_to_restore()) == (NEW, None, Format.TAR)


def test_a_path_elsewhere_is_a_backup_there(shelf: Shelf, tmp_path: Path) -> None:
    shelf.put(NEW, ".dump", ".sql", folder=tmp_path)
    found = shelf.find(f"{tmp_path}/{NEW}.sql")
    assert found.path(found.format_to_restore()) == f"{tmp_path}/{NEW}.sql"
    assert found.info is not None
    with pytest.raises(Refused):
        shelf.find(NEW)


def test_a_link_is_what_it_points_at(shelf: Shelf, tmp_path: Path) -> None:
    shelf.put(NEW, ".dump", ".tar")
    (shelf.folder / "backup_manual_latest.tar").symlink_to(f"{NEW}.tar")
    (tmp_path / "my link").symlink_to(shelf.folder / "backup_manual_latest.tar")
    for word in ("backups/postgres/backup_manual_latest.tar", "../my link"):
        found = shelf.find(word)
        assert (found.name, found.format_to_restore()) == (NEW, Format.TAR)


@pytest.mark.parametrize("target", ["nowhere", "self", "/nowhere/at/all"])
def test_a_dangling_link_is_no_backup(shelf: Shelf, target: str) -> None:
    (shelf.root / "self").symlink_to(target)
    with pytest.raises(Refused, match="There is no backup"):
        shelf.find("self")


def test_links_in_a_circle_are_no_backup(shelf: Shelf) -> None:
    (shelf.root / "one").symlink_to("two")
    (shelf.root / "two").symlink_to("one")
    with pytest.raises(Refused):
        shelf.find("one")


@pytest.mark.parametrize(("filename", "extension"), [("prod dump", ".dump"), ("x.dump", ".tar"), ("x.tar", ".sql")])
def test_a_dump_of_any_name_is_told_by_its_content(shelf: Shelf, filename: str, extension: str) -> None:
    (shelf.root / filename).write_bytes(HEADS[extension])
    found = shelf.find(filename)
    assert found.format_to_restore().extension == extension
    assert found.path(found.format_to_restore()) == f"{shelf.root}/{filename}"
    assert (found.type, found.info, found.created_at) == ("", None, None)


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\x1f\x8b\x08\x00broken"])
def test_a_file_that_is_no_dump(shelf: Shelf, content: bytes) -> None:
    (shelf.root / "x").write_bytes(content)
    with pytest.raises(Refused, match="no PostgreSQL dump"):
        shelf.find("x")


@pytest.mark.parametrize(
    "word",
    ["", "--force", "--help", "-", "-n", "nothing", "no/such/folder", NEW, f"{NEW}.dump", "/", "..", "backups", "a\nb"],
)
def test_what_is_no_backup(shelf: Shelf, word: str) -> None:
    (shelf.root / "--force").write_bytes(HEADS[".dump"])
    with pytest.raises(Refused) as caught:
        shelf.find(word)
    assert caught.value.code == 2
    assert len(str(caught.value.message).splitlines()) == 1


def test_a_path_through_a_file_is_no_backup(shelf: Shelf) -> None:
    (shelf.root / "file").touch()
    with pytest.raises(Refused):
        shelf.find("file/x.dump")


def test_a_path_counts_the_files_that_the_name_does(shelf: Shelf) -> None:
    shelf.put(NEW, ".dump")
    (shelf.folder / f"{NEW}.tar").mkdir()
    (shelf.folder / f"{NEW}.sql").symlink_to("nowhere")
    assert shelf.find(f"backups/postgres/{NEW}.dump").sizes == shelf.find(NEW).sizes == {Format.DUMP: 8}


# One goes


def links(shelf: Shelf) -> dict[str, str]:
    return {p.name: os.readlink(p) for p in shelf.folder.iterdir() if p.is_symlink()}


def test_links_lead_to_what_is_there_however_they_said_where(shelf: Shelf, tmp_path: Path) -> None:
    gone, stays = "backup_manual_20261122_143023", NEW
    for name in (gone, stays, OLD):
        shelf.put(name, ".dump", ".tar", ".sql")
    shelf.put(AUTO, ".dump")
    elsewhere = shelf.put(AUTO, ".tar", folder=tmp_path)
    targets = {
        "backup_manual_latest.dump": f"./{gone}.dump",
        "backup_manual_latest.tar": f"{shelf.folder}/{gone}.tar",
        "backup_manual_latest.sql": f"{OLD}.sql",
        "backup_manual_latest.sql.gz": f"{gone}.sql.gz",
        # Dangling before.
        "backup_auto_latest.dump": "backup_auto_20200101_000000.dump",
        "backup_none_latest.dump": "backup_none_20200101_000000.dump",
        # Not ours to judge.
        "backup_auto_latest.tar": f"../../../{elsewhere}.tar",
        "backup_manual_latest.info": "/nowhere/mine",
        "notes": f"{gone}.dump",
    }
    for name, target in targets.items():
        (shelf.folder / name).symlink_to(target)
    remove(shelf.store, gone)
    right = links(shelf)
    assert right == {
        "backup_manual_latest.dump": f"{stays}.dump",
        "backup_manual_latest.tar": f"{stays}.tar",
        "backup_manual_latest.sql": f"{OLD}.sql",
        "backup_auto_latest.dump": f"{AUTO}.dump",
        **{n: targets[n] for n in ("backup_auto_latest.tar", "backup_manual_latest.info", "notes")},
    }
    (shelf.folder / "backup_manual_latest.dump").unlink()
    (shelf.folder / "backup_manual_latest.dump").symlink_to(f"{gone}.dump")
    remove(shelf.store)
    assert links(shelf) == right


def test_links_to_one_backup_go_to_the_newest_whole_one_together(shelf: Shelf) -> None:
    shelf.put(OLD, ".dump", ".tar", ".sql")
    # The newest, of which somebody has removed two files.
    shelf.put(NEW, ".dump", ".tar", proof=False)
    for extension in (".dump", ".tar", ".sql", ".info"):
        (shelf.folder / f"backup_manual_latest{extension}").symlink_to(f"{NEW}{extension}")
    elsewhere = f"../../../{NEW}.sql.gz"
    (shelf.root.parent / f"{NEW}.sql.gz").write_bytes(b"not ours to judge")
    (shelf.folder / "backup_manual_latest.sql.gz").symlink_to(elsewhere)
    remove(shelf.store)
    assert links(shelf) == {
        f"backup_manual_latest{extension}": f"{OLD}{extension}" for extension in (".dump", ".tar", ".sql", ".info")
    } | {"backup_manual_latest.sql.gz": elsewhere}


def remove(store: Store, *names: str) -> None:
    stock = store.stock()
    store.remove([backup for backup in stock.backups if backup.name in names], stock.links)


class Stubborn(Here):
    """A machine that cannot remove some files."""

    stuck: str = ""

    def remove(self, *paths: str) -> None:
        super().remove(*(p for p in paths if not self.stuck or self.stuck not in p))
        if self.stuck and any(self.stuck in p for p in paths):
            raise PermissionError(1, "Operation not permitted", self.stuck)


@pytest.mark.parametrize("stuck", [f"{NEW}.tar", f"{NEW}.info"])
def test_one_that_cannot_be_removed_keeps_none_of_the_others(shelf: Shelf, stuck: str) -> None:
    machine = Stubborn()
    store = Store(machine, str(shelf.folder))
    for name in (OLD, NEW, AUTO):
        shelf.put(name, ".dump", ".tar")
    machine.stuck = stuck
    for _ in range(2):
        with pytest.raises(Failed, match=f"1 of . backups could not be removed .Operation not permitted.: {NEW}"):
            remove(store, OLD, NEW, AUTO)
    left = {p.name for p in shelf.folder.iterdir()}
    if stuck.endswith(".info"):
        assert left == {f"{NEW}{extension}" for extension in (".dump", ".tar", ".info")}
        assert store.begun() == set()
    else:
        assert left == {stuck, ".removing"}
        assert store.begun() == {NEW}
    machine.stuck = ""
    remove(store, OLD, NEW, AUTO)
    assert list(shelf.folder.iterdir()) == []


# Remains


def test_only_remains_of_ours_are_cleared(shelf: Shelf) -> None:
    mine = [".backup_my notes.new", ".backup_manual_20261322_143022.dump.new", ".backup_a b_latest.dump.new", ".x.new"]
    ours = [f".{NEW}.info.new", ".backup_manual_latest.sql.gz.new", "..undo.json.new"]
    for name in (*mine, *ours):
        (shelf.folder / name).touch()
    (shelf.folder / ".backup_auto_latest.info.new").symlink_to("nowhere")
    for folder in (".backup_dir.new", f".{AUTO}.dump.new"):
        (shelf.folder / folder).mkdir()
        mine.append(folder)
    assert cleared(shelf.store) == []
    assert {p.name for p in shelf.folder.iterdir()} == set(mine)


# A new one


def test_a_name_that_is_taken_waits_for_the_next_second(shelf: Shelf) -> None:
    now = [AT + timedelta(seconds=0.25)]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += timedelta(seconds=seconds)

    def free() -> str:
        return str(shelf.store.free_name("manual", lambda: now[0], sleep))

    assert free() == NEW
    assert slept == []
    shelf.put(NEW, ".sql")
    assert free() == "backup_manual_20261122_143023"
    assert slept == [0.75]
    (shelf.folder / ".partial_backup_manual_20261122_143023").mkdir()
    assert free() == "backup_manual_20261122_143024"
    assert str(shelf.store.free_name("auto", lambda: AT, sleep)) == "backup_auto_20261122_143022"


def test_the_name_is_in_utc(shelf: Shelf) -> None:
    local = datetime.fromisoformat("2026-11-22T09:30:22-05:00")
    assert str(shelf.store.free_name("manual", lambda: local, lambda _: None)) == NEW

"""What is said: numbers with what they count, and lines that fit."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest
from conftest import Project, Server
from described import but
from test_store import document
from test_streams import in_a_terminal

from pg_backup_tasks import info
from pg_backup_tasks.model import Format
from pg_backup_tasks.report import Report
from pg_backup_tasks.store import Backup
from pg_backup_tasks.units import counted, until

AT = datetime(2026, 11, 22, 14, 30, 22, tzinfo=UTC)


def backup(name: str, database: str, *formats: Format) -> Backup:
    """Return a backup as it lies on a shelf."""
    read = info.decode(document(name, {f.extension: 558_500 for f in formats}))
    assert read
    raw = info.encode(msgspec.structs.replace(read, database=but(name=database)))
    return Backup(name, "/b", "t", AT, dict.fromkeys(formats, 558_500), raw, info.gist(raw))


def test_a_list_fits_into_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    backups = [
        backup("backup_pre_migrate_20261122_143022", "happy_bar_of_bergen", Format.DUMP, Format.TAR, Format.SQL_GZ),
        backup("backup_manual_20261122_143022", "happy_bar", *Format),
        backup("backup_auto_20261122_143022", "happy_bar", Format.DUMP),
    ]
    Report().shelf(backups, [], "/b", AT)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80, said
    assert [word in said for word in ("happy_bar_of_…", "no sql", "all 4", " dump ")] == [True] * 4, said
    Report().shelf(backups[1:], [], "/b", AT)
    assert "happy_bar " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 tables"), (1, "1 table"), (2, "2 tables"), (45645, "45,645 tables")]
)
def test_a_number_and_what_it_counts(number: int, said: str) -> None:
    assert counted(number, "table") == said


def test_what_one_table_is_called(ready: Project, server: Server, database: str) -> None:
    server.sql("create table t as select 1 as id", database)
    assert "  1 table, 1 row, one snapshot" in ready.inv("db.backup", "--formats", "sql").out


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(ready: Project) -> None:
    ran = in_a_terminal(ready, "db.backup", "--formats", "sql", typed=b"", env={"TERM": "unknown"})
    assert ran.code == 0
    assert "Dumping .sql" in ran.out and "\n\r\n" not in ran.out, ran.out


@pytest.mark.parametrize(("name", "coloured"), [("FORCE_COLOR", True), ("TTY_COMPATIBLE", True), ("NOTHING", False)])
def test_colours_into_a_pipe_only_where_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, coloured: bool
) -> None:
    for each in ("FORCE_COLOR", "TTY_COMPATIBLE", "NO_COLOR"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "1")
    Report().shelf([backup("backup_manual_20261122_143022", "happy_bar", *Format)], [], "/b", AT)
    assert capsys.readouterr().out.startswith("\x1b[1mBACKUP") == coloured


@pytest.mark.parametrize("at", ["2026-11-01T00:00:00", "yesterday"])
def test_a_proof_of_a_time_nobody_can_tell_is_a_proof(capsys: pytest.CaptureFixture[str], at: str) -> None:
    proven = backup("backup_manual_20261122_143022", "happy_bar", *Format)
    assert proven.gist
    Report().shelf([proven._replace(gist=proven.gist._replace(restored_at=at))], [], "/b", AT)
    assert capsys.readouterr().out.endswith("  proven\n")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(1, "1 min"), (60, "1 min"), (7200, "120 min"), (7201, "3 h"), (172_800, "48 h"), (172_801, "3 d")],
)
def test_how_long_it_takes_yet_is_never_said_too_short(seconds: float, said: str) -> None:
    assert until(seconds) == said

"""The values everything is said in: names that are the record, types, formats, databases, commands."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pg_backup_tasks.errors import Refused
from pg_backup_tasks.model import (
    EXTENSIONS,
    BackupName,
    Command,
    Database,
    Format,
    format_of,
    latest_link,
    parse_formats,
    parse_type,
    split_file,
)

types = st.text("abcxyz019_", min_size=1, max_size=20).filter(lambda t: t not in ("latest", "all", "pick"))
times = st.datetimes(datetime(1000, 1, 1), datetime(9999, 12, 31, 23, 59, 59)).map(  # noqa: DTZ001
    lambda at: at.replace(microsecond=0, tzinfo=UTC)
)
names = st.builds(BackupName, times, types)
AT = datetime(2026, 11, 22, 14, 30, 22, tzinfo=UTC)


# Names


def test_a_name_says_type_and_time() -> None:
    assert str(BackupName(AT, "pre_migrate")) == "backup_pre_migrate_20261122_143022"


@given(names)
def test_a_name_is_read_as_it_was_written(name: BackupName) -> None:
    assert BackupName.parse(str(name)) == name


@given(st.text("backup_lt019 -.\n", max_size=40) | st.from_regex(r"backup_[a-z_0-9]{1,3}_[0-9]{8}_[0-9]{6}\n?"))
@example("backup_a_09990101_000000")
@example("backup_a_20261122_143022\n")
@example("backup_a_20261122_143060")
@example("backup_a_20260229_000000")
@example("backup_latest_20261122_143022")
@example("backup__20261122_143022")
def test_nothing_else_is_a_name(text: str) -> None:
    found = BackupName.parse(text)
    assert found is None or str(found) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "backup_20261122_143022",
        "backup_manual_latest",
        "backup_latest_20261122_143022",
        "backup_all_20261122_143022",
        "backup_manual_2026112_143022",
        "backup_manual_20261322_143022",
        "backup_manual_20261122_243022",
        "backup_manual_20261122_240000",
        "backup_Manual_20261122_143022",
        "backup_a-b_20261122_143022",
        "backup_a b_20261122_143022",
        "backup_../a_20261122_143022",
        "backup_ä_20261122_143022",
        "backup_manual_٢0261122_143022",
        " backup_manual_20261122_143022",
        "backup_manual_20261122_143022 ",
        "backup_manual_20261122_143022.dump",
        "xbackup_manual_20261122_143022",
        "BACKUP_manual_20261122_143022",
    ],
)
def test_what_is_no_name(text: str) -> None:
    assert BackupName.parse(text) is None


def test_a_type_may_look_like_a_time() -> None:
    name = BackupName.parse("backup_a_20250101_000000_20261122_143022")
    assert name == BackupName(AT, "a_20250101_000000")


@given(names, names)
def test_the_older_comes_first(one: BackupName, other: BackupName) -> None:
    assert (one < other) == ((one.at, one.type) < (other.at, other.type))


# Files


@given(names, st.sampled_from(EXTENSIONS))
def test_a_file_is_a_name_and_an_extension(name: BackupName, extension: str) -> None:
    assert split_file(f"{name}{extension}") == (name, extension)
    for other in (f"{name}", f"{name}{extension}.new", f"{name}{extension} ", f".{name}{extension}", f"{name}.gz"):
        assert split_file(other) is None


@given(types, st.sampled_from(EXTENSIONS))
def test_a_latest_link_is_no_backup(type_: str, extension: str) -> None:
    assert split_file(latest_link(type_, extension)) is None


@given(st.text(max_size=30))
@example("backup_a_20261122_143022.sql.gz")
def test_no_other_file_is_ours(text: str) -> None:
    if found := split_file(text):
        assert f"{found[0]}{found[1]}" == text


# Types


@pytest.mark.parametrize(
    ("text", "stored"), [("manual", "manual"), ("pre-migrate", "pre_migrate"), ("v2_1", "v2_1"), ("_a-", "_a_")]
)
def test_a_type_as_it_is_stored(text: str, stored: str) -> None:
    assert parse_type(text) == stored


@pytest.mark.parametrize(
    "text",
    [
        "",
        "latest",
        "all",
        "pick",
        "Manual",
        "a b",
        "a/b",
        "..",
        "a.b",
        "ä",
        "a\n",
        "٣",
        "a" * 65,
        "a,b",
        "a*",
        "-a",
        "--dry",
    ],
)
def test_what_cannot_be_a_type(text: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_type(text)
    assert caught.value.code == 2


@given(st.text(max_size=70))
@example("a" * 64)
def test_every_type_accepted_makes_a_name_that_is_read_back(text: str) -> None:
    try:
        stored = parse_type(text)
    except Refused:
        return
    name = BackupName(AT, stored)
    assert BackupName.parse(str(name)) == name
    assert len(f".partial_{name}.sql.gz".encode()) < 255


# Formats


def test_formats_are_named_in_any_order_and_come_in_one() -> None:
    assert parse_formats("sql, .tar,dump,sql.gz,tar,") == (Format.DUMP, Format.TAR, Format.SQL_GZ, Format.SQL)
    assert parse_formats("sql") == (Format.SQL,)


@pytest.mark.parametrize("text", ["", ",", "custom", "SQL", "sql.bz2", "dump;sql", "dump tar"])
def test_what_is_no_format(text: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_formats(text)
    assert "dump,tar,sql,sql.gz" in str(caught.value)


@pytest.mark.parametrize(
    ("head", "format_"),
    [
        (b"PGDMP\x01\x0e\x00", Format.DUMP),
        (b"toc.dat".ljust(257, b"\0") + b"ustar00", Format.TAR),
        (b"toc.dat".ljust(257, b"\0") + b"xstar00", None),
        (b"other.dat".ljust(257, b"\0") + b"ustar00", None),
        (b"--\n-- PostgreSQL database dump\n--\n", Format.SQL),
        (b"--\n-- PostgreSQL database dump\n--\n\n\\restrict x\n", Format.SQL),
        (b"--\n-- PostgreSQL database cluster dump\n--\n", None),
        (b"\x1f\x8b\x08", None),
        (b"", None),
        (b"SELECT 1;\n", None),
    ],
)
def test_a_dump_is_told_by_its_first_bytes(head: bytes, format_: Format | None) -> None:
    assert format_of(head) is format_


def test_what_pg_restore_reads() -> None:
    assert [f for f in Format if f.is_archive] == [Format.DUMP, Format.TAR]


# Databases and commands


@pytest.mark.parametrize(
    ("database", "text"),
    [
        (Database("d", "h", 5433, "u", "SECRET"), "d on h:5433 as u"),
        (Database("d"), "d on the local socket:5432"),
        (Database("d", "::1", password="SECRET"), "d on [::1]:5432"),
        (Database("d", "/tmp", user="u"), "d on /tmp:5432 as u"),
    ],
)
def test_a_database_is_shown_without_its_password(database: Database, text: str) -> None:
    assert str(database) == text
    assert "SECRET" not in f"{database!r}"


def test_a_command_does_not_show_its_secrets() -> None:
    command = Command(("/usr/bin/psql", "-X"), secrets=(("PGPASSWORD", "SECRET"),))
    assert command.program == "psql"
    assert "SECRET" not in repr(command)

"""Restoring into a database that is missing or empty: exactly the backup, or exactly as before."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import nasty
import pytest
from benches import FORMATS, LOADED, Bench, Kept, differences
from conftest import Server

SLOW = pytest.mark.slow


EVERY_OBJECT = """
select (select count(*) from pg_class where oid >= 16384) + (select count(*) from pg_proc where oid >= 16384)
  + (select count(*) from pg_type where oid >= 16384) + (select count(*) from pg_namespace where oid >= 16384)
  + (select count(*) from pg_extension where oid >= 16384) + (select count(*) from pg_largeobject_metadata)
  + (select count(*) from pg_default_acl)
"""


def objects(server: Server, database: str) -> int:
    """Count whatever a dump could have left in a database."""
    return int(server.sql(EVERY_OBJECT, database))


ROUND_TRIPS = [
    pytest.param(
        major,
        owned,
        format_,
        into,
        id=f"{major}-{'owner' if owned else 'superuser'}-{format_}-{into}",
        marks=() if quick else SLOW,
    )
    for major in (15, 17, 18)
    for owned in (False, True)
    for format_ in FORMATS
    for into in ("missing", "empty")
    for quick in [
        (major, owned, format_, into)
        in {
            (15, False, "dump", "missing"),
            (17, True, "tar", "empty"),
            (18, False, "dump", "missing"),
            (18, False, "sql.gz", "empty"),
            (18, True, "dump", "empty"),
        }
    ]
]


@pytest.mark.parametrize(("major", "owned", "format_", "into"), ROUND_TRIPS)
def test_everything_comes_back(
    bench_of: Callable[[int], Bench],
    kept: Callable[[int, bool], Kept],
    major: int,
    owned: bool,
    format_: str,
    into: str,
) -> None:
    bench, source = bench_of(major), kept(major, owned)
    database = bench.name()
    if into == "empty":
        bench.server.sql(f"create database {database}" + (f" owner {source.owner.name}" if source.owner else ""))
    url = source.owner.url(bench.server, database) if source.owner else None
    done = bench.restore(f"{source.backups}/{source.name}.{format_}", database, url=url)
    assert done.code == 0, done.err
    assert differences(source, nasty.everything(bench.server, database)) == {}
    assert bench.leftovers() == ""


@pytest.mark.parametrize("format_", [pytest.param("dump", marks=SLOW), "sql"])
@pytest.mark.parametrize(
    "encoding",
    [
        "LATIN1",
        pytest.param("ISO_8859_7", marks=SLOW),
        pytest.param("WIN1252", marks=SLOW),
        pytest.param("EUC_JP", marks=SLOW),
    ],
)
def test_another_encoding(bench: Bench, encoding: str, format_: str) -> None:
    word = {"ISO_8859_7": "Ωμέγα", "EUC_JP": "酒場"}.get(encoding, "Größe é")
    options = f"encoding '{encoding}' template template0 locale_provider libc locale 'C'"
    database = bench.create("", options)
    bench.server.sql(
        f'create table "{word}" ("{word}" text default \'{word}\');'
        f"insert into \"{word}\" select '{word}' || i from generate_series(1, 9) i;"
        f'comment on table "{word}" is \'{word}\'; create schema "{word}.x"; create table "{word}.x".a ()',
        database,
    )
    wanted = nasty.everything(bench.server, database)
    name = bench.backup(database)
    assert set(json.loads((bench.project.backups / f"{name}.info").read_text())["tables"]) == {
        f"public.{word}",
        f"{word}.x.a",
    }
    for target, extra in ((bench.name(), False), (bench.create("", options), True)):
        done = bench.restore(f"backups/postgres/{name}.{format_}", target)
        assert done.code == 0, done.err
        assert nasty.everything(bench.server, target) == wanted, extra


def test_bytes_of_no_encoding(bench: Bench) -> None:
    options = "encoding 'SQL_ASCII' template template0 locale_provider libc locale 'C'"
    database = bench.create("", options)
    bench.server.sql(
        'set client_encoding to sql_ascii; create table "Größe" (t text);'
        "insert into \"Größe\" values (E'\\xff\\xfe'), (E'caf\\xe9\\n'), (E'caf\\xc3\\xa9'), ('')",
        database,
    )
    hashed = "select md5(string_agg(md5(t), '' order by md5(t))) from \"Größe\""
    wanted = bench.server.sql(hashed, database)
    name = bench.backup(database)
    for format_ in FORMATS:
        target = bench.name() if format_ in ("dump", "sql") else bench.create("", options)
        done = bench.restore(f"backups/postgres/{name}.{format_}", target)
        assert done.code == 0, done.err
        assert bench.server.sql(hashed, target) == wanted
        assert bench.server.sql("show server_encoding", target) == "SQL_ASCII"


def test_names_that_only_quotes_can_hold(bench: Bench) -> None:
    database = bench.create(
        """
        create table "new
line" ("col
umn FROM stdin;
" int); insert into "new
line" values (1), (2);
        create schema "a.b"; create schema a; create schema ";";
        create table "a.b".c (id int); insert into "a.b".c values (1);
        create table a."b.c" (id int); insert into a."b.c" values (1), (2);
        create table ";"."; Type: TABLE DATA; Schema: x" (id int);
        insert into ";"."; Type: TABLE DATA; Schema: x" values (1);
        create table "COPY x (y) FROM stdin;" (id int); create table "--" (id int); create table "$$" ("$a$" int);
        create table "E'\\" ("'" int); insert into "E'\\" values (1);
        """
    )
    wanted = bench.server.dump_schema(database)
    name = bench.backup(database)
    for format_ in FORMATS:
        target = bench.name()
        done = bench.restore(f"backups/postgres/{name}.{format_}", target)
        assert done.code == 0, done.err
        assert bench.server.dump_schema(target) == wanted
        counts = (
            'select (select count(*) from "new\nline"), (select count(*) from "a.b".c), (select count(*) from a."b.c")'
        )
        assert bench.server.sql(counts, target) == "2|1|2"


@pytest.mark.slow
def test_pagila(bench: Bench, shared: Path) -> None:
    database = bench.create()
    bench.server.sql("", database, file=shared / "data" / "pagila.sql")
    wanted = nasty.everything(bench.server, database)
    assert len(wanted) > 20
    name = bench.backup(database)
    for format_ in FORMATS:
        target = bench.name() if format_ in ("dump", "sql") else bench.create()
        done = bench.restore(f"backups/postgres/{name}.{format_}", target)
        assert done.code == 0, done.err
        assert nasty.everything(bench.server, target) == wanted, format_


# Versions


@pytest.mark.parametrize("format_", ["dump", *(pytest.param(f, marks=SLOW) for f in FORMATS[1:])])
@pytest.mark.parametrize(
    ("source", "target"),
    [(18, 15), *(pytest.param(*pair, marks=SLOW) for pair in [(15, 17), (15, 18), (17, 18), (17, 15), (18, 17)])],
)
def test_from_version_to_version(
    bench_of: Callable[[int], Bench],
    kept: Callable[[int, bool], Kept],
    source: int,
    target: int,
    format_: str,
) -> None:
    old, bench = kept(source, False), bench_of(target)
    bench.server.sql(nasty.ROLES)
    for into in (bench.name(), bench.create()):
        done = bench.restore(f"{old.backups}/{old.name}.{format_}", into)
        assert done.code == 0, done.err
        other = ("name", "schema", "its provider", "its locale", "its collate", "its ctype")
        wanted = {k: v for k, v in old.everything.items() if k not in other}
        assert {k: v for k, v in nasty.everything(bench.server, into).items() if k in wanted} == wanted


@pytest.mark.parametrize("format_", ["dump", pytest.param("sql", marks=SLOW)])
def test_what_an_older_server_does_not_know_changes_nothing(bench_of: Callable[[int], Bench], format_: str) -> None:
    new, old = bench_of(18), bench_of(15)
    database = new.create(
        "create table a (id int); insert into a values (1); select lo_from_bytea(0, 'x');"
        "create table z (id int, twice int generated always as (id * 2) virtual)"
    )
    name = new.backup(database)
    path = new.project.backups / f"{name}.{format_}"
    missing, empty = old.name(), old.create()
    for target in (missing, empty):
        done = old.restore(str(path), target)
        assert done.code == 1, done.err
        assert "syntax error" in done.json["error"]
    assert not old.has(missing)
    assert objects(old.server, empty) == 0
    assert old.leftovers() == ""


# What belongs to the database


def test_what_an_empty_database_had_of_its_own_gives_way(bench: Bench) -> None:
    database = bench.create("create table t (id int)")
    bench.server.sql(nasty.ROLES)
    wanted = nasty.properties(bench.server, database)
    name = bench.backup(database)
    target = bench.create()
    bench.server.sql(nasty.filled(nasty.OF_THE_DATABASE, target))
    bench.server.sql(f"alter role {nasty.READER} in database {target} set work_mem to '1MB'")
    assert nasty.properties(bench.server, target) != wanted
    assert bench.restore(name, target).code == 0
    assert nasty.properties(bench.server, target) == wanted


def test_an_empty_list_and_a_roles_setting_come_back(bench: Bench) -> None:
    database = bench.create()
    bench.server.sql(nasty.ROLES)
    bench.server.sql(
        f"alter database {database} set search_path to ''; alter database {database} set temp_tablespaces to 'a,b', c;"
        f"alter role {nasty.READER} in database {database} set search_path to 'x y', \"$user\""
    )
    wanted = nasty.properties(bench.server, database)
    name = bench.backup(database)
    for target in (bench.name(), bench.create()):
        done = bench.restore(name, target)
        assert done.code == 0
        assert nasty.properties(bench.server, target) == wanted, done.err


def test_a_locale_or_role_that_is_not_here_is_said_and_left_out(bench: Bench, small: str) -> None:
    info = bench.project.backups / f"{small}.info"
    document = json.loads(info.read_text())
    document["database"] |= {
        "collate": "xx_XX.UTF-8",
        "ctype": "xx_XX.UTF-8",
        "locale_provider": "c",
        "locale": None,
        "owner": "nobody_here",
        "settings": [{"role": "nor_he", "name": "work_mem", "value": "1MB"}],
    }
    info.write_text(json.dumps(document))
    done = bench.restore(small, target := bench.name())
    assert done.code == 0, done.err
    assert "no locale xx_XX.UTF-8" in done.err
    assert "no role nobody_here, nor_he" in done.err
    assert bench.server.sql("select count(*) from s.t", target) == "500"


# Refused


@pytest.mark.parametrize(
    "sql",
    [
        "create table t (id int); insert into t values (1)",
        *(
            pytest.param(sql, marks=SLOW)
            for sql in (
                "create function f() returns int language sql as 'select 1'",
                "create schema s",
                "select lo_create(0)",
                "create type mood as enum ('a')",
                "create type pair as (a int)",
                "create domain d as int",
                "create view v as select 1",
                "create sequence s",
                "create publication p",
            )
        ),
    ],
)
def test_what_is_to_be_new_or_empty_is_not_replaced(bench: Bench, small: str, sql: str) -> None:
    database = bench.create(sql)
    wanted = nasty.everything(bench.server, database)
    for args in (("--into", database), ("--schema-only",)):
        done = bench.restore(small, database if "--schema-only" in args else "postgres", *args)
        assert done.code == 2, done.err
        assert "is not empty" in done.json["error"]
        assert done.json["try"]
    assert nasty.everything(bench.server, database) == wanted


def test_an_extension_alone_does_not(bench: Bench) -> None:
    name = bench.backup(bench.create("create extension hstore; create table t (h hstore)"))
    target = bench.create("create extension hstore")
    done = bench.restore(name, target)
    assert done.code == 0, done.err
    assert bench.server.sql("select count(*) from t", target) == "0"


def test_who_may_not_create_databases_is_told_so(bench: Bench, small: str) -> None:
    owner, missing = nasty.make_owner(bench.server, createdb=False), bench.name()
    done = bench.restore(small, missing, url=owner.url(bench.server, missing))
    assert done.code == 2
    assert "may not create databases" in done.json["error"]
    assert missing in done.json["try"]
    assert not bench.has(missing)
    assert bench.leftovers() == ""


def test_nobody_says_yes(bench: Bench, small: str) -> None:
    bench.project.use(bench.server.url(missing := bench.name()))
    done = bench.project.inv("db.restore", small)
    assert done.code == 2
    assert "--force" in done.err
    assert not bench.has(missing)


@pytest.mark.parametrize("format_", ["dump", *(pytest.param(f, marks=SLOW) for f in FORMATS[1:])])
def test_a_damaged_file_is_refused_before_anything_is_touched(bench: Bench, small: str, format_: str) -> None:
    path = bench.project.backups / f"{small}.{format_}"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)
    missing, empty = bench.name(), bench.create()
    for target in (missing, empty):
        done = bench.restore(f"backups/postgres/{small}.{format_}", target)
        assert done.code == 1
        assert "not touched" in done.json["error"]
    assert not bench.has(missing)
    assert objects(bench.server, empty) == 0


# All or nothing


def _end_badly(bench: Bench, path: Path, statement: str, **changed: object) -> None:
    """Put a statement before the last words of a plain dump, and have `.info` agree with it."""
    raw = path.read_bytes()
    head, mark, tail = raw.rpartition(b"\n--\n-- PostgreSQL database dump complete")
    path.write_bytes(head + b"\n" + statement.encode() + b"\n" + mark + tail)
    info = path.with_suffix(".info")
    document = json.loads(info.read_text())
    raw = path.read_bytes()
    document["files"][".sql"] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    info.write_text(json.dumps(document))


FAILURES = [
    ("create table s.t (id int);", 'relation "t" already exists'),
    ("alter table s.t owner to nobody_of_this_name;", "nobody_of_this_name"),
    ("create extension nothing_of_this_name;", "nothing_of_this_name"),
    ("delete from s.t where id = 7;", "s.t has 499 rows after the restore; the backup has 500"),
    ("drop table s.t;", "s.t has no rows after the restore; the backup has 500"),
    ("select 1/0;", "division by zero"),
]


@pytest.mark.parametrize(
    ("statement", "reason", "how"),
    # Without .info nobody knows how many rows there were.
    [
        *(pytest.param(s, r, "with its .info", marks=() if "rows" in r else SLOW) for s, r in FAILURES),
        *(pytest.param(s, r, "foreign", marks=() if "zero" in r else SLOW) for s, r in FAILURES if "rows" not in r),
    ],
)
def test_a_load_that_fails_at_its_end_leaves_nothing(
    bench: Bench, small: str, statement: str, reason: str, how: str
) -> None:
    path = bench.project.backups / f"{small}.sql"
    _end_badly(bench, path, statement)
    if how == "foreign":
        path = Path(shutil.copy(path, bench.project.path / "theirs.txt"))
    missing, empty = bench.name(), bench.create()
    before = nasty.everything(bench.server, empty)
    for target in (missing, empty):
        done = bench.restore(str(path), target)
        assert done.code == 1, done.err
        assert reason in done.json["error"]
        # What we call it while it is being filled is nobody's business.
        assert target in done.json["error"]
        assert "Traceback" not in done.err
    assert not bench.has(missing)
    assert objects(bench.server, empty) == 0
    assert nasty.everything(bench.server, empty) == before
    assert bench.leftovers() == ""


def test_a_missing_role_fails_with_its_name(bench: Bench) -> None:
    role = f"gone_{secrets.token_hex(4)}"
    bench.server.sql(f"create role {role}")
    database = bench.create(LOADED + f"alter table s.t owner to {role}")
    name = bench.backup(database)
    bench.server.sql(f"drop database {database}")
    bench.server.sql(f"drop role {role}")
    missing, empty = bench.name(), bench.create()
    for format_ in FORMATS:
        done = bench.restore(f"backups/postgres/{name}.{format_}", missing if format_ in ("dump", "sql") else empty)
        assert done.code == 1, done.err
        assert role in done.json["error"]
    assert not bench.has(missing)
    assert objects(bench.server, empty) == 0
    assert bench.leftovers() == ""


def test_the_scratch_database_of_a_dead_run_is_dropped_by_the_next(bench: Bench, small: str) -> None:
    theirs, ours = "pg_backup_tasks_mine", "pg_backup_tasks_0000dead"
    bench.made += [theirs, ours]
    bench.server.sql(f"create database {theirs}")
    bench.server.sql(f"create database {ours}")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip() if Path("/proc").is_dir() else ""
    presence = "|".join(x for x in ("999999999", "12345", boot, os.uname().nodename) if x)
    bench.server.sql(f"comment on database {ours} is 'pg_backup_tasks_{presence}'")
    done = bench.restore(small, bench.name())
    assert done.code == 0, done.err
    assert f"Dropped {ours}" in done.err
    assert bench.leftovers() == theirs

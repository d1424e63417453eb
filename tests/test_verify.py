"""Is a backup whole: every flipped bit and every cut found and named, and a restore proven."""

from __future__ import annotations

import hashlib
import json
import random
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nasty
import pytest
from benches import desk_of
from conftest import TASKS, Project, Ran, Server

from pg_backup_tasks import verify
from pg_backup_tasks.embedded import EmbeddedServer

FORMATS = ("dump", "tar", "sql.gz", "sql")
FILLED = """
create table guests (id int primary key, name text);
insert into guests select i, md5(i::text) from generate_series(1, 3000) i;
create table empty (id int); create table nothing ();
create view v as select count(*) from guests;
create function f() returns int language sql as 'select 1';
select lo_from_bytea(11, decode(repeat('00ff', 4000), 'hex'));
"""


@dataclass
class Shelf:
    """A backup that a test may damage, taken once and copied for each."""

    project: Project
    name: str

    def path(self, extension: str) -> Path:
        return self.project.backups / f"{self.name}.{extension}"

    def verify(self, *args: str, what: str | None = None, **kwargs: object) -> Ran:
        return self.project.inv("db.verify", what or self.name, "--json", *args, **kwargs)  # type: ignore[arg-type]

    def problems(self, *args: str) -> list[str]:
        """Verify; return the problems, after a look at the exit code."""
        done = self.verify(*args)
        found = done.json["backups"][0]
        assert found["ok"] is (done.code == 0)
        assert done.code in (0, 3), done.err
        assert "Traceback" not in done.err
        return list(found["problems"])

    def edit(self, **changes: object) -> None:
        path = self.path("info")
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def taken(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, str]]:
    database = f"verified_{secrets.token_hex(4)}"
    server.sql(f"create database {database}")
    server.sql(FILLED, database)
    path = tmp_path_factory.mktemp("taken")
    (path / "tasks.py").write_text(TASKS)
    project = Project(path)
    project.use(server.url(database))
    done = project.inv("db.backup", "--json")
    assert done.code == 0, done.err
    yield path, done.json["name"], database
    server.sql(f"drop database {database} with (force)")


@pytest.fixture
def shelf(taken: tuple[Path, str, str], tmp_path: Path) -> Shelf:
    path, name, _ = taken
    copy = tmp_path / "project"
    shutil.copytree(path, copy, symlinks=True)
    return Shelf(Project(copy), name)


def test_what_is_removed_meanwhile_keeps_nobody_from_the_others(shelf: Shelf) -> None:
    old = "backup_manual_20200101_000000"
    for name in (old, "backup_manual_20200102_000000"):
        shutil.copy(shelf.path("dump"), shelf.project.backups / f"{name}.dump")
        (shelf.project.backups / f"{name}.info").write_text("an old script's")
    desk = desk_of(shelf.project)
    found = desk.store.backups()
    (shelf.project.backups / f"{found[1].name}.dump").unlink()
    (shelf.project.backups / f"{found[1].name}.info").unlink()
    verdicts = verify.verify_all(desk, found)
    assert [(v.name, v.ok) for v in verdicts] == [(shelf.name, True), (old, True)]


def judge(shelf: Shelf) -> verify.Verdict:
    desk = desk_of(shelf.project)
    found = desk.store.by_name(shelf.name)
    assert found
    return verify.verify(desk, found)


# Every byte


@pytest.mark.parametrize("format_", FORMATS)
def test_a_flipped_bit_anywhere_is_found_and_named(shelf: Shelf, format_: str) -> None:
    path, chance = shelf.path(format_), random.Random(format_)
    raw = path.read_bytes()
    size = len(raw)
    places = {0, 1, 5, 9, 257, 300, 511, 512, size - 1, size - 2, size - 9, size - 600, size - 1024}
    places |= {size * i // 24 for i in range(24)} | {chance.randrange(size) for _ in range(15)}
    for other in FORMATS:
        if other != format_:  # only this one is looked at: the others are whole
            shelf.path(other).unlink()
    for place in sorted(places):
        damaged = bytearray(raw)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        problems = judge(shelf).problems
        assert [p for p in problems if p.startswith(f".{format_} ") and "missing" not in p], place
    path.write_bytes(raw)
    assert not [p for p in judge(shelf).problems if "missing" not in p]


@pytest.mark.parametrize("format_", FORMATS)
def test_a_cut_anywhere_is_found_and_named(shelf: Shelf, format_: str) -> None:
    path = shelf.path(format_)
    raw = path.read_bytes()
    for length in (0, 1, 4, 100, 512, 1024, len(raw) // 2, len(raw) - 1024, len(raw) - 512, len(raw) - 2, len(raw) - 1):
        path.write_bytes(raw[:length])
        assert any(p.startswith(f".{format_} has {length:,} bytes") for p in judge(shelf).problems)
    path.write_bytes(raw + b"\0")
    assert any(p.startswith(f".{format_} has") for p in judge(shelf).problems)


@pytest.mark.parametrize("format_", FORMATS)
def test_damage_is_told_with_exit_code_3(shelf: Shelf, format_: str) -> None:
    assert shelf.problems() == []
    path = shelf.path(format_)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 16
    path.write_bytes(raw)
    (problem,) = shelf.problems()
    assert problem.startswith(f".{format_} ")
    assert "SHA-256" in problem
    said = shelf.project.inv("db.verify", shelf.name)
    assert said.code == 3
    assert f"{shelf.name}: NOT HEALTHY" in said.out
    assert problem in said.out
    assert said.err.splitlines()[-1] == (
        "Try: inv db.verify all says which others are whole; inv db.backup takes a new one"
    )


def test_without_checksums_what_can_be_found_is_found(shelf: Shelf) -> None:
    """An old script's set: cut files always, a bit where the format itself has a check (see test_archive)."""
    shelf.path("info").write_text("Backup Information\nType: manual\n")
    assert judge(shelf).ok
    assert not judge(shelf).checked
    for format_ in FORMATS:
        path = shelf.path(format_)
        raw = path.read_bytes()
        for length in (0, 1, 300, len(raw) // 2, len(raw) * 9 // 10, len(raw) - 513):
            path.write_bytes(raw[:length])
            assert [p for p in judge(shelf).problems if p.startswith(f".{format_} ")], (format_, length)
        path.write_bytes(raw)
    least = {"dump": 12, "sql.gz": 24, "tar": 0, "sql": 0}
    for format_ in FORMATS:
        path, chance = shelf.path(format_), random.Random(1)
        raw = path.read_bytes()
        found = 0
        for i in range(25):
            damaged = bytearray(raw)
            damaged[min(12 + len(raw) * i // 25, len(raw) - 1)] ^= 1 << chance.randrange(8)
            path.write_bytes(damaged)
            found += not judge(shelf).ok
        path.write_bytes(raw)
        assert found >= least[format_], format_


# The set


def test_a_missing_file_is_named(shelf: Shelf) -> None:
    shelf.path("tar").unlink()
    assert shelf.problems() == [".tar is missing"]
    for format_ in ("dump", "sql", "sql.gz"):
        shelf.path(format_).unlink()
    assert shelf.problems() == ["has no dump file left"]


def test_a_backup_without_info_was_never_finished(shelf: Shelf) -> None:
    shelf.path("info").unlink()
    assert shelf.problems() == ["has no .info: it was never finished"]


@pytest.mark.parametrize("how", ["cut", "empty", "first byte", "a letter of a key"])
def test_a_damaged_info_is_not_taken_for_an_old_scripts(shelf: Shelf, how: str) -> None:
    path = shelf.path("info")
    raw = path.read_bytes()
    damaged = {
        "cut": raw[: len(raw) // 2],
        "empty": b"",
        "first byte": b"z" + raw[1:],
        "a letter of a key": raw.replace(b'"sha256"', b'"sha25v"', 1),
    }
    path.write_bytes(damaged[how])
    assert shelf.problems() == [".info is damaged"]
    done = shelf.project.inv("db.restore", shelf.name, "--force")
    assert "its .info is damaged" in done.err


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"tables": {"public.guests": 2999, "public.empty": 0, "public.nothing": 0}}, "rows of public.guests"),
        ({"tables": {"public.waiters": 1}}, "no rows of public.waiters"),
        ({"files": {".dump": {"bytes": 1, "sha256": "0" * 64}}}, ".dump has"),
        ({"name": "backup_manual_20200101_000000"}, ".info is that of backup_manual_20200101_000000"),
    ],
)
def test_an_edited_info_contradicts_the_files(shelf: Shelf, change: dict[str, object], part: str) -> None:
    shelf.edit(**change)
    assert any(part in problem for problem in shelf.problems())


def test_the_info_of_another_backup_is_found(shelf: Shelf) -> None:
    done = shelf.project.inv("db.backup", "--json")
    assert done.code == 0, done.err
    shutil.copy(shelf.project.backups / f"{done.json['name']}.info", shelf.path("info"))
    assert f".info is that of {done.json['name']}" in shelf.problems()


def test_all_of_them_and_the_bad_one_named(shelf: Shelf) -> None:
    second = shelf.project.inv("db.backup", "--json").json["name"]
    done = shelf.verify(what="all")
    assert done.code == 0
    assert {b["name"] for b in done.json["backups"]} == {shelf.name, second}
    shelf.path("sql").write_bytes(b"nothing")
    done = shelf.verify(what="all")
    assert done.code == 3
    assert {b["name"]: b["ok"] for b in done.json["backups"]} == {shelf.name: False, second: True}
    said = shelf.project.inv("db.verify", "all")
    assert f"{second}: whole" in said.out
    assert f"{shelf.name}: NOT HEALTHY" in said.out
    assert f"Try: {second} is the newest that is whole; inv db.backup takes a new one" in said.err
    (shelf.project.backups / "backup_manual_20991122_143022.info").write_text("an old script's")
    (shelf.project.backups / "backup_manual_20991122_143022.sql").write_bytes(
        (shelf.project.backups / f"{second}.sql").read_bytes()
    )
    said = shelf.project.inv("db.verify", "all")
    assert "backup_manual_20991122_143022: reads to its end" in said.out
    assert f"Try: {second} is the newest that is whole; inv db.backup takes a new one" in said.err


def test_the_latest_is_verified_whole_or_not_and_restored_only_whole(shelf: Shelf) -> None:
    older = Shelf(shelf.project, "backup_manual_20200101_000000")
    for extension in (*FORMATS, "info"):
        shutil.copy(shelf.path(extension), older.path(extension))
    older.edit(name=older.name)
    raw = shelf.path("dump").read_bytes()
    shelf.path("dump").write_bytes(raw[:-100])
    for words in (["latest"], ["latest:manual", "--restore"]):
        done = shelf.project.inv("db.verify", *words)
        assert (done.code, done.out.splitlines()[0]) == (3, f"{shelf.name}: NOT HEALTHY")
        assert f".dump has {len(raw) - 100:,} bytes" in done.out
        assert "Warning" not in done.err
    planned = shelf.project.inv("--dry", "db.restore", "latest")
    assert planned.code == 0
    assert f"Warning: {shelf.name} is newer and not whole" in planned.err
    assert older.name in planned.err.splitlines()[-1]
    # What was never finished is no news to whoever verifies: a run may be at work on it.
    shelf.path("info").unlink()
    assert judge_latest(shelf) == older.name


def judge_latest(shelf: Shelf) -> str:
    (found,) = shelf.verify(what="latest").json["backups"]
    return str(found["name"])


def test_verifying_opens_no_connection(shelf: Shelf) -> None:
    shelf.project.use("postgresql://nobody@127.0.0.1:1/nothing")
    assert shelf.problems() == []


def test_a_dump_beside_the_folder_is_verified_by_its_path(shelf: Shelf) -> None:
    path = shelf.project.path / "copy of it"
    shutil.copy(shelf.path("dump"), path)
    assert shelf.verify(what=str(path)).code == 0
    path.write_bytes(path.read_bytes()[:-100])
    assert shelf.verify(what=str(path)).code == 3


# The proof


def scratches(server: Server) -> str:
    return server.sql("select string_agg(datname, ' ') from pg_database where datname like 'pg\\_backup\\_tasks\\_%'")


@pytest.mark.parametrize("format_", [None, *(pytest.param(f, marks=pytest.mark.slow) for f in FORMATS)])
def test_a_restore_is_proven_and_the_proof_kept(shelf: Shelf, server: Server, format_: str | None) -> None:
    what = f"backups/postgres/{shelf.name}.{format_}" if format_ else shelf.name
    done = shelf.verify("--restore", what=what)
    assert done.code == 0, done.err
    proof = done.json["backups"][0]["restored"]
    assert set(proof) == {"at", "server_version", "seconds"}
    assert proof["server_version"].startswith("18")
    assert json.loads(shelf.path("info").read_text())["restored"] == proof
    assert shelf.path("info").stat().st_mode & 0o777 == 0o600
    assert shelf.problems() == []
    assert scratches(server) == ""
    if format_ is None:
        listed = shelf.project.inv("db.list", "--json").json["backups"][0]
        assert listed["restored_at"] == proof["at"]


def test_a_backups_own_checks_are_no_restore(shelf: Shelf) -> None:
    assert json.loads(shelf.path("info").read_text())["restored"] is None
    assert shelf.verify().json["backups"][0]["restored"] is None


def test_a_damaged_one_is_not_even_tried(shelf: Shelf, server: Server) -> None:
    shelf.path("sql").write_bytes(shelf.path("sql").read_bytes().replace(b"Name: f()", b"Name: g()"))
    assert shelf.problems("--restore")
    assert json.loads(shelf.path("info").read_text())["restored"] is None
    assert scratches(server) == ""


def test_one_that_does_not_restore_is_bad(shelf: Shelf, server: Server) -> None:
    """Its files are what was written, and still no server takes them."""
    broken = shelf.path("sql").read_bytes().replace(b"CREATE VIEW public.v AS", b"CREATE VIEW public.v OF")
    for format_ in ("dump", "tar", "sql.gz"):
        shelf.path(format_).unlink()
    shelf.path("sql").write_bytes(broken)
    shelf.edit(files={".sql": {"bytes": len(broken), "sha256": hashlib.sha256(broken).hexdigest()}})
    (problem,) = shelf.problems("--restore")
    assert problem.startswith("does not restore: ")
    assert "syntax error" in problem
    assert json.loads(shelf.path("info").read_text())["restored"] is None
    assert scratches(server) == ""


def test_who_may_not_create_databases_gets_a_server_of_our_own(shelf: Shelf, server: Server) -> None:
    owner = nasty.make_owner(server, createdb=False)
    shelf.project.use(owner.url(server, "postgres"))
    done = shelf.verify("--restore")
    assert done.code == 0, done.err
    assert "a server of our own" in done.err
    assert done.json["backups"][0]["restored"]


def test_what_only_another_user_may_make_is_untestable_not_bad(shelf: Shelf, server: Server) -> None:
    owner = nasty.make_owner(server, createdb=True)
    shelf.project.use(owner.url(server, "postgres"))
    said = shelf.project.inv("db.verify", shelf.name, "--restore")
    assert said.code == 0, said.err
    assert "cannot be tested here" in said.out
    found = shelf.verify("--restore").json["backups"][0]
    assert (found["ok"], found["problems"], found["restored"]) == (True, [], None)
    assert "must be able to SET ROLE" in found["untestable"]
    assert shelf.verify().json["backups"][0]["untestable"] is None
    assert json.loads(shelf.path("info").read_text())["restored"] is None
    assert scratches(server) == ""


@pytest.mark.slow
def test_roles_of_the_old_server_are_not_needed_on_our_own(
    shelf: Shelf, servers: Callable[[int], Server], taken: tuple[Path, str, str]
) -> None:
    server, role = servers(18), f"gone_{secrets.token_hex(4)}"
    source = f"owned_{secrets.token_hex(4)}"
    server.sql(f"create role {role}")
    server.sql(f"create database {source} owner {role}")
    try:
        server.sql(
            f"create table t (id int); alter table t owner to {role}; grant select on t to {role};"
            f"alter default privileges for role {role} grant select on tables to public;"
            f"create function f() returns text language sql as $$ select '\nALTER TABLE t OWNER TO {role};\n' $$",
            source,
        )
        shelf.project.use(server.url(source))
        name = shelf.project.inv("db.backup", "--json").json["name"]
    finally:
        server.sql(f"drop database {source}")
        server.sql(f"drop role {role}")
    owner = nasty.make_owner(server, createdb=False)
    shelf.project.use(owner.url(server, "postgres"))
    done = shelf.verify("--restore", what=name)
    assert done.code == 0, done.err
    assert done.json["backups"][0]["restored"]
    # On the real server, which lacks the role, it cannot be tried; that is nothing bad of the backup.
    shelf.project.use(server.url("postgres"))
    done = shelf.verify("--restore", what=name)
    assert done.code == 0, done.err
    said = shelf.project.inv("db.verify", name, "--restore")
    assert said.code == 0
    assert "cannot be tested here" in said.out
    assert role in said.out


@pytest.fixture
def with_extension(server: Server, short_tmp: Path) -> Iterator[Server]:
    """A server that has an extension of our own, with a table whose rows are the user's; the others lack it."""
    folder = short_tmp / "more" / "extension"
    folder.mkdir(parents=True)
    (folder / "barkeeper.control").write_text("default_version = '1.0'\nrelocatable = true\n")
    (folder / "barkeeper--1.0.sql").write_text(
        "create table bar_settings (name text, value text);"
        "insert into bar_settings values ('shipped', '1');"
        "select pg_catalog.pg_extension_config_dump('bar_settings', $$where name <> 'shipped'$$);"
    )
    for part in (folder.parent, folder):
        part.chmod(0o755)  # the server may be another user
    control = {"extension_control_path": f"$system:{folder.parent}"}
    with EmbeddedServer(server.embedded.bin, settings=control) as embedded:
        yield Server(embedded, server.major)


@pytest.mark.slow
def test_an_extension_that_is_lacking_makes_it_untestable_not_bad(
    shelf: Shelf, server: Server, with_extension: Server
) -> None:
    with_extension.sql("create database barkept")
    with_extension.sql(
        "create extension barkeeper; insert into bar_settings values ('mine', '2'); create table t (id int);"
        "insert into t values (1)",
        "barkept",
    )
    shelf.project.use(with_extension.url("barkept"))
    done = shelf.project.inv("db.backup", "--json")
    assert done.code == 0, done.err
    name = done.json["name"]
    assert "barkeeper" in done.json["extensions"]
    proven = shelf.verify("--restore", what=name)
    assert proven.code == 0, proven.err
    assert proven.json["backups"][0]["restored"]
    for format_ in FORMATS:
        for target in (f"missing_{format_}", f"empty_{format_}"):
            database = target.replace(".", "_")
            if target.startswith("empty"):
                with_extension.sql(f"create database {database}")
            shelf.project.use(with_extension.url(database))
            restored = shelf.project.inv("db.restore", f"backups/postgres/{name}.{format_}", "--force")
            assert restored.code == 0, restored.err
            rows = with_extension.sql("select string_agg(name || value, ' ' order by name) from bar_settings", database)
            assert rows == "mine2 shipped1"
    shelf.project.use(server.url("postgres"))
    said = shelf.project.inv("db.verify", name, "--restore")
    assert said.code == 0, said.err
    assert "cannot be tested here: this server lacks the extension barkeeper" in said.out
    told = shelf.verify("--restore", what=name).json["backups"][0]
    assert told["untestable"] == "this server lacks the extension barkeeper"
    assert scratches(server) == ""
    missing = f"r_{secrets.token_hex(4)}"
    shelf.project.use(server.url(missing))
    refused = shelf.project.inv("db.restore", name, "--force", "--json")
    assert refused.code == 1
    assert "barkeeper" in refused.json["error"]
    assert server.sql(f"select count(*) from pg_database where datname = '{missing}'") == "0"

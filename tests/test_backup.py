"""A backup: five files of one snapshot, checked, published whole, described."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
from conftest import Project, Server, clean_environ, slowly

SMALL = """
create table guests (id int primary key, name text);
insert into guests select i, 'Guest ' || i from generate_series(1, 500) i;
create schema "Bar Back"; create table "Bar Back"."Größe" (id int);
insert into "Bar Back"."Größe" select generate_series(1, 7);
create table nothing ();
create table empty (id int);
"""


def test_five_files_checked_and_described(ready: Project, server: Server, database: str) -> None:
    server.sql(SMALL, database)
    done = ready.inv("db.backup", "--description", "before v2", "--json")
    assert done.code == 0, done.err
    info = done.json
    name = info["name"]
    files = {f".{p.name.partition('.')[2]}": p for p in ready.backups.glob(f"{name}.*")}
    assert set(files) == {".dump", ".tar", ".sql", ".sql.gz", ".info"}
    assert json.loads(files[".info"].read_text()) | {"path": info["path"]} == info
    for extension, recorded in info["files"].items():
        raw = files[extension].read_bytes()
        assert recorded == {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    assert info["tables"] == {"Bar Back.Größe": 7, "public.empty": 0, "public.guests": 500, "public.nothing": 0}
    assert info["description"] == "before v2"
    assert info["database"]["name"] == database
    assert ready.hidden_files() == []


@pytest.mark.parametrize("formats", ["tar,sql", *slowly("dump,tar,sql,sql.gz")])
def test_the_lines_that_say_how_to_restore_do_it(project: Project, server: Server, database: str, formats: str) -> None:
    name = f"{database}'s $HOME"
    server.sql(f'create database "{name}"')
    try:
        server.sql(SMALL, name)
        project.use(server.url(name))
        info = project.inv("db.backup", "--formats", formats, "--json").json
        ours, *without = info["restore"]
        assert (ours, len(without)) == (f"inv db.restore {info['name']}", 2)
        path = f"{server.embedded.bin}{os.pathsep}{os.environ['PATH']}"
        env = {**clean_environ(), **server.embedded.environment(), "PATH": path}
        for line in without:
            server.sql(f'drop database "{name}" with (force)')
            subprocess.run(["sh", "-c", line], cwd=project.backups, env=env, check=True, capture_output=True)
            assert server.sql('select count(*) from "Bar Back"."Größe"', name) == "7"
    finally:
        server.sql(f'drop database if exists "{name}" with (force)')


def test_only_the_owner_may_look(ready: Project) -> None:
    assert ready.inv("db.backup").code == 0
    assert stat.S_IMODE(ready.backups.stat().st_mode) == 0o700
    modes = {stat.S_IMODE(p.stat().st_mode) for p in ready.backups.iterdir()}
    assert modes == {0o600}


def test_latest_points_at_the_newest_and_loses_what_was_not_made(ready: Project) -> None:
    assert ready.inv("db.backup").code == 0
    second = ready.inv("db.backup", "--formats", "dump", "--json").json["name"]
    links = {p.name: p.readlink().name for p in ready.backups.iterdir() if p.is_symlink()}
    assert links == {
        "backup_manual_latest.dump": f"{second}.dump",
        "backup_manual_latest.info": f"{second}.info",
    }


PRISMA = """
create table _prisma_migrations (id text, migration_name text, started_at timestamptz default now(),
  finished_at timestamptz, rolled_back_at timestamptz);
insert into _prisma_migrations values ('b', '2', '2026-02-01', now(), null),
  ('a', '1', '2026-01-01', now(), null), ('c', '3', '2026-03-01', null, null), ('d', '4', '2026-04-01', now(), now());
"""
DRIZZLE = """
create schema drizzle; create table drizzle.__drizzle_migrations (id serial, hash text);
insert into drizzle.__drizzle_migrations (id, hash) values (10, 'ten'), (9, 'nine');
"""


@pytest.mark.parametrize(
    ("sql", "applied"),
    [
        ("create table t (id int)", None),
        (PRISMA, ["1", "2"]),
        (DRIZZLE, ["nine", "ten"]),
        ("create table schema_migrations (version int); insert into schema_migrations values (20), (3)", ["3", "20"]),
        # Of another tool, or of our user's own making.
        ("create table flyway_schema_history (x int); insert into flyway_schema_history values (1)", []),
        ("create table _prisma_migrations (migration_name text); insert into _prisma_migrations values ('x')", []),
    ],
    ids=["none", "prisma", "drizzle", "rails", "other", "prisma of other columns"],
)
def test_the_migrations_applied_are_in_its_info(
    ready: Project, server: Server, database: str, sql: str, applied: list[str] | None
) -> None:
    server.sql(sql, database)
    done = ready.inv("db.backup", "--json", "--formats", "dump")
    assert done.code == 0, done.err
    assert done.json["migrations"] == applied


def test_the_commit_is_the_projects_also_within_a_hook(ready: Project, tmp_path: Path) -> None:
    commits = []
    for folder in (ready.path, tmp_path / "other"):
        folder.mkdir(exist_ok=True)
        git = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x"]
        for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", folder.name]):
            subprocess.run([*git, *words], check=True, env=clean_environ())
        asked = subprocess.run([*git, "rev-parse", "HEAD"], check=True, env=clean_environ(), capture_output=True)
        commits.append(asked.stdout.decode().strip())
    hook = {"GIT_DIR": str(tmp_path / "other" / ".git"), "GIT_WORK_TREE": str(tmp_path / "other")}
    info = ready.inv("db.backup", "--formats", "sql", "--json", env=hook).json
    assert info["git"]["commit"] == commits[0]

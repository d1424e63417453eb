"""Less than a whole dump into a database that is in use, as a restore sends it: one transaction through psql."""

from __future__ import annotations

import io
import json
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nasty
from conftest import Server, clean_environ

from pg_backup_tasks import archive, catalog, postgres, url
from pg_backup_tasks.loading import Part
from pg_backup_tasks.model import Item
from pg_backup_tasks.process import PsqlSession, converse
from pg_backup_tasks.sqltext import SqlDump

HEAD = ("ENCODING", "STDSTRINGS", "SEARCHPATH")


@dataclass(frozen=True)
class Dump:
    """A dump, its objects, and the rows of its tables."""

    raw: bytes
    items: tuple[Item, ...]
    rows: dict[str, int]


@dataclass(frozen=True)
class Live:
    """A database of an owner who is no superuser."""

    server: Server
    owner: nasty.Owner
    name: str

    def sql(self, sql: str) -> str:
        """Run statements as the owner."""
        done = self._run("psql", "-XAtq", "--set=ON_ERROR_STOP=1", "--file=-", given=sql.encode())
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def rows(self) -> dict[str, str]:
        """Return each table's own rows, counted and hashed, whatever the tables are called."""
        names = json.loads(
            self.server.sql(
                "select coalesce(json_agg(json_build_array(n.nspname, c.relname)), '[]') from pg_class c"
                " join pg_namespace n on n.oid = c.relnamespace where c.relkind = 'r'"
                " and n.nspname not like 'pg\\_%' and n.nspname <> 'information_schema'",
                self.name,
            )
        )
        hashes = ", ".join(
            f"{postgres.literal('.'.join(pair))}, (select count(*) || ' ' || coalesce(md5(string_agg(r::text, chr(10)"
            f" order by r::text collate \"C\")), '') from only {'.'.join(map(postgres.identifier, pair))} r)"
            for pair in names
        )
        found: dict[str, str] = json.loads(self.server.sql(f"select json_build_object({hashes})", self.name))
        return found

    def dump(self, format_: str = "custom", *options: str) -> Dump:
        """Dump it as the owner: `custom` or `plain`."""
        done = self._run("pg_dump", f"--format={format_}", *options)
        assert done.returncode == 0, done.stderr.decode()
        if format_ == "plain":
            read = SqlDump(headings=True)
            read.feed(done.stdout)
            return Dump(done.stdout, tuple(read.items), read.rows)
        contents, _ = archive.read_contents(io.BytesIO(done.stdout))
        rows = archive.scan_custom(io.BytesIO(done.stdout))
        return Dump(done.stdout, tuple(contents.entries.values()), rows)

    def load(self, dump: Dump, part: Part, tmp_path: Path) -> str:
        """Send the part through psql in one transaction; return what went wrong, or nothing."""
        rows = {t: n for t, n in dump.rows.items() if part.counted is None or t in part.counted}
        script = b"".join(
            (
                f"begin;\nset local lock_timeout = '5s';\n{part.before}".encode(),
                self._wanted(dump, part, tmp_path),
                f"{part.after}{catalog.check_rows(rows)}commit;\n".encode(),
            )
        )
        done = self._run("psql", "-Xq", "--set=ON_ERROR_STOP=1", "--output=/dev/null", "--file=-", given=script)
        assert done.returncode in (0, 3), done.stderr.decode()
        return done.stderr.decode() if done.returncode else ""

    def _wanted(self, dump: Dump, part: Part, tmp_path: Path) -> bytes:
        if not any(item.id for item in dump.items):
            edited = SqlDump(one_transaction=True, one_database=True, leave_out=lambda item: not part.wanted(item))
            return edited.feed(dump.raw) + edited.close()
        wanted = tmp_path / "wanted.list"
        wanted.write_text("".join(f"{i.id};\n" for i in dump.items if i.kind in HEAD or part.wanted(i)))
        done = self._run("pg_restore", "--file=-", f"--use-list={wanted}", given=dump.raw)
        assert done.returncode == 0, done.stderr.decode()
        edited = SqlDump(one_transaction=True, one_database=True)
        return edited.feed(done.stdout) + edited.close()

    def _run(self, program: str, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        target = () if program == "pg_restore" else (f"--dbname={self.owner.url(self.server, self.name)}",)
        return subprocess.run(
            [str(self.server.embedded.bin / program), *arguments, *target],
            env={**clean_environ(), "PGPASSWORD": self.owner.password},
            input=given,
            capture_output=True,
            check=False,
        )

    @contextmanager
    def session(self) -> Iterator[PsqlSession]:
        """Hold a session as the owner."""
        tools = postgres.Tools(str(self.server.embedded.bin), f"{self.server.major}.0")
        database = url.parse(self.owner.url(self.server, self.name), "a test").database
        with converse(postgres.psql(tools, database)) as session:
            yield session


@contextmanager
def live(server: Server, sql: str) -> Iterator[Live]:
    """Make a database with an owner of its own, filled by that owner."""
    owner = nasty.make_owner(server, createdb=False)
    name = f"p_{secrets.token_hex(4)}"
    server.sql(f"create database {name} owner {owner.name}")
    made = Live(server, owner, name)
    try:
        made.sql(sql)
        yield made
    finally:
        server.sql(f"drop database {name} with (force)")
        server.sql(f"drop owned by {owner.name}; drop role {owner.name}")

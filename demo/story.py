"""`inv demo`: the whole story on a server of its own, with the commands a user would type."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rich import box
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from pg_backup_tasks import signals
from pg_backup_tasks.embedded import EmbeddedServer
from pg_backup_tasks.errors import Failed

NAME = "happy_bar"
_WIDTH = 80
_PATIENCE = 30.0
_HERE = Path(__file__).parent
_BACKUP = ("db.backup", "--description", "a year of the Happy Bar")

_TASKS = """\
from invoke import Collection

import pg_backup_tasks as db

ns = Collection(db)
ns.configure(db.config())
"""

# One SELECT per thing whose rows must come back; psql runs what it prints (\gexec). The hash is
# over all rows as text, sorted, because a restored table owes us its rows, not their order on disk.
_FINGERPRINTS = r"""
SET timezone = 'UTC';
SELECT format('SELECT %L, count(*), md5(string_agg(r::text, chr(10) ORDER BY r::text COLLATE "C"))'
              ' FROM %s r', kind || ' ' || what, rows)
FROM (
    SELECT CASE relkind WHEN 'r' THEN 1 ELSE 2 END,
           CASE relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' ELSE 'materialized view' END,
           relname, oid::regclass::text
    FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v', 'm')
    UNION ALL VALUES
    (3, 'sequences', 'and last values',
     '(SELECT sequencename, last_value, increment_by FROM pg_sequences)'),
    (3, 'large objects', 'and bytes',
     '(SELECT oid, lo_get(oid) FROM pg_largeobject_metadata)'),
    (4, 'database', 'owner, grants, settings',
     '(SELECT datdba::regrole, pg_encoding_to_char(encoding), datcollate, setconfig,
              ARRAY(SELECT grants::text FROM unnest(datacl) grants ORDER BY 1),
              shobj_description(d.oid, ''pg_database'')
       FROM pg_database d LEFT JOIN pg_db_role_setting ON setdatabase = d.oid
       WHERE datname = current_database())')
) AS things (place, kind, what, rows)
ORDER BY place, kind DESC, what
\gexec
"""

_BAD_MIGRATION = """
ALTER TABLE order_items DROP COLUMN price CASCADE;  -- and two views with it
UPDATE guests SET name = 'migrated';
CREATE TABLE guests_v2 (id int);
"""
_DAMAGE = "SELECT count(DISTINCT name) || ' names of ' || count(*) || ' guests' FROM guests"

Fingerprints = dict[str, tuple[int, str]]


def tell(root: Path) -> int:
    """Show a database being backed up, spoilt, brought back, lost and brought back; *root* is this repository.

    Returns 0, or the exit code of the first command that failed. Raises TaskError when there is no
    PostgreSQL to show it with, or when it is interrupted; either way nothing is left behind.
    """
    console = _console()
    temporary = tempfile.TemporaryDirectory(prefix="happy-bar-")
    with signals.interruptible(), temporary as project, EmbeddedServer() as server:
        code = _Story(root, Path(project), server, console).tell()
    if code == 0:
        console.print(
            "\n[bold green]Every row is back.[/] The server and all its files are gone already.\n"
            "Now yours: DATABASE_URL into packages/database/.env, then"
            " [bold]scripts/inv db.backup[/]."
        )
    return code


class _Story:
    def __init__(self, root: Path, project: Path, server: EmbeddedServer, console: Console) -> None:
        self.root = root
        self.project = project
        self.server = server
        self.console = console
        self.step = 0

    def tell(self) -> int:
        self._open_the_bar()
        before = self._fingerprints()
        self._say_what_there_is(before)
        code = (
            self._type("Take a backup: five files, one snapshot", *_BACKUP)
            or self._type("See what is on the shelf", "db.list")
            or self._type("Read every byte of it again", "db.verify", "latest")
            or self._migrate_badly()
            or self._type("Back to before it, in one switch", "db.restore", "latest", "--force")
            or self._prove(before, self._fingerprints(), "Every row is back")
            or self._type("Second thoughts? What it replaced was kept", "db.undo", "--force")
            or self._show_the_damage()
            or self._lose_everything()
            or self._type("Bring it back", "db.restore", "latest", "--force")
        )
        return code or self._prove(before, self._fingerprints(), "The proof: every row counted and hashed")

    def _open_the_bar(self) -> None:
        self._heading("A bar with one year behind it")
        database = self.project / "packages" / "database"
        database.mkdir(parents=True)
        (self.project / "tasks.py").write_text(_TASKS)
        env_file = database / ".env"
        env_file.touch(mode=0o600)
        env_file.write_text(f'DATABASE_URL="{self.server.url(NAME)}"\n')
        self._psql("postgres", "--command", f"CREATE DATABASE {NAME}")
        self._psql(NAME, "--file", str(_HERE / "happy_bar.sql"))

    def _say_what_there_is(self, before: Fingerprints) -> None:
        tables = [count for what, (count, _) in before.items() if what.startswith("table ")]
        self.console.print(
            f"PostgreSQL {self.server.version}, here for this story only, and in it {NAME}:\n"
            f"{sum(tables):,} rows in {len(tables)} tables, views, a trigger, a large object."
        )

    def _type(self, sentence: str, *arguments: str) -> int:
        self._heading(sentence)
        self._show_command("scripts/inv", *arguments)
        command = [sys.executable, "-m", "invoke", *arguments]
        code = _run(command, self.project, _clean_environment({"PYTHONPATH": str(self.root)}))
        if code:
            self.console.print(f"\nThe story ends here: that command failed (exit {code}).")
        return code

    def _migrate_badly(self) -> int:
        self._heading("A migration goes wrong, and half of it stays")
        self.console.print(Text(_BAD_MIGRATION.strip(), style="cyan"))
        self._psql(NAME, "--file", "-", sql=_BAD_MIGRATION)
        return self._show_the_damage()

    def _show_the_damage(self) -> int:
        self._show_command("psql", "-c", _DAMAGE)
        self.console.print(self._psql(NAME, "--command", _DAMAGE).strip())
        return 0

    def _lose_everything(self) -> int:
        self._heading("Lose everything")
        drop = f"DROP DATABASE {NAME}"
        self._show_command("psql", "-c", drop)
        self.console.print(self._psql("postgres", "--command", drop).strip())
        return 0

    def _prove(self, before: Fingerprints, after: Fingerprints, sentence: str) -> int:
        self._heading(sentence)
        if before == after and sentence.startswith("Every"):
            rows = sum(count for what, (count, _) in after.items() if what.startswith("table "))
            self.console.print(f"All {rows:,} rows, and {len(after)} hashes as they were before the migration.")
            return 0
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
        table.add_column("", no_wrap=True)
        table.add_column("rows", justify="right")
        for title in ("md5 before", "md5 after", ""):
            table.add_column(title)
        for what in before | after:
            table.add_row(*_row(what, before.get(what), after.get(what)))
        self.console.print(table)
        if before != after:
            self.console.print("[bold red]This is not the database it was.[/]")
        return int(before != after)

    def _heading(self, sentence: str) -> None:
        self.step += 1
        if self.step > 1:
            self.console.print()
        title = Text(f"{self.step}. {sentence}", style="bold")
        self.console.print(Rule(title, align="left", style="dim"))

    def _show_command(self, *words: str) -> None:
        typed = " ".join(f'"{word}"' if " " in word else word for word in words)
        self.console.print(Text(f"$ {typed}", style="cyan"))

    def _fingerprints(self) -> Fingerprints:
        found: Fingerprints = {}
        for line in self._psql(NAME, "--file", "-", sql=_FINGERPRINTS).splitlines():
            what, count, md5 = line.split("|")
            found[what] = (int(count), md5)
        found["schema, lines of pg_dump"] = self._schema()
        return found

    def _schema(self) -> tuple[int, str]:
        # Newer versions of pg_dump begin and end with \restrict and a key that is never the same.
        dump = self._postgres_tool("pg_dump", NAME, "--schema-only")
        lines = [line for line in dump.splitlines() if not re.match(r"\\(un)?restrict ", line)]
        return len(lines), hashlib.md5("\n".join(lines).encode(), usedforsecurity=False).hexdigest()

    def _psql(self, database: str, *arguments: str, sql: str = "") -> str:
        options = ["--no-psqlrc", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1"]
        quiet = ["--quiet"] if "--file" in arguments else []
        return self._postgres_tool("psql", database, *options, *quiet, *arguments, text=sql)

    def _postgres_tool(self, tool: str, database: str, *arguments: str, text: str = "") -> str:
        done = subprocess.run(
            [self.server.bin / tool, *arguments],
            env=_clean_environment(self.server.environment(database)),
            input=text,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        # A terminal's Ctrl-C reached it as well.
        signals.check()
        if done.returncode:
            raise Failed(f"{tool} failed in the demo's database: {done.stderr.strip()}")
        return done.stdout


def _console() -> Console:
    usual = Console(highlight=False)
    plain = bool(os.environ.get("NO_COLOR"))
    return Console(
        highlight=False,
        width=min(_WIDTH, usual.width),
        color_system=None if plain else "auto",
    )


def _row(what: str, before: tuple[int, str] | None, after: tuple[int, str] | None) -> list[str]:
    none = (0, "nothing")
    (count, md5), (count_now, md5_now) = before or none, after or none
    same = before == after
    rows = f"{count:,}" if count == count_now else f"{count:,} / {count_now:,}"
    verdict = "[green]same[/]" if same else "[bold red]DIFFERS[/]"
    return [what, rows, md5[:12], md5_now[:12], verdict]


def _clean_environment(added: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment without anything that could lead to another database."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PG", "INVOKE_"))
        and name not in ("DATABASE_URL", "DIRECT_URL", "DATABASE_URL_UNPOOLED")
    }
    return {**kept, **added}


def _run(command: list[str], folder: Path, environment: Mapping[str, str]) -> int:
    process = subprocess.Popen(command, cwd=folder, env=environment)
    try:
        code = process.wait()
    except BaseException:
        _end(process)
        raise
    return code if code >= 0 else 128 - code


def _end(process: subprocess.Popen[bytes]) -> None:
    # A terminal's Ctrl-C reached it as well; a signal sent to us alone did not.
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

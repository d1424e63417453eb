"""A run that must fail well: its exit code, its one sentence, and nothing left of it anywhere."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from conftest import ROOT, Project, Ran, Server, clean_environ

DEADLINE = 20.0
HOLDER = "test_holder"
# What a run says on its way, before the sentence that ends it.
_ON_THE_WAY = re.compile(
    r"(Database|Parameters|Dumping|Restoring|Reading|Backup  |From  |Into  |Lost  |How  |backup_\w+: no checksum)"
)
# Read by every Python that starts with its folder in PYTHONPATH: writes down what commands it runs, and may take
# PostgreSQL's tools out of sight.
_SPY = """\
import importlib.util, os, sys

def spy(event, args):
    if event == "subprocess.Popen":
        with open(os.environ["SPY_LOG"], "a") as log:
            log.write(repr(args[1]) + "\\n")

sys.addaudithook(spy)
if "SPY_HIDE_TOOLS" in os.environ:
    find_spec = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name.endswith("_postgres") else find_spec(name, *rest)
    import pg_backup_tasks.shell as shell
    places = shell.TOOLS.partition('for folder in "$@"')[2].partition("\\ndo\\n")[0]
    assert "/usr/lib/postgresql" in places
    shell.TOOLS = shell.TOOLS.replace(places, "")
"""
# The programs that the shell texts and the tasks themselves call.
_UTILITIES = ("cat", "ls", "ln", "mv", "ps", "rm", "sh", "sleep", "tr", "uname")


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Return once *condition* holds; fail if it does not within DEADLINE."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE:.0f} s for: {what}"
        time.sleep(0.02)


def processes() -> list[tuple[int, str]]:
    """Return the number and the command line of every process."""
    done = subprocess.run(["ps", "-axww", "-o", "pid=,args="], capture_output=True, text=True, check=True)
    pairs = (line.strip().partition(" ") for line in done.stdout.splitlines())
    return [(int(pid), arguments) for pid, _, arguments in pairs]


@contextmanager
def holding(server: Server, database: str, sql: str) -> Iterator[Callable[[], None]]:
    """Be another session that has begun a transaction, run *sql* in it, and sits on its locks.

    Yields what ends it before the block does.
    """
    with subprocess.Popen(
        [str(server.embedded.bin / "psql"), "-XAtq", "--set=ON_ERROR_STOP=1"],
        env={**clean_environ(), **server.embedded.environment(database), "PGAPPNAME": HOLDER},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as psql:
        assert psql.stdin
        assert psql.stdout
        psql.stdin.write(f"begin; {sql}; select 'held';\n")
        psql.stdin.flush()
        assert psql.stdout.readline() == "held\n"

        def release() -> None:
            assert psql.stdin
            psql.stdin.close()
            psql.wait()

        yield release
        release()


@dataclass
class Trial:
    """A project on a real database, whose runs are watched."""

    project: Project
    server: Server
    database: str
    secrets: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        site = self.project.path.parent / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(_SPY)
        self._spied = site / "spied"
        self._spied.touch()
        self.project.environ |= {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "SPY_LOG": str(self._spied)}
        self.secrets.add(self.server.embedded.environment()["PGPASSWORD"])

    def end(self) -> None:
        """Drop the user that `role` made."""
        name = f"{self.database}_u"
        if self.server.sql(f"select count(*) from pg_roles where rolname = '{name}'") == "1":
            self.server.sql(f"drop owned by {name} cascade", self.database)
            self.server.sql(f"drop role {name}")

    def url(self, user: str, password: str, database: str | None = None) -> str:
        """Return the URL of a login that is not the superuser's."""
        self.secrets.add(password)
        return f"postgresql://{user}:{password}@127.0.0.1:{self.server.embedded.port}/{database or self.database}"

    def role(self, options: str = "") -> tuple[str, str]:
        """Create a user who may do nothing yet, named after the database; return its name and password."""
        name, password = f"{self.database}_u", secrets.token_hex(12)
        self.server.sql(f"create role {name} login password '{password}' {options}")
        self.secrets.add(password)
        return name, password

    def hide_tools(self) -> dict[str, str]:
        """Return the variables under which no PostgreSQL tools are found but those in INVOKE_DB_PG_BIN."""
        folder = self.project.path.parent / "utilities"
        folder.mkdir()
        for name in _UTILITIES:
            for place in ("/bin", "/usr/bin"):
                if Path(place, name).exists() and not (folder / name).exists():
                    (folder / name).symlink_to(Path(place, name))
        return {"SPY_HIDE_TOOLS": "1", "PATH": str(folder)}

    def fails(self, *args: str, code: int, says: str, tries: str | None, env: Mapping[str, str] | None = None) -> Ran:
        """Run `inv ARGS --json`, which must fail as said and leave nothing; see `judge`."""
        before = self.project.final_files()
        ran = self.project.inv(*args, "--json", env=env)
        self.judge(ran, before, code=code, says=says, tries=tries)
        return ran

    def judge(self, ran: Ran, before: list[str], *, code: int, says: str, tries: str | None) -> None:
        """Hold a failed run's words, code and remains against what they must be.

        *before* is what lay in the backup folder, *says* a pattern in its sentence, *tries* one in its `Try:` line
        (None: it has no such line).
        """
        told = f"{ran.out}\n{ran.err}"
        assert ran.code == code, told
        assert "Traceback" not in told
        assert "bug in pg_backup_tasks" not in told
        sentence, hint = _last_words(ran.err)
        assert re.search(says, sentence), told
        assert (tries is None) == (hint is None), told
        assert tries is None or re.search(tries, hint or ""), told
        assert ran.json == {"error": sentence, "try": hint, "exit": code}
        assert self.project.final_files() == before
        self.leaves_nothing(ran)

    def leaves_nothing(self, ran: Ran) -> None:
        """Hold what a run that has ended left behind against nothing at all, its final files apart."""
        # What the last restore changed is remembered for db.undo.
        assert self.project.hidden_files() == []
        wait_until(lambda: not self.ours(), f"the end of {self.ours()}")
        if "psql" in self.spied():
            wait_until(lambda: self.sessions() == 0, "the end of every session")
        self.shows_no_secret(ran.out, ran.err)

    def shows_no_secret(self, *said: str) -> None:
        """No password in what was said, in a command line, or in a file a run wrote."""
        written = [p.read_text(errors="replace") for p in self.project.path.rglob("*") if _is_written(p)]
        everything = "\n".join([*said, *written, self._spied.read_text()])
        assert [s for s in self.secrets if s in everything] == []

    def spied(self) -> str:
        """Return every command that runs have started so far."""
        return self._spied.read_text()

    def ours(self) -> list[tuple[int, str]]:
        """Return the processes that work on this database or for this project, the server's own apart."""
        mine = (self.database, str(self.project.path))
        return [
            (pid, arguments)
            for pid, arguments in processes()
            if any(name in arguments for name in mine) and not arguments.startswith("postgres:")
        ]

    def sessions(self) -> int:
        """Return how many sessions on the database are not the tests' own."""
        sql = f"select count(*) from pg_stat_activity where datname = '{self.database}'"
        return int(self.server.sql(f"{sql} and application_name <> '{HOLDER}'"))


@contextmanager
def on_trial(project: Project, server: Server, database: str) -> Iterator[Trial]:
    """Let a project use a database and watch its runs."""
    project.use(server.url(database))
    trial = Trial(project, server, database)
    try:
        yield trial
    finally:
        trial.end()


def _last_words(err: str) -> tuple[str, str | None]:
    """Return the sentence and the hint that end a failed run; nothing else may stand there."""
    lines = err.splitlines()
    while lines and _ON_THE_WAY.match(lines[0]):
        lines.pop(0)
    assert 1 <= len(lines) <= 2, err
    sentence, hint = lines[0], lines[1] if lines[1:] else None
    assert sentence.endswith(".") and not sentence.endswith(".."), sentence
    assert not re.search(r"[.!?] [A-Z]", sentence), sentence
    if hint is None:
        return sentence, None
    assert hint.startswith("Try: "), err
    return sentence, hint.removeprefix("Try: ")


def _is_written(path: Path) -> bool:
    return path.is_file() and path.name not in (".env", "invoke.yaml", "tasks.py")

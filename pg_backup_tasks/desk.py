"""What every workflow needs at once: settings, a machine, its shelf, its database, and someone to tell."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from . import lock
from .errors import Failed, Refused
from .journal import Journal
from .machine import CommandError, Machine, Session
from .migration import Migrations
from .model import Database
from .settings import Settings
from .store import Backup, Store

# What looks after the shelf asks no database: what that takes is imported where it is used.
if TYPE_CHECKING:
    from .catalog import Server
    from .environment import Choice
    from .postgres import Tools


class Gauge(Protocol):
    """Progress being shown."""

    def update(self, done: Mapping[str, int]) -> None:
        """Show how many bytes each part has now."""
        ...


class Reporter(Protocol):
    """Whoever the workflows talk to; only report.py knows how it looks."""

    def speak_of(self, host: str) -> None:
        """From now on the talk is of the machine called *host*; empty for this one."""
        ...

    def hide(self, secret: str, shown: Iterable[str] = ()) -> None:
        """Never show *secret* from now on, but what is *shown* all the same."""
        ...

    def say(self, text: str) -> None: ...

    def warn(self, text: str, *, loud: bool = False) -> None:
        """Say what somebody should look at; a *loud* one also where only errors are wanted."""
        ...

    def note(self, text: str) -> None:
        """Write to the log only."""
        ...

    def gauge(self, title: str, expected: Mapping[str, int]) -> AbstractContextManager[Gauge]: ...

    def confirm(self, question: str) -> bool: ...

    def ask(self, question: str) -> str: ...

    def pick(self, backups: list[Backup]) -> Backup: ...


@dataclass(frozen=True)
class Connection:
    """A session on a database, the server behind it, and the tools that fit that server."""

    database: Database
    session: Session
    server: Server
    tools: Tools


@dataclass
class Desk:
    """Everything in reach; made once for each run."""

    settings: Settings
    machine: Machine
    report: Reporter
    environ: Mapping[str, str]
    cwd: str
    clock: Callable[[], datetime]
    sleep: Callable[[float], None]
    more_tools: Callable[[], list[str]]
    run: str = ""
    """Which run of CI this is, empty where it is none."""

    @cached_property
    def store(self) -> Store:
        """The backup folder."""
        return Store(self.machine, self.settings.under_root(self.settings.backups), self.clock, self.report.warn)

    def find(self, word: str, *, whole: bool = True) -> Backup:
        """Return the backup that BACKUP means; `latest` is a *whole* one, else the newest that was ever finished."""
        broken = self._warn_of if whole else lambda backup: backup.has_info
        return self.store.find(word, self.cwd, self.report.pick, broken)

    def _warn_of(self, newer: Backup) -> bool:
        self.report.warn(f"{newer.name} is newer and not whole; inv db.verify {newer.name} says what is wrong with it.")
        return False

    @cached_property
    def choice(self) -> Choice:
        """The database to work on, found anew by every run and told to the user."""
        from . import environment

        name = self.settings.env_file
        place = f"{name} on {self.machine.name}" if self.machine.name else name
        choice = environment.choose(
            environment.read_env_file(self._env_file(), place),
            place,
            self.environ,
            source=self.settings.source,
            allow_pooler=self.settings.allow_pooler,
        )
        self._hide_password(choice.database)
        self.report.say(f"Database {choice.database} (from {choice.database.source})")
        if choice.left_out:
            self.report.say(f"Parameters that PostgreSQL's tools do not know, left out: {', '.join(choice.left_out)}")
        return choice

    def _env_file(self) -> str:
        try:
            raw = self.machine.read(self.settings.under_root(self.settings.env_file))
        except OSError as error:
            raise Failed(
                f"The file {self.settings.env_file} cannot be read: {error.strerror}.",
                hint="let this user read it, or set INVOKE_DB_ENV_FILE to another file",
            ) from None
        return (raw or b"").decode("utf-8", "surrogateescape")

    def _hide_password(self, database: Database) -> None:
        names = (database.name, database.user, database.host, self.machine.name)
        folders = (self.settings.root, self.settings.env_file, self.store.folder)
        self.report.hide(database.password, (*names, *folders))

    @property
    def journal(self) -> Journal:
        """The journal that lies with the backups."""
        return Journal(self.machine, self.store.folder)

    @property
    def migrations(self) -> Migrations:
        """What is remembered of migrations, which lies with the backups."""
        return Migrations(self.machine, self.store.folder)

    @cached_property
    def tools(self) -> list[Tools]:
        """Every set of client tools on the machine."""
        from . import postgres

        own = self.settings.under_root(self.settings.pg_bin) if self.settings.pg_bin else ""
        found = postgres.parse_tools(self.machine.tools([*filter(None, [own]), *self.more_tools()]))
        if own and own not in (tools.folder for tools in found):
            raise Refused(
                f"{own}, which the setting pg_bin names, has no psql, pg_dump and pg_restore in it.",
                hint="leave INVOKE_DB_PG_BIN out, and they are looked for",
            )
        return found

    @contextmanager
    def connect(self, database: Database) -> Iterator[Connection]:
        """Hold a session on *database* for this block.

        Raises Unreachable where there is no way in; whatever psql refuses in the block becomes a sentence.
        """
        from . import catalog, postgres

        self._hide_password(database)
        any_tools = postgres.any_tools(self.tools)
        command = postgres.psql(any_tools, self._with_timeout(database))
        try:
            with self.machine.session(command) as session:
                catalog.be_patient(session)
                server = catalog.server(session)
                tools = postgres.choose_tools(self.tools, server.major)
                yield Connection(database, session, server, tools)
        except CommandError as error:
            if error.command is not command:
                raise
            self.report.note(error.done.err)
            raise postgres.explain(error, database, "use") from None

    def _with_timeout(self, database: Database) -> Database:
        given = dict(database.parameters)
        given.setdefault("connect_timeout", str(self.settings.connect_timeout))
        return replace(database, parameters=tuple(sorted(given.items())))

    @contextmanager
    def at_work(self, task: str, wait: float) -> Iterator[None]:
        """Hold the backup folder's lock, the folder made and the remains of dead runs cleared."""
        folder = self.store.folder
        self._refuse_what_others_need(folder)
        with ExitStack() as stack:
            with self._usable(folder):
                if mode := self.machine.make_folder(folder):
                    self.report.say(f"{folder} was open to others ({mode}); only its owner can enter it now.")
                held = lock.hold(self.machine, folder, task, self.clock, wait, self._tell_who)
                unfinished = self.store.clear_remains(stack.enter_context(held))
            for name in unfinished:
                self.report.say(f"Cleared what an earlier run left of {name}, which it never finished.")
            yield

    def _refuse_what_others_need(self, folder: str) -> None:
        """Raise Refused where the backup folder is the repository, somebody's home or above one of them."""
        # Of another machine's links nothing is known here.
        real = os.path.normpath if self.machine.name else os.path.realpath
        within = [self.settings.root] if self.machine.name else [self.settings.root, os.path.expanduser("~")]
        if any(f"{real(each)}/".startswith(f"{real(folder).rstrip('/')}/") for each in within):
            raise Refused(
                f"{folder} cannot be the backup folder: it would be closed to everybody else.",
                hint="set INVOKE_DB_BACKUPS to a folder of its own, as backups/postgres",
            )

    def _tell_who(self, holder: lock.Holder) -> None:
        self.report.say(f"Waiting for the end of {holder.task}, at work since {holder.since}.")

    @contextmanager
    def _usable(self, folder: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            remedy = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "let this user make and write it"
            raise Failed(
                f"The backup folder {folder} cannot be used: {error.strerror}.",
                hint=f"{remedy}, or set INVOKE_DB_BACKUPS to another folder",
            ) from None

"""What a machine can do, here or there: the verbs every workflow is written in."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from .errors import Failed, Refused
from .model import Command, Digest, Format, Item

if TYPE_CHECKING:
    from .sqltext import SqlDump

T = TypeVar("T")

Progress = Callable[[int], None]

_LINE_END = re.compile(rb"(\r\n|\n|\r)")
_LONGEST_LINE = 1 << 20


@dataclass(frozen=True)
class Done:
    """A finished command: its exit code and what it said, decoded leniently."""

    code: int
    out: str
    err: str


class Entry(NamedTuple):
    """One name in a folder; *target* is where a symbolic link points."""

    name: str
    bytes: int = 0
    target: str | None = None
    is_file: bool = True


@dataclass(frozen=True)
class Survey(Generic[T]):
    """A folder's files by their names, their sizes in bytes and what has been made of their texts, and its links."""

    sizes: dict[str, int]
    texts: dict[str, T]
    links: dict[str, str]
    """Where each symbolic link points."""


@dataclass(frozen=True)
class Examined:
    """A dump file read to its end: its digest, the rows of each table, and what is wrong with it."""

    digest: Digest
    rows: dict[str, int] | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Derived:
    """What an archive's SQL became: the rows of each table, the digests of the files written."""

    rows: dict[str, int]
    complete: bool
    plain: Digest | None
    packed: Digest | None


@dataclass(frozen=True)
class Load:
    """A stream of SQL for psql: what goes first, where the dump comes from, what goes last.

    *reader* prints the SQL of the archive given to it as standard input; without it *path* is plain SQL, packed
    or not. What sqltext.SqlDump leaves out is said by the other two.
    """

    psql: Command
    path: str
    codec: str
    reader: Command | None = None
    before: str = ""
    after: str = ""
    skip_settings: frozenset[str] = frozenset()
    skip_restrict: bool = False
    skip_owners: bool = False
    leave_out: Callable[[Item], bool] | None = None

    def editor(self) -> SqlDump:
        """Return what turns the dump's SQL into what psql is to be sent."""
        from .sqltext import SqlDump

        return SqlDump(
            self.codec,
            skip_settings=self.skip_settings,
            skip_restrict=self.skip_restrict,
            skip_owners=self.skip_owners,
            leave_out=self.leave_out,
            one_transaction=bool(self.before),
            one_database=True,
        )


class CommandError(Failed):
    """A command ended with a code that is not 0; *done* has what it said."""

    def __init__(self, command: Command, done: Done) -> None:
        said = done.err.strip().splitlines()
        last = said[-1] if said else f"exit code {done.code}"
        super().__init__(f"{command.program} failed: {last}")
        self.command = command
        self.done = done


class Job(Protocol):
    """A command at work beside us; leaving its `with` block ends it."""

    def poll(self) -> int | None: ...

    def wait(self) -> Done: ...


class Followed(Job, Protocol):
    """A command at work beside us that we listen to."""

    def lines(self) -> Iterator[bytes]:
        """Yield what it prints, line by line and without their ends, as it comes; it may end before its output does."""
        ...

    def stop(self) -> None:
        """End it, and whatever it has started."""
        ...


class Session(Protocol):
    """psql with a connection held open; leaving its `with` block ends both."""

    def ask(self, sql: str, patience: float | None = None) -> str:
        """Run *sql* and return what it printed; raise CommandError where the server refuses it.

        With *patience* the session ends, and so does the waiting, after so many seconds.
        """
        ...

    def attempt(self, sql: str) -> str | None:
        """Run *sql*; return None, or the error where the server refuses it, the session living on."""
        ...

    def end(self) -> None:
        """End it at once; whoever waits for an answer goes on, with a CommandError."""
        ...


class Machine(Protocol):
    """A computer with a shell, a disk and PostgreSQL's client tools; paths are absolute and its own."""

    name: str
    glance: float
    """How many seconds apart it is worth looking how much has been done."""

    def run(self, command: Command) -> Done:
        """Run *command* to its end, its standard input empty; what it prints must be small."""
        ...

    def start(self, command: Command) -> AbstractContextManager[Job]:
        """Start *command*, which writes its own files."""
        ...

    def follow(self, command: Command) -> AbstractContextManager[Followed]:
        """Start *command* to listen to what it prints."""
        ...

    def session(self, command: Command) -> AbstractContextManager[Session]:
        """Start psql reading statements from us."""
        ...

    def examine(
        self, path: str, format_: Format, codec: str, writer: Job | None = None, reader: Command | None = None
    ) -> Examined:
        """Read a dump file to its end, unpacking it; with *writer* while that is still writing it.

        *reader* prints an archive's SQL, where the machine cannot read one without.
        """
        ...

    def contents(self, path: str, format_: Format, codec: str) -> tuple[Item, ...] | None:
        """Return the objects a whole dump file holds, None where only its own pg_restore could say."""
        ...

    def digest(self, path: str) -> Digest:
        """Return a file's size and SHA-256."""
        ...

    def derive(
        self,
        reader: Command,
        archive: str,
        codec: str,
        *,
        plain: str | None,
        packed: str | None,
        writer: Job | None = None,
    ) -> Derived:
        """Run *reader* on the *archive* given to it as standard input, its SQL into the files named, on disk."""
        ...

    def load(self, load: Load, progress: Progress) -> Done:
        """Send a dump through psql; psql gets the last words only if the dump came whole."""
        ...

    def bring(self, files: Mapping[str, str], progress: Callable[[str, int], None]) -> Generator[Digest, None, None]:
        """Copy files of that machine, by path, to others on the one we run on; yield their digests as they have come.

        *progress* is told of each path how many bytes more there are; flush() makes the files last.
        """
        ...

    def tools(self, extra: Sequence[str]) -> list[tuple[str, str]]:
        """Return (folder, version text) for each set of PostgreSQL's client tools; *extra* folders first."""
        ...

    def entries(self, folder: str, starting: str = "") -> list[Entry] | None:
        """Return what is in *folder* under names *starting* so; None without a folder."""
        ...

    def survey(
        self, folder: str, starting: tuple[str, ...], ending: str, make: Callable[[bytes], T]
    ) -> Survey[T] | None:
        """Return the sizes of *folder*'s files under names *starting* so or so, and the texts of those *ending* so.

        *make* is given each text, an empty one where it may not be read, and makes of it what is wanted. A link is
        not followed, and what is neither file nor link is left out; None without a folder.
        """
        ...

    def sizes(self, paths: Sequence[str]) -> list[int]:
        """Return the files' sizes in bytes, 0 for one that is not there (yet)."""
        ...

    def read(self, path: str) -> bytes | None:
        """Return a small file's bytes, None if it is not there."""
        ...

    def sniff(self, path: str) -> Format | None:
        """Return the dump format that a file's first bytes show, None for anything else."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Put *data* under *path* at once, on disk and readable by its owner only."""
        ...

    def make_folder(self, path: str) -> str:
        """Make *path* and what leads to it; nobody but its owner can enter it then, unless it is one that all share.

        Returns the mode it had, as `ls` shows it, where others could. Raises Refused instead of shutting them out of
        what is no backup folder: one that has folders in it, and no backup.
        """
        ...

    def remove_tree(self, path: str) -> None:
        """Remove a folder of ours with all that is in it; one that is gone is fine."""
        ...

    def flush(self, paths: Sequence[str]) -> None:
        """Return when these files and folders are on disk, the files readable by their owner only."""
        ...

    def publish(self, steps: Sequence[tuple[str, ...]]) -> None:
        """Do `("move", from, to)`, `("link", target, name)`, `("remove", name)` in order, even if we die."""
        ...

    def free(self, folder: str) -> int:
        """Return the bytes this user can still write below *folder* (or its nearest parent that exists)."""
        ...

    def presence(self) -> str:
        """Return who holds what we lock: a process that lives exactly as long as this run."""
        ...

    def alive(self, presence: str) -> bool:
        """Whether the run that calls itself *presence* still lives, or cannot be told to be dead."""
        ...

    def claim(self, path: str, text: str) -> bool:
        """Create the link *path* that says *text*, in one step; False if it exists."""
        ...

    def claimed(self, path: str) -> str | None:
        """Return what the link *path* says, None if there is none."""
        ...

    def remove(self, *paths: str) -> None:
        """Remove files or links; one that is gone is fine.

        One that cannot be removed keeps none of the others here; what was wrong is raised in the end.
        """
        ...

    def cancel(self) -> None:
        """Let what works in the background end soon; nothing is asked of this machine's dumps afterwards."""
        ...


# Folders of a disk of its own, and of what we had no time to clear.
_OF_NO_MATTER = re.compile(r"lost\+found|\.(?:partial_.*|cleared_.*|fetching)")


def serves_something_else(entries: Iterable[tuple[str, bool]]) -> bool:
    """Whether a folder of these names, each with whether it is a folder itself, has others' folders and no backup."""
    others = False
    for name, is_folder in entries:
        if name.startswith("backup_"):
            return False
        others = others or (is_folder and not _OF_NO_MATTER.fullmatch(name))
    return others


def not_for_backups(folder: str) -> Refused:
    """Return the refusal to shut everybody else out of a folder that serves something else."""
    return Refused(
        f"{folder} cannot be the backup folder: there are other folders in it and no backups, and it would be closed "
        "to everybody else.",
        hint="set INVOKE_DB_BACKUPS to a folder of its own, as backups/postgres; or close it yourself: chmod go= of it",
    )


def lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of what comes in *pieces*, without their ends; a line that is written over is one as well."""
    held: list[bytes] = []
    size, over = 0, False
    for piece in pieces:
        # The second half of an end whose first was one already.
        text = piece[1:] if over and piece.startswith(b"\n") else piece
        over = piece.endswith(b"\r")
        *ended, rest = _LINE_END.split(text)
        for line, end in zip(ended[::2], ended[1::2], strict=True):
            whole = b"".join((*held, line))
            held, size = [], 0
            if whole or end != b"\r":
                yield whole
        held.append(rest)
        size += len(rest)
        if size > _LONGEST_LINE:
            yield b"".join(held)
            held, size = [], 0
    if size:
        yield b"".join(held)


def presence(number: str, identity: Sequence[str]) -> str:
    """Return who holds what we lock: a process's *number*, and what tells it from others that had that number."""
    return "|".join((number, *identity))


def lives(presence: str, identify: Callable[[str], list[str]]) -> bool:
    """Whether a process that said who it is still lives, or cannot be told to be dead.

    *identify* says it again: what tells the process from others, then the boot and the computer's name.
    """
    number, *then = presence.split("|")
    if not number.isdecimal() or not number.isascii():
        return True
    now = identify(number)
    if not then or not now or then[-1] != now[-1]:
        return True  # another computer's, seen through a shared disk: not for us to say
    return then == now

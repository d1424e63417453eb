"""This computer, behind the verbs of machine.py."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from pathlib import Path

from . import machine, process, shell, signals, survey
from .machine import CommandError, Derived, Done, Entry, Examined, Followed, Job, Load, Progress, Session, Survey, T
from .model import Command, Digest, Format, Item

# How many at a time remove files, and for how many that is worth it.
_REMOVERS = 16
_WORTH_SHARING = 1000


class Here:
    """The machine we run on."""

    name = ""
    glance = 0.1

    def __init__(self) -> None:
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Let everything that reads or writes in the background end soon."""
        self._cancelled.set()

    # Commands

    def run(self, command: Command) -> Done:
        return process.run(command)

    def start(self, command: Command) -> AbstractContextManager[Job]:
        return process.Process(command)

    def follow(self, command: Command) -> AbstractContextManager[Followed]:
        return process.Process(command, output=True)

    def session(self, command: Command) -> AbstractContextManager[Session]:
        return process.converse(command)

    def tools(self, extra: Sequence[str]) -> list[tuple[str, str]]:
        done = self.run(Command(("/bin/sh", "-c", shell.TOOLS, "tools", *extra)))
        found = [line.split("\t", 1) for line in done.out.splitlines() if "\t" in line]
        return [(folder, version) for folder, version in found]

    # Dumps: what reads and writes them is loaded by whoever does

    def examine(
        self,
        path: str,
        format_: Format,
        codec: str,
        writer: Job | None = None,
        reader: Command | None = None,  # noqa: ARG002 - we read it ourselves
    ) -> Examined:
        from . import bulk

        return bulk.examine(path, format_, codec, writer, self._cancelled)

    def contents(self, path: str, format_: Format, codec: str) -> tuple[Item, ...] | None:
        from . import bulk

        return bulk.contents(path, format_, codec, self._cancelled)

    def digest(self, path: str) -> Digest:
        from . import bulk

        return bulk.digest(path, self._cancelled)

    def sniff(self, path: str) -> Format | None:
        from . import bulk

        return bulk.sniff(path, self._cancelled)

    def bring(self, files: Mapping[str, str], progress: Callable[[str, int], None]) -> Generator[Digest, None, None]:
        from . import bulk

        return bulk.copy(files, progress, self._cancelled)

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
        from . import pouring

        return pouring.derive(reader, archive, codec, plain, packed, writer, self._cancelled)

    def load(self, load: Load, progress: Progress) -> Done:
        from . import pouring

        return pouring.load(load, progress, self._cancelled)

    # Files

    def entries(self, folder: str, starting: str = "") -> list[Entry] | None:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return None
        try:
            return [_entry(name, descriptor) for name in os.listdir(descriptor) if name.startswith(starting)]
        finally:
            os.close(descriptor)

    def survey(
        self, folder: str, starting: tuple[str, ...], ending: str, make: Callable[[bytes], T]
    ) -> Survey[T] | None:
        return survey.of(folder, starting, ending, make)

    def sizes(self, paths: Sequence[str]) -> list[int]:
        return [_size(path) for path in paths]

    def read(self, path: str) -> bytes | None:
        try:
            return Path(path).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, path: str, data: bytes) -> None:
        folder, name = os.path.split(path)
        temporary = f"{folder}/.{name}.new"
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        _sync(folder)

    def make_folder(self, path: str) -> str:
        if not os.path.isdir(path):
            os.makedirs(path, mode=0o700, exist_ok=True)
            os.chmod(path, 0o700)  # whatever the umask
            return ""
        mode = os.stat(path).st_mode
        # A folder that everybody shares (/tmp) has that bit; what is in it is closed all the same, file by file.
        if not mode & (stat.S_IRWXG | stat.S_IRWXO) or mode & stat.S_ISVTX:
            return ""
        with os.scandir(path) as entries:
            if machine.serves_something_else((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries):
                raise machine.not_for_backups(path)
        os.chmod(path, mode & stat.S_IRWXU)
        return stat.filemode(mode)

    def remove_tree(self, path: str) -> None:
        import shutil

        shutil.rmtree(path, ignore_errors=True)

    def flush(self, paths: Sequence[str]) -> None:
        for path in paths:
            signals.check()
            if not os.path.isdir(path):
                os.chmod(path, 0o600)
            _sync(path)

    def publish(self, steps: Sequence[tuple[str, ...]]) -> None:
        arguments = [word for step in steps for word in step]
        done = subprocess.run(
            ("/bin/sh", "-c", shell.PUBLISH, "publish", *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            start_new_session=True,
            check=False,
        )
        if done.returncode:
            command = Command(("publish",))
            raise CommandError(command, Done(done.returncode, "", done.stderr.decode(errors="replace")))

    def free(self, folder: str) -> int:
        path = Path(folder)
        while not path.exists() and path != path.parent:
            path = path.parent
        disk = os.statvfs(path)
        return disk.f_bavail * disk.f_frsize

    # Who is at it

    def presence(self) -> str:
        return self._presence

    @cached_property
    def _presence(self) -> str:
        number = str(os.getpid())
        return machine.presence(number, self._identity(number))

    def _identity(self, number: str) -> list[str]:
        return self.run(Command(("/bin/sh", "-c", shell.IDENTITY, "identity", number))).out.split()

    def alive(self, presence: str) -> bool:
        return machine.lives(presence, self._identity)

    def claim(self, path: str, text: str) -> bool:
        try:
            os.symlink(text, path)
        except FileExistsError:
            return False
        return True

    def claimed(self, path: str) -> str | None:
        try:
            return os.readlink(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return ""  # something else under that name, which nobody of ours put there

    def remove(self, *paths: str) -> None:
        if len(paths) < _WORTH_SHARING:
            errors = [_unlink(paths)]
        else:
            # Each waits for the disk most of the time.
            with ThreadPoolExecutor(_REMOVERS) as removers:
                errors = list(removers.map(_unlink, [paths[first::_REMOVERS] for first in range(_REMOVERS)]))
        for error in filter(None, errors):
            raise error


def _entry(name: str, folder: int) -> Entry:
    try:
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        target = os.readlink(name, dir_fd=folder) if stat.S_ISLNK(info.st_mode) else None
    except FileNotFoundError:
        return Entry(name, is_file=False)
    return Entry(name, info.st_size, target, stat.S_ISREG(info.st_mode))


def _unlink(paths: Sequence[str]) -> OSError | None:
    """Remove what can be removed; return what was wrong with the first that could not be."""
    first = None
    for path in paths:
        try:
            os.unlink(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            first = first or error
    return first


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

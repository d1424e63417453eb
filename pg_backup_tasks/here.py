"""This computer, behind the verbs of machine.py."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path

from . import bulk, machine, process, shell, signals, survey
from .archive import DamagedError
from .errors import Failed
from .machine import CommandError, Derived, Done, Entry, Examined, Followed, Job, Load, Progress, Session, Survey, T
from .model import Command, Digest, Format, Item, format_of
from .sqltext import SqlDump

# How many at a time remove files, and for how many that is worth it.
_REMOVERS = 8
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

    # Dumps

    def examine(
        self,
        path: str,
        format_: Format,
        codec: str,
        writer: Job | None = None,
        reader: Command | None = None,  # noqa: ARG002 - we read it ourselves
    ) -> Examined:
        return bulk.examine(path, format_, codec, writer, self._cancelled)

    def contents(self, path: str, format_: Format, codec: str) -> tuple[Item, ...] | None:
        return bulk.contents(path, format_, codec, self._cancelled)

    def digest(self, path: str) -> Digest:
        return bulk.digest(path, self._cancelled)

    def bring(self, files: Mapping[str, str], progress: Callable[[str, int], None]) -> Generator[Digest, None, None]:
        for path, local in files.items():
            with open(path, "rb", buffering=0) as source, bulk.keeping(local) as file:
                for data in bulk.chunks(source, self._cancelled):
                    file.write(data)
                    progress(path, len(data))
            yield file.close()

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
        dump = SqlDump(codec)
        file = bulk.Hashing(plain) if plain else None
        packer = bulk.Packer(packed) if packed else None
        try:
            with self._reading(reader, archive, writer) as job:
                for data in bulk.chunks(job.output, self._cancelled):
                    if packer:
                        packer.write(data)
                    if file:
                        file.write(data)
                    dump.feed(data)
                job.check()
        except BaseException:
            for unfinished in (packer, file):
                if unfinished:
                    unfinished.abandon()
            raise
        packed_digest = packer.close() if packer else None
        plain_digest = file.close() if file else None
        return Derived(dump.rows, dump.complete, plain_digest, packed_digest)

    @contextmanager
    def _reading(self, reader: Command, archive: str, writer: Job | None) -> Iterator[process.Process]:
        """Run *reader* on an archive, also on one that is still being written."""
        if writer is None:
            with process.Process(reader, standard_input=archive, output=True) as job:
                yield job
            return
        out, into = _pipe()
        with ExitStack() as stack:
            source = os.fdopen(into, "wb", buffering=0)
            feeder = threading.Thread(target=self._follow, args=(archive, writer, source))
            feeder.start()
            # Joined after the reader's end: until then the feeder may be stuck in what nobody reads any more.
            stack.callback(feeder.join)
            try:
                job = stack.enter_context(
                    process.Process(reader, standard_input=f"/dev/fd/{out}", output=True, pass_fds=(out,))
                )
            finally:
                os.close(out)
            yield job

    def _follow(self, path: str, writer: Job, into: io.FileIO) -> None:
        # Whatever ends this early is told by the reader, which then lacks the rest, or by the writer.
        with (
            suppress(BrokenPipeError, bulk.Cancelled, FileNotFoundError),
            into,
            bulk.Growing(path, writer, self._cancelled) as growing,
        ):
            for data in bulk.chunks(growing, self._cancelled):
                bulk.write_all(into, data)

    def load(self, load: Load, progress: Progress) -> Done:
        out, into = _pipe()
        with ExitStack() as stack:
            target = os.fdopen(into, "wb", buffering=0)
            stack.callback(_close_quietly, target)
            try:
                psql = stack.enter_context(process.Process(load.psql, standard_input=f"/dev/fd/{out}", pass_fds=(out,)))
            finally:
                os.close(out)
            try:
                self._pour(load, target, progress)
            except BrokenPipeError:
                pass  # psql gave up; why stands in what it said
            except DamagedError as error:
                # Without the last words psql commits nothing.
                raise Failed(f"{load.path} {error}; nothing was restored from it.") from None
            _close_quietly(target)
            return psql.wait()

    def _pour(self, load: Load, target: io.FileIO, progress: Progress) -> None:
        dump = load.editor()
        bulk.write_all(target, load.before.encode())
        with ExitStack() as stack:
            if load.reader:
                job = stack.enter_context(process.Process(load.reader, standard_input=load.path, output=True))
                for data in bulk.chunks(bulk.Watched(job.output, progress), self._cancelled):
                    bulk.write_all(target, dump.feed(data))
                job.check()
            else:
                for data in bulk.sql_chunks(load.path, self._cancelled, progress):
                    bulk.write_all(target, dump.feed(data))
        bulk.write_all(target, dump.close())
        if not dump.complete:
            raise DamagedError("ends before pg_dump's closing line")
        bulk.write_all(target, load.after.encode())

    # Files

    def entries(self, folder: str, starting: str = "", holding: str = "") -> list[Entry] | None:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return None
        try:
            names = os.listdir(descriptor)
            if starting or holding:
                names = [n for n in names if n.startswith(starting) and holding in n[len(starting) :]]
            return [_entry(name, descriptor) for name in names]
        finally:
            os.close(descriptor)

    def survey(self, folder: str, starting: str, ending: str, make: Callable[[bytes], T]) -> Survey[T] | None:
        return survey.of(folder, starting, ending, make)

    def sizes(self, paths: Sequence[str]) -> list[int]:
        return [_size(path) for path in paths]

    def read(self, path: str) -> bytes | None:
        try:
            return Path(path).read_bytes()
        except FileNotFoundError:
            return None

    def sniff(self, path: str) -> Format | None:
        with open(path, "rb") as file:
            head = file.read(512)
        if head[:2] == b"\x1f\x8b":
            with suppress(DamagedError):
                inside = next(bulk.sql_chunks(path, self._cancelled), b"")
                return Format.SQL_GZ if format_of(inside) is Format.SQL else None
            return None
        return format_of(head)

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

    def make_folder(self, path: str) -> None:
        os.makedirs(path, mode=0o700, exist_ok=True)
        mode = stat.S_IMODE(os.stat(path).st_mode)
        # A folder that everybody shares (/tmp) has that bit; what is in it is closed all the same, file by file.
        if mode != 0o700 and not mode & stat.S_ISVTX:
            os.chmod(path, 0o700)

    def remove_tree(self, path: str) -> None:
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
        return shutil.disk_usage(path).free

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
        except OSError:
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


def _pipe() -> tuple[int, int]:
    """Return the two ends of a pipe; the numbers below 10 are the guarding shell's to use."""
    ends = os.pipe()
    try:
        out, into = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    finally:
        for end in ends:
            os.close(end)
    return out, into


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


def _close_quietly(file: io.FileIO) -> None:
    with suppress(BrokenPipeError):
        file.close()

"""A computer at the other end of SSH, behind the verbs of machine.py: POSIX tools, PostgreSQL's, nothing of ours."""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import datetime
from functools import cached_property
from typing import NoReturn

from . import archive, bulk, machine, posix, shell, signals
from .errors import Failed
from .far import FarOutput, FarProcess
from .line import Line
from .machine import CommandError, Derived, Done, Entry, Examined, Followed, Job, Load, Progress, Session, Survey, T
from .model import Command, Digest, Format, Item, format_of
from .process import PsqlSession
from .sqltext import SqlDump

_READ_AT_ONCE = 500
_LS = re.compile(r"\S+ +\d+ +\S+ +\S+ +(?P<bytes>\d+) +\S+ +\S+ +\S+ (?P<name>.*)")
# What the far tools say at the end of a complaint, as errors that this machine would have raised itself.
_COMPLAINTS = {
    os.strerror(number): number
    for number in (
        errno.EACCES, errno.EDQUOT, errno.EEXIST, errno.EIO, errno.EISDIR, errno.ENOENT, errno.ENOSPC, errno.ENOTDIR,
        errno.EPERM, errno.EROFS,
    )
}  # fmt: skip


_PACKING, _HASHING = ("rehash", "packed", "gzip"), ("hash",)
# Who does the parts of posix.DERIVE that are not called after the program.
_WORKS = {"hash": "sha256sum", "rehash": "sha256sum", "packed": "tee"}


class There:
    """The machine at the other end of *line*, called *name*."""

    glance = 1.0

    def __init__(self, name: str, line: Line) -> None:
        self.name = name
        self._line = line
        self._cancelled = False

    def close(self) -> None:
        """End what is still at work there, and the connection."""
        self._line.close()

    def cancel(self) -> None:
        """Let what works in the background end soon."""
        self._cancelled = True

    @cached_property
    def home(self) -> str:
        """Where a path with a ~ begins."""
        return self._ask('printf "%s\\n" "$HOME"').out.removesuffix("\n")

    def now(self) -> datetime:
        """Return what time it is there."""
        return self._line.now()

    # Commands

    def run(self, command: Command) -> Done:
        done, out = self._run(command)
        return Done(done.code, out.decode("utf-8", "replace"), done.err)

    def start(self, command: Command) -> AbstractContextManager[Job]:
        return self._process(command, output=False)

    def follow(self, command: Command) -> AbstractContextManager[Followed]:
        return self._process(command)

    def session(self, command: Command) -> AbstractContextManager[Session]:
        return PsqlSession(self._conversation(command))

    def tools(self, extra: Sequence[str]) -> list[tuple[str, str]]:
        found = [line.split("\t", 1) for line in self._ask(shell.TOOLS, *extra).out.splitlines() if "\t" in line]
        return [(folder, version) for folder, version in found]

    def _process(self, command: Command, *, output: bool = True, bulk: bool = False) -> FarProcess:
        """Start a command that our end of the line keeps alive."""
        _, text, _, *words = shell.guarded(command)
        return self._begin(command, text, words, output=output, bulk=bulk)

    def _conversation(self, command: Command) -> FarProcess:
        """Start a command that reads what we say."""
        _, text, _, *words = shell.conversation(command)
        return self._begin(command, text, words, output=True)

    def _begin(
        self, command: Command, text: str, words: Sequence[str], *, output: bool, bulk: bool = False
    ) -> FarProcess:
        return FarProcess(self._line, command, self._script(text, words, command.env), output=output, bulk=bulk)

    def _script(
        self, text: str, words: Sequence[str], env: Sequence[tuple[str, str]] = (), *, tied: bool = True
    ) -> bytes:
        return posix.script(text, words, env, self._line.keeper if tied else None)

    def _run(self, command: Command) -> tuple[Done, bytes]:
        with self._process(command) as process:
            out = process.output.read()
            return process.wait(), out

    def _ask(self, text: str, *arguments: str, good: Sequence[int] = (0,)) -> Done:
        command = Command(("sh", "-c", text, "ask", *arguments))
        done = self.run(command)
        if done.code not in good:
            _complain(command, done)
        return done

    def _bytes(self, text: str, *arguments: str) -> bytes:
        command = Command(("sh", "-c", text, "bytes", *arguments))
        done, out = self._run(command)
        if done.code:
            _complain(command, done)
        return out

    # Dumps

    def examine(
        self, path: str, format_: Format, codec: str, writer: Job | None = None, reader: Command | None = None
    ) -> Examined:
        if writer:
            self._await(writer)
        if format_ is Format.TAR and self._ask(posix.ENDS_AS_TAR, path, good=(0, 1)).code:
            return Examined(self.digest(path), problem="ends in the middle")
        try:
            rows, complete, _ = self._derive(reader or _printing(format_), path, codec, "", "", None)
        except CommandError as error:
            return Examined(self.digest(path), problem=str(error.message))
        if not complete:
            return Examined(self.digest(path), problem="ends before pg_dump's closing line")
        return Examined(self.digest(path), rows)

    def contents(self, path: str, format_: Format, codec: str) -> tuple[Item, ...] | None:
        if not format_.is_archive:
            dump = SqlDump(codec, headings=True)
            with self._reading(path, format_) as output:
                for data in _chunks(output):
                    dump.feed(data)
            return tuple(dump.items)
        try:
            # It stands at the beginning: the line brings little more than that.
            with self._reading(path, Format.SQL) as output, io.BufferedReader(_Raw(output), 1 << 16) as source:
                return tuple(archive.contents(source, format_, codec).entries.values())
        except archive.UnsupportedError:
            return None

    @contextmanager
    def _reading(self, path: str, format_: Format) -> Iterator[FarOutput]:
        """Let *path* come over the line, unpacked where it is packed SQL."""
        text = 'exec gzip -dc <"$1"' if format_ is Format.SQL_GZ else 'exec cat <"$1"'
        with self._process(Command(("sh", "-c", text, "read", path))) as process:
            yield process.output
            process.kill()

    def digest(self, path: str) -> Digest:
        size, sha256 = self._ask(posix.DIGEST, path).out.split()
        return Digest(int(size), sha256)

    def bring(self, files: Mapping[str, str], progress: Callable[[str, int], None]) -> Generator[Digest, None, None]:
        paths = [*files]
        with ExitStack() as stack:
            process = stack.enter_context(self._poured(paths[0]))
            for path, following in zip(paths, [*paths[1:], ""], strict=True):
                with bulk.keeping(files[path]) as file:
                    for data in _chunks(process.output):
                        file.write(data)
                        progress(path, len(data))
                    # What was cut short is not whole: nothing is to be kept of it.
                    process.check()
                    # The line is not to lie idle while the disk ends its work.
                    if following:
                        process = stack.enter_context(self._poured(following))
                yield file.close()

    def _poured(self, path: str) -> FarProcess:
        """Let a whole file come over the line, as quickly as can be."""
        return self._process(Command(("sh", "-c", 'exec cat <"$1"', "bring", path)), bulk=True)

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
        rows, complete, sums = self._derive(reader, archive, codec, plain or "", packed or "", writer)
        files = {path: sums[part] for path, part in ((plain, "hash"), (packed, "rehash")) if path}
        self.flush([*files])
        sizes = self.sizes([*files])
        digests = {path: Digest(size, files[path]) for path, size in zip(files, sizes, strict=True)}
        return Derived(rows, complete, digests.get(plain or ""), digests.get(packed or ""))

    def _derive(
        self, reader: Command, archive: str, codec: str, plain: str, packed: str, writer: Job | None
    ) -> tuple[dict[str, int], bool, dict[str, str]]:
        """Return the rows of each table, whether the SQL came to its end, and the SHA-256 of what was written.

        Raises CommandError if a part failed.
        """
        follow = "1" if writer else ""
        words = ("sh", "-c", posix.DERIVE, "derive", plain, packed, posix.COUNT, follow, archive, *reader.argv)
        command = Command(words, reader.env, reader.secrets)
        with self._process(command) as process:
            while process.poll() is None:
                # What was being written and has failed would be followed for ever.
                if (writer and writer.poll()) or self._cancelled:
                    raise Failed("The run was ended.")
                process.pause()
            out, done = process.output.read(), process.wait()
        if done.code:
            raise CommandError(reader, done)
        told, _, last = out.rpartition(b"\ncodes\n")
        said = dict(line.split(" ", 1) for line in last.decode().splitlines())
        # What reads from a part that fails ends well; what writes to it does not.
        parts = (*(_PACKING if packed else ()), *(_HASHING if plain else ()), "awk", "tee", "reader")
        for part in parts:
            code = int(said.get(part, "1").split()[0])
            if code:
                failed = reader if part == "reader" else Command((_WORKS.get(part, part),))
                _complain(failed, Done(code, "", done.err))
        *lines, whole = told.split(b"\n")
        return _rows(lines, codec), whole == b"whole", {part: said[part].rpartition(" ")[2] for part in parts}

    def _await(self, writer: Job) -> None:
        while writer.poll() is None:
            if self._cancelled:
                raise Failed("The run was ended.")
            signals.sleep(0.1)

    def load(self, load: Load, progress: Progress) -> Done:
        packed = load.reader is None and self.sniff(load.path) is Format.SQL_GZ
        if self._is_ours_to_edit(load, packed):
            return self._stream(load, packed, progress)
        reader = load.reader or _printing(Format.SQL_GZ if packed else Format.SQL)
        owners = ("--no-owner", "--no-privileges") if load.skip_owners else ()
        printing = (*reader.argv, *owners)
        before, after = load.before.encode(), load.after.encode()
        one = "1" if load.before else ""
        settings = (" ".join(sorted(load.skip_settings)), "1" if load.skip_restrict else "", one)
        counts = (str(len(before)), str(len(after)))
        words = ("sh", "-c", posix.LOAD, "load", *counts, posix.EDIT, *settings, load.path, str(len(printing)))
        command = Command((*words, *printing, *load.psql.argv), load.psql.env, load.psql.secrets)
        with self._conversation(command) as process:
            process.send(before + after)
            codes = _codes(process.output.read())
            done = process.wait()
        progress(self.sizes([load.path])[0])
        psql = int(codes.get("psql", done.code or 1))
        if psql == 0 and "reader" in codes:
            raise CommandError(reader, Done(int(codes["reader"]), "", done.err))
        if psql == 0 and "dump" in codes:
            raise _torn(load)
        return Done(psql, "", done.err)

    def _is_ours_to_edit(self, load: Load, packed: bool) -> bool:
        """Whether a dump needs more changes on its way than a few lines of awk can make safely."""
        if load.leave_out:
            return True
        if load.reader:
            return False
        connects = self._ask(posix.CONNECTS, load.path, "1" if packed else "", good=(0, 1)).code == 0
        return load.skip_owners or connects

    def _stream(self, load: Load, packed: bool, progress: Progress) -> Done:
        """Let a dump come over the line, and go back the way psql is to have it."""
        dump = load.editor()
        with self._conversation(load.psql) as psql, self._printed(load, packed) as source:
            psql.send(load.before.encode())
            for data in _chunks(source.output):
                psql.send(dump.feed(data))
                progress(len(data))
                if psql.poll() is not None:
                    return psql.wait()
            source.check()
            psql.send(dump.close())
            if not dump.complete:
                raise _torn(load)
            psql.send(f"\n{load.after}\n\\q\n".encode())
            return psql.wait()

    def _printed(self, load: Load, packed: bool) -> FarProcess:
        reader = load.reader or _printing(Format.SQL_GZ if packed else Format.SQL)
        words = ("sh", "-c", 'file=$1; shift; exec "$@" <"$file"', "print", load.path, *reader.argv)
        return self._process(Command(words, reader.env, reader.secrets))

    # Files

    def entries(self, folder: str, starting: str = "") -> list[Entry] | None:
        done = self._ask(posix.ENTRIES, folder, starting, good=(0, 3))
        if done.code:
            return None
        *words, listing = done.out.split("\0")
        sizes = {m["name"]: int(m["bytes"]) for line in listing.splitlines() if (m := _LS.fullmatch(line))}
        rows = zip(words[::4], words[1::4], words[2::4], words[3::4], strict=True)
        return [
            Entry(name, int(size or sizes.get(name, 0)), target if kind == "link" else None, kind == "file")
            for kind, size, target, name in rows
        ]

    def survey(
        self, folder: str, starting: tuple[str, ...], ending: str, make: Callable[[bytes], T]
    ) -> Survey[T] | None:
        entries = self.entries(folder, starting[0] if len(starting) == 1 else "")
        if entries is None:
            return None
        entries = [entry for entry in entries if entry.name.startswith(starting)]
        sizes = {entry.name: entry.bytes for entry in entries if entry.is_file}
        names = [name for name in sizes if name.endswith(ending)]
        texts = self._readable([f"{folder}/{name}" for name in names])
        made = {name: make(text) for name, text in zip(names, texts, strict=True) if text is not None}
        return Survey(sizes, made, {entry.name: entry.target for entry in entries if entry.target is not None})

    def sizes(self, paths: Sequence[str]) -> list[int]:
        return [int(size) for size in self._ask(posix.SIZES, *paths).out.split()]

    def read(self, path: str) -> bytes | None:
        return self._read([path])[0]

    def _read(self, paths: Sequence[str]) -> list[bytes | None]:
        found: list[bytes | None] = []
        for first in range(0, len(paths), _READ_AT_ONCE):
            data = io.BytesIO(self._bytes(posix.READ, *paths[first : first + _READ_AT_ONCE]))
            while size := data.readline().decode().strip():
                found.append(None if size == "-" else data.read(int(size)))
        return found

    def _readable(self, paths: Sequence[str]) -> list[bytes | None]:
        """Return what each file says, nothing for one that may not be read: no reason to know nothing of the others."""
        try:
            return self._read(paths)
        except OSError:
            if len(paths) == 1:
                return [b""]
            half = len(paths) // 2
            return self._readable(paths[:half]) + self._readable(paths[half:])

    def sniff(self, path: str) -> Format | None:
        head = self._bytes(posix.HEAD, path)
        if head[:2] == b"\x1f\x8b":
            return Format.SQL_GZ if format_of(self._bytes(posix.UNPACKED_HEAD, path)) is Format.SQL else None
        return format_of(head)

    def write(self, path: str, data: bytes) -> None:
        command = Command(("sh", "-c", posix.WRITE, "write", path, str(len(data))))
        with self._conversation(command) as process:
            process.send(data)
            done = process.wait()
        if done.code:
            _complain(command, done)

    def make_folder(self, path: str) -> str:
        done = self._ask(posix.MAKE_FOLDER, path, good=(0, 4))
        if done.code:
            raise machine.not_for_backups(path)
        # What has more than a mode (a list of who may what) has a sign after it.
        return done.out.strip()[:10]

    def remove_tree(self, path: str) -> None:
        self._ask(posix.REMOVE_TREE, path)

    def flush(self, paths: Sequence[str]) -> None:
        if paths:
            self._ask(posix.FLUSH, *paths)

    def free(self, folder: str) -> int:
        return int(self._ask(posix.FREE, folder).out) * 1024

    def publish(self, steps: Sequence[tuple[str, ...]]) -> None:
        words = [word for step in steps for word in step]
        command = Command(("publish",))
        # Tied to nobody: it goes on to its end.
        with FarProcess(self._line, command, self._script(shell.PUBLISH, words, tied=False)) as process:
            done = process.wait()
        if done.code:
            raise CommandError(command, done)

    # Who is at it

    def presence(self) -> str:
        return self._presence

    @cached_property
    def _presence(self) -> str:
        number = self._line.keeper
        return machine.presence(number, self._identity(number))

    def _identity(self, number: str) -> list[str]:
        return self._ask(shell.IDENTITY, number).out.split()

    def alive(self, presence: str) -> bool:
        return machine.lives(presence, self._identity)

    def claim(self, path: str, text: str) -> bool:
        return self._ask(posix.CLAIM, path, text, good=(0, 1)).code == 0

    def claimed(self, path: str) -> str | None:
        done = self._ask(posix.CLAIMED, path, good=(0, 3))
        return None if done.code else done.out.removesuffix("\n")

    def remove(self, *paths: str) -> None:
        trouble = None
        for first in range(0, len(paths), _READ_AT_ONCE):
            try:
                self._ask(posix.REMOVE, *paths[first : first + _READ_AT_ONCE])
            except (OSError, CommandError) as error:
                trouble = trouble or error
        if trouble:
            raise trouble


class _Raw(io.RawIOBase):
    """What a far command prints, as a file."""

    def __init__(self, output: FarOutput) -> None:
        self._output = output

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._output.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _chunks(output: FarOutput) -> Iterator[bytes]:
    while data := output.some():
        yield data


def _printing(format_: Format) -> Command:
    """Return what prints plain SQL that it is given as standard input."""
    return Command(("gzip", "-dc") if format_ is Format.SQL_GZ else ("cat",))


def _codes(said: bytes) -> dict[str, str]:
    return dict(line.split() for line in said.decode().splitlines() if line)


def _torn(load: Load) -> Failed:
    return Failed(f"{load.path} ends before pg_dump's closing line; nothing was restored from it.")


def _complain(command: Command, done: Done) -> NoReturn:
    """Raise what the same trouble would be on this machine: an OSError where it is the disk's or the folder's."""
    said = done.err.strip().splitlines()
    for line in reversed(said):
        what, _, why = line.rpartition(": ")
        if number := _COMPLAINTS.get(why):
            path = command.argv[4] if len(command.argv) > 4 and command.argv[0] == "sh" else what.rpartition(": ")[2]
            raise OSError(number, why, path)
    raise CommandError(command, done)


def _rows(told: list[bytes], codec: str) -> dict[str, int]:
    """Return the rows of each table as COUNT tells them."""
    found: dict[str, int] = {}
    while told:
        rows, lines = map(int, told[0].split())
        dump = SqlDump(codec)
        dump.feed(b"\n".join([*told[1 : lines + 1], b"\\.", b""]))
        for table in dump.rows:
            found[table] = found.get(table, 0) + rows
        told = told[lines + 1 :]
    return found

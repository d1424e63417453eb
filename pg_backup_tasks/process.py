"""Commands on this computer, each in a session of its own and tied to us by a pipe: when we go, it goes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import IO, Protocol, Self

from . import machine, shell, signals
from .machine import CommandError, Done
from .model import Command

_LONGEST_SPEECH = 1 << 20
_PIECE = 1 << 16
_GLANCE = 100  # milliseconds
_PATIENCE = 2.0
_FAREWELL = 1.0


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return *environ* without what would turn libpq or a dump aside; messages come in English."""
    dropped = ("PG", "PSQL", "LC_", "LANG")
    kept = {k: v for k, v in environ.items() if not k.startswith(dropped)}
    return kept | {"LC_ALL": "C"}


class Process:
    """A guarded command that has been started; a context manager that leaves nothing of it behind."""

    def __init__(
        self,
        command: Command,
        *,
        standard_input: str = "/dev/null",
        output: bool = False,
        pass_fds: tuple[int, ...] = (),
        conversation: bool = False,
    ) -> None:
        self.command = command
        arguments = shell.conversation(command) if conversation else shell.guarded(command, standard_input)
        self._popen = subprocess.Popen(
            ("/bin/sh", *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if output else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=clean_environment(os.environ) | dict(command.env),
            pass_fds=pass_fds,
            start_new_session=True,
        )
        self._said = b""
        self._left = False
        self._listening = threading.Lock()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._write(shell.secret_lines(command))

    @property
    def output(self) -> Output:
        """What the command prints."""
        assert self._popen.stdout is not None
        return Output(self._popen.stdout)

    def lines(self) -> Iterator[bytes]:
        """Yield what the command prints, line by line and without their ends, as it comes; nothing once it is left."""
        return machine.lines(self._pieces())

    def _pieces(self) -> Iterator[bytes]:
        # Something that outlives the command may hold its output open: who waits for the end of that waits in vain.
        assert self._popen.stdout is not None
        poll = select.poll()
        poll.register(self._popen.stdout, select.POLLIN)
        while True:
            with self._listening:
                if self._left:
                    return
                if not poll.poll(_GLANCE):
                    continue
                piece = os.read(self._popen.stdout.fileno(), _PIECE)
            if not piece:
                return
            yield piece

    def send(self, data: bytes) -> None:
        """Write to the command's standard input; one that has ended is told nothing."""
        with signals.waiting():
            self._write(data)

    def poll(self) -> int | None:
        """Return the exit code, None while it is at work."""
        return self._popen.poll()

    def wait(self) -> Done:
        """Wait for the end; return the exit code and what it said on standard error."""
        with signals.waiting():
            code = self._popen.wait()
        self._listener.join(_PATIENCE)
        return Done(code, "", self._said.decode("utf-8", "replace"))

    def check(self) -> None:
        """Wait for the end; raise CommandError unless the exit code is 0."""
        done = self.wait()
        if done.code:
            raise CommandError(self.command, done)

    def dismiss(self, last_words: bytes) -> None:
        """Let the command end by itself, if it does so soon; signals have to wait."""
        self._write(last_words)
        self._wait_a_little(_FAREWELL)

    def stop(self) -> None:
        """End the command and whatever it started."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)
        self._wait_a_little(_PATIENCE)
        self.kill()
        self._popen.wait()
        self._close_input()

    def kill(self) -> None:
        """End all of it at once; its output ends, and whoever waits for it goes on."""
        self._signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._popen.poll() is None:
            self.stop()
        self._close_input()
        self._left = True
        if self._popen.stdout:
            with self._listening:
                self._popen.stdout.close()
        self._listener.join(_PATIENCE)

    def _listen(self) -> None:
        assert self._popen.stderr is not None
        with self._popen.stderr as stream:
            for line in stream:
                self._said = (self._said + line)[-_LONGEST_SPEECH:]

    def _wait_a_little(self, seconds: float) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(seconds)

    def _write(self, data: bytes) -> None:
        assert self._popen.stdin is not None
        with suppress(BrokenPipeError):
            self._popen.stdin.write(data)
            self._popen.stdin.flush()

    def _close_input(self) -> None:
        assert self._popen.stdin is not None
        with suppress(BrokenPipeError):
            self._popen.stdin.close()

    def _signal(self, signum: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signum)


class Output:
    """What a command prints; signals are let in while we wait for it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int = -1, /) -> bytes:
        """Return *size* bytes, fewer only at the end; all there is if not told how many."""
        with signals.waiting():
            return self._stream.read(size)

    def readline(self) -> bytes:
        """Return a line with its end, nothing after the last."""
        with signals.waiting():
            return self._stream.readline()


def run(command: Command) -> Done:
    """Run *command* to its end with an empty standard input; what it prints must be small."""
    with Process(command, output=True) as process:
        out = process.output.read()
        done = process.wait()
    return Done(done.code, out.decode("utf-8", "replace"), done.err)


def converse(command: Command) -> PsqlSession:
    """Start psql reading statements from us."""
    return PsqlSession(Process(command, output=True, conversation=True))


class Talking(Protocol):
    """A command that reads what we say, here or on another machine; leaving its block ends it."""

    command: Command

    @property
    def output(self) -> Lines: ...

    def send(self, data: bytes) -> None: ...

    def wait(self) -> Done: ...

    def dismiss(self, last_words: bytes) -> None: ...

    def kill(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Lines(Protocol):
    """What a command prints."""

    def readline(self) -> bytes: ...


class PsqlSession:
    """psql held open: statements in, what they print out."""

    _MARK = "pg_backup_tasks: end of answer"

    def __init__(self, process: Talking) -> None:
        self._asked = 0
        self._process = process

    def ask(self, sql: str, patience: float | None = None) -> str:
        """Run *sql*; return what it printed. Raises CommandError where the server refuses it.

        With *patience* the session ends, and so does the waiting, after so many seconds.
        """
        with self._limited(patience):
            # A SELECT and not \echo: only after a query does psql flush what it prints.
            # On a line of its own: what is asked may end in a comment.
            return self._talk(f"{sql.rstrip().rstrip(';')}\n;\nselect '{self._next_mark()}';\n")[0]

    def attempt(self, sql: str) -> str | None:
        """Run *sql*; return None, or the server's error where it refuses, the session living on."""
        # psql sets ERROR after every query (PostgreSQL 11 and newer).
        _, verdict = self._talk(
            "\\set ON_ERROR_STOP off\n\\set ON_ERROR_ROLLBACK on\n"
            f"{sql.rstrip().rstrip(';')};\n\\set failed :ERROR\n"
            "\\set ON_ERROR_STOP on\n\\set ON_ERROR_ROLLBACK off\n"
            f"select '{self._next_mark()}' || :'failed' || replace(:'LAST_ERROR_MESSAGE', E'\\n', ' ');\n"
        )
        return verdict.removeprefix("true") if verdict.startswith("true") else None

    def end(self) -> None:
        """End it at once; whoever waits for an answer goes on, with a CommandError."""
        self._process.kill()

    def _next_mark(self) -> str:
        # Numbered, so that the answer to a question that was interrupted is not taken for the next one's.
        self._asked += 1
        return self._mark

    @property
    def _mark(self) -> str:
        return f"{self._MARK} {self._asked} "

    def _talk(self, text: str) -> tuple[str, str]:
        """Send *text*; return what was printed before the mark, and what stands behind it."""
        self._process.send(text.encode())
        lines: list[str] = []
        while line := self._process.output.readline():
            printed = line.decode("utf-8", "replace")
            if printed.startswith(self._mark):
                return "".join(lines).rstrip("\n"), printed.removeprefix(self._mark).rstrip("\n")
            lines.append(printed)
            if printed.startswith(self._MARK):
                lines.clear()
        raise CommandError(self._process.command, self._process.wait())

    @contextmanager
    def _limited(self, patience: float | None) -> Iterator[None]:
        if patience is None:
            yield
            return
        timer = threading.Timer(patience, self._process.kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            # Whoever says goodbye is not called lost in the server's log.
            self._process.dismiss(b"\\q\n")
        self._process.__exit__(kind, error, trace)

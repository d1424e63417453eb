"""Commands on this computer, each in a session of its own and tied to us by a pipe: when we go, it goes."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import IO, Self

from . import shell
from .machine import CommandError, Done
from .model import Command

_LONGEST_SPEECH = 1 << 20
_PATIENCE = 6.0


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
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.send(shell.secret_lines(command))

    @property
    def output(self) -> IO[bytes]:
        """What the command prints."""
        assert self._popen.stdout is not None
        return self._popen.stdout

    def send(self, data: bytes) -> None:
        """Write to the command's standard input; one that has ended is told nothing."""
        assert self._popen.stdin is not None
        with suppress(BrokenPipeError):
            self._popen.stdin.write(data)
            self._popen.stdin.flush()

    def poll(self) -> int | None:
        """Return the exit code, None while it is at work."""
        return self._popen.poll()

    def wait(self) -> Done:
        """Wait for the end; return the exit code and what it said on standard error."""
        code = self._popen.wait()
        self._listener.join(_PATIENCE)
        return Done(code, "", self._said.decode("utf-8", "replace"))

    def check(self) -> None:
        """Wait for the end; raise CommandError unless the exit code is 0."""
        done = self.wait()
        if done.code:
            raise CommandError(self.command, done)

    def stop(self) -> None:
        """End the command and whatever it started."""
        self._close_input()
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + _PATIENCE
        while self._group_lives() and time.monotonic() < deadline:
            self._popen.poll()
            time.sleep(0.01)
        self._signal(signal.SIGKILL)
        self._popen.wait()

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
        if self._popen.stdout:
            self._popen.stdout.close()
        self._listener.join(_PATIENCE)

    def _listen(self) -> None:
        assert self._popen.stderr is not None
        with self._popen.stderr as stream:
            for line in stream:
                self._said = (self._said + line)[-_LONGEST_SPEECH:]

    def _close_input(self) -> None:
        assert self._popen.stdin is not None
        with suppress(BrokenPipeError):
            self._popen.stdin.close()

    def _signal(self, signum: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signum)

    def _group_lives(self) -> bool:
        try:
            os.killpg(self._popen.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True


def run(command: Command) -> Done:
    """Run *command* to its end with an empty standard input; what it prints must be small."""
    with Process(command, output=True) as process:
        out = process.output.read()
        done = process.wait()
    return Done(done.code, out.decode("utf-8", "replace"), done.err)


class PsqlSession:
    """psql held open: statements in, what they print out."""

    _MARK = "pg_backup_tasks: end of answer"

    def __init__(self, command: Command) -> None:
        self._process = Process(command, output=True, conversation=True)

    def ask(self, sql: str) -> str:
        """Run *sql*; return what it printed. Raises CommandError where the server refuses it."""
        # A SELECT and not \echo: only after a query does psql flush what it prints.
        return self._talk(f"{sql.rstrip().rstrip(';')};\nselect '{self._MARK}';\n")[0]

    def attempt(self, sql: str) -> str | None:
        """Run *sql*; return None, or the server's error where it refuses, the session living on."""
        # psql sets ERROR after every query (PostgreSQL 11 and newer).
        _, verdict = self._talk(
            f"\\set ON_ERROR_STOP off\n{sql.rstrip().rstrip(';')};\n\\set failed :ERROR\n"
            "\\set ON_ERROR_STOP on\n"
            f"select '{self._MARK}' || :'failed' || replace(:'LAST_ERROR_MESSAGE', E'\\n', ' ');\n"
        )
        return verdict.removeprefix("true") if verdict.startswith("true") else None

    def _talk(self, text: str) -> tuple[str, str]:
        """Send *text*; return what was printed before the mark, and what stands behind it."""
        self._process.send(text.encode())
        lines: list[str] = []
        for line in self._process.output:
            printed = line.decode("utf-8", "replace")
            if printed.startswith(self._MARK):
                return "".join(lines).rstrip("\n"), printed.removeprefix(self._MARK).rstrip("\n")
            lines.append(printed)
        raise CommandError(self._process.command, self._process.wait())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.__exit__(kind, error, trace)

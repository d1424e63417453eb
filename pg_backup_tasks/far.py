"""Commands on a far machine, each tied to us by its channel and by the keeper: when we go, they go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Self

import paramiko

from . import machine, shell, signals
from .line import Line
from .machine import CommandError, Done
from .model import Command

_PIECE = 1 << 20
_LONGEST_SPEECH = 1 << 20
_AGAIN = 0.2
# A command that does not want to end is ended by force after three seconds.
_PATIENCE = 5.0
_FAREWELL = 1.0
_KILLED = 137


class FarProcess:
    """A far command that has been started; a context manager that leaves nothing of it behind.

    *script* is what posix.script() made of it. It is what process.Process is on this machine.
    """

    def __init__(
        self, line: Line, command: Command, script: bytes, *, output: bool = False, bulk: bool = False
    ) -> None:
        self.command = command
        self._line = line
        self._channel = line.open(script, shell.secret_lines(command), bulk=bulk)
        self.output = FarOutput(line, self._channel)
        self._said = b""
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        if not output:
            threading.Thread(target=self._drain, daemon=True).start()

    def lines(self) -> Iterator[bytes]:
        """Yield what the command prints, line by line and without their ends, as it comes."""
        return machine.lines(iter(self.output.some, b""))

    def send(self, data: bytes) -> None:
        """Write to the command's standard input; one that has ended is told nothing."""
        with suppress(OSError):
            self._line.send(self._channel, data)
        self._line.check()

    def poll(self) -> int | None:
        """Return the exit code, None while it is at work."""
        return self._code() if self._channel.exit_status_ready() else None

    def pause(self) -> None:
        """Wait a moment for the end."""
        self._channel.status_event.wait(_AGAIN)
        signals.check()
        self._line.check()

    def wait(self) -> Done:
        """Wait for the end; return the exit code and what it said on standard error. Raises Lost."""
        while not self._channel.status_event.is_set():
            self.pause()
        if self._channel.exit_status < 0:
            self._line.check()
        self._listener.join(_FAREWELL)
        return Done(self._code(), "", self._said.decode("utf-8", "replace"))

    def check(self) -> None:
        """Wait for the end; raise CommandError unless the exit code is 0."""
        done = self.wait()
        if done.code:
            raise CommandError(self.command, done)

    def dismiss(self, last_words: bytes) -> None:
        """Let the command end by itself, if it does so soon; signals have to wait."""
        with suppress(OSError):
            self._channel.sendall(last_words)
        self._channel.status_event.wait(_FAREWELL)

    def stop(self) -> None:
        """End the command and whatever it started."""
        # The end of its standard input is the end of it.
        with suppress(OSError, EOFError, paramiko.SSHException):
            self._channel.shutdown_write()
        deadline = time.monotonic() + _PATIENCE
        while not self._channel.status_event.wait(_AGAIN) and time.monotonic() < deadline and not self._line.lost:
            pass
        self.kill()

    def kill(self) -> None:
        """Hang up at once: its output ends, and whoever waits for it goes on."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._channel.exit_status_ready():
            self.stop()
        self.kill()
        self._listener.join(_FAREWELL)

    def _code(self) -> int:
        code: int = self._channel.exit_status
        return code if code >= 0 else _KILLED

    def _listen(self) -> None:
        while data := _receive(self._channel.recv_stderr):
            self._said = (self._said + data)[-_LONGEST_SPEECH:]

    def _drain(self) -> None:
        while _receive(self._channel.recv):
            pass


def _receive(receive: Callable[[int], bytes]) -> bytes:
    while True:
        with suppress(TimeoutError):
            return receive(_PIECE)


class FarOutput:
    """What a far command prints; signals are let in while we wait for it."""

    def __init__(self, line: Line, channel: paramiko.Channel) -> None:
        self._line = line
        self._channel = channel
        self._ahead = b""

    def read(self, size: int = -1, /) -> bytes:
        """Return *size* bytes, fewer only at the end; all there is if not told how many."""
        pieces = [self._ahead]
        have = len(self._ahead)
        while size < 0 or have < size:
            data = self._more()
            if not data:
                break
            pieces.append(data)
            have += len(data)
        whole = b"".join(pieces)
        self._ahead = whole[size:] if size >= 0 else b""
        return whole[:size] if size >= 0 else whole

    def some(self) -> bytes:
        """Return what there is, waiting for the first of it; nothing at the end."""
        ahead, self._ahead = self._ahead, b""
        return ahead or self._more()

    def readline(self) -> bytes:
        """Return a line with its end, nothing after the last."""
        while b"\n" not in self._ahead and (data := self._more()):
            self._ahead += data
        line, end, self._ahead = self._ahead.partition(b"\n")
        return line + end

    def _more(self) -> bytes:
        while True:
            signals.check()
            with suppress(TimeoutError):
                data: bytes = self._channel.recv(_PIECE)
                if not data:
                    self._line.check()
                return data

"""What can go wrong, as sentences with a way out and an exit code."""

from __future__ import annotations

from signal import Signals
from typing import ClassVar

from invoke.exceptions import Exit


class TaskError(Exit):
    """A task that ends early: one sentence, perhaps a `Try:` line, and the exit code of the contract."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None, code: int | None = None) -> None:
        super().__init__(message, self.exit_code if code is None else code)
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nTry: {self.hint}" if self.hint else str(self.message)


class Failed(TaskError):
    """The work was begun and could not be done."""


class Refused(TaskError):
    """Wrong use, or something the task will not do."""

    exit_code = 2


class Unhealthy(TaskError):
    """`db.verify` found a backup that is not what it says."""

    exit_code = 3


class Unreachable(TaskError):
    """The host or the database cannot be reached."""

    exit_code = 4


class Locked(TaskError):
    """Another run is at work in the same backup folder."""

    exit_code = 75


class Interrupted(TaskError):
    """A signal ended the run; the code is 128 + the signal's number, as shells report it."""

    def __init__(self, signum: int, done: str = "") -> None:
        super().__init__(f"Ended by {Signals(signum).name}{done}.", code=128 + signum)
        self.signum = signum

"""Standard streams that nobody may be listening to, and the log: neither is a reason for a run to fail."""

from __future__ import annotations

import io
import logging
import logging.handlers
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, cast

_LOG_BYTES = 1 << 20
_LOGS_KEPT = 5


class Heedless:
    """A stream that nobody may be listening to any more; a terminal that was closed is no reason to fail."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._trouble: OSError | None = None

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def take_trouble(self) -> OSError | None:
        """Return, once, what kept somebody from reading it who wanted to."""
        trouble, self._trouble = self._trouble, None
        return trouble

    def _give_up(self, error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):
            self._trouble = error
        # What stays in its buffer would fail once more when Python ends, and change our exit code to 120.
        with suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_what_is_closed() -> None:
    """Let a standard stream that we were started without lead nowhere, before a file of ours takes its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(nowhere, True)
            assert nowhere == number
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115 - for good


class _LogFile(logging.handlers.RotatingFileHandler):
    def _open(self) -> io.TextIOWrapper:
        """Open it, also anew after each rotation, so that only its owner reads it, whatever the umask."""
        file = open(self.baseFilename, self.mode, encoding="utf-8", errors="backslashreplace", opener=_private)  # noqa: SIM115
        return cast("io.TextIOWrapper", file)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Lose the line: a full disk must not put a traceback beside the sentence that says so."""


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def open_log(path: str) -> logging.Logger | None:
    """Return a logger to a file that only its owner reads, None where it cannot be written."""
    logger = logging.getLogger("pg_backup_tasks")
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    logger.propagate = False
    logger.setLevel(logging.INFO)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path, maxBytes=_LOG_BYTES, backupCount=_LOGS_KEPT)
    except OSError:
        # The backup folder's own trouble is told by what needs it; a log is not worth failing for.
        return None
    formatter = logging.Formatter("%(asctime)sZ %(process)d %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger.addHandler(handler)
    return logger

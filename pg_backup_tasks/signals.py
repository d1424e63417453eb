"""Ctrl-C, SIGTERM and SIGHUP as one exception, raised only where we wait for others.

An exception that could come between any two steps would tear what is never torn otherwise: a lock of the standard
library half taken, a command started and not yet known. So a signal is remembered, and raised at the next place
that says `waiting` or `check`; cleaning up says neither, and is never cut short.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Whoever signals again after so many seconds has waited in vain: then wherever we are.
_IN_VAIN = 1.0


class _Watch:
    """What has come in since a block was entered."""

    def __init__(self) -> None:
        self.waiting = False
        self.closed = False
        self.raised = False
        self._first = 0
        self._since = 0.0

    def arrive(self, signum: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._first:
            self._first, self._since = signum, now
        if self.waiting or now - self._since > _IN_VAIN:
            self.tell()

    def tell(self) -> None:
        if self._first and not self.closed:
            self.closed = self.raised = True
            raise Interrupted(self._first)


_watch: _Watch | None = None


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the first of SIGNALS into Interrupted for this block; those after it wait for the clean-up.

    A signal that is ignored on entry (SIGINT in a shell's background job, SIGHUP under nohup) stays so. Once
    Interrupted is raised the process is about to end with its code: no signal changes that any more.
    """
    global _watch  # noqa: PLW0603 - signals are the process's
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: h for s in SIGNALS if (h := signal.getsignal(s)) is not signal.SIG_IGN}
    outer, watch = _watch, _Watch()
    _watch = watch
    for each in before:
        # A handler and not SIG_IGN, also after the first: commands we start would inherit that they ignore it.
        signal.signal(each, watch.arrive)
    try:
        yield
    finally:
        _watch = outer
        for each, handler in before.items():
            # Python itself forgets its handlers when it ends, but not what is ignored.
            signal.signal(each, signal.SIG_IGN if watch.raised else handler or signal.SIG_DFL)


@contextmanager
def waiting() -> Iterator[None]:
    """Let signals in during this block, which waits for somebody else and has nothing that could be torn."""
    watch = _mine()
    if watch is None:
        yield
        return
    watch.waiting = True
    try:
        watch.tell()
        yield
    finally:
        watch.waiting = False


def check() -> None:
    """Raise Interrupted if a signal has come in; what works for long without waiting asks now and then."""
    if watch := _mine():
        watch.tell()


def close() -> None:
    """Raise what has come in, and let nothing in any more: what is left of the work is short, and worth finishing."""
    if watch := _mine():
        watch.tell()
        watch.closed = True


def reopen() -> None:
    """Let signals in again: what was worth finishing is finished, and something else begins."""
    if watch := _mine():
        watch.closed = False


def ignore() -> None:
    """Let nothing in any more, nor raise what has come in: what is left to do must be done whatever comes."""
    if watch := _mine():
        watch.closed = True


def sleep(seconds: float) -> None:
    """Sleep, letting signals in."""
    with waiting():
        time.sleep(seconds)


def _mine() -> _Watch | None:
    return _watch if threading.current_thread() is threading.main_thread() else None

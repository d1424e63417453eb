"""Ctrl-C, SIGTERM and SIGHUP as one exception, raised once, so that every `with` block can clean up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the first of SIGNALS into Interrupted for this block; those after it wait for the clean-up.

    A signal that is ignored on entry (SIGINT in a shell's background job, SIGHUP under nohup) stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in SIGNALS}
    active = [s for s in SIGNALS if before[s] is not signal.SIG_IGN]

    def interrupt(signum: int, _frame: FrameType | None) -> None:
        for each in active:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(signum)

    for each in active:
        signal.signal(each, interrupt)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def held() -> Iterator[None]:
    """Let none of SIGNALS in during this block, which must be short and is worth finishing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, signal.SIG_IGN) for s in SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)

"""One task on several hosts at once: a process for each, so that what becomes of one is nothing to the others."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from . import signals
from .errors import Interrupted

# Takes the host's name and a line that its task has said on the way.
Relay = Callable[[str, str], None]


@dataclass
class Outcome:
    """How a task ended on one host, and what it printed."""

    code: int = 0
    printed: str = ""


@dataclass
class _Child:
    """The process that works on one host; *lifeline* tells it by its end that we are gone."""

    pid: int
    lifeline: int
    readers: list[threading.Thread] = field(default_factory=list)


def work(hosts: Sequence[str], task: Callable[[str], int], said: Relay) -> dict[str, Outcome]:
    """Run *task* on every host at once, each in a process of its own; return how each ended.

    *said* gets every line of theirs that is no result, as it comes; *task* must leave nothing unwritten. Raises
    Interrupted once all of them have ended.
    """
    outcomes = {host: Outcome() for host in hosts}
    children: dict[str, _Child] = {}
    for host in hosts:
        # A copy of another's lifeline would keep that one alive.
        others = [child.lifeline for child in children.values()]
        children[host] = _begin(host, task, outcomes[host], said, others)
    try:
        for host, child in children.items():
            with signals.waiting():
                outcomes[host].code = _await(child)
    except Interrupted as error:
        for child in children.values():
            with suppress(ProcessLookupError):
                os.kill(child.pid, error.code - 128)
        for host, child in children.items():
            with suppress(ChildProcessError):
                outcomes[host].code = _await(child)
        raise
    return outcomes


def together(outcomes: dict[str, Outcome]) -> int:
    """Return the exit code of all: 0 if all are, theirs if they are equal, else 1."""
    codes = {outcome.code for outcome in outcomes.values()}
    return codes.pop() if len(codes) == 1 else 1


def _await(child: _Child) -> int:
    _, status = os.waitpid(child.pid, 0)
    for reader in child.readers:
        reader.join()
    os.close(child.lifeline)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _begin(host: str, task: Callable[[str], int], outcome: Outcome, said: Relay, others: list[int]) -> _Child:
    out, err, life = os.pipe(), os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        _become((out, err, life), others, lambda: task(host))
    for end in (out[1], err[1], life[0]):
        os.close(end)

    def relay() -> None:
        with os.fdopen(err[0], encoding="utf-8", errors="replace") as lines:
            for line in lines:
                said(host, line.rstrip("\n"))

    def collect() -> None:
        with os.fdopen(out[0], encoding="utf-8", errors="replace") as lines:
            outcome.printed = lines.read()

    readers = [threading.Thread(target=each, daemon=True) for each in (relay, collect)]
    for reader in readers:
        reader.start()
    return _Child(pid, life[1], readers)


def _become(pipes: tuple[tuple[int, int], ...], others: list[int], task: Callable[[], int]) -> None:
    """Be the process that does one host's work, and end with its code."""
    out, err, life = pipes
    code = 1
    try:
        nowhere = os.open(os.devnull, os.O_RDONLY)
        for number, end in enumerate((nowhere, out[1], err[1])):
            os.dup2(end, number)
        for end in (nowhere, *out, *err, life[1], *others):
            os.close(end)
        threading.Thread(target=_end_with, args=(life[0],), daemon=True).start()
        code = task()
    finally:
        # Nothing of the process we are a copy of is to be done a second time.
        os._exit(code)


def _end_with(lifeline: int) -> None:
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGTERM)

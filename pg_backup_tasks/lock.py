"""One run at a time in a backup folder: a lock that any machine with a shell can take, judge and take over.

The lock is a symbolic link that says who holds it; making one is a single step that fails if it exists. A link is
never removed by anyone but its maker: whoever finds its maker dead makes a second link, named after the dead one,
and so on. Who holds the lock stands at the end of that chain, so two that find the same dead run cannot both
take over from it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from .errors import Locked
from .machine import Machine

FILE = ".lock"
_AGAIN = 0.2


@dataclass(frozen=True)
class Holder:
    """Who holds the lock: a run, its task and since when."""

    presence: str
    task: str
    since: str

    @classmethod
    def parse(cls, text: str) -> Holder:
        """Read what a lock says; one that is not ours keeps its text as the task."""
        presence, _, rest = text.partition(" ")
        since, _, task = rest.partition(" ")
        return cls(presence, task or "something", since or "an unknown time")

    def __str__(self) -> str:
        return f"{self.presence} {self.since} {self.task}"


@contextmanager
def hold(
    machine: Machine,
    folder: str,
    task: str,
    clock: Callable[[], datetime],
    wait: float = 0,
) -> Iterator[None]:
    """Hold *folder*'s lock for this block, waiting up to *wait* seconds for it; raise Locked if it is taken."""
    me = Holder(machine.presence(), task, clock().strftime("%Y-%m-%dT%H:%M:%SZ"))
    deadline = time.monotonic() + wait
    while holder := _try(machine, folder, me):
        if time.monotonic() >= deadline:
            raise Locked(
                f"{holder.task} has been at work in {folder} since {holder.since}.",
                hint="--wait SECONDS waits for it",
            )
        time.sleep(_AGAIN)
    try:
        yield
    finally:
        _release(machine, folder, me)


def _try(machine: Machine, folder: str, me: Holder) -> Holder | None:
    """Take the lock, or return who has it."""
    path = f"{folder}/{FILE}"
    while True:
        last, end = _end_of_chain(machine, path)
        if last is not None and str(last) == str(me):
            return None
        if last is not None and machine.alive(last.presence):
            return last
        if machine.claim(end, str(me)):
            # Only a walk from the start shows that the chain still was whole when our link was added.
            confirmed, _ = _end_of_chain(machine, path)
            if confirmed is not None and str(confirmed) == str(me):
                return None
            machine.remove(end)


def _end_of_chain(machine: Machine, path: str) -> tuple[Holder | None, str]:
    """Return the last holder, and the name the link after it would have."""
    last, following = None, path
    while (text := machine.claimed(following)) is not None:
        last = Holder.parse(text)
        following = f"{path}.{_short(text)}"
    return last, following


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _release(machine: Machine, folder: str, me: Holder) -> None:
    path = f"{folder}/{FILE}"
    links, following = [], path
    while (text := machine.claimed(following)) is not None:
        links.append(following)
        if text == str(me):
            # The first link goes first: without it nobody looks at the others.
            for link in links:
                machine.remove(link)
            return
        following = f"{path}.{_short(text)}"

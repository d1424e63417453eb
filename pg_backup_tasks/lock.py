"""One run at a time in a backup folder: a lock that any machine with a shell can take, judge and take over.

The lock is a symbolic link that says who holds it; making one is a single step that fails if it exists. A link is
never removed by anyone but its maker: whoever finds its maker dead makes a second link, named after the dead one,
and so on. Who holds the lock stands at the end of that chain, so two that find the same dead run cannot both
take over from it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from . import signals
from .errors import Locked
from .machine import Entry, Machine

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

    @property
    def host(self) -> str:
        """The computer it is on; only there can be told whether it lives."""
        return self.presence.rpartition("|")[2]

    def __str__(self) -> str:
        return f"{self.presence} {self.since} {self.task}"


@contextmanager
def hold(
    machine: Machine,
    folder: str,
    task: str,
    clock: Callable[[], datetime],
    wait: float = 0,
    tell: Callable[[Holder], None] | None = None,
) -> Iterator[Sequence[Entry]]:
    """Hold *folder*'s lock for this block, waiting up to *wait* seconds for it; raise Locked if it is taken.

    Whoever holds it is told to *tell* before the waiting for them begins. Yields what lies hidden in the folder, which
    had to be looked through for dead links: of fifty thousand names nobody should ask twice.
    """
    me = Holder(machine.presence(), task, clock().strftime("%Y-%m-%dT%H:%M:%SZ"))
    deadline = time.monotonic() + wait
    waited_for = None
    try:
        while holder := _try(machine, folder, me):
            if time.monotonic() >= deadline:
                raise _locked(folder, holder, me)
            if tell and holder != waited_for:
                tell(holder)
            waited_for = holder
            signals.sleep(_AGAIN)
        hidden = machine.entries(folder, ".") or []
        _sweep(machine, folder, hidden)
        yield hidden
    finally:
        _release(machine, folder, me)


def _locked(folder: str, holder: Holder, me: Holder) -> Locked:
    if holder.host == me.host:
        where, hint = "", "--wait SECONDS waits for it"
    else:
        # Nobody here can tell whether it lives.
        where = f" on {holder.host}" if holder.host else ""
        hint = f"--wait SECONDS waits for it; if nothing is at work there any more, remove {folder}/{FILE}*"
    return Locked(f"{holder.task} has been at work in {folder}{where} since {holder.since}.", hint=hint)


def _try(machine: Machine, folder: str, me: Holder) -> Holder | None:
    """Take the lock, or return who has it."""
    while True:
        chain, end = _chain(machine, folder)
        if chain and machine.alive(chain[-1][1].presence):
            return chain[-1][1]
        if machine.claim(end, str(me)):
            # Only a walk from the start shows that the chain still was whole when our link was added.
            chain, _ = _chain(machine, folder)
            if chain and chain[-1][1] == me:
                return None
            machine.remove(end)


def _chain(machine: Machine, folder: str) -> tuple[list[tuple[str, Holder]], str]:
    """Return every link from the first on with its holder, and the name the next one would have."""
    links: list[tuple[str, Holder]] = []
    path = following = f"{folder}/{FILE}"
    while (text := machine.claimed(following)) is not None:
        links.append((following, Holder.parse(text)))
        following = f"{path}.{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        if any(following == path_ for path_, _ in links):
            break  # what somebody has made by hand must not lead in a circle
    return links, following


def _release(machine: Machine, folder: str, me: Holder) -> None:
    links, _ = _chain(machine, folder)
    holders = [holder for _, holder in links]
    # The first link goes first: without it nobody looks at the others.
    for path, _ in links[: holders.index(me) + 1] if me in holders else ():
        machine.remove(path)


def _sweep(machine: Machine, folder: str, hidden: Sequence[Entry]) -> None:
    """Remove the links no chain leads to any more, left by who died just then; only under the lock."""
    whole = {path for path, _ in _chain(machine, folder)[0]}
    for entry in hidden:
        path = f"{folder}/{entry.name}"
        if path in whole or entry.target is None or not entry.name.startswith(f"{FILE}."):
            continue
        if not machine.alive(Holder.parse(entry.target).presence):
            machine.remove(path)

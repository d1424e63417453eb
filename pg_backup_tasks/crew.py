"""Work that goes on side by side, and ends together."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from . import signals
from .machine import Machine

P = ParamSpec("P")
R = TypeVar("R")

_LOOK = 0.1


class Crew:
    """Threads for a machine's long verbs; leaving the block early cancels them and waits for their end."""

    def __init__(self, machine: Machine, size: int = 5) -> None:
        self._machine = machine
        self._executor = ThreadPoolExecutor(size)

    def submit(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Begin *call* beside us."""
        return self._executor.submit(call, *args, **kwargs)

    def result(self, future: Future[R]) -> R:
        """Wait for the result of a call, letting signals in."""
        while not wait([future], _LOOK).done:
            signals.check()
        return future.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._machine.cancel()
        self._executor.shutdown(wait=True, cancel_futures=True)

"""Timing whole processes in pairs, watching their memory, and what the figures amount to."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from .databases import BenchError

T = TypeVar("T")
MB = 1_000_000
GLANCE = 0.02
PATIENCE = 1800.0


class Judged(StrEnum):
    """What of the samples is held against the limit."""

    RATIO = "median of the ratios of each pair"
    EXTRA = "median of the differences of each pair"
    PEAK = "largest"


@dataclass(frozen=True)
class Figure:
    """One line of the result: the samples, and the limit they were taken for."""

    key: str
    what: str
    unit: str
    limit: float
    ours: tuple[float, ...]
    theirs: tuple[float, ...] = ()
    judged: Judged = Judged.RATIO

    @property
    def value(self) -> float:
        if self.judged is Judged.PEAK:
            return max(self.ours)
        pairs = zip(self.ours, self.theirs, strict=True)
        if self.judged is Judged.EXTRA:
            return median(ours - theirs for ours, theirs in pairs)
        return median(ours / theirs for ours, theirs in pairs)

    @property
    def met(self) -> bool:
        return self.value <= self.limit

    def document(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "what": self.what,
            "unit": self.unit,
            "ours": list(self.ours),
            "theirs": list(self.theirs),
            "ours_median": median(self.ours),
            "theirs_median": median(self.theirs) if self.theirs else None,
            "judged": self.judged.value,
            "value": self.value,
            "limit": self.limit,
            "met": self.met,
        }


def paired(ours: Callable[[], T], theirs: Callable[[], T], rounds: int) -> list[tuple[T, T]]:
    """Run both in turn *rounds* times, after once each for warm caches."""
    ours(), theirs()
    return [_pair(ours, theirs, ours_first=turn % 2 == 0) for turn in range(rounds)]


def _pair(ours: Callable[[], T], theirs: Callable[[], T], *, ours_first: bool) -> tuple[T, T]:
    # Who goes first alternates: what a run leaves behind, a warm cache or a hot processor, then
    # favours neither.
    if ours_first:
        return ours(), theirs()
    late = theirs()
    return ours(), late


def seconds(argv: Sequence[str], cwd: Path, env: dict[str, str]) -> float:
    """Return the wall time of a whole process, its start included."""
    # Nobody pays for what the run before left unwritten.
    os.sync()
    started = time.perf_counter()
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{_name(argv)} did not end within {PATIENCE:.0f} s") from None
    elapsed = time.perf_counter() - started
    _insist(argv, done.returncode, done.stderr or done.stdout)
    return elapsed


def _insist(argv: Sequence[str], code: int, said: str) -> None:
    if code:
        raise BenchError(f"{_name(argv)} ended with {code}: {said.strip()[-2000:]}")


def _name(argv: Sequence[str]) -> str:
    # A URL holds a password.
    return " ".join(Path(word).name for word in argv if "://" not in word)


def can_watch_memory() -> bool:
    return Path("/proc/self/status").exists()


def peak_memory(argv: Sequence[str], cwd: Path, env: dict[str, str]) -> int:
    """Return the bytes that our own Python processes held at most, added up; Linux only.

    `ru_maxrss` would not do: a child inherits it over exec from whoever started it, and wait4 puts
    pg_dump's in. VmHWM belongs to one process image alone.
    """
    peaks: dict[int, int] = {}
    seen: set[int] = set()
    with subprocess.Popen(
        argv,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as child:
        while child.poll() is None:
            now = {pid: _high_water(pid) for pid in _family(child.pid) if _is_python(pid)}
            # One sighting may be a child between fork and exec, whose memory is its parent's.
            peaks |= {pid: peak for pid, peak in now.items() if pid in seen and peak}
            seen |= now.keys()
            time.sleep(GLANCE)
    _insist(argv, child.returncode, "it was watched for its memory; run it by hand to see why")
    if not peaks:
        raise BenchError("the process was gone before its memory could be read")
    return sum(peaks.values())


def _family(pid: int) -> Iterator[int]:
    yield pid
    # A process may end while it is looked at, and its folder with it.
    with suppress(OSError):
        for children in list(Path(f"/proc/{pid}/task").glob("*/children")):
            for child in _read(children).split():
                yield from _family(int(child))


def _is_python(pid: int) -> bool:
    try:
        return Path(os.readlink(f"/proc/{pid}/exe")).name.startswith("python")
    except OSError:
        return False


def _high_water(pid: int) -> int:
    for line in _read(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _read(path: Path) -> str:
    # Processes come and go while they are looked at.
    try:
        return path.read_text()
    except OSError:
        return ""

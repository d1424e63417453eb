"""Sizes, times and lists as people read them. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence


def size(bytes_: int) -> str:
    """Return a size as people read it, decimal: 102.2 MB."""
    value = float(bytes_)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number and what it counts: 1 table, 2 tables."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def duration(seconds: float) -> str:
    """Return a duration as people read it: 0.4 s, 12 s, 3 min 20 s."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def short_age(seconds: float) -> str:
    """Return how long ago something was: now, 5 min, 3 h, 12 d; `future` for a date that is to come."""
    if seconds < -60:
        return "future"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= (2 * length if unit != "min" else length):
            return f"{int(seconds // length)} {unit}"
    return "now"


def until(seconds: float) -> str:
    """Return how long it takes yet, rounded up: 1 min, 3 h, 12 d."""
    for unit, length in (("d", 86400), ("h", 3600)):
        if seconds > 2 * length:
            return f"{math.ceil(seconds / length)} {unit}"
    return f"{math.ceil(seconds / 60)} min"


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return names for a sentence; of many the first, and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

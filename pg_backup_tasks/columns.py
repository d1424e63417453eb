"""Rows in columns for a terminal: numbers to the right, the last column folded. Pure, and quick for many thousands."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_GAP = "  "
_NARROWEST = 12
_RIGHT = frozenset({"#", "AGE", "SIZE"})
_BOLD, _RED, _PLAIN = "\x1b[1m", "\x1b[31m", "\x1b[0m"


@dataclass(frozen=True)
class Row:
    """One row; the first of a table is its heading, and *alarming* ones are shown in red."""

    cells: tuple[str, ...]
    alarming: bool = False


def lines(rows: Sequence[Row], width: int, *, coloured: bool) -> Iterator[str]:
    """Yield the lines of a table, none wider than *width* as long as its first columns are not."""
    *fixed, _ = zip(*(row.cells for row in rows), strict=True)
    widths = [max(map(_cells, column)) for column in fixed]
    right = [title in _RIGHT for title in rows[0].cells]
    left = sum(w + len(_GAP) for w in widths)
    room = max(_NARROWEST, width - left)
    for number, row in enumerate(rows):
        begin, end = (_BOLD, _PLAIN) if number == 0 else (_RED, _PLAIN) if row.alarming else ("", "")
        padded = [_pad(cell, w, to_the_right) for cell, w, to_the_right in zip(row.cells, widths, right, strict=False)]
        folded = _fold(row.cells[-1], room)
        for indent, text in zip([_GAP.join([*padded, ""]), *[" " * left] * (len(folded) - 1)], folded, strict=True):
            line = f"{indent}{text}".rstrip()
            yield f"{begin}{line}{end}" if coloured and begin else line


def width(rows: Sequence[Row], without: str) -> int:
    """Return how wide a table is at least, its gaps included, the column *without* left out but for its gap."""
    *fixed, last = zip(*(row.cells for row in rows), strict=True)
    widths = [max(map(_cells, column)) for column in fixed if column[0] != without]
    return sum(widths) + len(_GAP) * len(fixed) + min(_NARROWEST, max(map(_cells, last)))


def _fold(text: str, room: int) -> list[str]:
    return [text] if _cells(text) <= room else textwrap.wrap(text, room) or [""]


def _pad(text: str, width: int, to_the_right: bool) -> str:
    blank = " " * (width - _cells(text))
    return blank + text if to_the_right else text + blank


def _cells(text: str) -> int:
    """Return how many places a terminal gives a text."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)

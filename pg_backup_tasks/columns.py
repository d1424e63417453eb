"""Rows in columns for a terminal: numbers to the right, what is too long cut. Pure, and quick for many thousands."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

_GAP = "  "
_END = "\x1b[0m"


class Style(Enum):
    """How a line is to be seen, as a terminal is told."""

    PLAIN = ""
    HEADING = "\x1b[1m"
    DIM = "\x1b[2m"
    ALARM = "\x1b[31m"


class Table(NamedTuple):
    """What stands in each column, from the first row to the last, and how each row is to be seen."""

    columns: Sequence[Sequence[str]]
    styles: Sequence[Style]


def lines(
    table: Table,
    width: int,
    *,
    coloured: bool,
    right: Collection[int] = (),
    giving: Mapping[int, int] = MappingProxyType({}),
    head: int = 1,
) -> Iterator[str]:
    """Yield the lines of a table, none wider than *width* as long as the columns that give nothing are not.

    The columns in *right* stand to the right. Those *giving* are cut where there is no room, the first one first, to
    what each needs at least. Where that is not enough, each row's first *head* columns have a line of their own.
    """
    columns, styles = table
    widths = [max(map(len if _is_plain(column) else cells, column)) for column in columns]
    given = _given(widths, width, giving)
    if sum(given) + len(_GAP) * (len(given) - 1) <= width or head >= len(columns):
        for style, line in zip(styles, _rows(columns, given, right), strict=True):
            yield _styled(line, style, coloured)
        return
    heads = _rows(columns[:head], widths[:head], right)
    rest = {n - head: least for n, least in giving.items()}
    given = _given(widths[head:], width - len(_GAP), rest)
    others = _rows(columns[head:], given, [n - head for n in right])
    for style, line, below in zip(styles, heads, others, strict=True):
        yield _styled(line, style, coloured)
        yield _styled(_GAP + below, style, coloured)


def _given(widths: Sequence[int], width: int, giving: Mapping[int, int]) -> list[int]:
    """Return the widths after the columns in *giving* have given what is too much."""
    given = list(widths)
    excess = sum(given) + len(_GAP) * (len(given) - 1) - width
    for column, least in giving.items():
        gives = max(0, min(excess, given[column] - least))
        given[column] -= gives
        excess -= gives
    return given


def _rows(columns: Sequence[Sequence[str]], widths: Sequence[int], right: Collection[int]) -> Iterator[str]:
    shown = [_fitted(column, width, n in right) for n, (column, width) in enumerate(zip(columns, widths, strict=True))]
    return (_GAP.join(parts).rstrip() for parts in zip(*shown, strict=True))


def title(text: str, width: int, *, coloured: bool) -> Iterator[str]:
    """Yield the lines of what stands above a table."""
    for line in textwrap.wrap(text, width, subsequent_indent=_GAP):
        yield _styled(line, Style.HEADING, coloured)


def cells(text: str) -> int:
    """Return how many places a terminal gives a text."""
    if text.isascii():
        return len(text)
    return sum(map(_places, text))


def room(width: int, least: int, *columns: int) -> int:
    """Return what is left of *width* for the last column beside others of these widths.

    Where that is less than the *least* it needs, it is what is left of a line without the first of them.
    """
    beside = width - sum(columns) - len(_GAP) * len(columns)
    return beside if beside >= least else beside + columns[0]


def _styled(line: str, style: Style, coloured: bool) -> str:
    return f"{style.value}{line}{_END}" if coloured and style.value else line


def _is_plain(column: Sequence[str]) -> bool:
    return all(map(str.isascii, column))


def _fitted(column: Sequence[str], width: int, to_the_right: bool) -> list[str]:
    if _is_plain(column) and max(map(len, column)) <= width:
        return [text.rjust(width) if to_the_right else text.ljust(width) for text in column]
    return [_fit(text, width, to_the_right) for text in column]


def _fit(text: str, width: int, to_the_right: bool) -> str:
    taken = cells(text)
    if taken > width:
        text = _cut(text, width - 1)
        taken = cells(text)
    blank = " " * (width - taken)
    return blank + text if to_the_right else text + blank


def _cut(text: str, width: int) -> str:
    kept = 0
    for place, character in enumerate(text):
        kept += _places(character)
        if kept > width:
            return text[:place] + "…"
    return text


def _places(character: str) -> int:
    return 0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1

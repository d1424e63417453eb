"""Rows in columns: nothing wider than the terminal, what alarms is red."""

from __future__ import annotations

from pg_backup_tasks.columns import Style, Table, cells, lines, room, title

TABLE = Table(
    [
        ["NAME", "a", "bc", "d"],
        ["SIZE", "1 B", "10 kB", "1 MB"],
        ["WHAT", "something that is long", "short", ""],
    ],
    [Style.HEADING, Style.PLAIN, Style.ALARM, Style.DIM],
)


def test_each_column_is_as_wide_as_it_must_be() -> None:
    assert list(lines(TABLE, 80, coloured=False, right=(1,))) == [
        "NAME   SIZE  WHAT",
        "a       1 B  something that is long",
        "bc    10 kB  short",
        "d      1 MB",
    ]


def test_what_gives_is_cut_in_its_turn() -> None:
    shown = list(lines(TABLE, 20, coloured=False, right=(1,), giving={2: 4, 0: 4}))
    assert shown[1:3] == ["a       1 B  someth…", "bc    10 kB  short"]
    assert all(cells(line) <= 20 for line in shown)
    assert list(lines(TABLE, 20, coloured=False, giving={2: 7}))[1] == "a     1 B    someth…"
    assert room(20, 4, 4, 5) == 7
    wide = Table([["\u65e5\u672c\u8a9e\u65e5\u672c\u8a9e", "e\u0301" * 9]], [Style.PLAIN] * 2)
    assert list(lines(wide, 6, coloured=False, giving={0: 4})) == ["\u65e5\u672c…", "e\u0301" * 5 + "…"]


def test_where_all_that_gives_is_not_enough_what_comes_first_has_its_own_line() -> None:
    shown = list(lines(TABLE, 18, coloured=False, right=(1,), giving={2: 9, 0: 4}))
    assert shown[:6] == ["NAME", "   SIZE  WHAT", "a", "    1 B  somethin…", "bc", "  10 kB  short"]
    assert room(18, 9, 4, 5) == 9
    above_two = list(lines(TABLE, 5, coloured=False, right=(1,), giving={2: 4}, head=2))
    assert above_two[2:6] == ["a       1 B", "  som…", "bc    10 kB", "  sho…"]


def test_colours_are_round_whole_lines() -> None:
    heading, plain, alarm, dim = lines(TABLE, 80, coloured=True)
    assert (heading[:4], plain[:1], alarm[:5], dim[:4]) == ("\x1b[1m", "a", "\x1b[31m", "\x1b[2m")
    assert all(line.endswith("\x1b[0m") for line in (heading, alarm, dim))
    assert list(title("one two three", 9, coloured=False)) == ["one two", "  three"]

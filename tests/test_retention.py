"""Which backups stay and which go: whole histories, and what must hold of any."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pg_backup_tasks import retention
from pg_backup_tasks.errors import Refused
from pg_backup_tasks.model import BackupName
from pg_backup_tasks.retention import Candidate, Only, Policy, plan

GOLDEN = Path(__file__).parent / "golden"
NOW = datetime(2026, 11, 22, 14, 30, tzinfo=UTC)
NOTHING = Only()


def days(count: int, *, hour: int = 2, until: datetime = NOW) -> Iterator[datetime]:
    """Yield a backup each night, back from *until*."""
    newest = until.replace(hour=hour, minute=0, second=0)
    return (newest - timedelta(days=n) for n in range(count))


def candidates(moments: Iterable[datetime], type_: str = "auto", *, whole: bool = True) -> list[Candidate]:
    return [Candidate(BackupName(at, type_), whole) for at in moments]


def history(name: str) -> tuple[list[Candidate], datetime]:
    """Return a whole history, and when it is looked at."""
    nightly = candidates(days(730))
    if name == "nightly for two years":
        return nightly, NOW
    if name == "gaps":
        gone = [
            c for c in nightly if not datetime(2026, 6, 1, tzinfo=UTC) <= c.name.at < datetime(2026, 10, 15, tzinfo=UTC)
        ]
        return [c for c in gone if c.name.at.day % 3], NOW
    if name == "bursts":
        burst = candidates((NOW - timedelta(seconds=20 * n) for n in range(40)), "manual")
        return [*burst, *candidates(days(30), "manual")], NOW
    if name == "before every migration":
        moments = [NOW - timedelta(days=n // 4, hours=n % 4) for n in range(60)]
        return candidates(moments, "pre_migrate"), NOW
    if name == "around New Year":
        at = datetime(2027, 1, 6, 9, 0, tzinfo=UTC)
        return candidates(days(45, until=at)), at
    if name == "the clock set back":
        return candidates(days(20)), NOW - timedelta(days=10)
    if name == "nothing for a year":
        return candidates(days(20, until=NOW - timedelta(days=400))), NOW
    assert name == "some are not whole"
    halves = candidates([c.name.at for c in nightly[:60] if c.name.at.day % 4 == 0], whole=False)
    return [c for c in nightly[:60] if c.name.at.day % 4] + halves, NOW


HISTORIES = (
    "nightly for two years",
    "gaps",
    "bursts",
    "before every migration",
    "around New Year",
    "the clock set back",
    "nothing for a year",
    "some are not whole",
)


@pytest.mark.parametrize("name", HISTORIES)
def test_whole_histories(name: str) -> None:
    found, now = history(name)
    fates = plan(found, retention.policies({}), now, NOTHING)
    lines = [f"{'kept' if f.kept else 'gone'} {f.name}: {', '.join(f.reasons)}" for f in fates]
    gone = [line for line in lines if line.startswith("gone")]
    # Of the many that go, the first and the last tell enough.
    text = (
        "\n".join([line for line in lines if line.startswith("kept")] + gone[:2] + gone[-1:]) + f"\n{len(gone)} gone\n"
    )
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("WRITE_GOLDEN"):
        path.write_text(text)
    assert path.read_text() == text


def test_two_years_of_nights_by_hand() -> None:
    found, now = history("nightly for two years")
    kept = [f for f in plan(found, retention.policies({}), now, NOTHING) if f.kept]
    assert [f"{f.name.at:%m-%d}" for f in kept[:7]] == ["11-22", "11-21", "11-20", "11-19", "11-18", "11-17", "11-16"]
    # 2026-11-22 is a Sunday, the last day of W47; each week and month keeps its newest.
    assert [f"{f.name.at:%m-%d}" for f in kept[7:11]] == ["11-15", "11-08", "11-01", "10-31"]
    assert len(kept) == 7 + 3 + 11
    assert f"{kept[-1].name.at:%Y-%m-%d}" == "2025-12-31"


def test_cleaned_every_night_it_is_what_one_cleanup_would_leave() -> None:
    shelf: list[Candidate] = []
    nights = candidates(sorted(days(500)))
    for night in nights:
        shelf.append(night)
        stay = kept(shelf, Policy(), night.name.at)
        shelf = [c for c in shelf if c.name in stay]
    assert {c.name for c in shelf} == kept(nights, Policy(), NOW)


# What must hold of any

SECONDS = int(timedelta(days=800).total_seconds())
MOMENTS = st.integers(0, SECONDS).map(lambda n: datetime(2024, 12, 1, tzinfo=UTC) + timedelta(seconds=n))
SHELVES = st.lists(
    st.builds(
        Candidate,
        st.builds(BackupName, MOMENTS, st.sampled_from(["auto", "manual", "pre_migrate"])),
        st.booleans(),
        st.sampled_from(["", "", "db.undo needs it"]),
        st.just(False),
    ),
    max_size=40,
    unique_by=lambda c: c.name,
)
COUNTS = st.integers(0, 6)
POLICIES = st.tuples(COUNTS, COUNTS, COUNTS, COUNTS).filter(any).map(lambda counts: Policy(*counts))
ONLY = st.builds(Only, st.none() | st.integers(1, 400), st.none() | st.integers(1, 20))


def everywhere(policy: Policy) -> Callable[[str], Policy]:
    return lambda _: policy


def kept(shelf: list[Candidate], policy: Policy, now: datetime, only: Only = NOTHING) -> set[BackupName]:
    return {f.name for f in plan(shelf, everywhere(policy), now, only) if f.kept}


def of(shelf: list[Candidate], type_: str) -> list[Candidate]:
    return sorted((c for c in shelf if c.name.type == type_), key=lambda c: c.name, reverse=True)


@given(SHELVES, POLICIES, MOMENTS, ONLY)
def test_nobodys_last_good_one_goes(shelf: list[Candidate], policy: Policy, now: datetime, only: Only) -> None:
    fates = plan(shelf, everywhere(policy), now, only)
    assert sorted(f.name for f in fates) == sorted(c.name for c in shelf)
    assert all(f.reasons for f in fates)
    stay = {f.name for f in fates if f.kept}
    for type_ in {c.name.type for c in shelf}:
        whole = [c.name for c in of(shelf, type_) if c.whole]
        assert set(whole[:1]) <= stay
        assert set([n for n in whole if n.at <= now][:1]) <= stay
    assert {c.name for c in shelf if c.needed or c.name.at > now} <= stay


@given(SHELVES, POLICIES, MOMENTS)
def test_never_fewer_than_promised(shelf: list[Candidate], policy: Policy, now: datetime) -> None:
    stay = kept(shelf, policy, now)
    for type_ in {c.name.type for c in shelf}:
        whole = [c.name for c in of(shelf, type_) if c.whole and c.name.at <= now]
        assert set(whole[: policy.last]) <= stay
        for count, period in ((policy.daily, "%Y-%m-%d"), (policy.weekly, "%G-%V"), (policy.monthly, "%Y-%m")):
            promised = list(dict.fromkeys(f"{n.at:{period}}" for n in whole))[:count]
            assert set(promised) <= {f"{n.at:{period}}" for n in stay if n in whole}


@given(SHELVES, POLICIES, MOMENTS, ONLY)
def test_once_more_changes_nothing(shelf: list[Candidate], policy: Policy, now: datetime, only: Only) -> None:
    stay = kept(shelf, policy, now, only)
    assert kept([c for c in shelf if c.name in stay], policy, now, only) == stay


@given(SHELVES, POLICIES, st.tuples(COUNTS, COUNTS, COUNTS, COUNTS), MOMENTS)
def test_a_longer_policy_keeps_all_that_a_shorter_does(
    shelf: list[Candidate], policy: Policy, more: tuple[int, ...], now: datetime
) -> None:
    d, w, m, n = more
    longer = Policy(policy.daily + d, policy.weekly + w, policy.monthly + m, policy.last + n)
    assert kept(shelf, policy, now) <= kept(shelf, longer, now)


@given(SHELVES, st.integers(1, 300), st.integers(1, 300), st.integers(1, 20), MOMENTS)
def test_both_flags_must_say_so(shelf: list[Candidate], older: int, more: int, keep: int, now: datetime) -> None:
    policy = Policy()
    by_age = kept(shelf, policy, now, Only(older_than=older))
    by_count = kept(shelf, policy, now, Only(keep=keep))
    assert kept(shelf, policy, now, Only(older, keep)) == by_age | by_count
    assert by_age <= kept(shelf, policy, now, Only(older_than=older + more))


@given(SHELVES, MOMENTS)
def test_types_do_not_matter_to_each_other(shelf: list[Candidate], now: datetime) -> None:
    assume(shelf)
    type_ = shelf[0].name.type
    alone = kept([c for c in shelf if c.name.type == type_], Policy(), now)
    assert {n for n in kept(shelf, Policy(), now) if n.type == type_} == alone


def test_age_is_counted_to_the_second() -> None:
    at = NOW - timedelta(days=30)
    shelf = candidates([NOW, at, at - timedelta(seconds=1)])
    assert len(kept(shelf, Policy(), NOW, Only(older_than=30))) == 2


# What is set


def test_a_type_has_what_is_set_for_it_over_what_is_set_for_all_over_what_is_usual() -> None:
    of = retention.policies({"all": {"daily": 3}, "manual": {"last": 2}, "nightly": {"weekly": 9}})
    assert of("auto") == Policy(daily=3)
    assert of("manual") == Policy(daily=3, last=2)
    assert of("pre_migrate") == Policy(daily=3, last=3)
    assert of("nightly") == Policy(daily=3, weekly=9)
    assert retention.policies({"pre-migrate": {"last": 9}})("pre_migrate") == Policy(last=9)
    assert retention.policies({})("manual") == Policy(last=10)


@pytest.mark.parametrize(
    "setting",
    [
        {"auto": {"dayly": 3}},
        {"auto": {"daily": -1}},
        {"auto": {"daily": "3"}},
        {"auto": {"daily": True}},
        {"auto": {"daily": 1.5}},
        {"auto": {"daily": 0, "weekly": 0, "monthly": 0}},
        {"all": {"daily": 0, "weekly": 0, "monthly": 0}},
        {"auto": {"monthly": 99999999999999999999}},
        {"Pre_migrate": {"daily": 3}},
        {"latest": {"daily": 3}},
        {"": {"daily": 3}},
        {"pre-migrate": {"daily": 3}, "pre_migrate": {"daily": 4}},
    ],
)
def test_a_policy_that_is_wrong_is_refused(setting: dict[str, dict[str, int]]) -> None:
    with pytest.raises(Refused):
        retention.policies(setting)


@pytest.mark.parametrize(("older_than", "keep"), [(0, None), (None, 0), (-1, None), (None, -1)])
def test_flags_that_would_keep_nothing_are_refused(older_than: int | None, keep: int | None) -> None:
    with pytest.raises(Refused):
        Only(older_than, keep)


def test_what_is_not_whole_takes_no_place() -> None:
    whole = candidates(days(3, hour=2))
    later = candidates(days(3, hour=20, until=NOW - timedelta(days=1)), whole=False)
    fates = {f.name: f for f in plan([*whole, *later], everywhere(Policy(1, 0, 0, 0)), NOW, NOTHING)}
    assert fates[whole[0].name].kept
    assert not fates[whole[1].name].kept
    assert whole[0]._replace(whole=False) not in whole

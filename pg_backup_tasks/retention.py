"""Which backups stay and which go, and why: a plan made of names, a policy and the time. Pure.

A backup is kept for the newest of each of the last days, ISO weeks and months (UTC) that have backups, and among the
last of its type. What is not whole takes no place from what is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from itertools import groupby, islice
from typing import Any, NamedTuple

from .errors import Refused
from .model import BY_TIME, BackupName, parse_type

EVERY_TYPE = "all"
NOT_WHOLE = "not whole"
_MOST = 999_999


@dataclass(frozen=True)
class Policy:
    """How many days, ISO weeks and months that have backups keep their newest, and how many of the last stay anyway."""

    daily: int = 7
    weekly: int = 4
    monthly: int = 12
    last: int = 0

    def __str__(self) -> str:
        counts = {"daily": self.daily, "weekly": self.weekly, "monthly": self.monthly}
        last = [f"last {self.last}"] if self.last else []
        return ", ".join([*(f"{count} {title}" for title, count in counts.items() if count), *last])

    def __post_init__(self) -> None:
        """Raise Refused for what would keep nothing."""
        if not any((self.daily, self.weekly, self.monthly, self.last)):
            raise Refused(
                "A policy that keeps nothing is none.", hint="at least one of daily, weekly, monthly and last"
            )


# What the types of the tasks themselves keep where nothing else is set.
USUAL = {"manual": Policy(last=10), "pre_migrate": Policy(last=3)}


@dataclass(frozen=True)
class Only:
    """What replaces the policy for one run; with both, a backup goes only if both say so."""

    older_than: int | None = None
    keep: int | None = None

    def __post_init__(self) -> None:
        """Raise Refused for what would keep nothing."""
        for flag, value in (("--older-than", self.older_than), ("--keep", self.keep)):
            if value is not None and value < 1:
                raise Refused(f"{flag} takes a whole number from 1 to {_MOST}.", hint=f"{flag} 30")

    def __str__(self) -> str:
        last = [f"last {self.keep}"] if self.keep is not None else []
        young = [f"not older than {_days(self.older_than)}"] if self.older_than is not None else []
        return " or ".join(last + young)

    @property
    def given(self) -> bool:
        """Whether anything was."""
        return (self.older_than, self.keep) != (None, None)


class Candidate(NamedTuple):
    """A backup as the plan sees it; *needed* says what for it must stay, empty if for nothing.

    Of one that is *begun* some files are removed already. How many *bytes* it has changes nothing in its fate.
    """

    name: BackupName
    whole: bool
    needed: str = ""
    begun: bool = False
    bytes: int = 0


class Fate(NamedTuple):
    """What becomes of a backup, and why; *whole* and of so many *bytes* as its candidate was."""

    name: BackupName
    kept: bool
    reasons: tuple[str, ...]
    whole: bool
    bytes: int


def policies(settings: Mapping[str, Mapping[str, Any]]) -> Callable[[str], Policy]:
    """Return what tells the policy of each type, from the setting: by type, `all` for every type.

    Raises Refused for an unknown key, a value that is no number of backups, or a policy that keeps nothing.
    """
    known = {f.name for f in fields(Policy)}
    for type_, given in settings.items():
        for key, value in given.items():
            if key not in known:
                raise Refused(f"The retention of {type_} has no {key!r}.", hint=", ".join(sorted(known)))
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST:
                raise Refused(
                    f"{key} in the retention of {type_} must be a whole number from 0 to {_MOST}.", hint=f"{key}: 7"
                )
    by_type = _by_type(settings)

    def of(type_: str) -> Policy:
        return replace(USUAL.get(type_, Policy()), **{**by_type.get(EVERY_TYPE, {}), **by_type.get(type_, {})})

    for type_ in {*by_type, *USUAL}:
        of(type_)
    return of


def _by_type(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the setting by the types as they are stored: what is said of a type that cannot be would keep nothing."""
    found: dict[str, Mapping[str, Any]] = {}
    for key, given in settings.items():
        try:
            type_ = key if key == EVERY_TYPE else parse_type(key)
        except Refused:
            raise Refused(
                f"The retention names {key!r}, which cannot be a backup type.",
                hint="lower-case letters, digits and _; or all, for every type",
            ) from None
        if type_ in found:
            raise Refused(f"The retention names {type_} twice, with - and with _.", hint=f"only {type_}")
        found[type_] = given
    return found


def plan(candidates: Iterable[Candidate], of: Callable[[str], Policy], now: datetime, only: Only) -> list[Fate]:
    """Return the fate of every backup, newest first; each type is judged by itself."""
    types: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        types.setdefault(candidate.name.type, []).append(candidate)
    fates = [fate for type_, found in types.items() for fate in _of_one_type(found, of(type_), now, only)]
    return sorted(fates, key=lambda fate: BY_TIME(fate.name), reverse=True)


@dataclass(slots=True)
class _Judged:
    """A backup while it is being judged, and what has been found to keep it."""

    candidate: Candidate
    reasons: list[str] = field(default_factory=list)


def _of_one_type(found: Sequence[Candidate], policy: Policy, now: datetime, only: Only) -> Iterator[Fate]:
    for candidate in found:
        if candidate.begun:
            yield _fate(candidate, kept=False, reasons=("an earlier cleanup had begun to",))
    newest_first = [_Judged(c) for c in found if not c.begun]
    newest_first.sort(key=lambda judged: BY_TIME(judged.candidate.name), reverse=True)
    future = [judged for judged in newest_first if judged.candidate.name.at > now]
    # They come first.
    past = newest_first[len(future) :]
    whole = [judged for judged in past if judged.candidate.whole]
    # Whole ones first and by themselves, so that no other takes a place from them.
    for among in (whole, past) if len(whole) < len(past) else (past,):
        for judged, reason in _kept_anyway(among, only, now) if only.given else _kept(among, policy):
            if reason not in judged.reasons:
                judged.reasons.append(reason)
    for judged in future:
        judged.reasons.append("dated in the future")
    # Also one that is dated in the future may be all there is that is whole.
    for judged in [j for j in newest_first if j.candidate.whole][:1] + whole[:1]:
        judged.reasons = judged.reasons or ["the newest whole one"]
    for judged in newest_first:
        candidate = judged.candidate
        kept = [*judged.reasons, candidate.needed] if candidate.needed else judged.reasons
        yield _fate(candidate, kept=bool(kept), reasons=tuple(kept or _why_gone(candidate, only)))


def _fate(candidate: Candidate, *, kept: bool, reasons: tuple[str, ...]) -> Fate:
    return Fate(candidate.name, kept, reasons, candidate.whole, candidate.bytes)


def _kept(newest_first: Sequence[_Judged], policy: Policy) -> Iterator[tuple[_Judged, str]]:
    for title, count, period, shown in (
        ("daily", policy.daily, datetime.date, "%Y-%m-%d"),
        ("weekly", policy.weekly, lambda at: at.isocalendar()[:2], "%G-W%V"),
        ("monthly", policy.monthly, lambda at: (at.year, at.month), "%Y-%m"),
    ):
        newest = islice(_newest_of_each(newest_first, period), count)
        yield from ((judged, f"{title} {judged.candidate.name.at.strftime(shown)}") for judged in newest)
    last = f"one of the last {policy.last}"
    yield from ((judged, last) for judged in newest_first[: policy.last])


def _newest_of_each(newest_first: Sequence[_Judged], period: Callable[[datetime], object]) -> Iterator[_Judged]:
    for _, of_one in groupby(newest_first, lambda judged: period(judged.candidate.name.at)):
        yield next(of_one)


def _kept_anyway(newest_first: Sequence[_Judged], only: Only, now: datetime) -> Iterator[tuple[_Judged, str]]:
    for place, judged in enumerate(newest_first):
        if only.keep is not None and place < only.keep:
            yield judged, f"one of the last {only.keep}"
        if only.older_than is not None and now - judged.candidate.name.at <= timedelta(days=only.older_than):
            yield judged, f"not older than {_days(only.older_than)}"


def _why_gone(candidate: Candidate, only: Only) -> list[str]:
    said = []
    if only.older_than is not None:
        said.append(f"older than {_days(only.older_than)}")
    if only.keep is not None:
        said.append(f"not one of the last {only.keep}")
    return ([] if candidate.whole else [NOT_WHOLE]) + (said or ["no rule keeps it"])


def _days(count: int) -> str:
    return f"{count} day" if count == 1 else f"{count} days"

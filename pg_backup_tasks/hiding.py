"""Passwords in text that people may see: hidden wherever they stand, and no other word with them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import quote

_HIDDEN = "***"
# Shorter ones would be found in half of all words; they are hidden where a password stands.
_SHORTEST = 4
# What we say anyway. To hide one of these in the middle of a sentence is to tell that it is the password.
_OURS = ("backup", "backups", "database", "password", "postgres", "postgresql", "restore")
_NAMES = r"backup_[a-z0-9_]+_[0-9]{8}_[0-9]{6}"


def hide(text: str, secrets: Iterable[str], shown: Iterable[str] = ()) -> str:
    """Return *text* without the *secrets*, also percent-encoded ones.

    What is *shown* whatever the passwords are (the names of a database and its user, folders) stays as it is, even
    where it holds or equals one: that is then hidden only where a password stands, as in a URL.
    """
    every = frozenset(form for secret in secrets if secret for form in (secret, quote(secret, safe="")))
    if not every:
        return text
    hidden, pattern = _pattern(every, frozenset(shown))

    def instead(match: re.Match[str]) -> str:
        if match["before"]:
            return f"{match['before']}{_HIDDEN}"
        return _HIDDEN if match[0] in hidden else match[0]

    return pattern.sub(instead, text)


@lru_cache(maxsize=64)
def _pattern(secrets: frozenset[str], shown: frozenset[str]) -> tuple[frozenset[str], re.Pattern[str]]:
    """Return what is hidden wherever it stands, and what finds that, passwords in their places, and what stays."""
    shown = shown.union(_OURS)
    hidden = frozenset(secret for secret in secrets - shown if len(secret) >= _SHORTEST)
    kept = {word for word in shown if any(secret in word for secret in secrets)}
    place = rf"(?P<before>://[^\s/@:]*:|(?i:pass(?:word|wd)?[\"']?\s*[:=]\s*[\"']?))(?:{_any(secrets)})(?![A-Za-z0-9])"
    # What holds another comes first: a URL is hidden as a whole, a name stays as a whole.
    return hidden, re.compile("|".join((place, _NAMES, _any(hidden | kept))))


def _any(words: Iterable[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) or "(?!)"

"""What belongs to a database and to no dump, as the statements that make it so again. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .definitions import unquoted
from .info import DatabaseInfo, Setting
from .postgres import identifier, literal

_PRIVILEGES = {"C": "CREATE", "T": "TEMPORARY", "c": "CONNECT"}
_ACL = re.compile(r'(?P<grantee>"(?:[^"]|"")*"|[^=]*)=(?P<privileges>[A-Za-z*]*)/')
_REFUSED = "pg_backup_tasks: refused "
# What a database has that nobody granted anything on.
_EVERYBODYS = ["=Tc/"]
# These take a list; quoted as a whole, the list would become one name.
_LISTS = frozenset(
    {
        "search_path",
        "temp_tablespaces",
        "session_preload_libraries",
        "local_preload_libraries",
        "unix_socket_directories",
    }
)
_ELEMENT = re.compile(r'"(?:[^"]|"")*"|[^,\s"]+')


@dataclass(frozen=True)
class Statement:
    """One statement, and what is lost when the server will not have it."""

    sql: str
    what: str


def creations(info: DatabaseInfo, name: str, major: int) -> list[str]:
    """Return CREATE DATABASE for an empty database like the one recorded, then what comes near it, best first.

    *major* is the server's version.
    """
    base = f"create database {identifier(name)} template template0 encoding {literal(info.encoding)}"
    libc = " locale_provider libc" if major >= 15 else ""
    places = f" lc_collate {literal(info.collate)} lc_ctype {literal(info.ctype)}"
    provided = {
        "i": f" locale_provider icu icu_locale {literal(info.locale or '')}",
        "b": f" locale_provider builtin builtin_locale {literal(info.locale or '')}",
    }
    # The server's own locale may be of another encoding; C goes with every one.
    return [base + provided.get(info.locale_provider, libc) + places, base, f"{base}{libc} locale 'C'"]


def statements(
    info: DatabaseInfo, name: str, roles: set[str], maker: str, now: DatabaseInfo | None = None
) -> list[Statement]:
    """Return what gives database *name* the recorded owner, comment, settings, limit and grants.

    *now* is what it has, None for one that the role *maker* has just made. Whatever names a role that is not among
    *roles* is left out; `missing_roles` names those.
    """
    target, holder = identifier(name), now.owner if now else maker
    found = _settings(info, target, roles, now.settings if now else [])
    if info.comment is not None or (now and now.comment is not None):
        comment = "null" if info.comment is None else literal(info.comment)
        found.append(Statement(f"comment on database {target} is {comment}", "its comment"))
    if info.connection_limit != (now.connection_limit if now else -1):
        found.append(
            Statement(f"alter database {target} connection limit {info.connection_limit}", "its connection limit")
        )
    granted = info.acl is not None or (now and now.acl is not None)
    if granted:
        found += _grants(info, target, roles, holder, now)
    # Last: whoever gives the database away may say little about it any more.
    if info.owner in roles and not (now and now.owner == info.owner):
        found.append(Statement(f"alter database {target} owner to {identifier(info.owner)}", f"its owner {info.owner}"))
        # What was granted to the owner so far would have become the new one's.
        found += _given(info, target, {holder} & roles) if granted else []
    return found


def leniently(statements: Sequence[Statement]) -> str:
    """Return SQL that tries each statement within a transaction that goes on; psql says which were refused."""
    tries = (
        f"begin execute {literal(s.sql)}; exception when others then raise warning {literal(f'{_REFUSED}{n}.')}; end;"
        for n, s in enumerate(statements)
    )
    return f"do {literal('begin ' + ' '.join(tries) + ' end')};\n" if statements else ""


def refused(said: str, statements: Sequence[Statement]) -> list[Statement]:
    """Return the statements that psql said were refused."""
    return [s for n, s in enumerate(statements) if f"{_REFUSED}{n}." in said]


def _settings(info: DatabaseInfo, target: str, roles: set[str], now: list[Setting]) -> list[Statement]:
    found = []
    wanted = {(s.role, s.name) for s in info.settings}
    for setting in now:
        if (setting.role, setting.name) not in wanted:
            whose = _whose(setting, target)
            found.append(Statement(f"{whose} reset {_parameter(setting.name)}", f"{setting.name} back"))
    for setting in info.settings:
        if setting not in now and (setting.role is None or setting.role in roles):
            of = f" of {setting.role}" if setting.role else ""
            found.append(
                Statement(
                    f"{_whose(setting, target)} set {_assign(setting.name, setting.value)}",
                    f"the setting {setting.name}{of}",
                )
            )
    return found


def _whose(setting: Setting, target: str) -> str:
    if setting.role is None:
        return f"alter database {target}"
    return f"alter role {identifier(setting.role)} in database {target}"


def missing_roles(info: DatabaseInfo, roles: set[str]) -> list[str]:
    """Return the roles the recorded owner, grants and settings name that are not among *roles*."""
    named = {info.owner} | {s.role for s in info.settings if s.role}
    named |= {grantee for grantee, _ in _entries(info.acl or []) if grantee}
    return sorted(named - roles)


def _parameter(name: str) -> str:
    return ".".join(map(identifier, name.split(".")))


def _assign(name: str, value: str) -> str:
    if name not in _LISTS:
        return f"{_parameter(name)} to {literal(value)}"
    # Kept as one text, in which each element may be quoted as an identifier is.
    elements = [unquoted(e) for e in _ELEMENT.findall(value)]
    return f"{_parameter(name)} to {', '.join(map(literal, elements or ['']))}"


def _grants(info: DatabaseInfo, target: str, roles: set[str], holder: str, now: DatabaseInfo | None) -> list[Statement]:
    """Return what leaves the recorded grants and no others, but for those to *holder*, who owns it so far."""
    strangers = {grantee for grantee, _ in _entries((now and now.acl) or []) if grantee not in ("", holder)}
    found = [
        Statement(f"revoke all on database {target} from {who} cascade", "its grants")
        for who in ("public", *map(identifier, sorted(strangers & roles)))
    ]
    found += _owners(info, target, holder, now)
    return found + _given(info, target, (roles | {""}) - {holder})


def _owners(info: DatabaseInfo, target: str, holder: str, now: DatabaseInfo | None) -> list[Statement]:
    """Return what gives *holder* what the recorded owner has: it may have taken some from itself."""
    wanted = _held(info.acl, info.owner)
    there = _held(now.acl, holder) if now else _held(None, holder)
    verbs = {
        word: "grant {} on database {} to {}" if letter in wanted else "revoke {} on database {} from {}"
        for letter, word in _PRIVILEGES.items()
        if (letter in wanted) != (letter in there)
    }
    return [Statement(verb.format(word, target, identifier(holder)), "its grants") for word, verb in verbs.items()]


def _held(acl: list[str] | None, owner: str) -> str:
    """Return the privileges that an owner has, which are all where nobody has said anything."""
    if acl is None:
        return "".join(_PRIVILEGES)
    return "".join(privileges for grantee, privileges in _entries(acl) if grantee == owner)


def _given(info: DatabaseInfo, target: str, grantees: set[str]) -> list[Statement]:
    """Return the recorded grants to some *grantees*, "" being everybody; the owner needs none."""
    return [
        Statement(
            f"grant {_PRIVILEGES[letter]} on database {target} to {identifier(grantee) if grantee else 'public'}"
            f"{' with grant option' if star else ''}",
            f"{_PRIVILEGES[letter]} for {grantee or 'everybody'}",
        )
        for grantee, privileges in _entries(_EVERYBODYS if info.acl is None else info.acl)
        if grantee in grantees - {info.owner}
        for letter, star in re.findall(r"([A-Za-z])(\*?)", privileges)
        if letter in _PRIVILEGES
    ]


def _entries(acl: list[str]) -> list[tuple[str, str]]:
    """Return (grantee, privilege letters) of each aclitem; an empty grantee is everybody."""
    matches = filter(None, map(_ACL.match, acl))
    return [(unquoted(match["grantee"]), match["privileges"]) for match in matches]

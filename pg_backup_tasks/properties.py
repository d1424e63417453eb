"""What belongs to a database and to no dump, as the statements that make it so again. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .info import DatabaseInfo
from .postgres import identifier, literal

_PRIVILEGES = {"C": "CREATE", "T": "TEMPORARY", "c": "CONNECT"}
_ACL = re.compile(r'(?P<grantee>"(?:[^"]|"")*"|[^=]*)=(?P<privileges>[A-Za-z*]*)/')
# These take a list; quoted as a whole, the list would become one name.
_LISTS = frozenset(
    {
        "search_path",
        "temp_tablespaces",
        "session_preload_libraries",
        "local_preload_libraries",
        "unix_socket_directories",
        "DateStyle",
    }
)


@dataclass(frozen=True)
class Statement:
    """One statement, and what is lost when the server will not have it."""

    sql: str
    what: str


def create(info: DatabaseInfo, name: str, *, with_locale: bool) -> str:
    """Return the CREATE DATABASE for an empty database like the one recorded."""
    words = [f"create database {identifier(name)} template template0", f"encoding {literal(info.encoding)}"]
    if with_locale:
        words += [f"lc_collate {literal(info.collate)}", f"lc_ctype {literal(info.ctype)}"]
        if info.locale_provider == "i" and info.locale:
            words += ["locale_provider icu", f"icu_locale {literal(info.locale)}"]
        elif info.locale_provider == "b" and info.locale:
            words += ["locale_provider builtin", f"builtin_locale {literal(info.locale)}"]
    return " ".join(words)


def statements(info: DatabaseInfo, name: str, roles: set[str]) -> list[Statement]:
    """Return what gives database *name* the recorded owner, comment, settings, limit and grants.

    Whatever names a role that is not among *roles* is left out; `missing_roles` names those.
    """
    target = identifier(name)
    found = []
    if info.comment is not None:
        found.append(Statement(f"comment on database {target} is {literal(info.comment)}", "its comment"))
    for setting in info.settings:
        if setting.role is None:
            found.append(
                Statement(
                    f"alter database {target} set {_assign(setting.name, setting.value)}", f"the setting {setting.name}"
                )
            )
        elif setting.role in roles:
            found.append(
                Statement(
                    f"alter role {identifier(setting.role)} in database {target} set "
                    f"{_assign(setting.name, setting.value)}",
                    f"the setting {setting.name} of {setting.role}",
                )
            )
    if info.connection_limit != -1:
        found.append(
            Statement(f"alter database {target} connection limit {info.connection_limit}", "its connection limit")
        )
    if info.acl is not None:
        found += _grants(info.acl, info.owner, target, roles)
    # Last: whoever gives the database away may say nothing about it any more.
    if info.owner in roles:
        found.append(Statement(f"alter database {target} owner to {identifier(info.owner)}", f"its owner {info.owner}"))
    return found


def missing_roles(info: DatabaseInfo, roles: set[str]) -> list[str]:
    """Return the roles the recorded owner, grants and settings name that are not among *roles*."""
    named = {info.owner} | {s.role for s in info.settings if s.role}
    named |= {grantee for grantee, _ in _entries(info.acl or []) if grantee}
    return sorted(named - roles)


def _assign(name: str, value: str) -> str:
    shown = identifier(name) if "." not in name else ".".join(map(identifier, name.split(".", 1)))
    if name in _LISTS:
        return f"{shown} to {value or literal('')}"
    return f"{shown} to {literal(value)}"


def _grants(acl: list[str], owner: str, target: str, roles: set[str]) -> list[Statement]:
    found = [Statement(f"revoke all on database {target} from public", "its grants")]
    for grantee, privileges in _entries(acl):
        if grantee == owner or (grantee and grantee not in roles):
            continue
        who = identifier(grantee) if grantee else "public"
        for letter, star in re.findall(r"([A-Za-z])(\*?)", privileges):
            if letter in _PRIVILEGES:
                option = " with grant option" if star else ""
                found.append(
                    Statement(
                        f"grant {_PRIVILEGES[letter]} on database {target} to {who}{option}",
                        f"{_PRIVILEGES[letter]} for {grantee or 'everybody'}",
                    )
                )
    return found


def _entries(acl: list[str]) -> list[tuple[str, str]]:
    """Return (grantee, privilege letters) of each aclitem; an empty grantee is everybody."""
    found = []
    for item in acl:
        if match := _ACL.match(item):
            name = match["grantee"]
            found.append((name[1:-1].replace('""', '"') if name.startswith('"') else name, match["privileges"]))
    return found

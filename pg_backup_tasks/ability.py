"""Whether a role can make a dump's objects again, all of them and just as they were. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .definitions import unquoted
from .info import DatabaseInfo
from .model import Item

# What any role may create in a database of its own, as long as the definition asks for nothing more.
_ANYBODYS = frozenset(
    {
        "ACL",
        "AGGREGATE",
        "BLOB",
        "BLOB COMMENTS",
        "BLOB METADATA",
        "BLOBS",
        "CHECK CONSTRAINT",
        "COLLATION",
        "COMMENT",
        "CONSTRAINT",
        "CONVERSION",
        "DATABASE",
        "DATABASE PROPERTIES",
        "DEFAULT",
        "DEFAULT ACL",
        "DOMAIN",
        "ENCODING",
        "EXTENSION",
        "FK CONSTRAINT",
        "FUNCTION",
        "INDEX",
        "INDEX ATTACH",
        "MATERIALIZED VIEW",
        "MATERIALIZED VIEW DATA",
        "OPERATOR",
        "POLICY",
        "PROCEDURE",
        "PUBLICATION",
        "PUBLICATION TABLE",
        "ROW SECURITY",
        "RULE",
        "SCHEMA",
        "SEARCHPATH",
        "SEQUENCE",
        "SEQUENCE OWNED BY",
        "SEQUENCE SET",
        "STATISTICS",
        "STDSTRINGS",
        "TABLE",
        "TABLE ATTACH",
        "TABLE DATA",
        "TEXT SEARCH CONFIGURATION",
        "TEXT SEARCH DICTIONARY",
        "TRIGGER",
        "TYPE",
        "VIEW",
    }
)
# What in a definition only a superuser may say.
_TOO_MUCH = {
    "FUNCTION": r"\bLANGUAGE (?:c|internal|\"c\"|\"internal\")\b|\bLEAKPROOF\b",
    "PROCEDURE": r"\bLANGUAGE (?:c|internal|\"c\"|\"internal\")\b",
    "TYPE": r"\bINPUT = |^CREATE TYPE [^;(]*;",
    "PUBLICATION": r"\bFOR ALL TABLES\b|\bFOR TABLES IN SCHEMA\b",
    "ACL": r"\bSET SESSION AUTHORIZATION\b",
    "DEFAULT ACL": r"\bSET SESSION AUTHORIZATION\b",
}
_GRANTEE = re.compile(r'(?:TO|FROM) (?P<role>"(?:[^"]|"")*"|[^\s;"]+)(?: WITH GRANT OPTION)?;', re.MULTILINE)
_NAME = r'(?:"(?:[^"]|"")*"|[^\s,;".]+)'
_POLICY = re.compile(
    rf"CREATE POLICY {_NAME} ON {_NAME}(?:\.{_NAME})?(?: AS RESTRICTIVE)?(?: FOR [A-Z]+)? "
    rf"TO (?P<roles>{_NAME}(?:, {_NAME})*)"
)
_MAPPING = re.compile(r"USER MAPPING (?P<role>.*) SERVER ", re.DOTALL)
_GRANTOR = re.compile(r"/(?P<role>.*)$", re.DOTALL)
# Roles without an entry of their own: who a grant is to, or whoever owns the database.
_ALWAYS_THERE = frozenset({"PUBLIC", "public", "pg_database_owner"})


@dataclass(frozen=True)
class Role:
    """The current user on a server, and what there is for it to name.

    *extensions* are those that can be created, and whether this user may; *settable* the parameters it may set, in
    small letters.
    """

    name: str
    superuser: bool
    createdb: bool
    roles: frozenset[str]
    extensions: dict[str, bool]
    settable: frozenset[str]


def missing_roles(items: Sequence[Item], role: Role) -> list[str]:
    """Return the roles that own or may use a dump's objects and are not on the server."""
    named = {item.owner for item in items if item.owner}
    for item in items:
        if item.kind in ("ACL", "DEFAULT ACL"):
            named |= {unquoted(match["role"]) for match in _GRANTEE.finditer(item.definition)}
        elif item.kind == "POLICY" and (policy := _POLICY.match(item.definition)):
            named |= {unquoted(role) for role in re.findall(_NAME, policy["roles"])}
        elif item.kind == "USER MAPPING" and (mapping := _MAPPING.match(item.name)):
            named.add(mapping["role"])
    return sorted(named - role.roles - _ALWAYS_THERE)


def unowned(items: Sequence[Item]) -> tuple[Item, ...]:
    """Return a dump's objects without whose they are and who may use them."""
    return tuple(replace(item, owner="") for item in items if item.kind not in ("ACL", "DEFAULT ACL"))


def missing_extensions(items: Sequence[Item], role: Role) -> list[str]:
    """Return the extensions of a dump that the server does not have."""
    return sorted(item.name for item in items if item.kind == "EXTENSION" and item.name not in role.extensions)


def doubts(items: Sequence[Item], info: DatabaseInfo, role: Role) -> list[str]:
    """Return why it is not certain that *role* can make a database with these objects and properties."""
    if role.superuser:
        return []
    if not role.createdb:
        return [f"{role.name} may not create databases"]
    return list(dict.fromkeys([*_of_the_database(info, role), *(d for item in items for d in _of(item, role))]))


def _of_the_database(info: DatabaseInfo, role: Role) -> Iterator[str]:
    if info.owner != role.name:
        yield f"the database belongs to {info.owner}"
    for setting in info.settings:
        if setting.role is not None:
            yield f"{setting.role} has settings of its own in the database"
        # Also what no module has declared: the server lets nobody else say what it cannot check.
        elif setting.name.lower() not in role.settable:
            yield f"{setting.name} is not {role.name}'s to set"
    grantors = {unquoted(match["role"]) for entry in info.acl or [] if (match := _GRANTOR.search(entry))}
    for grantor in sorted(grantors - {info.owner}):
        yield f"{grantor} has granted the use of the database"


def _of(item: Item, role: Role) -> Iterator[str]:
    what = f"{item.kind.lower()} {item.name}"
    if item.kind not in _ANYBODYS or _asks_too_much(item, role):
        yield f"not everybody may create {what}"
    elif item.owner not in ("", role.name, "pg_database_owner"):
        yield f"{what} belongs to {item.owner}"


def _asks_too_much(item: Item, role: Role) -> bool:
    if item.kind == "EXTENSION":
        return not role.extensions.get(item.name)
    pattern = _TOO_MUCH.get(item.kind)
    # A plain dump's headings do not say enough.
    return bool(pattern) and (not item.id or re.search(str(pattern), item.definition, re.MULTILINE) is not None)

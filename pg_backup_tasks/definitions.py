"""What pg_dump's statements are about: the names read back out of its SQL. Pure."""

from __future__ import annotations

import re

# As pg_dump writes one: what is not plain is quoted.
_NAME = r'(?:"(?:[^"]|"")*"|[a-z_][a-z0-9_]*)'
_QUALIFIED = rf"(?P<schema>{_NAME})\.(?P<name>{_NAME})"
_COPY = re.compile(
    rf"COPY (?:(?P<schema>{_NAME})\.)?(?P<name>{_NAME}) (?:\((?P<columns>{_NAME}(?:, {_NAME})*)\))? FROM stdin;\n?"
)
_SUBJECT = re.compile(
    rf"""\s*(?:
      ALTER[ ]TABLE[ ](?:ONLY[ ])?
    | CREATE[ ](?:UNIQUE[ ])?INDEX[ ]{_NAME}[ ]ON[ ](?:ONLY[ ])?
    | CREATE[ ]POLICY[ ]{_NAME}[ ]ON[ ]
    | CREATE[ ]RULE[ ]{_NAME}[ ]AS\s+ON[ ]\w+[ ]TO[ ]
    | CREATE[ ](?:CONSTRAINT[ ])?TRIGGER[ ]{_NAME}[ ](?:[^"]|"(?:[^"]|"")*")*?[ ]ON[ ]
    | ALTER[ ]SEQUENCE[ ]{_NAME}\.{_NAME}[ ]OWNED[ ]BY[ ]
    ){_QUALIFIED}""",
    re.VERBOSE,
)
_BREAKS = str.maketrans("\r\n", "  ")


def copied(statement: str) -> tuple[str, str, tuple[str, ...]] | None:
    """Return the schema (or nothing), the table and the columns of a COPY statement; None for anything else."""
    match = _COPY.fullmatch(statement)
    if not match:
        return None
    columns = re.findall(_NAME, match["columns"] or "")
    return unquoted(match["schema"] or ""), unquoted(match["name"]), tuple(map(unquoted, columns))


def subject(definition: str) -> tuple[str, str] | None:
    """Return the schema and name of the table that a key, index, trigger, rule, policy or sequence is part of."""
    match = _SUBJECT.match(definition)
    return (unquoted(match["schema"]), unquoted(match["name"])) if match else None


def unquoted(name: str) -> str:
    """Return the name that an identifier stands for."""
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def headed(name: str) -> str:
    """Return *name* as the headings of plain SQL have it: in one line."""
    return name.translate(_BREAKS)

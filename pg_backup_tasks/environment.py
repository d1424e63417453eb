"""Which database: the `.env` file, the environment, and what happens when they disagree."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from . import url
from .errors import Refused
from .model import Database

MAIN = "DATABASE_URL"
WANTED = (MAIN, *url.DIRECT_NAMES)

# The grammar of Node's dotenv, which the applications beside us use
# (https://github.com/motdotla/dotenv: one expression, quotes first, a # ends what is not quoted),
# with what JavaScript, unlike Python, takes for a blank, a word and the end of a line.
_BLANKS = "\t\n\v\f\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
_ENDS = "\n\u2028\u2029"
_BEGIN, _END = rf"(?<![^{_ENDS}])", rf"(?=[{_ENDS}]|\Z)"
_NODE_LINE = re.compile(
    rf"{_BEGIN}[{_BLANKS}]*(?:export[{_BLANKS}]+)?(?P<key>[A-Za-z0-9_.-]+)(?:[{_BLANKS}]*=[{_BLANKS}]*?|:[{_BLANKS}]+?)"
    rf"(?P<value>[{_BLANKS}]*'(?:\\'|[^'])*'|[{_BLANKS}]*\"(?:\\\"|[^\"])*\"|[{_BLANKS}]*`(?:\\`|[^`])*`|[^#\r\n]+)?"
    rf"[{_BLANKS}]*(?:#[^{_ENDS}]*)?{_END}"
)
_NODE_BLANKS = re.compile(rf"\A[{_BLANKS}]+|[{_BLANKS}]+\Z")
_NODE_QUOTES = re.compile(rf"{_BEGIN}(['\"`])([\s\S]*)\1{_END}")


@dataclass(frozen=True)
class Choice:
    """The database every task of this run works on, and what is worth telling about it."""

    database: Database
    left_out: tuple[str, ...] = ()
    url: str = field(default="", repr=False)
    """The URL itself, for a command that is to work on that database."""


def read_env_file(text: str, path: str) -> dict[str, str]:
    """Return the URLs a `.env` file sets, by variable name; its bytes that are no UTF-8 are escaped in *text*.

    Raises Refused, with file and line, for a URL with such bytes and for a line that Node's dotenv and python-dotenv
    read differently.
    """
    from dotenv.parser import parse_stream

    _refuse_wide(text, path)
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    ours: dict[str, str | None] = {}
    lines: dict[str, int] = {}
    broken: dict[int, str] = {}
    for binding in parse_stream(io.StringIO(text)):
        blank = len(binding.original.string) - len(binding.original.string.lstrip())
        line = binding.original.line + binding.original.string.count("\n", 0, blank)
        if binding.error:
            broken[line] = binding.original.string
        elif binding.key in WANTED:
            ours[binding.key], lines[binding.key] = binding.value, line
    nodes = _as_node_reads(text)
    used = _used(ours.get(MAIN), path)
    for key in used:
        for line, said in broken.items():
            if re.search(rf"\b{key}\b", said):
                raise _ambiguous(path, line)
        _refuse_bytes(ours.get(key) or "", path, lines.get(key, 1))
        _refuse_expansion(ours.get(key) or "", path, lines.get(key, 1))
        if ours.get(key) != nodes.get(key):
            raise _ambiguous(path, lines.get(key) or _line_of(text, key))
    return {key: value for key in used if (value := ours.get(key)) and value.strip()}


def _used(main: str | None, path: str) -> tuple[str, ...]:
    """Return the variables that count: what stands beside a URL that goes through no pooler is nobody's business."""
    try:
        return WANTED if main and url.parse(main, path).pooled else (MAIN,)
    except Refused:
        return (MAIN,)


def _as_node_reads(text: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for match in _NODE_LINE.finditer(text):
        raw = _NODE_BLANKS.sub("", match["value"] or "")
        value = _NODE_QUOTES.sub(r"\2", raw)
        if raw.startswith('"'):
            value = value.replace("\\n", "\n").replace("\\r", "\r")
        values[match["key"]] = value
    return values


def _refuse_wide(text: str, path: str) -> None:
    if "\0" in text:
        raise Refused(f"The file {path} is UTF-16 or no text at all.", hint="save it as UTF-8")


def _refuse_bytes(value: str, path: str, number: int) -> None:
    if re.search("[\udc80-\udcff]", value):
        raise Refused(
            f"The line {path}:{number} has a URL with bytes that are not UTF-8.",
            hint="save the file as UTF-8, and percent-encode what is special in the user, password and name",
        )


def _refuse_expansion(value: str, path: str, number: int) -> None:
    if "${" in value:
        raise Refused(
            f"The line {path}:{number} refers to another variable, which not every reader of .env resolves.",
            hint="write the whole URL out",
        )


def _line_of(text: str, key: str) -> int:
    for number, line in enumerate(text.split("\n"), 1):
        if re.match(rf"\s*(?:export\s+)?{key}\b", line):
            return number
    return 1


def _ambiguous(path: str, line: int) -> Refused:
    return Refused(
        f"The line {path}:{line} is read differently by Node's dotenv and by others.",
        hint='put the whole value in double quotes on one line, with # $ ` " and \\ percent-encoded',
    )


def choose(
    env_file: Mapping[str, str],
    env_file_name: str,
    environ: Mapping[str, str],
    *,
    source: str = "",
    allow_pooler: bool = False,
) -> Choice:
    """Return the database the file and the environment agree on, or the one *source* decides for.

    *source* is `file`, `environment` or empty. Raises Refused when nothing is configured, when they name
    different databases, and for a pooled URL with no direct one beside it unless *allow_pooler*.
    """
    in_file = _pick(env_file, env_file_name, allow_pooler) if source != "environment" else None
    in_environ = _pick(environ, "the environment", allow_pooler) if source != "file" else None
    if in_file and in_environ and not url.same_database(in_file.database, in_environ.database):
        raise Refused(
            f"{env_file_name} names {in_file.database} but DATABASE_URL in the environment names "
            f"{in_environ.database}.",
            hint="unset one of them, or decide: INVOKE_DB_SOURCE=file or INVOKE_DB_SOURCE=environment",
        )
    chosen = in_file or in_environ
    if chosen is None:
        looked = {"file": env_file_name, "environment": "the environment"}.get(
            source, f"{env_file_name} or the environment"
        )
        raise Refused(
            f"No database is configured: there is no DATABASE_URL in {looked}.",
            hint=f'write DATABASE_URL="postgresql://user:password@host:5432/name" into {env_file_name}'
            " (`inv demo` needs none)",
        )
    return chosen


def _pick(variables: Mapping[str, str], where: str, allow_pooler: bool) -> Choice | None:
    if not variables.get(MAIN, "").strip():
        return None
    main = url.parse(variables[MAIN], where)
    if not main.pooled:
        return Choice(main.database, main.left_out, variables[MAIN].strip())
    for name in url.DIRECT_NAMES:
        if variables.get(name, "").strip():
            direct = url.parse(variables[name], f"{where} ({name})")
            if direct.pooled:
                continue
            if direct.database.name != main.database.name:
                raise Refused(
                    f"{name} in {where} names the database {direct.database.name}, DATABASE_URL "
                    f"names {main.database.name}.",
                    hint=f"let {name} name the same database without the pooler",
                )
            return Choice(direct.database, direct.left_out, variables[name].strip())
    if not allow_pooler:
        raise Refused(
            f"DATABASE_URL in {where} goes through a connection pooler, which a dump must not.",
            hint="put the direct URL beside it as DIRECT_URL, or set INVOKE_DB_ALLOW_POOLER=true",
        )
    return Choice(main.database, main.left_out, variables[MAIN].strip())

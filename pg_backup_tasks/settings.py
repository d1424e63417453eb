"""The typed settings and where each value comes from."""

from __future__ import annotations

import os
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from .errors import Refused

# Invoke's, and Fabric's for `fab`.
PREFIX = "INVOKE_DB_"
FABRICS = "FABRIC_DB_"
_LEAST = {"jobs": 1}


@dataclass(frozen=True)
class Settings:
    """Everything that can be set, with its default; README has a sentence for each."""

    root: str = ""
    backups: str = "backups/postgres"
    env_file: str = "packages/database/.env"
    source: Literal["", "file", "environment"] = ""
    allow_pooler: bool = False
    pg_bin: str = ""
    lock_timeout: int = 30
    connect_timeout: int = 10
    jobs: int = 2
    in_place: bool = False
    protected: tuple[str, ...] = ()
    aside_hours: int = 24
    retention: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    migrate: str = "pnpm db:migrate"
    migrate_timeout: int = 3600
    smoke: str = ""
    hosts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ssh_config: str = ""
    log: str = "backups/pg_backup_tasks.log"

    def under_root(self, path: str) -> str:
        """Return *path* as it is meant: relative ones start at the repository's root."""
        return str(Path(self.root) / Path(path).expanduser())


FIELDS = {f.name: f for f in fields(Settings)}
_TYPES = typing.get_type_hints(Settings)
# What can be said of a host beside how to reach it, because it may be another there.
OF_A_HOST = (
    "backups", "env_file", "allow_pooler", "pg_bin", "lock_timeout", "jobs", "in_place", "aside_hours", "migrate",
    "migrate_timeout", "smoke",
)  # fmt: skip
_TABLES = [name for name, kind in _TYPES.items() if kind == Mapping[str, Mapping[str, Any]]]

_EXAMPLES = {"retention": "{daily: 7, last: 10}", "hosts": "{project: /srv/bar}"}


def config(**overrides: Any) -> dict[str, dict[str, Any]]:
    """Return the whole `db` tree for `Collection.configure`, with *overrides* in it.

    Raises Refused for an unknown setting or a value of the wrong kind, also in `INVOKE_DB_*`: Invoke itself
    would pass over the one and die on the other.
    """
    _check(overrides, "db.config()")
    for prefix in (PREFIX, FABRICS):
        from_environment(os.environ, prefix)
    # None is what Invoke takes any environment string for as it is; the defaults are in Settings.
    # Tables are merged with what is set later, so that they have to be some from the start.
    return {"db": dict.fromkeys(FIELDS) | {name: {} for name in _TABLES} | overrides}


def load(tree: Mapping[str, Any], environ: Mapping[str, str], cwd: Path, prefix: str = PREFIX) -> Settings:
    """Return the settings from Invoke's merged `db` tree and `INVOKE_DB_*` (or *prefix*), the root found from *cwd*.

    Raises Refused for an unknown name or a value of the wrong kind.
    """
    given = {key: value for key, value in tree.items() if value is not None}
    ours = from_environment(environ, prefix)
    # Invoke casts "false" to True; the string itself is read instead.
    values = _check({k: v for k, v in given.items() if k not in ours}, "the db settings") | ours
    settings = Settings(**values)
    root = Path(settings.root).expanduser() if settings.root else find_root(cwd)
    if not root.is_dir():
        raise Refused(f"The setting root names no folder: {root}.", hint="leave it out, and it is found")
    return Settings(**values | {"root": str(root.resolve())})


def from_environment(environ: Mapping[str, str], prefix: str = PREFIX) -> dict[str, Any]:
    """Return the settings that `INVOKE_DB_*` (or *prefix*) gives, as values of their kinds."""
    found = {}
    for variable, text in environ.items():
        if not variable.startswith(prefix):
            continue
        name = variable.removeprefix(prefix).lower()
        if name not in FIELDS:
            raise _unknown(variable, [prefix + f.upper() for f in FIELDS], "the environment")
        found[name] = _convert(name, text, variable)
    return found


def find_root(cwd: Path) -> Path:
    """Return the nearest folder at or above *cwd* that is a workspace, has tasks or is a checkout."""
    for marker in ("pnpm-workspace.yaml", "tasks.py", ".git"):
        for folder in (cwd, *cwd.parents):
            if (folder / marker).exists():
                return folder
    return cwd


def _check(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    for name in values:
        if name not in FIELDS:
            raise _unknown(name, list(FIELDS), where)
    return {name: _convert(name, value, name) for name, value in values.items()}


def _convert(name: str, value: Any, shown: str) -> Any:
    kind = _TYPES[name]
    converted = _as_kind(kind, value)
    if converted is None:
        if name in _TABLES and hasattr(value, "keys"):
            wrong = next(key for key in value if not hasattr(value[key], "keys"))
            raise Refused(f"The setting {shown} has no table under {wrong}.", hint=f"{wrong}: {_EXAMPLES[name]}")
        default = "" if name in _TABLES else f", {FIELDS[name].default!r}"
        raise Refused(
            f"The setting {shown} must be {_describe(kind)}, not {_kind_of(value)}.",
            hint=f"leave it out for its default{default}",
        )
    if name == "retention" and converted:
        from .retention import policies

        policies(converted)
    if name == "hosts":
        return {host: _host(host, entry) for host, entry in converted.items()}
    least = _LEAST.get(name, 0)
    if isinstance(converted, int) and not isinstance(converted, bool) and converted < least:
        raise Refused(
            f"The setting {shown} cannot be {'less than 1' if least else 'negative'}.",
            hint=f"leave it out for its default, {FIELDS[name].default!r}",
        )
    return converted


def _host(host: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the setting `hosts` says of one of them, each value of its kind."""
    kinds = {"ssh": str, "project": str, "protected": bool, **{name: _TYPES[name] for name in OF_A_HOST}}
    found = {}
    for key, value in entry.items():
        if key not in kinds:
            raise _unknown(key, list(kinds), f"the hosts setting, under {host}")
        if key in OF_A_HOST:
            found[key] = _convert(key, value, f"{key} of the host {host}")
        elif (converted := _as_kind(kinds[key], value)) is None:
            raise Refused(f"The setting {key} of the host {host} must be {_describe(kinds[key])}.")
        else:
            found[key] = converted
    return found


def _as_kind(kind: Any, value: Any) -> Any:
    # The error text of a library would repeat the value, which may be a secret put in the wrong place.
    if kind is bool:
        if isinstance(value, str):
            return {"true": True, "1": True, "yes": True, "on": True}.get(value.lower()) or (
                False if value.lower() in ("false", "0", "no", "off", "") else None
            )
        return value if isinstance(value, bool) else None
    if kind is int:
        if isinstance(value, str):
            return int(value) if re.fullmatch(r"-?[0-9]{1,9}", value) else None
        return value if isinstance(value, int) and not isinstance(value, bool) else None
    if typing.get_origin(kind) is Literal:
        return value if value in typing.get_args(kind) else None
    if kind == tuple[str, ...]:
        return _names(value)
    if kind == Mapping[str, Mapping[str, Any]]:
        return _tables(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value if isinstance(value, str) else None


def _names(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, str):
        return tuple(filter(None, (part.strip() for part in value.split(","))))
    if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        return tuple(value)
    return None


def _tables(value: Any) -> dict[str, dict[str, Any]] | None:
    # Invoke hands out tables in a wrapping of its own.
    if not hasattr(value, "keys") or not all(hasattr(value[key], "keys") for key in value):
        return None
    return {str(key): {str(k): v for k, v in dict(value[key]).items()} for key in value}


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(kind) if choice)
    words = {bool: "true or false", int: "a whole number", str: "text", tuple[str, ...]: "names, separated by commas"}
    return words.get(kind, "a table of tables, which the environment cannot hold")


def _kind_of(value: Any) -> str:
    return "this text" if isinstance(value, str) else f"a {type(value).__name__}"


def _unknown(name: str, known: list[str], where: str) -> Refused:
    import difflib

    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return Refused(f"There is no setting {name} (in {where}).", hint=near[0] if near else ", ".join(sorted(known)))

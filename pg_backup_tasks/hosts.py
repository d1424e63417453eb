"""The hosts that tasks can work on: what the settings say of each, and the machine at the other end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import line, openssh, settings
from .errors import Refused
from .line import AskSecret, Line
from .model import Command
from .settings import Settings
from .there import There

# Paths that mean something on the machine they were written for.
_PATHS = ("backups", "env_file", "pg_bin")


@dataclass(frozen=True)
class Host:
    """One host: *ssh* is what OpenSSH knows it by, *project* the repository's folder there; empty for the usual."""

    name: str
    ssh: str
    project: str = ""
    protected: bool = False
    own: Mapping[str, Any] | None = None


def find(known: Settings, name: str) -> Host:
    """Return the host of that name: an entry of the setting `hosts`, or what OpenSSH itself knows."""
    entry = dict(known.hosts.get(name, {}))
    return Host(
        name=name,
        ssh=entry.pop("ssh", "") or name,
        project=entry.pop("project", ""),
        protected=entry.pop("protected", False),
        own=entry,
    )


def reached_as(host: Host, user: str, port: str) -> Host:
    """Return the host as it is reached by this user and at this port, where they are given."""
    return replace(host, ssh=openssh.at(host.ssh, user, port)) if user or port else host


def watched(known: Settings, host: Host) -> Host:
    """Return the host as protected where an entry of the setting `hosts` protects what OpenSSH finds under its name."""
    protected = [entry.get("ssh", "") or name for name, entry in known.hosts.items() if entry.get("protected")]
    if host.protected or not protected:
        return host
    place = _place(known, host.ssh)
    return replace(host, protected=any(_place(known, ssh) == place for ssh in protected))


def _place(known: Settings, ssh: str) -> tuple[str, int]:
    found = openssh.route(ssh, _config(known))
    return found.host, found.port


def _config(known: Settings) -> str:
    return str(Path(known.ssh_config).expanduser()) if known.ssh_config else ""


def connect(known: Settings, host: Host, ask: AskSecret, given: dict[str, Any]) -> There:
    """Return the machine at the other end. Raises Unreachable where there is no way to it."""

    def connection() -> Any:
        return line.connect(host.ssh, config=_config(known), patience=known.connect_timeout, ask=ask, given=given)

    return There(host.name, Line(host.name, connection))


def settings_there(known: Settings, host: Host, machine: There) -> Settings:
    """Return the settings as they are for a task on that machine; all paths are its own.

    Raises Refused where the repository is not there.
    """
    own = host.own or {}
    # A path that does not begin at the repository is meant for this machine.
    near = {name for name in _PATHS if getattr(known, name).startswith(("/", "~"))}
    usual = {name: settings.FIELDS[name].default for name in near}
    values = {"root": _root(known, host, machine), "source": "file", **usual, **own}
    paths = {name: _expand(values[name], machine) for name in (*_PATHS, "root") if name in values}
    return replace(known, **values | paths)


def _root(known: Settings, host: Host, machine: There) -> str:
    home, root = Path(os.path.expanduser("~")), Path(known.root)
    usual = f"~/{root.relative_to(home)}" if root.is_relative_to(home) and root != home else known.root
    folder = _expand(host.project or usual, machine)
    if not folder.startswith("/"):
        folder = f"{machine.home}/{folder}"
    if machine.run(Command(("test", "-d", folder))).code:
        raise Refused(
            f"There is no folder {folder} on {host.name}.",
            hint=f"the repository's folder there, as the setting hosts: {{{host.name}: {{project: /srv/app}}}}",
        )
    return folder.rstrip("/") or "/"


def _expand(path: str, machine: There) -> str:
    return f"{machine.home}{path[1:]}" if path == "~" or path.startswith("~/") else path

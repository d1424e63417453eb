"""What OpenSSH's own configuration says of a host, asked of OpenSSH itself, and which host keys it knows."""

from __future__ import annotations

import getpass
import os
import re
import shlex
import socket
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import vouching
from .errors import Refused, Unreachable

_NONE = frozenset({"", "none"})
_SOON = 10
# An address of IPv6 that has no brackets has no port either.
_PLACE = re.compile(
    r"(?:ssh://)?(?:(?P<user>.+)@)?(?:\[(?P<v6>[^][]+)\]|(?P<host>[^][:/]+|[^][:/]*:[^][:/]*:[^][/]*))(?::(?P<port>\d+))?/?"
)
_TOKEN = re.compile(r"%([%dhnpru])")
_FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}


@dataclass(frozen=True)
class Route:
    """How to reach a host: *jumps* are the hosts in between, *known_as* its name in *known_hosts*.

    *agent* is the socket of the agent to ask, empty for none; *only* lets no key of it in but those of *identities*.
    *bound_to* is the address of this machine to come from, empty for any.
    """

    name: str
    host: str
    port: int
    user: str
    identities: tuple[str, ...]
    certificates: tuple[str, ...]
    only: bool
    agent: str
    jumps: tuple[str, ...]
    proxy: str
    known_as: str
    known_hosts: tuple[str, ...]
    ciphers: tuple[str, ...]
    compress: bool
    patience: int
    family: socket.AddressFamily
    bound_to: str
    config: str

    def __str__(self) -> str:
        place = f"{self.host}:{self.port}"
        return self.name if self.name in (self.host, place) else f"{self.name} ({place})"


@dataclass(frozen=True)
class KnownKeys:
    """The host keys that are known under one name, (type, base64) each, and those that are revoked.

    *vouched* is one that OpenSSH lets in though it does not stand there, as SSH writes keys and certificates.
    """

    good: frozenset[tuple[str, str]]
    revoked: frozenset[str]
    vouched: bytes | None = None

    @property
    def kinds(self) -> set[str]:
        """The types of the keys that would be let in."""
        return {kind for kind, _ in self.good} | ({vouching.kind(self.vouched)} if self.vouched else set())


def at(name: str, user: str = "", port: str = "") -> str:
    """Return *name* with another user and port, where they are given."""
    found = _PLACE.fullmatch(name)
    if not found:
        return name
    who, host, port = user or found["user"], found["v6"] or found["host"], port or found["port"]
    before = f"{who}@" if who else ""
    return f"ssh://{before}{f'[{host}]' if ':' in host else host}:{port}" if port else f"{before}{host}"


def _destination(name: str) -> tuple[str, ...]:
    """Return *name* as words for ssh, to which a colon belongs to the host's name, and brackets are nothing."""
    found = _PLACE.fullmatch(name)
    if not found:
        return ("--", name)
    host = found["v6"] or found["host"]
    port = ("-p", found["port"]) if found["port"] else ()
    return (*port, "--", f"{found['user']}@{host}" if found["user"] else host)


def route(name: str, config: str = "") -> Route:
    """Return how OpenSSH would reach *name*: an alias, a host, `user@host`, `user@host:port` or an `ssh://` URL.

    *config* is read in the place of `~/.ssh/config`. Raises Refused for what is no name of a host.
    Source: ssh(1), `-G`; ssh_config(5).
    """
    if not name or name.startswith("-") or re.search(r"[\s\x00-\x1f\x7f]", name):
        raise Refused(f"{name!r} is no host.", hint="--host NAME, as in `ssh NAME`")
    said: dict[str, list[str]] = {}
    for line in _ask("ssh", *_configured(config), "-G", *_destination(name)).splitlines():
        key, _, value = line.partition(" ")
        said.setdefault(key.lower(), []).append(value)

    def one(key: str) -> str:
        return said.get(key, [""])[0]

    host, port, user = one("hostname"), one("port"), one("user")
    tokens = {"%": "%", "d": str(_home()), "h": host, "n": name, "p": port, "r": user, "u": getpass.getuser()}

    def paths(key: str) -> tuple[str, ...]:
        return tuple(_path(each, tokens) for each in said.get(key, []) if each not in _NONE)

    known_as = one("hostkeyalias")
    return Route(
        name=name,
        host=host,
        port=int(port),
        user=user,
        identities=paths("identityfile"),
        certificates=paths("certificatefile"),
        only=one("identitiesonly") == "yes",
        agent=_agent(one("identityagent"), tokens),
        jumps=tuple(filter(None, one("proxyjump").split(","))) if one("proxyjump") not in _NONE else (),
        proxy="" if one("proxycommand") in _NONE else _TOKEN.sub(lambda m: tokens[m[1]], one("proxycommand")),
        known_as=known_as if known_as not in _NONE else host if port == "22" else f"[{host}]:{port}",
        known_hosts=tuple(
            _path(each, tokens)
            for key in ("userknownhostsfile", "globalknownhostsfile")
            for each in _files(one(key))
            if each not in _NONE
        ),
        ciphers=tuple(one("ciphers").split(",")),
        compress=one("compression") == "yes",
        patience=int(one("connecttimeout")) if one("connecttimeout").isdecimal() else 0,
        family=_FAMILIES.get(one("addressfamily"), socket.AF_UNSPEC),
        bound_to="" if one("bindaddress") in ("", "*") else one("bindaddress"),
        config=config,
    )


def _configured(config: str) -> tuple[str, ...]:
    return ("-F", config) if config else ()


def known_keys(route: Route, via: Sequence[str] = ()) -> KnownKeys:
    """Return the host keys that OpenSSH knows for a host, hashed names and patterns included.

    Where none stands there, or an authority may vouch for one, OpenSSH itself is asked which it lets in; *via* are the
    hosts that lead to this one, if its own configuration does not say so.
    """
    good, revoked, by_authority = set(), set(), False
    for file in filter(os.path.isfile, route.known_hosts):
        found = _ask("ssh-keygen", "-F", route.known_as, "-f", file, good=(0, 1))
        for line in found.splitlines():
            words = line.split()
            if not words or line.startswith("#"):
                continue
            if words[0] == "@revoked" and len(words) > 3:
                revoked.add(words[3])
            elif words[0] == "@cert-authority":
                by_authority = True
            elif not words[0].startswith("@") and len(words) > 2:
                good.add((words[1], words[2]))
    vouched = _vouched(route, via) if by_authority or not good else None
    return KnownKeys(frozenset(good), frozenset(revoked), vouched)


def _vouched(route: Route, via: Sequence[str]) -> bytes | None:
    jumps = ("-J", ",".join(via)) if via else ()
    return vouching.accepted((*_configured(route.config), *jumps), _destination(route.name))


def dial(route: Route, patience: float) -> socket.socket:
    """Connect to a host from the address and in the family that are set for it. Raises OSError of the last try."""
    whence = (route.bound_to, 0) if route.bound_to else None
    trouble: OSError | None = None
    for *_, address in socket.getaddrinfo(route.host, route.port, route.family, socket.SOCK_STREAM):
        try:
            return socket.create_connection((str(address[0]), route.port), patience, whence)
        except OSError as error:
            trouble = error
    raise trouble or OSError(f"{route.host} has no address")


def through(command: str) -> socket.socket:
    """Run a ProxyCommand as OpenSSH does, by the user's shell; return our end of it."""
    ours, theirs = socket.socketpair()
    with theirs:
        # In a session of its own: Ctrl-C is for us, who still have things to say over there.
        proxy = subprocess.Popen(
            (os.environ.get("SHELL") or "/bin/sh", "-c", f"exec {command}"),
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    threading.Thread(target=proxy.wait, daemon=True).start()
    return ours


def _ask(program: str, *arguments: str, good: Sequence[int] = (0,)) -> str:
    try:
        done = subprocess.run(
            (program, *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SOON,
            check=False,
        )
    except FileNotFoundError:
        raise Refused(
            f"There is no `{program}` on this machine, which knows how to reach the host.",
            hint="install OpenSSH's client (apt install openssh-client)",
        ) from None
    except subprocess.TimeoutExpired:
        raise Unreachable(
            f"{program} did not say within {_SOON} seconds how to reach the host.",
            hint=f"{shlex.join((program, *arguments))}, to see what it waits for (Match exec?)",
        ) from None
    if done.returncode not in good:
        said = done.stderr.strip().splitlines()
        raise Refused(
            f"{program} cannot say how to reach the host: {said[-1].strip() if said else 'it failed'}.",
            hint=shlex.join((program, *arguments)),
        )
    return done.stdout


def _home() -> Path:
    # ~ is to OpenSSH what the password file says, whatever HOME is.
    return Path(f"~{getpass.getuser()}").expanduser()


def _path(text: str, tokens: dict[str, str]) -> str:
    path = _TOKEN.sub(lambda match: tokens[match[1]], text.strip('"'))
    return str(_home() / path.removeprefix("~/")) if path.startswith("~/") else path


def _files(text: str) -> list[str]:
    return [text] if os.path.isfile(text.strip('"')) else text.split()


def _agent(said: str, tokens: dict[str, str]) -> str:
    if said in ("", "SSH_AUTH_SOCK"):
        return os.environ.get("SSH_AUTH_SOCK", "")
    if said == "none":
        return ""
    return os.environ.get(said[1:], "") if said.startswith("$") else _path(said, tokens)

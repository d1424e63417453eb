"""Which host key OpenSSH itself lets in, certificates too: it tells the agent that it turns to, and we are that agent.

Only once it has judged the host's key does ssh turn to its agent, and then it says which key that was
(`session-bind@openssh.com` of PROTOCOL.agent, since OpenSSH 8.9). What it prints would not do: there a host can put
any words it likes.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from struct import Struct

from . import signals

# To see a key judged and no more: nothing is asked, learnt, run, or shared with another connection.
_ONLY_LOOKING = {
    "BatchMode": "yes",
    "ConnectTimeout": "5",
    "ControlMaster": "no",
    "ControlPath": "none",
    "PreferredAuthentications": "none",
    "PubkeyAuthentication": "yes",
    "RemoteCommand": "none",
    "StrictHostKeyChecking": "yes",
    "UpdateHostKeys": "no",
}
_PATIENCE = 10.0
_AGAIN = 0.1
_EXTENSION, _BIND = 27, b"session-bind@openssh.com"
_LONGEST = 1 << 18
_LENGTH = Struct(">I")
# What the kind of a certificate has behind that of its key (PROTOCOL.certkeys).
CERTIFIED = "-cert-v01@openssh.com"


def accepted(options: Sequence[str], destination: Sequence[str]) -> bytes | None:
    """Let ssh connect with these *options*; return the host key that it lets in, None for none, as SSH writes keys."""
    with tempfile.TemporaryDirectory(prefix="pgbt-") as folder, socket.socket(socket.AF_UNIX) as agent:
        path = f"{folder}/agent"
        try:
            agent.bind(path)
        except OSError:
            return None  # too long a path for a socket
        agent.listen()
        agent.settimeout(_AGAIN)
        said = {**_ONLY_LOOKING, "IdentityAgent": '"{}"'.format(path.replace("%", "%%"))}
        words = (*options, *(f"-o{key}={value}" for key, value in said.items()), *destination, "true")
        ssh = subprocess.Popen(
            ("ssh", *words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return _told(agent, ssh)
        finally:
            # With whatever is on the way to the host.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(ssh.pid, signal.SIGKILL)
            ssh.wait()


def kind(key: bytes) -> str:
    """Return what kind of key it is, whether a certificate goes with it or not."""
    return _first(key)[0].decode("ascii", "replace").removesuffix(CERTIFIED)


def _told(agent: socket.socket, ssh: subprocess.Popen[bytes]) -> bytes | None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        signals.check()
        with suppress(TimeoutError):
            asking, _ = agent.accept()
            with asking:
                asking.settimeout(_PATIENCE)
                return _key(asking)
        if ssh.poll() is not None:
            return None
    return None


def _key(asking: socket.socket) -> bytes | None:
    """Return the key in the first that is said to an agent; an older OpenSSH says nothing of one."""
    with suppress(OSError), asking.makefile("rb") as source:
        head = source.read(_LENGTH.size)
        size = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
        if not 0 < size < _LONGEST:
            return None
        message = source.read(size)
        name, rest = _first(message[1:])
        if message[0] == _EXTENSION and name == _BIND:
            return _first(rest)[0]
    return None


def _first(data: bytes) -> tuple[bytes, bytes]:
    """Return the string that comes first, and the rest."""
    end = _LENGTH.size + int.from_bytes(data[: _LENGTH.size], "big")
    return data[_LENGTH.size : end], data[end:]

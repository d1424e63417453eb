"""A real sshd on 127.0.0.1, and what OpenSSH's configuration has to say to reach it and nowhere else."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pg_backup_tasks.model import Command
from pg_backup_tasks.process import Process

HOST = "far"


@dataclass(frozen=True)
class Sshd:
    """A running sshd: *folder* has its keys, and the configuration in which it is the host `far`."""

    folder: Path
    port: int
    user: str
    address: str = "127.0.0.1"

    @property
    def config(self) -> str:
        """OpenSSH's configuration for it."""
        return str(self.folder / "ssh_config")

    def words(self, alias: str, port: int, **more: str) -> str:
        """Return the lines of an OpenSSH configuration that lead to a host on this machine."""
        options = {
            "HostName": self.address,
            "Port": str(port),
            "User": self.user,
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "IdentityFile": str(self.folder / "key"),
            "UserKnownHostsFile": str(self.folder / "known_hosts"),
            "GlobalKnownHostsFile": "/dev/null",
            **more,
        }
        return f"Host {alias}\n" + "".join(f"  {key} {value}\n" for key, value in options.items())


@contextmanager
def running_sshd(
    folder: Path,
    user: str = "",
    *,
    address: str = "127.0.0.1",
    namespace: str = "",
    path: str = "",
    zone: str = "",
    more: str = "",
    certify: Sequence[str] = (),
) -> Iterator[Sshd]:
    """Run an sshd of our own in *folder*, which lets *user* in (else whoever we are).

    It listens at *address*, perhaps in a network *namespace*; its sessions have *path* for PATH, and a time *zone*;
    *more* is what else its configuration says. With *certify*, arguments for `ssh-keygen -s`, the authority `ca` in its
    folder vouches for its key.
    """
    for name in ("host", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    if certify:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "ca")], check=True)
        signing = ("ssh-keygen", "-q", "-s", str(folder / "ca"), "-I", "far", "-h", *certify, str(folder / "host.pub"))
        subprocess.run(signing, check=True)
        more += f"HostCertificate {folder}/host-cert.pub\n"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        sshd = Sshd(folder, probe.getsockname()[1], user or getpass.getuser(), address)
    kind, key, *_ = (folder / "host.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[{address}]:{sshd.port} {kind} {key}\n")
    (folder / "ssh_config").write_text(sshd.words(HOST, sshd.port))
    shutil.copy(folder / "key.pub", folder / "authorized_keys")
    given = {"HOME": "" if user else str(folder), "PATH": path, "TZ": zone}
    env = " ".join(f'"{name}={value}"' for name, value in given.items() if value)
    (folder / "config").write_text(
        f"ListenAddress {address}\nPort {sshd.port}\nHostKey {folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        f"AllowUsers {sshd.user}\nPermitRootLogin prohibit-password\nPrintMotd no\nSubsystem sftp internal-sftp\n"
        + (f"SetEnv {env}\n" if env else "")
        + more
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # what its package makes when the service starts
    # Guarded, so that it ends with us however we end.
    within = ("ip", "netns", "exec", namespace) if namespace else ()
    with Process(Command((*within, _program(), "-D", "-e", "-f", str(folder / "config")))) as server:
        _wait_until(server, lambda: _listens(address, sshd.port))
        yield sshd


def can_run() -> bool:
    """Whether OpenSSH's client and server are installed."""
    return bool(shutil.which("ssh") and _program())


def _program() -> str:
    return shutil.which("sshd", path=f"{os.defpath}:/usr/sbin:/usr/local/sbin") or ""


def _listens(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


def _wait_until(server: Process, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not ready():
        assert server.poll() is None, server.wait().err
        assert time.monotonic() < deadline
        time.sleep(0.02)

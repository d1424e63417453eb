"""A machine at the other end of OpenSSH: the verbs with POSIX tools, and the texts of shell.py as they are.

Nothing of ours is on that machine. It shows that machine.py asks for nothing that cannot be had there.
"""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pg_backup_tasks import machine, shell
from pg_backup_tasks.machine import CommandError, Done, Entry, Job, Session
from pg_backup_tasks.model import Command, Digest
from pg_backup_tasks.process import Process, PsqlSession

# Anything may stand under the path: only a link is a claim, and `ln` would go into a folder.
CLAIM = '[ -e "$1" ] || [ -L "$1" ] || ln -s -- "$2" "$1" || [ -L "$1" ] || exit 4; [ "$(readlink -- "$1")" = "$2" ]'
CLAIMED = 'if [ -L "$1" ]; then readlink -- "$1"; elif [ -e "$1" ]; then echo; else exit 3; fi'
PRESENT = 'echo "$$"; exec cat >/dev/null'
ENTRIES = r"""
cd -- "$1" 2>/dev/null || exit 3
for name in * .[!.]* ..?*; do
  size=0 target= kind=other
  if [ -L "$name" ]; then kind=link target=$(readlink -- "$name"; echo .) target=${target%??}
  elif [ -f "$name" ]; then kind=file size=$(wc -c <"$name")
  elif [ ! -e "$name" ]; then continue
  fi
  printf '%s\0%s\0%s\0%s\0' "$kind" "$size" "$target" "$name"
done
"""
READ = '[ -e "$1" ] || exit 3; exec cat -- "$1"'
# A line that dies ends the data as well: only what has come whole gets the name.
WRITE = r"""
umask 077
new=${1%/*}/.${1##*/}.new
rm -f -- "$new"
cat >"$new" && [ "$(wc -c <"$new")" -eq "$2" ] && { sync -- "$new" 2>/dev/null || sync; } && mv -f -- "$new" "$1"
"""
DIGEST = r"""
size=$(wc -c <"$1") || exit
if command -v openssl >/dev/null; then sum=$(openssl dgst -sha256 -r <"$1")
elif command -v sha256sum >/dev/null; then sum=$(sha256sum <"$1")
else sum=$(shasum -a 256 <"$1")
fi || exit
printf '%s %s\n' "$size" "${sum%% *}"
"""


@dataclass(frozen=True)
class Sshd:
    """A real sshd on 127.0.0.1, and the words that make ssh log in there and nowhere else."""

    folder: Path
    port: int

    def ssh(self, control: str = "none") -> tuple[str, ...]:
        """Return ssh and its options; with *control* over the connection that is there already."""
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": "10",
            "ControlPath": control,
            "GlobalKnownHostsFile": "/dev/null",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "IdentityFile": str(self.folder / "key"),
            "Port": str(self.port),
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(self.folder / "known_hosts"),
        }
        return ("ssh", "-F", "none", "-T", *(f"-o{k}={v}" for k, v in options.items()), "127.0.0.1")


@contextmanager
def running_sshd(folder: Path) -> Iterator[Sshd]:
    """Run an sshd of our own, whatever the login shell: commands are given to /bin/sh, as dash or any other."""
    for name in ("host", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        sshd = Sshd(folder, probe.getsockname()[1])
    kind, key, *_ = (folder / "host.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{sshd.port} {kind} {key}\n")
    shutil.copy(folder / "key.pub", folder / "authorized_keys")
    (folder / "config").write_text(
        f"ListenAddress 127.0.0.1\nPort {sshd.port}\nHostKey {folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        f"AllowUsers {getpass.getuser()}\nPermitRootLogin prohibit-password\nPrintMotd no\nMaxSessions 100\n"
        # What stands in a ~/.bashrc is nobody's business here.
        f'SetEnv HOME={folder}\nForceCommand exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n'
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # what its package makes when the service starts
    program = shutil.which("sshd", path=f"{os.defpath}:/usr/sbin:/usr/local/sbin") or "sshd"
    # Guarded, so that it ends with us however we end.
    with Process(Command((program, "-D", "-e", "-f", str(folder / "config")))) as server:
        _wait_until(server, lambda: _listens(sshd.port))
        yield sshd


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _wait_until(server: Process, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not ready():
        assert server.poll() is None, server.wait().err
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def one_connection(sshd: Sshd) -> Iterator[str]:
    """Hold one connection that many commands can use, which saves the handshake; yield its control socket."""
    control = str(sshd.folder / "control")
    with Process(Command((*sshd.ssh(control)[:-1], "-M", "-N", "127.0.0.1"))) as master:
        _wait_until(master, Path(control).is_socket)
        yield control


class _FarSession(PsqlSession):
    def __init__(self, far: Command, secrets: bytes) -> None:
        super().__init__(far)
        self._process.send(secrets)


@dataclass
class OverSsh:
    """The machine that *ssh* (a command with its options and the host) leads to."""

    ssh: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    name = "far"

    # Commands

    def run(self, command: Command) -> Done:
        done, out = self._run(command)
        return Done(done.code, out.decode("utf-8", "replace"), done.err)

    def start(self, command: Command) -> AbstractContextManager[Job]:
        return self._process(command, output=False)

    def session(self, command: Command) -> AbstractContextManager[Session]:
        return _FarSession(self._far(command, shell.conversation(command)), shell.secret_lines(command))

    def tools(self, extra: Sequence[str]) -> list[tuple[str, str]]:
        found = [line.split("\t", 1) for line in self._ask(shell.TOOLS, *extra).out.splitlines() if "\t" in line]
        return [(folder, version) for folder, version in found]

    def _far(self, command: Command, words: Sequence[str]) -> Command:
        # `exec`, because a login shell that stays would be in the group that the texts end as a whole.
        env = {"LC_ALL": "C", **self.environment, **dict(command.env)}
        line = shlex.join(("exec", "env", *(f"{k}={v}" for k, v in env.items()), "sh", *words))
        return Command((*self.ssh, line))

    def _process(self, command: Command, *, output: bool = True) -> Process:
        # Here, ssh is only a command that reads what we say: the secrets go through it.
        process = Process(self._far(command, shell.guarded(command)), output=output, conversation=True)
        process.send(shell.secret_lines(command))
        return process

    def _run(self, command: Command) -> tuple[Done, bytes]:
        with self._process(command) as process:
            out = process.output.read()
            return process.wait(), out

    def _ask(self, text: str, *arguments: str, good: Sequence[int] = (0,)) -> Done:
        command = Command(("sh", "-c", text, "ask", *arguments))
        done = self.run(command)
        if done.code not in good:
            raise CommandError(command, done)
        return done

    # Files

    def entries(self, folder: str) -> list[Entry] | None:
        done = self._ask(ENTRIES, folder, good=(0, 3))
        if done.code:
            return None
        words = done.out.split("\0")[:-1]
        rows = zip(words[::4], words[1::4], words[2::4], words[3::4], strict=True)
        return [
            Entry(name, int(size), target if kind == "link" else None, kind == "file")
            for kind, size, target, name in rows
        ]

    def read(self, path: str) -> bytes | None:
        done, out = self._run(Command(("sh", "-c", READ, "read", path)))
        return None if done.code == 3 else out

    def write(self, path: str, data: bytes) -> None:
        line = shlex.join(("exec", "sh", "-c", WRITE, "write", path, str(len(data))))
        subprocess.run([*self.ssh, line], input=data, check=True)

    def digest(self, path: str) -> Digest:
        size, sha256 = self._ask(DIGEST, path).out.split()
        return Digest(int(size), sha256)

    def publish(self, steps: Sequence[tuple[str, ...]]) -> None:
        command = Command(("sh", "-c", shell.PUBLISH, "publish", *(word for step in steps for word in step)))
        far = self._far(command, command.argv[1:])
        done = subprocess.run(far.argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode:
            raise CommandError(Command(("publish",)), Done(done.returncode, "", done.stderr.decode()))

    # Who is at it

    def presence(self) -> str:
        return self._presence[0]

    @cached_property
    def _presence(self) -> tuple[str, Process]:
        command = Command(("sh", "-c", PRESENT))
        process = Process(self._far(command, shell.conversation(command)), output=True, conversation=True)
        number = process.output.readline().decode().strip()
        return machine.presence(number, self._identity(number)), process

    def leave(self) -> None:
        """End what presence() says lives as long as this run."""
        if "_presence" in self.__dict__:
            self._presence[1].__exit__(None, None, None)

    def _identity(self, number: str) -> list[str]:
        return self._ask(shell.IDENTITY, number).out.split()

    def alive(self, presence: str) -> bool:
        return machine.lives(presence, self._identity)

    def claim(self, path: str, text: str) -> bool:
        return self._ask(CLAIM, path, text, good=(0, 1)).code == 0

    def claimed(self, path: str) -> str | None:
        done = self._ask(CLAIMED, path, good=(0, 3))
        return None if done.code else done.out.removesuffix("\n")

    def remove(self, path: str) -> None:
        self._ask('rm -f -- "$1"', path)

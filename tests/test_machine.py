"""What machine.py promises of its verbs, tried on this computer and on one that is reached over SSH."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Server, missing
from sshd import Far, an_sshd, machine_at

from bench.sshd import Sshd
from pg_backup_tasks import bulk, lock, posix, postgres, shell, url
from pg_backup_tasks.errors import Failed, Locked, Refused
from pg_backup_tasks.here import Here
from pg_backup_tasks.line import Lost
from pg_backup_tasks.machine import CommandError, Load, Machine, Survey, lines
from pg_backup_tasks.model import Command, Digest, Format
from pg_backup_tasks.postgres import Tools

SOON = 10.0
ODD = 'it\'s a "b" \\ $HOME `id` $(id) * ? [a] ; & | > < # ~ ! -n é日'


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    with an_sshd() as sshd:
        yield sshd


@pytest.fixture(scope="module")
def kept(sshd: Sshd) -> Iterator[Far]:
    """A far machine for all who only ask it something."""
    with machine_at(sshd) as far:
        yield far


@pytest.fixture
def far(sshd: Sshd) -> Iterator[Far]:
    with machine_at(sshd) as far:
        yield far


@pytest.fixture(params=["here", "far"])
def machine(request: pytest.FixtureRequest) -> Machine:
    found: Machine = Here() if request.param == "here" else request.getfixturevalue("kept")
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a name that must be quoted wherever it goes."""
    path = tmp_path / 'it\'s a "folder" $HOME -n ü'
    path.mkdir()
    return path


def until(done: Callable[[], bool], seconds: float = SOON) -> None:
    """Return when *done*, which must be soon."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def processes(mark: str, what: str = "cmdline") -> list[int]:
    """Return the numbers of the processes with *mark* in their arguments (or their environment)."""
    found = []
    for path in Path("/proc").glob(f"[0-9]*/{what}"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def cut(far: Far) -> None:
    """Cut the line of a far machine, which nobody over there is told."""
    far._line._connections[0].transport.sock.shutdown(socket.SHUT_RDWR)


def words_of(number: int) -> str:
    return Path(f"/proc/{number}/cmdline").read_bytes().decode(errors="replace")


def parent_of(number: int) -> int:
    return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])


def name_of(number: int) -> str:
    try:
        return Path(f"/proc/{number}/comm").read_text().strip()
    except OSError:
        return ""


@pytest.fixture
def mark() -> Iterator[str]:
    """A number of seconds to sleep that no other process sleeps; after the test nobody sleeps it any more."""
    mark = f"9{secrets.randbelow(10**8):08}"
    yield mark
    until(lambda: not processes(mark))


# run


@pytest.mark.parametrize("argument", ["", " ", ODD, "a\nb\n", "'", "--", "-c", "\\\\", "x" * 10000])
def test_arguments_arrive_as_they_are(machine: Machine, argument: str) -> None:
    done = machine.run(Command(("printf", "<%s>", argument, "end")))
    assert (done.code, done.out, done.err) == (0, f"<{argument}><end>", "")


@pytest.mark.parametrize("value", ["", ODD, " a\nb ", "a=b"])
def test_variables_arrive_as_they_are(machine: Machine, value: str) -> None:
    assert machine.run(Command(("sh", "-c", 'printf %s "$PGOPTIONS"'), (("PGOPTIONS", value),))).out == value


@pytest.mark.parametrize(("text", "code"), [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$", 137)])
def test_exit_codes_come_through(machine: Machine, text: str, code: int) -> None:
    done = machine.run(Command(("sh", "-c", f"echo out; echo err >&2; {text}")))
    assert (done.code, done.out, done.err) == (code, "out\n", "err\n")


def test_a_program_that_is_not_there(machine: Machine) -> None:
    done = machine.run(Command(("/no/such/program",)))
    assert done.code == 127
    assert "/no/such/program" in done.err


def test_standard_input_is_empty(machine: Machine) -> None:
    assert machine.run(Command(("cat",))).out == ""
    assert machine.run(Command(("cat",), secrets=(("PGPASSWORD", "x"),))).out == ""


def test_what_is_no_text_is_no_trouble(machine: Machine) -> None:
    assert machine.run(Command(("printf", r"a\377b"))).out == "a\ufffdb"


# Secrets

PASSWORDS = ["plain", " blanks ", ODD, "\\n\\", "-n", "%s", "=", "'", "x" * 2000]


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_secret_arrives_as_it_is(machine: Machine, password: str) -> None:
    text = 'printf "%s|%s" "$PGPASSWORD" "$OTHER"'
    done = machine.run(Command(("sh", "-c", text), secrets=(("PGPASSWORD", password), ("OTHER", "second"))))
    assert done.out == f"{password}|second"


def test_a_secret_is_in_no_process_list(machine: Machine, mark: str) -> None:
    secret = f"xq{secrets.token_hex(8)}"
    command = Command(("sleep", mark), secrets=(("PGPASSWORD", secret),))
    with machine.start(command):
        until(lambda: bool(processes(f"sleep\0{mark}\0")))
        assert processes(secret) == []
        # Only the command itself is given it, not ssh nor sshd.
        until(lambda: {name_of(n) for n in processes(secret, "environ")} == {"sleep"})


# start


def test_a_job_runs_beside_us(machine: Machine, folder: Path) -> None:
    wait_for = folder / "go"
    os.mkfifo(wait_for)
    with machine.start(Command(("sh", "-c", 'read -r code <"$1"; exit "$code"', "job", str(wait_for)))) as job:
        assert job.poll() is None
        wait_for.write_text("7\n")
        assert job.wait().code == 7
        assert job.poll() == 7


FAMILY = 'trap "" INT HUP; sleep "$1" & sleep "$1"; wait'
STUBBORN = 'trap "" TERM INT HUP; (trap "" TERM; while :; do sleep "$1"; done) & while :; do sleep "$1"; done'


@pytest.mark.parametrize("text", [FAMILY, STUBBORN], ids=["family", "stubborn"])
def test_leaving_the_block_ends_the_whole_family(machine: Machine, mark: str, text: str) -> None:
    with machine.start(Command(("sh", "-c", text, "family", mark))):
        until(lambda: len(processes(f"sleep\0{mark}\0")) == 2)
    until(lambda: not processes(mark))


# A run of ours that only does one thing, to be killed.
LONELY = """
import json, sys
from pg_backup_tasks.here import Here
from pg_backup_tasks.line import Lost
from pg_backup_tasks.model import Command
from pathlib import Path
from bench.sshd import Sshd
from sshd import Far
ssh, environment, verb, command, argument = json.loads(sys.argv[1])
machine = Far(Sshd(Path(ssh[0]), *ssh[1:]), environment) if ssh else Here()
if verb == "publish":
    machine.publish([tuple(step) for step in argument])
elif verb == "session":
    with machine.session(Command(*(tuple(map(tuple, c)) if i else tuple(c) for i, c in enumerate(command)))) as session:
        session.ask(argument)
else:
    with machine.start(Command(tuple(command[0]))) as job:
        job.wait()
"""


@contextmanager
def lonely(
    machine: Machine, verb: str, command: Command, argument: object = None, path: str = os.environ["PATH"]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process of ours that asks *machine*, where PATH is *path*, for one thing."""
    ssh = (str(machine.sshd.folder), machine.sshd.port, machine.sshd.user) if isinstance(machine, Far) else ()
    words = [ssh, {"PATH": path}, verb, [command.argv, command.env, command.secrets], argument]
    ours = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    with subprocess.Popen(
        [sys.executable, "-c", LONELY, json.dumps(words)],
        env={**os.environ, "PYTHONPATH": ours, "PATH": path},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_our_death_ends_the_command_and_its_family(machine: Machine, mark: str) -> None:
    with lonely(machine, "start", Command(("sh", "-c", FAMILY, "family", mark))) as process:
        until(lambda: len(processes(f"sleep\0{mark}\0")) == 2)
        process.kill()
        process.wait()
        until(lambda: not processes(mark))


# A command that puts its things in order when it is asked to end.
TIDY = 'trap "echo tidied >\\"\\$2\\"; exit" TERM; sleep "$1" & wait'


def test_a_command_is_asked_before_it_is_ended(machine: Machine, mark: str, folder: Path) -> None:
    with lonely(machine, "start", Command(("sh", "-c", TIDY, "tidy", mark, f"{folder}/tidied"))) as process:
        until(lambda: len(processes(f"sleep\0{mark}\0")) == 1)
        process.kill()
        process.wait()
        until((folder / "tidied").exists)


@pytest.mark.parametrize("text", [FAMILY, STUBBORN], ids=["family", "stubborn"])
def test_the_death_of_the_line_ends_the_command_and_its_family(far: Far, mark: str, text: str) -> None:
    with far.start(Command(("sh", "-c", text, "family", mark))) as job:
        until(lambda: len(processes(f"sleep\0{mark}\0")) == 2)
        cut(far)
        with pytest.raises(Lost):
            job.wait()
        until(lambda: not processes(mark))


# session


@pytest.fixture
def psql(server: Server) -> Command:
    tools = Tools(str(server.embedded.bin), "18")
    return postgres.psql(tools, url.parse(server.embedded.url(), "the test").database)


def test_a_session_answers_until_it_is_left(machine: Machine, psql: Command) -> None:
    with machine.session(psql) as session:
        number = session.ask("select pg_backend_pid()")
        assert session.ask("select 'it''s ' || 'a ü\nb';") == "it's a ü\nb"
        assert session.ask("select where false") == ""
        assert session.attempt("select 1 / 0") == "division by zero"
        assert session.attempt("create temporary table t ()") is None
        assert session.ask("select pg_backend_pid()") == number
    until(lambda: not backend_lives(psql, number))


def backend_lives(psql: Command, number: str) -> bool:
    with Here().session(psql) as session:
        return session.ask(f"select count(*) from pg_stat_activity where pid = {number}") == "1"


def test_what_the_server_refuses_ends_the_session(machine: Machine, psql: Command) -> None:
    with pytest.raises(CommandError) as caught, machine.session(psql) as session:
        session.ask("select 1 / 0")
    assert caught.value.done.code == 3
    assert "division by zero" in caught.value.done.err


def test_a_wrong_password_is_said_as_psql_says_it(machine: Machine, psql: Command) -> None:
    wrong = Command(psql.argv, psql.env, (("PGPASSWORD", "xq-wrong"),))
    with pytest.raises(CommandError) as caught, machine.session(wrong) as session:
        session.ask("select 1")
    assert caught.value.done.code == 2
    assert "password authentication failed" in caught.value.done.err


def test_a_command_that_ends_at_once_leaves_nobody_behind(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a busy computer the half of the pipe that reads what we say may come late.
    late = shell.SESSION.replace("{ trap - TERM; echo;", "{ sleep 0.3; trap - TERM; echo;")
    assert late != shell.SESSION
    monkeypatch.setattr(shell, "SESSION", late)
    with pytest.raises(CommandError) as caught, machine.session(Command(("false",))) as session:
        session.ask("select 1")
    assert caught.value.done.code == 1


def test_our_death_ends_a_session_in_the_middle_of_a_question(machine: Machine, psql: Command, mark: str) -> None:
    # client_connection_check_interval is what lets the server notice.
    question = f"set client_connection_check_interval = '1s'; select pg_sleep({mark})"
    with lonely(machine, "session", psql, question) as process:
        asleep = (
            f"select count(*) from pg_stat_activity where query like '%pg_sleep({mark})%' and pid <> pg_backend_pid()"
        )
        with Here().session(psql) as session:
            until(lambda: session.ask(asleep) == "1")
            process.kill()
            process.wait()
            until(lambda: session.ask(asleep) == "0")


# tools


def test_tools_are_found_where_one_asks_first(machine: Machine, server: Server, folder: Path) -> None:
    (folder / "bin").symlink_to(server.embedded.bin)
    (folder / "none").mkdir()
    found = machine.tools([str(folder / "none"), str(folder / "bin"), "/no/such/folder"])
    assert found[0][0] == str(folder / "bin")
    assert postgres.parse_tools(found)[0].major == server.major


# publish


def test_a_backup_is_published_in_order(machine: Machine, folder: Path) -> None:
    for name in ("a b.dump", "-n.info", "old"):
        (folder / name).write_text(name)
    (folder / "latest").symlink_to("old")
    machine.publish(
        [
            ("move", f"{folder}/a b.dump", f"{folder}/final a.dump"),
            ("move", f"{folder}/-n.info", f"{folder}/final.info"),
            ("link", "final.info", f"{folder}/latest"),
            ("link", "-n", f"{folder}/odd"),
            ("remove", f"{folder}/old"),
            ("remove", f"{folder}/never there"),
        ]
    )
    assert sorted(p.name for p in folder.iterdir()) == ["final a.dump", "final.info", "latest", "odd"]
    assert (folder / "final a.dump").read_text() == "a b.dump"
    assert str((folder / "latest").readlink()) == "final.info"
    assert str((folder / "odd").readlink()) == "-n"


@pytest.mark.parametrize("taken", ["file", "folder", "dangling link"])
def test_a_name_that_is_taken_ends_publishing(machine: Machine, folder: Path, taken: str) -> None:
    (folder / "new").write_text("new")
    final = folder / "final"
    if taken == "file":
        final.touch()
    elif taken == "folder":
        final.mkdir()
    else:
        final.symlink_to("nowhere")
    with pytest.raises(CommandError) as caught:
        machine.publish([("move", f"{folder}/new", str(final)), ("remove", f"{folder}/new")])
    assert f"{final} exists" in caught.value.done.err
    assert (folder / "new").read_text() == "new"


# A mv that says it was called and waits to be let on.
SLOW_MV = """#!/bin/sh
echo "$$" >>"{folder}/called"
read -r _ <"{folder}/go"
exec /bin/mv "$@"
"""


@pytest.fixture
def slow(tmp_path: Path) -> str:
    """A PATH with a slow mv, which works on *tmp_path*."""
    path = tmp_path / "bin" / "mv"
    path.parent.mkdir()
    path.write_text(SLOW_MV.format(folder=tmp_path))
    path.chmod(0o755)
    os.mkfifo(tmp_path / "go")
    for name in "ab":
        (tmp_path / name).write_text(name)
    return f"{path.parent}:{os.environ['PATH']}"


def steps(folder: Path) -> list[tuple[str, ...]]:
    return [("move", f"{folder}/{n}", f"{folder}/final {n}") for n in "ab"]


def was_called(folder: Path, times: int) -> Callable[[], bool]:
    called = folder / "called"
    return lambda: called.exists() and len(called.read_text().splitlines()) == times


def was_let_on(fifo: Path) -> bool:
    """Write a line for whoever reads from *fifo*, if anybody does."""
    try:
        writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return False
    with open(writer, "w") as file:
        file.write("\n")
    return True


def goes_on(folder: Path) -> None:
    for times in (1, 2):
        until(was_called(folder, times))
        until(lambda: was_let_on(folder / "go"))
    until((folder / "final b").exists)
    assert (folder / "final a").read_text() == "a"


def test_publishing_goes_on_when_we_die(machine: Machine, tmp_path: Path, slow: str) -> None:
    with lonely(machine, "publish", Command(("publish",)), steps(tmp_path), slow) as process:
        until(was_called(tmp_path, 1))
        (moving,) = [n for n in processes(str(tmp_path)) if name_of(n) in ("sh", "mv") and "bin/mv" in words_of(n)]
        publishing = [moving, parent_of(moving)]
        for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            for number in publishing:
                os.kill(number, signum)
        process.kill()
        process.wait()
    goes_on(tmp_path)


def test_publishing_goes_on_when_the_line_dies(sshd: Sshd, tmp_path: Path, slow: str) -> None:
    with machine_at(sshd, {"PATH": slow}) as far, ThreadPoolExecutor(1) as aside:
        publishing = aside.submit(far.publish, steps(tmp_path))
        until(was_called(tmp_path, 1))
        cut(far)
        with pytest.raises(Lost):
            publishing.result()
    goes_on(tmp_path)


# Files


def test_what_is_in_a_folder(machine: Machine, folder: Path) -> None:
    names = ["plain", " blank ", "-n", "*", "new\nline", "ü日", ".hidden", "..x", "q\"'\\$x"]
    for name in names:
        (folder / name).write_text(name)
    (folder / "folder").mkdir()
    (folder / "folder.dump").mkdir()
    (folder / "link").symlink_to("no\nwhere\n")
    (folder / "to folder").symlink_to("folder")
    found = {e.name: e for e in machine.entries(str(folder)) or []}
    assert found.keys() == {*names, "folder", "folder.dump", "link", "to folder"}
    assert all(found[n].is_file and found[n].bytes == len(n.encode()) and found[n].target is None for n in names)
    assert not found["folder"].is_file
    assert not found["folder.dump"].is_file
    assert (found["link"].target, found["link"].is_file) == ("no\nwhere\n", False)
    assert (found["to folder"].target, found["to folder"].is_file) == ("folder", False)


@pytest.mark.parametrize(
    ("starting", "found"),
    [(".", {".", ".hidden", "..x"}), ("*", {"*", "*b"}), ("a b", {"a b", "a bc"}), ("-n", {"-n"}), ("zz", set())],
)
def test_what_starts_so_in_a_folder(machine: Machine, folder: Path, starting: str, found: set[str]) -> None:
    for name in ("*", "*b", "a b", "a bc", "ab", "-n", ".hidden", "..x"):
        (folder / name).write_text(name)
    entries = machine.entries(str(folder), starting) or []
    assert {e.name for e in entries} == found - {"."}
    assert all(e.is_file and e.bytes == len(e.name) for e in entries)


def test_what_starts_so(machine: Machine, folder: Path) -> None:
    for name in ("a_x.b", "a*x.b", "a_", "x.a_x.", ".a_x.b"):
        (folder / name).write_text(name)
    (folder / "a_x.link").symlink_to("a_x.b")
    assert {e.name for e in machine.entries(str(folder), "a_") or []} == {"a_", "a_x.b", "a_x.link"}
    assert {e.name for e in machine.entries(str(folder), "a*") or []} == {"a*x.b"}
    assert machine.entries(str(folder), "b") == []


def test_files_with_their_sizes_and_what_the_small_ones_say(machine: Machine, folder: Path) -> None:
    texts = [b"", b"\n", b"-\n12\n", bytes(range(256)), "é".encode(), b"x" * (1 << 16), b"y" * 200_000]
    given = {f"a'{number}\n.info": text for number, text in enumerate(texts * 90)}
    for name, text in (given | {"a dump": b"12345", "b.info": b"b"}).items():
        (folder / name).write_bytes(text)
    (folder / "a folder.info").mkdir()
    targets = {"a link.info": "b.info", "a'\n": "no\nwhere\n", "a link to a folder": "a folder.info"}
    for name, target in (targets | {"b link": "a dump"}).items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "a pipe.info")
    if os.geteuid() == 0:
        os.mknod(folder / "a device.info", stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
    found = machine.survey(str(folder), ("a",), ".info", bytes)
    assert found
    assert found.texts == given
    assert found.sizes == {name: len(text) for name, text in given.items()} | {"a dump": 5}
    assert found.links == targets
    some = machine.survey(str(folder), ("b.", "b l", ".b"), ".info", bytes)
    assert some == Survey({"b.info": 1}, {"b.info": b"b"}, {"b link": "a dump"})


def test_one_that_may_not_be_read_keeps_none_of_the_others_unread(
    machine: Machine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.info", "b.info", "c.info", "d.info", "e.info"):
        (folder / name).write_text(name)
    opened = os.open

    def open_(path: str, *rest: Any, **more: Any) -> int:
        if path.endswith("b.info"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return opened(path, *rest, **more)

    # Root may read everything.
    barred = 'case "$*" in *b.info*) echo "sh: cannot open b.info: Permission denied" >&2; exit 2;; esac\n'
    monkeypatch.setattr("pg_backup_tasks.survey.os.open", open_)
    monkeypatch.setattr(posix, "READ", barred + posix.READ)
    found = machine.survey(str(folder), ("",), ".info", bytes)
    assert found
    others = {name: name.encode() for name in ("a.info", "c.info", "d.info", "e.info")}
    assert found.texts == others | {"b.info": b""}
    assert found.sizes == dict.fromkeys(found.texts, 6)


def test_what_goes_away_while_it_is_looked_at_is_not_there(
    machine: Machine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.info", "b.info", "c.dump"):
        (folder / name).write_text(name)
    listed = os.listdir
    monkeypatch.setattr("pg_backup_tasks.survey.os.listdir", lambda at: [*listed(at), "ghost.info", "ghost.dump"])
    monkeypatch.setattr(posix, "READ", f"rm -f -- {shlex.quote(str(folder / 'b.info'))}\n{posix.READ}")
    found = machine.survey(str(folder), ("",), ".info", bytes)
    assert found
    assert found.texts.keys() == ({"a.info"} if machine.name else {"a.info", "b.info"})
    assert found.sizes == dict.fromkeys(("a.info", "b.info", "c.dump"), 6)


def test_a_folder_that_is_empty_or_not_there(machine: Machine, folder: Path) -> None:
    assert machine.survey(str(folder), ("",), "", bytes) == Survey({}, {}, {})
    assert machine.survey(str(folder / "none"), ("",), "", bytes) is None
    assert machine.entries(str(folder)) == []
    assert machine.entries(str(folder / "none")) is None


@pytest.mark.parametrize("data", [b"", b"a\n", bytes(range(256)) * 300], ids=["empty", "line", "bytes"])
def test_what_is_written_is_read(machine: Machine, folder: Path, data: bytes) -> None:
    path = folder / "a 'b'.info"
    assert machine.read(str(path)) is None
    machine.write(str(path), b"old")
    machine.write(str(path), data)
    assert machine.read(str(path)) == data == path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in folder.iterdir()] == [path.name]


def test_the_sizes_of_files(machine: Machine, folder: Path) -> None:
    (folder / "a b").write_bytes(b"x" * 70_000)
    (folder / "-n").touch()
    assert machine.sizes([f"{folder}/{name}" for name in ("a b", "none", "-n")]) == [70_000, 0, 0]
    assert machine.sizes([]) == []


def test_a_folder_is_made_for_its_owner_only(machine: Machine, folder: Path) -> None:
    path = folder / "backups" / "-p"
    assert machine.make_folder(str(path)) == ""
    assert path.stat().st_mode & 0o777 == 0o700
    path.chmod(0o755)
    assert machine.make_folder(str(path)) == "drwxr-xr-x"
    assert path.stat().st_mode & 0o777 == 0o700
    (folder / "link").symlink_to(path)
    assert machine.make_folder(f"{folder}/link") == ""
    path.chmod(0o750)
    assert machine.make_folder(f"{folder}/link") == "drwxr-x---"
    path.chmod(0o1777)
    assert machine.make_folder(str(path)) == ""
    assert path.stat().st_mode & 0o7777 == 0o1777


def test_what_its_owner_may_not_do_in_a_folder_stays_so(machine: Machine, folder: Path) -> None:
    for mode, then, said in ((0o500, 0o500, ""), (0o550, 0o500, "dr-xr-x---")):
        folder.chmod(mode)
        assert machine.make_folder(str(folder)) == said
        assert folder.stat().st_mode & 0o777 == then


@pytest.mark.parametrize(
    ("there", "closed"),
    [
        (["etc/"], False),
        ([".git/", "notes"], False),
        (["a b\nc/", "backup_notes"], True),
        (["etc/", "backup_manual_20261122_143022.dump"], True),
        (["notes", "prod.sql", ".gitkeep"], True),
        (["lost+found/", ".partial_backup_manual_20261122_143022/", ".cleared_backup_a_20261122_143022/"], True),
        ([], True),
    ],
)
def test_what_serves_something_else_is_not_closed(
    machine: Machine, folder: Path, there: list[str], closed: bool
) -> None:
    (folder / "link").symlink_to("/etc")
    for name in there:
        (folder / name).mkdir() if name.endswith("/") else (folder / name).touch()
    folder.chmod(0o755)
    if closed:
        assert machine.make_folder(str(folder)) == "drwxr-xr-x"
    else:
        with pytest.raises(Refused, match="there are other folders in it and no backups"):
            machine.make_folder(str(folder))
    assert folder.stat().st_mode & 0o777 == (0o700 if closed else 0o755)


def test_a_folder_goes_with_all_that_is_in_it(machine: Machine, folder: Path) -> None:
    (folder / "staging" / "-rf").mkdir(parents=True)
    (folder / "kept").touch()
    (folder / "staging" / "link").symlink_to(folder / "kept")
    for _ in range(2):
        machine.remove_tree(f"{folder}/staging")
    assert [p.name for p in folder.iterdir()] == ["kept"]


def test_what_is_on_disk_is_its_owners_only(machine: Machine, folder: Path) -> None:
    for name in ("a b", "-n"):
        (folder / name).touch(0o644)
    machine.flush([f"{folder}/a b", f"{folder}/-n", str(folder)])
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o700 == 0o700


def test_the_room_below_a_folder(machine: Machine, folder: Path) -> None:
    # Others write to that disk as well.
    expected = shutil.disk_usage(folder).free
    assert machine.free(f"{folder}/not/there yet") == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("hasher", [None, "openssl", "sha256sum", "shasum"])
def test_the_digest_of_a_file(sshd: Sshd, kept: Far, folder: Path, tmp_path: Path, hasher: str | None) -> None:
    data = secrets.token_bytes(300_000)
    path = folder / "-a \\b.dump"
    path.write_bytes(data)
    expected = Digest(len(data), hashlib.sha256(data).hexdigest())
    if hasher is None:
        assert Here().digest(str(path)) == kept.digest(str(path)) == expected
        return
    if not shutil.which(hasher):
        missing(hasher, "apt-get install openssl coreutils perl")
    only = tmp_path / "bin"
    only.mkdir()
    for program in ("sh", "wc", "sleep", "cat", "env", hasher, *(["perl"] if hasher == "shasum" else [])):
        (only / program).symlink_to(shutil.which(program) or program)
    with machine_at(sshd, {"PATH": str(only)}) as far:
        assert far.digest(str(path)) == expected


# Dumps

AWKWARD = """
create table "a ""b
c" (id int, "x\\y" text);
insert into "a ""b
c" select n, E'\\\\.\\n-- Data for Name: t; Type: TABLE DATA; Schema: public; Owner: x\\nCOPY'
  from generate_series(1, 1000) n;
create table empty (); create table "größe" (t text); insert into "größe" values (''), (null), (E'BEGIN;\\tSET');
create function f() returns text language sql as $$ select '
COPY public.none (id) FROM stdin;
' $$;
select lo_from_bytea(0, 'large');
"""
ROWS = {'public.a "b\nc': 1000, "public.empty": 0, "public.größe": 3}


@dataclass(frozen=True)
class Dumped:
    """A dump in every format, and what it was made of and with."""

    files: dict[Format, Path]
    reader: Command
    sql: bytes

    def printing(self, format_: Format) -> Command | None:
        return self.reader if format_.is_archive else None


@pytest.fixture(scope="module")
def dumped(server: Server) -> Iterator[Dumped]:
    with tempfile.TemporaryDirectory(prefix="pg bt-", dir="/tmp") as folder:
        files = {f: Path(folder) / f"-a 'b'{f.extension}" for f in Format}
        server.sql("create database awkward")
        server.sql(AWKWARD, "awkward")
        for format_, letter in ((Format.DUMP, "c"), (Format.TAR, "t"), (Format.SQL, "p")):
            words = [str(server.embedded.bin / "pg_dump"), f"-F{letter}", "-f", str(files[format_])]
            subprocess.run(words, env={**os.environ, **server.embedded.environment("awkward")}, check=True)
        server.sql("drop database awkward")
        reader = postgres.print_sql(Tools(str(server.embedded.bin), "18"))
        printed = subprocess.run([*reader.argv, files[Format.DUMP]], capture_output=True, check=True).stdout
        files[Format.SQL_GZ].write_bytes(gzip.compress(files[Format.SQL].read_bytes()))
        yield Dumped(files, reader, printed)


@pytest.fixture
def dumper(machine: Machine, server: Server, sshd: Sshd) -> Iterator[Machine]:
    """A machine with the newest server's tools in its PATH."""
    if machine.name:
        with machine_at(sshd, {"PATH": f"{server.embedded.bin}:{os.environ['PATH']}"}) as far:
            yield far
    else:
        yield machine


def without_key(sql: bytes) -> list[bytes]:
    """Return a dump's lines but those with the word that each pg_restore makes up anew."""
    return [line for line in sql.split(b"\n") if b"restrict " not in line]


def test_the_format_of_a_file(machine: Machine, dumped: Dumped, folder: Path) -> None:
    for format_, path in dumped.files.items():
        assert machine.sniff(str(path)) is format_
    for content in (b"", b"hello", gzip.compress(b"hello"), b"\x1f\x8bbroken"):
        (folder / "-x").write_bytes(content)
        assert machine.sniff(f"{folder}/-x") is None


def test_a_dump_is_read_to_its_end(dumper: Machine, dumped: Dumped) -> None:
    for format_, path in dumped.files.items():
        data = path.read_bytes()
        found = dumper.examine(str(path), format_, "utf-8", reader=dumped.printing(format_))
        assert found.digest == Digest(len(data), hashlib.sha256(data).hexdigest())
        assert (found.rows, found.problem) == (ROWS, None)


def test_a_dump_that_is_damaged_is_found(dumper: Machine, dumped: Dumped, folder: Path) -> None:
    for format_, path in dumped.files.items():
        torn = folder / path.name
        torn.write_bytes(path.read_bytes()[: -600 if format_ is Format.SQL else -2000])
        found = dumper.examine(str(torn), format_, "utf-8", reader=dumped.printing(format_))
        assert found.problem or found.rows != ROWS, format_
        assert found.digest.bytes == torn.stat().st_size
    broken = bytearray(dumped.files[Format.SQL_GZ].read_bytes())
    broken[-6] ^= 1
    torn.write_bytes(broken)
    assert dumper.examine(str(torn), Format.SQL_GZ, "utf-8").problem


@pytest.mark.parametrize("wanted", [("plain", "packed"), ("plain",), ("packed",), ()])
def test_sql_is_derived_from_an_archive(dumper: Machine, dumped: Dumped, folder: Path, wanted: tuple[str, ...]) -> None:
    plain, packed = (str(folder / name) if name in wanted else None for name in ("plain", "packed"))
    archive = str(dumped.files[Format.DUMP])
    derived = dumper.derive(dumped.reader, archive, "utf-8", plain=plain, packed=packed)
    assert (derived.rows, derived.complete) == (ROWS, True)
    written = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert written.keys() == set(wanted)
    for name, digest in (("plain", derived.plain), ("packed", derived.packed)):
        if name not in wanted:
            assert digest is None
            continue
        data = written[name]
        assert digest == Digest(len(data), hashlib.sha256(data).hexdigest())
        assert without_key(gzip.decompress(data) if name == "packed" else data) == without_key(dumped.sql)


def test_every_part_that_fails_is_told(dumper: Machine, dumped: Dumped, folder: Path) -> None:
    archive = str(dumped.files[Format.DUMP])
    failing = Command(("sh", "-c", "cat >/dev/null; echo why >&2; exit 7"))
    with pytest.raises(CommandError) as caught:
        dumper.derive(failing, archive, "utf-8", plain=f"{folder}/plain", packed=f"{folder}/packed")
    assert (caught.value.command, caught.value.done.code) == (failing, 7)
    assert "why" in caught.value.done.err
    for plain, packed in (("/dev/full", None), (None, "/no/such/folder/x")):
        with pytest.raises((CommandError, OSError)):
            dumper.derive(dumped.reader, archive, "utf-8", plain=plain, packed=packed)


def loaded(server: Server, dumped: Dumped, format_: Format, database: str, **changes: object) -> Load:
    """Return the load of a dump into *database*, in one transaction."""
    psql = postgres.psql_loading(
        Tools(str(server.embedded.bin), "18"), url.parse(server.url(database), "the test").database, ""
    )
    reader = dumped.reader if format_.is_archive else None
    load = Load(psql, str(dumped.files[format_]), "utf-8", reader, "begin;\n", f"-- {'x' * 200_000}\ncommit;\n")
    return replace(load, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("format_", Format)
def test_a_dump_is_loaded(dumper: Machine, dumped: Dumped, server: Server, database: str, format_: Format) -> None:
    seen: list[int] = []
    load = loaded(server, dumped, format_, database, skip_settings=frozenset({"transaction_timeout", "row_security"}))
    done = dumper.load(load, seen.append)
    assert (done.code, done.err, sum(seen) > 0) == (0, "", True)
    assert server.sql('select count(*) from "a ""b\nc"', database) == "1000"
    assert server.sql("select count(*) from pg_largeobject_metadata", database) == "1"


def test_a_dump_that_does_not_come_whole_is_not_loaded(
    dumper: Machine, dumped: Dumped, server: Server, database: str, folder: Path
) -> None:
    sql = dumped.files[Format.SQL].read_bytes()
    (folder / "torn").write_bytes(sql[:-100])
    broken = bytearray(dumped.files[Format.SQL_GZ].read_bytes())
    broken[-6] ^= 1
    (folder / "broken").write_bytes(broken)
    for name in ("torn", "broken"):
        with pytest.raises(Failed):
            dumper.load(loaded(server, dumped, Format.SQL, database, path=f"{folder}/{name}"), lambda _: None)
    (folder / "wrong").write_bytes(sql.replace(b"CREATE TABLE public.empty", b"CREATE TABEL public.empty"))
    done = dumper.load(loaded(server, dumped, Format.SQL, database, path=f"{folder}/wrong"), lambda _: None)
    assert (done.code, "syntax error" in done.err) == (3, True)
    assert server.sql("select count(*) from pg_class where relname = 'empty'", database) == "0"


# Who is at it


def test_a_claim_is_one_runs_only(machine: Machine, folder: Path) -> None:
    path = str(folder / ".lock")
    assert machine.claimed(path) is None
    assert machine.claim(path, ODD)
    assert machine.claimed(path) == ODD
    assert not machine.claim(path, "another")
    assert machine.claimed(path) == ODD
    machine.remove(path)
    machine.remove(path)
    assert machine.claimed(path) is None
    assert machine.claim(path, "another")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_nobody_of_ours_put_there_is_a_claim_too(machine: Machine, folder: Path, kind: str) -> None:
    path = folder / ".lock"
    path.mkdir() if kind == "folder" else path.touch()
    assert machine.claimed(str(path)) == ""
    assert not machine.claim(str(path), "ours")
    assert kind == "file" or list(path.iterdir()) == []


def test_a_presence_is_alive_as_long_as_its_run(machine: Machine) -> None:
    ours = machine.presence()
    assert machine.presence() == ours
    assert machine.alive(ours)
    number, started, *place = ours.split("|")
    assert not machine.alive("|".join((number, f"{started}0", *place)))
    assert not machine.alive("|".join((number, started, "another-boot", place[-1])))
    dead = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout.strip()
    assert not machine.alive("|".join((dead, started, *place)))


@pytest.mark.parametrize("presence", ["", "x", "1", "|", "1|2|3|another computer", "-1|x", "٣|x", "$(id)|x"])
def test_who_cannot_be_told_to_be_dead_is_alive(machine: Machine, presence: str) -> None:
    assert machine.alive(presence)


def test_a_far_presence_ends_with_its_line(far: Far) -> None:
    ours = far.presence()
    assert far.alive(ours)
    assert Here().alive(ours)
    far.close()
    until(lambda: not Here().alive(ours))


def clock() -> datetime:
    return datetime(2026, 11, 22, 14, 30, 22, tzinfo=UTC)


@pytest.mark.parametrize(("first", "second"), [("here", "far"), ("far", "here"), ("far", "far")])
def test_two_machines_exclude_each_other(far: Far, kept: Far, folder: Path, first: str, second: str) -> None:
    one = Here() if first == "here" else far
    other = Here() if second == "here" else kept
    with lock.hold(one, str(folder), "db.backup", clock):
        with pytest.raises(Locked) as caught, lock.hold(other, str(folder), "db.restore", clock):
            pass
        assert caught.value.code == 75
        assert "db.backup" in str(caught.value)
        assert "2026-11-22T14:30:22Z" in str(caught.value)
    with lock.hold(other, str(folder), "db.restore", clock):
        pass
    assert list(folder.iterdir()) == []


def test_a_far_run_that_died_holds_nothing(far: Far, folder: Path) -> None:
    with pytest.raises(Lost), lock.hold(far, str(folder), "db.backup", clock):
        presence = far.presence()
        cut(far)
        until(lambda: not Here().alive(presence))
        with lock.hold(Here(), str(folder), "db.restore", clock):
            assert len(list(folder.iterdir())) == 2
        assert list(folder.iterdir()) == []


# Bringing home


def test_a_file_is_brought_whole(machine: Machine, folder: Path) -> None:
    data = secrets.token_bytes(5_000_001)
    (folder / "-a \\b").write_bytes(data)
    (folder / "other").write_bytes(data[:70_000])
    seen: Counter[str] = Counter()
    files = {f"{folder}/-a \\b": f"{folder}/came", "/dev/null": f"{folder}/empty", f"{folder}/other": f"{folder}/third"}
    found = [*machine.bring(files, lambda path, count: seen.update({path: count}))]
    assert found == [Digest(len(d), hashlib.sha256(d).hexdigest()) for d in (data, b"", data[:70_000])]
    assert (folder / "came").read_bytes() == data
    assert (folder / "came").stat().st_mode & 0o777 == 0o600
    assert seen == {f"{folder}/-a \\b": len(data), f"{folder}/other": 70_000}


def test_a_file_that_cannot_be_brought(machine: Machine, folder: Path) -> None:
    (folder / "there").write_bytes(b"there")
    coming = machine.bring({f"{folder}/there": f"{folder}/1", f"{folder}/not there": f"{folder}/2"}, lambda *_: None)
    assert next(coming).bytes == 5
    with pytest.raises((CommandError, OSError)):
        next(coming)
    (folder / "large").write_bytes(bytes(5_000_000))
    with pytest.raises(OSError, match="No space left"):
        next(machine.bring({f"{folder}/large": "/dev/full"}, lambda *_: None))


def test_a_write_back_that_fails_on_the_way_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells it once, to whoever flushes first."""
    failed = threading.Event()

    def flush(_: bulk.Hashing) -> None:
        if not failed.is_set():
            failed.set()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(bulk, "_FLUSH_EVERY", 0.001)
    monkeypatch.setattr(bulk.Hashing, "flush", flush)
    with pytest.raises(OSError, match="Input/output error"), bulk.keeping(str(folder / "file")) as file:
        file.write(b"x")
        assert failed.wait(60)
        file.close()


def test_many_are_removed_at_once(machine: Machine, folder: Path) -> None:
    paths = [str(folder / f"file {n}\n'x'") for n in range(1500)]
    for path in paths:
        Path(path).write_bytes(b"x")
    machine.remove(*paths[:700], f"{folder}/not there", *paths[700:])
    assert list(folder.iterdir()) == []


def test_what_cannot_be_removed_keeps_none_of_the_others(machine: Machine, folder: Path) -> None:
    stuck, *files = (folder / name for name in ("b", "a", "c"))
    stuck.mkdir()
    for file in files:
        file.touch()
    with pytest.raises((OSError, CommandError)):
        machine.remove(*map(str, (files[0], stuck, files[1])), str(folder / "gone"))
    assert list(folder.iterdir()) == [stuck]


def test_lines_come_whole_and_without_their_ends() -> None:
    pieces = [b"a\r", b"\nb\r\rc", b"d\n\n", b"x" * (1 << 20), b"yz", b"\r\nend"]
    assert list(lines(pieces)) == [b"a", b"b", b"cd", b"", b"x" * (1 << 20) + b"yz", b"", b"end"]

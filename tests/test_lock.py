"""One run at a time: who holds the lock, who may take it over, and that there never are two."""

from __future__ import annotations

import hashlib
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, cast

import pytest
from aftermath import holding, wait_until
from conftest import ROOT, Project, Server

from pg_backup_tasks import lock
from pg_backup_tasks.errors import Locked
from pg_backup_tasks.here import Here
from pg_backup_tasks.machine import Entry, Machine

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


def hold(folder: Path, at: datetime = NOW, task: str = "a test") -> Any:
    return lock.hold(Here(), str(folder), task, lambda: at)


def links(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith(lock.FILE))


@contextmanager
def somebody() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives, and is not us."""
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            yield process
        finally:
            process.kill()


def presence(pid: int) -> str:
    return "|".join([str(pid), *Here()._identity(str(pid))])


@pytest.fixture
def dead() -> str:
    """The presence of a run that has died."""
    with somebody() as process:
        return presence(process.pid)


# What a lock says


def test_held_by_one_and_gone_after(tmp_path: Path) -> None:
    with hold(tmp_path, task="db.backup of shop"):
        with pytest.raises(Locked) as caught, hold(tmp_path, NOW.replace(hour=13)):
            pass
        assert links(tmp_path) == [".lock"]
    assert links(tmp_path) == []
    assert str(caught.value.message) == (
        f"db.backup of shop has been at work in {tmp_path} since 2026-11-22T12:00:00Z."
    )
    assert caught.value.hint == "--wait SECONDS waits for it"
    assert caught.value.code == 75


def test_released_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), hold(tmp_path):
        _ = 1 / 0
    assert links(tmp_path) == []


def test_a_dead_runs_lock_is_none(tmp_path: Path, dead: str) -> None:
    (tmp_path / ".lock").symlink_to(f"{dead} 2026-11-22T12:00:00Z db.backup of shop")
    with hold(tmp_path):
        assert len(links(tmp_path)) == 2
        with pytest.raises(Locked), hold(tmp_path, NOW.replace(hour=13)):
            pass
    assert links(tmp_path) == []


def test_a_zombie_is_dead(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        was = presence(process.pid)
        assert Here().alive(was)
        process.kill()
        # Not reaped yet: it has its number still, and does nothing any more.
        wait_until(lambda: " Z " in Path(f"/proc/{process.pid}/stat").read_text(), "the zombie")
        assert not Here().alive(was)


def test_another_process_with_the_number_of_the_dead_one(tmp_path: Path) -> None:
    with somebody() as process:
        number, began, *rest = presence(process.pid).split("|")
        (tmp_path / ".lock").symlink_to("|".join([number, str(int(began) - 1), *rest]) + " then db.backup")
        with hold(tmp_path):
            pass


def test_the_same_number_before_the_machine_was_started_anew(tmp_path: Path) -> None:
    with somebody() as process:
        number, began, _, host = presence(process.pid).split("|")
        (tmp_path / ".lock").symlink_to(f"{number}|{began}|another-boot|{host} then db.backup")
        with hold(tmp_path):
            pass


@pytest.mark.parametrize("year", [1971, 2099])
def test_clocks_say_nothing_about_who_lives(tmp_path: Path, dead: str, year: int) -> None:
    then = NOW.replace(year=year)
    with somebody() as process:
        (tmp_path / ".lock").symlink_to(f"{presence(process.pid)} {then:%Y-%m-%dT%H:%M:%SZ} db.backup")
        with pytest.raises(Locked, match=f"since {year}"), hold(tmp_path):
            pass
    with hold(tmp_path, then):
        pass
    assert links(tmp_path) == []


def test_another_hosts_lock_is_not_ours_to_judge(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to("1|2|boot|elsewhere 2026-11-22T12:00:00Z db.backup of shop")
    with pytest.raises(Locked) as caught, hold(tmp_path):
        pass
    assert str(caught.value.message).startswith(f"db.backup of shop has been at work in {tmp_path} on elsewhere since")
    assert f"remove {tmp_path}/.lock*" in str(caught.value.hint)
    assert links(tmp_path) == [".lock"]


@pytest.mark.parametrize("text", ["nonsense", "123", "|||", "-1|x|y|z now", "99999999999|1", "é\u2028|\n x"])
def test_garbage_is_respected_and_named(tmp_path: Path, text: str) -> None:
    (tmp_path / ".lock").symlink_to(text)
    with pytest.raises(Locked) as caught, hold(tmp_path):
        pass
    assert f"remove {tmp_path}/.lock*" in str(caught.value.hint)
    assert links(tmp_path) == [".lock"]


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir], ids=["a file", "a folder"])
def test_what_is_no_link_is_respected_and_named(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / ".lock")
    with pytest.raises(Locked) as caught, hold(tmp_path):
        pass
    assert f"remove {tmp_path}/.lock*" in str(caught.value.hint)
    assert links(tmp_path) == [".lock"]


def test_a_folder_that_cannot_be_looked_into_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: str) -> str:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("pg_backup_tasks.here.os.readlink", closed)
    with pytest.raises(PermissionError), hold(tmp_path):
        pass


def test_what_leads_in_a_circle_is_respected_and_named(tmp_path: Path) -> None:
    for name in (".lock", f".lock.{hashlib.sha256(b'').hexdigest()[:12]}"):
        (tmp_path / name).touch()
    with pytest.raises(Locked), hold(tmp_path):
        pass


def test_links_that_no_chain_leads_to_are_swept(tmp_path: Path, dead: str) -> None:
    (tmp_path / ".lock.0123456789ab").symlink_to(f"{dead} then db.backup")
    with somebody() as process:
        (tmp_path / ".lock.ba9876543210").symlink_to(f"{presence(process.pid)} now db.backup")
        (tmp_path / ".lock.txt").touch()
        with hold(tmp_path):
            assert links(tmp_path) == [".lock", ".lock.ba9876543210", ".lock.txt"]


# On the command line


def waiting_backup(project: Project, server: Server, database: str, stack: ExitStack) -> subprocess.Popen[str]:
    """Start a backup that gets as far as the dump and waits there until *stack* is closed."""
    # Only pg_dump asks for a lock on what is partitioned; our own questions go by it.
    server.sql("create table if not exists orders (id int) partition by range (id)", database)
    stack.enter_context(holding(server, database, "lock table orders"))
    run = project.start("db.backup")
    stuck = (
        f"select count(*) from pg_stat_activity where datname = '{database}' and wait_event_type = 'Lock' "
        "and query like 'LOCK TABLE%'"
    )
    wait_until(lambda: server.sql(stuck) != "0", "pg_dump to wait for the table")
    return run


def test_the_second_run_says_who_is_at_it_since_when(ready: Project, server: Server, database: str) -> None:
    with ExitStack() as stack:
        first = waiting_backup(ready, server, database, stack)
        began = time.monotonic()
        second = ready.inv("db.backup", "--json")
        assert second.code == 75
        assert time.monotonic() - began < 5
        assert re.search(rf"db\.backup of {database} has been at work in .* since 20\d\d-.*Z\.", second.err)
        assert second.err.splitlines()[-1] == "Try: --wait SECONDS waits for it"
        assert second.json["exit"] == 75
        assert first.poll() is None
        assert len([n for n in ready.hidden_files() if n.startswith(".partial_")]) == 1
    assert first.wait(30) == 0
    assert ready.hidden_files() == []


def test_waiting_for_it(ready: Project, server: Server, database: str) -> None:
    with ExitStack() as stack:
        first = waiting_backup(ready, server, database, stack)
        second = ready.start("db.backup", "--wait", "60")
        impatient = ready.inv("db.backup", "--wait", "0.5")
        assert impatient.code == 75
        assert second.poll() is None
    assert first.wait(30) == 0
    assert second.wait(30) == 0
    assert len(list(ready.backups.glob("backup_manual_2*.info"))) == 2
    assert ready.hidden_files() == []


def test_interrupted_while_it_waits(ready: Project, server: Server, database: str) -> None:
    with ExitStack() as stack:
        first = waiting_backup(ready, server, database, stack)
        before = ready.hidden_files()
        second = ready.start("db.backup", "--wait", "60")
        wait_until(lambda: b"--wait" in Path(f"/proc/{second.pid}/cmdline").read_bytes(), "the second run")
        time.sleep(1)
        second.send_signal(signal.SIGTERM)
        assert second.wait(5) == 143
        assert ready.hidden_files() == before
    assert first.wait(30) == 0


def test_reading_needs_no_lock(ready: Project, server: Server, database: str) -> None:
    assert ready.inv("db.backup").code == 0
    with ExitStack() as stack:
        first = waiting_backup(ready, server, database, stack)
        listed = ready.inv("db.list", "--json")
        assert listed.code == 0
        assert len(listed.json["backups"]) == 1
        verified = ready.inv("db.verify", "all", "--json")
        assert verified.code == 0
        assert [b["ok"] for b in verified.json["backups"]] == [True]
        restored = ready.inv("db.verify", "latest", "--restore")
        assert restored.code == 75
        assert ready.inv("db.restore", "latest", "--force").code == 75
        assert first.poll() is None
    assert first.wait(30) == 0


def test_a_killed_run_is_taken_over_and_cleared(ready: Project, server: Server, database: str) -> None:
    with ExitStack() as stack:
        first = waiting_backup(ready, server, database, stack)
        first.kill()
        first.wait()
    left = ready.hidden_files()
    partial = next(n for n in left if n.startswith(".partial_"))
    assert ".lock" in left
    second = ready.inv("db.backup")
    assert second.code == 0
    assert f"Cleared what an earlier run left of {partial.removeprefix('.partial_')}" in second.err
    assert ready.hidden_files() == []


# Many at once

RACER = """
import fcntl, os, sys
from datetime import UTC, datetime
from pg_backup_tasks import lock
from pg_backup_tasks.errors import Locked
from pg_backup_tasks.here import Here

folder, wait = sys.argv[1], float(sys.argv[2])
lock._AGAIN = 0.02
machine = Here()
# Let go by the kernel when its holder dies: it cannot be wrong about who is inside.
oracle = os.open(f"{folder}/oracle", os.O_RDWR | os.O_CREAT)
machine.presence()
print("ready", flush=True)
for line in sys.stdin:
    try:
        with lock.hold(machine, folder, "racer", lambda: datetime.now(UTC), wait):
            fcntl.flock(oracle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            number = int(os.pread(oracle, 20, 0) or b"0")
            print("held", flush=True)
            if line == "stay\\n":
                sys.stdin.readline()
            os.pwrite(oracle, b"%d" % (number + 1), 0)
            fcntl.flock(oracle, fcntl.LOCK_UN)
        print("done", flush=True)
    except Locked:
        print("locked", flush=True)
    except BlockingIOError:
        print("TWO INSIDE", flush=True)
"""


@dataclass
class Racer:
    """A process that takes the lock when told to."""

    process: subprocess.Popen[str]

    @classmethod
    def start(cls, folder: Path, wait: float) -> Racer:
        process = subprocess.Popen(
            [sys.executable, "-c", RACER, str(folder), str(wait)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        racer = cls(process)
        assert racer.hear() == "ready"
        return racer

    def tell(self, word: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def racers(folder: Path, number: int, wait: float) -> Iterator[list[Racer]]:
    started: list[Racer] = []
    try:
        started.extend(Racer.start(folder, wait) for _ in range(number))
        yield started
    finally:
        for racer in started:
            racer.end()


def test_eight_find_the_same_dead_run_and_one_takes_over(tmp_path: Path, dead: str) -> None:
    with racers(tmp_path, 8, 0) as all_of_them:
        for turn in range(10):
            (tmp_path / ".lock").symlink_to(f"{dead} then turn {turn}")
            for racer in all_of_them:
                racer.tell("stay")
            heard = {racer.hear(): racer for racer in all_of_them}
            assert set(heard) == {"held", "locked"}
            holder = heard["held"]
            assert len(links(tmp_path)) == 2
            holder.tell("go")
            assert holder.hear() == "done"
            assert links(tmp_path) == []


def _keep_running(racer: Racer, held: list[str]) -> None:
    while word := racer.hear():
        held.append(word)
        if word in ("done", "locked"):
            try:
                racer.tell("run")
            except (BrokenPipeError, ValueError):
                return


@pytest.mark.slow
def test_never_two_while_holders_are_killed(tmp_path: Path) -> None:
    """Eight processes take the lock again and again, whoever holds it may die any moment."""
    from threading import Thread

    rng, heard = random.Random(1), cast("list[str]", [])
    deadline = time.monotonic() + 60
    running: list[tuple[Racer, Thread]] = []

    def add() -> None:
        racer = Racer.start(tmp_path, 60)
        thread = Thread(target=_keep_running, args=(racer, heard))
        thread.start()
        racer.tell("run")
        running.append((racer, thread))

    try:
        for _ in range(8):
            add()
        kills = 0
        while (kills < 40 or heard.count("done") < 400) and time.monotonic() < deadline:
            time.sleep(rng.uniform(0.02, 0.3))
            racer, thread = running.pop(rng.randrange(8))
            racer.process.kill()
            thread.join()
            racer.end()
            kills += 1
            add()
    finally:
        for racer, thread in running:
            racer.process.kill()
            thread.join()
            racer.end()
    assert "TWO INSIDE" not in heard
    assert heard.count("done") >= 400
    assert kills >= 40
    with hold(tmp_path):
        pass
    assert links(tmp_path) == []


# Every order of steps there is: the algorithm itself, over a machine of which we are the scheduler


class _Paused(BaseException):
    """The process has said what it does next, and is told the answer another time."""


@dataclass
class Replayed:
    """A machine that gives the answers of before again, and stops at the first step that has none yet."""

    me: str
    answers: tuple[Any, ...]
    next: tuple[str, ...] | None = None
    _at: Iterator[int] = field(default_factory=count)

    def presence(self) -> str:
        return self.me

    def _step(self, *step: str) -> Any:
        at = next(self._at)
        if at < len(self.answers):
            return self.answers[at]
        self.next = self.next or step
        raise _Paused

    def claim(self, path: str, text: str) -> Any:
        return self._step("claim", path, text)

    def claimed(self, path: str) -> Any:
        return self._step("claimed", path)

    def remove(self, path: str) -> Any:
        return self._step("remove", path)

    def alive(self, who: str) -> Any:
        return self._step("alive", who)

    def entries(self, _folder: str, _starting: str, _holding: str = "") -> Any:
        return self._step("entries")

    def inside(self, what: str) -> Any:
        return self._step(what)


@dataclass(frozen=True)
class World:
    """The links there are, what each process has been told, who is dead."""

    links: frozenset[tuple[str, str]]
    told: tuple[tuple[Any, ...] | None, ...]
    """None for a process that has finished."""
    dead: frozenset[str]

    def name(self, process: int) -> str:
        return f"p{process}|h"

    def step_of(self, process: int) -> tuple[str, ...] | None:
        """Return what a process does next, None if it has come to its end."""
        told = self.told[process]
        if told is None or self.name(process) in self.dead:
            return None
        return _next_step(self.name(process), told)

    def after(self, process: int, step: tuple[str, ...]) -> World:
        there = dict(self.links)
        answer: Any = None
        match step:
            case ("claim", path, text):
                answer = path not in there
                if answer:
                    there[path] = text
            case ("claimed", path):
                answer = there.get(path)
            case ("remove", path):
                there.pop(path, None)
            case ("alive", who):
                answer = who not in self.dead
            case ("entries",):
                answer = tuple(Entry(p.removeprefix("f/"), target=t) for p, t in sorted(there.items()))
        told: tuple[Any, ...] | None = (*(self.told[process] or ()), answer)
        assert told is not None
        if _next_step(self.name(process), told) is None:
            told = None
        return World(frozenset(there.items()), (*self.told[:process], told, *self.told[process + 1 :]), self.dead)

    def without(self, process: int) -> World:
        told = (*self.told[:process], None, *self.told[process + 1 :])
        return World(self.links, told, self.dead | {self.name(process)})


_STEPS: dict[tuple[str, tuple[Any, ...]], tuple[str, ...] | None] = {}


def _next_step(me: str, told: tuple[Any, ...]) -> tuple[str, ...] | None:
    """Run the real code up to the first step it has no answer for."""
    if (me, told) not in _STEPS:
        machine = Replayed(me, told)
        try:
            with lock.hold(cast("Machine", machine), "f", "task", lambda: NOW):
                machine.inside("enter")
                machine.inside("leave")
        except (_Paused, Locked):
            pass
        _STEPS[me, told] = machine.next
    return _STEPS[me, told]


def explore(world: World, deaths: int) -> int:
    """Go through every order of the processes' steps, and of up to *deaths* deaths; return the number of worlds."""
    seen = {(world, deaths)}
    waiting = [(world, deaths)]
    while waiting:
        world, left = waiting.pop()
        steps = {p: step for p in range(len(world.told)) if (step := world.step_of(p))}
        inside = [p for p, step in steps.items() if step == ("leave",)]
        assert len(inside) <= 1, world
        if not steps:
            _newcomer_gets_in(world)
        following = [(world.after(p, step), left) for p, step in steps.items()]
        following += [(world.without(p), left - 1) for p in steps if left]
        for each in following:
            if each not in seen:
                seen.add(each)
                waiting.append(each)
    return len(seen)


def _newcomer_gets_in(world: World) -> None:
    """When all are gone or dead, whoever comes finds the lock free, and leaves nothing behind."""
    alone = World(world.links, (*(None for _ in world.told), ()), world.dead)
    me, entered = len(world.told), False
    while step := alone.step_of(me):
        entered = entered or step == ("leave",)
        alone = alone.after(me, step)
    assert entered, world
    assert not alone.links, world


def chain(*names: str) -> frozenset[tuple[str, str]]:
    """Return the links that dead runs left, each having taken over from the one before."""
    machine, there = World(frozenset(), (), frozenset(names)), dict[str, str]()
    for name in names:
        _, end = lock._chain(cast("Machine", _Frozen(there)), "f")
        there[end] = f"{name} then task"
    assert machine.dead >= set(names)
    return frozenset(there.items())


@dataclass
class _Frozen:
    there: dict[str, str]

    def claimed(self, path: str) -> str | None:
        return self.there.get(path)


@pytest.mark.parametrize(
    ("processes", "left", "deaths"),
    [(2, (), 2), (2, ("d0",), 2), (2, ("d0", "d1"), 2), (3, (), 0), (3, ("d0",), 0)],
)
def test_never_two_in_any_order_of_steps(processes: int, left: tuple[str, ...], deaths: int) -> None:
    world = World(chain(*left), ((),) * processes, frozenset(left))
    assert explore(world, deaths) > 100


@pytest.mark.slow
@pytest.mark.parametrize(("left", "deaths"), [((), 1), (("d0",), 1), (("d0", "d1"), 1)])
def test_never_two_in_any_order_of_three(left: tuple[str, ...], deaths: int) -> None:
    world = World(chain(*left), ((),) * 3, frozenset(left))
    assert explore(world, deaths) > 1000

"""Two processes that look at one folder: the second one's answer is used, can be done without, and keeps nobody up."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from pg_backup_tasks import survey
from pg_backup_tasks.machine import Survey

SOON = 20.0
COUNT = 5000


def many(folder: Path) -> Survey[bytes]:
    """Put more files there than one process asks for, and return them."""
    given = {f"{number}.{'info' if number % 5 == 0 else 'dump'}": b"x" * (number % 7) for number in range(COUNT)}
    for name, text in given.items():
        (folder / name).write_bytes(text)
    (folder / "a.dump").symlink_to("nowhere")
    return Survey(
        {name: len(text) for name, text in given.items()},
        {name: text for name, text in given.items() if name.endswith(".info")},
        {"a.dump": "nowhere"},
    )


@dataclass
class Two:
    """The second processes there were, and of how many others the first has asked itself."""

    seconds: list[int] = field(default_factory=list)
    asked: int = 0


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Two:
    """Let two processes look, whatever threads the tests have, with less room between them than the answer takes."""
    found = Two()
    begin, size, pipe = survey._begin, survey._size, os.pipe

    def counted(names: Sequence[str], folder: int) -> Any:
        second = begin(names, folder)
        found.seconds += [second.number] if second else []
        return second

    def asked(name: str, folder: int) -> int:
        found.asked += not name.endswith(".info")
        return size(name, folder)

    def narrow() -> tuple[int, int]:
        ends = pipe()
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 4096)
        return ends

    monkeypatch.setattr("pg_backup_tasks.survey.threading.active_count", lambda: 1)
    monkeypatch.setattr("pg_backup_tasks.survey.os.cpu_count", lambda: 2)
    monkeypatch.setattr("pg_backup_tasks.survey.os.pipe", narrow)
    monkeypatch.setattr(survey, "_begin", counted)
    monkeypatch.setattr(survey, "_size", asked)
    return found


def look(folder: Path) -> Survey[bytes] | None:
    return survey.of(str(folder), ("",), ".info", bytes)


def test_the_second_asks_for_all_others(tmp_path: Path, two: Two) -> None:
    given = many(tmp_path)
    assert look(tmp_path) == given
    assert (len(two.seconds), two.asked) == (1, 0)


def _not_at_all(*_: object) -> int:
    raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")


def _killed(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _half(names: Sequence[str], folder: int, _: int, target: int) -> None:
    data = array("q", [survey._size(name, folder) for name in names]).tobytes()
    os.write(target, data[:1003])
    os._exit(1)


@pytest.mark.parametrize(
    ("what", "instead", "answered"),
    [
        ("os.pipe", _not_at_all, 0),
        ("os.fork", _not_at_all, 0),
        ("_answer_and_end", _killed, 0),
        ("_answer_and_end", _half, 1003 // 8),
    ],
)
def test_what_the_second_does_not_answer_is_asked_again(
    tmp_path: Path, two: Two, monkeypatch: pytest.MonkeyPatch, what: str, instead: Any, answered: int
) -> None:
    given = many(tmp_path)
    monkeypatch.setattr(f"pg_backup_tasks.survey.{what}", instead)
    assert look(tmp_path) == given
    assert two.asked == COUNT * 4 // 5 + 1 - answered


def test_two_look_also_where_nobody_may_wait_for_a_child(tmp_path: Path, two: Two) -> None:
    given = many(tmp_path)
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert look(tmp_path) == given
        assert len(two.seconds) == 1
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_few_are_not_worth_two(tmp_path: Path, two: Two) -> None:
    (tmp_path / "a.info").write_bytes(b"a")
    assert look(tmp_path) == Survey({"a.info": 1}, {"a.info": b"a"}, {})
    assert two.seconds == []


def test_while_threads_are_at_work_one_looks(tmp_path: Path, two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    given = many(tmp_path)
    monkeypatch.setattr("pg_backup_tasks.survey.threading.active_count", lambda: 2)
    assert look(tmp_path) == given
    assert two.seconds == []


def test_a_first_that_is_interrupted_waits_for_no_answer(
    tmp_path: Path, two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(tmp_path)

    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(survey, "_text", interrupted)
    late = threading.Timer(SOON, lambda: os.kill(two.seconds[0], signal.SIGKILL))
    late.start()
    with pytest.raises(KeyboardInterrupt):
        look(tmp_path)
    assert late.is_alive(), "the second was waited for"
    late.cancel()
    (second,) = two.seconds
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)


WAITING = """
import fcntl, os, sys
from pg_backup_tasks import survey

def wait(*_):
    print("reading", flush=True)
    sys.stdin.read()

def narrow(pipe=os.pipe):
    ends = pipe()
    fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 4096)
    return ends

survey._text, os.pipe, os.cpu_count = wait, narrow, lambda: 2
survey.of(sys.argv[1], ("",), ".info", bytes)
"""


def test_a_second_ends_when_the_first_is_killed(tmp_path: Path) -> None:
    many(tmp_path)
    with subprocess.Popen(
        (sys.executable, "-c", WAITING, str(tmp_path)),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as first:
        assert first.stdout
        assert first.stdout.readline() == b"reading\n"
        first.kill()
        try:
            # The second has a copy of that pipe's end: it comes to its own end with the last process.
            assert first.communicate(timeout=SOON)[0] == b""
        except subprocess.TimeoutExpired:
            os.killpg(first.pid, signal.SIGKILL)
            raise

"""A backup on another machine against the same one here, and bringing it home against scp; all over one loopback."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from .measure import MB, Figure, Judged, can_watch_memory, paired, peak_memory, seconds
from .sshd import HOST, Sshd, can_run, running_sshd
from .stage import Bench

# A second for connecting is given; what is measured is the work.
GIVEN = 1.0
LEAST = 0.01
# With these the far side packs and hashes about as quickly as we do.
QUICK = ("pigz", "openssl")


def of_reaching(bench: Bench, size: str) -> Iterator[Figure]:
    """Measure what working on another machine costs."""
    if not can_run():
        bench.say("the far side is not measured: it takes OpenSSH's client and server.")
        return
    with ExitStack() as stack:
        plain = stack.enter_context(tempfile.TemporaryDirectory(prefix="pgbt-", dir="/tmp"))
        yield _backups(Far(bench, stack, _without(Path(plain))), "plain", f"far less 1 s, gzip, {size}", 1.7)
    with ExitStack() as stack:
        far = Far(bench, stack, "")
        if all(map(shutil.which, QUICK)):
            yield _backups(far, "quick", f"far less 1 s, pigz, {size}", 1.3)
        else:
            bench.say(f"the quicker far side is not measured: it takes {' and '.join(QUICK)}.")
        yield from _fetches(far, size)


def _backups(far: Far, key: str, what: str, limit: float) -> Figure:
    far.bench.say(f"measuring a backup {what} ...")
    pairs = paired(far.backup, lambda: far.bench.ours().seconds, far.bench.rounds)
    ours, theirs = zip(*((max(LEAST, ours - GIVEN), theirs) for ours, theirs in pairs), strict=True)
    return Figure(f"far.{key}", what, "s", limit, ours, theirs)


def _fetches(far: Far, size: str) -> Iterator[Figure]:
    far.bench.say(f"measuring how a backup comes home, {size} ...")
    seconds(far.bench.inv("db.backup"), far.bench.project, far.bench.env)
    try:
        pairs = paired(far.fetch, far.scp, far.bench.rounds)
        ours, theirs = zip(*pairs, strict=True)
        yield Figure("far.fetch", "db.fetch over scp", "s", 1 / 0.8, ours, theirs)
        if can_watch_memory():
            peaks = tuple(far.memory() for _ in range(max(1, far.bench.rounds // 2)))
            yield Figure("far.memory", "memory of db.fetch", "MB", 120, peaks, judged=Judged.PEAK)
    finally:
        far.bench.forget(far.bench.project / "backups")


class Far:
    """The project of a bench as another machine has it, and one here that knows the way to it."""

    def __init__(self, bench: Bench, stack: ExitStack, path: str) -> None:
        self.bench = bench
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgbt-", dir="/tmp")))
        usual = os.pathsep.join([str(bench.server.bin), path or os.environ.get("PATH", os.defpath)])
        self.sshd: Sshd = stack.enter_context(running_sshd(folder, path=usual))
        self.near = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgbt-", dir=bench.work)))
        shutil.copy(bench.project / "tasks.py", self.near)
        self.env = bench.env | {"INVOKE_DB_SSH_CONFIG": self.sshd.config}
        (self.near / "invoke.yaml").write_text(f"db:\n  hosts:\n    {HOST}:\n      project: {bench.project}\n")

    def backup(self) -> float:
        """Return the seconds of a far backup."""
        try:
            return seconds(self.bench.inv("db.backup", "--host", HOST), self.near, self.env)
        finally:
            self.bench.forget(self.bench.project / "backups")

    def fetch(self) -> float:
        """Return the seconds in which a backup comes home."""
        try:
            return seconds(self._fetching, self.near, self.env)
        finally:
            self.bench.forget(self.near / "backups")

    @property
    def _fetching(self) -> list[str]:
        return self.bench.inv("db.fetch", "latest", "--host", HOST)

    def scp(self) -> float:
        """Return the seconds in which scp brings the same files."""
        target = self.near / "copied"
        target.mkdir()
        files = f"{HOST}:{self.bench.project}/backups/postgres/backup_manual_2*"
        try:
            return seconds(["scp", "-q", "-F", self.sshd.config, files, str(target)], self.near, self.env)
        finally:
            self.bench.forget(target)

    def memory(self) -> float:
        """Return the megabytes that a fetch takes of this machine at most."""
        try:
            return peak_memory(self._fetching, self.near, self.env) / MB
        finally:
            self.bench.forget(self.near / "backups")


def _without(folder: Path) -> str:
    """Return a PATH with all that is usually there but what a plain machine lacks."""
    for place in ("/usr/bin", "/bin"):
        for program in Path(place).iterdir():
            if program.name not in QUICK and not (folder / program.name).exists():
                (folder / program.name).symlink_to(program)
    return str(folder)

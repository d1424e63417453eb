"""The machine at the other end of a real sshd, for the tests of what it can do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from conftest import missing

from bench.sshd import HOST, Sshd, can_run, running_sshd
from pg_backup_tasks import line
from pg_backup_tasks.line import Line
from pg_backup_tasks.there import There


class Far(There):
    """The machine at the other end, every command of which is given an *environment* of its own."""

    def __init__(self, sshd: Sshd, environment: dict[str, str]) -> None:
        super().__init__(HOST, line_to(sshd))
        self.sshd = sshd
        self.environment = environment

    def _script(
        self, text: str, words: Sequence[str], env: Sequence[tuple[str, str]] = (), *, tied: bool = True
    ) -> bytes:
        return super()._script(text, words, (*self.environment.items(), *env), tied=tied)


def line_to(sshd: Sshd, host: str = HOST) -> Line:
    """Return a line to what its configuration calls *host*."""
    return Line(host, lambda: line.connect(host, config=sshd.config, patience=10, ask=None, given={}))


@contextmanager
def machine_at(sshd: Sshd, environment: Mapping[str, str] | None = None) -> Iterator[Far]:
    """Yield the machine at the other end of a line."""
    far = Far(sshd, dict(environment or {}))
    try:
        yield far
    finally:
        far.close()


@contextmanager
def an_sshd(**options: Any) -> Iterator[Sshd]:
    """Run an sshd in a folder of its own."""
    if not can_run():
        missing("sshd", "apt-get install openssh-server openssh-client")
    with (
        TemporaryDirectory(prefix="pgbt-", dir="/tmp") as folder,
        running_sshd(Path(folder), **options) as sshd,
    ):
        yield sshd

"""The files and links of a folder on this computer: how large each is, and what is made of the texts of some.

A shelf of ten thousand backups has fifty thousand files, and Python asks for one size at a time, whatever the number
of threads; so where there are many, a second process asks for those of all the other files while we read.
"""

from __future__ import annotations

import os
import stat
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple, NoReturn

from .machine import Survey, T

# From how many on a second process is worth its start.
_MANY = 2000
# The size of what is no file, or is there no more.
_NO_SIZE = -1
_PIECE = 1 << 16
# Neither a pipe nor a link that has come there just now must hold us up, or lead us elsewhere.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW


class _Second(NamedTuple):
    """A second process: its number, and where its answer comes out."""

    number: int
    source: int


def of(folder: str, starting: tuple[str, ...], ending: str, make: Callable[[bytes], T]) -> Survey[T] | None:
    """Return the files and links under names *starting* so or so, and what *make* makes of those with that *ending*.

    None without a folder. Raises OSError where it may not be looked into.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        names = [name for name in os.listdir(descriptor) if name.startswith(starting)]
        others = [name for name in names if not name.endswith(ending)]
        found: Survey[T] = Survey({}, {}, {})
        with _asked_beside(others, descriptor) as answer:
            _read(found, (name for name in names if name.endswith(ending)), descriptor, make)
            sizes = zip(others, answer(), strict=True)
        found.sizes.update((name, size) for name, size in sizes if size != _NO_SIZE)
        no_files = (name for name in names if name not in found.sizes)
        found.links.update((name, target) for name in no_files if (target := _target(name, descriptor)) is not None)
    finally:
        os.close(descriptor)
    return found


def _read(found: Survey[T], names: Iterable[str], folder: int, make: Callable[[bytes], T]) -> None:
    """Add the files of these names to what is found, and what *make* makes of them."""
    for name in names:
        # Before it is opened: what is no file might wait for that, or never come to an end.
        size = _size(name, folder)
        if size != _NO_SIZE and (text := _text(name, size, folder)) is not None:
            found.sizes[name] = size
            # Now that the processor has it at hand; ten thousand later it would have to be fetched again.
            found.texts[name] = make(text)


def _size(name: str, folder: int) -> int:
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return _NO_SIZE
    return found.st_size if stat.S_ISREG(found.st_mode) else _NO_SIZE


def _target(name: str, folder: int) -> str | None:
    """Return where a link points, None where it is none, or is gone."""
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError:
        return None


def _text(name: str, size: int, folder: int) -> bytes | None:
    """Return what a file of about that *size* says: None where it is gone, nothing where it may not be read."""
    try:
        descriptor = os.open(name, _READ, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError:
        return b""
    try:
        text = os.read(descriptor, size + 1)
        if len(text) == size:
            return text  # with room left: there is no more
        return text + b"".join(iter(lambda: os.read(descriptor, _PIECE), b""))
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _is_worth_two(count: int) -> bool:
    # What a thread of ours holds just then nobody would let go of in the second process.
    return count >= _MANY and (os.cpu_count() or 1) > 1 and threading.active_count() == 1


@contextmanager
def _asked_beside(names: Sequence[str], folder: int) -> Iterator[Callable[[], list[int]]]:
    """Let a second process ask for the sizes for this block; yield what waits for its answer."""
    second = _begin(names, folder) if _is_worth_two(len(names)) else None
    try:
        yield lambda: _answer(second, names, folder)
    finally:
        if second:
            # With nobody left to answer it ends, however much it has to say.
            os.close(second.source)
            # Where whoever started us ignores the end of children, nobody can wait for one.
            with suppress(ChildProcessError):
                os.waitpid(second.number, 0)


def _begin(names: Sequence[str], folder: int) -> _Second | None:
    """Start a second process that asks; None where there can be none."""
    try:
        source, target = os.pipe()
    except OSError:
        return None
    try:
        number = os.fork()
    except OSError:
        os.close(source)
        return None
    else:
        if number == 0:
            _answer_and_end(names, folder, source, target)
        return _Second(number, source)
    finally:
        os.close(target)


def _answer_and_end(names: Sequence[str], folder: int, source: int, target: int) -> NoReturn:
    try:
        # A copy of that end would keep us waiting for a reader who is gone.
        os.close(source)
        data = array("q", [_size(name, folder) for name in names]).tobytes()
        while data:
            data = data[os.write(target, data) :]
    finally:
        # Nothing of whoever we are a copy of is to be ended twice.
        os._exit(0)


def _answer(second: _Second | None, names: Sequence[str], folder: int) -> list[int]:
    sizes = array("q")
    if second:
        data = b"".join(iter(lambda: os.read(second.source, _PIECE), b""))
        sizes.frombytes(data[: len(data) - len(data) % sizes.itemsize])
    # Whatever ended it early, the question stands.
    return [*sizes, *(_size(name, folder) for name in names[len(sizes) :])]

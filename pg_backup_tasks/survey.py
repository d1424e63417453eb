"""The files of a folder on this computer: how large each is, and what is made of the texts of some.

A shelf of ten thousand backups has fifty thousand files, and Python asks for one size at a time, whatever the number
of threads; so of many files a second process asks for most of the sizes while we read.
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

# From how many on a second process is worth its start, and how much of the asking is left to it: in the time of the
# rest the texts can be read.
_MANY = 2000
_PART = 0.9
# The size of what is no file, or is there no more.
_NO_SIZE = -1
_PIECE = 1 << 16
# Neither a pipe nor a link under that name must hold us up, or lead us elsewhere.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW


class _Second(NamedTuple):
    """A second process: its number, and where its answer comes out."""

    number: int
    source: int


def of(folder: str, starting: str, ending: str, make: Callable[[bytes], T]) -> Survey[T] | None:
    """Return the sizes of the files under names *starting* so, and what *make* makes of those with that *ending*.

    None without a folder. Raises OSError where it may not be looked into.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        names = [name for name in os.listdir(descriptor) if name.startswith(starting)]
        part = int(len(names) * _PART) if _is_worth_two(len(names)) else 0
        with _asked_beside(names[:part], descriptor) as answer:
            texts = _texts((name for name in names if name.endswith(ending)), descriptor, make)
            rest = _sizes(names[part:], descriptor)
            found = zip(names, [*answer(), *rest], strict=True)
        sizes = {name: size for name, size in found if size != _NO_SIZE}
        return Survey(sizes, {name: text for name, text in texts.items() if name in sizes})
    finally:
        os.close(descriptor)


def _is_worth_two(count: int) -> bool:
    # What a thread of ours holds just then nobody would let go of in the second process.
    return count >= _MANY and (os.cpu_count() or 1) > 1 and threading.active_count() == 1


def _sizes(names: Sequence[str], folder: int) -> list[int]:
    sizes = []
    for name in names:
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            sizes.append(_NO_SIZE)
        else:
            sizes.append(found.st_size if stat.S_ISREG(found.st_mode) else _NO_SIZE)
    return sizes


def _texts(names: Iterable[str], folder: int, make: Callable[[bytes], T]) -> dict[str, T]:
    texts = {}
    for name in names:
        if (text := _text(name, folder)) is not None:
            # Now that the processor has it at hand; ten thousand later it would have to be fetched again.
            texts[name] = make(text)
    return texts


def _text(name: str, folder: int) -> bytes | None:
    """Return what a file says: None where it is gone, nothing where it may not be read or is none."""
    try:
        descriptor = os.open(name, _READ, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError:
        return b""
    try:
        text = os.read(descriptor, _PIECE)
        while piece := os.read(descriptor, _PIECE):
            text += piece
    except OSError:
        return b""
    else:
        return text
    finally:
        os.close(descriptor)


@contextmanager
def _asked_beside(names: Sequence[str], folder: int) -> Iterator[Callable[[], list[int]]]:
    """Let a second process ask for the sizes for this block; yield what waits for its answer."""
    second = _begin(names, folder) if names else None
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
        data = array("q", _sizes(names, folder)).tobytes()
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
    return [*sizes, *_sizes(names[len(sizes) :], folder)]

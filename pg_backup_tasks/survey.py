"""The files of a folder on this computer: how large each is, and what the small ones say. Many are looked at by two.

A shelf of ten thousand backups has fifty thousand files, and Python asks for one size at a time, whatever the number
of threads; so a second process asks for most of them while we read.
"""

from __future__ import annotations

import os
import stat
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

from .machine import Survey

T = TypeVar("T")

# From how many on a second process is worth its start, and how much of the asking is left to it: in the time of the
# rest the texts can be read.
_MANY = 2000
_PART = 0.9
_NOT_A_FILE = -1
_SMALL = 1 << 16
# Neither a pipe nor a link under that name must hold us up, or lead us elsewhere.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW


def of(folder: str, starting: str, ending: str, read: Callable[[bytes], T]) -> Survey[T] | None:
    """Return the sizes of the files under names *starting* so, and what *read* makes of those with that *ending*.

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
            texts = _texts((name for name in names if name.endswith(ending)), descriptor, read)
            rest = _sizes(names[part:], descriptor)
            found = zip(names, [*answer(), *rest], strict=True)
        sizes = {name: size for name, size in found if size != _NOT_A_FILE}
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
            sizes.append(_NOT_A_FILE)
        else:
            sizes.append(found.st_size if stat.S_ISREG(found.st_mode) else _NOT_A_FILE)
    return sizes


def _texts(names: Iterable[str], folder: int, read: Callable[[bytes], T]) -> dict[str, T]:
    texts = {}
    for name in names:
        if (text := _text(name, folder)) is not None:
            # Now that the processor has it at hand; ten thousand later it would have to be fetched again.
            texts[name] = read(text)
    return texts


def _text(name: str, folder: int) -> bytes | None:
    """Return what a file says: nothing where it may not be read, None where it is gone."""
    try:
        descriptor = os.open(name, _READ, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError:
        return b""
    try:
        text = piece = os.read(descriptor, _SMALL)
        while len(piece) == _SMALL:
            piece = os.read(descriptor, _SMALL)
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
    child, source = _begin(names, folder) if names else (0, -1)
    try:
        yield lambda: _answer(source, names, folder)
    finally:
        if child:
            os.close(source)
            # Where whoever started us ignores the end of children, nobody can wait for one.
            with suppress(ChildProcessError):
                os.waitpid(child, 0)


def _begin(names: Sequence[str], folder: int) -> tuple[int, int]:
    """Return a process that asks, and where its answer will be; none where there can be none."""
    source, target = os.pipe()
    try:
        child = os.fork()
    except OSError:
        os.close(source)
        return 0, -1
    else:
        if child == 0:
            _answer_and_end(names, folder, target)
        return child, source
    finally:
        os.close(target)


def _answer_and_end(names: Sequence[str], folder: int, target: int) -> None:
    try:
        data = array("q", _sizes(names, folder)).tobytes()
        while data:
            data = data[os.write(target, data) :]
    finally:
        # Nothing of ours is to be ended twice.
        os._exit(0)


def _answer(source: int, names: Sequence[str], folder: int) -> list[int]:
    sizes = array("q")
    if source != -1:
        data = b"".join(iter(lambda: os.read(source, _SMALL), b""))
        sizes.frombytes(data[: len(data) - len(data) % sizes.itemsize])
    # Whatever ended it early, the question stands.
    return [*sizes, *_sizes(names[len(sizes) :], folder)]

"""Bring a backup home: every byte compared, the whole of it or nothing."""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass, replace
from time import monotonic

from . import aside
from . import info as info_
from .desk import Desk
from .errors import Failed, Refused
from .info import FileInfo
from .machine import CommandError
from .model import INFO, BackupName, Digest, Format
from .store import FETCHING, Backup, Store
from .units import size

_SMALLEST_ROOM = 1 << 20


@dataclass(frozen=True)
class Fetched:
    """A backup that is here now; *brought* are the bytes that came over the line, 0 where it was here already."""

    backup: Backup
    host: str
    brought: int
    seconds: float


def folder_of(near: Desk, host: str) -> str:
    """Return where a host's backups come to lie on this machine: beside our own. Raises Refused where that is ours."""
    own = near.store.folder
    name = re.sub(r"[^A-Za-z0-9._@-]", "_", host).lstrip(".")
    folder = f"{own.rpartition('/')[0]}/{name}"
    if not name or folder == own:
        raise Refused(
            f"The backups of {host} would come to lie among our own.", hint="another name for it in the setting hosts"
        )
    return folder


def fetch(far: Desk, near: Desk, chosen: Backup, wait: float, formats: tuple[Format, ...] | None = None) -> Fetched:
    """Bring *chosen*, or some of its formats, from *far* to this machine; return it as it lies here.

    A path has fixed one of them. Raises Failed where what came is not what was written; then nothing has its name.
    """
    began = monotonic()
    aside.tell(far)
    if formats is None and chosen.chosen:
        formats = (chosen.chosen,)
    wanted = tuple(f for f in Format if f in chosen.sizes and (formats is None or f in formats))
    if not wanted or (chosen.type and not chosen.complete):
        raise Refused(f"{chosen.name} on {far.machine.name} is not whole.", hint="inv db.list shows which are")
    folder = folder_of(near, far.machine.name)
    home = replace_folder(near, folder)
    with home.at_work(f"db.fetch of {chosen.name}", wait):
        if here := _here_already(home, chosen, wanted):
            return Fetched(here, far.machine.name, 0, monotonic() - began)
        _refuse_without_room(home, chosen, wanted)
        with far.store.in_use(chosen.name):
            _bring(far, home, chosen, wanted)
        found = _as_it_lies(home.store, chosen)
    return Fetched(found, far.machine.name, sum(chosen.sizes[f] for f in wanted), monotonic() - began)


def replace_folder(near: Desk, folder: str) -> Desk:
    """Return a desk like *near* whose backups lie in *folder*."""
    return replace(near, settings=replace(near.settings, backups=folder))


def _as_it_lies(store: Store, chosen: Backup) -> Backup:
    return store.find(chosen.name if chosen.type else f"{store.folder}/{chosen.name}", store.folder, _nobody_asks)


def _nobody_asks(_backups: list[Backup]) -> Backup:
    raise AssertionError


def _here_already(home: Desk, chosen: Backup, wanted: tuple[Format, ...]) -> Backup | None:
    """Return the backup, if it lies here with the very files that are wanted."""
    here = home.store.by_name(chosen.name)
    if here is None or here.info is None or chosen.info is None or not here.complete:
        return None
    recorded = {f: chosen.info.files.get(f.extension) for f in wanted}
    same = (
        f in here.sizes and (file is None or _is(home.machine.digest(here.path(f)), file))
        for f, file in recorded.items()
    )
    return here if all(same) else None


def _is(found: Digest, recorded: FileInfo) -> bool:
    return (found.bytes, found.sha256) == (recorded.bytes, recorded.sha256)


def _refuse_without_room(home: Desk, chosen: Backup, wanted: tuple[Format, ...]) -> None:
    needed = sum(chosen.sizes[f] for f in wanted) + _SMALLEST_ROOM
    if (free := home.machine.free(home.store.folder)) < needed:
        raise Failed(
            f"{home.store.folder} has {size(free)} free; {chosen.name} takes {size(needed)}.", hint="make room"
        )


def _bring(far: Desk, home: Desk, chosen: Backup, wanted: tuple[Format, ...]) -> None:
    name = BackupName.parse(chosen.name)
    if name is None:
        _bring_foreign(far, home, chosen)
        return
    staging = home.store.staging(name, wanted)
    try:
        places = {f: staging.file(f.extension) for f in wanted}
        _copy(far, home, chosen, places)
        staging.complete(_document(far, chosen, wanted))
        _remove_older(home, chosen)
        staging.publish(links=False)
    finally:
        staging.discard()


def _bring_foreign(far: Desk, home: Desk, chosen: Backup) -> None:
    """Bring a dump that nobody here has named, and so no `.info` with it."""
    (format_,) = chosen.sizes
    final = f"{home.store.folder}/{chosen.name}"
    folder = f"{home.store.folder}/{FETCHING}"
    home.machine.make_folder(folder)
    try:
        _copy(far, home, chosen, {format_: f"{folder}/dump"})
        home.machine.flush([f"{folder}/dump"])
        home.machine.publish([("remove", final), ("move", f"{folder}/dump", final)])
    finally:
        home.machine.remove_tree(folder)


def _copy(far: Desk, home: Desk, chosen: Backup, places: dict[Format, str]) -> None:
    paths = {chosen.path(f): f for f in places}
    expected = {f.extension: chosen.sizes[f] for f in places}
    moved = dict.fromkeys(expected, 0)
    with home.report.gauge(f"Fetching {chosen.name}", expected) as gauge:

        def progress(path: str, count: int) -> None:
            moved[paths[path].extension] += count
            gauge.update(moved)

        try:
            with closing(far.machine.bring({path: places[f] for path, f in paths.items()}, progress)) as coming:
                for format_, came in zip(places, coming, strict=True):
                    _compare(far, chosen, format_, came)
        except (CommandError, FileNotFoundError):
            if chosen.folder == far.store.folder and far.store.by_name(chosen.name) is None:
                raise _gone(far, chosen) from None
            raise


def _gone(far: Desk, chosen: Backup) -> Failed:
    return Failed(f"{chosen.name} was removed from {far.machine.name} meanwhile.", hint="inv db.list")


def _compare(far: Desk, chosen: Backup, format_: Format, came: Digest) -> None:
    """Compare what came with what was written when the backup was taken; without that, with what lies there."""
    recorded = chosen.info.files.get(format_.extension) if chosen.info else None
    if recorded and _is(came, recorded):
        return
    lies = far.machine.digest(chosen.path(format_))
    if lies != came:
        raise Failed(
            f"{chosen.path(format_)} did not come as it lies on {far.machine.name}; nothing of it was kept.",
            hint="the same again",
        )
    if recorded:
        raise Failed(
            f"{chosen.path(format_)} on {far.machine.name} is not what was written; nothing of it was kept.",
            hint=f"inv db.verify {chosen.name}",
        )


def _document(far: Desk, chosen: Backup, wanted: tuple[Format, ...]) -> bytes:
    """Return the `.info` for the files that came; an old script's as it is."""
    raw = far.machine.read(chosen.info_path)
    if raw is None:
        raise _gone(far, chosen)
    if chosen.info is None or set(wanted) == set(chosen.sizes):
        return raw
    return info_.encode(info_.with_files(chosen.info, (f.extension for f in wanted)))


def _remove_older(home: Desk, chosen: Backup) -> None:
    """Make way for a backup that lies here in fewer formats, or damaged."""
    if home.store.by_name(chosen.name):
        files = [e.name for e in home.machine.entries(home.store.folder, f"{chosen.name}.") or []]
        # Without its .info no half of it looks whole.
        home.machine.remove(f"{home.store.folder}/{chosen.name}{INFO}")
        home.machine.remove(*(f"{home.store.folder}/{file}" for file in files))

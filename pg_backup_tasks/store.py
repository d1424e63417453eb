"""The shelf: what lies in the backup folder, which backup a word means, and how a new one gets there."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from pathlib import PurePosixPath
from typing import NamedTuple

from . import info as info_
from .errors import Failed, Refused
from .info import Gist, Info
from .machine import CommandError, Entry, Machine, Survey
from .model import BY_TIME, EXTENSIONS, INFO, SAFETY, BackupName, Format, latest_link, parse_type, split_file
from .units import listed

PARTIAL = ".partial_"
FETCHING = ".fetching"
_CLEARED = ".cleared_"
_REMOVING = ".removing"
# Who reads a backup for a while, without the lock: a link that says who, for every user of the folder to see.
_IN_USE = ".in_use_"
_MOST_LINKS = 8
_AGE = attrgetter("created_at")
# An `.info` as it is, and its gist.
_Text = tuple[bytes, Gist | None]
_FORMATS = tuple((f, f.extension) for f in Format)
# Clocks of two machines differ; what is dated later than that is not the latest of anything.
_SKEW = timedelta(hours=1)
_LATEST = re.compile(r"backup_(?P<type>[a-z0-9_]+)_latest(?P<extension>\.(?:dump|tar|sql|sql\.gz|info))")
# What a run that dies while it writes leaves of a backup's file or link, or of its own notes.
_TEMPORARY = re.compile(r"\.(?P<file>.*)\.new")
_NOTES = re.compile(r"\.(?:removing|undo\.json|migrations\.json(?:\.migrated)?|restoring.*)")


class Backup(NamedTuple):
    """One backup: the files there are, and what its `.info` says."""

    name: str
    folder: str
    type: str
    created_at: datetime | None
    sizes: dict[Format, int]
    raw: bytes | None = None
    """Its `.info` as it is."""
    gist: Gist | None = None
    """What it is judged by, where that is ours and readable."""
    chosen: Format | None = None
    """The format a path has fixed."""

    @property
    def has_info(self) -> bool:
        """Whether there is an `.info`, ours or not."""
        return self.raw is not None

    @property
    def info(self) -> Info | None:
        """The whole document, where that is ours and readable."""
        return info_.decode(self.raw) if self.raw is not None else None

    @property
    def damaged(self) -> bool:
        """Whether its `.info` was ours once and can be read no more."""
        return self.raw is not None and info_.is_damaged(self.raw)

    @property
    def bytes(self) -> int:
        """The size of its dump files together."""
        return sum(self.sizes.values())

    @property
    def complete(self) -> bool:
        """Whether every file its `.info` names is there in its size; for an old script's, whether any is."""
        if self.gist is None:
            return self.has_info and not self.damaged and bool(self.sizes)
        files, sizes = self.gist.files, self.sizes
        for format_, extension in _FORMATS:
            if extension in files and files[extension] != sizes.get(format_):
                return False
        return True

    @property
    def missing(self) -> list[str]:
        """The extensions its `.info` names that have no file."""
        named = self.gist.files if self.gist else {}
        return [e for e in named if not any(f.extension == e for f in self.sizes)]

    def has(self, extension: str) -> bool:
        """Whether its file of that extension, `.info` too, is there."""
        return self.has_info if extension == INFO else any(f.extension == extension for f in self.sizes)

    def path(self, format_: Format) -> str:
        """Return where the dump of one format is."""
        if self.chosen and not BackupName.parse(self.name):
            return f"{self.folder}/{self.name}"
        return f"{self.folder}/{self.name}{format_.extension}"

    @property
    def info_path(self) -> str:
        """Where its `.info` is, or would be."""
        return f"{self.folder}/{self.name}{INFO}"

    def format_to_restore(self) -> Format:
        """Return the format fixed by a path, else the best there is. Raises Refused where no dump is left."""
        if self.chosen:
            return self.chosen
        for format_ in Format:
            if format_ in self.sizes:
                return format_
        raise Refused(f"{self.name} has no dump file left to restore.", hint="inv db.list")


class Stock(NamedTuple):
    """What lies in the folder: the backups, newest first, where each link points, and which backups are in use."""

    backups: list[Backup]
    links: dict[str, str]
    used: set[str]


@dataclass(frozen=True)
class Store:
    """A backup folder on a machine."""

    machine: Machine
    folder: str
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    warn: Callable[[str], None] = lambda _: None

    def backups(self, type_: str | None = None) -> list[Backup]:
        """Return the backups in the folder, newest first, perhaps of one type only."""
        return self._backups(self._survey(f"backup_{type_}_" if type_ else "backup_"), type_)

    def stock(self, type_: str | None = None) -> Stock:
        """Return the backups, perhaps of one type only, the links to the latest of every type, and what is in use."""
        found = self._survey("backup_", _IN_USE)
        return Stock(self._backups(found, type_), found.links, self._marked(found.links))

    def _backups(self, found: Survey[_Text], type_: str | None) -> list[Backup]:
        # A name has no dot in it; the files of one are parsed once.
        stems = {filename.partition(".")[0] for filename in found.sizes}
        names = [name for name in map(BackupName.parse, stems) if name and type_ in (None, name.type)]
        names.sort(key=BY_TIME, reverse=True)
        backups = (self._backup(name, found, self.folder) for name in names)
        return [backup for backup in backups if backup]

    def types(self) -> list[str]:
        """Return the types there are backups of."""
        return sorted({parsed[0].type for e in self._entries() if e.is_file and (parsed := split_file(e.name))})

    def find(
        self,
        word: str,
        cwd: str,
        pick: Callable[[list[Backup]], Backup],
        broken: Callable[[Backup], bool] = lambda _: False,
    ) -> Backup:
        """Return the backup that BACKUP means: a path, a name, `latest`, `latest:TYPE` or `pick`.

        *broken* is asked of each newer one that is not whole, whether `latest` means that. Raises Refused where there
        is none, or the word could be an option that went astray.
        """
        if word.startswith("-") or not word:
            raise Refused(f"{word!r} is no backup.", hint="inv --help db.TASK (options come after BACKUP)")
        if word == "latest" or word.startswith("latest:"):
            return self._latest(parse_type(word.removeprefix("latest:")) if ":" in word else None, broken)
        if word == "pick":
            return pick(self.some())
        if found := self.by_name(word):
            return found
        if BackupName.parse(word) is None:
            path = word if word.startswith("/") else f"{cwd}/{word}"
            if found := self._by_path(str(PurePosixPath(path))):
                return found
        raise Refused(
            f"There is no backup {word!r}, neither in {self.folder} nor as a file.",
            hint="inv db.list shows what there is",
        )

    def by_name(self, name: str) -> Backup | None:
        """Return the backup of that name in the folder."""
        parsed = BackupName.parse(name)
        return self._backup(parsed, self._survey(f"{name}."), self.folder) if parsed else None

    def _entries(self, starting: str = "") -> list[Entry]:
        return self.machine.entries(self.folder, starting) or []

    def _survey(self, *starting: str, folder: str = "") -> Survey[_Text]:
        return self.machine.survey(folder or self.folder, starting, INFO, _with_gist) or Survey({}, {}, {})

    def some(self) -> list[Backup]:
        """Return every backup. Raises Refused where there is none."""
        backups = self.backups()
        if not backups:
            raise Refused(f"There are no backups in {self.folder}.", hint="inv db.backup takes one")
        return backups

    def _latest(self, type_: str | None, broken: Callable[[Backup], bool]) -> Backup:
        # Whoever restores once more means what was restored, not what it replaced.
        past, future = self._dated([b for b in self.backups(type_) if type_ or b.type != SAFETY])
        for backup in (*past, *future):
            if backup.complete or broken(backup):
                if future and backup not in future:
                    self.warn(f"{future[0].name} is dated in the future; the latest is taken to be {backup.name}.")
                return backup
        of_type = f" of type {type_}" if type_ else ""
        raise Refused(f"There is no whole backup{of_type} in {self.folder}.", hint="inv db.list")

    def _newest(self, newest_first: Iterable[Backup]) -> Backup | None:
        """Return the newest that is whole; one that is dated in the future only where there is no other."""
        past, future = self._dated(newest_first)
        return next((b for b in (*past, *future) if b.complete), None)

    def _dated(self, newest_first: Iterable[Backup]) -> tuple[list[Backup], list[Backup]]:
        """Return the backups of the past, and those that are dated in the future."""
        latest = self.clock() + _SKEW
        past: list[Backup] = []
        future: list[Backup] = []
        for backup in newest_first:
            (future if backup.created_at and backup.created_at > latest else past).append(backup)
        return past, future

    def _by_path(self, path: str, links: int = 0) -> Backup | None:
        folder, filename = str(PurePosixPath(path).parent), PurePosixPath(path).name
        try:
            entries = self.machine.entries(folder, filename) or []
        except NotADirectoryError:
            return None
        entry = next((e for e in entries if e.name == filename), None)
        if entry is None or links > _MOST_LINKS:
            return None
        if entry.target is not None:
            return self._by_path(str(PurePosixPath(folder) / entry.target), links + 1)
        if not entry.is_file:
            raise Refused(f"{path} is no file.", hint="inv db.list")
        parsed = split_file(filename)
        if parsed is None:
            return self._foreign(folder, entry)
        name, extension = parsed
        return self._backup(name, self._survey(f"{name}.", folder=folder), folder, _format(extension))

    def _foreign(self, folder: str, entry: Entry) -> Backup:
        format_ = self.machine.sniff(f"{folder}/{entry.name}")
        if format_ is None:
            raise Refused(f"{folder}/{entry.name} is no PostgreSQL dump.", hint="inv db.list")
        return Backup(entry.name, folder, "", None, {format_: entry.bytes}, chosen=format_)

    def _backup(
        self, name: BackupName, found: Survey[_Text], folder: str, chosen: Format | None = None
    ) -> Backup | None:
        text, given = str(name), found.sizes
        sizes = {f: given[file] for f, extension in _FORMATS if (file := text + extension) in given}
        # One that went away between two looks is not there.
        raw, gist = found.texts.get(text + INFO, (None, None))
        if raw is None and not sizes:
            return None
        return Backup(text, folder, name.type, name.at, sizes, raw, gist, chosen)

    # Taking one in

    def free_name(self, type_: str, clock: Callable[[], datetime], sleep: Callable[[float], None]) -> BackupName:
        """Return the name for a backup taken now; where it is taken, wait for the next second."""
        while True:
            now = clock().astimezone(UTC).replace(microsecond=0)
            name = BackupName(now, type_)
            if not self._entries(f"{name}.") and not self._entries(f"{PARTIAL}{name}"):
                return name
            sleep(max(0.01, (now + timedelta(seconds=1) - clock()).total_seconds()))

    def staging(self, name: BackupName, formats: tuple[Format, ...]) -> Staging:
        """Make the folder in which a backup comes to be, out of sight of everything that looks for backups."""
        path = f"{self.folder}/{PARTIAL}{name}"
        self.machine.make_folder(path)
        return Staging(self, name, path, formats)

    def clear_remains(self, hidden: Sequence[Entry]) -> list[str]:
        """Remove what dead runs left, returning the backups they did not finish; only under the lock.

        *hidden* is what lies hidden in the folder since the lock was taken.
        """
        for entry in hidden:
            name = BackupName.parse(entry.name.removeprefix(PARTIAL))
            if entry.name.startswith(PARTIAL) and name:
                self._withhold(name)
            elif _is_temporary(entry):
                self.machine.remove(f"{self.folder}/{entry.name}")
            elif entry.name == FETCHING:
                self.machine.remove_tree(f"{self.folder}/{FETCHING}")
            elif entry.name.startswith(_IN_USE) and entry.target and not self.machine.alive(entry.target):
                self.machine.remove(f"{self.folder}/{entry.name}")
        if not any(entry.name.startswith((PARTIAL, _CLEARED)) for entry in hidden):
            return []
        entries = self._entries()
        cleared = [BackupName.parse(e.name.removeprefix(_CLEARED)) for e in entries if e.name.startswith(_CLEARED)]
        return [str(name) for name in cleared if name and not self._clear(name, entries)]

    def _withhold(self, name: BackupName) -> None:
        """Let what still publishes a backup, though its run is dead, find nothing there any more."""
        aside = f"{self.folder}/{_CLEARED}{name}"
        self.machine.remove_tree(aside)
        self.machine.publish([("move", f"{self.folder}/{PARTIAL}{name}", aside)])

    def _clear(self, name: BackupName, entries: list[Entry]) -> bool:
        """Remove what is left of a backup's making; return whether it had been finished."""
        files = [e.name for e in entries if (p := split_file(e.name)) and p[0] == name]
        finished = f"{name}{INFO}" in files
        # Without the proof, what published it ended in the middle.
        if not finished:
            self.machine.remove(*(f"{self.folder}/{file}" for file in files))
        self.machine.remove_tree(f"{self.folder}/{_CLEARED}{name}")
        return finished

    # Letting go

    @contextmanager
    def in_use(self, name: str) -> Iterator[None]:
        """Let no cleanup remove a backup for this block, where this user may say so in the folder."""
        who = self.machine.presence()
        mark = f"{self.folder}/{_IN_USE}{name}.{hashlib.sha256(who.encode()).hexdigest()[:12]}"
        with suppress(OSError, CommandError):
            self.machine.claim(mark, who)
        try:
            yield
        finally:
            with suppress(OSError, CommandError):
                self.machine.remove(mark)

    def used(self) -> set[str]:
        """Return the names of the backups that are in use."""
        return self._marked({entry.name: entry.target for entry in self._entries(_IN_USE) if entry.target})

    def _marked(self, links: Mapping[str, str]) -> set[str]:
        """Return the backups that a link says are in use, by somebody who lives."""
        marks = [name for name, who in links.items() if name.startswith(_IN_USE) and self.machine.alive(who)]
        return {mark.removeprefix(_IN_USE).rpartition(".")[0] for mark in marks}

    def remove(self, backups: Sequence[Backup], links: Mapping[str, str]) -> None:
        """Remove these backups, each as a whole, of the stock that has these *links*; only under the lock.

        Dying in between leaves none that looks whole, and what has been begun is remembered. Raises Failed for what
        cannot be removed, once everything else is.
        """
        backups = sorted(backups, key=_AGE)  # what dies early leaves the newer ones
        names = {b.name for b in backups}
        others = self.begun() - names
        self._redirect(names, links)
        self._remember(names | others)
        if not backups and not others:
            return
        trouble = self._attempt(b.info_path for b in backups)
        self.machine.flush([self.folder])
        # One that cannot let go of its `.info` stays as it is.
        kept = self._still_there(INFO) if trouble or others else set()
        trouble = self._attempt(b.path(f) for b in backups for f in b.sizes if b.name not in kept) or trouble
        left = self._still_there() if trouble or others else set()
        self._remember((names | others) & left - kept)
        if trouble:
            stuck = names & left
            raise Failed(
                f"{len(stuck)} of {len(names)} backups could not be removed ({trouble}): {listed(sorted(stuck))}.",
                hint="look who may remove these files; the next cleanup tries again",
            )

    def left(self, names: set[str]) -> set[str]:
        """Return those of which any file is there."""
        return names & self._still_there()

    def begun(self) -> set[str]:
        """Return the names of the backups whose removal was begun and not ended."""
        try:
            found = json.loads(self.machine.read(f"{self.folder}/{_REMOVING}") or b"[]")
        except ValueError:
            found = []
        return {name for name in found if isinstance(name, str)} if isinstance(found, list) else set()

    def _remember(self, begun: set[str]) -> None:
        """Note whose removal is begun and not ended."""
        path = f"{self.folder}/{_REMOVING}"
        if begun:
            self.machine.write(path, json.dumps(sorted(begun), indent=0).encode())
        else:
            self.machine.remove(path)

    def _attempt(self, paths: Iterable[str]) -> str:
        """Remove files; return what was wrong with the first that could not be, or nothing."""
        try:
            self.machine.remove(*paths)
        except (OSError, CommandError) as error:
            return str(error.strerror if isinstance(error, OSError) else error.message)
        return ""

    def _still_there(self, extension: str = "") -> set[str]:
        """Return the names of which there is a file, perhaps of one extension only."""
        parsed = (split_file(e.name) for e in self._entries() if e.is_file)
        return {str(name) for name, found in filter(None, parsed) if found.endswith(extension)}

    def _redirect(self, gone: set[str], links: Mapping[str, str]) -> None:
        """Let every link to the latest backup of a type point at one that is there and stays, or be gone."""
        folder = PurePosixPath(self.folder)
        latest = [(link, folder / target) for name, target in links.items() if (link := _LATEST.fullmatch(name))]
        stale: dict[str, list[str]] = {}
        # What a link leads to must not be told from another backup's `.info`: of one backup all go, or none.
        dead = self._dead_ends([end for _, end in latest], gone)
        broken = {(link["type"], _stem(end)) for link, end in latest if end in dead}
        for link, end in latest:
            if (link["type"], _stem(end)) in broken:
                stale.setdefault(link["type"], []).append(link["extension"])
        steps: list[tuple[str, ...]] = []
        for type_, extensions in stale.items():
            newest = self._newest([b for b in self.backups(type_) if b.name not in gone])
            for extension in extensions:
                path = f"{self.folder}/{latest_link(type_, extension)}"
                file = f"{newest.name}{extension}" if newest and newest.has(extension) else ""
                steps.append(("link", file, path) if file else ("remove", path))
        if steps:
            self.machine.publish(steps)

    def _dead_ends(self, ends: Sequence[PurePosixPath], gone: set[str]) -> set[PurePosixPath]:
        """Return those at which there is, or is about to be, nothing. However they are said: only ours are judged."""
        parsed = [(end, found[0]) for end in ends if (found := split_file(end.name))]
        dead = {end for end, name in parsed if str(name) in gone}
        # One may lead to another folder; an empty file is no dump.
        asked = [end for end, _ in parsed if end not in dead]
        sizes = self.machine.sizes([str(end) for end in asked])
        return dead | {end for end, size in zip(asked, sizes, strict=True) if not size}


@dataclass(frozen=True)
class Staging:
    """A backup that is coming to be."""

    store: Store
    name: BackupName
    path: str
    formats: tuple[Format, ...]

    def file(self, extension: str) -> str:
        """Return where the file of one extension comes to be."""
        return f"{self.path}/{self.name}{extension}"

    def complete(self, document: bytes) -> None:
        """Return when every dump, and `.info` after them, is whole and on disk; nothing has its name yet."""
        machine = self.store.machine
        machine.flush([self.file(f.extension) for f in self.formats])
        machine.write(self.file(INFO), document)
        machine.flush([self.path])

    def publish(self, *, links: bool = True) -> None:
        """Give every file its final name, `.info` last, and point `latest` at them; whole or not at all."""
        machine, folder = self.store.machine, self.store.folder
        moves = [("move", self.file(e), f"{folder}/{self.name}{e}") for e in self._extensions]
        try:
            machine.publish([*moves, *(self._links() if links else ())])
        except CommandError:
            self._withdraw()
            raise
        machine.flush([folder])

    def _withdraw(self) -> None:
        """Take back the names given, unless all are."""
        unmoved = {e.name for e in self.store.machine.entries(self.path) or []}
        for extension in self._extensions if unmoved else ():
            if f"{self.name}{extension}" not in unmoved:
                self.store.machine.remove(f"{self.store.folder}/{self.name}{extension}")

    @property
    def _extensions(self) -> tuple[str, ...]:
        return (*(f.extension for f in self.formats), INFO)

    def _links(self) -> list[tuple[str, ...]]:
        folder, type_ = self.store.folder, self.name.type
        return [
            ("link", f"{self.name}{extension}", f"{folder}/{latest_link(type_, extension)}")
            if extension in self._extensions
            else ("remove", f"{folder}/{latest_link(type_, extension)}")
            for extension in EXTENSIONS
        ]

    def discard(self) -> None:
        """Remove what is left of it."""
        self.store.machine.remove_tree(self.path)


def _with_gist(raw: bytes) -> _Text:
    return raw, info_.gist(raw)


def _stem(file: PurePosixPath) -> PurePosixPath:
    """Return what the files of one backup have in common, which one of its name in another folder has not."""
    return file.with_name(file.name.partition(".")[0]) if file.name else file


def _is_temporary(entry: Entry) -> bool:
    match = _TEMPORARY.fullmatch(entry.name) if entry.is_file or entry.target is not None else None
    file = match["file"] if match else ""
    return bool(split_file(file) or _LATEST.fullmatch(file) or _NOTES.fullmatch(file))


def _format(extension: str) -> Format | None:
    return next((f for f in Format if f.extension == extension), None)

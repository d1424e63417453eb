"""The only module that prints: results to standard output, everything said on the way to standard error."""

from __future__ import annotations

import io
import json
import logging
import logging.handlers
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from . import columns, hiding, signals
from .columns import Row, Style
from .errors import Failed, Refused, TaskError
from .model import Format, Mode
from .retention import NOT_WHOLE
from .units import counted, duration, listed, short_age, size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from .cleanup import Shelf
    from .desk import Gauge
    from .fetch import Fetched
    from .journal import Change
    from .migrate import Verdict as Outcome
    from .restore import Result
    from .retention import Fate
    from .store import Backup
    from .verify import Verdict

_DUMB = ("dumb", "unknown")
# How many backups that go alike a terminal shows line by line.
_TOGETHER = 3
_SHORTER = re.compile(r"^(daily|monthly) \S+$|one of the (last)")
_WEEK = re.compile(r"^(weekly) \S+$")
_DAYS = re.compile(r"([0-9]+) days?")
_LOG_BYTES = 1 << 20
_LOGS_KEPT = 5
_LINE_EVERY = 30.0
_ADVICE = re.compile(r"\binv (db\.[a-z-]+)")


class Report:
    """Talks to the user of one run, and to the log; *quiet* leaves standard error to what has gone wrong."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False, log: str | None = None) -> None:
        self._as_json = as_json
        self._quiet = quiet
        self._log = _open_log(log) if log else None
        self._secrets: set[str] = set()
        self._shown: set[str] = set()
        self._host = ""
        _open_what_is_closed()
        self._out = _Heedless(sys.stdout)
        if isinstance(sys.stdout, io.TextIOWrapper):
            # As standard error does: a name that the terminal's encoding lacks is no reason to fail.
            sys.stdout.reconfigure(errors="backslashreplace")

    def hide(self, secret: str, shown: Iterable[str] = ()) -> None:
        """Never show *secret* again, as it is or percent-encoded; what is *shown* all the same stays as it is."""
        self._secrets.add(secret)
        self._shown.update(shown)

    def speak_of(self, host: str) -> None:
        """From now on the talk is of the machine called *host*, where what there is to try is to be tried."""
        self._host = host

    def _clean(self, text: str) -> str:
        text = hiding.hide(text, self._secrets, self._shown)
        return _ADVICE.sub(rf"inv \1 --host {self._host}", text) if self._host else text

    # On the way

    def say(self, text: str) -> None:
        self.note(text)
        if not self._quiet:
            print(self._clean(text), file=_stderr(), flush=True)

    def warn(self, text: str, *, loud: bool = False) -> None:
        self.note(f"warning: {text}")
        if loud or not self._quiet:
            print(self._clean(f"Warning: {text}"), file=_stderr(), flush=True)

    def note(self, text: str) -> None:
        if self._log:
            self._log.info(self._clean(text))

    @contextmanager
    def gauge(self, title: str, expected: Mapping[str, int]) -> Iterator[Gauge]:
        if self._quiet:
            yield _Silence()
        elif sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in _DUMB:
            with _progress() as progress:
                yield _Bars(progress, title, expected)
        else:
            print(f"{title} {', '.join(expected)}", file=_stderr(), flush=True)
            yield _Lines(title)

    def ask(self, question: str) -> str:
        print(f"{question} ", end="", file=_stderr(), flush=True)
        with signals.waiting():
            return sys.stdin.readline().strip()

    def ask_secret(self, question: str) -> str:
        """Ask for what nobody may read."""
        from getpass import getpass

        with signals.waiting():
            return getpass(f"{question} ", _stderr())

    def confirm(self, question: str) -> bool:
        return self.ask(f"{question} [y/N]").lower() in ("y", "yes")

    def pick(self, backups: list[Backup]) -> Backup:
        if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
            raise Refused("There is no terminal to pick a backup in.", hint="its name, as inv db.list shows it")
        from rich.prompt import IntPrompt

        console = _console(_stderr())
        _print(_shelf(backups, datetime.now(UTC), numbered=True), _stderr())
        choices = [str(i + 1) for i in range(len(backups))]
        try:
            with signals.waiting():
                number = IntPrompt.ask("Which one", choices=choices, show_choices=False, console=console)
        except EOFError:
            raise Refused("Nothing was picked.", hint="its name, as inv db.list shows it") from None
        return backups[number - 1]

    # Results

    def document(self, value: Any) -> None:
        """Print one JSON document."""
        utf8 = self._out.encoding.lower() in ("utf-8", "utf8")
        self._print(json.dumps(value, indent=2, ensure_ascii=not utf8))

    def planned(self, plan: str) -> None:
        """Show what `inv --dry` would have done."""
        self.say(plan)
        if self._as_json:
            self.document({"dry_run": True, "plan": self._clean(plan)})
            self._insist()

    def flush(self) -> None:
        """Leave nothing unwritten; what was done is not undone by a result that nobody could be shown."""
        self._out.flush()
        if lost := self._out.take_trouble():
            self.warn(f"The result could not be printed: {lost.strerror}.")
        _stderr().flush()

    def _print(self, text: str) -> None:
        self._out.write(f"{text}\n")

    def _insist(self) -> None:
        """Raise Failed where standard output cannot take what is all that was asked for."""
        self._out.flush()
        if lost := self._out.take_trouble():
            raise Failed(
                f"Standard output cannot be written: {lost.strerror}.", hint="make room, or send it somewhere else"
            )

    def relay(self, host: str, line: str) -> None:
        """Pass on what a task says that is at work on one of several hosts."""
        print(f"{host}: {line}", file=_stderr(), flush=True)

    def several(self, printed: Mapping[str, str]) -> None:
        """Show what the tasks on several hosts have printed."""
        if self._as_json:
            self.document({host: json.loads(text) if text.strip() else None for host, text in printed.items()})
            return
        for host, text in printed.items():
            for line in text.splitlines():
                self._print(f"{host}: {line}")

    def error(self, error: TaskError) -> None:
        """Print what ended the run."""
        message, hint = self._clean(str(error.message)), self._clean(error.hint or "")
        self.note(f"exit {error.code}: {message}")
        print(message, file=_stderr())
        if hint:
            print(f"Try: {hint}", file=_stderr())
        if self._as_json:
            self.document({"error": message, "try": hint or None, "exit": error.code})

    def trouble(self, text: str) -> None:
        """Write what only a developer can use to the log."""
        self.note(text)

    def took(self, backup: Backup) -> None:
        """Write to the log that a backup has been taken, whatever comes after it."""
        self.note(f"took {backup.name}: {_sizes(backup)}")

    def taken(self, backup: Backup, cleaned: Shelf | None = None) -> None:
        """Show a backup that has just been taken, and what was *cleaned* after it."""
        assert backup.info
        rows = sum(backup.info.tables.values())
        if self._as_json:
            from .info import as_json

            path = backup.path(backup.format_to_restore())
            cleanup = {"cleanup": as_document(cleaned) | {"dry_run": False}} if cleaned else {}
            self.document(as_json(backup.info) | {"path": path} | cleanup)
        elif not self._quiet:
            self._print(f"{backup.folder}/{backup.name}")
            self._print(f"  {_sizes(backup)}")
            self._print(
                f"  {counted(len(backup.info.tables), 'table')}, {counted(rows, 'row')}, one snapshot, checked, "
                f"in {duration(backup.info.seconds)}"
            )

    def shelf(self, backups: list[Backup], changes: list[Change], folder: str, now: datetime) -> None:
        """Show the backups there are, and the databases kept aside."""
        aside = [change for change in changes if change.how == "swap"]
        if self._as_json:
            self.document({"backups": [_listed(b) for b in backups], "aside": [_aside(c) for c in aside]})
        else:
            self._shelf(backups, aside, folder, now)
        self._insist()

    def _shelf(self, backups: list[Backup], aside: list[Change], folder: str, now: datetime) -> None:
        if backups:
            _print(_shelf(backups, now), self._out)
        else:
            self._print(self._clean(f"No backups in {folder}. inv db.backup takes one."))
        for change in aside:
            age = short_age((now - datetime.fromisoformat(change.at)).total_seconds())
            where = change.host or "a local socket"
            undo = "inv db.undo puts it back" if change.undoable else "it could not be dropped yet"
            self._print(self._clean(f"Kept aside: {change.before} on {where}, {size(change.bytes)}, {age}"))
            self._print(self._clean(f"  {change.name} as it was before {change.task}; {undo}"))

    def fates(self, shelf: Shelf) -> None:
        """Show what becomes of each backup, and why, each type by itself."""
        if not self._as_json and not self._quiet:
            _print_fates(shelf, self._out)

    def cleaned(self, shelf: Shelf, *, dry_run: bool) -> None:
        """Show what a cleanup did, or would do."""
        going, verb = shelf.going, "Would remove" if dry_run else "Removed"
        self.note(f"{verb} {len(going)} of {len(shelf.fates)} backups")
        if self._as_json:
            self.document(as_document(shelf) | {"dry_run": dry_run})
        elif not self._quiet:
            kept = len(shelf.fates) - len(going)
            self._print(
                f"{verb} {len(going)} of {counted(len(shelf.fates), 'backup')}, {size(sum(b.bytes for b in going))}; "
                f"{counted(kept, 'stays', 'stay')}."
            )
        if dry_run:
            self._insist()

    def verdicts(self, verdicts: list[Verdict]) -> None:
        """Show what `db.verify` found."""
        for verdict in verdicts:
            for line in _verdict_lines(verdict):
                self.note(line)
                if not self._as_json:
                    self._print(self._clean(line))
        if self._as_json:
            self.document({"backups": [_judged(v) for v in verdicts]})
        if hint := _way_out(verdicts):
            self._out.flush()
            print(self._clean(f"Try: {hint}"), file=_stderr())

    def migrated(self, verdict: Outcome) -> None:
        """Show how a migration ended: what was applied, what differs, and what to do where it is left open."""
        self.note(f"{verdict.outcome}: {verdict.database}, {verdict.why}")
        changed = verdict.changed
        if self._as_json:
            self.document(
                {
                    "outcome": verdict.outcome,
                    "backup": verdict.backup,
                    "command_exit": verdict.command_exit,
                    "seconds": verdict.seconds,
                    "migrations": {"before": verdict.before, "after": verdict.after},
                    "changed": changed and {"schema": changed.schema, "tables": changed.tables},
                }
            )
        for line in _what_changed(verdict):
            print(self._clean(line), file=_stderr() if verdict.code or self._as_json else self._out)
        if verdict.code:
            print(self._clean(verdict.why), file=_stderr())
            if verdict.hint:
                print(self._clean(f"Try: {verdict.hint}"), file=_stderr())
        elif not self._as_json:
            self._print(f"Migrated {verdict.database} in {duration(verdict.seconds)}.")
            self._print(self._clean(f"{verdict.backup} is how it was before; inv db.rollback goes back to it."))

    def fetched(self, fetched: Fetched) -> None:
        """Show a backup that has come from a host."""
        backup = fetched.backup
        self.note(f"fetched {backup.name} from {fetched.host}")
        files = [f"{backup.path(f)}" for f in backup.sizes]
        if self._as_json:
            self.document({"backup": backup.name, "host": fetched.host, "files": files})
        elif fetched.brought:
            self._print("\n".join(files))
            how = f"{size(fetched.brought)} from {fetched.host} in {duration(fetched.seconds)}"
            self._print(f"{how}, every byte compared.")
        else:
            self._print(f"{backup.folder}/{backup.name} is here already, every byte as it was written.")

    def restored(self, result: Result, *, counted: bool) -> None:
        """Show what a restore did."""
        if result.how:
            self.note(f"restored {result.backup} into {result.database}")
        if self._as_json:
            self._changed(result)
        elif result.how:
            what = {
                Mode.FULL.value: "every table has",
                Mode.DATA_ONLY.value: "rows only; every table of the backup has",
                Mode.TABLE.value: "these tables only; they have",
            }
            proof = f"{what.get(result.mode)} the rows recorded" if counted else "how many rows, nobody had recorded"
            if result.mode == Mode.SCHEMA_ONLY.value:
                proof = "structure only, no rows"
            self._print(f"Restored {result.backup} into {result.database} in {duration(result.seconds)}; {proof}.")
            if result.undo:
                self._print(self._clean("inv db.undo puts it back as it was."))

    def undone(self, result: Result) -> None:
        """Show what an undo did."""
        self.note(f"undid the restore of {result.backup} into {result.database}")
        if self._as_json:
            self._changed(result)
        else:
            again = "; inv db.undo once more is a redo" if result.undo else ""
            self._print(self._clean(f"{result.database} is as it was before, in {duration(result.seconds)}{again}."))

    def _changed(self, result: Result) -> None:
        self.document({key: getattr(result, key) for key in ("backup", "database", "mode", "how", "seconds")})


def _what_changed(verdict: Outcome) -> Iterator[str]:
    """Yield what a migration applied and what differs from before it."""
    past = "" if verdict.outcome == "migrated" else " had"
    new = [name for name in verdict.after or [] if name not in (verdict.before or [])]
    if new:
        yield f"Applied  {listed(new)}"
    if verdict.changed is None:
        return
    if verdict.changed.schema:
        yield f"Schema  {past} changed"
    for table, (before, after) in verdict.changed.tables.items():
        then = "not the same" if before == after else f"then {'gone' if after is None else after}"
        yield f"Rows     {table}: {'none' if before is None else before}, {then}"


class _LogFile(logging.handlers.RotatingFileHandler):
    def _open(self) -> io.TextIOWrapper:
        """Open it, also anew after each rotation, so that only its owner reads it, whatever the umask."""
        file = open(self.baseFilename, self.mode, encoding="utf-8", errors="backslashreplace", opener=_private)  # noqa: SIM115
        return cast("io.TextIOWrapper", file)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Lose the line: a full disk must not put a traceback beside the sentence that says so."""


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _open_log(path: str) -> logging.Logger | None:
    """Return a logger to a file that only its owner reads, None where it cannot be written."""
    logger = logging.getLogger("pg_backup_tasks")
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    logger.propagate = False
    logger.setLevel(logging.INFO)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path, maxBytes=_LOG_BYTES, backupCount=_LOGS_KEPT)
    except OSError:
        # The backup folder's own trouble is told by what needs it; a log is not worth failing for.
        return None
    formatter = logging.Formatter("%(asctime)sZ %(process)d %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger.addHandler(handler)
    return logger


class _Heedless:
    """A stream that nobody may be listening to any more; a terminal that was closed is no reason to fail."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._trouble: OSError | None = None

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def take_trouble(self) -> OSError | None:
        """Return, once, what kept somebody from reading it who wanted to."""
        trouble, self._trouble = self._trouble, None
        return trouble

    def _give_up(self, error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):
            self._trouble = error
        # What stays in its buffer would fail once more when Python ends, and change our exit code to 120.
        with suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _open_what_is_closed() -> None:
    """Let a standard stream that we were started without lead nowhere, before a file of ours takes its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(nowhere, True)
            assert nowhere == number
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115 - for good


def _stderr() -> TextIO:
    return cast("TextIO", _Heedless(sys.stderr))


class _Silence:
    def update(self, done: Mapping[str, int]) -> None:
        pass


class _Lines:
    """Progress where there is no terminal: a line now and then."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._last = time.monotonic()

    def update(self, done: Mapping[str, int]) -> None:
        if time.monotonic() - self._last >= _LINE_EVERY:
            self._last = time.monotonic()
            parts = ", ".join(f"{name} {size(bytes_)}" for name, bytes_ in done.items())
            print(f"{self._title}: {parts}", file=_stderr(), flush=True)


class _Bars:
    """Progress in a terminal: a bar for each part."""

    def __init__(self, progress: Progress, title: str, expected: Mapping[str, int]) -> None:
        self._progress = progress
        self._tasks = {
            name: progress.add_task(f"{title} {name}", total=max(1, total)) for name, total in expected.items()
        }

    def update(self, done: Mapping[str, int]) -> None:
        for name, bytes_ in done.items():
            task = self._tasks[name]
            # An estimate that was too low must not show more than all of it.
            total = max(self._progress.tasks[task].total or 1, bytes_)
            self._progress.update(task, completed=bytes_, total=total)


def _progress() -> Progress:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=_console(_stderr()),
        transient=True,
    )


def _print(rows: list[Row], stream: TextIO | _Heedless) -> None:
    """Print a table whose first row says what is in its columns."""
    # Rich's own table takes seconds for a shelf of thousands.
    width, coloured = _paper(stream)
    titles = rows[0].cells
    right = [titles.index(title) for title in ("#", "AGE", "SIZE") if title in titles]
    giving = [titles.index(title) for title in ("DATABASE", "FILES", "STATE")]
    lines = columns.lines(rows, width, coloured=coloured, right=right, giving=giving)
    stream.write("".join(f"{line}\n" for line in lines))


def _print_fates(shelf: Shelf, stream: TextIO | _Heedless) -> None:
    """Print a block for each type; in a terminal, many that go alike are one line."""
    width, coloured = _paper(stream)
    by_type: dict[str, list[Fate]] = {type_: [] for type_ in shelf.rules}
    for fate in shelf.fates:
        by_type[fate.name.type].append(fate)
    blocks = []
    for type_, fates in by_type.items():
        going = sum(not fate.kept for fate in fates)
        heading = f"{type_}: {_counted(len(fates) - going, going)}. {shelf.rules[type_]}"
        rows = _fates(fates, shelf.backups, width, together=_TOGETHER if stream.isatty() else len(fates))
        lines = columns.lines(rows, width, coloured=coloured, right=(1,), giving=(2,))
        blocks.append("\n".join((*columns.title(heading, width, coloured=coloured), *lines)))
    stream.write("".join(f"{block}\n\n" for block in blocks))


def _counted(staying: int, going: int) -> str:
    return f"{staying:,} {'stays' if staying == 1 else 'stay'}, {going:,} {'goes' if going == 1 else 'go'}"


def _paper(stream: TextIO | _Heedless) -> tuple[int, bool]:
    """Return how wide a stream is, and whether it shows colours."""
    console = _console(stream)
    return console.width, console.is_terminal and not console.no_color and not console.is_dumb_terminal


def _console(stream: Any) -> Console:
    from rich.console import Console

    return Console(file=stream, highlight=False, markup=False, width=None if stream.isatty() else 80)


def _shelf(backups: list[Backup], now: datetime, *, numbered: bool = False) -> list[Row]:
    rows = [Row(("BACKUP", "AGE", "SIZE", "DATABASE", "FILES", "STATE"), Style.HEADING)]
    for backup in backups:
        age = short_age((now - backup.created_at).total_seconds()) if backup.created_at else "?"
        cells = (backup.name, age, size(backup.bytes), _database(backup), _files(backup), _state(backup, now))
        rows.append(Row(cells, Style.PLAIN if backup.complete else Style.ALARM))
    numbers = ["#", *map(str, range(1, len(rows)))]
    return [Row((n, *row.cells), row.style) for n, row in zip(numbers, rows, strict=True)] if numbered else rows


def as_document(shelf: Shelf) -> dict[str, Any]:
    """Return what becomes of each backup as JSON has it."""
    parts: dict[str, Any] = {"kept": [], "removed": []}
    for fate in shelf.fates:
        parts["kept" if fate.kept else "removed"].append({"name": str(fate.name), "reasons": list(fate.reasons)})
    return parts


@dataclass(frozen=True)
class _Alike:
    """Backups of one type, one after the other, with the same fate."""

    fates: list[Fate]
    bytes: int
    broken: int
    """How many of them are not whole."""

    @property
    def named(self) -> str:
        """Which they are."""
        newest, oldest = self.fates[0].name, self.fates[-1].name
        if newest == oldest:
            return str(newest)
        if newest.at.date() == oldest.at.date():
            return f"{oldest.at:%Y-%m-%d %H:%M} to {newest.at:%H:%M}"
        return f"{oldest.at:%Y-%m-%d} to {newest.at:%Y-%m-%d}"

    @property
    def style(self) -> Style:
        """How they are seen: what goes steps back, what is not whole stands out."""
        if self.broken == len(self.fates):
            return Style.ALARM
        return Style.PLAIN if self.fates[0].kept else Style.DIM

    def why(self, room: int) -> str:
        """Return what becomes of them and why, in words that fit if there are any."""
        verb = "kept" if self.fates[0].kept else "removed"
        head = f"NOT WHOLE, {verb}: " if self.broken else f"{verb}: "
        if len(self.fates) > 1:
            some = f", {self.broken:,} NOT WHOLE" if self.broken else ""
            head = f"{len(self.fates):,} {verb}{some}: "
        reasons = [reason for reason in self.fates[0].reasons if reason != NOT_WHOLE]
        said = head
        for said in _shorter_and_shorter(head, reasons, goes=self.broken > 0 and not self.fates[0].kept):
            if columns.cells(said) <= room:
                break
        return said


def _shorter_and_shorter(head: str, reasons: list[str], *, goes: bool) -> Iterator[str]:
    yield head + ", ".join(reasons)
    # A week cannot be told from the name beside it; a day and a month can.
    shorter = [_SHORTER.sub(r"\1\2", reason) for reason in reasons]
    yield head + ", ".join(shorter)
    short = [_WEEK.sub(r"\1", _DAYS.sub(r"\1 d", reason)) for reason in shorter]
    yield head + ", ".join(short)
    yield head + " ".join(short)
    if goes:
        yield head.removesuffix(": ")


def _fates(fates: list[Fate], backups: Mapping[str, Backup], width: int, together: int) -> list[Row]:
    """Return the rows of one type; more than *together* that go alike, one after the other, are one."""
    groups: list[_Alike] = []
    for _, run in groupby(fates, lambda fate: (fate.kept, [reason for reason in fate.reasons if reason != NOT_WHOLE])):
        same = list(run)
        parts = [same] if len(same) > together and not same[0].kept else [[fate] for fate in same]
        for part in parts:
            found = [backups[str(fate.name)] for fate in part]
            broken = sum(not backup.complete for backup in found)
            groups.append(_Alike(part, sum(backup.bytes for backup in found), broken))
    names, sizes = [group.named for group in groups], [size(group.bytes) for group in groups]
    room = columns.room(width, max(map(len, names)), max(map(len, sizes)))
    rows = zip(groups, names, sizes, strict=True)
    return [Row((name, size_, group.why(room)), group.style) for group, name, size_ in rows]


def _database(backup: Backup) -> str:
    name = backup.info.database.name if backup.info else "?"
    return "".join(c if c.isprintable() else "?" for c in name)


def _files(backup: Backup) -> str:
    lacking = [f.value for f in Format if f not in backup.sizes]
    if len(lacking) == 1:
        return f"no {lacking[0]}"
    return " ".join(f.value for f in backup.sizes) if lacking else f"all {len(Format)}"


def _sizes(backup: Backup) -> str:
    return ", ".join(f"{f.extension} {size(s)}" for f, s in backup.sizes.items())


def _state(backup: Backup, now: datetime) -> str:
    if not backup.complete:
        return "NOT WHOLE"
    if backup.info is None:
        return "no checksums"
    if backup.info.restored is None:
        return "whole"
    with suppress(ValueError):
        at = datetime.fromisoformat(backup.info.restored.at)
        return f"proven {short_age((now - at).total_seconds())}"
    return "proven"


def _listed(backup: Backup) -> dict[str, Any]:
    info = backup.info
    return {
        "name": backup.name,
        "type": backup.type,
        "created_at": backup.created_at.isoformat().replace("+00:00", "Z") if backup.created_at else None,
        "bytes": backup.bytes,
        "database": info.database.name if info else None,
        "formats": [f.value for f in backup.sizes],
        "complete": backup.complete,
        "restored_at": info.restored.at if info and info.restored else None,
    }


def _aside(change: Change) -> dict[str, Any]:
    return {key: getattr(change, key) for key in ("name", "host", "port", "before", "at", "bytes", "task", "backup")}


def _judged(verdict: Verdict) -> dict[str, Any]:
    from .info import as_json

    return {
        "name": verdict.name,
        "ok": verdict.ok,
        "problems": list(verdict.problems),
        "restored": as_json(verdict.restored) if verdict.restored else None,
        "untestable": verdict.untestable,
    }


def _way_out(verdicts: list[Verdict]) -> str:
    """Return what there is to try where a backup is not healthy, nothing where all are."""
    if all(v.ok for v in verdicts):
        return ""
    whole = [f"{v.name} is the newest that is whole" for v in verdicts if v.ok][:1]
    others = ["inv db.verify all says which others are whole"] if len(verdicts) == 1 else []
    return "; ".join([*whole, *others, "inv db.backup takes a new one"])


def _verdict_lines(verdict: Verdict) -> Iterator[str]:
    if not verdict.ok:
        yield f"{verdict.name}: NOT HEALTHY"
        for problem in verdict.problems:
            yield f"  {problem}"
        return
    how = "whole, every checksum matches" if verdict.checked else "reads to its end; no checksum known"
    if verdict.untestable:
        how += f"; a restore cannot be tested here: {verdict.untestable}"
    elif verdict.restored:
        how += (
            f"; restored on {verdict.restored.at[:10]} with every row "
            f"(PostgreSQL {verdict.restored.server_version}, {duration(verdict.restored.seconds)})"
        )
    yield f"{verdict.name}: {how}"

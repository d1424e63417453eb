"""The only module that prints: results to standard output, everything said on the way to standard error."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO, cast

from . import columns, hiding, signals
from .columns import Table
from .errors import Failed, Refused, TaskError
from .model import Mode
from .pictures import (
    LEAST_WHY,
    aside_document,
    aside_lines,
    fates_document,
    fates_table,
    how_many,
    listed_document,
    shelf_table,
    sizes,
    verdict_document,
    verdict_lines,
    way_out,
    what_changed,
)
from .streams import Heedless, open_log, open_what_is_closed
from .units import counted, duration, size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from .aside import Aside
    from .cleanup import Shelf
    from .desk import Gauge
    from .fetch import Fetched
    from .migrate import Verdict as Outcome
    from .restore import Result
    from .retention import Fate
    from .store import Backup
    from .verify import Verdict

_DUMB = ("dumb", "unknown")
# How many backups that go alike a terminal shows line by line.
_TOGETHER = 3
_LINE_EVERY = 30.0
# Where there is no terminal to ask.
_WIDTH = 80
_ADVICE = re.compile(r"\binv (db\.[a-z-]+)")


class Report:
    """Talks to the user of one run, and to the log; *quiet* leaves standard error to what has gone wrong."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False, log: str | None = None) -> None:
        self._as_json = as_json
        self._quiet = quiet
        self._log = open_log(log) if log else None
        self._secrets: set[str] = set()
        self._shown: set[str] = set()
        self._host = ""
        open_what_is_closed()
        self._out = Heedless(sys.stdout)
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
        _print(shelf_table(backups, datetime.now(UTC), numbered=True), _stderr())
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
        self.planned_on({"": plan})

    def planned_on(self, plans: Mapping[str, str]) -> None:
        """Show what it would have done on each of several hosts."""
        for plan in plans.values():
            self.say(plan)
        if self._as_json:
            documents = {host: {"dry_run": True, "plan": self._clean(plan)} for host, plan in plans.items()}
            self.document(documents if len(documents) > 1 else next(iter(documents.values())))
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
        self.note(f"took {backup.name}: {sizes(backup)}")

    def taken(self, backup: Backup, cleaned: Shelf | None = None) -> None:
        """Show a backup that has just been taken, and what was *cleaned* after it."""
        assert backup.info
        rows = sum(backup.info.tables.values())
        if self._as_json:
            from .info import as_json

            path = backup.path(backup.format_to_restore())
            cleanup = {"cleanup": fates_document(cleaned) | {"dry_run": False}} if cleaned else {}
            self.document(as_json(backup.info) | {"path": path} | cleanup)
        elif not self._quiet:
            self._print(f"{backup.folder}/{backup.name}")
            self._print(f"  {sizes(backup)}")
            self._print(
                f"  {counted(len(backup.info.tables), 'table')}, {counted(rows, 'row')}, one snapshot, checked, "
                f"in {duration(backup.info.seconds)}"
            )

    def shelf(
        self, backups: list[Backup], asides: list[Aside], folder: str, now: datetime, type_: str | None = None
    ) -> None:
        """Show the backups there are, perhaps of one type only, and the databases kept aside."""
        if self._as_json:
            documents = [aside_document(aside.change) for aside in asides]
            self.document({"backups": [listed_document(b) for b in backups], "aside": documents})
        else:
            what, flag = (f"backups of type {type_}", f" --type {type_}") if type_ else ("backups", "")
            self._shelf(backups, asides, now, f"No {what} in {folder}. inv db.backup{flag} takes one.")
        self._insist()

    def _shelf(self, backups: list[Backup], asides: list[Aside], now: datetime, none: str) -> None:
        if backups:
            _print(shelf_table(backups, now), self._out)
        else:
            self._print(self._clean(none))
        for aside in asides:
            for line in aside_lines(aside, now):
                self._print(self._clean(line))

    def fates(self, shelf: Shelf) -> None:
        """Show what becomes of each backup, and why, each type by itself."""
        if not self._as_json and not self._quiet:
            _print_fates(shelf, self._out)

    def cleaned(self, shelf: Shelf, *, dry_run: bool) -> None:
        """Show what a cleanup did, or would do."""
        going, verb = shelf.going, "Would remove" if dry_run else "Removed"
        self.note(f"{verb} {len(going)} of {len(shelf.fates)} backups")
        if self._as_json:
            self.document(fates_document(shelf) | {"dry_run": dry_run})
        elif not self._quiet:
            kept = len(shelf.fates) - len(going)
            self._print(
                f"{verb} {len(going):,} of {counted(len(shelf.fates), 'backup')}, {size(sum(b.bytes for b in going))}; "
                f"{counted(kept, 'stays', 'stay')}."
            )
        if dry_run:
            self._insist()

    def verdicts(self, verdicts: list[Verdict], now: datetime) -> None:
        """Show what `db.verify` found."""
        for verdict in verdicts:
            for line in verdict_lines(verdict):
                self.note(line)
                if not self._as_json:
                    self._print(self._clean(line))
        if self._as_json:
            self.document({"backups": [verdict_document(v) for v in verdicts]})
        if hint := way_out(verdicts, now):
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
        for line in what_changed(verdict):
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
                Mode.FULL.value: "Every table has",
                Mode.DATA_ONLY.value: "Rows only; every table of the backup has",
                Mode.TABLE.value: "These tables only; they have",
            }
            proof = f"{what.get(result.mode)} the rows recorded" if counted else "How many rows, nobody had recorded"
            if result.mode == Mode.SCHEMA_ONLY.value:
                proof = "Structure only, no rows"
            self._print(f"Restored {result.backup} into {result.database} in {duration(result.seconds)}.")
            self._print(f"{proof}.")
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


def _stderr() -> TextIO:
    return cast("TextIO", Heedless(sys.stderr))


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


def _print(table: Table, stream: TextIO | Heedless) -> None:
    """Print a table whose first row says what is in its columns."""
    # Rich's own table takes seconds for a shelf of thousands.
    width, coloured = _paper(stream)
    titles = [column[0] for column in table.columns]
    right = [titles.index(title) for title in ("#", "AGE", "SIZE") if title in titles]
    giving = {titles.index(title): least for title, least in (("DATABASE", 8), ("FILES", 5))}
    head = titles.index("BACKUP") + 1
    lines = columns.lines(table, width, coloured=coloured, right=right, giving=giving, head=head)
    stream.write("".join(f"{line}\n" for line in lines))


def _print_fates(shelf: Shelf, stream: TextIO | Heedless) -> None:
    """Print a block for each type; in a terminal, many that go alike are one line."""
    width, coloured = _paper(stream)
    by_type: dict[str, list[Fate]] = {type_: [] for type_ in shelf.rules}
    for fate in shelf.fates:
        by_type[fate.name.type].append(fate)
    blocks = []
    for type_, fates in by_type.items():
        going = sum(not fate.kept for fate in fates)
        heading = f"{type_}: {how_many(len(fates) - going, going)}. {shelf.rules[type_]}"
        table = fates_table(fates, width, together=_TOGETHER if stream.isatty() else len(fates))
        lines = columns.lines(table, width, coloured=coloured, right=(1,), giving={2: LEAST_WHY})
        blocks.append("\n".join((*columns.title(heading, width, coloured=coloured), *lines)))
    stream.write("".join(f"{block}\n\n" for block in blocks))


def _paper(stream: TextIO | Heedless) -> tuple[int, bool]:
    """Return how wide a stream is, and whether it shows colours."""
    # What makes Rich see a terminal where there is none; without any, it need not be loaded to say so.
    if not (stream.isatty() or any(map(os.environ.get, ("FORCE_COLOR", "TTY_COMPATIBLE")))):
        return _WIDTH, False
    console = _console(stream)
    return console.width, console.is_terminal and not console.no_color and not console.is_dumb_terminal


def _console(stream: Any) -> Console:
    from rich.console import Console

    return Console(file=stream, highlight=False, markup=False, width=None if stream.isatty() else _WIDTH)

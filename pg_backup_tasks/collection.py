"""The tasks: each parses, calls one workflow, prints what it returned."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from . import settings as settings_
from .errors import Failed, Refused, TaskError

if TYPE_CHECKING:
    from .desk import Desk
    from .info import Info
    from .report import Report
    from .restore import Result
    from .store import Backup
    from .verify import Verdict

_FORMATS = "dump,tar,sql,sql.gz"
_BACKUP = "a path, a name, latest, latest:TYPE or pick"
_JSON = "print one JSON document on standard output"
_WAIT = "seconds to wait for another run to finish (else exit 75 at once)"
_TYPE = "what kind of backup: lower-case letters, digits and _"


def config(**overrides: Any) -> dict[str, dict[str, Any]]:
    """Return the whole `db` tree for `Collection.configure`, with *overrides* in it.

    Whatever is wrong with them, or with an `INVOKE_DB_*`, ends `inv` with a sentence.
    """
    try:
        return settings_.config(**overrides)
    except TaskError as error:
        # No task has begun, so it is Invoke that would tell it: without what to try, and never as JSON.
        from .report import Report

        Report(as_json="--json" in sys.argv[1:]).error(error)
        raise Exit(code=error.code) from None


@contextmanager
def _run(c: Context, *, json: bool = False, quiet: bool = False) -> Iterator[_Run]:
    """One task's run: settings read, signals caught, whatever goes wrong told in a sentence."""
    from .report import Report
    from .signals import interruptible

    # Whoever asks for a plan wants to read it, cron's silent task or not.
    quiet = quiet and not c.config.run.dry
    report = Report(as_json=json, quiet=quiet)
    try:
        with interruptible():
            _refuse_stray_words()
            cwd = Path.cwd()
            settings = settings_.load(c.config.get("db", {}), os.environ, cwd)
            if not c.config.run.dry:
                report = Report(as_json=json, quiet=quiet, log=settings.under_root(settings.log))
            yield _Run(c, settings, report, cwd)
    except TaskError as error:
        report.error(error)
        raise Exit(code=error.code) from None
    except Exit:
        raise
    except OSError as error:
        report.error(Failed(_sentence(error)))
        raise Exit(code=1) from None
    except Exception as error:  # noqa: BLE001 - a traceback belongs into the log
        import traceback

        report.trouble(traceback.format_exc())
        report.error(
            Failed(
                f"This is a bug in pg_backup_tasks ({type(error).__name__}).",
                hint="send the end of the log, which has the details",
            )
        )
        raise Exit(code=1) from None


def _refuse_stray_words() -> None:
    # Invoke drops all that follows a bare `--`, which could be the very option that makes a task safe.
    if "--" in sys.argv[1:]:
        raise Refused("A bare -- hides what follows it.", hint="the same command without --")


def _sentence(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}."


class _Run:
    """What a task's body needs of its run."""

    def __init__(self, c: Context, settings: Any, report: Report, cwd: Path) -> None:
        from . import signals
        from .desk import Desk
        from .here import Here

        self.report = report
        self.dry = bool(c.config.run.dry)
        self.desk = Desk(
            settings=settings,
            machine=Here(),
            report=report,
            environ=os.environ,
            cwd=str(cwd),
            clock=lambda: datetime.now(UTC),
            sleep=signals.sleep,
            more_tools=_wheels,
        )

    def find(self, word: str) -> Backup:
        return self.desk.store.find(word, self.desk.cwd, self.report.pick)


def _wheels() -> list[str]:
    from .embedded import wheel_bins

    return [str(folder) for folder in wheel_bins()]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < float("inf"):
        raise Refused("--wait takes a number of seconds.", hint="--wait 60")
    return seconds


def _take(run: _Run, type_: str, description: str, formats: str, wait: str) -> Info | None:
    from . import backup as workflow
    from .model import parse_formats, parse_type

    # The words of a terminal that does not speak UTF-8 must not make an .info that cannot be written.
    told = os.fsencode(description).decode("utf-8", "replace")
    order = workflow.Order(parse_type(type_), told, parse_formats(formats), _seconds(wait))
    if run.dry:
        run.report.planned(workflow.plan(run.desk, order))
        return None
    taken = workflow.take(run.desk, order)
    run.report.taken(taken)
    return taken.info


@task(
    auto_shortflags=False,
    help={
        "type": _TYPE,
        "description": "a sentence kept in the backup's .info",
        "formats": "which files to make, separated by commas",
        "wait": _WAIT,
        "json": _JSON,
    },
)
def backup(
    c: Context,
    type: str = "manual",  # noqa: A002 - the flag's name
    description: str = "Manual backup",
    formats: str = _FORMATS,
    wait: str = "0",
    json: bool = False,
) -> Info | None:
    """Take a backup: all formats from one snapshot, checked and whole."""
    with _run(c, json=json) as run:
        return _take(run, type, description, formats, wait)


@task(auto_shortflags=False, help={"formats": "which files to make, separated by commas", "wait": _WAIT, "json": _JSON})
def backup_auto(c: Context, formats: str = _FORMATS, wait: str = "0", json: bool = False) -> Info | None:
    """Take a backup of type auto, for cron: silent when all is well."""
    with _run(c, json=json, quiet=True) as run:
        return _take(run, "auto", "Automatic backup", formats, wait)


@task(auto_shortflags=False, help={"formats": "which files to make, separated by commas", "wait": _WAIT, "json": _JSON})
def backup_pre_migrate(c: Context, formats: str = _FORMATS, wait: str = "0", json: bool = False) -> Info | None:
    """Take a backup of type pre_migrate, before a migration."""
    with _run(c, json=json) as run:
        return _take(run, "pre_migrate", "Before a migration", formats, wait)


@task(
    auto_shortflags=False,
    help={
        "backup": _BACKUP,
        "force": "answer yes beforehand (needed where there is no terminal)",
        "wait": _WAIT,
        "json": _JSON,
    },
)
def restore(c: Context, backup: str, force: bool = False, wait: str = "0", json: bool = False) -> Result | None:
    """Restore a backup into a database that is missing or empty."""
    with _run(c, json=json) as run:
        from . import restore as workflow

        found, seconds = run.find(backup), _seconds(wait)
        if run.dry:
            run.report.planned(workflow.plan(run.desk, found))
            return None
        result = workflow.restore(run.desk, found, force=force, interactive=sys.stdin.isatty(), wait=seconds)
        run.report.restored(result, counted=found.info is not None)
        return result


@task(name="list", auto_shortflags=False, help={"type": "only backups of this type", "json": _JSON})
def list_(c: Context, type: str = "", json: bool = False) -> list[Backup]:  # noqa: A002 - the flag's name
    """Show the backups, newest first: age, size, database, files, whole or not."""
    with _run(c, json=json) as run:
        from .model import parse_type

        backups = run.desk.store.backups(parse_type(type) if type else None)
        run.report.shelf(backups, run.desk.store.folder, run.desk.clock())
        return backups


@task(
    auto_shortflags=False,
    help={
        "backup": f"{_BACKUP}; or all",
        "restore": "also load it into a scratch database and compare every table",
        "wait": _WAIT,
        "json": _JSON,
    },
)
def verify(
    c: Context,
    backup: str,
    restore: bool = False,
    wait: str = "0",
    json: bool = False,
) -> list[Verdict]:
    """Read every byte of a backup and say whether it is whole; with --restore, prove it."""
    with _run(c, json=json) as run:
        seconds = _seconds(wait)
        found = run.desk.store.some() if backup == "all" else [run.find(backup)]
        if run.dry:
            run.report.planned(f"Would verify {', '.join(b.name for b in found)}.")
            return []
        verdicts = _judge(run.desk, found, restore, seconds)
        run.report.verdicts(verdicts)
        if not all(v.ok for v in verdicts):
            raise Exit(code=3)
        return verdicts


def _judge(desk: Desk, found: list[Backup], restore: bool, seconds: float) -> list[Verdict]:
    from . import verify as workflow

    return [workflow.prove(desk, b, seconds) if restore else workflow.verify(desk, b) for b in found]


ns = Collection("db", backup, backup_auto, backup_pre_migrate, restore, list_, verify)
ns.configure(config())

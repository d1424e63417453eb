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
from invoke.config import AmbiguousMergeError, Config
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from . import settings as settings_
from .errors import Failed, Refused, TaskError

if TYPE_CHECKING:
    from .cleanup import Shelf
    from .consent import Consent
    from .desk import Desk
    from .info import Info
    from .model import Mode
    from .report import Report
    from .restore import Result
    from .store import Backup
    from .verify import Verdict

_FORMATS = "dump,tar,sql,sql.gz"
_BACKUP = "a path, a name, latest, latest:TYPE or pick"
_JSON = "print one JSON document on standard output"
_WAIT = "seconds to wait for another run to finish (else exit 75 at once)"
_FORCE = "answer yes beforehand (needed where there is no terminal)"
_CONFIRM = "the database's name, for one that is protected; answers yes"
_TYPE = "what kind of backup: lower-case letters, digits and _"


def config(**overrides: Any) -> dict[str, dict[str, Any]]:
    """Return the whole `db` tree for `Collection.configure`, with *overrides* in it.

    Whatever is wrong with them, with an `INVOKE_DB_*` or with the `invoke.yaml` beside the file that calls this ends
    `inv` with a sentence.
    """
    folder = Path(sys._getframe(1).f_code.co_filename).parent
    with _told():
        tree = settings_.config(**overrides)
        _refuse_broken_file(tree, folder)
    return tree


@contextmanager
def _told() -> Iterator[None]:
    # No task has begun, so it is Invoke that would tell it: without what to try, and never as JSON.
    try:
        yield
    except TaskError as error:
        from .report import Report

        Report(as_json="--json" in sys.argv[1:]).error(error)
        raise Exit(code=error.code) from None


def _refuse_broken_file(tree: dict[str, Any], folder: Path) -> None:
    # Invoke reads its file right after it has imported tasks.py, and has nothing but a traceback for what it cannot
    # read there: what is about to happen is tried here, where it can still be told.
    if (folder / "__init__.py").exists():
        folder = folder.parent
    config = Config(defaults=Config.global_defaults() | tree, project_location=folder, lazy=True)
    try:
        config.load_project()
    except Exception as error:  # noqa: BLE001 - YAML's, JSON's, the disk's or Invoke's own
        names = [folder / f"invoke.{kind}" for kind in ("yaml", "yml", "json", "py")]
        raise _broken_file(str(next(filter(Path.exists, names), folder)), error) from None


def _broken_file(path: str, error: Exception) -> Refused:
    if isinstance(error, AmbiguousMergeError | AttributeError):
        return Refused(
            f"{path} has one value, or none, where settings by name belong, or many where one belongs.",
            hint="under db:, one `setting: value` a line; without any, leave db: out",
        )
    mark = getattr(error, "problem_mark", None)
    return Refused(
        f"{path}{f':{mark.line + 1}' if mark else ''} cannot be read.",
        hint="mend it: under db:, one `setting: value` a line, in UTF-8",
    )


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

    def consent(self, force: bool, confirm: str) -> Consent:
        from .consent import Consent

        protected = self.desk.settings.protected
        return Consent(force, confirm, interactive=sys.stdin.isatty(), protected=protected)

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


def _take(run: _Run, type_: str, description: str, formats: str, wait: str, *, cleanup: bool = False) -> Info | None:
    from . import backup as workflow
    from .model import parse_formats, parse_type

    # The words of a terminal that does not speak UTF-8 must not make an .info that cannot be written.
    told = os.fsencode(description).decode("utf-8", "replace")
    order = workflow.Order(parse_type(type_), told, parse_formats(formats), _seconds(wait))
    if run.dry:
        run.report.planned(workflow.plan(run.desk, order))
        return None
    taken = workflow.take(run.desk, order)
    run.report.taken(taken, _clean_after(run, order.wait) if cleanup else None)
    return taken.info


def _clean_after(run: _Run, wait: float) -> Shelf:
    from . import cleanup as workflow

    return workflow.clean(run.desk, workflow.Order(wait=wait), run.report.fates)


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


@task(
    auto_shortflags=False,
    help={
        "formats": "which files to make, separated by commas",
        "cleanup": "then remove the backups that no rule keeps, if this one succeeded",
        "wait": _WAIT,
        "json": _JSON,
    },
)
def backup_auto(
    c: Context, formats: str = _FORMATS, cleanup: bool = False, wait: str = "0", json: bool = False
) -> Info | None:
    """Take a backup of type auto, for cron: silent when all is well."""
    with _run(c, json=json, quiet=True) as run:
        return _take(run, "auto", "Automatic backup", formats, wait, cleanup=cleanup)


@task(auto_shortflags=False, help={"formats": "which files to make, separated by commas", "wait": _WAIT, "json": _JSON})
def backup_pre_migrate(c: Context, formats: str = _FORMATS, wait: str = "0", json: bool = False) -> Info | None:
    """Take a backup of type pre_migrate, before a migration."""
    with _run(c, json=json) as run:
        return _take(run, "pre_migrate", "Before a migration", formats, wait)


@task(
    auto_shortflags=False,
    help={
        "backup": _BACKUP,
        "force": _FORCE,
        "data-only": "only rows: the schema stays, the rows of the backup's tables become the backup's",
        "schema-only": "only structure, no rows",
        "clean": "say out loud that what is there is dropped; --schema-only needs it where anything is there",
        "table": "only this [schema.]table, with its own indexes, keys and rows; may be given several times",
        "into": "restore into this database on the same server, which must be missing or empty",
        "confirm": _CONFIRM,
        "wait": _WAIT,
        "json": _JSON,
    },
    iterable=["table"],
)
def restore(
    c: Context,
    backup: str,
    force: bool = False,
    data_only: bool = False,
    schema_only: bool = False,
    clean: bool = False,
    table: list[str] | None = None,
    into: str = "",
    confirm: str = "",
    wait: str = "0",
    json: bool = False,
) -> Result | None:
    """Make the database what a backup holds, all of it or none; db.undo takes it back."""
    with _run(c, json=json) as run:
        from . import restore as workflow
        from .looking import Order

        mode = _mode(data_only, schema_only, tables := tuple(table or ()))
        order = Order(mode, clean, tables, into, _seconds(wait))
        order.check()
        found = run.find(backup)
        if run.dry:
            run.report.planned(workflow.plan(run.desk, found, order))
            return None
        result = workflow.restore(run.desk, found, order, run.consent(force, confirm))
        run.report.restored(result, counted=found.info is not None)
        return result


def _mode(data_only: bool, schema_only: bool, tables: tuple[str, ...]) -> Mode:
    from .model import Mode

    asked = {Mode.DATA_ONLY: data_only, Mode.SCHEMA_ONLY: schema_only, Mode.TABLE: bool(tables)}
    chosen = [mode for mode, wanted in asked.items() if wanted]
    if len(chosen) > 1:
        raise Refused(f"{' and '.join(f'--{mode.value}' for mode in chosen)} exclude each other.", hint="one of them")
    return chosen[0] if chosen else Mode.FULL


@task(auto_shortflags=False, help={"force": _FORCE, "confirm": _CONFIRM, "wait": _WAIT, "json": _JSON})
def undo(c: Context, force: bool = False, confirm: str = "", wait: str = "0", json: bool = False) -> Result | None:
    """Put the database back as it was before the last restore; again to redo."""
    with _run(c, json=json) as run:
        from . import undo as workflow

        seconds = _seconds(wait)
        if run.dry:
            run.report.planned(workflow.plan(run.desk))
            return None
        result = workflow.undo(run.desk, run.consent(force, confirm), seconds)
        run.report.undone(result)
        return result


@task(
    auto_shortflags=False,
    help={
        "dry-run": "show what would be kept and what removed, and why, and stop there",
        "type": "only backups of this type",
        "older-than": "instead of the policy: remove what is older than so many days",
        "keep": "instead of the policy: keep so many of each type; with --older-than a backup goes only if both say so",
        "confirm": _CONFIRM,
        "wait": _WAIT,
        "json": _JSON,
    },
)
def cleanup(
    c: Context,
    dry_run: bool = False,
    type: str = "",  # noqa: A002 - the flag's name
    older_than: str = "",
    keep: str = "",
    confirm: str = "",
    wait: str = "0",
    json: bool = False,
) -> Shelf | None:
    """Remove the backups that no rule keeps, and say why each other one stays."""
    with _run(c, json=json) as run:
        from . import cleanup as workflow
        from .model import parse_type
        from .retention import Only

        only = Only(_whole("--older-than", older_than), _whole("--keep", keep))
        order = workflow.Order(parse_type(type) if type else None, only, _seconds(wait))
        dry = dry_run or run.dry
        if not dry:
            _confirm_cleanup(run, confirm)
        shelf = workflow.look(run.desk, order) if dry else workflow.clean(run.desk, order, run.report.fates)
        if dry:
            run.report.fates(shelf)
        run.report.cleaned(shelf, dry_run=dry)
        return shelf


def _confirm_cleanup(run: _Run, confirm: str) -> None:
    if run.desk.settings.protected or confirm:
        yes, name = run.consent(force=True, confirm=confirm), run.desk.choice.database.name
        yes.check(name)
        yes.obtain(run.report, name, "Remove backups?")


def _whole(flag: str, text: str) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 6:
        raise Refused(f"{flag} takes a whole number above 0.", hint=f"{flag} 30")
    return int(text)


@task(name="list", auto_shortflags=False, help={"type": "only backups of this type", "json": _JSON})
def list_(c: Context, type: str = "", json: bool = False) -> list[Backup]:  # noqa: A002 - the flag's name
    """Show the backups, newest first: age, size, database, files, whole or not."""
    with _run(c, json=json) as run:
        from .model import parse_type
        from .switching import tell

        backups = run.desk.store.backups(parse_type(type) if type else None)
        tell(run.desk)
        run.report.shelf(backups, run.desk.journal.done(), run.desk.store.folder, run.desk.clock())
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
    from .switching import tell

    tell(desk)
    return [workflow.prove(desk, b, seconds) if restore else workflow.verify(desk, b) for b in found]


ns = Collection("db", backup, backup_auto, backup_pre_migrate, restore, undo, cleanup, list_, verify)
with _told():
    # The files beside our own code are nobody's settings.
    ns.configure(settings_.config())

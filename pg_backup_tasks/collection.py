"""The tasks: each parses, calls one workflow, prints what it returned."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task as task_

from . import settings as settings_
from .errors import Failed, Refused, TaskError
from .running import Run, Wary, each, sentence, told

if TYPE_CHECKING:
    from .cleanup import Shelf
    from .desk import Desk
    from .fetch import Fetched
    from .info import Info
    from .migrate import Verdict as Outcome
    from .model import Mode
    from .restore import Result
    from .store import Backup
    from .verify import Verdict

_FORMATS = "dump,tar,sql,sql.gz"
_BACKUP = "a path, a name, latest, latest:TYPE or pick"
_JSON = "print one JSON document on standard output"
_WAIT = "seconds to wait for another run to finish (else exit 75 at once)"
_FORCE = "answer yes beforehand (needed where there is no terminal)"
_CONFIRM = "the database's name, for one that is protected; answers yes"
_HOST = "do it on this host, over SSH; on several, side by side: one,another"
_FROM = "the host it comes from"
_TYPE = "what kind of backup: lower-case letters, digits and _"

task = partial(task_, klass=Wary, auto_shortflags=False)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < float("inf"):
        raise Refused("--wait takes a number of seconds.", hint="--wait 60")
    return seconds


def _take(run: Run, type_: str, description: str, formats: str, wait: str, *, cleanup: bool = False) -> Info | None:
    from . import backup as workflow
    from .model import parse_formats, parse_type

    # The words of a terminal that does not speak UTF-8 must not make an .info that cannot be written.
    told = os.fsencode(description).decode("utf-8", "replace")
    order = workflow.Order(parse_type(type_), told, parse_formats(formats), _seconds(wait))
    if run.dry:
        then = " Then would remove the backups that no rule keeps: inv --dry db.cleanup shows which." if cleanup else ""
        run.report.planned(workflow.plan(run.desk, order) + then)
        return None
    taken = workflow.take(run.desk, order)
    run.report.took(taken)
    run.report.taken(taken, _clean_after(run, taken, order.wait) if cleanup else None)
    return taken.info


def _clean_after(run: Run, taken: Backup, wait: float) -> Shelf:
    """Clean up after a backup; whatever goes wrong now, nobody must believe that there is none."""
    from . import cleanup as workflow
    from . import signals

    signals.reopen()
    try:
        return workflow.clean(run.desk, workflow.Order(wait=wait), run.report.fates)
    except TaskError as error:
        message = f"{taken.name} was taken; the cleanup after it failed: {error.message}"
        raise TaskError(message, hint=error.hint, code=error.code) from None
    except OSError as error:
        raise Failed(f"{taken.name} was taken; the cleanup after it failed: {sentence(error)}") from None


@task(
    help={
        "type": _TYPE,
        "description": "a sentence kept in the backup's .info",
        "formats": "which files to make, separated by commas",
        "wait": _WAIT,
        "host": _HOST,
        "json": _JSON,
    },
)
def backup(
    c: Context,
    type: str = "manual",  # noqa: A002 - the flag's name
    description: str = "Manual backup",
    formats: str = _FORMATS,
    wait: str = "0",
    host: str | None = None,
    json: bool = False,
) -> Info | None:
    """Take a backup: all formats from one snapshot, checked and whole."""
    return each(c, host, lambda run: _take(run, type, description, formats, wait), json=json)


@task(
    help={
        "formats": "which files to make, separated by commas",
        "cleanup": "then remove the backups that no rule keeps, if this one succeeded",
        "wait": _WAIT,
        "host": _HOST,
        "json": _JSON,
    },
)
def backup_auto(
    c: Context,
    formats: str = _FORMATS,
    cleanup: bool = False,
    wait: str = "0",
    host: str | None = None,
    json: bool = False,
) -> Info | None:
    """Take a backup of type auto, for cron: silent when all is well."""

    def work(run: Run) -> Info | None:
        return _take(run, "auto", "Automatic backup", formats, wait, cleanup=cleanup)

    return each(c, host, work, json=json, quiet=True)


@task(
    help={"formats": "which files to make, separated by commas", "wait": _WAIT, "host": _HOST, "json": _JSON},
)
def backup_pre_migrate(
    c: Context, formats: str = _FORMATS, wait: str = "0", host: str | None = None, json: bool = False
) -> Info | None:
    """Take a backup of type pre_migrate, before a migration."""
    return each(c, host, lambda run: _take(run, "pre_migrate", "Before a migration", formats, wait), json=json)


@task(
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
        "host": _HOST,
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
    host: str | None = None,
    json: bool = False,
) -> Result | None:
    """Make the database what a backup holds, all of it or none; db.undo takes it back."""

    def work(run: Run) -> Result | None:
        from . import restore as workflow
        from .looking import Order

        mode = _mode(data_only, schema_only, tables := tuple(table or ()))
        order = Order(mode, clean, tables, into, _seconds(wait))
        order.check()
        found = run.desk.find(backup)
        if run.dry:
            run.report.planned(workflow.plan(run.desk, found, order))
            return None
        result = workflow.restore(run.desk, found, order, run.consent(force, confirm))
        run.report.restored(result, counted=found.info is not None)
        return result

    return each(c, host, work, json=json)


def _mode(data_only: bool, schema_only: bool, tables: tuple[str, ...]) -> Mode:
    from .model import Mode

    asked = {Mode.DATA_ONLY: data_only, Mode.SCHEMA_ONLY: schema_only, Mode.TABLE: bool(tables)}
    chosen = [mode for mode, wanted in asked.items() if wanted]
    if len(chosen) > 1:
        raise Refused(f"{' and '.join(f'--{mode.value}' for mode in chosen)} exclude each other.", hint="one of them")
    return chosen[0] if chosen else Mode.FULL


@task(help={"force": _FORCE, "confirm": _CONFIRM, "wait": _WAIT, "host": _HOST, "json": _JSON})
def undo(
    c: Context, force: bool = False, confirm: str = "", wait: str = "0", host: str | None = None, json: bool = False
) -> Result | None:
    """Put the database back as it was before the last restore; again to redo."""

    def work(run: Run) -> Result | None:
        from . import undo as workflow

        seconds = _seconds(wait)
        if run.dry:
            run.report.planned(workflow.plan(run.desk))
            return None
        result = workflow.undo(run.desk, run.consent(force, confirm), seconds)
        run.report.undone(result)
        return result

    return each(c, host, work, json=json)


@task(
    help={
        "dry-run": "show what would be kept and what removed, and why, and stop there",
        "type": "only backups of this type",
        "older-than": "instead of the policy: remove what is older than so many days",
        "keep": "instead of the policy: keep so many of each type; with --older-than a backup goes only if both say so",
        "confirm": _CONFIRM,
        "wait": _WAIT,
        "host": _HOST,
        "json": _JSON,
    },
)
def cleanup(
    c: Context,
    dry_run: bool = False,
    type: str | None = None,  # noqa: A002 - the flag's name
    older_than: str | None = None,
    keep: str | None = None,
    confirm: str = "",
    wait: str = "0",
    host: str | None = None,
    json: bool = False,
) -> Shelf | None:
    """Remove the backups that no rule keeps, and say why each other one stays."""

    def work(run: Run) -> Shelf | None:
        from . import cleanup as workflow
        from .retention import Only

        only = Only(_whole("--older-than", older_than), _whole("--keep", keep))
        order = workflow.Order(_type(type), only, _seconds(wait))
        dry = dry_run or run.dry
        if dry:
            shelf = workflow.rehearse(run.desk, order, run.report.fates)
        else:
            _confirm_cleanup(run, confirm)
            shelf = workflow.clean(run.desk, order, run.report.fates)
        run.report.cleaned(shelf, dry_run=dry)
        return shelf

    return each(c, host, work, json=json)


def _confirm_cleanup(run: Run, confirm: str) -> None:
    yes = run.consent(force=False, confirm=confirm, lenient=True)
    if yes.protected or yes.host or confirm:
        name = run.desk.choice.database.name
        yes.check(name)
        yes.obtain(run.report, name, "Remove backups?")


def _type(text: str | None) -> str | None:
    from .model import parse_type

    # An empty one is a variable that was not set, and must not mean all of them.
    return None if text is None else parse_type(text)


def _whole(flag: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 6:
        raise Refused(f"{flag} takes a whole number from 1 to 999999.", hint=f"{flag} 30")
    return int(text)


@task(
    help={
        "command": "the migration, instead of the setting's (pnpm db:migrate)",
        "timeout": "seconds it may take before it is ended and rolled back; 0: as long as it likes",
        "confirm": _CONFIRM,
        "wait": _WAIT,
        "host": _HOST,
        "json": _JSON,
    },
)
def migrate(
    c: Context,
    command: str = "",
    timeout: str = "",
    confirm: str = "",
    wait: str = "0",
    host: str | None = None,
    json: bool = False,
) -> Outcome | None:
    """Back up, migrate, check; on any failure put the database back exactly as it was."""

    def work(run: Run) -> Outcome | None:
        from . import migrate as workflow

        limit = None if not timeout else 0 if timeout == "0" else _whole("--timeout", timeout)
        order = workflow.Order(command, limit, _seconds(wait))
        if run.dry:
            run.report.planned(workflow.plan(run.desk, order))
            return None
        outcome = workflow.migrate(run.desk, order, run.consent(force=False, confirm=confirm, lenient=True))
        run.report.migrated(outcome)
        if outcome.code:
            raise Exit(code=outcome.code)
        return outcome

    return each(c, host, work, json=json)


@task(help={"force": _FORCE, "confirm": _CONFIRM, "wait": _WAIT, "host": _HOST, "json": _JSON})
def rollback(
    c: Context, force: bool = False, confirm: str = "", wait: str = "0", host: str | None = None, json: bool = False
) -> Result | None:
    """Restore the backup that the last db.migrate began with."""

    def work(run: Run) -> Result | None:
        from . import rollback as workflow

        if run.dry:
            run.report.planned(workflow.plan(run.desk))
            return None
        result = workflow.rollback(run.desk, run.consent(force, confirm), _seconds(wait))
        run.report.restored(result, counted=True)
        return result

    return each(c, host, work, json=json)


@task(name="list", help={"type": "only backups of this type", "host": _HOST, "json": _JSON})
def list_(
    c: Context,
    type: str | None = None,  # noqa: A002 - the flag's name
    host: str | None = None,
    json: bool = False,
) -> list[Backup] | None:
    """Show the backups, newest first: age, size, database, files, whole or not."""

    def work(run: Run) -> list[Backup]:
        from . import aside
        from .cleanup import warn_of_damaged, warn_of_no_type

        backups = run.desk.store.backups(only := _type(type))
        warn_of_damaged(run.desk, backups)
        warn_of_no_type(run.desk, only, backups)
        aside.tell(run.desk)
        run.report.shelf(backups, aside.kept(run.desk), run.desk.store.folder, run.desk.clock(), only)
        return backups

    return each(c, host, work, json=json)


@task(
    help={
        "backup": f"{_BACKUP}; or all",
        "restore": "also load it into a scratch database and compare every table",
        "wait": _WAIT,
        "host": _HOST,
        "json": _JSON,
    },
)
def verify(
    c: Context,
    backup: str,
    restore: bool = False,
    wait: str = "0",
    host: str | None = None,
    json: bool = False,
) -> list[Verdict] | None:
    """Read every byte of a backup and say whether it is whole; with --restore, prove it."""

    def work(run: Run) -> list[Verdict]:
        seconds = _seconds(wait)
        found = run.desk.store.some() if backup == "all" else [run.desk.find(backup, whole=False)]
        if run.dry:
            run.report.planned(f"Would verify {', '.join(b.name for b in found)}.")
            return []
        verdicts = _proofs(run, backup, found, seconds) if restore else _readings(run.desk, backup, found)
        run.report.verdicts(verdicts, run.desk.clock())
        if not all(v.ok for v in verdicts):
            raise Exit(code=3)
        return verdicts

    return each(c, host, work, json=json)


def _readings(desk: Desk, word: str, found: list[Backup]) -> list[Verdict]:
    from . import verify as workflow
    from .aside import tell

    tell(desk)
    return workflow.verify_all(desk, found) if word == "all" else [workflow.verify(desk, found[0])]


def _proofs(run: Run, word: str, found: list[Backup], wait: float) -> list[Verdict]:
    from . import verify as workflow
    from .aside import tell

    tell(run.desk)
    if word == "all":
        return workflow.prove_all(run.desk, found, wait)
    latest = word.partition(":")[0] == "latest"
    return [workflow.prove(run.desk, lambda: run.desk.find(word, whole=False) if latest else found[0], wait)]


@task(help={"backup": _BACKUP, "host": _FROM, "wait": _WAIT, "json": _JSON})
def fetch(c: Context, backup: str, host: str | None = None, wait: str = "0", json: bool = False) -> Fetched | None:
    """Bring a host's backup home into backups/HOST, every byte compared."""

    def work(run: Run) -> Fetched:
        from . import fetch as workflow

        run.need_host("db.fetch BACKUP")
        fetched = workflow.fetch(run.desk, run.near, run.desk.find(backup), _seconds(wait))
        run.report.fetched(fetched)
        return fetched

    return each(c, host, work, json=json)


@task(
    help={
        "host": _FROM,
        "fresh": "take a new backup there first, and pull that",
        "force": _FORCE,
        "confirm": _CONFIRM,
        "wait": _WAIT,
        "json": _JSON,
    },
)
def pull(
    c: Context,
    host: str | None = None,
    fresh: bool = False,
    force: bool = False,
    confirm: str = "",
    wait: str = "0",
    json: bool = False,
) -> Result | None:
    """Make the local database what a host's newest backup holds, under local ownership."""

    def work(run: Run) -> Result:
        from . import pull as workflow

        run.need_host("db.pull")
        order = workflow.Pull(fresh, _seconds(wait))
        result = workflow.pull(run.desk, run.near, order, run.consent_here(force, confirm))
        run.report.restored(result, counted=True)
        return result

    return each(c, host, work, json=json, alone=True)


ns = Collection(
    "db",
    backup,
    backup_auto,
    backup_pre_migrate,
    restore,
    undo,
    cleanup,
    list_,
    verify,
    migrate,
    rollback,
    fetch,
    pull,
)
with told():
    # The files beside our own code are nobody's settings.
    ns.configure(settings_.config())

"""Migrate a database, or put it back exactly as it was: a backup, the command, a check, and a verdict."""

from __future__ import annotations

import json
import re
import threading
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from time import monotonic

from . import backup, catalog, leavings, looking, postgres, restore, signals, switching, verify
from .consent import Consent
from .desk import Connection, Desk
from .environment import WANTED
from .errors import Failed, Interrupted, Refused, TaskError, Unreachable
from .leavings import Mark
from .loading import Dump
from .looking import Looker
from .machine import CommandError
from .migration import Migration
from .model import ALL_FORMATS, Command, Format
from .store import Backup
from .units import duration, listed

TYPE = "pre_migrate"
_LOOK = 0.05
_LAST_WORDS = 2.0
_PATIENCE = 3
_WITHIN = "PG_BACKUP_TASKS_MIGRATES"
_URL = "PG_BACKUP_TASKS_URL"
_SQL = re.compile(r"(?i)\s*(?:(?:select|values|table)\b|with\s)")
_SCRIPT = re.compile(r"(?:pnpm|npm|yarn)(?: run)? ([\w:.-]+)")
# Whose dumps and restores would see half a migration, or be kept waiting by it.
_OTHERS = """
select coalesce(json_agg(distinct application_name), '[]') from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and application_name in ('pg_dump', 'pg_restore')
"""


@dataclass(frozen=True)
class Order:
    """What is asked for: the *command* (empty: the setting's), the seconds it may take, and to wait for another run."""

    command: str = ""
    timeout: int | None = None
    wait: float = 0


@dataclass(frozen=True)
class Changed:
    """What differs from before the migration: the schema, and each table's rows then and now (None: no such table)."""

    schema: bool
    tables: dict[str, tuple[int | None, int | None]]


@dataclass(frozen=True)
class Verdict:
    """How a migration ended.

    *outcome* is `migrated`, `rolled back` or `failed`, *why* a sentence for all but the first; *code* is the task's.
    """

    outcome: str
    backup: str
    database: str
    command_exit: int | None
    seconds: float
    before: list[str] | None
    after: list[str] | None
    changed: Changed | None
    why: str = ""
    code: int = 0
    hint: str = ""


def migrate(desk: Desk, order: Order, yes: Consent) -> Verdict:
    """Migrate the database or put it back as it was; the verdict says which, and never leaves it open.

    Raises TaskError for what goes wrong before the command is begun: then nothing was migrated.
    """
    if desk.environ.get(_WITHIN) or _calls_us(desk, order.command or desk.settings.migrate):
        raise Refused(
            "The command that is to migrate calls db.migrate itself.",
            hint="the setting migrate: what applies the migrations, as `pnpm --filter database migrate`",
        )
    database = desk.choice.database
    yes.check(database.name)
    yes.obtain(desk.report, database.name, f"Migrate {database.name}?")
    verdict: Verdict | None = None
    try:
        with desk.at_work(f"db.migrate of {database.name}", order.wait):
            switching.settle(desk)
            _refuse_after_another(desk)
            with desk.connect(database) as connection:
                run = replace(_prepare(desk, order, connection), protected=yes.protects(database.name))
            verdict = run.go()
    except Unreachable:
        # A line that was cut cannot be used to give the lock back either; what there is to say of it is said.
        if verdict is None:
            raise
    return verdict


def plan(desk: Desk, order: Order) -> str:
    """Return what `migrate` would do, as far as that is known without looking."""
    command = order.command or desk.settings.migrate
    return (
        f"Would back up {desk.choice.database} as {TYPE}, run `{command}` in {desk.settings.root}, "
        "and put the database back as it was should that fail."
    )


def _calls_us(desk: Desk, command: str) -> bool:
    """Whether *command* is a script of the repository's package.json that is this very task."""
    script = _SCRIPT.fullmatch(command.strip())
    try:
        package = json.loads(desk.machine.read(f"{desk.settings.root}/package.json") or b"{}") if script else {}
        return bool(script and re.search(r"\bdb\.migrate\b", package["scripts"][script[1]]))
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _refuse_after_another(desk: Desk) -> None:
    last = desk.migrations.last(desk.choice.database)
    if last and last.state == "under way":
        raise Refused(
            f"The migration of {last.name} at {last.at} was cut off; what it left is neither migrated nor as before.",
            hint="inv db.rollback puts it back as it was",
        )


def _prepare(desk: Desk, order: Order, connection: Connection) -> _Run:
    """Look whether all this can work, and take the backup; nothing is migrated yet."""
    database = connection.database
    if connection.server.standby:
        raise Refused(f"{database} is a standby: nothing can be migrated there.", hint="its primary")
    if others := catalog.answer(connection.session, _OTHERS):
        raise Refused(f"{listed(others)} is at work on {database.name}.", hint="the same again once it has ended")
    taken = backup.at_work(desk, backup.Order(TYPE, "Before a migration", ALL_FORMATS), connection)
    dump = verify.open_dump(desk, taken)
    # What could not be put back is not migrated.
    Looker(desk, looking.Order(), dump, database).look(connection)
    assert taken.info
    return _Run(
        desk=desk,
        order=order,
        taken=taken,
        before=taken.info.migrations,
        schema=_schema(desk, connection),
        mark=leavings.mark(connection.session),
    )


def _schema(desk: Desk, connection: Connection) -> str:
    """Return the schema as pg_dump prints it, without what is another word each time."""
    command = postgres.dump_schema(connection.tools, connection.database, connection.server.dumping_options, _PATIENCE)
    done = desk.machine.run(command)
    if done.code:
        raise CommandError(command, done)
    return re.sub(r"^\\(?:un)?restrict .*$", "", done.out, flags=re.MULTILINE)


@dataclass(frozen=True)
class _Run:
    """A migration that is about to be made: *mark* is the database right before it."""

    desk: Desk
    order: Order
    taken: Backup
    before: list[str] | None
    schema: str
    mark: Mark
    protected: bool = False

    def go(self) -> Verdict:
        """Run the command and judge what came of it."""
        desk = self.desk
        assert self.taken.info
        migration = Migration(
            *(desk.choice.database.name, desk.choice.database.host, desk.choice.database.port),
            backup=self.taken.name,
            sha256=self.taken.info.files[Format.DUMP.extension].sha256,
            at=desk.clock().strftime("%Y-%m-%dT%H:%M:%SZ"),
            state="under way",
            presence=desk.machine.presence(),
            run=desk.run,
        )
        began = monotonic()
        code: int | None = None
        try:
            desk.migrations.begin(migration)
            code = self._command(self._text, "The migration")
            self._judge(code)
            # From here on it is migrated: whoever is interrupted before is rolled back, and nobody after.
            signals.close()
        except TaskError as error:
            return self._roll_back(migration, error, code, began)
        except Exception as error:  # noqa: BLE001 - whatever it is, a database is not left half migrated
            desk.report.note(traceback.format_exc())
            return self._roll_back(migration, Failed(f"The migration broke off: {_sentence(error)}"), code, began)
        self._note(migration)
        after, changed = self._differences()
        return self._verdict("migrated", code, began, after, changed)

    def _judge(self, code: int) -> None:
        """Raise unless the command ended well, the database is there, and the check passes that the setting names."""
        if code:
            raise Failed(f"The migration ended with exit code {code}.")
        check = self.desk.settings.smoke
        with self.desk.connect(self.desk.choice.database) as connection:
            if _SQL.match(check):
                self._ask(connection, check)
                return
        if check and (code := self._command(check, "The check after the migration")):
            raise Failed(f"The check after the migration ended with exit code {code}.")

    def _note(self, migration: Migration) -> None:
        """Write down that it is migrated; where that cannot be done, it is no less migrated, and that is said."""
        try:
            self.desk.migrations.ended(migration, "migrated")
        except (TaskError, OSError) as error:
            self.desk.report.warn(
                f"{migration.name} IS MIGRATED, but that could not be written down: {_sentence(error)} Should a task "
                "say that this migration was cut off, do not roll it back: "
                "a restore of a backup taken from now on ends that."
            )

    @property
    def _text(self) -> str:
        return self.order.command or self.desk.settings.migrate

    @property
    def _timeout(self) -> int:
        return self.desk.settings.migrate_timeout if self.order.timeout is None else self.order.timeout

    def _verdict(
        self, outcome: str, code: int | None, began: float, after: list[str] | None, changed: Changed | None
    ) -> Verdict:
        seconds = round(monotonic() - began, 3)
        name = self.desk.choice.database.name
        return Verdict(outcome, self.taken.name, name, code, seconds, self.before, after, changed)

    # The command

    def _command(self, text: str, what: str) -> int:
        """Run *text* in the repository, on the very database that was backed up; pass on what it says as it comes.

        Raises Failed where *what* it is does not end in time.
        """
        desk, timeout = self.desk, self._timeout
        desk.report.say(f"Running {text}")
        desk.report.hide(desk.choice.url)
        words = ("migrate", desk.settings.root, text, "yes" if desk.machine.name else "", _LAST_WORD)
        # What speaks to people speaks their language.
        env = (*((k, v) for k, v in desk.environ.items() if k.startswith(("LANG", "LC_"))), (_WITHIN, "yes"))
        command = Command(("sh", "-c", _IN_THE_REPOSITORY, *words), env, ((_URL, desk.choice.url),))
        with desk.machine.follow(command) as job:
            speaker = threading.Thread(target=_pass_on, args=(job.lines(), desk), daemon=True)
            speaker.start()
            deadline = monotonic() + timeout if timeout else None
            while (code := job.poll()) is None:
                if deadline and monotonic() > deadline:
                    job.stop()
                    raise Failed(f"{what} had not ended after {duration(timeout)}.")
                signals.sleep(_LOOK)
            code = job.wait().code
            # What it has left running may hold its output open for ever.
            speaker.join(_LAST_WORDS)
        return code

    def _ask(self, connection: Connection, check: str) -> None:
        """Raise Failed unless the SQL *check* answers, in time, something else than no."""
        try:
            connection.session.ask(f"set statement_timeout = '{self._timeout}s'")
            # A server that is gone without a word says nothing of time either.
            answer = connection.session.ask(check, self._timeout + _PATIENCE if self._timeout else None)
        except CommandError as error:
            why = postgres.reason(error)
            raise Failed(f"The check after the migration failed: {why}") from None
        if answer.split("\n")[0] in ("f", "false", "0", ""):
            raise Failed(f"The check after the migration answered {answer or 'nothing'}: {check}")

    def _differences(self) -> tuple[list[str] | None, Changed | None]:
        """Return the ledger as it is now, and what differs from before, as far as that can be seen soon."""
        try:
            return self._look()
        except (TaskError, OSError, ValueError) as error:
            self.desk.report.note(f"what the migration changed could not be counted: {error}")
            return None, None

    def _look(self) -> tuple[list[str] | None, Changed]:
        assert self.taken.info
        with self.desk.connect(self.desk.choice.database) as connection:
            # A session that was left open must not keep us from putting things back.
            connection.session.ask(f"set lock_timeout = '{_PATIENCE}s'")
            after = catalog.migrations(connection.session)
            now, written = catalog.count_written(connection.session, self.mark.transaction)
            schema = _schema(self.desk, connection)
        was = self.taken.info.tables
        differ = {t for t in was.keys() | now.keys() if was.get(t) != now.get(t)} | written
        tables = {t: (was.get(t), now.get(t)) for t in sorted(differ)}
        return after, Changed(schema != self.schema, tables)

    # The way back

    def _roll_back(self, migration: Migration, error: TaskError, code: int | None, began: float) -> Verdict:
        """Put the database back as it was; the verdict says whether that could be done."""
        # A signal must not cut short what makes a promise good.
        signals.ignore()
        desk, name = self.desk, migration.name
        desk.report.warn(f"{error.message} Putting {name} back as it was.")
        # Whoever has not ended yet could still write, after we have looked.
        ended = self._end_its_sessions()
        after, changed = self._differences()
        try:
            if ended and self._is_untouched():
                desk.report.say("Nothing had been written since, so there is nothing to put back.")
            else:
                back(desk, self.taken, "db.migrate")
        except Exception as trouble:  # noqa: BLE001 - whatever it is, this is what must be said of it
            desk.report.note(traceback.format_exc())
            why = f"{name} is NEITHER MIGRATED NOR ROLLED BACK: {error.message} Then: {_sentence(trouble)}"
            verdict = self._verdict("failed", code, began, after, changed)
            return replace(verdict, why=why, code=5, hint=self._one_command)
        # Once more would do no harm.
        with suppress(TaskError, OSError):
            desk.migrations.ended(migration, "rolled back")
        why = f"{error.message} {name} was rolled back: schema and rows are as before."
        verdict = self._verdict("rolled back", code, began, self.before, changed)
        return replace(verdict, why=why, code=error.code if isinstance(error, Interrupted) else 1)

    @property
    def _one_command(self) -> str:
        consent = f"--confirm {self.desk.choice.database.name}" if self.protected else "--force"
        return f"inv db.rollback {consent}, now: it puts the database back"

    def _end_its_sessions(self) -> bool:
        """End the sessions that were begun since the migration was; return whether that could be done."""
        try:
            leavings.open_again(self.desk)
            with self.desk.connect(self.desk.choice.database) as connection:
                # A pooler's are older than those who speak through them.
                which = "true" if self.desk.settings.allow_pooler else self.mark.newer_sessions
                return switching.end_sessions(connection, which)
        except TaskError:
            return False

    def _is_untouched(self) -> bool:
        try:
            with self.desk.connect(self.desk.choice.database) as connection:
                return self.mark.untouched(connection.session)
        except TaskError:
            return False


# Over SSH it is a login shell's, as if typed there: the PATH of nothing less has a pnpm in it. What that shell reads
# may name another database and go elsewhere, so that ours has the last word. Any shell understands its one line.
_IN_THE_REPOSITORY = r"""
exec 2>&1
[ "$LC_ALL" != C ] || unset LC_ALL
export PG_BACKUP_TASKS_ROOT="$1" PG_BACKUP_TASKS_TEXT="$2" PG_BACKUP_TASKS_LAST="$4"
if [ "$3" ]; then exec "${SHELL:-sh}" -l -c 'exec sh -c "$PG_BACKUP_TASKS_LAST"'; else exec sh -c "$4"; fi
"""
_LAST_WORD = rf"""
cd -- "$PG_BACKUP_TASKS_ROOT" || exit
for name in {" ".join(WANTED)}; do export "$name=${_URL}"; done
set -- "$PG_BACKUP_TASKS_TEXT"
unset name {_URL} PG_BACKUP_TASKS_ROOT PG_BACKUP_TASKS_TEXT PG_BACKUP_TASKS_LAST
exec sh -c "$1"
"""


def _pass_on(lines: Iterator[bytes], desk: Desk) -> None:
    # Where the line is cut, others tell it.
    with suppress(TaskError):
        for line in lines:
            desk.report.say(line.decode(errors="replace"))


def _sentence(error: Exception) -> str:
    if isinstance(error, TaskError):
        return str(error.message)
    return f"{(isinstance(error, OSError) and error.strerror) or error}."


def back(desk: Desk, taken: Backup, task: str) -> restore.Result:
    """Restore the backup a migration began with, as a whole and with nobody asked any more.

    Nothing that the migration has left open or made stands in its way.
    """
    leavings.clear_the_way(desk)
    dump = whole_dump(desk, taken)
    work = restore.Work(desk, looking.Order(), dump, desk.choice.database, task)
    return work.run(Consent(force=True, confirm=desk.choice.database.name))


def whole_dump(desk: Desk, taken: Backup) -> Dump:
    """Return the best dump of a backup that is whole. Raises what is wrong with the best where none is."""
    troubles: list[TaskError | OSError] = []
    for format_ in [f for f in Format if f in taken.sizes]:
        try:
            return verify.open_dump(desk, taken._replace(chosen=format_))
        except (Failed, OSError) as trouble:
            desk.report.warn(_sentence(trouble))
            troubles.append(trouble)
    raise troubles[0] if troubles else Failed(f"{taken.name} has no dump file left to restore.")

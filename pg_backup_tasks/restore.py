"""Restore a backup: afterwards the database is what was asked for, or exactly what it was."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from time import monotonic

from . import ability, analysis, aside, backup, catalog, loading, signals, switching, units, url, verify, written
from .consent import Consent
from .desk import Connection, Desk
from .errors import Failed, Interrupted, Refused, Unreachable
from .info import DatabaseInfo
from .journal import Change, How, Journal
from .loading import Dump, Target
from .looking import Found, Looker, Order
from .model import SAFETY, Database, Format, Mode
from .postgres import identifier
from .store import Backup
from .units import listed
from .url import elsewhere
from .written import Written

_NAMED = 10


@dataclass(frozen=True)
class Result:
    """What a restore did; *seconds* from the answer to the prompt on, *undo* whether `db.undo` takes it back.

    *how* is None where nothing was to be done.
    """

    backup: str | None
    database: str
    how: str | None
    seconds: float
    mode: str = Mode.FULL.value
    undo: bool = False


def restore(desk: Desk, chosen: Backup, order: Order, yes: Consent, task: str = "") -> Result:
    """Make the database what the backup is, or what *order* asks of it; on any error it is what it was.

    *task* is what the restore is part of, as a lock and the journal say it.

    Raises Refused where nobody says yes or it cannot work, Failed where the file is damaged or does not load.
    """
    order.check()
    order = replace(order, heedful=True)
    database = order.target(desk.choice.database)
    yes.check(database.name)
    task = task or f"db.restore of {chosen.name}"
    with desk.at_work(f"{task} into {database.name}", order.wait):
        switching.settle(desk)
        dump = verify.open_dump(desk, chosen, by_itself=order.mode is Mode.DATA_ONLY)
        if not order.owned:
            dump = replace(dump, items=ability.unowned(dump.items))
        result = Work(desk, order, dump, database, task).run(yes)
        if order.mode is Mode.FULL and not order.into:
            desk.migrations.replaced(database, chosen.name)
        return result


def plan(desk: Desk, chosen: Backup, order: Order) -> str:
    """Return what `restore` would do, as far as that is known without looking."""
    order.check()
    database = order.target(desk.choice.database)
    what = {
        Mode.FULL: "",
        Mode.DATA_ONLY: " (rows only)",
        Mode.SCHEMA_ONLY: " (structure only)",
        Mode.TABLE: f" ({', '.join(order.tables)} only)",
    }
    return f"Would restore {chosen.path(chosen.format_to_restore())}{what[order.mode]} into {database}."


@dataclass(frozen=True)
class Work:
    """One restore into one database, from the first look to the last word; *ready* is done once somebody said yes."""

    desk: Desk
    order: Order
    dump: Dump
    database: Database
    task: str
    ready: Callable[[Connection], object] | None = None

    @property
    def _looker(self) -> Looker:
        return Looker(self.desk, self.order, self.dump, self.database)

    def run(self, yes: Consent) -> Result:
        """Look, say what will be done, ask, and do it."""
        with self._present() as connection:
            if connection is None:
                return self._create(yes)
            found = self._looker.look(connection)
            self._announce(found)
            yes.obtain(self.desk.report, self.database.name, f"Restore into {self.database.name}?")
            began = monotonic()
            if self.ready:
                self.ready(connection)
            if found.doubts:
                self._in_place(connection, found)
        if not found.doubts:
            self._beside(found)
        return self._result("in place" if found.doubts else "swap", began, undo=not self.order.into)

    def _result(self, how: str, began: float, *, undo: bool) -> Result:
        seconds = round(monotonic() - began, 3)
        return Result(self.dump.backup.name, self.database.name, how, seconds, self.order.mode.value, undo)

    @contextmanager
    def _present(self) -> Iterator[Connection | None]:
        """Hold a session on the database, or None where its server has none of that name."""
        with ExitStack() as stack:
            connection: Connection | None = None
            try:
                connection = stack.enter_context(self.desk.connect(self.database))
            except Unreachable:
                # The server says why in its own language; whether the database is there is a question of its own.
                if self._exists() or not self.order.replaces:
                    raise
            else:
                loading.clear_scratch(self.desk, connection)
            yield connection

    def _exists(self) -> bool:
        with loading.maintenance(self.desk, self.database) as server:
            loading.clear_scratch(self.desk, server)
            return catalog.database_exists(server.session, self.database.name)

    # Saying

    def _announce(self, found: Found | None) -> None:
        say = self.desk.report.say
        backup_, format_ = self.dump.backup, self.dump.format
        extension = format_.extension if backup_.type else ""
        say(f"Backup   {backup_.name}{extension}, {units.size(backup_.sizes[format_])}")
        say(f"From     {self._origin()}")
        if found is None:
            say(f"Into     {self.database}: missing, will be created")
            say(f"Becomes  {self._becomes(None)}")
            return
        say(f"Into     {self.database}{'' if found.objects else ', which is empty'}{_contents(found)}")
        say(f"Becomes  {self._becomes(found)}")
        say(f"Lost     {self._lost(found)}")
        if found.left_alone:
            say(f"Alone    {listed(list(found.left_alone))}")
        for line in self._how(found):
            say(line)

    def _origin(self) -> str:
        created, info = self.dump.backup.created_at, self.dump.backup.info
        when = "nobody knows when"
        if created:
            age = units.short_age((self.desk.clock() - created).total_seconds())
            ago = age if age in ("now", "future") else f"{age} ago"
            when = f"{ago} ({created.strftime('%Y-%m-%d %H:%M:%S UTC')})"
        return f"{info.database.name} on {info.database.host or 'a local socket'}, {when}" if info else when

    def _becomes(self, found: Found | None) -> str:
        dump, mode = self.dump, self.order.mode
        rows = f", {units.counted(sum(dump.rows.values()), 'row')}" if dump.rows else ""
        tables = units.counted(len(dump.tables), "table") if dump.tables else "nobody knows how many tables"
        if found and mode is Mode.DATA_ONLY:
            replaced = found.part.counted if found.part else None
            return f"the backup's rows in {units.counted(len(replaced or ()), 'table')}; all else stays as it is"
        if found and mode is Mode.TABLE:
            made = [".".join(table) for table in found.tables if table not in self.order.dropped]
            gone = [".".join(table) for table in self.order.dropped]
            parts = [f"the backup's {listed(made, _NAMED)}"] if made else []
            parts += [f"without {listed(gone, _NAMED)}"] if gone else []
            return "; ".join(parts)
        if mode is Mode.SCHEMA_ONLY:
            return f"the structure in the backup, {tables} without any rows"
        return f"all that is in the backup, {tables}{rows}"

    def _lost(self, found: Found) -> str:
        if not found.objects:
            return "nothing"
        if self.order.mode is Mode.DATA_ONLY:
            return "what has changed in these rows since the backup"
        if self.order.mode is Mode.TABLE:
            return "what these tables are and hold now"
        lacking = f"what the backup lacks: {listed(found.lost)}; and " if found.lost else ""
        rest = "all rows" if self.order.mode is Mode.SCHEMA_ONLY else "whatever has changed since"
        return lacking + rest

    def _how(self, found: Found) -> Iterator[str]:
        if self.order.into:
            yield "How      in one transaction"
        elif found.doubts:
            self.desk.report.note(f"not by another database, because {'; '.join(found.doubts[:5])}")
            yield "How      in place, in one transaction, after a safety backup for db.undo"
            yield f"Why      {found.doubts[0]}"
        else:
            yield "How      a new database takes its name; the old one stays aside for db.undo"
            if sessions := found.present.sessions:
                yield f"Ended    {units.counted(sessions, 'session')} on it, once the new one is whole"

    # Doing

    def _create(self, yes: Consent) -> Result:
        """Load under a name of our own and rename at the end: the database appears when it is whole."""
        self._announce(None)
        desk, name = self.desk, loading.scratch_name()
        with loading.maintenance(desk, self.database) as server:
            self._looker.refuse_missing(catalog.role(server.session))
            if not server.server.createdb:
                raise Refused(
                    f"{self.database.name} is missing and this user may not create databases.",
                    hint=f"let a superuser run: createdb --owner={server.server.user} {self.database.name}",
                )
            yes.obtain(desk.report, self.database.name, f"Restore into {self.database.name}?")
            began = monotonic()
            info = self.dump.backup.info
            wanted = info.database if info else None
            its_own = wanted if self.order.owned else None
            try:
                loading.create_beside(desk, server, wanted, name)
                self._fill(name)
                switching.begin(server)
                with switching.sending_away(desk, server, name) as rename:
                    rename(name, self.database.name)
                self._finish(server, its_own)
                signals.close()
                server.session.ask("commit")
            except BaseException:
                loading.discard(desk, server, name)
                raise
            # What is remembered of an earlier one of that name is nothing to go back to.
            aside.let_go(desk, server, url.key(self.database))
        return self._result("swap", began, undo=False)

    @contextmanager
    def _scratch(self, name: str) -> Iterator[Connection]:
        with ExitStack() as stack:
            try:
                connection = stack.enter_context(self.desk.connect(elsewhere(self.database, name)))
            except Unreachable as error:
                raise Failed(
                    f"The server lets this user in to no new database: {error.message}",
                    hint="INVOKE_DB_IN_PLACE=true restores in the one that is there",
                ) from None
            yield connection

    def _fill(self, name: str) -> None:
        with self._scratch(name) as connection:
            part = self._looker.structure()
            target = Target(connection, whole=False, owned=self.order.owned, part=part, called=self.database)
            with analysis.ahead(self.desk, connection) as analyzed:
                loading.load(self.desk, self.dump, target)
            analysis.analyze(self.desk, target, self.dump if part is None else None, analyzed)

    def _finish(self, server: Connection, wanted: DatabaseInfo | None) -> None:
        """Take our mark off the database that has its name now, and give it its properties."""
        server.session.ask(f"comment on database {identifier(self.database.name)} is null")
        if wanted:
            loading.apply_properties(self.desk, server, wanted, self.database.name)

    def _beside(self, found: Found) -> None:
        desk, journal, name = self.desk, self.desk.journal, loading.scratch_name()
        wanted = self._looker.wanted(found.now)
        with loading.maintenance(desk, self.database) as server:
            aside.drop_expired(desk, server)
            before = switching.free_name(desk, server, self.database.name)
            change = self._change(found, "swap", before, found.now.comment)
            journal.begin(change)
            try:
                loading.create_beside(desk, server, wanted, name, found.present.tablespace)
                self._fill(name)
                switching.switch(desk, server, change, name, lambda: self._finish(server, wanted))
                switching.conclude(desk, server, change)
            except BaseException:
                switching.abandon(desk, server, change, name)
                raise

    def _in_place(self, connection: Connection, found: Found) -> None:
        desk, journal = self.desk, self.desk.journal
        owned = self.order.owned
        target = Target(connection, whole=True, owned=owned, properties=found.statements, part=found.part)
        if self.order.into:
            loading.load(desk, self.dump, target)
            analysis.analyze(desk, target)
            return
        seen = written.look(connection.session, _replaced(found)) if self.order.heedful else None
        order = backup.Order(SAFETY, f"Before {self.task}", (Format.DUMP,))
        safety = backup.at_work(desk, order, connection)
        change = self._change(found, "in place", safety.name)
        journal.begin(change)
        try:
            loading.load(desk, self.dump, replace(target, opening=self._opening(journal, seen)))
            switching.conclude(desk, connection, change)
        except BaseException:
            switching.abandon(desk, connection, change)
            raise
        try:
            analysis.analyze(desk, target)
        except Interrupted as error:
            done = f" once {self.database.name} had been restored; inv db.undo takes it back"
            raise Interrupted(error.signum, done) from None

    def _change(self, found: Found, how: How, before: str, comment: str | None = None) -> Change:
        task, backup_ = self.task, self.dump.backup.name
        change = switching.begun(self.desk, self.database, task, backup_, found.present, how, before, comment)
        return replace(change, mode=self.order.mode.value, tables=found.tables)

    def _opening(self, journal: Journal, seen: Written | None) -> str:
        """Return what psql says first in a transaction: its number into a file, and how long it waits for locks."""
        return (
            f"\\o {_psql_literal(journal.transaction_path)}\n"
            "copy (select pg_current_xact_id()) to stdout;\n"
            "\\o /dev/null\n"
            # Whoever looks for it after the machine has died must find it.
            f"\\! sync {shlex.quote(journal.transaction_path)} 2>/dev/null || :\n"
            f"set local lock_timeout = '{self.desk.settings.lock_timeout}s';\n"
        ) + (seen.hold() if seen else "")


def _contents(found: Found) -> str:
    present = found.present
    return f": {units.counted(present.tables, 'table')}, {units.size(present.bytes)}" if found.objects else ""


def _replaced(found: Found) -> tuple[str, ...] | None:
    return found.part.replaced if found.part else None


def _psql_literal(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"

"""Restore a backup: afterwards the database is what was asked for, or exactly what it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from time import monotonic

from . import ability, backup, catalog, data_only, emptying, loading, signals, single_tables, switching, units, verify
from .ability import Role
from .catalog import Present
from .consent import Consent
from .desk import Connection, Desk
from .errors import Failed, Refused, TaskError, Unreachable
from .info import DatabaseInfo
from .journal import Change, Journal
from .loading import Dump, Part, Target
from .model import SAFETY, Database, Format, Mode
from .postgres import identifier
from .properties import Statement
from .store import Backup
from .url import elsewhere

_DATA = frozenset(
    {
        "BLOB",
        "BLOB COMMENTS",
        "BLOB METADATA",
        "BLOBS",
        "MATERIALIZED VIEW DATA",
        "SEQUENCE SET",
        "STATISTICS DATA",
        "TABLE DATA",
    }
)
_MENTIONED = 5


@dataclass(frozen=True)
class Order:
    """What is asked for; *into* names another database on the same server, *wait* is seconds for another run's end."""

    mode: Mode = Mode.FULL
    clean: bool = False
    tables: tuple[str, ...] = ()
    into: str = ""
    wait: float = 0

    def check(self) -> None:
        """Raise Refused where the flags exclude each other."""
        if self.clean and self.mode is Mode.DATA_ONLY:
            raise Refused("--data-only keeps the schema, --clean drops it.", hint="one of the two")
        if self.clean and self.mode is Mode.TABLE:
            raise Refused("--table replaces those tables only, --clean everything.", hint="one of the two")
        if self.into and self.mode in (Mode.DATA_ONLY, Mode.TABLE):
            raise Refused(
                f"--into makes a new database, and --{self.mode.value} works in one that is there.",
                hint="--into with --schema-only, or alone",
            )

    @property
    def replaces(self) -> bool:
        """Whether what is there gives way as a whole."""
        return self.mode in (Mode.FULL, Mode.SCHEMA_ONLY)


@dataclass(frozen=True)
class Result:
    """What a restore did; *seconds* from the answer to the prompt on, *undo* whether `db.undo` takes it back."""

    backup: str
    database: str
    how: str
    seconds: float
    mode: str = Mode.FULL.value
    undo: bool = False


def restore(desk: Desk, chosen: Backup, order: Order, yes: Consent) -> Result:
    """Make the database what the backup is, or what *order* asks of it; on any error it is what it was.

    Raises Refused where nobody says yes or it cannot work, Failed where the file is damaged or does not load.
    """
    order.check()
    database = elsewhere(desk.choice.database, order.into) if order.into else desk.choice.database
    yes.check(database.name)
    task = f"db.restore of {chosen.name}"
    with desk.at_work(f"{task} into {database.name}", order.wait):
        switching.settle(desk)
        return Work(desk, order, verify.open_dump(desk, chosen), database, task).run(yes)


def plan(desk: Desk, chosen: Backup, order: Order) -> str:
    """Return what `restore` would do, as far as that is known without looking."""
    order.check()
    database = elsewhere(desk.choice.database, order.into) if order.into else desk.choice.database
    what = {
        Mode.FULL: "",
        Mode.DATA_ONLY: " (rows only)",
        Mode.SCHEMA_ONLY: " (structure only)",
        Mode.TABLE: f" ({', '.join(order.tables)} only)",
    }
    return f"Would restore {chosen.path(chosen.format_to_restore())}{what[order.mode]} into {database}."


def refuse_what_would_be_lost(database: Database, present: Present) -> None:
    """Raise Refused where the database that is there has what stays with it, and is no use to another."""
    for lost, what, remedy in (
        (present.slots, "replication slot", "select pg_drop_replication_slot('{}')"),
        (present.subscriptions, "subscription", "drop subscription {}"),
        (present.prepared, "prepared transaction", "rollback prepared '{}'"),
    ):
        if lost:
            raise Refused(
                f"{database.name} has the {what} {lost[0]}, which would be lost.",
                hint=remedy.format(lost[0]) + ", if nobody needs it any more",
            )


@dataclass(frozen=True)
class _Found:
    """The database that is there, and how it will be changed: *doubts* say why not by another beside it."""

    present: Present
    now: DatabaseInfo
    doubts: tuple[str, ...]
    part: Part | None
    statements: tuple[Statement, ...]
    objects: int = 1
    lost: tuple[str, ...] = ()
    left_alone: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """One restore into one database, from the first look to the last word."""

    desk: Desk
    order: Order
    dump: Dump
    database: Database
    task: str

    def run(self, yes: Consent) -> Result:
        """Look, say what will be done, ask, and do it."""
        with self._present() as connection:
            if connection is None:
                return self._create(yes)
            found = self._look(connection)
            self._announce(found)
            yes.obtain(self.desk.report, self.database.name, f"Restore into {self.database.name}?")
            began = monotonic()
            if found.doubts:
                self._in_place(connection, found)
        if not found.doubts:
            self._beside(found)
        return self._result("in place" if found.doubts else "swap", began, undo=not self.order.into)

    def _result(self, how: str, began: float, *, undo: bool) -> Result:
        seconds = round(monotonic() - began, 3)
        return Result(self.dump.backup.name, self.database.name, how, seconds, self.order.mode.value, undo)

    # Looking

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

    def _look(self, connection: Connection) -> _Found:
        session = connection.session
        role, present = catalog.role(session), catalog.present(session)
        now, _ = catalog.describe(session, self.database)
        if connection.server.standby:
            raise Refused(f"{self.database} is a standby: nothing can be restored into it.", hint="its primary")
        if self.order.mode is Mode.DATA_ONLY:
            part, left_alone = data_only.plan(session, self.dump.items, self.dump.rows or None)
            return _Found(present, now, ("only its rows are replaced",), part, (), left_alone=left_alone)
        if self.order.mode is Mode.TABLE:
            self._refuse_plain()
            part = single_tables.plan(session, list(self.dump.items), list(self.order.tables))
            return _Found(present, now, ("only these tables are replaced",), part, ())
        return self._look_at_all(connection, role, present, now)

    def _refuse_plain(self) -> None:
        if not self.dump.has_ids:
            archives = [f for f in self.dump.backup.sizes if f.is_archive]
            other = self.dump.backup.name + archives[0].extension if archives else "a .dump or .tar of the backup"
            raise Refused("A single table cannot be taken out of plain SQL.", hint=other)

    def _look_at_all(self, connection: Connection, role: Role, present: Present, now: DatabaseInfo) -> _Found:
        objects = catalog.count_objects(connection.session)
        self._refuse_what_is_there(objects, present)
        self._refuse_missing(role)
        info = self.dump.backup.info
        wanted = info.database if info else now
        doubts = tuple(self._doubts(role, present, wanted))
        lost = tuple(self._lost(connection)) if objects else ()
        if not doubts:
            return _Found(present, now, (), None, (), objects, lost)
        statements = loading.properties_of(self.desk, connection, wanted, self.database.name, now)
        part = self._schema_part() if self.order.into else self._part_in_place(connection)
        return _Found(present, now, doubts, part, statements, objects, lost)

    def _lost(self, connection: Connection) -> list[str]:
        """Return the tables the backup lacks, as far as it says which it has."""
        rows = self.dump.rows
        return sorted(t.table for t in catalog.tables(connection.session) if t.table not in rows) if rows else []

    def _refuse_what_is_there(self, objects: int, present: Present) -> None:
        name = self.database.name
        if objects and self.order.into:
            raise Refused(
                f"{name} is not empty: it holds {objects} tables, views and the like.", hint="--into a new name"
            )
        if objects and self.order.mode is Mode.SCHEMA_ONLY and not self.order.clean:
            raise Refused(
                f"{name} is not empty, and its rows would be lost: it holds {objects} tables, views and the like.",
                hint="--clean --schema-only drops what is there",
            )
        refuse_what_would_be_lost(self.database, present)

    def _refuse_missing(self, role: Role) -> None:
        if missing := ability.missing_extensions(self.dump.items, role):
            raise Failed(
                f"The server lacks the extension {_some(missing)}; the database was not touched.",
                hint="install it on the server, then run it again",
            )
        if missing := ability.missing_roles(self.dump.items, role):
            raise Failed(
                f"The server has no role {_some(missing)}, which the backup's objects belong to or are granted to; "
                "the database was not touched.",
                hint=f"create role {identifier(missing[0])}, then run it again",
            )

    def _doubts(self, role: Role, present: Present, wanted: DatabaseInfo) -> Iterator[str]:
        """Yield why a database beside it might not become all that this one is."""
        if self.order.into:
            yield "it is empty"
        if self.desk.settings.in_place:
            yield "the setting in_place says so"
        if not self.dump.items and not role.superuser:
            yield "nobody knows what the dump holds"
        if not present.ours:
            yield f"{self.database.name} is not {role.name}'s"
        if present.tablespace != "pg_default" and not role.superuser:
            yield f"it lies in the tablespace {present.tablespace}"
        if present.strangers:
            yield f"{role.name} may not end the sessions of {_some(present.strangers)}"
        yield from ability.doubts(self.dump.items, wanted, role)

    def _schema_part(self) -> Part | None:
        if self.order.mode is not Mode.SCHEMA_ONLY:
            return None
        return Part(wanted=lambda item: item.kind not in _DATA, counted=frozenset())

    def _part_in_place(self, connection: Connection) -> Part:
        """Return what empties the database and what of the dump goes in then. Raises Refused where that cannot work."""
        info = self.dump.backup.info
        extensions = [i.name for i in self.dump.items if i.kind == "EXTENSION"] or list(info.extensions if info else [])
        survey = emptying.read_survey(catalog.answer(connection.session, emptying.survey(extensions)))
        if survey.obstacles:
            raise Refused(
                f"{self.database.name} cannot be restored by this user: {survey.obstacles[0]}.",
                hint="as the owner of everything in it, or as a superuser",
            )
        locks = emptying.read_locks(catalog.answer(connection.session, emptying.locks()))
        if locks.needed > locks.capacity:
            raise Refused(
                f"{self.database.name} has too many objects for one transaction: about {locks.needed:,} locks, "
                f"the server has room for {locks.capacity:,}.",
                hint="raise max_locks_per_transaction on the server, or restore as a user who may create databases",
            )
        schema_only = self.order.mode is Mode.SCHEMA_ONLY
        stays = emptying.leave_out(survey.kept)
        return Part(
            wanted=lambda item: not (schema_only and item.kind in _DATA) and not stays(item),
            before=emptying.empty(extensions) + emptying.owners(survey.kept, self.dump.items),
            counted=frozenset() if schema_only else None,
        )

    # Saying

    def _announce(self, found: _Found | None) -> None:
        say = self.desk.report.say
        backup_, format_ = self.dump.backup, self.dump.format
        extension = format_.extension if backup_.type else ""
        say(f"Backup   {backup_.name}{extension}, {units.size(backup_.sizes[format_])}")
        say(f"From     {self._origin()}")
        if found is None:
            say(f"Into     {self.database}, which is missing and will be created")
            return
        say(f"Into     {self.database}{'' if found.objects else ', which is empty'}{_contents(found)}")
        if found.lost:
            say(f"Lost     what the backup lacks: {_some(found.lost)}; and whatever has changed since")
        if found.left_alone:
            say(f"Alone    {_some(list(found.left_alone))}")
        say(f"How      {self._how(found)}")

    def _origin(self) -> str:
        created, info = self.dump.backup.created_at, self.dump.backup.info
        when = "nobody knows when"
        if created:
            age = units.short_age((self.desk.clock() - created).total_seconds())
            ago = age if age in ("now", "future") else f"{age} ago"
            when = f"{ago} ({created.strftime('%Y-%m-%d %H:%M:%S UTC')})"
        return f"{info.database.name} on {info.database.host or 'a local socket'}, {when}" if info else when

    def _how(self, found: _Found) -> str:
        if self.order.into:
            return "in one transaction"
        if found.doubts:
            self.desk.report.note(f"not by another database, because {'; '.join(found.doubts[:_MENTIONED])}")
            return f"in place, in one transaction, after a safety backup for db.undo ({found.doubts[0]})"
        ended = f"; {found.present.sessions} sessions on it are ended" if found.present.sessions else ""
        return f"in a new database that takes its name{ended}; the old one stays aside for db.undo"

    # Doing

    def _create(self, yes: Consent) -> Result:
        """Load under a name of our own and rename at the end: the database appears when it is whole."""
        self._announce(None)
        desk, name = self.desk, loading.scratch_name()
        with loading.maintenance(desk, self.database) as server:
            self._refuse_missing(catalog.role(server.session))
            if not server.server.createdb:
                raise Refused(
                    f"{self.database.name} is missing and this user may not create databases.",
                    hint=f"let a superuser run: createdb --owner={server.server.user} {self.database.name}",
                )
            yes.obtain(desk.report, self.database.name, f"Restore into {self.database.name}?")
            began = monotonic()
            info = self.dump.backup.info
            wanted = info.database if info else None
            try:
                loading.create_beside(desk, server, wanted, name)
                self._fill(name)
                server.session.ask("begin")
                server.session.ask(f"alter database {identifier(name)} rename to {identifier(self.database.name)}")
                self._finish(server, wanted)
                signals.close()
                server.session.ask("commit")
            except BaseException:
                with suppress(TaskError), loading.maintenance(desk, self.database) as fresh:
                    loading.discard(desk, fresh, name)
                raise
        return self._result("swap", began, undo=False)

    def _fill(self, name: str) -> None:
        with self.desk.connect(elsewhere(self.database, name)) as connection:
            part = self._schema_part()
            loading.load(self.desk, self.dump, Target(connection, whole=False, part=part))
            if part is None:
                loading.count(connection, self.dump)
            loading.analyze(connection)

    def _finish(self, server: Connection, wanted: DatabaseInfo | None) -> None:
        """Take our mark off the database that has its name now, and give it its properties."""
        server.session.ask(f"comment on database {identifier(self.database.name)} is null")
        if wanted:
            loading.apply_properties(self.desk, server, wanted, self.database.name)

    def _beside(self, found: _Found) -> None:
        desk, journal, name = self.desk, self.desk.journal, loading.scratch_name()
        info = self.dump.backup.info
        wanted = info.database if info else found.now
        with loading.maintenance(desk, self.database) as server:
            switching.drop_expired(desk, server)
            change = self._change(server, found)
            journal.begin(change)
            try:
                loading.create_beside(desk, server, wanted, name, found.present.tablespace)
                self._fill(name)
                switching.switch(desk, server, change, name, lambda: self._finish(server, wanted))
                switching.conclude(desk, server, change)
            except BaseException:
                switching.abandon(desk, change, name)
                raise

    def _in_place(self, connection: Connection, found: _Found) -> None:
        desk, journal = self.desk, self.desk.journal
        target = Target(connection, whole=True, properties=found.statements, part=found.part)
        if self.order.into:
            loading.load(desk, self.dump, target)
            loading.analyze(connection)
            return
        order = backup.Order(SAFETY, f"Before {self.task}", (Format.DUMP,))
        safety = backup.at_work(desk, order, connection)
        change = replace(self._change(connection, found), how="in place", before=safety.name, comment=None)
        journal.begin(change)
        try:
            loading.load(desk, self.dump, replace(target, opening=self._opening(journal)))
            switching.conclude(desk, connection, change)
        except BaseException:
            switching.abandon(desk, change)
            raise
        loading.analyze(connection)

    def _change(self, server: Connection, found: _Found) -> Change:
        backup_, present = self.dump.backup.name, found.present
        return switching.begun(self.desk, server, self.database, self.task, backup_, present, found.now.comment)

    def _opening(self, journal: Journal) -> str:
        """Return what psql says first in a transaction: its number into a file, and how long it waits for locks."""
        return (
            f"\\o {_psql_literal(journal.transaction_path)}\n"
            "copy (select pg_current_xact_id()) to stdout;\n"
            "\\o /dev/null\n"
            f"set local lock_timeout = '{self.desk.settings.lock_timeout}s';\n"
        )


def _contents(found: _Found) -> str:
    return f": {found.present.tables} tables, {units.size(found.present.bytes)}" if found.objects else ""


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MENTIONED])
    return f"{shown} and {len(names) - _MENTIONED} more" if len(names) > _MENTIONED else shown


def _psql_literal(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"

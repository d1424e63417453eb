"""What a restore will meet: what would be lost, is missing or stands in the way, seen before anything is touched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from . import ability, catalog, data_only, emptying, loading, single_tables, switching
from .ability import Role
from .catalog import Present
from .desk import Connection, Desk
from .errors import Failed, Refused, Unreachable
from .info import DatabaseInfo, with_own
from .loading import Dump, Part
from .model import Database, Item, Mode
from .postgres import identifier
from .properties import Statement
from .units import listed
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

_ABOUT_DATA = ("ACL", "COMMENT", "SECURITY LABEL")


def _is_data(item: Item) -> bool:
    # What is said of a large object goes with it.
    return item.kind in _DATA or (item.kind in _ABOUT_DATA and item.name.startswith("LARGE OBJECT"))


@dataclass(frozen=True)
class Order:
    """What is asked for; *into* names another database on the same server, *wait* is seconds for another run's end.

    With *owned* everything gets the owners and grants it had; else whoever restores owns it all, and the database keeps
    its own. *dropped* (schema and name) are tables that go together with those named, and were not there before.
    With *heedful* a change in place ends where others have written what its own safety backup may not have.
    """

    mode: Mode = Mode.FULL
    clean: bool = False
    tables: tuple[str, ...] = ()
    into: str = ""
    wait: float = 0
    owned: bool = True
    dropped: tuple[tuple[str, str], ...] = ()
    heedful: bool = False

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

    def target(self, configured: Database) -> Database:
        """Return the database to restore into."""
        return elsewhere(configured, self.into) if self.into else configured

    @property
    def replaces(self) -> bool:
        """Whether what is there gives way as a whole."""
        return self.mode in (Mode.FULL, Mode.SCHEMA_ONLY)


@dataclass(frozen=True)
class Found:
    """The database that is there, and how it will be changed: *doubts* say why not by another beside it."""

    present: Present
    now: DatabaseInfo
    doubts: tuple[str, ...]
    part: Part | None
    statements: tuple[Statement, ...]
    objects: int = 1
    lost: tuple[str, ...] = ()
    left_alone: tuple[str, ...] = ()
    tables: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Looker:
    """Who looks at one database, for one restore into it."""

    desk: Desk
    order: Order
    dump: Dump
    database: Database

    def look(self, connection: Connection) -> Found:
        """Return what is there and how it will be changed. Raises Refused or Failed where that cannot work."""
        session = connection.session
        role, present = catalog.role(session), catalog.present(session)
        now, _ = catalog.describe(session, self.database)
        if connection.server.standby:
            raise Refused(f"{self.database} is a standby: nothing can be restored into it.", hint="its primary")
        if self.order.mode is Mode.DATA_ONLY:
            part, left_alone = data_only.plan(session, self.dump.items, self.dump.rows or None)
            return Found(present, now, ("only its rows are replaced",), part, (), left_alone=left_alone)
        if self.order.mode is Mode.TABLE:
            self._refuse_plain()
            items, dropped = self.dump.items, self.order.dropped
            part = single_tables.plan(session, items, self.order.tables, dropped)
            tables = (*single_tables.chosen(items, self.order.tables), *dropped)
            return Found(present, now, ("only these tables are replaced",), part, (), tables=tables)
        return self._look_at_all(connection, role, present, now)

    def _refuse_plain(self) -> None:
        if not self.dump.has_ids:
            archives = [f for f in self.dump.backup.sizes if f.is_archive]
            other = self.dump.backup.name + archives[0].extension if archives else "a .dump or .tar of the backup"
            raise Refused("A single table cannot be taken out of plain SQL.", hint=other)

    def _look_at_all(self, connection: Connection, role: Role, present: Present, now: DatabaseInfo) -> Found:
        objects = catalog.count_objects(connection.session)
        self._refuse_what_is_there(objects, present)
        self.refuse_missing(role)
        wanted = self.wanted(now)
        doubts = tuple(self._doubts(role, present, wanted))
        if not doubts and self._bars():
            doubts = (f"the server lets {role.name} in to this database only",)
        lost = tuple(self._lost(connection)) if objects else ()
        if not doubts:
            return Found(present, now, (), None, (), objects, lost)
        statements = loading.properties_of(self.desk, connection, wanted, self.database.name, now)
        part = self.structure() if self.order.into else self._part_in_place(connection)
        return Found(present, now, doubts, part, statements, objects, lost)

    def wanted(self, now: DatabaseInfo) -> DatabaseInfo:
        """Return what the database is to be afterwards, which is *now* what it is."""
        info = self.dump.backup.info
        if info is None:
            return now
        return info.database if self.order.owned else with_own(info.database, now)

    def _lost(self, connection: Connection) -> list[str]:
        """Return the tables the backup lacks, as far as it says which it has."""
        tables = self.dump.tables
        if not tables and not self.dump.items:
            return []
        return sorted({t.table for t in catalog.tables(connection.session)} - tables)

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
        switching.refuse_what_would_be_lost(name, present)

    def refuse_missing(self, role: Role) -> None:
        """Raise Failed where the server lacks what the dump's objects need."""
        if missing := ability.missing_extensions(self.dump.items, role):
            raise Failed(
                f"The server lacks the extension {listed(missing)}; the database was not touched.",
                hint="install it on the server, then run it again",
            )
        if missing := ability.missing_roles(self.dump.items, role):
            raise Failed(
                f"The server has no role {listed(missing)}, which the backup's objects belong to or are granted to; "
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
            yield f"{role.name} may not end the sessions of {listed(present.strangers)}"
        if present.template:
            yield f"{self.database.name} is a template"
        yield from ability.doubts(self.dump.items, wanted, role)

    def _bars(self) -> bool:
        """Whether the server lets this user in to no other database, from which this one could be renamed."""
        try:
            with loading.maintenance(self.desk, self.database):
                return False
        except Unreachable:
            return True

    def structure(self) -> Part | None:
        """Return what of the dump is structure, where that is all that is wanted."""
        if self.order.mode is not Mode.SCHEMA_ONLY:
            return None
        return Part(wanted=lambda item: not _is_data(item), counted=frozenset())

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
        locks = emptying.read_locks(catalog.answer(connection.session, emptying.locks()), self.dump.items)
        if locks.needed > locks.capacity:
            raise Refused(
                f"{self.database.name} has too many objects for one transaction: about {locks.needed:,} locks, "
                f"the server has room for {locks.capacity:,}.",
                hint="raise max_locks_per_transaction on the server, or restore as a user who may create databases",
            )
        schema_only = self.order.mode is Mode.SCHEMA_ONLY
        stays = emptying.leave_out(survey.kept)
        return Part(
            wanted=lambda item: not (schema_only and _is_data(item)) and not stays(item),
            before=emptying.empty(extensions) + emptying.owners(survey.kept, self.dump.items),
            counted=frozenset() if schema_only else None,
        )

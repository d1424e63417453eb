"""The rows of a backup into the tables that are there: what stands in their way is moved aside and put back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

from . import catalog, definitions, emptying, premise
from .errors import Failed, Refused
from .loading import Part
from .machine import Session
from .model import Item
from .postgres import identifier, literal

_LARGE_OBJECTS = "large objects"
_NAMED_AT_MOST = 10
_KINDS = {
    "p": "a partitioned table",
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "S": "a sequence",
    "r": "a table",
}
# The state a trigger or rule is in, as ALTER TABLE sets it.
_ENABLE = {"O": "enable", "R": "enable replica", "A": "enable always"}
_RELATIONS = """
select json_build_object(
  'relations', (
    select coalesce(json_agg(json_build_object(
      'oid', c.oid::bigint,
      'schema', n.nspname,
      'name', c.relname,
      'kind', c.relkind,
      'foreign', exists(select from pg_depend e
        where e.classid = 'pg_class'::regclass and e.objid = c.oid and e.deptype = 'e'),
      'owner', (select min(d.refobjid::bigint) from pg_depend d
        where c.relkind = 'S' and d.classid = 'pg_class'::regclass and d.objid = c.oid
          and d.refclassid = 'pg_class'::regclass and d.refobjsubid > 0 and d.deptype in ('a', 'i')))), '[]')
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and c.relpersistence <> 't'
      and n.nspname <> 'information_schema' and n.nspname not like 'pg\\_%'),
  'large_objects', exists(select from pg_largeobject_metadata))
"""
# Everything in an order of its own: asked once more in the transaction, it must say the very same.
_STATE = """
with recursive chosen as (
  select unnest({tables}::oid[]) as oid),
covered as (
  select oid from chosen
  union select i.inhparent from covered t
    join pg_inherits i on i.inhrelid = t.oid join pg_class p on p.oid = i.inhparent and p.relkind = 'p'),
keys as (
  select k.* from pg_constraint k where k.contype = 'f' and k.confrelid in (select oid from covered)),
tables as (
  select c.*, format('%I.%I', n.nspname, c.relname) as place, n.nspname || '.' || c.relname as shown
  from covered t join pg_class c on c.oid = t.oid join pg_namespace n on n.oid = c.relnamespace),
filled as (
  select oid from tables
  union select reltoastrelid from tables where reltoastrelid <> 0)
select json_build_object(
  'tables', (
    select coalesce(json_agg(json_build_object(
      'oid', t.oid::bigint,
      'place', t.place,
      'shown', t.shown,
      'chosen', t.oid in (select oid from chosen),
      'owned', pg_has_role(t.relowner, 'USAGE') and has_schema_privilege(t.relnamespace, 'USAGE'),
      'writable', has_table_privilege(t.oid, 'INSERT') and has_table_privilege(t.oid, 'TRUNCATE'),
      'forced', t.relrowsecurity and t.relforcerowsecurity,
      'points', t.oid in (select conrelid from keys),
      'columns', (
        select coalesce(json_object_agg(a.attname, (a.attnotnull or y.typnotnull) and not a.atthasdef
          and a.attidentity = '' and y.typdefault is null order by a.attnum), '{{}}')
        from pg_attribute a join pg_type y on y.oid = a.atttypid
        where a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''),
      'triggers', (
        select coalesce(json_agg(json_build_array(g.tgname, g.tgenabled) order by g.tgname), '[]')
        from pg_trigger g where g.tgrelid = t.oid and not g.tgisinternal and g.tgenabled <> 'D'),
      'rules', (
        select coalesce(json_agg(json_build_array(r.rulename, r.ev_enabled) order by r.rulename), '[]')
        from pg_rewrite r where r.ev_class = t.oid and r.ev_enabled <> 'D')) order by t.oid), '[]')
    from tables t),
  'keys', (
    select coalesce(json_agg(json_build_object(
      'place', t.place,
      'name', k.conname,
      'deferrable', k.condeferrable,
      'deferred', k.condeferred) order by k.oid), '[]')
    from keys k join tables t on t.oid = k.conrelid
    where k.conparentid = 0 and k.convalidated and not k.condeferred),
  'unproven', (
    select coalesce(json_agg(json_build_object(
      'place', t.place,
      'name', k.conname,
      'definition', pg_get_constraintdef(k.oid),
      'comment', obj_description(k.oid, 'pg_constraint')) order by k.oid), '[]')
    from pg_constraint k join tables t on t.oid = k.conrelid
    where k.contype in ('c', 'f', 'n') and not k.convalidated and k.conparentid = 0 and k.coninhcount = 0
      and coalesce(to_jsonb(k) ->> 'conenforced', 'true') = 'true'),
  'outside', (
    select coalesce(json_agg(o.pair order by o.pair::text), '[]')
    from (
      select distinct jsonb_build_array(n.nspname || '.' || c.relname, t.shown) as pair
      from keys k join tables t on t.oid = k.confrelid
        join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace
      where k.conrelid not in (select oid from covered)) o),
  'sequences', (
    select coalesce(json_agg(json_build_object(
      'place', format('%I.%I', n.nspname, c.relname),
      'shown', n.nspname || '.' || c.relname,
      'owned', pg_has_role(c.relowner, 'USAGE') and has_sequence_privilege(c.oid, 'UPDATE')) order by c.oid), '[]')
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = any ({sequences}::oid[])),
  'views', (
    select coalesce(json_agg(json_build_object(
      'oid', c.oid::bigint,
      'place', format('%I.%I', n.nspname, c.relname),
      'shown', n.nspname || '.' || c.relname,
      'filled', c.relkind = 'm' and c.relispopulated,
      'ours', case when c.relkind = 'v' or pg_has_role(c.relowner, 'USAGE') then true
        when current_setting('server_version_num')::int < 170000 then false
        else has_table_privilege(c.oid, 'MAINTAIN') end,
      'reads', (
        select coalesce(json_agg(distinct d.refobjid::bigint), '[]')
        from pg_rewrite r join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
          join pg_class s on d.refclassid = 'pg_class'::regclass and s.oid = d.refobjid and s.oid <> c.oid
        where r.ev_class = c.oid and s.relkind in ('v', 'm'))) order by c.oid), '[]')
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('v', 'm') and c.oid >= 16384 and c.relpersistence <> 't'
      and n.nspname <> 'information_schema' and n.nspname not like 'pg\\_%'
      and not exists (select from pg_depend e
        where e.classid = 'pg_class'::regclass and e.objid = c.oid and e.deptype = 'e')),
  'locks', (
    select count(*) + cardinality({sequences}::oid[])
    from (
      select oid from filled
      union select indexrelid from pg_index where indrelid in (select oid from filled)) l),
  'room', {room})
"""


@dataclass(frozen=True)
class _Relation:
    oid: int
    schema: str
    name: str
    kind: str
    foreign: bool
    owner: int | None

    @property
    def shown(self) -> str:
        return f"{self.schema}.{self.name}"


class _Present:
    """The database's relations by name, also by the name that a heading of plain SQL has."""

    def __init__(self, relations: Iterable[_Relation]) -> None:
        self.all = tuple(relations)
        self._exact = {(r.schema, r.name): r for r in self.all}
        self._headed: dict[tuple[str, str], list[_Relation]] = {}
        for relation in self.all:
            key = (definitions.headed(relation.schema), definitions.headed(relation.name))
            self._headed.setdefault(key, []).append(relation)

    def find(self, schema: str, name: str, *, headed: bool = False) -> _Relation | None:
        if headed and len(alike := self._headed.get((schema, name), [])) == 1:
            return alike[0]
        return self._exact.get((schema, name))


@dataclass(frozen=True)
class _Rows:
    """One table's rows in the dump: whose they are, and the columns they have, None if that is not said."""

    item: Item
    schema: str
    name: str
    columns: tuple[str, ...] | None

    @property
    def shown(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass
class _Choice:
    """What of the backup goes where, and what stands in its way."""

    tables: dict[int, _Rows]
    sequences: set[int]
    wanted: set[tuple[str, str, str]]
    problems: list[str]


def plan(session: Session, items: Sequence[Item], tables: Mapping[str, int] | None) -> tuple[Part, tuple[str, ...]]:
    """Return how the rows of the backup's tables become those of *items*, and what is left alone.

    *tables* are the rows recorded, where they are. Raises Failed where the rows do not fit the tables there are, or
    this user may not replace them; Refused where there are none.
    """
    found = catalog.answer(session, _RELATIONS)
    present = _Present(_Relation(**relation) for relation in found["relations"])
    choice = _choose(items, present)
    if not choice.tables and not choice.problems:
        raise Refused("The backup has no rows for --data-only to restore.", hint="inv db.restore without --data-only")
    question = _STATE.format(
        tables=_oids(choice.tables), sequences=_oids(choice.sequences), room=emptying.ROOM_FOR_LOCKS
    )
    relied_on = premise.ask(session, question)
    state = relied_on.answer
    _refuse(choice.problems + list(_obstacles(state, choice)))
    _refuse_too_many(state)
    wanted = frozenset(choice.wanted)
    counted = frozenset(t["shown"] for t in state["tables"] if t["chosen"])
    places = [t["place"] for t in state["tables"]]
    part = Part(
        wanted=lambda item: (item.kind, item.schema, item.name) in wanted,
        before=relied_on.hold(places) + _said(_aside(state)),
        after=_after(state, tables or {}),
        counted=counted,
        replaced=tuple(places),
    )
    return part, _left_alone(present, choice, items, found["large_objects"])


def _oids(oids: Iterable[int]) -> str:
    return "'{" + ",".join(map(str, sorted(oids))) + "}'"


def _choose(items: Sequence[Item], present: _Present) -> _Choice:
    choice = _Choice({}, set(), set(), [])
    for rows in (_rows(item) for item in items if item.kind == "TABLE DATA"):
        if rows.name in catalog.LEDGERS:
            continue
        table = present.find(rows.schema, rows.name, headed=rows.columns is None and not rows.item.id)
        if table and (table.foreign or table.kind == "f"):
            continue
        if table is None or table.kind != "r":
            choice.problems.append(f"{rows.shown} is {_KINDS[table.kind] + ' now' if table else 'gone'}")
            continue
        choice.tables[table.oid] = rows
        choice.wanted.add(_key(rows.item))
    for item in items:
        if item.kind == "SEQUENCE SET":
            _choose_sequence(choice, item, present.find(item.schema, item.name, headed=not item.id))
    return choice


def _choose_sequence(choice: _Choice, item: Item, sequence: _Relation | None) -> None:
    if sequence is None and _of_a_ledger(item):
        return
    if sequence is None or sequence.kind != "S":
        choice.problems.append(f"the sequence {item.table} is gone")
    elif not sequence.foreign and (sequence.owner is None or sequence.owner in choice.tables):
        choice.sequences.add(sequence.oid)
        choice.wanted.add(_key(item))


def _key(item: Item) -> tuple[str, str, str]:
    return item.kind, item.schema, item.name


def _of_a_ledger(item: Item) -> bool:
    """Whether a sequence that is gone was probably a ledger's: whose one that is there is, the database says."""
    return any(item.name.startswith(f"{ledger}_") for ledger in catalog.LEDGERS)


def _rows(item: Item) -> _Rows:
    """Return whose rows an item holds: in plain SQL only the COPY statement has the name as it is."""
    copy = definitions.copied(item.copy)
    if copy is None:
        return _Rows(item, item.schema, item.name, None)
    schema, name, columns = copy
    # Rows on their way through a partitioned table are the partition's all the same.
    if item.name not in (name, definitions.headed(name)):
        return _Rows(item, item.schema, item.name, columns)
    return _Rows(item, schema or item.schema, name, columns)


def _obstacles(state: Any, choice: _Choice) -> Iterator[str]:
    for table in state["tables"]:
        if not table["owned"]:
            yield f"{table['shown']} is not this user's own"
        elif table["chosen"] and not table["writable"]:
            yield f"this user may not write to {table['shown']}"
        if table["chosen"]:
            yield from _misfits(table, choice.tables[table["oid"]].columns)
    for outside, table in state["outside"]:
        yield f"{outside}, which stays as it is, has a foreign key to {table}"
    yield from (f"the sequence {s['shown']} is not this user's own" for s in state["sequences"] if not s["owned"])
    yield from (
        f"the materialized view {v['shown']} is not this user's to refresh"
        for v in state["views"]
        if v["filled"] and not v["ours"]
    )


def _misfits(table: Any, columns: tuple[str, ...] | None) -> Iterator[str]:
    if columns is None:
        return
    present = table["columns"]
    # Without a list COPY expects every column there is.
    gained = [name for name, needed in present.items() if name not in columns and (needed or not columns)]
    if gone := [name for name in columns if name not in present]:
        yield f"{table['shown']} has no column {', '.join(gone)} to fill"
    if gained:
        yield f"{table['shown']} now has {', '.join(gained)}, which cannot be empty and has no default"


def _refuse(problems: Sequence[str]) -> None:
    if not problems:
        return
    named = "; ".join(problems[:_NAMED_AT_MOST])
    more = f"; and {len(problems) - _NAMED_AT_MOST} more" if len(problems) > _NAMED_AT_MOST else ""
    raise Failed(
        f"The backup's rows alone cannot be restored here: {named}{more}.",
        hint="inv db.restore without --data-only brings the backup's own tables back",
    )


def _refuse_too_many(state: Any) -> None:
    if state["locks"] > state["room"]:
        raise Refused(
            f"The rows of {len(state['tables']):,} tables cannot be replaced in one transaction: that takes about "
            f"{state['locks']:,} locks, the server has room for {state['room']:,}.",
            hint="raise max_locks_per_transaction on the server, or inv db.restore without --data-only",
        )


def _aside(state: Any) -> Iterator[str]:
    """Yield what moves triggers, rules, policies and keys aside and empties the tables."""
    for table in state["tables"]:
        alter = f"alter table only {table['place']}"
        yield from (f"{alter} disable trigger {identifier(name)}" for name, _ in table["triggers"])
        yield from (f"{alter} disable rule {identifier(name)}" for name, _ in table["rules"])
        if table["forced"]:
            yield f"{alter} no force row level security"
    yield from (f"{_altering(key)} deferrable initially deferred" for key in state["keys"])
    yield from (f"alter table {k['place']} drop constraint {identifier(k['name'])}" for k in state["unproven"])
    # setval() outlives a rollback, unless the sequence has been given a new file in the same transaction.
    yield from (f"alter sequence {s['place']} restart" for s in state["sequences"])
    if emptied := ", ".join(_emptied(state["tables"])):
        yield f"truncate table {emptied}"


def _emptied(tables: Any) -> Iterator[str]:
    """Yield what TRUNCATE takes: a partitioned table that points into the others has to be named as a whole."""
    for table in tables:
        if table["chosen"]:
            yield f"only {table['place']}"
        elif table["points"]:
            yield table["place"]


def _altering(key: Any) -> str:
    return f"alter table {key['place']} alter constraint {identifier(key['name'])}"


def _after(state: Any, rows: Mapping[str, int]) -> str:
    # A key whose check is still to come keeps its table from being altered.
    statements = ["set client_encoding to 'UTF8'", "set constraints all immediate"]
    for key in state["keys"]:
        word = "deferrable" if key["deferrable"] else "not deferrable"
        statements.append(f"{_altering(key)} {word} initially immediate")
    for key in state["unproven"]:
        name = identifier(key["name"])
        statements.append(f"alter table {key['place']} add constraint {name} {key['definition']}")
        if key["comment"] is not None:
            statements.append(f"comment on constraint {name} on {key['place']} is {literal(key['comment'])}")
    end = [s for table in state["tables"] for s in _as_it_was(table)]
    end += [f"refresh materialized view {place}" for place in _filled_views(state["views"])]
    # Forced row-level security hides rows from their owner too: what is to be counted is counted before.
    forced = {t["shown"]: rows[t["shown"]] for t in state["tables"] if t["forced"] and t["shown"] in rows}
    return _said(statements) + (catalog.check_rows(forced) if forced else "") + _said(end)


def _said(statements: Iterable[str]) -> str:
    return "".join(f"{statement};\n" for statement in statements)


def _as_it_was(table: Any) -> Iterator[str]:
    alter = f"alter table only {table['place']}"
    if table["forced"]:
        yield f"{alter} force row level security"
    yield from (f"{alter} {_ENABLE[state]} trigger {identifier(name)}" for name, state in table["triggers"])
    yield from (f"{alter} {_ENABLE[state]} rule {identifier(name)}" for name, state in table["rules"])


def _filled_views(views: Any) -> Iterator[str]:
    """Yield the materialized views that hold something, each after those it reads."""
    by_oid = {v["oid"]: v for v in views}
    for oid in TopologicalSorter({oid: v["reads"] for oid, v in by_oid.items()}).static_order():
        if oid in by_oid and by_oid[oid]["filled"]:
            yield by_oid[oid]["place"]


def _left_alone(present: _Present, choice: _Choice, items: Sequence[Item], large_objects: bool) -> tuple[str, ...]:
    tables = sorted(r.shown for r in present.all if r.kind == "r" and not r.foreign and r.oid not in choice.tables)
    large = large_objects or any(item.kind in ("BLOB", "BLOBS", "BLOB METADATA") for item in items)
    return (*tables, _LARGE_OBJECTS) if large else tuple(tables)

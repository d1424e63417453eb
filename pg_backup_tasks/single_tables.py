"""Some tables of a backup with all that is their own, in the place of those that are there."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from . import definitions, premise
from .errors import Failed, Refused
from .loading import Part
from .machine import Session
from .model import Item
from .postgres import identifier, literal
from .units import listed

_TABLES = ("TABLE", "FOREIGN TABLE")
# Their definition says of which table they are; what they need may be others' too.
_NAMING_THEIR_TABLE = frozenset(
    {
        "DEFAULT",
        "CONSTRAINT",
        "CHECK CONSTRAINT",
        "FK CONSTRAINT",
        "INDEX",
        "TRIGGER",
        "RULE",
        "POLICY",
        "ROW SECURITY",
        "SEQUENCE",
        "SEQUENCE OWNED BY",
    }
)
# They need one thing, or things that belong together.
_BELONGING = frozenset(
    {
        "TABLE DATA",
        "SEQUENCE SET",
        "STATISTICS",
        "STATISTICS DATA",
        "COMMENT",
        "ACL",
        "SECURITY LABEL",
        "INDEX ATTACH",
        "TABLE ATTACH",
    }
)
_FUNCTIONS = ("FUNCTION", "PROCEDURE", "AGGREGATE")
_CATALOGS = {
    "SCHEMA": "schema",
    "TABLE": "relation",
    "FOREIGN TABLE": "relation",
    "VIEW": "relation",
    "MATERIALIZED VIEW": "relation",
    "SEQUENCE": "relation",
    "TYPE": "type",
    "DOMAIN": "type",
    "EXTENSION": "extension",
    **dict.fromkeys(_FUNCTIONS, "function"),
}
# What goes with a table unasked is its own; what would keep it from going depends on it.
_STATE = """
with recursive tables as (
  select c.*, n.nspname, format('%I.%I', n.nspname, c.relname) as place, n.nspname || '.' || c.relname as shown
  from json_array_elements({tables}) w
    join pg_namespace n on n.nspname = w.value ->> 0
    join pg_class c on c.relnamespace = n.oid and c.relname = w.value ->> 1),
own (class, object) as (
  select 'pg_class'::regclass::oid, oid from tables
  union select d.classid, d.objid
  from own o join pg_depend d on d.refclassid = o.class and d.refobjid = o.object
  where d.deptype in ('a', 'i', 'P', 'S')),
dependents as (
  select distinct d.classid, d.objid, d.objsubid
  from own o join pg_depend d on d.refclassid = o.class and d.refobjid = o.object
  where d.deptype = 'n' and not exists (select from own x where x.class = d.classid and x.object = d.objid))
select json_build_object(
  'tables', (
    select coalesce(json_agg(json_build_object(
      'place', t.place,
      'shown', t.shown,
      'table', t.relkind in ('r', 'p'),
      'partition', t.relispartition,
      'ours', pg_has_role(t.relowner, 'USAGE'),
      'parent', (
        select n.nspname || '.' || p.relname
        from pg_inherits i join pg_class p on p.oid = i.inhparent join pg_namespace n on n.oid = p.relnamespace
        where i.inhrelid = t.oid and p.relkind = 'p' and p.oid not in (select oid from tables)),
      'extension', (
        select x.extname from pg_depend d join pg_extension x on x.oid = d.refobjid
        where d.classid = 'pg_class'::regclass and d.objid = t.oid
          and d.refclassid = 'pg_extension'::regclass and d.deptype = 'e')) order by t.oid), '[]')
    from tables t),
  'dependents', (
    select coalesce(json_agg(s.said order by s.said), '[]')
    from (
      select distinct case when d.classid = 'pg_rewrite'::regclass
          then pg_describe_object('pg_class'::regclass, (select ev_class from pg_rewrite where oid = d.objid), 0)
          else pg_describe_object(d.classid, d.objid, d.objsubid) end as said
      from dependents d
      union
      select 'publication ' || p.pubname
      from own o join pg_publication_rel r on o.class = 'pg_publication_rel'::regclass and r.oid = o.object
        join pg_publication p on p.oid = r.prpubid
      union
      select pg_describe_object(o.class, o.object, 0)
      from own o join pg_class c on o.class = 'pg_class'::regclass and c.oid = o.object
      where c.relispartition and c.relkind in ('r', 'p', 'f') and c.oid not in (select oid from tables)) s),
  'missing', (
    select coalesce(json_agg(w.value order by w.value::text), '[]')
    from json_array_elements({needed}) w
    where case w.value ->> 0
      when 'schema' then not exists (select from pg_namespace where nspname = w.value ->> 3)
      when 'extension' then not exists (select from pg_extension where extname = w.value ->> 3)
      when 'relation' then not exists (
        select from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = w.value ->> 2 and c.relname = w.value ->> 3)
      when 'type' then not exists (
        select from pg_type c join pg_namespace n on n.oid = c.typnamespace
        where n.nspname = w.value ->> 2 and c.typname = w.value ->> 3)
      when 'function' then not exists (
        select from pg_proc c join pg_namespace n on n.oid = c.pronamespace
        where n.nspname = w.value ->> 2 and c.proname = w.value ->> 3) end),
  'closed', (
    select coalesce(json_agg(n.nspname order by n.nspname), '[]')
    from pg_namespace n
    where n.nspname in (select w.value ->> 0 from json_array_elements({tables}) w)
      and not has_schema_privilege(n.oid, 'CREATE')),
  'taken', (
    select coalesce(json_agg(n.nspname || '.' || c.relname order by c.oid), '[]')
    from json_array_elements({made}) w
      join pg_namespace n on n.nspname = w.value ->> 0
      join pg_class c on c.relnamespace = n.oid and c.relname = w.value ->> 1
    where not exists (select from own o where o.class = 'pg_class'::regclass and o.object = c.oid)),
  'grants', (
    select coalesce(json_agg(json_build_object(
      'schema', n.nspname,
      'sequences', d.defaclobjtype = 'S',
      'to', case when a.grantee <> 0 then pg_get_userbyid(a.grantee) end,
      'privilege', a.privilege_type,
      'option', a.is_grantable) order by d.oid, a.grantee, a.privilege_type), '[]')
    from pg_default_acl d left join pg_namespace n on n.oid = d.defaclnamespace, aclexplode(d.defaclacl) a
    where d.defaclrole = (select oid from pg_roles where rolname = current_user) and d.defaclobjtype in ('r', 'S')
      and a.grantee <> d.defaclrole
      and (n.oid is null or n.nspname in (select w.value ->> 0 from json_array_elements({tables}) w))))
"""


@dataclass(frozen=True)
class _Selection:
    """The tables named with their partitions, and all of the backup's items that are theirs."""

    tables: tuple[Item, ...]
    items: tuple[Item, ...]


def chosen(items: Sequence[Item], names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return schema and name of the backup's tables that *names* mean, their partitions with them.

    Raises Refused where a name is not in the backup or not of one table only.
    """
    return tuple((table.schema, table.name) for table in _select(items, names).tables)


def plan(
    session: Session, items: Sequence[Item], names: Sequence[str], dropped: Sequence[tuple[str, str]] = ()
) -> Part:
    """Return how the tables *names* (`schema.table` or `table`) become what they are in the backup.

    The tables *dropped* (schema and name), which are not in it, go. Raises Refused where a name is not in the backup or
    not of one table only, something else depends on one of them, or *items* are those of plain SQL; Failed where
    something they need is missing or not this user's.
    """
    if not any(item.id for item in items):
        raise Refused("Single tables can be taken out of an archive only, and this is plain SQL.")
    selection = _select(items, names)
    found = premise.ask(session, _question(items, selection, dropped))
    state = found.answer
    _refuse(state)
    places = [t["place"] for t in state["tables"]]
    ids = frozenset(item.id for item in selection.items)
    drop = f"drop table {', '.join(places)};\n" if places else ""
    return Part(
        wanted=lambda item: item.id in ids,
        before=found.hold(places) + drop + _default_grants(state["grants"], "revoke"),
        after="set client_encoding to 'UTF8';\n" + _default_grants(state["grants"], "grant"),
        counted=frozenset(item.table for item in selection.items if item.kind == "TABLE DATA"),
        replaced=tuple(places),
    )


def _select(items: Sequence[Item], names: Sequence[str]) -> _Selection:
    candidates = [item for item in items if item.kind == "TABLE"]
    tables = {table.id: table for table in (_find(candidates, name) for name in names)}
    for attached in _attached(items, tables):
        tables[attached.id] = attached
    _refuse_partitions(items, tables)
    return _Selection(tuple(tables.values()), tuple(_own(items, tables)))


def _find(tables: Sequence[Item], name: str) -> Item:
    """Return the one table of the backup that *name* means."""
    found = [t for t in tables if name in (t.table, f"{identifier(t.schema)}.{identifier(t.name)}")]
    found = found or [t for t in tables if name in (t.name, identifier(t.name))]
    if len(found) == 1:
        return found[0]
    if found:
        named = ", ".join(t.table for t in found)
        raise Refused(f"The table {name} is not the only one of that name: {named}.", hint=f"--table {found[0].table}")
    whole = [t.table for t in tables]
    near = difflib.get_close_matches(name, [*whole, *(t.name for t in tables)], n=1)
    raise Refused(f"The backup has no table {name}.", hint=f"--table {near[0]}" if near else None)


def _attachments(items: Sequence[Item]) -> Iterator[tuple[Item, int]]:
    """Yield the backup's partitions, each with the id of what it is a part of."""
    by_name = {(item.schema, item.name): item for item in items if item.kind in _TABLES}
    for item in items:
        if item.kind == "TABLE ATTACH" and (partition := by_name.get((item.schema, item.name))):
            yield from ((partition, parent) for parent in item.needs - {partition.id})


def _attached(items: Sequence[Item], tables: dict[int, Item]) -> Iterator[Item]:
    """Yield the partitions of *tables*, and theirs."""
    partitions: dict[int, list[Item]] = {}
    for partition, parent in _attachments(items):
        partitions.setdefault(parent, []).append(partition)
    waiting = list(tables)
    while waiting:
        found = partitions.get(waiting.pop(), [])
        yield from found
        waiting += [partition.id for partition in found]


def _refuse_partitions(items: Sequence[Item], tables: dict[int, Item]) -> None:
    by_id = {item.id: item for item in items}
    for partition, parent in _attachments(items):
        if partition.id in tables and parent not in tables and parent in by_id:
            raise Refused(
                f"{partition.table} is a partition of {by_id[parent].table} in the backup.",
                hint=f"--table {by_id[parent].table} brings all its partitions",
            )


def _own(items: Sequence[Item], tables: dict[int, Item]) -> Iterator[Item]:
    """Yield what belongs to *tables*, themselves included."""
    by_id = {item.id: item for item in items}
    names = {(t.schema, t.name) for t in tables.values()}
    own = dict(tables)
    for item in items:
        if item.kind in _NAMING_THEIR_TABLE and definitions.subject(item.definition) in names:
            own[item.id] = item
            if item.kind == "SEQUENCE OWNED BY":
                own |= {id_: by_id[id_] for id_ in item.needs if id_ in by_id}
    rest = [item for item in items if item.kind in _BELONGING]
    # What is said of a comment's object, or of an index's statistics, may come before that itself has been found.
    while found := {item.id: item for item in rest if item.id not in own and not item.needs.isdisjoint(own)}:
        own |= found
    yield from own.values()


def _question(items: Sequence[Item], selection: _Selection, dropped: Sequence[tuple[str, str]]) -> str:
    own = {item.id for item in selection.items}
    needs = frozenset[int]().union(*(item.needs for item in selection.items)) - own
    made = [item for item in selection.items if item.kind in ("SEQUENCE", "INDEX")]
    return _STATE.format(
        tables=_document([*([t.schema, t.name] for t in selection.tables), *dropped]),
        needed=_document([_needed(item) for item in items if item.id in needs and item.kind in _CATALOGS]),
        made=_document([[item.schema, item.name] for item in made]),
    )


def _document(value: object) -> str:
    return literal(json.dumps(value, ensure_ascii=False))


def _needed(item: Item) -> list[str]:
    name = item.name
    # A function's name stands before its arguments, quoted where it has to be.
    if item.kind in _FUNCTIONS and (match := re.match(r'("(?:[^"]|"")*"|[^(]*)\(', name)):
        name = definitions.unquoted(match[1])
    return [_CATALOGS[item.kind], item.kind.lower(), item.schema, name]


def _refuse(state: Any) -> None:
    for table in state["tables"]:
        if not table["table"]:
            raise Refused(f"{table['shown']} is no table in this database.")
        if table["parent"]:
            raise Refused(f"{table['shown']} is a partition of {table['parent']} in this database.")
        if table["extension"]:
            raise Refused(f"{table['shown']} belongs to the extension {table['extension']}.")
    if dependents := state["dependents"]:
        raise Refused(
            f"Others than the tables to be replaced depend on them: {listed(dependents)}.",
            hint="name tables that depend on each other together, or drop what is named here and make it again",
        )
    if taken := state["taken"]:
        raise Refused(f"The tables need a name that something else has in this database: {listed(taken)}.")
    if missing := state["missing"]:
        named = [f"the {kind} {f'{schema}.' if schema else ''}{name}" for _, kind, schema, name in missing]
        raise Failed(f"The tables need what this database lacks: {listed(named)}.", hint="restore all of the backup")
    if foreign := [t["shown"] for t in state["tables"] if not t["ours"]]:
        raise Failed(f"This user does not own {listed(foreign)}.", hint="connect as the owner")
    if state["closed"]:
        raise Failed(f"This user may not make a table in the schema {listed(state['closed'])}.")


def _default_grants(grants: Any, verb: str) -> str:
    """Return SQL that takes from new tables what everyone is granted on such, or gives it again.

    A dump's grants are told from those that a table has where nothing is granted by default.
    """
    statements = []
    for grant in grants:
        where = f" in schema {identifier(grant['schema'])}" if grant["schema"] else ""
        what = f"{grant['privilege']} on {'sequences' if grant['sequences'] else 'tables'}"
        who = identifier(grant["to"]) if grant["to"] else "public"
        whom = f"to {who}{' with grant option' if grant['option'] else ''}" if verb == "grant" else f"from {who}"
        statements.append(f"alter default privileges{where} {verb} {what} {whom};\n")
    return "".join(statements)

"""Emptying a database within a transaction, as SQL: what goes, what stays, what stands in the way. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .definitions import headed
from .model import Item
from .postgres import identifier, literal

# What is there. To be free is to be this user's to drop and to make again: a plain owner cannot make what is hard.
# What is inside (a schema; large objects count as such) must go; what is beside and not free stays.
_THERE = """
with roles as materialized (
  select oid, rolname, pg_has_role(oid, 'USAGE') and pg_has_role(oid,
    case when current_setting('server_version_num')::int >= 160000 then 'SET' else 'MEMBER' end) as mine
  from pg_roles),
boss as materialized (select rolsuper as super from pg_roles where rolname = current_user),
own_spaces as materialized (
  select oid from pg_namespace where nspname <> 'information_schema' and nspname not like 'pg\\_%'),
inside (class, oid, owner, space, hard) as (
  select 'pg_class'::regclass::oid, oid, relowner, relnamespace, false
    from pg_class where relkind in ('r', 'p', 'v', 'm', 'f', 'S')
  union all select 'pg_proc'::regclass, p.oid, proowner, pronamespace,
      prokind <> 'a' and (proleakproof or not lanpltrusted) from pg_proc p join pg_language l on l.oid = prolang
  union all select 'pg_type'::regclass, oid, typowner, typnamespace, typtype in ('b', 'p') from pg_type
  union all select 'pg_operator'::regclass, oid, oprowner, oprnamespace, false from pg_operator
  union all select 'pg_opclass'::regclass, oid, opcowner, opcnamespace, true from pg_opclass
  union all select 'pg_opfamily'::regclass, oid, opfowner, opfnamespace, true from pg_opfamily
  union all select 'pg_collation'::regclass, oid, collowner, collnamespace, false from pg_collation
  union all select 'pg_conversion'::regclass, oid, conowner, connamespace, false from pg_conversion
  union all select 'pg_ts_config'::regclass, oid, cfgowner, cfgnamespace, false from pg_ts_config
  union all select 'pg_ts_dict'::regclass, oid, dictowner, dictnamespace, false from pg_ts_dict
  union all select 'pg_ts_parser'::regclass, oid, null, prsnamespace, true from pg_ts_parser
  union all select 'pg_ts_template'::regclass, oid, null, tmplnamespace, true from pg_ts_template
  union all select 'pg_statistic_ext'::regclass, oid, stxowner, stxnamespace, false from pg_statistic_ext
  union all select 'pg_largeobject'::regclass, oid, lomowner, null, false from pg_largeobject_metadata),
beside (class, oid, owner, hard) as (
  select 'pg_event_trigger'::regclass::oid, oid, evtowner, true from pg_event_trigger
  union all select 'pg_publication'::regclass, p.oid, pubowner, puballtables or exists (
      select from pg_depend where refclassid = 'pg_publication'::regclass and refobjid = p.oid
        and classid = to_regclass('pg_catalog.pg_publication_namespace')) from pg_publication p
  union all select 'pg_language'::regclass, oid, lanowner, true from pg_language
  union all select 'pg_foreign_data_wrapper'::regclass, oid, fdwowner, true from pg_foreign_data_wrapper
  union all select 'pg_foreign_server'::regclass, oid, srvowner, false from pg_foreign_server
  union all select 'pg_am'::regclass, oid, null, true from pg_am
  union all select 'pg_subscription'::regclass, s.oid, null, false
    from pg_subscription s join pg_database d on d.oid = subdbid and datname = current_database()
  union all select 'pg_cast'::regclass, c.oid, (
      select typowner from pg_type t join roles r on r.oid = typowner
      where t.oid in (castsource, casttarget) order by mine desc limit 1), castmethod = 'b' from pg_cast c
  union all select 'pg_transform'::regclass, t.oid, typowner, false
    from pg_transform t join pg_type y on y.oid = trftype),
users as materialized (
  select t.*, (coalesce(r.mine, false) or super) and (super or not hard)
    -- It cannot be dropped within a transaction.
    and class <> 'pg_subscription'::regclass as free, super or not hard as makeable
  from (
    select class, oid, owner, true as within, hard from inside
      where space is null or space in (select oid from own_spaces)
    union all select class, oid, owner, false, hard from beside) t
  left join roles r on r.oid = t.owner, boss
  -- Large objects may have any number; what came with the server has low ones.
  where (t.oid >= 16384 or class = 'pg_largeobject'::regclass) and not exists (
    select from pg_depend d where d.classid = class and d.objid = t.oid and deptype in ('e', 'i') and objsubid = 0)),
extensions as materialized (
  select e.oid, extname, extowner, extnamespace, r.mine, extname = any ({wanted}) as wanted,
    extname = any ({wanted}) or not r.mine as stays
  from pg_extension e join roles r on r.oid = extowner),
members as materialized (
  select classid as class, objid as oid from pg_depend d join extensions e on e.oid = d.refobjid
  where d.refclassid = 'pg_extension'::regclass and deptype = 'e' and stays),
homes as materialized (
  select extnamespace as oid from extensions where stays
  union select space from inside where (class, oid) in (select class, oid from members)),
spaces as materialized (
  select n.oid, nspname, nspowner, nspacl, r.mine,
    nspname = 'public' or not r.mine or n.oid in (select oid from homes) as stays
  from pg_namespace n join roles r on r.oid = nspowner
  where n.oid in (select oid from own_spaces) and (n.oid >= 16384 or nspname = 'public')
    and ('pg_namespace'::regclass::oid, n.oid) not in (
      select classid, objid from pg_depend where classid = 'pg_namespace'::regclass and deptype = 'e')),
going as materialized (
  select class, oid from users where free
  union all select 'pg_namespace'::regclass, oid from spaces where not stays
  union all select 'pg_extension'::regclass, oid from extensions where not stays),
staying as materialized (
  select class, oid, owner, false as mine from users where not free and not within
  union all select 'pg_namespace'::regclass, oid, nspowner, mine from spaces
    where stays and not (mine and nspname = 'public')
  union all select 'pg_extension'::regclass, oid, extowner, mine from extensions where stays
  union all select 'pg_user_mapping'::regclass, umid, null, false from pg_user_mappings
    join users u on u.class = 'pg_foreign_server'::regclass and u.oid = srvid where not free
  union all select 'pg_default_acl'::regclass, a.oid, defaclrole, false
    from pg_default_acl a join roles r on r.oid = defaclrole where not mine
  -- The tables and schemas of a publication.
  union all select classid, objid, owner, false from pg_depend d join users u on u.class = refclassid
    and u.oid = refobjid where refclassid = 'pg_publication'::regclass and deptype = 'a' and not free),
-- Rows of an extension's that are in the dump.
configured as materialized (
  select c.oid, n.nspname, c.relname, trim(coalesce(extcondition[place], '')) as condition,
    has_table_privilege(c.oid, 'DELETE') and has_table_privilege(c.oid, 'INSERT')
      and has_schema_privilege(n.oid, 'USAGE') as writable
  from pg_extension e, unnest(extconfig) with ordinality u(config, place), pg_class c, pg_namespace n
  where c.oid = config and n.oid = relnamespace and relkind in ('r', 'p')
    and e.oid in (select oid from extensions where stays)),
obstacles as materialized (
  select 1 as rank, format('%s %s %s', i.type, i.identity, case when makeable
    then 'belongs to ' || pg_get_userbyid(owner) else 'can be made again by a superuser only' end) as what
  from users u, pg_identify_object(class, u.oid, 0) i where within and not free
  union select 2, format('%s %s uses %s %s', i.type, i.identity, j.type, j.identity)
  from (select class, oid from staying union select class, oid from members) s
  join pg_depend d on d.classid = s.class and d.objid = s.oid and d.objsubid = 0 and deptype in ('n', 'a')
  join going g on g.class = d.refclassid and g.oid = d.refobjid,
    pg_identify_object(s.class, s.oid, 0) i, pg_identify_object(g.class, g.oid, 0) j
  union select 3, format('subscription %I writes into tables here', subname)
  from pg_subscription s where s.oid in (select srsubid from pg_subscription_rel)
  union select 4, format('extension %I is gone and this user may not create it', v.name)
  from pg_available_extensions a join pg_available_extension_versions v
    on v.name = a.name and v.version = a.default_version, boss
  where a.name = any ({wanted}) and a.name not in (select extname from pg_extension) and superuser
    and not super and not (trusted and has_database_privilege(current_database(), 'CREATE')))
"""
_SURVEY = """
select json_build_object(
  'obstacles', (select coalesce(json_agg(what order by rank, what), '[]') from obstacles),
  'kept', (select coalesce(json_agg(k order by kind, name, schema, owner), '[]') from (
    select kind, coalesce(quoted, names[1]) as quoted, pg_get_userbyid(owner) as owner, mine,
      case when class = 'pg_default_acl'::regclass
        then coalesce((select nspname from pg_namespace n join pg_default_acl a on n.oid = defaclnamespace
          where a.oid = s.oid), '-')
        else '-' end as schema,
      case kind
        when 'CAST' then 'CAST ' || replace(quoted, 'pg_catalog.', '')
        when 'TRANSFORM' then regexp_replace(replace(quoted, 'pg_catalog.', ''),
          '^for (.*) language (.*)$', 'TRANSFORM FOR \\1 LANGUAGE \\2')
        when 'USER MAPPING' then (
          select format('USER MAPPING %s SERVER %s', usename, srvname) from pg_user_mappings where umid = s.oid)
        when 'DEFAULT ACL' then 'DEFAULT PRIVILEGES FOR ' || (
          select case defaclobjtype when 'r' then 'TABLES' when 'S' then 'SEQUENCES' when 'f' then 'FUNCTIONS'
            when 'T' then 'TYPES' when 'n' then 'SCHEMAS' else 'LARGE OBJECTS' end
          from pg_default_acl where oid = s.oid)
        else names[1] end as name
    from staying s, pg_identify_object_as_address(class, oid, 0) a(type1, names, arguments),
      pg_identify_object(class, oid, 0) i(type0, schema0, name0, quoted), ({kinds}) k(of, kind)
    where k.of = class::regclass::text
    union all select 'TABLE DATA', format('%I', relname), null, false, nspname, relname
    from configured where not writable) k))
"""
# As the headings of a dump call them.
_KINDS = {
    "pg_event_trigger": "EVENT TRIGGER",
    "pg_publication": "PUBLICATION",
    "pg_language": "PROCEDURAL LANGUAGE",
    "pg_foreign_data_wrapper": "FOREIGN DATA WRAPPER",
    "pg_foreign_server": "SERVER",
    "pg_user_mapping": "USER MAPPING",
    "pg_am": "ACCESS METHOD",
    "pg_cast": "CAST",
    "pg_transform": "TRANSFORM",
    "pg_subscription": "SUBSCRIPTION",
    "pg_extension": "EXTENSION",
    "pg_namespace": "SCHEMA",
    "pg_default_acl": "DEFAULT ACL",
}
# Each of these answers with the commands to run, in their order.
_DROPS = """
select array_agg(case when class = 'pg_largeobject'::regclass then format('select lo_unlink(%s)', g.oid)
  else 'drop ' || replace(case when type in ('function', 'procedure', 'aggregate') then 'routine'
    else replace(type, 'statistics object', 'statistics') end, '-', ' ') || ' if exists ' || identity
    -- By now it must be empty.
    || case when type = 'schema' then ' restrict' else ' cascade' end end
  order by case class::regclass::text when 'pg_event_trigger' then 1 when 'pg_publication' then 2
    when 'pg_extension' then 3 when 'pg_class' then 4 when 'pg_namespace' then 9 else 5 end,
    type = 'sequence', type, identity)
from going g, pg_identify_object(class, oid, 0)
"""
_SCHEMAS = """,
ours as materialized (
  select oid, nspacl, quote_ident(nspname) as name, nspname = 'public' as standard,
    -- Before 15 the schema public belonged to the server's first superuser.
    case when nspname <> 'public' then quote_ident(pg_get_userbyid(nspowner))
      when to_regrole('pg_database_owner') is not null and current_setting('server_version_num')::int >= 150000
        then 'pg_database_owner'
      else (select quote_ident(rolname) from roles where mine and oid in (10, nspowner) order by oid limit 1)
    end as owner
  from spaces where stays and mine)
select array_agg(command order by rank) from (
  select 1 as rank, format('comment on schema %s is %s', name,
    case when standard then '''standard public schema''' else 'null' end) as command from ours
  union all select 2, format('alter schema %s owner to %s', name, owner) from ours where standard
  union all select distinct 3, format('revoke all on schema %s from %s cascade', name,
      case grantee when 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end)
    from ours, aclexplode(nspacl)
  union all select 4, format('revoke all on schema %s from %s cascade', name, owner) from ours
  union all select 5, format('grant all on schema %s to %s', name, owner) from ours
  union all select 6, format('grant %s on schema public to public',
      case when owner = 'pg_database_owner' then 'usage' else 'all' end) from ours where standard) c
"""
_DEFAULTS = """,
ours as materialized (
  select a.oid, defaclacl, defaclobjtype as letter, defaclnamespace = 0 as everywhere,
    format('alter default privileges for role %I', rolname)
      || coalesce(' in schema ' || quote_ident(nspname), '') as start,
    case defaclobjtype when 'r' then 'tables' when 'S' then 'sequences' when 'f' then 'routines'
      when 'T' then 'types' when 'n' then 'schemas' else 'large objects' end as things, quote_ident(rolname) as owner
  from pg_default_acl a join roles r on r.oid = defaclrole left join pg_namespace n on n.oid = defaclnamespace
  where mine)
select array_agg(command order by rank) from (
  select distinct 1 as rank, format('%s revoke all on %s from %s', start, things,
      case grantee when 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end) as command
    from ours, aclexplode(defaclacl)
  union all select 2, format('%s grant all on %s to %s', start, things, owner) from ours where everywhere
  union all select 3, format('%s grant all on %s to public', start, things)
    from ours where everywhere and letter in ('f', 'T')) c
"""
# What came with the server or with an extension has its grants in a dump where they are not its first ones.
_GRANTS = """,
grantable (class, oid, owner, acl, first, kind) as (
  select 'pg_class'::regclass::oid, oid, relowner, relacl,
      acldefault(case relkind when 'S' then 's' else 'r' end::"char", relowner),
      case relkind when 'S' then 'sequence' else 'table' end
    from pg_class where relkind in ('r', 'p', 'v', 'm', 'f', 'S')
  union all select 'pg_proc'::regclass, oid, proowner, proacl, acldefault('f', proowner), 'routine' from pg_proc
  union all select 'pg_type'::regclass, oid, typowner, typacl, acldefault('T', typowner), 'type' from pg_type
  union all select 'pg_namespace'::regclass, oid, nspowner, nspacl, acldefault('n', nspowner), 'schema'
    from pg_namespace where nspname <> 'public'
  union all select 'pg_language'::regclass, oid, lanowner, lanacl, acldefault('l', lanowner), 'language'
    from pg_language
  union all select 'pg_foreign_data_wrapper'::regclass, oid, fdwowner, fdwacl, acldefault('F', fdwowner),
      'foreign data wrapper' from pg_foreign_data_wrapper),
columns (class, oid, place, acl) as (
  select 'pg_class'::regclass::oid, attrelid, attnum, attacl from pg_attribute where attacl is not null),
privileges as materialized (
  select g.class, g.oid, kind, coalesce(i.initprivs, first) as first, coalesce(acl, first)
      || coalesce((select array_agg(e) from columns c, unnest(c.acl) e where c.oid = g.oid and c.class = g.class), '{}')
      as acl,
    (select array_agg(e::text order by e::text) from unnest(coalesce(acl, first)) e)
      is distinct from (select array_agg(e::text order by e::text) from unnest(coalesce(i.initprivs, first)) e)
    or exists (select from columns c left join pg_init_privs p
      on p.classoid = c.class and p.objoid = c.oid and p.objsubid = place
      where c.class = g.class and c.oid = g.oid and c.acl::text is distinct from p.initprivs::text)
      as changed
  from grantable g join roles r on r.oid = owner
  left join pg_init_privs i on i.classoid = g.class and i.objoid = g.oid and i.objsubid = 0
  where mine and (g.oid < 16384 or (g.class, g.oid) in (select class, oid from members))
    and (acl is not null or i.initprivs is not null
      or (g.class, g.oid) in (select class, oid from columns))),
changed as materialized (
  select p.*, kind || ' ' || identity as what
  from privileges p, pg_identify_object(class, p.oid, 0) where changed)
select array_agg(command order by rank) from (
  select distinct 1 as rank, format('revoke all on %s from %s cascade', what,
      case grantee when 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end) as command
    from changed, aclexplode(acl || first)
  union all select 2, format('grant %s on %s to %s%s', privilege_type, what,
      case grantee when 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end,
      case when is_grantable then ' with grant option' else '' end)
    from changed, aclexplode(first)
  union all select 3, format('grant %s (%I) on %s to %s%s', privilege_type, attname, what,
      case grantee when 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end,
      case when is_grantable then ' with grant option' else '' end)
    from changed c join pg_init_privs i on classoid = class and objoid = c.oid and objsubid > 0
    join pg_attribute on attrelid = c.oid and attnum = objsubid, aclexplode(initprivs)) c
"""
_EXTENSIONS = """
select array_agg(command) from (
  select format('comment on extension %I is %L', extname, comment) as command
    from extensions join pg_available_extensions on name = extname where stays and mine
  union all select format('drop policy %I on %s', polname, polrelid::regclass)
    from pg_policy join pg_class c on c.oid = polrelid join roles r on r.oid = relowner
    where mine and ('pg_class'::regclass::oid, polrelid) in (select class, oid from members)
  union all select format('delete from %I.%I %s', nspname, relname, condition) from configured where writable) c
"""
# How many locks all transactions have room for together (documented with max_locks_per_transaction).
ROOM_FOR_LOCKS = """current_setting('max_locks_per_transaction')::int
    * (current_setting('max_connections')::int + current_setting('max_prepared_transactions')::int)"""
_LOCKS = f"""
select json_build_object(
  'there', (select count(distinct (classid, objid)) from pg_depend d where objid >= 16384 and deptype <> 'e')
    + (select count(*) from pg_largeobject_metadata),
  'capacity', {ROOM_FOR_LOCKS})
"""
# What making an object takes: a table has a type, and mostly a table and an index for what is long.
_LOCKS_TO_MAKE = {"TABLE": 5, "CONSTRAINT": 2, "INDEX": 2, "VIEW": 2, "MATERIALIZED VIEW": 3, "SEQUENCE": 1, "TYPE": 1}
# One sentence, naming the first few.
_REFUSE = """
select array_agg(what order by rank, what) from obstacles
"""
_STAYING = """
select array_agg(array[class::bigint, oid::bigint]) from (
  select class, oid from staying union select class, oid from members) s
"""
# The names of the catalogs must mean the catalogs, whatever the user's own path.
_BLOCK = """
#variable_conflict use_column
declare
  path text := current_setting('search_path');
  found text[];
  kept bigint[];
  command text;
begin
  perform set_config('search_path', 'pg_catalog, pg_temp', true);
  {steps}
  perform set_config('search_path', path, true);
end
"""
_CHECK = """
  {obstacles} into found;
  if found is not null then
    raise exception using message = 'in the way: ' || array_to_string(found[1:3], '; ')
      || case when cardinality(found) > 3 then format('; and %s more', cardinality(found) - 3) else '' end;
  end if;
  {staying} into kept;
"""
_RUN = """
  {commands} into found;
  foreach command in array coalesce(found, '{{}}') loop
    execute command;
  end loop;
"""
# No cascade may have gone further than was seen beforehand.
_CHECK_KEPT = """
  select array_agg(format('%s %s', kept[i][1]::oid::regclass, kept[i][2])) into found
  from generate_subscripts(kept, 1) i where pg_describe_object(kept[i][1]::oid, kept[i][2]::oid, 0) is null;
  if found is not null then
    raise exception using message = 'something that must stay would go: ' || array_to_string(found[1:3], ', ');
  end if;
  if to_regnamespace('public') is null then
    create schema public;
  end if;
"""
# A migration may have taken along the language in which the rest is written.
LANGUAGE = """set local client_min_messages to 'warning';
select 'create extension plpgsql' where not exists (select from pg_language where lanname = 'plpgsql') \\gexec
"""
# A kind's name in comments, and in grants.
_WORDS = {
    "PROCEDURAL LANGUAGE": ("LANGUAGE", "LANGUAGE"),
    "SERVER": ("SERVER", "FOREIGN SERVER"),
}


@dataclass(frozen=True)
class Kept:
    """One thing that stays, as a dump's headings call it; *quoted* is its name in SQL.

    What is *mine* this user may alter: only what makes it is to be left out of a dump.
    """

    kind: str
    name: str
    quoted: str
    schema: str
    owner: str | None
    mine: bool


@dataclass(frozen=True)
class Survey:
    """What an emptying would meet: sentences on what stands in the way, and what would stay."""

    obstacles: tuple[str, ...]
    kept: tuple[Kept, ...]


@dataclass(frozen=True)
class Locks:
    """How many locks a transaction will need that empties a database and fills it again, and how many there are."""

    needed: int
    capacity: int


def survey(extensions: Iterable[str]) -> str:
    """Return the question, read only, what would stay and what stands in the way; `read_survey` takes its answer.

    *extensions* are the backup's.
    """
    kinds = ", ".join(f"({literal(catalog)}, {literal(kind)})" for catalog, kind in _KINDS.items())
    return _there(extensions) + _SURVEY.replace("{kinds}", f"values {kinds}")


def read_survey(answer: Any) -> Survey:
    """Return what `survey` was answered with."""
    return Survey(tuple(answer["obstacles"]), tuple(Kept(**kept) for kept in answer["kept"]))


def leave_out(kept: Iterable[Kept]) -> Callable[[Item], bool]:
    """Return what tells of each object of a dump whether it must not go where *kept* has stayed."""
    left: set[tuple[str, ...]] = set()
    for k in kept:
        if not k.mine or k.kind == "SCHEMA":
            left.add(_signature(k.kind, k.schema, k.name, k.owner or ""))
        if not k.mine:
            left.update(_about(k))
    return lambda item: _signature(item.kind, item.schema, item.name, item.owner) in left


def owners(kept: Iterable[Kept], items: Iterable[Item]) -> str:
    """Return SQL, for after the emptying, that gives schemas that stay the owners that *items* have for them."""
    schemas = {headed(k.name): k for k in kept if k.kind == "SCHEMA" and k.mine}
    return "".join(
        f"alter schema {schemas[headed(item.name)].quoted} owner to {identifier(item.owner)};\n"
        for item in items
        if item.kind == "SCHEMA" and headed(item.name) in schemas and item.owner
    )


def _signature(kind: str, schema: str, name: str, owner: str) -> tuple[str, ...]:
    # Default privileges are told apart by whose they are; all else may have changed hands.
    of = headed(owner) if kind == "DEFAULT ACL" else ""
    return kind, headed(schema).removeprefix("-"), headed(name), of


def _about(kept: Kept) -> list[tuple[str, ...]]:
    """Return what a dump says beside of a thing that stays: comments, labels and grants."""
    said, granted = _WORDS.get(kept.kind, (kept.kind, kept.kind))
    named = kept.name if kept.kind in ("CAST", "TRANSFORM") else f"{said} {kept.quoted}"
    about = (("COMMENT", named), ("SECURITY LABEL", named), ("ACL", f"{granted} {kept.quoted}"))
    return [_signature(kind, "", name, "") for kind, name in about]


def empty(extensions: Iterable[str]) -> str:
    """Return SQL for psql that empties a database within the transaction that is open, or fails and says why.

    Afterwards it is like a fresh one of template0 but for what `survey` says stays; *extensions* are the backup's.
    """
    there = _there(extensions)
    check = _CHECK.format(obstacles=there + _REFUSE, staying=there + _STAYING)
    steps = check + _run(there + _DROPS) + _CHECK_KEPT
    rest = "".join(_run(there + part) for part in (_SCHEMAS, _DEFAULTS, _GRANTS, _EXTENSIONS))
    return LANGUAGE + "".join(f"do {literal(_BLOCK.format(steps=part))};\n" for part in (steps, rest))


def locks() -> str:
    """Return the cheap question how many locks an emptying and a load need; `read_locks` takes its answer."""
    return _LOCKS


def read_locks(answer: Any, items: Iterable[Item]) -> Locks:
    """Return what `locks` was answered with, where a dump of *items* is to be loaded."""
    there, made = answer["there"], sum(_LOCKS_TO_MAKE.get(item.kind, 0) for item in items)
    # A migration may have left less than there will be; of more there is, no heading tells how much it takes.
    return Locks(there + max(there, made), answer["capacity"])


def _there(extensions: Iterable[str]) -> str:
    names = ", ".join(literal(name) for name in sorted({*extensions, "plpgsql"}))
    return _THERE.replace("{wanted}", f"array[{names}]::name[]")


def _run(commands: str) -> str:
    return _RUN.format(commands=commands)

"""Databases that demand everything of a backup, and what must be the same after a restore."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass

from conftest import Server

READER, WRITER = "nasty_reader", 'Nasty "Writer"'

# Roles belong to the server, not to a database: made once, found by every restore.
ROLES = f"""
do $$ begin create role {READER}; exception when duplicate_object then null; end $$;
do $$ begin create role "{WRITER.replace('"', '""')}"; exception when duplicate_object then null; end $$;
"""

# A setting that the server has never heard of, which only a superuser may give.
UNKNOWN_SETTING = """alter database {name} set "app.tenant" to 'it''s; = "x"';"""

# What a plain owner can make, and therefore restore. Several bodies look like a dump from the inside.
PLAIN = r"""
create extension if not exists hstore;
create extension if not exists citext;
create schema "Bar.Back";
create schema "bär 'n ""grill"" !";
comment on schema "Bar.Back" is E'two\nlines -- and a \\ backslash';

create type "Bar.Back"."Stimmung" as enum ('gut', 'mäßig', 'it''s bad');
create domain positive as int check (value > 0);
create type pair as (a int, b text);

create table "Bar.Back"."Gäste.Liste" (
  id int generated always as identity primary key,
  "Näme ""x"" !" text not null,
  stimmung "Bar.Back"."Stimmung" default 'gut',
  doubled int generated always as (length("Näme ""x"" !") * 2) stored,
  extra jsonb, raw bytea, tags text[], pairs pair[], attributes hstore, mail citext, span int4range);
insert into "Bar.Back"."Gäste.Liste" ("Näme ""x"" !", stimmung, extra, raw, tags, pairs, attributes, mail, span)
  select 'Gast ' || i || E'\n\\.\n\\\\.\tend\r\n', (enum_range(null::"Bar.Back"."Stimmung"))[1 + i % 3],
    jsonb_build_object('i', i, 'q', E'"\n'), decode(md5(i::text), 'hex'),
    array['a', null, E'b"\\', ''], array[row(i, 'x,"y')::pair], hstore('k', i::text), 'A' || i || '@x.de',
    int4range(i, i + 3)
  from generate_series(1, 300) i;

create table texts (id int primary key, t text);
insert into texts values (1, null), (2, ''), (3, '\N'), (4, '\.'), (5, E'\\.\n\\.\n'), (6, E'\r'), (7, E'\r\n'),
  (8, E'\t\v\f\b'), (9, E'-- PostgreSQL database dump complete\n'), (10, 'COPY public.x (id) FROM stdin;'),
  (11, E'--\n-- Data for Name: x; Type: TABLE DATA; Schema: public; Owner: y\n--\n\nCOPY public.x (id) FROM stdin;\n'),
  (12, E'\u00e9\U0001F378\u4e2d'), (13, repeat('long ', 40000)), (14, E'\n\n\n'), (15, 'BEGIN;'), (16, '\');
create table "new line" ("col
umn" int, "it's FROM stdin;" text);
insert into "new line" select i, 'x' from generate_series(1, 5) i;

create table nothing ();
insert into nothing select from generate_series(1, 7);
create table empty (id bigserial primary key, v numeric(12, 3) default 1.5);
create unlogged table volatile (id int);
insert into volatile select generate_series(1, 11);
create sequence untouched;
create sequence "Bar.Back"."Zähler" increment 7 start 100;
select nextval('"Bar.Back"."Zähler"'), nextval('"Bar.Back"."Zähler"');

create table orders (id int, day date not null, guest int, v positive) partition by range (day);
create table orders_2025 partition of orders for values from ('2025-01-01') to ('2026-01-01');
create table orders_2026 partition of orders for values from ('2026-01-01') to ('2027-01-01') partition by list (id);
create table orders_2026_odd partition of orders_2026 for values in (1, 3, 5);
create table orders_rest partition of orders default;
insert into orders values (1, '2025-02-02', 1, 1), (1, '2026-02-02', 2, 2), (3, '2026-03-03', 3, 3),
  (9, '2030-01-01', 4, 4);
create index on orders (day);

create table parent (id int primary key, kind text);
create table child (extra text) inherits (parent);
create table grandchild (more int) inherits (child);
insert into parent values (1, 'p'), (2, 'p');
insert into child values (3, 'c', 'x'), (4, 'c', 'y'), (5, 'c', 'z');
insert into grandchild values (6, 'g', 'x', 1);

create table chicken (id int primary key, egg int);
create table egg (id int primary key, chicken int references chicken deferrable initially deferred);
begin; insert into chicken values (1, 1); insert into egg values (1, 1); commit;
alter table chicken add foreign key (egg) references egg deferrable;

create view loud as select id, upper(t) as t from texts where t <> '';
create view "Bar.Back"."Übersicht" with (security_barrier) as
  select g.id, l.t from "Bar.Back"."Gäste.Liste" g join loud l using (id);
create materialized view filled as select stimmung, count(*) as n from "Bar.Back"."Gäste.Liste" group by 1;
create unique index on filled (stimmung);
create materialized view of_a_view as select count(*) as n from "Bar.Back"."Übersicht";
create materialized view unfilled as select * from texts with no data;

create function looks_like_a_dump() returns text language sql as $f$
SELECT '
COPY public.x (id) FROM stdin;
1
\.

BEGIN;
COMMIT;
--
-- Data for Name: texts; Type: TABLE DATA; Schema: public; Owner: nobody
--

COPY public.texts (id, t) FROM stdin;
SET transaction_timeout = 0;
\restrict abc
\unrestrict abc
\connect postgres
-- PostgreSQL database dump complete
';
$f$;
create function begins() returns int language plpgsql as $$
BEGIN
--
-- Name: BLOBS; Type: BLOBS; Schema: -; Owner: -
--
-- Data for Name: BLOBS; Type: BLOBS; Schema: -; Owner: -

/*
BEGIN;
COMMIT;
*/
GRANT SELECT ON texts TO public;
RETURN 1;
END $$;
create function quoted(a text default E'x\n-- Data for Name: "; Type: TABLE DATA; Schema: s') returns text
  language sql as 'select $1 || ''$$ '' || E''\'' --''';
create procedure settle(inout n int) language plpgsql as $$
begin
  n := n + 1;
  COMMIT;
end $$;
create aggregate total(int) (sfunc = int4pl, stype = int, initcond = '0');
create function stamp() returns trigger language plpgsql as $$
begin new.v := coalesce(new.v, 0) + 1000; return new; end $$;
create trigger stamp before insert on empty for each row execute function stamp();
create trigger stamp_off before update on empty for each row execute function stamp();
alter table empty disable trigger stamp_off;
create rule no_delete as on delete to volatile do instead nothing;
create index shouting on texts (upper(left(t, 20))) where t is not null;
create statistics seen on id, t from texts;
create function same(pair, pair) returns bool language sql as 'select $1.a = $2.a';
create operator === (leftarg = pair, rightarg = pair, procedure = same);
create text search dictionary plain_words (template = simple);
create collation "dé" (provider = libc, locale = 'C');

create table secret (id int, whose text);
insert into secret values (1, 'a'), (2, 'b'), (3, 'c');
alter table secret enable row level security;
create policy own on secret for select to {reader} using (whose = current_user);

comment on table texts is E'--\n-- PostgreSQL database dump complete\n--\n';
comment on column texts.t is 'it''s "quoted"; $$ \';
comment on function begins() is 'COPY public.texts (id, t) FROM stdin;';

grant usage on schema "Bar.Back" to {reader};
grant select on texts, loud to {reader}, {writer};
grant insert, update (t) on texts to {writer} with grant option;
grant usage on sequence "Bar.Back"."Zähler" to {writer};
grant execute on function begins() to {reader};
revoke execute on function quoted(text) from public;
alter default privileges in schema "Bar.Back" grant select on tables to {reader};

select lo_from_bytea(910001, decode(repeat('00ff5c2e0a', 3000), 'hex'));
select lo_from_bytea(910002, ''), lo_from_bytea(910003, '\x5c2e0a0a0a');
grant select on large object 910003 to {reader};
comment on large object 910001 is 'a picture';
"""

# What only a superuser can make.
SUPER = r"""
alter table nothing owner to {writer};
create schema others authorization {reader};
create table others.theirs (id int);
insert into others.theirs values (1);
alter table others.theirs owner to {reader};
alter large object 910001 owner to {reader};
create function watch() returns event_trigger language plpgsql as $$ begin end $$;
create event trigger watched on ddl_command_start when tag in ('DROP TABLE') execute function watch();
create publication everything for all tables;
alter table secret force row level security;
"""

# What a bad migration does, as far as a plain owner may.
CHANGES = r"""
alter table "Bar.Back"."Gäste.Liste" add column "added %s" int default 1, drop column raw,
  alter column tags type text using tags::text;
update "Bar.Back"."Gäste.Liste" set extra = null where id % 2 = 0;
alter type "Bar.Back"."Stimmung" rename value 'gut' to 'sehr gut';
alter type "Bar.Back"."Stimmung" add value 'neu';
alter domain positive drop constraint positive_check;
alter type pair rename attribute b to c;
drop view "Bar.Back"."Übersicht" cascade;
alter table texts rename to words;
alter table words rename column t to u;
create table texts (x int);
comment on table words is null;
comment on schema "Bar.Back" is 'other';
comment on function begins() is 'other';
delete from words where id > 5;
truncate volatile;
drop table chicken cascade;
alter table "new line" alter column "col
umn" type text;
alter table child no inherit parent;
alter table child alter id drop not null;
create table stepchild (id int, kind text) inherits (parent);
alter table orders detach partition orders_2025;
alter table orders attach partition orders_2025 for values from ('2024-01-01') to ('2026-01-01');
alter table orders detach partition orders_2026;
create table orders_2027 partition of orders for values from ('2027-01-01') to ('2028-01-01');
alter table empty enable trigger stamp_off;
alter table empty disable trigger stamp;
create trigger another after insert on empty for each row execute function stamp();
drop policy own on secret;
create policy other on secret using (true);
alter table secret disable row level security;
drop rule no_delete on volatile;
create rule no_update as on update to volatile do instead nothing;
alter sequence untouched increment 5;
alter sequence empty_id_seq restart 4711;
select setval('"Bar.Back"."Zähler"', 7777);
refresh materialized view unfilled;
refresh materialized view filled with no data;
drop statistics seen;
drop operator ===(pair, pair);
drop procedure settle(int);
alter function begins() rename to ends;
create or replace function looks_like_a_dump() returns text language sql as $$ select 'other' $$;
grant execute on function quoted(text) to public;
alter schema "bär 'n ""grill"" !" rename to "renamed";

create schema "new %I
schema";
create table "new %I
schema"."t ""%s"" !" (id serial primary key, other int references parent, again int, kind "Bar.Back"."Stimmung");
create table ring (id int primary key, next int references "new %I
schema"."t ""%s"" !");
alter table "new %I
schema"."t ""%s"" !" add foreign key (again) references ring;
create view over_all as select w.id, r.next from words w, ring r;
create materialized view also as select * from over_all;
create sequence alone;
create function "new ""f"" %s"(a int, variadic b text[]) returns int language sql as 'select 1';
create procedure newproc(inout x int, y text default '%') language sql as 'select 1';
create aggregate nought(*) (sfunc = int8inc, stype = int8, initcond = '0');
create type "an ""enum"" !" as enum ('%');
create type couple as (a pair, b "an ""enum"" !");
create type stretch as range (subtype = float8);
create domain "do main" as couple;
create function as_text(couple) returns text language sql as $$ select 'x' $$;
create cast (couple as text) with function as_text(couple);
create function modulo(int, text) returns int language sql as 'select 1';
create operator %% (leftarg = int, rightarg = text, procedure = modulo);
create collation "new.collation" (provider = libc, locale = 'C');
create text search dictionary other_words (template = simple);
create text search configuration "c o n f" (parser = "default");
create conversion "con %" for 'UTF8' to 'LATIN1' from utf8_to_iso8859_1;
create statistics more on id, u from words;
create index on words (id) where id < 3;
create publication "some %" for table ring, only parent;

revoke all on loud from {reader};
grant all on empty to public;
grant select (id) on words to {writer};
alter default privileges in schema "Bar.Back" revoke select on tables from {reader};
alter default privileges in schema public grant usage on sequences to {writer} with grant option;
alter default privileges grant all on tables to public;
alter default privileges revoke execute on functions from public;
alter default privileges revoke all on types from public, current_user;
alter default privileges grant usage on schemas to {reader};
alter schema public owner to current_user;
grant create on schema public to public;
grant all on schema public to {writer} with grant option;
comment on schema public is 'mine';

drop extension citext cascade;
comment on extension hstore is 'other';
create extension pg_trgm schema "Bar.Back";
create index on words using gin (u "Bar.Back".gin_trgm_ops);

select lo_unlink(910002), lo_put(910003, 0, 'changed'), lo_from_bytea(910009, 'new');
revoke all on large object 910003 from {reader};
comment on large object 910003 is 'other';
"""

# What only a superuser can do wrong.
CHANGES_SUPER = r"""
drop event trigger watched;
create function look() returns event_trigger language plpgsql as $$ begin end $$;
create event trigger "looked %" on ddl_command_end execute function look();
alter event trigger "looked %" disable;
drop publication everything;
create publication everything for tables in schema public;
alter table secret no force row level security;
alter table empty owner to {writer};
drop table nothing;
drop schema others cascade;
alter large object 910001 owner to {writer};
create function other_handler() returns language_handler language c as '$libdir/plpgsql', 'plpgsql_call_handler';
create trusted language plother handler other_handler;
create function other() returns int language plother as $$ begin return 1; end $$;
create access method other_heap type table handler heap_tableam_handler;
create table heap_of_others (id int) using other_heap;
create foreign data wrapper "wrap %";
create server "far %" foreign data wrapper "wrap %";
create user mapping for {reader} server "far %";
create foreign table abroad (id int) server "far %";
create extension postgres_fdw;
create server farther foreign data wrapper postgres_fdw;
create operator family strange using btree;
create function hashed(couple) returns int language sql immutable as 'select 1';
create operator class strange for type couple using hash as function 1 hashed(couple);
create text search parser pars (start = prsd_start, gettoken = prsd_nexttoken, end = prsd_end, lextypes = prsd_lextype);
create text search template temp (lexize = dsimple_lexize);
create cast (bytea as json) without function;
create type base;
create function base_in(cstring) returns base language internal strict immutable as 'textin';
create function base_out(base) returns cstring language internal strict immutable as 'textout';
create type base (input = base_in, output = base_out, like = text);
create table of_bases (b base);
alter default privileges for role {writer} grant select on tables to public;
grant select on pg_authid to {reader};
grant select (subconninfo) on pg_subscription to {reader};
revoke execute on function pg_sleep(float8) from public;
revoke usage on language plpgsql from public;
grant execute on function hstore(text, text) to {writer};
revoke usage on schema information_schema from public;
"""

# The way to begin anew that is advised everywhere.
CHANGES_LOST = r"""
drop schema public cascade;
create schema public;
grant all on schema public to {reader};
create table wrong (id int primary key);
drop schema "Bar.Back" cascade;
select lo_unlink(oid) from pg_largeobject_metadata;
"""

# What belongs to the database and to no dump.
OF_THE_DATABASE = r"""
comment on database {name} is E'it''s\nthe "bar" \\';
alter database {name} set timezone to 'Asia/Tokyo';
alter database {name} set search_path to '$user', public, "Bar.Back";
alter database {name} set statement_timeout to '10min';
alter database {name} set datestyle to 'German, DMY';
alter database {name} connection limit 23;
grant create on database {name} to {writer} with grant option;
grant connect on database {name} to {reader};
revoke temporary on database {name} from public;
"""

PROPERTIES = """
select json_build_object('owner', pg_get_userbyid(datdba), 'encoding', pg_encoding_to_char(encoding),
  'collate', datcollate, 'ctype', datctype, 'limit', datconnlimit, 'connect', datallowconn, 'template', datistemplate,
  'provider', to_jsonb(d) ->> 'datlocprovider',
  'locale', coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale'),
  'comment', shobj_description(oid, 'pg_database'),
  'acl', (select json_agg(a::text order by a::text) from unnest(coalesce(datacl, acldefault('d', datdba))) a),
  'settings', (select json_agg(json_build_array(setrole::regrole, setconfig) order by setrole)
    from pg_db_role_setting where setdatabase = d.oid))
from pg_database d where datname = '{name}'
"""


def quoted(name: str) -> str:
    """Return an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def filled(sql: str, name: str = "") -> str:
    """Return the SQL with the roles' names and the database's."""
    names = {"{reader}": quoted(READER), "{writer}": quoted(WRITER), "{name}": quoted(name)}
    for mark, value in names.items():
        sql = sql.replace(mark, value)
    return sql


@dataclass(frozen=True)
class Owner:
    """A role that is no superuser and owns databases."""

    name: str
    password: str

    def url(self, server: Server, database: str) -> str:
        """Return the URL of a database for this role."""
        address = server.url(database).rpartition("@")[2]
        return f"postgresql://{self.name}:{self.password}@{address}"


def make_owner(server: Server, *, createdb: bool) -> Owner:
    """Create a login role; the server forgets it with its data folder, or drop_owner does."""
    owner = Owner(f"owner_{secrets.token_hex(4)}", secrets.token_hex(8))
    words = "createdb" if createdb else "nocreatedb"
    server.sql(f"create role {owner.name} login {words} password '{owner.password}'")
    return owner


def as_role(role: str, sql: str) -> str:
    """Return the SQL to be run as another role."""
    return f"set role {quoted(role)};\n{sql}\nreset role;\n"


def build(server: Server, name: str, owner: Owner | None = None) -> None:
    """Make a database with everything in it, by a superuser or by *owner* alone."""
    server.sql(ROLES)
    server.sql(f"create database {quoted(name)}" + (f" owner {owner.name}" if owner else ""))
    sql = filled(PLAIN)
    server.sql(as_role(owner.name, sql) if owner else sql + filled(SUPER), name)
    server.sql(filled(OF_THE_DATABASE + ("" if owner else UNKNOWN_SETTING), name))


def change(server: Server, name: str, owner: Owner | None = None, *, lose: bool = False) -> None:
    """Do to a database what a bad migration does, by a superuser or by *owner* alone; *lose* drops most of it."""
    sql = filled(CHANGES_LOST if lose else CHANGES)
    server.sql(as_role(owner.name, sql) if owner else sql, name)
    if not owner and not lose:
        server.sql(filled(CHANGES_SUPER), name)


def properties(server: Server, name: str) -> dict[str, str]:
    """Return what belongs to the database and to no dump."""
    found = json.loads(server.sql(PROPERTIES.replace("{name}", name.replace("'", "''"))))
    return {f"its {key}": json.dumps(value) for key, value in found.items()}


def everything(server: Server, name: str) -> dict[str, str]:
    """Return all that must be the same after a restore into another database of another name."""
    views = server.json(
        "select coalesce(json_agg(format('%I.%I', schemaname, matviewname) order by schemaname, matviewname), '[]') "
        "from pg_matviews where ispopulated",
        name,
    )
    return {
        **server.fingerprint(name),
        **server.hashes(views, name),
        "populated": ", ".join(views),
        "schema": server.dump_schema(name),
        **properties(server, name),
    }

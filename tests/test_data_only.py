"""The rows of a backup into tables that are there: nothing stands in their way, nothing else is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Server
from parts import Dump, Live, live

from pg_backup_tasks import data_only
from pg_backup_tasks.errors import Failed, Refused
from pg_backup_tasks.loading import Part

EVERYTHING = r"""
create schema "Bar.Back";
create domain positive as int check (value > 0);
create table notes (id int, said text);
create function note() returns trigger language plpgsql as $$
begin insert into public.notes values (1, tg_name); return new; end $$;

create table chicken (id int primary key, egg int);
create table egg (id int primary key, chicken int, up int references egg);
insert into chicken values (1, 1), (2, 2);
insert into egg values (1, 1, 2), (2, 2, 1);
alter table egg add constraint "it's a key" foreign key (chicken) references chicken;
alter table chicken add constraint to_egg foreign key (egg) references egg deferrable;
alter table egg add constraint ready foreign key (up) references egg deferrable initially deferred;
comment on constraint "it's a key" on egg is 'whose \ it is';

create table "Bar.Back"."Gäste ""x""
Liste" (id int generated always as identity primary key, "na
me, (x" text unique deferrable initially deferred,
  n positive, doubled int generated always as (n * 2) stored, serial bigserial);
insert into "Bar.Back"."Gäste ""x""
Liste" ("na
me, (x", n) select 'g' || i, i from generate_series(1, 9) i;

create table orders (id int, day int, egg int references egg, primary key (id, day)) partition by range (day);
create table orders_a partition of orders for values from (0) to (10);
create table orders_b partition of orders for values from (10) to (20) partition by list (id);
create table orders_b1 partition of orders_b default;
insert into orders values (1, 1, 1), (2, 11, 2), (3, 12, 1);
create table lines (id int, day int, foreign key (id, day) references orders);
insert into lines values (1, 1), (2, 11);
create trigger seen before insert on orders for each row execute function note();
alter table orders_a disable trigger seen;

create table parent (id int);
create table child (x int) inherits (parent);
insert into parent values (1); insert into child values (2, 2), (3, 3);

create trigger a_normal after insert on egg for each row execute function note();
create trigger b_replica after insert on egg for each row execute function note();
create trigger c_always after insert on egg execute function note();
create trigger d_off after insert on egg for each row execute function note();
create trigger e_emptied after truncate on egg execute function note();
alter table egg enable replica trigger b_replica, enable always trigger c_always, disable trigger d_off;
create rule no_delete as on delete to egg do instead nothing;
create rule off as on insert to egg do also delete from notes;
alter table egg disable rule off;
alter table egg enable always rule no_delete;

create table secret (id int, whose text);
insert into secret values (1, 'a'), (2, 'b');
alter table secret enable row level security, force row level security;
create policy nobody on secret using (false);

create table old_rules (id int, egg int);
insert into old_rules values (-1, 77);
alter table old_rules add constraint above check (id > 0) not valid;
comment on constraint above on old_rules is 'from now on';
alter table old_rules add constraint real foreign key (egg) references egg not valid;

create table nothing ();
insert into nothing select from generate_series(1, 3);
create sequence free increment 7;
select nextval('free'), nextval('free');
create table _prisma_migrations (id serial, migration_name text);
insert into _prisma_migrations (migration_name) values ('001');
create schema drizzle;
create table drizzle.__drizzle_migrations (id serial primary key, hash text);
select lo_create(4711);

create view between as select count(*) as n from egg;
create materialized view z_first as select n from between;
create materialized view a_second as select n + 1 as n from z_first;
create materialized view unfilled as select * from egg with no data;
"""
AFTERWARDS = r"""
alter table egg disable trigger user;
begin; set constraints all deferred;
alter table secret no force row level security; delete from secret; alter table secret force row level security;
alter table lines drop constraint lines_id_day_fkey;
truncate egg, chicken, orders, lines, old_rules;
insert into chicken values (9, null); insert into egg values (5, 9, 5);
alter table lines add foreign key (id, day) references orders;
commit;
alter table egg enable trigger user, enable replica trigger b_replica, enable always trigger c_always,
  disable trigger d_off;
alter table chicken add column since int not null default 7;
create table newer (id int, n int);
insert into newer values (1, 1);
insert into _prisma_migrations (migration_name) values ('002');
insert into drizzle.__drizzle_migrations (hash) values ('x');
delete from nothing;
update "Bar.Back"."Gäste ""x""
Liste" set n = 77;
select nextval('free'), nextval('"Bar.Back"."Gäste ""x""
Liste_id_seq"') from generate_series(1, 20);
truncate parent, notes;
insert into parent values (5);
refresh materialized view z_first;
refresh materialized view a_second;
"""
LEFT = ("_prisma_migrations", "newer", "__drizzle_migrations")


def rows(base: Live) -> dict[str, str]:
    """Return what data-only is about: not what a column's default adds, not the ledgers."""
    return {k: v for k, v in base.rows().items() if not any(n in k for n in (*LEFT, "chicken"))}


SEQUENCES = """
select string_agg(format('%s %s', schemaname || '.' || sequencename, last_value), ' ' order by 1)
from (select * from pg_sequences where sequencename !~ 'migrations' order by 1, 2) s
"""
STATES = """
select (select json_agg(json_build_array(tgrelid::regclass, tgname, tgenabled)
    order by tgrelid::regclass::text, tgname)::text from pg_trigger
    where not tgisinternal)
  || (select json_agg(json_build_array(conrelid::regclass, conname, condeferrable, condeferred, convalidated)
    order by conrelid::regclass::text, conname, confrelid)::text from pg_constraint where contype = 'f')
  || (select json_agg(json_build_array(tgrelid::regclass, tgdeferrable, tginitdeferred, c.conname)
    order by tgrelid::regclass::text, c.conname, tgtype, tgdeferrable)::text
    from pg_trigger t join pg_constraint c on c.oid = tgconstraint where tgisinternal)
  || (select json_agg(json_build_array(ev_class::regclass, rulename, ev_enabled) order by ev_class::regclass::text,
    rulename)::text from pg_rewrite where ev_class >= 16384)
"""


def restored(base: Live, dump: Dump, tmp_path: Path) -> tuple[Part, tuple[str, ...]]:
    with base.session() as session:
        part, left = data_only.plan(session, dump.items, dump.rows)
    assert base.load(dump, part, tmp_path) == ""
    return part, left


@pytest.mark.parametrize(("major", "format_"), [(18, "custom"), (18, "plain"), (15, "custom"), (15, "plain")])
def test_the_rows_are_the_backups_and_everything_else_is_as_it_was(
    servers: Callable[[int], Server], major: int, format_: str, tmp_path: Path
) -> None:
    server = servers(major)
    with live(server, EVERYTHING) as base:
        # As a dump is taken by whoever may see every row.
        base.server.sql(f"alter role {base.owner.name} bypassrls")
        dump = base.dump(format_)
        base.server.sql(f"alter role {base.owner.name} nobypassrls")
        then = rows(base)
        sequences = base.sql(SEQUENCES)
        base.sql(AFTERWARDS)
        schema, states = server.dump_schema(base.name), base.sql(STATES)
        ledgers = base.sql("select array_agg(l), (select array_agg(n) from newer n) from _prisma_migrations l")
        ledger_at = base.sql("select last_value from _prisma_migrations_id_seq")
        assert rows(base) != then
        part, left = restored(base, dump, tmp_path)
        assert rows(base) == then
        assert base.sql(SEQUENCES) == sequences
        assert server.dump_schema(base.name) == schema
        assert base.sql(STATES) == states
        assert base.sql("select array_agg(c order by id) from chicken c") == '{"(1,1,7)","(2,2,7)"}'
        assert ledgers == base.sql("select array_agg(l), (select array_agg(n) from newer n) from _prisma_migrations l")
        assert base.sql("select last_value from _prisma_migrations_id_seq") == ledger_at
        assert base.sql("select n, (select n from a_second) from z_first") == "2|3"
        assert base.sql("select ispopulated from pg_matviews where matviewname = 'unfilled'") == "f"
        assert left == ("drizzle.__drizzle_migrations", "public._prisma_migrations", "public.newer", "large objects")
        assert set(part.counted or ()) == {t for t in dump.rows if "migrations" not in t}


def test_on_any_error_all_is_as_it_was_sequences_too(server: Server, tmp_path: Path) -> None:
    with live(server, "create table t (id serial primary key, n int); insert into t (n) values (1), (2)") as base:
        dump = base.dump()
        base.sql("insert into t (n) values (3), (4); alter table t add check (n <> 2) not valid")
        base.sql("alter table t drop constraint t_n_check; update t set n = 7; alter table t add check (n <> 2)")
        before = server.fingerprint(base.name)
        with base.session() as session:
            part, _ = data_only.plan(session, dump.items, None)
        assert "t_n_check" in base.load(dump, part, tmp_path)
        assert server.fingerprint(base.name) == before
        # The sequence comes after the rows, and setval() itself would stay.
        base.sql("alter table t drop constraint t_n_check")
        with base.session() as session:
            part, _ = data_only.plan(session, dump.items, None)
        broken = Part(part.wanted, part.before, part.after + "select 1 / 0;\n", part.counted)
        assert "division by zero" in base.load(dump, broken, tmp_path)
        assert server.fingerprint(base.name) == before


def test_a_table_changed_after_the_plan_is_noticed(server: Server, tmp_path: Path) -> None:
    with live(server, "create table t (id int); insert into t values (1)") as base:
        dump = base.dump()
        with base.session() as session:
            part, _ = data_only.plan(session, dump.items, dump.rows)
        base.sql("create table points (id int); alter table t add primary key (id)")
        base.sql("alter table points add foreign key (id) references t; insert into t values (2)")
        assert "changed by others" in base.load(dump, part, tmp_path)
        assert base.sql("select count(*) from t") == "2"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("drop table b", "public.b is gone"),
        ("drop table b; create view b as select 1", "public.b is a view now"),
        ("alter table a drop column n", "public.a has no column n"),
        ("alter table a drop n, add n int generated always as (1) stored", "public.a has no column n"),
        (
            "alter table a add wanted int not null default 1; alter table a alter wanted drop default",
            "a now has wanted",
        ),
        ("create table outside (id int references a)", "public.outside, which stays as it is, has a foreign key to"),
        ("create table knex_migrations (id int references a)", "public.knex_migrations, which stays"),
        ("alter table a alter id drop default; drop sequence a_id_seq", "the sequence public.a_id_seq is gone"),
        ("revoke insert on a from current_user", "may not write to public.a"),
    ],
)
@pytest.mark.parametrize("format_", ["custom", "plain"])
def test_what_does_not_fit_is_named_before_anything_is_touched(
    server: Server, change: str, named: str, format_: str
) -> None:
    tables = "create table a (id serial primary key, n int); create table b (id int); insert into a (n) values (1);"
    with live(server, tables) as base, base.session() as session:
        dump = base.dump(format_)
        base.sql(change if "wanted" not in change else f"truncate a; {change}")
        with pytest.raises(Failed, match=named):
            data_only.plan(session, dump.items, dump.rows)


def test_what_another_owns_is_named(server: Server) -> None:
    with live(server, "create table a (id serial primary key)") as base, base.session() as session:
        dump = base.dump()
        server.sql("alter table a owner to current_user", base.name)
        with pytest.raises(Failed, match=r"public\.a is not this user's own"):
            data_only.plan(session, dump.items, dump.rows)


def test_new_columns_that_fill_themselves_are_no_obstacle(server: Server, tmp_path: Path) -> None:
    with live(server, "create table a (n int); insert into a values (1)") as base:
        dump = base.dump()
        base.sql(
            "create domain full_of as int default 3 not null; truncate a; alter table a add i int generated always as"
            " identity, add g int not null generated always as (n * 2) stored, add d full_of, add e int, add f int"
            " not null default 9"
        )
        restored(base, dump, tmp_path)
        assert base.sql("select a from a") == "(1,1,2,3,,9)"


def test_a_dump_without_rows_is_refused(server: Server) -> None:
    with live(server, "create table a (n int)") as base, base.session() as session:
        dump = base.dump("custom", "--schema-only")
        with pytest.raises(Refused, match="no rows"):
            data_only.plan(session, dump.items, None)


def test_rows_dumped_as_inserts_come_too(server: Server, tmp_path: Path) -> None:
    with live(server, 'create table "a\nb" (n int); insert into "a\nb" values (1), (2)') as base:
        for format_ in ("custom", "plain"):
            dump = base.dump(format_, "--inserts")
            base.sql('delete from "a\nb"')
            part, _ = restored(base, dump, tmp_path)
            assert set(part.counted or ()) == {"public.a\nb"}
            assert base.sql('select sum(n) from "a\nb"') == "3"


def test_an_extensions_rows_are_left_alone(server: Server, tmp_path: Path) -> None:
    with live(server, "create table a (n int); insert into a values (1)") as base:
        # Any table can be made an extension's configuration by its script; here one is told to be.
        server.sql(
            "create extension hstore; create table config (id serial, n int); insert into config (n) values (5)",
            base.name,
        )
        server.sql(
            "alter extension hstore add table config; alter extension hstore add sequence config_id_seq", base.name
        )
        server.sql(
            "update pg_extension set extconfig = array['config'::regclass::oid, 'config_id_seq'::regclass],"
            " extcondition = '{\"\",\"\"}' where extname = 'hstore'",
            base.name,
        )
        server.sql(f"grant select on config, config_id_seq to {base.owner.name}", base.name)
        dump = base.dump()
        assert "public.config" in dump.rows
        part, left = restored(base, dump, tmp_path)
        assert set(part.counted or ()) == {"public.a"}
        assert left == ()


def test_what_only_18_knows(server: Server, tmp_path: Path) -> None:
    tables = """
    create table a (id int primary key, n int); insert into a values (1, null);
    alter table a add constraint present not null n not valid;
    create table b (a int, n int); insert into b values (7, -1);
    alter table b add foreign key (a) references a not enforced, add check (n > 0) not enforced;
    create table c (n int, v int generated always as (n + 1) virtual); insert into c values (1);
    """
    with live(server, tables) as base:
        dump = base.dump()
        rows_then, schema = base.rows(), base.server.dump_schema(base.name)
        base.sql("delete from b; delete from a; insert into c values (2)")
        restored(base, dump, tmp_path)
        assert base.rows() == rows_then
        assert base.server.dump_schema(base.name) == schema


def test_forced_tables_are_counted_before_they_hide_their_rows(server: Server, tmp_path: Path) -> None:
    with live(server, "create table a (n int); insert into a values (1)") as base:
        dump = base.dump()
        base.sql("alter table a enable row level security, force row level security")
        for recorded, said in (({"public.a": 2}, "has 1 rows after the restore"), (dump.rows, "")):
            with base.session() as session:
                part, _ = data_only.plan(session, dump.items, recorded)
            assert said in base.load(dump, part, tmp_path)
            assert base.server.sql("select relforcerowsecurity from pg_class where relname = 'a'", base.name) == "t"
        assert said == ""


def test_new_partitions_are_left_alone_unless_a_key_is_in_the_way(server: Server, tmp_path: Path) -> None:
    tables = """
    create table p (id int) partition by list (id);
    create table p1 partition of p for values in (1); insert into p values (1);
    create table one (id int primary key); insert into one values (1), (2);
    """
    with live(server, tables) as base:
        dump = base.dump("custom", "--load-via-partition-root")
        base.sql("delete from p; create table p2 partition of p for values in (2); insert into p values (2)")
        _, left = restored(base, dump, tmp_path)
        assert left == ("public.p2",)
        assert base.sql("select array_agg(id order by id) from p") == "{1,2}"
        base.sql("alter table p add foreign key (id) references one")
        with base.session() as session, pytest.raises(Failed, match=r"public\.p2, which stays .* to public\.one"):
            data_only.plan(session, dump.items, None)


def test_tables_that_inherit_and_are_newer_keep_their_rows(server: Server, tmp_path: Path) -> None:
    with live(server, "create table a (n int); insert into a values (1)") as base:
        dump = base.dump()
        base.sql("create table b () inherits (a); insert into b values (2); delete from only a")
        assert restored(base, dump, tmp_path)[1] == ("public.b",)
        assert base.sql("select array_agg(n order by n) from a") == "{1,2}"


def test_materialized_views_are_refreshed_after_what_they_read(server: Server, tmp_path: Path) -> None:
    tables = """
    create table a (n int); insert into a values (1);
    create view between as select 0 as n;
    create materialized view older as select n from between;
    create materialized view younger as select sum(n)::int as n from a;
    create or replace view between as select n from younger;
    refresh materialized view older;
    """
    with live(server, tables) as base:
        dump = base.dump()
        base.sql("insert into a values (5); refresh materialized view younger; refresh materialized view older")
        restored(base, dump, tmp_path)
        assert base.sql("select n from older") == "1"


def test_a_ledgers_sequence_is_left_alone_too_and_may_be_gone(server: Server, tmp_path: Path) -> None:
    tables = """
    create table a (n int); insert into a values (1);
    create table knex_migrations (id serial, name text); insert into knex_migrations (name) values ('1');
    create schema drizzle; create table drizzle.__drizzle_migrations (id serial, hash text);
    alter sequence knex_migrations_id_seq rename to numbers;
    """
    with live(server, tables) as base:
        dump = base.dump()
        base.sql("insert into knex_migrations (name) values ('2'), ('3'); drop schema drizzle cascade")
        restored(base, dump, tmp_path)
        assert base.sql("select last_value from numbers") == "3"


def test_a_sequence_that_is_called_like_a_ledgers_comes_back(server: Server, tmp_path: Path) -> None:
    tables = """
    create table schema_migrations_audit (id serial, t text);
    insert into schema_migrations_audit (t) values ('1'), ('2'), ('3');
    """
    with live(server, tables) as base:
        dump = base.dump()
        base.sql("truncate schema_migrations_audit restart identity")
        restored(base, dump, tmp_path)
        assert base.sql("select last_value from schema_migrations_audit_id_seq") == "3"

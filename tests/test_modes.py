"""Less than everything, by an owner who is no superuser, from every format: what was asked for, and back again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import nasty
import pytest
from benches import FORMATS, Bench, changed

SLOW = pytest.mark.slow
EVERY_FORMAT = ["dump", "sql", *(pytest.param(f, marks=SLOW) for f in FORMATS if f not in ("dump", "sql"))]
BEFORE = """
create schema bar;
create table bar.drinks (id serial primary key, name text unique, price numeric default 5);
create table bar.orders (id int generated always as identity primary key, drink int not null references bar.drinks);
create table "No Rows" (id int);
create table _prisma_migrations (id int, migration_name text);
create materialized view bar.menu as select name from bar.drinks;
create view bar.cheap as select * from bar.drinks where price < 3;
insert into bar.drinks (name) select 'drink ' || i from generate_series(1, 20) i;
insert into bar.orders (drink) select 1 + i % 20 from generate_series(1, 200) i;
insert into _prisma_migrations values (1, 'init');
refresh materialized view bar.menu;
select lo_from_bytea(4711, 'picture');
"""
AFTER = """
alter table bar.drinks add column strength int default 40;
create table bar.wrong (id int);
insert into bar.wrong values (1);
insert into "No Rows" values (1);
delete from bar.orders where id % 2 = 0;
update bar.drinks set name = 'changed ' || id, price = 1;
insert into bar.drinks (name) values ('new');
insert into _prisma_migrations values (2, 'bad');
refresh materialized view bar.menu;
select lo_put(4711, 0, 'changed');
"""
ROWS = """
select md5(string_agg(t, ' ' order by t)) from (
  select id || name || price from bar.drinks union all select id || '-' || drink from bar.orders
  union all select name from bar.menu union all select 'x' from "No Rows") x (t)
"""


@dataclass
class Live:
    """A database that an owner without any privilege has backed up, and that a migration has changed."""

    bench: Bench
    owner: nasty.Owner
    database: str
    backup: str
    rows: str

    @property
    def url(self) -> str:
        return self.owner.url(self.bench.server, self.database)

    def sql(self, sql: str) -> str:
        return self.bench.server.sql(sql, self.database)

    def everything(self) -> dict[str, str]:
        return nasty.everything(self.bench.server, self.database)

    def back_again(self, before: dict[str, str]) -> None:
        """Undo, and be what it was."""
        undone = self.bench.project.inv("db.undo", "--force", "--json")
        assert undone.code == 0, undone.err
        assert changed(before, self.everything()) == {}
        assert self.bench.leftovers() == ""
        assert self.bench.project.hidden_files() == []


@pytest.fixture
def live(bench: Bench) -> Iterator[Live]:
    owner = nasty.make_owner(bench.server, createdb=False)
    database = bench.create("", f"owner {owner.name}")
    bench.server.sql(nasty.as_role(owner.name, BEFORE), database)
    bench.project.use(owner.url(bench.server, database))
    taken = bench.project.inv("db.backup", "--json")
    assert taken.code == 0, taken.err
    rows = bench.server.sql(ROWS, database)
    bench.server.sql(nasty.as_role(owner.name, AFTER), database)
    yield Live(bench, owner, database, taken.json["name"], rows)
    bench.server.drop(database)
    bench.server.sql(f"drop owned by {owner.name}; drop role {owner.name}")


@pytest.mark.parametrize("format_", EVERY_FORMAT)
def test_everything(live: Live, format_: str) -> None:
    before = live.everything()
    done = live.bench.restore(f"backups/postgres/{live.backup}.{format_}", live.database, url=live.url)
    assert done.code == 0, done.err
    assert done.json["how"] == "in place"
    assert "may not create databases" in done.err
    assert "bar.wrong" in done.err
    assert live.sql(ROWS) == live.rows
    assert live.sql("select to_regclass('bar.wrong') is null, lo_get(4711) = 'picture'") == "t|t"
    live.back_again(before)
    live.bench.project.inv("db.undo", "--force")
    assert live.sql(ROWS) == live.rows


@pytest.mark.parametrize("format_", EVERY_FORMAT)
def test_rows_only(live: Live, format_: str) -> None:
    before = live.everything()
    done = live.bench.restore(f"backups/postgres/{live.backup}.{format_}", live.database, "--data-only", url=live.url)
    assert done.code == 0, done.err
    assert done.json["mode"] == "data-only"
    assert live.sql(ROWS) == live.rows
    assert live.sql("select count(*), min(strength) from bar.drinks") == "20|40"
    assert live.sql("select last_value from bar.drinks_id_seq") == "20"
    for alone in ("bar.wrong", "_prisma_migrations", "large objects"):
        assert alone in done.err
    assert live.sql("select count(*), max(migration_name) from _prisma_migrations") == "2|init"
    assert live.sql("select count(*) from bar.wrong") == "1"
    assert live.sql("select lo_get(4711) = 'changed'") == "t"
    live.back_again(before)


@pytest.mark.parametrize("format_", EVERY_FORMAT)
def test_structure_only(live: Live, format_: str) -> None:
    before = live.everything()
    path = f"backups/postgres/{live.backup}.{format_}"
    refused = live.bench.restore(path, live.database, "--schema-only", url=live.url)
    assert refused.code == 2
    assert live.everything() == before
    done = live.bench.restore(path, live.database, "--schema-only", "--clean", url=live.url)
    assert done.code == 0, done.err
    assert live.sql("select (select count(*) from bar.drinks), to_regclass('bar.wrong') is null") == "0|t"
    assert live.sql("select count(*) from pg_attribute where attname = 'strength'") == "0"
    assert live.sql("select count(*) from pg_largeobject_metadata") == "0"
    live.back_again(before)


@pytest.mark.parametrize("format_", EVERY_FORMAT)
def test_single_tables(live: Live, format_: str) -> None:
    live.sql("drop materialized view bar.menu; drop view bar.cheap")
    before = live.everything()
    path = f"backups/postgres/{live.backup}.{format_}"
    done = live.bench.restore(path, live.database, "--table", "bar.drinks", "--table", "orders", url=live.url)
    if format_.startswith("sql"):
        assert done.code == 2
        assert f"{live.backup}.dump" in done.json["try"]
        assert live.everything() == before
        return
    assert done.code == 0, done.err
    assert done.json["mode"] == "table"
    assert live.sql("select count(*), min(name) from bar.drinks") == "20|drink 1"
    assert live.sql("select count(*) from bar.orders") == "200"
    assert live.sql('select (select count(*) from bar.wrong), (select count(*) from "No Rows")') == "1|1"
    live.back_again(before)


@pytest.mark.parametrize("format_", EVERY_FORMAT)
@pytest.mark.parametrize("there", [True, False], ids=["empty", "missing"])
def test_into_another(live: Live, format_: str, there: bool) -> None:
    before = live.everything()
    other = live.bench.name()
    if there:
        live.bench.server.sql(f"create database {other} owner {live.owner.name}")
    else:
        live.bench.server.sql(f"alter role {live.owner.name} createdb")
    path = f"backups/postgres/{live.backup}.{format_}"
    done = live.bench.restore(path, live.database, "--into", other, url=live.url)
    assert done.code == 0, done.err
    assert done.json["database"] == other
    assert live.bench.server.sql(ROWS, other) == live.rows
    assert live.everything() == before
    assert live.bench.project.inv("db.undo", "--force").code == 2
    live.bench.server.sql(f"drop database {other}")


@pytest.mark.parametrize(
    "flags",
    [
        ("--data-only", "--clean"),
        ("--data-only", "--schema-only"),
        ("--data-only", "--table", "a"),
        ("--table", "a", "--clean"),
        ("--into", "x", "--data-only"),
        ("--into", "x", "--table", "a"),
        ("--schema-only", "--table", "a"),
    ],
    ids=" ".join,
)
def test_flags_that_exclude_each_other(live: Live, flags: tuple[str, ...]) -> None:
    before = live.everything()
    done = live.bench.restore(live.backup, live.database, *flags, url=live.url)
    assert done.code == 2
    assert done.json["error"]
    assert live.everything() == before

"""What a restore has changed is taken back, and no more than that, wherever the restore itself could work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import nasty
import pytest
from benches import Bench, changed


@dataclass
class Mixed:
    """An owner's database in which a superuser has made a function: it cannot be replaced as a whole."""

    bench: Bench
    owner: nasty.Owner
    database: str
    backup: str

    def restore(self, *args: str) -> None:
        url = self.owner.url(self.bench.server, self.database)
        done = self.bench.restore(self.backup, self.database, *args, url=url)
        assert done.code == 0, done.err

    def undo(self) -> str:
        undone = self.bench.project.inv("db.undo", "--force", "--json")
        assert undone.code == 0, undone.err
        return str(undone.json["mode"])

    def sql(self, sql: str) -> str:
        return self.bench.server.sql(sql, self.database)

    def state(self) -> dict[str, str]:
        return nasty.everything(self.bench.server, self.database)


@pytest.fixture
def mixed(bench: Bench) -> Iterator[Mixed]:
    owner = nasty.make_owner(bench.server, createdb=True)
    database = bench.create("", f"owner {owner.name}")
    tables = "create table t (id int); insert into t values (1); create table gone (id int references u (id));"
    bench.server.sql(nasty.as_role(owner.name, "create table u (id int unique);" + tables), database)
    bench.server.sql("create function f() returns int language sql as 'select 1'", database)
    bench.project.use(owner.url(bench.server, database))
    taken = bench.project.inv("db.backup", "--json", "--formats", "dump")
    assert taken.code == 0, taken.err
    bench.server.sql("insert into t values (2); drop table gone", database)
    yield Mixed(bench, owner, database, taken.json["name"])
    bench.server.drop(database)
    bench.server.sql(f"drop owned by {owner.name}; drop role {owner.name}")


def test_rows_only(mixed: Mixed) -> None:
    mixed.sql(f"create table gone (id int); alter table gone owner to {mixed.owner.name}")
    before = mixed.state()
    mixed.restore("--data-only")
    assert mixed.sql("select count(*) from t") == "1"
    assert mixed.undo() == "data-only"
    assert changed(before, mixed.state()) == {}


@pytest.mark.slow
def test_single_tables_with_one_that_was_not_there(mixed: Mixed) -> None:
    before = mixed.state()
    mixed.restore("--table", "t", "--table", "gone")
    after = mixed.state()
    assert mixed.sql("select count(*) from t left join gone using (id)") == "1"
    mixed.sql("insert into u values (7)")
    assert mixed.undo() == "table"
    # What others have written elsewhere since then is none of its business.
    assert mixed.sql("delete from u returning id") == "7"
    assert changed(before, mixed.state()) == {}
    assert mixed.undo() == "table"
    assert changed(after, mixed.state()) == {}
    mixed.undo()
    assert changed(before, mixed.state()) == {}


@pytest.mark.slow
def test_a_single_table_that_was_not_there(mixed: Mixed) -> None:
    before = mixed.state()
    mixed.restore("--table", "gone")
    mixed.undo()
    assert changed(before, mixed.state()) == {}
    mixed.undo()
    assert mixed.sql("select count(*) from gone") == "0"

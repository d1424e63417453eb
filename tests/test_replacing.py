"""A restore over what a bad migration has made of a database: exactly the backup, by both ways, and back again."""

from __future__ import annotations

from collections.abc import Callable

import nasty
import pytest
from benches import FORMATS, Bench, Kept, changed, differences

SLOW = pytest.mark.slow
WAYS = {"swap": {}, "in place": {"INVOKE_DB_IN_PLACE": "true"}}
QUICK = {
    (15, False, "dump", "swap"),
    (17, True, "tar", "swap"),
    (17, False, "sql.gz", "in place"),
    (18, True, "sql", "in place"),
}
REPLACEMENTS = [
    pytest.param(
        *case,
        id="-".join([str(case[0]), "owner" if case[1] else "superuser", *case[2:]]),
        marks=() if case in QUICK else SLOW,
    )
    for case in (
        (major, owned, format_, way)
        for major in (15, 17, 18)
        for owned in (False, True)
        for format_ in FORMATS
        for way in WAYS
    )
]


@pytest.mark.parametrize(("major", "owned", "format_", "way"), REPLACEMENTS)
@pytest.mark.parametrize("lose", [False, True], ids=["changed", "lost"])
def test_afterwards_it_is_the_backup_and_undone_it_is_what_it_was(
    bench_of: Callable[[int], Bench],
    kept: Callable[[int, bool], Kept],
    major: int,
    owned: bool,
    format_: str,
    way: str,
    lose: bool,
) -> None:
    bench, source = bench_of(major), kept(major, owned)
    database = bench.copy(source.everything["name"], source.owner)
    nasty.change(bench.server, database, source.owner, lose=lose)
    before = nasty.everything(bench.server, database)
    url = source.owner.url(bench.server, database) if source.owner else None
    done = bench.restore(f"{source.backups}/{source.name}.{format_}", database, url=url, env=WAYS[way])
    assert done.code == 0, done.err
    assert done.json["how"] == way
    assert differences(source, nasty.everything(bench.server, database)) == {}
    undone = bench.project.inv("db.undo", "--force", "--json", env=WAYS[way])
    assert undone.code == 0, undone.err
    assert changed(before, nasty.everything(bench.server, database)) == {}
    assert bench.leftovers() == ""

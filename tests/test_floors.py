"""The house stands: imports go down only, every library has one door, `inv -l` loads nothing that is slow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, clean_environ

PACKAGE = "pg_backup_tasks"
MODULES = {path.stem: path.read_text() for path in sorted((ROOT / PACKAGE).glob("*.py"))}

# From the ground to the roof: a module imports only what stands before it. A new one is entered where it belongs.
HOUSE = {
    "ground": "errors units columns model info",
    "pure": "hiding definitions sqltext archive url environment machine shell posix postgres ability properties "
    "emptying retention",
    "places": "settings signals embedded bulk process pouring survey here vouching openssh line far there lock crew "
    "store journal migration catalog premise written desk hosts",
    "workflows": "consent loading aside analysis data_only single_tables dumps verify switching backup looking "
    "leavings restore undo cleanup migrate rollback fetch pull",
    "face": "streams pictures report beside running collection __init__",
}
ORDER = " ".join(HOUSE.values()).split()
# What touches the world outside has no place among what is pure.
WORLD = {"os", "pathlib", "random", "secrets", "shutil", "socket", "subprocess", "sys", "tempfile", "threading", "time"}
DOORS = {
    "dotenv": "environment",
    "fabric": "line",
    "invoke": "errors running collection",
    "isal": "archive bulk",
    "logging": "streams report line",
    "msgspec": "info",
    "paramiko": "line far",
    "rich": "report",
    "subprocess": "process here vouching openssh embedded",
}


def imports(source: str) -> Iterator[str]:
    """Yield what a module imports anywhere in it: `.name` for one of ours, else the full name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                yield str(node.module)
            elif node.module:
                yield f".{node.module}"
            else:
                yield from (f".{alias.name}" for alias in node.names)


def ours(source: str) -> set[str]:
    """Return the modules of the package that one of them imports."""
    relative = {name[1:] for name in imports(source) if name.startswith(".")}
    return relative | {name.partition(".")[2] or "__init__" for name in imports(source) if name.startswith(PACKAGE)}


def wrong_ways(modules: dict[str, str]) -> list[str]:
    """Return every import that does not go down."""
    place = {name: number for number, name in enumerate(ORDER)}
    return [
        f"{name} imports {other}, which does not stand below it"
        for name, source in modules.items()
        for other in sorted(ours(source))
        if other not in place or place[other] >= place[name]
    ]


def wrong_doors(modules: dict[str, str]) -> list[str]:
    """Return every library that comes in by another door than its own, or has none."""
    found = []
    for name, source in modules.items():
        for module in imports(source):
            library = module.partition(".")[0]
            if not library or library == PACKAGE:
                continue
            own = DOORS.get(library, "" if library not in sys.stdlib_module_names else name)
            if name not in own.split():
                found.append(f"{name} imports {module}, whose door is {own or 'nowhere'}")
    return found


def test_every_module_has_its_place() -> None:
    assert sorted(ORDER) == sorted(MODULES), "enter it in HOUSE, where it belongs"


def test_imports_go_down_only() -> None:
    assert wrong_ways(MODULES) == []


@pytest.mark.parametrize(
    "line",
    [
        "from . import backup",
        "from .backup import take",
        "from .restore import restore",
        "import pg_backup_tasks.report",
        "from pg_backup_tasks import ns",
        "from pg_backup_tasks.collection import ns",
        "def f() -> None:\n    from . import backup",
        "if TYPE_CHECKING:\n    from .report import Report",
        "from .nothing import x",
    ],
)
def test_an_import_upward_is_found_wherever_it_stands(line: str) -> None:
    assert len(wrong_ways({"backup": line})) == 1
    assert wrong_ways({"backup": "from . import errors, store\nfrom .dumps import Dumps"}) == []


def test_every_library_has_one_door() -> None:
    assert wrong_doors(MODULES) == []


@pytest.mark.parametrize("line", ["import rich", "from rich.table import Table", "import psycopg", "import subprocess"])
def test_another_door_is_found(line: str) -> None:
    assert len(wrong_doors({"backup": line})) == 1
    assert len(wrong_doors({"backup": f"def f() -> None:\n    {line}"})) == 1


def test_errors_take_only_invokes_way_to_end() -> None:
    assert {m for m in imports(MODULES["errors"]) if m.startswith("invoke")} == {"invoke.exceptions"}


@pytest.mark.parametrize("name", HOUSE["pure"].split())
def test_what_is_pure_does_not_touch_the_world(name: str) -> None:
    assert WORLD.isdisjoint(m.partition(".")[0] for m in imports(MODULES[name]))
    assert not [n for n in ast.walk(ast.parse(MODULES[name])) if isinstance(n, ast.Name) and n.id == "open"]


def speech(source: str) -> list[str]:
    """Return what in a module talks to a user or listens to one."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and node.id in ("print", "input"):
            found.append(node.id)
        if isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr"):
            found += [node.attr] if isinstance(node.value, ast.Name) and node.value.id == "sys" else []
    return found


def test_only_the_report_prints() -> None:
    assert {name for name, source in MODULES.items() if speech(source)} == {"report"}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_in_a_sentence_what_it_is_for(name: str) -> None:
    said = (ast.get_docstring(ast.parse(MODULES[name])) or "").splitlines()
    assert said
    assert said[0].endswith(".")


def test_importing_the_tasks_loads_nothing_that_invoke_has_not() -> None:
    code = f"import sys, invoke.program; before = set(sys.modules); import {PACKAGE}; print(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**clean_environ(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name for name in done.stdout.split() if name not in ("__future__", *sys.builtin_module_names)}
    assert loaded == {PACKAGE, *(f"{PACKAGE}.{name}" for name in ("collection", "errors", "running", "settings"))}


@pytest.mark.parametrize("task", ["db.list", "db.cleanup"])
def test_who_only_looks_at_the_shelf_loads_nothing_that_reads_dumps_or_asks_a_server(task: str, tmp_path: Path) -> None:
    lines = ["from invoke import Collection", f"import {PACKAGE} as db", "ns = Collection(db)"]
    (tmp_path / "tasks.py").write_text("\n".join(lines))
    code = f"import sys; sys.argv = ['inv', '{task}']; from invoke.main import program; program.run(exit=False); "
    done = subprocess.run(
        [sys.executable, "-c", code + "print(*sys.modules)"],
        cwd=tmp_path,
        env={**clean_environ(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert f"{PACKAGE}.store" in loaded
    ours = {f"{PACKAGE}.{name}" for name in ("archive", "bulk", "catalog", "pouring", "postgres", "sqltext")}
    assert loaded.isdisjoint({*ours, "dotenv", "fabric", "isal", "paramiko", "rich", "shutil"})


def test_the_wheel_needs_what_comes_in_by_a_door() -> None:
    declared = (ROOT / "requirements" / "run.in").read_text()
    names = {"dotenv": "python-dotenv"}
    libraries = {library for library in DOORS if library not in sys.stdlib_module_names}
    # It comes with Fabric, which says which one.
    libraries.discard("paramiko")
    wanted = {line.partition(">")[0] for line in declared.splitlines() if line and not line.startswith("#")}
    assert wanted == {names.get(library, library) for library in libraries}

"""The shell doors: which arguments reach the tasks, and how .venv comes about."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("run", "demo", "test")
ECHO = f"""#!{sys.executable}
import json, os, sys
print(json.dumps({{"argv": sys.argv[1:], "cwd": os.getcwd()}}))
"""
TASKS = """
import os
import pg_backup_tasks
from invoke import task

@task
def where(c):
    "Say where it runs."
    print(os.getcwd(), pg_backup_tasks.__file__, sep="\\n")
"""


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def argv(self) -> list[str]:
        assert self.code == 0, self.err
        argv = json.loads(self.out)["argv"]
        assert isinstance(argv, list)
        return argv


@pytest.fixture(autouse=True)
def _compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Python keep what it compiles, as it does by itself."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)


def run(program: Path, *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> Ran:
    done = subprocess.run([program, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    return Ran(done.returncode, done.stdout, done.stderr)


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A monorepo with our scripts and locks, in a folder whose name has a blank and a quote."""
    tree = tmp_path / "it's a tree"
    shutil.copytree(ROOT / "scripts", tree / "scripts")
    shutil.copytree(ROOT / "requirements", tree / "requirements")
    return tree


@pytest.fixture
def doors(tree: Path) -> Path:
    """The scripts folder, its `inv` replaced by one that says what it was given."""
    executable(tree / "scripts/inv", ECHO)
    return tree / "scripts"


# pg-backup.sh


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ([], ["--type=manual", "--description=Manual backup"]),
        (["production"], ["--type=production", "--description=Manual backup"]),
        (
            ["production", "Before v2.0; it's `big` $HOME=1"],
            ["--type=production", "--description=Before v2.0; it's `big` $HOME=1"],
        ),
        (["", ""], ["--type=manual", "--description=Manual backup"]),
    ],
)
def test_backup_passes_type_and_description(doors: Path, given: list[str], passed: list[str]) -> None:
    assert run(doors / "pg-backup.sh", *given).argv == ["db.backup", *passed]


@pytest.mark.parametrize("script", ["pg-backup.sh", "pg-restore.sh"])
@pytest.mark.parametrize("given", [["--help"], ["-h"], ["x", "--help"]])
def test_help_is_printed_and_nothing_runs(doors: Path, script: str, given: list[str]) -> None:
    code, out, err = run(doors / script, *given)
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: scripts/{script} ")


@pytest.mark.parametrize("script", ["pg-backup.sh", "pg-restore.sh"])
@pytest.mark.parametrize("option", ["--forse", "-x", "--", "--force=yes"])
def test_unknown_options_are_refused(doors: Path, script: str, option: str) -> None:
    code, out, err = run(doors / script, "name", option)
    assert (code, out) == (2, "")
    assert err.startswith(f"Unknown option: {option}\nTry: ")


def test_a_confirm_without_a_name_is_refused(doors: Path) -> None:
    code, out, err = run(doors / "pg-restore.sh", "name", "--confirm")
    assert (code, out) == (2, "")
    assert "Try: " in err


def test_backup_refuses_a_description_without_quotes(doors: Path) -> None:
    code, out, err = run(doors / "pg-backup.sh", "production", "Before", "v2")
    assert (code, out) == (2, "")
    assert 'Try: put the description in quotes: scripts/pg-backup.sh production "' in err


# pg-restore.sh


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A folder with two whole backups, links to the newest, and files of other names."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for name in ("backup_manual_20260101_000009", "backup_manual_20260203_101112"):
        for extension in ("sql", "sql.gz", "dump", "tar", "info"):
            (shelf / f"{name}.{extension}").touch()
    for extension in ("sql", "dump", "info"):
        (shelf / f"backup_manual_latest.{extension}").symlink_to(f"backup_manual_20260203_101112.{extension}")
    for name in ("-odd one.dump", "mine.dump", "mine.tar", "db.list"):
        (shelf / name).touch()
    return shelf


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        (["mine.dump"], ["./mine.dump"]),
        (["db.list", "--clean"], ["./db.list", "--clean"]),
        (["./-odd one.dump", "--force"], ["./-odd one.dump", "--force"]),
        (["--data-only", "mine.dump", "--force"], ["./mine.dump", "--data-only", "--force"]),
        (["mine.dump", "--schema-only", "mine.dump"], ["./mine.dump", "--schema-only"]),
        (["latest"], ["latest"]),
        (["latest", "--confirm", "bar"], ["latest", "--confirm=bar"]),
        (["--confirm=bar", "mine.dump", "--force"], ["./mine.dump", "--confirm=bar", "--force"]),
        (["no/such_*.dump"], ["no/such_*.dump"]),
        (["backup_manual_latest.dump"], ["./backup_manual_latest.dump"]),
        (["backup_manual_20260101_000009.info"], ["./backup_manual_20260101_000009.info"]),
    ],
)
def test_restore_passes_one_file_and_its_options(doors: Path, shelf: Path, given: list[str], passed: list[str]) -> None:
    ran = run(doors / "pg-restore.sh", *given, cwd=shelf)
    assert ran.argv == ["db.restore", *passed]
    assert json.loads(ran.out)["cwd"] == str(shelf)


@pytest.mark.parametrize(
    ("extensions", "chosen"),
    [
        ("dump info sql sql.gz tar", "dump"),
        ("tar sql.gz sql", "tar"),
        ("info sql sql.gz", "sql.gz"),
        ("sql info", "sql"),
    ],
)
def test_files_of_one_backup_count_as_one(doors: Path, shelf: Path, extensions: str, chosen: str) -> None:
    name = "shelf/backup_manual_20260203_101112"
    files = [f"{name}.{extension}" for extension in extensions.split()]
    for given in (files, files[::-1]):
        ran = run(doors / "pg-restore.sh", *given, "--force", cwd=shelf.parent)
        assert ran.argv == ["db.restore", f"{name}.{chosen}", "--force"]


def test_a_glob_that_also_matches_latest_is_one_backup(doors: Path, shelf: Path) -> None:
    for old in shelf.glob("backup_manual_20260101_*"):
        old.unlink()
    given = sorted(str(path) for path in shelf.glob("backup_manual_*"))
    assert any("latest" in name for name in given)
    newest = str(shelf / "backup_manual_20260203_101112.dump")
    assert run(doors / "pg-restore.sh", *given).argv == ["db.restore", newest]


def test_a_dangling_latest_does_not_get_in_the_way(doors: Path, shelf: Path) -> None:
    for newer in shelf.glob("backup_manual_20260203_*"):
        newer.unlink()
    given = sorted(str(path) for path in shelf.glob("backup_manual_*"))
    left = str(shelf / "backup_manual_20260101_000009.dump")
    assert run(doors / "pg-restore.sh", *given).argv == ["db.restore", left]


def test_several_backups_are_refused_and_the_newest_named(doors: Path, shelf: Path) -> None:
    given = sorted(str(path) for path in shelf.glob("backup_manual_*"))
    for files in (given, given[::-1]):
        code, out, err = run(doors / "pg-restore.sh", *files, "--force")
        assert (code, out) == (2, "")
        said, way_out = err.splitlines()
        assert "2 different backups" in said
        assert way_out.startswith("Try: ")
        assert way_out.endswith(f"{shelf}/backup_manual_20260203_101112.dump --force")


def test_the_newest_is_named_as_it_has_to_be_typed(doors: Path, shelf: Path) -> None:
    folder = shelf.rename(shelf.with_name("o'shelf $HOME"))
    code, _, err = run(doors / "pg-restore.sh", *(str(path) for path in folder.glob("*.tar")))
    assert code == 2
    typed = err.split("pg-restore.sh ", 1)[1]
    echo = ["sh", "-c", f'printf %s "$1" {typed}']
    assert subprocess.run(echo, capture_output=True, text=True, check=True).stdout.endswith(
        f"{folder}/backup_manual_20260203_101112.tar"
    )


def test_files_of_other_names_are_backups_of_their_own(doors: Path, shelf: Path) -> None:
    code, out, err = run(doors / "pg-restore.sh", "mine.dump", "mine.tar", cwd=shelf)
    assert (code, out) == (2, "")
    assert "2 different backups" in err


@pytest.mark.parametrize("given", [[], ["--force"], [""]])
def test_restore_without_a_file_shows_its_usage(doors: Path, given: list[str]) -> None:
    code, out, err = run(doors / "pg-restore.sh", *given)
    assert (code, out) == (2, "")
    assert err.startswith("Usage: scripts/pg-restore.sh <file>")


def test_the_old_names_work_through_a_link(doors: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for script in ("pg-backup.sh", "pg-restore.sh"):
        link = tmp_path / "bin" / script
        link.symlink_to(doors / script)
        assert run(link, "latest").argv[0].startswith("db.")


# inv, with a .venv that only says what it was given


@pytest.fixture
def ready(tree: Path) -> Path:
    """A tree whose .venv looks complete."""
    (tree / ".venv/bin").mkdir(parents=True)
    executable(tree / ".venv/bin/python", ECHO)
    for lock in LOCKS:
        shutil.copy(tree / f"requirements/{lock}.lock", tree / ".venv")
    return tree


def test_inv_keeps_the_folder_of_the_caller(ready: Path, tmp_path: Path) -> None:
    ran = run(ready / "scripts/inv", "db.restore", "a b", "--force", cwd=tmp_path)
    invoke = str(ready / ".venv/bin/inv")
    assert ran.argv == [invoke, "-r", str(ready), "--write-pyc", "db.restore", "a b", "--force"]
    assert json.loads(ran.out)["cwd"] == str(tmp_path)
    assert ran.err == ""


@pytest.mark.parametrize("env", [{}, {"HOME": "", "PATH": "/usr/bin:/bin"}])
def test_inv_works_through_a_link_and_in_a_bare_environment(ready: Path, tmp_path: Path, env: dict[str, str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.symlink_to(ready / "scripts/inv")
    second.symlink_to("first")
    assert run(second, "-l", env=env).argv[1:] == ["-r", str(ready), "--write-pyc", "-l"]


@pytest.mark.parametrize(
    ("arguments", "lock"),
    [
        ([], "run"),
        (["-l"], "run"),
        (["db.backup", "--type", "test"], "run"),
        (["--help", "demo"], "run"),
        (["demo"], "demo"),
        (["--echo", "demo", "--fast"], "demo"),
        (["-f", "some.yaml", "demo"], "demo"),
        (["test", "--all"], "test"),
        (["lint"], "test"),
        (["bench"], "test"),
    ],
)
def test_only_what_the_task_needs_is_asked_for(ready: Path, tmp_path: Path, arguments: list[str], lock: str) -> None:
    for other in LOCKS:
        if other != lock:
            (ready / f".venv/{other}.lock").unlink()
    assert run(ready / "scripts/inv", *arguments).argv[4:] == arguments

    # Without its lock it wants to install, which without any Python ends here.
    (ready / f".venv/{lock}.lock").write_text("of yesterday")
    (tmp_path / "bin").mkdir()
    for tool in ("cmp", "readlink"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or tool)
    code, out, err = run(ready / "scripts/inv", *arguments, env={"PATH": str(tmp_path / "bin"), "LC_ALL": "C"})
    if "No Python" not in err:
        pytest.skip("this machine has a Python in /usr/local/bin or /opt/homebrew/bin")
    assert (code, out) == (1, "")
    assert err.startswith("No Python 3.11 or newer was found.\nTry: ")


def test_a_python_without_venv_is_named(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/readlink").symlink_to(shutil.which("readlink") or "readlink")
    for name in ("python3", *(f"python3.{minor}" for minor in range(11, 15))):
        executable(tmp_path / "bin" / name, f"#!/bin/sh\necho /some/{name}\nexit 1\n")
    code, out, err = run(tree / "scripts/inv", "-l", env={"PATH": str(tmp_path / "bin")})
    assert (code, out) == (1, "")
    said, way_out = err.splitlines()
    assert said.startswith("/some/python3 cannot make a virtual environment")
    assert way_out.startswith("Try: apt install python3-venv")
    assert not (tree / ".venv").exists()


def pins(lock: str) -> set[str]:
    lines = (ROOT / f"requirements/{lock}.lock").read_text().splitlines()
    return {line.rstrip(" \\") for line in lines if line[:1].isalnum()}


def test_the_locks_are_nested() -> None:
    assert pins("run") < pins("demo") < pins("test")


# inv, with real installs


@pytest.fixture
def fresh(tree: Path) -> Path:
    """A tree with a task and no .venv."""
    (tree / "pg_backup_tasks").mkdir()
    (tree / "pg_backup_tasks/__init__.py").touch()
    (tree / "tasks.py").write_text(TASKS)
    return tree


def start(tree: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [tree / "scripts/inv", "where"],
        cwd=tree.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def works(ran: Ran, tree: Path) -> bool:
    return ran.code == 0 and ran.out.splitlines() == [
        str(tree.parent),
        str(tree / "pg_backup_tasks/__init__.py"),
    ]


@pytest.mark.slow
def test_an_interrupted_install_is_repaired(fresh: Path) -> None:
    process = start(fresh)
    packages = fresh / ".venv/lib"
    while not list(packages.glob("*/site-packages/invoke")) and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    ran = run(fresh / "scripts/inv", "where", cwd=fresh.parent)
    assert works(ran, fresh), ran
    assert ran.err == "Setting up .venv (first use only) ...\n"

    again = run(fresh / "scripts/inv", "where", cwd=fresh.parent)
    assert works(again, fresh), again
    assert again.err == ""


@pytest.mark.slow
def test_what_is_compiled_is_kept_unless_python_is_told_not_to(fresh: Path) -> None:
    compiled = fresh / "pg_backup_tasks/__pycache__"
    for unwanted in ("1", ""):
        env = os.environ | {"PYTHONDONTWRITEBYTECODE": unwanted}
        assert works(run(fresh / "scripts/inv", "where", cwd=fresh.parent, env=env), fresh)
        assert compiled.exists() is not bool(unwanted)


@pytest.mark.slow
def test_two_at_once_install_once(fresh: Path) -> None:
    both = [start(fresh), start(fresh)]
    said = [process.communicate() for process in both]
    ran = [Ran(process.returncode, *each) for process, each in zip(both, said, strict=True)]
    assert all(works(each, fresh) for each in ran), ran
    assert "".join(each.err for each in ran).count("Setting up") == 1


@pytest.mark.slow
def test_a_lock_that_changed_is_installed_and_pip_is_heard_only_when_it_fails(fresh: Path) -> None:
    inv = fresh / "scripts/inv"
    lock = fresh / "requirements/run.lock"
    good = lock.read_text()
    assert works(run(inv, "where", cwd=fresh.parent), fresh)

    lock.write_text(good + "no-hash-here==1.0\n")
    code, out, err = run(inv, "where", cwd=fresh.parent)
    assert (code, out) == (1, "")
    assert "hash" in err
    assert err.splitlines()[-2].startswith("pip could not install requirements/run.lock")
    assert err.splitlines()[-1].startswith("Try: ")

    lock.write_text(good)
    ran = run(inv, "where", cwd=fresh.parent)
    assert works(ran, fresh), ran
    assert ran.err == "Updating .venv to requirements/run.lock ...\n"

    # The one for cron says nothing of it.
    lock.write_text(good + "#\n")
    ran = run(inv, "db.backup-auto", cwd=fresh.parent)
    assert ran.err == "No idea what 'db.backup-auto' is!\n"
    assert lock.read_text() == (fresh / ".venv/run.lock").read_text()

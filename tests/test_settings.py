"""Settings: every one has a kind, a default and a name that is checked, wherever the value comes from."""

from __future__ import annotations

import pwd
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pg_backup_tasks import running, settings
from pg_backup_tasks.errors import Refused
from pg_backup_tasks.settings import FIELDS, Settings, config, find_root, from_environment, load


@pytest.fixture(autouse=True)
def _no_settings_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FIELDS:
        monkeypatch.delenv(settings.PREFIX + name.upper(), raising=False)


def read(tree: dict[str, Any] | None = None, environ: dict[str, str] | None = None) -> Settings:
    return load(config()["db"] | (tree or {}), environ or {}, Path("/"))


# Kinds


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("allow_pooler", True, True),
        ("allow_pooler", False, False),
        ("allow_pooler", "true", True),
        ("allow_pooler", "FALSE", False),
        ("lock_timeout", 5, 5),
        ("lock_timeout", "5", 5),
        ("lock_timeout", 0, 0),
        ("source", "file", "file"),
        ("source", "", ""),
        ("backups", Path("/b"), "/b"),
        ("pg_bin", "~/x y", "~/x y"),
        ("lock_timeout", None, 30),
    ],
)
def test_a_value_of_the_right_kind(name: str, value: Any, expected: Any) -> None:
    assert getattr(read({name: value}), name) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allow_pooler", 1),
        ("allow_pooler", "maybe"),
        ("allow_pooler", []),
        ("lock_timeout", True),
        ("lock_timeout", 1.5),
        ("lock_timeout", "1.5"),
        ("lock_timeout", "--5"),
        ("lock_timeout", "-"),
        ("lock_timeout", ""),
        ("lock_timeout", "٣"),
        ("lock_timeout", "9" * 5000),
        ("lock_timeout", "SECRET"),
        ("lock_timeout", -1),
        ("jobs", 0),
        ("protected", 5),
        ("in_place", "perhaps"),
        ("lock_timeout", "-1"),
        ("source", "fil"),
        ("source", True),
        ("source", ["file"]),
        ("backups", 5),
        ("backups", False),
        ("backups", ["SECRET"]),
        ("pg_bin", {"SECRET": 1}),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_and_not_repeated(name: str, value: Any) -> None:
    for attempt in (lambda: read({name: value}), lambda: config(**{name: value})):
        with pytest.raises(Refused) as caught:
            attempt()
        assert caught.value.code == 2
        assert name in str(caught.value)
        assert "SECRET" not in str(caught.value)
        assert "999" not in str(caught.value)


@pytest.mark.parametrize("text", ["false", "False", "0", "no", "off", ""])
def test_false_in_the_environment_is_false(text: str) -> None:
    # Invoke itself takes any text for true.
    assert read({"allow_pooler": True}, {"INVOKE_DB_ALLOW_POOLER": text}).allow_pooler is False


@pytest.mark.parametrize("text", ["true", "TRUE", "1", "yes", "on"])
def test_true_in_the_environment_is_true(text: str) -> None:
    assert read({}, {"INVOKE_DB_ALLOW_POOLER": text}).allow_pooler is True


@given(st.sampled_from(sorted(FIELDS)), st.text(st.characters(exclude_characters="\0"), max_size=12))
def test_any_text_in_the_environment_is_a_value_or_refused(name: str, text: str) -> None:
    variable = settings.PREFIX + name.upper()
    try:
        found = from_environment({variable: text})[name]
    except Refused:
        return
    assert type(found) is type(FIELDS[name].default)


# Names


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("backup", "backups"), ("allow_poler", "allow_pooler"), ("pgbin", "pg_bin"), ("locktimeout", "lock_timeout")],
)
def test_an_unknown_name_is_refused_with_the_nearest(wrong: str, nearest: str) -> None:
    for attempt in (lambda: read({wrong: "x"}), lambda: config(**{wrong: "x"})):
        with pytest.raises(Refused) as caught:
            attempt()
        assert wrong in str(caught.value.message)
        assert caught.value.hint == nearest


def test_an_unknown_variable_is_refused_with_the_nearest() -> None:
    with pytest.raises(Refused) as caught:
        from_environment({"INVOKE_DB_SORCE": "SECRET"})
    assert "INVOKE_DB_SORCE" in str(caught.value.message)
    assert caught.value.hint == "INVOKE_DB_SOURCE"
    assert "SECRET" not in str(caught.value)


def test_a_name_near_to_nothing_is_answered_with_all() -> None:
    with pytest.raises(Refused) as caught:
        config(zzzzzz=1)
    assert all(name in str(caught.value.hint) for name in FIELDS)


def test_a_user_without_a_home_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: int) -> None:
        raise KeyError

    # As in a container that runs under a number nobody has given a name.
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert running.config()["db"].keys() == FIELDS.keys()


def test_a_wrong_variable_is_told_by_config_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # Invoke passes over names it does not know, and dies on what it cannot cast.
    monkeypatch.setenv("INVOKE_DB_NONSENSE", "1")
    with pytest.raises(Refused, match="INVOKE_DB_NONSENSE"):
        config()
    monkeypatch.delenv("INVOKE_DB_NONSENSE")
    monkeypatch.setenv("INVOKE_DB_LOCK_TIMEOUT", "SECRET")
    with pytest.raises(Refused, match="INVOKE_DB_LOCK_TIMEOUT"):
        config()


def test_variables_of_others_are_left_alone() -> None:
    assert from_environment({"INVOKE_RUN_ECHO": "1", "INVOKE_DBX": "1", "PGPORT": "1", "DB_SOURCE": "file"}) == {}


# Where they come from


def test_config_is_the_whole_tree() -> None:
    # `ns.configure` on a parent replaces the child's whole `db`, so it must never be a part of one.
    tree = config(lock_timeout=5)
    assert list(tree) == ["db"]
    assert tree["db"] == dict.fromkeys(FIELDS) | {"retention": {}, "hosts": {}, "lock_timeout": 5}


def test_what_goes_over_what() -> None:
    tree = config(lock_timeout=5, pg_bin="/config")["db"]
    assert load(tree, {}, Path("/")).lock_timeout == 5
    found = load(tree, {"INVOKE_DB_LOCK_TIMEOUT": "7"}, Path("/"))
    assert (found.lock_timeout, found.pg_bin, found.connect_timeout) == (7, "/config", 10)


def test_the_environment_goes_over_what_invoke_made_of_it() -> None:
    # Invoke casts to the type of the value it goes over, and a wrong cast must not be an error of ours.
    assert load({"lock_timeout": "seven"}, {"INVOKE_DB_LOCK_TIMEOUT": "7"}, Path("/")).lock_timeout == 7


# The root


@pytest.mark.parametrize("marker", ["pnpm-workspace.yaml", "tasks.py", ".git"])
def test_the_root_is_found_from_below(tmp_path: Path, marker: str) -> None:
    (tmp_path / marker).touch()
    below = tmp_path / "packages" / "api"
    below.mkdir(parents=True)
    assert find_root(below) == tmp_path
    assert find_root(tmp_path) == tmp_path


def test_a_workspace_is_more_than_tasks_and_tasks_more_than_a_checkout(tmp_path: Path) -> None:
    below = tmp_path / "packages" / "api"
    (below / ".git").mkdir(parents=True)
    assert find_root(below) == below
    (tmp_path / "packages" / "tasks.py").touch()
    assert find_root(below) == tmp_path / "packages"
    (tmp_path / "pnpm-workspace.yaml").touch()
    assert find_root(below) == tmp_path


def test_without_any_mark_it_is_where_we_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert find_root(tmp_path) == tmp_path


def test_relative_paths_start_at_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    found = load(config(root=tmp_path)["db"], {}, Path("/"))
    assert found.root == str(tmp_path)
    assert found.under_root(found.backups) == f"{tmp_path}/backups/postgres"
    assert found.under_root("/elsewhere") == "/elsewhere"
    assert found.under_root("~/b") == "/home/somebody/b"


def test_every_setting_has_a_sentence_in_the_readme() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert [name for name in FIELDS if f"| `{name}` |" not in readme] == []


def test_a_root_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=f"names no folder: {tmp_path}/typo"):
        load({}, {"INVOKE_DB_ROOT": f"{tmp_path}/typo"}, tmp_path)

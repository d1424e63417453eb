"""Passwords are hidden wherever they stand, and no other word with them."""

from __future__ import annotations

import pytest
from conftest import Project, Server
from hypothesis import given
from hypothesis import strategies as st

from pg_backup_tasks.hiding import hide

URL = "postgres://bar:s3cret%2F@h:5432/happy"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("it is s3cret/.", "it is ***."),
        ("PGPASSWORD=s3cret/", "PGPASSWORD=***"),
        (f"psql {URL} failed", "psql postgres://bar:***@h:5432/happy failed"),
        ("xs3cret/x", "x***x"),
    ],
)
def test_a_password_anywhere(text: str, left: str) -> None:
    assert hide(text, ["s3cret/"], ["happy", "bar", "h"]) == left


def test_a_whole_url() -> None:
    assert hide(f"at {URL}, h", ["s3cret/", URL], ["postgres", "happy"]) == "at ***, h"


@pytest.mark.parametrize(
    ("secret", "text"),
    [
        ("happy", "Database happy on h:5432 as bar (from packages/database/.env)"),
        ("happy", "happy_before_1 in /srv/happy bar/backups"),
        ("database", "Database happy on h:5432 as bar (from packages/database/.env)"),
        ("password", "happy does not accept this user and password."),
        ("srv/", "The backup folder /srv/happy bar/backups cannot be used."),
        ("manual", "backup_manual_20261122_143022 is newer and not whole"),
        ("bar", "Cannot connect to happy on h:5432 as bar: a barrier."),
        ("", "Nothing is hidden."),
    ],
)
def test_what_is_shown_anyway_stays(secret: str, text: str) -> None:
    shown = ("happy", "bar", "h", "/srv/happy bar/backups")
    assert hide(text, [secret], shown) == text


@pytest.mark.parametrize("secret", ["happy", "bar", "x", "password", "postgres"])
def test_a_password_that_is_an_ordinary_word_is_hidden_in_its_place(secret: str) -> None:
    for before, after in (
        ("postgres://bar:", "@h/happy"),
        ("PGPASSWORD=", ""),
        ('"password": "', '"'),
        ("password='", "'"),
    ):
        assert hide(f"{before}{secret}{after}", [secret], ["happy", "bar"]) == f"{before}***{after}"


def test_a_word_that_holds_what_is_shown_is_hidden() -> None:
    assert hide("barrel of bar", ["barrel"], ["bar"]) == "*** of bar"


@given(st.text(min_size=4), st.text(), st.text())
def test_nothing_of_it_is_left(secret: str, before: str, after: str) -> None:
    if secret not in "backups database password postgresql restore backup_a_12345678_123456 ***":
        assert secret not in hide(f"{before}{secret}{after}", [secret]) or secret in f"{before}***{after}"


def test_a_password_like_a_folder_and_like_the_user(project: Project, server: Server, database: str) -> None:
    user = f"{database}_u"
    server.sql(f"create role {user} login superuser password '{user}'")
    try:
        project.use(f"postgresql://{user}:{user}@127.0.0.1:{server.embedded.port}/{database}")
        done = project.inv("db.migrate", "--command", 'echo "$DATABASE_URL"; echo postgres://a:$PGPASSWORD@x')
        assert done.code == 0, done.err
        assert done.err.startswith(f"Database {database} on 127.0.0.1:{server.embedded.port} as {user} (from packages/")
        assert "\n***\n" in done.err
        assert done.err.count(user) == 1
    finally:
        server.drop(database)
        server.sql(f"drop role {user}")

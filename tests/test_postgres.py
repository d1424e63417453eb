"""PostgreSQL's side, pure: which tools, the exact commands, quoting that a server agrees with, errors in sentences."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from conftest import Server
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pg_backup_tasks import postgres, process, url
from pg_backup_tasks.errors import Failed, TaskError, Unreachable
from pg_backup_tasks.machine import CommandError, Done, Session
from pg_backup_tasks.model import Command, Database
from pg_backup_tasks.postgres import Tools

BAR = Database(
    "happy bar", "db.example.com", 5433, "bar", "SECRET'\\ pw", (("keepalives_idle", "5"), ("sslmode", "require"))
)
TOOLS = Tools("/usr/lib/postgresql/17/bin", "17.10")


# Tools


versions = st.builds("{}.{}".format, st.integers(13, 19), st.integers(0, 30))
folders = st.sampled_from(["/usr/bin", "/usr/lib/postgresql/x/bin", "/opt/a/bin", "/opt/b/bin", "/opt/c/bin"])
tool_sets = st.lists(st.builds(Tools, folders, versions), max_size=5)


@given(tool_sets, st.integers(13, 19))
def test_tools_are_never_older_than_the_server_and_its_own_version_wins(found: list[Tools], major: int) -> None:
    majors = [t.major for t in found]
    try:
        chosen = postgres.choose_tools(found, major)
    except Failed:
        assert all(m < major for m in majors)
        return
    assert chosen in found
    assert chosen.major >= major
    assert chosen.major == min(m for m in majors if m >= major)
    if chosen.folder == "/usr/bin":
        assert not any(t.major == chosen.major and t.folder != "/usr/bin" for t in found)


def test_among_equals_the_first_found_is_chosen() -> None:
    found = [Tools("/asked/for", "17.1"), Tools("/usr/lib/postgresql/17/bin", "17.10")]
    assert postgres.choose_tools(found, 17).folder == "/asked/for"


@given(tool_sets)
def test_any_tools_are_the_newest(found: list[Tools]) -> None:
    assume(found)
    assert postgres.any_tools(found).major == max(t.major for t in found)


def test_no_tools_at_all() -> None:
    with pytest.raises(Failed, match="not on this machine") as caught:
        postgres.choose_tools([], 17)
    assert caught.value.code == 1
    assert "INVOKE_DB_PG_BIN" in str(caught.value)
    with pytest.raises(Failed, match="not on this machine"):
        postgres.any_tools([])


def test_tools_too_old_say_both_versions() -> None:
    with pytest.raises(Failed) as caught:
        postgres.choose_tools([Tools("/a", "15.18"), Tools("/b", "16.2")], 17)
    assert "PostgreSQL 17" in str(caught.value.message)
    assert "16.2" in str(caught.value.message)
    assert "postgresql-client-17" in str(caught.value.hint)


def test_versions_as_pg_dump_prints_them() -> None:
    found = postgres.parse_tools(
        [
            ("/usr/lib/postgresql/15/bin", "pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"),
            ("/usr/lib/postgresql/15/bin", "pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"),
            ("/opt/beta/bin", "pg_dump (PostgreSQL) 19beta1"),
            ("/opt/devel/bin", "pg_dump (PostgreSQL) 20devel"),
            ("/opt/other/bin", "pg_dump (EnterpriseDB) x"),
            ("/opt/broken/bin", ""),
        ]
    )
    assert found == [
        Tools("/usr/lib/postgresql/15/bin", "15.18"),
        Tools("/opt/beta/bin", "19"),
        Tools("/opt/devel/bin", "20"),
    ]


@pytest.mark.parametrize(
    ("version", "knows"),
    [
        *(("12.22", False), ("13.21", False), ("13.22", True), ("14.19", True), ("15.13", False), ("15.14", True)),
        *(("16.2", False), ("16.10", True), ("17.5", False), ("17.6", True), ("18.0", True), ("19", True)),
    ],
)
def test_which_psql_knows_restrict(version: str, knows: bool) -> None:
    assert Tools("/x", version).knows_restrict is knows


# Commands

ENVIRONMENT = (
    ("PGAPPNAME", "pg_backup_tasks"),
    ("PGDATABASE", "happy bar"),
    ("PGHOST", "db.example.com"),
    ("PGPORT", "5433"),
    ("PGSSLMODE", "require"),
    ("PGUSER", "bar"),
)
SECRETS = (("PGPASSWORD", "SECRET'\\ pw"),)
DBNAME = "--dbname=dbname='happy bar' keepalives_idle='5' keepalives_interval='10' keepalives_count='3'"


def test_psql_to_ask() -> None:
    assert postgres.psql(TOOLS, BAR, ("--file=-",)) == Command(
        (
            "/usr/lib/postgresql/17/bin/psql",
            "--no-password",
            "--no-psqlrc",
            "--no-align",
            "--tuples-only",
            "--quiet",
            "--set=ON_ERROR_STOP=1",
            "--file=-",
            DBNAME,
        ),
        (*ENVIRONMENT, ("PGCLIENTENCODING", "UTF8")),
        SECRETS,
    )


def test_psql_to_load() -> None:
    assert postgres.psql_loading(TOOLS, BAR, "-c a=b") == Command(
        (
            "/usr/lib/postgresql/17/bin/psql",
            "--no-password",
            "--no-psqlrc",
            "--quiet",
            "--set=ON_ERROR_STOP=1",
            "--output=/dev/null",
            "--file=-",
            DBNAME,
        ),
        tuple(sorted((*ENVIRONMENT, ("PGOPTIONS", "-c a=b")))),
        SECRETS,
    )


@pytest.mark.parametrize(
    ("archive", "timeout", "arguments"),
    [
        ("custom", 30, ("--format=custom", "--compress=2", "--lock-wait-timeout=30000")),
        ("tar", 0, ("--format=tar",)),
    ],
)
def test_pg_dump_of_a_snapshot(archive: str, timeout: int, arguments: tuple[str, ...]) -> None:
    command = postgres.pg_dump(
        TOOLS, BAR, archive=archive, path="/b/x y", snapshot="0-1-1", lock_timeout=timeout, options=""
    )
    assert command == Command(
        (
            "/usr/lib/postgresql/17/bin/pg_dump",
            "--no-password",
            *arguments,
            "--snapshot=0-1-1",
            "--file=/b/x y",
            DBNAME,
        ),
        ENVIRONMENT,
        SECRETS,
    )


def test_pg_restore_needs_no_database() -> None:
    assert postgres.print_sql(TOOLS) == Command(("/usr/lib/postgresql/17/bin/pg_restore", "--file=-"))
    assert postgres.list_archive(TOOLS, "/b/x") == Command(("/usr/lib/postgresql/17/bin/pg_restore", "--list", "/b/x"))


def test_the_options_of_a_url_come_before_ours() -> None:
    database = Database("d", parameters=(("application_name", "bar"), ("options", "-c geqo=off")))
    command = postgres.connected(TOOLS, "pg_dump", database, (), options="-c a=b")
    assert dict(command.env)["PGOPTIONS"] == "-c geqo=off -c a=b"
    assert dict(command.env)["PGAPPNAME"] == "bar"
    assert command.secrets == ()


@given(st.text(st.characters(codec="utf-8", min_codepoint=33), min_size=4).filter(lambda p: p not in "/usr/bin/psql"))
def test_no_command_has_the_password_in_its_arguments(password: str) -> None:
    database = Database("d", "h", user="u", password=f"xq{password}")
    for command in (postgres.psql(TOOLS, database), postgres.psql_loading(TOOLS, database, "")):
        assert not any(database.password in word for word in command.argv)
        assert not any(database.password in value for _, value in command.env)
        assert database.password not in repr(command)


# Quoting

# What is quoted wrongly leaves psql waiting for the end of a string.
SOON = 10.0


@pytest.fixture(scope="module")
def session(server: Server) -> Iterator[Session]:
    tools = Tools(str(server.embedded.bin), "18")
    command = postgres.psql(tools, url.parse(server.embedded.url(), "the test").database)
    with process.converse(command) as session:
        session.ask("create temporary table quoted (v text)")
        yield session


anything = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@given(text=anything | st.text("\\'\"$:;\n e"))
@settings(max_examples=150)
def test_a_literal_is_its_text(session: Session, text: str) -> None:
    assert json.loads(session.ask(f"select to_json({postgres.literal(text)}::text)", SOON)) == text


@given(name=(anything | st.text("\\'\"$:;\n e", max_size=20)).filter(lambda n: 0 < len(n.encode()) < 64))
@settings(max_examples=150)
def test_an_identifier_is_its_name(session: Session, name: str) -> None:
    found = json.loads(session.ask(f"select row_to_json(r) from (select 1 as {postgres.identifier(name)}) r", SOON))
    assert found == {name: 1}


@pytest.mark.parametrize("standard", ["on", "off"])
def test_a_literal_does_not_depend_on_the_servers_dialect(session: Session, standard: str) -> None:
    session.ask(f"set standard_conforming_strings = {standard}")
    text = "it's a \\ and a \\' and \n"
    assert json.loads(session.ask(f"select to_json({postgres.literal(text)}::text)", SOON)) == text
    session.ask("reset standard_conforming_strings")


# Encodings


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("UTF8", "ü日"),
        ("LATIN1", "ü"),
        ("WIN1252", "€"),
        ("EUC_JP", "日"),
        ("SQL_ASCII", "x"),
        ("UHC", "한"),
        ("KOI8R", "ж"),
        ("KOI8U", "ї"),
    ],
)
def test_a_codec_for_each_encoding(session: Session, encoding: str, text: str) -> None:
    hexadecimal = session.ask(f"select encode(convert_to({postgres.literal(text)}, '{encoding}'), 'hex')")
    assert bytes.fromhex(hexadecimal).decode(postgres.codec(encoding)) == text


def test_an_encoding_without_a_codec_never_fails() -> None:
    assert bytes(range(256)).decode(postgres.codec("MULE_INTERNAL"))
    assert bytes(range(128)).decode(postgres.codec("EUC_TW"))


# Errors

AT = 'connection to server at "db.example.com", port 5433 failed:'
LOCKS = "pg_dump: detail: Query was: LOCK TABLE public.guests IN ACCESS SHARE MODE\n"


def explained(err: str, code: int = 1, program: str = "pg_dump", database: Database = BAR) -> TaskError:
    return postgres.explain(CommandError(Command((f"/x/{program}",)), Done(code, "", err)), database, "dump")


# What the tools of 15, 17 and 18 really said.
SAMPLES = [
    (f'psql: error: {AT} FATAL:  password authentication failed for user "bar"\n', Unreachable, "user and password"),
    (f"psql: error: {AT} fe_sendauth: no password supplied\n", Unreachable, "user and password"),
    (f'psql: error: {AT} FATAL:  Peer authentication failed for user "bar"\n', Unreachable, "user and password"),
    (
        (f"psql: error: {AT} Connection refused\n"
        "\tIs the server running on that host and accepting TCP/IP connections?\n"),
        Unreachable,
        "Nobody listens",
    ),
    (
        ('psql: error: connection to server on socket "/tmp/.s.PGSQL.5433" failed: No such file or directory\n'
        "\tIs the server running locally and accepting connections on that socket?\n"),
        Unreachable,
        "Nobody listens",
    ),
    (
        'psql: error: could not translate host name "db.example.com" to address: Name or service not known\n',
        Unreachable,
        "host of",
    ),
    (f'psql: error: {AT} FATAL:  database "happy bar" does not exist\n', Unreachable, "There is no database happy bar"),
    (f'psql: error: {AT} FATAL:  role "bar" does not exist\n', Unreachable, "no such user"),
    (f"psql: error: {AT} timeout expired\n", Unreachable, "does not answer"),
    (
        f'psql: error: {AT} FATAL:  no pg_hba.conf entry for host "1.2.3.4", user "bar", database "d", no encryption\n',
        Unreachable,
        "pg_hba.conf",
    ),
    (
        f"pg_dump: error: query failed: ERROR:  canceling statement due to statement timeout\n{LOCKS}",
        Failed,
        "holds a lock",
    ),
    (f"pg_dump: error: query failed: ERROR:  canceling statement due to lock timeout\n{LOCKS}", Failed, "holds a lock"),
    (
        ('pg_dump: error: query failed: ERROR:  query would be affected by row-level security policy for table "bar"\n'
        "HINT:  To disable the policy for the table's owner, use ALTER TABLE NO FORCE ROW LEVEL SECURITY.\n"
        "pg_dump: detail: Query was: COPY public.bar (id, who) TO stdout;\n"),
        Failed,
        "Row-level security hides rows of bar",
    ),
    (
        ("pg_dump: error: query failed: ERROR:  permission denied for sequence sq\n"
        "pg_dump: detail: Query was: SELECT last_value, is_called FROM public.sq\n"),
        Failed,
        "may not read sq in happy bar",
    ),
    ("ERROR:  permission denied for table guests\n", Failed, "may not read guests"),
    (
        (
            'pg_dump: error: failed to get data for sequence "sq"; user may lack SELECT privilege on the sequence or'
            " the sequence may have been concurrently dropped\n"
        ),
        Failed,
        "may not read sq",
    ),
    (
        ("pg_dump: error: aborting because of server version mismatch\n"
        "pg_dump: detail: server version: 18.6; pg_dump version: 15.18 (Debian 15.18-0+deb12u1)\n"),
        Failed,
        "older than the server",
    ),
    ("pg_dump: error: could not write to output file: No space left on device\n", Failed, "disk became full"),
    ("pg_restore: error: unsupported version (1.16) in file header\n", Failed, "archive version 1.16"),
    ("ERROR:  out of shared memory\nHINT:  You might increase max_locks_per_transaction.\n", Failed, "lock table"),
]  # fmt: skip


@pytest.mark.parametrize(("err", "kind", "part"), SAMPLES)
def test_what_postgresql_says_becomes_a_sentence(err: str, kind: type[TaskError], part: str) -> None:
    error = explained(err)
    assert type(error) is kind
    assert part in str(error.message)
    assert str(error.message).endswith(".")
    assert "\n" not in str(error.message)
    assert error.hint


@pytest.mark.parametrize(
    ("err", "part"),
    [
        (f"pg_dump: error: query failed: ERROR:  permission denied for table guests\n{LOCKS}", "may not read guests"),
        (
            (
                "pg_dump: error: query failed: ERROR:  out of shared memory\n"
                f'HINT:  You might need to increase "max_locks_per_transaction".\n{LOCKS}'
            ),
            "lock table",
        ),
    ],
)
def test_what_failed_is_not_mistaken_for_the_query_that_failed(err: str, part: str) -> None:
    assert part in str(explained(err).message)


@pytest.mark.parametrize(
    "err",
    [
        'psql:<stdin>:35: ERROR:  role "bob" does not exist\n',
        'psql:<stdin>:35: ERROR:  database "other" does not exist\n',
        (
            'psql:<stdin>:9: ERROR:  duplicate key value violates unique constraint "logs_pkey"\n'
            'DETAIL:  Key (text)=(Connection refused) already exists.\nCONTEXT:  COPY logs, line 1: "timeout expired"\n'
        ),
    ],
)
def test_what_a_dump_says_is_not_mistaken_for_the_connection(err: str) -> None:
    error = explained(err, 3, "psql")
    assert type(error) is Failed
    assert err.splitlines()[0].rpartition("ERROR:  ")[2] in str(error.message)


@pytest.mark.parametrize(
    ("err", "code", "program", "kind", "part"),
    [
        # a client that speaks another language, a future version, a pooler
        ("psql: Fehler: Verbindung fehlgeschlagen: Zeitüberschreitung\n", 2, "psql", Unreachable, "Zeitüber"),
        (f'psql: error: {AT} FATAL:  too many connections for role "bar"\n', 2, "psql", Unreachable, "too many"),
        ("pg_dump: error: the moon is in the wrong house\n", 1, "pg_dump", Failed, "the moon is in the wrong house."),
        ("pg_dump: warning: a\npg_dump: error: b\npg_dump: detail: c\n", 1, "pg_dump", Failed, ": b."),
        ("psql:<stdin>:12: ERROR:  column \"x\" is of type int\n", 3, "psql", Failed, 'column "x" is of type int.'),
        ("", 1, "pg_dump", Failed, "it gave no reason."),
        ("", 137, "pg_dump", Failed, "ended by signal 9"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_passed_on(err: str, code: int, program: str, kind: type[TaskError], part: str) -> None:
    error = explained(err, code, program)
    assert type(error) is kind
    assert part in str(error.message)
    assert "\n" not in str(error.message)


@given(st.text(max_size=60), st.integers(1, 255), st.sampled_from(["psql", "pg_dump", "pg_restore"]))
def test_every_error_is_one_sentence(err: str, code: int, program: str) -> None:
    error = explained(err, code, program)
    assert error.code in (1, 4)
    assert len(str(error.message).splitlines()) == 1


def test_names_with_braces_are_no_format() -> None:
    database = Database("{0}{x}", "{host}", user="{user}")
    assert "{0}{x} on {host}:5432 as {user}" in str(explained("Connection refused", 2, "psql", database))


@pytest.mark.parametrize("err", [s[0] for s in SAMPLES] + ["psql: error: what is SECRET'\\ pw?\n"])
def test_no_error_shows_the_password(err: str) -> None:
    for said in (err, err.replace("\n", f" {BAR.password}\n", 1), f"{BAR.password}\n{err}"):
        assert "SECRET" not in str(explained(said, 2, "psql"))

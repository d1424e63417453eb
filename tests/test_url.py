"""A URL is read as libpq reads it or refused, and a refusal never repeats any of it."""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import string
import traceback
from dataclasses import replace
from urllib.parse import quote

import pytest
from conftest import Server, missing
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pg_backup_tasks import postgres, process, url
from pg_backup_tasks.embedded import find_bins
from pg_backup_tasks.errors import Refused
from pg_backup_tasks.model import Database
from pg_backup_tasks.postgres import Tools

WHERE = "packages/database/.env"

# What a password may be: anything but control characters, which no line can carry.
secret = st.text(
    st.characters(codec="utf-8", min_codepoint=32, exclude_characters="\x7f") | st.sampled_from("/@#?%[]: \\'\"&=+$`"),
    min_size=1,
    max_size=20,
)


def read(text: str) -> Database:
    return url.parse(text, WHERE).database


def encoded(part: str) -> str:
    return quote(part, safe="")


# Every form that is met


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://u:p@h:5433/d", Database("d", "h", 5433, "u", "p")),
        ("postgres://u:p@h/d", Database("d", "h", 5432, "u", "p")),
        ("postgresql://u@h/d", Database("d", "h", 5432, "u")),
        ("postgresql://h/d", Database("d", "h")),
        ("postgresql://:p@h/d", Database("d", "h", password="p")),
        ("postgresql:///d", Database("d")),
        ("postgresql://u:p@/d", Database("d", user="u", password="p")),
        ("postgresql://u:p:q@h/d", Database("d", "h", user="u", password="p:q")),
        ("postgresql://u:p[q]@h/d", Database("d", "h", user="u", password="p[q]")),
        ("postgresql://u@h:/d", Database("d", "h", user="u")),
        ("postgresql://u@[::1]:5433/d", Database("d", "::1", 5433, "u")),
        ("postgresql://u@[fe80::1%25eth0]/d", Database("d", "fe80::1%eth0", user="u")),
        ("postgresql://[2001:db8::1]/d", Database("d", "2001:db8::1")),
        ("postgresql:///d?host=/var/run/postgresql", Database("d", "/var/run/postgresql")),
        ("postgresql://localhost/d?host=/tmp/my%20sock", Database("d", "/tmp/my sock")),
        ("postgresql://%2Ftmp%2Fsock/d", Database("d", "/tmp/sock")),
        ("postgresql://u:p@h:1/d?host=i&port=2&user=v&password=q&dbname=e", Database("e", "i", 2, "v", "q")),
        ("postgresql://h?dbname=d", Database("d", "h")),
        ("postgresql://h/d?host=i&host=j", Database("d", "j")),
        ("postgresql://M%C3%BCller:%70%2f%40%23%3F%25@h/A%20x", Database("A x", "h", 5432, "Müller", "p/@#?%")),
        ("postgresql://Müller:pässwort@h/日本", Database("日本", "h", 5432, "Müller", "pässwort")),
        ("postgresql://u:a+b@h/d", Database("d", "h", user="u", password="a+b")),
        (" postgresql://h/d\r\n", Database("d", "h")),
    ],
)  # fmt: skip
def test_what_a_url_says(text: str, expected: Database) -> None:
    assert read(text) == replace(expected, source=WHERE)


@given(user=secret, password=secret, name=secret)
def test_percent_encoding_comes_back_as_it_was(user: str, password: str, name: str) -> None:
    found = read(f"postgresql://{encoded(user)}:{encoded(password)}@h/{encoded(name)}")
    assert (found.user, found.password, found.name) == (user, password, name)


def test_parameters_of_libpq_are_passed_on_and_those_of_others_named_once() -> None:
    text = (
        "postgresql://h/d?schema=public&sslmode=verify-full&connection_limit=5&schema=x&connect_timeout=3"
        "&options=-c%20geqo%3Doff&keepalives=1&sslaccept=strict&statement_cache_size=0&application_name=bar&client_encoding=LATIN1"
    )
    parsed = url.parse(text, WHERE)
    assert parsed.left_out == ("schema", "connection_limit", "sslaccept", "statement_cache_size")
    assert dict(parsed.database.parameters) == {
        "application_name": "bar",
        "connect_timeout": "3",
        "keepalives": "1",
        "options": "-c geqo=off",
        "sslmode": "verify-full",
    }
    assert dict(url.environment(parsed.database)) == {
        "PGAPPNAME": "bar",
        "PGCONNECT_TIMEOUT": "3",
        "PGDATABASE": "d",
        "PGHOST": "h",
        "PGOPTIONS": "-c geqo=off",
        "PGPORT": "5432",
        "PGSSLMODE": "verify-full",
    }


FOREIGN = """
    schema connection_limit pgbouncer sslaccept sslidentity socket_timeout pool_timeout statement_cache_size timezone
    single_use_connections uselibpqcompat statement_timeout search_path max workaround supa SSLMODE
"""


@pytest.mark.parametrize("key", FOREIGN.split())
def test_what_libpq_refuses_is_left_out(key: str) -> None:
    parsed = url.parse(f"postgresql://h/d?{key}=secret", WHERE)
    assert parsed.left_out == (key,)
    assert parsed.database == Database("d", "h", source=WHERE)


@pytest.mark.parametrize(
    ("query", "mode"),
    [
        ("ssl=true", "require"),
        ("ssl=1", "require"),
        ("ssl=false", "prefer"),
        ("sslmode=no-verify", "require"),
        ("sslmode=verify-ca&ssl=true", "verify-ca"),
        ("ssl=true&sslmode=verify-ca", "verify-ca"),
    ],
)
def test_words_for_encryption(query: str, mode: str) -> None:
    assert dict(read(f"postgresql://h/d?{query}").parameters) == {"sslmode": mode}


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://h:6543/d",
        "postgresql://ep-x-pooler.eu.aws.neon.tech/d",
        "postgresql://pooled.db.prisma.io/d",
        "postgresql://h/d?pgbouncer=true",
    ],
)
def test_a_pooler_is_noticed(text: str) -> None:
    assert url.parse(text, WHERE).pooled
    assert not url.parse("postgresql://h/d?pgbouncer=false", WHERE).pooled


# Refusals


@pytest.mark.parametrize(
    "text",
    [
        "",
        "d",
        "host=h dbname=d",
        "prisma://accelerate.example/?api_key=SECRET",
        "prisma+postgres://h/?api_key=SECRET",
        "postgresql+psycopg://u:SECRET@h/d",
        "POSTGRESQL://u:SECRET@h/d",
        '"postgresql://u:SECRET@h/d"',
        "mysql://u:SECRET@h/d",
        "postgresql:u:SECRET@h/d",
        "postgresql://u:SEC/RET@h/d",
        "postgresql://u:SEC@RET@h/d",
        "postgresql://u:SEC#RET@h/d",
        "postgresql://u:SEC?RET@h/d",
        "postgresql://u:SEC@RET/x?SECRET=z@h/d",
        "postgresql://u:SEC RET@h/d",
        "postgresql://u:SEC\\RET@h/d",
        "postgresql://u:SEC%RET@h/d",
        "postgresql://u:SEC%zzRET@h/d",
        "postgresql://u:SECRET%@h/d",
        "postgresql://u:SECRET%2@h/d",
        "postgresql://u:SECRET%ff@h/d",
        "postgresql://u:SECRET\udcff@h/d",
        "postgresql://u:SECRET%00@h/d",
        "postgresql://u:SECRET%0A@h/d",
        "postgresql://u:SEC\nRET@h/d",
        "postgresql://u:p@h",
        "postgresql://u:p@h/",
        "postgresql://u:p@h/d?dbname=",
        "postgresql://u:p@h/d/e",
        "postgresql://u:p@h:SECRET/d",
        "postgresql://u:p@h:0/d",
        "postgresql://u:p@h:65536/d",
        "postgresql://u:p@h:-1/d",
        "postgresql://u:p@h:٣/d",
        "postgresql://u:p@h/d?port=" + "9" * 5000,
        "postgresql://u:p@h:1:2/d",
        "postgresql://u:p@[::1/d",
        "postgresql://u:p@::1/d",
        "postgresql://u:p@h,i/d",
        "postgresql://u:p@h:1,i:2/d",
        "postgresql://h/d?host=h,i",
        "postgresql://h/d?service=SECRET",
        "postgresql://h/d?sslpassword=SECRET",
        "postgresql://h/d?SECRET",
        "postgresql://h/d?=SECRET",
        "postgresql://h/d?a%20SECRET=b",
        "postgresql://h/d?sslmode=%zzSECRET",
    ],
)
def test_what_is_not_certain_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(Refused) as caught:
        url.parse(text, WHERE)
    said = str(caught.value)
    assert caught.value.code == 2
    assert WHERE in said
    assert "Try: " in said
    assert not any(part in said for part in ("SEC", "RET", "99999"))


def fails(text: str) -> str | None:
    """Return what is said of a URL that is refused, and of all that led to it."""
    try:
        url.parse(text, WHERE)
    except Refused as error:
        return "".join(traceback.format_exception(error))
    return None


# Marks that stand in no sentence of ours, so that finding one in an error is a leak.
mark = st.integers(10**9, 10**10 - 1).map(lambda n: f"xq{n}")
odd = st.text(string.ascii_letters + string.digits + "/@#?%[]: \\'\"&=+$;,\n\t\xa0ü", max_size=8)


@given(user=mark, one=mark, two=mark, name=mark, junk=st.tuples(odd, odd, odd), plain=st.booleans())
@settings(max_examples=500)
def test_no_error_holds_any_part_of_a_url(
    user: str, one: str, two: str, name: str, junk: tuple[str, str, str], plain: bool
) -> None:
    password = f"{one}{junk[0]}{two}"
    scheme = "postgresql" if plain else junk[1] + "sql"
    said = fails(f"{scheme}://{user}:{password}@{name}{junk[2]}/{name}") or ""
    assert not any(part in said for part in (user, one, two, name))


@given(one=mark, junk=odd.filter(lambda j: bool(set(j) & set("/@#?"))), two=mark)
def test_a_password_that_is_not_encoded_is_never_taken_for_something_else(one: str, junk: str, two: str) -> None:
    assert fails(f"postgresql://u:{one}{junk}{two}@h/d") is not None


@given(text=st.text(max_size=60) | st.text("postgrsql:/@?&=%[]0123456789,.#-abc", max_size=60))
@example("postgresql://[::1]]/d")
def test_any_text_is_read_or_refused(text: str) -> None:
    fails(text)
    fails(f"postgresql://{text}")


# The same database


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("postgresql://a:1@localhost/d", "postgres://b:2@127.0.0.1:5432/d?schema=x", True),
        ("postgresql://[::1]/d", "postgres://LOCALHOST/d", True),
        ("postgresql://DB.example.com/d", "postgresql://db.example.com/d", True),
        ("postgresql://h/d", "postgresql://h/D", False),
        ("postgresql://h/d", "postgresql://h:5433/d", False),
        ("postgresql://h/d", "postgresql://i/d", False),
        ("postgresql:///d?host=/tmp", "postgresql:///d?host=/var/run/postgresql", False),
        ("postgresql://h/d?hostaddr=10.0.0.1", "postgresql://h/d?hostaddr=10.0.0.2", False),
        ("postgresql://h/d?hostaddr=127.0.0.1", "postgresql://localhost/d", True),
        ("postgresql://h/d?host=i", "postgresql://i/d", True),
    ],
)
def test_which_urls_name_the_same_database(one: str, other: str, same: bool) -> None:
    assert url.same_database(read(one), read(other)) is same
    assert url.same_database(read(other), read(one)) is same


# libpq itself


class _Option(ctypes.Structure):
    _fields_ = (
        ("keyword", ctypes.c_char_p),
        ("envvar", ctypes.c_char_p),
        ("compiled", ctypes.c_char_p),
        ("val", ctypes.c_char_p),
        ("label", ctypes.c_char_p),
        ("dispchar", ctypes.c_char_p),
        ("dispsize", ctypes.c_int),
    )


class Libpq:
    """libpq's own reading of connection strings."""

    def __init__(self, path: str) -> None:
        self._parse = ctypes.CDLL(path).PQconninfoParse
        self._parse.argtypes = (ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p))
        self._parse.restype = ctypes.POINTER(_Option)

    def parse(self, text: str) -> dict[str, str] | None:
        """Return what *text* sets, None if libpq refuses it."""
        options = self._parse(text.encode(), ctypes.c_char_p())
        if not options:
            return None
        found = {}
        place = 0
        while (option := options[place]).keyword:
            if option.val is not None:
                found[option.keyword.decode()] = option.val.decode()
            place += 1
        return found


@pytest.fixture(scope="session")
def libpq() -> Libpq:
    beside_servers = [str(p) for b in find_bins() for p in sorted(b.parent.glob("lib/libpq.*5*"))]
    for path in (*beside_servers, ctypes.util.find_library("pq")):
        if path:
            return Libpq(path)
    missing("libpq", "apt-get install libpq5")
    raise AssertionError


# Mostly right, so that most of what is drawn is accepted and compared.
def mostly(right: str, wrong: str) -> st.SearchStrategy[str]:
    return st.sampled_from(["", *right.split() * 4, *wrong.split()])


piece = mostly("u d p%40%2F %C3%BC ü a+b -._~!$&'()*,;=:[]", "%zz @ / %")
host = mostly("h H [::1] %2Ftmp%2Fs h%2E [fe80::1%25e]", "::1 [h] h,i @")
port = mostly(": :1 :01 :65535", ":65536 :x")
pair = st.tuples(st.sampled_from(["host", "port", "user", "password", "dbname", "sslmode"]), host | piece).map("=".join)
urls = st.builds(
    "postgresql://{}{}{}{}{}".format,
    st.sampled_from(["", "@", ":@"]) | st.builds("{}:{}@".format, piece, piece) | st.builds("{}@".format, piece),
    host,
    port,
    st.just("") | piece.map("/{}".format),
    st.just("") | st.lists(pair, max_size=3).map(lambda pairs: "?" + "&".join(pairs)),
)


@given(text=urls)
@settings(max_examples=2000)
def test_what_we_accept_libpq_reads_the_same(libpq: Libpq, text: str) -> None:
    try:
        ours = url.parse(text, WHERE).database
    except Refused:
        return
    theirs = libpq.parse(text)
    assert theirs is not None
    expected = [theirs.get(key, "") for key in ("dbname", "host", "port", "user", "password")]
    assert [ours.name, ours.host, ours.port, ours.user, ours.password] == [
        *expected[:2],
        int(expected[2] or 5432),
        *expected[3:],
    ]


@given(value=st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_a_value_quoted_for_a_connection_string_is_that_value(libpq: Libpq, value: str) -> None:
    assert libpq.parse(f"dbname={url.quote_conninfo(value)} keepalives='1'") == {"dbname": value, "keepalives": "1"}


ODD_NAMES = [
    "it's",
    'Größe "x" 日本',
    "a=b host=nowhere",
    "postgresql://u:SECRET@h/d",
    "/@#?%[]: \\",
    " blank ",
    "$HOME `id` %zz",
]


@pytest.mark.parametrize("odd_name", ODD_NAMES)
def test_psql_lands_where_the_url_says(server: Server, odd_name: str) -> None:
    identifier, literal = postgres.identifier(odd_name), postgres.literal(odd_name)
    server.sql(f"create role {identifier} login password {literal}")
    server.sql(f"create database {identifier} owner {identifier} strategy file_copy")
    try:
        text = (
            f"postgresql://{encoded(odd_name)}:{encoded(odd_name)}@127.0.0.1:{server.embedded.port}/{encoded(odd_name)}"
        )
        database = read(text)
        command = postgres.psql(Tools(str(server.embedded.bin), "18"), database, ("--file=-",))
        with process.converse(command) as session:
            found = session.ask("select json_build_array(current_database(), session_user)")
    finally:
        server.sql(f"drop database {identifier}")
        server.sql(f"drop role {identifier}")
    assert json.loads(found) == [odd_name, odd_name]
    assert odd_name not in " ".join(a for a in command.argv if not a.startswith("--dbname="))

"""Plain dumps as they stream by: what counts as a row, what is left out, whatever the chunks."""

from __future__ import annotations

import functools
import io
import re
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator

import nasty
import pytest
from conftest import Server, clean_environ
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pg_backup_tasks import archive
from pg_backup_tasks.sqltext import SqlDump

SETTINGS = frozenset({"transaction_timeout"})
EDITS: list[dict[str, object]] = [
    {},
    {"skip_settings": SETTINGS},
    {"skip_restrict": True},
    {"one_transaction": True},
    {"skip_owners": True},
    {"one_database": True},
    {
        "one_transaction": True,
        "one_database": True,
        "skip_restrict": True,
        "skip_owners": True,
        "skip_settings": SETTINGS,
    },
]

TRAPS = rb"""--
-- PostgreSQL database dump
--

\restrict abc

SET statement_timeout = 0;
SET transaction_timeout = 0;
SET client_encoding = 'UTF8';

--
-- Name: f(); Type: FUNCTION; Schema: public; Owner: it's me
--

CREATE FUNCTION public.f(a text DEFAULT E'x\'
COPY public.no (a) FROM stdin;
'' \'
COPY public.no (a) FROM stdin;
1
\\') RETURNS text
    LANGUAGE sql
    AS $_a$
COPY public.no (id) FROM stdin;
$$ $_b$ '
--
-- Data for Name: no; Type: TABLE DATA; Schema: public; Owner: me
--

COPY public.no (id) FROM stdin;
BEGIN;
COMMIT;
SET transaction_timeout = 0;
\restrict abc
\connect elsewhere
ALTER FUNCTION public.f() OWNER TO me;
-- PostgreSQL database dump complete
$_a$;


ALTER FUNCTION public.f() OWNER TO me;

--
-- Name: COLUMN "it's".a; Type: COMMENT; Schema: public; Owner: me
--

COMMENT ON COLUMN public."it's".a IS 'quoted '' and
COPY public.no (id) FROM stdin;
-- Name: BLOBS; Type: BLOBS; Schema: -; Owner: -
BEGIN;
';

--
-- Data for Name: t; Type: TABLE DATA; Schema: public; Owner: me
--

COPY public.t (id, "a$b") FROM stdin;
1	'
2	-- PostgreSQL database dump complete
3	"
\.


--
-- Data for Name: new; Type: TABLE DATA; Schema: a.b; Owner: me
--

COPY "a.b"."new
line ""x" ("FROM stdin;
") FROM stdin;
\.


--
-- Data for Name: t; Type: TABLE DATA; Schema: public; Owner: me
--

INSERT INTO public.t VALUES (1, 'COPY public.no (id) FROM stdin;
COPY public.no (id) FROM stdin;
', E'\\');

--
-- Data for Name: BLOBS; Type: BLOBS; Schema: -; Owner: -
--

BEGIN;

SELECT pg_catalog.lo_open('1', 131072);

COMMIT;

GRANT ALL ON TABLE public.t TO me;

--
-- PostgreSQL database dump complete
--

\unrestrict abc

"""


def run(dump: bytes, sizes: Iterator[int], **edits: object) -> tuple[bytes, dict[str, int], bool]:
    """Feed a dump in chunks; return what is passed on, the rows and whether it was complete."""
    sql = SqlDump(**edits)  # type: ignore[arg-type]
    passed, position = [], 0
    while position < len(dump):
        size = next(sizes)
        passed.append(sql.feed(dump[position : position + size]))
        position += size
    return b"".join([*passed, sql.close()]), sql.rows, sql.complete


def forever(size: int) -> Iterator[int]:
    while True:
        yield size


def whole(dump: bytes, **edits: object) -> tuple[bytes, dict[str, int], bool]:
    return run(dump, forever(len(dump)), **edits)


@pytest.mark.parametrize("edits", EDITS)
def test_text_that_looks_like_a_dump_is_only_text(edits: dict[str, object]) -> None:
    for size in (1, 2, 3, 7, 64, len(TRAPS)):
        _, rows, complete = run(TRAPS, forever(size), **edits)
        assert rows == {"public.t": 3, 'a.b.new\nline "x': 0}
        assert complete


def test_every_edit_takes_its_own_lines_and_no_other() -> None:
    def lost(**edits: object) -> list[bytes]:
        passed = whole(TRAPS, **edits)[0].splitlines()
        taken, rest = [], iter(passed)
        following = next(rest, None)
        for line in TRAPS.splitlines():
            if line == following:
                following = next(rest, None)
            else:
                taken.append(line)
        assert following is None
        return taken

    assert lost() == []
    assert lost(skip_settings=SETTINGS) == [b"SET transaction_timeout = 0;"]
    assert lost(skip_restrict=True) == [b"\\restrict abc", b"\\unrestrict abc"]
    assert lost(one_transaction=True) == [b"BEGIN;", b"COMMIT;"]
    assert lost(skip_owners=True) == [b"ALTER FUNCTION public.f() OWNER TO me;", b"GRANT ALL ON TABLE public.t TO me;"]
    assert lost(one_database=True) == []


def test_what_is_dropped_first_is_left_out_and_nothing_else_that_is_dropped() -> None:
    """As `pg_dump --clean` has it; what is no dump of pg_dump's means what it says."""
    cleaning = b"""ALTER TABLE ONLY public.orders DROP CONSTRAINT orders_guest_fkey;
ALTER TABLE public."a;b" ALTER COLUMN id DROP DEFAULT;
ALTER PUBLICATION news DROP TABLE ONLY public.orders;
DROP INDEX public.orders_guest_idx;
DROP TABLE public.orders;
SELECT pg_catalog.lo_unlink('16400');
"""
    head = b"--\n-- PostgreSQL database dump\n--\n\nSET row_security = off;\nSELECT set_config('a', '', false);\n"
    body = b"--\n-- Name: t; Type: TABLE; Schema: s; Owner: me\n--\n\nCREATE TABLE s.t ();\nDROP TABLE s.old;\n"
    end = b"--\n-- PostgreSQL database dump complete\n--\n\n"
    cut = head + body + end
    for size in (1, 7, 4096):
        assert run(head + cleaning + body + end, forever(size), one_database=True)[0] == cut
        assert run((head + cleaning + body + end) * 2, forever(size), one_database=True)[0] == cut * 2
        assert run(head + cleaning + body + end, forever(size), one_transaction=True)[0] == head + cleaning + body + end
        assert run(cleaning + body + end, forever(size), one_database=True)[0] == cleaning + body + end
        # Whoever has cut its head off has not meant the database that bears the name, either.
        assert run(b"DROP DATABASE live;\n" + body + end, forever(size), one_database=True)[0] == body + end


def test_another_database_is_never_made_or_entered() -> None:
    dump = b"""--
-- PostgreSQL database dump
--

\\restrict abc

SET transaction_timeout = 0;

DROP DATABASE "live";
--
-- Name: live; Type: DATABASE; Schema: -; Owner: me
--

CREATE DATABASE "live" WITH TEMPLATE = template0;


ALTER DATABASE "live" OWNER TO me;

\\unrestrict abc
\\connect "live"
\\restrict abc

SET transaction_timeout = 0;
SET row_security = off;

--
-- Name: DATABASE "live"; Type: COMMENT; Schema: -; Owner: me
--

COMMENT ON DATABASE "live" IS 'the
\\connect "live"
bar';

--
-- Name: DATABASE "live"; Type: ACL; Schema: -; Owner: me
--

GRANT ALL ON DATABASE "live" TO me;

--
-- Name: live; Type: DATABASE PROPERTIES; Schema: -; Owner: me
--

ALTER DATABASE "live" SET work_mem TO '1MB';

\\connect "live"

SET transaction_timeout = 0;

--
-- Name: t; Type: TABLE; Schema: public; Owner: me
--

CREATE TABLE public.t (id integer);

--
-- PostgreSQL database dump complete
--

\\unrestrict abc
"""
    for size in (1, 5, len(dump)):
        passed, _, complete = run(dump, forever(size), one_database=True, skip_settings=SETTINGS)
        assert complete
        assert b"live" not in passed.replace(b"Name: live", b"").replace(b'DATABASE "live";', b"").replace(
            b'Name: DATABASE "live"', b""
        )
        assert re.findall(rb"(?m)^\\\w+", passed) == [b"\\restrict", b"\\unrestrict"] * 2
        assert b"transaction_timeout" not in passed
        assert b"SET row_security = off;" in passed
        assert b"CREATE TABLE public.t (id integer);" in passed


def test_a_dump_cut_anywhere_is_not_complete() -> None:
    end = TRAPS.rindex(last := b"\\unrestrict abc\n") + len(last)
    for cut in range(0, end, 3):
        assert not whole(TRAPS[:cut])[2], cut
    assert whole(TRAPS[:end])[2]


def test_a_second_dump_behind_the_first_must_be_complete_too() -> None:
    assert whole(TRAPS + TRAPS)[2]
    assert not whole(TRAPS + TRAPS[:-120])[2]


def test_old_dumps_quote_with_backslashes() -> None:
    dump = TRAPS.replace(b"SET client_encoding = 'UTF8';", b"SET standard_conforming_strings = off;").replace(
        b"'quoted '' and", rb"'quoted \' and"
    )
    assert whole(dump)[1:] == whole(TRAPS)[1:]


def test_a_gigantic_value_passes_in_little_memory() -> None:
    def feed(sql: SqlDump) -> int:
        size = len(sql.feed(b"-- PostgreSQL database dump\nINSERT INTO t VALUES ('"))
        block = b"00" * (1 << 15)
        for _ in range(1000):
            size += len(sql.feed(block))
        return size + len(sql.feed(b"');\nCOPY public.t (id) FROM stdin;\n1\n\\.\n"))

    tracemalloc.start()
    try:
        sql = SqlDump(one_transaction=True)
        assert feed(sql) > 1000 << 16
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert sql.rows == {"public.t": 1}


PIECES = st.sampled_from(
    [
        *re.findall(rb"\s+|\w+|\W", TRAPS)[:400],
        b"$a$",
        b"$$",
        b"E'",
        b"\\'",
        b"''",
        b'"',
        b"--",
        b"\nCOPY a.b (c) FROM stdin;\n",
    ]
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.one_of(st.just(TRAPS), st.lists(PIECES, max_size=60).map(b"".join)),
    st.lists(st.integers(1, 90), min_size=1, max_size=30),
    st.sampled_from(EDITS),
)
def test_chunks_make_no_difference(dump: bytes, sizes: list[int], edits: dict[str, object]) -> None:
    def cycle() -> Iterator[int]:
        while True:
            yield from sizes

    in_chunks, at_once = run(dump, cycle(), **edits), whole(dump, **edits)
    assert in_chunks == at_once
    if not edits:
        assert in_chunks[0] == dump


@functools.cache
def dump_of(server: Server, *options: str) -> bytes:
    return subprocess.run(
        [str(server.embedded.bin / "pg_dump"), *options],
        env={**clean_environ(), **server.embedded.environment("sql_text")},
        capture_output=True,
        check=True,
    ).stdout


@pytest.fixture(scope="module")
def counted(servers: Callable[[int], Server]) -> Iterator[Callable[[int], tuple[Server, dict[str, int]]]]:
    """Return a server with a nasty database, and the rows of its tables."""
    made: dict[int, Server] = {}

    def get(major: int) -> tuple[Server, dict[str, int]]:
        server = servers(major)
        if major not in made:
            nasty.build(server, "sql_text")
            made[major] = server
        tables = server.sql(
            "select format('%I.%I', n.nspname, relname) || chr(9) || n.nspname || '.' || relname from pg_class c"
            " join pg_namespace n on n.oid = relnamespace where relkind = 'r'"
            " and n.nspname <> 'information_schema' and n.nspname not like 'pg\\_%'",
            "sql_text",
        )
        pairs = [line.split("\t") for line in tables.splitlines()]
        return server, {name: int(server.sql(f"select count(*) from only {q}", "sql_text")) for q, name in pairs}

    yield get
    for server in made.values():
        server.sql("drop database sql_text with (force)")


@pytest.mark.parametrize("major", [15, 17, 18])
def test_the_rows_counted_are_the_databases(
    counted: Callable[[int], tuple[Server, dict[str, int]]], major: int
) -> None:
    server, rows = counted(major)
    dump = dump_of(server)
    assert whole(dump)[1] == rows
    for edits in EDITS:
        passed, found, complete = run(dump, forever(1000), **edits)
        assert (passed, found, complete) == whole(dump, **edits)
        assert found == rows
        assert complete
    inserts = whole(dump_of(server, "--inserts"))
    assert inserts[1:] == ({}, True)


@pytest.mark.parametrize("major", [15, 18])
def test_the_objects_listed_are_the_archives(
    counted: Callable[[int], tuple[Server, dict[str, int]]], major: int
) -> None:
    server, _ = counted(major)
    dump = SqlDump(headings=True)
    dump.feed(dump_of(server))
    contents, _ = archive.read_contents(io.BytesIO(dump_of(server, "--format=custom")))
    # Its own settings have no heading, and what belongs to the database is printed for --create only.
    unsaid = ("ENCODING", "STDSTRINGS", "SEARCHPATH", "DATABASE", "DATABASE PROPERTIES")
    theirs = {
        (e.kind, e.schema, e.name.replace("\n", " "))
        for e in contents.entries.values()
        if e.kind not in unsaid and not e.name.startswith("DATABASE ")
    }
    assert theirs == {(i.kind, i.schema, i.name) for i in dump.items}


def test_what_is_left_out_takes_nothing_else_along(
    counted: Callable[[int], tuple[Server, dict[str, int]]],
) -> None:
    server, rows = counted(18)
    dump = dump_of(server)
    everything = SqlDump(headings=True)
    everything.feed(dump)
    kinds = {item.kind for item in everything.items}
    assert whole(dump, leave_out=lambda _: False) == whole(dump)
    pieces = [whole(dump, leave_out=lambda item, kind=kind: item.kind == kind)[0] for kind in kinds]
    for kind, rest in zip(kinds, pieces, strict=True):
        kept = SqlDump(headings=True)
        kept.feed(rest)
        assert kept.items == [i for i in everything.items if i.kind != kind]
        assert kept.complete
        assert rest.count(b"SET default_table") == dump.count(b"SET default_table")
        assert (kept.rows == rows) == (kind != "TABLE DATA")


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_copy_statements_are_as_archives_have_them(size: int) -> None:
    sql = SqlDump(headings=True)
    for start in range(0, len(TRAPS), size):
        sql.feed(TRAPS[start : start + size])
    assert [(i.kind, i.name, i.copy) for i in sql.items if i.kind == "TABLE DATA"] == [
        ("TABLE DATA", "t", 'COPY public.t (id, "a$b") FROM stdin;\n'),
        ("TABLE DATA", "new", 'COPY "a.b"."new\nline ""x" ("FROM stdin;\n") FROM stdin;\n'),
        ("TABLE DATA", "t", ""),
    ]
    assert not [i for i in sql.items if i.copy and i.kind != "TABLE DATA"]


def test_an_archive_and_its_plain_sql_copy_alike(
    counted: Callable[[int], tuple[Server, dict[str, int]]],
) -> None:
    server, rows = counted(18)
    contents, _ = archive.read_contents(io.BytesIO(dump_of(server, "--format=custom")))
    sql = SqlDump(headings=True)
    sql.feed(dump_of(server))
    assert [i.copy for i in sql.items if i.copy] == [e.copy for e in contents.entries.values() if e.copy]
    assert len([i for i in sql.items if i.copy]) == len(rows)

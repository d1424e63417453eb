"""Which database: `.env` as every reader of it reads it, or refused; the file and the environment agree, or refused."""

from __future__ import annotations

import io
from collections.abc import Mapping

import pytest
from dotenv import dotenv_values
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pg_backup_tasks import environment
from pg_backup_tasks.environment import choose, read_env_file
from pg_backup_tasks.errors import Refused

FILE = "packages/database/.env"
URL = "postgres://u:p@h/d"
SAME = "the same"

# (the file, DATABASE_URL to Node's dotenv, DATABASE_URL to python-dotenv). What stands for Node was printed by
# `require("dotenv").parse()` of dotenv 17.4.2 and 18.0.10; python-dotenv is asked again below.
DIALECTS: list[tuple[str, str | None, str | None]] = [
    # read alike
    (f"DATABASE_URL={URL}", URL, SAME),
    (f'DATABASE_URL="{URL}"\n', URL, SAME),
    (f"DATABASE_URL='{URL}'\n", URL, SAME),
    (f"export DATABASE_URL={URL}\n", URL, SAME),
    (f"  export   DATABASE_URL = {URL}  \n", URL, SAME),
    (f"\ufeffDATABASE_URL={URL}\r\nOTHER=1\r\n", URL, SAME),
    (f"A=1\rDATABASE_URL={URL}\rB=2\r", URL, SAME),
    (f"# DATABASE_URL=x\n\n\n#DATABASE_URL=y\nDATABASE_URL={URL}\n", URL, SAME),
    (f"DATABASE_URL={URL} # the main one\n", URL, SAME),
    (f"DATABASE_URL='{URL}' # the main one\n", URL, SAME),
    (f"DATABASE_URL=x\nDATABASE_URL={URL}\n", URL, SAME),
    (f"DATABASE_URL={URL}\nDATABASE_URL=\n", "", SAME),
    (f"SHADOW_DATABASE_URL=x\nDATABASE_URL={URL}\nDATABASE_URL_TEST=y\n", URL, SAME),
    ("DATABASE_URL=a$b`c\n", "a$b`c", SAME),
    ("DATABASE_URL='a#b\"c'\n", 'a#b"c', SAME),
    ('DATABASE_URL="a\nb"\n', "a\nb", SAME),
    ('DATABASE_URL="a\\nb"\n', "a\nb", SAME),
    ("DATABASE_URL=a'b\"c\n", "a'b\"c", SAME),
    ("DATABASE_URL=\n", "", SAME),
    ("DATABASE_URL=   \n", "", SAME),
    ("DATABASE_URL\n", None, SAME),
    ("OTHER=it's\nDATABASE_URL=x\n", "x", SAME),
    (f"OTHER='a\nb'\nDATABASE_URL={URL}\n", URL, SAME),
    (f"no sense\nDATABASE_URL={URL}\n", URL, SAME),
    (f"OTHER='it''s'\nDATABASE_URL={URL}\n", URL, SAME),
    # read differently
    ("DATABASE_URL=with#hash\n", "with", "with#hash"),
    ("DATABASE_URL=#hash\n", "", "#hash"),
    ("DATABASE_URL=`x`\n", "x", "`x`"),
    ("DATABASE_URL: yaml\n", "yaml", None),
    ("'DATABASE_URL'=x\n", None, "x"),
    ("DATABASE_URL='it''s'\n", "it''s", None),
    ('DATABASE_URL="a\\"b"\n', 'a\\"b', 'a"b'),
    ("DATABASE_URL='a\\'b'\n", "a\\'b", "a'b"),
    ('DATABASE_URL="a\\\\b"\n', "a\\\\b", "a\\b"),
    ('DATABASE_URL="a\\tb"\n', "a\\tb", "a\tb"),
    ('DATABASE_URL="unclosed\nOTHER=1\n', '"unclosed', None),
    (f'OTHER="unclosed\nDATABASE_URL={URL}\nB="x"\n', URL, None),
    (f"OTHER='unclosed\nDATABASE_URL='{URL}'\n", URL, None),
    (f"DATABASE_URL={URL}\nDATABASE_URL\n", URL, None),
    ("DATABASE_URL=\ufeffx\n", "x", "\ufeffx"),
    ("DATABASE_URL=x\x85\n", "x\x85", "x"),
    ('DATABASE_URL="x" y\n', '"x" y', None),
]


@pytest.mark.parametrize(("text", "node", "python"), DIALECTS)
def test_a_line_is_read_as_everybody_reads_it_or_refused(text: str, node: str | None, python: str | None) -> None:
    assert environment._as_node_reads(text.replace("\r\n", "\n").replace("\r", "\n")).get("DATABASE_URL") == node
    assert as_python_reads(text).get("DATABASE_URL") == (node if python is SAME else python)
    if python is SAME:
        assert read_env_file(text, FILE).get("DATABASE_URL", "") == (node or "")
    else:
        with pytest.raises(Refused) as caught:
            read_env_file(text, FILE)
        assert f"{FILE}:" in str(caught.value)


def as_python_reads(text: str) -> dict[str, str | None]:
    return dotenv_values(stream=io.StringIO(text, newline=None), interpolate=False)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("DATABASE_URL=a#SECRET\n", 1),
        ("A=1\n\n\n# c\nDATABASE_URL=a#SECRET\nB=2\n", 5),
        ("A=1\r\n\r\n  DATABASE_URL=`SECRET`\r\n", 3),
        ("A='a\nb\nc'\nDATABASE_URL=a#SECRET\n", 4),
        ("A=1\n\nDATABASE_URL: SECRET\n", 3),
        ("A=1\n\nDATABASE_URL='it''SECRET'\n", 3),
        ("A=1\nDATABASE_URL=postgres://h:6543/d?pgbouncer=true\n\nDIRECT_URL=`SECRET`\n", 4),
        ("DATABASE_URL=x\nDATABASE_URL=a#SECRET\n", 2),
        ('A=1\nSMTP="SECRET\nDATABASE_URL="x"\n', 2),
        ("A=1\n\nDATABASE_URL=postgres://u:SECRET@${HOST}/d\n", 3),
        ("A=1\nDATABASE_URL='${SECRET}'\n", 2),
    ],
)
def test_a_refusal_names_the_line_and_never_its_value(text: str, line: int) -> None:
    with pytest.raises(Refused) as caught:
        read_env_file(text, FILE)
    assert caught.value.code == 2
    assert f"{FILE}:{line} " in str(caught.value)
    assert "Try: " in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_only_urls_are_looked_at() -> None:
    text = "A=a#b\nB=`x`\nC: y\nD=\"\\t\"\nE=${A}\nPASSWORD='it''s'\nDATABASE_URL=x\nF=y\n"
    assert read_env_file(text, FILE) == {"DATABASE_URL": "x"}


def test_an_empty_file_names_nothing() -> None:
    assert read_env_file("", FILE) == {}
    assert read_env_file("\ufeff# DATABASE_URL\n", FILE) == {}


BITS = [
    *("DATABASE_URL", "DIRECT_URL", "OTHER", "A=1", "export ", "=", "=", " = ", ":", ": ", "# ", "#", " #", "x", "y z"),
    *('"', '"', "'", "'", "`", "\n", "\n", "\n", "\r\n", "\r", " ", "\t", "\\", "\\n", '\\"', "\\'", "\\\\", "${A}"),
    *("\ufeff", "\xa0", "\u2028", "\x0b", "\x1c", "\x85", "é", "\u0663", "\u017f", "-", ".", "$"),
]  # fmt: skip
texts = st.lists(st.sampled_from(BITS), max_size=14).map("".join)


@given(before=st.sampled_from(["", "A=1\n", "# c\n\n", "export "]), text=texts, main=st.booleans())
@settings(max_examples=2000)
@example(before="", text='"SECRET', main=True)
def test_what_is_returned_is_what_both_grammars_say(before: str, text: str, main: bool) -> None:
    text = f"{before}{'DATABASE_URL=' if main else ''}{text}"
    try:
        found = read_env_file(text, FILE)
    except Refused as error:
        said = str(error)
        assert f"{FILE}:" in said
        number = int(said.partition(f"{FILE}:")[2].split()[0])
        assert 1 <= number <= len(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
        return
    node = environment._as_node_reads(text.replace("\r\n", "\n").replace("\r", "\n"))
    # What stands beside a URL that goes through no pooler is nobody's business.
    used = environment._used(node.get("DATABASE_URL"), FILE)
    for read in (urls(node), urls(as_python_reads(text))):
        assert found == {name: value for name, value in read.items() if name in used}


def urls(values: Mapping[str, str | None]) -> dict[str, str]:
    """Return what is a URL of ours and not blank."""
    return {name: value for name in environment.WANTED if (value := values.get(name) or "").strip()}


@given(text=texts)
@settings(max_examples=300)
def test_a_refusal_holds_nothing_of_the_value(text: str) -> None:
    try:
        read_env_file(f"DATABASE_URL=xq1234{text}xq5678", FILE)
    except Refused as error:
        said = str(error)
    else:
        said = ""
    assert "xq1234" not in said
    assert "xq5678" not in said


def test_a_long_file_is_no_trouble() -> None:
    blanks, quotes = " " * 3000, "'\"`" * 1000
    text = f"A={blanks}x y\nB={quotes}\nC=\"{blanks}\nDATABASE_URL={blanks}{URL}{blanks}\nKEY='{'A' * 3000}'\n" * 2
    with pytest.raises(Refused):
        read_env_file(text, FILE)


# Which of them


def test_the_file_comes_before_the_environment() -> None:
    other = "postgres://v:q@h:5432/d?schema=x"
    chosen = choose({"DATABASE_URL": URL}, FILE, {"DATABASE_URL": other})
    assert (chosen.database.user, chosen.database.source, chosen.left_out) == ("u", FILE, ())
    chosen = choose({}, FILE, {"DATABASE_URL": other})
    assert (chosen.database.user, chosen.database.source, chosen.left_out) == ("v", "the environment", ("schema",))


def test_two_different_ones_are_refused_until_the_setting_decides() -> None:
    file = {"DATABASE_URL": "postgres://u:SECRET1@h/live"}
    environ = {"DATABASE_URL": "postgres://u:SECRET2@h:5433/staging"}
    with pytest.raises(Refused) as caught:
        choose(file, FILE, environ)
    said = str(caught.value)
    assert "live on h:5432" in said
    assert "staging on h:5433" in said
    assert "INVOKE_DB_SOURCE" in said
    assert "SECRET" not in said
    assert choose(file, FILE, environ, source="file").database.name == "live"
    assert choose(file, FILE, environ, source="environment").database.name == "staging"


def test_the_source_that_decides_is_the_only_one_read() -> None:
    broken = {"DATABASE_URL": "mysql://x"}
    good = {"DATABASE_URL": URL}
    assert choose(broken, FILE, good, source="environment").database.name == "d"
    assert choose(good, FILE, broken, source="file").database.name == "d"
    for source in ("", "file"):
        with pytest.raises(Refused):
            choose(broken, FILE, good, source=source)


@pytest.mark.parametrize(
    ("source", "looked"),
    [("", [FILE, "the environment"]), ("file", [FILE]), ("environment", ["the environment"])],
)
@pytest.mark.parametrize("value", [None, "", "  "])
def test_none_at_all_says_where_was_looked(source: str, looked: list[str], value: str | None) -> None:
    nothing = {} if value is None else {"DATABASE_URL": value}
    with pytest.raises(Refused) as caught:
        choose(nothing, FILE, nothing, source=source)
    assert all(place in str(caught.value.message) for place in looked)
    assert ("environment" in str(caught.value.message)) is ("the environment" in looked)
    assert "inv demo" in str(caught.value)


POOLED = "postgres://u:p@h:6543/d?pgbouncer=true"


@pytest.mark.parametrize("name", ["DIRECT_URL", "DATABASE_URL_UNPOOLED"])
def test_a_direct_url_beside_a_pooled_one_is_preferred(name: str) -> None:
    chosen = choose({"DATABASE_URL": POOLED, name: URL}, FILE, {})
    assert (chosen.database.port, chosen.left_out) == (5432, ())
    assert name in chosen.database.source


def test_a_direct_url_of_another_database_is_refused() -> None:
    with pytest.raises(Refused, match="DIRECT_URL") as caught:
        choose({"DATABASE_URL": POOLED, "DIRECT_URL": "postgres://u:SECRET@h/other"}, FILE, {})
    assert "SECRET" not in str(caught.value)


def test_a_direct_url_beside_one_that_is_not_pooled_is_left_alone() -> None:
    assert choose({"DATABASE_URL": URL, "DIRECT_URL": "postgres://i/other"}, FILE, {}).database.host == "h"


def test_a_pooled_url_alone_is_refused_unless_allowed() -> None:
    with pytest.raises(Refused, match="DIRECT_URL"):
        choose({"DATABASE_URL": POOLED, "DIRECT_URL": " "}, FILE, {})
    assert choose({"DATABASE_URL": POOLED}, FILE, {}, allow_pooler=True).database.port == 6543


def test_a_direct_url_that_is_pooled_itself_is_none() -> None:
    both = {"DATABASE_URL": POOLED, "DIRECT_URL": POOLED.replace("6543", "6432")}
    with pytest.raises(Refused, match="connection pooler"):
        choose(both, FILE, {})
    assert choose(both, FILE, {}, allow_pooler=True).database.port == 6543
    assert choose(both | {"DATABASE_URL_UNPOOLED": URL}, FILE, {}).database.port == 5432


@pytest.mark.parametrize("direct", ["${DATABASE_URL}", "postgres://u:p#x@h/d", "postgres://u:\udce4@h/d", '"unclosed'])
def test_a_direct_url_is_read_only_where_it_is_used(direct: str) -> None:
    assert read_env_file(f'DATABASE_URL="{URL}"\nDIRECT_URL={direct}\n', FILE) == {"DATABASE_URL": URL}
    with pytest.raises(Refused, match=f"{FILE}:2"):
        read_env_file(f'DATABASE_URL="{POOLED}"\nDIRECT_URL={direct}\n', FILE)


def test_a_direct_url_in_the_environment_says_nothing_about_the_file() -> None:
    with pytest.raises(Refused):
        choose({"DATABASE_URL": POOLED}, FILE, {"DIRECT_URL": URL})


@pytest.mark.parametrize("value", ["p\xe4ss@h/d", "p@h/d?host=\xe4", "\xa0"])
def test_bytes_that_are_no_utf_8_are_refused_with_their_line(value: str) -> None:
    # A password in Latin-1 is a different password to every reader: better none than a wrong one.
    raw = f'# gr\xfcn\nDATABASE_URL="postgres://u:SECRET{value}" # gr\xfcn\n'.encode("latin-1")
    with pytest.raises(Refused) as caught:
        read_env_file(raw.decode("utf-8", "surrogateescape"), FILE)
    assert f"{FILE}:2 " in str(caught.value)
    assert "UTF-8" in str(caught.value.hint)
    assert "SECRET" not in str(caught.value)


def test_bytes_elsewhere_in_the_file_are_left_alone() -> None:
    raw = f"# gr\xfcn\nOTHER=\xe4\nDATABASE_URL={URL} # gr\xfcn\n".encode("latin-1")
    assert read_env_file(raw.decode("utf-8", "surrogateescape"), FILE) == {"DATABASE_URL": URL}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_a_file_of_wide_characters_is_refused(encoding: str) -> None:
    # Every reader would find no DATABASE_URL in it, and not say why.
    with pytest.raises(Refused, match="UTF-16") as caught:
        read_env_file(f"DATABASE_URL={URL}\n".encode(encoding).decode("utf-8", "surrogateescape"), FILE)
    assert FILE in str(caught.value)
    assert "UTF-8" in str(caught.value.hint)

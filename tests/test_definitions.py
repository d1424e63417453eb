"""Names read back out of pg_dump's SQL, whatever they are made of."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pg_backup_tasks import definitions
from pg_backup_tasks.postgres import identifier

NAMES = st.one_of(
    st.text(min_size=1, max_size=12).filter(lambda text: "\0" not in text),
    st.text(alphabet='" .,()\n;ON', min_size=1, max_size=8),
    st.sampled_from(["a", "a b", " ON s.t ", " ON ", "FROM stdin;", ") FROM stdin;\n", '"', '""."', "ONLY ", "t_1"]),
)
STATEMENTS = (
    "ALTER TABLE ONLY {t}\n    ADD CONSTRAINT {x} FOREIGN KEY (id) REFERENCES s.other(id);\n",
    "ALTER TABLE {t} ENABLE ROW LEVEL SECURITY;",
    "\nALTER TABLE {t} DISABLE TRIGGER {x};\n",
    "CREATE UNIQUE INDEX {x} ON ONLY {t} USING btree (id);\n",
    "CREATE INDEX {x} ON {t} USING btree (id);\n",
    "CREATE POLICY {x} ON {t} USING ((EXISTS ( SELECT\n   FROM s.other)));\n",
    "CREATE RULE {x} AS\n    ON DELETE TO {t} DO  DELETE FROM s.other\n  WHERE (other.id = old.id);\n",
    "CREATE RULE {x} AS\n    ON UPDATE TO {t}\n   WHERE (old.id > 1) DO INSTEAD NOTHING;\n",
    "CREATE TRIGGER {x} AFTER INSERT OR UPDATE OF id, {x} ON {t} FOR EACH ROW EXECUTE FUNCTION public.f();\n",
    "CREATE CONSTRAINT TRIGGER {x} AFTER DELETE ON {t} FROM s.other DEFERRABLE FOR EACH ROW EXECUTE FUNCTION f();\n",
    "ALTER SEQUENCE s.{x} OWNED BY {t}.id;\n",
)


def plain(name: str) -> str:
    """Return an identifier as pg_dump writes it."""
    return name if name.isascii() and name.isalpha() and name.islower() else identifier(name)


@given(NAMES, NAMES, NAMES, st.sampled_from(STATEMENTS))
@example("a", "b", " ON s.t ", STATEMENTS[8])
def test_a_statement_says_which_table_it_is_of(schema: str, table: str, other: str, statement: str) -> None:
    place = f"{plain(schema)}.{plain(table)}"
    # Not str.format: braces are a name's to have.
    text = statement.replace("{x}", "\1").replace("{t}", place).replace("\1", plain(other))
    if "{t}" not in place and "\1" not in place:
        assert definitions.subject(text) == (schema, table)


@given(NAMES, NAMES, st.lists(NAMES, max_size=4))
def test_a_copy_statement_says_what_it_fills(schema: str, table: str, columns: list[str]) -> None:
    listed = f"({', '.join(map(plain, columns))})" if columns else ""
    copy = f"COPY {plain(schema)}.{plain(table)} {listed} FROM stdin;\n"
    assert definitions.copied(copy) == (schema, table, tuple(columns))
    assert definitions.copied(copy.replace(f"{plain(schema)}.", "", 1)) == ("", table, tuple(columns)) or "." in schema


@pytest.mark.parametrize("text", ["", "INSERT INTO s.t VALUES (1);", "CREATE VIEW s.v AS\n SELECT 1;\n", "ALTER TABLE"])
def test_what_says_nothing_of_a_table_is_told(text: str) -> None:
    assert definitions.subject(text) is None
    assert definitions.copied(text) is None


def test_a_heading_has_a_name_in_one_line() -> None:
    assert definitions.headed("a\nb\r\nc") == "a b  c"

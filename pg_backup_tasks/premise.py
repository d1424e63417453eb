"""A question asked before a transaction and once more within it, which ends if the answer has become another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import catalog
from .machine import Session
from .postgres import literal

# What a definition looks like depends on the search path, which a dump has empty.
_ASK = """
begin read only;
set local search_path = '';
select json_build_object('answer', q.answer, 'mark', md5(q.answer::text)) from ({question}) q(answer);
commit
"""
_AGAIN = """
begin
  if (select md5(q.answer::text) from ({question}) q(answer)) is distinct from {mark} then
    raise exception 'The tables were changed by others while the restore was being prepared.';
  end if;
end
"""
_OPENING = """\
set client_encoding to 'UTF8';
select pg_catalog.set_config('search_path', '', false);
"""


@dataclass(frozen=True)
class Premise:
    """What a transaction relies on: a *question*, its *answer* and what tells that answer from another."""

    answer: Any
    question: str
    mark: str

    def hold(self, tables: list[str]) -> str:
        """Return the SQL that locks *tables* (quoted) for us alone and makes sure that nothing has changed."""
        places = ", ".join(f"only {table}" for table in tables)
        lock = f"lock table {places} in access exclusive mode;\n" if tables else ""
        again = _AGAIN.format(question=self.question, mark=literal(self.mark))
        return f"{_OPENING}{lock}do {literal(again)};\n"


def ask(session: Session, question: str) -> Premise:
    """Return the answer to *question*, one SELECT of one JSON document in an order of its own."""
    found = catalog.answer(session, _ASK.format(question=question))
    return Premise(found["answer"], question, found["mark"])

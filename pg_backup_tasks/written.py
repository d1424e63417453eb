"""Whether others have written to tables since somebody looked: told by where each row is, and what put it there."""

from __future__ import annotations

import json
from dataclasses import dataclass

from . import catalog
from .emptying import LANGUAGE
from .machine import Session
from .postgres import literal

_AT_ONCE = 200
_PLACES = """
select coalesce(json_agg(format('%I.%I', n.nspname, c.relname) order by c.oid), '[]')
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'r' and c.relpersistence <> 't' and n.nspname <> 'information_schema' and n.nspname not like 'pg\\_%'
  and not exists (select from pg_depend e
    where e.classid = 'pg_class'::regclass and e.objid = c.oid and e.deptype = 'e')
"""
# A row that was changed is in another place, by another transaction; one that has gone is missing in the sum.
_MARK = "count(*) || '/' || coalesce(sum(hashtextextended(ctid::text || ' ' || xmin::text, 0)::numeric), 0)"
_SAME = """
declare
  place text;
  expected text;
  found text;
begin
  for place, expected in select key, value from json_each_text({marks}) loop
    execute format({question}, place) into found;
    if found <> expected then
      raise exception 'Others have written to % while the restore was being prepared', place;
    end if;
  end loop;
  {made}
end
"""
_MADE = """
  place := (select p.value from json_array_elements_text(({places})) p
  where p.value not in (select json_object_keys({marks})) limit 1);
  if place is not null then
    raise exception 'Others have made % while the restore was being prepared', place;
  end if;
"""


@dataclass(frozen=True)
class Written:
    """What some tables hold, or all there are: a mark of each by its name in SQL."""

    marks: dict[str, str]
    all: bool

    def hold(self) -> str:
        """Return the SQL that locks the tables for us alone and makes sure that they hold the same."""
        places = ", ".join(f"only {place}" for place in self.marks)
        lock = f"lock table {places} in access exclusive mode;\n" if places else ""
        marks = literal(json.dumps(self.marks, ensure_ascii=False))
        made = _MADE.format(places=_PLACES, marks=marks) if self.all else ""
        question = literal(f"select {_MARK} from only %s")
        same = _SAME.format(marks=marks, question=question, made=made)
        return f"{LANGUAGE}set client_encoding to 'UTF8';\n{lock}do {literal(same)};\n"


def look(session: Session, tables: tuple[str, ...] | None) -> Written:
    """Return what *tables* hold, as SQL names them; all tables there are for None."""
    places: list[str] = catalog.answer(session, _PLACES) if tables is None else list(tables)
    marks: dict[str, str] = {}
    for first in range(0, len(places), _AT_ONCE):
        questions = " union all ".join(
            f"select {literal(place)} as name, {_MARK} as mark from only {place}"
            for place in places[first : first + _AT_ONCE]
        )
        marks |= catalog.answer(session, f"select json_object_agg(name, mark) from ({questions}) t")
    return Written(marks, all=tables is None)

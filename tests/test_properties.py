"""What is in no dump comes back: owner, grants, settings, comment, limit, encoding and locale of a database."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import msgspec
import pytest
from conftest import Server
from described import PLAIN, but
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pg_backup_tasks import catalog, postgres, process, properties, url
from pg_backup_tasks.info import DatabaseInfo, Setting
from pg_backup_tasks.machine import Session
from pg_backup_tasks.model import Database
from pg_backup_tasks.postgres import Tools, identifier, literal


def sql(info: DatabaseInfo, roles: set[str], now: DatabaseInfo | None = None) -> list[str]:
    return [s.sql for s in properties.statements(info, "new db", roles, "maker", now)]


# Exactly these statements


def test_a_plain_database_needs_its_owner_only() -> None:
    assert sql(PLAIN, {"owner"}) == ['alter database "new db" owner to "owner"']
    assert sql(PLAIN, set()) == []


def test_everything_a_database_can_have() -> None:
    info = but(
        comment="it's",
        connection_limit=5,
        acl=["=T/owner", "owner=CTc/owner", '"a ""b"""=c*C/owner', "gone=c/owner"],
        settings=[
            Setting(None, "search_path", '"Bar Back", public'),
            Setting("bob", "my.own", "x'y"),
            Setting("gone", "work_mem", "1MB"),
        ],
    )
    assert sql(info, {"owner", "bob", 'a "b"'}) == [
        """alter database "new db" set "search_path" to 'Bar Back', 'public'""",
        """alter role "bob" in database "new db" set "my"."own" to 'x''y'""",
        """comment on database "new db" is 'it''s'""",
        """alter database "new db" connection limit 5""",
        """revoke all on database "new db" from public cascade""",
        """grant TEMPORARY on database "new db" to public""",
        """grant CONNECT on database "new db" to "a ""b\""" with grant option""",
        """grant CREATE on database "new db" to "a ""b\"\"\"""",
        """alter database "new db" owner to "owner\"""",
    ]
    assert properties.missing_roles(info, {"owner", "bob", 'a "b"'}) == ["gone"]


def test_nothing_is_said_of_what_is_there_already() -> None:
    info = but(connection_limit=5, settings=[Setting(None, "work_mem", "1MB"), Setting("owner", "a.b", "1")])
    assert sql(info, {"owner"}, info) == []


def test_what_is_there_and_should_not_be_goes() -> None:
    now = but(comment="x", connection_limit=5, settings=[Setting(None, "a.b", "1"), Setting("bob", "work_mem", "1MB")])
    assert sql(PLAIN, {"owner"}, now) == [
        'alter database "new db" reset "a"."b"',
        'alter role "bob" in database "new db" reset "work_mem"',
        'comment on database "new db" is null',
        'alter database "new db" connection limit -1',
    ]


def test_every_statement_says_what_is_lost_without_it() -> None:
    info = but(
        comment="x",
        connection_limit=5,
        acl=["owner=CTc/owner", "bob=c/owner"],
        settings=[Setting("bob", "work_mem", "1MB")],
    )
    assert [s.what for s in properties.statements(info, "n", {"owner", "bob"}, "maker")] == [
        "the setting work_mem of bob",
        "its comment",
        "its connection limit",
        "its grants",
        "CONNECT for bob",
        "its owner owner",
    ]


# On real servers


@dataclass
class Place:
    """A server to make databases and roles on, which go again."""

    server: Server
    session: Session
    database: Database
    made: list[str] = field(default_factory=list)

    def role(self, name: str) -> str:
        self.session.ask(f"create role {identifier(name)}")
        self.made.append(f"drop role {identifier(name)}")
        return identifier(name)

    def new_name(self) -> str:
        name = f"p_{secrets.token_hex(4)} \"'"
        self.made.append(f"drop database if exists {identifier(name)} with (force)")
        return name

    def create(self, words: str = "") -> str:
        name = self.new_name()
        self.session.ask(f"create database {identifier(name)} template template0 {words}")
        return name

    def describe(self, name: str) -> DatabaseInfo:
        there = url.elsewhere(self.database, name)
        with process.converse(postgres.psql(self.tools, there)) as session:
            info, _ = catalog.describe(session, there)
        # The order of grants says nothing.
        return msgspec.structs.replace(info, name="", bytes=0, acl=info.acl and sorted(info.acl))

    @property
    def tools(self) -> Tools:
        return Tools(str(self.server.embedded.bin), "18")

    def apply(self, info: DatabaseInfo, name: str, now: DatabaseInfo | None = None) -> None:
        for statement in self._statements(info, name, now):
            self.session.ask(statement.sql)

    def apply_leniently(self, info: DatabaseInfo, name: str, now: DatabaseInfo) -> None:
        self.session.ask(properties.leniently(self._statements(info, name, now)))

    def _statements(self, info: DatabaseInfo, name: str, now: DatabaseInfo | None) -> list[properties.Statement]:
        return properties.statements(info, name, catalog.role_names(self.session), self.database.user, now)

    def copy(self, info: DatabaseInfo) -> str:
        name = self.new_name()
        self.session.ask(properties.creations(info, name, self.server.major)[0])
        self.apply(info, name)
        return name

    def clear(self) -> None:
        for statement in reversed(self.made):
            self.session.ask(statement)
        self.made.clear()


@contextmanager
def place_on(server: Server) -> Iterator[Place]:
    database = url.parse(server.embedded.url(), "the test").database
    command = postgres.psql(Tools(str(server.embedded.bin), "18"), database)
    with process.converse(command) as session, ExitStack() as stack:
        place = Place(server, session, database)
        stack.callback(place.clear)
        yield place


@pytest.fixture(params=[15, 17, 18])
def place(request: pytest.FixtureRequest, servers: Callable[[int], Server]) -> Iterator[Place]:
    with place_on(servers(request.param)) as place:
        yield place


@pytest.fixture
def newest(server: Server) -> Iterator[Place]:
    with place_on(server) as place:
        yield place


def test_all_of_it_comes_back(place: Place) -> None:
    owner, bob, odd = place.role("The owner"), place.role("bob"), place.role('a=b/c, "d" ü')
    name = place.create(f"owner {owner} connection limit 7")
    target = identifier(name)
    for statement in (
        f"comment on database {target} is {literal(chr(10) + 'it' + chr(39) + 's ' + chr(92))}",
        f"""alter database {target} set search_path = "$user", "Bar Back", 'a, "b"', public""",
        f"alter database {target} set DateStyle = 'German, DMY'",
        f"alter database {target} set TimeZone = 'Europe/Berlin'",
        f"alter database {target} set statement_timeout = '5s'",
        f"alter database {target} set my.own = {literal('x=y, ' + chr(34) + chr(39) + chr(92))}",
        f"alter database {target} set deep.er.still = 'x'",
        f"alter database {target} set session_preload_libraries = 'auto_explain', '$libdir/plpgsql'",
        f"alter database {target} set temp_tablespaces = ''",
        f"alter role {odd} in database {target} set search_path = ''",
        f"alter role {bob} in database {target} set work_mem = '1MB'",
        f"revoke temporary on database {target} from public",
        f"grant connect, create on database {target} to {odd} with grant option",
        f"grant temporary on database {target} to {bob}",
    ):
        place.session.ask(statement)
    info = place.describe(name)
    assert len(info.settings) == 10
    assert place.describe(place.copy(info)) == info


def test_nothing_comes_back_that_was_not_there(place: Place) -> None:
    owner, bob = place.role("The owner"), place.role("bob")
    plain = place.describe(place.create(f"owner {owner}"))
    name = place.create("connection limit 3")
    target = identifier(name)
    for statement in (
        f"comment on database {target} is 'x'",
        f"alter database {target} set work_mem = '1MB'",
        f"alter role {bob} in database {target} set my.own = '1'",
        f"grant create on database {target} to {bob} with grant option",
    ):
        place.session.ask(statement)
    place.apply(plain, name, place.describe(name))
    found = place.describe(name)
    # What everybody may do by default is written out once anything was granted.
    assert found.acl in (None, ['"The owner"=CTc/"The owner"', '=Tc/"The owner"'])
    assert msgspec.structs.replace(found, acl=None) == plain


def test_a_database_closed_to_everybody_stays_closed(newest: Place) -> None:
    name = newest.create()
    newest.session.ask(f"revoke all on database {identifier(name)} from public")
    info = newest.describe(name)
    assert newest.describe(newest.copy(info)) == info


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "UTF8"])
def test_encoding_and_locale_come_back(place: Place, encoding: str) -> None:
    # The wheels' servers have another provider, which a database made without a word would get.
    info = place.describe(place.create(f"locale_provider libc locale 'C' encoding '{encoding}'"))
    assert (info.locale_provider, info.encoding) == ("c", encoding)
    assert place.describe(place.copy(info)) == info


def test_a_locale_of_icu_comes_back(servers: Callable[[int], Server]) -> None:
    with place_on(servers(15)) as place:
        info = place.describe(place.create("locale_provider icu icu_locale 'de' locale 'C' encoding 'UTF8'"))
        assert (info.locale_provider, info.locale) == ("i", "de")
        assert place.describe(place.copy(info)) == info


def test_the_builtin_locale_comes_back(newest: Place) -> None:
    name = newest.create("locale_provider builtin builtin_locale 'C.UTF-8' lc_collate 'C' lc_ctype 'C' encoding 'UTF8'")
    info = newest.describe(name)
    assert (info.locale_provider, info.locale) == ("b", "C.UTF-8")
    assert newest.describe(newest.copy(info)) == info


def test_without_the_locale_there_is_a_database_all_the_same(place: Place) -> None:
    info = but(collate="xx_XX.utf8", ctype="xx_XX.utf8", encoding="LATIN1")
    answers = []
    for statement in properties.creations(info, name := place.new_name(), place.server.major):
        answers.append(place.session.attempt(statement))
        if answers[-1] is None:
            break
    assert answers[0] is not None
    assert answers[-1] is None
    assert place.describe(name).encoding == "LATIN1"


Pair = tuple[Place, str, str]


@pytest.fixture(scope="module")
def pair(server: Server) -> Iterator[Pair]:
    with place_on(server) as place:
        yield place, place.create(), place.create()


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30) | st.text(
    "\\'\", ;$\n=", max_size=12
)


@given(comment=text.filter(bool), schemas=st.lists(text.filter(lambda s: len(s.encode()) < 64), max_size=3), own=text)
@example(comment="x", schemas=[""], own="")
@example(comment="x", schemas=["a,b", '"', "select", "UPPER"], own="a\nb")
@settings(max_examples=25)
def test_any_text_comes_back(pair: Pair, comment: str, schemas: list[str], own: str) -> None:
    place, first, second = pair
    for target in map(identifier, (first, second)):
        place.session.ask(f"alter database {target} reset all")
    target = identifier(first)
    place.session.ask(f"comment on database {target} is {literal(comment)}")
    if schemas:
        place.session.ask(f"alter database {target} set search_path to {', '.join(map(literal, schemas))}")
    place.session.ask(f"alter database {target} set my.own to {literal(own)}")
    info = place.describe(first)
    blank = place.describe(second)
    place.apply(info, second)
    assert place.describe(second) == info
    place.apply(blank, second, info)
    assert place.describe(second) == blank
    place.apply_leniently(info, second, blank)
    assert place.describe(second) == info


@pytest.mark.parametrize("taken", ["temporary", "all"])
def test_an_owner_with_less_than_everything_stays_so(newest: Place, taken: str) -> None:
    owner = newest.role("The owner")
    name = newest.create(f"owner {owner}")
    newest.session.ask(f"revoke {taken} on database {identifier(name)} from {owner}")
    info = newest.describe(name)
    assert newest.describe(newest.copy(info)) == info


def test_what_somebody_else_granted_an_owner_takes_nothing_from_it(newest: Place) -> None:
    owner, bob = newest.role("The owner"), newest.role("bob")
    name = newest.create(f"owner {owner}")
    target = identifier(name)
    for statement in (
        f"grant connect on database {target} to {bob} with grant option",
        f"set role {bob}",
        f"grant connect on database {target} to {owner}",
        "reset role",
    ):
        newest.session.ask(statement)
    copy = newest.describe(newest.copy(newest.describe(name)))
    assert copy.acl
    assert '"The owner"=CTc/"The owner"' in copy.acl


def test_an_owner_who_has_lost_something_has_it_back(newest: Place) -> None:
    owner, bob = newest.role("The owner"), newest.role("bob")
    name = newest.create(f"owner {owner}")
    newest.session.ask(f"grant create on database {identifier(name)} to {bob}")
    info = newest.describe(name)
    newest.session.ask(f"revoke create, temporary on database {identifier(name)} from {owner}")
    newest.apply(info, name, newest.describe(name))
    assert newest.describe(name) == info


def test_what_is_refused_is_told_and_the_rest_is_done(newest: Place) -> None:
    name = newest.create()
    target = identifier(name)
    statements = [
        properties.Statement(f"alter database {target} set no_such_setting = '1'", "the first"),
        properties.Statement(f"alter database {target} set work_mem = '5MB'", "the second"),
        properties.Statement("select 1 / 0 -- it's", "the third"),
    ]
    there = url.elsewhere(newest.database, name)
    command = postgres.psql_loading(newest.tools, there, "")
    with process.Process(command, conversation=True) as psql:
        psql.send(f"begin;\n{properties.leniently(statements)}commit;\n\\q\n".encode())
        done = psql.wait()
    assert done.code == 0, done.err
    assert [s.what for s in properties.refused(done.err, statements)] == ["the first", "the third"]
    assert [(s.name, s.value) for s in newest.describe(name).settings] == [("work_mem", "5MB")]
    assert properties.leniently([]) == ""


def test_a_grant_to_whoever_restores_comes_back(place: Place) -> None:
    owner = place.role("The owner")
    name = place.create(f"owner {owner}")
    place.session.ask(f"grant connect on database {identifier(name)} to postgres with grant option")
    info = place.describe(name)
    assert place.describe(place.copy(info)) == info


def test_a_grant_to_whoever_owns_it_meanwhile_comes_back(place: Place) -> None:
    owner, bob = place.role("The owner"), place.role("bob")
    name = place.create(f"owner {owner}")
    place.session.ask(f"grant create on database {identifier(name)} to {bob}")
    info = place.describe(name)
    place.session.ask(f"alter database {identifier(name)} owner to {bob}")
    place.apply(info, name, place.describe(name))
    assert place.describe(name) == info

"""Dumps that nobody of ours made: told by what is in them, whatever they are called."""

from __future__ import annotations

import gzip
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import Project, Ran, Server, clean_environ

FILLED = """
create table guests (id int primary key, name text);
insert into guests select i, E'Gast\\n' || i from generate_series(1, 200) i;
create table notes (t text);
insert into notes values (E'\\nCOPY public.guests (id) FROM stdin;\\n-- PostgreSQL database dump complete\\n\\\\.\\n'),
  (E'--\\n-- Data for Name: x; Type: TABLE DATA; Schema: y; Owner: z\\n--\\n\\nCOPY public.guests (id) FROM stdin;\\n'),
  (E'\\\\'), (E'\\\\connect postgres'), (null);
create function f() returns text language sql as $$ select '
\\connect postgres
BEGIN;
COMMIT;
'::text $$;
select lo_from_bytea(4711, 'picture');
"""
CONTENTS = """
select (select count(*) || md5(string_agg(g::text, '' order by id)) from guests g),
  (select count(*) || md5(string_agg(coalesce(t, 'null'), ',' order by t)) from notes), f(),
  (select string_agg(md5(lo_get(oid)), ',') from pg_largeobject_metadata)
"""


@dataclass
class Theirs:
    """A database of somebody else's, dumped by the plain tools, and a project to restore it with."""

    server: Server
    project: Project
    source: str
    wanted: str
    made: list[str] = field(default_factory=list)

    def dump(self, *options: str, bin_of: Server | None = None) -> bytes:
        environment = self.server.embedded.environment(self.source)
        done = subprocess.run(
            [str((bin_of or self.server).embedded.bin / "pg_dump"), *options],
            env={**clean_environ(), **environment},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def restore(self, path: str | Path, *, cwd: Path | None = None) -> tuple[Ran, str]:
        database = f"f_{secrets.token_hex(4)}"
        self.made.append(database)
        self.project.use(self.server.url(database))
        return self.project.inv("db.restore", str(path), "--force", "--json", cwd=cwd), database

    def comes_back(self, path: str | Path, *, cwd: Path | None = None) -> None:
        """Restore a file and compare."""
        done, database = self.restore(path, cwd=cwd)
        assert done.code == 0, done.err
        assert self.server.sql(CONTENTS, database) == self.wanted

    def databases(self) -> str:
        return self.server.sql("select string_agg(datname, ' ' order by datname) from pg_database")


@pytest.fixture
def theirs(server: Server, database: str, project: Project) -> Iterator[Theirs]:
    server.sql(FILLED, database)
    it = Theirs(server, project, database, server.sql(CONTENTS, database))
    yield it
    for name in it.made:
        server.drop(name)


def member(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dump from monday", ("-Fp",)),
        ("it's a $(dump) ü.dump", ("-Fp", "--inserts")),
        ("backup_manual_20260101.sql", ("-Fp", "--column-inserts", "--rows-per-insert=7")),
        ("cleaning.sql", ("-Fp", "--clean")),
        ("archive.sql", ("-Fc",)),
        ("level 0.tar", ("-Fc", "-Z0")),
        ("level 9", ("-Fc", "-Z9")),
        ("a.dump", ("-Ft",)),
        *(
            pytest.param(*more, marks=pytest.mark.slow)
            for more in [
                ("inserts.bin", ("-Fc", "--inserts")),
                (".hidden", ("-Ft", "--inserts")),
                ("cleaning gently.sql", ("-Fp", "--clean", "--if-exists")),
                ("triggers.sql", ("-Fp", "--disable-triggers", "--serializable-deferrable")),
            ]
        ),
        ("no owner.txt", ("-Fp", "-O", "-x", "--no-comments", "--quote-all-identifiers")),
        ("latin1.sql", ("-Fp", "--encoding=LATIN1")),
    ],
)
def test_a_dump_of_the_plain_tools_under_any_name(theirs: Theirs, name: str, options: tuple[str, ...]) -> None:
    path = theirs.project.path / name
    path.write_bytes(theirs.dump(*options))
    theirs.comes_back(path)


@pytest.mark.parametrize("method", ["lz4", "zstd"])
def test_other_compressions_where_the_tools_have_them(
    theirs: Theirs, servers: Callable[[int], Server], method: str
) -> None:
    """A wheel's pg_dump may lack one: then there is no such archive, and nothing to read it with either."""
    path = theirs.project.path / "packed"
    try:
        path.write_bytes(theirs.dump("-Fc", f"--compress={method}"))
    except AssertionError as error:
        assert "this build does not support compression" in str(error)  # noqa: PT017 - all that it may say
        return
    theirs.comes_back(path)
    raw = bytearray(path.read_bytes())
    raw[len(raw) - 200] ^= 255
    path.write_bytes(raw)
    done, _ = theirs.restore(path)
    assert done.code == 1


def test_gzip_of_one_or_many_members(theirs: Theirs) -> None:
    dump = theirs.dump("-Fp")
    path = theirs.project.path / "packed.dump"
    path.write_bytes(member(dump))
    theirs.comes_back(path)
    third = len(dump) // 3
    path.write_bytes(member(dump[:third]) + member(b"") + member(dump[third : 2 * third]) + member(dump[2 * third :]))
    theirs.comes_back(path)


@pytest.mark.slow
@pytest.mark.parametrize("major", [15, 17])
@pytest.mark.parametrize("options", [("-Fc",), ("-Ft",), ("-Fp",)])
def test_of_an_older_server(
    theirs: Theirs, servers: Callable[[int], Server], major: int, options: tuple[str, ...]
) -> None:
    old = servers(major)
    source = f"f_{secrets.token_hex(4)}"
    old.sql(f"create database {source}")
    try:
        old.sql(FILLED, source)
        path = theirs.project.path / "old one"
        path.write_bytes(Theirs(old, theirs.project, source, "").dump(*options))
    finally:
        old.sql(f"drop database {source}")
    theirs.comes_back(path)


# Where it is


def test_a_path_may_be_relative_and_through_a_link(theirs: Theirs) -> None:
    folder = theirs.project.path / "their dumps" / "2026"
    folder.mkdir(parents=True)
    (folder / "of monday").write_bytes(theirs.dump("-Fc"))
    (theirs.project.path / "link").symlink_to("their dumps/2026/of monday")
    (theirs.project.path / "link to a link").symlink_to("link")
    theirs.comes_back("their dumps/2026/of monday")
    theirs.comes_back("./their dumps/../link to a link")


def test_latest_is_a_link_and_a_word(theirs: Theirs) -> None:
    theirs.project.use(theirs.server.url(theirs.source))
    assert theirs.project.inv("db.backup").code == 0
    theirs.comes_back("latest:manual")
    theirs.comes_back("backups/postgres/backup_manual_latest.sql.gz")
    (theirs.project.path / "in here").mkdir()
    theirs.comes_back("../backups/postgres/backup_manual_latest.tar", cwd=theirs.project.path / "in here")


# What would work somewhere else


@pytest.mark.parametrize(
    "options",
    [
        ("-Fp", "--create", "--clean"),
        pytest.param(("-Fp", "--create"), marks=pytest.mark.slow),
        pytest.param(("-Fc", "--create"), marks=pytest.mark.slow),
        pytest.param(("-Fp", "--create", "--clean", "--if-exists"), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_a_dump_that_names_its_database_goes_where_we_say(theirs: Theirs, options: tuple[str, ...]) -> None:
    server = theirs.server
    server.sql(
        f"comment on database {theirs.source} is 'theirs'; alter database {theirs.source} set work_mem to '7MB';"
        f"revoke connect on database {theirs.source} from public"
    )
    path = theirs.project.path / "named"
    path.write_bytes(theirs.dump(*options))
    server.sql(f"comment on database {theirs.source} is 'live'; insert into guests values (0, 'new')", theirs.source)
    now = server.sql(CONTENTS, theirs.source)
    theirs.comes_back(path)
    before = theirs.databases()
    assert server.sql(CONTENTS, theirs.source) == now
    about = f"select shobj_description(oid, 'pg_database') from pg_database where datname = '{theirs.source}'"
    assert server.sql(about) == "live"
    empty = f"f_{secrets.token_hex(4)}"
    theirs.made.append(empty)
    server.sql(f"create database {empty}")
    theirs.project.use(server.url(empty))
    done = theirs.project.inv("db.restore", str(path), "--force")
    assert done.code == 0, done.err
    assert server.sql(CONTENTS, empty) == theirs.wanted
    aside = {name for name in theirs.databases().split() if name.startswith(f"{empty}_before_")}
    assert set(theirs.databases().split()) - aside == {*before.split(), empty}


# What is none


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PGDM",
        b"\x1f\x8b",
        gzip.compress(b"not a dump", mtime=0),
        b"select 1;\n",
        bytes(2000),
    ],
)
def test_what_is_no_dump_is_refused(theirs: Theirs, content: bytes) -> None:
    path = theirs.project.path / "thing.dump"
    path.write_bytes(content)
    before = theirs.databases()
    done, _ = theirs.restore(path)
    assert done.code == 2, done.err
    assert "no PostgreSQL dump" in done.json["error"]
    assert theirs.databases() == before


@pytest.mark.parametrize(
    ("options", "cut"),
    [
        (("-Fp",), 0.99),
        (("-Fc",), 0.99),
        (("-Ft",), 0.02),
        (("-Ft",), 0.99),
    ],
)
def test_a_cut_one_is_refused_before_anything_is_touched(theirs: Theirs, options: tuple[str, ...], cut: float) -> None:
    path = theirs.project.path / "cut"
    raw = theirs.dump(*options)
    path.write_bytes(raw[: int(len(raw) * cut)])
    before = theirs.databases()
    done, _ = theirs.restore(path)
    assert done.code == 1, done.err
    assert "not touched" in done.json["error"]
    if options == ("-Fp",):
        path.write_bytes(member(raw)[: int(len(member(raw)) * cut)])
        assert theirs.restore(path)[0].code == 1
    assert theirs.databases() == before


def test_an_archive_is_told_from_a_folder(theirs: Theirs) -> None:
    theirs.dump("-Fd", f"--file={theirs.project.path / 'folder'}")
    done, _ = theirs.restore("folder")
    assert done.code == 2
    assert "is no file" in done.json["error"]


def test_a_set_of_the_old_script_is_verified_and_restored(theirs: Theirs) -> None:
    folder = theirs.project.backups
    folder.mkdir(parents=True)
    stem = folder / "backup_manual_20241226_143022"
    plain = theirs.dump("-Fp")
    Path(f"{stem}.sql").write_bytes(plain)
    Path(f"{stem}.sql.gz").write_bytes(member(plain))
    Path(f"{stem}.dump").write_bytes(theirs.dump("-Fc"))
    Path(f"{stem}.tar").write_bytes(theirs.dump("-Ft"))
    Path(f"{stem}.info").write_text("Backup Information\n==================\nType: manual\nDatabase: happybar\n")
    shutil.copy(f"{stem}.info", f"{stem}.info.bak")
    verdict = theirs.project.inv("db.verify", stem.name, "--json")
    assert verdict.code == 0, verdict.err
    assert verdict.json["backups"][0]["ok"]
    for extension in (".tar", ".sql.gz", ""):
        theirs.comes_back(f"backups/postgres/{stem.name}{extension}" if extension else stem.name)

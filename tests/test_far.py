"""Every task on another machine: a real sshd, an older PostgreSQL there, odd paths, and lines that are cut."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aftermath import holding, processes, wait_until
from conftest import Project, Ran, Server, missing, slowly
from sshd import an_sshd

from bench.sshd import HOST, Sshd
from pg_backup_tasks import line
from pg_backup_tasks.line import Line
from pg_backup_tasks.pull import Identity
from pg_backup_tasks.there import There

ODD = 'far "proj" it\'s $HOME'
PASSWORD = f"s3cret-{secrets.token_hex(4)}-'\"$;é"
ROWS = 500


@dataclass
class Pair:
    """A repository here, the same one on another machine, and the far database with its owner's password."""

    near: Project
    far: Project
    server: Server
    database: str
    sshd: Sshd

    def inv(self, *args: str, **options: object) -> Ran:
        return self.near.inv(*args, **options)  # type: ignore[arg-type]

    def host(self, *args: str) -> Ran:
        """Run a task on the far machine; it must succeed."""
        done = self.inv(*args, "--host", "prod")
        assert done.code == 0, done.err
        return done

    def configure(self, **more: object) -> None:
        """Write the settings: the host `prod`, with what is said of it."""
        host = {"ssh": HOST, "project": str(self.far.path), **more}
        (self.near.path / "invoke.yaml").write_text(
            json.dumps({"db": {"ssh_config": self.sshd.config, "hosts": {"prod": host, "twin": host | TWIN}}})
        )

    @property
    def rows(self) -> str:
        return self.server.sql("select count(*) from drinks", self.database)

    def at_work(self) -> list[tuple[int, str]]:
        """Return the far processes of ours, told by what begins each of them, and by its home from other tests'."""
        found = [(number, words) for number, words in processes() if "#whole" in words]
        return [(number, words) for number, words in found if f"HOME={self.sshd.folder}" in environment_of(number)]

    def locked(self) -> AbstractContextManager[object]:
        """Let no pg_dump go on for a while."""
        return holding(self.server, self.database, "lock table parts")

    def waiting(self) -> int:
        """Return how many sessions wait for a table."""
        found = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname"
        return int(self.server.sql(f"{found} = '{self.database}'"))

    def as_owner(self, sql: str) -> None:
        self.server.sql(f"set role o_{self.database}; {sql}", self.database)

    def asks(self, what: str) -> bool:
        """Whether a session on the database asks for that."""
        found = self.server.sql(
            f"select count(*) from pg_stat_activity where datname = '{self.database}' and query ilike '%{what}%' "
            "and pid <> pg_backend_pid()"
        )
        return found != "0"


def environment_of(number: int) -> list[str]:
    """Return the environment of a process, nothing once it has ended."""
    try:
        return Path(f"/proc/{number}/environ").read_text(errors="replace").split("\0")
    except OSError:
        return []


TWIN = {"backups": "backups/of the twin"}


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    with an_sshd() as sshd:
        yield sshd


def fill(server: Server, database: str) -> str:
    """Make the far database; return the URL of its owner."""
    owner = f"o_{database}"
    quoted = PASSWORD.replace("'", "''")
    server.sql(f"create role {owner} login createdb password '{quoted}'")
    server.sql(f"create database {database} owner {owner}")
    server.sql(
        f"set role {owner}; create table drinks as select n as id, 'drink ' || n as name "
        f"from generate_series(1, {ROWS}) n;"
        "alter table drinks add primary key (id); create view dear as select * from drinks where id > 100;"
        "grant select on drinks to public; create table parts (id int) partition by range (id);"
        "create table lone as select 7 as n; select lo_from_bytea(4711, 'a large one')",
        database,
    )
    from urllib.parse import quote

    return (
        server.url(database)
        .replace("postgres:", f"{owner}:")
        .replace(server.embedded.environment("x")["PGPASSWORD"], quote(PASSWORD, safe=""))
    )


@pytest.fixture
def pair(project: Project, tmp_path: Path, servers: Callable[[int], Server], sshd: Sshd) -> Iterator[Pair]:
    server, database = servers(15), f"f_{secrets.token_hex(4)}"
    far = Project(tmp_path / ODD)
    far.path.mkdir()
    try:
        far.use(fill(server, database))
        pair = Pair(project, far, server, database, sshd)
        pair.configure()
        yield pair
        wait_until(lambda: not pair.at_work(), "the end of every far process")
    finally:
        server.drop(database)
        server.sql(f"drop role if exists o_{database}")


# The tasks


def test_the_whole_story(pair: Pair) -> None:
    taken = pair.host("db.backup", "--type", "first", "--json").json
    assert taken["database"]["name"] == pair.database
    assert Path(taken["path"]).parent == pair.far.backups
    assert sorted(taken["files"]) == [".dump", ".sql", ".sql.gz", ".tar"]
    assert taken["tables"] == {"public.drinks": ROWS, "public.lone": 1}
    assert not pair.near.backups.exists()
    for file in pair.far.backups.iterdir():
        if not file.is_symlink():
            assert file.stat().st_mode & 0o777 == 0o600
    listed = pair.host("db.list", "--json").json
    assert [b["name"] for b in listed["backups"]] == [taken["name"]]
    (verdict,) = pair.host("db.verify", "latest", "--restore", "--json").json["backups"]
    assert verdict["ok"], verdict
    assert verdict["restored"]
    before = pair.server.fingerprint(pair.database)
    pair.as_owner("drop table drinks cascade; create table newer ()")
    done = pair.host("db.restore", "latest", "--force")
    assert "inv db.undo --host prod puts it back" in done.out
    assert pair.server.fingerprint(pair.database) == before
    pair.host("db.undo", "--force")
    assert pair.server.sql("select count(*) from newer", pair.database) == "0"
    pair.host("db.backup-auto")
    done = pair.host("db.cleanup", "--keep", "1", "--json")
    assert len(done.json["kept"]) == 2


MODES = ["", "--data-only", "--schema-only --clean", "--table lone", "--into"]
# What a line could do to a mode or a format is tried among the slow ones.
QUICK = {("", "sql.gz"), ("--data-only", "dump")}


@pytest.mark.parametrize(
    ("mode", "format_"),
    [
        pytest.param(mode, format_, marks=() if (mode, format_) in QUICK else pytest.mark.slow)
        for mode in MODES
        for format_ in ("dump", "tar", "sql.gz", "sql")
    ],
)
def test_every_mode_from_every_format(pair: Pair, mode: str, format_: str) -> None:
    name = pair.host("db.backup", "--json").json["name"]
    path = f"backups/postgres/{name}.{format_}"
    pair.as_owner("delete from drinks where id % 2 = 0; update lone set n = 8; create table other as select 1")
    copy = f"{pair.database}_copy"
    done = pair.inv(
        "db.restore", path, "--force", *mode.split(), *([copy] if mode == "--into" else []), "--host", "prod"
    )
    if mode.startswith("--table") and format_.startswith("sql"):
        assert done.code == 2
        return
    assert done.code == 0, done.err
    if mode == "--into":
        assert pair.server.sql("select count(*) from drinks", copy) == str(ROWS)
        pair.server.drop(copy)
        return
    large = pair.server.sql(
        "select string_agg(encode(lo_get(oid), 'escape'), '') from pg_largeobject_metadata", pair.database
    )
    assert large == ("" if "schema" in mode else "a large one")
    rows = {"": ROWS, "--data-only": ROWS, "--schema-only --clean": 0, "--table lone": ROWS // 2}
    assert pair.rows == str(rows[mode])
    assert pair.server.sql("select sum(n) from lone", pair.database) == ("" if "schema" in mode else "7")
    others = pair.server.sql("select count(*) from pg_class where relname = 'other'", pair.database)
    assert others == ("0" if mode in ("", "--schema-only --clean") else "1")
    pair.host("db.undo", "--force")
    assert pair.rows == str(ROWS // 2)
    assert pair.server.sql("select n from lone", pair.database) == "8"


def test_what_is_set_here_says_nothing_of_there(pair: Pair) -> None:
    wrong = {
        "DATABASE_URL": "postgresql://nobody:x@127.0.0.1:1/wrong",
        "PGHOST": "wrong",
        "PGPORT": "1",
        "INVOKE_DB_SOURCE": "environment",
        "INVOKE_DB_PG_BIN": "/nowhere",
        "INVOKE_DB_BACKUPS": str(pair.near.path / "mine"),
    }
    done = pair.inv("db.backup", "--formats", "dump", "--host", "prod", env=wrong)
    assert done.code == 0, done.err
    assert f"Database {pair.database} on" in done.err
    assert "(from packages/database/.env on prod)" in done.err
    assert not (pair.near.path / "mine").exists()
    assert list(pair.far.backups.glob("*.dump"))


def test_a_far_env_that_is_wrong_is_told_with_its_place(pair: Pair) -> None:
    (pair.far.path / "packages/database/.env").write_text("DATABASE_URL=postgresql://u:p#x@h/d\n")
    done = pair.inv("db.backup", "--host", "prod")
    assert done.code == 2
    assert "packages/database/.env on prod:1" in done.err
    (pair.far.path / "packages/database/.env").unlink()
    done = pair.inv("db.backup", "--host", "prod", env={"DATABASE_URL": pair.server.url(pair.database)})
    assert done.code == 2
    assert "no DATABASE_URL in packages/database/.env on prod" in done.err


def test_one_lock_near_and_far(pair: Pair) -> None:
    pair.configure(project=str(pair.near.path))
    pair.near.use(pair.server.url(pair.database))
    with pair.locked():
        run = pair.near.start("db.backup")
        wait_until(lambda: pair.asks("lock table"), "pg_dump to wait")
        done = pair.inv("db.backup", "--host", "prod")
        assert done.code == 75, done.err
        assert "db.backup" in done.err
    run.communicate()
    assert run.returncode == 0
    with pair.locked():
        run = pair.near.start("db.backup", "--host", "prod")
        wait_until(lambda: pair.asks("lock table"), "pg_dump to wait")
        assert pair.inv("db.backup").code == 75
    run.communicate()
    assert run.returncode == 0


def test_a_host_without_the_folder_or_the_tools(pair: Pair) -> None:
    pair.configure(project="/no/such/folder")
    done = pair.inv("db.list", "--host", "prod")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("There is no folder /no/such/folder on prod.\nTry: ")


def test_the_time_is_the_one_over_there(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "date").write_text('#!/bin/sh\nexec /bin/date -d "+1 day" "$@"\n')
    (tmp_path / "date").chmod(0o755)
    with slow_shell(pair, tmp_path):
        name = pair.host("db.backup", "--formats", "dump", "--json").json["name"]
    taken = datetime.strptime(name.rpartition("backup_manual_")[2], "%Y%m%d_%H%M%S").replace(tzinfo=UTC)
    assert timedelta(hours=23) < taken - datetime.now(UTC) < timedelta(hours=25)


# Consent


@pytest.mark.slow
def test_a_protected_host_wants_the_name(pair: Pair) -> None:
    pair.configure(protected=True)
    pair.host("db.backup")
    for args in (
        ("db.restore", "latest"),
        ("db.restore", "latest", "--force"),
        ("db.cleanup",),
        ("db.undo", "--force"),
    ):
        done = pair.inv(*args, "--host", "prod")
        assert done.code == 2, args
        if args != ("db.undo", "--force"):
            assert f"{pair.database} on prod is protected" in done.err
    assert pair.inv("db.restore", "latest", "--confirm", "another", "--host", "prod").code == 2
    pair.host("db.restore", "latest", "--confirm", pair.database)
    assert pair.inv("db.undo", "--force", "--host", "prod").code == 2
    pair.host("db.undo", "--confirm", pair.database)
    pair.host("db.cleanup", "--confirm", pair.database)
    pair.host("db.cleanup", "--dry-run")


# Secrets


def everything_readable() -> str:
    """Return all that a process list shows of any process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(found)


def test_no_password_is_readable_anywhere(pair: Pair) -> None:
    with pair.locked():
        run = pair.near.start("-e", "db.backup", "--host", "prod")
        wait_until(lambda: pair.asks("lock table"), "pg_dump to wait")
        shown = everything_readable()
        assert "pg_dump" in shown
        for word in (PASSWORD, PASSWORD[:15]):
            assert word not in shown
    out, err = run.communicate()
    assert run.returncode == 0, err
    for text in (out, err, (pair.near.path / "backups/pg_backup_tasks.log").read_text()):
        assert PASSWORD[:15] not in text
    for path in pair.far.path.rglob("*"):
        if path.is_file() and path.name != ".env":
            assert PASSWORD[:15].encode() not in path.read_bytes()


# Several


def test_several_hosts_side_by_side(pair: Pair) -> None:
    done = pair.inv("db.backup", "--formats", "dump", "--json", "--host", "prod,twin")
    assert done.code == 0, done.err
    assert list(done.json) == ["prod", "twin"]
    assert Path(done.json["twin"]["path"]).parent == pair.far.path / "backups/of the twin"
    said = done.err.splitlines()
    assert said
    assert all(line.startswith(("prod: ", "twin: ")) for line in said)
    done = pair.inv("db.list", "--host", "twin,prod,twin")
    assert done.code == 0
    assert {line.partition(": ")[0] for line in done.out.splitlines()} == {"prod", "twin"}


def test_the_code_of_several(pair: Pair) -> None:
    assert pair.inv("db.restore", "latest", "--host", "prod,twin").code == 2
    pair.host("db.backup", "--formats", "dump")
    done = pair.inv("db.verify", "latest", "--host", "prod,twin", "--json")
    assert done.code == 1
    assert done.json["prod"]["backups"][0]["ok"]
    assert done.json["twin"]["exit"] == 2
    assert pair.inv("db.list", "--host", "prod,,twin").code == 2


def test_no_host_is_not_this_machine(ready: Project) -> None:
    done = ready.inv("db.restore", "latest", "--force", "--host", "")
    assert (done.code, done.out) == (2, "")
    assert done.err == "--host '' names no host in one of its places.\nTry: --host one,another\n"
    ran = fab(ready, "-H", "", "db.list")
    assert (ran.returncode, ran.stderr.splitlines()[0]) == (2, "-H '' names no host in one of its places.")


def fab(project: Project, *args: str) -> subprocess.CompletedProcess[str]:
    """Run `fab -c tasks ARGS`."""
    command = [sys.executable, "-m", "fabric", "-c", "tasks", *args]
    return subprocess.run(
        command, cwd=project.path, env=project.environment(), capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("signum", [signal.SIGTERM, *slowly(signal.SIGINT, signal.SIGKILL)])
def test_several_hosts_end_together(pair: Pair, signum: signal.Signals) -> None:
    with pair.locked():
        run = pair.near.start("db.backup", "--host", "prod,twin")
        wait_until(lambda: pair.waiting() >= 2, "both to wait")
        run.send_signal(signum)
        run.communicate()
        assert run.returncode == (128 + signum if signum != signal.SIGKILL else -signum)
        wait_until(lambda: not pair.at_work(), "the end of both")
        wait_until(lambda: not pair.asks("lock table"), "the end of their sessions")
    assert not [f for f in pair.far.path.rglob("backup_*") if ".partial" not in str(f)]


# Dry, and Fabric's own door


def test_dry_opens_no_connection(pair: Pair) -> None:
    (pair.sshd.folder / "nowhere").write_text("Host far\n  HostName 127.0.0.1\n  Port 1\n")
    for args in (("db.backup",), ("db.restore", "latest"), ("db.fetch", "latest"), ("db.pull",), ("db.cleanup",)):
        env = {"INVOKE_DB_SSH_CONFIG": str(pair.sshd.folder / "nowhere")}
        done = pair.inv("--dry", *args, "--host", "prod", env=env)
        assert done.code == 0, done.err
        assert "nothing was connected to" in done.err
    assert not pair.far.backups.exists()
    done = pair.inv("--dry", "db.backup", "--json", "--host", "prod,twin")
    assert [*done.json] == ["prod", "twin"]
    assert done.json["twin"]["plan"].startswith("Would do it on twin (ssh far)")
    assert pair.inv("--dry", "db.backup", "--json", "--host", "twin").json == done.json["twin"]


@pytest.mark.slow
def test_fab_is_the_same_for_one_host_after_another(pair: Pair) -> None:
    shutil.copy(pair.near.path / "invoke.yaml", pair.near.path / "fabric.yaml")
    (pair.near.path / "invoke.yaml").unlink()
    done = fab(pair.near, "-H", "prod,twin", "db.backup", "--formats", "dump")
    assert done.returncode == 0, done.stderr
    assert list(pair.far.backups.glob("*.dump"))
    assert list((pair.far.path / "backups/of the twin").glob("*.dump"))
    assert fab(pair.near, "-H", "prod", "db.list", "--host", "prod").returncode == 2
    done = fab(pair.near, "--dry", "-H", "deploy@prod:2222", "db.list")
    assert f"Would do it on prod (ssh ssh://deploy@{HOST}:2222) in " in done.stdout + done.stderr
    pair.near.environ["FABRIC_DB_LOCK_TIMEOUT"] = "soon"
    done = fab(pair.near, "-H", "prod", "db.list")
    assert done.returncode == 2
    assert "FABRIC_DB_LOCK_TIMEOUT" in done.stderr


# Lines that are cut


def ends_soon(pair: Pair, since: float) -> None:
    """Prove that the far work has ended within 15 seconds, and that the next run clears what is left and works."""
    wait_until(lambda: not pair.at_work(), "the end of the far processes")
    wait_until(lambda: not pair.asks("lock table"), "the end of the far sessions")
    assert time.monotonic() - since < 15
    assert pair.far.final_files() == []


def works_again(pair: Pair) -> None:
    done = pair.inv("db.backup", "--formats", "dump", "--host", "prod")
    assert done.code == 0, done.err
    assert pair.far.hidden_files() == []


@contextmanager
def in_the_middle(pair: Pair, *args: str) -> Iterator[subprocess.Popen[str]]:
    """Run a far backup up to where its pg_dump waits for a table."""
    with pair.locked():
        run = pair.near.start("db.backup", "--host", "prod", *args)
        try:
            wait_until(lambda: pair.asks("lock table"), "pg_dump to wait")
            yield run
        finally:
            run.kill()
            run.communicate()
    works_again(pair)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL, *slowly(signal.SIGINT, signal.SIGHUP)])
def test_a_far_backup_interrupted(pair: Pair, signum: signal.Signals) -> None:
    with in_the_middle(pair) as run:
        run.send_signal(signum)
        began = time.monotonic()
        _, err = run.communicate()
        assert run.returncode == (128 + signum if signum != signal.SIGKILL else -signum), err
        ends_soon(pair, began)
        assert signum == signal.SIGKILL or pair.far.hidden_files() == []


@pytest.mark.slow
def test_a_client_that_is_frozen(pair: Pair) -> None:
    with in_the_middle(pair) as run:
        run.send_signal(signal.SIGSTOP)
        ends_soon(pair, time.monotonic())
        run.send_signal(signal.SIGCONT)
        _, err = run.communicate()
        assert run.returncode == 4, err
        assert "The connection to prod was lost" in err


def test_the_far_end_of_the_line_is_killed(pair: Pair) -> None:
    with in_the_middle(pair) as run:
        ((keeper, _), *_) = pair.at_work()
        parent = int(Path(f"/proc/{keeper}/stat").read_text().rpartition(")")[2].split()[1])
        began = time.monotonic()
        os.kill(parent, signal.SIGKILL)
        _, err = run.communicate()
        assert run.returncode == 4, err
        assert err.splitlines()[-2:] == [
            "The connection to prod was lost; what was at work there ends by itself.",
            "Try: the same again, once the host can be reached; remains are cleared then",
        ]
        ends_soon(pair, began)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture
def far_away(sshd: Sshd) -> Iterator[tuple[Sshd, Callable[[], None], Callable[[], None]]]:
    """An sshd in a network of its own, and what cuts the way to it and mends it again."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        missing("a network namespace", "as root, with apt-get install iproute2")
    name = f"pgbt{secrets.token_hex(3)}"
    here, there = f"{name}a", f"{name}b"
    # A net that no run before us has left behind.
    net = f"198.18.{secrets.randbelow(256)}"
    with ExitStack() as stack:
        ip("netns", "add", name)
        stack.callback(ip, "netns", "del", name)
        ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        ip("addr", "add", f"{net}.1/30", "dev", here)
        ip("link", "set", here, "up")
        ip("-n", name, "addr", "add", f"{net}.2/30", "dev", there)
        for link in (there, "lo"):
            ip("-n", name, "link", "set", link, "up")
        far = stack.enter_context(an_sshd(address=f"{net}.2", namespace=name))

        def mend() -> None:
            ip("-n", name, "link", "set", there, "up")
            # The neighbour that did not answer is believed to be gone for a while.
            wait_until(lambda: answers(far), "the network to be mended")

        # What is not let through is not answered, as firewalls do it.
        yield far, lambda: ip("-n", name, "link", "set", there, "down"), mend


def answers(sshd: Sshd) -> bool:
    with suppress(OSError), socket.create_connection((sshd.address, sshd.port), timeout=1):
        return True
    return False


@pytest.mark.slow
def test_the_network_is_cut(
    pair: Pair, far_away: tuple[Sshd, Callable[[], None], Callable[[], None]], tmp_path: Path
) -> None:
    sshd, cut, mend = far_away
    # The database is reached by a socket, which is in no network.
    sockets = pair.server.sql("show unix_socket_directories").split(",")[0]
    if not sockets:
        pytest.skip("this server has no socket")
    pair.sshd = sshd
    pair.configure()
    env = pair.far.path / "packages/database/.env"
    env.write_text(env.read_text().replace("@127.0.0.1", "@").replace('"\n', f'?host={sockets}"\n'))
    with in_the_middle(pair) as run:
        began = time.monotonic()
        cut()
        _, err = run.communicate()
        assert run.returncode == 4, err
        assert time.monotonic() - began < 15
        assert "The connection to prod was lost" in err
        ends_soon(pair, began)
        mend()


@pytest.mark.slow
def test_a_slow_way_up_is_no_cut_line(
    far_away: tuple[Sshd, Callable[[], None], Callable[[], None]], tmp_path: Path
) -> None:
    """What goes up takes longer than any silence is borne; the signs of life go between."""
    sshd, *_ = far_away
    config = tmp_path / "config"
    config.write_text(sshd.words(HOST, sshd.port))
    there = There(HOST, Line(HOST, lambda: line.connect(HOST, config=str(config), patience=5, ask=None, given={})))
    way = subprocess.run(["ip", "route", "get", sshd.address], capture_output=True, text=True, check=True).stdout
    device = way.split(" dev ")[1].split()[0]
    narrow = ["tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", "800kbit", "burst", "10kb", "latency", "1s"]
    if subprocess.run(narrow, capture_output=True, check=False).returncode:
        pytest.skip("this kernel cannot make a line slow")
    data = os.urandom(2_500_000)
    try:
        there.write(f"{tmp_path}/sent", data)
    finally:
        there.close()
    assert (tmp_path / "sent").read_bytes() == data


# Bringing home


def test_a_backup_comes_home(pair: Pair) -> None:
    name = pair.host("db.backup", "--json").json["name"]
    done = pair.host("db.fetch", "latest", "--json")
    home = pair.near.path / "backups/prod"
    assert done.json == {
        "backup": name,
        "host": "prod",
        "files": [str(home / f"{name}.{e}") for e in ("dump", "tar", "sql.gz", "sql")],
    }
    for file in home.iterdir():
        assert file.read_bytes() == (pair.far.backups / file.name).read_bytes()
        assert file.stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    assert "here already" in pair.host("db.fetch", name).out
    (home / f"{name}.dump").write_bytes(b"torn")
    assert "every byte compared" in pair.host("db.fetch", name).out
    assert pair.inv("db.verify", str(home / f"{name}.dump")).code == 0


def test_one_file_of_a_backup_or_a_foreign_dump_comes_home(pair: Pair) -> None:
    name = pair.host("db.backup", "--formats", "dump,sql", "--json").json["name"]
    pair.host("db.fetch", f"backups/postgres/{name}.dump")
    home = pair.near.path / "backups/prod"
    assert sorted(f.name for f in home.iterdir()) == [f"{name}.dump", f"{name}.info"]
    shutil.rmtree(home)
    strange = pair.far.path / "some 'other' thing.dump"
    (pair.far.backups / f"{name}.dump").rename(strange)
    pair.host("db.fetch", strange.name)
    home = pair.near.path / "backups/prod"
    assert [f.name for f in home.iterdir()] == [strange.name]
    assert (home / strange.name).read_bytes() == strange.read_bytes()


def test_what_is_damaged_over_there_does_not_come(pair: Pair) -> None:
    name = pair.host("db.backup", "--formats", "dump,sql", "--json").json["name"]
    file = pair.far.backups / f"{name}.sql"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    done = pair.inv("db.fetch", "latest", "--host", "prod")
    assert done.code == 1
    assert "is not what was written; nothing of it was kept." in done.err
    assert list((pair.near.path / "backups/prod").iterdir()) == []
    file.unlink()
    assert pair.inv("db.fetch", name, "--host", "prod").code == 2


@pytest.mark.parametrize("signum", [signal.SIGTERM, *slowly(signal.SIGKILL)])
def test_a_fetch_that_was_cut_begins_anew(pair: Pair, signum: signal.Signals, tmp_path: Path) -> None:
    name = pair.host("db.backup", "--formats", "dump", "--json").json["name"]
    far = pair.far.backups / f"{name}.dump"
    whole = far.read_bytes()
    home = pair.near.path / "backups/prod"
    slow = a_slow_cat(tmp_path)
    with slow_shell(pair, slow):
        run = pair.near.start("db.fetch", name, "--host", "prod")
        wait_until((slow / "begun").exists, "the first bytes")
        run.send_signal(signum)
        run.communicate()
        assert run.returncode == (128 + signum if signum != signal.SIGKILL else -signum)
    assert not [f for f in home.iterdir() if not f.name.startswith(".")]
    pair.host("db.fetch", name)
    assert sorted(f.name for f in home.iterdir()) == [f"{name}.dump", f"{name}.info"]
    assert (home / f"{name}.dump").read_bytes() == whole


def a_slow_cat(tmp_path: Path) -> Path:
    """Return a folder with a cat that stops within what it reads, and then makes the file `begun` there."""
    slow = tmp_path / "slow"
    slow.mkdir()
    begun = shlex.quote(str(slow / "begun"))
    # What we fetch with reads its standard input; all else is left as it is.
    (slow / "cat").write_text(
        f'#!/bin/sh\n[ $# -gt 0 ] && exec /bin/cat "$@"\ndd bs=500 count=1 2>/dev/null; echo >{begun}; exec sleep 60\n'
    )
    (slow / "cat").chmod(0o755)
    return slow


@pytest.mark.slow
def test_no_cleanup_removes_what_is_being_fetched(pair: Pair, tmp_path: Path) -> None:
    older, newer = (pair.host("db.backup", "--formats", "dump", "--json").json["name"] for _ in range(2))
    slow = a_slow_cat(tmp_path)
    with slow_shell(pair, slow):
        run = pair.near.start("db.fetch", older, "--host", "prod")
        wait_until((slow / "begun").exists, "the first bytes")
        done = pair.host("db.cleanup", "--keep", "1", "--json").json
        assert [b["name"] for b in done["kept"]] == [newer, older]
        run.terminate()
        run.communicate()
    assert [b["name"] for b in pair.host("db.cleanup", "--keep", "1", "--json").json["kept"]] == [newer]
    assert pair.far.hidden_files() == []


@contextmanager
def slow_shell(pair: Pair, folder: Path) -> Iterator[None]:
    """Let far commands be looked for in *folder* first."""
    before = pair.sshd
    with an_sshd(path=f"{folder}:{os.environ['PATH']}") as pair.sshd:
        pair.configure()
        yield
    pair.sshd = before
    pair.configure()


def test_a_pull_makes_the_far_database_ours(pair: Pair, server: Server, database: str) -> None:
    pair.near.use(server.url(database))
    server.sql("create table mine ()", database)
    pair.server.sql(f"alter database {pair.database} set timezone to 'Asia/Tokyo'")
    pair.host("db.backup")
    far = pair.server.fingerprint(pair.database)
    assert pair.inv("db.pull", "--host", "prod").code == 2
    assert not (pair.near.path / "backups/prod").exists()
    done = pair.inv("db.pull", "--force", "--json", "--host", "prod")
    assert done.code == 0, done.err
    assert (done.json["database"], done.json["mode"], done.json["how"]) == (database, "full", "swap")
    assert server.sql("select count(*) from drinks", database) == str(ROWS)
    assert server.sql("select count(*) from pg_class where relname = 'mine'", database) == "0"
    owners = "select distinct pg_get_userbyid(relowner) from pg_class where relname in ('drinks', 'dear')"
    assert server.sql(owners, database) == "postgres"
    assert server.sql("select relacl is null from pg_class where relname = 'drinks'", database) == "t"
    assert server.sql("show timezone", database) != "Asia/Tokyo"
    assert pair.server.fingerprint(pair.database) == far
    assert pair.inv("db.undo", "--force").code == 0
    assert server.sql("select count(*) from mine", database) == "0"


def test_a_fresh_pull_into_a_database_that_is_missing(pair: Pair, server: Server, database: str) -> None:
    pair.near.use(server.url(f"{database}_new"))
    pair.server.sql("insert into drinks values (-1, 'new')", pair.database)
    done = pair.inv("db.pull", "--fresh", "--force", "--host", "prod")
    assert done.code == 0, done.err
    assert server.sql("select count(*) from drinks", f"{database}_new") == str(ROWS + 1)
    server.drop(f"{database}_new")
    (info,) = pair.far.backups.glob("*manual_2*.info")
    assert list(json.loads(info.read_text())["files"]) == [".dump"]


def test_a_pull_into_the_very_database_is_refused(pair: Pair) -> None:
    pair.host("db.backup", "--formats", "dump")
    pair.near.use(pair.server.url(pair.database))
    pair.server.sql("revoke execute on function pg_control_system() from public", pair.database)
    done = pair.inv("db.pull", "--force", "--host", "prod")
    assert done.code == 2
    assert f"{pair.database} on prod is the very database" in done.err


@pytest.mark.parametrize(
    ("far", "same"),
    [
        (Identity("1", "5"), True),
        (Identity("1", "6"), False),
        (Identity("2", "5"), False),
        (Identity("2", "5", follows=False, cluster="c"), False),
        (Identity("2", "5", follows=True, cluster="c"), True),
        (Identity("2", "5", follows=True, cluster="d"), False),
        (Identity("2", "5", follows=True), False),
    ],
)
def test_which_database_is_the_very_one(far: Identity, same: bool) -> None:
    here = Identity("1", "5", cluster="c")
    assert here.is_same(far) is far.is_same(here) is same


def test_fetch_and_pull_are_about_another_machine(pair: Pair) -> None:
    assert pair.inv("db.fetch", "latest").code == 2
    assert pair.inv("db.pull", "--force").code == 2
    assert pair.inv("db.pull", "--force", "--host", "prod,twin").code == 2
    pair.near.environ["INVOKE_DB_BACKUPS"] = "backups/prod"
    done = pair.inv("db.fetch", "latest", "--host", "prod")
    assert done.code == 2

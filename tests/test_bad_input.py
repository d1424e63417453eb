"""What bad words, settings and URLs get on the real command line: refused in a sentence, and nothing stays of it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest
from aftermath import Trial, on_trial
from conftest import TASKS, Project, Server, slowly

from pg_backup_tasks.journal import Change

FILE = "packages/database/.env"
# Unlike anything else that is printed, so that a piece of it is found.
SECRET = "hunter2XYZ"


@pytest.fixture
def trial(project: Project, server: Server, database: str) -> Iterator[Trial]:
    """A project on an empty database."""
    with on_trial(project, server, database) as made:
        yield made


def write_env(project: Project, text: str) -> None:
    """Make *text* the project's .env."""
    (project.path / FILE).write_text(text)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is ours, and at which nobody listens."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


# Which database


def test_no_database_configured(trial: Trial) -> None:
    for text in ("DATABASE_URL=\n", '# DATABASE_URL="postgresql://h/d"\nOTHER=1\n'):
        write_env(trial.project, text)
        trial.fails("db.backup", code=2, says=f"No database is configured.*{FILE} or the environment", tries="inv demo")
    (trial.project.path / FILE).unlink()
    trial.fails("db.backup", code=2, says=f"No database is configured.*{FILE} or the environment", tries="inv demo")


def test_two_different_databases(trial: Trial, server: Server) -> None:
    other = server.url("postgres")
    both = trial.fails(
        "db.backup",
        env={"DATABASE_URL": other},
        code=2,
        says=rf"{trial.database} on 127.*postgres on 127",
        tries="INVOKE_DB_SOURCE=file or INVOKE_DB_SOURCE=environment",
    )
    assert FILE in both.err and "environment" in both.err
    for source, name in (("file", trial.database), ("environment", "postgres")):
        done = trial.project.inv("db.list", env={"DATABASE_URL": other, "INVOKE_DB_SOURCE": source})
        assert done.code == 0, done.err
        plan = trial.project.inv("--dry", "db.backup", env={"DATABASE_URL": other, "INVOKE_DB_SOURCE": source})
        assert f"Would back up {name} on" in plan.err
    trial.fails("db.backup", env={"INVOKE_DB_SOURCE": "both"}, code=2, says="SOURCE must be 'file' or", tries=".")


def test_the_same_database_twice_is_one(trial: Trial, server: Server) -> None:
    same = server.url(trial.database).replace("127.0.0.1", "localhost")
    assert trial.project.inv("db.backup", "--formats", "dump", env={"DATABASE_URL": same}).code == 0


def test_source_alone_does_not_make_a_database(trial: Trial) -> None:
    trial.fails(
        "db.backup",
        env={"INVOKE_DB_SOURCE": "environment"},
        code=2,
        says="no DATABASE_URL in the environment",
        tries=".",
    )


# tests/test_url.py has many more, without the command line.
BAD_URLS = [
    f"mysql://root:{SECRET}@127.0.0.1:3306/d",
    f"postgresql+psycopg://u:{SECRET}@127.0.0.1/d",
    f"host=127.0.0.1 password={SECRET} dbname=d",
    SECRET,
    f"postgresql://u:{SECRET}%zz@127.0.0.1/d",
    f"postgresql://u:{SECRET}%ff@127.0.0.1/d",
    f"postgresql://u:x/{SECRET}@127.0.0.1/d",
    f"postgresql://u:{SECRET}@[::1/d",
    f"postgresql://u:{SECRET}@127.0.0.1:{SECRET}/d",
    f"postgresql:///d?password={SECRET}&{SECRET}",
]


def test_a_url_that_is_none_is_never_echoed(trial: Trial) -> None:
    trial.secrets.add(SECRET)
    write_env(trial.project, "")
    for url in BAD_URLS:
        trial.fails("db.backup", env={"DATABASE_URL": url}, code=2, says="URL in the environment", tries=".")
    assert "psql" not in trial.spied()


def test_a_bad_url_in_the_file_names_the_file(trial: Trial) -> None:
    trial.secrets.add(SECRET)
    trial.project.use(f"mysql://u:{SECRET}@h/d")
    trial.fails("db.backup", code=2, says=f"URL in {FILE} does not start with postgresql://", tries="postgresql://")


AMBIGUOUS = [
    f"DATABASE_URL=postgresql://u:{SECRET}#x@h/d",
    f'DATABASE_URL="postgresql://u:{SECRET}@h/d\nOTHER=1',
    f"DATABASE_URL=`postgresql://u:{SECRET}@h/d`",
    f'DATABASE_URL="postgresql://u:{SECRET}\\"x@h/d"',
    "DATABASE_URL=postgresql://u:${PASSWORD}@h/d",
]


def test_a_line_that_dotenv_dialects_read_differently(trial: Trial) -> None:
    trial.secrets.add(SECRET)
    for line in AMBIGUOUS:
        write_env(trial.project, f"FIRST=1\n{line}\n")
        trial.fails("db.backup", code=2, says=rf"The line {FILE}:2 ", tries="quotes|whole URL")


# On the way in


def test_a_file_that_is_not_utf_8(trial: Trial) -> None:
    file = trial.project.path / FILE
    text = f'# gr\xfcn\nDATABASE_URL="postgresql://u:{SECRET}\xe4@127.0.0.1/d"\n'
    file.write_bytes(text.encode("latin-1"))
    said = trial.fails("db.backup", code=2, says=f"{FILE}:2 .*not UTF-8", tries="UTF-8")
    assert SECRET not in said.err
    file.write_bytes(text.encode("utf-16"))
    trial.fails("db.backup", code=2, says=f"{FILE} .*UTF-16", tries="UTF-8")


def test_a_folder_in_the_place_of_the_file(trial: Trial) -> None:
    (trial.project.path / FILE).unlink()
    (trial.project.path / FILE).mkdir()
    trial.fails("db.backup", code=1, says=f"{FILE} cannot be read: Is a directory", tries="INVOKE_DB_ENV_FILE")


def test_wrong_password(trial: Trial) -> None:
    user, _ = trial.role()
    for password in ("not+it", "", "percent%25encoded"):
        trial.project.use(trial.url(user, password) if password else trial.url(user, "nil").replace(":nil", ""))
        trial.secrets -= {"nil", ""}
        trial.fails("db.backup", code=4, says="does not accept this user and password", tries="DATABASE_URL")


def test_unknown_user(trial: Trial) -> None:
    trial.project.use(trial.url("nobody_of_that_name", "secret-of-nobody"))
    trial.fails("db.backup", code=4, says="does not accept this user and password", tries="DATABASE_URL")


def test_nobody_listens(trial: Trial, closed_port: int, tmp_path: Path) -> None:
    trial.secrets.add(SECRET)
    for url in (f"postgresql://u:{SECRET}@127.0.0.1:{closed_port}/d", f"postgresql://u:{SECRET}@/d?host={tmp_path}"):
        trial.project.use(url)
        trial.fails("db.backup", code=4, says="Nobody listens", tries="start the server")


def test_unknown_host(trial: Trial) -> None:
    trial.secrets.add(SECRET)
    trial.project.use(f"postgresql://u:{SECRET}@no-such-host.invalid/d")
    trial.fails("db.backup", code=4, says="host of d on no-such-host.invalid:5432 as u is not known", tries="host")


def test_missing_database(trial: Trial, server: Server) -> None:
    trial.project.use(server.url("no such database"))
    trial.fails("db.backup", code=4, says="no database no such database on", tries="inv db.restore")


def test_a_pooled_url(trial: Trial, server: Server) -> None:
    pooled = f"postgresql://u:{SECRET}@ep-pooler.example.invalid/{trial.database}"
    trial.secrets.add(SECRET)
    trial.project.use(pooled)
    trial.fails("db.backup", code=2, says="connection pooler", tries="DIRECT_URL")
    trial.fails("db.backup", env={"INVOKE_DB_ALLOW_POOLER": "false"}, code=2, says="connection pooler", tries=".")
    trial.fails("db.backup", env={"INVOKE_DB_ALLOW_POOLER": "true"}, code=4, says="is not known", tries="host")
    write_env(trial.project, f'DATABASE_URL="{pooled}"\nDIRECT_URL="{server.url("postgres")}"\n')
    trial.fails("db.backup", code=2, says=f"DIRECT_URL.*names.*postgres.*{trial.database}", tries="without the pooler")


def test_direct_url_is_preferred_and_orm_parameters_named_once(trial: Trial, server: Server) -> None:
    extra = "schema=public&connection_limit=5&pgbouncer=true&connection_limit=6&application_name=app"
    pooled = f"{server.url(trial.database)}?{extra}".replace("127.0.0.1", "no-such-host.invalid")
    direct = f"{server.url(trial.database)}?schema=public&sslaccept=strict&schema=x"
    write_env(trial.project, f'DATABASE_URL="{pooled}"\nDIRECT_URL="{direct}"\n')
    done = trial.project.inv("db.backup", "--formats", "dump")
    assert done.code == 0, done.err
    assert f"Database {trial.database} on 127.0.0.1:" in done.err
    left_out = [line for line in done.err.splitlines() if "left out" in line]
    assert left_out == ["Parameters that PostgreSQL's tools do not know, left out: schema, sslaccept"]
    trial.leaves_nothing(done)


def test_the_callers_own_postgres_ways_change_nothing(trial: Trial, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".psqlrc").write_text("\\set ON_ERROR_STOP off\n\\echo from psqlrc\nselect 1/0;\n")
    (home / ".pg_service.conf").write_text("[mine]\nhost=no-such-host.invalid\n")
    elsewhere = {
        "PGHOST": "no-such-host.invalid",
        "PGHOSTADDR": "127.0.0.9",
        "PGPORT": "1",
        "PGUSER": "nobody",
        "PGDATABASE": "nothing",
        "PGSERVICE": "mine",
        "PGSERVICEFILE": str(home / ".pg_service.conf"),
        "PGSSLMODE": "require",
        "PGOPTIONS": "-c default_transaction_read_only=on -c search_path=nowhere",
        "PGCLIENTENCODING": "LATIN1",
        "PGPASSWORD": "wrong",
        "PGPASSFILE": "/nonexistent",
        "PGTZ": "Asia/Tokyo",
        "PGDATESTYLE": "German",
        "PSQLRC": str(home / ".psqlrc"),
        "PSQL_PAGER": "false",
        "LANG": "de_DE.UTF-8",
        "LC_ALL": "de_DE.UTF-8",
        "HOME": str(home),
    }
    trial.server.sql("create table t as select now() as at, 'Größe 日本' as word", trial.database)
    plain = trial.project.inv("db.backup", "--formats", "sql", "--json").json
    turned = trial.project.inv("db.backup", "--formats", "sql", "--json", env=elsewhere)
    assert turned.code == 0, turned.err
    assert turned.json["files"][".sql"]["bytes"] == plain["files"][".sql"]["bytes"]
    assert turned.json["database"] == plain["database"]
    assert {k: turned.json[k] for k in ("tables", "tools", "server_version")} == {
        k: plain[k] for k in ("tables", "tools", "server_version")
    }
    proven = trial.project.inv("db.verify", "latest", "--restore", env=elsewhere)
    assert proven.code == 0, proven.err


# Words


def test_a_bad_type(trial: Trial) -> None:
    for word in ("Production", "a b", "", "../x"):
        trial.fails("db.backup", f"--type={word}", code=2, says="cannot be a backup type", tries="--type before_v2")
    for word in ("latest", "all"):
        trial.fails("db.backup", f"--type={word}", code=2, says=f"'{word}' has a meaning of its own", tries=None)
    trial.fails("db.list", "--type", "A", code=2, says="'A' cannot be a backup type", tries="--type before_v2")
    trial.fails("db.verify", "latest:A", code=2, says="'A' cannot be a backup type", tries="--type before_v2")


def test_a_bad_format(trial: Trial) -> None:
    for word in ("zip", "dump,directory", "", ","):
        trial.fails("db.backup", f"--formats={word}", code=2, says="backup format", tries="dump,tar,sql,sql.gz")


def test_a_wait_that_is_no_number(trial: Trial) -> None:
    for words in ("db.backup x", "db.backup-auto -1", "db.verify all nan", "db.backup-pre-migrate inf", "db.backup "):
        *task, word = words.split(" ")
        trial.fails(*task, f"--wait={word}", code=2, says="--wait takes a number of seconds", tries="--wait 60")


def test_a_bare_double_dash(trial: Trial) -> None:
    ran = trial.project.inv("db.backup", "--", "--formats", "dump")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines() == ["A bare -- hides what follows it.", "Try: the same command without --"]
    assert not trial.project.backups.exists()


def test_an_option_in_the_place_of_backup(trial: Trial) -> None:
    assert trial.project.inv("db.backup", "--formats", "dump").code == 0
    for words in ("db.restore --help", "db.restore --forse", "db.verify --help", "db.verify "):
        task, word = words.split(" ")
        trial.fails(task, word, code=2, says="is no backup", tries="inv --help db")


@pytest.mark.parametrize(
    "words",
    [
        "db.backup --description --dry",
        "db.restore x --into --dry",
        "db.migrate --command --dry",
        *slowly(
            *("db.backup --description --help", "db.backup --type -R", "db.backup --formats --echo"),
            *("db.restore x --table t --table --dry", "db.restore x --confirm --dry", "db.backup --host --dry"),
            "db.backup --wait -eR",
        ),
    ],
)
def test_an_option_in_the_place_of_a_value(trial: Trial, words: str) -> None:
    *_, flag, option = words.split()
    says = f"^{flag} takes a value, and {option} is an option.$"
    trial.fails(*words.split(), code=2, says=says, tries=f"{flag}={option}")
    assert not trial.project.backups.exists() and not trial.spied()


def test_a_value_that_looks_like_an_option(trial: Trial) -> None:
    for words in (["--description=--dry"], ["--description", "- 5 degrees"], ["--description", "-5"]):
        done = trial.project.inv("db.backup", "--formats", "dump", "--json", *words)
        assert (done.code, done.json["description"]) == (0, words[-1].removeprefix("--description=")), done.err


def test_no_such_backup(trial: Trial) -> None:
    for word in ("nosuch", "latest", "latest:auto", "all", "./x.dump"):
        trial.fails("db.verify", word, code=2, says="no (whole )?backup", tries="inv db")


def test_no_terminal_to_ask_in(trial: Trial, server: Server) -> None:
    assert trial.project.inv("db.backup", "--formats", "dump").code == 0
    spied = trial.spied()
    trial.fails("db.restore", "latest", code=2, says="no terminal to ask in", tries="--force")
    trial.fails("db.verify", "pick", code=2, says="no terminal to pick a backup in", tries="db.list")
    assert trial.spied() == spied
    # Bytes on standard input are no terminal: nobody has said yes.
    said = trial.project.inv("db.restore", "latest", stdin="y\n")
    assert said.code == 2, said.err
    assert server.sql("select count(*) from pg_class where relname = 't'", trial.database) == "0"


def test_words_that_no_encoding_fits(trial: Trial, server: Server) -> None:
    name = f"{trial.database}_größe_日本"
    server.sql(f'create database "{name}"')
    trial.project.use(server.url(name))
    done = trial.project.inv("db.backup", "--formats", "dump", "--description", "f\udcfcr alle", "--json")
    assert done.code == 0, done.err
    assert done.json["description"] == "f\ufffdr alle"
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    assert trial.project.inv("db.list", "--json", env=ascii_only).json["backups"][0]["database"] == name
    listed = trial.project.inv("db.list", env=ascii_only)
    assert (listed.code, "gr\\xf6\\xdfe_" in listed.out) == (0, True), listed.err
    server.sql(f'drop database "{name}"')


# Settings


BAD_VARIABLES = [
    ("LOCK_TIMEOT", "3", "no setting INVOKE_DB_LOCK_TIMEOT", "INVOKE_DB_LOCK_TIMEOUT"),
    ("BACKUP", "x", "no setting INVOKE_DB_BACKUP ", "INVOKE_DB_BACKUPS"),
    ("LOCK_TIMEOUT", "abc", "INVOKE_DB_LOCK_TIMEOUT must be a whole number", "30"),
    ("LOCK_TIMEOUT", "-1", "INVOKE_DB_LOCK_TIMEOUT cannot be negative", "30"),
    ("ALLOW_POOLER", "maybe", "INVOKE_DB_ALLOW_POOLER must be true or false", "False"),
    ("SOURCE", "File", "INVOKE_DB_SOURCE must be 'file' or 'environment'", "."),
]


def test_a_bad_setting_in_the_environment(trial: Trial) -> None:
    for name, value, says, tries in BAD_VARIABLES:
        trial.fails("db.backup", env={f"INVOKE_DB_{name}": value}, code=2, says=says, tries=tries)


BAD_LINES = [
    ("lock_timeot: 3", "no setting lock_timeot", "lock_timeout"),
    ("hosts: {a: {shs: b}}", "no setting shs .in the hosts setting, under a", "ssh"),
    ("hosts: {a: {protected: maybe}}", "protected of the host a must be true or false", None),
    ("hosts: {a: {jobs: 0}}", "jobs of the host a cannot be less than 1", "2"),
    ("retention: {auto: 5}", "retention has no table under auto", "auto: {daily: 7"),
    ("hosts: {a: b}", "hosts has no table under a", "a: {project: /srv/bar}"),
    ("lock_timeout: abc", "lock_timeout must be a whole number", "30"),
    ("lock_timeout: true", "lock_timeout must be a whole number", "30"),
    ("lock_timeout: -1", "lock_timeout cannot be negative", "30"),
    ("allow_pooler: 2", "allow_pooler must be true or false", "False"),
    ("backups: [a, b]", "backups must be text, not a list", "backups/postgres"),
]


def test_a_bad_setting_in_invoke_yaml(trial: Trial) -> None:
    for line, says, tries in BAD_LINES:
        (trial.project.path / "invoke.yaml").write_text(f"db:\n  {line}\n")
        trial.fails("db.backup", code=2, says=says, tries=tries)


BROKEN_FILES = [
    ("yaml", "db:\n  lock_timeout: [hunter2XYZ\n", r"invoke.yaml:\d cannot be read", "one `setting: value`"),
    ("yaml", "db:\n\tlock_timeout: 3\n", r"invoke.yaml:2 cannot be read", "one `setting: value`"),
    ("yml", "db: 'hunter2XYZ\n", r"invoke.yml:\d cannot be read", "one `setting: value`"),
    ("json", "{", r"invoke.json cannot be read", "one `setting: value`"),
    ("yaml", "db:\n  # lock_timeout: 3\n", "invoke.yaml has one value, or none, where", "leave db: out"),
    ("yaml", "db: [hunter2XYZ]\n", "invoke.yaml has one value, or none, where", "leave db: out"),
    ("yaml", "db: hunter2XYZ\n", "invoke.yaml has one value, or none, where", "leave db: out"),
    ("yaml", "- hunter2XYZ\n", "invoke.yaml has one value, or none, where", "leave db: out"),
    ("yaml", "db:\n  lock_timeout: {a: hunter2XYZ}\n", "or many where one belongs", "leave db: out"),
    ("yaml", "db:\n  retention: {auto: {on: 5}}\n", "invoke.yaml has True where a name belongs", "quotes around it"),
    ("yaml", "db:\n  hosts:\n    7: {ssh: a}\n", "invoke.yaml has 7 where a name belongs", "quotes around it"),
]


@pytest.mark.parametrize("layout", ["tasks.py", pytest.param("tasks/__init__.py", marks=pytest.mark.slow)])
def test_a_broken_invoke_yaml(trial: Trial, layout: str) -> None:
    root = trial.project.path
    (root / layout).parent.mkdir(exist_ok=True)
    (root / "tasks.py").rename(root / layout)
    for kind, text, says, tries in BROKEN_FILES:
        (root / f"invoke.{kind}").write_text(text)
        said = trial.fails("db.backup", code=2, says=says, tries=tries)
        assert SECRET not in said.err
        listed = trial.project.inv("-l")
        assert (listed.code, "Traceback" in listed.err) == (2, False)
        (root / f"invoke.{kind}").unlink()


def test_a_broken_file_of_the_users_own(trial: Trial, tmp_path: Path) -> None:
    (tmp_path / ".invoke.yaml").write_text("db:\n")
    said = trial.fails(
        "db.backup", env={"HOME": str(tmp_path)}, code=2, says="has one value, or none, where", tries="db:"
    )
    assert str(tmp_path / ".invoke.yaml") in said.err


def test_a_name_in_no_encoding(trial: Trial, server: Server) -> None:
    name = f"{trial.database}_ascii"
    server.sql(f"create database {name} encoding 'SQL_ASCII' template template0 locale_provider libc locale 'C'")
    server.sql("do $$ begin execute 'create table \"caf' || chr(233) || '\" ()'; end $$", name)
    trial.project.use(server.url(name))
    trial.fails("db.backup", code=1, says="has a name or comment that is not UTF-8 .0xe9", tries="rename it")
    server.sql(f"drop database {name}")


def test_an_invoke_yaml_in_a_folder_above_or_of_latin_letters(trial: Trial) -> None:
    below = trial.project.path / "packages"
    (trial.project.path / "invoke.yaml").write_text("db:\n")
    assert "Traceback" not in trial.project.inv("db.list", cwd=below).err
    (trial.project.path / "invoke.yaml").write_bytes(b"db:\n  pg_bin: /gr\xfcn\n")
    trial.fails("db.backup", code=2, says="invoke.yaml cannot be read", tries="UTF-8")
    (trial.project.path / "invoke.yaml").write_text("")
    assert trial.project.inv("db.list").code == 0


BAD_ARGUMENTS = [
    ("lock_timeot=3", "no setting lock_timeot .in db.config", "lock_timeout"),
    ("lock_timeout='abc'", "lock_timeout must be a whole number", "30"),
    ("lock_timeout=-1", "lock_timeout cannot be negative", "30"),
    ("backups=['a']", "backups must be text, not a list", "backups/postgres"),
    ("retention={7: {'last': 5}}", "db.config.. has 7 where a name belongs", "quotes around it"),
]


def test_a_bad_setting_in_tasks_py(trial: Trial) -> None:
    for given, says, tries in BAD_ARGUMENTS:
        (trial.project.path / "tasks.py").write_text(TASKS.replace("config()", f"config({given})"))
        trial.fails("db.backup", code=2, says=says, tries=tries)


def test_a_setting_of_tasks_py_that_the_environment_spoils(trial: Trial) -> None:
    (trial.project.path / "tasks.py").write_text(TASKS.replace("config()", "config(lock_timeout=5)"))
    trial.fails("db.backup", env={"INVOKE_DB_LOCK_TIMEOUT": "abc"}, code=2, says="must be a whole number", tries="30")


# Dry


def test_dry_changes_nothing_and_asks_nobody(trial: Trial) -> None:
    assert trial.project.inv("db.backup", "--formats", "dump").code == 0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        aside = Change(
            name=trial.database,
            host="127.0.0.1",
            port=listener.getsockname()[1],
            task="db.restore of x",
            backup="x",
            how="swap",
            before="aside",
            at="2020-01-01T00:00:00Z",
            bytes=1,
            presence="1",
        )
        (trial.project.backups / ".undo.json").write_text(json.dumps([asdict(aside)]))
        trial.project.use(f"postgresql://u:{SECRET}@127.0.0.1:{listener.getsockname()[1]}/{trial.database}")
        before, spied = everything_below(trial.project.path), trial.spied()
        for task in (
            "db.backup",
            "db.backup-auto",
            "db.backup-pre-migrate",
            "db.restore latest",
            "db.restore latest --force",
            "db.restore latest --data-only --force",
            "db.restore latest --table t --force",
            "db.restore latest --into other --force",
            "db.undo --force",
            "db.list",
            "db.verify all",
            "db.verify latest --restore",
        ):
            done = trial.project.inv("--dry", *task.split())
            assert done.code == 0, f"{task}: {done.err}"
            assert "Would" in done.err or task == "db.list"
        for task in ("db.cleanup --keep 1", "db.cleanup --dry-run"):
            # What stays and what goes is the result here, not only the plan.
            assert "Would remove" in trial.project.inv("--dry", *task.split()).out
        assert everything_below(trial.project.path) == before
        assert trial.spied() == spied
        with pytest.raises(BlockingIOError):
            listener.accept()


def everything_below(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Return what lies below a folder: when it was changed, its mode, and what a link says."""
    return {
        str(p): (p.lstat().st_mtime_ns, p.lstat().st_mode, str(p.readlink()) if p.is_symlink() else "")
        for p in folder.rglob("*")
        if "__pycache__" not in p.parts
    }

"""PostgreSQL's side of things, pure: which tools, which commands, which questions, what its errors mean."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from . import hiding, url
from .errors import Failed, TaskError, Unreachable
from .machine import CommandError
from .model import Command, Database

# A connection that a firewall dropped silently is noticed within a minute, not after TCP's two hours.
_KEEPALIVES = {"keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3"}
_PSQL_SCRIPT_ERROR = 3
# Where Python has another name for what PostgreSQL calls an encoding.
_CODECS = {"SQL_ASCII": "utf-8", "UHC": "cp949", "KOI8R": "koi8_r", "KOI8U": "koi8_u"}
# psql knows \restrict since these minor releases (August 2025).
_RESTRICT_SINCE = {13: 22, 14: 19, 15: 14, 16: 10, 17: 6}


@dataclass(frozen=True)
class Tools:
    """One folder of client tools and its version."""

    folder: str
    version: str

    @property
    def major(self) -> int:
        """The major version, as in 17."""
        return int(self.version.split(".")[0])

    @property
    def knows_restrict(self) -> bool:
        """Whether this psql understands `\\restrict`, which newer dumps begin with."""
        first_minor = _RESTRICT_SINCE.get(self.major, 0 if self.major > 17 else 999)
        minor = self.version.split(".")[1:2]
        return int(minor[0] if minor else 0) >= first_minor

    def path(self, program: str) -> str:
        """Return where *program* is."""
        return f"{self.folder}/{program}"


def parse_tools(found: Iterable[tuple[str, str]]) -> list[Tools]:
    """Return the tools among (folder, `pg_dump --version`) pairs, each folder once."""
    tools = []
    for folder, text in dict(found).items():
        if match := re.search(r"\(PostgreSQL\) (\d+(?:\.\d+)*)", text):
            tools.append(Tools(folder, match[1]))
    return tools


def choose_tools(found: Sequence[Tools], server_major: int) -> Tools:
    """Return the tools of the server's own major version, else the next newer; earlier finds win ties.

    Raises Failed where there are none, or none new enough.
    """
    if not found:
        raise Failed(
            "PostgreSQL's client tools (psql, pg_dump, pg_restore) are not on this machine.",
            hint=f"install postgresql-client-{server_major}, or set INVOKE_DB_PG_BIN to their folder",
        )
    able = [t for t in found if t.major >= server_major]
    if not able:
        newest = max(found, key=lambda t: t.major)
        raise Failed(
            f"The server is PostgreSQL {server_major}, the newest pg_dump here is {newest.version}, and an "
            "older pg_dump cannot dump a newer server.",
            hint=f"install postgresql-client-{server_major}, or set INVOKE_DB_PG_BIN to its folder",
        )
    # A folder of its own rather than Debian's /usr/bin, where a wrapper decides anew at every call.
    return min(able, key=lambda t: (t.major, t.folder == "/usr/bin"))


def any_tools(found: Sequence[Tools]) -> Tools:
    """Return the newest tools, to ask a server what it is. Raises Failed where there are none."""
    if not found:
        return choose_tools(found, 17)
    return max(found, key=lambda t: (t.major, t.folder != "/usr/bin"))


def connected(
    tools: Tools, program: str, database: Database, arguments: Sequence[str], *, options: str = ""
) -> Command:
    """Return the command that runs *program* on *database*: all but the password in its environment."""
    env = dict(url.environment(database))
    if options:
        env["PGOPTIONS"] = f"{env.get('PGOPTIONS', '')} {options}".strip()
    env.setdefault("PGAPPNAME", "pg_backup_tasks")
    secrets = (("PGPASSWORD", database.password),) if database.password else ()
    return Command(
        (tools.path(program), "--no-password", *arguments, f"--dbname={_conninfo(database)}"),
        tuple(sorted(env.items())),
        secrets,
    )


def _conninfo(database: Database) -> str:
    given = {k: v for k, v in database.parameters if k in url.CONNINFO_ONLY}
    pairs = {"dbname": database.name} | _KEEPALIVES | given
    return " ".join(f"{key}={url.quote_conninfo(value)}" for key, value in pairs.items())


def psql(tools: Tools, database: Database, arguments: Sequence[str] = ()) -> Command:
    """Return psql as a tool: no ~/.psqlrc, bare values, an end at the first error, UTF-8 in and out."""
    base = ("--no-psqlrc", "--no-align", "--tuples-only", "--quiet", "--set=ON_ERROR_STOP=1")
    command = connected(tools, "psql", database, (*base, *arguments))
    return Command(command.argv, (*command.env, ("PGCLIENTENCODING", "UTF8")), command.secrets)


def psql_loading(tools: Tools, database: Database, options: str) -> Command:
    """Return psql reading a dump from standard input; the dump itself says which encoding it is in."""
    base = ("--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--output=/dev/null", "--file=-")
    return connected(tools, "psql", database, base, options=options)


def pg_dump(
    tools: Tools,
    database: Database,
    *,
    archive: str,
    path: str,
    snapshot: str,
    lock_timeout: int,
    options: str,
) -> Command:
    """Return pg_dump writing *archive* (`custom` or `tar`) of an exported snapshot; *lock_timeout* in seconds."""
    # A third to a half of the default level's time, an eighth more bytes; level 1 is a little quicker still, but on
    # text it grows the file by more than a seventh.
    compress = ("--compress=2",) if archive == "custom" else ()
    wait = (f"--lock-wait-timeout={lock_timeout * 1000}",) if lock_timeout else ()
    arguments = (f"--format={archive}", *compress, *wait, f"--snapshot={snapshot}", f"--file={path}")
    return connected(tools, "pg_dump", database, arguments, options=options)


def dump_schema(tools: Tools, database: Database, options: str, lock_timeout: int) -> Command:
    """Return pg_dump printing the schema, and what belongs to it, as SQL; *lock_timeout* in seconds."""
    arguments = ("--schema-only", f"--lock-wait-timeout={lock_timeout * 1000}")
    return connected(tools, "pg_dump", database, arguments, options=options)


def print_sql(tools: Tools) -> Command:
    """Return pg_restore printing the archive it reads from standard input as SQL."""
    return Command((tools.path("pg_restore"), "--file=-"))


def pg_restore(tools: Tools, database: Database, path: str, *, jobs: int, owned: bool, options: str) -> Command:
    """Return pg_restore filling an empty database from a custom archive, *jobs* tables or indexes at a time."""
    unowned = () if owned else ("--no-owner", "--no-privileges")
    arguments = ("--exit-on-error", f"--jobs={jobs}", *unowned, path)
    return connected(tools, "pg_restore", database, arguments, options=options)


def print_items(tools: Tools, path: str) -> Command:
    """Return pg_restore printing, of the archive it reads from standard input, the objects whose ids *path* lists."""
    return Command((tools.path("pg_restore"), "--file=-", f"--use-list={path}"))


def list_archive(tools: Tools, path: str) -> Command:
    """Return pg_restore printing an archive's table of contents."""
    return Command((tools.path("pg_restore"), "--list", path))


def codec(encoding: str) -> str:
    """Return Python's codec for a PostgreSQL encoding; Latin-1, which never fails, where there is none."""
    name = re.sub(r"^WIN", "cp", encoding)
    try:
        return codecs.lookup(_CODECS.get(name, name)).name
    except LookupError:
        return "latin-1"


def literal(text: str) -> str:
    """Return *text* as an SQL string."""
    quoted = text.replace("'", "''")
    return " E'" + quoted.replace("\\", "\\\\") + "'" if "\\" in text else f"'{quoted}'"


def identifier(name: str) -> str:
    """Return *name* as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def explain(error: CommandError, database: Database, doing: str) -> TaskError:
    """Return what a failed PostgreSQL command means for the user; *doing* as in `dump`."""
    said = _redact(error.done.err, database)
    # What the statements of a dump run into is no word about the way in.
    inside = error.command.program == "psql" and error.done.code == _PSQL_SCRIPT_ERROR
    for pattern, kind, message, hint in _MEANINGS:
        if inside and kind is Unreachable:
            continue
        if match := re.search(pattern, said):
            names = {"database": database, "name": database.name, "doing": doing}
            words = {k: v for k, v in match.groupdict().items() if v}
            return kind(message.format(**names | words), hint=hint.format(**names | words) or None)
    if error.done.code == 2 and error.command.program == "psql":
        return Unreachable(
            f"Cannot connect to {database}: {_last_line(said)}", hint="check DATABASE_URL and the server's own log"
        )
    if error.done.code > 128:
        return Failed(
            f"{error.command.program} was ended by signal {error.done.code - 128} before it was done.",
            hint="look whether the machine ran out of memory, then run it again",
        )
    return Failed(f"Cannot {doing} {database}: {_last_line(said)}")


def reason(error: CommandError) -> str:
    """Return why the server refused a statement, in its own words."""
    return _last_line(error.done.err)


# The tool, the place (which our sentence has named already) and how grave it is.
_PREFIXES = re.compile(
    r"^(?:(?:psql|pg_dump|pg_restore)(?::[^ ]*)?: (?:error: )?)?"
    r"(?:connection to server (?:at|on socket) .*? failed: )?(?:(?:FATAL|ERROR):\s+)?"
)
_MEANINGS: tuple[tuple[str, type[TaskError], str, str], ...] = (
    (
        r"password authentication failed|no password supplied|authentication failed",
        Unreachable,
        "{database} does not accept this user and password.",
        "check DATABASE_URL, and that the password is percent-encoded in it",
    ),
    (
        r"Connection refused|No such file or directory\n?.*Is the server running",
        Unreachable,
        "Nobody listens where {database} should be.",
        "start the server, or check host and port in DATABASE_URL",
    ),
    (
        r'invalid byte sequence for encoding "UTF8": (?P<bytes>[^\n]*)',
        Failed,
        "{database} has a name or comment that is not UTF-8 ({bytes}), and SQL_ASCII does not say what else it is.",
        "rename it, or move the data into a database with an encoding",
    ),
    (
        r"could not translate host name",
        Unreachable,
        "The host of {database} is not known.",
        "check the host in DATABASE_URL",
    ),
    (
        r'database "[^\n]*" does not exist',
        Unreachable,
        "There is no database {name} on that server ({database}).",
        "check the name in DATABASE_URL; inv db.restore BACKUP creates a missing one",
    ),
    (
        r'role "[^\n]*" does not exist\n?$',
        Unreachable,
        "{database}: the server has no such user.",
        "check the user in DATABASE_URL",
    ),
    (
        r"timeout expired|Connection timed out|No route to host",
        Unreachable,
        "{database} does not answer.",
        "check that the server runs and that no firewall is in between",
    ),
    (
        r"no pg_hba.conf entry",
        Unreachable,
        "The server lets nobody in to {database} from here (pg_hba.conf).",
        "add a line for this host, user and database to pg_hba.conf",
    ),
    (
        r"affected by row-level security policy for table \"(?P<table>[^\n\"]*)\"",
        Failed,
        "Row-level security hides rows of {table} from this user, so a dump would not be whole.",
        "connect as the tables' owner or a role with BYPASSRLS",
    ),
    (
        r"(?:denied for (?:table|relation|sequence|schema|large object)|data for sequence) \"?(?P<object>[^\n\";]*)",
        Failed,
        "This user may not read {object} in {name}, so a dump would not be whole.",
        "connect as the owner, or GRANT pg_read_all_data to the user",
    ),
    # pg_dump limits its LOCK TABLE as a statement.
    (
        r"canceling statement due to (?:lock timeout|statement timeout[^\n]*\n[^\n]*LOCK TABLE)",
        Failed,
        "Another session holds a lock on a table of {database} for longer than the dump waits.",
        "find it in pg_stat_activity, or raise INVOKE_DB_LOCK_TIMEOUT (seconds)",
    ),
    # A dump that begins after its snapshot's session has gone asks for a snapshot that nobody holds.
    (
        r"terminating connection|snapshot \S* does not exist|server was lost|(?:query failed|server): server closed",
        Failed,
        "The server ended our sessions in {database} before they were done.",
        "look into the server's log for who ended them, then run it again",
    ),
    (
        r"server version mismatch",
        Failed,
        "The tools found are older than the server.",
        "install the client tools of the server's major version",
    ),
    (
        r"No space left on device",
        Failed,
        "The disk became full while {doing}ing {database}.",
        "make room where the backups are (and in /tmp for .tar)",
    ),
    (
        r"out of shared memory",
        Failed,
        "The server's lock table is too small for all the objects of {database} at once.",
        "raise max_locks_per_transaction on the server",
    ),
    (
        r"unsupported version \((?P<version>[0-9.]+)\) in file header",
        Failed,
        "The archive was made by a newer pg_dump (archive version {version}) than the pg_restore here.",
        "install newer PostgreSQL client tools",
    ),
)


def _redact(text: str, database: Database) -> str:
    return hiding.hide(text, (database.password,), (database.name, database.user, database.host))


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"ERROR|FATAL|error:", line)]
    chosen = (errors or lines or ["it gave no reason"])[-1 if not errors else 0]
    return _PREFIXES.sub("", chosen).rstrip(".") + "."

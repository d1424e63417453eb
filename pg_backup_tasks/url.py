"""Reading a connection URL strictly, and never repeating one in an error: its password could be anywhere in it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from urllib.parse import unquote_to_bytes

from .errors import Refused
from .model import Database

# What libpq takes from its environment, so that nothing of it has to stand in a command line.
# https://www.postgresql.org/docs/current/libpq-envars.html
VARIABLES = {
    "hostaddr": "PGHOSTADDR",
    "passfile": "PGPASSFILE",
    "channel_binding": "PGCHANNELBINDING",
    "application_name": "PGAPPNAME",
    "sslmode": "PGSSLMODE",
    "sslnegotiation": "PGSSLNEGOTIATION",
    "sslcompression": "PGSSLCOMPRESSION",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcrl": "PGSSLCRL",
    "sslcrldir": "PGSSLCRLDIR",
    "sslcertmode": "PGSSLCERTMODE",
    "sslsni": "PGSSLSNI",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "require_auth": "PGREQUIREAUTH",
    "requirepeer": "PGREQUIREPEER",
    "gssencmode": "PGGSSENCMODE",
    "gsslib": "PGGSSLIB",
    "gssdelegation": "PGGSSDELEGATION",
    "krbsrvname": "PGKRBSRVNAME",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "options": "PGOPTIONS",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "load_balance_hosts": "PGLOADBALANCEHOSTS",
    "min_protocol_version": "PGMINPROTOCOLVERSION",
    "max_protocol_version": "PGMAXPROTOCOLVERSION",
}
# libpq knows these too, but only in a connection string.
CONNINFO_ONLY = frozenset(
    {
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "tcp_user_timeout",
        "fallback_application_name",
        "replication",
    }
)
LOCATION = frozenset({"host", "port", "user", "password", "dbname"})
# libpq's as well, but a dump has its own answer to them.
OURS_TO_SAY = frozenset({"client_encoding"})
DIRECT_NAMES = (
    "DIRECT_URL",
    "DATABASE_URL_UNPOOLED",
    "DIRECT_DATABASE_URL",
    "POSTGRES_URL_NON_POOLING",
)
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1", "ip6-localhost"})
ENCODE = "percent-encode what is special in the user, password and name (# / ? @ : % [ ] and blanks)"


@dataclass(frozen=True)
class Parsed:
    """A URL read: the database, and the names of the parameters left out because libpq refuses them."""

    database: Database
    left_out: tuple[str, ...] = ()
    pooled: bool = field(default=False)


def parse(url: str, source: str) -> Parsed:
    """Read a `postgres://` or `postgresql://` URL; *source* is where it was found.

    Raises Refused, without any part of the URL, for whatever is not certain to mean one database.
    """
    refuse = _Refusal(source)
    scheme, separator, rest = url.strip(" \t\r\n").partition("://")
    if not separator or scheme not in ("postgres", "postgresql"):
        raise refuse("does not start with postgresql://", "postgresql://user:password@host:5432/name")
    if re.search(r"[\x00-\x20\x7f#\\]", rest):
        raise refuse("has a blank, # or backslash in it", ENCODE)
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    if authority.count("@") > 1 or "@" in path or "@" in query:
        raise refuse("has an @, / or ? in its user, password or parameters that is not percent-encoded", ENCODE)
    userinfo, _, hostport = authority.rpartition("@")
    if "/" in path:
        raise refuse("names no single database after its host", ENCODE)
    user, _, password = userinfo.partition(":")
    host, port = _host_and_port(hostport, refuse)
    found = {
        "user": refuse.decode(user),
        "password": refuse.decode(password),
        "host": refuse.decode(host),
        "port": port,
        "dbname": refuse.decode(path),
    }
    parameters, left_out, pooled = _parameters(query, found, refuse)
    database = _database(found, parameters, refuse)
    return Parsed(database, left_out, pooled or _looks_pooled(database))


def same_database(one: Database, other: Database) -> bool:
    """Whether two URLs name the same database, loopback names being equal."""
    return (_place(one), one.port, one.name) == (_place(other), other.port, other.name)


def _place(database: Database) -> str:
    # As in libpq, hostaddr says where to connect, and host only whom to expect there.
    return place(dict(database.parameters).get("hostaddr") or database.host)


def place(host: str) -> str:
    """Return a host's name as it is compared with others, loopback names being equal."""
    return "localhost" if host.lower() in LOOPBACK else host.lower()


def key(database: Database) -> tuple[str, str, int]:
    """Return what a database is remembered by."""
    return database.name, place(database.host), database.port


class _Refusal:
    """Makes the error for one URL, naming where it stands and nothing in it."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __call__(self, why: str, hint: str) -> Refused:
        return Refused(f"The database URL in {self.source} {why}.", hint=hint)

    def decode(self, text: str) -> str:
        """Return *text* with its percent-encoding resolved, strictly as libpq does it."""
        if re.search(r"%(?![0-9a-fA-F]{2})", text):
            raise self("has a % that begins no percent-encoding", ENCODE)
        try:
            decoded = unquote_to_bytes(text.encode("utf-8", "surrogateescape")).decode("utf-8")
        except UnicodeError:
            raise self("is not UTF-8 once its percent-encoding is resolved", ENCODE) from None
        if re.search(r"[\x00-\x1f\x7f]", decoded):
            raise self("has a control character in it", ENCODE)
        return decoded


def _host_and_port(text: str, refuse: _Refusal) -> tuple[str, str]:
    if "," in text:
        raise refuse("names several hosts", "the one host to work on")
    if text.startswith("["):
        match = re.fullmatch(r"\[([0-9a-fA-F:.]+(?:%25[\w.]+)?)\](?::(\d*))?", text)
    else:
        match = re.fullmatch(r"([^:\[\]]*)(?::(\d*))?", text)
    if not match:
        raise refuse("has no host and port that can be read", ENCODE)
    return match[1], match[2] or ""


def _parameters(
    query: str, found: dict[str, str], refuse: _Refusal
) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...], bool]:
    kept: dict[str, str] = {}
    left_out: list[str] = []
    pooled = False
    for pair in filter(None, query.split("&")):
        raw_key, equals, raw_value = pair.partition("=")
        key, value = refuse.decode(raw_key), refuse.decode(raw_value)
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", key):
            raise refuse("has a parameter that cannot be read", ENCODE)
        if key in LOCATION:
            # As in libpq, the query wins over what stands before it.
            found[key] = value
        elif key in VARIABLES or key in CONNINFO_ONLY:
            kept[key] = value
        elif key == "ssl":
            kept.setdefault("sslmode", "require" if value in ("true", "1") else "prefer")
        elif key == "sslpassword":
            raise refuse(
                "has an sslpassword, which libpq takes in no safe way",
                "a client key without a passphrase, readable by its owner only",
            )
        elif key == "service":
            raise refuse("names a service", "the host, port and name themselves")
        elif key not in OURS_TO_SAY:
            left_out.append(key)
            pooled = pooled or (key == "pgbouncer" and value.lower() == "true")
    if kept.get("sslmode") == "no-verify":
        kept["sslmode"] = "require"
    return tuple(sorted(kept.items())), tuple(dict.fromkeys(left_out)), pooled


def _database(found: dict[str, str], parameters: tuple[tuple[str, str], ...], refuse: _Refusal) -> Database:
    if "," in found["host"]:
        raise refuse("names several hosts", "the one host to work on")
    port = found["port"] or "5432"
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise refuse("has a port that is no number from 1 to 65535", ENCODE)
    if not found["dbname"]:
        raise refuse("names no database", "postgresql://user:password@host:5432/name")
    return Database(
        name=found["dbname"],
        host=found["host"],
        port=int(port),
        user=found["user"],
        password=found["password"],
        parameters=parameters,
        source=refuse.source,
    )


def _looks_pooled(database: Database) -> bool:
    host = database.host.lower()
    return database.port == 6543 or "-pooler." in host or host.startswith("pooled.")


def environment(database: Database) -> tuple[tuple[str, str], ...]:
    """Return the variables that make libpq connect to *database*, all but the password."""
    variables = {"PGPORT": str(database.port), "PGDATABASE": database.name}
    if database.host:
        variables["PGHOST"] = database.host
    if database.user:
        variables["PGUSER"] = database.user
    for key, value in database.parameters:
        if key in VARIABLES:
            variables[VARIABLES[key]] = value
    return tuple(sorted(variables.items()))


def quote_conninfo(value: str) -> str:
    """Return *value* as it stands in a libpq connection string."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def elsewhere(database: Database, name: str) -> Database:
    """Return the same login on another database of the server."""
    return replace(database, name=name)

"""The line to a far machine: Fabric's connections, host keys checked, and at each end someone who notices its cut."""

from __future__ import annotations

import base64
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fabric
import paramiko
from paramiko import PKey
from paramiko.agent import Agent
from paramiko.auth_strategy import AuthStrategy, InMemoryPrivateKey
from paramiko.buffered_pipe import BufferedPipe, PipeTimeout
from paramiko.pkey import PublicBlob

from . import openssh, posix, signals, vouching
from .errors import Refused, TaskError, Unreachable
from .openssh import KnownKeys, Route

# How a question that must not be echoed is asked; None where there is nobody to ask.
AskSecret = Callable[[str], str] | None

_BEAT = 1.5
_SILENCE = 10.0
_AGAIN = 0.2
_SOON = 10.0
_LET_IN = 12
_KEEPALIVE = 15
_CLOCKS_AGREE = timedelta(seconds=5)
_MOST_JUMPS = 8
_PIECE = 1 << 15
_AT_ONCE = 1 << 18
_WORTH_IT = 1 << 19
_UNSENT = 1 << 16
# Fewer and larger packets than usual; a larger window makes paramiko slower.
_BULK = {"window_size": 2 << 20, "max_packet_size": 1 << 17}
# A quarter quicker than what paramiko takes of itself.
_QUICK = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
# What paramiko says when its patience is over.
_NO_ANSWER, _NO_HANDSHAKE = "Authentication timeout.", "No existing session"
_PRIVATE, _OPENSSH, _CERTIFIED = "-----BEGIN ", b"openssh-key-v1\0", "-cert-"
_RSA = ("rsa-sha2-512", "rsa-sha2-256")

# Whatever is wrong is told by us, in a sentence.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False


class Lost(Unreachable):
    """The line was cut."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"The connection to {host} was lost; what was at work there ends by itself.",
            hint="the same again, once the host can be reached; remains are cleared then",
        )


class Line:
    """The connections to one host, and its keeper: a far process that lives exactly as long as this run.

    Every far command is tied to the keeper; see posix.py.
    """

    def __init__(self, host: str, connect: Callable[[], fabric.Connection]) -> None:
        self.host = host
        self._connect = connect
        self._lock = threading.Lock()
        self._connections = [connect()]
        self._lost = threading.Event()
        self._closed = threading.Event()
        self._keeper, self.keeper, self._ahead = self._begin()
        for work in (self._beat, self._listen):
            threading.Thread(target=work, daemon=True).start()

    def open(self, script: bytes, more: bytes = b"", *, bulk: bool = False) -> paramiko.Channel:
        """Run a script over there, say *more* to it; return the channel that is its standard input and output.

        A channel for *bulk* takes more at once.
        """
        channel = self._channel(_BULK if bulk else {})
        if bulk:
            channel.in_buffer = _Gathered()
        try:
            channel.settimeout(_AGAIN)
            channel.exec_command(posix.boot(len(script)))
            self.send(channel, script + more)
        except (paramiko.SSHException, EOFError, OSError):
            channel.close()
            raise Lost(self.host) from None
        return channel

    def send(self, channel: paramiko.Channel, data: bytes) -> None:
        """Send *data* to what runs at the other end of a channel. Raises OSError where that has ended."""
        done = 0
        while done < len(data):
            try:
                sent = channel.send(data[done : done + _PIECE])
            except TimeoutError:
                self.check()
                signals.check()
                continue
            except (EOFError, paramiko.SSHException):
                raise BrokenPipeError from None
            if not sent:
                raise BrokenPipeError
            done += sent

    def now(self) -> datetime:
        """Return what time it is over there."""
        return datetime.now(UTC) + self._ahead

    def check(self) -> None:
        """Raise Lost if the line was cut."""
        if self.lost:
            raise Lost(self.host)

    @property
    def lost(self) -> bool:
        """Whether the line was cut."""
        return self._lost.is_set() or not self._connections[0].is_connected

    def close(self) -> None:
        """End everything that is still at work over there, and the connections."""
        self._closed.set()
        for connection in self._connections:
            _close(connection)

    def _channel(self, sizes: dict[str, int]) -> paramiko.Channel:
        """Return a new channel; sshd allows ten on a connection (MaxSessions), so that there may be several."""
        with self._lock:
            for connection in reversed(self._connections):
                with suppress(paramiko.ChannelException):
                    return self._on(connection, sizes)
            self._connections.append(self._connect())
            return self._on(self._connections[-1], sizes)

    def _on(self, connection: fabric.Connection, sizes: dict[str, int]) -> paramiko.Channel:
        try:
            return connection.transport.open_session(timeout=_SOON, **sizes)
        except paramiko.ChannelException:
            raise
        except (paramiko.SSHException, EOFError, OSError, AttributeError):
            raise Lost(self.host) from None

    def _begin(self) -> tuple[paramiko.Channel, str, timedelta]:
        """Start the keeper; return the channel to it, its number, and how far its clock is ahead of ours.

        Raises Unreachable where it cannot be started.
        """
        # Nobody listens yet: what does not answer now would be waited for without end.
        alarm = threading.Timer(_SOON, self._give_up)
        alarm.daemon = True
        alarm.start()
        try:
            channel = self.open(posix.script(posix.KEEPER, (), (), None))
            alarm.cancel()
            said = self._first_line(channel)
        except Lost:
            if self._lost.is_set():
                raise
            said = ""
        except BaseException:
            self.close()
            raise
        finally:
            alarm.cancel()
        if answer := re.fullmatch(r"(\d+) (\d{14})", said):
            return channel, answer[1], _ahead(answer[2])
        self.close()
        if said:
            raise Unreachable(
                f"{self.host} says {said[:60]!r}, and no command of ours can be told from that.",
                hint="let what its login shell reads (~/.bashrc) say nothing where there is no terminal",
            )
        raise Unreachable(
            f"{self.host} lets us in, but runs no commands for us.",
            hint=f"ssh {self.host} true, which must end without a word",
        )

    def _first_line(self, channel: paramiko.Channel) -> str:
        said, deadline = b"", time.monotonic() + _SOON
        while b"\n" not in said and time.monotonic() < deadline:
            try:
                data = channel.recv(64)
            except TimeoutError:
                signals.check()
                continue
            if not data:
                break
            said += data
        return said.decode(errors="replace").partition("\n")[0]

    def _beat(self) -> None:
        while not self._closed.wait(_BEAT):
            with suppress(TimeoutError):
                try:
                    self._keeper.send(b"\n")
                except (OSError, EOFError, paramiko.SSHException):
                    return

    def _listen(self) -> None:
        while not self._closed.is_set() and time.monotonic() - self._heard < _SILENCE:
            try:
                data = self._keeper.recv(64)
            except TimeoutError:
                continue
            if not data:
                break
        self._give_up()

    @property
    def _heard(self) -> float:
        """When the last byte came: on a slow line the keeper's answers wait behind whatever else is to come."""
        last: float = max(connection.transport.sock.heard for connection in list(self._connections))
        return last

    def _give_up(self) -> None:
        if not self._closed.is_set() and not self._lost.is_set():
            self._lost.set()
            for connection in self._connections:
                _close(connection)


def _ahead(clock: str) -> timedelta:
    """Return how far a clock that shows *clock* is ahead of ours."""
    ahead = datetime.strptime(clock, "%Y%m%d%H%M%S").replace(tzinfo=UTC) - datetime.now(UTC)
    # Part of it is the way and the fraction of a second: the same machine must not seem to lag behind itself.
    return ahead if abs(ahead) > _CLOCKS_AGREE else timedelta()


def _close(connection: fabric.Connection) -> None:
    # Not by connection.close(), which waits for channels of Fabric's own.
    gateway = connection.gateway
    with suppress(Exception):
        connection.client.close()
    if isinstance(gateway, fabric.Connection):
        _close(gateway)


def connect(
    name: str, *, config: str, patience: int, ask: AskSecret, given: dict[str, Any], jumps: int = 0
) -> fabric.Connection:
    """Return a connection to *name* as OpenSSH's configuration has it, its host key known.

    *given* are keyword arguments for paramiko's connect() that the caller has from Fabric; *jumps* is how many hosts'
    own jumps have led to this one. Raises Unreachable.
    """
    if jumps > _MOST_JUMPS:
        raise Refused(f"ProxyJump of {name} leads round in a circle.", hint=f"ssh -G {name} says what it is")
    route = openssh.route(name, config)
    via: fabric.Connection | None = None
    for place, jump in enumerate(route.jumps):
        # The way to the first is its own configuration's affair; to each other one it leads through the one before.
        if via:
            via = _open(openssh.route(jump, config), via, patience, ask, {}, route.jumps[:place])
        else:
            via = connect(jump, config=config, patience=patience, ask=ask, given={}, jumps=jumps + 1)
    return _open(route, via, patience, ask, _said_by_hand(route, given))


def _said_by_hand(route: Route, given: dict[str, Any]) -> dict[str, Any]:
    """Return *given* without the keys that Fabric has from OpenSSH's configuration, which we read ourselves."""
    files = given.get("key_filename") or []
    by_hand = [path for path in ([files] if isinstance(files, str) else files) if path not in route.identities]
    rest = {key: value for key, value in given.items() if key != "key_filename"}
    return rest | ({"key_filename": by_hand} if by_hand else {})


def _open(
    route: Route,
    via: fabric.Connection | None,
    patience: int,
    ask: AskSecret,
    given: dict[str, Any],
    jumps: Sequence[str] = (),
) -> fabric.Connection:
    known = openssh.known_keys(route, jumps)
    given = dict(given)
    seconds = given.pop("timeout", 0) or route.patience or patience
    passphrase = given.get("passphrase")
    arguments: dict[str, Any] = {
        "transport_factory": _Transports(route, known),
        "banner_timeout": seconds,
        "auth_timeout": max(seconds, _LET_IN),
        "compress": route.compress,
        **given,
    }
    if not given.keys() & {"pkey", "key_filename", "password", "auth_strategy"}:
        arguments["auth_strategy"] = _Keys(route, (lambda _: str(passphrase)) if passphrase else ask)
    if route.proxy and not via:
        arguments["sock"] = openssh.through(route.proxy)
    elif not via and (route.bound_to or route.family):
        with _explained(route):
            arguments["sock"] = openssh.dial(route, seconds)
    connection = fabric.Connection(
        route.host,
        user=route.user,
        port=route.port,
        gateway=via,
        config=fabric.Config(ssh_config=paramiko.SSHConfig()),
        connect_timeout=seconds,
        connect_kwargs=arguments,
    )
    connection.client.set_missing_host_key_policy(_OnlyKnown(route, known))
    with _explained(route):
        connection.open()
    # A firewall forgets a connection over which nothing goes; only the first of several has a keeper.
    connection.transport.set_keepalive(_KEEPALIVE)
    return connection


@contextmanager
def _explained(route: Route) -> Iterator[None]:
    try:
        with signals.waiting():
            yield
    except TaskError:
        raise
    except paramiko.AuthenticationException:
        raise Unreachable(
            f"{route} lets {route.user} in with none of the keys at hand.",
            hint=f"ssh {route.name} must work without a password (ssh-add, ssh-copy-id)",
        ) from None
    except (socket.gaierror, UnicodeError):
        raise Unreachable(f"The name of {route} is unknown.", hint=f"ssh {route.name} must work first") from None
    except (paramiko.ssh_exception.NoValidConnectionsError, ConnectionRefusedError):
        raise Unreachable(f"Nobody listens at {route}.", hint=f"ssh {route.name} must work first") from None
    except (paramiko.SSHException, EOFError, OSError) as error:
        if isinstance(error, TimeoutError) or str(error) == _NO_HANDSHAKE:
            raise Unreachable(
                f"{route} does not answer.", hint="INVOKE_DB_CONNECT_TIMEOUT waits for more seconds"
            ) from None
        why = str(error) or "the other end hung up"
        raise Unreachable(f"{route} cannot be reached: {why}.", hint=f"ssh {route.name} must work first") from None


class _Transports:
    """Makes transports that ask for a host key we know, and for a cipher that is quick."""

    def __init__(self, route: Route, known: KnownKeys) -> None:
        self._route = route
        self._known = known

    def __call__(self, sock: Any, **options: Any) -> paramiko.Transport:
        if isinstance(sock, socket.socket) and sock.family != socket.AF_UNIX:
            # Much is asked in few bytes: nothing is to wait for the answer to what went before.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Nor is a sign of life to wait behind megabytes that a slow line has not taken yet.
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
        transport = paramiko.Transport(_Buffered(sock), **options)
        wanted = transport.get_security_options()
        known = self._known.kinds
        kinds = [k for k in wanted.key_types if k in known or (k in _RSA and "ssh-rsa" in known)]
        wanted.key_types = (*kinds, *(k for k in wanted.key_types if k not in kinds))
        allowed = [c for c in wanted.ciphers if c in self._route.ciphers] or list(wanted.ciphers)
        wanted.ciphers = (*(c for c in _QUICK if c in allowed), *(c for c in allowed if c not in _QUICK))
        return transport


class _Buffered:
    """A socket that takes what has come at once: paramiko asks for each packet twice, and each time waits its turn.

    *heard* is when the last of it came.
    """

    def __init__(self, sock: Any) -> None:
        self._socket = sock
        self._ahead = memoryview(b"")
        self.heard = time.monotonic()

    def recv(self, size: int) -> bytes:
        """Return up to *size* bytes, nothing at the end; as a socket does."""
        if not self._ahead:
            self._ahead = memoryview(self._socket.recv(_AT_ONCE))
            self.heard = time.monotonic()
        taken, self._ahead = self._ahead[:size], self._ahead[size:]
        return bytes(taken)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class _Gathered(BufferedPipe):
    """What has come over a channel, handed on in large pieces.

    paramiko's own copies it twice as often, and wakes its reader for every packet.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> None:
        """Take what has just come."""
        with self._lock:
            self._pieces.append(data)
            self._size += len(data)
            if self._size >= _WORTH_IT:
                self._cv.notify_all()

    def read(self, nbytes: int, timeout: float | None = None) -> bytes:
        """Return what has come, much if it comes soon; nothing at the end. Raises PipeTimeout where nothing comes."""
        with self._lock:
            self._cv.wait_for(lambda: self._size >= _WORTH_IT or self._closed, timeout)
            if not self._size and not self._closed:
                raise PipeTimeout
            whole = b"".join(self._pieces)
            taken, rest = whole[:nbytes], whole[nbytes:]
            self._pieces, self._size = [rest] if rest else [], len(rest)
            return taken

    def read_ready(self) -> bool:
        """Whether anything has come."""
        return len(self) > 0

    def __len__(self) -> int:
        with self._lock:
            return self._size


class _OnlyKnown(paramiko.MissingHostKeyPolicy):
    """Lets no host in whose key OpenSSH does not know."""

    def __init__(self, route: Route, known: KnownKeys) -> None:
        self._route = route
        self._known = known

    def missing_host_key(self, client: Any, hostname: str, key: PKey) -> None:  # noqa: ARG002 - paramiko's
        """Raise Unreachable unless *key* is one of those known."""
        route, known = self._route, self._known
        if key.get_base64() in known.revoked:
            raise Unreachable(f"The host key of {route} is marked as revoked.", hint="ask whoever runs the host")
        if (key.get_name(), key.get_base64()) in known.good or (known.vouched and _is_or_certifies(known.vouched, key)):
            return
        if known.good:
            raise Unreachable(
                f"The host key of {route} is another than the known one: somebody may be in between.",
                hint=f"ask whoever runs it; if it was changed: ssh-keygen -R '{route.known_as}', then ssh {route.name}",
            )
        raise Unreachable(
            f"The host key of {route} is unknown ({key.get_name()} {key.fingerprint}).",
            hint=f"ssh {route.name} once, and compare the fingerprint",
        )


class _Key(InMemoryPrivateKey):
    """A key, shown with a certificate or without."""

    def __init__(self, user: str, key: PKey, certificate: PublicBlob | None) -> None:
        super().__init__(user, key)
        self._certificate = certificate

    def authenticate(self, transport: paramiko.Transport) -> list[str]:
        """Try it; return what else is asked for."""
        self.pkey.public_blob = self._certificate
        more: list[str] = super().authenticate(transport)
        return more


class _Keys(AuthStrategy):
    """The keys that OpenSSH would try, in its order: the agent's that are named, the agent's others, those on disk."""

    def __init__(self, route: Route, ask: AskSecret) -> None:
        super().__init__(ssh_config=paramiko.SSHConfig())
        self._route = route
        self._ask = ask

    def authenticate(self, transport: paramiko.Transport) -> list[str]:
        """Try each. Raises AuthenticationException where none is taken, TimeoutError where no answer comes."""
        for source in self.get_sources():
            try:
                return source.authenticate(transport)
            except paramiko.AuthenticationException as error:
                if str(error) == _NO_ANSWER:
                    raise TimeoutError from None
            except (paramiko.SSHException, EOFError, OSError, ValueError):
                pass
            if not transport.is_active():
                break
        raise paramiko.AuthenticationException

    def get_sources(self) -> Iterator[_Key]:
        """Yield what is to be tried."""
        route = self._route
        public = {path: _public(path) for path in route.identities}
        named = {key for key in public.values() if key}
        held = _held(route.agent)
        certificates = [
            *filter(None, map(_certificate, [*route.certificates, *(f"{path}-cert.pub" for path in route.identities)])),
            *(PublicBlob(key.get_name(), key.blob) for key in held if _CERTIFIED in key.get_name()),
        ]
        keys = [key for key in held if _CERTIFIED not in key.get_name()]
        for key in sorted(keys, key=lambda each: each.asbytes() not in named):
            if key.asbytes() in named or not route.only:
                yield from self._ways(key, certificates)
        in_agent = {key.asbytes() for key in keys}
        for path in route.identities:
            if _is_private(path) and public[path] not in in_agent and (loaded := self._load(path)):
                yield from self._ways(loaded, certificates)

    def _ways(self, key: PKey, certificates: list[PublicBlob]) -> Iterator[_Key]:
        for certificate in certificates:
            if _certifies(certificate.key_blob, key):
                yield _Key(self._route.user, key, certificate)
        yield _Key(self._route.user, key, None)

    def _load(self, path: str) -> PKey | None:
        with suppress(Exception):
            return PKey.from_path(path)
        # What cannot be read without one may have a passphrase.
        if self._ask:
            with suppress(Exception):
                return PKey.from_path(path, self._ask(f"Passphrase for {path}:").encode())
        return None


def _held(agent: str) -> list[PKey]:
    if not agent:
        return []
    before = os.environ.get("SSH_AUTH_SOCK")
    # The only way to tell paramiko which one.
    os.environ["SSH_AUTH_SOCK"] = agent
    try:
        return list(Agent().get_keys())
    except (paramiko.SSHException, OSError):
        return []
    finally:
        if before is None:
            del os.environ["SSH_AUTH_SOCK"]
        else:
            os.environ["SSH_AUTH_SOCK"] = before


def _public(path: str) -> bytes:
    """Return the public half of a key file: what lies beside it, what it is itself, or what it has in the clear."""
    for file in (f"{path}.pub", path):
        with suppress(OSError, IndexError, ValueError):
            text = Path(file).read_text("ascii")
            if not text.startswith(_PRIVATE):
                return base64.b64decode(text.split()[1])
            raw = base64.b64decode("".join(text.splitlines()[1:-1]))
            if raw.startswith(_OPENSSH):
                said = paramiko.Message(raw.removeprefix(_OPENSSH))
                # The cipher, how its key is made of the passphrase, and how many keys there are: always one.
                said.get_string(), said.get_string(), said.get_string(), said.get_int()
                return bytes(said.get_string())
    return b""


def _is_private(path: str) -> bool:
    with suppress(OSError, ValueError):
        return Path(path).read_text("ascii").startswith(_PRIVATE)
    return False


def _certificate(path: str) -> PublicBlob | None:
    with suppress(OSError, ValueError, paramiko.SSHException):
        return PublicBlob.from_file(path)
    return None


def _is_or_certifies(blob: bytes, key: PKey) -> bool:
    """Whether *blob* is that key, or a certificate of it."""
    return blob == key.asbytes() or _certifies(blob, key)


def _certifies(certificate: bytes, key: PKey) -> bool:
    # After its kind and a nonce, a certificate goes on as the key does after its kind (PROTOCOL.certkeys).
    signed, plain = paramiko.Message(certificate), paramiko.Message(key.asbytes())
    kind, _, plain_kind = signed.get_text(), signed.get_string(), plain.get_text()
    same = kind == f"{plain_kind.removesuffix('@openssh.com')}{vouching.CERTIFIED}"
    return same and bytes(signed.get_remainder()).startswith(plain.get_remainder())

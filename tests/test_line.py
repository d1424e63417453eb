"""How a host is reached: what OpenSSH's own configuration says of it holds, and no unknown host is talked to."""

from __future__ import annotations

import getpass
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from aftermath import processes, wait_until
from conftest import Project, Server, missing
from sshd import an_sshd, line_to

from bench.sshd import HOST, Sshd
from pg_backup_tasks import line, openssh
from pg_backup_tasks.errors import Refused, Unreachable
from pg_backup_tasks.line import Line
from pg_backup_tasks.model import Command
from pg_backup_tasks.there import There


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    with an_sshd() as sshd:
        yield sshd


@contextmanager
def configured(sshd: Sshd, text: str) -> Iterator[str]:
    """Yield the path of an OpenSSH configuration."""
    with TemporaryDirectory(prefix="pgbt-", dir="/tmp") as folder:
        path = Path(folder) / "config"
        path.write_text(text)
        yield str(path)


def reached(config: str, host: str = HOST, asked: str = "echo hello") -> str:
    """Return what the host says when it is asked for a word."""
    there = There(host, Line(host, lambda: line.connect(host, config=config, patience=5, ask=None, given={})))
    try:
        return there.run(Command(("sh", "-c", asked))).out.strip()
    finally:
        there.close()


def refused(config: str, host: str = HOST) -> str:
    """Return why the host is not reached."""
    with pytest.raises(Unreachable) as caught:
        reached(config, host)
    assert caught.value.code == 4
    return str(caught.value)


# Host keys


def test_a_host_that_is_not_known(sshd: Sshd) -> None:
    with configured(sshd, sshd.words(HOST, sshd.port, UserKnownHostsFile="/dev/null", StrictHostKeyChecking="no")) as c:
        said = refused(c)
    fingerprint = subprocess.run(
        ["ssh-keygen", "-lf", str(sshd.folder / "host.pub")], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    assert said.startswith(f"The host key of far (127.0.0.1:{sshd.port}) is unknown (ssh-ed25519 {fingerprint}).")


def other_key(folder: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "other")], check=True)
    return " ".join((folder / "other.pub").read_text().split()[:2])


def test_a_host_whose_key_has_changed(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "known").write_text(f"[127.0.0.1]:{sshd.port} {other_key(tmp_path)}\n")
    with configured(sshd, sshd.words(HOST, sshd.port, UserKnownHostsFile=str(tmp_path / "known"))) as c:
        assert "is another than the known one" in refused(c)


@pytest.mark.parametrize("mark", ["@revoked", "@cert-authority"])
def test_a_key_that_is_known_for_something_else(sshd: Sshd, tmp_path: Path, mark: str) -> None:
    known = (sshd.folder / "known_hosts").read_text()
    (tmp_path / "known").write_text(f"{mark} {known}" + (known if mark == "@revoked" else ""))
    with configured(sshd, sshd.words(HOST, sshd.port, UserKnownHostsFile=str(tmp_path / "known"))) as c:
        assert ("is marked as revoked" if mark == "@revoked" else "is unknown (") in refused(c)


@contextmanager
def by_authority(folder: Path, names: str, *certify: str) -> Iterator[Sshd]:
    """Run an sshd whose key is known by nothing but the authority that has signed it, which is known for *names*."""
    with an_sshd(certify=certify) as sshd:
        kind, key, *_ = (sshd.folder / "ca.pub").read_text().split()
        known = folder / "known"
        known.write_text(f"@cert-authority {names.format(port=sshd.port)} {kind} {key}\n")
        (sshd.folder / "ssh_config").write_text(sshd.words(HOST, sshd.port, UserKnownHostsFile=str(known)))
        yield sshd


@pytest.mark.parametrize("names", ["[127.0.0.1]:{port}", "127.*", "*"])
def test_a_key_that_an_authority_vouches_for(tmp_path: Path, names: str) -> None:
    with by_authority(tmp_path, names, "-n", "127.0.0.1") as sshd:
        assert reached(sshd.config) == "hello"


def test_a_key_that_an_authority_vouches_for_beside_another_that_is_known(tmp_path: Path) -> None:
    with by_authority(tmp_path, "*", "-n", "127.0.0.1") as sshd:
        with (tmp_path / "known").open("a") as known:
            known.write(f"[127.0.0.1]:{sshd.port} {other_key(tmp_path)}\n")
        assert reached(sshd.config) == "hello"


@pytest.mark.parametrize(
    ("names", "certify"),
    [
        ("other.example.com", ("-n", "127.0.0.1")),
        ("*", ("-n", "other.example.com")),
        ("*", ("-n", "127.0.0.1", "-V", "20200101:20210101")),
        # A newline in what it is called, and the very words with which `ssh -v` takes a key.
        ("other", ("-n", "127.0.0.1", "-I", "x\ndebug1: Host '127.0.0.1' is known and matches the ED25519 host key.")),
    ],
)
def test_what_an_authority_does_not_vouch_for(tmp_path: Path, names: str, certify: tuple[str, ...]) -> None:
    with by_authority(tmp_path, names, *certify) as sshd:
        assert "is unknown (ssh-ed25519 SHA256:" in refused(sshd.config)


def test_an_authority_whose_key_is_revoked(tmp_path: Path) -> None:
    with by_authority(tmp_path, "*", "-n", "127.0.0.1") as sshd:
        known = tmp_path / "known"
        known.write_text(known.read_text() + known.read_text().replace("@cert-authority", "@revoked"))
        assert "is unknown (ssh-ed25519 SHA256:" in refused(sshd.config)


def test_an_authority_behind_a_jump(sshd: Sshd, tmp_path: Path) -> None:
    with by_authority(tmp_path, "*", "-n", "127.0.0.1") as inner:
        known = {"UserKnownHostsFile": str(tmp_path / "known"), "IdentityFile": str(inner.folder / "key")}
        words = [sshd.words("hop", sshd.port), sshd.words("inner", inner.port, ProxyJump="hop", **known)]
        with configured(sshd, "\n".join(words)) as c:
            assert reached(c, "inner") == "hello"
        words.append(inner.words("last", inner.port, ProxyJump="hop,inner", **known))
        with configured(sshd, "\n".join(words)) as c:
            assert reached(c, "last") == "hello"


def test_names_that_are_hashed_patterns_and_aliases(sshd: Sshd, tmp_path: Path) -> None:
    key = " ".join((sshd.folder / "host.pub").read_text().split()[:2])
    known = tmp_path / "known hosts"
    shutil.copy(sshd.folder / "known_hosts", known)
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known)], check=True)
    assert "127.0.0.1" not in known.read_text()
    quoted = f'"{known}"'
    with configured(sshd, sshd.words(HOST, sshd.port, UserKnownHostsFile=quoted)) as c:
        assert reached(c) == "hello"
    known.write_text(f"{other_key(tmp_path).join(['[127.*]:* ', ''])}\n[127.*]:* {key}\n")
    with configured(sshd, sshd.words(HOST, sshd.port, UserKnownHostsFile=quoted)) as c:
        assert reached(c) == "hello"
    known.write_text(f"the-alias {key}\n")
    with configured(sshd, sshd.words(HOST, sshd.port, UserKnownHostsFile=quoted, HostKeyAlias="the-alias")) as c:
        assert reached(c) == "hello"


# The way


def test_what_is_included(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "more").write_text(sshd.words(HOST, sshd.port))
    with configured(sshd, f"Include {tmp_path}/more\n") as c:
        assert reached(c) == "hello"


def test_from_the_address_and_in_the_family_that_are_set(sshd: Sshd) -> None:
    whence = 'echo "$SSH_CLIENT"'
    with configured(sshd, sshd.words(HOST, sshd.port, BindAddress="127.0.0.9", AddressFamily="inet")) as c:
        assert reached(c, asked=whence).startswith("127.0.0.9 ")
    with configured(sshd, sshd.words(HOST, sshd.port, BindAddress="192.0.2.1")) as c:
        assert "cannot be reached" in refused(c)
    with configured(sshd, sshd.words(HOST, sshd.port, AddressFamily="inet6")) as c:
        assert "is unknown" in refused(c)
    with configured(sshd, sshd.words(HOST, 1, AddressFamily="inet")) as c:
        assert "Nobody listens at" in refused(c)


def test_through_other_hosts(sshd: Sshd) -> None:
    with an_sshd() as second, an_sshd() as third:
        text = (
            sshd.words("first", sshd.port)
            + second.words("second", second.port)
            + third.words(HOST, third.port, ProxyJump="first,second")
            + third.words("by-command", third.port, ProxyCommand=f"ssh -F {sshd.config} -W %h:%p {HOST}")
        )
        with configured(sshd, text) as c:
            assert reached(c) == "hello"
            assert reached(c, "by-command") == "hello"
        with configured(sshd, text.replace(str(second.folder / "known_hosts"), "/dev/null")) as c:
            assert "The host key of second" in refused(c)


def test_a_jump_that_has_jumps_of_its_own(sshd: Sshd) -> None:
    text = (
        sshd.words(HOST, sshd.port, ProxyJump="behind")
        + sshd.words("behind", sshd.port, ProxyJump="first")
        + sshd.words("first", sshd.port)
    )
    with configured(sshd, text) as c:
        assert reached(c) == "hello"
    with configured(sshd, text.replace("Host first\n", "Host first\n  UserKnownHostsFile /dev/null\n")) as c:
        assert "The host key of first" in refused(c)
    with (
        configured(sshd, text.replace("Host first\n", f"Host first\n  ProxyJump {HOST}\n")) as c,
        pytest.raises(Refused, match="leads round in a circle"),
    ):
        reached(c)


def test_a_command_that_leads_there(sshd: Sshd) -> None:
    chatter = "head -c 300000 /dev/zero >&2; exec ssh"
    command = f"${{NOT_SET:-sh}} -c '{chatter} -F {sshd.config} -W %h:%p {HOST}'"
    with configured(sshd, sshd.words(HOST, sshd.port, ProxyCommand=command)) as c:
        assert reached(c) == "hello"
    with configured(sshd, sshd.words(HOST, sshd.port, ProxyCommand="true")) as c:
        assert "cannot be reached" in refused(c)


def test_more_commands_at_once_than_sshd_allows(sshd: Sshd) -> None:
    there = There(HOST, line_to(sshd))
    names = [f"9{secrets.randbelow(10**8):08}" for _ in range(12)]
    try:
        jobs = [there.start(Command(("sleep", name))) for name in names]
        assert there.run(Command(("echo", "hello"))).out == "hello\n"
        assert [job.poll() for job in jobs] == [None] * 12  # type: ignore[attr-defined]
    finally:
        there.close()
    wait_until(lambda: not any(f"sleep\0{name}" in commands() for name in names), "the end of all")


@pytest.mark.slow
def test_a_line_is_not_lost_while_anything_comes_over_it(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "_SILENCE", 3.0)
    lasting = line_to(sshd)
    there = There(HOST, lasting)
    try:
        # On a slow line its answers come late, behind all else; here they do not come at all.
        os.killpg(int(lasting.keeper), signal.SIGSTOP)
        talk = "n=0; while [ $n -lt 8 ]; do n=$((n + 1)); echo $n; sleep 1; done"
        assert there.run(Command(("sh", "-c", talk))).out.split()[-1] == "8"
        with pytest.raises(Unreachable, match="was lost"):
            there.run(Command(("sleep", "60")))
    finally:
        os.killpg(int(lasting.keeper), signal.SIGKILL)
        there.close()


def commands() -> str:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text(errors="replace"))
        except OSError:
            continue
    return "\n".join(found)


@pytest.mark.parametrize("name", ["", "-oProxyCommand=touch x", "a b", "a\nb", "\x7f", "a;b"])
def test_what_is_no_host(name: str) -> None:
    with pytest.raises(Refused):
        openssh.route(name)


@pytest.mark.slow
def test_a_host_that_falls_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "_LET_IN", 1)
    asking = f"AuthorizedKeysCommand /bin/sleep 30\nAuthorizedKeysCommandUser {getpass.getuser()}\n"
    with an_sshd(more=asking) as sshd:
        (sshd.folder / "authorized_keys").write_text("")
        another = tmp_path / "another"
        shutil.copy(sshd.folder / "key", another)
        words = sshd.words(HOST, sshd.port, ConnectTimeout="1") + f"  IdentityFile {another}\n"
        with configured(sshd, words) as c:
            assert refused(c).startswith(f"far (127.0.0.1:{sshd.port}) does not answer.")
    with socket.create_server(("127.0.0.1", 0)) as dumb:
        taken: list[socket.socket] = []

        def greet() -> None:
            taken.append(dumb.accept()[0])
            taken[0].sendall(b"SSH-2.0-dumb\r\n")

        threading.Thread(target=greet, daemon=True).start()
        port = dumb.getsockname()[1]
        with configured(sshd, sshd.words(HOST, port, ConnectTimeout="1")) as c:
            assert refused(c).startswith(f"far (127.0.0.1:{port}) does not answer.")
        taken[0].close()


def sessions_of(sshd: Sshd) -> list[int]:
    """Return the processes in which an sshd serves its clients."""
    (listener,) = [n for n, words in processes() if words.startswith("sshd:") and f"{sshd.folder}/config" in words]
    return [int(number) for number in Path(f"/proc/{listener}/task/{listener}/children").read_text().split()]


@pytest.mark.slow
def test_a_host_that_falls_silent_once_we_are_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "_SOON", 1.0)
    with an_sshd() as sshd:
        frozen: list[int] = []

        class Silent(Line):
            def _on(self, connection: Any, sizes: dict[str, int]) -> Any:
                channel = super()._on(connection, sizes)
                frozen.extend(sessions_of(sshd))
                for number in frozen:
                    os.kill(number, signal.SIGSTOP)
                return channel

        try:
            with pytest.raises(Unreachable, match="was lost"):
                Silent(HOST, lambda: line.connect(HOST, config=sshd.config, patience=5, ask=None, given={}))
        finally:
            for number in frozen:
                os.kill(number, signal.SIGKILL)


def test_a_host_that_does_not_answer(sshd: Sshd) -> None:
    with configured(sshd, sshd.words(HOST, 1)) as c:
        assert refused(c).startswith("Nobody listens at far (127.0.0.1:1).\nTry: ")
    with configured(sshd, "Host far\n  HostName no-such-host.invalid\n") as c:
        assert refused(c).startswith("The name of far (no-such-host.invalid:22) is unknown.")
        assert refused(c, "x/../y").startswith("The name of x/../y is unknown.")


def test_a_configuration_that_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openssh, "_SOON", 0.2)
    (tmp_path / "config").write_text('Match exec "sleep 5"\n')
    with pytest.raises(Unreachable, match="did not say within"):
        openssh.route("far", str(tmp_path / "config"))


def test_what_openssh_says_is_what_holds(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(
        "Host prod\n  HostName db.example\n  Port 2222\n  User deploy\n  IdentityFile ~/.ssh/%n_%r\n"
        "  IdentitiesOnly yes\n  IdentityAgent none\n  Compression yes\n  ConnectTimeout 7\n  ProxyJump a@b:1,c\n"
    )
    found = openssh.route("prod", str(config))
    assert (found.host, found.port, found.user, found.jumps) == ("db.example", 2222, "deploy", ("a@b:1", "c"))
    home = pwd.getpwuid(os.getuid()).pw_dir
    assert (found.identities, found.only, found.agent) == ((f"{home}/.ssh/prod_deploy",), True, "")
    assert (found.compress, found.patience, found.known_as) == (True, 7, "[db.example]:2222")
    assert str(found) == "prod (db.example:2222)"
    by_port = openssh.route("someone@db.example:99", str(config))
    assert (by_port.host, by_port.port, by_port.user) == ("db.example", 99, "someone")
    by_url = openssh.route("ssh://someone@db.example:99", str(config))
    assert (by_url.host, by_url.port, by_url.user) == ("db.example", 99, "someone")


@pytest.mark.parametrize(
    ("name", "user", "port", "asked"),
    [
        ("prod", "", "", "prod"),
        ("prod", "root", "", "root@prod"),
        ("a@prod", "root", "2222", "ssh://root@prod:2222"),
        ("a@prod:22", "", "", "ssh://a@prod:22"),
        ("ssh://a@prod:22/", "root", "", "ssh://root@prod:22"),
        ("::1", "", "", "::1"),
        ("[::1]", "a", "", "a@::1"),
        ("[::1]:22", "", "", "ssh://[::1]:22"),
        ("a@fe80::1", "", "22", "ssh://a@[fe80::1]:22"),
    ],
)
def test_a_host_with_another_user_and_port(name: str, user: str, port: str, asked: str) -> None:
    assert openssh.at(name, user, port) == asked


def test_an_address_in_brackets() -> None:
    found = openssh.route("someone@[::1]:99", "/dev/null")
    assert (found.host, found.port, found.user) == ("::1", 99, "someone")


def test_a_host_that_runs_no_commands() -> None:
    with an_sshd(more="ForceCommand false\n") as sshd:
        assert refused(sshd.config).startswith("far lets us in, but runs no commands for us.\nTry: ssh far true")


def test_a_login_shell_that_talks() -> None:
    with an_sshd(more='ForceCommand echo "Welcome, all of you"; exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n') as sshd:
        said = refused(sshd.config)
    assert said.startswith("far says 'Welcome, all of you', and no command of ours")


# Keys


@contextmanager
def an_agent(*keys: Path) -> Iterator[str]:
    """Run an agent that holds these keys; yield its socket."""
    with TemporaryDirectory(prefix="pgbt-", dir="/tmp") as folder:
        place = f"{folder}/agent"
        with subprocess.Popen(["ssh-agent", "-D", "-a", place], stdout=subprocess.DEVNULL) as agent:
            wait_until(Path(place).is_socket, "the agent")
            for key in keys:
                subprocess.run(["ssh-add", "-q", str(key)], env={**os.environ, "SSH_AUTH_SOCK": place}, check=True)
            try:
                yield place
            finally:
                agent.terminate()


def test_the_keys_of_an_agent(sshd: Sshd, tmp_path: Path) -> None:
    others = []
    for n in range(7):  # more than sshd lets one try
        others.append(tmp_path / f"other{n}")
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(others[-1])], check=True)
    public = tmp_path / "key.pub"
    shutil.copy(sshd.folder / "key.pub", public)
    with an_agent(*others, sshd.folder / "key") as agent:
        named = sshd.words(HOST, sshd.port, IdentityAgent=agent, IdentityFile=str(tmp_path / "key"))
        with configured(sshd, named) as c:
            assert reached(c) == "hello"
        with configured(sshd, named.replace("IdentityAgent " + agent, "IdentityAgent none")) as c:
            assert "in with none of the keys at hand" in refused(c)
    with an_agent(sshd.folder / "key") as agent:
        any_key = sshd.words(HOST, sshd.port, IdentityAgent=agent, IdentityFile="none", IdentitiesOnly="no")
        with configured(sshd, any_key) as c:
            assert reached(c) == "hello"


def test_a_key_that_only_the_agent_can_use(sshd: Sshd, tmp_path: Path) -> None:
    with an_agent(sshd.folder / "key") as agent:
        public = tmp_path / "its public half"
        shutil.copy(sshd.folder / "key.pub", public)
        locked = tmp_path / "locked"
        shutil.copy(sshd.folder / "key", locked)
        subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-P", "", "-f", str(locked)], check=True)
        for file in (public, locked):
            words = sshd.words(HOST, sshd.port, IdentityAgent=agent, IdentityFile=f'"{file}"')
            with configured(sshd, words) as c:
                assert reached(c) == "hello"


@pytest.mark.slow
def test_a_certificate_wherever_it_lies(tmp_path: Path) -> None:
    ca, key = tmp_path / "ca", tmp_path / "key"
    for path in (ca, key):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    with an_sshd(more=f"TrustedUserCAKeys {ca}.pub\n") as sshd:
        signing = ["ssh-keygen", "-q", "-s", str(ca), "-I", "us", "-n", sshd.user, f"{key}.pub"]
        subprocess.run(signing, check=True)
        with an_agent(key) as agent:  # which takes both in
            elsewhere = tmp_path / "certificate"
            (tmp_path / "key-cert.pub").rename(elsewhere)
            for words in (
                {"CertificateFile": str(elsewhere)},
                {"CertificateFile": str(elsewhere), "IdentityFile": f"{key}.pub", "IdentityAgent": agent},
                {"IdentityAgent": agent},
            ):
                with configured(sshd, sshd.words(HOST, sshd.port, **{"IdentityFile": str(key), **words})) as c:
                    assert reached(c) == "hello", words
        with configured(sshd, sshd.words(HOST, sshd.port, IdentityFile=str(key))) as c:
            assert "in with none of the keys" in refused(c)


def test_a_key_with_a_passphrase(sshd: Sshd, tmp_path: Path) -> None:
    key = tmp_path / "key"
    shutil.copy(sshd.folder / "key", key)
    shutil.copy(sshd.folder / "key.pub", tmp_path / "key.pub")
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "pass phrase", "-P", "", "-f", str(key)], check=True)
    with configured(sshd, sshd.words(HOST, sshd.port, IdentityFile=str(key))) as c:
        assert "in with none of the keys at hand" in refused(c)
        asked: list[str] = []

        def answer(question: str) -> str:
            asked.append(question)
            return "pass phrase"

        line.connect(HOST, config=c, patience=5, ask=answer, given={}).client.close()
        assert asked == [f"Passphrase for {key}:"]
        # As `fab -t 7 --prompt-for-passphrase` has them.
        given = {"passphrase": "pass phrase", "timeout": 7}
        line.connect(HOST, config=c, patience=5, ask=None, given=given).client.close()


# A far user as they are


@pytest.fixture
def stranger() -> Iterator[tuple[str, Path]]:
    """A user whose login shell is dash and whose home has a blank in its name."""
    if os.geteuid() != 0 or not shutil.which("useradd"):
        missing("useradd", "as root")
    name = f"pgbt{secrets.token_hex(3)}"
    with TemporaryDirectory(prefix="pgbt-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        home = Path(folder) / "the home of"
        subprocess.run(
            ["useradd", "-m", "-p", "*", "-d", str(home), "-s", "/bin/dash", name], check=True, capture_output=True
        )
        try:
            yield name, home
        finally:
            subprocess.run(["pkill", "-u", name], check=False)
            subprocess.run(["userdel", name], check=False, capture_output=True)


def test_dash_a_home_with_a_blank_and_a_zone_of_its_own(
    stranger: tuple[str, Path], project: Project, server: Server, database: str
) -> None:
    name, home = stranger
    far = home / "my project"
    (far / "packages/database").mkdir(parents=True)
    (far / "packages/database/.env").write_text(f'DATABASE_URL="{server.url(database)}"\n')
    subprocess.run(["chown", "-R", name, str(far)], check=True)
    server.sql("create table t as select 1 as n", database)
    with an_sshd(user=name, zone="Pacific/Kiritimati", path="/usr/bin:/bin") as sshd:
        sshd.folder.chmod(0o755)
        project.environ["INVOKE_DB_SSH_CONFIG"] = sshd.config
        (project.path / "invoke.yaml").write_text(
            f"db:\n  hosts:\n    far:\n      project: ~/my project\n      pg_bin: {server.embedded.bin}\n"
        )
        done = project.inv("db.backup", "--json", "--host", "far")
        assert done.code == 0, done.err
        assert Path(done.json["path"]).parent == far / "backups/postgres"
        assert all(f.owner() == name for f in (far / "backups/postgres").iterdir())
        server.sql("drop table t", database)
        done = project.inv("db.restore", "latest", "--force", "--host", "far")
        assert done.code == 0, done.err
        assert server.sql("select n from t", database) == "1"
        assert project.inv("db.verify", "latest", "--host", "far").code == 0

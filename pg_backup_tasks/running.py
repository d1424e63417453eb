"""What every task's run has in common: settings read, hosts reached, signals caught, troubles told in a sentence."""

from __future__ import annotations

import gc
import getpass
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from invoke.config import AmbiguousMergeError, Config
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import Task

from . import settings as settings_
from .errors import Failed, Refused, TaskError

if TYPE_CHECKING:
    from .consent import Consent
    from .desk import Desk
    from .hosts import Host
    from .machine import Machine
    from .report import Report
    from .settings import Settings
    from .there import There

R = TypeVar("R")

# Where GitHub, GitLab, Bitbucket, CircleCI and Jenkins say which run a step belongs to.
_RUNS = ("GITHUB_RUN_ID", "CI_PIPELINE_ID", "BITBUCKET_BUILD_NUMBER", "CIRCLE_WORKFLOW_ID", "BUILD_TAG")


def config(**overrides: Any) -> dict[str, dict[str, Any]]:
    """Return the whole `db` tree for `Collection.configure`, with *overrides* in it.

    Whatever is wrong with them, with an `INVOKE_DB_*` or with the `invoke.yaml` beside the file that calls this ends
    `inv` with a sentence.
    """
    folder = Path(sys._getframe(1).f_code.co_filename).parent
    with told():
        tree = settings_.config(**overrides)
        _refuse_what_is_no_text(tree, "db.config()")
        _refuse_broken_file(tree, folder)
    return tree


@contextmanager
def told() -> Iterator[None]:
    # No task has begun, so it is Invoke that would tell it: without what to try, and never as JSON.
    try:
        yield
    except TaskError as error:
        from .report import Report

        report = Report(as_json="--json" in sys.argv[1:])
        report.error(error)
        report.flush()
        raise Exit(code=error.code) from None


def _refuse_broken_file(tree: dict[str, Any], folder: Path) -> None:
    # Invoke puts its files together right after it has imported tasks.py, and has nothing but a traceback for what it
    # cannot read there: what is about to happen is tried here, where it can still be told.
    if (folder / "__init__.py").exists():
        folder = folder.parent
    kind = _Fabrics if "fabric" in sys.modules else Config
    config = kind(defaults=kind.global_defaults() | tree, project_location=folder, lazy=True)
    places = {
        "/etc/": config.load_system,
        os.path.expanduser("~/."): config.load_user,
        f"{folder}/": config.load_project,
    }
    for place, load in places.items():
        names = [f"{place}{kind.prefix}.{suffix}" for suffix in ("yaml", "yml", "json", "py")]
        path = next(filter(os.path.exists, names), place)
        try:
            load()
        except Exception as error:  # noqa: BLE001 - YAML's, JSON's, the disk's or Invoke's own
            raise _broken_file(path, error) from None
        if path in names:
            _refuse_what_is_no_text(config, path)


def _refuse_what_is_no_text(tree: Any, place: str) -> None:
    """Raise Refused for a key that Invoke would die on."""
    for key in tree:
        if not isinstance(key, str):
            raise Refused(
                f"{place} has {key} where a name belongs, and that is no text.",
                hint="quotes around it; to YAML on, yes, no, dates and numbers are no text",
            )
        if hasattr(tree[key], "keys"):
            _refuse_what_is_no_text(tree[key], place)


class _Fabrics(Config):
    """The files that `fab` reads, without all else that Fabric's own has."""

    prefix = "fabric"


def _broken_file(path: str, error: Exception) -> Refused:
    if isinstance(error, AmbiguousMergeError | AttributeError):
        return Refused(
            f"{path} has one value, or none, where settings by name belong, or many where one belongs.",
            hint="under db:, one `setting: value` a line; without any, leave db: out",
        )
    mark = getattr(error, "problem_mark", None)
    return Refused(
        f"{path}{f':{mark.line + 1}' if mark else ''} cannot be read.",
        hint="mend it: under db:, one `setting: value` a line, in UTF-8",
    )


class Wary(Task[Callable[..., Any]]):
    """A task that does not begin where one of its flags has taken an option for its value.

    Invoke gives a flag whatever word comes next, be it the very option that makes a task safe: `--into --dry`.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Do the task. Raises Refused for an option that stands as a word of its own where a value should."""
        with told():
            for name, value in kwargs.items():
                # BACKUP itself is looked at by whoever looks for it.
                if name not in self.positional:
                    _refuse_swallowed(f"--{name.replace('_', '-')}", value if isinstance(value, list) else [value])
        return super().__call__(*args, **kwargs)


def _refuse_swallowed(flag: str, values: list[Any]) -> None:
    for value in values:
        if isinstance(value, str) and re.match(r"--?[^\W\d]", value) and value in sys.argv[1:]:
            raise Refused(
                f"{flag} takes a value, and {value} is an option.",
                hint=f"a value after {flag}; where it is {value} itself, {flag}={value}",
            )


class Run:
    """What a task's body needs of its run."""

    def __init__(self, report: Report, desk: Desk, near: Desk, host: Host | None, *, dry: bool) -> None:
        self.report = report
        self.desk = desk
        self.near = near
        """The desk on this machine; *desk* itself, where no host is asked for."""
        self.dry = dry
        self._host = host

    def consent(self, force: bool, confirm: str, *, lenient: bool = False) -> Consent:
        """Return what was said beforehand of the database to change, and whether there is a terminal to ask in.

        A *lenient* one asks for nothing but the name of what is protected.
        """
        from .consent import Consent

        host = self._host.name if self._host and self._host.protected else ""
        protected = self.desk.settings.protected
        return Consent(force, confirm, _interactive(), protected, host, lenient)

    def consent_here(self, force: bool, confirm: str) -> Consent:
        """Return the same of a database on this machine."""
        from .consent import Consent

        protected = self.near.settings.protected
        return Consent(force, confirm, interactive=_interactive(), protected=protected)

    def need_host(self, task: str) -> None:
        """Raise Refused where no host is asked for."""
        if self._host is None:
            raise Refused(f"{task} is about another machine.", hint=f"inv {task} --host NAME")


def _interactive() -> bool:
    # Cron and its like may have closed it.
    return sys.stdin is not None and sys.stdin.isatty()


def each(
    c: Context,
    host: str | None,
    work: Callable[[Run], R],
    *,
    json: bool = False,
    quiet: bool = False,
    alone: bool = False,
) -> R | None:
    """Do *work* here, or on the host, or on each of several side by side; return what it returned, if there is one.

    Under `fab -H` it is done on Fabric's host; *alone* is what takes one host at most. Whatever goes wrong ends the
    task with a sentence and its exit code.
    """
    # Whoever asks for a plan wants to read it, cron's silent task or not.
    quiet = quiet and not c.config.run.dry
    with _telling(c, json=json, quiet=quiet) as (settings, report):
        hosts = _hosts(c, host)
        if alone and len(hosts) > 1:
            raise Refused("What comes from several hosts cannot all go into one database.", hint="--host ONE")
        if hosts and c.config.run.dry:
            _plan_far(report, [_host(c, settings, name) for name in hosts])
            return None
        if len(hosts) > 1:
            _side_by_side(c, report, hosts, work, json=json, quiet=quiet)
            return None
        return _at(c, settings, report, hosts[0] if hosts else "", work)


@contextmanager
def _telling(c: Context, *, json: bool, quiet: bool) -> Iterator[tuple[Settings, Report]]:
    """Read the settings, catch signals, and tell whatever goes wrong in a sentence."""
    from .report import Report
    from .signals import interruptible

    report = Report(as_json=json, quiet=quiet)
    try:
        with interruptible(), _rarely_collecting():
            _refuse_stray_words()
            prefix = settings_.FABRICS if _is_fabrics(c) else settings_.PREFIX
            settings = settings_.load(c.config.get("db", {}), os.environ, Path.cwd(), prefix)
            if not c.config.run.dry:
                report = Report(as_json=json, quiet=quiet, log=settings.under_root(settings.log))
            yield settings, report
    except TaskError as error:
        report.error(error)
        raise Exit(code=error.code) from None
    except Exit:
        raise
    except OSError as error:
        denied = isinstance(error, PermissionError) and error.filename
        hint = f"as a user who may; ls -ld {shlex.quote(os.fsdecode(error.filename))} shows who" if denied else None
        report.error(Failed(sentence(error), hint=hint))
        raise Exit(code=1) from None
    except Exception as error:  # noqa: BLE001 - a traceback belongs into the log
        import traceback

        report.trouble(traceback.format_exc())
        report.error(
            Failed(
                f"This is a bug in pg_backup_tasks ({type(error).__name__}).",
                hint="send the end of the log, which has the details",
            )
        )
        raise Exit(code=1) from None
    finally:
        report.flush()


@contextmanager
def _rarely_collecting() -> Iterator[None]:
    """Look for garbage in cycles a hundred times less often: a shelf of thousands is all needed to the end."""
    usual = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(100 * usual[0], *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()


def _refuse_stray_words() -> None:
    # Invoke drops all that follows a bare `--`, which could be the very option that makes a task safe.
    if "--" in sys.argv[1:]:
        raise Refused("A bare -- hides what follows it.", hint="the same command without --")


def sentence(error: OSError) -> str:
    """Return what the system says was wrong, and with which file."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}."


def _hosts(c: Context, host: str | None) -> list[str]:
    """Return the hosts that are asked for, by --host or by Fabric's own -H; none for this machine."""
    fabrics = _fabrics_host(c)
    if host is not None and fabrics is not None:
        raise Refused("Fabric's -H and --host both name a host.", hint="one of them")
    flag, asked = ("-H", fabrics) if host is None else ("--host", host)
    if asked is None:
        return []
    names = [name.strip() for name in asked.split(",")]
    # What is meant for another machine, by a variable that is not set, must not be done on this one.
    if not all(names):
        raise Refused(f"{flag} {asked!r} names no host in one of its places.", hint=f"{flag} one,another")
    return list(dict.fromkeys(names))


def _fabrics_host(c: Context) -> str | None:
    """Return the host that Fabric's -H names, None where there is no -H."""
    words = sys.argv[1:] if _is_fabrics(c) else []
    # To Fabric an empty one is none.
    if {("-H", ""), ("--hosts", "")} & {*pairwise(words)} or {"-H=", "--hosts="} & {*words}:
        return ""
    host: str | None = getattr(c, "original_host", None)
    return host


def _is_fabrics(c: Context) -> bool:
    return bool(type(c.config).prefix == "fabric")


def _host(c: Context, settings: Settings, name: str) -> Host:
    from . import hosts as hosts_

    host = hosts_.find(settings, name)
    if not _fabrics_host(c):
        return host
    # Fabric has taken them off the name.
    usual: dict[str, str] = getattr(c, "ssh_config", {})
    user, port = str(getattr(c, "user", "")), str(getattr(c, "port", ""))
    return hosts_.reached_as(
        host,
        user if user != usual.get("user", getpass.getuser()) else "",
        port if port != usual.get("port", "22") else "",
    )


def _plan_far(report: Report, hosts: list[Host]) -> None:
    plans = {}
    for host in hosts:
        place = f"{host.name} (ssh {host.ssh}){f' in {host.project}' if host.project else ''}"
        plans[host.name] = f"Would do it on {place}, as if typed there; nothing was connected to."
    report.planned_on(plans)


def _at(c: Context, settings: Settings, report: Report, name: str, work: Callable[[Run], R]) -> R:
    """Do *work* on one host, or here."""
    from .here import Here

    dry = bool(c.config.run.dry)
    near = _desk(settings, report, Here(), str(Path.cwd()), lambda: datetime.now(UTC))
    if not name:
        return work(Run(report, near, near, None, dry=dry))
    from . import hosts as hosts_

    host = hosts_.watched(settings, _host(c, settings, name))
    report.speak_of(name)
    machine = _reach(c, settings, report, host)
    try:
        there = hosts_.settings_there(settings, host, machine)
        desk = _desk(there, report, machine, there.root, machine.now)
        return work(Run(report, desk, near, host, dry=dry))
    finally:
        machine.close()


def _reach(c: Context, settings: Settings, report: Report, host: Host) -> There:
    from . import hosts as hosts_

    ask = report.ask_secret if _interactive() else None
    return hosts_.connect(settings, host, ask, dict(getattr(c, "connect_kwargs", {})))


def _desk(settings: Settings, report: Report, machine: Machine, cwd: str, clock: Callable[[], datetime]) -> Desk:
    from . import signals
    from .desk import Desk

    return Desk(
        settings=settings,
        machine=machine,
        report=report,
        # What is set here says nothing of another machine's database.
        environ={} if machine.name else os.environ,
        cwd=cwd,
        clock=clock,
        sleep=signals.sleep,
        more_tools=list if machine.name else _wheels,
        run=_run_of_ci(),
    )


def _run_of_ci() -> str:
    name = next((name for name in _RUNS if os.environ.get(name)), None)
    # GitHub's number is the same when a run is run again, which has migrated nothing yet.
    names = filter(os.environ.get, (name, "GITHUB_RUN_ATTEMPT")) if name else ()
    return " ".join(f"{each}={os.environ[each]}" for each in names)


def _wheels() -> list[str]:
    from .embedded import wheel_bins

    return [str(folder) for folder in wheel_bins()]


def _side_by_side(
    c: Context,
    report: Report,
    hosts: list[str],
    work: Callable[[Run], R],
    *,
    json: bool,
    quiet: bool,
) -> None:
    from . import beside

    def one(name: str) -> int:
        try:
            with _telling(c, json=json, quiet=quiet) as (its, own):
                _at(c, its, own, name, work)
        except Exit as end:
            return end.code
        return 0

    report.flush()
    outcomes = beside.work(hosts, one, report.relay)
    report.several({host: outcome.printed for host, outcome in outcomes.items()})
    if code := beside.together(outcomes):
        raise Exit(code=code)

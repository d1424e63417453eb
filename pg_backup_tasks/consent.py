"""Whether somebody has said yes to what changes a database: beforehand, or asked in a terminal."""

from __future__ import annotations

from dataclasses import dataclass

from .desk import Reporter
from .errors import Refused


@dataclass(frozen=True)
class Consent:
    """What was said beforehand, and whether there is a terminal to ask in.

    *confirm* is the database's name where it was given, *protected* are those that ask for it, *host* is the host all
    of whose databases do; *lenient* asks for nothing else.
    """

    force: bool = False
    confirm: str = ""
    interactive: bool = False
    protected: tuple[str, ...] = ()
    host: str = ""
    lenient: bool = False

    def protects(self, database: str) -> bool:
        """Whether its name must be said before it is changed."""
        return bool(self.host) or database in self.protected

    def check(self, database: str) -> None:
        """Raise Refused where it is clear already that nobody says yes to changing *database*."""
        if self.confirm and self.confirm != database:
            raise Refused(f"--confirm names {self.confirm}, but the database is {database}.")
        if self.confirm:
            return
        if self.protects(database):
            if self.force or not self.interactive:
                raise Refused(
                    f"{self._named(database)} is protected: whoever changes it must say its name.",
                    hint=f"--confirm {database}",
                )
        elif not (self.force or self.lenient or self.interactive):
            raise Refused(
                f"There is no terminal to ask in whether to change {database}.", hint="--force answers yes beforehand"
            )

    def obtain(self, report: Reporter, database: str, question: str) -> None:
        """Return once somebody has said yes. Raises Refused where the answer is anything else."""
        if self.confirm:
            return
        if self.protects(database):
            if report.ask(f"{self._named(database)} is protected. {question} Type its name to go on:") != database:
                raise Refused("Nothing was changed.")
        elif not (self.force or self.lenient or report.confirm(question)):
            raise Refused("Nothing was changed.")

    def _named(self, database: str) -> str:
        return f"{database} on {self.host}" if self.host else database

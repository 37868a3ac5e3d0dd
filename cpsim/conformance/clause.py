"""A clause: one requirement of the protocol, and what its check needs."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, NamedTuple

from cpsim.conformance import clauses
from cpsim.system.docstrings import docstring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Test = Callable[..., None]

SECTIONS: Final = {
    "2": "Slot life cycle",
    "3": "Daemon wire format",
    "4": "Server HTTP API",
    "5": "The deployed daemon and server",
}
"""The sections of docs/protocol.md with clauses."""


class Need(StrEnum):
    """What the check of a clause needs; the value says what to give."""

    DAEMON = "a daemon to send frames to: give its PATH or HOST:PORT as the endpoint"
    SERVER = "a server to send requests to: --server URL --project ID --secret-file FILE"
    OTHER = "a second project at the server: --other-project ID --other-secret-file FILE"
    BEHIND = "to be the server that the daemon forwards to: --behind HOST:PORT --project ID --secret-file FILE"
    RESTART = "to stop what is examined and start it again: --restart-command COMMAND"
    FAILED = "to ask the daemon what was refused: --failed-command COMMAND"
    THOROUGH = "to be allowed what is risky at a live system, or takes long: --thorough"
    ACCOUNTS = "a server whose accounts can be looked into, through the control API that cpsim serve has"


class Known(NamedTuple):
    """How a quirk shows: its name, and what is seen instead of what is expected."""

    quirk: str
    seen: object


class Level(StrEnum):
    """How binding a clause is. Only a `must` decides the verdict; a `should` is where the document leaves room."""

    MUST = "must"
    SHOULD = "should"


@dataclass(frozen=True)
class Clause:
    """One clause.

    Attributes:
        id: such as "CLAIM-5".
        sentence: what it promises.
        section: of docs/protocol.md.
        needs: what has to be there to check it.
        quirks: those that a deviation from it may be, by name.
        level: how binding it is.
    """

    id: str
    sentence: str
    section: str
    needs: tuple[Need, ...]
    quirks: tuple[str, ...]
    level: Level

    @property
    def tier(self) -> str:
        """What it is about: daemon, server, or pair."""
        if Need.DAEMON not in self.needs:
            return "server"
        return "pair" if len(self.needs) > 1 else "daemon"


CATALOGUE: Final[dict[str, Clause]] = {}
"""Every clause that was imported, by id."""
FILES: Final[dict[str, str]] = {}
"""The path of the module that each is in."""


def clause(
    id: str, section: str, *needs: Need, quirks: Iterable[str] = (), level: Level = Level.MUST
) -> Callable[[Test], Test]:
    """Make a test a clause; the first line of its docstring is the sentence.

    Args:
        id: its id; each only once.
        section: of docs/protocol.md.
        needs: what has to be there to check it.
        quirks: those that a deviation from it may be, by name.
        level: how binding it is.
    """

    def decorate(test: Test) -> Test:
        assert section in SECTIONS
        sentence = docstring(test).partition("\n")[0]
        assert sentence
        known = CATALOGUE.get(id)
        made = Clause(id, sentence, section, needs, tuple(quirks), level)
        assert known in {None, made}, f"{id} is there twice"
        CATALOGUE[id] = made
        FILES[id] = test.__code__.co_filename
        test.clause = made  # type: ignore[attr-defined]
        return test

    return decorate


def catalogue() -> dict[str, Clause]:
    """Every clause of the suite, by id, in the order of the modules."""
    for module in pkgutil.iter_modules(clauses.__path__):
        importlib.import_module(f"{clauses.__name__}.{module.name}")
    return CATALOGUE


def is_chosen(clause: Clause, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns, such as `CLAIM-5` or `wire-*`, is for a clause; all are, where there is none."""
    wanted = [pattern.upper() for pattern in patterns]
    return not wanted or any(fnmatchcase(clause.id, pattern) for pattern in wanted)

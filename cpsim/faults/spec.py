"""Faults at the daemon and at the server: their actions, their times, and the commands that they select.

A fault is written `STAGE.ACTION=VALUE:KEY=VALUE,KEY=VALUE...`, and most parts are optional:

    daemon.hang:kind=claim,slot=job-*,nth=3        the third claim of a slot job-* is never answered
    server.status=503:probability=0.1,from=10      one request in ten is answered 503, after the first ten seconds
    late=0.5:count=20                              the first twenty commands are answered late, at either stage

`nth` counts the commands that `kind`, `slot` and `project` select within the fault's time; `count` limits its firings.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cpdaemon.commands import KINDS
from cpsim.errors import CpsimError
from cpsim.faults.action import BOTH
from cpsim.faults.actions import found
from cpsim.system.checks import LONGEST_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Self

SERVER_REQUESTS: Final = ("bulk", "slots", "heartbeat")
"""Values of a fault's `kind` at a server only."""
REQUESTS: Final = (*KINDS, *SERVER_REQUESTS)
"""Values of a fault's `kind`: a command, or one of the server's other requests."""


ACTIONS: Final = found()


class _Key(NamedTuple):
    """An attribute of a fault: its allowed values, and how to parse it."""

    name: str
    allowed: str
    read: Callable[[str], object]
    admits: Callable[[Any], bool]


def _is_number(value: object, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


KEYS: Final = {
    "kind": _Key(
        "kind",
        f"one of {', '.join(KINDS)}; at a server, {', '.join(SERVER_REQUESTS)} too",
        str,
        lambda value: value in REQUESTS,
    ),
    "slot": _Key("slot", "a pattern such as job-*", str, lambda value: isinstance(value, str) and bool(value)),
    "project": _Key("project", "a project's id", str, lambda value: isinstance(value, str) and bool(value)),
    "nth": _Key("nth", "a whole number from 1 up", int, _is_count),
    "count": _Key("count", "a whole number from 1 up", int, _is_count),
    "probability": _Key(
        "probability", "a number above 0 and at most 1", float, lambda value: value != 0 and _is_number(value, 0, 1)
    ),
    "from": _Key("from_s", "seconds from 0 up", float, lambda value: _is_number(value, 0, sys.float_info.max)),
    "until": _Key("until_s", "seconds from 0 up", float, lambda value: _is_number(value, 0, sys.float_info.max)),
}
VALUES: Final = {
    "delay_s": _Key(
        "delay_s", f"seconds from 0 to {LONGEST_S:,.0f}", float, lambda value: _is_number(value, 0, LONGEST_S)
    ),
    "per_s": _Key(
        "per_s", "commands a second from 0.01 to 1,000,000", float, lambda value: _is_number(value, 0.01, 1_000_000)
    ),
    "status": _Key("status", "an HTTP status from 200 to 599", int, lambda value: _is_number(value, 200, 599)),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        action: a name from `ACTIONS`.
        value: argument of the action: `delay_s` of "late" and "pieces", commands a second of "rate", the status of
            "status".
        stage: "daemon", "server", or "" for the stage where a command arrives first.
        kind: command or request that it selects: one of `REQUESTS`; None for any. A bulk request is selected as "bulk",
            and by each of its commands.
        slot: shell pattern of the slot's id.
        project: id of the project, as the server has it.
        nth: number of the first selected command for which it fires.
        count: limit of its firings; by default 1 with an `nth`, else none.
        probability: probability that it fires for a selected command.
        from_s: seconds since the fake's start before which it does not fire.
        until_s: seconds since the fake's start from which on it does not fire.

    Raises:
        CpsimError: there is no such fault; the message lists the valid values.
    """

    action: str
    value: float | None = None
    stage: str = ""
    kind: str | None = None
    slot: str | None = None
    project: str | None = None
    nth: int | None = None
    count: int | None = None
    probability: float | None = None
    from_s: float | None = None
    until_s: float | None = None

    def __post_init__(self) -> None:
        if problem := next(self._problems(), None):
            raise CpsimError(f"fault {str(self)!r}: {problem}")
        action = ACTIONS[self.action]
        if self.value is None:
            object.__setattr__(self, "value", action.default)
        if len(action.stages) == 1:
            object.__setattr__(self, "stage", action.stages[0])

    def _problems(self) -> Iterator[str]:
        """Yield the mistakes, the gravest first."""
        if self.stage not in {"", *BOTH}:
            yield f"no stage {unknown(self.stage, BOTH)}"
        known = [name for name, action in ACTIONS.items() if self.stage in {"", *action.stages}]
        if self.action not in known:
            yield f"{self.stage and f'the {self.stage} has '}no action {unknown(self.action, known)}"
        action = ACTIONS[self.action]
        if not action.takes and self.value is not None:
            yield f"{self.action} takes no value"
        if action.takes and self.value is None and action.default is None:
            yield f"{self.action} needs a value, {self.action}=VALUE, {VALUES[action.takes].allowed}"
        given = {key: (getattr(self, attribute.name), attribute) for key, attribute in KEYS.items()}
        if action.takes:
            given[self.action] = (self.value, VALUES[action.takes])
        for key, (value, attribute) in given.items():
            if value is not None and not attribute.admits(value):
                yield f"{key} is {value!r}, and must be {attribute.allowed}"
            if value is not None and action.hook == "state" and key not in {"from", "until"}:
                yield f"{key} cannot apply here, because a refused connection has no command; use from and until"
        if "server" not in ([self.stage] if self.stage else action.stages) and self.kind in SERVER_REQUESTS:
            yield f"kind is {self.kind!r}, and must be one of {', '.join(KINDS)} at a daemon"
        if self.until_s is not None and self.until_s <= (self.from_s or 0):
            yield "until must be later than from"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a fault as written on the command line and in configuration files.

        Raises:
            CpsimError: the text is not a fault; the message names the mistake and the valid values.
        """
        what, colon, chosen = text.strip().partition(":")
        name, equals, value = what.partition("=")
        stage, _, action = name.rpartition(".")
        fields: dict[str, Any] = {}
        for pair in chosen.split(",") if colon else ():
            key, _, given = pair.partition("=")
            if key not in KEYS:
                raise CpsimError(f"fault {text!r}: no key {unknown(key, KEYS)}")
            if KEYS[key].name in fields:
                raise CpsimError(f"fault {text!r}: {key} is given twice")
            fields[KEYS[key].name] = _read(KEYS[key], given)
        if equals:
            takes = ACTIONS[action].takes if action in ACTIONS else ""
            fields["value"] = _read(VALUES[takes], value) if takes else value
        return cls(action, stage=stage, **fields)

    def __str__(self) -> str:
        value = "" if self.value is None else f"={_shown(self.value)}"
        pairs = [(key, getattr(self, attribute.name)) for key, attribute in KEYS.items()]
        chosen = ",".join(f"{key}={_shown(value)}" for key, value in pairs if value is not None)
        return f"{self.stage and f'{self.stage}.'}{self.action}{value}{chosen and f':{chosen}'}"

    @property
    def crashes(self) -> bool:
        """Whether the fault ends the process."""
        return ACTIONS[self.action].crashes

    @property
    def hooks(self) -> frozenset[str]:
        """The moments at which the fault may fire, of "daemon", "server" and "delivery"; none if it is a state.

        A delivery by a daemon in the same process is a request to the server, for which the server's own faults fire; a
        fault of either stage has fired at the daemon already.
        """
        hook = ACTIONS[self.action].hook
        if hook == "state":
            return frozenset()
        if self.stage == "server":
            return frozenset({"server", "delivery"})
        stages = [self.stage] if self.stage else ACTIONS[self.action].stages
        return frozenset("delivery" if hook == "delivery" and stage == "daemon" else stage for stage in stages)


def unknown(name: str, known: Iterable[str]) -> str:
    """An unknown name as messages show it: with the known ones, and the nearest."""
    known = list(known)
    close = get_close_matches(name, known, 1)
    return f"{name!r}; there are {', '.join(known)}" + (f"; did you mean {close[0]!r}?" if close else "")


def _read(attribute: _Key, text: str) -> object:
    """Return the parsed value, or the text if it is invalid: `Fault` then raises with a message."""
    try:
        return attribute.read(text)
    except ValueError:
        return text


def _shown(value: object) -> str:
    return f"{value:.15g}" if isinstance(value, float) else str(value)

"""Faults: what goes wrong at the daemon and at the server, when, and to which commands.

A fault is written `STAGE.ACTION=VALUE:KEY=VALUE,KEY=VALUE...`, and most of it may be left out:

    daemon.hang:kind=claim,slot=job-*,nth=3        the third claim of such a slot is never answered
    server.status=503:probability=0.1,from=10      one request in ten is answered 503, after the first ten seconds
    late=0.5:count=20                              the first twenty commands are answered late, wherever they come

`nth` counts the commands that `kind` and `slot` select while it is the fault's time; `count` how often it fires.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cpdaemon.commands import KINDS
from cpsim.errors import CpsimError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Self

SERVER_REQUESTS: Final = ("bulk", "slots", "heartbeat")
"""What a fault's `kind` may be at a server alone."""
REQUESTS: Final = (*KINDS, *SERVER_REQUESTS)
"""What a fault's `kind` may be: a command, or one of the server's other requests."""
LONGEST_S: Final = 86_400.0


class Action(NamedTuple):
    """What a fault does, and to which stages.

    `hook` is the moment at which it is asked for: when a command is about to be answered ("answer"), when it has
    come to the accounts ("delivery"), or at any time, being a state and not an event ("state").
    """

    stages: tuple[str, ...]
    effect: str
    value: str = ""
    default: float | None = None
    hook: str = "answer"


BOTH: Final = ("daemon", "server")
ACTIONS: Final = {
    "refuse": Action(("daemon",), "connections are refused", hook="state"),
    "down": Action(
        ("server",), "connections are refused, and a daemon in the same fake keeps its commands", hook="state"
    ),
    "hang": Action(BOTH, "the command is not taken, and never answered"),
    "late": Action(BOTH, "the command is taken and answered after so many seconds", "delay_s"),
    "lose-reply": Action(BOTH, "the command is taken, and the connection closed without an answer"),
    "close": Action(BOTH, "the command is not taken, and the connection closed without an answer"),
    "reset": Action(BOTH, "the command is not taken, and the connection reset; a UNIX socket knows only closing"),
    "error": Action(("daemon",), "the command is not taken, and answered ER"),
    "pieces": Action(
        ("daemon",), "the command is taken, and the answer sent byte by byte, with a pause", "delay_s", 0.05
    ),
    "status": Action(("server",), "the request is not taken, and answered with this status", "status"),
    "cut": Action(("server",), "the request is taken, and half of the answer's body sent"),
    "not-json": Action(("server",), "the request is not taken, and answered 200 with a page of HTML"),
    "crash-before-ok": Action(("daemon",), "the process dies before it answers; the command is not taken"),
    "crash-after-ok": Action(("daemon",), "the process dies once it has answered, before it passes the command on"),
    "crash-after-commit": Action(
        BOTH, "the process dies when the accounts have the command, before anybody is told", hook="delivery"
    ),
}


class _Key(NamedTuple):
    """An attribute of a fault: what it may be, and how to read it from text."""

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
    "status": _Key("status", "an HTTP status from 200 to 599", int, lambda value: _is_number(value, 200, 599)),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        action: a name from `ACTIONS`.
        value: what the action takes: `delay_s` for "late" and "pieces", the status for "status".
        stage: "daemon", "server", or "" for wherever a command first arrives.
        kind: the command, or the request: one of `REQUESTS`. Any, if it is None. A bulk request is selected as
            "bulk", and by each of its commands.
        slot: a shell pattern for the slot's id.
        nth: the first of the selected commands for which it fires.
        count: how often it fires; once if there is an `nth`, else without end.
        probability: that it fires for a selected command.
        from_s: seconds since the fake started before which it does not fire.
        until_s: seconds since the fake started from which on it does not fire.

    Raises:
        CpsimError: there is no such fault; the message says what there is.
    """

    action: str
    value: float | None = None
    stage: str = ""
    kind: str | None = None
    slot: str | None = None
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
        """What is wrong with it, the gravest first."""
        if self.stage not in {"", *BOTH}:
            yield f"no stage {_unknown(self.stage, BOTH)}"
        known = [name for name, action in ACTIONS.items() if self.stage in {"", *action.stages}]
        if self.action not in known:
            yield f"{self.stage and f'the {self.stage} has '}no action {_unknown(self.action, known)}"
        action = ACTIONS[self.action]
        if not action.value and self.value is not None:
            yield f"{self.action} takes no value"
        if action.value and self.value is None and action.default is None:
            yield f"{self.action} needs a value, {self.action}=VALUE, {VALUES[action.value].allowed}"
        given = {key: (getattr(self, attribute.name), attribute) for key, attribute in KEYS.items()}
        if action.value:
            given[self.action] = (self.value, VALUES[action.value])
        for key, (value, attribute) in given.items():
            if value is not None and not attribute.admits(value):
                yield f"{key} is {value!r}, and must be {attribute.allowed}"
            if value is not None and action.hook == "state" and key not in {"from", "until"}:
                yield f"{key} cannot choose here, for a refused connection tells nothing; from and until can"
        if "server" not in ([self.stage] if self.stage else action.stages) and self.kind in SERVER_REQUESTS:
            yield f"kind is {self.kind!r}, and must be one of {', '.join(KINDS)} at a daemon"
        if self.until_s is not None and self.until_s <= (self.from_s or 0):
            yield "until must be later than from"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a fault as the command line and configuration files have it.

        Raises:
            CpsimError: the text is no fault; the message says what is wrong, and what there is.
        """
        what, colon, chosen = text.strip().partition(":")
        name, equals, value = what.partition("=")
        stage, _, action = name.rpartition(".")
        fields: dict[str, Any] = {}
        for pair in chosen.split(",") if colon else ():
            key, _, given = pair.partition("=")
            if key not in KEYS:
                raise CpsimError(f"fault {text!r}: no key {_unknown(key, KEYS)}")
            if KEYS[key].name in fields:
                raise CpsimError(f"fault {text!r}: {key} is given twice")
            fields[KEYS[key].name] = _read(KEYS[key], given)
        if equals:
            takes = ACTIONS[action].value if action in ACTIONS else ""
            fields["value"] = _read(VALUES[takes], value) if takes else value
        return cls(action, stage=stage, **fields)

    def __str__(self) -> str:
        value = "" if self.value is None else f"={_shown(self.value)}"
        pairs = [(key, getattr(self, attribute.name)) for key, attribute in KEYS.items()]
        chosen = ",".join(f"{key}={_shown(value)}" for key, value in pairs if value is not None)
        return f"{self.stage and f'{self.stage}.'}{self.action}{value}{chosen and f':{chosen}'}"

    @property
    def crashes(self) -> bool:
        """Whether it ends the process."""
        return self.action.startswith("crash")

    @property
    def hooks(self) -> frozenset[str]:
        """The moments at which it may fire, "daemon", "server" and "delivery"; none if it is a state.

        What a daemon in the same process delivers is a request like others for what is the server's own fault; a
        fault of either stage has met its commands already.
        """
        hook = ACTIONS[self.action].hook
        if hook == "state":
            return frozenset()
        if self.stage == "server":
            return frozenset({"server", "delivery"})
        stages = [self.stage] if self.stage else ACTIONS[self.action].stages
        return frozenset("delivery" if hook == "delivery" and stage == "daemon" else stage for stage in stages)


def _unknown(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = get_close_matches(name, known, 1)
    return f"{name!r}; there are {', '.join(known)}" + (f"; did you mean {close[0]!r}?" if close else "")


def _read(attribute: _Key, text: str) -> object:
    """The value of an attribute, or, where it is none, the text itself: the fault then says what is wrong."""
    try:
        return attribute.read(text)
    except ValueError:
        return text


def _shown(value: object) -> str:
    return f"{value:.15g}" if isinstance(value, float) else str(value)

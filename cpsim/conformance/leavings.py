"""What a run of the suite leaves at its target: counted from what was sent and accepted, and seen where it shows."""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from cpdaemon.commands import COMMANDS
from cpdaemon.wire import MalformedFrame, parse
from cpsim.clock import SYSTEM_CLOCK
from cpsim.judge.model import START, Span, Step, branches_after

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cpsim.conformance.exchange import HttpRequest, Reply
    from cpsim.judge.model import Branch

    Call = tuple[str, dict[str, str | int]]

NAMED: Final = 5
"""Slots that are named."""


@dataclass(frozen=True)
class Left:
    """What is left at a target.

    Attributes:
        outstanding: ids of slots that are not settled; of which it is not known, if `unseen`.
        discarded: slots that were outstanding, and were discarded at the end.
        slots: how many slots were allocated.
        machines: how many machines claimed slots.
        credits: how many credits were granted to them.
        counters: the sum of each counter that was granted to them.
        unseen: why it is not known which slots are outstanding; "" if it is.
    """

    outstanding: tuple[str, ...] = ()
    discarded: int = 0
    slots: int = 0
    machines: int = 0
    credits: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    unseen: str = ""

    def document(self) -> dict[str, Any]:
        """It as JSON has it."""
        return asdict(self) | {"unseen": self.unseen or None}

    def lines(self) -> Iterator[str]:
        """It in words."""
        yield "left there, by what was sent and accepted:"
        yield f"  slots     {self.slots:,} allocated, {self._open()}"
        yield f"  machines  {self.machines:,}, with {self.credits:,} credits"
        counters = ", ".join(f"{name}={value:,}" for name, value in islice(self.counters.items(), NAMED))
        more = f", and {len(self.counters) - NAMED:,} more" if len(self.counters) > NAMED else ""
        yield f"  counters  {counters + more if counters else 'none'}"

    def _open(self) -> str:
        count = len(self.outstanding)
        if self.unseen:
            return f"{count:,} may be outstanding: {self.unseen}"
        said = f"{self.discarded:,} discarded at the end, " if self.discarded else ""
        named = f": {', '.join(self.outstanding[:NAMED])}" if count else ""
        return f"{said}{count:,} outstanding{named}{', ...' if count > NAMED else ''}"


class Leavings:
    """The slots that commands have made, project by project, as the protocol has it."""

    def __init__(self) -> None:
        self._branches: defaultdict[tuple[str, str], Branch] = defaultdict(lambda: START)
        self._claimed: set[tuple[str, str]] = set()

    def note(self, request: HttpRequest | None, reply: Reply) -> None:
        """Note what a request did, if there is one and the server has accepted it, or may have."""
        if request is None or reply.status not in {0, 200}:
            return
        project = _signed_by(request)
        for kind, arguments in _calls(request):
            self._note(project, kind, arguments)

    def note_frame(self, frame: bytes, project: str) -> None:
        """Note what a frame does that a daemon has acknowledged."""
        with suppress(MalformedFrame):
            kind, arguments = parse(frame)
            self._note(project, kind, dict(arguments))

    def may_be_claimed(self, project: str, slot: str) -> bool:
        """Whether a machine was to have a slot: a server may list it all the same."""
        return (project.lower(), slot) in self._claimed

    def open_slots(self, project: str) -> list[str]:
        """The slots of a project that the protocol leaves outstanding."""
        return [
            slot
            for (owner, slot), branch in self._branches.items()
            if owner == project.lower() and branch.state.phase == "allocated"
        ]

    def left(self, outstanding: tuple[str, ...], discarded: int, unseen: str) -> Left:
        """What is left."""
        states = [branch.state for branch in self._branches.values()]
        claimed = [state for state in states if state.phase == "claimed"]
        counters: defaultdict[str, int] = defaultdict(int)
        for state in claimed:
            for name, value in state.counters:
                counters[name] += value
        return Left(
            outstanding=outstanding,
            discarded=discarded,
            slots=sum(state.phase != "absent" for state in states),
            machines=len({state.machine for state in claimed}),
            credits=sum(state.granted or 0 for state in claimed),
            counters=dict(sorted(counters.items())),
            unseen=unseen,
        )

    def _note(self, project: str, kind: str, arguments: dict[str, str | int]) -> None:
        slot = arguments.get("slot")
        if kind not in COMMANDS or not isinstance(slot, str):
            return
        place, now_ns = (project.lower(), slot), SYSTEM_CLOCK.monotonic_ns()
        if "machine" in arguments:
            self._claimed.add(place)
        step = Step(kind, arguments, Span(now_ns, now_ns), applied=True)
        for branch in list(branches_after(self._branches[place], step))[:1]:
            self._branches[place] = branch


def _signed_by(request: HttpRequest) -> str:
    """The project of a request."""
    signed = request.headers.get("Authorization") or request.path.rpartition("auth=")[2]
    return [*signed.split(","), ""][1]


def _calls(request: HttpRequest) -> Iterator[Call]:
    """The commands of a request, in the order in which they are applied; those that can be read."""
    path, _, query = request.path.partition("?")
    name, _, suffix = path.rpartition("/")[2].partition(".")
    try:
        if request.method == "GET":
            document: Any = dict(parse_qsl(query, keep_blank_values=True))
            document.pop("auth", None)
        elif suffix == "text":
            document = dict(pair.split("=", 1) for pair in request.body.decode().split(","))
        else:
            document = json.loads(request.body)
    except (ValueError, RecursionError):
        return
    if not isinstance(document, dict):
        return
    given = {name: [document]} if name != "bulk" else document
    for kind in COMMANDS:
        commands = given.get(kind, [])
        for arguments in commands if isinstance(commands, list) else []:
            if isinstance(arguments, dict) and all(type(value) in {str, int} for value in arguments.values()):
                yield kind, arguments

"""What a daemon was told, and what came of it at the server behind it, which is ours."""

from __future__ import annotations

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cpdaemon.commands import COMMANDS
from cpsim.conformance.clause import Known
from cpsim.conformance.findings import Deviation

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping
    from types import TracebackType
    from typing import Self

    from cpdaemon.signing import Call
    from cpsim.conformance.examiner import Examiner
    from cpsim.conformance.upstream import Delivery

    Same = tuple[str, frozenset[tuple[str, Hashable]]]

AT_ONCE: Final = 16
SLACK_S: Final = 1.0
"""What a delivery may take beside the flush interval."""


@dataclass(frozen=True)
class AcknowledgedCommand:
    """A command that the daemon has acknowledged, and when, on the monotonic clock."""

    kind: str
    arguments: tuple[tuple[str, str], ...]
    at_s: float

    @property
    def slot(self) -> str:
        """Whose it is."""
        return dict(self.arguments)["slot"]

    @property
    def same(self) -> Same:
        """Equal to that of a command which says the same."""
        return self.kind, frozenset(self.arguments)

    def __str__(self) -> str:
        return ",".join([self.kind, *(f"{name}={value}" for name, value in self.arguments)])


class Forwarding:
    """Commands of one clause on their way through the daemon; a context manager that leaves the server answering.

    Args:
        cp: sends them.
    """

    def __init__(self, cp: Examiner) -> None:
        self._cp = cp
        self._told: list[AcknowledgedCommand] = []
        self.upstream = cp.upstream
        self._seen = len(self.upstream.deliveries)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.upstream.serve_well()

    def tell(self, kind: str, slot: str, **arguments: object) -> AcknowledgedCommand:
        """Have the daemon acknowledge a command."""
        return self._tell(self._cp.tell, kind, slot, arguments)

    def _tell(
        self, send: Callable[[str], None], kind: str, slot: str, arguments: Mapping[str, object]
    ) -> AcknowledgedCommand:
        pairs = (("slot", slot), *((name, str(value)) for name, value in arguments.items()))
        send(",".join([kind, *(f"{name}={value}" for name, value in pairs)]))
        told = AcknowledgedCommand(kind, pairs, time.monotonic())
        self._told.append(told)
        return told

    def tell_some(self, count: int = 3) -> list[str]:
        """Have the daemon acknowledge the commands of so many slots, every kind among them; returns the slots' ids."""
        slots = [self._cp.new() for _ in range(count)]
        for number, slot in enumerate(slots):
            self.tell("alloc", slot, credits=5)
            self.tell("meta", slot, site="here")
            self.tell("counters", slot, **{"job/events": 1 + number})
            if number % 3 == 2:
                self.tell("discard", slot, reason="lost")
            else:
                self.tell("claim", slot, machine=self._cp.new("machine"))
        return slots

    @property
    def deliveries(self) -> list[Delivery]:
        """The requests that carried commands of this clause."""
        mine = {told.slot for told in self._told}
        return [delivery for delivery in self.upstream.deliveries if mine & {_slot(call) for call in delivery.commands}]

    def wait_for(self, told: Iterable[AcknowledgedCommand], within_s: float) -> None:
        """Wait until the server has applied commands, or a time has passed."""
        wanted = {each.same for each in told}
        self.upstream.wait_for(lambda deliveries: wanted <= set(_applied(deliveries)), within_s)

    def drain(self, down_s: float = 0.0) -> None:
        """Wait until the daemon has passed on all that it will: until a command that comes after all of it is there.

        Args:
            down_s: how long the server was out of reach: a daemon may wait about as long before it tries again.

        Raises:
            Deviation: that took longer than the time-out.
        """
        within_s = self._cp.timeout_s + self._cp.flush_interval_s + 3 * down_s
        fence = self.tell("alloc", self._cp.new())
        self.wait_for([fence], within_s)
        came = fence.same in set(_applied(self.upstream.deliveries))
        for delivery in self.deliveries:
            self._cp.note(f"at the server: {_described(delivery)}")
        if not came:
            raise Deviation(f"arrival of {fence}, the last command", f"within {within_s:g} s", "nothing of the kind")

    def see_each_once(self, lost: str = "", twice: str = "") -> None:
        """Each command that was acknowledged has to be applied, and once.

        Args:
            lost: the quirk by whose name a loss is reported.
            twice: likewise for what was applied more than once.
        """
        times = Counter(_applied(self.upstream.deliveries))
        missing = [str(told) for told in self._told if not times[told.same]]
        several = [f"{told} ({times[told.same]} times)" for told in self._told if times[told.same] > 1]
        sent = {told.same for told in self._told}
        for call in (call for delivery in self.deliveries for call in delivery.commands):
            if missing and _same(call) not in sent:
                self._cp.note(f"at the server, and never sent: {_text(call)}")
        for what, found, quirk in (("never applied", missing, lost), ("applied more than once", several, twice)):
            self._cp.check(
                f"commands that were acknowledged and {what}", [], found, *([Known(quirk, found)] if quirk else [])
            )

    def see_order(self, slot: str, quirk: str) -> None:
        """The commands of a slot have to be applied in the order of their coming."""
        sent = [told.kind for told in self._told if told.slot == slot]
        came = [
            kind
            for delivery in self.upstream.deliveries
            if delivery.applied
            for kind, arguments in delivery.commands
            if arguments.get("slot") == slot
        ]
        self._cp.check(f"commands on {slot}, as the server applies them", sent, came, Known(quirk, came))

    def wait_answered(self, answer: str) -> None:
        """Wait until a batch has been answered so, or the time is up."""
        self.upstream.wait_for(
            lambda deliveries: any(delivery.answer == answer for delivery in deliveries[self._seen :]),
            self._cp.timeout_s + self._cp.flush_interval_s,
        )

    def rate(self, count: int) -> float:
        """Have the daemon acknowledge so many commands, several at once; commands/s."""
        began = time.monotonic()
        slots = [self._cp.new() for _ in range(count)]
        self._cp.note(f"> {count:,} frames alloc,slot=... from {slots[0]} to {slots[-1]}")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda slot: self._tell(self._cp.tell_unseen, "alloc", slot, {}), slots))
        return count / (time.monotonic() - began)

    def repeated(self) -> list[str]:
        """The commands that came to the server more often than once, applied or not."""
        times = Counter(_same(call) for delivery in self.deliveries for call in delivery.commands)
        return [str(told) for told in self._told if times[told.same] > 1]

    def delays_s(self) -> list[float]:
        """How long each command took from its acknowledgement to the server, in the order of telling."""
        arrived: dict[Same, float] = {}
        for delivery in self.upstream.deliveries:
            for call in delivery.commands:
                arrived.setdefault(_same(call), delivery.at_s)
        return [arrived[told.same] - told.at_s for told in self._told if told.same in arrived]


def _applied(deliveries: Iterable[Delivery]) -> list[Same]:
    return [_same(call) for delivery in deliveries if delivery.applied for call in delivery.commands]


def _slot(call: Call) -> str:
    return str(call[1].get("slot", ""))


def _same(call: Call) -> Same:
    """What a command says: its kind, and a value for each name, for the names of an object have no order.

    Values of a frame are text. A whole number may come as a number of JSON or as its text; any other value has to come
    as that text.
    """
    kind, arguments = call
    return kind, frozenset((name, _value(kind, name, value)) for name, value in arguments.items())


def _value(kind: str, name: str, value: object) -> str | tuple[str]:
    """The text of a value; in a tuple, which no text equals, the JSON of one that the argument cannot have."""
    if isinstance(value, str):
        return value
    is_whole = COMMANDS[kind].type_of(name) is int
    if is_whole and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return (json.dumps(value),)


def _text(call: Call) -> str:
    """A command as its document has it."""
    kind, arguments = call
    return f"{kind} {json.dumps(arguments, ensure_ascii=False)}"


def _described(delivery: Delivery) -> str:
    name = f" under the id {delivery.batch_id}" if delivery.batch_id else ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(kind for kind, _ in delivery.commands).items())
    return f"{kinds}{name}, answered {delivery.answer}" + (f", {delivery.unsigned}" if delivery.unsigned else "")

"""Commands sent to a daemon, against their deliveries at the server behind it, which is ours."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cpdaemon.commands import COMMANDS
from cpsim.clock import SYSTEM_CLOCK
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
"""The time for a delivery beside the flush interval."""


@dataclass(frozen=True)
class AcknowledgedCommand:
    """A command that the daemon acknowledged, and the time on the monotonic clock."""

    kind: str
    arguments: tuple[tuple[str, str], ...]
    at_s: float

    @property
    def slot(self) -> str:
        """The id of its slot."""
        return dict(self.arguments)["slot"]

    @property
    def same(self) -> Same:
        """A key that is equal for equal commands."""
        return self.kind, frozenset(self.arguments)

    def __str__(self) -> str:
        return ",".join([self.kind, *(f"{name}={value}" for name, value in self.arguments)])


class Forwarding:
    """The commands of one clause, sent through the daemon; a context manager that restores the server at the end.

    Args:
        cp: sends the commands.
    """

    def __init__(self, cp: Examiner) -> None:
        self._cp = cp
        self._sent: list[AcknowledgedCommand] = []
        self.upstream = cp.upstream
        self._seen = len(self.upstream.deliveries)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.upstream.serve_normally()

    def send(self, kind: str, slot: str, **arguments: object) -> AcknowledgedCommand:
        """Send a command, which the daemon has to acknowledge."""
        return self._send(self._cp.send, kind, slot, arguments)

    def _send(
        self, send: Callable[[str], None], kind: str, slot: str, arguments: Mapping[str, object]
    ) -> AcknowledgedCommand:
        pairs = (("slot", slot), *((name, str(value)) for name, value in arguments.items()))
        send(",".join([kind, *(f"{name}={value}" for name, value in pairs)]))
        command = AcknowledgedCommand(kind, pairs, SYSTEM_CLOCK.monotonic())
        self._sent.append(command)
        return command

    def send_some(self, count: int = 3) -> list[str]:
        """Send commands of every kind for `count` slots; returns the slots' ids."""
        slots = [self._cp.new() for _ in range(count)]
        for number, slot in enumerate(slots):
            self.send("alloc", slot, credits=5)
            self.send("meta", slot, site="here")
            self.send("counters", slot, **{"job/events": 1 + number})
            if number % 3 == 2:
                self.send("discard", slot, reason="lost")
            else:
                self.send("claim", slot, machine=self._cp.new("machine"))
        return slots

    @property
    def deliveries(self) -> list[Delivery]:
        """The requests that carried commands of this clause."""
        mine = {command.slot for command in self._sent}
        return [delivery for delivery in self.upstream.deliveries if mine & {_slot(call) for call in delivery.commands}]

    def wait_for(self, commands: Iterable[AcknowledgedCommand], within_s: float) -> bool:
        """Wait until the server has applied commands; return False if it has not within a time."""
        wanted = {command.same for command in commands}
        return self.upstream.wait_for(lambda deliveries: wanted <= set(_applied(deliveries)), within_s)

    def drain(self, down_s: float = 0.0) -> None:
        """Wait until the daemon has delivered all commands: until a last command has arrived.

        Args:
            down_s: the length of the outage: a daemon's backoff may be about as long.

        Raises:
            Deviation: the last command did not arrive within the time-out.
        """
        within_s = self._cp.timeout_s + self._cp.flush_interval_s + 3 * down_s
        fence = self.send("alloc", self._cp.new())
        came = self.wait_for([fence], within_s)
        for delivery in self.deliveries:
            self._cp.note(f"at the server: {_described(delivery)}")
        if not came:
            raise Deviation(f"arrival of {fence}, the last command", f"within {within_s:g} s", "nothing of the kind")

    def see_each_once(self, lost: str = "", twice: str = "") -> None:
        """Check that each acknowledged command was applied once.

        Args:
            lost: the quirk that explains a loss.
            twice: the quirk that explains a command applied more than once.
        """
        times = Counter(_applied(self.upstream.deliveries))
        missing = [str(command) for command in self._sent if not times[command.same]]
        several = [f"{command} ({times[command.same]} times)" for command in self._sent if times[command.same] > 1]
        sent = {command.same for command in self._sent}
        for call in (call for delivery in self.deliveries for call in delivery.commands):
            if missing and _same(call) not in sent:
                self._cp.note(f"at the server, and never sent: {_text(call)}")
        for what, found, quirk in (("never applied", missing, lost), ("applied more than once", several, twice)):
            self._cp.check(
                f"commands that were acknowledged and {what}", [], found, *([Known(quirk, found)] if quirk else [])
            )

    def see_order(self, slot: str, quirk: str) -> None:
        """Check that the commands of a slot were applied in the order of sending."""
        sent = [command.kind for command in self._sent if command.slot == slot]
        came = [
            kind
            for delivery in self.upstream.deliveries
            if delivery.applied
            for kind, arguments in delivery.commands
            if arguments.get("slot") == slot
        ]
        self._cp.check(f"commands on {slot}, as the server applies them", sent, came, Known(quirk, came))

    def wait_answered(self, answer: str) -> None:
        """Wait until a batch has got this answer, or the time-out."""
        self.upstream.wait_for(
            lambda deliveries: any(delivery.answer == answer for delivery in deliveries[self._seen :]),
            self._cp.timeout_s + self._cp.flush_interval_s,
        )

    def rate(self, count: int) -> float:
        """The rate at which the daemon acknowledges `count` commands, several at a time, in commands/s."""
        began = SYSTEM_CLOCK.monotonic()
        slots = [self._cp.new() for _ in range(count)]
        self._cp.note(f"> {count:,} frames alloc,slot=... from {slots[0]} to {slots[-1]}")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda slot: self._send(self._cp.send_unrecorded, "alloc", slot, {}), slots))
        return count / (SYSTEM_CLOCK.monotonic() - began)

    def repeated(self) -> list[str]:
        """The commands that arrived at the server more than once, applied or not."""
        times = Counter(_same(call) for delivery in self.deliveries for call in delivery.commands)
        return [str(command) for command in self._sent if times[command.same] > 1]

    def delays_s(self) -> list[float]:
        """The seconds from acknowledgement to arrival of each command, in the order of sending."""
        arrived: dict[Same, float] = {}
        for delivery in self.upstream.deliveries:
            for call in delivery.commands:
                arrived.setdefault(_same(call), delivery.at_s)
        return [arrived[command.same] - command.at_s for command in self._sent if command.same in arrived]


def _applied(deliveries: Iterable[Delivery]) -> list[Same]:
    return [_same(call) for delivery in deliveries if delivery.applied for call in delivery.commands]


def _slot(call: Call) -> str:
    return str(call[1].get("slot", ""))


def _same(call: Call) -> Same:
    """A key of a command: its kind, and a value for each name, because the names of an object have no order.

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
    error = f", {delivery.signature_error}" if delivery.signature_error else ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(kind for kind, _ in delivery.commands).items())
    return f"{kinds}{name}, answered {delivery.answer}{error}"

"""Commands sent to a daemon, against their deliveries at the server behind it, which is ours."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from cpdaemon.commands import COMMANDS
from cpsim.clock import SYSTEM_CLOCK
from cpsim.conformance.clause import Known
from cpsim.conformance.findings import Deviation
from cpsim.conformance.upstream import OF_ANY, same

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from cpdaemon.signing import Call
    from cpsim.conformance.examiner import Examiner
    from cpsim.conformance.upstream import Delivery, Same

AT_ONCE: Final = 4
"""How many clients send at once: fewer than wait in the shortest queue of connections that is known, which is of 5."""
SLACK_S: Final = 1.0
"""The time for a delivery beside the flush interval."""
PATIENCE: Final = 3
"""How many time-outs a daemon may wait before it tries again, after an outage."""
DELIVERIES_SHOWN: Final = 40
STRANGERS_SHOWN: Final = 5
CHUNK: Final = 250


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

    @property
    def frame(self) -> str:
        """The frame that it was sent as, but for white space around it."""
        return ",".join([self.kind, *(f"{name}={value}" for name, value in self.arguments)])

    def __str__(self) -> str:
        return self.frame


class Explanation(NamedTuple):
    """What a known quirk would do here: the quirk, and the commands that it loses, or applies twice."""

    quirk: str
    commands: frozenset[Same]


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
        self._had_outage = False
        self._unknown: set[Same] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.upstream.serve_normally()

    def send(self, kind: str, slot: str, **arguments: object) -> AcknowledgedCommand:
        """Send a command, which the daemon has to acknowledge."""
        return self._send(self._cp.send, command(kind, slot, arguments))

    def send_as(self, frame: str, kind: str, slot: str, **arguments: object) -> AcknowledgedCommand:
        """Send a command as a frame of its own layout, which the daemon has to acknowledge."""
        return self._send(lambda _: self._cp.send(frame), command(kind, slot, arguments))

    def _send(self, send: Callable[[str], None], made: AcknowledgedCommand) -> AcknowledgedCommand:
        send(made.frame + "\n" * (len(self._sent) % 2))  # of a frame without an end, a daemon has to wait for more
        return self.acknowledged(made)

    def acknowledged(self, made: AcknowledgedCommand) -> AcknowledgedCommand:
        """Note that the daemon has just acknowledged a command."""
        sent = AcknowledgedCommand(made.kind, made.arguments, SYSTEM_CLOCK.monotonic())
        self._sent.append(sent)
        return sent

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

    def sent_since(self, send: Callable[[], object]) -> frozenset[Same]:
        """The commands that are sent meanwhile."""
        before = len(self._sent)
        send()
        return frozenset(command.same for command in self._sent[before:])

    def new_slot(self) -> str:
        """A new id of a slot."""
        return self._cp.new()

    def open_slots(self, count: int) -> list[str]:
        """Allocate slots, and wait until the server has them; returns their ids."""
        slots = [self.new_slot() for _ in range(count)]
        for slot in slots:
            self.send("alloc", slot)
        self.drain()
        return slots

    @property
    def deliveries(self) -> list[Delivery]:
        """The requests that carried commands of this clause."""
        mine = {command.slot for command in self._sent}
        return [
            delivery
            for delivery in self.upstream.deliveries[self._seen :]
            if any(_slot(call) in mine for call in delivery.commands)
        ]

    def wait_for(self, commands: Iterable[AcknowledgedCommand], within_s: float) -> bool:
        """Wait until the server has applied commands; return False if it has not within a time."""
        wanted = {command.same for command in commands}
        applied = self.upstream.applied
        return self.upstream.wait_for(lambda _: all(applied[key] for key in wanted), within_s)

    def wait_for_all(self) -> None:
        """Wait until the server has applied all commands, or for as long as a daemon may deliver nothing."""
        self.wait_for(self.missing, self._longest_s)

    @property
    def missing(self) -> list[AcknowledgedCommand]:
        """The commands that the server has not got, in the order of sending."""
        left = Counter(self.upstream.applied)
        missing = []
        for sent in self._sent:
            left[sent.same] -= 1
            if left[sent.same] < 0:
                missing.append(sent)
        return missing

    def refuse(self) -> None:
        """Have the server refuse connections; a daemon may wait for a while until it tries again."""
        self._had_outage = True
        self.upstream.refuse()

    def fail(self, answer: str, count: int | None = 1) -> None:
        """Have the next batches, or all, answered so that a daemon tries again, for which it may wait for a while."""
        self._had_outage = True
        self.upstream.answer(answer, count)

    def offer(self, kind: str, slot: str, **arguments: object) -> None:
        """Send a command that the daemon may acknowledge or not."""
        made = command(kind, slot, arguments)
        with self._cp.connect() as connection:
            connection.send(f"{made}\n".encode())
            if connection.reply() == "OK":
                self.acknowledged(made)

    def may_come(self, made: AcknowledgedCommand) -> None:
        """Note a command that was sent, and whose reply nobody read."""
        self._unknown.add(made.same)

    @property
    def _longest_s(self) -> float:
        """How long a daemon may deliver nothing."""
        return self._cp.timeout_s * (1 + PATIENCE * self._had_outage) + self._cp.flush_interval_s

    def drain(self) -> None:
        """Wait until the daemon has delivered all commands, a last one too, or delivers nothing any more.

        Raises:
            Deviation: the last command did not arrive, and neither did anything else for longer than the time-out.
        """
        quiet_s, longest_s = self._cp.timeout_s + self._cp.flush_interval_s, self._longest_s
        fence = self.send("alloc", self._cp.new())
        came, before = self.wait_for([fence], longest_s), -1
        while not came and len(self._sent) - len(self.missing) > before:
            before = len(self._sent) - len(self.missing)
            came = self.wait_for([fence], longest_s)
        if came and self.missing:  # what is tried again may come after what is new
            self.wait_for(self.missing, quiet_s)
        for delivery in self.deliveries[-DELIVERIES_SHOWN:]:
            self._cp.note(f"at the server: {_described(delivery)}")
        if not came:
            raise Deviation(
                f"arrival of {fence}, the last command", f"within {longest_s:g} s (--timeout)", "nothing of the kind"
            )

    def strangers(self) -> list[str]:
        """What the server has applied of these slots, or of slots with ids that differ in case, and nobody has sent."""
        sent = self._unknown | {command.same for command in self._sent}
        mark = self._cp.mark.casefold()
        return [
            _text(call)
            for delivery in self.upstream.deliveries[self._seen :]
            if delivery.applied
            for call in delivery.commands
            if same(call) not in sent and mark in _slot(call).casefold()
        ]

    def see_each_once(
        self, lost: Explanation | None = None, twice: Explanation | None = None, during: str = ""
    ) -> None:
        """Check that each acknowledged command was delivered, that none had an effect twice, and no other came.

        A command whose repetition the server refuses, or that says the same once more, has no effect.

        Args:
            lost: what explains a loss, if it is of exactly these commands.
            twice: what explains a command that had an effect twice, likewise.
            during: what the server did meanwhile.
        """
        accepted = self.upstream.accepted
        sent = Counter(command.same for command in self._sent)
        several = [
            each
            for each in {each.same: each for each in self._sent}.values()
            if COMMANDS[each.kind].free is int and accepted[each.same] > sent[each.same]
        ]
        strangers = self.strangers()
        for stranger in strangers[:STRANGERS_SHOWN]:
            self._cp.note(f"at the server, and never sent: {stranger}")
        during = during and f" while {during}"
        for what, found, explanation in (
            ("never delivered", self.missing, lost),
            ("applied more than once", several, twice),
        ):
            known = explanation is not None and not strangers and {each.same for each in found} == explanation.commands
            names = [f"{each} ({accepted[each.same]} times)" if found is several else str(each) for each in found]
            self._cp.check(
                f"commands that were acknowledged{during} and {what}",
                [],
                names,
                *([Known(explanation.quirk, names)] if explanation is not None and known else []),
            )
        self._cp.check("commands at the server that nobody sent", [], strangers)

    def answered(self, *answers: str, since: int = 0) -> frozenset[Same]:
        """The commands that came in batches with one of these answers, beyond the first so many of all deliveries."""
        mine = {command.same for command in self._sent}
        return frozenset(mine) & frozenset(
            same(call)
            for delivery in self.upstream.deliveries[max(since, self._seen) :]
            if delivery.answer in answers
            for call in delivery.commands
        )

    def see_order(self, slot: str, quirk: str = "") -> None:
        """Check that the commands of a slot were applied in the order of sending, as far as they came.

        Args:
            slot: the slot.
            quirk: explains that commands of different kinds have changed places.
        """
        came = [
            call
            for delivery in self.upstream.deliveries[self._seen :]
            if delivery.applied
            for call in delivery.commands
            if _slot(call) == slot
        ]
        places = {same(call): place for place, call in reversed(list(enumerate(came)))}
        sent = [command for command in self._sent if command.slot == slot and command.same in places]
        got = sorted(sent, key=lambda each: places[each.same])
        keeps_kinds = all(_of_kind(sent, kind) == _of_kind(got, kind) for kind in COMMANDS)
        seen = [str(each) for each in got]
        self._cp.check(
            f"commands on {slot}, as the server applies them",
            [str(each) for each in sent],
            seen,
            *([Known(quirk, seen)] if quirk and keeps_kinds else []),
        )

    def wait_answered(self, answer: str) -> None:
        """Wait until a batch has got this answer, or a command alone the one it gets instead, or the time-out."""
        self.upstream.wait_for(
            lambda deliveries: any(delivery.answer in {answer, OF_ANY} for delivery in deliveries[self._seen :]),
            self._longest_s,
        )

    def rate(self, count: int) -> float:
        """The rate at which the daemon acknowledges `count` commands, several at a time, in commands/s."""
        began = SYSTEM_CLOCK.monotonic()
        self.send_many([command("alloc", self._cp.new(), {}) for _ in range(count)])
        return count / max(SYSTEM_CLOCK.monotonic() - began, 1e-9)

    def send_many(self, commands: Sequence[AcknowledgedCommand]) -> None:
        """Send commands, several at a time, in any order; the daemon has to acknowledge each."""
        self._cp.note(f"> {len(commands):,} frames, from {commands[0]} to {commands[-1]}")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self._send_unrecorded, commands))

    def send_for(self, seconds: float, commands: Sequence[AcknowledgedCommand]) -> int:
        """Send many commands, as many as some seconds allow; returns how many those are."""
        ends_s = SYSTEM_CLOCK.monotonic() + seconds
        for start in range(0, len(commands), CHUNK):
            if SYSTEM_CLOCK.monotonic() > ends_s:
                return start
            self.send_many(commands[start : start + CHUNK])
        return len(commands)

    def _send_unrecorded(self, made: AcknowledgedCommand) -> None:
        self._cp.send_unrecorded(f"{made.frame}\n")
        self.acknowledged(made)

    def repeated(self) -> list[str]:
        """The commands that arrived at the server more than once, applied or not."""
        times = Counter(same(call) for delivery in self.deliveries for call in delivery.commands)
        sent = Counter(command.same for command in self._sent)
        return [str(command) for command in self._sent if times[command.same] > sent[command.same]]

    def see_none_repeated(self) -> None:
        """Check that no command came more often than it was sent, where each batch was answered."""
        self._cp.check("commands that came more often than once", [], self.repeated())

    def delays_s(self) -> list[float]:
        """The seconds from acknowledgement to arrival of each command, in the order of sending."""
        arrived: dict[Same, float] = {}
        for delivery in self.upstream.deliveries[self._seen :]:
            for call in delivery.commands:
                arrived.setdefault(same(call), delivery.at_s)
        return [arrived[command.same] - command.at_s for command in self._sent if command.same in arrived]


def see_none_dropped(forwarding: Forwarding, *answers: str, together: bool = False) -> None:
    """Check that no batch with one of these answers is lost, nor any command of one where several leave `together`."""
    for answer in answers:
        before = len(forwarding.upstream.deliveries)
        if together:
            forwarding.fail("hang", count=None)
            forwarding.send("alloc", forwarding.new_slot())
            forwarding.wait_answered("hang")
            for _ in range(4):
                forwarding.send("alloc", forwarding.new_slot())
            forwarding.upstream.answer("ok", 1, then=answer)
        else:
            forwarding.fail(answer)
            forwarding.send_some()
        forwarding.wait_answered(answer)
        forwarding.drain()
        dropped = Explanation("drop-on-error", forwarding.answered(answer, OF_ANY, since=before))
        forwarding.see_each_once(lost=dropped, during=f"a batch was answered {answer}")


def see_applied_once(forwarding: Forwarding, answer: str, quirk: str = "") -> None:
    """Check that a batch whose answer does not come, or comes late, has its effect once."""
    slots = forwarding.open_slots(3)
    forwarding.fail(answer)
    for number, slot in enumerate(slots):
        forwarding.send("counters", slot, **{"job/events": 1 + number})
    forwarding.wait_answered(answer)
    forwarding.drain()
    twice = Explanation(quirk, forwarding.answered(answer)) if quirk else None
    forwarding.see_each_once(twice=twice, during=f"the answer to a batch was {answer}")


def command(kind: str, slot: str, arguments: Mapping[str, object]) -> AcknowledgedCommand:
    """A command that is to be sent."""
    pairs = (("slot", slot), *((name, str(value)) for name, value in arguments.items()))
    return AcknowledgedCommand(kind, pairs, 0.0)


def _of_kind(commands: Iterable[AcknowledgedCommand], kind: str) -> list[AcknowledgedCommand]:
    return [each for each in commands if each.kind == kind]


def _slot(call: Call) -> str:
    return str(call[1].get("slot", ""))


def text_of(kind: str, slot: str) -> str:
    """A command with nothing but a slot, as a message shows what came."""
    return _text((kind, {"slot": slot}))


def _text(call: Call) -> str:
    """A command as its document has it."""
    kind, arguments = call
    return f"{kind} {json.dumps(arguments, ensure_ascii=False)}"


def _described(delivery: Delivery) -> str:
    name = f" under the id {delivery.batch_id}" if delivery.batch_id else ""
    error = f", {delivery.signature_error}" if delivery.signature_error else ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(kind for kind, _ in delivery.commands).items())
    return f"{kinds}{name}, answered {delivery.answer}{error}"

"""Rules on all commands of a project: what a job manager has to do for every job.

Each function returns a `Breach`; without slots in it, the rule holds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

from cpdaemon.commands import KINDS
from cpsim.protocol.slots import State
from cpsim.server.control import wording

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cpsim.server.control.views import CommandView, SlotView

    Histories = Mapping[str, Sequence[CommandView]]

SETTLING: Final = ("claim", "discard")
HISTORIES: Final = 5
"""Slots whose history a message shows."""


class Breach(NamedTuple):
    """How a rule is broken.

    Attributes:
        what: what the slots are.
        slots: the reason for each slot that breaks it.
        is_final: whether nothing that may still come can mend it.
    """

    what: str
    slots: Mapping[str, str]
    is_final: bool = True

    def lines(self) -> list[str]:
        """What the slots are, and a line for each; none if the rule holds."""
        return wording.block(
            f"slots {self.what}: {len(self.slots):,}", [f"{slot}: {why}" for slot, why in self.slots.items()]
        )

    def text(self, histories: Histories, start_us: int) -> str:
        """The lines, and the histories of the first slots, with times since `start_us`."""
        lines = self.lines()
        for slot in list(self.slots)[:HISTORIES]:
            history = [wording.command_line(command, start_us) for command in histories.get(slot, ())]
            lines += wording.block(f"history of slot {slot!r}", history)
        return "\n".join(lines)


def histories_of(commands: Iterable[CommandView]) -> Histories:
    """The commands that came for each slot, in order."""
    histories: defaultdict[str, list[CommandView]] = defaultdict(list)
    for command in commands:
        if command.kind in KINDS:
            histories[str(command.arguments.get("slot"))].append(command)
    return histories


def settled_once(histories: Histories, slots: Sequence[str] = ()) -> Breach:
    """Each slot was settled by one claim or discard: one came, and it was accepted.

    Args:
        histories: the commands of each slot.
        slots: the slots to look at; without them, all for which a claim or a discard came.
    """
    settling = {
        slot: [command for command in commands if command.kind in SETTLING] for slot, commands in histories.items()
    }
    wrong = {}
    for slot in slots or [slot for slot, commands in settling.items() if commands]:
        came = settling.get(slot, [])
        accepted = [command for command in came if command.refusal is None]
        if len(came) != 1 or len(accepted) != 1:
            what = ", ".join(command.kind for command in came) or "neither claim nor discard"
            wrong[slot] = f"{what} came, {len(accepted)} accepted"
    return Breach("not settled exactly once", wrong, is_final=any(settling.get(slot) for slot in wrong))


def no_claim_before_alloc(histories: Histories) -> Breach:
    """No claim came for a slot that was not allocated yet."""
    wrong = {}
    for slot, commands in histories.items():
        allocated = False
        for command in commands:
            allocated |= command.kind == "alloc" and command.refusal is None
            if command.kind == "claim" and not allocated:
                wrong[slot] = "claimed before it was allocated"
    return Breach("claimed before allocation", wrong)


def no_slot_leaked(slots: Iterable[SlotView]) -> Breach:
    """No slot is outstanding or expired."""
    wrong = {slot.slot: str(slot.state) for slot in slots if slot.state in {State.ALLOCATED, State.EXPIRED}}
    return Breach("allocated and never settled", wrong, is_final=State.EXPIRED in wrong.values())


def nothing_sent_twice(histories: Histories, kinds: Sequence[str] = ()) -> Breach:
    """No command came a second time with the same arguments.

    Args:
        histories: the commands of each slot.
        kinds: the commands to look at; without them, all.

    Raises:
        ValueError: there is no such command.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ValueError(f"no command {unknown[0]!r}; there are {', '.join(KINDS)}")
    wrong = {}
    for slot, commands in histories.items():
        frames = Counter(wording.frame(command) for command in commands if command.kind in (kinds or KINDS))
        repeated = [f"{frame} came {times} times" for frame, times in frames.items() if times > 1]
        if repeated:
            wrong[slot] = "; ".join(repeated)
    return Breach("sent more than once", wrong)

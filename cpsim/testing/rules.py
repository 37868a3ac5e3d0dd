"""Rules on all commands of a test: what a job manager has to do for every job."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import chain, islice
from typing import TYPE_CHECKING, Final

from cpdaemon.commands import KINDS
from cpsim.protocol.slots import State
from cpsim.testing import wording
from cpsim.testing.project import ProjectFixture

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cpsim.server.control.views import CommandView

SETTLING: Final = ("claim", "discard")
OUTCOMES: Final = {state: "outstanding" if state is State.ALLOCATED else str(state) for state in State}
"""What a slot has come to, as its assertions call it."""
HISTORIES: Final = 5
"""Slots whose history a failure shows."""


class Rules(ProjectFixture):
    """Assertions on all commands of the code under test, without a replay in the background.

    Commands are in the order in which they reached the accounts.

    Raises:
        AssertionError: the rule is broken; the message names the slots, and shows the histories of the first.
    """

    def assert_settled_once(self, *slots: str) -> None:
        """These slots were each settled by one claim or discard: one came, and it was accepted.

        Without arguments: all slots for which a claim or a discard came.
        """
        __tracebackhide__ = True
        histories = self._histories(*slots)
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
        self._fail({"not settled exactly once": wrong})

    def assert_outcomes(self, outcomes: Mapping[str, str]) -> None:
        """The slots are those of a record, such as the job manager's own, and each has come to what the record says.

        Args:
            outcomes: "claimed", "discarded", "expired" or "outstanding", by slot.

        Raises:
            AssertionError: a slot of the record is missing, another is there, or one has come to something else.
            ValueError: there is no such outcome.
        """
        __tracebackhide__ = True
        for slot, outcome in outcomes.items():
            if outcome not in OUTCOMES.values():
                raise ValueError(f"slot {slot!r}: no outcome {outcome!r}; there are {', '.join(OUTCOMES.values())}")
        with self._idle_fake.accounts.reading() as ledger:
            project = ledger.projects.get(self.project)
            slots = {} if project is None else project.slots
            found = {slot: OUTCOMES[each.state] for slot, each in slots.items() if self._is_own_slot(slot)}
        missing = {slot: f"recorded as {outcome}" for slot, outcome in outcomes.items() if slot not in found}
        extra = {slot: outcome for slot, outcome in found.items() if slot not in outcomes}
        different = {
            slot: f"is {found[slot]}, recorded as {outcome}"
            for slot, outcome in outcomes.items()
            if found.get(slot, outcome) != outcome
        }
        self._fail({"missing": missing, "not recorded": extra, "different": different})

    def assert_no_claim_before_alloc(self) -> None:
        """No claim came for a slot that was not allocated yet."""
        __tracebackhide__ = True
        histories = self._histories()
        wrong = {}
        for slot, commands in histories.items():
            allocated = False
            for command in commands:
                allocated |= command.kind == "alloc" and command.refusal is None
                if command.kind == "claim" and not allocated:
                    wrong[slot] = "claimed before it was allocated"
        self._fail({"claimed before allocation": wrong})

    def assert_no_slot_leaked(self) -> None:
        """No slot is outstanding or expired."""
        __tracebackhide__ = True
        wrong = {
            slot.slot: str(slot.state)
            for slot in self.slots.values()
            if slot.state in {State.ALLOCATED, State.EXPIRED} and self._is_own_slot(slot.slot)
        }
        self._fail({"allocated and never settled": wrong})

    def assert_nothing_sent_twice(self, *kinds: str) -> None:
        """No command came a second time with the same arguments.

        Args:
            kinds: the commands to look at; all, if none is named. A job manager that counts the same number of events
                twice is right to say so twice: leave out "counters" where that occurs.

        Raises:
            AssertionError: one did.
            ValueError: there is no such command.
        """
        __tracebackhide__ = True
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise ValueError(f"no command {unknown[0]!r}; there are {', '.join(KINDS)}")
        histories = self._histories()
        wrong = {}
        for slot, commands in histories.items():
            frames = Counter(wording.frame(command) for command in commands if command.kind in (kinds or KINDS))
            repeated = [f"{frame} came {times} times" for frame, times in frames.items() if times > 1]
            if repeated:
                wrong[slot] = "; ".join(repeated)
        self._fail({"sent more than once": wrong})

    def assert_never_blocked(self, longer_than_s: float) -> None:
        """No client waited longer for its answer, at the daemon or at the test's own server.

        A wait begins with the first byte of a command, and ends with the answer or when the client disconnects; a wait
        in progress counts until now. The fake measures it, without the client's own time.
        """
        __tracebackhide__ = True
        lines = [
            f"{wait.wait_s:.3f} s{'' if wait.is_over else ' and still waiting'}: {wait.what}"
            for wait in self._waits.longest()
            if wait.wait_s > longer_than_s and not self._is_replayed(wait.what)
        ]
        if lines:
            raise AssertionError(
                "\n".join(wording.block(f"callers that waited longer than {longer_than_s:g} s", lines))
            )

    def _histories(self, *slots: str) -> Mapping[str, Sequence[CommandView]]:
        """The commands that came for these slots or, without any, for each, in order."""
        histories: defaultdict[str, list[CommandView]] = defaultdict(list)
        for command in [command for slot in slots for command in self._commands_for(slot)] if slots else self.journal:
            if command.kind in KINDS and self._is_own(command):
                histories[str(command.arguments.get("slot"))].append(command)
        return histories

    def _is_replayed(self, frame: str) -> bool:
        return any(field.startswith("slot=") and not self._is_own_slot(field[5:]) for field in frame.split(","))

    def _fail(self, wrong: Mapping[str, Mapping[str, str]]) -> None:
        """Fail if slots are wrong: by what is, each slot and why."""
        __tracebackhide__ = True
        lines: list[str] = []
        for what, slots in wrong.items():
            lines += wording.block(f"slots {what}: {len(slots):,}", [f"{slot}: {why}" for slot, why in slots.items()])
        if not lines:
            return
        for slot in islice(chain.from_iterable(wrong.values()), HISTORIES):
            lines += wording.block(f"history of slot {slot!r}", self.history(slot))
        raise AssertionError("\n".join(lines if self._has_come else [*lines, *self._nothing_text()]))

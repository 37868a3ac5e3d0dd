"""Rules on all commands of a test: what a job manager has to do for every job."""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, Final

from cpsim.protocol.slots import State
from cpsim.server.control import rules, wording
from cpsim.server.control.rules import Breach
from cpsim.testing.project import ProjectFixture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cpsim.server.control.rules import Histories

OUTCOMES: Final = {state: "outstanding" if state is State.ALLOCATED else str(state) for state in State}
"""What a slot has come to, as its assertions call it."""


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
        self._fail(rules.settled_once(self._histories(*slots), slots))

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
        self._fail(Breach("missing", missing), Breach("not recorded", extra), Breach("different", different))

    def assert_no_claim_before_alloc(self) -> None:
        """No claim came for a slot that was not allocated yet."""
        __tracebackhide__ = True
        self._fail(rules.no_claim_before_alloc(self._histories()))

    def assert_no_slot_leaked(self) -> None:
        """No slot is outstanding or expired."""
        __tracebackhide__ = True
        own = [slot for slot in self.slots.values() if self._is_own_slot(slot.slot)]
        self._fail(rules.no_slot_leaked(own))

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
        self._fail(rules.nothing_sent_twice(self._histories(), kinds))

    def assert_never_blocked(self, longer_than_s: float) -> None:
        """No client waited longer for its answer, at the daemon or at the test's own server.

        A wait begins with the first byte of a command, and ends with the answer or when the client disconnects; a wait
        in progress counts until now. The fake measures it, without the client's own time.
        """
        __tracebackhide__ = True
        own = [wait for wait in self._waits.longest() if not self._is_replayed(wait.what)]
        if blocked := wording.blocked(own, longer_than_s):
            raise AssertionError(blocked)

    def _histories(self, *slots: str) -> Histories:
        """The commands that came for these slots or, without any, for each, in order."""
        commands = chain.from_iterable(map(self._commands_for, slots)) if slots else self.journal
        return rules.histories_of(command for command in commands if self._is_own(command))

    def _is_replayed(self, frame: str) -> bool:
        return any(field.startswith("slot=") and not self._is_own_slot(field[5:]) for field in frame.split(","))

    def _fail(self, *breaches: Breach) -> None:
        __tracebackhide__ = True
        lines = list(chain.from_iterable(breach.lines() for breach in breaches))
        if not lines:
            return
        for slot in islice(chain.from_iterable(breach.slots for breach in breaches), rules.HISTORIES):
            lines += wording.block(f"history of slot {slot!r}", self.history(slot))
        raise AssertionError("\n".join(lines if self._has_come else [*lines, *self._nothing_text()]))

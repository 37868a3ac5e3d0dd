"""Rules on all commands of a test: what a job manager has to do for every job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.server.control import rules, wording
from cpsim.testing.project import ProjectFixture

if TYPE_CHECKING:
    from cpsim.server.control.rules import Breach, Histories


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
        histories = self._histories()
        self._fail(rules.settled_once(histories, slots), histories)

    def assert_no_claim_before_alloc(self) -> None:
        """No claim came for a slot that was not allocated yet."""
        __tracebackhide__ = True
        histories = self._histories()
        self._fail(rules.no_claim_before_alloc(histories), histories)

    def assert_no_slot_leaked(self) -> None:
        """No slot is outstanding or expired."""
        __tracebackhide__ = True
        own = [slot for slot in self.slots.values() if self._is_own_slot(slot.slot)]
        self._fail(rules.no_slot_leaked(own), self._histories())

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
        histories = self._histories()
        self._fail(rules.nothing_sent_twice(histories, kinds), histories)

    def assert_never_blocked(self, longer_than_s: float) -> None:
        """No client waited longer for its answer, at the daemon or at the test's own server.

        A wait begins with the first byte of a command, and ends with the answer or when the client disconnects; a wait
        in progress counts until now. The fake measures it, without the client's own time.
        """
        __tracebackhide__ = True
        own = [wait for wait in self._waits.longest() if not self._is_replayed(wait.what)]
        if blocked := wording.blocked(own, longer_than_s):
            raise AssertionError(blocked)

    def _histories(self) -> Histories:
        """The commands that came for each slot, in order."""
        return rules.histories_of(command for command in self.journal if self._is_own(command))

    def _is_replayed(self, frame: str) -> bool:
        return any(field.startswith("slot=") and not self._is_own_slot(field[5:]) for field in frame.split(","))

    def _fail(self, breach: Breach, histories: Histories) -> None:
        __tracebackhide__ = True
        if breach.slots:
            raise AssertionError(breach.text(histories, self._start_us))

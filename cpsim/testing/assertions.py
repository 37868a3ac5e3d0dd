"""Assertions about a slot, and about refusals; a failure shows the differences and the slot's history."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from cpsim.protocol.slots import State
from cpsim.server.control import wording
from cpsim.testing.project import ProjectFixture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cpsim.server.control.views import SlotView


class Assertions(ProjectFixture):
    """What can be asserted of one slot.

    What is not given is not compared, nor are counters and metadata that are not named; `assert_counters` compares
    them all. Each returns the slot.

    Raises:
        AssertionError: it is not so.
    """

    def assert_claimed(
        self,
        slot: str,
        *,
        machine: str | None = None,
        credits: int | None = None,
        counters: Mapping[str, object] | None = None,
        meta: Mapping[str, object] | None = None,
    ) -> SlotView:
        """A slot was claimed, by this machine, which got these credits and counters."""
        __tracebackhide__ = True
        return self._assert_slot(
            slot, state=State.CLAIMED, machine=machine, granted=credits, counters=counters, meta=meta
        )

    def assert_discarded(
        self,
        slot: str,
        *,
        reason: str | None = None,
        counters: Mapping[str, object] | None = None,
        meta: Mapping[str, object] | None = None,
    ) -> SlotView:
        """A slot was discarded, for this reason."""
        __tracebackhide__ = True
        return self._assert_slot(slot, state=State.DISCARDED, reason=reason, counters=counters, meta=meta)

    def assert_outstanding(
        self,
        slot: str,
        *,
        credits: int | None = None,
        min: int | None = None,
        max: int | None = None,
        counters: Mapping[str, object] | None = None,
        meta: Mapping[str, object] | None = None,
    ) -> SlotView:
        """A slot was allocated, with these terms, and is neither settled nor expired."""
        __tracebackhide__ = True
        return self._assert_slot(
            slot, state=State.ALLOCATED, credits=credits, min=min, max=max, counters=counters, meta=meta
        )

    def assert_expired(self, slot: str) -> SlotView:
        """A slot was allocated, and its time came before anybody settled it."""
        __tracebackhide__ = True
        return self._assert_slot(slot, state=State.EXPIRED)

    def assert_counters(self, slot: str, counters: Mapping[str, object]) -> SlotView:
        """A slot has these counters and no others, whatever its state."""
        __tracebackhide__ = True
        return self._assert_slot(slot, whole=True, counters=counters)

    def assert_no_refusals(self) -> None:
        """No command was refused by the accounts, and none answered ER by the daemon as malformed."""
        __tracebackhide__ = True
        if refused := self._refused_lines():
            raise AssertionError("\n".join(refused))

    def _assert_slot(self, slot: str, *, whole: bool = False, **expected: object) -> SlotView:
        __tracebackhide__ = True
        found = self._slot(slot)
        if found is None:
            raise AssertionError("\n".join([self._unknown_text(slot), *self._context(slot)]))
        wanted = {
            name: dict(value) if name in {"counters", "meta"} else value  # type: ignore[call-overload]
            for name, value in expected.items()
            if value is not None
        }
        actual = {name: getattr(found, name) for name in wanted}
        if "granted" in wanted:
            wanted["credits"], actual["credits"] = wanted.pop("granted"), actual.pop("granted")
        if different := list(wording.differences(wanted, actual, whole=whole)):
            lines = [f"slot {slot!r} is not as expected:", *(f"  {line}" for line in different), *self._context(slot)]
            raise AssertionError("\n".join(lines))
        return found

    def _unknown_text(self, slot: str) -> str:
        known = list(self.slots)
        close = get_close_matches(slot, known, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        gone = " (the quirk slots-vanish deletes what is claimed)" if "slots-vanish" in self._quirks else ""
        others = "is 1 other" if len(known) == 1 else f"are {len(known):,} others"
        return f"there is no slot {slot!r}{gone}; there {others}{hint}"

    def _context(self, slot: str) -> list[str]:
        """What a failure shows besides: the slot's history, and what has not arrived yet."""
        history = wording.block(f"history of slot {slot!r}", self.history(slot)) or self._nothing_text()
        return [*history, *([self._pending_text()] if self.pending else [])]

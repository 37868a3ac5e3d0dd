"""Waiting until something has happened: in a thread, or in an event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from cpsim.fake.fake import IDLE_POLL_S
from cpsim.protocol.slots import State
from cpsim.server.control import wording
from cpsim.server.control.views import slot_view
from cpsim.testing.project import ProjectFixture

if TYPE_CHECKING:
    from collections.abc import Callable

    from cpsim.clock import Clock
    from cpsim.server.control.views import SlotView

DEFAULT_TIMEOUT_S = 5.0


class NotInTime(AssertionError, TimeoutError):
    """The event did not happen in time, or can no longer happen."""


class _Awaited(NamedTuple):
    """An event to wait for: whether it has happened, whether it no longer can, and the message if it has not."""

    has_happened: Callable[[], bool]
    is_too_late: Callable[[], bool]
    explain: Callable[[], str]


class _Awaiting(ProjectFixture):
    """The events to wait for."""

    def _idleness(self) -> _Awaited:
        return _Awaited(lambda: not self.pending, self._cannot_come, self._pending_text)

    def _arrival(self, slot: str, *states: State) -> _Awaited:
        """A slot comes into one of these states."""

        def state() -> State | None:
            with self.fake.accounts.reading() as ledger:
                project = ledger.projects.get(self.project)
                found = None if project is None else project.slots.get(slot)
                return None if found is None else found.state

        def is_too_late() -> bool:
            self.fake.check()
            return state() in {State.CLAIMED, State.DISCARDED, State.EXPIRED} and not self._quirks

        def explain() -> str:
            found = state()
            text = f"slot {slot!r} is {'unknown' if found is None else found}, and not {states[0]}"
            history = wording.block(f"history of slot {slot!r}", self.history(slot)) or self._nothing_text()
            return "\n".join([text, *([self._pending_text()] if self.pending else []), *history])

        return _Awaited(lambda: state() in states, is_too_late, explain)

    def _cannot_come(self) -> bool:
        """Raise the error of a failed thread at once; otherwise False."""
        self.fake.check()
        return False

    def _view(self, slot: str) -> SlotView:
        with self.fake.accounts.reading() as ledger:
            return slot_view(self.project, slot, ledger.projects[self.project].slots[slot])


class Waiting(_Awaiting):
    """Waits in the calling thread.

    Each method raises NotInTime after `timeout_s`, or if the event can no longer happen.
    """

    def wait_until_idle(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Wait until every command that was acknowledged has reached the accounts."""
        __tracebackhide__ = True
        _wait(self._idleness(), timeout_s, self.fake.clock)

    def wait_for_alloc(self, slot: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> SlotView:
        """Wait until a slot is there, in whatever state."""
        __tracebackhide__ = True
        _wait(self._arrival(slot, *State), timeout_s, self.fake.clock)
        return self._view(slot)

    def wait_for_claim(self, slot: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> SlotView:
        """Wait until a slot is claimed."""
        __tracebackhide__ = True
        _wait(self._arrival(slot, State.CLAIMED), timeout_s, self.fake.clock)
        return self._view(slot)

    def wait_for_discard(self, slot: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> SlotView:
        """Wait until a slot is discarded."""
        __tracebackhide__ = True
        _wait(self._arrival(slot, State.DISCARDED), timeout_s, self.fake.clock)
        return self._view(slot)


class AsyncWaiting(_Awaiting):
    """Waits in an asyncio event loop without blocking it.

    Each method raises NotInTime after `timeout_s`, or if the event can no longer happen.
    """

    async def wait_until_idle(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Wait until every command that was acknowledged has reached the accounts."""
        __tracebackhide__ = True
        await _wait_async(self._idleness(), timeout_s, self.fake.clock)

    async def wait_for_alloc(self, slot: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> SlotView:
        """Wait until a slot is there, in whatever state."""
        __tracebackhide__ = True
        await _wait_async(self._arrival(slot, *State), timeout_s, self.fake.clock)
        return self._view(slot)

    async def wait_for_claim(self, slot: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> SlotView:
        """Wait until a slot is claimed."""
        __tracebackhide__ = True
        await _wait_async(self._arrival(slot, State.CLAIMED), timeout_s, self.fake.clock)
        return self._view(slot)

    async def wait_for_discard(self, slot: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> SlotView:
        """Wait until a slot is discarded."""
        __tracebackhide__ = True
        await _wait_async(self._arrival(slot, State.DISCARDED), timeout_s, self.fake.clock)
        return self._view(slot)


def _wait(awaited: _Awaited, timeout_s: float, clock: Clock) -> None:
    __tracebackhide__ = True
    deadline_s = clock.monotonic() + timeout_s
    while not awaited.has_happened():
        _check(awaited, timeout_s, clock.monotonic() > deadline_s)
        clock.sleep(IDLE_POLL_S)


async def _wait_async(awaited: _Awaited, timeout_s: float, clock: Clock) -> None:
    __tracebackhide__ = True
    deadline_s = clock.monotonic() + timeout_s
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, "cpsim-wait") as pool:  # the loop's time may be frozen, and so the end of its own pool
        while not awaited.has_happened():
            _check(awaited, timeout_s, clock.monotonic() > deadline_s)
            await loop.run_in_executor(pool, clock.sleep, IDLE_POLL_S)


def _check(awaited: _Awaited, timeout_s: float, is_over: bool) -> None:  # noqa: FBT001
    __tracebackhide__ = True
    if is_over:
        raise NotInTime(f"after {timeout_s:g} s, {awaited.explain()}")
    if awaited.is_too_late():
        if awaited.has_happened():
            return
        raise NotInTime(f"too late: {awaited.explain()}")

"""The ledger with quirks of the server in production.

Where a quirk breaks a conservation law, `violations` reports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cpsim.protocol.quirks import numbers_in
from cpsim.server.accounts import ProjectAccounts, Slot, State
from cpsim.server.ledger import CommandRefused, Ledger, settle

if TYPE_CHECKING:
    from collections.abc import Mapping


ADMITTING: Final = {
    ("claim", State.CLAIMED): "reclaim",
    ("claim", State.DISCARDED): "claim-settled",
    ("claim", State.EXPIRED): "claim-settled",
    ("discard", State.CLAIMED): "discard-settled",
    ("counters", State.CLAIMED): "counters-settled",
    ("counters", State.DISCARDED): "counters-settled",
}
"""Transitions that a quirk adds to the ledger's; `reclaim` only while the slot's machine has no user."""


class QuirkyLedger(Ledger):
    """A ledger with quirks.

    Args:
        quirks: names from `cpsim.protocol.quirks.QUIRKS`; quirks of the daemon have no effect here.
    """

    def __init__(self, quirks: frozenset[str]) -> None:
        super().__init__()
        self.quirks = quirks

    def expire(self, now_us: int) -> bool:
        """Expire every slot that is due, unless `expire-live`."""
        return "expire-live" not in self.quirks and super().expire(now_us)

    def housekeep(self, now_us: int) -> None:
        """Expire every slot that is due; with `expire-live`, every slot that is not."""
        if "expire-live" not in self.quirks:
            super().housekeep(now_us)
            return
        for project in self.projects.values():
            for slot in project.slots.values():
                if slot.state is State.ALLOCATED and slot.expires_us > now_us:
                    settle(project, slot, State.EXPIRED, now_us)

    def _alloc(self, project: ProjectAccounts, slot_id: str, arguments: Mapping[str, object], now_us: int) -> None:
        if "global-slot-ids" in self.quirks and any(slot_id in other.slots for other in self.projects.values()):
            raise CommandRefused(f"slot {slot_id!r} was already allocated")
        super()._alloc(project, slot_id, arguments, now_us)
        self.expire(now_us)  # with `float-credits`, the slot may be due already

    def _meta(self, project: ProjectAccounts, slot: Slot, arguments: Mapping[str, object], now_us: int) -> None:
        super()._meta(project, slot, arguments, now_us)
        if "meta-dropped" in self.quirks:
            slot.meta = None

    def _claim(self, project: ProjectAccounts, slot: Slot, arguments: Mapping[str, object], now_us: int) -> None:
        super()._claim(project, slot, arguments, now_us)
        if "slots-vanish" in self.quirks and slot.machine in self.owners:
            del project.slots[str(arguments["slot"])]
            project.settled[State.CLAIMED] -= 1

    def _admits(self, slot: Slot, kind: str) -> bool:
        """Whether a quirk admits a command of a kind for a settled slot."""
        quirk = ADMITTING.get((kind, slot.state))
        return quirk in self.quirks and (quirk != "reclaim" or slot.machine not in self.owners)

    def _is_outstanding(self, slot: Slot) -> bool:
        if "slots-list-claimed" in self.quirks and slot.state is State.CLAIMED:
            return slot.machine not in self.owners
        return super()._is_outstanding(slot)

    def _whole(self, arguments: Mapping[str, object], name: str) -> int | None:
        value = arguments.get(name)
        if "float-credits" not in self.quirks or not isinstance(value, str | int | float):
            return super()._whole(arguments, name)
        try:
            return int(float(value))
        except (ValueError, OverflowError):
            return super()._whole(arguments, name)

    def _check_range(self, least: int, most: int) -> None:
        if "float-credits" not in self.quirks:
            super()._check_range(least, most)


def aborts_bulk(kind: str, arguments: Mapping[str, object]) -> bool:
    """Whether the server in production aborts a bulk request at a command: `bulk-abort`."""
    return not all(map(_is_number, numbers_in(kind, arguments)))


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False
    return True

"""Credit and slots over time: by hour, day and week, and cumulative."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.accounting import Figure, Table

if TYPE_CHECKING:
    from cpsim.accounting import Accounts
    from cpsim.accounting.blocks import Block

SLOTS = ["allocated", "claimed", "discarded", "expired"]
CREDITS = {"credits": "period_credits"}
SUMS = {name: f"period_{name}" for name in SLOTS}


def build(frames: Accounts) -> list[Block]:
    """What each interval brought."""
    if frames.empty:
        return []
    fine = frames.over_time()
    return [
        Figure(
            "Credits, cumulative",
            fine[["project", "start_at", "cumulative_credits"]],
            "area",
            "start_at",
            ["cumulative_credits"],
        ),
        Figure(
            "Credits granted", fine[["project", "start_at", "credits"]], "bars", "start_at", ["credits"], sums=CREDITS
        ),
        Figure("Slots settled", fine[["project", "start_at", *SLOTS]], "stacked", "start_at", SLOTS[1:], sums=SUMS),
        *(
            Table(
                f"By {every}",
                frames.over_time(every)[["project", "start_at", *SLOTS, "credits", "cumulative_credits"]],
                f"As clocks in {frames.timezone.key} have it; intervals in which nothing happened are left out.",
                SUMS | CREDITS,
                is_folded=True,
            )
            for every in ("hour", "day", "week")
        ),
    ]

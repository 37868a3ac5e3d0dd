"""The fault `rate`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from cpsim.faults.action import Action
from cpsim.protocol.exchange import End, Later

if TYPE_CHECKING:
    from cpsim.protocol.exchange import Exchange

MOST_WAITING: Final = 10_000
"""Number of commands that may wait for their turn."""


class RateFault(Action):
    effect = f"the command waits for its turn, so many a second; if {MOST_WAITING:,} wait, its connection is closed"
    takes = "per_s"

    def __init__(self, value: float | None) -> None:
        super().__init__(value)
        self._next_s = -math.inf

    def before(self, exchange: Exchange, /) -> Later | End:
        turn_s = max(exchange.time_s, self._next_s)
        delay_s = turn_s - exchange.time_s
        if round(delay_s * self.value) > MOST_WAITING:
            return End.CLOSE
        self._next_s = turn_s + 1 / self.value
        return Later(delay_s)

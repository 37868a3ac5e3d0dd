"""Two measurements that take turns, so that what else the machine does meets both."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 5


class Row(NamedTuple):
    """The medians of two measurements, and of their ratios round by round."""

    first: float
    second: float
    ratio: float


def in_turns(first: Callable[[int], float], second: Callable[[int], float], rounds: int = ROUNDS) -> Row:
    """Measure both in every round; each is told the number of the round."""
    pairs = [(first(turn), second(turn)) for turn in range(rounds)]
    return Row(
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    )

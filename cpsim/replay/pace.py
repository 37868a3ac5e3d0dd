"""Paces: when each operation is due: at the scenario's times, at a speed, at a rate, or as soon as possible."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Times = npt.NDArray[np.int64]

LATEST_US: Final = 2.0**53
"""Upper limit of due times, almost three centuries."""
HIGHEST_RATE: Final = 1e9
LONGEST_LEG_S: Final = 86_400.0
NUMBER: Final = r"(\d+(?:\.\d+)?(?:e\d+)?)"
LEG: Final = re.compile(rf"{NUMBER}(?:\.\.{NUMBER})?:{NUMBER}s")


@dataclass(frozen=True, slots=True)
class AsFastAsPossible:
    """Operations have no due times."""

    def schedule(self, due_us: Times, numbers: Times | None = None) -> Times | None:  # noqa: ARG002 - as for the other paces
        """None: there are no due times."""
        return None

    def __str__(self) -> str:
        return "as fast as possible"


@dataclass(frozen=True, slots=True)
class Speed:
    """The scenario's times, `factor` times faster."""

    factor: float

    def schedule(self, due_us: Times, numbers: Times | None = None) -> Times:  # noqa: ARG002 - as for the other paces
        """The due time of each operation, in microseconds from the start of the replay."""
        return _microseconds(due_us / self.factor)

    def __str__(self) -> str:
        return f"{self.factor:g} times the scenario's speed"


@dataclass(frozen=True, slots=True)
class Rate:
    """The scenario's order at an even rate."""

    operations_per_s: float

    def schedule(self, due_us: Times, numbers: Times | None = None) -> Times:
        """The due time of each operation, in microseconds from the start of the replay.

        Args:
            due_us: when each is due in the scenario.
            numbers: of each in the whole workload; None for 0, 1, ...
        """
        return _microseconds(_numbers(due_us, numbers) * (1e6 / self.operations_per_s))

    def __str__(self) -> str:
        return f"{self.operations_per_s:g} operations/s"


@dataclass(frozen=True, slots=True)
class Virtual:
    """The scenario's times on the clock of an embedded fake, which jumps from step to step."""

    def schedule(self, due_us: Times, numbers: Times | None = None) -> Times | None:  # noqa: ARG002 - as for the other paces
        """None: there are no due times in real time."""
        return None

    def __str__(self) -> str:
        return "in virtual time"


class Leg(NamedTuple):
    """A part of a profile: from one rate to another, in operations/s, within `lasts_s` seconds."""

    first: float
    last: float
    lasts_s: float


@dataclass(frozen=True, slots=True)
class Profile:
    """The scenario's order at a changing rate: ramps, steps, spikes. After the last leg, its last rate stays."""

    legs: tuple[Leg, ...]

    @classmethod
    def parse(cls, text: str) -> Profile:
        """Parse `100..1000:30s,1000:10s`: a ramp of 30 s, then 10 s at its last rate.

        Raises:
            ValueError: the text has another form, or a number is out of range.
        """
        legs = []
        for part in text.split(","):
            found = LEG.fullmatch(part.strip())
            if found is None:
                raise ValueError(f"{part!r} is neither RATE:SECONDSs nor RATE..RATE:SECONDSs, such as 100..1000:30s")
            first = float(found[1])
            leg = Leg(first, float(found[2] or first), float(found[3]))
            if not (0 <= first <= HIGHEST_RATE and 0 < leg.last <= HIGHEST_RATE and 0 < leg.lasts_s <= LONGEST_LEG_S):
                raise ValueError(f"{part!r}: a rate ends above 0 and at most at 1e9, and a leg lasts up to a day")
            legs.append(leg)
        return cls(tuple(legs))

    def schedule(self, due_us: Times, numbers: Times | None = None) -> Times:
        """The due time of each operation, see `Rate.schedule`."""
        places = _numbers(due_us, numbers).astype(np.float64)
        times_s = np.zeros(len(due_us))
        before, begins_s = 0.0, 0.0
        for leg in (*self.legs, Leg(self.legs[-1].last, self.legs[-1].last, np.inf)):
            mine = places >= before
            growth = (leg.last - leg.first) / leg.lasts_s
            into = places[mine] - before
            speed = np.sqrt(np.maximum(leg.first**2 + 2 * growth * into, 0.0))
            times_s[mine] = begins_s + 2 * into / np.maximum(leg.first + speed, 1e-9)
            before += (leg.first + leg.last) / 2 * leg.lasts_s
            begins_s += leg.lasts_s
        return _microseconds(times_s * 1e6)

    def __str__(self) -> str:
        return ", then ".join(
            f"{leg.first:g} operations/s for {leg.lasts_s:g} s"
            if leg.first == leg.last
            else f"{leg.first:g} to {leg.last:g} operations/s in {leg.lasts_s:g} s"
            for leg in self.legs
        )


@dataclass(frozen=True, slots=True)
class Users:
    """A closed model: each user sends, waits for the answer, and thinks before the next operation."""

    number: int
    think_s: float

    def schedule(self, due_us: Times, numbers: Times | None = None) -> Times | None:  # noqa: ARG002 - as for the other paces
        """None: an operation is sent when a user is free."""
        return None

    def __str__(self) -> str:
        return f"{self.number:,} users who think {self.think_s:g} s"


def _numbers(due_us: Times, numbers: Times | None) -> Times:
    return np.arange(len(due_us)) if numbers is None else numbers


def _microseconds(times_us: npt.NDArray[np.floating[Any]]) -> Times:
    whole: Times = np.minimum(times_us, LATEST_US).astype(np.int64)
    return whole


Pace = AsFastAsPossible | Speed | Rate | Profile | Users | Virtual

"""When each operation is to be sent: the scenario's own times, stretched, evened out, or not waited for at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Times = npt.NDArray[np.int64]

LATEST_US: Final = 2.0**53
"""What would be due later, after three centuries, is due then."""


@dataclass(frozen=True, slots=True)
class AsFastAsPossible:
    """Nothing is waited for: an operation is due when its turn comes."""

    def schedule(self, due_us: Times) -> Times | None:  # noqa: ARG002 - as for the other paces
        """None: there are no times to keep."""
        return None

    def __str__(self) -> str:
        return "as fast as possible"


@dataclass(frozen=True, slots=True)
class Speed:
    """The scenario's times, `factor` times faster."""

    factor: float

    def schedule(self, due_us: Times) -> Times:
        """Microseconds from the start of the replay at which each operation is due."""
        return _microseconds(due_us / self.factor)

    def __str__(self) -> str:
        return f"{self.factor:g} times the scenario's speed"


@dataclass(frozen=True, slots=True)
class Rate:
    """The scenario's order at an even rate."""

    operations_per_s: float

    def schedule(self, due_us: Times) -> Times:
        """Microseconds from the start of the replay at which each operation is due."""
        return _microseconds(np.arange(len(due_us)) * (1e6 / self.operations_per_s))

    def __str__(self) -> str:
        return f"{self.operations_per_s:g} operations/s"


@dataclass(frozen=True, slots=True)
class Virtual:
    """The scenario's times on the clock of an embedded fake, which jumps from one to the next."""

    def schedule(self, due_us: Times) -> Times | None:  # noqa: ARG002 - as for the other paces
        """None: nothing is waited for in real time."""
        return None

    def __str__(self) -> str:
        return "in virtual time"


def _microseconds(times_us: npt.NDArray[np.floating[Any]]) -> Times:
    whole: Times = np.minimum(times_us, LATEST_US).astype(np.int64)
    return whole


Pace = AsFastAsPossible | Speed | Rate | Virtual

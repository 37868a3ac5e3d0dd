"""Virtual time: a scenario's clock is the fake's clock, which stands still but for jumps from step to step.

All that is due within a step is sent at its beginning, and has reached the accounts before the next. So a month passes
in seconds, and slots expire when they should. A step is a sixtieth of the shortest time that a slot lives, or a
50,000th of the whole, if that is longer: what would expire within a step expires at its end. Where a fault begins or
ends, so does a step.
"""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Final

import numpy as np

from cpsim.errors import CpsimError
from cpsim.scenario.workload import ABSENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from cpsim.accounts.observer import Observer
    from cpsim.replay.assignment import Assignment
    from cpsim.replay.engine import Engine
    from cpsim.run.outages import Outages
    from cpsim.scenario.workload import Workload

    Times = npt.NDArray[np.int64]

STEPS_A_LIFE: Final = 60
MOST_STEPS: Final = 50_000
DAY_MIN: Final = 1_440
MINUTE_US: Final = 60_000_000
POLL_S: Final = 0.001


def step_times_us(workload: Workload, moments_us: Sequence[int] = ()) -> Times:
    """For each operation, the beginning of the step in which it is due, on the scenario's clock.

    Args:
        workload: the operations.
        moments_us: when else steps begin.
    """
    lives = np.unique(workload.arguments["alloc"]["expire"].values)
    shortest_min = min([int(life) for life in lives if life > 0], default=DAY_MIN)
    if ABSENT in lives:
        shortest_min = min(shortest_min, DAY_MIN)
    span_us = int(workload.due_us[-1]) if len(workload) else 0
    step_us = max(shortest_min * MINUTE_US // STEPS_A_LIFE, span_us // MOST_STEPS, 1)
    moments = np.array([0, *sorted(moments_us)])
    begun_us = moments[np.searchsorted(moments, workload.due_us, side="right") - 1]
    times: Times = np.maximum(workload.due_us // step_us * step_us, begun_us)
    return times


def replay(
    engine: Engine, assignment: Assignment, observer: Observer, outages: Outages | None
) -> tuple[float, Times, Times]:
    """Replay a workload step by step, and move the fake's clock between.

    Args:
        engine: sends the operations.
        assignment: what is sent; its time-out is also that of a step's commands on their way to the accounts.
        observer: of the fake whose clock it is.
        outages: what goes wrong at times of that clock.

    Returns:
        The seconds it took; for each operation when it was sent, in nanoseconds on the scenario's clock; and by how
        many nanoseconds its record is to be moved, for the engine counts from the beginning of each step.

    Raises:
        CpsimError: something that was acknowledged did not reach the accounts in time.
        CannotObserve: the fake's clock cannot be moved.
    """
    times_us = step_times_us(assignment.workload, outages.moments_us if outages is not None else ())
    starts = np.flatnonzero(np.diff(times_us, prepend=-1))
    stops = np.append(starts[1:], len(times_us))
    upcoming = assignment.operations()
    epoch_us = observer.freeze_clock()
    shifts = np.zeros(len(starts), dtype=np.int64)
    began_ns = 0
    for step, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        observer.set_clock(epoch_us + int(times_us[start]))
        if outages is not None:
            outages.at(int(times_us[start]) / 1e6)
        engine.run(islice(upcoming, stop - start))
        began_ns = began_ns or engine.start_ns
        shifts[step] = engine.start_ns - began_ns
        if engine.stopping:
            break
        _settle(observer, assignment.timeout_s)
    elapsed_s = (time.perf_counter_ns() - began_ns) / 1e9
    end_us = max(int(times_us[-1]) if len(times_us) else 0, assignment.workload.duration_us)
    observer.set_clock(epoch_us + end_us)
    engine.start_ns = began_ns
    return elapsed_s, times_us * 1_000, np.repeat(shifts, stops - starts)


def _settle(observer: Observer, timeout_s: float) -> None:
    """Wait until what was acknowledged has reached the accounts."""
    deadline = time.monotonic() + timeout_s
    while observer.totals()[0]:
        if time.monotonic() > deadline:
            raise CpsimError(
                f"what was acknowledged did not arrive within {timeout_s:g} s, and until then time stands still: "
                "raise --timeout, or leave out the faults that delay it"
            )
        time.sleep(POLL_S)

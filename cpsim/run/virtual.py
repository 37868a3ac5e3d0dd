"""Virtual time: the fake's clock is the scenario's clock, and jumps from step to step.

The operations due within a step are sent at its beginning, and reach the accounts before the next step. A month passes
in seconds, and slots expire when they should. Each due time is a step, so that all times are exact, where there are at
most 10,000 of them. Where there are more, a step is a sixtieth of the shortest life of a slot, or a 50,000th of the
scenario if that is longer: a slot that would expire within a step expires at its end, and times of the accounts are
early by up to a step, which `Summary.virtual_step_s` tells. A step also begins where a fault begins or ends.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

import numpy as np

from cpsim.errors import CpsimError
from cpsim.scenario.workload import ABSENT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from cpsim.accounts.observer import Observer
    from cpsim.clock import Clock
    from cpsim.replay.assignment import Assignment
    from cpsim.replay.engine import Engine
    from cpsim.run.faults import TimedFaults
    from cpsim.scenario.workload import Workload

    Times = npt.NDArray[np.int64]

STEPS_A_LIFE: Final = 60
MOST_STEPS: Final = 50_000
EXACT_STEPS: Final = 10_000
"""Most due times that are all steps: each costs some milliseconds."""
DAY_MIN: Final = 1_440
MINUTE_US: Final = 60_000_000
POLL_S: Final = 0.001


def step_times_us(workload: Workload, moments_us: Sequence[int] = ()) -> Times:
    """For each operation, the beginning of its step, in microseconds on the scenario's clock.

    Args:
        workload: the operations.
        moments_us: additional times at which steps begin.
    """
    due_us: Times = workload.due_us
    if np.count_nonzero(np.diff(due_us)) < EXACT_STEPS:
        return due_us
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
    engine: Engine,
    assignment: Assignment,
    observer: Observer,
    timed_faults: TimedFaults | None,
    clock: Clock,
    *,
    on_chunk: Callable[[int], object] = lambda _: None,
) -> tuple[float, Times]:
    """Replay a workload step by step, and move the fake's clock between steps.

    Args:
        engine: sends the operations.
        assignment: the operations; its timeout also limits how long commands take to reach the accounts.
        observer: of the fake whose clock is moved.
        timed_faults: faults at times of the virtual clock.
        clock: real time, which is also the engine's.
        on_chunk: see `engine.operations`.

    Returns:
        The elapsed seconds, and for each operation its send time, in nanoseconds on the scenario's clock.

    Raises:
        CpsimError: an acknowledged command did not reach the accounts in time.
        CannotObserve: the fake's clock cannot be moved.
    """
    times_us = step_times_us(assignment.workload, timed_faults.moments_us if timed_faults is not None else ())
    starts = np.flatnonzero(np.diff(times_us, prepend=-1))
    stops = np.append(starts[1:], len(times_us))
    upcoming = assignment.operations(on_chunk)
    epoch_us = observer.control.freeze_clock()
    began_ns: int | None = None
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        observer.control.set_clock(epoch_us + int(times_us[start]))
        if timed_faults is not None:
            timed_faults.at(int(times_us[start]) / 1e6)
        engine.run(islice(upcoming, stop - start), began_ns)
        began_ns = engine.start_ns
        if engine.stopping:
            break
        _wait_until_applied(observer, assignment.timeout_s, clock)
    elapsed_s = (clock.monotonic_ns() - (began_ns or 0)) / 1e9
    end_us = max(int(times_us[-1]) if len(times_us) else 0, assignment.workload.duration_us)
    observer.control.set_clock(epoch_us + end_us)
    return elapsed_s, times_us * 1_000


def _wait_until_applied(observer: Observer, timeout_s: float, clock: Clock) -> None:
    """Wait until all acknowledged commands have reached the accounts."""
    deadline = clock.monotonic() + timeout_s
    while observer.control.totals()["pending"]:
        if clock.monotonic() > deadline:
            raise CpsimError(
                f"acknowledged commands did not reach the accounts within {timeout_s:g} s, and virtual time waits for "
                "them: raise --timeout, or leave out the faults that delay commands"
            )
        clock.sleep(POLL_S)

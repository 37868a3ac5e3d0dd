"""The apply delay: the time from a command's OK to its application, by the times in a server's ledger.

The ledger has, on the server's clock, the times of a slot's alloc and of its claim or discard; it has no times of
counters and metadata. The local clock is monotonic time, which nobody sets.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cpsim.accounts.observer import CannotObserve
from cpsim.clock import SYSTEM_CLOCK
from cpsim.evidence.journal import OperationOutcome
from cpsim.judge.clock_offset import NotComparable, Reading, offset
from cpsim.scenario.workload import KIND_CODES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future
    from types import TracebackType
    from typing import Protocol, Self

    import numpy.typing as npt

    from cpsim.accounts.observer import Observer
    from cpsim.clock import Clock
    from cpsim.scenario.workload import Workload

    Ints = npt.NDArray[np.int64]

    class Replayed(Protocol):
        """The records of a replay, and the table of slots of a view if it was read."""

        workload: Workload
        slot_prefix: str
        records: npt.NDArray[np.void]
        slots: pa.Table | None


READINGS: Final = 9
"""Readings of the server's clock before and after a run: the quickest one is the most exact."""
READINGS_DURING_RUN: Final = 3
"""Readings at a time during a run, where each costs the sender some time."""
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0
"""Pauses between readings during a run grow from the first to the longest."""
TIME_COLUMNS: Final = (
    ("allocated_us", ("allocated", "claimed", "discarded", "expired"), ("alloc",)),
    ("settled_us", ("claimed", "discarded"), ("claim", "discard")),
)
"""A column of the ledger, the states in which it is set, and the commands whose time it holds."""


class ClockWatch:
    """Reads a server's clock before, during and after a run; a context manager around the run.

    Args:
        observer: of the server; None if there is none.
        clock: the local clock; its monotonic time is compared with the server's.
    """

    def __init__(self, observer: Observer | None, clock: Clock = SYSTEM_CLOCK) -> None:
        self._observer = observer
        self._now_ns = clock.monotonic_ns
        self.seen: list[Reading] = []
        """The readings so far."""
        self._why_unknown = "there is no server with a clock and a ledger to read (--server)"
        self._ending = threading.Event()
        self._pool = ThreadPoolExecutor(1, "cpsim-clock")
        self._watching: Future[None] | None = None

    def read(self, count: int = READINGS) -> None:
        """Read the clock `count` times, and keep the quickest reading.

        Raises:
            CannotObserve: the server does not show its clock.
        """
        assert self._observer is not None
        readings = []
        for _ in range(count):
            sent_ns = self._now_ns()
            shown_us, rate = self._observer.control.clock()
            readings.append(Reading(sent_ns, self._now_ns(), shown_us, rate))
        odd = [reading for reading in readings if reading.rate != 1.0]
        self.seen.append(min(odd or readings, key=lambda reading: reading.received_ns - reading.sent_ns))

    def readings(self) -> list[Reading]:
        """All readings, with a last one made now.

        Raises:
            NotComparable: there was no reading before the run.
            CannotObserve: the server no longer shows its clock.
        """
        if not self.seen:
            raise NotComparable(self._why_unknown)
        self._end()
        self.read()
        return self.seen

    def __enter__(self) -> Self:
        if self._observer is not None:
            try:
                self.read()
            except CannotObserve as error:
                self._why_unknown = str(error)
            else:
                self._watching = self._pool.submit(self._watch)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._pool.shutdown()

    def _end(self) -> None:
        """Stop the readings during the run, and raise their error."""
        self._ending.set()
        if self._watching is not None:
            self._watching.result()

    def _watch(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._ending.wait(pause_s):
            with suppress(CannotObserve):  # an outage may be on
                self.read(READINGS_DURING_RUN)
            pause_s = min(1.5 * pause_s, LONGEST_PAUSE_S)


def apply_delays_ns(
    run: Replayed, project: str | None, readings: Sequence[Reading], start_ns: int
) -> tuple[Ints, float]:
    """The apply delays: the time from the answer to the application of each command.

    A command that was applied after its sending and before its answer has a delay of 0. A time before the sending is
    impossible; if there is one, no delay can be computed.

    Args:
        run: its records, and the table of slots: delays are those of the columns that it has.
        project: the project of the slots; None if unknown.
        readings: of the server's clock, from before the replay to after the ledger was read.
        start_ns: the start of the replay, on the local clock.

    Returns:
        The delays in nanoseconds, one for each accepted alloc, claim or discard that is the only one of its kind for
        its slot, in no order; and the largest error of all of them, in nanoseconds.

    Raises:
        NotComparable: the delays cannot be computed; the message says why.
    """
    if run.slots is None or project is None:
        raise NotComparable("the server's ledger was not read")
    if "state" not in run.slots.column_names:
        raise NotComparable("the server's table of slots has no column `state`")
    if run.workload.sites:
        raise NotComparable("the apply delay is not measured for a scenario of several sites")
    clock = offset(readings)
    records = run.records[run.records["outcome"] != OperationOutcome.REFUSED]
    kinds, slots = run.workload.kind[records["op"]], run.workload.slot[records["op"]]
    mine = run.slots.filter(pc.equal(pc.utf8_lower(run.slots["project"]), project.lower()))
    slot_of_row = _slots_of_ids(run, mine["slot"])
    delays = []
    for column, states, commands in TIME_COLUMNS:
        if column not in mine.column_names:
            continue
        chosen = np.flatnonzero(np.isin(kinds, [KIND_CODES[command] for command in commands]))
        record_of = _unique_values(len(run.workload.slot_numbers), slots[chosen], chosen)
        there = pc.and_(pc.is_in(mine["state"], pa.array(states)), pc.is_valid(mine[column]))
        rows = np.flatnonzero(there.to_numpy(zero_copy_only=False) & (slot_of_row >= 0))
        rows = rows[record_of[slot_of_row[rows]] >= 0]
        rows = rows[records["outcome"][record_of[slot_of_row[rows]]] == OperationOutcome.ACCEPTED]
        of_rows = records[record_of[slot_of_row[rows]]]
        applied_ns = clock.to_local_ns(mine[column].take(pa.array(rows)).to_numpy())
        sent_ns = of_rows["sent_ns"] + start_ns
        _check_possible(sent_ns - applied_ns, clock.uncertainty_ns, "before it was sent")
        _check_possible(applied_ns - readings[-1].received_ns, clock.uncertainty_ns, "after the ledger was read")
        delays.append(np.maximum(applied_ns - start_ns - of_rows["answered_ns"], 0).astype(np.int64))
    if not delays:
        columns = " and ".join(f"`{column}`" for column, _, _ in TIME_COLUMNS)
        raise NotComparable(f"the server's table of slots has no columns {columns}")
    found: Ints = np.concatenate(delays)
    if not len(found):
        raise NotComparable("the ledger has no times of commands of this run")
    return found, clock.uncertainty_ns


def _check_possible(wrong_ns: npt.NDArray[np.floating[Any]], uncertainty_ns: float, when: str) -> None:
    """Raise NotComparable if a command was applied at an impossible time, by more than the uncertainty."""
    worst_ns = wrong_ns.max(initial=0.0)
    if worst_ns > uncertainty_ns:
        raise NotComparable(
            f"by the ledger, a command was applied {worst_ns / 1e6:,.3f} ms {when}: the server's clock was set during "
            "the run, or a slot of that id is older than the run"
        )


def _slots_of_ids(run: Replayed, ids: pa.ChunkedArray) -> Ints:
    """The workload's slot of each id; -1 for other ids."""
    prefix = f"{run.slot_prefix}-"
    ends = pc.utf8_slice_codeunits(ids, len(prefix))
    ours = pc.and_(pc.starts_with(ids, prefix), pc.match_substring_regex(ends, r"^[0-9]{1,18}$"))
    numbers = pc.cast(pc.if_else(ours, ends, "-1"), pa.int64()).to_numpy()
    known = run.workload.slot_numbers
    order = np.argsort(known, kind="stable")
    place = np.minimum(np.searchsorted(known, numbers, sorter=order), len(known) - 1)
    found: Ints = np.where((numbers >= 0) & (known[order[place]] == numbers), order[place], -1)
    return found


def _unique_values(count: int, slots: npt.NDArray[np.int32], values: Ints) -> Ints:
    """The value of each slot that has exactly one; -1 for all others."""
    of_slots: Ints = np.full(count, -1, np.int64)
    of_slots[slots] = values
    of_slots[np.bincount(slots, minlength=count) != 1] = -1
    return of_slots

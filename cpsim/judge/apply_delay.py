"""The effect of commands in time: how long after its OK each was applied, where a server's ledger shows when.

The ledger has, on the server's clock, when a slot was allocated and when it was claimed or discarded. Of counters and
metadata it keeps no time. Ours is the performance counter, which nobody sets.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cpsim.accounts.observer import CannotObserve
from cpsim.evidence.journal import Outcome
from cpsim.judge.clock_offset import NotComparable, Reading, offset
from cpsim.scenario.workload import KIND_CODES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future
    from types import TracebackType
    from typing import Protocol, Self

    import numpy.typing as npt

    from cpsim.accounts.observer import Observer
    from cpsim.scenario.workload import Workload

    Ints = npt.NDArray[np.int64]

    class Replayed(Protocol):
        """What a replay has left: its records, and the ledger's slots where they were seen."""

        workload: Workload
        slot_prefix: str
        records: npt.NDArray[np.void]
        slots: pa.Table | None


LOOKS: Final = 9
"""At the server's clock, before and after: the quickest says most exactly what it shows."""
LOOKS_BETWEEN: Final = 3
"""The same during a run, where each costs the sender some time."""
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0
"""From one look during a run to the next, which is ever longer within these."""
SHOWN: Final = (
    ("allocated_us", ("allocated", "claimed", "discarded", "expired"), ("alloc",)),
    ("settled_us", ("claimed", "discarded"), ("claim", "discard")),
)
"""A column of the ledger, the states in which it is meant, and the commands whose time it is."""


class ClockWatch:
    """Reads a server's clock before, during and after a run; a context manager, which is the run.

    Args:
        observer: of the server; None if there is none to look at.
        now_ns: our clock, which is monotonic.
    """

    def __init__(self, observer: Observer | None, now_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._observer = observer
        self._now_ns = now_ns
        self.seen: list[Reading] = []
        """The readings until now."""
        self._unseen = "there is no server whose clock and ledger could be looked at (--server)"
        self._ending = threading.Event()
        self._pool = ThreadPoolExecutor(1, "cpsim-clock")
        self._watching: Future[None] | None = None

    def look(self, count: int = LOOKS) -> None:
        """Read the clock, and keep the quickest of so many readings.

        Raises:
            CannotObserve: the server does not show it.
        """
        assert self._observer is not None
        readings = []
        for _ in range(count):
            sent_ns = self._now_ns()
            shown_us, rate = self._observer.clock()
            readings.append(Reading(sent_ns, self._now_ns(), shown_us, rate))
        odd = [reading for reading in readings if reading.rate != 1.0]
        self.seen.append(min(odd or readings, key=lambda reading: reading.received_ns - reading.sent_ns))

    def readings(self) -> list[Reading]:
        """All readings, and a last one that is made now.

        Raises:
            NotComparable: there was none before the run.
            CannotObserve: the server does not show its clock any more.
        """
        if not self.seen:
            raise NotComparable(self._unseen)
        self._end()
        self.look()
        return self.seen

    def __enter__(self) -> Self:
        if self._observer is not None:
            try:
                self.look()
            except CannotObserve as error:
                self._unseen = str(error)
            else:
                self._watching = self._pool.submit(self._watch)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._pool.shutdown()

    def _end(self) -> None:
        """Make no more readings; what went wrong with them is raised here."""
        self._ending.set()
        if self._watching is not None:
            self._watching.result()

    def _watch(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._ending.wait(pause_s):
            with suppress(CannotObserve):  # a fault may have it out of reach
                self.look(LOOKS_BETWEEN)
            pause_s = min(1.5 * pause_s, LONGEST_PAUSE_S)


def effect_delays_ns(
    run: Replayed, project: str | None, readings: Sequence[Reading], start_ns: int
) -> tuple[Ints, float]:
    """How long after its answer each command was applied.

    One that was applied after it was sent, and before its answer had arrived, counts as 0: it was applied when the
    answer was there. No other time can be before the answer; if one is, all of them are worth nothing.

    Args:
        run: its records, and the ledger's slots.
        project: whose slots they are; None if that is not known.
        readings: of the clock of the server whose ledger that is, from before the replay to after the ledger was read.
        start_ns: when the replay began, on the clock of the readings.

    Returns:
        Nanoseconds for each accepted alloc, claim or discard that alone of its kind can have been applied to its slot,
        in no order; and by how many nanoseconds they may all be wrong.

    Raises:
        NotComparable: they cannot be known; the message says why.
    """
    if run.slots is None or project is None:
        raise NotComparable("the server's ledger was not seen")
    if run.workload.sites:
        raise NotComparable("it is not measured where a scenario has several sites")
    clock = offset(readings)
    records = run.records[run.records["outcome"] != Outcome.REFUSED]
    kinds, slots = run.workload.kind[records["op"]], run.workload.slot[records["op"]]
    mine = run.slots.filter(pc.equal(pc.utf8_lower(run.slots["project"]), project.lower()))
    meant = _meant(run, mine["slot"])
    delays = []
    for column, states, commands in SHOWN:
        chosen = np.flatnonzero(np.isin(kinds, [KIND_CODES[command] for command in commands]))
        record_of = _only_of_slots(len(run.workload.slot_numbers), slots[chosen], chosen)
        there = pc.and_(pc.is_in(mine["state"], pa.array(states)), pc.is_valid(mine[column]))
        rows = np.flatnonzero(there.to_numpy(zero_copy_only=False) & (meant >= 0))
        rows = rows[record_of[meant[rows]] >= 0]
        rows = rows[records["outcome"][record_of[meant[rows]]] == Outcome.ACCEPTED]
        of_rows = records[record_of[meant[rows]]]
        applied_ns = clock.on_ours_ns(mine[column].take(pa.array(rows)).to_numpy())
        sent_ns = of_rows["sent_ns"] + start_ns
        _check_possible(sent_ns - applied_ns, clock.uncertainty_ns, "before it was sent")
        _check_possible(applied_ns - readings[-1].received_ns, clock.uncertainty_ns, "after the ledger was read")
        delays.append(np.maximum(applied_ns - start_ns - of_rows["answered_ns"], 0).astype(np.int64))
    found: Ints = np.concatenate(delays)
    if not len(found):
        raise NotComparable("the ledger has the time of no command of this run")
    return found, clock.uncertainty_ns


def _check_possible(wrong_ns: npt.NDArray[np.floating[Any]], uncertainty_ns: float, when: str) -> None:
    """Raise NotComparable if a command was applied when it cannot have been, by more than the uncertainty."""
    worst_ns = wrong_ns.max(initial=0.0)
    if worst_ns > uncertainty_ns:
        raise NotComparable(
            f"by the ledger, a command was applied {worst_ns / 1e6:,.3f} ms {when}: the server's clock was set during "
            "the run, or a slot of that id is older than the run"
        )


def _meant(run: Replayed, ids: pa.ChunkedArray) -> Ints:
    """The slot of the workload that each id names; -1 for those of others."""
    prefix = f"{run.slot_prefix}-"
    ends = pc.utf8_slice_codeunits(ids, len(prefix))
    ours = pc.and_(pc.starts_with(ids, prefix), pc.match_substring_regex(ends, r"^[0-9]{1,18}$"))
    numbers = pc.cast(pc.if_else(ours, ends, "-1"), pa.int64()).to_numpy()
    known = run.workload.slot_numbers
    order = np.argsort(known, kind="stable")
    place = np.minimum(np.searchsorted(known, numbers, sorter=order), len(known) - 1)
    found: Ints = np.where((numbers >= 0) & (known[order[place]] == numbers), order[place], -1)
    return found


def _only_of_slots(count: int, slots: npt.NDArray[np.int32], values: Ints) -> Ints:
    """The value of each slot that has just one; -1 for all others."""
    of_slots: Ints = np.full(count, -1, np.int64)
    of_slots[slots] = values
    of_slots[np.bincount(slots, minlength=count) != 1] = -1
    return of_slots

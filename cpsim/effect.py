"""The effect of commands in time: how long after its OK each was applied, where a server's ledger shows when.

The ledger has, on the server's clock, when a slot was allocated and when it was claimed or discarded. Of counters and
metadata it keeps no time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cpsim.replay.journal import Outcome
from cpsim.scenario.workload import KIND_CODES

if TYPE_CHECKING:
    import numpy.typing as npt

    from cpsim.run import Run
    from cpsim.verify.observer import Observer

    Ints = npt.NDArray[np.int64]

LOOKS: Final = 9
"""At the server's clock: the quickest says most exactly what it shows."""
SHOWN: Final = (
    ("allocated_us", ("allocated", "claimed", "discarded", "expired"), ("alloc",)),
    ("settled_us", ("claimed", "discarded"), ("claim", "discard")),
)
"""A column of the ledger, the states in which it is meant, and the commands whose time it is."""


def effect_delays_ns(run: Run, observer: Observer, start_ns: int) -> Ints | None:
    """Nanoseconds from the answer to each command until it was applied, 0 if that was before; in no order.

    Args:
        run: its records, and the ledger's slots.
        observer: of the server whose ledger that is.
        start_ns: when the replay began, on the performance counter.

    Returns:
        A value for each accepted alloc, claim or discard that alone of its kind was accepted for its slot; None if no
        ledger was seen, or the server's clock does not keep real time.

    Raises:
        CannotObserve: the server's clock cannot be read.
    """
    if run.slots is None or run.target.credentials is None:
        return None
    start_us = _start_on_the_servers_clock_us(observer, start_ns)
    if start_us is None:
        return None
    accepted = run.records[run.records["outcome"] == Outcome.ACCEPTED]
    ops = accepted["op"]
    kinds, slots = run.workload.kind[ops], run.workload.slot[ops]
    mine = run.slots.filter(pc.equal(run.slots["project"], run.target.credentials[0]))
    meant = _meant(run, mine["slot"])
    delays = []
    for column, states, commands in SHOWN:
        answered_ns = _of_slots(
            len(run.workload.slot_numbers),
            slots[chosen := np.isin(kinds, [KIND_CODES[command] for command in commands])],
            accepted["answered_ns"][chosen],
        )
        there = pc.and_(pc.is_in(mine["state"], pa.array(states)), pc.is_valid(mine[column]))
        rows = np.flatnonzero(there.to_numpy(zero_copy_only=False) & (meant >= 0))
        applied_ns = (mine[column].take(pa.array(rows)).to_numpy() - start_us) * 1000
        answers_ns = answered_ns[meant[rows]]
        delays.append(np.maximum(applied_ns - answers_ns, 0)[answers_ns >= 0])
    return np.concatenate(delays)


def _start_on_the_servers_clock_us(observer: Observer, start_ns: int) -> float | None:
    """What the server's clock showed when the replay began; None if it does not run as ours does."""
    looks = []
    for _ in range(LOOKS):
        before_ns = time.perf_counter_ns()
        now_us, rate = observer.clock()
        after_ns = time.perf_counter_ns()
        if rate != 1.0:
            return None
        looks.append((after_ns - before_ns, now_us - ((before_ns + after_ns) / 2 - start_ns) / 1e3))
    return min(looks)[1]


def _meant(run: Run, ids: pa.ChunkedArray) -> Ints:
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


def _of_slots(count: int, slots: npt.NDArray[np.int32], values: Ints) -> Ints:
    """The value of each slot that has just one; -1 for all others."""
    of_slots: Ints = np.full(count, -1, np.int64)
    of_slots[slots] = values
    of_slots[np.bincount(slots, minlength=count) != 1] = -1
    return of_slots

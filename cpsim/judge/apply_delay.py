"""The apply delay: the time from a command's OK to its application, by the times in a server's ledger.

The ledger has, on the server's clock, the times of a slot's alloc and of its claim or discard; it has no times of
counters and metadata. The local clock is monotonic time, which nobody sets.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cpsim.evidence.journal import OperationOutcome
from cpsim.judge.clock_offset import NotComparable, offset
from cpsim.judge.columns import slots_of_ids
from cpsim.scenario.workload import KIND_CODES
from cpsim.system.growing import Growing

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from cpsim.evidence.evidence import Evidence
    from cpsim.judge.clock_offset import Offset

    Ints = npt.NDArray[np.int64]

TIME_COLUMNS: Final = (
    ("allocated_us", ("allocated", "claimed", "discarded", "expired"), ("alloc",)),
    ("settled_us", ("claimed", "discarded"), ("claim", "discard")),
)
"""A column of the ledger, the states in which it is set, and the commands whose time it holds."""


def apply_delays_ns(evidence: Evidence) -> tuple[Ints, Ints, float]:
    """The apply delays: the time from the answer to the application of each command.

    A command that was applied after its sending and before its answer has a delay of 0. A time before the sending is
    impossible; if there is one, no delay can be computed.

    Args:
        evidence: of a run; its readings are from before the replay to after the ledger was read. Delays are those of
            the columns that the ledger has.

    Returns:
        The delays in nanoseconds, one for each accepted alloc, claim or discard that is the only one of its kind for
        its slot, in no order; when each of these commands was answered, in nanoseconds since the replay began; and the
        largest error of all delays, in nanoseconds.

    Raises:
        NotComparable: the delays cannot be computed; the message says why.
    """
    ledger = evidence.ledger
    if ledger is None or evidence.project is None:
        raise NotComparable("the server's ledger was not read")
    if "state" not in ledger.column_names:
        raise NotComparable("the server's table of slots has no column `state`")
    if evidence.workload.sites:
        raise NotComparable("the apply delay is not measured for a scenario of several sites")
    clock = offset(evidence.readings)
    shown = [each for each in TIME_COLUMNS if each[0] in ledger.column_names]
    if not shown:
        columns = " and ".join(f"`{column}`" for column, _, _ in TIME_COLUMNS)
        raise NotComparable(f"the server's table of slots has no columns {columns}")
    delays, answers = Growing(np.int64), Growing(np.int64)
    worst_ns = np.zeros((len(shown), 2))
    for of_part in map(partial(_of_partition, clock=clock, columns=shown), evidence.partitions()):  # one in memory
        for column, times in enumerate(of_part):
            delays.add(times.delays_ns)
            answers.add(times.answered_ns)
            np.maximum(worst_ns[column], [times.early_ns, times.late_ns], out=worst_ns[column])
    for early_ns, late_ns in worst_ns.tolist():
        _check_possible(early_ns, clock.uncertainty_ns, "before it was sent")
        _check_possible(late_ns, clock.uncertainty_ns, "after the ledger was read")
    delays_ns = delays.array()
    if not len(delays_ns):
        raise NotComparable("the ledger has no times of commands of this run")
    return delays_ns, answers.array(), clock.uncertainty_ns


class _Times(NamedTuple):
    """The times in one column of the ledger.

    Attributes:
        delays_ns: of each command.
        answered_ns: when it was answered.
        early_ns, late_ns: the most by which one was applied before it was sent, and after the ledger was read.
    """

    delays_ns: Ints
    answered_ns: Ints
    early_ns: float
    late_ns: float


def _of_partition(
    evidence: Evidence, clock: Offset, columns: Sequence[tuple[str, Sequence[str], Sequence[str]]]
) -> list[_Times]:
    """The times in each of the columns, in a partition."""
    workload, ledger, start_ns = evidence.workload, evidence.ledger, evidence.start_ns
    assert ledger is not None
    assert evidence.project is not None
    records = evidence.records[evidence.records["outcome"] != OperationOutcome.REFUSED]
    kinds, slots = workload.kind[records["op"]], workload.slot[records["op"]]
    mine = ledger.filter(pc.equal(pc.utf8_lower(ledger["project"]), evidence.project.lower()))
    slot_of_row = slots_of_ids(workload, evidence.slot_prefix, mine["slot"])
    found = []
    for column, states, commands in columns:
        chosen = np.flatnonzero(np.isin(kinds, [KIND_CODES[command] for command in commands]))
        record_of = _unique_values(len(workload.slot_numbers), slots[chosen], chosen)
        there = pc.and_(pc.is_in(mine["state"], pa.array(states)), pc.is_valid(mine[column]))
        rows = np.flatnonzero(there.to_numpy(zero_copy_only=False) & (slot_of_row >= 0))
        rows = rows[record_of[slot_of_row[rows]] >= 0]
        rows = rows[records["outcome"][record_of[slot_of_row[rows]]] == OperationOutcome.ACCEPTED]
        of_rows = records[record_of[slot_of_row[rows]]]
        applied_ns = clock.to_local_ns(mine[column].take(pa.array(rows)).to_numpy())
        early_ns = of_rows["sent_ns"] + start_ns - applied_ns
        late_ns = applied_ns - evidence.readings[-1].received_ns
        delays_ns = np.maximum(applied_ns - start_ns - of_rows["answered_ns"], 0).astype(np.int64)
        most = [float(each.max(initial=0)) for each in (early_ns, late_ns)]
        found.append(_Times(delays_ns, of_rows["answered_ns"].astype(np.int64), *most))
    return found


def _check_possible(worst_ns: float, uncertainty_ns: float, when: str) -> None:
    """Raise NotComparable if a command was applied at an impossible time, by more than the uncertainty."""
    if worst_ns > uncertainty_ns:
        raise NotComparable(
            f"by the ledger, a command was applied {worst_ns / 1e6:,.3f} ms {when}: the server's clock was set during "
            "the run, or a slot of that id is older than the run"
        )


def _unique_values(count: int, slots: npt.NDArray[np.int32], values: Ints) -> Ints:
    """The value of each slot that has exactly one; -1 for all others."""
    of_slots: Ints = np.full(count, -1, np.int64)
    of_slots[slots] = values
    of_slots[np.bincount(slots, minlength=count) != 1] = -1
    return of_slots

"""A share of a workload: the slots whose number, divided by the number of shares, leaves the share's index."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cpsim.system.growing import gathered
from cpsim.system.mapped import stretches, taken_anywhere

if TYPE_CHECKING:
    from cpsim.scenario.workload import Int64, Workload


class WorkloadShare(NamedTuple):
    """A share of a workload.

    Attributes:
        workload: its operations. Slots and arguments are theirs alone where it was made as a share.
        ops: int64[operations], their numbers in the whole workload, ascending.
        operations: how many the whole workload has.
        mark: equal for all shares of equal workloads that were made in the same way, and for no others.
    """

    workload: Workload
    ops: Int64
    operations: int
    mark: str


def share_of(whole: Workload, index: int, count: int) -> WorkloadShare:
    """A share of a workload that is there."""
    ops = numbers_of_share(whole, index, count)
    return WorkloadShare(whole.of_operations(ops), ops, len(whole), whole.digest())


def numbers_of_share(whole: Workload, index: int, count: int) -> Int64:
    """The numbers of the operations of a share, in ascending order."""
    return gathered(
        (
            where.start + np.flatnonzero(taken_anywhere(whole.slot_numbers, whole.slot[where]) % count == index)
            for where in stretches(len(whole))
        ),
        np.int64,
    )

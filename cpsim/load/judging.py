"""Judging of a load: each worker judges the partitions of its share, and the master all that is of no slot."""

from __future__ import annotations

from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import gevent
import pyarrow as pa

from cpsim.evidence.evidence import by_partition
from cpsim.judge.checkers.conservation import Claims
from cpsim.judge.granted import Granted
from cpsim.judge.judge import concluded, merged, names_of
from cpsim.judge.verdict import Verdict
from cpsim.load.aside import aside
from cpsim.load.asking import WorkerLost
from cpsim.load.share import seen_to_plain, verdicts_of
from cpsim.system.mapped import give_back

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cpsim.evidence.evidence import Evidence
    from cpsim.judge.judge import Checker
    from cpsim.load.master import Share
    from cpsim.load.outcome import Shares


def by_workers(shares: Shares, evidence: Evidence, checkers: Sequence[Checker]) -> Verdict:
    """Judge a load; the verdict is the one of a single process.

    Args:
        shares: of the workers.
        evidence: of the load, without operations, and what was seen of its accounts.
        checkers: who judge. A worker sees no more of the accounts than the slots of the partition.
    """
    if not any(checker.by_partition for checker in checkers):
        return aside(lambda: concluded([], evidence.head(), checkers))
    count, names = evidence.count, names_of(checkers)
    slots_of, outstanding_of = aside(lambda: (evidence.slots_by_partition(), _outstanding_by_partition(evidence)))

    def seen_of(part: int) -> dict[str, Any] | None:
        give_back()  # what was freed since the accounts were read, or the partition before
        return seen_to_plain(evidence.seen, slots_of(part), outstanding_of(part), checkers)

    def judge_part(share: Share, part: int) -> list[Verdict]:
        seen = aside(partial(seen_of, part))
        try:
            return verdicts_of(shares.ask(share, "judge", part=part, checkers=names, seen=seen))
        except WorkerLost:
            why = f"The slots of {share.worker}: it was lost before it had judged them."
            claimed = aside(lambda: Granted.of(slots_of(part)))  # the sums of accounts can be compared all the same
            return [
                Verdict(not_verified=[why] * checker.by_partition, granted=claimed)
                if isinstance(checker, Claims)
                else Verdict(not_verified=[why] * checker.by_partition)
                for checker in checkers
            ]

    found = [Verdict() for _ in checkers]
    for first in range(0, count, len(shares.all)):
        judging = [gevent.spawn(judge_part, share, first + share.index) for share in shares.all]
        gevent.joinall(judging, raise_error=True)
        found = aside(partial(reduce, merged, [each.value for each in judging], found))
    return aside(lambda: concluded([found], evidence.head(), checkers))


def _outstanding_by_partition(evidence: Evidence) -> Callable[[int], pa.Table | None]:
    listed = None if evidence.seen is None else evidence.seen.outstanding
    table = None if listed is None else pa.table({"slot": pa.array(sorted(listed), pa.string())})
    return by_partition(table, evidence.count, None if evidence.workload.slot_ids else evidence.slot_prefix)

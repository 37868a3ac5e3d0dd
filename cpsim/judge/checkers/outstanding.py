"""The slots that are outstanding, where a server shows no more than these."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.judge.anomalies import ANOMALIES
from cpsim.judge.history import History
from cpsim.judge.slots import judge_outstanding

if TYPE_CHECKING:
    from cpsim.evidence.evidence import Evidence
    from cpsim.judge.verdict import Verdict


class Outstanding:
    """Compares the list of outstanding slots with those that may be outstanding."""

    meanings = ANOMALIES
    of_accounts = True
    by_partition = True

    def check(self, evidence: Evidence, verdict: Verdict) -> None:
        """Compare the slots of a partition."""
        seen = evidence.seen
        if seen is None or seen.outstanding is None:
            return
        judge_outstanding(History.of(evidence), set(seen.outstanding), verdict, evidence.quirks)
        verdict.rests_on.append("the list of outstanding slots")
        verdict.not_verified.append(
            "Credits, counters and how slots were settled: the server has no control API, and shows only which "
            "slots are outstanding; --accounts SOURCE would show more."
        )

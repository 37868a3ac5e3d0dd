"""Whether the accounts could be looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.judge.anomalies import ANOMALIES

if TYPE_CHECKING:
    from cpsim.evidence.evidence import Evidence
    from cpsim.judge.verdict import Verdict


class Sight:
    """Says why nothing was seen of the accounts, if nothing was."""

    meanings = ANOMALIES
    by_partition = False

    def check(self, evidence: Evidence, verdict: Verdict) -> None:
        """Say it."""
        if evidence.unseen:
            verdict.not_verified.append(f"Whether commands were applied: {evidence.unseen}.")
        elif evidence.seen is None:
            verdict.not_verified.append(
                "Whether any command was applied: a daemon shows only its acknowledgements. Name the server behind it "
                "with --server URL --project ID --secret-file FILE."
            )

"""What could be seen of the accounts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.judge.anomalies import ANOMALIES
from cpsim.judge.quirks import BREAKING

if TYPE_CHECKING:
    from cpsim.evidence.evidence import Evidence
    from cpsim.judge.verdict import Verdict


class Sight:
    """Says what was not seen of the accounts, and why."""

    meanings = ANOMALIES
    of_accounts = True
    by_partition = False

    def check(self, evidence: Evidence, verdict: Verdict) -> None:
        """Say it."""
        if evidence.unseen:
            verdict.not_verified.append(f"Whether commands were applied: {evidence.unseen}.")
        elif evidence.seen is None:
            verdict.not_verified.append(
                "Whether any command was applied: a daemon shows only its acknowledgements. Name the server behind it "
                "with --server URL --project ID --secret-file FILE, or its accounts with --project ID "
                "--accounts SOURCE."
            )
        elif (view := evidence.seen.view) is not None:
            verdict.rests_on += view.shown()
            if broken := sorted(evidence.quirks & BREAKING):
                verdict.rests_on.append(f"sums but for what {', '.join(broken)} did to them")
            verdict.not_verified += view.missing()

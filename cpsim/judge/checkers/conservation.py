"""The conservation laws on the accounts, where a server shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.evidence.evidence import links_of
from cpsim.judge.anomalies import ANOMALIES
from cpsim.judge.books import judge_books
from cpsim.judge.granted import Granted
from cpsim.judge.quirks import BREAKING

if TYPE_CHECKING:
    from cpsim.evidence.evidence import Evidence
    from cpsim.judge.verdict import Verdict


class Claims:
    """Adds up what the claims of a partition granted, for the laws on all partitions."""

    meanings = ANOMALIES
    of_accounts = True
    by_partition = True

    def check(self, evidence: Evidence, verdict: Verdict) -> None:
        """Add it to the verdict."""
        verdict.granted = Granted.of(evidence.ledger)


class Conservation:
    """Compares what claims granted with what machines earned, and with what users have."""

    meanings = ANOMALIES
    of_accounts = True
    by_partition = False

    def check(self, evidence: Evidence, verdict: Verdict) -> None:
        """Check all accounts of the server."""
        if evidence.seen is None or evidence.seen.view is None:
            return
        if verdict.corrections.unknown:
            verdict.not_verified.append(
                f"The sums of the accounts: {verdict.corrections.unknown:,} slots have too many possible histories to "
                f"say what {', '.join(sorted(evidence.quirks & BREAKING))} did to them."
            )
            return
        judge_books(
            evidence.seen.view,
            verdict,
            links_of(evidence.workload) if evidence.embedded else None,
            before=() if evidence.embedded else evidence.before,
            machines=set(evidence.workload.machines),
            read_slots=lambda: evidence.ledger,
            meanwhile=evidence.seen.meanwhile,
            projects=evidence.projects,
        )

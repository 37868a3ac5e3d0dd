"""The final state of each slot, where the ledger shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from cpsim.judge.anomalies import ANOMALIES
from cpsim.judge.history import History
from cpsim.judge.quirks import Suspects
from cpsim.judge.slots import judge_slots
from cpsim.scenario.formats.arrow import indices

if TYPE_CHECKING:
    from cpsim.evidence.evidence import Evidence
    from cpsim.judge.verdict import Verdict


class Slots:
    """Compares each slot with the states that its commands and their replies allow."""

    meanings = ANOMALIES
    of_accounts = True
    by_partition = True

    def check(self, evidence: Evidence, verdict: Verdict) -> None:
        """Compare the slots of a partition, project by project."""
        ledger, projects = evidence.ledger, evidence.workload.projects
        if evidence.view is None:
            return
        history, suspects = History.of(evidence), Suspects.of(evidence)
        if not projects:
            assert evidence.project is not None
            judge_slots(history, ledger, evidence.project, verdict, fresh=evidence.fresh, suspects=suspects)
        for project in projects:
            verdict.within = f"in project {project}, "
            # slots of the same ids in other projects are judged with those projects
            others = pa.array([other for other in projects if other != project], pa.string())
            slots = ledger and ledger.filter(pa.array(indices(ledger["project"], others) < 0))
            of_project = history.of_project(project)
            judge_slots(of_project, slots, project, verdict, fresh=evidence.fresh, suspects=suspects)
        verdict.within = ""

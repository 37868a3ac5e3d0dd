"""What `--dry-run` lists of the clauses about the middle, for which nobody is there."""

import pytest

from cpdaemon.endpoint import TcpEndpoint
from cpsim.conformance.clause import Need, catalogue
from cpsim.conformance.suite import examine
from cpsim.conformance.target import Target

MIDDLE = [id for id, clause in catalogue().items() if Need.BEHIND in clause.needs]


@pytest.mark.thorough
def test_each_clause_about_the_middle_is_planned_and_lists_a_few_commands():
    target = Target(
        daemon=TcpEndpoint("127.0.0.1", 1),
        behind=TcpEndpoint("127.0.0.1", 2),
        credentials=("p", "s"),
        restart_command="restart {signal}",
        failed_command="failed",
    )
    outcome = examine(target, MIDDLE, rehearse=True)
    assert {finding.clause.id: finding.result for finding in outcome.findings} == dict.fromkeys(MIDDLE, "planned")
    lines = {finding.clause.id: len(finding.transcript) for finding in outcome.findings}
    assert all(0 < number < 100 for number in lines.values()), lines

"""What is read of a workload while it is sent follows one another, whatever is between two operations."""

import numpy as np
import pytest

from cpdaemon.endpoint import UnixEndpoint
from cpsim.config.catalog import find_scenario
from cpsim.replay.assignment import AT_ONCE, Assignment
from cpsim.replay.in_order import in_order
from cpsim.scenario import load_workload
from cpsim.scenario.workload import KIND_NAMES


@pytest.mark.parametrize("scenario", ["misbehaviour", "two-projects"])
def test_arguments_are_in_the_order_of_the_operations(in_files, scenario):
    workload = load_workload(find_scenario(scenario), 3, ("arrivals.jobs=80",))
    in_files(7)
    ordered, numbers = in_order(workload)
    assert list(ordered.calls(0, len(workload), "x")) == list(workload.calls(0, len(workload), "x"))
    assert numbers.tolist() == workload.slot_numbers[workload.slot].tolist()
    for code, kind in enumerate(KIND_NAMES):
        rows = ordered.row[ordered.kind == code]
        assert rows.tolist() == list(range(len(rows))), kind
        assert {len(column.values) for column in ordered.arguments[kind].columns.values()} <= {len(rows)}


def test_what_every_operation_has_alike_still_takes_no_memory():
    workload = load_workload(find_scenario("challenge"), 3, ("arrivals.jobs=80",))
    given = in_order(workload)[0].arguments["alloc"]["min"].values
    assert (len(given), given.strides) == (80, (0,))


def test_the_first_operations_are_rendered_before_they_are_asked_for():
    """So that no sender begins late, however long it takes to put its share in order."""
    workload = load_workload(find_scenario("challenge"), 3, ("arrivals.jobs=800",))
    assignment = Assignment(workload, np.arange(len(workload)), None, "x", UnixEndpoint("cp.sock"), None, 4, 1.0)
    begun = []
    upcoming = assignment.operations(begun.append)
    assert begun == [AT_ONCE]
    assert [op for op, *_ in upcoming] == list(range(len(workload)))
    assert begun[-1] == len(workload)

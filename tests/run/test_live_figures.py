"""`cpsim run --metrics`: the figures of a replay while it lasts, as Prometheus' own parser reads them."""

import os
import socket
import threading
from collections import Counter
from contextlib import closing

import numpy as np
import pytest
from ports import free_port
from scraping import replayed, scrape

from cpsim.config.catalog import find_scenario
from cpsim.evidence.journal import RECORD, RECORD_TYPE, Journal, OperationOutcome
from cpsim.fake import Fake
from cpsim.run.live_figures import Counted, LiveFigures
from cpsim.scenario import load_workload
from cpsim.scenario.workload import KIND_NAMES

SMALL = "arrivals.jobs=20"
FIRST = 9
"""Operations before the one that waits."""


@pytest.mark.parametrize("options", [[], pytest.param(["--processes", "2"], marks=pytest.mark.thorough)])
def test_a_run_can_be_watched_while_it_lasts(here, cpsim, wait_for, options):
    """The server holds an operation back until somebody has seen those before it."""
    port, seen = free_port(), []

    def watch(fake):
        try:
            seen.append(wait_for(lambda: found if replayed(found := scrape(port)) == FIRST else None))
        finally:
            fake.faults.clear()

    with Fake({"demo": "demo"}, unix=here / "cp.sock", faults=[f"daemon.hang:nth={FIRST + 1},count=1000"]) as fake:
        watching = threading.Thread(target=watch, args=(fake,))
        watching.start()
        where = ["--target", "./cp.sock", "--in-flight", 1 + bool(options), "--timeout", 300]
        _, out, err = cpsim("run", "smoke", "--set", SMALL, *where, *options, "--metrics", port, "--output", "run")
        watching.join()
    workload = load_workload(find_scenario("smoke"), None, [SMALL])
    (found,) = seen
    kinds = Counter(KIND_NAMES[kind] for kind in workload.kind[:FIRST])
    if not options:
        assert {labels["kind"]: value for labels, value in found["cpsim_replay_operations_total"]} == kinds
    assert {labels["outcome"] for labels, _ in found["cpsim_replay_operations_total"]} == {"accepted"}
    assert found["cpsim_replay_planned_operations"] == [({}, len(workload))]
    assert found["cpsim_replay_service_time_seconds_count"] == [({}, FIRST)]
    assert found["cpsim_replay_service_time_seconds_sum"][0][1] > 0
    assert "cpsim_build_info" in found
    assert f"cpsim: metrics at http://127.0.0.1:{port}/metrics\n" in err
    assert "--metrics" not in out
    with socket.socket() as nobody:
        assert nobody.connect_ex(("127.0.0.1", port))


def test_an_address_that_is_taken_is_an_error_before_anything_is_sent(here, cpsim):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        status, _, err = cpsim("run", "smoke", "--metrics", address, "--output", "run")
    assert status == 2
    assert err.startswith(f"cpsim: cannot listen at {address}: Address already in use")
    assert not (here / "run").exists()


def totals(figures):
    (_, planned, operations, service) = (family.samples for family in figures.families())
    counts, sum_s = service[0][1]
    return planned[0][1], {(each["kind"], each["outcome"]): count for each, count in operations}, counts[-1], sum_s


def test_several_journals_add_up_and_stay_counted():
    workload = load_workload(find_scenario("smoke"), None, [SMALL])
    first, second = workload.of_operations(np.arange(3)), workload.of_operations(np.arange(3, 5))
    names = [KIND_NAMES[kind] for kind in workload.kind[:5]]
    expected = Counter((name, "accepted") for name in names[:3]) + Counter({(names[4], "unknown"): 1})
    figures = LiveFigures()
    with closing(Journal()) as one, closing(Journal()) as two:
        with figures.following([(one, first), (two, second)]):
            for op in range(3):
                one.record(op, OperationOutcome.ACCEPTED, "", 1_000_000_000, 1_500_000_000)
            two.record(1, OperationOutcome.UNKNOWN, "no answer", 0, 60_000_000_000)
            assert totals(figures) == (5, expected, 3, pytest.approx(1.5))
            assert totals(figures) == (5, expected, 3, pytest.approx(1.5))  # nothing twice
            one.record(0, OperationOutcome.REFUSED, "", 0, 1)
        expected[names[0], "refused"] = 1
        assert totals(figures) == (5, expected, 4, pytest.approx(1.5))
    records = np.array([(1, OperationOutcome.ACCEPTED, 0, 0, 0)], RECORD_TYPE)
    figures.plan(2)
    figures.add(Counted.of(second.kind, records))
    expected[names[4], "accepted"] += 1
    assert totals(figures)[:3] == (7, expected, 5)


def test_a_record_that_is_half_written_counts_when_it_is_whole():
    workload = load_workload(find_scenario("smoke"), None, [SMALL])
    record = RECORD.pack(0, OperationOutcome.ACCEPTED, 0, 0, 1)

    figures, journal = LiveFigures(), Journal()
    with closing(journal), figures.following([(journal, workload)]):
        os.write(journal.fileno(), record + record[:5])
        assert totals(figures)[2] == 1
        os.write(journal.fileno(), record[5:])
        assert totals(figures)[2] == 2

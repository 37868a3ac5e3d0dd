"""The search for a capacity, at targets whose capacity is known, by a clock that nothing but the replay moves."""

from itertools import count

import pytest

from cpdaemon.endpoint import UnixEndpoint
from cpsim.config.catalog import find_scenario
from cpsim.replay.wires.wire import ACCEPTED, BacklogFull
from cpsim.run import capacity
from cpsim.run.capacity import Capacity, SearchRequest, find
from cpsim.run.drivers import Wiring
from cpsim.run.plan import ReplayTarget
from cpsim.scenario import load_workload
from cpsim.testing import ManualClock

SERVICE_S = 0.01
CAPACITY = 1 / SERVICE_S
LOOK_NS = 10_000
"""What a look without patience takes."""


class OneByOne:
    """A wire to a daemon that takes one command at a time, each for `service_s`, and keeps `backlog` waiting."""

    def __init__(self, clock, service_s, backlog):
        self.clock, self.service_ns, self.backlog = clock, round(service_s * 1e9), backlog
        self.answers_ns = {}
        self.dropped = 0
        self.free_ns = 0
        self.numbers = count(3)

    def send(self, _):
        now_ns = self.clock.monotonic_ns()
        if len(self.answers_ns) > self.backlog:
            raise BacklogFull("backlog full")
        fd = next(self.numbers)
        self.free_ns = self.answers_ns[fd] = max(self.free_ns, now_ns) + self.service_ns
        return fd

    def poll(self, patience_s):
        now_ns = self.clock.monotonic_ns()
        first_ns = min(self.answers_ns.values(), default=now_ns + 10**12)
        until_ns = max(now_ns, min(first_ns, now_ns + (round(patience_s * 1e9) or LOOK_NS)))
        self.clock.advance((until_ns - now_ns) / 1e9)
        return [fd for fd, at_ns in self.answers_ns.items() if at_ns <= self.clock.monotonic_ns()]

    def receive(self, fd):
        del self.answers_ns[fd]
        return ACCEPTED

    def abandon(self, fd):
        del self.answers_ns[fd]
        return False

    def close(self):
        """Nothing is open."""


@pytest.fixture(scope="module")
def smoke():
    return load_workload(find_scenario("smoke"))


def searched(workload, service_s=SERVICE_S, backlog=1024, on_progress=lambda _: None):
    """What a search with steps of half a second finds; on_progress(clock) is called at each progress."""
    found, clock = Capacity(150.0), ManualClock()
    request = SearchRequest(workload, ReplayTarget(UnixEndpoint("./d.sock")), 150.0, 0.5, 5.0, 1, None)
    find(
        request,
        found,
        on_stage=lambda _: None,
        on_progress=lambda *_: on_progress(clock),
        wiring=Wiring(clock, lambda *_, **__: OneByOne(clock, service_s, backlog)),
    )
    return found


def test_the_capacity_of_a_slow_target_is_found(smoke):
    found = searched(smoke)
    assert found.ended is None
    # in the 1.5 s of a step, a tenth more than the capacity makes a queue that takes the 150 ms of the limit
    assert CAPACITY <= found.best.offered_per_s <= 1.12 * CAPACITY
    assert found.steps[0].failed_by == "target"
    assert found.border.offered_per_s <= capacity.PRECISION * found.best.offered_per_s
    for step in found.steps:
        assert step.achieved_per_s <= 1.001 * min(step.offered_per_s, CAPACITY)
        assert step.sender_late_p99_ms <= 2 * LOOK_NS / 1e6
    assert searched(smoke).document() == found.document()


def test_a_full_queue_of_connections_is_named(smoke):
    found = searched(smoke, backlog=1)
    assert 0.9 * CAPACITY <= found.best.offered_per_s <= 1.12 * CAPACITY
    assert found.steps[0].failed_by == "backlog"


def test_a_generator_without_time_is_not_taken_for_a_slow_target(smoke, monkeypatch):
    monkeypatch.setattr(capacity, "MOST_STEPS", 2)
    found = searched(smoke, service_s=0.001, on_progress=lambda clock: clock.advance(0.2))
    assert found.best is None
    assert {step.failed_by for step in found.steps} == {"generator"}
    assert all(step.summary.service.percentiles_ms()["p50"] < 50 for step in found.steps)

"""What is counted of the last fifteen minutes, whether or not somebody looks."""

import re
import threading

import pytest

from cpdaemon import Client
from cpdaemon.commands import Alloc, Claim, Counters
from cpdaemon.endpoint import parse_endpoint
from cpsim.fake import Fake
from cpsim.metrics.apply_delays import ApplyDelays, Delays
from cpsim.server.dashboard.watch import SAMPLES_KEPT, STEP_S, Watch
from cpsim.server.service import AccountServer
from cpsim.testing import ManualClock

from .conftest import shown

START_US = 1_000_000_000_000_000
START_S = START_US // 1_000_000


class Daemon:
    """A daemon that is where the test says."""

    project_id = "p"
    addresses = {"unix": "/somewhere"}  # noqa: RUF012
    taken = delivered = 0

    def __init__(self, clock):
        self.delays = ApplyDelays(lambda: (self.taken, self.delivered), clock.monotonic)

    @property
    def pending(self):
        return self.taken - self.delivered

    def is_at(self, taken, delivered):
        self.taken, self.delivered = taken, delivered
        self.delays.note()


@pytest.fixture
def by_hand():
    """(watch, daemon, accounts, clock)"""
    clock = ManualClock(START_US)
    accounts, daemon = AccountServer({"p": "s"}), Daemon(clock)
    return Watch(accounts, lambda: [daemon], clock), daemon, accounts, clock


def alloc(accounts, *slots):
    accounts.apply("p", [("alloc", {"slot": slot}) for slot in slots])


def pass_seconds(watch, clock, seconds):
    for _ in range(seconds):
        clock.advance(1)
        watch.sample()


def test_before_a_second_has_passed_nothing_is_known(by_hand):
    watch, _, accounts, _ = by_hand
    alloc(accounts, "a", "b")
    watch.sample()
    assert watch.rates is None
    assert watch.intervals() == []


def test_a_rate_is_that_of_the_last_five_samples(by_hand):
    watch, _, accounts, clock = by_hand
    alloc(accounts, "a", "b", "a")
    accounts.apply("p", [("claim", {"slot": "a", "machine": "m"})])
    pass_seconds(watch, clock, 1)
    assert (watch.rates["alloc"], watch.rates["claim"], watch.rates["meta"]) == (3, 1, 0)
    alloc(accounts, "c")
    clock.advance(3)
    watch.sample()
    assert (watch.rates["alloc"], watch.rates["claim"]) == (1, 0.25)
    pass_seconds(watch, clock, 5)
    assert watch.rates["alloc"] == 0


def test_whole_intervals_have_rates_refusals_the_longest_queue_and_delays(by_hand):
    watch, daemon, accounts, clock = by_hand
    alloc(accounts, "a", "b", "b")
    daemon.is_at(7, 0)
    pass_seconds(watch, clock, 2)
    daemon.is_at(7, 4)
    pass_seconds(watch, clock, 2)
    daemon.is_at(7, 7)
    pass_seconds(watch, clock, 2)
    (interval,) = watch.intervals()
    assert interval.begin_s == START_S
    assert interval.rates == (3 / STEP_S, 0, 0, 0, 0)
    assert (interval.refused, interval.pending) == (1 / STEP_S, 7)
    assert interval.delays == Delays(7, 4 * 2 + 3 * 4, 4)
    pass_seconds(watch, clock, STEP_S)
    assert [each.rates[0] for each in watch.intervals()] == [3 / STEP_S, 0]
    assert [each.pending for each in watch.intervals()] == [7, 0]
    assert watch.intervals()[1].delays.mean_s is None


def test_an_interval_in_which_nothing_was_read_is_unknown(by_hand):
    watch, _, accounts, clock = by_hand
    pass_seconds(watch, clock, STEP_S)
    alloc(accounts, *map(str, range(60)))
    clock.advance(6 * STEP_S)
    watch.sample()
    pass_seconds(watch, clock, STEP_S)
    known = [(place, each.rates[0]) for place, each in enumerate(watch.intervals()) if each is not None]
    assert known[0] == (0, 0)
    assert known[1] == (4, 60 / (6 * STEP_S))
    assert len(known) < len(watch.intervals())


def test_what_is_kept_is_fifteen_minutes(by_hand):
    watch, _, _, clock = by_hand
    pass_seconds(watch, clock, SAMPLES_KEPT + 60)
    intervals = watch.intervals()
    assert len(intervals) == 900 // STEP_S
    assert intervals[0].begin_s == START_S + 60


class SetClock(ManualClock):
    """A clock whose wall time an administrator sets back."""

    back_us = 0

    def now_us(self):
        return super().now_us() - self.back_us


def test_the_clock_of_the_machine_may_be_set_back():
    clock = SetClock(START_US)
    watch = Watch(AccountServer({"p": "s"}), list, clock)
    pass_seconds(watch, clock, STEP_S)
    clock.back_us = 3_600_000_000
    pass_seconds(watch, clock, 2 * STEP_S)
    begins = [each.begin_s for each in watch.intervals()]
    assert begins == [START_S + STEP_S * place for place in range(len(begins))]


def test_a_daemon_has_the_delays_of_its_last_minute(by_hand):
    watch, daemon, _, clock = by_hand
    daemon.is_at(2, 0)
    pass_seconds(watch, clock, 1)
    (delivery,) = watch.deliveries(10)
    assert (delivery.pending, delivery.delay_s, delivery.longest_s, delivery.oldest_s) == (2, None, None, 1)
    daemon.is_at(2, 1)
    clock.advance(2)
    daemon.is_at(2, 2)
    watch.sample()
    (delivery,) = watch.deliveries(10)
    assert (delivery.pending, delivery.delay_s, delivery.longest_s, delivery.oldest_s) == (0, 2, 3, 0)
    pass_seconds(watch, clock, 60)
    assert watch.deliveries(10)[0].delay_s is None
    assert watch.deliveries(0) == []


def test_the_delays_of_dropped_commands_are_not_counted(by_hand):
    watch, daemon, _, clock = by_hand
    daemon.is_at(1, 0)
    clock.advance(5)
    with daemon.delays.forgetting():
        daemon.is_at(1, 1)
    pass_seconds(watch, clock, 1)
    assert watch.deliveries(1)[0].delay_s is None


def test_it_reads_once_a_second_until_it_is_closed(by_hand, wait_for):
    watch, _, accounts, clock = by_hand
    watch.start()
    alloc(accounts, "a")

    def pass_a_second():
        clock.advance(1)
        return watch.rates

    wait_for(pass_a_second)
    watch.close()
    watch.check()
    assert "cpsim-watch" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("store", [False, True])
def test_a_fake_is_followed_though_nobody_looks(start, tmp_path, store, wait_for):
    clock = ManualClock(START_US)
    visitor = start(store=tmp_path / "ledger.db" if store else None, clock=clock)
    fake = visitor.fake
    client = Client(parse_endpoint(fake.addresses["unix"]))
    client.send_many([Alloc("a"), Counters("a", {"n": 1}), Claim("a", "m"), Claim("never", "m")])

    def delivered():
        clock.advance(0.05)
        return not fake.pending

    wait_for(delivered)
    time = r" \S+ \S+\+00:00"

    def is_shown():
        clock.advance(1)
        text = shown(visitor.text())
        refusal = re.match(rf"({time} [\d.]+)*{time} 0\.\d*[1-9]", text.partition("time, UTC refused")[2])
        return refusal and re.search(r"physics unix \S+ 0 [\d.,]+ m?s [\d.,]+ m?s", text)

    wait_for(is_shown)


def test_without_a_page_there_is_no_thread():
    with Fake({"physics": "s"}):
        assert "cpsim-watch" not in {thread.name for thread in threading.enumerate()}

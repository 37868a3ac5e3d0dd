"""What is counted while somebody looks, and that nothing is while nobody does."""

import threading

import pytest

from cpdaemon import Client
from cpdaemon.commands import Alloc, Claim, Counters
from cpdaemon.endpoint import parse_endpoint
from cpsim.server.dashboard import watch as watching
from cpsim.server.dashboard.watch import Watch
from cpsim.server.service import AccountServer
from cpsim.testing import ManualClock


class Daemon:
    """A daemon that is where the test says."""

    project_id = "p"
    addresses = {"unix": "/somewhere"}  # noqa: RUF012
    progress = (0, 0)


@pytest.fixture
def by_hand():
    """(watch, daemon, accounts, clock)"""
    accounts, daemon, clock = AccountServer({"p": "s"}), Daemon(), ManualClock()
    watch = Watch(accounts, lambda: [daemon], clock)
    yield watch, daemon, accounts, clock
    watch.close()


def alloc(accounts, *slots):
    accounts.apply("p", [("alloc", {"slot": slot}) for slot in slots])


def test_nothing_is_counted_until_somebody_looks(by_hand):
    watch, _, accounts, _ = by_hand
    assert accounts.on_applied is None
    alloc(accounts, "a", "b")
    watch.look()
    assert accounts.on_applied is not None
    assert watch.rates is None


def test_commands_are_counted_by_kind_and_second(by_hand, wait_for):
    watch, _, accounts, clock = by_hand
    watch.look()
    alloc(accounts, "a", "b", "a")
    accounts.apply("p", [("claim", {"slot": "a", "machine": "m"})])
    clock.advance(1)
    wait_for(lambda: watch.seconds)
    alloc(accounts, "c")
    clock.advance(2)
    wait_for(lambda: len(watch.seconds) == 2)
    assert [(each["alloc"], each["claim"]) for each in watch.seconds] == [(3, 1), (0, 0)]
    assert watch.rates["alloc"] == 1.5
    assert watch.rates["claim"] == 0.5


def test_a_look_ends_and_the_next_begins_anew(by_hand, wait_for):
    watch, _, accounts, clock = by_hand
    watch.look()
    alloc(accounts, "a")
    clock.advance(1)
    wait_for(lambda: watch.seconds)
    clock.advance(watching.LOOK_S + 1)
    wait_for(lambda: accounts.on_applied is None)
    watch.look()
    assert watch.seconds == []
    assert accounts.on_applied is not None


def test_the_delay_is_that_of_what_was_acknowledged_meanwhile(by_hand, wait_for):
    watch, daemon, _, clock = by_hand
    daemon.progress = (5, 0)
    watch.look()
    (delivery,) = watch.deliveries(10)
    assert (delivery.pending, delivery.delay_s, delivery.oldest_s) == (5, None, None)

    def marked():
        return watch.deliveries(10)[0].oldest_s is not None

    wait_for(lambda: watch._marks)  # it has seen where the daemon was
    daemon.progress = (7, 0)
    wait_for(marked)
    clock.advance(0.25)
    assert watch.deliveries(10)[0].oldest_s == 0.25
    daemon.progress = (7, 6)
    assert watch.deliveries(10)[0].pending == 1
    assert marked()
    daemon.progress = (7, 7)
    wait_for(lambda: not marked())
    (delivery,) = watch.deliveries(10)
    assert (delivery.pending, delivery.delay_s, delivery.longest_s) == (0, 0.25, 0.25)


def test_a_daemon_whose_commands_were_dropped_has_no_delays(by_hand, wait_for):
    watch, daemon, _, clock = by_hand
    watch.look()
    wait_for(lambda: watch._marks)
    daemon.progress = (1, 0)
    wait_for(lambda: watch.deliveries(1)[0].oldest_s is not None)
    clock.advance(5)
    watch.forget(daemon)
    assert watch.deliveries(1)[0].oldest_s is None
    daemon.progress = (1, 1)
    wait_for(lambda: watch._marks)
    assert watch.deliveries(1)[0].delay_s is None


def test_delays_older_than_a_minute_are_forgotten(by_hand, wait_for):
    watch, daemon, _, clock = by_hand
    watch.look()
    wait_for(lambda: watch._marks)
    daemon.progress = (1, 1)
    wait_for(lambda: watch.deliveries(1)[0].delay_s is not None)
    for _ in range(8):
        clock.advance(watching.LOOK_S - 1)
        watch.look()
    wait_for(lambda: watch.deliveries(1)[0].delay_s is None)


def test_closing_ends_it(by_hand):
    watch, _, accounts, _ = by_hand
    watch.look()
    watch.close()
    assert accounts.on_applied is None
    watch.look()
    assert accounts.on_applied is None
    assert "cpsim-watch" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("store", [False, True])
def test_a_daemon_of_a_fake_is_followed_to_the_effect(start, tmp_path, store, wait_for):
    visitor = start(store=tmp_path / "ledger.db" if store else None)
    visitor.text()
    watch, fake = visitor.fake._watch, visitor.fake
    wait_for(lambda: watch._marks)
    client = Client(parse_endpoint(fake.addresses["unix"]))
    with fake.faults.during("server.status=503:slot=a"):
        client.send_many([Alloc("a"), Counters("a", {"n": 1}), Claim("a", "m")])
        wait_for(lambda: (watch.deliveries(1)[0].oldest_s or 0) > 0.02)
    fake.wait_until_idle(100)
    wait_for(lambda: watch.deliveries(1)[0].delay_s is not None)
    (delivery,) = watch.deliveries(1)
    assert (delivery.project, delivery.pending) == ("physics", 0)
    assert delivery.longest_s > 0.02
    taken, delivered = fake.daemons[0].progress
    assert taken == delivered
    assert visitor.text().count("under 10 ms") == 0


def test_a_fake_that_nobody_looks_at_counts_nothing(start):
    visitor = start()
    visitor.text("slots")
    assert visitor.fake.accounts.on_applied is None
    visitor.text()
    assert visitor.fake.accounts.on_applied is not None

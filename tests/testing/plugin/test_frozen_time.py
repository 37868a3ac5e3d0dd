"""Beside a test that freezes time for its own code, or travels in it."""

import asyncio
import datetime as dt
import socket
import threading

import pytest
import time_machine
from freezegun import freeze_time

from cpdaemon import Client, ReplyLost
from cpsim.protocol.slots import State
from cpsim.testing import AsyncCreditPiggy, CreditPiggy, CreditPiggyServer, NotInTime

WAYS = {
    "freezegun": lambda: freeze_time("1999-12-31 23:59:59"),
    "freezegun, ticking": lambda: freeze_time("2051-05-05 05:05:05", tick=True),
    "freezegun, a step at each look": lambda: freeze_time("1999-12-31 23:59:59", auto_tick_seconds=3600),
    "time-machine": lambda: time_machine.travel("1999-12-31 23:59:59+00:00"),
    "time-machine, frozen": lambda: time_machine.travel("2051-05-05 05:05:05+00:00", tick=False),
}
NAMES = ("unix", "tcp", "url")


@pytest.fixture(params=WAYS)
def elsewhen(request):
    """A context in which the calling code sees another time."""
    return WAYS[request.param]()


@pytest.fixture
def client_of(request):
    """Makes a client of an address of a CreditPiggy, by its name."""

    def client_of(creditpiggy, name, timeout_s=60.0):
        credentials = creditpiggy.credentials if name == "url" else None
        client = Client(getattr(creditpiggy, name), credentials=credentials, timeout_s=timeout_s)
        request.addfinalizer(client.close)
        return client

    return client_of


def run_job(client, job):
    client.alloc(job, credits=5)
    client.counters(job, events=1000)
    client.claim(job, "worker-7")


def check(creditpiggy, *jobs):
    """What holds after `run_job`, whatever the time of the test's own code is."""
    creditpiggy.wait_until_idle(60)
    creditpiggy.assert_settled_once(*jobs)
    for job in jobs:
        creditpiggy.assert_claimed(job, machine="worker-7", credits=5, counters={"events": 1000})
    creditpiggy.assert_never_blocked(longer_than_s=60)


def test_around_the_whole_life_of_a_creditpiggy(elsewhen, client_of):
    with elsewhen, CreditPiggy() as creditpiggy:
        assert dt.datetime.now(dt.UTC).year in {1999, 2000, 2051}
        for name in NAMES:
            run_job(client_of(creditpiggy, name), name)
        check(creditpiggy, *NAMES)


def test_around_one_call(creditpiggy, elsewhen, client_of):
    clients = {name: client_of(creditpiggy, name) for name in NAMES}
    for name, client in clients.items():
        client.alloc(name, credits=5)
        client.counters(name, events=1000)
        with elsewhen:
            client.claim(name, "worker-7")
    check(creditpiggy, *NAMES)


def test_the_fakes_own_time_goes_on(creditpiggy, elsewhen, client_of):
    client = client_of(creditpiggy, "unix")
    before_us = creditpiggy.clock.now_us()
    with elsewhen:
        client.alloc("job-1")
        within_us = creditpiggy.clock.now_us()
        creditpiggy.wait_until_idle(60)
    client.alloc("job-2")
    first, second = creditpiggy.slots.values()
    assert before_us < first.allocated_us < second.allocated_us
    assert before_us < within_us < second.allocated_us < creditpiggy.clock.now_us()


def test_slots_expire_when_the_fakes_time_has_come(creditpiggy, elsewhen, client_of):
    with elsewhen:
        client_of(creditpiggy, "unix").alloc("job-1")
        creditpiggy.assert_outstanding("job-1")
        creditpiggy.clock.advance(hours=25)
        creditpiggy.assert_expired("job-1")


def test_a_frame_without_an_end_is_applied(creditpiggy, elsewhen):
    with elsewhen, socket.socket(socket.AF_UNIX) as sock:
        sock.connect(creditpiggy.unix)
        sock.sendall(b"alloc,slot=job-1,credits=5")
        assert sock.recv(2) == b"OK"
        assert creditpiggy.wait_for_alloc("job-1", timeout_s=60).state is State.ALLOCATED


def test_a_wait_ends_when_it_has_happened(creditpiggy, elsewhen, client_of):
    client = client_of(creditpiggy, "unix")
    with elsewhen:
        job = threading.Timer(0.02, run_job, (client, "job-1"))
        job.start()
        assert creditpiggy.wait_for_claim("job-1", timeout_s=60).granted == 5
        job.join()


def test_a_wait_is_not_endless(creditpiggy, elsewhen, client_of):
    with elsewhen:
        client_of(creditpiggy, "unix").alloc("job-1")
        creditpiggy.wait_until_idle(60)
        with pytest.raises(NotInTime, match="slot 'job-1' is allocated, and not claimed"):
            creditpiggy.wait_for_claim("job-1", timeout_s=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_a_client_does_not_wait_for_ever(elsewhen, client_of, name):
    with CreditPiggy(allow_unfired=True) as creditpiggy:  # a busy machine may leave no time to send
        client = client_of(creditpiggy, name, timeout_s=0.02)
        with elsewhen, creditpiggy.faults.hang(), pytest.raises(TimeoutError):
            client.alloc("job-1")


def test_what_is_delayed_comes(elsewhen, client_of):
    faults = ["late=0.02:kind=claim"]
    with elsewhen, CreditPiggy(profile="deployed", faults=faults, flush_interval_s=0.02) as creditpiggy:
        run_job(client_of(creditpiggy, "unix"), "job-1")
        creditpiggy.wait_for_claim("job-1", timeout_s=60)
        check(creditpiggy, "job-1")


def test_a_fault_comes_and_goes(creditpiggy, elsewhen, client_of):
    client = client_of(creditpiggy, "unix")
    with elsewhen:
        with creditpiggy.faults.down():
            client.alloc("job-1", credits=5)
            assert creditpiggy.pending == 1
        client.claim("job-1", "worker-7")
        creditpiggy.wait_until_idle(60)
        creditpiggy.assert_claimed("job-1", machine="worker-7", credits=5)


def test_a_fault_ends_when_its_time_is_over(creditpiggy, elsewhen, client_of):
    client = client_of(creditpiggy, "unix")
    with creditpiggy.faults.lose_reply(until_s=600), elsewhen, pytest.raises(ReplyLost):
        client.alloc("job-1")
    creditpiggy.assert_outstanding("job-1")


def test_a_replay_in_the_background(creditpiggy, elsewhen, client_of):
    with elsewhen, creditpiggy.replay("smoke", rate=5000) as replay:
        run_job(client_of(creditpiggy, "unix"), "job-1")
        progress = replay.wait(timeout_s=60)
    assert sum(progress[1:]) == progress.accepted == len(replay.workload)
    check(creditpiggy, "job-1")


def test_in_an_event_loop(elsewhen, client_of):
    async def test():
        async with AsyncCreditPiggy() as creditpiggy:
            job = threading.Timer(0.02, run_job, (client_of(creditpiggy, "unix"), "job-1"))
            job.start()
            assert (await creditpiggy.wait_for_claim("job-1", timeout_s=60)).granted == 5
            job.join()
            await creditpiggy.wait_until_idle(60)
            creditpiggy.assert_claimed("job-1", machine="worker-7")
            with pytest.raises(NotInTime):
                await creditpiggy.wait_for_alloc("job-2", timeout_s=0.02)

    with elsewhen:
        asyncio.run(test())


def test_a_project_at_a_server(elsewhen, client_of):
    with CreditPiggyServer() as server, elsewhen, server.project() as creditpiggy:
        run_job(client_of(creditpiggy, "unix"), "job-1")
        check(creditpiggy, "job-1")


SUITE = """
    import datetime
    import pytest
    import time_machine
    from freezegun import freeze_time
    from manager import run_job

    def check(creditpiggy, year):
        assert datetime.date.today().year == year
        run_job(creditpiggy.endpoint, "job-1", on="worker-7")
        creditpiggy.wait_for_claim("job-1", timeout_s=60)
        creditpiggy.assert_claimed("job-1", machine="worker-7", credits=5, counters={"job/events": 1000})

    @pytest.fixture
    def frozen():
        with freeze_time("1999-12-31"):
            yield

    @pytest.fixture
    def travelled():
        with time_machine.travel(datetime.datetime(2051, 5, 5), tick=False):
            yield

    def test_first_of_all(frozen, creditpiggy):  # what cpsim needs is imported in frozen time
        check(creditpiggy, 1999)

    def test_afterwards(creditpiggy):
        check(creditpiggy, datetime.date.today().year)

    def test_fixture(creditpiggy, frozen):
        check(creditpiggy, 1999)

    def test_fixture_of_a_journey(travelled, creditpiggy):
        check(creditpiggy, 2051)

    @freeze_time("1999-12-31", tick=True)
    def test_decorator(creditpiggy):
        check(creditpiggy, 1999)

    @time_machine.travel("2051-05-05")
    def test_decorator_of_a_journey(creditpiggy):
        check(creditpiggy, 2051)

    @freeze_time("1999-12-31")
    class TestClass:
        def test_method(self, creditpiggy):
            check(creditpiggy, 1999)

    def test_plugin(time_machine, creditpiggy):
        time_machine.move_to("2051-05-05", tick=False)
        check(creditpiggy, 2051)

    @pytest.mark.time_machine("2051-05-05")
    def test_marker(creditpiggy):
        check(creditpiggy, 2051)
"""


def test_each_way_to_freeze_time_for_a_test(run):
    run(SUITE, apart=True, plugins=["cpsim", "time_machine"]).assert_outcomes(passed=9)

"""Waiting: it ends when the thing happens, when it cannot any more, and in time."""

import asyncio
import threading

import pytest

from cpdaemon import Client
from cpsim.testing import AsyncCreditPiggy, CreditPiggy, NotInTime


@pytest.fixture
def slowly():
    """A flush interval that a test can see."""
    with CreditPiggy(flush_interval_s=0.1) as creditpiggy, Client(creditpiggy.endpoint) as client:
        yield creditpiggy, client


def test_it_waits_for_what_comes(slowly):
    creditpiggy, client = slowly
    client.alloc("job-1", credits=5)
    client.alloc("job-2")
    assert creditpiggy.wait_for_alloc("job-1").state == "allocated"
    client.claim("job-1", "worker-7")
    client.discard("job-2", "expired")
    assert creditpiggy.wait_for_claim("job-1").granted == 5
    assert creditpiggy.wait_for_discard("job-2").reason == "expired"
    client.alloc("job-3")
    creditpiggy.wait_until_idle()
    assert creditpiggy.pending == 0
    assert creditpiggy.wait_for_alloc("job-1").state == "claimed"


def test_it_waits_for_a_thread_that_starts_later(creditpiggy):
    def work():
        with Client(creditpiggy.endpoint) as client:
            client.alloc("job-1")
            client.claim("job-1", "worker-7")

    worker = threading.Thread(target=work)
    worker.start()
    assert creditpiggy.wait_for_claim("job-1", timeout_s=60).machine == "worker-7"
    worker.join()


def test_it_ends_in_time_with_the_history(creditpiggy, client):
    client.alloc("job-1")
    creditpiggy.wait_until_idle(60)
    with pytest.raises(NotInTime) as failure:
        creditpiggy.wait_for_claim("job-1", timeout_s=0.05)
    lines = str(failure.value).splitlines()
    assert lines[0] == "after 0.05 s, slot 'job-1' is allocated, and not claimed"
    assert lines[2].endswith("alloc,slot=job-1")
    assert isinstance(failure.value, AssertionError)
    assert isinstance(failure.value, TimeoutError)
    with pytest.raises(NotInTime, match="slot 'job-9' is unknown, and not claimed\nnothing has come for it"):
        creditpiggy.wait_for_claim("job-9", timeout_s=0.01)


def test_it_ends_at_once_when_it_is_too_late(creditpiggy, client):
    client.alloc("job-1")
    client.discard("job-1")
    creditpiggy.wait_until_idle(60)
    with pytest.raises(NotInTime, match="too late: slot 'job-1' is discarded, and not claimed"):
        creditpiggy.wait_for_claim("job-1", timeout_s=3600)


def test_why_it_is_not_idle_is_told():
    with CreditPiggy(flush_interval_s=3600) as creditpiggy:
        with Client(creditpiggy.endpoint) as client:
            client.alloc("job-1")
        with pytest.raises(NotInTime, match=r"after 0\.2 s, 1 acknowledged .* keeps them for flush_interval_s=3600"):
            creditpiggy.wait_until_idle(timeout_s=0.2)
    creditpiggy.assert_outstanding("job-1")  # what was acknowledged is passed on at the end


def test_an_event_loop_goes_on_while_it_is_waited():
    async def work(endpoint):
        for frame in (b"alloc,slot=job-1\n", b"claim,slot=job-1,machine=worker-7\n"):
            reader, writer = await asyncio.open_unix_connection(endpoint)
            writer.write(frame)
            assert await reader.read() == b"OK"
            writer.close()
            await writer.wait_closed()

    async def test():
        async with AsyncCreditPiggy() as creditpiggy:
            job = asyncio.create_task(work(creditpiggy.endpoint))
            assert (await creditpiggy.wait_for_alloc("job-1")).slot == "job-1"
            assert (await creditpiggy.wait_for_claim("job-1")).machine == "worker-7"
            await job
            await creditpiggy.wait_until_idle()
            with pytest.raises(NotInTime, match="too late: slot 'job-1' is claimed, and not discarded"):
                await creditpiggy.wait_for_discard("job-1")
            with pytest.raises(NotInTime, match=r"after 0\.01 s"):
                await creditpiggy.wait_for_claim("job-2", timeout_s=0.01)

    asyncio.run(test())

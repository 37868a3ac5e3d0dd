"""Celery, with a worker in this process, and CreditPiggy."""

import platform

import celery
import celery_credit  # noqa: F401 - its handlers hear the signals
import pytest
from celery.contrib.testing.worker import start_worker

from cpdaemon import cpapi_setup

MACHINE = platform.node()

app = celery.Celery("physics", broker="memory://", backend="cache+memory://")


@app.task(bind=True, max_retries=2)
def simulate(self, events, fails=0):
    if self.request.retries < fails:
        raise self.retry(countdown=0, exc=RuntimeError("no luck"))
    return {"events": events}


@pytest.fixture(scope="module")
def worker():
    with start_worker(app, perform_ping_check=False, pool="solo"):
        yield


@pytest.fixture
def creditpiggy(creditpiggy, worker):
    cpapi_setup(creditpiggy.endpoint)
    return creditpiggy


def test_a_task_is_credited(creditpiggy):
    task = simulate.delay(events=500)
    creditpiggy.wait_for_claim(task.id)
    counters = {"job/success": 1, "job/retries": 0, "job/events": 500}
    creditpiggy.assert_claimed(task.id, machine=MACHINE, credits=5, counters=counters)


def test_a_retried_task_is_not_credited_twice(creditpiggy):
    task = simulate.delay(events=500, fails=2)
    creditpiggy.wait_for_claim(task.id)
    creditpiggy.assert_settled_once(task.id)
    creditpiggy.assert_nothing_sent_twice()
    assert creditpiggy.machines[MACHINE].credits == 5
    assert creditpiggy.slots[task.id].counters["job/retries"] == 2


def test_a_task_that_fails_is_discarded(creditpiggy):
    task = simulate.delay(events=500, fails=3)
    creditpiggy.wait_for_discard(task.id)
    creditpiggy.assert_discarded(task.id, reason="RuntimeError")
    creditpiggy.assert_counters(task.id, {})
    assert creditpiggy.machines == {}


def test_a_task_that_comes_too_late_is_discarded(creditpiggy):
    task = simulate.apply_async([500], expires=-1)
    creditpiggy.wait_for_discard(task.id)
    creditpiggy.assert_discarded(task.id, reason="expired")


def test_many_tasks_keep_the_rules(creditpiggy):
    tasks = [simulate.delay(events=100 * number, fails=number % 4) for number in range(20)]
    for number, task in enumerate(tasks):
        (creditpiggy.wait_for_discard if number % 4 == 3 else creditpiggy.wait_for_claim)(task.id)
    creditpiggy.assert_settled_once(*(task.id for task in tasks))
    creditpiggy.assert_no_claim_before_alloc()
    creditpiggy.assert_no_slot_leaked()
    creditpiggy.assert_nothing_sent_twice()

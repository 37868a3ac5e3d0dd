"""Dask, with a cluster in this process, and CreditPiggy."""

import pytest
from dask_credit import CreditPlugin, slot_of
from distributed import Client, Event, LocalCluster


@pytest.fixture
def dask(creditpiggy):
    """A client of a cluster of two workers that credits its tasks."""
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(CreditPlugin(creditpiggy.endpoint))
        yield client


def test_a_task_is_credited(creditpiggy, dask):
    task = dask.submit(pow, 2, 10, key="simulate-1")
    assert task.result() == 1024
    slot = creditpiggy.wait_for_claim("simulate-1")
    assert slot.machine in {"worker-0", "worker-1"}
    assert slot.granted == 5


def test_a_task_that_fails_is_discarded(creditpiggy, dask):
    task = dask.submit(divmod, 1, 0, key="simulate-1")
    assert isinstance(task.exception(), ZeroDivisionError)
    creditpiggy.wait_for_discard("simulate-1")
    creditpiggy.assert_discarded("simulate-1", reason="failed")


def test_a_task_that_is_cancelled_is_discarded(creditpiggy, dask):
    done = Event("done", client=dask)
    blocked = [dask.submit(done.wait, 30, key=f"blocker-{number}") for number in range(2)]
    waiting = dask.submit(pow, 2, 10, key="simulate-1")
    creditpiggy.wait_for_alloc("simulate-1")
    waiting.cancel()
    creditpiggy.wait_for_discard("simulate-1")
    creditpiggy.assert_discarded("simulate-1", reason="cancelled")
    done.set()
    dask.gather(blocked)


def test_a_graph_keeps_the_rules(creditpiggy, dask):
    squares = dask.map(pow, range(20), [2] * 20)
    assert dask.submit(sum, squares).result() == 2470
    creditpiggy.wait_until_idle()
    assert len(creditpiggy.slots) == 21
    creditpiggy.assert_settled_once(*creditpiggy.slots)
    creditpiggy.assert_no_claim_before_alloc()
    creditpiggy.assert_no_slot_leaked()
    creditpiggy.assert_nothing_sent_twice()
    creditpiggy.assert_never_blocked(0.5)
    assert sum(machine.credits for machine in creditpiggy.machines.values()) == 105


def test_a_result_that_is_lost_is_not_credited_twice(creditpiggy, dask):
    task = dask.submit(pow, 2, 10, key="simulate-1")
    assert task.result() == 1024
    (worker,) = dask.who_has(task)["simulate-1"]
    dask.sync(dask.cluster.scheduler.remove_worker, worker, stimulus_id="the machine is gone")
    assert task.result() == 1024
    assert worker not in dask.who_has(task)["simulate-1"]
    creditpiggy.assert_settled_once("simulate-1")


@pytest.mark.parametrize(("key", "slot"), [("add-1", "add-1"), (("sum-9f", 0, 1), "sum-9f_0_1")])
def test_keys_become_slot_ids(key, slot):
    assert slot_of(key) == slot

"""Credit for Dask: a slot for each task, which goes to the worker that computes it first."""

import re

from distributed.diagnostics.plugin import SchedulerPlugin

from cpdaemon import Client

SETTLED = {"memory", "erred", "forgotten"}


def slot_of(key):
    """A task's key as a slot id, in which there can be no comma."""
    return re.sub(r"[^\w.-]+", "_", str(key)).strip("_")


class CreditPlugin(SchedulerPlugin):
    """Allocates, claims and discards as the scheduler goes along: `client.register_plugin(CreditPlugin(endpoint))`.

    Args:
        endpoint: where the CreditPiggy daemon is.
    """

    def __init__(self, endpoint):
        self.endpoint = endpoint

    def start(self, scheduler):
        self._scheduler = scheduler
        self._credit = Client(self.endpoint, timeout_s=1.0)  # the scheduler waits for it
        self._seen = set()
        self._outstanding = set()

    def update_graph(self, scheduler, *, tasks, **kwargs):
        for key in tasks:
            if key not in self._seen:
                self._seen.add(key)
                self._outstanding.add(key)
                self._credit.alloc(slot_of(key), credits=5)

    def transition(self, key, start, finish, *args, **kwargs):
        if finish not in SETTLED or key not in self._outstanding:
            return  # a result that was lost with its worker is computed again, and was credited before
        self._outstanding.remove(key)
        if finish == "memory":
            worker = self._scheduler.workers[kwargs["worker"]].name
            self._credit.claim(slot_of(key), f"worker-{worker}")
        else:
            self._credit.discard(slot_of(key), reason="failed" if finish == "erred" else "cancelled")

    async def close(self):
        self._credit.close()

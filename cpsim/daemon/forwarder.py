"""From the daemon to the server: commands are kept until the next flush, then passed on in batches."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from cpdaemon.errors import CreditPiggyError
from cpdaemon.signing import bulk_batches, bulk_body, bulk_errors, read_reply, token
from cpdaemon.transport import HttpPool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cpdaemon.endpoint import UrlEndpoint
    from cpdaemon.signing import Call

    Deliver = Callable[[Sequence[Call]], object]

MAX_PENDING: Final = 1_000_000
FIRST_RETRY_S: Final = 0.05
LAST_RETRY_S: Final = 5.0


class Forwarder:
    """Keeps commands in memory and delivers them in order, `flush_interval_s` after the first one came.

    Args:
        deliver: takes one batch; called in the forwarder's thread.
        flush_interval_s: how long the first command of a batch waits for others.
    """

    def __init__(self, deliver: Deliver, flush_interval_s: float) -> None:
        self._deliver = deliver
        self._flush_interval_s = flush_interval_s
        self._calls: list[Call] = []
        self._delivering = 0
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cpsim-forwarder", daemon=True)

    @property
    def pending(self) -> int:
        """How many commands have not been delivered."""
        with self._changed:
            return len(self._calls) + self._delivering

    @property
    def is_full(self) -> bool:
        """Whether no more commands should be put."""
        return self.pending >= MAX_PENDING

    def start(self) -> None:
        """Begin to deliver."""
        self._thread.start()

    def put(self, calls: Sequence[Call]) -> None:
        """Take commands to be delivered."""
        with self._changed:
            self._calls.extend(calls)
            self._changed.notify()

    def stop(self) -> None:
        """Deliver what is left, without waiting for the interval, and end."""
        self._stopping.set()
        with self._changed:
            self._changed.notify()
        self._thread.join()

    def _gather(self) -> None:
        """Wait for what is to go with the first command."""
        self._stopping.wait(self._flush_interval_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._calls and not self._stopping.is_set():
                    self._changed.wait()
            if self._calls:
                self._gather()
            with self._changed:
                calls, self._calls = self._calls, []
                self._delivering = len(calls)
            if not calls:
                return
            self._deliver(calls)
            self._delivering = 0


class BulkPoster:
    """Sends batches to a server's `/batch/bulk`, signed, on connections that are kept.

    Args:
        endpoint: the server's base URL.
        credentials: (project id, secret).
        timeout_s: seconds that one request may take.

    Raises:
        EndpointError: the credentials cannot be used.
    """

    def __init__(self, endpoint: UrlEndpoint, credentials: tuple[str, str], timeout_s: float) -> None:
        token(credentials, b"")
        self._credentials = credentials
        self._pool = HttpPool(endpoint, timeout_s)

    def __call__(self, calls: Sequence[Call]) -> list[str]:
        """Send one batch; returns the messages of the commands that were refused, or may have been.

        Raises:
            CreditPiggyError: the batch was not applied, or may not have been.
        """
        body = bulk_body(calls)
        reply = read_reply(*self._pool.post("/batch/bulk", token(self._credentials, body), body))
        return [str(error) for error in bulk_errors(calls, reply) if error is not None]

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()


class HttpDelivery:
    """Delivers batches to a server's `/batch/bulk`.

    A batch that certainly had no effect is sent again until it has, or until `give_up` is set; one that may
    have been applied is never sent again, but counted in `unknown`.

    Args:
        post_bulk: sends one batch; raises CreditPiggyError; returns the refused commands' messages.
        give_up: ends the retries.
    """

    def __init__(self, post_bulk: Callable[[Sequence[Call]], Sequence[str]], give_up: threading.Event) -> None:
        self._post_bulk = post_bulk
        self._give_up = give_up
        self.delivered = self.refused = self.unknown = self.undelivered = 0

    def __call__(self, calls: Sequence[Call]) -> None:
        """Deliver commands, in as many requests as keep each slot's order."""
        for batch in bulk_batches(calls):
            self._deliver(batch)

    def _deliver(self, batch: Sequence[Call]) -> None:
        retry_s = FIRST_RETRY_S
        while True:
            try:
                refusals = self._post_bulk(batch)
            except CreditPiggyError as error:
                if not error.definite:
                    self.unknown += len(batch)
                    return
                if self._give_up.wait(retry_s):
                    self.undelivered += len(batch)
                    return
                retry_s = min(2 * retry_s, LAST_RETRY_S)
            else:
                self.delivered += len(batch)
                self.refused += len(refusals)
                return

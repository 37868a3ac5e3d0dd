"""From the spool to the server: batches in order, each until its outcome is known.

What an attempt leaves behind decides what follows:

- *certainly not applied* (no connection, or turned away): the batch is made anew after a pause. If the server
  refuses a batch as a whole, it is halved, until the one command that spoils it stands alone and is set aside.
- *unknown* (the reply was lost, or says nothing): a server that knows batch ids is sent the same batch again, and
  applies it once. With any other, it is `set-aside` for a person, because credit must not double; or `resend`,
  because none must be missing. Either way nothing is sent before the server is seen to answer again.

A batch that fails again and again, while the server answers others, has a command in it that the server cannot bear.
(The other is a command for a slot that there is not: it changes nothing, and takes the server what a real one takes.)
Then the batch is given up, which a server that knows batch ids confirms, and halved like one that was refused.

A server that knows batch ids refuses one whose number comes too late, or has come with other commands, as where a spool
was put back from a copy. Nobody knows then whether its commands were applied: it is set aside.

A pause doubles from one failure to the next, up to a limit, and varies at random, so that sites do not return all
at once.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from cpdaemon.commands import KINDS
from cpdaemon.errors import BadReply, CreditPiggyError, NotSent, Refused, ReplyTimeout
from cpdaemon.signing import bulk_body, bulk_errors, read_reply, token
from cpdaemon.transport import HttpPool
from cpsim.daemon.spool import MAX_BATCH, REFUSED, SET_ASIDE, UNNAMED, DeadLetter
from cpsim.errors import CpsimError
from cpsim.system.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cpdaemon.endpoint import UrlEndpoint
    from cpdaemon.signing import Call
    from cpsim.daemon.memory import MemorySpool
    from cpsim.daemon.spool import Batch, Spool

    Outcomes = Sequence[CreditPiggyError | None]

WHEN_UNKNOWN: Final = ("set-aside", "resend")
FIRST_RETRY_S: Final = 0.1
LAST_RETRY_S: Final = 30.0
WHOLE: Final = {400, 413, 500}
"""Statuses by which a server refuses a batch because of what is in it; others come from anything else."""
ALWAYS: Final = {400, 413}
"""Those of them that come again however often it is sent."""
NOT_AGAIN: Final = 409
"""The status by which a server refuses a batch that was given up, or whose number has come before."""
UNAVAILABLE: Final = 503
TRIES: Final = 5
"""Failures in a row after which a batch is halved, if the server answers others."""
TRIES_ALONE: Final = 6
"""Likewise, after which a command that was sent alone is kept for a person."""
TIMEOUT_TRIES: Final = 3
"""As how many failures one counts that took all the time that a request may take."""
ADVICE: Final = {
    REFUSED: "",
    SET_ASIDE: ", for nobody knows whether they were applied; --when-unknown resend would send such again",
}
BATCH_HEADER: Final = "CreditPiggy-Batch"

log = logging.getLogger(__name__)


class Server(Protocol):
    """Where batches go."""

    def knows_batches(self) -> bool:
        """Whether it applies a batch once, however often it is sent under its id; raises CreditPiggyError."""

    def post(self, batch_id: str | None, calls: Sequence[Call]) -> Outcomes:
        """What became of each call; raises CreditPiggyError if they were not applied, or may not have been."""

    def give_up(self, batch_id: str | None, calls: Sequence[Call]) -> Outcomes | None:
        """What became of each call of a batch whose reply never came; None if it was not applied and never will be.

        Of a batch without an id, None says only that the server answers others. Raises CreditPiggyError if it does not.
        """


class BulkClient:
    """A server's `/batch/bulk`, on connections that are kept.

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

    def knows_batches(self) -> bool:
        """Ask with a batch of nothing, which a server of any kind accepts."""
        return self._bulk("probe", b"{}").get("batch") == "probe"

    def post(self, batch_id: str | None, calls: Sequence[Call]) -> Outcomes:
        """Send one batch; under the id of an earlier version, as that wrote it, for a server compares the bytes."""
        body = bulk_body(calls)
        if batch_id is not None and "-" not in batch_id:
            body = json.dumps(json.loads(body), ensure_ascii=False, separators=(",", ":")).encode()
        return _outcomes(calls, self._bulk(batch_id, body))

    def give_up(self, batch_id: str | None, calls: Sequence[Call]) -> Outcomes | None:
        """Have another command refused, then send a batch of nothing under the id, to be told what became of it."""
        self._bulk(None, bulk_body([("meta", {"slot": f"cpsim-{uuid.uuid4().hex}", "is": "there"})]))
        if batch_id is None:
            return None
        reply = self._bulk(batch_id, b"{}")
        if type(reply.get("applied")) is not bool:
            raise BadReply(
                f"the server does not say whether it has applied batch {batch_id}, which fails again and again"
            )
        if not reply["applied"]:
            return None
        places = [(kind, index) for kind in KINDS for index, _ in enumerate(call for call in calls if call[0] == kind)]
        errors = reply.get("errors", [])
        named = [_named(error, places) for error in errors] if isinstance(errors, list) else errors
        return _outcomes(calls, {"errors": named})

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def _bulk(self, batch_id: str | None, body: bytes) -> dict[str, object]:
        header = "" if batch_id is None else f"{BATCH_HEADER}: {batch_id}\r\n"
        return accepted(*self._pool.post("/batch/bulk", token(self._credentials, body), body, header))


def accepted(status: int, body: bytes) -> dict[str, object]:
    """A server's reply, if it says that the batch was accepted; raises CreditPiggyError."""
    if status == UNAVAILABLE:
        raise Refused("the server is unavailable", status)
    return read_reply(status, body)


def _named(error: object, places: Sequence[tuple[str, int]]) -> dict[str, object]:
    """An error of a batch that was given up, by the class and index of its command; raises BadReply."""
    position = error.get("position") if isinstance(error, dict) else None
    if type(position) is not int or position not in range(len(places)):
        raise BadReply(f"the server lists an error whose position is that of none of the {len(places)} commands")
    assert isinstance(error, dict)
    kind, index = places[position]
    return error | {"class": kind, "index": index}


def _outcomes(calls: Sequence[Call], reply: Mapping[str, object]) -> Outcomes:
    """What became of each call; raises BadReply if the reply does not say it."""
    outcomes = bulk_errors(calls, reply)
    for error in outcomes:
        if isinstance(error, BadReply) and not error.unnamed:
            raise error
    return outcomes


class Courier:
    """Delivers what a spool holds, in a thread of its own.

    Args:
        spool: where the commands are.
        server: where they go.
        flush_interval_s: how long a command waits for others, unless there is a full batch.
        when_unknown: `set-aside` or `resend`, for a server that does not know batch ids.
        longest_pause_s: the limit of the pause after a failure.
    """

    def __init__(
        self,
        spool: Spool | MemorySpool,
        server: Server,
        flush_interval_s: float,
        when_unknown: str = WHEN_UNKNOWN[0],
        longest_pause_s: float | None = None,
    ) -> None:
        self._spool = spool
        self._server = server
        self._flush_interval_s = flush_interval_s
        self._resends = when_unknown == "resend"
        self._knows_batches: bool | None = None
        self._doubt = "the daemon ended before it had the server's reply"
        self._size = MAX_BATCH
        self._longest_pause_s = LAST_RETRY_S if longest_pause_s is None else longest_pause_s
        self._retry_s = self._first_pause_s = min(FIRST_RETRY_S, self._longest_pause_s)
        self._failures = 0
        self._said: str | None = None
        self._stopping = threading.Event()
        self._hurried = 0
        self._thread = Thread(self._run, "cpsim-courier")

    def start(self) -> None:
        """Begin to deliver."""
        self._spool.complain(None)
        self._thread.start()

    def stop(self, within_s: float) -> bool:
        """Deliver what is left, as long as nothing fails and time allows; returns whether it has ended."""
        self._stopping.set()
        with self._spool.released:
            self._spool.released.notify_all()
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def check(self) -> None:
        """Raise ThreadFailed if it has ended by an error that nobody expected."""
        self._thread.check()

    @contextmanager
    def hurrying(self) -> Iterator[None]:
        """Have no command wait for others while the context lasts."""
        with self._spool.released:
            self._hurried += 1
            self._spool.released.notify_all()
        try:
            yield
        finally:
            self._hurried -= 1

    def _run(self) -> None:
        while (due := self._wait()) > self._spool.delivered_to:
            try:
                while self._spool.delivered_to < due:
                    self._attempt()
            except (CreditPiggyError, CpsimError) as error:
                self._spool.retried()
                self._complain(error)
                if self._pause(error):
                    return
            else:
                self._retry_s = self._first_pause_s
                self._complain(None)

    def _complain(self, error: Exception | None) -> None:
        """Log a failure, once for as long as it goes on, and that it is over; the spool's status says so too."""
        said, self._said = self._said, None if error is None else str(error)
        if said == self._said:
            return
        self._spool.complain(self._said)
        if error is None:
            log.info("the server takes commands again")
        else:
            log.log(logging.ERROR if isinstance(error, CpsimError) else logging.WARNING, "%s", error)

    def _wait(self) -> int:
        """Wait for a full batch, or until the first command has waited long enough; up to where to deliver then."""
        spool, stopping = self._spool, self._stopping.is_set
        with spool.released:
            spool.released.wait_for(lambda: spool.ready or stopping())
            spool.released.wait_for(lambda: spool.ready >= MAX_BATCH or self._is_pressed(), self._flush_interval_s)
            return spool.released_to

    def _is_pressed(self) -> bool:
        """Whether nothing is to wait any longer."""
        return bool(self._hurried) or self._stopping.is_set()

    def _pause(self, _: Exception) -> bool:
        """Wait before the next attempt; whether to end instead."""
        pause_s = self._retry_s * random.uniform(0.5, 1)  # noqa: S311 - nobody gains by guessing it
        self._retry_s = min(2 * self._retry_s, self._longest_pause_s)
        return self._stopping.wait(pause_s)

    def _ask(self) -> bool:
        """Ask the server whether it knows batch ids, and with that, whether it answers."""
        return self._server.knows_batches()

    def _take(self) -> Batch | None:
        """The next batch."""
        knows = bool(self._knows_batches)
        return self._spool.take(self._size, careful=not knows, named=knows)

    def _attempt(self) -> None:
        """Send one batch, once.

        Raises:
            CreditPiggyError: the server cannot be reached, or did not say what became of the batch.
            CpsimError: the spool cannot be written.
        """
        if self._knows_batches is None:
            self._knows_batches = self._ask()
        batch = self._take()
        if batch is None:
            return
        knows = self._knows_batches and batch.named
        if batch.resumed and not (knows or self._resends):
            self._fail(batch, SET_ASIDE, self._doubt)
            return
        try:
            outcomes = self._server.post(batch.id if knows else None, batch.calls)
        except CreditPiggyError as error:
            if not self._fall_back(batch, error):
                raise
        else:
            self._account(batch, outcomes)

    def _fall_back(self, batch: Batch, error: CreditPiggyError) -> bool:
        """Do what an attempt that failed asks for; False if that is to try again."""
        knew = self._knows_batches and batch.named
        self._knows_batches = None  # nothing is risked before it is seen to answer again
        if isinstance(error, Refused) and error.status in WHOLE:
            if self._is_to_blame(batch, error.status):
                self._halve(batch, REFUSED, str(error))
                return True
        elif knew and isinstance(error, Refused) and error.status == NOT_AGAIN:
            return self._was_given_up(batch, error)
        elif self._is_given_up(batch, error, batch.id if knew else None):
            return True
        if error.definite and not batch.resumed:
            self._spool.put_back()
        return False

    def _was_given_up(self, batch: Batch, error: Refused) -> bool:
        """Make a batch anew that was given up; any other that is refused so may have been applied, or was another."""
        try:
            was_given_up = self._server.give_up(batch.id, batch.calls) is None
        except CreditPiggyError as reason:
            if not isinstance(reason, Refused) or reason.status != NOT_AGAIN:
                return False  # ask again later
            was_given_up = False
        if was_given_up:
            self._spool.retried()
            self._spool.put_back()
        else:
            self._fail(batch, SET_ASIDE, str(error), ", for nobody knows whether they were applied")
        return True

    def _is_to_blame(self, batch: Batch, status: int) -> bool:
        """Whether a batch was refused as a whole because of what is in it, as far as is known by now."""
        if len(batch.calls) > 1:
            return True  # its halves will tell
        self._failures += TRIES_ALONE if status in ALWAYS else 1
        if self._failures < TRIES_ALONE:
            return False
        try:
            self._ask()
        except CreditPiggyError:
            return False  # the server refuses a batch of nothing, too
        return True

    def _is_given_up(self, batch: Batch, error: CreditPiggyError, batch_id: str | None) -> bool:
        """Count a failure; after many, send a batch no more as it is, if the server answers others."""
        if not isinstance(error, NotSent):
            self._failures += TIMEOUT_TRIES if isinstance(error, ReplyTimeout) else 1
        if not error.definite:
            self._doubt = str(error)
        if self._failures < (TRIES if len(batch.calls) > 1 else TRIES_ALONE):
            return False
        try:
            outcomes = self._server.give_up(batch_id, batch.calls)
        except CreditPiggyError as reason:  # it answers no other either: the batch is not to blame
            log.debug("batch %s is not given up: %s", batch.id, reason)
            return False
        if outcomes is not None:
            self._account(batch, outcomes)
            return True
        is_known = batch_id is not None or (error.definite and not batch.resumed)
        self._halve(batch, REFUSED if is_known else SET_ASIDE, f"{error}, again and again, while others are answered")
        return True

    def _halve(self, batch: Batch, why: str, error: str) -> None:
        """Find the command that spoils a batch: try the first half of it, or keep the one that is left for a person."""
        self._go_on()
        if len(batch.calls) == 1:
            self._fail(batch, why, error)
        else:
            log.warning("%d commands failed as a whole, and are now sent by halves: %s", len(batch.calls), error)
            self._size = len(batch.calls) // 2
            self._spool.retried()
            self._spool.put_back()

    def _go_on(self) -> None:
        """Be as patient as at first: something has come of a batch."""
        self._failures, self._retry_s = 0, self._first_pause_s

    def _account(self, batch: Batch, outcomes: Outcomes) -> None:
        """Strike out a batch whose reply has come."""
        self._go_on()
        failed = []
        doubts = [error for error in outcomes if error is not None and not error.definite]
        now_us = time.time_ns() // 1000
        for (position, command), error in zip(batch.commands, outcomes, strict=True):
            if error is not None and error.definite:
                failed.append(DeadLetter(position, now_us, REFUSED, command, str(error)))
        if doubts:
            named = {row.position for row in failed}
            position = next(position for position, _ in batch.commands if position not in named)
            anyone = f"{UNNAMED}{len(doubts)} commands up to {batch.commands[-1][1]!r})"
            failed.append(DeadLetter(position, now_us, REFUSED, anyone, str(doubts[0])))
        for row in failed:
            log.warning("refused: %s: %s", row.command, row.error)
        unnamed = min(doubts[0].unnamed, len(doubts)) if doubts and isinstance(doubts[0], BadReply) else 0
        self._spool.settle(batch, failed, unnamed)
        self._size = min(2 * self._size, MAX_BATCH)

    def _fail(self, batch: Batch, why: str, error: str, advice: str | None = None) -> None:
        """Keep a whole batch for a person to see."""
        now_us = time.time_ns() // 1000
        advice = ADVICE[why] if advice is None else advice
        log.error("%s: %d commands, listed by `cpsim daemon --failed`%s: %s", why, len(batch.calls), advice, error)
        failed = [DeadLetter(position, now_us, why, command, error) for position, command in batch.commands]
        self._go_on()
        self._spool.settle(batch, failed)

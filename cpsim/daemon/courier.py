"""DeliveryPolicy from the spool to the server: batches in order, each retried until its outcome is known.

The outcome of an attempt decides what follows:

- *not applied* (no connection, or refused): the courier backs off and makes a new batch. If the server refuses a batch
  as a whole, the courier halves it, until the poison command stands alone; that command is kept as failed.
- *unknown* (the reply was lost, or does not name an outcome): a server that knows batch ids gets the same batch again
  and applies it once. For any other server, the batch becomes a `dead-letter`, so that no credit doubles, or with
  `resend` is sent again, so that none is missing. In both cases the courier waits until the server answers a probe.

A batch that fails repeatedly while the server answers other batches contains a poison command. (The other batch
is a command for an unknown slot: it changes nothing, and costs the server as much as a real one.) The courier gives
up such a batch, which a server that knows batch ids confirms, and halves it like a refused one.

A server that knows batch ids refuses a batch whose number comes too late or came before with other commands, for
example after a spool was restored from a copy. Whether its commands were applied is unknown: they become dead letters.

A batch that times out may have been too large for a slow server: the next ones are half as large, and grow slowly.

The backoff doubles with each failure, up to a limit, with random jitter, so that sites do not return all at once.
"""

from __future__ import annotations

import logging
import random
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from cpdaemon.errors import BadReply, CreditPiggyError, NotSent, Refused, ReplyTimeout
from cpsim.clock import SYSTEM_CLOCK
from cpsim.daemon.failed import DEAD_LETTER, REFUSED, UNNAMED, FailedCommand
from cpsim.daemon.spool import MAX_BATCH
from cpsim.errors import CpsimError
from cpsim.quirks.policies.delivery import DeliveryPolicy
from cpsim.system.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from cpsim.clock import Clock
    from cpsim.daemon.client import Outcomes, Server
    from cpsim.daemon.memory import MemorySpool
    from cpsim.daemon.spool import Batch, Spool

WHEN_UNKNOWN: Final = ("dead-letter", "resend")
FIRST_BACKOFF_S: Final = 0.1
MAX_BACKOFF_S: Final = 30.0
REFUSES_BATCH: Final = {400, 413, 500}
"""Statuses with which a server refuses a batch because of its content; others have other causes."""
PERMANENT: Final = {400, 413}
"""Those of them that no retry changes."""
CONFLICT: Final = 409
"""Status with which a server refuses a batch that was given up, or whose number it has seen."""
MAX_TRIES: Final = 5
"""Failures in a row after which a batch is halved, if the server answers other batches."""
MAX_TRIES_ALONE: Final = 6
"""Failures in a row after which a command that was sent alone is kept as failed, likewise."""
SLOW_GROWTH: Final = 16
"""After a timeout, batches grow by a part of that size at a time."""
TRIES_PER_TIMEOUT: Final = 3
"""How many failures a timeout counts for."""
ADVICE: Final = {
    REFUSED: "",
    DEAD_LETTER: "; whether they were applied is unknown; --when-unknown resend would resend them",
}
REMINDER_S: Final = 600
"""How often the log says that an outage lasts, in seconds."""
BUSY_COMMAND_S: Final = 0.005
"""Time per command of a busy daemon: in production it acknowledges some 200 a second, a tenth of its usual rate."""
LONGEST_TURN_S: Final = 0.5
CAREFUL: Final = DeliveryPolicy()

log = logging.getLogger(__name__)


class Courier:
    """Delivers the commands of a spool: a step function, which `start` has a thread drive.

    Args:
        spool: source of the commands.
        server: where they go.
        flush_interval_s: how long a command waits for others, unless there is a full batch.
        when_unknown: `dead-letter` or `resend`, for a server that does not know batch ids.
        max_backoff_s: longest backoff, in seconds.
        clock: by which it waits.
        chance: source of the backoff's jitter.
        delivery: what quirks have replaced.
    """

    def __init__(
        self,
        spool: Spool | MemorySpool,
        server: Server,
        flush_interval_s: float,
        when_unknown: str = WHEN_UNKNOWN[0],
        max_backoff_s: float | None = None,
        *,
        clock: Clock = SYSTEM_CLOCK,
        chance: random.Random | None = None,
        delivery: DeliveryPolicy = CAREFUL,
    ) -> None:
        self._spool = spool
        self._server = server
        self.set_interval(flush_interval_s)
        self._resends_by_option = when_unknown == "resend"
        self._busy = False
        """Whether it tries again and again, which keeps the daemon busy."""
        self._turned = 0
        """The number of commands acknowledged up to the last turn of the daemon's loop."""
        self._seen = 0
        """The number of commands that waited at the last look."""
        self.set_delivery(delivery)
        self._unknown_reason = "the daemon ended before it had the server's reply"
        self._size = MAX_BATCH
        self._too_slow: int | None = None
        """The size of the last batch that timed out, until batches have grown to their full size again."""
        self._max_backoff_s = MAX_BACKOFF_S if max_backoff_s is None else max_backoff_s
        self._backoff_s = self._first_backoff_s = min(FIRST_BACKOFF_S, self._max_backoff_s)
        self._clock = clock
        self._chance = random.Random() if chance is None else chance  # noqa: S311 - nobody gains by guessing it
        self._failures = 0
        self._outage: str | None = None
        self._outage_us = 0
        """When the outage began."""
        self._reported_ns = 0
        """When the outage was logged last."""
        self._due = 0
        """The position up to which to deliver without a further wait."""
        self._ready_ns: int | None = None
        """When the interval of the commands that wait began."""
        self._retry_ns: int | None = None
        """When the backoff ends."""
        self._backing_off = threading.Condition()
        """Notified when the backoff ends early: at the end of all, and when there is nothing to deliver any more."""
        self._stopping = False
        self._on_drained: Callable[[], object] | None = None
        self._stepping = threading.Lock()
        self.on_step: Callable[[], object] = tuple
        """Called after each attempt."""
        self._thread = Thread(self._run, "cpsim-courier")

    def set_interval(self, flush_interval_s: float) -> None:
        """Replace the flush interval, also of the commands that wait."""
        with self._spool.released:
            self._interval_ns = round(flush_interval_s * 1e9)
            self._spool.released.notify_all()

    def set_delivery(self, delivery: DeliveryPolicy) -> None:
        """Replace what quirks have replaced."""
        self._delivery = delivery
        self._resends = self._resends_by_option or delivery.retry_s is not None
        self._full = MAX_BATCH if delivery.full is None else delivery.full
        self._spool.wakes_always = delivery.retry_s is not None
        self._knows_batches: bool | None = None

    def delay_turn(self, acknowledged: int) -> None:
        """Delay a turn of the daemon's loop, after this many commands in all, while it tries again and again."""
        commands, self._turned = acknowledged - self._turned, acknowledged
        if self._busy and commands:
            self._clock.sleep(min(commands * BUSY_COMMAND_S, LONGEST_TURN_S))

    def start(self) -> None:
        """Begin to deliver."""
        self._spool.report_outage(None, 0)
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Deliver the rest until a failure or the timeout; return whether the thread has ended."""
        with self._spool.released:
            self._stopping = True
            self._spool.released.notify_all()
        with self._backing_off:
            self._backing_off.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def drain(self, then: Callable[[], object]) -> None:
        """Deliver at once all that may be delivered, retry what fails, and then end and call a function."""
        with self._spool.released:
            self._on_drained = then
            self._spool.released.notify_all()

    def check(self) -> None:
        """Raise ThreadFailed if an unexpected error has ended the thread."""
        self._thread.check()

    def drop(self) -> None:
        """Forget what waits for delivery: none of it is delivered once this has returned.

        Raises:
            CpsimError: the spool cannot be written.
        """
        with self._stepping:
            self._spool.clear()
            self._due, self._size, self._too_slow = 0, MAX_BATCH, None
            self._ready_ns = self._retry_ns = None
            self._busy = False
            self._reset_backoff()
            self._report_outage(None)
        with self._backing_off:
            self._backing_off.notify_all()

    @property
    def outage(self) -> str | None:
        """The error of the last attempt to deliver; None if it succeeded."""
        return self._outage

    @property
    def has_ended(self) -> bool:
        """Whether it is stopping or draining, and has delivered what can be delivered."""
        if not self._spool.ready:
            return self._stopping or self._on_drained is not None
        return self._stopping and self._retry_ns is not None

    def step(self) -> float | None:
        """Make at most one attempt to deliver.

        Returns:
            The seconds until the next; None if there is nothing to deliver, until the spool gets something.
        """
        with self._stepping:
            wait_s = self._step()
        self.on_step()
        return wait_s

    def _step(self) -> float | None:
        wait_s = self._wait_s()
        if wait_s is None or wait_s > 0:
            return wait_s
        spool = self._spool
        self._ready_ns = None
        if self._due <= spool.delivered_to:
            self._due = spool.released_to
        try:
            self._attempt()
            self._busy = False
        except (CreditPiggyError, CpsimError) as error:
            spool.count_retry()
            self._report_outage(error)
            self._due = 0
            backoff_s = self._next_backoff_s(error)
            self._retry_ns = self._clock.monotonic_ns() + round(backoff_s * 1e9)
            return backoff_s
        if spool.delivered_to >= self._due:
            self._backoff_s = self._first_backoff_s
            self._report_outage(None)
        return self._wait_s()

    def _run(self) -> None:
        while not self.has_ended:
            self.step()
            is_free = self._retry_ns is None or self._delivery.retry_s is not None
            self._wait(self._spool.released if is_free else self._backing_off)
        if self._on_drained is not None:
            self._on_drained()

    def _wait(self, condition: threading.Condition) -> None:
        """Wait until the next attempt, or until a condition is notified; commands that come end no backoff."""
        with condition:
            if not self.has_ended:
                wait_s = self._wait_s()
                is_over = condition is self._backing_off and self._retry_ns is None
                if wait_s != 0 and not is_over:
                    self._clock.wait(condition, wait_s)

    def _wait_s(self) -> float | None:
        """Return the seconds until the next attempt; None if there is nothing to deliver."""
        if self._spool.delivered_to < self._due:
            return 0.0
        now_ns = self._clock.monotonic_ns()
        if self._retry_ns is not None and self._delivery.retry_s is not None and self._spool.ready > self._seen:
            self._retry_ns = None  # what has come takes along what was not answered
        if self._retry_ns is not None:
            if now_ns < self._retry_ns:
                return (self._retry_ns - now_ns) / 1e9
            self._retry_ns = None
            if self._delivery.retry_s is not None:
                return 0.0
        if not self._spool.ready:
            return None
        return 0.0 if self._must_flush() else max(0, self._flush_ns(now_ns) - now_ns) / 1e9

    def _flush_ns(self, now_ns: int) -> int:
        """Return when to deliver the commands that wait: a full batch at once."""
        ready = self._spool.ready
        if self._ready_ns is None or (self._delivery.restarts and ready != self._seen):
            self._ready_ns, self._seen = now_ns, ready
        return now_ns if ready >= self._full else self._ready_ns + self._interval_ns

    def _report_outage(self, error: Exception | None) -> None:
        """Log when an outage begins, lasts and ends, and write it to the spool's status; None ends it."""
        before, self._outage = self._outage, None if error is None else str(error)
        now_us, now_ns = self._clock.now_us(), self._clock.monotonic_ns()
        if before is None:
            self._outage_us = now_us
        if before != self._outage:
            self._spool.report_outage(self._outage, self._outage_us)
        elif error is None or now_ns - self._reported_ns < REMINDER_S * 1_000_000_000:
            return
        else:
            minutes = max(0, now_us - self._outage_us) // 60_000_000
            log.error("for %d minutes nothing was delivered, and %d commands wait", minutes, self._spool.pending)
        self._reported_ns = now_ns
        if error is None:
            log.info("the server accepts commands again")
        else:
            log.log(logging.ERROR if isinstance(error, CpsimError) else logging.WARNING, "%s", error)

    def _must_flush(self) -> bool:
        """Return whether to deliver at once."""
        return self._stopping or self._on_drained is not None

    def _next_backoff_s(self, error: Exception) -> float:
        """Return the seconds until the next attempt, and double the backoff after that."""
        delivery = self._delivery
        if delivery.busy is not None and isinstance(error, NotSent):
            self._busy = self._spool.pending > delivery.busy
            return 0.0 if self._busy else self._first_backoff_s
        if delivery.retry_s is not None and isinstance(error, CreditPiggyError) and not error.definite:
            self._spool.put_back()  # to be sent with what comes
            self._seen = self._spool.ready
            return delivery.retry_s
        backoff_s = self._backoff_s * self._chance.uniform(0.5, 1)
        self._backoff_s = min(2 * self._backoff_s, self._max_backoff_s)
        return backoff_s

    def _probe(self) -> bool:
        """Return whether the server knows batch ids; raises CreditPiggyError if it does not answer."""
        return self._delivery.retry_s is None and self._server.knows_batches()

    def _take(self) -> Batch | None:
        """Return the next batch."""
        knows, order = bool(self._knows_batches), self._delivery.order
        size = max(self._size, self._full) if self._delivery.restarts else self._size
        if order is None:
            return self._spool.take(size, careful=not knows, named=knows)
        batch = self._spool.take(size, in_order=False, named=knows)
        if batch is None:
            return None
        places = order(batch.calls)
        commands = [batch.commands[place] for place in places]
        return replace(batch, commands=commands, calls=[batch.calls[place] for place in places])

    def _attempt(self) -> None:
        """Send one batch, once.

        Raises:
            CreditPiggyError: the server cannot be reached, or did not name the batch's outcome.
            CpsimError: the spool cannot be written.
        """
        if self._knows_batches is None:
            self._knows_batches = self._probe()
        batch = self._take()
        if batch is None:
            return
        knows = self._knows_batches and batch.named
        if batch.resumed and not (knows or self._resends):
            self._fail_batch(batch, DEAD_LETTER, self._unknown_reason)
            return
        try:
            outcomes = self._server.post(batch.id if knows else None, batch.calls)
        except CreditPiggyError as error:
            if self._delivery.settles(error):
                self._spool.settle(batch, [])
            elif not self._handle_error(batch, error):
                raise
        else:
            self._settle(batch, outcomes if self._delivery.sees_errors else [None] * len(outcomes))

    def _handle_error(self, batch: Batch, error: CreditPiggyError) -> bool:
        """Handle a failed attempt; return False if the batch is to be retried."""
        knew = self._knows_batches and batch.named
        self._knows_batches = None  # probe the server before the next batch
        if isinstance(error, ReplyTimeout):
            self._too_slow = len(batch.calls)
            self._size = max(1, self._too_slow // 2)
        if isinstance(error, Refused) and error.status in REFUSES_BATCH:
            if self._is_poison(batch, error.status):
                self._halve(batch, REFUSED, str(error))
                return True
        elif knew and isinstance(error, Refused) and error.status == CONFLICT:
            return self._handle_conflict(batch, error)
        elif self._delivery.retry_s is None and self._give_up_after_retries(batch, error, batch.id if knew else None):
            return True
        if error.definite and not batch.resumed:
            self._spool.put_back()
        return False

    def _handle_conflict(self, batch: Batch, error: Refused) -> bool:
        """Put back a batch that was given up; any other refused with `CONFLICT` becomes dead letters."""
        try:
            was_given_up = self._server.give_up(batch.id, batch.calls) is None
        except CreditPiggyError as reason:
            if not isinstance(reason, Refused) or reason.status != CONFLICT:
                return False  # retry
            was_given_up = False
        if was_given_up:
            self._spool.count_retry()
            self._spool.put_back()
        else:
            self._fail_batch(batch, DEAD_LETTER, str(error), "; whether they were applied is unknown")
        return True

    def _is_poison(self, batch: Batch, status: int) -> bool:
        """Return whether a batch was refused because of its content: a poison message, as far as is known."""
        if len(batch.calls) > 1:
            return True  # its halves will show
        self._failures += MAX_TRIES_ALONE if status in PERMANENT else 1
        if self._failures < MAX_TRIES_ALONE:
            return False
        try:
            self._probe()
        except CreditPiggyError:
            return False  # the server refuses an empty batch, too
        return True

    def _give_up_after_retries(self, batch: Batch, error: CreditPiggyError, batch_id: str | None) -> bool:
        """Count a failure; after `MAX_TRIES`, give the batch up if the server answers other batches."""
        if not isinstance(error, NotSent):
            self._failures += TRIES_PER_TIMEOUT if isinstance(error, ReplyTimeout) else 1
        if not error.definite:
            self._unknown_reason = str(error)
        if self._failures < (MAX_TRIES if len(batch.calls) > 1 else MAX_TRIES_ALONE):
            return False
        try:
            outcomes = self._server.give_up(batch_id, batch.calls)
        except CreditPiggyError as reason:  # no other batch is answered: this one is not the cause
            log.debug("batch %s is not given up: %s", batch.id, reason)
            return False
        if outcomes is not None:
            self._settle(batch, outcomes)
            return True
        is_known = batch_id is not None or (error.definite and not batch.resumed)
        self._halve(batch, REFUSED if is_known else DEAD_LETTER, f"{error}, repeatedly, while others are answered")
        return True

    def _halve(self, batch: Batch, why: str, error: str) -> None:
        """Search for the poison command of a batch: send its first half next; fail a batch of one command."""
        self._reset_backoff()
        if len(batch.calls) == 1:
            self._fail_batch(batch, why, error)
        else:
            log.warning("a batch of %d commands failed, and is now sent in halves: %s", len(batch.calls), error)
            self._size = len(batch.calls) // 2
            self._spool.count_retry()
            self._spool.put_back()

    def _reset_backoff(self) -> None:
        """Forget failures: a batch has an outcome."""
        self._failures, self._backoff_s = 0, self._first_backoff_s

    def _settle(self, batch: Batch, outcomes: Outcomes) -> None:
        """Settle a batch whose reply has come."""
        self._reset_backoff()
        failed = []
        doubts = [error for error in outcomes if error is not None and not error.definite]
        now_us = self._clock.now_us()
        for (position, command), error in zip(batch.commands, outcomes, strict=True):
            if error is not None and error.definite:
                failed.append(FailedCommand(position, now_us, REFUSED, command, str(error)))
        if doubts:
            named = {row.position for row in failed}
            position = next(position for position, _ in batch.commands if position not in named)
            anyone = f"{UNNAMED}{len(doubts)} commands up to {batch.commands[-1][1]!r})"
            failed.append(FailedCommand(position, now_us, REFUSED, anyone, str(doubts[0])))
        for row in failed:
            log.warning("refused: %s: %s", row.command, row.error)
        unnamed = min(doubts[0].unnamed, len(doubts)) if doubts and isinstance(doubts[0], BadReply) else 0
        self._spool.settle(batch, failed, unnamed)
        self._grow()

    def _grow(self) -> None:
        """Let the next batches be larger: twice as large, or by little where a larger one took the server too long."""
        more = self._size if self._too_slow is None else max(1, self._too_slow // SLOW_GROWTH)
        self._size = min(self._size + more, MAX_BATCH)
        if self._size == MAX_BATCH:
            self._too_slow = None

    def _fail_batch(self, batch: Batch, why: str, error: str, advice: str | None = None) -> None:
        """Keep a whole batch as failed commands."""
        now_us = self._clock.now_us()
        advice = ADVICE[why] if advice is None else advice
        log.error("%s: %d commands, listed by `cpsim daemon --failed`%s: %s", why, len(batch.calls), advice, error)
        failed = [FailedCommand(position, now_us, why, command, error) for position, command in batch.commands]
        self._reset_backoff()
        self._spool.settle(batch, failed)

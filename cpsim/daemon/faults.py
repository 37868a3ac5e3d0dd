"""The daemon's faults: refused connections, commands answered wrongly or not at all, and batches that fail."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from cpdaemon.errors import ConnectFailed, ReplyLost, ReplyTimeout
from cpsim.clock import SYSTEM_CLOCK
from cpsim.daemon.client import accepted
from cpsim.protocol.exchange import Answer, End, Exchange, HttpReply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cpdaemon.signing import Call
    from cpsim.clock import Clock
    from cpsim.daemon.client import Outcomes, Server
    from cpsim.daemon.link import FrameConnection
    from cpsim.daemon.listener import Call as Frame
    from cpsim.daemon.listener import Listener
    from cpsim.faults.plan import FaultPlan
    from cpsim.protocol.exchange import Passage

RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of 0 seconds: close() resets the connection."""
REPLY_TIMEOUT_S: Final = 30.0
"""Timeout of a reply in the same process, as in `cpsim daemon`."""
POLL_S: Final = 0.01


class FrameFaults:
    """The faults of a plan at a listener: what is not in the plan costs nothing.

    Args:
        listener: the listener, open.
        faults: the plan.
        project: the project of the commands.
    """

    def __init__(self, listener: Listener, faults: FaultPlan, project: str) -> None:
        self._listener = listener
        self._faults = faults
        self._project = project

    def begin(self) -> None:
        """Follow the plan, before or while a thread takes the listener's steps."""
        self._faults.watch(self._refresh)
        self._apply()

    def end(self) -> None:
        """Follow it no more."""
        self._faults.unwatch(self._refresh)

    def _refresh(self) -> None:
        """Have the listener apply a change of the plan; return once it has."""
        self._listener.change(self._apply)

    def _apply(self) -> None:
        """Accept or refuse connections and commands by the plan, now and at its next change."""
        listener = self._listener
        self._let_go()
        listener.unschedule(self._apply)
        change_s = self._faults.next_change_s("daemon")  # first, or a change during this method would be missed
        if change_s is not None:
            listener.schedule(change_s, self._apply)
        listener.admit = self._admit if self._faults.daemon else listener.acknowledge
        if self._faults.refuses("daemon"):
            listener.refuse_connections()
        else:
            listener.accept_connections()

    def _let_go(self) -> None:
        """Close the connections whose faults are no longer in the plan: their commands are dropped."""
        for connection in self._listener.connections():
            waits = connection.held or not connection.answered
            if waits and connection.passage is not None and not self._faults.has_all(connection.passage):
                self._listener.close(connection)

    def _admit(self, connection: FrameConnection, call: Frame, ended: bool) -> None:  # noqa: FBT001
        listener = self._listener
        passage = self._faults.intercept(Exchange("daemon", [(call[0], call[1]["slot"])], self._project))
        if passage is None:
            listener.acknowledge(connection, call, ended)
            return
        listener.unwatch(connection)
        connection.passage = passage
        connection.answer = partial(self._answer, passage, connection)
        go_on = partial(self._go_on, passage, connection, call, ended)
        if passage.begun:
            listener.send(connection, passage.begun)
        if wait_s := passage.delay_s + passage.pause_s:
            listener.schedule(wait_s, go_on, connection)
        else:
            go_on()

    def _go_on(self, passage: Passage, connection: FrameConnection, call: Frame, ended: bool) -> None:  # noqa: FBT001
        """Accept or drop a command, unless it has been let go."""
        if connection.sealed:
            return
        match passage.instead:
            case None:
                self._listener.acknowledge(connection, call, ended)
            case Answer(reply):
                assert isinstance(reply, bytes)
                connection.answered = True
                self._listener.reply(connection, reply)
                self._listener.look_again(connection)
            case end:
                self._end(end, connection, b"")

    def _answer(self, passage: Passage, connection: FrameConnection, reply: bytes) -> None:
        """Send the reply to a command, or what is left of it, or end the connection."""
        match passage.back(reply):
            case Answer(given):
                assert isinstance(given, bytes)
                self._listener.send(connection, given[len(passage.begun) :])
            case end:
                self._end(end, connection, reply)

    def _end(self, end: End, connection: FrameConnection, reply: bytes) -> None:
        match end:
            case End.HANG:
                self._listener.hold(connection)
                return
            case End.RESET:
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            case End.CUT:
                self._listener.send(connection, reply[: len(reply) // 2])
            case End.ANSWER_AND_CRASH:
                self._listener.send(connection, reply)
                self._faults.crash()
            case End.CRASH:
                self._faults.crash()
        self._listener.close(connection)


class BatchFaults:
    """A courier's server with the faults of a plan.

    Args:
        server: the server.
        faults: the plan.
        project: the project of the commands.
        clock: by which a batch is late.
    """

    def __init__(self, server: Server, faults: FaultPlan, project: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._server = server
        self._faults = faults
        self._project = project
        self._clock = clock
        self._stopping = threading.Event()
        self._dropping = threading.Lock()
        self._drops = False
        self.knows_batches = server.knows_batches

    def post(self, batch_id: str | None, calls: Sequence[Call]) -> Outcomes:
        """Send one batch, or fail by a fault; raises CreditPiggyError."""
        if not self._faults.delivery:
            return self._server.post(batch_id, calls)
        if self._faults.refuses("server"):
            raise ConnectFailed("the server is down, by a fault")
        subjects = [("bulk", ""), *((kind, str(arguments["slot"])) for kind, arguments in calls)]
        passage = self._faults.intercept(Exchange("delivery", subjects, self._project))
        if passage is None:
            return self._server.post(batch_id, calls)
        if passage.delay_s:
            self._hold(passage.delay_s, lambda: self._faults.has_all(passage))
        if passage.instead is not None:
            self._fail(passage.instead, passage)
        outcomes = self._server.post(batch_id, calls)
        back = passage.back(outcomes)
        if back != Answer(outcomes):
            self._fail(back, passage)
        return outcomes

    def give_up(self, batch_id: str | None, calls: Sequence[Call]) -> Outcomes | None:
        """Give up a batch, as the server does."""
        return self._server.give_up(batch_id, calls)

    def stop(self) -> None:
        """End the faults that hold a batch."""
        self._stopping.set()

    @contextmanager
    def letting_go(self) -> Iterator[None]:
        """Let no fault hold a batch: one that is under way is over before what waits is dropped."""
        with self._dropping:
            self._drops = True
            try:
                yield
            finally:
                self._drops = False

    def _fail(self, decision: Answer | End, passage: Passage) -> None:
        """Raise the error that the courier sees; return if the server has answered that all is well."""
        match decision:
            case Answer(reply):
                assert isinstance(reply, HttpReply)
                accepted(reply.status, reply.body)
            case End.HANG:
                self._hold(REPLY_TIMEOUT_S, lambda: self._faults.has_all(passage))
                raise ReplyTimeout("the reply timed out, by a fault")
            case End.CRASH | End.ANSWER_AND_CRASH:
                self._faults.crash()
            case _:
                raise ReplyLost("the connection was lost, by a fault")

    def _hold(self, longest_s: float, holds: Callable[[], bool]) -> None:
        """Wait while a fault holds a batch."""
        deadline_s = self._clock.monotonic() + longest_s
        while holds() and not self._drops and (left_s := deadline_s - self._clock.monotonic()) > 0:
            if self._stopping.wait(min(left_s, POLL_S)):
                break

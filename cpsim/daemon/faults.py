"""The daemon's faults: refused connections, and commands that are answered wrongly or not at all."""

from __future__ import annotations

import socket
import struct
import threading
from _socket import socket as RawSocket  # noqa: N812 - the class below `socket.socket`
from contextlib import suppress
from heapq import heapify, heappop, heappush
from itertools import count
from queue import SimpleQueue
from selectors import EVENT_READ
from typing import TYPE_CHECKING, Any, Final

from cpsim.daemon.listener import BACKLOG, Listener
from cpsim.errors import CpsimError
from cpsim.net.refusal import refusing

if TYPE_CHECKING:
    from collections.abc import Callable

    from cpsim.daemon.listener import Call, _Connection
    from cpsim.faults.plan import FaultPlan
    from cpsim.faults.spec import Fault

RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of 0 seconds: close() resets the connection."""
CHANGE_TIMEOUT_S: Final = 5.0
"""Time for the listener's thread to apply a change."""


class FaultyListener(Listener):
    """A listener with the faults of a plan.

    Args:
        arguments: those of `Listener`, or of the listener that this one is mixed with.
        faults: the plan.
        project: the project of the commands.
    """

    def __init__(self, *arguments: Any, faults: FaultPlan, project: str) -> None:  # noqa: ANN401 - not ours to know
        super().__init__(*arguments)
        self._faults = faults
        self._project = project
        self._addresses = [(sock.family, sock.getsockname()) for sock in self._sockets]
        self._refusing = False
        self._hung: set[_Connection] = set()
        self._scheduled: list[tuple[float, int, Callable[[], object], _Connection | None]] = []
        self._number = count()
        self._changes: SimpleQueue[tuple[Callable[[], object], threading.Event]] = SimpleQueue()

    def open(self) -> None:
        """Begin to accept, as far as `step` is called."""
        super().open()
        self._faults.watch(self._refresh)
        self._apply_plan()

    def start(self) -> None:
        """Begin to accept, and have a thread take the steps."""
        super().start()
        self._refresh()  # with what has changed before there was a thread

    def stop(self) -> None:
        """Stop accepting, answer what has arrived, deliver what was acknowledged, and close."""
        self._faults.unwatch(self._refresh)
        super().stop()

    def drop(self) -> None:
        """Close every connection, and forget each command that has not been delivered or that a fault holds.

        Raises:
            CpsimError: the listener's thread is busy: it does so later.
        """
        if not self._change(self._drop):
            raise CpsimError(f"a daemon of project {self._project!r} has not dropped its commands: it is busy")

    def _drop(self) -> None:
        for *_, connection in self._scheduled:
            if connection is not None:
                self._close(connection)
        self._scheduled = [due for due in self._scheduled if due[-1] is None]
        heapify(self._scheduled)
        super()._drop()
        self._hung.clear()

    def _refresh(self) -> None:
        """Have the listener's thread apply the plan; return once it has."""
        self._change(self._apply_plan)

    def _change(self, change: Callable[[], object]) -> bool:
        """Have the listener's thread make a change; return whether it has, or there is no thread."""
        if not self._thread.is_alive():
            return True
        done = threading.Event()
        self._changes.put((change, done))
        with suppress(BlockingIOError):  # the listener is awake already
            self._wake.send(b"\0")
        return done.wait(CHANGE_TIMEOUT_S)

    def _on_wake(self) -> None:
        super()._on_wake()
        while not self._changes.empty():
            change, done = self._changes.get()
            change()
            done.set()

    def _apply_plan(self) -> None:
        """Accept or refuse connections and commands according to the plan."""
        self._scheduled = [due for due in self._scheduled if due[2] != self._apply_plan]
        heapify(self._scheduled)
        change_s = self._faults.next_change_s("daemon")  # first, or a change during this method would be missed
        if change_s is not None:
            self._schedule(change_s, self._apply_plan)
        self._admit = self._draw if self._faults.daemon else self._acknowledge
        refuses = self._faults.refuses("daemon")
        if refuses and not self._refusing:
            for sock in self._sockets:
                self._accept(sock)  # clients that have connected are answered
                self._selector.unregister(sock)
                sock.close()
            self._sockets = [refusing(*address) for address in self._addresses]
        elif self._refusing and not refuses:
            for sock in self._sockets:
                sock.listen(BACKLOG)
                sock.setblocking(False)  # noqa: FBT003
                self._selector.register(sock, EVENT_READ)
        self._refusing = refuses

    def _schedule(self, delay_s: float, action: Callable[[], object], connection: _Connection | None = None) -> None:
        heappush(self._scheduled, (self._now_s() + delay_s, next(self._number), action, connection))

    def _select_timeout_s(self) -> float | None:
        timeout_s = super()._select_timeout_s()
        if not self._scheduled:
            return timeout_s
        due_s = max(0.0, self._scheduled[0][0] - self._now_s())
        return due_s if timeout_s is None else min(timeout_s, due_s)

    def _end_waits(self, now: float) -> None:
        super()._end_waits(now)
        while self._scheduled and self._scheduled[0][0] <= now:
            heappop(self._scheduled)[2]()

    def _draw(self, connection: _Connection, call: Call, ended: bool) -> None:  # noqa: FBT001
        fault = self._faults.draw("daemon", [(call[0], call[1]["slot"])], self._project)
        if fault is None:
            self._acknowledge(connection, call, ended)
        else:
            self._handle_fault(fault, connection, call, ended)

    def _handle_fault(self, fault: Fault, connection: _Connection, call: Call, ended: bool) -> None:  # noqa: FBT001
        """Accept or drop a command, and answer it, as a fault demands."""
        self._unwatch(connection)
        match fault.action:
            case "late" | "pieces":
                assert fault.value is not None
                if fault.action == "pieces":
                    with suppress(OSError):
                        connection.sock.send(b"O", socket.MSG_DONTWAIT)
                    connection.sock = _FaultySocket(connection.sock, fault, self._faults.crash)
                self._schedule(fault.value, lambda: self._acknowledge(connection, call, ended), connection)
            case "lose-reply" | "crash-after-ok":
                connection.sock = _FaultySocket(connection.sock, fault, self._faults.crash)
                self._acknowledge(connection, call, ended=True)
            case "hang":
                connection.answered = True
                self._hung = {other for other in self._hung if not other.sealed} | {connection}
                self._watch(connection)
            case "error":
                connection.answered = True
                self._reply(connection, b"ER")
                self._fresh.append(connection)
            case "close" | "reset" | "crash-before-ok":
                if fault.action == "crash-before-ok":
                    self._faults.crash()
                if fault.action == "reset":
                    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                self._close(connection)

    def _watch(self, connection: _Connection) -> None:
        if connection not in self._hung:
            super()._watch(connection)
        elif not connection.watched:
            connection.watched = True
            self._selector.register(connection.sock, EVENT_READ, connection)

    def _finish(self) -> None:
        if self._refusing:
            for sock in self._sockets:
                sock.close()
            self._sockets = []
        while self._scheduled:
            action = heappop(self._scheduled)[2]
            if action != self._apply_plan:
                action()
        for connection in self._hung:
            self._close(connection)
        super()._finish()


class _FaultySocket(RawSocket):
    """A client's socket that sends the answer as a fault demands."""

    def __init__(self, sock: RawSocket, fault: Fault, crash: Callable[[], None]) -> None:
        super().__init__(socket.AF_UNSPEC, socket.SOCK_STREAM, 0, sock.detach())
        self._action = fault.action
        self._crash = crash

    def send(self, reply: Any, flags: int = 0) -> int:  # noqa: ANN401 - any bytes
        """Send the whole answer, its end, or nothing."""
        if self._action == "lose-reply":
            return len(reply)
        try:
            return super().send(reply[1:] if self._action == "pieces" else reply, flags)
        finally:
            if self._action == "crash-after-ok":
                self._crash()

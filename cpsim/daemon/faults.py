"""The daemon's faults: connections that are refused, and commands that are not answered as they should be."""

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
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from cpsim.daemon.listener import BACKLOG, READ_BYTES, Listener
from cpsim.net.refusal import refusing

if TYPE_CHECKING:
    from collections.abc import Callable

    from cpsim.daemon.listener import Call, _Connection
    from cpsim.faults.plan import FaultPlan
    from cpsim.faults.spec import Fault

RESET: Final = struct.pack("ii", 1, 0)
"""Linger for no time: closing resets."""
CHANGE_S: Final = 5.0
"""How long a change of the plan waits for the listener's thread."""


class FaultyListener(Listener):
    """A listener whose commands meet the faults of a plan.

    Args:
        arguments: those of `Listener`, or of the listener that this one is mixed with.
        faults: the plan.
        project: whose commands they are.
    """

    def __init__(self, *arguments: Any, faults: FaultPlan, project: str) -> None:  # noqa: ANN401 - not ours to know
        super().__init__(*arguments)
        self._faults = faults
        self._project = project
        self._addresses = [(sock.family, sock.getsockname()) for sock in self._sockets]
        self._refusing = False
        self._hung: set[_Connection] = set()
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._number = count()
        self._changes: SimpleQueue[threading.Event] = SimpleQueue()

    def start(self) -> None:
        """Begin to accept."""
        super().start()
        self._faults.watch(self._refresh)
        self._refresh()

    def stop(self) -> None:
        """Stop accepting, answer what has arrived, pass on what was acknowledged, and close."""
        self._faults.unwatch(self._refresh)
        super().stop()

    def _refresh(self) -> None:
        """Do as the plan has it now; it is done on return."""
        if self._thread.is_alive():
            done = threading.Event()
            self._changes.put(done)
            with suppress(BlockingIOError):  # it will wake up as it is
                self._wake.send(b"\0")
            done.wait(CHANGE_S)

    def _woken(self) -> None:
        super()._woken()
        with suppress(BlockingIOError):
            self._wake_end.recv(READ_BYTES)
        while not self._changes.empty():
            self._follow()
            self._changes.get().set()

    def _follow(self) -> None:
        """Accept or refuse connections, and admit commands, as the plan has it now."""
        self._later = [due for due in self._later if due[-1] != self._follow]
        heapify(self._later)
        change_s = self._faults.next_change_s("daemon")  # first, or one that comes meanwhile would be missed
        if change_s is not None:
            self._do_later(change_s, self._follow)
        self._admit = self._draw if self._faults.daemon else self._acknowledge
        refuses = self._faults.refuses("daemon")
        if refuses and not self._refusing:
            for sock in self._sockets:
                self._accept(sock)  # those who have connected are answered
                self._selector.unregister(sock)
                sock.close()
            self._sockets = [refusing(*address) for address in self._addresses]
        elif self._refusing and not refuses:
            for sock in self._sockets:
                sock.listen(BACKLOG)
                sock.setblocking(False)  # noqa: FBT003
                self._selector.register(sock, EVENT_READ)
        self._refusing = refuses

    def _do_later(self, delay_s: float, action: Callable[[], object]) -> None:
        heappush(self._later, (monotonic() + delay_s, next(self._number), action))

    def _patience_s(self) -> float | None:
        patience_s = super()._patience_s()
        if not self._later:
            return patience_s
        later_s = max(0.0, self._later[0][0] - monotonic())
        return later_s if patience_s is None else min(patience_s, later_s)

    def _end_waits(self, now: float) -> None:
        super()._end_waits(now)
        while self._later and self._later[0][0] <= now:
            heappop(self._later)[-1]()

    def _draw(self, connection: _Connection, call: Call, ended: bool) -> None:  # noqa: FBT001
        fault = self._faults.draw("daemon", [(call[0], call[1]["slot"])], self._project)
        if fault is None:
            self._acknowledge(connection, call, ended)
        else:
            self._meet(fault, connection, call, ended)

    def _meet(self, fault: Fault, connection: _Connection, call: Call, ended: bool) -> None:  # noqa: FBT001
        """Take a command, or not, and answer it as a fault wants it."""
        self._unwatch(connection)
        match fault.action:
            case "late" | "pieces":
                assert fault.value is not None
                if fault.action == "pieces":
                    with suppress(OSError):
                        connection.sock.send(b"O", socket.MSG_DONTWAIT)
                    connection.sock = _Answering(connection.sock, fault, self._faults.crash)
                self._do_later(fault.value, lambda: self._acknowledge(connection, call, ended))
            case "lose-reply" | "crash-after-ok":
                connection.sock = _Answering(connection.sock, fault, self._faults.crash)
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
        while self._later:
            action = heappop(self._later)[-1]
            if action != self._follow:
                action()
        for connection in self._hung:
            self._close(connection)
        super()._finish()


class _Answering(RawSocket):
    """A client's socket, on which the answer goes out as a fault wants it."""

    def __init__(self, sock: RawSocket, fault: Fault, crash: Callable[[], None]) -> None:
        super().__init__(socket.AF_UNSPEC, socket.SOCK_STREAM, 0, sock.detach())
        self._action = fault.action
        self._crash = crash

    def send(self, reply: Any, flags: int = 0) -> int:  # noqa: ANN401 - any bytes
        """Send all of the answer, its end, or nothing."""
        if self._action == "lose-reply":
            return len(reply)
        try:
            return super().send(reply[1:] if self._action == "pieces" else reply, flags)
        finally:
            if self._action == "crash-after-ok":
                self._crash()

"""The daemon's sockets: one command per connection, a frame in, `OK` or `ER` out.

The wire format has no terminator, so the listener detects the end of a frame:

- A newline or the end of the stream ends a frame.
- Without either, a well-formed frame is acknowledged at once, or the client would wait for ever. It may have been only
  the first segment, so the connection is *held*: bytes until the client closes still belong to the frame. A client that
  does not close has `QUIET_S`.
- A malformed frame has `QUIET_S` to become well formed, and is then answered `ER`.

Commands are delivered in the order of their acknowledgement. A plain loop over raw sockets answers a command in six
system calls (accept, getsockname, read, write, read, close); an event loop of callbacks takes twice as long.
"""

from __future__ import annotations

import errno
import selectors
import socket
import threading
from collections import OrderedDict, deque
from contextlib import suppress
from heapq import heapify, heappop, heappush
from itertools import count
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

from cpdaemon.wire import MalformedFrame
from cpsim.clock import SYSTEM_CLOCK
from cpsim.daemon.link import FrameConnection, Link, cannot_complete
from cpsim.daemon.reply_record import ReplyRecord
from cpsim.errors import CpsimError
from cpsim.net.refusal import refusing
from cpsim.quirks.policies.reading import ACCEPTS_A_TURN, DOCUMENTED, READ_BYTES, ReadingPolicy
from cpsim.system.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cpsim.clock import Clock
    from cpsim.metrics.waits import Waits

    Call = tuple[str, dict[str, str]]

QUIET_S: Final = 0.1
CHANGE_TIMEOUT_S: Final = 5.0
"""Time for a step to make a change."""
SILENCE_S: Final = 30.0
"""Time for a client to begin its frame."""
CLOSE_WAIT_S: Final = 0.0005
"""Time for an answered client to close before its socket is registered."""


class Listener:
    """Serves the daemon protocol on bound stream sockets: a step function, which `start` has a thread drive.

    Args:
        sockets: bound and listening; closed by `stop`.
        deliver: called in a step with the accepted commands, in order; must not block for long.
        is_full: returns whether commands are to be answered `ER` because there is no room.
        clock: by which clients have their time.
        link: its network.
        waits: record of how long clients wait, from the first bytes to the answer or the end of the connection.
        reading: how it reads frames.

    Attributes:
        admit: called in a step with each well-formed command; by default it is `acknowledge`.
        on_malformed: called in a step with each refused or malformed frame.
        on_rebound: called in a step once its addresses are those of other sockets.
        on_turn: called in each step, if it is set, with the number of all commands acknowledged.
        on_progress: called in each step, before and after commands are passed on.
        replies: what it has replied.
    """

    def __init__(
        self,
        sockets: Iterable[socket.socket],
        deliver: Callable[[list[Call]], object],
        is_full: Callable[[], bool] = lambda: False,
        clock: Clock = SYSTEM_CLOCK,
        link: Link | None = None,
        *,
        waits: Waits | None = None,
        reading: ReadingPolicy = DOCUMENTED,
    ) -> None:
        self._sockets = list(sockets)
        self._addresses: list[tuple[int, str | tuple[str, int]]] = []
        self._deliver = deliver
        self._is_full = is_full
        self._full = self._refusing = self._stopping = False
        self._waits = waits
        self.admit = self.acknowledge
        self.on_turn: Callable[[int], object] | None = None
        self._now_s, self._sleep = clock.monotonic, clock.sleep
        link = Link() if link is None else link
        self._selector, self._client = link.selector, link.client
        self._wake_end, self._wake = link.wake_end, link.wake
        self._wake.setblocking(False)  # noqa: FBT003
        self._queue: deque[FrameConnection] = deque()
        self._fresh: deque[FrameConnection] = deque()
        self._silent: OrderedDict[FrameConnection, None] = OrderedDict()
        self._quiet: OrderedDict[FrameConnection, None] = OrderedDict()
        self._thread = Thread(self._serve, "cpsim-daemon")
        self.malformed = self._acknowledged = self._passed_on = 0
        self._looked_s = 0.0
        self.replies = ReplyRecord()
        self.on_progress: Callable[[], object] = tuple
        self._scheduled: list[tuple[float, int, Callable[[], object], FrameConnection | None]] = []
        self._number = count()
        self._calls: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self.on_malformed: Callable[[bytes], object] = bytes
        self.on_rebound: Callable[[], object] = tuple
        self._reading = DOCUMENTED
        self.set_reading(reading)

    def set_reading(self, reading: ReadingPolicy) -> None:
        """Replace how it reads frames; those that are being read may still be read as before."""
        before, self._reading = self._reading, reading
        self._parse, self._read_bytes, self._reads_once = reading.parser(), reading.read_bytes, reading.once
        for sock in self._sockets if reading.backlog != before.backlog and not self._refusing else ():
            sock.listen(reading.backlog)

    def open(self) -> None:
        """Begin to accept, as far as `step` is called."""
        for sock in (*self._sockets, self._wake_end):
            sock.setblocking(False)  # noqa: FBT003
            self._selector.register(sock, selectors.EVENT_READ)

    def start(self) -> None:
        """Have a thread take the steps, after `open`."""
        self._thread.start()

    def stop(self) -> None:
        """Stop accepting, answer what has arrived, deliver what was acknowledged, and close."""
        self._stopping = True
        if self._thread.ident is None:
            self._finish()
        else:
            self.call(tuple)
            self._thread.join()
        self._wake.close()
        self._wake_end.close()

    def drop(self) -> None:
        """Close every connection, and forget each command that has not been delivered.

        Raises:
            CpsimError: the listener's thread is busy: it does so later.
        """
        if not self.change(self._drop):
            raise CpsimError("a daemon has not dropped its commands: it is busy")

    def change(self, change: Callable[[], object]) -> bool:
        """Have a step make a change; return whether it has, or no thread takes the steps."""
        if not self._thread.is_alive():
            return True
        done = threading.Event()

        def make() -> None:
            change()
            done.set()

        self.call(make)
        return done.wait(CHANGE_TIMEOUT_S)

    def call(self, reaction: Callable[[], object]) -> None:
        """Have the next step do something; called from any thread."""
        self._calls.put(reaction)
        with suppress(OSError):  # the listener is awake already, or has ended
            self._wake.send(b"\0")

    def schedule(self, delay_s: float, action: Callable[[], object], connection: FrameConnection | None = None) -> None:
        """Have a step do something after a delay, for a connection or for none."""
        heappush(self._scheduled, (self._now_s() + delay_s, next(self._number), action, connection))

    def unschedule(self, action: Callable[[], object]) -> None:
        """Forget an action that was scheduled for no connection."""
        self._scheduled = [due for due in self._scheduled if due[2] != action]
        heapify(self._scheduled)

    def refuse_connections(self) -> None:
        """Refuse connections, in a step; clients that have connected are answered."""
        if not self._refusing:
            self._addresses = self._addresses or [(sock.family, sock.getsockname()) for sock in self._sockets]
            for sock in self._sockets:
                self._accept(sock)
                self._selector.unregister(sock)
                sock.close()
            self._sockets = [refusing(*address) for address in self._addresses]
            self.on_rebound()
            self._refusing = True

    def accept_connections(self) -> None:
        """Accept connections again, in a step."""
        if self._refusing:
            for sock in self._sockets:
                sock.listen(self._reading.backlog)
                sock.setblocking(False)  # noqa: FBT003
                self._selector.register(sock, selectors.EVENT_READ)
            self._refusing = False

    def connections(self) -> list[FrameConnection]:
        """The connections that are open, or whose command is not delivered; some twice."""
        watched = (key.data for key in self._selector.get_map().values())
        scheduled = (due[-1] for due in self._scheduled)
        return [each for each in (*watched, *self._fresh, *self._queue, *scheduled) if each is not None]

    def look_again(self, connection: FrameConnection) -> None:
        """Have the next step read what an answered client still sends."""
        self._fresh.append(connection)

    def hold(self, connection: FrameConnection) -> None:
        """Keep a connection, unanswered, until its client leaves."""
        connection.answered = connection.held = True
        self._watch(connection)

    def check(self) -> None:
        """Raise ThreadFailed if an unexpected error has ended the thread."""
        self._thread.check()

    @property
    def pending(self) -> int:
        """Number of acknowledged commands that have not been delivered."""
        return self._acknowledged - self._passed_on

    @property
    def passed_on(self) -> int:
        """Number of delivered commands."""
        return self._passed_on

    def step(self, *, wait: bool = False) -> None:
        """Take one turn: read, answer and pass on what has arrived, and end what is over.

        Args:
            wait: wait first for something to arrive, or for somebody's time to be over; else only look.
        """
        timeout_s, now_s, fresh = self._select_timeout_s() if wait else 0, self._now_s(), len(self._fresh)
        events = self._selector.select(timeout_s)
        self._looked_s = self._now_s()
        self._full = self._is_full()
        for key, _ in events:
            if key.data is not None:
                self._receive(key.data)
            elif key.fileobj is self._wake_end:
                self._on_wake()
            else:
                self._accept(key.fileobj, self._reading.accepts)  # type: ignore[arg-type]
        for _ in range(min(fresh, len(self._fresh))):
            self._receive(self._fresh.popleft())
        if self.on_turn is not None:
            self.on_turn(self._acknowledged)
        self._end_waits(now_s)  # the time before the select: bytes that have arrived since are read first
        self.replies.count()
        self.on_progress()
        self._pass_on()
        self.on_progress()

    def _serve(self) -> None:
        try:
            while not self._stopping:
                self.step(wait=True)
        except BaseException:
            self._close_all()
            raise
        self._finish()

    def _close_all(self) -> None:
        """Close all sockets, so that no client waits for an answer."""
        for sock in (*(connection.sock for connection in self.connections()), *self._sockets):
            sock.close()
        self._selector.close()

    def _drop(self) -> None:
        """Close every connection, and forget each command that has not been delivered."""
        for connection in self.connections():
            self.close(connection)
        self._scheduled = [due for due in self._scheduled if due[-1] is None]
        heapify(self._scheduled)
        self._passed_on += len(self._queue)
        self._queue.clear()
        self._fresh.clear()

    def _on_wake(self) -> None:
        """Handle what was sent to `_wake`: read it first, so that what comes from then on wakes again."""
        with suppress(BlockingIOError):
            self._wake_end.recv(READ_BYTES)
        while not self._calls.empty():
            self._calls.get()()

    def _select_timeout_s(self) -> float | None:
        if self._fresh:
            return CLOSE_WAIT_S
        deadlines = [next(iter(pool)).deadline for pool in (self._silent, self._quiet) if pool]
        if self._scheduled:
            deadlines.append(self._scheduled[0][0])
        return max(0.0, min(deadlines) - self._now_s()) if deadlines else None

    def _accept(self, listening: socket.socket, most: int = ACCEPTS_A_TURN) -> None:
        for turn in range(most):
            try:
                fd, _peer = listening._accept()  # type: ignore[attr-defined]  # noqa: SLF001 - accept() costs three times as much
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in {errno.EMFILE, errno.ENFILE}:
                    if turn:
                        return  # a full table is reported even if no client waits
                    self._free_descriptor()
                continue
            self._receive(FrameConnection(self._client(fd)))

    def _free_descriptor(self) -> None:
        """Close the client that has been silent longest, because no descriptor is free."""
        pool = self._silent or self._quiet
        if pool:
            self.close(next(iter(pool)))
        else:
            self._sleep(CLOSE_WAIT_S)

    def _receive(self, connection: FrameConnection) -> None:
        if connection.sealed:
            return
        try:
            data = connection.sock.recv(self._read_bytes, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._watch(connection)
            return
        except OSError:
            data = b""
        if connection.answered:
            self._receive_more(connection, data)
            return
        if not connection.frame:
            connection.since_s = self._looked_s
        frame = connection.frame = connection.frame + data
        ended = not data or self._reads_once or b"\n" in frame.lstrip()
        if not frame:
            (self._refuse if self._reading.answers_silence else self.close)(connection)
            return
        if self._waits is not None:
            self._waits.begin(connection, frame.decode(errors="replace").strip(), self._waits.now_s())
        try:
            call = self._parse(frame)
        except MalformedFrame:
            (self._refuse if ended or cannot_complete(frame) else self._watch)(connection)
        else:
            if self._full:
                self._refuse(connection)
            else:
                self.admit(connection, call, ended)

    def acknowledge(self, connection: FrameConnection, call: Call, ended: bool) -> None:  # noqa: FBT001
        """Accept a command, and answer it."""
        connection.call = call
        connection.answered = True
        self._queue.append(connection)
        self._acknowledged += 1
        self.reply(connection, b"OK")
        if ended:
            self.close(connection)
        else:
            self._quiet.pop(connection, None)  # its timeout restarts
            self._fresh.append(connection)

    def _refuse(self, connection: FrameConnection) -> None:
        self._reject(connection.frame)
        if self._reading.hangs_up(connection.frame):
            self.close(connection)
            return
        connection.answered = True
        self.reply(connection, b"ER")
        self._fresh.append(connection)

    def _reject(self, frame: bytes) -> None:
        self.malformed += 1
        self.on_malformed(frame)

    def reply(self, connection: FrameConnection, reply: bytes) -> None:
        """Reply to a command, or have its faults do so."""
        self._looked_s = self._now_s()
        self.replies.note(connection, reply, self._looked_s)
        if connection.answer is None:
            self.send(connection, reply)
        else:
            connection.answer(reply)

    def send(self, connection: FrameConnection, reply: bytes) -> None:
        """Send the reply to a command."""
        if self._waits is not None:
            self._waits.end(connection)
        try:  # noqa: SIM105 - suppress() takes longer than all the rest of this
            connection.sock.send(reply, socket.MSG_DONTWAIT)
        except OSError:
            pass  # the client is gone; its command still counts

    def _receive_more(self, connection: FrameConnection, data: bytes) -> None:
        """Append bytes after the answer to an acknowledged frame; discard them after a refusal."""
        if not data:
            self.close(connection)
            return
        if connection.call is not None:
            connection.frame += data
            connection.grown = True
            if b"\n" in data or len(connection.frame) > READ_BYTES:
                self.close(connection)
                return
        self._watch(connection)

    def _watch(self, connection: FrameConnection) -> None:
        """Wait for more bytes of a client, until the timeout of its state."""
        if connection.answered and not (connection.shut or connection.held):
            connection.end_sending()
        if not connection.watched:
            connection.watched = True
            self._selector.register(connection.sock, selectors.EVENT_READ, connection)
        if connection.held:
            return
        if connection.answered and connection in self._quiet:
            return  # an answered client cannot extend its timeout
        self._silent.pop(connection, None)
        self._quiet.pop(connection, None)
        has_begun = connection.frame or connection.answered
        pool, time_s = (self._quiet, QUIET_S) if has_begun else (self._silent, SILENCE_S)
        connection.deadline = self._now_s() + time_s
        pool[connection] = None

    def _end_waits(self, now: float) -> None:
        for pool in (self._silent, self._quiet):
            while pool:
                connection = next(iter(pool))
                if connection.deadline > now:
                    break
                del pool[connection]
                if connection.answered or not connection.frame:
                    self.close(connection)
                else:
                    self._refuse(connection)
        while self._scheduled and self._scheduled[0][0] <= now:
            heappop(self._scheduled)[2]()

    def close(self, connection: FrameConnection) -> None:
        """Close a connection; an acknowledged command is then final."""
        if self._waits is not None:
            self._waits.end(connection)
        self.unwatch(connection)
        connection.sock.close()
        connection.sealed = True

    def unwatch(self, connection: FrameConnection) -> None:
        """Wait no more for bytes of a client."""
        if connection.watched:
            connection.watched = False
            self._selector.unregister(connection.sock)
            self._silent.pop(connection, None)
            self._quiet.pop(connection, None)

    def _pass_on(self) -> None:
        queue = self._queue
        calls: list[Call] = []
        sealed = 0
        while queue and queue[0].sealed:
            connection = queue.popleft()
            sealed += 1
            try:
                call = self._parse(connection.frame) if connection.grown else connection.call
            except MalformedFrame:
                self._reject(connection.frame)
            else:
                assert call is not None
                calls.append(call)
        if calls:
            self._deliver(calls)
        self._passed_on += sealed

    def _finish(self) -> None:
        for listening in self._sockets:
            if not self._refusing:
                self._accept(listening)
                self._selector.unregister(listening)  # the next client may get its descriptor
            listening.close()
        while self._scheduled:
            *_, action, connection = heappop(self._scheduled)
            if connection is not None:
                action()
        for connection in self.connections():
            if connection.held:
                self.close(connection)
        for connection in [*self._fresh, *self._silent, *self._quiet]:
            self._receive(connection)  # what has arrived still counts
        self._await_answers()
        for connection in [*self._fresh, *self._silent, *self._quiet]:
            if not connection.answered and connection.frame:
                self._refuse(connection)
            self.close(connection)
        self._pass_on()
        self._selector.close()

    def _await_answers(self) -> None:
        """Wait until every accepted command is answered; here, each is already."""

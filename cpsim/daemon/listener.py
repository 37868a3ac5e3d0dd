"""The daemon's sockets: one command per connection, a frame in, `OK` or `ER` out.

The wire format has no terminator, so the listener detects the end of a frame:

- A newline or the end of the stream ends a frame.
- Without either, a well-formed frame is acknowledged at once, or the client would wait for ever. It may have been only
  the first segment, so the connection is *held*: bytes until the client closes still belong to the frame. A client that
  does not close has `QUIET_S`.
- A malformed frame has `QUIET_S` to become well formed, and is then answered `ER`.

Commands are delivered in the order of their acknowledgement. A plain loop over raw sockets answers a command in four
system calls (accept, read, write, close); an event loop of callbacks takes twice as long.
"""

from __future__ import annotations

import errno
import selectors
import socket
from _socket import socket as RawSocket  # noqa: N812 - the class below `socket.socket`
from collections import OrderedDict, deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from cpdaemon.commands import KINDS
from cpdaemon.wire import MAX_FRAME_BYTES, MalformedFrame, parse
from cpsim.clock import SYSTEM_CLOCK
from cpsim.system.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cpsim.clock import Clock

    Call = tuple[str, dict[str, str]]

BACKLOG: Final = 4096
QUIET_S: Final = 0.1
SILENCE_S: Final = 30.0
"""Time for a client to begin its frame."""
ACCEPTS_A_TURN: Final = 256
READ_BYTES: Final = 2 * MAX_FRAME_BYTES
CLOSE_WAIT_S: Final = 0.0005
"""Time for an answered client to close before its socket is registered."""


class Link:
    """A listener's network: which sockets have something, and who connects. A simulation replaces it."""

    def __init__(self) -> None:
        self.selector: selectors.BaseSelector = selectors.DefaultSelector()
        self.wake_end, self.wake = socket.socketpair()
        """Ends of a connection to itself: what is sent to `wake` ends a wait."""
        self.client: Callable[[int], RawSocket] = partial(RawSocket, socket.AF_UNSPEC, socket.SOCK_STREAM, 0)
        """Returns the socket of an accepted client."""


class _Connection:
    """One client: its frame and the state of its answer.

    Attributes:
        call: the acknowledged command, outdated if the frame has `grown` since.
        position: of the command in a spool; 0 before.
        stored: whether the spool has a frame of it on disk.
        answered: whether `OK` or `ER` was sent, or is due once the spool has the command.
        ended: whether the frame is complete.
        sealed: whether the connection is closed, so that the command is final.
        shut: whether the sending side was shut down, which tells the client that no more follows.
        watched: whether the socket is registered with the selector.
    """

    frame = b""
    call: Call | None = None
    deadline = 0.0
    position = 0
    stored = answered = ended = grown = sealed = shut = watched = False

    def __init__(self, sock: RawSocket) -> None:
        self.sock = sock


class Listener:
    """Serves the daemon protocol on bound stream sockets: a step function, which `start` has a thread drive.

    Args:
        sockets: bound and listening; closed by `stop`.
        deliver: called in a step with the accepted commands, in order; must not block for long.
        is_full: returns whether commands are to be answered `ER` because there is no room.
        clock: by which clients have their time.
        link: its network.
    """

    def __init__(
        self,
        sockets: Iterable[socket.socket],
        deliver: Callable[[list[Call]], object],
        is_full: Callable[[], bool] = lambda: False,
        clock: Clock = SYSTEM_CLOCK,
        link: Link | None = None,
    ) -> None:
        self._sockets = list(sockets)
        self._deliver = deliver
        self._is_full = is_full
        self._full = False
        self._admit = self._acknowledge
        self._parse: Callable[[bytes], Call] = parse
        self._read_bytes = READ_BYTES
        self._reads_once = False
        self._now_s = clock.monotonic
        self._sleep = clock.sleep
        link = Link() if link is None else link
        self._selector = link.selector
        self._client = link.client
        self._wake_end, self._wake = link.wake_end, link.wake
        self._queue: deque[_Connection] = deque()
        self._fresh: deque[_Connection] = deque()
        self._silent: OrderedDict[_Connection, None] = OrderedDict()
        self._quiet: OrderedDict[_Connection, None] = OrderedDict()
        self._thread = Thread(self._serve, "cpsim-daemon")
        self._stopping = False
        self._acknowledged = self._passed_on = 0
        self.malformed = 0
        self.on_malformed: Callable[[bytes], object] = bytes
        """Called in a step with each refused or malformed frame."""

    def open(self) -> None:
        """Begin to accept, as far as `step` is called."""
        for sock in (*self._sockets, self._wake_end):
            sock.setblocking(False)  # noqa: FBT003
            self._selector.register(sock, selectors.EVENT_READ)

    def start(self) -> None:
        """Begin to accept, and have a thread take the steps."""
        self.open()
        self._thread.start()

    def stop(self) -> None:
        """Stop accepting, answer what has arrived, deliver what was acknowledged, and close."""
        self._stopping = True
        if self._thread.ident is None:
            self._finish()
        else:
            self._wake.send(b"\0")
            self._thread.join()
        self._wake.close()
        self._wake_end.close()

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
        timeout_s, now_s = self._select_timeout_s() if wait else 0, self._now_s()
        events = self._selector.select(timeout_s)
        self._full = self._is_full()
        for key, _ in events:
            if key.data is not None:
                self._receive(key.data)
            elif key.fileobj is self._wake_end:
                self._on_wake()
            else:
                self._accept(key.fileobj)  # type: ignore[arg-type]
        for _ in range(len(self._fresh)):
            self._receive(self._fresh.popleft())
        self._end_waits(now_s)  # the time before the select: bytes that have arrived since are read first
        self._pass_on()

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
        waiting = {key.data.sock for key in self._selector.get_map().values() if key.data is not None}
        waiting |= {connection.sock for connection in (*self._fresh, *self._queue)}
        for sock in (*waiting, *self._sockets):
            sock.close()
        self._selector.close()

    def _drop(self) -> None:
        """Close every connection, and forget each command that has not been delivered."""
        watched = [key.data for key in self._selector.get_map().values() if key.data is not None]
        for connection in (*watched, *self._fresh, *self._queue):
            self._close(connection)
        self._passed_on += len(self._queue)
        self._queue.clear()
        self._fresh.clear()

    def _on_wake(self) -> None:
        """Handle what was sent to `_wake`: read it first, so that what comes from then on wakes again."""
        with suppress(BlockingIOError):
            self._wake_end.recv(READ_BYTES)

    def _select_timeout_s(self) -> float | None:
        if self._fresh:
            return CLOSE_WAIT_S
        deadlines = [next(iter(pool)).deadline for pool in (self._silent, self._quiet) if pool]
        return max(0.0, min(deadlines) - self._now_s()) if deadlines else None

    def _accept(self, listening: socket.socket) -> None:
        for turn in range(ACCEPTS_A_TURN):
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
            self._receive(_Connection(self._client(fd)))

    def _free_descriptor(self) -> None:
        """Close the client that has been silent longest, because no descriptor is free."""
        pool = self._silent or self._quiet
        if pool:
            self._close(next(iter(pool)))
        else:
            self._sleep(CLOSE_WAIT_S)

    def _receive(self, connection: _Connection) -> None:
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
        frame = connection.frame = connection.frame + data
        ended = not data or self._reads_once or b"\n" in frame.lstrip()
        if not frame:
            self._close(connection)
            return
        try:
            call = self._parse(frame)
        except MalformedFrame:
            if ended or _cannot_complete(frame):
                self._refuse(connection)
            else:
                self._watch(connection)
        else:
            if self._full:
                self._refuse(connection)
            else:
                self._admit(connection, call, ended)

    def _acknowledge(self, connection: _Connection, call: Call, ended: bool) -> None:  # noqa: FBT001
        connection.call = call
        connection.answered = True
        self._queue.append(connection)
        self._acknowledged += 1
        self._reply(connection, b"OK")
        if ended:
            self._close(connection)
        else:
            self._quiet.pop(connection, None)  # its timeout restarts
            self._fresh.append(connection)

    def _refuse(self, connection: _Connection) -> None:
        self._reject(connection.frame)
        connection.answered = True
        self._reply(connection, b"ER")
        self._fresh.append(connection)

    def _reject(self, frame: bytes) -> None:
        self.malformed += 1
        self.on_malformed(frame)

    def _reply(self, connection: _Connection, reply: bytes) -> None:
        try:  # noqa: SIM105 - suppress() takes longer than all the rest of this
            connection.sock.send(reply, socket.MSG_DONTWAIT)
        except OSError:
            pass  # the client is gone; its command still counts

    def _shut(self, connection: _Connection) -> None:
        """Shut down the sending side toward an answered client that has not closed."""
        connection.shut = True
        with suppress(OSError):
            connection.sock.shutdown(socket.SHUT_WR)

    def _receive_more(self, connection: _Connection, data: bytes) -> None:
        """Append bytes after the answer to an acknowledged frame; discard them after a refusal."""
        if not data:
            self._close(connection)
            return
        if connection.call is not None:
            connection.frame += data
            connection.grown = True
            if b"\n" in data or len(connection.frame) > READ_BYTES:
                self._close(connection)
                return
        self._watch(connection)

    def _watch(self, connection: _Connection) -> None:
        """Wait for more bytes of a client, until the timeout of its state."""
        if connection.answered and not connection.shut:
            self._shut(connection)
        if not connection.watched:
            connection.watched = True
            self._selector.register(connection.sock, selectors.EVENT_READ, connection)
        if connection.answered and connection in self._quiet:
            return  # an answered client cannot extend its timeout
        self._silent.pop(connection, None)
        self._quiet.pop(connection, None)
        if connection.frame or connection.answered:
            connection.deadline = self._now_s() + QUIET_S
            self._quiet[connection] = None
        else:
            connection.deadline = self._now_s() + SILENCE_S
            self._silent[connection] = None

    def _end_waits(self, now: float) -> None:
        for pool in (self._silent, self._quiet):
            while pool:
                connection = next(iter(pool))
                if connection.deadline > now:
                    break
                del pool[connection]
                if connection.answered or not connection.frame:
                    self._close(connection)
                else:
                    self._refuse(connection)

    def _close(self, connection: _Connection) -> None:
        """Close a connection; an acknowledged command is then final."""
        self._unwatch(connection)
        connection.sock.close()
        connection.sealed = True

    def _unwatch(self, connection: _Connection) -> None:
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
            self._accept(listening)
            self._selector.unregister(listening)  # the next client may get its descriptor
            listening.close()
        for connection in [*self._fresh, *self._silent, *self._quiet]:
            self._receive(connection)  # what has arrived still counts
        self._await_answers()
        for connection in [*self._fresh, *self._silent, *self._quiet]:
            if not connection.answered and connection.frame:
                self._refuse(connection)
            self._close(connection)
        self._pass_on()
        self._selector.close()

    def _await_answers(self) -> None:
        """Wait until every accepted command is answered; here, each is already."""


def _cannot_complete(frame: bytes) -> bool:
    """Return whether no further bytes can make this frame well formed."""
    word, comma, _ = frame.lstrip().lower().partition(b",")
    kinds = [kind.encode() for kind in KINDS]
    if comma:
        return len(frame) > READ_BYTES or word not in kinds
    return len(frame) > READ_BYTES or not any(kind.startswith(word) for kind in kinds)

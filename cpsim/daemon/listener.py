"""The daemon's sockets: one command per connection, a frame in, `OK` or `ER` out.

The wire format has no terminator, so where a frame ends must be told from what arrives:

- a newline or the end of the stream ends a frame;
- without either, a frame that is well formed is acknowledged at once, or the client would wait for ever; but it
  may have been only the first segment, so the connection is *held*: what follows until the client closes still
  belongs to the frame. A client that does not close is given `QUIET_S`.
- a frame that is not well formed yet is given `QUIET_S` to become so, then answered `ER`.

Commands are passed on in the order in which they were acknowledged. A plain loop over raw sockets answers a
command in the system calls it takes to accept, read, write and close; an event loop of callbacks takes twice as
long.
"""

from __future__ import annotations

import errno
import selectors
import socket
from _socket import socket as RawSocket  # noqa: N812 - the class below `socket.socket`
from collections import OrderedDict, deque
from contextlib import suppress
from time import monotonic, sleep
from typing import TYPE_CHECKING, Final

from cpdaemon.commands import KINDS
from cpdaemon.wire import MAX_FRAME_BYTES, MalformedFrame, parse
from cpsim.system.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Call = tuple[str, dict[str, str]]

BACKLOG: Final = 4096
QUIET_S: Final = 0.1
SILENCE_S: Final = 30.0
"""How long a client may take to begin its frame."""
ACCEPTS_A_TURN: Final = 256
READ_BYTES: Final = 2 * MAX_FRAME_BYTES
SOON_S: Final = 0.0005
"""How long a client that has its answer is given to close before it is watched."""


class _Connection:
    """One client: what it sent, and what it was told.

    Once acknowledged, `call` is its command, unless the frame has `grown` since. `sealed` says that the client
    is gone, and nothing can change the command any more. `position` is where a spool has it. `shut` says that the
    client was told that no more follows the answer, which closing says by itself.
    """

    frame = b""
    call: Call | None = None
    deadline = 0.0
    position = 0
    answered = ended = grown = sealed = shut = watched = False

    def __init__(self, sock: RawSocket) -> None:
        self.sock = sock


class Listener:
    """Serves the daemon protocol on bound stream sockets, in a thread of its own.

    Args:
        sockets: bound and listening; closed by `stop`.
        deliver: called in the thread with the commands that came in, in order; must not block for long.
        is_full: whether no more commands can be taken; then they are answered `ER`.
    """

    def __init__(
        self,
        sockets: Iterable[socket.socket],
        deliver: Callable[[list[Call]], object],
        is_full: Callable[[], bool] = lambda: False,
    ) -> None:
        self._sockets = list(sockets)
        self._deliver = deliver
        self._is_full = is_full
        self._full = False
        self._admit = self._acknowledge
        self._parse = parse
        self._read_bytes = READ_BYTES
        self._reads_once = False
        self._selector = selectors.DefaultSelector()
        self._wake_end, self._wake = socket.socketpair()
        self._queue: deque[_Connection] = deque()
        self._fresh: deque[_Connection] = deque()
        self._silent: OrderedDict[_Connection, None] = OrderedDict()
        self._quiet: OrderedDict[_Connection, None] = OrderedDict()
        self._thread = Thread(self._serve, "cpsim-daemon")
        self._stopping = False
        self._acknowledged = self._passed_on = 0
        self.malformed = 0
        self.on_malformed: Callable[[bytes], object] = bytes
        """Called in the thread with each frame that was not taken, or turned out to be none."""

    def start(self) -> None:
        """Begin to accept."""
        for sock in (*self._sockets, self._wake_end):
            sock.setblocking(False)  # noqa: FBT003
            self._selector.register(sock, selectors.EVENT_READ)
        self._thread.start()

    def stop(self) -> None:
        """Stop accepting, answer what has arrived, pass on what was acknowledged, and close."""
        self._stopping = True
        self._wake.send(b"\0")
        self._thread.join()
        self._wake.close()
        self._wake_end.close()

    def check(self) -> None:
        """Raise ThreadFailed if it has ended by an error that nobody expected."""
        self._thread.check()

    @property
    def pending(self) -> int:
        """How many acknowledged commands have not been passed on."""
        return self._acknowledged - self._passed_on

    @property
    def passed_on(self) -> int:
        """How many commands have been passed on."""
        return self._passed_on

    def _serve(self) -> None:
        try:
            self._turn_until_stopped()
        except BaseException:
            self._break_off()
            raise
        self._finish()

    def _break_off(self) -> None:
        """Let nobody wait for an answer that does not come."""
        waiting = {key.data.sock for key in self._selector.get_map().values() if key.data is not None}
        waiting |= {connection.sock for connection in (*self._fresh, *self._queue)}
        for sock in (*waiting, *self._sockets):
            sock.close()
        self._selector.close()

    def _turn_until_stopped(self) -> None:
        while not self._stopping:
            patience_s, now = self._patience_s(), monotonic()
            events = self._selector.select(patience_s)
            self._full = self._is_full()
            for key, _ in events:
                if key.data is not None:
                    self._receive(key.data)
                elif key.fileobj is self._wake_end:
                    self._woken()
                else:
                    self._accept(key.fileobj)  # type: ignore[arg-type]
            for _ in range(len(self._fresh)):
                self._receive(self._fresh.popleft())
            self._end_waits(now)  # before the sockets were looked at: what has arrived since then is read first
            self._pass_on()

    def _woken(self) -> None:
        """Something was sent to `_wake`."""

    def _patience_s(self) -> float | None:
        if self._fresh:
            return SOON_S
        deadlines = [next(iter(pool)).deadline for pool in (self._silent, self._quiet) if pool]
        return max(0.0, min(deadlines) - monotonic()) if deadlines else None

    def _accept(self, listening: socket.socket) -> None:
        for turn in range(ACCEPTS_A_TURN):
            try:
                fd, _peer = listening._accept()  # type: ignore[attr-defined]  # noqa: SLF001 - accept() costs three times as much
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in {errno.EMFILE, errno.ENFILE}:
                    if turn:
                        return  # a full table is reported whether or not anybody waits
                    self._make_room()
                continue
            self._receive(_Connection(RawSocket(socket.AF_UNSPEC, socket.SOCK_STREAM, 0, fd)))

    def _make_room(self) -> None:
        """No descriptor is left: let go of the client that has been silent longest."""
        pool = self._silent or self._quiet
        if pool:
            self._close(next(iter(pool)))
        else:
            sleep(SOON_S)

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
            if ended or _is_hopeless(frame):
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
            self._quiet.pop(connection, None)  # its time begins anew
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
            pass  # the client is gone; what it sent still counts

    def _shut(self, connection: _Connection) -> None:
        """Tell a client that has its answer, and has not closed, that no more follows."""
        connection.shut = True
        with suppress(OSError):
            connection.sock.shutdown(socket.SHUT_WR)

    def _receive_more(self, connection: _Connection, data: bytes) -> None:
        """What comes after the answer completes an acknowledged frame; after a refusal it is thrown away."""
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
        """Wait for more from a client, for as long as its state allows."""
        if connection.answered and not connection.shut:
            self._shut(connection)
        if not connection.watched:
            connection.watched = True
            self._selector.register(connection.sock, selectors.EVENT_READ, connection)
        if connection.answered and connection in self._quiet:
            return  # an answered client cannot put off its end
        self._silent.pop(connection, None)
        self._quiet.pop(connection, None)
        if connection.frame or connection.answered:
            connection.deadline = monotonic() + QUIET_S
            self._quiet[connection] = None
        else:
            connection.deadline = monotonic() + SILENCE_S
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
        """Let a client go; if its command was acknowledged, the command is now final."""
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
            self._selector.unregister(listening)  # its number may be the next client's
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
        """Come to where every command that was taken has its answer: here, it has."""


def _is_hopeless(frame: bytes) -> bool:
    """Whether nothing that may follow can make this frame well formed."""
    word, comma, _ = frame.lstrip().lower().partition(b",")
    kinds = [kind.encode() for kind in KINDS]
    if comma:
        return len(frame) > READ_BYTES or word not in kinds
    return len(frame) > READ_BYTES or not any(kind.startswith(word) for kind in kinds)

"""The daemon's sockets in front of a spool: a command is on disk before it is answered OK.

The commands of one turn of the loop are written to the spool together, and answered once they are on disk. The wire
format has no terminator, so a frame may have grown during the write. Then the longer frame replaces the shorter, and is
answered once it is on disk too: OK covers all bytes that had arrived. Bytes after the OK, until the client closes,
still belong to the frame: they amend the spool, which holds the command back until then. If the daemon is killed before
that, the command is delivered as it was answered.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from socket import MSG_DONTWAIT
from typing import TYPE_CHECKING

from cpdaemon.wire import MalformedFrame, parse
from cpsim.clock import SYSTEM_CLOCK
from cpsim.daemon.listener import QUIET_S, Listener
from cpsim.daemon.spool import text_of
from cpsim.errors import CpsimError
from cpsim.quirks.policies.reading import DOCUMENTED, READ_BYTES, ReadingPolicy
from cpsim.store.log import InDoubt

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from cpsim.clock import Clock
    from cpsim.daemon.link import FrameConnection, Link
    from cpsim.daemon.listener import Call
    from cpsim.daemon.spool import Spool
    from cpsim.metrics.waits import Waits

log = logging.getLogger(__name__)


class DurableListener(Listener):
    """Serves the daemon protocol on bound stream sockets, into a spool.

    Args:
        sockets: bound and listening; closed by `stop`.
        spool: receiver of the commands; when it is full, they are answered `ER`.
        clock: as of `Listener`.
        link: likewise.
        waits: likewise.
        reading: likewise.
    """

    def __init__(
        self,
        sockets: Iterable[socket.socket],
        spool: Spool,
        clock: Clock = SYSTEM_CLOCK,
        link: Link | None = None,
        *,
        waits: Waits | None = None,
        reading: ReadingPolicy = DOCUMENTED,
    ) -> None:
        super().__init__(sockets, _already_spooled, lambda: spool.is_full, clock, link, waits=waits, reading=reading)
        self._spool = spool
        self._taken: list[FrameConnection] = []
        self._writing = 0
        self._passed_to = 0
        """The position up to which connections are closed."""
        self._amended: dict[int, str] = {}
        """Amendments up to there that are not known to be on disk."""
        self._can_write = True

    def stop(self) -> None:
        """Stop accepting, answer what has arrived, and release every answered command for delivery."""
        super().stop()
        with suppress(CpsimError):  # then the last ones stay in the spool until the next start
            self._spool.wait()

    def acknowledge(self, connection: FrameConnection, call: Call, ended: bool) -> None:  # noqa: D102, FBT001 - inherited
        connection.call = call
        connection.answered = True
        connection.ended = ended
        self.unwatch(connection)
        self._queue.append(connection)
        self._acknowledged += 1
        self._taken.append(connection)

    def _pass_on(self) -> None:
        if self._taken:
            self._put()
        queue, passed_to = self._queue, self._passed_to
        while queue and queue[0].sealed:
            connection = queue.popleft()
            self._passed_on += 1
            self._passed_to = connection.position
            if connection.grown:
                self._amended[connection.position] = self._final_frame(connection)
        if self._passed_to != passed_to:
            self._release()

    def _put(self) -> None:
        taken, self._taken = self._taken, []
        new = [connection for connection in taken if not connection.position]
        amended = {connection.position: self._text(connection) for connection in taken if connection.position}
        self._writing += 1
        last = self._spool.put([self._text(connection) for connection in new], amended, partial(self._report, taken))
        for position, connection in enumerate(new, last - len(new) + 1):
            connection.position = position

    def _report(self, taken: list[FrameConnection], problem: CpsimError | None) -> None:
        """Report from the spool's thread that commands were written, or the error."""
        self.call(partial(self._answer, taken, problem))

    def _drop(self) -> None:
        super()._drop()
        self._taken.clear()
        self._amended.clear()
        self.unschedule(self._release)

    def _answer(self, taken: list[FrameConnection], problem: CpsimError | None) -> None:
        self._writing -= 1
        if self._can_write and problem is not None:
            log.error("%s: commands are answered ER until the spool can be written", problem)
        elif not self._can_write and problem is None:
            log.info("the spool can be written again")
        self._can_write = problem is None
        for connection in taken:
            if connection.sealed:
                continue  # it was dropped meanwhile
            if problem is not None:
                connection.call = None
                connection.grown = connection.stored  # delete the shorter frame from the disk
                if connection.stored or isinstance(problem, InDoubt):
                    self.close(connection)  # neither OK nor ER may be true: a restart may find some of it
                else:
                    self._refuse(connection)
                continue
            connection.stored = True
            if not self._has_grown(connection):
                self.reply(connection, b"OK")
                if connection.ended:
                    self.close(connection)
                else:
                    self._fresh.append(connection)

    def _has_grown(self, connection: FrameConnection) -> bool:
        """Return whether more bytes have made a longer command, which is then written to the spool."""
        if connection.ended:
            return False
        try:
            data = connection.sock.recv(READ_BYTES, MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        connection.frame += data
        connection.ended = not data or b"\n" in data or len(connection.frame) > READ_BYTES
        if not data:
            return False
        try:
            self._parse(connection.frame)
        except MalformedFrame:
            connection.grown = True
            return False
        self._taken.append(connection)
        return True

    def _final_frame(self, connection: FrameConnection) -> str:
        """Return the text of a complete frame; "" if it is malformed now."""
        try:
            if connection.call is not None:
                self._parse(connection.frame)
                return self._text(connection)
        except MalformedFrame:
            self._reject(connection.frame)
        return ""

    def _release(self) -> None:
        """Release commands once their amendments, and those of earlier commands, are on disk."""
        position, amended = self._passed_to, self._amended.copy()
        self.unschedule(self._release)

        def written(problem: CpsimError | None) -> None:
            if problem is None or not amended:
                self._spool.release(position)
            if amended:
                self.call(partial(self._on_amended, position, problem))

        self._spool.put([], amended, written)

    def _on_amended(self, position: int, problem: CpsimError | None) -> None:
        if problem is None:
            self._amended = {at: frame for at, frame in self._amended.items() if at > position}
        else:
            self.schedule(QUIET_S, self._release)

    def _finish(self) -> None:
        super()._finish()
        if self._amended:
            self._release()  # once more, now and not after a while: what could not be written may be by now

    def _text(self, connection: FrameConnection) -> str:
        """Return the text of a command in the spool."""
        return connection.frame.strip().decode() if self._parse is parse else text_of(self._parse(connection.frame))

    def _await_answers(self) -> None:
        self._pass_on()
        while self._writing:
            with suppress(CpsimError):  # the answers say so
                self._spool.wait()
            self._calls.get()()
            self._pass_on()


def _already_spooled(_: list[Call]) -> None:
    """Do nothing: the spool has the commands."""

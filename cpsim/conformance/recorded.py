"""Connections whose traffic is in the transcript: to a server for several requests, and to a daemon."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from cpsim.conformance.findings import shown_bytes
from cpsim.conformance.frames import DaemonConnection

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from cpsim.conformance.examiner import Examiner
    from cpsim.conformance.exchange import HttpConnection, HttpRequest, Reply
    from cpsim.conformance.transport import Transport

BETWEEN_PIECES_S: Final = 0.002


class KeptConnection:
    """A connection to a server, on which several requests are sent.

    Args:
        examiner: writes the transcript.
        transport: counts what is sent.
        connection: the connection.
    """

    def __init__(self, examiner: Examiner, transport: Transport, connection: HttpConnection) -> None:
        self._examiner = examiner
        self._transport = transport
        self._connection = connection
        self._replies = 0
        self._unanswered: deque[HttpRequest] = deque()

    @property
    def is_open(self) -> bool:
        """Whether the server may answer one more request."""
        return self._connection.is_open

    def send(self, *requests: HttpRequest, pieces: Sequence[int] = ()) -> None:
        """Send requests at once, or in pieces that end at these places."""
        data = b""
        for request in requests:
            self._transport.count()
            self._examiner.note_request(request, ", on a connection that is kept")
            self._unanswered.append(request)
            data += request.encode(self._connection.authority, kept=True)
        for begin, end in pairwise([0, *(place for place in pieces if place < len(data)), len(data)]):
            self._connection.send(data[begin:end])
            if end < len(data):
                self._transport.clock.sleep(BETWEEN_PIECES_S)

    def reply(self, method: str = "POST") -> Reply | None:
        """The reply to the next request; None if the server has closed the connection before it, as any server may."""
        reply = self._connection.reply(method)
        if self._replies and not reply.status and not reply.is_late:
            self._examiner.note_seen(f"< {reply}")
            return None
        self._replies += 1
        return self._examiner.seen(reply, self._unanswered.popleft() if self._unanswered else None)

    def ask(self, request: HttpRequest) -> Reply | None:
        """Send a request and read its reply; None if the server has closed the connection."""
        if not self.is_open:
            return None
        self.send(request)
        return self.reply(request.method)


class RecordedConnection(DaemonConnection):
    """A connection to a daemon whose traffic is in the transcript."""

    def __init__(self, examiner: Examiner, sock: socket.socket) -> None:
        super().__init__(sock)
        self._examiner = examiner
        self._frame = b""

    def send(self, data: bytes) -> None:  # noqa: D102 - see DaemonConnection
        self._examiner.note_sent(shown_bytes(data))
        self._frame += data
        super().send(data)

    def end(self) -> None:  # noqa: D102 - see DaemonConnection
        self._examiner.note_seen("> (end of what is sent)")
        super().end()

    def reply(self) -> str:  # noqa: D102 - see DaemonConnection
        reply = super().reply()
        self._examiner.note_seen(f"< {reply}")
        if reply == "OK":
            self._examiner.note_acknowledged(self._frame)
        return reply

    def everything(self) -> str:  # noqa: D102 - see DaemonConnection
        reply = super().everything()
        self._examiner.note_seen(f"< {reply!r}, and the daemon closes" if reply else f"< {reply}")
        return reply

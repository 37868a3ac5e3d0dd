"""The same client for an asyncio event loop; the only module of this package that imports asyncio."""

import asyncio
import os
import select
from collections.abc import Iterable, Mapping

from cpdaemon.client import BaseClient, Outcome
from cpdaemon.commands import Alloc, Claim, Command, Counters, Discard, Meta
from cpdaemon.endpoint import Endpoint, UnixEndpoint, UrlEndpoint
from cpdaemon.errors import CreditPiggyError, ReplyLost
from cpdaemon.http import ReplyParser, request
from cpdaemon.transport import MAX_PAUSE_S, connect_error, receive_error, tls_of, unix_socket

TYPE_CHECKING = False  # typing takes longer to import than this package
if TYPE_CHECKING:
    import socket
    from typing import Self

    from cpdaemon.client import Answer
    from cpdaemon.signing import Call

__all__ = ["AsyncClient"]

_REPLY_BYTES = 2


class AsyncClient(BaseClient):
    """A client of one daemon or one server for an asyncio event loop, whose tasks may share it.

    It has the calls of `Client`, with the same arguments, results and errors; each is awaited. Each command to a daemon
    has its own connection, and accepted means queued. Connections to a server are kept alive, and accepted means
    applied; `async with` or `close` ends them, in the loop that used them. No command is ever sent twice. A call that
    is cancelled ends its connection: the command may have been applied. Timeouts follow the loop's time.

    Args:
        endpoint: an address, as text (see `parse_endpoint`) or parsed.
        credentials: (project id, secret), for a URL only.
        timeout_s: seconds that one exchange may take, from connecting to the end of the reply; at most a day.
        algorithm: signature of requests to a URL: "sha-1", "sha-256" or "sha-512".
        ca: for https, file of the certificates of the authorities to trust, instead of the system's; PEM.
        client_cert: for https, file of the certificate that is shown to the server; PEM.
        client_key: file of its private key, unless it is in the same file.

    Raises:
        EndpointError: the endpoint, or the credentials or a file for it, cannot be used.
    """

    def _open(self) -> None:
        self._idle: list[_Connection] = []
        self._tls = tls_of(self._endpoint)

    async def __aenter__(self) -> "Self":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close idle connections, and refuse further commands."""
        self._closed = True
        while self._idle:
            await self._idle.pop().close()

    async def alloc(
        self,
        slot_id: str,
        min: int | None = None,
        max: int | None = None,
        credits: int | None = None,
        *,
        expire: int | None = None,
    ) -> None:
        """Allocate a slot; see `cpdaemon.cpapi_alloc`."""
        await self.send(Alloc(slot_id, credits, min, max, expire))

    async def discard(self, slot_id: str, reason: str | None = None) -> None:
        """Discard a slot; see `cpdaemon.cpapi_discard`."""
        await self.send(Discard(slot_id, reason))

    async def claim(self, slot_id: str, machine_id: str, credits: int | None = None) -> None:
        """Claim a slot; see `cpdaemon.cpapi_claim`."""
        await self.send(Claim(slot_id, machine_id, credits))

    async def counters(self, /, slot_id: str, **kwargs: int) -> None:
        """Add to a slot's counters; see `cpdaemon.cpapi_counters`."""
        await self.send(Counters(slot_id, kwargs))

    async def meta(self, /, slot_id: str, **kwargs: str) -> None:
        """Set metadata of a slot; see `cpdaemon.cpapi_meta`."""
        await self.send(Meta(slot_id, kwargs))

    async def send(self, command: Command) -> None:
        """Send one command.

        Raises:
            CreditPiggyError: the command was not accepted, or perhaps not: see the error's `definite`.
        """
        if isinstance(self._endpoint, UrlEndpoint):
            await self._post(self._endpoint, *self._single(command))
        else:
            self._check(command, await self._exchange(self._frame(command)))

    async def send_many(self, commands: Iterable[Command]) -> list[Outcome]:
        """Send commands, in bulk to a server, so that the commands of each slot take effect in the order given.

        The first failure other than a refusal stops sending: the remaining commands are refused, with `NotSent`.

        Returns:
            One outcome per command, in the order given; see `Client.send_many`.
        """
        steps = self._outcomes(list(commands))
        try:
            batch = next(steps)
            while True:
                try:
                    answer: Answer = await self._send_batch(*batch)
                except CreditPiggyError as error:
                    answer = error
                batch = steps.send(answer)
        except StopIteration as end:
            outcomes: list[Outcome] = end.value
            return outcomes

    async def _send_batch(self, batch: list[Command], calls: "list[Call]") -> list[CreditPiggyError | None]:
        if len(batch) == 1:
            await self.send(batch[0])
            return [None]
        assert isinstance(self._endpoint, UrlEndpoint)
        reply = await self._post(self._endpoint, *self._signed("/batch/bulk", self._signing.bulk_body(calls)))
        errors: list[CreditPiggyError | None] = self._signing.bulk_errors(calls, reply)
        return errors

    async def _exchange(self, frame: bytes) -> bytes:
        """Send a frame to a daemon on a new connection; return its reply."""
        connection = await self._connect()
        try:
            connection.send(frame)
            reply = b""
            while len(reply) < _REPLY_BYTES:
                piece = await connection.receive()
                if not piece:
                    raise ReplyLost(f"{self._endpoint} closed the connection after {len(reply)} bytes of its reply")
                reply += piece
            return reply
        finally:
            await connection.close()

    async def _post(self, endpoint: UrlEndpoint, path: str, authorization: str, body: bytes) -> Mapping[str, object]:
        """Send a request to a server; return its reply if it accepts it."""
        connection = await self._take() or await self._connect()
        parser = ReplyParser(endpoint)
        try:
            connection.send(request(endpoint, path, authorization, body))
            steps = parser.steps()
            try:
                next(steps)
                while True:
                    try:
                        piece = await connection.receive()
                    except CreditPiggyError as error:
                        steps.throw(error)
                    else:
                        steps.send(piece)
            except StopIteration as end:
                status, text = end.value
        finally:
            if parser.reusable and not self._closed:
                self._idle.append(connection)
            else:
                await connection.close()
        reply: Mapping[str, object] = self._signing.read_reply(status, text)
        return reply

    async def _take(self) -> "_Connection | None":
        """Return an idle connection that is as it was left."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_fresh:
                connection.deadline_s = asyncio.get_running_loop().time() + self._timeout_s
                return connection
            await connection.close()
        return None

    async def _connect(self) -> "_Connection":
        """Return a connection, whose time for one exchange has begun."""
        loop = asyncio.get_running_loop()
        connection = _Connection(self._endpoint, loop.time() + self._timeout_s)
        try:
            async with asyncio.timeout_at(connection.deadline_s):
                if isinstance(self._endpoint, UnixEndpoint):
                    sock = await _unix_socket(self._endpoint.path)
                    await loop.create_unix_connection(lambda: connection, sock=sock)
                else:
                    host, port = self._endpoint.host, self._endpoint.port
                    await loop.create_connection(lambda: connection, host, port, ssl=self._tls)
        except OSError as error:
            raise connect_error(error, self._endpoint) from error
        return connection


class _Connection(asyncio.Protocol):
    """A connection, whose errors are those of this package.

    Args:
        endpoint: its other end.
        deadline_s: the end of the exchange, in the loop's time.
    """

    _transport: asyncio.Transport

    def __init__(self, endpoint: Endpoint, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self._endpoint = endpoint
        self._received = bytearray()
        self._has_ended = False
        self._error: Exception | None = None
        self._news = asyncio.Event()
        self._lost = asyncio.Event()
        self._owner = os.getpid(), asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Keep what has come."""
        self._received += data
        self._news.set()

    def eof_received(self) -> None:
        """Note that no more will come."""
        self._has_ended = True
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        self._has_ended, self._error = True, exc
        self._news.set()
        self._lost.set()

    @property
    def is_fresh(self) -> bool:
        """Whether this process and loop opened it, and no data or end has come since the last reply."""
        if not self._is_own or self._received or self._has_ended or self._transport.is_closing():
            return False
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket"), select.POLLIN)
        return not poll.poll(0)  # what the loop has not read yet

    @property
    def _is_own(self) -> bool:
        return self._owner == (os.getpid(), asyncio.get_running_loop())

    def send(self, data: bytes) -> None:
        """Begin to send; what fails from here on may have been applied."""
        self._transport.write(data)

    async def receive(self) -> bytes:
        """Receive some bytes; none at the end."""
        try:
            async with asyncio.timeout_at(self.deadline_s):
                while not (self._received or self._has_ended):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as error:
            raise receive_error(error, self._endpoint) from error
        if not self._received and isinstance(self._error, OSError):
            raise receive_error(self._error, self._endpoint) from self._error
        piece = bytes(self._received)
        self._received.clear()
        return piece

    async def close(self) -> None:
        """Close at once."""
        if self._is_own:  # and not of a loop that has ended, or of the process that was forked
            self._transport.abort()
            await self._lost.wait()


async def _unix_socket(path: str) -> "socket.socket":
    """Connect a socket, once there is room in its daemon's backlog; raises OSError."""
    pause_s = 0.001
    while (sock := unix_socket(path)) is None:
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, MAX_PAUSE_S)
    return sock

"""The two links of a simulated site: clients to the listener, and the courier to the server's HTTP API."""

from __future__ import annotations

import json
from selectors import EVENT_READ, SelectorKey

from cpdaemon.errors import ConnectFailed, ReplyLost, ReplyTimeout
from cpdaemon.signing import token
from cpsim.daemon.client import BATCH_HEADER, BulkClient
from cpsim.net.http.messages import Request

TIMEOUT_S = 30.0
PROJECT, SECRET = "p", "s"


def signed(path, document):
    """A request of the project."""
    body = json.dumps(document).encode()
    return Request("POST", f"/api{path}", b"", {b"authorization": token((PROJECT, SECRET), body).encode()}, body)


class Socket:
    """The listener's end of a connection, its listening socket, or an end of the connection to itself."""

    def __init__(self, peer=None):
        self.arrived = bytearray()
        self.backlog = []
        self.peer = peer
        self.is_open = True
        self.read = 0

    @property
    def is_readable(self):
        return bool(self.arrived or self.backlog or (self.peer is not None and not self.peer.is_open))

    def recv(self, size, flags=0):
        if self.arrived:
            data = bytes(self.arrived[:size])
            del self.arrived[:size]
            self.read += len(data)
            return data
        if self.peer is None or self.peer.is_open:
            raise BlockingIOError
        if self.peer.has_reset:
            raise ConnectionResetError
        return b""

    def send(self, data, flags=0):
        if self.peer is not None and not (self.is_open and self.peer.is_open):
            raise BrokenPipeError
        (self if self.peer is None else self.peer).arrived.extend(data)
        if self.peer is not None:
            self.peer.on_arrival()
        return len(data)

    def _accept(self):
        if not self.backlog:
            raise BlockingIOError
        return self.backlog.pop(0), None

    def setblocking(self, flag):
        pass

    def shutdown(self, how):
        pass

    def close(self):
        self.is_open = False
        if self.peer is not None:
            self.peer.on_close(self.read)


class Wake:
    """The sending end of the listener's connection to itself."""

    def __init__(self, end):
        self.end = end

    def send(self, data, flags=0):
        self.end.arrived.extend(data)
        return len(data)

    def setblocking(self, flag):
        pass

    def close(self):
        pass


class Selector:
    """Says what is readable, in any order, and waits for nothing."""

    def __init__(self, chance):
        self._chance = chance
        self._keys = {}

    def register(self, fileobj, events, data=None):
        assert fileobj not in self._keys
        self._keys[fileobj] = SelectorKey(fileobj, 0, events, data)

    def unregister(self, fileobj):
        del self._keys[fileobj]

    def select(self, timeout=None):
        ready = [(key, EVENT_READ) for key in self._keys.values() if key.fileobj.is_readable]
        self._chance.shuffle(ready)
        return ready

    def get_map(self):
        return self._keys

    def close(self):
        self._keys = {}


class ListenerLink:
    """As `cpsim.daemon.listener.Link`."""

    def __init__(self, chance):
        self.selector = Selector(chance)
        self.wake_end = Socket()
        self.wake = Wake(self.wake_end)

    @staticmethod
    def client(accepted):
        return accepted


class Connection:
    """A client's end.

    Args:
        answered: called when the daemon has sent an answer.
        closed: called when it has closed, with the number of bytes that it has read.
    """

    def __init__(self, answered, closed):
        self.arrived = bytearray()
        self.is_open = True
        self.has_reset = False
        self.far = Socket(self)
        self.sent = 0
        self.answer = ""
        self._answered = answered
        self.on_close = closed

    @property
    def is_over(self):
        """Whether the daemon has closed."""
        return not self.far.is_open

    def send(self, data):
        if not self.is_over:
            self.far.arrived.extend(data)
            self.sent += len(data)

    def on_arrival(self):
        if not self.answer:
            self.answer = self.arrived[:2].decode()
            self._answered(self.answer)

    def close(self, *, reset=False):
        self.is_open = False
        self.has_reset = reset


class ServerLink(BulkClient):
    """The real client of the server's bulk API, over a network that loses and delays."""

    def __init__(self, world):
        self._credentials = PROJECT, SECRET
        self._pool = Network(world)


class Network:
    """Carries requests of the courier to the server; `post` is that of `HttpPool`."""

    def __init__(self, world):
        self._world = world

    def post(self, path, authorization, body, more=""):
        world = self._world
        headers = {b"authorization": authorization.encode()}
        if more:
            headers[BATCH_HEADER.lower().encode()] = more.partition(": ")[2].strip().encode()
        request = Request("POST", f"/api{path}", b"", headers, body)
        fate = world.network_fate()
        world.note("request", fate, len(body) if b"cpsim-" not in body else 0)
        if fate == "unreachable" or world.server.accounts is None:
            raise ConnectFailed("no connection")
        if fate == "late":
            world.late.append(request)
        if fate in {"late", "lost"}:
            world.clock.advance(TIMEOUT_S)
            raise ReplyTimeout("no reply came in time")
        reply = world.perform(request)
        if fate == "again" and (reply is None or reply.status in {200, 504}):
            world.late.append(request)  # what was refused is final: nothing repeats it
        if reply is None or fate == "reply lost":
            raise ReplyLost("the connection broke")
        if fate == "reply late":
            world.clock.advance(world.chance.uniform(0, TIMEOUT_S))
        return reply.status, reply.body

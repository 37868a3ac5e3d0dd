"""A fake's server on a real socket, and requests to it."""

import asyncio
import hashlib
import http.client
import json
import socket
import threading
from contextlib import ExitStack, suppress
from types import SimpleNamespace

import pytest
from manual_loop import ManualLoop

from cpsim.fake import ANY_PORT, Fake
from cpsim.faults.plan import FaultPlan
from cpsim.net.http.shared import Limits
from cpsim.server.faults import RequestFaults
from cpsim.server.http import Api
from cpsim.server.service import AccountServer
from cpsim.server.serving import HttpServer

PROJECTS = {"Physics": "s3cret", "q": "other"}


class Site:
    """A running server: signed requests in, (status, body) out."""

    def __init__(self, fake):
        self.fake = fake
        self.address = ("127.0.0.1", int(fake.addresses["http"].split(":")[2].removesuffix("/api")))
        self.connection = http.client.HTTPConnection(*self.address, timeout=280)

    def request(self, method, path, body=b"", headers=None):
        self.connection.request(method, path, body, headers or {})
        response = self.connection.getresponse()
        self.headers = response.headers
        return response.status, response.read()

    def sign(self, payload, algorithm="sha-256", project="Physics", secret="s3cret"):
        digest = hashlib.new(algorithm.replace("-", ""), payload + secret.encode()).hexdigest()
        return f"{algorithm},{project},{digest}"

    def post(self, path, body=b"", **signing):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", f"/api/batch/{path}", body, {"Authorization": self.sign(body, **signing)})

    def signed(self, path, body, *headers, **signing):
        """The bytes of a request that posts a body."""
        lines = [f"POST /api/batch/{path} HTTP/1.1", f"Authorization: {self.sign(body, **signing)}", *headers]
        return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body

    def get(self, path, query="", **signing):
        """GET with the query signed, and the token as its last argument."""
        return self.request("GET", f"/api/batch/{path}?{query}&auth={self.sign(query.encode(), **signing)}")

    def slots(self, project="Physics"):
        with self.fake.accounts.reading() as ledger:
            return dict(ledger.project(project).slots)

    def raw(self, data, *, until=b""):
        """Send bytes, and return what comes back: up to `until`, or to the end."""
        with socket.create_connection(self.address, timeout=280) as sock:
            sock.sendall(data)
            received = b""
            while not (until and until in received):
                piece = sock.recv(65536)
                if not piece:
                    break
                received += piece
            return received


@pytest.fixture
def site():
    """A server of the test's own."""
    with Fake(PROJECTS, http=ANY_PORT) as fake:
        site = Site(fake)
        yield site
        site.connection.close()


@pytest.fixture(scope="module")
def shared_site():
    """One server for all examples of a module."""
    with Fake(PROJECTS, http=ANY_PORT) as fake:
        site = Site(fake)
        yield site
        site.connection.close()


@pytest.fixture
def visit():
    """Makes the site of a fake that the test has started itself, whatever address it listens at."""
    sites = []

    def visit(fake):
        sites.append(Site(fake))
        return sites[-1]

    yield visit
    for site in sites:
        site.connection.close()


@pytest.fixture
def limited_site(visit):
    """Starts a server with limits of its own, see `Limits`."""
    with ExitStack() as stack:

        def start(**limits):
            accounts = AccountServer(PROJECTS)
            sock = socket.create_server(("127.0.0.1", 0))
            server = HttpServer(Api(accounts), [sock], limits=Limits(**limits))
            server.start()
            stack.callback(server.stop)
            address = {"http": "http://{}:{}/api".format(*sock.getsockname())}
            return visit(SimpleNamespace(addresses=address, accounts=accounts))

        yield start


def stop(server, advance):
    """Stop a server, for which time passes meanwhile."""
    thread = threading.Thread(target=server.stop)
    thread.start()
    while thread.is_alive():
        with suppress(RuntimeError):  # the loop is closed
            advance()
        thread.join(0.01)


async def step():
    """Do nothing, in a step of a loop."""


@pytest.fixture
def by_hand():
    """Starts a server by a clock; returns its address, and advance(duration_s)."""
    with ExitStack() as stack:

        def start(clock, faults=None, tls=None):
            loop = ManualLoop(clock)
            sock = socket.create_server(("127.0.0.1", 0))
            address = sock.getsockname()
            accounts = AccountServer({"p": "s"})
            faults = FaultPlan(clock=clock) if faults is None else faults
            server = HttpServer(
                RequestFaults(Api(accounts), faults, accounts.known_id), [sock], faults, new_loop=lambda: loop, tls=tls
            )
            server.start()
            stack.callback(stop, server, lambda: loop.call_soon_threadsafe(clock.advance, 1))

            def advance(duration_s):
                """Advance the clock between two steps of the loop, and wait until what is due has been done."""

                loop.call_soon_threadsafe(clock.advance, duration_s)
                for _ in range(20):
                    asyncio.run_coroutine_threadsafe(step(), loop).result(60)

            return address, advance

        yield start

"""What a server does in the course of time, by a clock that the tests advance."""

import asyncio
import logging
import socket
import threading
from contextlib import ExitStack, suppress

import pytest

from cpsim.faults.plan import FaultPlan
from cpsim.net.http.connection import QUIET_S, Seldom
from cpsim.server.http import Api
from cpsim.server.service import AccountServer
from cpsim.server.serving import KEEP_ALIVE_S, HttpServer
from cpsim.testing import ManualClock


class ManualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is that of a clock."""

    def __init__(self, clock):
        self.time = clock.monotonic
        super().__init__()


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

        def start(clock, faults=None):
            loop = ManualLoop(clock)
            sock = socket.create_server(("127.0.0.1", 0))
            address = sock.getsockname()
            server = HttpServer(Api(AccountServer({"p": "s"})), [sock], faults, lambda: loop)
            server.start()
            stack.callback(stop, server, lambda: loop.call_soon_threadsafe(clock.advance, 1))

            def advance(duration_s):
                """Advance the clock between two steps of the loop, and wait until what is due has been done."""

                loop.call_soon_threadsafe(clock.advance, duration_s)
                for _ in range(10):
                    asyncio.run_coroutine_threadsafe(step(), loop).result(60)

            return address, advance

        yield start


@pytest.mark.parametrize("path", [b"heartbeat", b"heart%62eat"])
def test_what_is_idle_for_long_is_closed_and_nothing_else(by_hand, path):
    address, advance = by_hand(ManualClock())
    with socket.create_connection(address) as sock:
        for _ in range(3):
            sock.sendall(b"GET /api/%s HTTP/1.1\r\n\r\n" % path)
            received = sock.recv(1000)
            while received and not received.endswith(b"\r\n\r\nOK"):  # the head may come alone
                received += sock.recv(1000)
            assert received
            advance(KEEP_ALIVE_S - 1)
        advance(1)
        assert sock.recv(1000) == b""


def test_a_server_is_down_while_its_fault_lasts(by_hand):
    clock = ManualClock()
    plan = FaultPlan(["down:from=10,until=20"], clock=clock)
    address, advance = by_hand(clock, plan)
    for duration_s, is_down in ((9, False), (1, True), (9, True), (1, False)):
        advance(duration_s)
        if is_down:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)
        else:
            socket.create_connection(address).close()
            advance(0)  # or asyncio may forget to close what it accepts while the server ends


def test_a_warning_is_logged_once_a_minute():
    clock = ManualClock()
    seldom = Seldom(clock)

    def is_logged(level, text):
        return seldom.filter(logging.makeLogRecord({"levelno": level, "msg": text}))

    assert is_logged(logging.WARNING, "rubbish")
    clock.advance(QUIET_S - 1)
    assert not is_logged(logging.WARNING, "rubbish")
    assert is_logged(logging.WARNING, "other rubbish")
    assert is_logged(logging.ERROR, "rubbish")
    clock.advance(QUIET_S)
    assert is_logged(logging.WARNING, "rubbish")

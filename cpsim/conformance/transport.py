"""How an examiner reaches its target: over the network, or not at all (`rehearsal`)."""

from __future__ import annotations

import socket
import subprocess
import tempfile
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Protocol

from cpdaemon.endpoint import UnixEndpoint
from cpsim.clock import SYSTEM_CLOCK
from cpsim.conformance.exchange import HttpConnection, ask, ask_together
from cpsim.conformance.findings import CannotRun, shown
from cpsim.conformance.frames import connect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cpsim.clock import Clock
    from cpsim.conformance.exchange import HttpRequest, Reply
    from cpsim.conformance.target import Target, Traffic
    from cpsim.conformance.upstream import Upstream

LONGEST_COMMAND_S: Final = 60.0


class Transport(Protocol):
    """The ways to a target; each raises CannotRun if it is none.

    Attributes:
        sees: whether what comes back is the target's; a rehearsal takes everything as expected.
        sent: number of requests and connections so far.
        clock: by which the examiner waits.
        upstream: the server behind the daemon, if it is ours.
    """

    sees: bool
    clock: Clock
    upstream: Upstream | None

    @property
    def sent(self) -> int: ...  # noqa: D102 - above

    def ask(self, request: HttpRequest) -> Reply:
        """Send a request to the server."""

    def ask_together(self, requests: Sequence[HttpRequest]) -> list[Reply]:
        """Send requests to the server at the same time."""

    def keep(self) -> HttpConnection:
        """Connect to the server, for several requests."""

    def count(self) -> None:
        """Wait until one more request may be sent on a connection that is kept."""

    def connect(self) -> socket.socket:
        """Connect to the daemon."""

    def refusals(self, clients: int) -> int:
        """Connect as many clients to the daemon as fast as possible; returns how many a full queue refused."""

    def run(self, command: str) -> str:
        """Run a command of the user in a shell; returns what it prints."""


class Network:
    """The ways to a real target, with a count and a limit of what is sent."""

    sees = True
    clock = SYSTEM_CLOCK

    def __init__(self, target: Target, traffic: Traffic, upstream: Upstream | None = None) -> None:
        self.upstream = upstream
        self._target = target
        self._traffic = traffic

    @property
    def sent(self) -> int:  # noqa: D102 - see Transport
        return self._traffic.sent

    def ask(self, request: HttpRequest) -> Reply:  # noqa: D102 - see Transport
        assert self._target.server is not None
        self._traffic.pass_on()
        return ask(self._target.server, request, self._target.timeout_s)

    def ask_together(self, requests: Sequence[HttpRequest]) -> list[Reply]:  # noqa: D102 - see Transport
        assert self._target.server is not None
        for _ in requests:
            self._traffic.pass_on()
        return ask_together(self._target.server, requests, self._target.timeout_s, self.clock.sleep)

    def keep(self) -> HttpConnection:  # noqa: D102 - see Transport
        assert self._target.server is not None
        return HttpConnection(self._target.server, self._target.timeout_s)

    def count(self) -> None:  # noqa: D102 - see Transport
        self._traffic.pass_on()

    def connect(self) -> socket.socket:  # noqa: D102 - see Transport
        assert self._target.daemon is not None
        self._traffic.pass_on()
        return connect(self._target.daemon, self._target.timeout_s)

    def refusals(self, clients: int) -> int:  # noqa: D102 - see Transport
        if not isinstance(self._target.daemon, UnixEndpoint):
            return 0  # a TCP connection waits for room
        refused = 0
        with ExitStack() as stack:
            socks = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(clients)]
            for sock in socks:
                self._traffic.pass_on()
                sock.setblocking(False)  # noqa: FBT003
            for sock in socks:
                try:
                    sock.connect(self._target.daemon.path)
                except BlockingIOError:
                    refused += 1
        return refused

    def run(self, command: str) -> str:  # noqa: D102 - see Transport
        with tempfile.TemporaryFile("w+") as output:  # a pipe would be held open by the daemon that it starts
            try:
                status = subprocess.run(  # noqa: S602 - the user's own words
                    command,
                    shell=True,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=LONGEST_COMMAND_S,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired as error:
                raise CannotRun(f"{command!r} took longer than {LONGEST_COMMAND_S:g} s") from error
            output.seek(0)
            text = output.read()
        if status:
            raise CannotRun(f"{command!r} ended with status {status}: {shown(text.strip())}")
        return text

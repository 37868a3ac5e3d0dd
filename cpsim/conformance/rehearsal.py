"""A rehearsal: a clause runs, and its transcript lists what it would send; nothing is sent."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from cpsim.clock import SystemClock
from cpsim.conformance.exchange import HttpConnection, Reply
from cpsim.conformance.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cpsim.clock import Clock
    from cpsim.conformance.exchange import HttpRequest
    from cpsim.conformance.target import Target

NOTHING: Final = b'{"result":"ok","data":[],"items":[],"next":null,"pending":0,"projects":{},"now_us":0,"rate":0}'
"""The answer of a server that has nothing, to any request but those that are answered by a list of what is refused."""
CHANGES: Final = ("links", "releases")


class Rehearsal:
    """The ways to nobody: what is sent gets lost, and each answer is one of a server that has nothing."""

    sees = False
    sent: Final = 0

    def __init__(self, target: Target) -> None:
        self.clock: Clock = _StoppedClock()
        self.upstream: Upstream | None = None
        if target.behind is not None and target.credentials is not None:
            self.upstream = _SilentUpstream(target.behind, target.credentials)

    def ask(self, request: HttpRequest) -> Reply:  # noqa: D102 - see Transport
        is_change = request.method == "POST" and request.path.endswith(CHANGES)
        return Reply(200, "", b"[]" if is_change else NOTHING)

    def ask_together(self, requests: Sequence[HttpRequest]) -> list[Reply]:  # noqa: D102 - see Transport
        return [self.ask(request) for request in requests]

    def keep(self) -> HttpConnection:  # noqa: D102 - see Transport
        return _SilentConnection()

    def count(self) -> None:  # noqa: D102 - see Transport
        pass

    def connect(self) -> socket.socket:  # noqa: D102 - see Transport
        connection, other = socket.socketpair()
        other.close()
        return connection

    def refusals(self, clients: int) -> int:  # noqa: ARG002, D102 - see Transport
        return 0

    def run(self, command: str) -> str:  # noqa: ARG002, D102 - see Transport
        return ""


class _StoppedClock(SystemClock):
    """A clock on which nothing takes time."""

    def monotonic(self) -> float:
        return 0.0

    def sleep(self, duration_s: object) -> None:
        pass


class _SilentConnection(HttpConnection):
    """A connection to nobody, who answers all."""

    authority = "nobody"
    is_open = True

    def __init__(self) -> None:
        pass

    def send(self, data: bytes) -> None:
        pass

    def reply(self, method: str) -> Reply:  # noqa: ARG002 - any
        return Reply(200, "", NOTHING)

    def close(self) -> None:
        pass


class _SilentUpstream(Upstream):
    """A server that listens nowhere, and at which all arrives that is waited for."""

    def start(self) -> None:
        pass

    refuse = start

    def wait_for(self, condition: object, timeout_s: float) -> bool:  # noqa: ARG002 - none is checked
        return True

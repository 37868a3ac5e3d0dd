"""How near the fake comes to what the machine allows, and whether it stays there."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rounds import in_turns
from served import IN_BULK, bulk, forwarding, serving, single

from cpsim.net.http.carrier import Carrier
from cpsim.net.http.messages import Response

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from c_limit import Limit
    from rounds import Row

    from cpsim.net.http.application import Caller
    from cpsim.net.http.messages import Request

FEW, MANY = 16, 256
"""Client threads."""
SLOTS = 1_000_000
BESIDE_ROUNDS = 15
"""Rounds for a ratio so near to one that five do not show it."""
SINGLE, BULK = 10_000, 100
"""Requests in a round."""
HTTP_THREADS = {1: 16, IN_BULK: 2}


def rows(limit: Limit, least: str, folder: Path) -> Iterator[tuple[str, Row]]:
    """All that is measured with the clients in C, beside the server in C at a UNIX socket."""
    with serving(folder / "memory") as fake:
        yield f"fake / C limit, commands/s, {FEW} clients", against(limit, least, fake["unix"], FEW)
    with serving(folder / "stored", "--store", str(folder / "stored" / "store")) as fake:
        for clients in (MANY, FEW):
            title = f"fake with a store / C limit, commands/s, {clients} clients"
            yield title, against(limit, least, fake["unix"], clients)
    with serving(folder / "server") as server, forwarding(folder / "daemon", server["http"]) as daemon:
        for clients in (MANY, FEW):
            title = f"daemon with its spool / C limit, commands/s, {clients} clients"
            yield title, against(limit, least, daemon["unix"], clients)
    yield full_against_empty(limit, folder, SLOTS)
    yield from over_http(limit, folder)


def against(limit: Limit, least: str, address: str, clients: int) -> Row:
    """What answers at an address, and the least that can."""
    return in_turns(lambda _: limit.oneshot(address, clients), lambda _: limit.oneshot(least, clients))


def full_against_empty(limit: Limit, folder: Path, slots: int) -> tuple[str, Row]:
    """Two fakes, one of which has so many slots."""
    with serving(folder / "full") as full, serving(folder / "empty") as empty:
        for first in range(0, slots, SLOTS):
            requests = bulk(f"fill-{first}", min(SLOTS, slots - first) // IN_BULK)
            limit.http(full["http"], requests, HTTP_THREADS[IN_BULK])
        return (
            f"fake with {slots:,} slots / with few, commands/s, {FEW} clients",
            in_turns(
                lambda _: limit.oneshot(full["unix"], FEW), lambda _: limit.oneshot(empty["unix"], FEW), BESIDE_ROUNDS
            ),
        )


def over_http(limit: Limit, folder: Path) -> Iterator[tuple[str, Row]]:
    """Signed commands, alone and in bulk, and the least that the HTTP server can answer."""
    with serving(folder / "http") as fake, answering() as least:

        def rate(url: str, turn: int) -> float:
            return limit.http(url, single(f"s{turn}", SINGLE), HTTP_THREADS[1])

        def bulk_rate(turn: int) -> float:
            return IN_BULK * limit.http(fake["http"], bulk(f"b{turn}", BULK), HTTP_THREADS[IN_BULK])

        yield (
            "signed commands / HTTP server that only answers, requests/s",
            in_turns(lambda turn: rate(fake["http"], turn), lambda turn: rate(least, turn)),
        )
        yield (
            f"signed commands in bulks of {IN_BULK:,} / one by one, commands/s",
            in_turns(bulk_rate, lambda turn: rate(fake["http"], turn + 100)),
        )


@contextmanager
def answering() -> Iterator[str]:
    """The URL at which a process answers all requests alike."""
    with subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


class Least:
    """The least that an application can do."""

    def answer(self, request: Request, caller: Caller, /) -> Response:
        """Answer OK."""
        del request, caller
        return Response(200, b'{"result":"ok"}')

    def finish(self, commands: Sequence[Response], /) -> Sequence[Response]:
        """No command waits for others."""
        return commands

    def refusal(self, status: int, message: str, /) -> Response:
        """The answer to a request that is not HTTP."""
        return Response(status, message.encode())


def serve() -> None:
    """Serve `Least` until the process is ended."""
    sock = socket.create_server(("127.0.0.1", 0))
    carrier = Carrier(Least(), [sock], "least")
    carrier.start()
    carrier.call(carrier.accept)
    print(f"http://127.0.0.1:{sock.getsockname()[1]}/", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve()

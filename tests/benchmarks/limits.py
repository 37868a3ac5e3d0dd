"""How near the fake comes to what the machine allows, and whether it stays there."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rounds import in_turns
from served import IN_BULK, bulk, forwarding, serving, single

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from c_limit import Limit
    from rounds import Row

FEW, MANY = 16, 256
"""Client threads."""
SLOTS = 1_000_000
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
            yield title, against(limit, least, daemon, clients)
    yield f"fake with {SLOTS:,} slots / with few, commands/s, {FEW} clients", full_against_empty(limit, folder)
    yield from over_http(limit, folder)


def against(limit: Limit, least: str, address: str, clients: int) -> Row:
    """What answers at an address, and the least that can."""
    return in_turns(lambda _: limit.oneshot(address, clients), lambda _: limit.oneshot(least, clients))


def full_against_empty(limit: Limit, folder: Path) -> Row:
    """Two fakes, one of which has a million slots."""
    with serving(folder / "full") as full, serving(folder / "empty") as empty:
        limit.http(full["http"], bulk("fill", SLOTS // IN_BULK), HTTP_THREADS[IN_BULK])
        return in_turns(lambda _: limit.oneshot(full["unix"], FEW), lambda _: limit.oneshot(empty["unix"], FEW))


def over_http(limit: Limit, folder: Path) -> Iterator[tuple[str, Row]]:
    """Signed commands, alone and in bulk, and the least that uvicorn can answer."""
    with serving(folder / "http") as fake, uvicorn_only() as least:

        def rate(url: str, turn: int) -> float:
            return limit.http(url, single(f"s{turn}", SINGLE), HTTP_THREADS[1])

        def bulk_rate(turn: int) -> float:
            return IN_BULK * limit.http(fake["http"], bulk(f"b{turn}", BULK), HTTP_THREADS[IN_BULK])

        yield (
            "signed commands / uvicorn that only answers, requests/s",
            in_turns(lambda turn: rate(fake["http"], turn), lambda turn: rate(least, turn)),
        )
        yield (
            f"signed commands in bulks of {IN_BULK:,} / one by one, commands/s",
            in_turns(bulk_rate, lambda turn: rate(fake["http"], turn + 100)),
        )


@contextmanager
def uvicorn_only() -> Iterator[str]:
    """The URL at which uvicorn serves an application that answers all requests alike."""
    with subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


async def answer(_: Any, receive: Any, send: Any) -> None:
    """The least that an application can do."""
    await receive()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"15")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"result":"ok"}'})


async def serve() -> None:
    """Serve `answer` until the process is ended."""
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    from uvicorn.server import ServerState

    config = uvicorn.Config(answer, lifespan="off", log_config=None, access_log=False)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: HttpToolsProtocol(config, state, {}), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve())

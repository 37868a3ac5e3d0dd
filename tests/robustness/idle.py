"""Open connections that do nothing, and see how fast a working client is beside them.

    python tests/robustness/idle.py --connections 10000

The idle ones go to the daemon by UNIX socket and by TCP, and to the server by HTTP, where each has made one request
before. They and no others take turns, and the best round of each counts: what else the machine does slows the others.
The exit status is 0 if every command is answered; figures are printed as JSON, in commands a second.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mutations import CREDENTIALS
from serving import Serving, serving

from cpdaemon import Client

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = ("unix", "tcp", "http")
ROUNDS = 5
HEARTBEAT = b"GET /api/heartbeat HTTP/1.1\r\nHost: idle\r\n\r\n"


def main() -> int:
    """Run, and print the rates."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--commands", type=int, default=1_000, help="in each round")
    parser.add_argument("--kind", choices=KINDS, help="of the connections; otherwise all, one after another")
    chosen = parser.parse_args()
    allow_files(chosen.connections + 100)
    with tempfile.TemporaryDirectory(prefix="idle-", dir="/tmp") as folder, serving(Path(folder)) as served:
        kinds = KINDS if chosen.kind is None else (chosen.kind,)
        figures = {kind: rates(served, kind, chosen.connections, chosen.commands) for kind in kinds}
    print(json.dumps(figures, indent=2))
    return 0


def rates(served: Serving, kind: str, connections: int, commands: int) -> dict[str, Any]:
    """The rates of a client with so many idle connections and without, and their ratio."""
    with_idle, without = [], []
    for turn in range(ROUNDS):
        without.append(rate(served, kind, commands, f"{kind}-{turn}"))
        with idle(served, kind, connections):
            with_idle.append(rate(served, kind, commands, f"{kind}-{turn}-idle"))
    with_best, without_best = max(with_idle), max(without)
    return {
        "idle": connections,
        "with": round(with_best),
        "without": round(without_best),
        "ratio": round(with_best / without_best, 3),
    }


def rate(served: Serving, kind: str, commands: int, prefix: str) -> float:
    """Commands a second of one client that waits for every answer."""
    address = served.addresses[kind]
    with Client(address, **({"credentials": CREDENTIALS} if kind == "http" else {})) as client:
        begun_s = time.perf_counter()
        for number in range(commands):
            client.alloc(f"{prefix}-{number}", credits=5)
        return commands / (time.perf_counter() - begun_s)


@contextmanager
def idle(served: Serving, kind: str, connections: int) -> Iterator[None]:
    """Keep so many connections while the context lasts."""
    with ExitStack() as opened:
        for _ in range(connections):
            sock = opened.enter_context(served.connect(kind))
            if kind == "http":
                sock.setblocking(True)
                sock.sendall(HEARTBEAT)
                assert sock.recv(4096).endswith(b"OK")
        yield


def allow_files(count: int) -> None:
    """Let this process have so many files open, or end it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        if hard != resource.RLIM_INFINITY and hard < count:
            sys.exit(f"this process may have {hard} files open, and needs {count}; raise the limit, or give less")
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


if __name__ == "__main__":
    sys.exit(main())

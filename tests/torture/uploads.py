"""Upload again and again what a server will not take, and see whether its memory stays flat.

    python tests/torture/uploads.py --rounds 20

Two cases: bodies that come whole and are refused, and bodies that are broken off halfway, on several connections at
once. After each round, the memory, open files and threads of `cpsim serve` are read. The exit status is 0 if they are
at the end as they were once it had warmed up.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import sys
import tempfile
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "robustness"))

from soak import MOST, SLACK, cpsim

GUARD_S = 60
PIECE = bytes(2**20)


def refused(address, size_bytes, connections):
    """Upload bodies whose signature is wrong; each is answered 401, or 503 where too much is held."""
    for _ in range(connections):
        with begun(address, size_bytes) as sock, contextlib.suppress(ConnectionError):
            for _ in range(size_bytes // len(PIECE)):
                sock.sendall(PIECE)
            assert sock.recv(100).startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 503 "))


def broken_off(address, size_bytes, connections):
    """Upload halves of bodies on several connections at once, and leave."""
    with contextlib.ExitStack() as stack:
        for _ in range(connections):
            sock = stack.enter_context(begun(address, size_bytes))
            with contextlib.suppress(ConnectionError):  # the server holds enough
                for _ in range(size_bytes // len(PIECE) // 2):
                    sock.sendall(PIECE)


def begun(address, size_bytes):
    """A connection on which the head of an upload was sent."""
    sock = socket.create_connection(address, GUARD_S)
    head = "POST /api/batch/bulk HTTP/1.1\r\nAuthorization: sha-256,demo,00\r\n"
    sock.sendall(f"{head}Content-Length: {size_bytes}\r\n\r\n".encode())
    return sock


CASES = {"refused": refused, "broken off": broken_off}


def run(case, rounds, size_bytes, connections):
    """Return what was seen of the server after each round."""
    seen = []
    with (
        tempfile.TemporaryDirectory(prefix="uploads-", dir="/tmp") as name,
        cpsim(Path(name), "serve", "--http", "127.0.0.1:0") as server,
    ):
        host, port = server.url.removeprefix("http://").removesuffix("/api").rsplit(":", 1)
        for number in range(rounds):
            CASES[case]((host, int(port)), size_bytes, connections)
            urllib.request.urlopen(f"{server.url}/heartbeat").close()
            seen.append(server.size())
            print(f"{case} {number + 1}: {seen[-1]}", file=sys.stderr, flush=True)
    return seen


def grown(seen):
    """What the last quarter of the rounds has more of than the second."""
    quarter = max(1, len(seen) // 4)
    problems = []
    for what in seen[0]:
        values = [each[what] for each in seen]
        first, last = statistics.median(values[quarter : 2 * quarter]), statistics.median(values[-quarter:])
        if last > max(first * MOST[what], first + SLACK[what]):
            problems.append(f"{what}: {first:g} at first, {last:g} at last")
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help="of each case")
    parser.add_argument("--size", type=int, default=48, help="MiB of a body")
    parser.add_argument("--connections", type=int, default=8, help="uploads of a round")
    given = parser.parse_args()
    figures, problems = {}, []
    for case in CASES:
        seen = run(case, given.rounds, given.size * 2**20, given.connections)
        figures[case] = {"first": seen[0], "last": seen[-1]}
        problems += [f"{case}: {problem}" for problem in grown(seen)]
    print(json.dumps(figures | {"problems": problems}))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()

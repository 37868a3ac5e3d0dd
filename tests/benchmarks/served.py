"""`cpsim serve` and `cpsim daemon` in processes of their own, and requests for them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cpdaemon.signing import token

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CREDENTIALS = ("demo", "demo")
IN_BULK = 1_000


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[dict[str, str]]:
    """The addresses of a `cpsim serve` with a daemon and a server, by kind."""
    folder.mkdir()
    listen = ["--unix", str(folder / "daemon.sock"), "--http", "127.0.0.1:0"]
    with _running(folder, "serve", *listen, *options) as addresses:
        yield addresses


@contextmanager
def forwarding(folder: Path, url: str, *options: str) -> Iterator[dict[str, str]]:
    """The addresses of a `cpsim daemon` with a spool, in front of a server, by kind."""
    folder.mkdir()
    (folder / "secret").write_text(CREDENTIALS[1], encoding="utf-8")
    account = ["--server", url, "--project", CREDENTIALS[0], "--secret-file", str(folder / "secret")]
    listen = ["--unix", str(folder / "daemon.sock"), "--spool", str(folder / "spool")]
    with _running(folder, "daemon", *account, *listen, *options) as addresses:
        yield addresses


@contextmanager
def between(folder: Path, name: str, target: str, *options: str) -> Iterator[str]:
    """The address of a `cpsim proxy` or a `cpsim record` in front of a daemon."""
    folder.mkdir()
    socket = str(folder / "between.sock")
    with _running(folder, name, "--listen", socket, "--target", target, *options):
        yield socket


@contextmanager
def _running(folder: Path, *arguments: str) -> Iterator[dict[str, str]]:
    ready, log = folder / "ready", folder / "log"
    command = [sys.executable, "-P", "-m", "cpsim", *arguments, "--ready-file", str(ready)]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        while not ready.exists():
            if process.poll() is not None:
                sys.exit(f"{arguments[0]} did not start:\n{log.read_text(encoding='utf-8')}")
            time.sleep(0.01)
        try:
            yield dict(line.split(" ") for line in ready.read_text(encoding="utf-8").splitlines())
        finally:
            process.terminate()


def single(prefix: str, count: int) -> list[bytes]:
    """Signed requests of one alloc each."""
    return [_request("alloc", {"slot": f"{prefix}-{number}", "credits": 5}) for number in range(count)]


def bulk(prefix: str, count: int) -> list[bytes]:
    """Signed bulk requests of `IN_BULK` allocs each."""
    return [
        _request("bulk", {"alloc": [{"slot": f"{prefix}-{number}-{n}", "credits": 5} for n in range(IN_BULK)]})
        for number in range(count)
    ]


def _request(name: str, document: object) -> bytes:
    body = json.dumps(document).encode()
    head = f"POST /api/batch/{name} HTTP/1.1\r\nHost: bench\r\nAuthorization: {token(CREDENTIALS, body)}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

"""A `cpsim serve` of its own to be bothered, and what is seen of it from outside."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mutations import CREDENTIALS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIGURATION = """
http = "127.0.0.1:0"
journal_limit = 0
[[project]]
id = "{}"
secret = "{}"
[[daemon]]
project = "fuzz"
unix = "fuzz.sock"
tcp = "127.0.0.1:0"
"""
ADDRESSES = ("unix", "tcp", "http")


class Serving:
    """The process, and its addresses by kind."""

    def __init__(self, process: subprocess.Popen[str], addresses: dict[str, str]) -> None:
        self.process = process
        self.addresses = addresses
        self.url = addresses["http"].removesuffix("/api")

    def connect(self, kind: str) -> socket.socket:
        """A connection to the daemon by `unix` or `tcp`, or to the server by `http`; it does not block."""
        if kind == "unix":
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(self.addresses["unix"])
        else:
            address = self.url.removeprefix("http://") if kind == "http" else self.addresses["tcp"]
            host, port = address.split(":")
            sock = socket.create_connection((host, int(port)))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leaves nothing in TIME_WAIT
        sock.setblocking(False)
        return sock

    def control(self, action: str, method: str = "GET") -> Any:
        """What an action of the control API has answered."""
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/__cpsim/{action}", method=method)) as reply:
            return json.load(reply)

    def memory_mb(self) -> float:
        """The memory that the process has."""
        shown = subprocess.run(["ps", "-o", "rss=", "-p", str(self.process.pid)], stdout=subprocess.PIPE, check=True)
        return int(shown.stdout) / 1024


@contextmanager
def serving(folder: Path) -> Iterator[Serving]:
    """Serve while the context lasts, with everything in a folder; and end without a complaint."""
    configuration, log = folder / "fuzz.toml", folder / "log"
    configuration.write_text(CONFIGURATION.format(*CREDENTIALS), encoding="utf-8")
    command = [sys.executable, "-P", "-m", "cpsim", "serve", "--config", configuration]
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        addresses = dict(line.split() for _ in ADDRESSES if (line := process.stdout.readline()))
        if addresses.keys() != set(ADDRESSES):
            process.kill()
            sys.exit(f"it did not start:\n{log.read_text(encoding='utf-8')}")
        try:
            yield Serving(process, addresses)
        finally:
            process.terminate()

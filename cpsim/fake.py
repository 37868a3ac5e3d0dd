"""The fake: a site's daemon and the account server behind it, in one process and in memory.

`Fake` runs in threads of the calling process. `FakeProcess` runs one in a process of its own, which ends with the
process that started it.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cpdaemon.endpoint import TcpEndpoint, UnixEndpoint, parse_endpoint
from cpdaemon.errors import EndpointError
from cpsim.daemon.addresses import listen_tcp, listen_unix
from cpsim.daemon.forwarder import Forwarder
from cpsim.daemon.listener import Listener
from cpsim.errors import Problem
from cpsim.server.control import Control
from cpsim.server.http import API_PATH, Api
from cpsim.server.service import AccountServer
from cpsim.server.serving import HttpServer

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    from cpsim.daemon.forwarder import Deliver

ANY_PORT: Final = TcpEndpoint("127.0.0.1", 0)
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
IDLE_POLL_S: Final = 0.001
GARBAGE_THRESHOLD: Final = 200_000
"""A ledger is millions of objects and no cycles: looking through them for garbage more often is wasted time."""


class Fake:
    """A daemon on a UNIX socket, on TCP or on both, and its account server on HTTP; on one ledger.

    Args:
        projects: project id to secret; the daemon works for the first.
        unix: where to put the daemon's socket.
        tcp: where the daemon listens; port 0 takes a free one.
        http: where the server listens; port 0 takes a free one. On loopback, the control API is served too.
        flush_interval_s: how long the daemon keeps commands before it passes them on.
        quirks: how it differs from what is documented: names from `cpsim.quirks.QUIRKS`.

    Raises:
        OSError: an address cannot be listened at (from `start`).
        ValueError: no project, or one that cannot be (from the constructor).
    """

    def __init__(
        self,
        projects: Mapping[str, str],
        *,
        unix: Path | None = None,
        tcp: TcpEndpoint | None = None,
        http: TcpEndpoint | None = None,
        flush_interval_s: float = 0.0,
        quirks: frozenset[str] = frozenset(),
    ) -> None:
        if not projects:
            raise ValueError("a fake needs a project")
        self.accounts = AccountServer(projects, quirks=quirks)
        self.addresses: dict[str, str] = {}
        self._unix, self._tcp, self._http = unix, tcp, http
        apply = partial(self.accounts.apply, next(iter(projects)))
        self._forwarder = Forwarder(apply, flush_interval_s) if flush_interval_s else None
        self._deliver: Deliver = self._forwarder.put if self._forwarder else apply
        self._listener: Listener | None = None
        self._server: HttpServer | None = None

    def start(self) -> None:
        """Listen on every address given; `addresses` then says where: `unix`, `tcp`, `http`."""
        sockets: list[socket.socket] = []
        try:
            if self._unix is not None:
                sockets.append(listen_unix(self._unix))
                self.addresses["unix"] = _unix_address(self._unix)
            if self._tcp is not None:
                sockets.append(listen_tcp(self._tcp.host, self._tcp.port))
                self.addresses["tcp"] = _address(sockets[-1])
            if self._http is not None:
                http = listen_tcp(self._http.host, self._http.port)
                self.addresses["http"] = f"http://{_address(http)}{API_PATH}"
        except OSError:
            for sock in sockets:
                sock.close()
            self._remove_socket_file()
            raise
        if self._forwarder is not None:
            self._forwarder.start()
        if sockets:
            self._listener = Listener(sockets, self._deliver, self._is_full)
            self._listener.start()
        if self._http is not None:
            control = Control(self.accounts, lambda: self.pending) if self._http.host in LOOPBACK else None
            self._server = HttpServer(Api(self.accounts, control), [http])
            self._server.start()

    def stop(self) -> None:
        """Stop listening, pass on what was acknowledged, and remove the socket file."""
        if self._listener is not None:
            self._listener.stop()
            self._remove_socket_file()
        if self._forwarder is not None:
            self._forwarder.stop()
        if self._server is not None:
            self._server.stop()

    @property
    def pending(self) -> int:
        """How many commands the daemon acknowledged that have not reached the accounts."""
        listening = self._listener.pending if self._listener is not None else 0
        return listening + (self._forwarder.pending if self._forwarder is not None else 0)

    def wait_until_idle(self, timeout_s: float = 5.0) -> None:
        """Wait until every command that was acknowledged has reached the accounts.

        Raises:
            TimeoutError: that took longer.
        """
        deadline = time.monotonic() + timeout_s
        while self.pending:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.pending:,} commands have not reached the accounts in {timeout_s:g} s")
            time.sleep(IDLE_POLL_S)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _is_full(self) -> bool:
        return self._forwarder is not None and self._forwarder.is_full

    def _remove_socket_file(self) -> None:
        if "unix" in self.addresses:
            assert self._unix is not None
            self._unix.unlink(missing_ok=True)


def _unix_address(path: Path) -> str:
    """A socket's absolute path, or the path as given where the absolute one is too long for a socket."""
    try:
        return str(parse_endpoint(str(path.absolute())))
    except EndpointError:
        return str(UnixEndpoint(str(path)))


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return str(TcpEndpoint(host, port))


class FakeProcess:
    """A `Fake` in a process of its own, without the caller's interpreter lock; a context manager.

    It serves a UNIX socket and HTTP on a free port of loopback, and ends when it is left or when this process ends.

    Args:
        projects: project id to secret; they travel over a pipe, not on the command line.
        unix: where to put the daemon's socket.

    Raises:
        Problem: the process did not start (from `addresses`).
    """

    def __init__(self, projects: Mapping[str, str], unix: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cpsim.fake"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the caller, who still wants to read the ledger
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"projects": dict(projects), "unix": str(unix)}) + "\n")
        self._process.stdin.flush()

    def addresses(self) -> dict[str, str]:
        """Where it listens, once it does: `unix` and `http`."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Problem(f"the embedded fake ended with status {self._process.wait()}")
        addresses: dict[str, str] = json.loads(line)
        return addresses

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()


def main() -> None:
    """Serve as a `FakeProcess`: configuration on standard input, addresses out, until the input ends."""
    configuration = json.loads(sys.stdin.readline())
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)
    with Fake(configuration["projects"], unix=Path(configuration["unix"]), http=ANY_PORT) as fake:
        print(json.dumps(fake.addresses), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()

"""The store-and-forward daemon of one site: its sockets, its spool, and the courier to the server."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cpdaemon.endpoint import UnixEndpoint
from cpsim.daemon.addresses import listen_tcp, listen_unix
from cpsim.daemon.courier import Courier
from cpsim.daemon.durable import DurableListener
from cpsim.daemon.spool import Spool

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from cpdaemon.endpoint import TcpEndpoint
    from cpsim.daemon.courier import Server

STOP_WITHIN_S: Final = 10.0
"""How long a daemon that is told to stop tries to deliver what it has."""

log = logging.getLogger(__name__)


class Daemon:
    """A running daemon; a context manager.

    Args:
        listen: where job managers reach it.
        server: where commands go.
        spool: the file that keeps them until then.
        flush_interval_s: how long a command waits for others.
        when_unknown: `set-aside` or `resend`; see `cpsim.daemon.courier`.

    Raises:
        OSError: the address cannot be listened at.
        Problem: the spool cannot be used.
    """

    def __init__(
        self,
        listen: UnixEndpoint | TcpEndpoint,
        server: Server,
        spool: Path,
        *,
        flush_interval_s: float,
        when_unknown: str,
    ) -> None:
        self._spool = Spool(spool)
        try:
            if isinstance(listen, UnixEndpoint):
                sock = listen_unix(Path(listen.path))
                self.address = f"unix {listen.path}"
            else:
                sock = listen_tcp(listen.host, listen.port)
                self.address = f"tcp {listen.host}:{sock.getsockname()[1]}"
        except OSError:
            self._spool.close()
            raise
        self._socket_file = Path(listen.path) if isinstance(listen, UnixEndpoint) else None
        self._listener = DurableListener([sock], self._spool)
        self._courier = Courier(self._spool, server, flush_interval_s, when_unknown)

    def __enter__(self) -> Self:
        log.info("listening at %s; %d commands in the spool", self.address, self._spool.pending)
        self._listener.start()
        self._courier.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.stop()
        if self._socket_file is not None:
            self._socket_file.unlink(missing_ok=True)
        ended = self._courier.stop(STOP_WITHIN_S)
        log.info("stopped; %d commands stay in the spool", self._spool.pending)
        if ended:
            self._spool.close()

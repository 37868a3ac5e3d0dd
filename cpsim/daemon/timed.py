"""A listener that records how long its callers wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cpsim.daemon.quirks import QuirkyListener

if TYPE_CHECKING:
    from cpsim.daemon.listener import Call, _Connection
    from cpsim.faults.spec import Fault
    from cpsim.metrics.waits import Waits


class TimedListener(QuirkyListener):
    """A listener that records each wait, from a command's first bytes to its answer or the end of its connection.

    Args:
        arguments: those of `QuirkyListener`.
        waits: the record.
        keywords: those of `QuirkyListener`.
    """

    def __init__(self, *arguments: Any, waits: Waits, **keywords: Any) -> None:  # noqa: ANN401 - not ours to know
        super().__init__(*arguments, **keywords)
        self._waits = waits
        self._came_s = 0.0

    def _receive(self, connection: _Connection) -> None:
        self._came_s = self._waits.now_s()
        super()._receive(connection)
        if connection.frame and not connection.answered and not connection.sealed:
            self._waits.begin(connection, _text(connection), self._came_s)

    def _handle_fault(self, fault: Fault, connection: _Connection, call: Call, ended: bool) -> None:  # noqa: FBT001
        self._waits.begin(connection, _text(connection), self._came_s)
        super()._handle_fault(fault, connection, call, ended)

    def _reply(self, connection: _Connection, reply: bytes) -> None:
        super()._reply(connection, reply)
        if not self._waits.end(connection):
            self._waits.add(_text(connection), self._came_s)

    def _close(self, connection: _Connection) -> None:
        super()._close(connection)
        self._waits.end(connection)


def _text(connection: _Connection) -> str:
    return connection.frame.decode(errors="replace").strip()

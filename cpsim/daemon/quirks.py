"""The daemon in production: how it reads frames, and how it passes commands on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cpdaemon.commands import KINDS
from cpdaemon.wire import MAX_FRAME_BYTES, parse
from cpsim.daemon.faults import FaultyListener
from cpsim.daemon.forwarder import Forwarder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cpdaemon.signing import Call
    from cpsim.daemon.listener import _Connection
    from cpsim.fault_plan import FaultPlan

STARVED: Final = 5_000
"""Commands past which a batch is passed on however fast others follow."""
RANK: Final = {kind: rank for rank, kind in enumerate(KINDS)}


class QuirkyListener(FaultyListener):
    """A listener with quirks.

    Args:
        arguments: those of `Listener`.
        faults: the plan of faults.
        quirks: names from `cpsim.quirks.QUIRKS`; those of the server make no difference here.
    """

    def __init__(self, *arguments: Any, faults: FaultPlan, quirks: frozenset[str]) -> None:  # noqa: ANN401
        super().__init__(*arguments, faults=faults)
        self._cuts = "cut-values" in quirks
        if self._cuts:
            self._parse = lambda frame: parse(_cut(frame))
        if "single-read" in quirks:
            self._read_bytes = MAX_FRAME_BYTES
            self._reads_once = True

    def _refuse(self, connection: _Connection) -> None:
        if self._cuts and any(b"=" not in pair for pair in connection.frame.split(b",")[1:]):
            self._reject(connection.frame)
            self._close(connection)
        else:
            super()._refuse(connection)


def _cut(frame: bytes) -> bytes:
    """A frame whose values end where they have a second `=`."""
    kind, *pairs = frame.split(b",")
    return b",".join([kind, *(b"=".join(pair.split(b"=")[:2]) for pair in pairs)])


class StarvingForwarder(Forwarder):
    """A forwarder whose every command pushes the flush back by the flush interval: `flush-starves`."""

    def _gather(self) -> None:
        with self._changed:
            seen = -1
            while seen < len(self._calls) <= STARVED and not self._stopping.is_set():
                seen = len(self._calls)
                self._changed.wait(self._flush_interval_s)


def by_class(calls: Sequence[Call]) -> Sequence[Call]:
    """Commands grouped as the daemon in production groups them, so that their order is lost: `reorder-classes`."""
    return sorted(calls, key=lambda call: RANK[call[0]])

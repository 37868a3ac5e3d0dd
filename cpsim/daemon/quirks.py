"""The quirks of the daemon in production: how it reads frames, and how it delivers commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cpdaemon.wire import parse
from cpsim.daemon.durable import DurableListener
from cpsim.daemon.faults import FaultyListener
from cpsim.daemon.spool import text_of
from cpsim.quirks import composed
from cpsim.quirks.policies.reading import ReadingPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from cpsim.daemon.listener import _Connection
    from cpsim.faults.plan import FaultPlan


class QuirkyListener(FaultyListener):
    """A listener with quirks.

    Args:
        arguments: those of `Listener`, or of the listener that this one is mixed with.
        faults: the plan of faults.
        project: the project of the commands.
        quirks: names from `cpsim.quirks.QUIRKS`; those of the server have no effect here.
        on_turn: called in every turn of the loop with the number of commands acknowledged in it.
    """

    def __init__(
        self,
        *arguments: Any,  # noqa: ANN401 - not ours to know
        faults: FaultPlan,
        project: str,
        quirks: frozenset[str],
        on_turn: Callable[[int], object],
    ) -> None:
        super().__init__(*arguments, faults=faults, project=project)
        self._on_turn = on_turn
        self._seen = 0
        self.set_quirks(quirks)

    def set_quirks(self, quirks: frozenset[str]) -> None:
        """Replace the quirks."""
        self._reading = composed(ReadingPolicy(), quirks)
        self._parse = self._reading.parser()
        self._reads_once = self._reading.once
        self._read_bytes = self._reading.read_bytes

    def _refuse(self, connection: _Connection) -> None:
        if self._reading.hangs_up(connection.frame):
            self._reject(connection.frame)
            self._close(connection)
        else:
            super()._refuse(connection)

    def _pass_on(self) -> None:
        self._on_turn(self._acknowledged - self._seen)
        self._seen = self._acknowledged
        super()._pass_on()


class QuirkyDurableListener(QuirkyListener, DurableListener):
    """A listener with quirks, in front of a spool."""

    def _text(self, connection: _Connection) -> str:
        return super()._text(connection) if self._parse is parse else text_of(self._parse(connection.frame))

"""The quirks of the daemon in production: how it reads frames, and how it delivers commands."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from cpdaemon.commands import KINDS
from cpdaemon.errors import BadReply, NotSent, Refused
from cpdaemon.wire import MAX_FRAME_BYTES, parse
from cpsim.daemon.courier import Courier
from cpsim.daemon.durable import DurableListener
from cpsim.daemon.listener import READ_BYTES, Listener
from cpsim.daemon.spool import text_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from cpdaemon.errors import CreditPiggyError
    from cpsim.daemon.courier import Outcomes
    from cpsim.daemon.link import FrameConnection
    from cpsim.daemon.listener import Call
    from cpsim.daemon.spool import Batch

STARVED_COMMANDS: Final = 5_000
"""Queued commands above which a starved flush happens, and above which an unreachable server keeps the daemon busy."""
BUSY_COMMAND_S: Final = 0.005
"""Time per command of a busy daemon: in production it acknowledges some 200 a second, a tenth of its usual rate."""
LONGEST_TURN_S: Final = 0.5
RANK: Final = {kind: rank for rank, kind in enumerate(KINDS)}


class QuirkyListener(Listener):
    """A listener with quirks.

    Args:
        arguments: those of `Listener`, or of the listener that this one is mixed with.
        quirks: names from `cpsim.protocol.quirks.QUIRKS`; those of the server have no effect here.
        on_turn: called in every turn of the loop with the number of commands acknowledged in it.
        options: those of `Listener`, by name.
    """

    def __init__(
        self,
        *arguments: Any,  # noqa: ANN401 - not ours to know
        quirks: frozenset[str],
        on_turn: Callable[[int], object],
        **options: Any,  # noqa: ANN401 - likewise
    ) -> None:
        super().__init__(*arguments, **options)
        self._on_turn = on_turn
        self._seen = 0
        self.set_quirks(quirks)

    def set_quirks(self, quirks: frozenset[str]) -> None:
        """Replace the quirks."""
        self._cuts = "cut-values" in quirks
        self._parse = _parse_cut if self._cuts else parse
        self._reads_once = "single-read" in quirks
        self._read_bytes = MAX_FRAME_BYTES if self._reads_once else READ_BYTES

    def _refuse(self, connection: FrameConnection) -> None:
        if self._cuts and any(b"=" not in pair for pair in connection.frame.split(b",")[1:]):
            self._reject(connection.frame)
            self.close(connection)
        else:
            super()._refuse(connection)

    def _pass_on(self) -> None:
        self._on_turn(self._acknowledged - self._seen)
        self._seen = self._acknowledged
        super()._pass_on()


class QuirkyDurableListener(QuirkyListener, DurableListener):
    """A listener with quirks, in front of a spool."""

    def _text(self, connection: FrameConnection) -> str:
        return text_of(self._parse(connection.frame)) if self._cuts else super()._text(connection)


def _parse_cut(frame: bytes) -> Call:
    """Parse a frame whose values end at a second `=`."""
    kind, *pairs = frame.split(b",")
    return parse(b",".join([kind, *(b"=".join(pair.split(b"=")[:2]) for pair in pairs)]))


class QuirkyCourier(Courier):
    """A courier with quirks.

    Args:
        arguments: those of `Courier`.
        quirks: names from `cpsim.protocol.quirks.QUIRKS`; those of the server have no effect here.
        options: those of `Courier`, by name.
    """

    def __init__(self, *arguments: Any, quirks: frozenset[str], **options: Any) -> None:  # noqa: ANN401 - not ours to know
        super().__init__(*arguments, **options)
        self._resends_by_option = self._resends
        self._busy = False
        self._seen = 0
        """The number of commands that waited at the last look."""
        self.set_quirks(quirks)

    def set_quirks(self, quirks: frozenset[str]) -> None:
        """Replace the quirks."""
        self._quirks = quirks
        self._resends = self._resends_by_option or "resend-duplicates" in quirks
        self._knows_batches = None

    def drop(self) -> None:  # noqa: D102 - inherited
        super().drop()
        self._busy = False

    def delay_turn(self, commands: int) -> None:
        """Delay a turn of the loop with this many commands as in production: `busy-when-down`."""
        if self._busy and commands:
            self._clock.sleep(min(commands * BUSY_COMMAND_S, LONGEST_TURN_S))

    def _flush_ns(self, now_ns: int) -> int:
        if "flush-starves" not in self._quirks:
            return super()._flush_ns(now_ns)
        ready = self._spool.ready
        if self._ready_ns is None or ready != self._seen:  # each command that comes begins the interval anew
            self._ready_ns, self._seen = now_ns, ready
        return now_ns if ready > STARVED_COMMANDS else self._ready_ns + self._interval_ns

    def _probe(self) -> bool:
        return "resend-duplicates" not in self._quirks and super()._probe()

    def _take(self) -> Batch | None:
        if "reorder-classes" not in self._quirks:
            return super()._take()
        batch = self._spool.take(self._size, in_order=False, named=bool(self._knows_batches))
        if batch is None:
            return None
        order = sorted(range(len(batch.calls)), key=lambda place: RANK[batch.calls[place][0]])
        return replace(
            batch,
            commands=[batch.commands[place] for place in order],
            calls=[batch.calls[place] for place in order],
        )

    def _handle_error(self, batch: Batch, error: CreditPiggyError) -> bool:
        if "drop-on-error" in self._quirks and isinstance(error, Refused | BadReply):
            self._spool.settle(batch, [])
            return True
        return super()._handle_error(batch, error)

    def _settle(self, batch: Batch, outcomes: Outcomes) -> None:
        super()._settle(batch, [None] * len(outcomes) if "errors-ignored" in self._quirks else outcomes)

    def _next_backoff_s(self, error: Exception) -> float:
        if "busy-when-down" not in self._quirks or not isinstance(error, NotSent):
            return super()._next_backoff_s(error)
        self._busy = self._spool.pending > STARVED_COMMANDS
        return 0.0 if self._busy else self._first_backoff_s

    def _attempt(self) -> None:
        super()._attempt()
        self._busy = False

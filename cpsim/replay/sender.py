"""One sender of a replay: a wire to the target, an engine, and a journal of what it sends."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from cpsim.clock import SYSTEM_CLOCK
from cpsim.evidence.journal import Journal
from cpsim.replay.engine import Engine
from cpsim.replay.wires.connect import open_wire

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from cpsim.clock import Clock
    from cpsim.metrics.progress import Progress
    from cpsim.replay.assignment import Assignment
    from cpsim.replay.wires.wire import Wire


class Sender:
    """A wire, a journal and an engine, put together; a context manager that closes them.

    Args:
        assignment: what to send, and where.
        on_progress: called about twenty times a second.
        clock: the engine's.
        connect: opens the wire; it takes what `open_wire` takes, and raises what it raises.
        was_reached: whether the target was reached a moment ago.
        journal: takes the records, and is closed at the end; None makes one in a temporary file.

    Raises:
        CpsimError: the target cannot be reached.

    Attributes:
        journal: of what is sent.
        engine: sends.
    """

    def __init__(
        self,
        assignment: Assignment,
        on_progress: Callable[[Progress], None],
        *,
        clock: Clock = SYSTEM_CLOCK,
        connect: Callable[..., Wire] = open_wire,
        was_reached: bool = False,
        journal: Journal | None = None,
    ) -> None:
        with ExitStack() as undo:
            self.journal = undo.enter_context(closing(journal or Journal()))
            where = assignment.endpoint, assignment.timeout_s, assignment.in_flight, assignment.lanes
            wire = undo.enter_context(closing(connect(*where, was_reached=was_reached)))
            self.engine = Engine(
                wire,
                self.journal,
                in_flight=assignment.in_flight,
                timeout_s=assignment.timeout_s,
                think_s=assignment.think_s,
                on_progress=on_progress,
                clock=clock,
            )
            self._undo = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

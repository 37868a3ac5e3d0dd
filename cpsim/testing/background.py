"""Realistic traffic beside the code under test: a scenario replayed at the same daemon."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from cpdaemon.endpoint import parse_endpoint
from cpsim.config.catalog import find_scenario
from cpsim.evidence.evidence import links_of
from cpsim.metrics.progress import Progress
from cpsim.replay.assignment import Assignment
from cpsim.replay.pace import AsFastAsPossible, Rate, Speed
from cpsim.replay.sender import Sender
from cpsim.scenario import load_workload
from cpsim.system.threads import Thread

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from cpsim.replay.engine import Engine
    from cpsim.replay.pace import Pace
    from cpsim.testing.project import ProjectFixture

IN_FLIGHT: Final = 8
TIMEOUT_S: Final = 5.0
DEFAULT_WAIT_S: Final = 60.0


class Replay:
    """A scenario that is replayed in a thread; a context manager that stops it.

    Args:
        project: the project to send to.
        scenario: a name or a path, as for `cpsim run`.
        number: how many were started before at the same project; it keeps their slots apart.
        rate: operations a second; without it and `speed`, they follow one another as fast as they are answered.
        speed: a multiple of the scenario's own times.
        seed: of the workload; the scenario's own, if it is None.

    Attributes:
        slot_prefix: how the ids of its slots begin.
        workload: what is replayed.

    Raises:
        CpsimError: there is no such scenario, or it has several sites.
        ScenarioError: it has a mistake.
        ValueError: both a rate and a speed were given, or one that is not above zero.
    """

    def __init__(
        self,
        project: ProjectFixture,
        scenario: str,
        *,
        number: int = 0,
        rate: float | None = None,
        speed: float | None = None,
        seed: int | None = None,
    ) -> None:
        pace = _pace(rate, speed)
        self.workload = replace(load_workload(find_scenario(scenario), seed), slot_ids=())
        prefix = f"replay-{self.workload.name}" + (f"-{number + 1}" if number else "")
        self.slot_prefix = f"{prefix}-"
        self._progress = Progress(0.0, 0, 0, 0)
        self._failure: BaseException | None = None
        self._stopping = False
        self._engine: Engine | None = None
        assignment = Assignment(
            workload=self.workload,
            ops=np.arange(len(self.workload)),
            schedule_us=pace.schedule(self.workload.due_us),
            slot_prefix=prefix,
            endpoint=parse_endpoint(project.unix),
            credentials=None,
            in_flight=IN_FLIGHT,
            timeout_s=TIMEOUT_S,
        )
        project.link_all(list(links_of(self.workload).items()))
        self._thread = Thread(partial(self._run, assignment), "cpsim-replay")
        self._thread.start()

    @property
    def progress(self) -> Progress:
        """The progress: seconds, and operations accepted, refused and unknown."""
        return self._progress

    @property
    def is_running(self) -> bool:
        """Whether the replay still sends."""
        return self._thread.is_alive()

    def wait(self, timeout_s: float = DEFAULT_WAIT_S) -> Progress:
        """Wait until all of it has been sent.

        Raises:
            CpsimError: the daemon cannot be reached.
            TimeoutError: that took longer.
        """
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"{self!r} were sent in {timeout_s:g} s")
        failure, self._failure = self._failure, None  # it is raised once
        if failure is not None:
            raise failure
        return self._progress

    def stop(self) -> Progress:
        """Stop sending."""
        self._stopping = True
        if self._engine is not None:
            self._engine.stop()
        return self.wait(TIMEOUT_S)

    def __repr__(self) -> str:
        sent = sum(self._progress[1:])
        return (
            f"<Replay {self.workload.name!r}, seed {self.workload.seed}: {sent:,} of {len(self.workload):,} operations>"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self, assignment: Assignment) -> None:
        try:
            with Sender(assignment, self._note_progress) as sender:
                self._engine = sender.engine
                if not self._stopping:
                    self._engine.run(assignment.operations())
        except BaseException as error:  # noqa: BLE001 - it is raised where somebody waits
            self._failure = error

    def _note_progress(self, progress: Progress) -> None:
        self._progress = progress


def _pace(rate: float | None, speed: float | None) -> Pace:
    for name, value in (("rate", rate), ("speed", speed)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} is {value!r}, and must be above 0")
    if rate is not None and speed is not None:
        raise ValueError("a replay has a rate or a speed, not both")
    if rate is not None:
        return Rate(rate)
    return AsFastAsPossible() if speed is None else Speed(speed)

"""A replay by several processes: each has a share of the slots, and all begin at the same time."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import selectors
import signal
import struct
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Final

from cpsim.clock import SYSTEM_CLOCK
from cpsim.errors import CpsimError, in_one_line
from cpsim.evidence.journal import Journal, merged
from cpsim.metrics.progress import Progress
from cpsim.replay.engine import Effort, joint_effort
from cpsim.replay.sender import Sender
from cpsim.system.shelf import put, take

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    import numpy as np
    import numpy.typing as npt

    from cpsim.replay.assignment import Assignment
    from cpsim.scenario.workload import Workload

HEADSTART_NS: Final = 20_000_000
"""Time from when all processes are ready to the common start."""
START: Final = struct.Struct("<q")


class Processes:
    """Replays an assignment with several processes; a context manager that ends them.

    Args:
        assignment: the operations, which the processes divide among them.
        count: number of processes.
        on_progress: called like the `on_progress` of `Engine`, with the sum over the processes.
        journals: paths of the processes' journals; none makes temporary files.
    """

    def __init__(
        self,
        assignment: Assignment,
        count: int,
        on_progress: Callable[[Progress], None],
        journals: Sequence[Path] = (),
    ) -> None:
        self._on_progress = on_progress
        self._replayers = [
            _Replayer(assignment.part(index, count), Journal(path))
            for index, path in enumerate(journals or [None] * count)
        ]
        self._stopping = False
        self.start_ns = 0
        """Start of the replay in monotonic time."""
        self.journals = [replayer.journal for replayer in self._replayers]
        """The journals of the processes, whose files have what was answered some twentieth of a second ago."""

    def stop(self) -> None:
        """Send nothing more, and record operations in flight as unknown. Safe to call from a signal handler."""
        self._stopping = True
        for replayer in self._replayers:
            if replayer.ready:  # SIGTERM would kill the others; `run` stops them when they are ready
                replayer.process.terminate()

    def run(self) -> tuple[float, npt.NDArray[np.void], list[str]]:
        """Replay to the end, or until `stop`; returns the elapsed seconds, and the merged records and errors.

        Raises:
            CpsimError: a process failed.
        """
        with selectors.DefaultSelector() as selector:
            for replayer in self._replayers:
                selector.register(replayer.output, selectors.EVENT_READ, replayer)
            self._receive_until(selector, lambda replayer: replayer.ready)
            self.start_ns = SYSTEM_CLOCK.monotonic_ns() + HEADSTART_NS
            for replayer in self._replayers:
                replayer.send(START.pack(self.start_ns))
            if self._stopping:
                self.stop()
            self._receive_until(selector, lambda replayer: replayer.elapsed_s is not None)
        shares = [(r.journal.records(), r.journal.errors, r.assignment.ops) for r in self._replayers]
        elapsed_s = max(replayer.elapsed_s or 0.0 for replayer in self._replayers)
        return elapsed_s, *merged(shares)

    @property
    def operations(self) -> list[npt.NDArray[np.int64]]:
        """The numbers of each process's operations in the whole workload."""
        return [replayer.assignment.ops for replayer in self._replayers]

    def effort(self) -> Effort:
        """The cost of the replay, see `joint_effort`."""
        return joint_effort(replayer.effort for replayer in self._replayers)

    def parts(self) -> list[tuple[Journal, Workload]]:
        """The journal of each process, and the operations that its records number."""
        return [(replayer.journal, replayer.assignment.workload) for replayer in self._replayers]

    def _receive_until(self, selector: selectors.DefaultSelector, condition: Callable[[_Replayer], bool]) -> None:
        while not all(map(condition, self._replayers)):
            for key, _ in selector.select():
                key.data.receive()
                if not key.data.is_running:
                    selector.unregister(key.fileobj)
            self._on_progress(
                Progress(
                    max(replayer.progress.elapsed_s for replayer in self._replayers),
                    *(sum(counts) for counts in zip(*(r.progress[1:] for r in self._replayers), strict=True)),
                )
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for replayer in self._replayers:
            replayer.close()


class _Replayer:
    """A process of the replay, seen from its parent."""

    def __init__(self, assignment: Assignment, journal: Journal) -> None:
        self.assignment = assignment
        self.journal = journal
        self.progress = Progress(0.0, 0, 0, 0)
        self.effort = Effort(0.0, {})
        self.ready = False
        self.is_running = True
        self.elapsed_s: float | None = None
        self._received = b""
        self._assignment = tempfile.TemporaryFile()  # noqa: SIM115 - closed with this
        files = [self._assignment.fileno(), *self.journal.descriptors()]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from cpsim.replay.processes import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=files,
            start_new_session=True,  # Ctrl-C goes to the parent, which calls `stop`
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout.fileno()
        self.send(pickle.dumps((files, put(self._assignment, assignment))))

    def send(self, data: bytes) -> None:
        """Send to the process; `receive` reports a process that has died."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(data)
            self.process.stdin.flush()

    def receive(self) -> None:
        """Read messages from the process.

        Raises:
            CpsimError: the process failed.
        """
        data = os.read(self.output, 65_536)
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            self.ready = True
            if "progress" in message:
                self.progress = Progress(*message["progress"])
            if "errors" in message:
                self.journal.errors = message["errors"]
            if "elapsed_s" in message:
                self.elapsed_s = message["elapsed_s"]
                self.effort = Effort(*message["effort"])
            if "failed" in message:
                raise CpsimError(f"a process of the replay failed: {message['failed']}; what it had sent is not known")
        self.is_running = bool(data)
        if not data and self.elapsed_s is None:
            status = self.process.wait()
            raise CpsimError(f"a process of the replay ended with status {status}; what it had sent is not known")

    def close(self) -> None:
        """End the process, if it still runs."""
        if self.elapsed_s is None:
            self.process.kill()
        self.process.communicate()
        self.journal.close()
        self._assignment.close()


def main() -> None:
    """Run as a process of the replay: assignment and start time on standard input, messages on standard output."""
    try:
        _replay()
    except Exception as error:  # noqa: BLE001 - any error ends the run
        with contextlib.suppress(BrokenPipeError):  # the parent was interrupted, and has gone
            _report(failed=in_one_line(error))
        os._exit(1)


def _replay() -> None:
    from cpsim.system.process import tune_process  # noqa: PLC0415 - for this process only

    tune_process()
    (file, *files), where = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the process that started this one
    with os.fdopen(file, "rb") as content:
        assignment: Assignment = take(content, where)
    told = 1

    def report_progress(progress: Progress) -> None:
        nonlocal told
        journal.flush()
        texts = {"errors": journal.errors} if len(journal.errors) > told else {}
        told = len(journal.errors)
        _report(progress=progress, **texts)

    with Sender(assignment, report_progress, was_reached=True, journal=Journal(descriptors=files)) as sender:
        engine, journal = sender.engine, sender.journal
        signal.signal(signal.SIGTERM, lambda *_: engine.stop())
        upcoming = assignment.operations(journal.upto)
        _report()
        engine.begin(upcoming, *START.unpack(sys.stdin.buffer.read(START.size)))
        while engine.turn():
            pass
        elapsed_s = engine.end()
        journal.flush()
        effort = engine.effort(elapsed_s)
    _report(elapsed_s=elapsed_s, errors=journal.errors, effort=effort)


def _report(**message: object) -> None:
    print(json.dumps(message), flush=True)

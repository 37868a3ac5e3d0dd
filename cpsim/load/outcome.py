"""The result of a load: the figures of its workers are added up, their verdicts merged, and their rows joined."""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
import numpy as np

from cpsim.evidence import extensions
from cpsim.evidence.extensions import installed
from cpsim.evidence.files import EVIDENCE, JOURNAL, WORKLOAD, EvidenceFolder
from cpsim.evidence.journal import RECORD_TYPE
from cpsim.evidence.writing import document_of, write_rows, writers
from cpsim.load.adding import Added, add_up
from cpsim.load.aside import aside
from cpsim.load.asking import WorkerLost
from cpsim.load.judging import by_workers
from cpsim.load.observing import CLOCK, observer_of
from cpsim.load.share import WorkersShare, partitions_of, tables_of, with_missing
from cpsim.run.drivers import Replayed
from cpsim.run.folder import write
from cpsim.run.observing import conclude as judge
from cpsim.run.pipeline import ApplyDelay, Run
from cpsim.run.results import results_of
from cpsim.run.summary import of_others, show, summarise
from cpsim.system.mapped import give_back
from cpsim.ui.terminal import printed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import pyarrow as pa
    from rich.console import Console

    from cpsim.config.thresholds import Threshold
    from cpsim.evidence.evidence import Evidence, Imbalance
    from cpsim.load.master import Share
    from cpsim.run.folder import OutputFolder
    from cpsim.run.plan import Plan
    from cpsim.scenario.share import WorkloadShare
    from cpsim.ui.results import ResultFiles


class Shares:
    """The shares of a load that is replayed.

    Args:
        plan: of the whole load, without operations.
        operations: how many were planned.
        shares: those of all workers, in their order.
        ask: asks the worker of a share; raises WorkerLost.
        make: makes a share of the workload, by its index and the number of shares.

    Attributes:
        operations: how many were planned.
        all: the shares.
        partitions: of slots, each of one share.
    """

    def __init__(
        self,
        plan: Plan,
        operations: int,
        shares: Sequence[Share],
        ask: Callable[..., Any],
        make: Callable[[int, int], WorkloadShare],
    ) -> None:
        self._plan, self._ask, self._make = plan, ask, make
        self.operations = operations
        self.all = shares
        self._own: dict[int, WorkersShare] = {}
        self.partitions = partitions_of(operations, len(shares))

    @property
    def lost(self) -> list[str]:
        """The workers that are lost, of those that had begun."""
        return [share.worker for share in self.all if share.lost and share.begun]

    def added(self) -> Added:
        """The figures of all; of a share whose worker is lost, nobody knows what was sent."""
        while True:
            for share in self.all:
                if share.lost and share.index not in self._own:
                    self._own[share.index] = aside(partial(self._missing, share))
            with suppress(WorkerLost):  # which counts as lost now
                return add_up(self.ask_all, self._plan.warm_up_s)

    def ask(self, share: Share, what: str, **given: object) -> Any:  # noqa: ANN401 - each question has its answer
        """Ask whoever has a share; raises WorkerLost."""
        own = self._own.get(share.index)
        if own is not None:
            return aside(lambda: own.answer(what, given))
        try:
            return self._ask(share, what, given)
        except WorkerLost:
            share.lost = True
            raise

    def ask_all(self, what: str, **given: object) -> list[Any]:
        """Ask whoever has a share, all at once; the answers are in the order of shares. Raises WorkerLost."""

        def answer(share: Share) -> Any:  # noqa: ANN401 - as above; gevent would print what a greenlet raises
            try:
                return self.ask(share, what, **given)
            except WorkerLost as lost:
                return lost

        asked = [gevent.spawn(answer, share) for share in self.all]
        answers = [each.get() for each in asked]
        for each in answers:
            if isinstance(each, WorkerLost):
                raise each
        return answers

    def write(self, name: str, path: Path) -> None:
        """Write the workload or the journal of all, partition by partition."""

        def tables() -> Iterator[pa.Table]:
            for part in range(self.partitions):
                share = self.all[part % len(self.all)]
                try:
                    rows = self.ask(share, "rows", part=part, name=name)
                except WorkerLost:
                    raise ConnectionError(f"{share.worker} is lost, which has them") from None
                yield from tables_of(rows)
                give_back()

        write_rows(name, tables(), path)

    def _missing(self, share: Share) -> WorkersShare:
        """A share of which nothing is known."""
        made = self._make(share.index, len(self.all))
        plan = replace(self._plan, workload=replace(made.workload, notes=self._plan.workload.notes))
        part = plan.assignment(made.ops)
        records, errors = with_missing(np.empty(0, RECORD_TYPE), [""], part)
        evidence = Replayed(records, errors, 0.0, share.effort, 0).evidence(plan, part.schedule_us)
        return WorkersShare(replace(evidence, in_parts=self.partitions, numbers=part.ops))


def conclude(
    plan: Plan,
    shares: Shares,
    replayed: Replayed,
    thresholds: Sequence[Threshold],
    output: OutputFolder,
    *,
    before: tuple[Imbalance, ...] | None,
    files: ResultFiles,
    tell: Callable[[Callable[[Console], None]], None],
) -> int:
    """Judge a load, write its run folder, and tell its summary; returns the exit status.

    Args:
        plan: what was replayed, without operations.
        shares: who has it.
        replayed: what came of it, without records.
        thresholds: to check.
        output: takes the files.
        before: the sums of accounts that did not agree before; None if nobody looked.
        files: take the results.
        tell: called with a function that prints the summary.

    Raises:
        NotWritten: a file of the run folder cannot be written; the summary is told nevertheless.
    """
    added = shares.added()
    lost = shares.lost
    gaps = [f"Operations of {', '.join(lost)}: lost in the middle of the replay."] if lost else []
    evidence = replace(
        replayed.evidence(plan, None).head(),
        errors=added.errors,
        answers=added.answers,
        unsent=shares.operations - added.sent,
        gaps=(*gaps, *replayed.gaps),
        before=before,
        in_parts=shares.partitions,
        clock_unknown="it is not measured under Locust, where each worker has its own clock",
    )
    observer, source = observer_of(plan), plan.target.accounts
    judged = partial(by_workers, shares)
    evidence, verdict = judge(evidence, observer, plan.timeout_s, CLOCK, source=source, judged=judged)
    delay, ended = ApplyDelay.of(evidence), (replayed.stopped_by, replayed.found)
    result = Run(plan, evidence, replayed.effort, verdict, delay, 0.0, *ended)
    summary, of_files = aside(lambda: summarise(result, {}, added.measured)), _files(evidence, shares, added)
    if others := installed(extensions.METRICS):
        summary.metrics, summary.metrics_unknown = of_others(_whole(of_files), others)
    summary.check(thresholds)

    def say(console: Console) -> None:
        show(result, summary, console)
        if output.is_whole:
            console.print(f"run folder    {output.path}", highlight=False, markup=False)

    files.add(lambda: results_of(verdict, printed(partial(show, result, summary)), summary.checked))
    try:
        write(result, summary, output, drawn=added.drawn, evidence_files=of_files)
    finally:
        tell(say)
    return {"valid": 0, "invalid": 1, "unknown": 2}[verdict.ruling] if summary.holds else 1


def _whole(files: Mapping[str, Callable[[Path], object]]) -> Evidence:
    """All evidence at once, which others' metrics are of."""
    with tempfile.TemporaryDirectory() as name:
        for file, write_file in files.items():
            write_file(Path(name) / file)
        return EvidenceFolder(Path(name)).whole()


def _write_aside(write_file: Callable[[Path], object], path: Path) -> None:
    aside(lambda: write_file(path))


def _files(evidence: Evidence, shares: Shares, added: Added) -> dict[str, Callable[[Path], object]]:
    """A function for each file of evidence that writes it to a path."""
    slots_of, counts_of = evidence.slots_by_partition(), added.parts.__getitem__
    document = aside(lambda: json.dumps(document_of(evidence, slots_of=slots_of, counts_of=counts_of), indent=1))
    return {
        **{name: partial(_write_aside, write_file) for name, write_file in writers(evidence).items()},
        EVIDENCE: lambda path: path.write_text(f"{document}\n", encoding="utf-8"),
        WORKLOAD: partial(shares.write, WORKLOAD),
        JOURNAL: partial(shares.write, JOURNAL),
    }

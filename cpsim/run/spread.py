"""The judgement of a run folder, spread over processes: those of this machine, or the workers of a Dask cluster.

Each task reads and judges one partition of slots, and returns the verdict on it; these are merged in the order of the
partitions, as where one process judges them, so that the whole is the same.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import TYPE_CHECKING, Final

from cpsim.errors import CpsimError
from cpsim.evidence.files import ANY_TIME_NS, EvidenceFolder
from cpsim.judge.judge import CHECKERS, checkers_of_others, concluded, names_of, of_each, of_partition
from cpsim.system.cluster import connect, workers_errors
from cpsim.system.mapped import keep_freed
from cpsim.system.process import prepare_arrow
from cpsim.system.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager
    from pathlib import Path

    import pyarrow as pa

    from cpsim.accounts.view import View
    from cpsim.evidence.evidence import Evidence
    from cpsim.judge.verdict import Verdict

AHEAD: Final = 2
"""Partitions that are given to a process before the first is judged."""


@dataclass(frozen=True, slots=True)
class FolderToJudge:
    """A run folder, and what it is judged with; see `EvidenceFolder`."""

    path: Path
    later: View | None = None
    until_ns: int = ANY_TIME_NS
    project: str | None = None
    quirks: frozenset[str] | None = None

    def opened(self) -> EvidenceFolder:
        """The evidence in it; raises CpsimError."""
        return EvidenceFolder(self.path, self.later, self.until_ns, project=self.project, quirks=self.quirks)

    def for_others(self) -> FolderToJudge:
        """The same for processes elsewhere, without the slots that were seen later."""
        later = self.later
        if later is not None and later.slots is not None:
            later = replace(later, slots=later.slots.schema.empty_table())
        return replace(self, path=self.path.absolute(), later=later)


@dataclass(frozen=True, slots=True)
class Spread:
    """Processes that judge partitions.

    Attributes:
        pool: takes the tasks.
        processes: how many work at once.
        errors: a context in which a result is waited for, which raises what went wrong as a CpsimError.
    """

    pool: Executor
    processes: int
    errors: Callable[[], AbstractContextManager[object]]


@contextmanager
def on_this_machine(processes: int) -> Iterator[Spread]:
    """Processes of this machine, which end with the context."""
    with ProcessPoolExecutor(processes, get_context("spawn"), _begin) as pool:
        # children inherit that: Ctrl-C is their parent's affair
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for _ in range(processes):
                pool.submit(os.getpid)  # which begins it
        finally:
            signal.signal(signal.SIGINT, previous)
        try:
            yield Spread(pool, processes, _errors_of_processes)
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _errors_of_processes() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise CpsimError("a process that judged was killed, of which memory may be the reason") from error


def _begin() -> None:
    """Have a process end with its parent, and judge like it."""
    prepare_arrow()
    keep_freed()
    Thread(_end_with_parent, "cpsim-parent").start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def on_cluster(scheduler: str) -> Iterator[Spread]:
    """The workers of a Dask cluster, which have to see the run folder under the same path.

    Args:
        scheduler: its address, such as tcp://127.0.0.1:8786.

    Raises:
        CpsimError: Dask is not installed, or there is no scheduler or no worker.
    """
    client = connect(scheduler)
    import dask  # noqa: PLC0415 - not everybody has a cluster

    quietly = dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GiB"})  # rows of a partition
    try:
        with quietly:
            processes = sum(client.nthreads().values())
            yield Spread(client.get_executor(pure=False), processes, lambda: workers_errors(scheduler))
    finally:
        client.close()


def judge_folder(
    folder: FolderToJudge,
    evidence: EvidenceFolder,
    spread: Spread | None = None,
    on_partition: Callable[[int], object] = lambda _: None,
) -> tuple[Evidence, Verdict]:
    """Judge a run folder, as `judge` does.

    Args:
        folder: the run folder.
        evidence: the same, opened.
        spread: who judges its partitions; None for this process, which alone judges a run that was cut short.
        on_partition: called with how many partitions are judged, after each.

    Returns:
        The evidence without operations, and the verdict.

    Raises:
        CpsimError: the folder, or a process that judges it, is not as it should be.
    """

    def counted(found: Iterable[list[Verdict]]) -> Iterator[list[Verdict]]:
        for number, verdicts in enumerate(found, 1):
            yield verdicts
            on_partition(number)

    checkers = [*CHECKERS, *checkers_of_others()]
    if spread is None or evidence.is_unfinished:
        head = evidence.head()
        return head, concluded(counted(of_each(evidence.partitions(), checkers)), head, checkers)
    sent, names, slots_of = folder.for_others(), names_of(checkers), evidence.slots_by_partition()
    futures = (
        spread.pool.submit(judge_partition, sent, evidence.digest, names, index, slots_of(index))
        for index in range(evidence.count)
    )
    asked = deque(islice(futures, AHEAD * spread.processes))  # before this process reads all slots for the head

    def in_order() -> Iterator[list[Verdict]]:
        while asked:
            with spread.errors():
                found = asked.popleft().result()
            asked.extend(islice(futures, 1))
            yield found

    head = evidence.head()
    return head, concluded(counted(in_order()), head, checkers)


def judge_partition(
    folder: FolderToJudge, digest: str, names: list[str], index: int, slots: pa.Table | None
) -> list[Verdict]:
    """Judge a partition, in a process of its own.

    Args:
        folder: the run folder.
        digest: of its evidence, where it is judged as a whole.
        names: of the checkers there.
        index: of the partition.
        slots: its rows of the ledger, if the folder does not have them together.

    Raises:
        CpsimError: here is another folder, or are other checkers.
    """
    checkers = [*CHECKERS, *checkers_of_others()]
    if names_of(checkers) != names:
        raise CpsimError(f"it has the checkers {', '.join(names_of(checkers))}, and this machine {', '.join(names)}")
    evidence = _kept_open(digest, folder) if folder.later is None else folder.opened()
    if evidence.digest != digest:
        raise CpsimError(f"{folder.path} is another run folder there than here")
    return of_partition(evidence.partition(index, slots), checkers)


@lru_cache(maxsize=1)
def _kept_open(_digest: str, folder: FolderToJudge) -> EvidenceFolder:
    """A folder that is opened once, and its accounts read, for all partitions that this process judges."""
    return folder.opened()

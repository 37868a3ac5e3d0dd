"""A worker's share of a load, when it is replayed: what the master asks of it.

Questions and answers are plain values, JSON and Arrow's format of tables: nothing that a process would run.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cpsim.accounts.view import View
from cpsim.errors import CpsimError
from cpsim.evidence import extensions
from cpsim.evidence.evidence import PARTITION, Seen
from cpsim.evidence.extensions import installed
from cpsim.evidence.files import WORKLOAD
from cpsim.evidence.journal import RECORD_TYPE, OperationOutcome
from cpsim.evidence.writing import journal_rows, workload_rows
from cpsim.judge.judge import CHECKERS, checkers_of_others, names_of, of_partition
from cpsim.judge.plain import of_plain, to_plain
from cpsim.load.counting import ShareFigures
from cpsim.replay.failures import LOST
from cpsim.system.mapped import zeros

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from cpsim.evidence.evidence import Evidence
    from cpsim.judge.judge import Checker
    from cpsim.judge.verdict import Verdict
    from cpsim.replay.assignment import Assignment


class WorkersShare:
    """Answers questions about a share.

    Args:
        evidence: of the share, in the partitions of the whole load: those of other shares are empty.
    """

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        figures = ShareFigures(evidence)
        self._answers: dict[str, Callable[..., Any]] = {
            "judge": self.judge,
            "rows": self.rows,
            "sums": figures.sums,
            "over_time": figures.over_time,
            "by_interval": figures.by_interval,
            "earliest": figures.earliest,
            "by_second": figures.by_second,
        }

    def answer(self, what: str, given: dict[str, Any]) -> Any:  # noqa: ANN401 - each question has its answer
        """The answer to a question, one of the names above, with its arguments."""
        return self._answers[what](**given)

    def rows(self, part: int, name: str) -> bytes:
        """The rows of a partition in the workload's or the journal's file, as `tables_of` reads them."""
        if name == WORKLOAD:
            tables = workload_rows(self._evidence, part)
        else:
            tables = journal_rows(self._evidence, part, columns_of_others=installed(extensions.COLUMNS))
        return to_bytes(tables)

    def judge(self, part: int, checkers: list[str], seen: dict[str, Any] | None) -> str:
        """What checkers find in a partition, see `verdicts_of`.

        Args:
            part: the partition, by its number in the whole load.
            checkers: their names.
            seen: what was seen of its slots, by `seen_to_plain`.

        Raises:
            CpsimError: one of the checkers is not here.
        """
        known = [*CHECKERS, *checkers_of_others()]
        by_name = dict(zip(names_of(known), known, strict=True))
        if missing := [name for name in checkers if name not in by_name]:
            raise CpsimError(f"the checker {missing[0]} is not on this machine")
        evidence = replace(self._evidence.part(part), seen=None if seen is None else _of_plain(seen))
        return json.dumps([to_plain(found) for found in of_partition(evidence, [by_name[name] for name in checkers])])


def partitions_of(operations: int, shares: int) -> int:
    """The partitions of a load of so many operations: each has slots of one share alone."""
    return shares * max(1, -(-operations // (PARTITION * shares)))


def verdicts_of(answer: str) -> list[Verdict]:
    """The verdicts of an answer to `judge`, one of each checker."""
    return [of_plain(document) for document in json.loads(answer)]


def seen_to_plain(
    seen: Seen | None, slots: pa.Table | None, outstanding: pa.Table | None, checkers: Sequence[Checker]
) -> dict[str, Any] | None:
    """What was seen of the slots of a partition.

    Args:
        seen: of all accounts; None if nothing was.
        slots: the rows of the partition's slots; None if slots are not shown.
        outstanding: in its column `slot`, those that are listed as outstanding; None if the accounts show more.
        checkers: who look at it. Others than the product's own see machines, users and projects, too.
    """
    if seen is None:
        return None
    tables: dict[str, pa.Table | None] = {}
    if seen.view is not None:
        if any(checker.by_partition and checker not in CHECKERS for checker in checkers):
            tables = {name: getattr(seen.view, name) for name in ("machines", "users", "projects")}
        tables["slots"] = slots
    return {
        "from_ns": seen.from_ns,
        "to_ns": seen.to_ns,
        "tables": {name: to_bytes(iter([table])) for name, table in tables.items() if table is not None},
        "is_shown": seen.view is not None,
        "outstanding": None if outstanding is None else outstanding["slot"].to_pylist(),
    }


def _of_plain(seen: dict[str, Any]) -> Seen:
    listed = seen["outstanding"]
    return Seen(
        seen["from_ns"],
        seen["to_ns"],
        View(**{name: _table_of(data) for name, data in seen["tables"].items()}) if seen["is_shown"] else None,
        None if listed is None else frozenset(listed),
    )


def to_bytes(tables: Iterator[pa.Table]) -> bytes:
    """Tables of one schema, one at least, in Arrow's format of streams."""
    sink, first = pa.BufferOutputStream(), next(tables)
    with pa.ipc.new_stream(sink, first.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table.combine_chunks())
    found: bytes = sink.getvalue().to_pybytes()
    return found


def tables_of(data: bytes) -> Iterator[pa.Table]:
    """The tables that `to_bytes` has made bytes of, one by one, behind an empty one."""
    with pa.ipc.open_stream(data) as reader:
        yield reader.schema.empty_table()
        for batch in reader:
            yield pa.Table.from_batches([batch])


def _table_of(data: bytes) -> pa.Table:
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()


def with_missing(
    records: npt.NDArray[np.void], errors: list[str], part: Assignment
) -> tuple[npt.NDArray[np.void], list[str]]:
    """The records and errors of a share of which not all is known: what has no record may have been sent.

    Each such operation is of unknown outcome; it was sent, if so, when the one before it of its slot was answered.
    """
    heard = zeros(len(part.workload), np.dtype(np.bool))
    heard[records["op"]] = True
    answered_ns = zeros(len(part.workload.slot_numbers), np.dtype(np.int64))
    np.maximum.at(answered_ns, part.workload.slot[records["op"]], records["answered_ns"])
    missing = np.zeros(len(heard) - len(records), RECORD_TYPE)
    missing["op"] = np.flatnonzero(~heard)
    missing["outcome"], missing["error"] = OperationOutcome.UNKNOWN, len(errors)
    missing["sent_ns"] = answered_ns[part.workload.slot[missing["op"]]]
    missing["answered_ns"] = int(records["answered_ns"].max(initial=0)) + 1
    both = np.concatenate([records, missing])
    return both[np.argsort(both["op"], kind="stable")], [*errors, LOST]

"""A worker's share of a load, when it is replayed: what the master asks of it.

Questions and answers are plain values, JSON and Arrow's format of tables: nothing that a process would run.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cpsim.accounts.view import View
from cpsim.errors import CpsimError
from cpsim.evidence.evidence import PARTITION, Seen
from cpsim.judge.judge import CHECKERS, checkers_of_others, names_of, of_partition
from cpsim.judge.plain import of_plain, to_plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cpsim.evidence.evidence import Evidence
    from cpsim.judge.judge import Checker
    from cpsim.judge.verdict import Verdict


class WorkersShare:
    """Answers questions about a share.

    Args:
        evidence: of the share, in the partitions of the whole load: those of other shares are empty.
    """

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence

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
        "tables": {name: to_bytes(table) for name, table in tables.items() if table is not None},
        "is_shown": seen.view is not None,
        "outstanding": None if outstanding is None else outstanding["slot"].to_pylist(),
    }


def _of_plain(seen: dict[str, Any]) -> Seen:
    listed = seen["outstanding"]
    return Seen(
        seen["from_ns"],
        seen["to_ns"],
        View(**{name: of_bytes(data) for name, data in seen["tables"].items()}) if seen["is_shown"] else None,
        None if listed is None else frozenset(listed),
    )


def to_bytes(table: pa.Table) -> bytes:
    """A table in Arrow's format of streams."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    found: bytes = sink.getvalue().to_pybytes()
    return found


def of_bytes(data: bytes) -> pa.Table:
    """The table that `to_bytes` has made bytes of."""
    return pa.ipc.open_stream(data).read_all()

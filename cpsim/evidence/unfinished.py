"""The evidence of a run while the run lasts, and of one that was cut short: `journal.parquet` is still missing.

Before anything is sent, the run folder has `workload.parquet`, and an `evidence.json` that has a table `unfinished`;
while the replay goes on, `journal-N.raw` of each process, and its notes (see `cpsim.evidence.journal`), which are
removed when all is written.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cpsim.errors import CpsimError
from cpsim.evidence.evidence import tally
from cpsim.evidence.journal import RECORD_TYPE, OperationOutcome, in_order, merged, notes_of, pieces_of
from cpsim.scenario.workload import KIND_NAMES
from cpsim.system.mapped import let_go, stored, stretches, taken, zeros

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy.typing as npt

UNFINISHED: Final = "unfinished"
"""What `evidence.json` has of how a run is replayed, until the run has ended."""
INTERRUPTED: Final = "interrupted"
"""The error of an operation that was under way, as where a replay is interrupted."""
NEVER: Final = -1000
"""When an operation was sent, in nanoseconds, of which nobody knows whether it was."""
CUT_SHORT: Final = "the run was cut short, or still goes on"


class Answered(NamedTuple):
    """What was answered in a run that was cut short.

    Attributes:
        records: of all operations that may have been sent, in the order of the operations (dtype RECORD_TYPE); those
            of unknown outcome without a record of their own were sent at NEVER.
        ops: their operations.
        facts: what that makes of the evidence's facts.
    """

    records: npt.NDArray[np.void]
    ops: npt.NDArray[np.int32]
    facts: dict[str, Any]

    def of(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
        """The records of some operations, in ascending order, with their places among these as numbers."""
        places = np.searchsorted(self.ops, ids)
        there = np.flatnonzero(np.searchsorted(self.ops, ids, "right") > places)
        records = taken(self.records, places[there])
        records["op"] = there
        return records


def journals_in(folder: Path, processes: int) -> list[Path]:
    """The journals of so many processes."""
    return [folder / f"journal-{number}.raw" for number in range(1, processes + 1)]


def count_in(folder: Path) -> int:
    """How many journals a run folder has, of a run that has not removed them."""
    return sum(1 for _ in folder.glob("journal-*.raw"))


def remove(folder: Path) -> None:
    """Remove the journals from a run folder that has the whole one."""
    for path in journals_in(folder, count_in(folder)):
        path.unlink()
        notes_of(path).unlink(missing_ok=True)


def answered(folder: Path, processes: int, operations: Iterable[pa.Table], total: int, *, is_over: bool) -> Answered:
    """Read the journals of a run that was cut short.

    Args:
        folder: the run folder.
        processes: how many replayed.
        operations: the workload's columns `id`, `kind` and `number`, piece by piece in any order.
        total: how many operations it has.
        is_over: whether the replay had ended, so that what has no record was never sent.

    Raises:
        CpsimError: a journal is missing or damaged.
    """
    kinds, share_of = zeros(total, np.dtype(np.uint8)), zeros(total, np.dtype(np.uint8))
    for piece in operations:
        ids = piece["id"].to_numpy()
        kinds[ids] = np.asarray(pc.index_in(piece["kind"].cast(pa.string()), value_set=pa.array(KIND_NAMES)))
        share_of[ids] = piece["number"].to_numpy() % processes
    parts = []
    for share, path in enumerate(journals_in(folder, processes)):
        ops = np.flatnonzero(share_of == share)
        records, errors = _read(path, len(ops), is_over=is_over)
        parts.append((records, errors, ops))
    records, errors = merged(parts)
    unknown = np.count_nonzero(records["sent_ns"] == NEVER)
    what = f"What became of up to {unknown:,} operations that may have been sent last: {CUT_SHORT}."
    return Answered(
        records,
        stored(np.ascontiguousarray(records["op"])),
        {
            "answers": tally(kinds, records, errors),
            "errors": errors,
            "elapsed_s": int(records["answered_ns"].max(initial=0)) / 1e9,
            "interrupted": True,
            "unsent": total - len(records),
            "gaps": (what,) if unknown else (),
        },
    )


def _read(path: Path, total: int, *, is_over: bool) -> tuple[npt.NDArray[np.void], list[str]]:
    """A record of each of a journal's operations that may have been sent, and the errors."""
    upto, errors = 0, [""]
    try:
        for line in notes_of(path).read_text(encoding="utf-8").splitlines():
            try:
                note = json.loads(line)
            except ValueError:  # the last one, for which the disk had no room
                break
            upto = note.get("upto", upto)
            errors += [note["error"]] if "error" in note else []
        lost = errors.index(INTERRUPTED) if INTERRUPTED in errors else len(errors)
        with path.open("rb") as file:
            if is_over:
                records = in_order(path.stat().st_size // RECORD_TYPE.itemsize, lambda: pieces_of(file))
            else:
                records = _nobody_knows(upto, lost)
                for piece in pieces_of(file):
                    records[piece["op"]] = piece
                    let_go()
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CpsimError(f"{path} is damaged: {error}") from error
    except FileNotFoundError:
        raise CpsimError(f"{path} is missing: nothing had been sent, or somebody has removed it") from None
    except OSError as error:
        raise CpsimError(f"{path} cannot be read: {error.strerror}") from error
    for where in stretches(len(records)):
        for column in ("sent_ns", "answered_ns"):
            records[column][where] -= records[column][where] % 1000
    if upto > total or int(records["error"].max(initial=0)) > len(errors):
        raise CpsimError(f"{path} is damaged: it is not that of the workload beside it")
    return records, [*errors, INTERRUPTED] if lost == len(errors) else errors


def _nobody_knows(count: int, error: int) -> npt.NDArray[np.void]:
    """Records of so many operations of which nobody knows whether they were sent."""
    records = zeros(count, RECORD_TYPE)
    for where in stretches(count):
        records["op"][where] = np.arange(where.start, where.stop)
        records["error"][where], records["outcome"][where] = error, OperationOutcome.UNKNOWN
        records["sent_ns"][where] = NEVER
    return records


def bound_times(records: npt.NDArray[np.void], slot: npt.NDArray[np.int32], elapsed_s: float) -> None:
    """Give operations that may have been sent the first time at which that can have been, and the end of the run.

    Args:
        records: of all operations of some slots.
        slot: of each operation.
        elapsed_s: when the last answer came.
    """
    lost = records["sent_ns"] == NEVER
    known, slots = records[~lost], slot[records["op"]]
    since_ns = np.zeros(int(slot.max(initial=-1)) + 1, np.int64)
    np.maximum.at(since_ns, slots[~lost], known["answered_ns"])  # one at a time of each slot is sent
    records["sent_ns"][lost] = since_ns[slots[lost]]
    records["answered_ns"][lost] = round(elapsed_s * 1e6) * 1000

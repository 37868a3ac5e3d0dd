"""What a run folder has before anything is sent."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cpsim.errors import CpsimError, in_one_line
from cpsim.evidence.files import EVIDENCE, WORKLOAD
from cpsim.evidence.journal import OWNER_ONLY, RECORD_TYPE
from cpsim.evidence.unfinished import UNFINISHED
from cpsim.evidence.writing import document_of, write_workload
from cpsim.system.replacing import replacing

if TYPE_CHECKING:
    from collections.abc import Callable

    from cpsim.evidence.evidence import Evidence

TEMPORARY_BYTES: Final = 50
"""Of an operation, at least, in temporary files that are yet to come."""
LEDGER_BYTES: Final = 200
"""Of a slot of the ledger, at least, which is in temporary files twice while it is judged."""


def begin(evidence: Evidence, folder: Path, processes: int) -> None:
    """Write what is known before anything is sent, and see that the disk has room for what will be.

    Args:
        evidence: of a replay that has not begun.
        folder: the run folder.
        processes: how many will replay, each with a journal.

    Raises:
        CpsimError: the disk has no room for it.
    """
    document = document_of(evidence) | {UNFINISHED: {"processes": processes}}
    writers_of: dict[str, Callable[[Path], object]] = {
        WORKLOAD: lambda path: write_workload(evidence, path),
        EVIDENCE: lambda path: path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8"),
    }
    try:
        for name, write in writers_of.items():
            with replacing(folder / name) as path:
                write(path)
            (folder / name).chmod(OWNER_ONLY)
        written = (folder / WORKLOAD).stat().st_size
        free = shutil.disk_usage(folder).free
        temporary = Path(tempfile.gettempdir())
        is_shared = temporary.exists() and temporary.stat().st_dev == folder.stat().st_dev
    except OSError as error:
        raise CpsimError(f"{folder} cannot be written: {in_one_line(error)}; nothing was sent") from error
    operations, slots = len(evidence.workload), len(evidence.workload.slot_numbers)
    needed = operations * RECORD_TYPE.itemsize + written  # journal.parquet has more than the workload
    what, how = "", "--output"
    if is_shared:
        needed += operations * TEMPORARY_BYTES + (0 if evidence.project is None else slots * LEDGER_BYTES)
        what, how = ", with temporary files,", "--output or TMPDIR"
    if needed > free:
        raise CpsimError(
            f"the journal of {operations:,} operations{what} takes at least {needed / 1e6:,.0f} MB, and the disk of "
            f"{folder} has {free / 1e6:,.0f} MB free; nothing was sent: make room there, or name a folder on another "
            f"disk with {how}"
        )

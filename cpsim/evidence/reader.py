"""Reads journals while a replay writes them: whoever follows a run has a reader of each of its journals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cpsim.evidence.journal import RECORD_TYPE

if TYPE_CHECKING:
    import numpy.typing as npt

    from cpsim.evidence.journal import Journal


class JournalReader:
    """Reads what is new in a journal each time that it is asked.

    Args:
        journal: whose file is read; another process may write it.
        ops: the number of each of its operations in the whole workload; None leaves them as they are recorded.
    """

    def __init__(self, journal: Journal, ops: npt.NDArray[np.int64] | None = None) -> None:
        self._journal, self._ops = journal, ops
        self._offset = 0

    def read(self) -> npt.NDArray[np.void]:
        """The records since the last time (dtype RECORD_TYPE), in the order in which they were written.

        Raises:
            CpsimError: the journal cannot be written.
        """
        data = self._journal.tail(self._offset)
        self._offset += len(data)
        records = np.frombuffer(data, RECORD_TYPE)
        if self._ops is not None:
            records = records.copy()
            records["op"] = self._ops[records["op"]]
        return records

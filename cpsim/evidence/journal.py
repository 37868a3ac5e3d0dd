"""The journal: one record per operation sent, kept in a file while the replay runs.

Records are fixed-size and appended to a buffered file, so that a run's memory does not grow with its length; the
columns of the run folder's `journal.parquet` are made from them afterwards.

A journal in a run folder has a file of notes beside it, a JSON object a line, written at once: `{"upto": N}` before
any operation from the last such number up to N is sent, and `{"error": TEXT}` before the first record with that error.
So what was under way when the run was cut short can be told from what was never sent.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from contextlib import suppress
from enum import IntEnum
from typing import IO, TYPE_CHECKING, Final

import numpy as np

from cpsim.errors import CpsimError
from cpsim.system.mapped import ROWS, let_go, stretches, zeros

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    Records = npt.NDArray[np.void]

RECORD: Final = struct.Struct("<iBHqq")
RECORD_TYPE: Final = np.dtype(
    [("op", "<i4"), ("outcome", "u1"), ("error", "<u2"), ("sent_ns", "<i8"), ("answered_ns", "<i8")]
)
NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
OWNER_ONLY: Final = 0o600
OTHER_ERRORS: Final = 1_000
"""Distinct error texts kept; further ones share one text, so that memory stays bounded."""


class OperationOutcome(IntEnum):
    """The outcome of an operation: a refused one changed nothing, an unknown one may have been applied."""

    ACCEPTED = 0
    REFUSED = 1
    UNKNOWN = 2


class Journal:
    """Collects records during a replay; `records` reads them back.

    Times are nanoseconds since the replay began.

    Args:
        path: of its file in a run folder, which has notes beside it; None makes a temporary file.
        descriptors: of another process's journal, to write to in place of a file of its own.

    Raises:
        CpsimError: the file cannot be made.
    """

    def __init__(self, path: Path | None = None, descriptors: Sequence[int] = ()) -> None:
        self._where = tempfile.gettempdir() if path is None else str(path.parent)
        self._notes: int | None = None
        try:
            if descriptors:
                file, *notes = descriptors
                self._notes = notes[0] if notes else None
                self._file: IO[bytes] = os.fdopen(file, "r+b", buffering=1 << 20)
            elif path is None:
                self._file = tempfile.TemporaryFile(buffering=1 << 20)  # noqa: SIM115 - open as long as the journal
            else:
                self._notes = os.open(notes_of(path), NEW, OWNER_ONLY)
                self._file = os.fdopen(os.open(path, NEW, OWNER_ONLY), "r+b", buffering=1 << 20)
        except OSError as error:
            raise self._unwritable(error) from error
        self._write = self._file.write
        self._pack = RECORD.pack
        self.errors = [""]
        self._codes = {"": 0}
        self.counts = [0, 0, 0]

    def record(self, op: int, outcome: OperationOutcome, error: str, sent_ns: int, answered_ns: int) -> None:
        """Append the outcome of operation `op`; `error` is empty if it was accepted.

        Raises:
            CpsimError: the file cannot be written.
        """
        code = self._codes.get(error)
        if code is None:
            code = self._code(error)
        self.counts[outcome] += 1
        try:
            self._write(self._pack(op, outcome, code, sent_ns, answered_ns))
        except OSError as problem:
            raise self._unwritable(problem) from problem

    def upto(self, op: int) -> None:
        """Note that no operation from `op` on has been sent yet, but those before it may be sent from now on.

        Raises:
            CpsimError: the note cannot be written.
        """
        self._note(upto=op)

    def records(self) -> npt.NDArray[np.void]:
        """All records, in the order of the operations (dtype RECORD_TYPE)."""
        self.flush()
        return in_order(self._file.seek(0, os.SEEK_END) // RECORD.size, lambda: pieces_of(self._file))

    def fileno(self) -> int:
        """The descriptor of its file."""
        return self._file.fileno()

    def descriptors(self) -> list[int]:
        """The descriptors of its files, to give to the process that writes them."""
        return [self.fileno(), *([] if self._notes is None else [self._notes])]

    def tail(self, offset: int) -> bytes:
        """The whole records from an offset in bytes on, as they are in the file; callable beside whoever records."""
        self.flush()
        descriptor = self._file.fileno()
        size = os.fstat(descriptor).st_size - offset
        return os.pread(descriptor, size - size % RECORD.size, offset)

    def flush(self) -> None:
        """Write all records to the file.

        Raises:
            CpsimError: the file cannot be written.
        """
        try:
            self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Close the files."""
        if self._notes is not None:
            os.close(self._notes)
            self._notes = None
        with suppress(OSError):  # it cannot be written, which was said
            self._file.close()

    def _code(self, error: str) -> int:
        if len(self.errors) >= OTHER_ERRORS:
            error = "other errors"
        if error not in self._codes:
            self._note(error=error)
            self._codes[error] = len(self.errors)
            self.errors.append(error)
        return self._codes[error]

    def _note(self, **what: object) -> None:
        if self._notes is not None:
            try:
                os.write(self._notes, json.dumps(what).encode() + b"\n")
            except OSError as error:
                raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> CpsimError:
        option = "TMPDIR" if self._where == tempfile.gettempdir() else "--output"
        return CpsimError(
            f"a journal cannot be written below {self._where}: {error.strerror}; make room there, or name a folder on "
            f"another disk with {option}"
        )


def notes_of(path: Path) -> Path:
    """The file of notes beside a journal's."""
    return path.with_suffix(".notes")


def merged(
    shares: Iterable[tuple[npt.NDArray[np.void], list[str], npt.NDArray[np.int64]]],
) -> tuple[npt.NDArray[np.void], list[str]]:
    """Merge the records of several journals, each of other operations, in their order; and their error texts.

    Args:
        shares: of each journal the records (dtype RECORD_TYPE), the errors, and the numbers of its operations in the
            whole workload.
    """
    errors: dict[str, int] = {"": 0}
    parts = [
        (records, np.array([errors.setdefault(error, len(errors)) for error in texts], np.uint16), ops)
        for records, texts, ops in shares
    ]

    def pieces() -> Iterator[Records]:
        for records, codes, ops in parts:
            for where in stretches(len(records)):
                piece = records[where].copy()
                piece["op"], piece["error"] = ops[piece["op"]], codes[piece["error"]]
                yield piece

    return in_order(sum(len(records) for records, _, _ in parts), pieces), list(errors)


def pieces_of(file: IO[bytes]) -> Iterator[Records]:
    """The whole records of a journal's file, piece by piece."""
    file.seek(0)
    while len(piece := np.fromfile(file, RECORD_TYPE, ROWS)):
        yield piece


def in_order(count: int, pieces: Callable[[], Iterator[Records]]) -> Records:
    """The records of pieces, so many in all, in the order of their operations, each of which has one."""
    last = max((int(piece["op"].max()) for piece in pieces()), default=-1)
    place = None
    if count <= last:  # not all were sent
        place, before = zeros(last + 1, np.dtype(np.int32)), -1
        for piece in pieces():
            place[piece["op"]] = 1
        for where in stretches(last + 1):
            place[where] = before + np.cumsum(place[where])
            before = int(place[where.stop - 1])
    records = zeros(count, RECORD_TYPE)
    for piece in pieces():
        records[piece["op"] if place is None else place[piece["op"]]] = piece
        let_go()
    return records

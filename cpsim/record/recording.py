"""The file of a recording: a trace with a row per command, which `cpsim run` replays.

| column | |
|---|---|
| `sent_us` | arrival of the command's first byte, in microseconds since the recording began |
| `answered_us` | arrival of the answer's last byte; missing without an answer |
| `kind`, `slot` | the command; `frame` and "" for a malformed frame |
| `arguments` in CSV; in Parquet the columns of `cpsim.protocol.arguments` | the arguments, in the format of a trace |
| `outcome` | `accepted`, `refused` or `unknown` |
| `error` | an error such as `ER` or `HTTP 500`; empty if the command was accepted |

Signatures and secrets are never written. Rows are written in thousands, into a partial file that gets its final name
when it is complete.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from cpdaemon.commands import COMMANDS
from cpdaemon.wire import MalformedFrame, parse
from cpsim.errors import CpsimError, UsageError
from cpsim.protocol import arguments as typed
from cpsim.record.pseudonyms import SLOT
from cpsim.scenario.formats import trace
from cpsim.store.file import OWNER_ONLY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cpsim.record.pseudonyms import Pseudonyms

ROWS_AT_ONCE: Final = 16_384
MAX_BUFFERED_CHARS: Final = 16 * 2**20
"""Characters of arguments at which buffered rows are written."""
Arguments = Mapping[str, str] | bytes
"""The arguments of a command, or a malformed frame."""
SCHEMA: Final = pa.schema(
    [
        ("sent_us", pa.int64()),
        ("answered_us", pa.int64()),
        ("kind", pa.string()),
        ("slot", pa.string()),
        ("outcome", pa.string()),
        ("error", pa.string()),
    ]
)
PARQUET_SCHEMA: Final = pa.schema([*SCHEMA, *typed.fields()])
CSV_SCHEMA: Final = SCHEMA.insert(SCHEMA.get_field_index("outcome"), pa.field("arguments", pa.string()))
_SIGNATURE: Final = re.compile(rb"(?i)[0-9a-f]{32,}|(?<=auth=)[^&\s]+|(?<=authorization:)[^\r\n]+|(?<=secret=)[^,&\s]+")


class RecordedReply(NamedTuple):
    """The reply to a command: times of sending and answer (None without an answer), outcome, and error."""

    sent_us: int
    answered_us: int | None
    outcome: str
    error: str = ""


class Recording:
    """A trace that is being written.

    Args:
        path: the file, `.csv` or `.parquet`.
        pseudonyms: replacements of names; None writes names unchanged.

    Attributes:
        commands: number of written commands, by outcome.
        frames: number of written malformed frames.
        left_out: number of requests and connections that were not written, by reason.

    Raises:
        UsageError: the path has another suffix.
        CpsimError: the file or its partial file exists.
        OSError: the file cannot be created.
    """

    def __init__(self, path: Path, pseudonyms: Pseudonyms | None = None) -> None:
        if path.suffix.lower() not in trace.SUFFIXES:
            raise UsageError(f"{path}: a recording is a trace: name it .parquet or .csv")
        if path.exists() or path.is_symlink():
            raise CpsimError(f"{path} is there already: name another file with --output")
        self.path = path
        self._pseudonyms = pseudonyms
        self._partial = path.with_name(f"{path.name}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._partial.touch(OWNER_ONLY, exist_ok=False)
        except FileExistsError as error:
            raise CpsimError(
                f"{self._partial} is there already, from a recorder that runs or was killed: move it away"
            ) from error
        self._file = self._partial.open("wb")
        self._is_csv = path.suffix.lower() == ".csv"
        self._writer: Any = (
            pa.csv.CSVWriter(self._file, CSV_SCHEMA)
            if self._is_csv
            else pa.parquet.ParquetWriter(self._file, PARQUET_SCHEMA, compression="zstd")
        )
        self._rows: list[tuple[object, ...]] = []
        self._arguments: list[tuple[str, Arguments]] = []
        self._buffered_chars = 0
        self._failure: OSError | None = None
        self.on_failure: Callable[[], object] = bool
        """Called when the file can no longer be written; `close` raises the error."""
        self.commands: Counter[str] = Counter()
        self.frames = 0
        self.left_out: Counter[str] = Counter()

    def frame(self, frame: bytes, answer: RecordedReply) -> None:
        """Write a frame to a daemon: a command, or a malformed frame.

        A command that no workload can have, such as one with 7.9 credits, is written as its bytes.
        """
        slot = ""
        try:
            kind, arguments = parse(frame)
            slot = arguments.pop("slot")
            arguments = self._known_arguments(kind, arguments)
            trace.check(kind, slot, arguments)
        except MalformedFrame:
            self._frame(frame, answer)
        except ValueError:
            self._frame(frame.replace(f"slot={slot}".encode(), b"slot=" + SLOT, 1), answer)
        else:
            self._command(kind, slot, arguments, answer)

    def call(self, kind: str, arguments: Mapping[str, object], answer: RecordedReply) -> None:
        """Write a command to a server; leave it out if no frame can carry it."""
        texts = {name: str(value) for name, value in arguments.items() if type(value) in {str, int}}
        try:
            known, read = parse(",".join([kind, *map("=".join, texts.items())]).encode())
            is_read = len(texts) == len(arguments) and read == texts  # a value may parse as another argument
            slot = read.pop("slot")
            meant = self._known_arguments(known, read) if is_read else read
            trace.check(known, slot, meant)
        except ValueError:
            is_read = False
        if not is_read:
            self.left_out["commands that no workload can have"] += 1
        else:
            self._command(known, slot, meant, answer)

    def body(self, body: bytes, answer: RecordedReply) -> None:
        """Write a malformed body of a request to a server."""
        self._frame(body, answer)

    def close(self) -> None:
        """Write the rest, and rename the partial file.

        Raises:
            OSError: the file cannot be written; the partial file stays.
        """
        self._flush()
        if self._failure is not None:
            raise self._failure
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.rename(self.path)

    def abandon(self) -> None:
        """Close and remove an empty recording."""
        with suppress(OSError):
            self._writer.close()
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def _known_arguments(self, kind: str, arguments: dict[str, str]) -> dict[str, str]:
        """Return a command's arguments without those unknown to the protocol, which a server ignores."""
        command = COMMANDS[kind]
        known = {field.name for field in command.fields}
        if command.free is not None or known >= arguments.keys():
            return arguments
        meant = {name: value for name, value in arguments.items() if name in known}
        self.left_out["arguments that the protocol does not have"] += len(arguments) - len(meant)
        return meant

    def _command(self, kind: str, slot: str, arguments: Mapping[str, str], answer: RecordedReply) -> None:
        if self._pseudonyms is not None:
            slot, arguments = self._pseudonyms.slot(slot), self._pseudonyms.arguments(kind, arguments)
        self.commands[answer.outcome] += 1
        self._add(kind, slot, arguments, answer)

    def _frame(self, frame: bytes, answer: RecordedReply) -> None:
        written = _SIGNATURE.sub(lambda found: b"0" * len(found[0]), frame)
        if self._pseudonyms is not None:
            written = self._pseudonyms.frame(written)
            if _is_command(written) and not _is_command(frame):
                self.left_out["frames malformed by their names alone"] += 1
                return
        self.frames += 1
        self._add("frame", "", written, answer)

    def _add(self, kind: str, slot: str, given: Arguments, answer: RecordedReply) -> None:
        self._rows.append((answer.sent_us, answer.answered_us, kind, slot, answer.outcome, answer.error))
        self._arguments.append((kind, given))
        self._buffered_chars += len(_text(given))
        if len(self._rows) >= ROWS_AT_ONCE or self._buffered_chars >= MAX_BUFFERED_CHARS:
            self._flush()

    def _flush(self) -> None:
        if self._rows and self._failure is None:
            columns = [
                pa.array(column, field.type)
                for column, field in zip(zip(*self._rows, strict=True), SCHEMA, strict=True)
            ]
            if self._is_csv:
                texts = pa.array([_text(given) for _, given in self._arguments], pa.string())
                columns.insert(CSV_SCHEMA.get_field_index("arguments"), texts)
            else:
                columns += typed.of_rows(self._arguments)
            try:
                self._writer.write_table(
                    pa.Table.from_arrays(columns, schema=CSV_SCHEMA if self._is_csv else PARQUET_SCHEMA)
                )
            except OSError as error:
                self._failure = error
                self.on_failure()
        self._rows, self._arguments, self._buffered_chars = [], [], 0


def _text(given: Arguments) -> str:
    if isinstance(given, bytes):
        return given.decode("latin-1")
    return ",".join([f"{name}={value}" for name, value in given.items()])


def _is_command(frame: bytes) -> bool:
    try:
        parse(frame)
    except MalformedFrame:
        return False
    return True

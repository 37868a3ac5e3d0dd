"""The run folder: the files that a run writes.

| file | content |
|---|---|
| `run.json` | scenario, seed, versions, endpoint, machine, figures |
| `evidence.json` | what else the verdict rests on: what was seen when, the counts of answers, readings of clocks |
| `workload.parquet` | a row per operation planned |
| `journal.parquet` | a row per operation sent: id, slot, kind, due, sent, answered, outcome, error, arguments |
| `ledger.parquet` | a row per slot of the server, if its ledger can be read |
| `accounts.parquet` | a row per machine and user of the server, if its accounts can be read |
| `verdict.json` | the verdict, anomalies with examples and the commands that repeat them, and what was not verified |
| `latency.hgrm` | service time in milliseconds, in the format of HdrHistogram's tools |
| `response.hgrm` | response time, likewise, if operations had due times |
| `effect.hgrm` | apply delay (from OK to applied), likewise, if the server's ledger shows it |
| `seconds.parquet` | a row per second: operations, failures, and times in milliseconds |
| `faults.json` | the faults of the run, if any, and each firing |
| `report.html` | the run on one page |

A search for capacity leaves `capacity.json`, and two `.hgrm` of the highest rate that passed.

The arguments in the journal are typed columns, those of `cpsim.protocol.arguments`. Earlier versions wrote a text
column `arguments`; `cpsim run` and `cpsim report` still open such a journal.

The folder appears whole: files are written into a `.partial` folder, which is renamed at the end. If a file cannot be
written, the `.partial` folder keeps the others. Before anything is sent, it has the workload, and an `evidence.json` of
what is known by then; while the replay goes on, it has what is answered, in a `journal-N.raw` and a `journal-N.notes`
of each process. So what a run leaves that is cut short can be judged.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from cpsim.errors import CpsimError, in_one_line
from cpsim.evidence import unfinished
from cpsim.evidence.files import EVIDENCE, WORKLOAD
from cpsim.evidence.writing import writers
from cpsim.run import page
from cpsim.run.documents import json_text, run_document, verdict_document
from cpsim.store.file import OWNER_ONLY
from cpsim.system.mapped import give_back
from cpsim.system.replacing import replacing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import Self

    from cpsim.run.capacity import Capacity
    from cpsim.run.pipeline import Run
    from cpsim.run.summary import Summary

OWNER_ONLY_FOLDER: Final = 0o700
"""Mode of a run folder: slots, machines and what was sent are private to who has run it, as in a store."""


class FolderExists(CpsimError):
    """The output folder exists, or another run is writing it."""


class NotWritten(CpsimError):
    """A file of the output folder could not be written; the others are in its `.partial` folder."""


class OutputFolder:
    """A run folder before it is whole; a context manager, which leaves nothing of a run that has written nothing.

    Args:
        path: the run folder.

    Attributes:
        partial: the folder of its files until `write` makes it whole; locked, so that no other run takes it.
        is_whole: whether all was written.

    Raises:
        FolderExists: the run folder exists, another run is writing it, or an earlier one could not.
        OSError: the folder cannot be made.
    """

    def __init__(self, path: Path) -> None:
        check_absent(path)
        self.path, self.partial = path, path.with_name(f"{path.name}.partial")
        self.is_whole = self._was_written = False
        self.partial.mkdir(OWNER_ONLY_FOLDER, parents=True, exist_ok=True)
        with ExitStack() as undo:
            self._lock = os.open(self.partial, os.O_RDONLY)
            undo.callback(os.close, self._lock)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_taken = not self._holds_partial()  # another run has renamed or removed it since it was opened
            except BlockingIOError:
                is_taken = True
            if is_taken:
                raise FolderExists(f"another run is writing {path}; name another folder with --output")
            os.fchmod(self._lock, OWNER_ONLY_FOLDER)  # an empty one that was there may be anybody's to read
            if any(self.partial.iterdir()):
                raise FolderExists(
                    f"{self.partial} has what could be written of an earlier run; move it away, or name another folder "
                    "with --output"
                )
            undo.callback(self.partial.rmdir)
            check_absent(path)  # again, now that no other run can make it
            undo.pop_all()

    @property
    def has_evidence(self) -> bool:
        """Whether the folder of its files has what `cpsim judge` needs: what was to be sent, and what was."""
        return (self.partial / EVIDENCE).exists() and any(self.partial.glob("journal*"))

    def _holds_partial(self) -> bool:
        """Return whether the folder that is locked is the one at the path."""
        try:
            return os.path.samestat(os.fstat(self._lock), self.partial.stat())
        except FileNotFoundError:
            return False

    def write(self, files: Mapping[str, Callable[[Path], object]]) -> None:
        """Write files, each by a function of its path, and make the folder whole.

        Raises:
            NotWritten: a file cannot be written; the others are kept.
        """
        problem, self._was_written = None, True
        # somebody may have removed it while it was empty
        self.partial.mkdir(OWNER_ONLY_FOLDER, parents=True, exist_ok=True)
        for name, write_file in files.items():
            path = self.partial / name
            try:
                with replacing(path) as new:  # what was there before the replay stays as long as nothing is better
                    write_file(new)
                path.chmod(OWNER_ONLY)
                give_back()
            except Exception as error:  # noqa: BLE001 - each file has reasons of its own
                problem = problem or f"{name}: {in_one_line(error)}"
        if problem is None:
            try:
                unfinished.remove(self.partial)
                self.partial.rename(self.path)
            except OSError as error:
                problem = str(error.strerror)
            else:
                self.is_whole = True
                return
        kept = ", ".join(sorted(path.name for path in self.partial.iterdir())) or "nothing"
        raise NotWritten(f"{self.path} could not be written: {problem}; {self.partial} has what could: {kept}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._holds_partial():
            with suppress(OSError):  # files are kept
                if not self._was_written and not self.has_evidence:  # nothing was sent
                    for name in (EVIDENCE, WORKLOAD):
                        (self.partial / name).unlink(missing_ok=True)
                self.partial.rmdir()
        os.close(self._lock)


def check_absent(folder: Path) -> None:
    """Raise FolderExists if there is something at the path of a run folder, other than an empty folder."""
    is_empty = folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())
    if (folder.exists() or folder.is_symlink()) and not is_empty:
        raise FolderExists(f"{folder} is there already; name another folder with --output")


def new_name(scenario: Path, runs: Path) -> Path:
    """The default run folder of a scenario: below the folder of runs, with the scenario's name and the time."""
    name = scenario.name.removesuffix(".gz").rpartition(".")[0]
    return runs / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"


def write(
    run: Run,
    summary: Summary,
    output: OutputFolder,
    *,
    drawn: page.Drawn | None = None,
    evidence_files: Mapping[str, Callable[[Path], object]] | None = None,
) -> None:
    """Write all files of a run, the smallest first: they may fit on a disk where a journal does not.

    Args:
        run: a run that has ended.
        summary: its figures.
        output: takes the files.
        drawn: what its page draws of operations; None if its evidence has them.
        evidence_files: a function for each file of evidence that writes it; None if its evidence has operations.

    Raises:
        NotWritten: a file cannot be written; the others are kept.
    """
    evidence = run.evidence
    document, verdict = run_document(run, summary), verdict_document(evidence, run.verdict)
    faults = {"faults": evidence.faults, "firings": evidence.firings}
    seconds = pa.Table.from_pylist(summary.seconds) if summary.seconds else None
    files = dict(evidence_files or writers(evidence))
    if (output.partial / WORKLOAD).exists():  # since before the replay
        del files[WORKLOAD]
    output.write(
        {
            "run.json": _text(json_text(document)),
            "verdict.json": _text(json_text(verdict)),
            **({"faults.json": _text(json_text(faults))} if evidence.faults else {}),
            **_times(summary),
            "report.html": lambda path: path.write_text(
                page.html(run, summary, document, verdict, drawn=drawn), encoding="utf-8"
            ),
            **({} if seconds is None else {"seconds.parquet": partial(pq.write_table, seconds, compression="zstd")}),
            **files,
        }
    )


def _text(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text, encoding="utf-8")


def write_capacity(found: Capacity, document: dict[str, Any], output: OutputFolder) -> None:
    """Write the result of a search, and its document.

    Raises:
        NotWritten: a file cannot be written; the others are kept.
    """
    times = {} if found.best is None else _times(found.best.summary)
    output.write({"capacity.json": _text(json_text(document)), **times})


def _times(summary: Summary) -> dict[str, Callable[[Path], object]]:
    times = {"latency": summary.service, "response": summary.response, "effect": summary.apply_delay}
    return {f"{name}.hgrm": recorded.write for name, recorded in times.items() if recorded is not None}

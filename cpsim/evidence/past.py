"""Past runs: what run folders say of themselves, read from their summaries alone.

Every folder is listed as what it is. One that is damaged, half written or of an earlier version stops nothing.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec

from cpsim.config.thresholds import RATES, metrics
from cpsim.errors import CpsimError, reason
from cpsim.ui.printable import printable_line

T = TypeVar("T", bound=msgspec.Struct)
RUN, VERDICT, SEARCH = "run.json", "verdict.json", "capacity.json"
PARTIAL: Final = ".partial"
MOST_PROCESSES: Final = 64
"""Of a replay."""
WRITTEN: Final = frozenset(
    {RUN, VERDICT, SEARCH, "evidence.json", "faults.json", "report.html"}
    | {f"{table}.parquet" for table in ("workload", "journal", "ledger", "accounts", "seconds")}
    | {f"{times}.hgrm" for times in ("latency", "response", "effect")}
    | {f"journal-{number}.{kind}" for number in range(1, MOST_PROCESSES + 1) for kind in ("raw", "notes")}
)
"""The names of all files that a run or a search may leave in its folder."""
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class RunState(StrEnum):
    """What a folder is."""

    RUN = "run"
    SEARCH = "search"
    WRITING = "being written"
    PARTIAL = "not whole"
    DAMAGED = "damaged"


class RunFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What `run.json` says of a run, in the words of that file; what an earlier version left out is None."""

    scenario: str
    endpoint: str
    pace: str
    seed: int
    started: Annotated[datetime, msgspec.Meta(tz=True)]
    operations: Count
    operations_per_s: float
    elapsed_s: float
    by_kind: dict[str, dict[str, Count]]
    service_ms: dict[str, float]
    response_ms: dict[str, float] | None = None
    effect_ms: dict[str, float] | None = None
    effect_unknown: str | None = None
    lateness_p99_ms: float | None = None
    busy: float | None = None
    metrics: dict[str, float | None] = {}
    errors: dict[str, Count] = {}
    faults: list[dict[str, Any]] = []
    workload_sha256: str | None = None
    server: str | None = None
    project: str | None = None
    interrupted: bool = False
    slots_by_state: dict[str, Count] | None = None
    credits_granted: Count | None = None
    versions: dict[str, str] = {}
    machine: dict[str, str | int | None] = {}
    asserts: list[dict[str, Any]] = []


class RunVerdict(msgspec.Struct, frozen=True):
    """What `verdict.json` says of a run, in the words of that file."""

    verdict: str
    known_quirks: dict[str, Count] | None = None
    anomalies_by_name: dict[str, Count] = {}
    not_verified: list[str] = []
    repeat: str = ""


class PastStep(msgspec.Struct, frozen=True):
    """What `capacity.json` says of a step, in the words of that file."""

    offered_per_s: float
    achieved_per_s: float
    operations: Count
    kept: bool
    service_ms: dict[str, float]
    response_ms: dict[str, float] | None = None
    lateness_p99_ms: float | None = None
    busy: float | None = None


class SearchResult(msgspec.Struct, frozen=True):
    """What `capacity.json` says of a search, in the words of that file."""

    scenario: str
    endpoint: str
    capacity_per_s: float | None
    steps: list[PastStep]

    @property
    def best(self) -> PastStep | None:
        """The step of the highest rate that passed."""
        return max((step for step in self.steps if step.kept), key=lambda step: step.offered_per_s, default=None)


@dataclass(frozen=True, slots=True)
class PastRun:
    """A folder that a run left, or is writing.

    Attributes:
        path: of the folder.
        state: what it is.
        at: when the run started, or, where the folder does not say, when something in it was written.
        problem: why it is no whole run; empty if it is one.
        figures: of a run; None if they cannot be read.
        verdict: of a run; None if it cannot be read.
        search: the result of a search for capacity; None for a run.
    """

    path: Path
    state: RunState
    at: datetime
    problem: str = ""
    figures: RunFigures | None = None
    verdict: RunVerdict | None = None
    search: SearchResult | None = None

    @property
    def name(self) -> str:
        """The folder's name, fit to be printed in a line."""
        return printable_line(self.path.name)

    @property
    def ruling(self) -> str:
        """The verdict in a word, or what the folder is instead of a run."""
        if self.verdict is None or self.state == RunState.DAMAGED:
            return self.state
        is_known = self.verdict.verdict == "valid" and bool(self.verdict.known_quirks)
        return f"{self.verdict.verdict}{' but for known quirks' if is_known else ''}"

    @property
    def scenario(self) -> str:
        """The scenario's name, or nothing."""
        known = self.figures or self.search
        return "" if known is None else known.scenario

    @property
    def target(self) -> str:
        """The address of the target, `embedded`, or nothing."""
        known = self.figures or self.search
        return "" if known is None else known.endpoint

    def metrics(self) -> dict[str, float]:
        """The figures that thresholds name, by metric; of a search, those of the highest rate that passed.

        Raises:
            CpsimError: the folder has none.
        """
        if self.search is not None:
            return _of_search(self.search)
        if self.figures is None or self.state != RunState.RUN:
            raise CpsimError(f"{self.path} has no figures: {self.problem}")
        found = metrics(msgspec.structs.asdict(self.figures))
        return {name: value for name, value in found.items() if math.isfinite(value)}

    @property
    def rate(self) -> float | None:
        """Operations answered per second; of a search, the highest rate that passed; None if it is not known."""
        if self.figures is not None:
            return self.figures.operations_per_s
        return None if self.search is None else self.search.capacity_per_s

    @property
    def times(self) -> tuple[str, dict[str, float]]:
        """Which times count, `response` where operations had due times, else `service`, and their milliseconds."""
        if self.figures is not None:
            known = {"response": self.figures.response_ms, "service": self.figures.service_ms}
        else:
            best = None if self.search is None else self.search.best
            known = {} if best is None else {"response": best.response_ms, "service": best.service_ms}
        return next(((kind, times) for kind, times in known.items() if times), ("service", {}))

    def document(self) -> dict[str, Any]:
        """What is listed of the run, as JSON."""
        kind, times = self.times
        return {
            "run": str(self.path),
            "state": self.state,
            "verdict": None if self.verdict is None else self.ruling,
            "scenario": self.scenario or None,
            "target": self.target or None,
            "pace": None if self.figures is None else self.figures.pace,
            "at": self.at.isoformat(timespec="milliseconds"),
            "operations_per_s": self.rate,
            f"{kind}_ms": times,
            "apply_delay_ms": None if self.figures is None else self.figures.effect_ms,
            "credits_granted": None if self.figures is None else self.figures.credits_granted,
            "problem": self.problem or None,
        }

    def whole_document(self) -> dict[str, Any]:
        """What `cpsim run --json` printed of the run, or the document of a search. Raises CpsimError."""
        if self.search is not None:
            return _document(self.path / SEARCH)
        verdict = {} if self.verdict is None else _document(self.path / VERDICT)
        return _document(self.path / RUN) | verdict


def find(folder: Path) -> list[PastRun]:
    """The runs whose folders are in a folder, the newest first; other folders and files in it are left out.

    Raises:
        CpsimError: there is no such folder, or it is a run folder itself.
        OSError: it cannot be read.
    """
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "there is no such folder"
        raise CpsimError(f"{folder}: {what}: name a folder that holds run folders")
    if any((folder / name).is_file() for name in (RUN, SEARCH)):
        raise CpsimError(f"{folder} is itself a run folder: `cpsim runs show {folder}` shows it")
    with os.scandir(folder) as entries:
        looked_at = [_look(Path(entry.path)) for entry in entries if _is_folder(entry)]
    runs = [run for run in looked_at if run is not None]
    return sorted(runs, key=lambda run: (run.at, run.path.name), reverse=True)


def read(path: Path) -> PastRun:
    """What one folder says of itself. Raises CpsimError if it is none that a run leaves."""
    if not path.is_dir():
        what = "is no folder" if path.exists() else "there is no such folder"
        raise CpsimError(f"{path}: {what}: name a run folder; `cpsim runs` lists them")
    found = _look(path)
    if found is None:
        raise CpsimError(f"{path} is not a run folder: it has no {RUN}; `cpsim runs` lists those that there are")
    return found


def is_locked(folder: int) -> bool:
    """Whether a run holds the lock of its folder, by a descriptor of the folder; else the descriptor has it now."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link that leads to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where this user may not look
        return False


def _look(path: Path) -> PastRun | None:
    """What a folder is; None if no run has left it."""
    at = datetime.fromtimestamp(0, UTC)
    try:
        at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        names = WRITTEN.intersection(os.listdir(path))  # noqa: PTH208 - names alone, of a thousand folders
        if path.name.endswith(PARTIAL):
            return _partial(path, at, names)
        if SEARCH in names:
            return _search(path, datetime.fromtimestamp((path / SEARCH).stat().st_mtime, UTC))
        if RUN in names:
            return _run(path, at)
    except OSError as error:
        return PastRun(path, RunState.DAMAGED, at, f"it cannot be read: {error.strerror}")
    return PastRun(path, RunState.DAMAGED, at, f"it has no {RUN}") if names else None


def _partial(path: Path, at: datetime, names: frozenset[str]) -> PastRun | None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if is_locked(folder):
            return PastRun(path, RunState.WRITING, at, "a run is writing it")
    finally:
        os.close(folder)
    kept = f"an earlier run could write only {', '.join(sorted(names))}"
    if any(name.endswith(".raw") for name in names):
        kept = "the run was cut short: cpsim judge judges what there is"
    return PastRun(path, RunState.PARTIAL, at, kept) if names else None


def _run(path: Path, at: datetime) -> PastRun:
    try:
        figures = _read(path / RUN, RunFigures)
        times = [figures.service_ms, figures.response_ms or {}, figures.effect_ms or {}]
        numbers = [figures.operations_per_s, figures.elapsed_s, figures.lateness_p99_ms or 0.0]
        _check_finite(RUN, *numbers, *(value for each in times for value in each.values()))
    except CpsimError as error:
        return PastRun(path, RunState.DAMAGED, at, str(error))
    run = PastRun(path, RunState.RUN, figures.started, figures=figures)
    try:
        return replace(run, verdict=_read(path / VERDICT, RunVerdict))
    except CpsimError as error:
        return replace(run, state=RunState.DAMAGED, problem=str(error))


def _search(path: Path, at: datetime) -> PastRun:
    try:
        result = _read(path / SEARCH, SearchResult)
        _check_finite(SEARCH, result.capacity_per_s or 0.0, *_of_search(result).values())
    except CpsimError as error:
        return PastRun(path, RunState.DAMAGED, at, str(error))
    return PastRun(path, RunState.SEARCH, at, search=result)


def _of_search(search: SearchResult) -> dict[str, float]:
    """The metrics of the highest rate that passed in a search; those that a step does not have are left out."""
    if search.best is None:
        return {}
    step = msgspec.structs.asdict(search.best) | {"operations_per_s": search.best.achieved_per_s}
    found = metrics(step | {"elapsed_s": None, "by_kind": {}, "effect_ms": None})
    return {name: value for name, value in found.items() if name not in RATES}


def _check_finite(file: str, *numbers: float) -> None:
    if not all(map(math.isfinite, numbers)):
        raise CpsimError(f"{file} is damaged: a figure is not a finite number")


def _read(path: Path, type_: type[T]) -> T:
    """What a file of a run folder says. Raises CpsimError if it is not what cpsim writes."""
    try:
        return msgspec.convert(_document(path), type_)
    except (ValueError, OverflowError) as error:
        raise CpsimError(f"{path.name} is damaged: {reason(error)}") from error


def _document(path: Path) -> dict[str, Any]:
    """A JSON object of a run folder. Raises CpsimError if it is none."""
    try:
        if not path.is_file():  # a pipe would be waited for
            raise CpsimError(f"it has no {path.name}")
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CpsimError(f"{path.name} cannot be read: {reason(error)}") from error
    if not isinstance(document, dict):
        raise CpsimError(f"{path.name} is not what cpsim writes: expected an object")
    return document

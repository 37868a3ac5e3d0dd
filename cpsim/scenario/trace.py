"""What was sent, read as a workload: a table of commands with their times, and commands from anywhere.

A trace is CSV or Parquet, a row per command: `kind`, `slot`, `arguments` as `name=value,name=value`, and the time in a
column `due_us`, `sent_us` or `time_s`; a column `project` says whose site a command came from, where there are several;
other columns do not count. The `journal.parquet` of a run folder is one, and so
is what `cpsim record` writes. A row whose kind is `frame` is a frame that is no command, in `arguments`, a character
for each of its bytes.

Slots get numbers in the order of their appearance, and the first time becomes 0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cpsim.scenario.misbehaviour import SLOT
from cpsim.scenario.source import safe_name
from cpsim.scenario.values import ScenarioError
from cpsim.scenario.workload import (
    ABSENT,
    KIND_CODES,
    KIND_NAMES,
    AllocTable,
    ClaimTable,
    CountersTable,
    DiscardTable,
    FrameTable,
    Int32,
    Int64,
    MetaTable,
    UInt8,
    Workload,
    slot_numbers,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    Call = tuple[int, str, str, Mapping[str, str | int]]

TIMES_US: Final = {"due_us": 1.0, "sent_us": 1.0, "time_s": 1e6}
SUFFIXES: Final = (".csv", ".parquet")
TERMS: Final = ("credits", "min", "max", "expire")
ARGUMENTS: Final = {"alloc": TERMS, "claim": ("machine", "credits"), "discard": ("reason",)}
"""The arguments of a kind beside the slot; those that are missing here have any."""
UNSPECIFIED: Final = "unspecified"


def load(path: Path, seed: int) -> Workload:
    """Read a trace (`.csv`, `.parquet`).

    Raises:
        ScenarioError: it is no trace, or a row of it is wrong.
        OSError: it cannot be read.
    """
    table = _table(path)
    calls = list(_calls(path, table))
    if not calls:
        raise ScenarioError(f"{path}: no command in this trace")
    projects = table["project"].to_pylist() if "project" in table.column_names else ()
    try:
        return of_calls(safe_name(path), seed, calls, [str(project) for project in projects])
    except ValueError as error:
        raise ScenarioError(f"{path}: {error}") from error


def of_calls(name: str, seed: int, calls: Iterable[Call], projects: Sequence[str] = ()) -> Workload:
    """The workload of commands.

    Args:
        name: begins the slots' ids.
        seed: what they were made from, if from one.
        calls: for each its time in microseconds, its kind, its slot's id, and its other arguments. Those of a slot
            with equal times stay in order. The kind `frame` has a `frame`.
        projects: for each the project that its site works for, if there are several.

    Raises:
        ValueError: an argument is none that the protocol has, or no whole number where it has one.
    """
    calls = list(calls)
    order = sorted(range(len(calls)), key=lambda at: calls[at][0])
    ordered = [calls[at] for at in order]
    sites = {project: index for index, project in enumerate(dict.fromkeys(projects))}
    site = [sites[projects[at]] for at in order] if len(sites) > 1 else [0] * len(order)
    tables = _Tables()
    kind = np.array([tables.kind(call[1]) for call in ordered], dtype=np.uint8)
    row = np.array([tables.add(kind, slot, arguments) for _, kind, slot, arguments in ordered], dtype=np.int32)
    numbers: dict[tuple[int, str, int], int] = {}
    # A frame that is no command has a slot of its own: no command of a slot waits for it.
    keys = [
        (place, "", at) if call[1] == "frame" else (place, call[2], -1)
        for at, (place, call) in enumerate(zip(site, ordered, strict=True))
    ]
    slot = np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int32)
    due_us = np.array([call[0] for call in ordered], dtype=np.int64)
    due_us -= due_us[:1]
    made = tables.workload(name, seed, due_us=due_us, kind=kind, slot=slot, row=row, slots=len(numbers))
    if len(sites) < 2:
        return made
    of_slot = np.array([place for place, _, _ in numbers], dtype=np.int32)
    return replace(made, sites=tuple(sites), site=of_slot, slot_numbers=slot_numbers(tuple(sites), of_slot))


def check(kind: str, slot: str, arguments: Mapping[str, str | int]) -> None:
    """Raise ValueError if no workload can have a command."""
    _Tables().add(kind, slot, arguments)


class _Tables:
    """The argument tables as they grow."""

    def __init__(self) -> None:
        self._alloc: list[list[int]] = []
        self._claims: list[tuple[int, int]] = []
        self._machines: dict[str, int] = {}
        self._reasons: dict[str, int] = {}
        self._discards: list[int] = []
        self._counters: list[Mapping[str, int]] = []
        self._meta: list[Mapping[str, str]] = []
        self._forms: dict[str, int] = {}
        self._frames: list[int] = []

    @staticmethod
    def kind(name: str) -> int:
        """Its code."""
        if name not in KIND_CODES:
            raise ValueError(f"kind = {name!r}: expected one of {', '.join(KIND_NAMES)}")
        return KIND_CODES[name]

    def add(self, kind: str, slot: str, arguments: Mapping[str, str | int]) -> int:
        """Add a row; returns its number."""
        rows: list[Any]
        match kind:
            case "alloc":
                _only(kind, arguments)
                rows = self._alloc
                rows.append([_whole(kind, slot, name, arguments.get(name, ABSENT)) for name in TERMS])
            case "claim":
                _only(kind, arguments)
                rows = self._claims
                machine = self._machines.setdefault(str(arguments.get("machine")), len(self._machines))
                rows.append((machine, _whole(kind, slot, "credits", arguments.get("credits", ABSENT))))
            case "discard":
                _only(kind, arguments)
                rows = self._discards
                reason = str(arguments.get("reason", UNSPECIFIED))
                rows.append(self._reasons.setdefault(reason, len(self._reasons)))
            case "counters":
                rows = self._counters
                rows.append({name: _whole(kind, slot, name, value) for name, value in arguments.items()})
            case "meta":
                rows = self._meta
                rows.append({name: str(value) for name, value in arguments.items()})
            case _:
                rows = self._frames
                form = str(arguments["frame"])
                rows.append(self._forms.setdefault(form, len(self._forms)))
        if kind in {"counters", "meta"} and not arguments:
            raise ValueError(f"{kind} of slot {slot}: expected at least one argument beside the slot")
        return len(rows) - 1

    def workload(
        self, name: str, seed: int, *, due_us: Int64, kind: UInt8, slot: Int32, row: Int32, slots: int
    ) -> Workload:
        """All of it."""
        alloc = np.array(self._alloc, dtype=np.int64).reshape(-1, len(TERMS))
        claims = np.array(self._claims, dtype=np.int64).reshape(-1, 2)
        counters = _names(self._counters)
        meta = _names(self._meta)
        choices = {name: list(dict.fromkeys(texts[name] for texts in self._meta if name in texts)) for name in meta}
        places = {name: {text: at for at, text in enumerate(texts)} for name, texts in choices.items()}
        chosen = [[places[n][texts[n]] if n in texts else ABSENT for n in meta] for texts in self._meta]
        return Workload(
            name=name,
            seed=seed,
            duration_us=int(due_us[-1]) if len(due_us) else 0,
            due_us=due_us,
            kind=kind,
            slot=slot,
            row=row,
            slot_numbers=np.arange(1, slots + 1),
            alloc=AllocTable(*alloc.T),
            counters=CountersTable(
                counters,
                np.array(
                    [[values.get(n, ABSENT) for n in counters] for values in self._counters], dtype=np.int64
                ).reshape(len(self._counters), len(counters)),
            ),
            meta=MetaTable(
                meta,
                tuple(map(tuple, choices.values())),
                np.array(chosen, dtype=np.int64).reshape(len(self._meta), len(meta)),
            ),
            discard=DiscardTable(tuple(self._reasons), np.array(self._discards, dtype=np.int32)),
            claim=ClaimTable(claims[:, 0].astype(np.int32), claims[:, 1]),
            machines=tuple(self._machines),
            users=(),
            owner=np.full(len(self._machines), -1, dtype=np.int32),
            frame=FrameTable(tuple(self._forms), np.array(self._frames, dtype=np.int32)),
        )


def _names(rows: Iterable[Mapping[str, object]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for row in rows for name in row))


def _only(kind: str, arguments: Mapping[str, object]) -> None:
    known = ARGUMENTS[kind]
    for name in arguments:
        if name not in known:
            raise ValueError(f"{kind}: no argument {name!r}: expected {', '.join(known)}")


def _whole(kind: str, slot: str, name: str, value: str | int) -> int:
    try:
        number = int(value)
    except ValueError:
        number = ABSENT
    if not ABSENT < number < -ABSENT and value != ABSENT:
        raise ValueError(f"{kind} of slot {slot}: {name} = {value!r}: expected a whole number below 2**63")
    return number


def _calls(path: Path, table: Any) -> Iterator[Call]:  # noqa: ANN401 - pyarrow has no types
    names = table.column_names
    times = [
        column for column in TIMES_US if column in names and (table[column].null_count < len(table) or not len(table))
    ]
    missing = [column for column in ("kind", "slot", "arguments") if column not in names]
    if not times:
        missing.append("due_us (or sent_us, or time_s)")
    if missing:
        raise ScenarioError(
            f"{path}: no column {', '.join(missing)}: this is no trace; its columns are {', '.join(names)}"
        )
    columns = (table[column].to_pylist() for column in (times[0], "kind", "slot", "arguments"))
    for number, (time, kind, slot, text) in enumerate(zip(*columns, strict=True), 1):
        try:
            due_us = round(float(time) * TIMES_US[times[0]])
            yield due_us, str(kind), str(slot or ""), _arguments(str(kind), str(slot or ""), str(text or ""))
        except (TypeError, ValueError, OverflowError) as error:
            raise ScenarioError(f"{path}, row {number}: {error}") from error


def _arguments(kind: str, slot: str, text: str) -> dict[str, str | int]:
    if kind == "frame":
        text.encode("latin-1")  # which says what is wrong
        return {"frame": text.replace(slot, SLOT) if slot else text}
    if not slot:
        raise ValueError("slot is missing: expected the id of one")
    arguments: dict[str, str | int] = {}
    for pair in text.split(",") if text else ():
        name, equals, value = pair.partition("=")
        if not equals or not name or "=" in value or name in arguments:
            raise ValueError(f"arguments = {text!r}: expected name=value,name=value, each name once")
        arguments[name] = value
    if kind == "claim" and not arguments.get("machine"):
        raise ValueError(f"arguments = {text!r}: expected a machine for the claim")
    return arguments


def _table(path: Path) -> Any:  # noqa: ANN401 - pyarrow has no types
    import pyarrow as pa  # noqa: PLC0415 - slow to import, and only traces need it
    import pyarrow.csv  # noqa: PLC0415
    import pyarrow.parquet  # noqa: PLC0415

    try:
        if path.suffix.lower() == ".parquet":
            return pyarrow.parquet.read_table(path)
        texts = pyarrow.csv.ConvertOptions(
            column_types={**dict.fromkeys(("kind", "slot", "arguments", "project"), pa.string())}
        )
        lines = pyarrow.csv.ParseOptions(newlines_in_values=True)  # as a frame that is no command may have them
        return pyarrow.csv.read_csv(path, convert_options=texts, parse_options=lines)
    except pa.ArrowInvalid as error:
        raise ScenarioError(f"{path}: cannot be read as {path.suffix[1:].upper()}: {error}") from error

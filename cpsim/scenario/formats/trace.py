"""What was sent, read as a workload: a table of commands with their times, and commands from anywhere.

A trace is CSV or Parquet, a row per command: `kind`, `slot`, its arguments, and the time in a column `scenario_us`,
`due_us`, `sent_us`, `time_s`, or `time`, an ISO date and time; a column `project` says whose site a command came from,
where there are several, and `user` whose its machine is; other columns do not count. Arguments are a text in a column
`arguments`, `name=value,name=value`, or else typed, as `cpsim.protocol.arguments` has them; in CSV, each argument then
has a column `KIND.NAME`. A row whose kind is `frame` is a malformed frame, in `arguments` or `frame`; a text has a
character for each of its bytes. The `journal.parquet` of a run folder is a trace, with the times and the owners of the
run's scenario, and so is what `cpsim record` writes.

Slots get numbers in the order of their appearance, and the first time becomes 0.
"""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cpsim.config.zones import find_zone
from cpsim.scenario.formats.times import EXPECTED_TIME, time_us
from cpsim.scenario.models.misbehaviour import SLOT
from cpsim.scenario.source import safe_name
from cpsim.scenario.values import ScenarioError
from cpsim.scenario.workload import (
    ABSENT,
    FRAME,
    KIND_CODES,
    KIND_NAMES,
    OPERATIONS,
    SHARED,
    Arguments,
    Column,
    Int32,
    Int64,
    UInt8,
    Workload,
    numbers_of_ids,
    slot_numbers,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    Call = tuple[int, str, str, Mapping[str, str | int]]
    Given = Callable[[int, str], dict[str, str | int]]
    """The arguments of a row, whose kind is known."""

TIMES_US: Final = {"scenario_us": 1.0, "due_us": 1.0, "sent_us": 1.0, "time_s": 1e6, "time": 0.0}
"""Columns of times, and how many microseconds one of their units is; 0 where a time is a date. The first that there is
counts."""
OWNERS: Final = b"cpsim.owners"
"""The key of a journal's schema metadata that says whose each machine is, a JSON object."""
UTC: Final = find_zone("UTC")
SUFFIXES: Final = (".csv", ".parquet")


def load(path: Path, seed: int, *, keep_ids: bool = False) -> Workload:
    """Read a trace (`.csv`, `.parquet`), and keep the ids of its slots, or give them others.

    Raises:
        ScenarioError: it is no trace, or a row of it is wrong.
        OSError: it cannot be read.
    """
    table = _table(path)
    calls = list(_calls(path, table))
    if not calls:
        raise ScenarioError(f"{path}: no command in this trace")
    projects = table["project"].to_pylist() if "project" in table.column_names else ()
    owners = _owners(path, table, calls)
    try:
        made = of_calls(safe_name(path), seed, calls, [str(project) for project in projects], keep_ids=keep_ids)
        return with_owners(made, owners)
    except ValueError as error:
        raise ScenarioError(f"{path}: {error}") from error


def column_names(path: Path) -> list[str]:
    """The names of a table's columns; none where they cannot be read.

    Raises:
        OSError: the file cannot be read.
    """
    from cpsim.system.parquet import DamagedParquet, opened  # noqa: PLC0415 - slow to import, and only traces need it

    if path.suffix.lower() == ".parquet":
        try:
            with opened(path) as parquet:
                return list(parquet.schema_arrow.names)
        except DamagedParquet:
            return []
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return next(csv.reader([file.readline()]), [])


def with_owners(workload: Workload, owners: Mapping[str, str]) -> Workload:
    """A workload whose machines are those of users, as far as it has them."""
    users = {user: index for index, user in enumerate(dict.fromkeys(owners.values()))}
    owner = np.array([users.get(owners.get(machine, ""), -1) for machine in workload.machines], np.int32)
    return replace(workload, users=tuple(users), owner=owner)


def of_calls(
    name: str, seed: int, calls: Iterable[Call], projects: Sequence[str] = (), *, keep_ids: bool = False
) -> Workload:
    """The workload of commands.

    Args:
        name: begins the slots' ids.
        seed: what they were made from, if from one.
        calls: for each its time in microseconds, its kind, its slot's id, and its other arguments. Those of a slot
            with equal times stay in order. The kind `frame` has a `frame`.
        projects: for each the project that its site works for, if there are several.
        keep_ids: whether slots keep their ids.

    Raises:
        ValueError: an argument is none that the protocol has, or no whole number where it has one.
    """
    calls = list(calls)
    order = sorted(range(len(calls)), key=lambda at: calls[at][0])
    ordered = [calls[at] for at in order]
    sites = {project: index for index, project in enumerate(dict.fromkeys(projects))}
    site = [sites[projects[at]] for at in order] if len(sites) > 1 else [0] * len(order)
    tables = _Tables()
    kind = np.array([_code(call[1]) for call in ordered], dtype=np.uint8)
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
    if len(sites) > 1:
        of_slot = np.array([place for place, _, _ in numbers], dtype=np.int32)
        made = replace(made, sites=tuple(sites), site=of_slot, slot_numbers=slot_numbers(tuple(sites), of_slot))
    if not keep_ids:
        return made
    ids = tuple(slot_id or f"frame-{at}" for _, slot_id, at in numbers)
    return replace(made, slot_ids=ids, slot_numbers=numbers_of_ids(ids))


def check(kind: str, slot: str, arguments: Mapping[str, str | int]) -> None:
    """Raise ValueError if no workload can have a command."""
    _Tables().add(kind, slot, arguments)


class _Tables:
    """The arguments of each kind as they grow: a number or an index into the texts of its name, by name."""

    def __init__(self) -> None:
        self._rows: dict[str, list[dict[str, int]]] = {kind: [] for kind in OPERATIONS}
        self._texts: dict[str, dict[str, int]] = {SHARED: {}}

    def add(self, kind: str, slot: str, arguments: Mapping[str, str | int]) -> int:
        """Add a row; returns its number."""
        command = OPERATIONS[kind]
        given = dict(arguments)
        row = {}
        for field in command.fields:
            value = given.pop(field.name, field.default)
            if value is not None:
                shared = field.name if field.name == SHARED else f"{kind}.{field.name}"
                row[field.name] = self._number(kind, slot, field.name, value, shared if field.value is str else "")
        if command.free is not None:
            texts = f"{kind}.{{}}" if command.free is str else ""
            row |= {name: self._number(kind, slot, name, value, texts.format(name)) for name, value in given.items()}
            if not given:
                raise ValueError(f"{kind} of slot {slot}: expected at least one argument beside the slot")
        elif given:
            known = ", ".join(field.name for field in command.fields)
            raise ValueError(f"{kind}: no argument {next(iter(given))!r}: expected {known}")
        self._rows[kind].append(row)
        return len(self._rows[kind]) - 1

    def _number(self, kind: str, slot: str, name: str, value: str | int, texts: str) -> int:
        if not texts:
            return _whole(kind, slot, name, value)
        pool = self._texts.setdefault(texts, {})
        return pool.setdefault(str(value), len(pool))

    def workload(
        self, name: str, seed: int, *, due_us: Int64, kind: UInt8, slot: Int32, row: Int32, slots: int
    ) -> Workload:
        """All of it."""
        machines = tuple(self._texts[SHARED])
        return Workload(
            name=name,
            seed=seed,
            duration_us=int(due_us[-1]) if len(due_us) else 0,
            due_us=due_us,
            kind=kind,
            slot=slot,
            row=row,
            slot_numbers=np.arange(1, slots + 1),
            arguments={kind: self._arguments(kind) for kind in OPERATIONS},
            machines=machines,
            users=(),
            owner=np.full(len(machines), -1, dtype=np.int32),
        )

    def _arguments(self, kind: str) -> Arguments:
        command, rows = OPERATIONS[kind], self._rows[kind]
        fixed = {}
        for field in command.fields:
            values = np.array([row.get(field.name, ABSENT) for row in rows], dtype=np.int64)
            if field.value is str:
                codes = values if np.any(values == ABSENT) else values.astype(np.int32)
                fixed[field.name] = Column(codes, tuple(self._texts.get(f"{kind}.{field.name}", ())))
            else:
                fixed[field.name] = Column(values)
        if command.free is None:
            return Arguments(fixed)
        names = tuple(dict.fromkeys(name for row in rows for name in row if name not in fixed))
        values = np.array([[row.get(name, ABSENT) for name in names] for row in rows], dtype=np.int64)
        choices = tuple(tuple(self._texts[f"{kind}.{name}"]) for name in names) if command.free is str else None
        return Arguments(fixed, names, values.reshape(len(rows), len(names)), choices)


def _code(kind: str) -> int:
    if kind not in OPERATIONS:
        raise ValueError(f"kind = {kind!r}: expected one of {', '.join(OPERATIONS)}")
    return KIND_CODES[kind]


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
    given = _texts(table) if "arguments" in names else _typed(table)
    missing = [column for column in ("kind", "slot") if column not in names]
    if given is None:
        missing.append("arguments")
    if not times:
        missing.append("due_us (or sent_us, or time_s, or time)")
    if missing or given is None:
        raise ScenarioError(
            f"{path}: no column {', '.join(missing)}: this is no trace; its columns are {', '.join(names)}; a table of "
            "jobs is read by a scenario with a [log] that names its columns"
        )
    columns = (table[column].to_pylist() for column in (times[0], "kind", "slot"))
    for row, (time, kind, slot) in enumerate(zip(*columns, strict=True)):
        try:
            yield (
                _due_us(times[0], time),
                str(kind),
                str(slot or ""),
                _checked(str(kind), str(slot or ""), given(row, str(kind))),
            )
        except ValueError as error:
            raise ScenarioError(f"{path}, row {row + 1}: {error}") from error


def _due_us(column: str, value: object) -> int:
    """When a row is due, in microseconds. Raises ValueError if it does not say it."""
    unit_us = TIMES_US[column]
    if not unit_us:
        try:
            found_us = time_us(value, UTC)
        except ValueError as error:
            raise ValueError(f"{column} = {value!r}: {error}") from None
    else:
        try:
            found_us = round(float(value) * unit_us) if isinstance(value, int | float | str) else None
        except (ValueError, OverflowError):
            found_us = None
    if found_us is None:
        shown = "nothing" if value is None or value == "" else repr(value)
        expected = EXPECTED_TIME if not unit_us else f"a number of {'seconds' if unit_us > 1 else 'microseconds'}"
        raise ValueError(f"{column} = {shown}: expected {expected}")
    return found_us


def _owners(path: Path, table: Any, calls: Sequence[Call]) -> dict[str, str]:  # noqa: ANN401 - pyarrow has no types
    """Whose each machine is, as far as a trace says it."""
    owners: dict[str, str] = json.loads((table.schema.metadata or {}).get(OWNERS, b"{}"))
    if "user" not in table.column_names:
        return owners
    for row, (user, call) in enumerate(zip(table["user"].to_pylist(), calls, strict=True)):
        machine = call[3].get(SHARED)
        if user and machine and owners.setdefault(str(machine), str(user)) != str(user):
            raise ScenarioError(
                f"{path}, row {row + 1}: user = {user!r}: expected {owners[str(machine)]!r}, whose machine "
                f"{machine} is in an earlier row"
            )
    return owners


def _checked(kind: str, slot: str, given: dict[str, str | int]) -> dict[str, str | int]:
    """The arguments of a row, where a workload could have them."""
    if kind == KIND_NAMES[FRAME]:
        form = str(given.get(kind, ""))
        if not all(ord(character) < 256 for character in form):
            raise ValueError(f"{kind} = {form!r}: expected a character for each byte, none beyond U+00FF")
        return {kind: form.replace(slot, SLOT) if slot else form}
    if not slot:
        raise ValueError("slot is missing: expected the id of one")
    for field in OPERATIONS[kind].fields if kind in OPERATIONS else ():
        if field.required and not given.get(field.name):
            text = ",".join(f"{name}={value}" for name, value in given.items())
            raise ValueError(f"arguments = {text!r}: expected a {field.name} for the {kind}")
    return given


def _texts(table: Any) -> Given:  # noqa: ANN401 - pyarrow has no types
    """What rows have as a text."""
    texts = table["arguments"].to_pylist()

    def given(row: int, kind: str) -> dict[str, str | int]:
        text = str(texts[row] or "")
        if kind == KIND_NAMES[FRAME]:
            return {kind: text}
        arguments: dict[str, str | int] = {}
        for pair in text.split(",") if text else ():
            name, equals, value = pair.partition("=")
            if not equals or not name or "=" in value or name in arguments:
                raise ValueError(f"arguments = {text!r}: expected name=value,name=value, each name once")
            arguments[name] = value
        return arguments

    return given


def _typed(table: Any) -> Given | None:  # noqa: ANN401 - pyarrow has no types
    """What rows have in typed columns; None if there are none."""
    own = {
        kind: [(name, table[name].to_pylist()) for name in table.column_names if _is_of(name, kind)]
        for kind in OPERATIONS
    }

    def given(row: int, kind: str) -> dict[str, str | int]:
        arguments: dict[str, str | int] = {}
        for column, values in own.get(kind, ()):
            value = values[row]
            if isinstance(value, bytes):
                value = value.decode("latin-1")
            if isinstance(value, list):
                arguments.update(value)
                if len(value) > len(arguments):
                    raise ValueError(f"{column} = {value}: expected each name once")
            elif value is not None and value != "":
                arguments[column.removeprefix(f"{kind}.")] = value
        return arguments

    return given if any(own.values()) else None


def _is_of(column: str, kind: str) -> bool:
    """Whether a column has arguments of a kind."""
    return column == kind or column.startswith(f"{kind}.")


def _table(path: Path) -> Any:  # noqa: ANN401 - pyarrow has no types
    import pyarrow as pa  # noqa: PLC0415 - slow to import, and only traces need it
    import pyarrow.csv  # noqa: PLC0415

    from cpsim.system.parquet import DamagedParquet, read  # noqa: PLC0415

    try:
        if path.suffix.lower() == ".parquet":
            return read(path)
        lines = pyarrow.csv.ParseOptions(newlines_in_values=True)  # as a malformed frame may have them
        with pyarrow.csv.open_csv(path, parse_options=lines) as file:
            names = file.schema.names
        is_text = {"kind", "slot", "arguments", "project", "user", "time"} | {
            name for name in names for kind in OPERATIONS if _is_of(name, kind)
        }
        texts = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(is_text, pa.string()))
        return pyarrow.csv.read_csv(path, convert_options=texts, parse_options=lines)
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path}: the names of its columns are not UTF-8: save it as UTF-8") from error
    except (pa.ArrowException, DamagedParquet) as error:
        raise ScenarioError(f"{path}: cannot be read as {path.suffix[1:].upper()}: {error}") from error

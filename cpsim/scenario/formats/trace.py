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

import pickle
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cpsim.config.zones import find_zone
from cpsim.scenario.formats.appearances import Appearances
from cpsim.scenario.formats.times import EXPECTED_TIME, time_us
from cpsim.scenario.formats.trace_table import TIMES_US, TraceTable
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
    Int64,
    Workload,
    numbers_of_ids,
    slot_numbers,
)
from cpsim.system.external_sort import in_order
from cpsim.system.growing import Growing, made
from cpsim.system.mapped import let_go, stretches, zeros

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from cpsim.scenario.workload import Int32

    Call = tuple[int, str, str, Mapping[str, str | int]]
    SiteCall = tuple[int, str, str, Mapping[str, str | int], str]
    Given = Callable[[int, str], dict[str, str | int]]
    """The arguments of a row of a piece, whose kind is known."""

UTC: Final = find_zone("UTC")
SUFFIXES: Final = (".csv", ".parquet")
WRITTEN_BYTES: Final = 1 << 20
READ_ROWS: Final = 512
"""Commands that are read of a temporary file, where they may be anywhere, before they are let go."""
_PLACE: Final = np.dtype([("due_us", np.int64), ("begin", np.int64)])


def load(path: Path, seed: int, *, keep_ids: bool = False) -> Workload:
    """Read a trace (`.csv`, `.parquet`), and keep the ids of its slots, or give them others.

    Raises:
        ScenarioError: it is no trace, or a row of it is wrong.
        OSError: it cannot be read.
    """
    table = TraceTable(path)
    owners = dict(table.owners)
    try:
        made = of_calls(safe_name(path), seed, _calls(path, table, owners), keep_ids=keep_ids)
    except ValueError as error:
        raise error if isinstance(error, ScenarioError) else ScenarioError(f"{path}: {error}") from error
    if not len(made):
        raise ScenarioError(f"{path}: no command in this trace")
    return with_owners(made, owners)


def with_owners(workload: Workload, owners: Mapping[str, str]) -> Workload:
    """A workload whose machines are those of users, as far as it has them."""
    users = {user: index for index, user in enumerate(dict.fromkeys(owners.values()))}
    owner = np.array([users.get(owners.get(machine, ""), -1) for machine in workload.machines], np.int32)
    return replace(workload, users=tuple(users), owner=owner)


def of_calls(name: str, seed: int, calls: Iterable[Call | SiteCall], *, keep_ids: bool = False) -> Workload:
    """The workload of commands.

    Args:
        name: begins the slots' ids.
        seed: what they were made from, if from one.
        calls: for each its time in microseconds, its kind, its slot's id, its other arguments, and, if there are
            several sites, the project that its site works for. Those of a slot with equal times stay in order. The kind
            `frame` has a `frame`.
        keep_ids: whether slots keep their ids.

    Raises:
        ValueError: an argument is none that the protocol has, or no whole number where it has one.
    """
    kept = _Kept(calls)
    tables, slots, several = _Tables(), Appearances(), len(kept.projects) > 1
    due_us, kinds, rows, sites = Growing(), Growing(np.uint8), Growing(np.int32), Growing(np.int32)
    for at, (when_us, kind, slot, arguments, *project) in enumerate(kept.in_order()):
        due_us.append(when_us)
        kinds.append(_code(kind))
        rows.append(tables.add(kind, slot, arguments))
        site = kept.projects[project[0]] if several else 0
        sites.append(site)
        # A frame that is no command has a slot of its own: no command of a slot waits for it.
        slots.add(f"{site},frame,{at}" if kind == KIND_NAMES[FRAME] else f"{site},slot,{slot}")
    slot_of_each, first = slots.numbers()
    machines, arguments_of = tables.arguments()
    times_us = due_us.array()
    start_us = int(times_us[0]) if len(times_us) else 0
    made_of = Workload(
        name=name,
        seed=seed,
        duration_us=int(times_us[-1]) - start_us if len(times_us) else 0,
        due_us=made(len(times_us), np.int64, lambda where: times_us[where] - start_us),
        kind=kinds.array(),
        slot=slot_of_each,
        row=rows.array(),
        slot_numbers=made(len(first), np.int64, lambda where: np.arange(where.start + 1, where.stop + 1)),
        arguments=arguments_of,
        machines=machines,
        users=(),
        owner=np.full(len(machines), -1, dtype=np.int32),
    )
    if several:
        of_slot, names = sites.array()[first], tuple(kept.projects)
        made_of = replace(made_of, sites=names, site=of_slot, slot_numbers=slot_numbers(names, of_slot))
    if not keep_ids:
        return made_of
    ids = tuple(f"frame-{at}" if kind == KIND_NAMES[FRAME] else slot for at, kind, slot in kept.named(first))
    return replace(made_of, slot_ids=ids, slot_numbers=numbers_of_ids(ids))


class _Kept:
    """Commands in a temporary file.

    Args:
        calls: those of `of_calls`.

    Attributes:
        projects: the projects that are named, with a number for each.
    """

    def __init__(self, calls: Iterable[Call | SiteCall]) -> None:
        self.projects: dict[str, int] = {}
        due_us, begins, written = Growing(), Growing(), Growing(np.uint8)
        pending, size_bytes = bytearray(), 0
        for call in calls:
            for project in call[4:]:
                self.projects.setdefault(project, len(self.projects))
            due_us.append(call[0])
            begins.append(size_bytes + len(pending))
            pending += pickle.dumps(call)
            if len(pending) >= WRITTEN_BYTES:
                written.add(np.frombuffer(pending, np.uint8))
                size_bytes, pending = size_bytes + len(pending), bytearray()
        written.add(np.frombuffer(pending, np.uint8))
        self._written = written.array().data
        self._order = _in_order_of_time(due_us.array(), begins.array())

    def in_order(self) -> Iterator[Call | SiteCall]:
        """The commands in the order of their times."""
        for start in range(0, len(self._order), READ_ROWS):
            yield from map(self._call, self._order[start : start + READ_ROWS].tolist())
            let_go()  # they may be anywhere in the file

    def named(self, places: Int64) -> Iterator[tuple[int, str, str]]:
        """Some places in that order, with the kinds and the slots of the commands there."""
        for place in places.tolist():
            _, kind, slot, *_ = self._call(int(self._order[place]))
            yield place, kind, slot

    def _call(self, begin: int) -> Call | SiteCall:
        call: Call | SiteCall = pickle.loads(self._written[begin:])  # noqa: S301 - which this process has written
        return call


def _in_order_of_time(due_us: Int64, begins: Int64) -> Int64:
    """Where the commands begin, in the order of their times."""
    order = Growing()
    for piece in in_order(_places(due_us, begins), "due_us"):
        order.add(piece["begin"])
    return order.array()


def _places(due_us: Int64, begins: Int64) -> Iterator[npt.NDArray[Any]]:
    for where in stretches(len(due_us)):
        piece = np.empty(where.stop - where.start, _PLACE)
        piece["due_us"], piece["begin"] = due_us[where], begins[where]
        yield piece


def check(kind: str, slot: str, arguments: Mapping[str, str | int]) -> None:
    """Raise ValueError if no workload can have a command."""
    _Tables().add(kind, slot, arguments)


class _Tables:
    """The arguments of each kind as they grow: a number or an index into the texts of its name, by name."""

    def __init__(self) -> None:
        self._rows = dict.fromkeys(OPERATIONS, 0)
        self._fixed: dict[tuple[str, str], Growing] = defaultdict(Growing)
        self._lacking: set[tuple[str, str]] = set()
        self._free: dict[str, _Free] = defaultdict(_Free)
        self._texts: dict[str, dict[str, int]] = {SHARED: {}}

    def add(self, kind: str, slot: str, arguments: Mapping[str, str | int]) -> int:
        """Add a row; returns its number."""
        command = OPERATIONS[kind]
        row = self._rows[kind]
        given = dict(arguments)
        for field in command.fields:
            value = given.pop(field.name, field.default)
            number = ABSENT
            if value is not None:
                shared = field.name if field.name == SHARED else f"{kind}.{field.name}"
                number = self._number(kind, slot, field.name, value, shared if field.value is str else "")
            else:
                self._lacking.add((kind, field.name))
            self._fixed[kind, field.name].append(number)
        if command.free is not None:
            texts = f"{kind}.{{}}" if command.free is str else ""
            for name, value in given.items():
                self._free[kind].add(row, name, self._number(kind, slot, name, value, texts.format(name)))
            if not given:
                raise ValueError(f"{kind} of slot {slot}: expected at least one argument beside the slot")
        elif given:
            known = ", ".join(field.name for field in command.fields)
            raise ValueError(f"{kind}: no argument {next(iter(given))!r}: expected {known}")
        self._rows[kind] = row + 1
        return row

    def _number(self, kind: str, slot: str, name: str, value: str | int, texts: str) -> int:
        if not texts:
            return _whole(kind, slot, name, value)
        pool = self._texts.setdefault(texts, {})
        return pool.setdefault(str(value), len(pool))

    def arguments(self) -> tuple[tuple[str, ...], dict[str, Arguments]]:
        """The machines, and all arguments of each kind."""
        return tuple(self._texts[SHARED]), {kind: self._arguments(kind) for kind in OPERATIONS}

    def _arguments(self, kind: str) -> Arguments:
        command = OPERATIONS[kind]
        fixed = {}
        for field in command.fields:
            values = self._fixed[kind, field.name].array()
            if field.value is str:
                codes = values if (kind, field.name) in self._lacking else _narrow(values)
                fixed[field.name] = Column(codes, tuple(self._texts.get(f"{kind}.{field.name}", ())))
            else:
                fixed[field.name] = Column(values)
        if command.free is None:
            return Arguments(fixed)
        names, values = self._free[kind].matrix(self._rows[kind])
        choices = tuple(tuple(self._texts[f"{kind}.{name}"]) for name in names) if command.free is str else None
        return Arguments(fixed, names, values, choices)


class _Free:
    """The arguments of one kind under free names: whose each is, under which name, and its number."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}
        self._row, self._name, self._value = Growing(), Growing(np.int32), Growing()

    def add(self, row: int, name: str, value: int) -> None:
        self._row.append(row)
        self._name.append(self._names.setdefault(name, len(self._names)))
        self._value.append(value)

    def matrix(self, rows: int) -> tuple[tuple[str, ...], Int64]:
        """The names, and a column for each of them."""
        shape = (rows, len(self._names))
        matrix = zeros(rows * len(self._names), np.dtype(np.int64)).reshape(shape)
        for where in stretches(rows):
            matrix[where] = ABSENT
        row, name, value = self._row.array(), self._name.array(), self._value.array()
        for where in stretches(len(row)):
            matrix[row[where], name[where]] = value[where]
        return tuple(self._names), matrix


def _narrow(values: Int64) -> Int32:
    return made(len(values), np.int32, lambda where: values[where])


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


def _calls(path: Path, table: TraceTable, owners: dict[str, str]) -> Iterator[Call | SiteCall]:
    """The commands of a trace; what it says of whose each machine is, is added to the owners."""
    own = [name for name in table.names if any(_is_of(name, kind) for kind in OPERATIONS)]
    given_in = ["arguments"] if "arguments" in table.names else own
    missing = [column for column in ("kind", "slot") if column not in table.names]
    if not given_in:
        missing.append("arguments")
    if (time := table.time_column()) is None:
        missing.append("due_us (or sent_us, or time_s, or time)")
    if missing or time is None:
        raise ScenarioError(
            f"{path}: no column {', '.join(missing)}: this is no trace; its columns are {', '.join(table.names)}; a "
            "table of jobs is read by a scenario with a [log] that names its columns"
        )
    beside = [name for name in ("project", "user") if name in table.names]
    before = 0
    for piece in table.pieces([time, "kind", "slot", *beside, *given_in]):
        given = _texts(piece) if given_in == ["arguments"] else _typed(piece)
        projects = ([str(project)] for project in piece["project"].to_pylist()) if "project" in beside else None
        users = piece["user"].to_pylist() if "user" in beside else [None] * len(piece)
        columns = (table.values(piece, time), piece["kind"].to_pylist(), piece["slot"].to_pylist(), users)
        for row, (at, kind, slot, user) in enumerate(zip(*columns, strict=True)):
            try:
                arguments = _checked(str(kind), str(slot or ""), given(row, str(kind)))
                call = (_due_us(time, at), str(kind), str(slot or ""), arguments, *next(projects or iter([()])))
                _add_owner(owners, arguments.get(SHARED), user)
            except ValueError as error:
                raise ScenarioError(f"{path}, row {before + row + 1}: {error}") from error
            yield call  # type: ignore[misc]  # with a project or without
        before += len(piece)


def _add_owner(owners: dict[str, str], machine: str | int | None, user: str | None) -> None:
    """Add whose a machine is; raises ValueError if it is another's already."""
    if user and machine and owners.setdefault(str(machine), str(user)) != str(user):
        raise ValueError(
            f"user = {user!r}: expected {owners[str(machine)]!r}, whose machine {machine} is in an earlier row"
        )


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


def _typed(table: Any) -> Given:  # noqa: ANN401 - pyarrow has no types
    """What rows have in typed columns."""
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

    return given


def _is_of(column: str, kind: str) -> bool:
    """Whether a column has arguments of a kind."""
    return column == kind or column.startswith(f"{kind}.")

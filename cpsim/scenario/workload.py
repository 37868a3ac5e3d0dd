"""A workload: every operation of a scenario with its due time, in columns."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from cpdaemon.commands import COMMANDS, Description, Field
from cpsim.system.growing import gathered, made
from cpsim.system.mapped import put_anywhere, stretches, taken, zeros

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

UInt8 = npt.NDArray[np.uint8]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

ABSENT: Final = int(np.iinfo(np.int64).min)
"""The value of a missing argument in a column."""
OPERATIONS: Final[Mapping[str, Description]] = MappingProxyType(
    {
        **COMMANDS,
        "frame": Description("frame", "is a malformed frame", len(COMMANDS), (Field("frame", str, required=True),)),
    }
)
"""Kinds of operations: commands, and a malformed frame, whose text is Latin-1 with {slot} for the slot's id."""
KIND_NAMES: Final = tuple(OPERATIONS)
"""What the numbers of the column `kind` mean: no other table numbers it."""
KIND_CODES: Final = {name: code for code, name in enumerate(KIND_NAMES)}
FRAME: Final = KIND_CODES["frame"]
"""The kind of a malformed frame, which must be answered ER."""
DAY_US: Final = 86_400_000_000
"""How long a slot lives of which the allocation does not say it."""
SHARED: Final = "machine"
"""The argument whose texts are the workload's machines."""
DIGESTED: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "alloc": ("credits", "min", "max", "expire"),
        "counters": (),
        "meta": (),
        "discard": ("reason",),
        "claim": ("machine", "credits"),
        "frame": ("frame",),
    }
)
"""What every digest covers, in this order and under these codes; other kinds and fields count where they are used.

So a digest stays what it is, whatever is added to the protocol."""
DIGEST_LABELS: Final[Mapping[str, str]] = MappingProxyType({"expire": "expire_min", "frame": "form"})


class Column(NamedTuple):
    """One argument of all commands of a kind.

    Attributes:
        values: a row per command. Of whole numbers int64, ABSENT where it is not given. Of texts an index into `texts`:
            int32 if each command gives one, otherwise int64 with ABSENT, too.
        texts: those that it may be; None for a number.
    """

    values: Int64 | Int32
    texts: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Arguments:
    """The arguments of all commands of a kind beside their slots, a row per command.

    Attributes:
        fixed: a column for each field of the kind.
        names: those of arguments under free names, in the order in which they are sent.
        free: their values, of shape (rows, names), as those of a `Column`.
        choices: for each of these names the texts that `free` indexes; None if they are numbers.
        columns: all of them by name, in the order in which they are sent.
    """

    fixed: Mapping[str, Column] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    free: Int64 | Int32 = field(default_factory=lambda: np.empty((0, 0), dtype=np.int64))
    choices: tuple[tuple[str, ...], ...] | None = None
    columns: Mapping[str, Column] = field(init=False)

    def __post_init__(self) -> None:
        choices = self.choices or [None] * len(self.names)
        free = {name: Column(self.free[:, at], choices[at]) for at, name in enumerate(self.names)}
        object.__setattr__(self, "columns", {**self.fixed, **free})

    def __reduce__(self) -> tuple[type[Arguments], tuple[object, ...]]:
        return Arguments, (self.fixed, self.names, self.free, self.choices)

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]

    def of_rows(self, rows: npt.NDArray[np.integer]) -> Arguments:
        """The arguments of some commands, in ascending order of their rows."""
        fixed = {name: Column(_taken(column.values, rows), column.texts) for name, column in self.fixed.items()}
        return Arguments(fixed, self.names, taken(self.free, rows) if self.names else self.free, self.choices)

    def row(self, row: int) -> dict[str, str | int]:
        """The arguments of one command, by name."""
        numbers = ((name, int(values[row]), texts) for name, (values, texts) in self.columns.items())
        return {name: number if texts is None else texts[number] for name, number, texts in numbers if number != ABSENT}


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """Operations in order of their due times; those of one slot in the order in which they must be applied.

    Attributes:
        name: of the scenario or log.
        seed: seed of the generation.
        duration_us: time within which slots are allocated; operations may be due later.
        due_us: int64[operations], non-decreasing, microseconds since the scenario starts.
        kind: uint8[operations], index into KIND_NAMES.
        slot: int32[operations], index of the slot.
        row: int32[operations], row among the arguments of its kind.
        slot_numbers: int64[slots], the number that ends the slot's id; distinct within a project.
        arguments: of each kind in OPERATIONS; a kind of which there is no operation may be left out.
        machines: ids of machines, which are the texts of every argument `machine`.
        users: ids of users.
        owner: int32[machines], index into `users`, -1 for a machine without a user.
        faults: faults during the replay, in the text form of `cpsim faults`.
        link_after: whether machines are linked to their users only after the replay.
        sites: the project that each site works for, if there are several sites; else none. A slot's number is its own
            within its project.
        site: int32[slots], index into `sites`; empty without them.
        notes: sentences on what was odd about what it was read from.
        slot_ids: the ids of the slots, where they are kept from what it was read from; else empty, and a slot's id is
            "PREFIX-NUMBER". Their numbers are then those of `numbers_of_ids`.

    Raises:
        ValueError: the arguments are not those that the protocol has.
    """

    name: str
    seed: int
    duration_us: int
    due_us: Int64
    kind: UInt8
    slot: Int32
    row: Int32
    slot_numbers: Int64
    arguments: Mapping[str, Arguments]
    machines: tuple[str, ...]
    users: tuple[str, ...]
    owner: Int32
    faults: tuple[str, ...] = ()
    link_after: bool = False
    sites: tuple[str, ...] = ()
    site: Int32 = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    notes: tuple[str, ...] = ()
    slot_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if unknown := self.arguments.keys() - OPERATIONS.keys():
            raise ValueError(f"no operation {min(unknown)!r}: expected some of {', '.join(OPERATIONS)}")
        tables = {}
        for kind, description in OPERATIONS.items():
            table = self.arguments.get(kind) or joined(description, [])
            names = [field.name for field in description.fields]
            if list(table.fixed) != names:
                raise ValueError(f"{kind}: arguments {', '.join(table.fixed)}: expected {', '.join(names) or 'none'}")
            if SHARED in table.fixed:
                shared = Column(table.fixed[SHARED].values, self.machines)
                table = replace(table, fixed={**table.fixed, SHARED: shared})
            tables[kind] = table
        object.__setattr__(self, "arguments", tables)

    def slot_id(self, slot: int, prefix: str) -> str:
        """The id of a slot, with a prefix unless ids are kept."""
        return self.slot_ids[slot] if self.slot_ids else f"{prefix}-{self.slot_numbers[slot]}"

    @property
    def projects(self) -> tuple[str, ...]:
        """The distinct projects of the sites; empty if there is one site."""
        return tuple(dict.fromkeys(self.sites))

    def of_operations(self, ops: npt.NDArray[np.integer]) -> Workload:
        """The part with some operations, and all slots."""
        columns = {name: taken(getattr(self, name), ops) for name in ("due_us", "kind", "slot", "row")}
        return replace(self, **columns)

    def on_its_own(self) -> Workload:
        """The same operations, and no slots and arguments but theirs."""
        own, slot = np.unique(self.slot, return_inverse=True)
        row, arguments = np.empty_like(self.row), {}
        for code, (kind, table) in enumerate(self.arguments.items()):
            places = np.flatnonzero(self.kind == code)
            rows, row[places] = np.unique(self.row[places], return_inverse=True)
            arguments[kind] = table.of_rows(rows)
        return replace(
            self,
            slot=slot.astype(np.int32),
            row=row,
            slot_numbers=taken(self.slot_numbers, own),
            arguments=arguments,
            slot_ids=tuple(self.slot_ids[place] for place in own.tolist()) if self.slot_ids else (),
            site=self.site[own] if self.sites else self.site,
        )

    def of_project(self, project: str) -> tuple[Workload, Int64]:
        """The part of a project with its own slots, and the indices of its operations."""
        own = np.isin(self.site, [index for index, name in enumerate(self.sites) if name == project])
        ops = np.flatnonzero(own[self.slot])
        number = (np.cumsum(own) - 1).astype(np.int32)
        part = replace(
            self,
            due_us=self.due_us[ops],
            kind=self.kind[ops],
            slot=number[self.slot[ops]],
            row=self.row[ops],
            slot_numbers=self.slot_numbers[own],
            slot_ids=tuple(itertools.compress(self.slot_ids, own)),
            sites=(),
            site=self.site[:0],
        )
        return part, ops

    def __len__(self) -> int:
        return len(self.due_us)

    def oddities(self) -> list[str]:
        """Sentences on what of it is likely to be a mistake."""
        alloc = KIND_CODES["alloc"]
        begun_us, ended_us = (zeros(len(self.slot_numbers), np.dtype(np.int64)) for _ in range(2))  # 1 more; 0 if none
        expire = self.arguments["alloc"]["expire"].values
        for where in stretches(len(self)):
            kind, slot, due_us = self.kind[where], self.slot[where], self.due_us[where]
            begins = np.flatnonzero(kind == alloc)
            endless = begins[expire[self.row[where][begins]] == ABSENT]
            put_anywhere(begun_us, slot[endless], due_us[endless] + 1)
            lasts = (kind != alloc) & (kind != FRAME)
            put_anywhere(ended_us, slot[lasts], due_us[lasts] + 1)
        beyond = 0
        for where in stretches(len(begun_us)):
            begun, ended = begun_us[where], ended_us[where]
            beyond += int(np.count_nonzero((begun > 0) & (ended > begun + DAY_US)))
        sentence = (
            f"{beyond:,} jobs outlive the day after which a slot without expire ends: what comes later is refused "
            "where a day passes; give an expire"
        )
        return [sentence] if beyond else []

    def digest(self) -> str:
        """SHA-256 over everything, in hex: equal for equal workloads, on any machine."""
        digest = hashlib.sha256()
        add = digest.update
        counts = np.zeros(len(KIND_NAMES), np.int64)
        for where in stretches(len(self)):
            counts += np.bincount(self.kind[where], minlength=len(counts))
        more = [kind for code, kind in enumerate(KIND_NAMES) if counts[code] and kind not in DIGESTED]
        codes = {kind: code for code, kind in enumerate((*DIGESTED, *more))}
        for name in ("name", "seed", "duration_us", "due_us"):
            _update(add, name, getattr(self, name))
        digested = np.array([codes.get(kind, 0) for kind in KIND_NAMES], np.uint8)
        _update(add, "kind", made(len(self), np.uint8, lambda where: digested[self.kind[where]]))
        for name in ("slot", "row", "slot_numbers"):
            _update(add, name, getattr(self, name))
        *commands, frame = DIGESTED
        for kind in commands:
            self._update_arguments(add, kind, DIGESTED[kind])
        for name in ("machines", "users", "owner", "faults"):
            _update(add, name, getattr(self, name))
        self._update_arguments(add, frame, DIGESTED[frame])
        for name in ("link_after", "sites", "site"):
            _update(add, name, getattr(self, name))
        if self.slot_ids:
            _update(add, "slot_ids", self.slot_ids)
        for kind in more:
            self._update_arguments(add, kind, tuple(self.arguments[kind].fixed))
        for kind, known in DIGESTED.items():
            for name, column in self.arguments[kind].fixed.items():
                values = column.values
                if name not in known and any(np.any(values[where] != ABSENT) for where in stretches(len(values))):
                    _update_column(add, f"{kind}.{name}", column)
        return digest.hexdigest()

    def _update_arguments(self, update: Callable[[bytes], None], kind: str, names: Sequence[str]) -> None:
        table = self.arguments[kind]
        update(f"{kind}:".encode())
        for name in names:
            _update_column(update, name, table.fixed[name])
        if OPERATIONS[kind].free is not None:
            _update(update, "names", table.names)
            if table.choices is not None:
                _update(update, "choices", table.choices)
            _update(update, "values", table.free)

    def calls(self, start: int, stop: int, prefix: str) -> Iterator[tuple[str, dict[str, str | int]]]:
        """The operations from `start` up to `stop` as objects, one by one: readable, not fast.

        Args:
            start: first operation.
            stop: the one after the last.
            prefix: prefix of slot ids, which are "PREFIX-NUMBER".

        Yields:
            The kind and the arguments under their names on the wire, as `("claim", {"slot": "x-1", ...})`.
        """
        for op in range(start, min(stop, len(self))):
            kind = KIND_NAMES[self.kind[op]]
            yield kind, {"slot": self.slot_id(self.slot[op], prefix), **self.arguments[kind].row(int(self.row[op]))}


def _update_column(update: Callable[[bytes], None], name: str, column: Column) -> None:
    label = DIGEST_LABELS.get(name, name)
    if column.texts is not None and name != SHARED:
        _update(update, f"{label}s", column.texts)
    _update(update, label, column.values)


def _update(update: Callable[[bytes], None], name: str, value: object) -> None:
    update(f"{name}:".encode())
    if isinstance(value, np.ndarray):
        update(f"{value.dtype.newbyteorder('<').str}{value.shape}".encode())
        for where in stretches(len(value)):
            chunk = value[where]
            update(chunk.astype(chunk.dtype.newbyteorder("<"), order="C", copy=False).tobytes())
    else:
        update(json.dumps(value).encode())


Given = int | Int64 | Column | None
"""An argument of a block: one number for all commands, None, or a value for each."""


def _taken(values: Int64 | Int32, rows: npt.NDArray[np.integer]) -> Int64 | Int32:
    """The values of some rows; of a constant column, a constant column."""
    if len(values) and 0 in values.strides:
        return constant(int(values[0]), len(rows))
    return taken(values, rows)


def joined(description: Description, blocks: Sequence[tuple[int, Mapping[str, Given]]]) -> Arguments:
    """The arguments of a kind, of blocks one after the other.

    Args:
        description: of the kind.
        blocks: for each how many commands it has, and their arguments.

    Raises:
        ValueError: an argument is none that the kind has, or texts of one name differ.
    """
    fixed = {
        field.name: _joined(field.value, [(rows, given.get(field.name)) for rows, given in blocks])
        for field in description.fields
    }
    names = tuple(dict.fromkeys(name for _, given in blocks for name in given if name not in fixed))
    if description.free is None:
        if names:
            raise ValueError(f"{description.kind}: no argument {names[0]!r}: expected {', '.join(fixed) or 'none'}")
        return Arguments(fixed)
    columns = [_joined(description.free, [(rows, given.get(name)) for rows, given in blocks]) for name in names]
    is_text = description.free is str
    narrow = is_text and all(column.values.dtype == np.int32 for column in columns)
    shape = (sum(rows for rows, _ in blocks), len(names))
    free: Int64 | Int32 = zeros(shape[0] * shape[1], np.dtype(np.int32 if narrow else np.int64)).reshape(shape)
    for where in stretches(shape[0]):
        for place, column in enumerate(columns):
            free[where, place] = column.values[where]
    return Arguments(fixed, names, free, tuple(column.texts or () for column in columns) if is_text else None)


def _joined(value: type[int | str], parts: Sequence[tuple[int, Given]]) -> Column:
    """One argument of concatenated blocks; takes no memory if it is one number for all."""
    texts: tuple[str, ...] | None = () if value is str else None
    for _, part in parts:
        if isinstance(part, Column):
            if texts and part.texts is not texts and part.texts != texts:
                raise ValueError("the texts of an argument are the same in all blocks")
            texts = part.texts
    plain = [(rows, part.values if isinstance(part, Column) else part) for rows, part in parts if rows]
    if not plain:
        return Column(np.empty(0, np.int64) if texts is None else np.empty(0, np.int32), texts)
    numbers = {part for _, part in plain if not isinstance(part, np.ndarray)}
    if len(numbers) == 1 and not any(isinstance(part, np.ndarray) for _, part in plain):
        return Column(constant(numbers.pop(), sum(rows for rows, _ in plain)), texts)
    arrays: list[Int64 | Int32] = [
        part if isinstance(part, np.ndarray) else constant(part, rows) for rows, part in plain
    ]
    if len(arrays) == 1:
        return Column(arrays[0], texts)
    narrow = texts is not None and all(array.dtype == np.int32 for array in arrays)
    parts_of = (array[where] for array in arrays for where in stretches(len(array)))
    return Column(gathered(parts_of, np.int32 if narrow else np.int64), texts)


def constant(value: int | None, rows: int) -> Int64:
    """A read-only column of one value (None: ABSENT) that takes no memory."""
    return np.broadcast_to(np.int64(ABSENT if value is None else value), rows)


def numbers_of_ids(slot_ids: Iterable[str]) -> Int64:
    """The numbers of slots whose ids are kept: that of an id is the same wherever it is asked for."""
    digests = (hashlib.blake2b(slot_id.encode(), digest_size=8).digest() for slot_id in slot_ids)
    return np.fromiter((int.from_bytes(digest, "big") >> 2 for digest in digests), np.int64)


def slot_numbers(sites: Sequence[str], site: Int32) -> Int64:
    """The numbers of slots; each project counts its slots from 1.

    Args:
        sites: the project of each site.
        site: of each slot.
    """
    projects = list(dict.fromkeys(sites))
    project_of = np.array([projects.index(name) for name in sites])
    counts = np.zeros(len(projects), np.int64)

    def at(where: slice) -> Int64:
        of_slot = project_of[site[where]]
        numbers = np.empty(len(of_slot), np.int64)
        for project in range(len(projects)):
            own = np.flatnonzero(of_slot == project)
            numbers[own] = np.arange(counts[project] + 1, counts[project] + len(own) + 1)
            counts[project] += len(own)
        return numbers

    return made(len(site), np.int64, at)

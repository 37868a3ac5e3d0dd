"""A workload: every operation of a scenario with its due time, in columns."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from cpdaemon.commands import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

UInt8 = npt.NDArray[np.uint8]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

ABSENT: Final = int(np.iinfo(np.int64).min)
"""Stands in an int64 column of arguments for one that is not given."""
KIND_NAMES: Final = (*KINDS, "frame")
"""What the numbers of the column `kind` mean: no other table numbers it."""
KIND_CODES: Final = {name: code for code, name in enumerate(KIND_NAMES)}
FRAME: Final = KIND_CODES["frame"]
"""The kind of an operation that is no command, but a frame which must be answered ER."""


@dataclass(frozen=True, slots=True, eq=False)
class AllocTable:
    """Arguments of alloc, one row per slot; ABSENT where not given."""

    credits: Int64
    min: Int64
    max: Int64
    expire_min: Int64


@dataclass(frozen=True, slots=True, eq=False)
class CountersTable:
    """Arguments of counters: values of shape (rows, names); ABSENT where not given, never a whole row."""

    names: tuple[str, ...]
    values: Int64


@dataclass(frozen=True, slots=True, eq=False)
class MetaTable:
    """Arguments of meta: values of shape (rows, names) index the choices of their name, or are ABSENT."""

    names: tuple[str, ...]
    choices: tuple[tuple[str, ...], ...]
    values: Int32 | Int64


@dataclass(frozen=True, slots=True, eq=False)
class DiscardTable:
    """Arguments of discard: `reason` holds indices into `reasons`."""

    reasons: tuple[str, ...]
    reason: Int32


@dataclass(frozen=True, slots=True, eq=False)
class ClaimTable:
    """Arguments of claim: `machine` indexes the workload's machines; credits are ABSENT where not given."""

    machine: Int32
    credits: Int64


@dataclass(frozen=True, slots=True, eq=False)
class FrameTable:
    """Frames that are no commands: `form` holds indices into `forms`, as text in Latin-1, {slot} for the slot's id."""

    forms: tuple[str, ...]
    form: Int32


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """Operations in the order in which they are due; those of a slot in the order in which they must happen.

    Attributes:
        name: of the scenario or log.
        seed: what it was generated from.
        duration_us: time within which slots are allocated; operations may be due later.
        due_us: int64[operations], non-decreasing, microseconds since the scenario starts.
        kind: uint8[operations], index into KIND_NAMES.
        slot: int32[operations], index of the slot.
        row: int32[operations], row in the argument table of its kind.
        slot_numbers: int64[slots], the number that ends the slot's id; distinct within a project.
        alloc, counters, meta, discard, claim, frame: the argument tables.
        machines: ids of machines.
        users: ids of users.
        owner: int32[machines], index into `users`, -1 for a machine without a user.
        faults: what goes wrong meanwhile, as `cpsim faults` has it.
        link_after: whether machines are linked to their users only when all is done.
        sites: the project that each site works for, if there are several sites; else none. A slot's number is its own
            within its project.
        site: int32[slots], index into `sites`; empty without them.
    """

    name: str
    seed: int
    duration_us: int
    due_us: Int64
    kind: UInt8
    slot: Int32
    row: Int32
    slot_numbers: Int64
    alloc: AllocTable
    counters: CountersTable
    meta: MetaTable
    discard: DiscardTable
    claim: ClaimTable
    machines: tuple[str, ...]
    users: tuple[str, ...]
    owner: Int32
    faults: tuple[str, ...] = ()
    frame: FrameTable = FrameTable((), np.empty(0, dtype=np.int32))
    link_after: bool = False
    sites: tuple[str, ...] = ()
    site: Int32 = field(default_factory=lambda: np.empty(0, dtype=np.int32))

    @property
    def projects(self) -> tuple[str, ...]:
        """The projects of its sites, each once; none if it is of one site."""
        return tuple(dict.fromkeys(self.sites))

    def of_project(self, project: str) -> tuple[Workload, Int64]:
        """The part that is a project's, with slots of its own, and which operations of the whole it has."""
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
            sites=(),
            site=self.site[:0],
        )
        return part, ops

    def __len__(self) -> int:
        return len(self.due_us)

    def digest(self) -> str:
        """SHA-256 over everything, in hex: equal for equal workloads, on any machine."""
        digest = hashlib.sha256()
        _update(digest.update, self)
        return digest.hexdigest()

    def calls(self, start: int, stop: int, prefix: str) -> Iterator[tuple[str, dict[str, str | int]]]:
        """The operations from `start` up to `stop` in readable form, one by one: for looking, not for speed.

        Args:
            start: first operation.
            stop: the one after the last.
            prefix: begins the slot ids, "PREFIX-NUMBER".

        Yields:
            The kind and the arguments under their names on the wire, as `("claim", {"slot": "x-1", ...})`.
        """
        for op in range(start, min(stop, len(self))):
            kind = KIND_NAMES[self.kind[op]]
            slot = f"{prefix}-{self.slot_numbers[self.slot[op]]}"
            yield kind, {"slot": slot, **self._arguments(kind, int(self.row[op]))}

    def _arguments(self, kind: str, row: int) -> dict[str, str | int]:
        match kind:
            case "meta":
                values = zip(self.meta.names, self.meta.choices, self.meta.values[row], strict=True)
                return {name: choices[value] for name, choices, value in values if value != ABSENT}
            case "frame":
                return {"frame": self.frame.forms[self.frame.form[row]]}
            case "discard":
                return {"reason": self.discard.reasons[self.discard.reason[row]]}
            case "alloc":
                table = self.alloc
                numbers = {
                    "credits": table.credits[row],
                    "min": table.min[row],
                    "max": table.max[row],
                    "expire": table.expire_min[row],
                }
            case "counters":
                numbers = dict(zip(self.counters.names, self.counters.values[row], strict=True))
            case _:
                numbers = {"credits": self.claim.credits[row]}
        given: dict[str, str | int] = {name: int(value) for name, value in numbers.items() if value != ABSENT}
        return {"machine": self.machines[self.claim.machine[row]], **given} if kind == "claim" else given


def _update(update: Callable[[bytes], None], value: object) -> None:
    if isinstance(value, np.ndarray):
        update(f"{value.dtype.newbyteorder('<').str}{value.shape}".encode())
        for start in range(0, len(value), 1 << 20):
            chunk = value[start : start + (1 << 20)]
            update(chunk.astype(chunk.dtype.newbyteorder("<"), order="C", copy=False).tobytes())
    elif is_dataclass(value):
        for part in fields(value):
            update(f"{part.name}:".encode())
            _update(update, getattr(value, part.name))
    else:
        update(json.dumps(value).encode())


def timeline(blocks: Sequence[tuple[str, Int64, Int32]]) -> tuple[Int64, UInt8, Int32, Int32]:
    """Merge blocks of operations in order of their due times.

    Args:
        blocks: kind, due_us and slot of operations, in the order in which operations of a slot must happen when
            they are due at the same microsecond. The rows of a kind are 0, 1, ..., from one of its blocks to the next.

    Returns:
        The columns due_us, kind, slot and row of a workload.
    """
    due_us = np.concatenate([due for _, due, _ in blocks])
    order = np.argsort(due_us, kind="stable")
    kind = np.concatenate([np.full(len(due), KIND_CODES[name], dtype=np.uint8) for name, due, _ in blocks])
    slot = np.concatenate([slot for _, _, slot in blocks])
    rows, first = [], dict.fromkeys(KIND_NAMES, 0)
    for name, due, _ in blocks:
        rows.append(np.arange(first[name], first[name] + len(due), dtype=np.int32))
        first[name] += len(due)
    return due_us[order], kind[order], slot[order], np.concatenate(rows)[order]


def constant(value: int | None, rows: int) -> Int64:
    """A read-only column of one value (None: ABSENT) that takes no memory."""
    return np.broadcast_to(np.int64(ABSENT if value is None else value), rows)


def slot_numbers(sites: Sequence[str], site: Int32) -> Int64:
    """The numbers of slots, where each project counts its own from 1.

    Args:
        sites: the project of each site.
        site: of each slot.
    """
    numbers = np.empty(len(site), dtype=np.int64)
    for project in set(sites):
        own = np.isin(site, [index for index, name in enumerate(sites) if name == project])
        numbers[own] = np.arange(1, np.count_nonzero(own) + 1)
    return numbers

"""A workload as Parquet: a row per operation, its arguments in typed columns, and all else beside the schema.

| column | |
|---|---|
| `due_us` | when it is due, microseconds since the scenario starts |
| `kind` | `alloc`, `counters`, `meta`, `discard`, `claim`, or `frame` for one that is no command |
| `number` | what ends the slot's id |
| `credits`, `min`, `max`, `expire_min` | of an alloc; `credits` of a claim, too |
| `machine`, `reason`, `form` | of a claim, a discard, a frame: indices into the texts beside the schema |
| `counters.NAME`, `meta.NAME` | of that name; a text of metadata is an index likewise |

A scenario is written a part at a time, so that memory does not grow with its length. Each part is in order of time, and
they are merged when they are read.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

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
    Workload,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

KEY: Final = b"cpsim.workload"
TERMS: Final = ("credits", "min", "max", "expire_min")


def write(parts: Iterable[Workload], path: Path) -> int:
    """Write a workload that comes in parts; returns how many operations it has.

    Raises:
        ScenarioError: it is of several sites, or its parts do not fit together.
        OSError: it cannot be written; then there is no file.
    """
    partial = path.with_name(f"{path.name}.partial")
    writer: Any = None
    beside: dict[str, Any] = {}
    operations = 0
    try:
        for part in parts:
            if part.sites:
                raise ScenarioError(f"{part.name}: a workload of several sites is kept as a scenario")
            table = _table(part)
            if writer is None:
                beside = _beside(part)
                schema = table.schema.with_metadata({KEY: json.dumps(beside)})
                writer = pq.ParquetWriter(partial, schema, compression="zstd", use_dictionary=["kind"])
            elif beside != _beside(part):
                raise ScenarioError(f"{part.name}: the parts of a workload have the same machines, users and texts")
            operations += len(table)
            writer.write_table(table)
        if writer is None:
            raise ScenarioError(f"{path}: there is no operation to write")
        writer.close()
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    return operations


def is_one(path: Path) -> bool:
    """Whether a Parquet file is a workload; others are traces."""
    try:
        return KEY in (pq.read_schema(path).metadata or {})
    except pa.ArrowInvalid:
        return False


def read(path: Path) -> Workload:
    """The workload that a file holds.

    Raises:
        ScenarioError: it is damaged.
        OSError: it cannot be read.
    """
    try:
        with pq.ParquetFile(path) as file:
            return _workload(file, json.loads(file.schema_arrow.metadata[KEY]))
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        raise ScenarioError(f"{path}: a damaged workload, write it anew with cpsim scenarios write: {error}") from error


def _beside(part: Workload) -> dict[str, Any]:
    """What a workload is beside its operations."""
    return {
        "name": part.name,
        "seed": part.seed,
        "duration_us": part.duration_us,
        "machines": part.machines,
        "users": part.users,
        "owner": part.owner.tolist(),
        "reasons": part.discard.reasons,
        "forms": part.frame.forms,
        "choices": part.meta.choices,
        "faults": part.faults,
        "link_after": part.link_after,
    }


def _table(part: Workload) -> pa.Table:
    """The operations of a part."""
    of_kind = {name: np.flatnonzero(part.kind == code) for name, code in KIND_CODES.items()}
    columns: dict[str, pa.Array] = {
        "due_us": pa.array(part.due_us),
        "kind": pa.DictionaryArray.from_arrays(pa.array(part.kind.astype(np.int8)), pa.array(KIND_NAMES)),
        "number": pa.array(part.slot_numbers[part.slot]),
    }

    def add(column: str, *given: tuple[str, Int64 | Int32]) -> None:
        values = np.full(len(part), ABSENT)
        for kind, of_rows in given:
            values[of_kind[kind]] = of_rows[part.row[of_kind[kind]]]
        columns[column] = pa.array(values, mask=values == ABSENT)

    for term in TERMS:
        table: Int64 = getattr(part.alloc, term)
        add(term, ("alloc", table), *([("claim", part.claim.credits)] if term == "credits" else []))
    add("machine", ("claim", part.claim.machine))
    add("reason", ("discard", part.discard.reason))
    add("form", ("frame", part.frame.form))
    for kind, names, values in (
        ("counters", part.counters.names, part.counters.values),
        ("meta", part.meta.names, part.meta.values),
    ):
        for place, name in enumerate(names):
            add(f"{kind}.{name}", (kind, values[:, place]))
    return pa.table(columns)


def _workload(file: Any, beside: dict[str, Any]) -> Workload:  # noqa: ANN401 - pyarrow has no types
    names = file.schema_arrow.names
    kind = np.asarray(pc.index_in(_column(file, "kind").cast(pa.string()), value_set=pa.array(KIND_NAMES)))
    kind = kind.astype(np.uint8)
    due_us = _column(file, "due_us").to_numpy()
    order = np.argsort(due_us, kind="stable")
    numbers, slot = np.unique(_column(file, "number").to_numpy(), return_inverse=True)
    of_kind = {name: np.flatnonzero(kind == code) for name, code in KIND_CODES.items()}
    row = np.empty(len(kind), dtype=np.int32)
    for places in of_kind.values():
        row[places] = np.arange(len(places), dtype=np.int32)

    def values(column: str, of: str) -> Int64:
        found: Int64 = np.asarray(pc.fill_null(_column(file, column), ABSENT))[of_kind[of]]
        return found

    def table(of: str) -> tuple[tuple[str, ...], Int64]:
        own = [name for name in names if name.startswith(f"{of}.")]
        found = np.full((len(of_kind[of]), len(own)), ABSENT)
        for place, name in enumerate(own):
            found[:, place] = values(name, of)
        return tuple(name.removeprefix(f"{of}.") for name in own), found

    meta = table("meta")
    return Workload(
        name=beside["name"],
        seed=beside["seed"],
        duration_us=beside["duration_us"],
        due_us=due_us[order],
        kind=kind[order],
        slot=slot.astype(np.int32)[order],
        row=row[order],
        slot_numbers=numbers,
        alloc=AllocTable(*(values(term, "alloc") for term in TERMS)),
        counters=CountersTable(*table("counters")),
        meta=MetaTable(meta[0], tuple(map(tuple, beside["choices"])), meta[1]),
        discard=DiscardTable(tuple(beside["reasons"]), values("reason", "discard").astype(np.int32)),
        claim=ClaimTable(values("machine", "claim").astype(np.int32), values("credits", "claim")),
        machines=tuple(beside["machines"]),
        users=tuple(beside["users"]),
        owner=np.array(beside["owner"], dtype=np.int32),
        faults=tuple(beside["faults"]),
        frame=FrameTable(tuple(beside["forms"]), values("form", "frame").astype(np.int32)),
        link_after=beside["link_after"],
    )


def _column(file: Any, name: str) -> Any:  # noqa: ANN401 - pyarrow has no types
    return file.read([name])[name].combine_chunks()

"""A workload as Parquet: a row per operation, with typed argument columns; the rest is schema metadata.

| column | |
|---|---|
| `due_us` | due time, microseconds since the scenario starts |
| `kind` | `alloc`, `counters`, `meta`, `discard`, `claim`, or `frame` for a malformed frame |
| `number` | the number at the end of the slot's id |
| `slot` | the slot's id, if ids are kept |
| `site` | the slot's site, an index into those in the schema metadata, if there are several |
| `KIND.NAME` | an argument of a kind: a number, or an index into texts in the schema metadata |

A file of an earlier version has `NAME` for some of these, such as `credits` of both an alloc and a claim.

A workload is written in parts, so that memory does not grow with its length. Each part is in order of time; reading
merges the parts.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cpsim.errors import in_one_line
from cpsim.scenario.formats.arrow import ascending, places_among, places_of
from cpsim.scenario.values import ScenarioError
from cpsim.scenario.workload import ABSENT, KIND_NAMES, OPERATIONS, Arguments, Column, Int64, Workload
from cpsim.system import parquet

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy.typing as npt

KEY: Final = b"cpsim.workload"
NO_WORKLOAD: Final = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
"""What a table raises that is another's, or whose metadata is."""
EARLIER: Final = {"expire": "expire_min", "frame": "form"}
"""What an earlier version called a column, if not by its own name."""


def write(parts: Iterable[Workload], path: Path) -> int:
    """Write a workload from its parts; returns the number of operations.

    Raises:
        ScenarioError: its parts do not fit together.
        OSError: it cannot be written; then there is no file.
    """
    partial = path.with_name(f"{path.name}.partial")
    writer: Any = None
    beside: dict[str, Any] = {}
    count = 0
    try:
        for part in parts:
            table = operations_of(part)
            if writer is None:
                beside = beside_of(part)
                schema = table.schema.with_metadata({KEY: json.dumps(beside)})
                writer = pq.ParquetWriter(partial, schema, compression="zstd", use_dictionary=["kind"])
            elif beside != beside_of(part):
                raise ScenarioError(f"{part.name}: the parts of a workload have the same machines, users and texts")
            count += len(table)
            writer.write_table(table)
        if writer is None:
            raise ScenarioError(f"{path}: there is no operation to write")
        writer.close()
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def is_one(path: Path) -> bool:
    """Whether a Parquet file is a workload; if not, it is a trace."""
    try:
        with parquet.opened(path) as file:
            return KEY in (file.schema_arrow.metadata or {})
    except parquet.DamagedParquet:
        return False


def read(path: Path) -> Workload:
    """The workload in a file.

    Raises:
        ScenarioError: it is damaged.
        OSError: it cannot be read.
    """
    try:
        return from_table(parquet.read(path))
    except (parquet.DamagedParquet, ScenarioError) as error:
        raise ScenarioError(f"{path}: a damaged workload, write it anew with cpsim scenarios write: {error}") from error


def beside_of(part: Workload) -> dict[str, Any]:
    """The schema metadata: all of a workload but its operations."""
    return {
        "name": part.name,
        "seed": part.seed,
        "duration_us": part.duration_us,
        "machines": part.machines,
        "users": part.users,
        "owner": part.owner.tolist(),
        "texts": {
            f"{kind}.{name}": column.texts
            for kind, table in part.arguments.items()
            for name, column in table.columns.items()
            if column.texts is not None and column.texts is not part.machines
        },
        "faults": part.faults,
        "link_after": part.link_after,
        **({"sites": part.sites} if part.sites else {}),
        **({"notes": part.notes} if part.notes else {}),
    }


def to_table(workload: Workload) -> pa.Table:
    """A workload as a table, with all but its operations in the metadata."""
    return operations_of(workload).replace_schema_metadata({KEY: json.dumps(beside_of(workload))})


def operations_of(part: Workload) -> pa.Table:
    """The operations of a workload, or of a part of one, as a table."""
    columns: dict[str, pa.Array] = {
        "due_us": pa.array(part.due_us),
        "kind": pa.DictionaryArray.from_arrays(pa.array(part.kind.astype(np.int8)), pa.array(KIND_NAMES)),
        "number": pa.array(part.slot_numbers[part.slot]),
    }
    for code, (kind, table) in enumerate(part.arguments.items()):
        places = np.flatnonzero(part.kind == code)
        for name, column in table.columns.items():
            values = np.full(len(part), ABSENT)
            values[places] = column.values[part.row[places]]
            columns[f"{kind}.{name}"] = pa.array(values, mask=values == ABSENT)
    if part.slot_ids:
        columns["slot"] = pa.array([part.slot_ids[slot] for slot in part.slot.tolist()], pa.string())
    if part.sites:
        columns["site"] = pa.array(part.site[part.slot])
    return pa.table(columns)


def from_table(table: pa.Table) -> Workload:
    """The workload that a table holds.

    Raises:
        ScenarioError: it holds none.
    """
    try:
        return _from_table(table, _parsed(table.schema.metadata[KEY]))
    except (pa.ArrowException, *NO_WORKLOAD) as error:
        raise ScenarioError(in_one_line(error)) from error


@functools.lru_cache(maxsize=1)
def _parsed(beside: bytes) -> dict[str, Any]:
    """The schema metadata: partitions of a workload have the same, which may name many machines."""
    found: dict[str, Any] = json.loads(beside)
    return found


def _from_table(table: pa.Table, beside: dict[str, Any]) -> Workload:
    kind = places_of(table["kind"], KIND_NAMES).astype(np.uint8)
    due_us = _column(table, "due_us").to_numpy()
    order = ascending(due_us)
    sites = tuple(beside.get("sites", ()))
    number = _column(table, "number").to_numpy()
    keys = np.column_stack([_column(table, "site").to_numpy(), number]) if sites else number
    known, slot = np.unique(keys, axis=0, return_inverse=True) if sites else _distinct(number)
    row = np.empty(len(kind), dtype=np.int32)
    arguments = {}
    for code, name in enumerate(KIND_NAMES):
        places = np.flatnonzero(kind == code)
        row[places] = np.arange(len(places), dtype=np.int32)
        arguments[name] = _arguments(table, beside, name, places)
    return Workload(
        name=beside["name"],
        seed=beside["seed"],
        duration_us=beside["duration_us"],
        due_us=due_us[order],
        kind=kind[order],
        slot=slot.reshape(-1).astype(np.int32)[order],
        row=row[order],
        slot_numbers=known[:, 1] if sites else known,
        arguments=arguments,
        machines=tuple(beside["machines"]),
        users=tuple(beside["users"]),
        owner=np.array(beside["owner"], dtype=np.int32),
        faults=tuple(beside["faults"]),
        link_after=beside["link_after"],
        sites=sites,
        site=known[:, 0].astype(np.int32) if sites else np.empty(0, np.int32),
        notes=tuple(beside.get("notes", ())),
        slot_ids=_slot_ids(table, keys),
    )


def _distinct(numbers: Int64) -> tuple[Int64, Int64]:
    """The distinct numbers in ascending order, and the place of each number among them."""
    ordered = np.sort(numbers)
    known = ordered[np.diff(ordered, prepend=ordered[:1] - 1) != 0]
    return known, places_among(known, numbers)


def _slot_ids(table: pa.Table, keys: Int64) -> tuple[str, ...]:
    """The ids of slots in the order of their keys, if they are kept."""
    if "slot" not in table.column_names:
        return ()
    first = np.unique(keys, axis=0, return_index=True)[1]
    return tuple(_column(table, "slot").take(pa.array(first)).to_pylist())


def _arguments(table: pa.Table, beside: dict[str, Any], kind: str, places: npt.NDArray[np.intp]) -> Arguments:
    """The arguments of a kind, whose operations are in these places."""
    description, names = OPERATIONS[kind], table.column_names

    def values(name: str) -> Int64:
        known = [column for column in (f"{kind}.{name}", EARLIER.get(name, name)) if column in names]
        if not known and not len(places):
            return np.empty(0, np.int64)
        column = _column(table, known[0] if known else name)
        if column.null_count == len(column):
            return np.full(len(places), ABSENT)
        found: Int64 = np.asarray(pc.fill_null(column.take(pa.array(places)), ABSENT))
        return found

    def texts(name: str) -> tuple[str, ...]:
        if "texts" in beside:
            return tuple(beside["texts"].get(f"{kind}.{name}", ()))
        return tuple(beside.get(f"{EARLIER.get(name, name)}s", ()))

    fixed = {}
    for field in description.fields:
        column = values(field.name)
        if field.value is int:
            fixed[field.name] = Column(column)
        else:
            codes = column if np.any(column == ABSENT) else column.astype(np.int32)
            fixed[field.name] = Column(codes, texts(field.name))
    own = [name.removeprefix(f"{kind}.") for name in names if name.startswith(f"{kind}.")]
    free = [name for name in own if name not in fixed]
    if description.free is None:
        return Arguments(fixed)
    matrix = np.full((len(places), len(free)), ABSENT, order="F")
    for place, name in enumerate(free):
        matrix[:, place] = values(name)
    choices = None
    if description.free is str:
        earlier = beside.get("choices", ())
        choices = tuple(tuple(earlier[at]) if earlier else texts(name) for at, name in enumerate(free))
    return Arguments(fixed, tuple(free), matrix, choices)


def _column(table: pa.Table, name: str) -> pa.Array:
    column = table[name]
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()

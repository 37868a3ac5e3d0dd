"""Writes the files of a run's evidence, see `cpsim.evidence.files`."""

from __future__ import annotations

import functools
import itertools
import json
from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cpsim.errors import CpsimError, in_one_line
from cpsim.evidence import extensions
from cpsim.evidence.evidence import links_of
from cpsim.evidence.extensions import installed
from cpsim.evidence.files import (
    ACCOUNTS,
    EVIDENCE,
    FACTS,
    ID,
    INTEGERS,
    JOURNAL,
    JOURNAL_SCHEMA,
    LEDGER,
    OUTCOMES,
    PROJECT,
    ROWS,
    VERSION,
    VIRTUAL,
    WORKLOAD,
)
from cpsim.scenario.formats import columns
from cpsim.scenario.formats.arrow import Operations
from cpsim.scenario.formats.trace_table import OWNERS
from cpsim.system.mapped import give_back, let_go, taken
from cpsim.system.mapped_rows import pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from cpsim.evidence.evidence import Evidence
    from cpsim.evidence.extensions import Column


def writers(
    evidence: Evidence, columns_of_others: Mapping[str, Column] | None = None, rows: int = ROWS
) -> dict[str, Callable[[Path], object]]:
    """A function for each file that writes it to a path.

    Args:
        evidence: what to write.
        columns_of_others: additional columns of the journal; None for those that are installed.
        rows: in a row group, at most.

    Raises:
        CpsimError: a column that is installed cannot be loaded.
    """
    more = installed(extensions.COLUMNS) if columns_of_others is None else columns_of_others
    view = evidence.view
    slots, accounts = (None, None) if view is None else (view.slots, view.accounts)
    slots_of = functools.cache(evidence.slots_by_partition)
    files: dict[str, Callable[[Path], object]] = {
        EVIDENCE: lambda path: path.write_text(
            json.dumps(document_of(evidence, rows, slots_of()), indent=1) + "\n", encoding="utf-8"
        )
    }
    if accounts is not None:
        files[ACCOUNTS] = lambda path: pq.write_table(accounts, path, compression="zstd")
    if slots is not None:
        files[LEDGER] = lambda path: _write_ledger(map(slots_of(), range(evidence.count)), path, rows)
    files[WORKLOAD] = lambda path: write_workload(evidence, path, rows)
    files[JOURNAL] = lambda path: write_journal(evidence, path, rows, more)
    return files


def document_of(
    evidence: Evidence, rows: int = ROWS, slots_of: Callable[[int], pa.Table | None] = lambda _: None
) -> dict[str, Any]:
    """What `evidence.json` has, where `rows` rows are in a row group of the others at most."""
    seen = evidence.seen
    groups = {WORKLOAD: 0, JOURNAL: 0, LEDGER: 0}
    partitions = []
    planned, sent = evidence.operations_by_partition(), evidence.records_by_partition()
    for index, (ops, places) in enumerate(zip(planned, sent, strict=True)):
        first, slots = dict(groups), slots_of(index)
        counts = {WORKLOAD: len(ops), JOURNAL: len(places), LEDGER: 0 if slots is None else len(slots)}
        for name, count in counts.items():
            groups[name] += -(-count // rows)
        partitions.append({name: [first[name], groups[name]] for name in groups})
        let_go()
    return {
        "version": VERSION,
        **{name: getattr(evidence, name) for name in FACTS},
        "endpoint": str(evidence.endpoint),
        "answers": evidence.answers.tolist(),
        "readings": [asdict(reading) for reading in evidence.readings],
        "quirks": sorted(evidence.quirks),
        "before": evidence.before,
        "seen": None
        if seen is None
        else {
            "from_ns": seen.from_ns,
            "to_ns": seen.to_ns,
            "view": None if seen.view is None else seen.view.shown(),
            "outstanding": None if seen.outstanding is None else sorted(seen.outstanding),
            "meanwhile": seen.meanwhile,
        },
        "virtual": evidence.virtual_ns is not None,
        "partitions": partitions,
    }


def _write_ledger(partitions: Iterator[pa.Table], path: Path, rows: int) -> None:
    first = next(partitions)
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        for slots in itertools.chain([first], partitions):
            for piece in pieces(slots, rows):
                writer.write_table(piece)


def write_workload(evidence: Evidence, path: Path, rows: int = ROWS) -> None:
    """Write the workload, `rows` rows at a time."""
    workload = evidence.workload
    schema = columns.to_table(workload.of_operations(np.empty(0, np.int64))).schema.append(ID)
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["kind"]) as writer:
        for ops in evidence.operations_by_partition():
            part = workload.of_operations(ops).on_its_own()
            for start in range(0, len(ops), rows):
                ids = ops[start : start + rows]
                table = columns.operations_of(part.of_operations(np.arange(start, start + len(ids))))
                writer.write_table(table.append_column(ID, pa.array(ids)).cast(schema))


def write_journal(
    evidence: Evidence, path: Path, rows: int = ROWS, columns_of_others: Mapping[str, Column] = MappingProxyType({})
) -> None:
    """Write the journal, `rows` rows at a time.

    Raises:
        CpsimError: a column of others failed, or has another name, type or length than a column can have.
    """
    workload, records = evidence.workload, evidence.records
    schema = JOURNAL_SCHEMA.append(PROJECT) if workload.sites else JOURNAL_SCHEMA
    schema = schema if evidence.virtual_ns is None else schema.append(VIRTUAL)
    for name, column in columns_of_others.items():
        if name in schema.names:
            raise CpsimError(f"the journal has a column {name!r} of its own: name the other one differently")
        schema = schema.append(pa.field(name, _values(name, column, evidence, records[:0]).type))
    errors, outcomes, projects = (
        pa.array(texts, pa.string()) for texts in (evidence.errors, OUTCOMES, workload.projects)
    )
    project = np.array([workload.projects.index(name) for name in workload.sites], np.int8)
    if owners := links_of(workload):
        schema = schema.with_metadata({OWNERS: json.dumps(owners)})
    texts = [field.name for field in schema if pa.types.is_string(field.type) and field.name != "slot"]
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=["kind", "outcome", "error", "project", *texts],
        column_encoding=dict.fromkeys(INTEGERS, "DELTA_BINARY_PACKED"),
    ) as writer:
        for places, part in zip(evidence.records_by_partition(), evidence.parts(), strict=True):
            whole = taken(records, places)
            operations = Operations(part.workload, evidence.slot_prefix)
            for start in range(0, len(places), rows):
                chunk = part.records[start : start + rows]
                ops = chunk["op"]
                given = [
                    pa.array(whole["op"][start : start + rows].astype(np.int64)),
                    operations.slots(ops),
                    operations.kinds(ops),
                    pa.nulls(len(chunk), pa.int64()) if part.schedule_us is None else pa.array(part.schedule_us[ops]),
                    pa.array(chunk["sent_ns"] // 1000),
                    pa.array(chunk["answered_ns"] // 1000),
                    pa.array(part.workload.due_us[ops]),
                    pa.DictionaryArray.from_arrays(pa.array(chunk["outcome"].astype(np.int8)), outcomes),
                    pa.DictionaryArray.from_arrays(pa.array(chunk["error"].astype(np.int16)), errors),
                    *operations.arguments(ops),
                ]
                if workload.sites:
                    codes = pa.array(project[part.workload.site[part.workload.slot[ops]]])
                    given.append(pa.DictionaryArray.from_arrays(codes, projects))
                if part.virtual_ns is not None:
                    given.append(pa.array(part.virtual_ns[ops] // 1000))
                given += [
                    _values(name, column, evidence, whole[start : start + rows])
                    for name, column in columns_of_others.items()
                ]
                writer.write_table(pa.table(given, schema=schema))
            give_back()


def _values(name: str, column: Column, evidence: Evidence, records: npt.NDArray[np.void]) -> pa.Array:
    try:
        values = pa.array(column(evidence, records))
    except Exception as error:
        raise CpsimError(f"the column {name!r} failed: {in_one_line(error)}") from error
    if len(values) != len(records):
        raise CpsimError(f"the column {name!r} has {len(values):,} values for {len(records):,} records")
    return values

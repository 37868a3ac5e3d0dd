"""Writes the files of a run's evidence, see `cpsim.evidence.files`."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cpsim.errors import CpsimError, in_one_line
from cpsim.evidence import extensions
from cpsim.evidence.evidence import ROWS_AT_ONCE, links_of
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
    from collections.abc import Callable, Iterable, Iterator, Mapping
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
        files[LEDGER] = lambda path: _write_ledger(
            (piece for part in range(evidence.count) for piece in pieces(slots_of()(part), rows)), slots.schema, path
        )
    files[WORKLOAD] = lambda path: write_workload(evidence, path, rows)
    files[JOURNAL] = lambda path: write_journal(evidence, path, rows, more)
    return files


def document_of(
    evidence: Evidence,
    rows: int = ROWS,
    slots_of: Callable[[int], pa.Table | None] = lambda _: None,
    counts_of: Callable[[int], tuple[int, int]] | None = None,
) -> dict[str, Any]:
    """What `evidence.json` has.

    Args:
        evidence: of a run.
        rows: in a row group of the other files, at most.
        slots_of: for the rows of the ledger in a partition.
        counts_of: for the numbers of operations planned and sent in a partition; None if the evidence has them.
    """
    seen = evidence.seen
    groups = {WORKLOAD: 0, JOURNAL: 0, LEDGER: 0}
    partitions = []
    counts_of = counts_of or evidence.counts_in
    for index in range(evidence.count):
        first, slots = dict(groups), slots_of(index)
        planned, sent = counts_of(index)
        counts = {WORKLOAD: planned, JOURNAL: sent, LEDGER: 0 if slots is None else len(slots)}
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


def write_workload(evidence: Evidence, path: Path, rows: int = ROWS) -> None:
    """Write the workload, `rows` rows at a time."""
    write_rows(WORKLOAD, (each for part in range(evidence.count) for each in workload_rows(evidence, part, rows)), path)


def workload_rows(evidence: Evidence, part: int, rows: int = ROWS) -> Iterator[pa.Table]:
    """The rows of a partition of the workload, at most `rows` in each table; of none, an empty table."""
    workload, ops = evidence.workload, evidence.operations_in(part)
    schema = columns.to_table(workload.of_operations(np.empty(0, np.int64))).schema.append(ID)
    own = workload.of_operations(ops).on_its_own()
    if not len(ops):
        yield schema.empty_table()

    def made(where: slice) -> pa.Table:
        table = columns.operations_of(own.of_operations(np.arange(where.start, where.stop)))
        return table.append_column(ID, pa.array(_numbers(evidence, ops[where]))).cast(schema)

    yield from _row_groups(len(ops), rows, made)


def _numbers(evidence: Evidence, ops: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """The numbers of operations in the whole workload."""
    return ops.astype(np.int64) if evidence.numbers is None else taken(evidence.numbers, ops)


def write_journal(
    evidence: Evidence, path: Path, rows: int = ROWS, columns_of_others: Mapping[str, Column] = MappingProxyType({})
) -> None:
    """Write the journal, `rows` rows at a time.

    Raises:
        CpsimError: a column of others failed, or has another name, type or length than a column can have.
    """

    def all_rows() -> Iterator[pa.Table]:
        for part in range(evidence.count):
            yield from journal_rows(evidence, part, rows, columns_of_others)
            give_back()

    write_rows(JOURNAL, all_rows(), path)


def journal_rows(
    evidence: Evidence, part: int, rows: int = ROWS, columns_of_others: Mapping[str, Column] = MappingProxyType({})
) -> Iterator[pa.Table]:
    """The rows of a partition of the journal, at most `rows` in each table; of none, an empty table.

    Raises:
        CpsimError: a column of others failed, or has another name, type or length than a column can have.
    """
    workload, own = evidence.workload, evidence.part(part)
    whole = taken(evidence.records, evidence.records_in(part))
    schema = _journal_schema(evidence, columns_of_others)
    errors, outcomes, projects = (
        pa.array(texts, pa.string()) for texts in (evidence.errors, OUTCOMES, workload.projects)
    )
    project = np.array([workload.projects.index(name) for name in workload.sites], np.int8)
    operations = Operations(own.workload, evidence.slot_prefix)

    def made(where: slice) -> pa.Table:
        chunk = own.records[where]
        ops = chunk["op"]
        given = [
            pa.array(_numbers(evidence, whole["op"][where])),
            operations.slots(ops),
            operations.kinds(ops),
            pa.nulls(len(chunk), pa.int64()) if own.schedule_us is None else pa.array(own.schedule_us[ops]),
            pa.array(chunk["sent_ns"] // 1000),
            pa.array(chunk["answered_ns"] // 1000),
            pa.array(own.workload.due_us[ops]),
            pa.DictionaryArray.from_arrays(pa.array(chunk["outcome"].astype(np.int8)), outcomes),
            pa.DictionaryArray.from_arrays(pa.array(chunk["error"].astype(np.int16)), errors),
            *operations.arguments(ops),
        ]
        if workload.sites:
            codes = pa.array(project[own.workload.site[own.workload.slot[ops]]])
            given.append(pa.DictionaryArray.from_arrays(codes, projects))
        if own.virtual_ns is not None:
            given.append(pa.array(own.virtual_ns[ops] // 1000))
        given += [_values(name, column, evidence, whole[where]) for name, column in columns_of_others.items()]
        return pa.table(given, schema=schema)

    if not len(whole):
        yield made(slice(0, 0))
    yield from _row_groups(len(whole), rows, made)


def _row_groups(count: int, rows: int, made: Callable[[slice], pa.Table]) -> Iterator[pa.Table]:
    """Tables of at most `rows` rows of so many, made in smaller pieces, which take less memory."""
    for start in range(0, count, rows):
        stop = min(start + rows, count)
        yield pa.concat_tables(
            made(slice(first, min(first + ROWS_AT_ONCE, stop))) for first in range(start, stop, ROWS_AT_ONCE)
        )


def _journal_schema(evidence: Evidence, columns_of_others: Mapping[str, Column]) -> pa.Schema:
    schema = JOURNAL_SCHEMA.append(PROJECT) if evidence.workload.sites else JOURNAL_SCHEMA
    schema = schema if evidence.virtual_ns is None else schema.append(VIRTUAL)
    for name, column in columns_of_others.items():
        if name in schema.names:
            raise CpsimError(f"the journal has a column {name!r} of its own: name the other one differently")
        schema = schema.append(pa.field(name, _values(name, column, evidence, evidence.records[:0]).type))
    owners = links_of(evidence.workload)
    return schema.with_metadata({OWNERS: json.dumps(owners)}) if owners else schema


def write_rows(name: str, tables: Iterator[pa.Table], path: Path) -> None:
    """Write the rows of the file of a name, one table or more, each of which is a row group if it has rows."""
    first = next(tables)
    if name == WORKLOAD:
        options: dict[str, Any] = {"use_dictionary": ["kind"]}
    else:
        texts = [field.name for field in first.schema if pa.types.is_string(field.type) and field.name != "slot"]
        of_dictionary = ["kind", "outcome", "error", "project", *texts]
        options = {"use_dictionary": of_dictionary, "column_encoding": dict.fromkeys(INTEGERS, "DELTA_BINARY_PACKED")}
    with pq.ParquetWriter(path, first.schema, compression="zstd", **options) as writer:
        _add([first], writer)
        del first
        _add(tables, writer)


def _write_ledger(tables: Iterator[pa.Table], schema: pa.Schema, path: Path) -> None:
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        _add(tables, writer)


def _add(tables: Iterable[pa.Table], writer: pq.ParquetWriter) -> None:
    """Write each table that has rows as a row group; the variable of a loop would keep it while the next is made."""
    for _ in map(writer.write_table, filter(len, tables)):
        pass


def _values(name: str, column: Column, evidence: Evidence, records: npt.NDArray[np.void]) -> pa.Array:
    try:
        values = pa.array(column(evidence, records))
    except Exception as error:
        raise CpsimError(f"the column {name!r} failed: {in_one_line(error)}") from error
    if len(values) != len(records):
        raise CpsimError(f"the column {name!r} has {len(values):,} values for {len(records):,} records")
    return values

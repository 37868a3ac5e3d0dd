"""Run folders made without a replay: what a run would have left whose every slot is right, or wrong in one way.

    python tests/benchmarks/made.py FOLDER [--operations 1000000] [--variant right]
"""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cpdaemon.endpoint import UnixEndpoint
from cpsim.accounts.view import View
from cpsim.config.catalog import find_scenario
from cpsim.evidence import evidence as partitions
from cpsim.evidence.evidence import Evidence, Seen, links_of, tally
from cpsim.evidence.files import ACCOUNTS, EVIDENCE, JOURNAL, LEDGER, WORKLOAD
from cpsim.evidence.journal import RECORD_TYPE, OperationOutcome
from cpsim.evidence.writing import writers
from cpsim.scenario import load_workload
from cpsim.server.control.export import accounts_parquet, slots_parquet
from cpsim.server.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable

    from cpsim.scenario.workload import Workload

JOBS = 80_000
"""Jobs of the challenge that make one partition, of about 240,000 operations."""
GAP_US, TOOK_US = 50, 40
"""An operation is sent so long after the one before, and answered so long after it was sent."""
PREFIX, PROJECT = "made", "demo"


def make(folder: Path, operations: int, variant: str = "right") -> int:
    """Write a run folder of at least so many operations, in partitions that are alike; returns how many it has.

    Args:
        folder: the run folder, which there is not yet.
        operations: how many there are to be.
        variant: one of `VARIANTS`.
    """
    evidence = VARIANTS[variant](evidence_of())
    times = -(-operations // len(evidence.records))
    one = folder.with_name(f"{folder.name}.one")
    for path in (one, folder):
        path.mkdir(parents=True)
    partitions.PARTITION = len(evidence.records)
    for name, write in writers(evidence).items():
        write(one / name)
    repeat(one, folder, times)
    for path in one.iterdir():
        path.unlink()
    one.rmdir()
    return times * len(evidence.records)


def evidence_of(jobs: int = JOBS) -> Evidence:
    """What a replay of the challenge leaves of which every command was answered at once and applied."""
    workload = load_workload(find_scenario("challenge"), None, [f"arrivals.jobs={jobs}"])
    records = np.zeros(len(workload), RECORD_TYPE)
    records["op"] = np.arange(len(workload))
    records["sent_ns"] = records["op"].astype(np.int64) * GAP_US * 1000
    records["answered_ns"] = records["sent_ns"] + TOOK_US * 1000
    elapsed_ns = int(records["answered_ns"][-1])
    return Evidence(
        workload=workload,
        slot_prefix=PREFIX,
        fresh=True,
        embedded=True,
        endpoint=UnixEndpoint("creditapi.socket"),
        project=PROJECT,
        records=records,
        errors=["", "timed out"],
        answers=tally(workload.kind, records, ["", "timed out"]),
        elapsed_s=elapsed_ns / 1e9,
        seen=Seen(elapsed_ns, elapsed_ns + 1_000_000_000, applied(workload)),
    )


def applied(workload: Workload) -> View:
    """The accounts of a server that has applied a workload."""
    ledger = Ledger()
    for machine, user in links_of(workload).items():
        ledger.link(machine, user)
    for op, (kind, arguments) in enumerate(workload.calls(0, len(workload), PREFIX)):
        ledger.apply(PROJECT, kind, arguments, 1_767_225_600_000_000 + op * GAP_US)
    tables = (slots_parquet(ledger), accounts_parquet(ledger, ""))
    return View.of_tables(*(pq.ParquetFile(io.BytesIO(table)).read() for table in tables))


def _with_slots(evidence: Evidence, **columns: Callable[[pa.Table], Any]) -> Evidence:
    """The evidence with some columns of its slots made anew."""
    assert evidence.ledger is not None
    slots = evidence.ledger
    for name, made in columns.items():
        place = slots.schema.get_field_index(name)
        slots = slots.set_column(place, slots.schema.field(place), made(evidence.ledger))
    return evidence.with_slots(slots)


def _one_in_a_hundred_wrong(evidence: Evidence) -> Evidence:
    """Of these, one each: its claim is lost, is credited twice, its counters are lost, it went to another machine."""
    places = np.arange(len(evidence.ledger or ()))

    def changed(column: str, place: int, value: object) -> Callable[[pa.Table], Any]:
        return lambda slots: pc.if_else(pa.array(places % 400 == place), pa.scalar(value, slots[column].type), slots[column])

    return _with_slots(
        evidence,
        state=changed("state", 0, "allocated"),
        granted=changed("granted", 100, 2),
        counters=changed("counters", 200, []),
        machine=changed("machine", 300, "another"),
    )


def _every_claim_lost(evidence: Evidence) -> Evidence:
    return _with_slots(
        evidence,
        state=lambda slots: pc.if_else(pc.equal(slots["state"], "claimed"), "allocated", slots["state"]),
        **{name: lambda slots, name=name: pa.nulls(len(slots), slots[name].type) for name in ("machine", "granted")},
    )


def _every_credit_wrong(evidence: Evidence) -> Evidence:
    return _with_slots(evidence, granted=lambda slots: pc.add(slots["granted"], 1))


def _every_outcome_unknown(evidence: Evidence) -> Evidence:
    records = evidence.records.copy()
    records["outcome"], records["error"] = OperationOutcome.UNKNOWN, 1
    return replace(evidence, records=records, answers=tally(evidence.workload.kind, records, evidence.errors))


VARIANTS = {
    "right": lambda evidence: evidence,
    "one slot in a hundred wrong": _one_in_a_hundred_wrong,
    "every claim lost": _every_claim_lost,
    "every credit wrong": _every_credit_wrong,
    "every outcome unknown": _every_outcome_unknown,
}


def repeat(one: Path, folder: Path, times: int) -> None:
    """Write a run folder with the partition of another so many times, each with slots of its own."""
    document = json.loads((one / EVIDENCE).read_text(encoding="utf-8"))
    (part,) = document["partitions"]
    document["partitions"] = [
        {name: [place * end, (place + 1) * end] for name, (_, end) in part.items()} for place in range(times)
    ]
    document["answers"] = (np.array(document["answers"]) * times).tolist()
    (folder / EVIDENCE).write_text(json.dumps(document), encoding="utf-8")
    accounts = pq.ParquetFile(one / ACCOUNTS).read()
    for name in ("credits", "waiting_credits"):
        accounts = _replaced(accounts, name, pc.multiply(accounts[name], times))
    for name in ("counters", "waiting_counters"):
        maps = accounts[name].combine_chunks()
        many = pa.MapArray.from_arrays(maps.offsets, maps.keys, pc.multiply(maps.items, times), mask=maps.is_null())
        accounts = _replaced(accounts, name, many)
    pq.write_table(accounts, folder / ACCOUNTS, compression="zstd")
    for name in (WORKLOAD, JOURNAL, LEDGER):
        source = pq.ParquetFile(one / name)
        encodings = {"column_encoding": dict.fromkeys(_packed(source), "DELTA_BINARY_PACKED")} if name == JOURNAL else {}
        dictionaries = _with_dictionary(source)
        groups = [source.read_row_group(group) for group in range(source.num_row_groups)]
        with pq.ParquetWriter(
            folder / name, source.schema_arrow, compression="zstd", use_dictionary=dictionaries, **encodings
        ) as writer:
            for place in range(times):
                for group in groups:
                    writer.write_table(_renumbered(group, place, times))


def _renumbered(rows: pa.Table, place: int, times: int) -> pa.Table:
    """Rows with the slots and operations of one of so many partitions."""
    for name in ("id", "number"):
        if name in rows.column_names:
            rows = _replaced(rows, name, pc.add(pc.multiply(rows[name], times), place))
    if "slot" in rows.column_names:
        numbers = pc.utf8_slice_codeunits(rows["slot"], len(PREFIX) + 1).cast(pa.int64())
        numbers = pc.add(pc.multiply(numbers, times), place).cast(pa.string())
        rows = _replaced(rows, "slot", pc.binary_join_element_wise(PREFIX, numbers, "-"))
    return rows


def _replaced(table: pa.Table, name: str, values: pa.ChunkedArray | pa.Array) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place), values)


def _packed(file: pq.ParquetFile) -> list[str]:
    return _columns(file, lambda column: "DELTA_BINARY_PACKED" in column.encodings)


def _with_dictionary(file: pq.ParquetFile) -> list[str]:
    return _columns(file, lambda column: column.has_dictionary_page)


def _columns(file: pq.ParquetFile, chosen: Callable[[Any], bool]) -> list[str]:
    group = file.metadata.row_group(0)
    columns = (group.column(place) for place in range(group.num_columns))
    return [column.path_in_schema for column in columns if chosen(column)]


def main() -> None:
    """Make one."""
    parser = argparse.ArgumentParser(description="A run folder made without a replay.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--variant", choices=VARIANTS, default="right")
    given = parser.parse_args()
    print(f"{make(given.folder, given.operations, given.variant):,} operations")


if __name__ == "__main__":
    main()

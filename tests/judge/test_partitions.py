"""A run is judged and written partition by partition, of which one is in memory at a time."""

import weakref
from dataclasses import replace
from types import MappingProxyType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cpsim.accounts.view import CONTRACTS
from cpsim.config.catalog import find_scenario
from cpsim.evidence import evidence as evidence_module
from cpsim.evidence import files, writing
from cpsim.evidence.evidence import PARTITION, tally
from cpsim.judge.judge import CHECKERS, judge
from cpsim.replay.pace import AsFastAsPossible
from cpsim.run.pipeline import run
from cpsim.scenario import load_workload


@pytest.fixture(scope="module")
def evidence():
    """That of a run, in some partitions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence_module, "PARTITION", 60)
        yield run(
            lambda: load_workload(find_scenario("smoke"), None, ["arrivals.jobs=60"]),
            None,
            AsFastAsPossible(),
            in_flight=16,
            timeout_s=60.0,
            slot_prefix=None,
            on_stage=lambda _: None,
            on_progress=lambda *_: None,
        ).evidence


def test_a_partition_is_gone_when_the_next_is_made(evidence):
    made = []

    def partitions():
        parts = evidence.partitions()
        while (part := next(parts, None)) is not None:
            made.append(weakref.ref(part.records))
            yield part
            del part
            assert made[-1]() is None

    assert judge(partitions(), evidence.head(), CHECKERS).ruling == "valid"
    assert len(made) == evidence.count > 2


@pytest.mark.parametrize("name", [files.WORKLOAD, files.JOURNAL, files.LEDGER])
def test_a_partition_is_a_row_group_in_however_many_pieces_it_is_made(evidence, tmp_path, monkeypatch, name):
    assert files.ROWS > PARTITION > writing.ROWS_AT_ONCE

    def written():
        writing.writers(evidence)[name](tmp_path / name)
        with pq.ParquetFile(tmp_path / name) as file:
            assert file.num_row_groups == evidence.count > 2
            return file.read()

    whole = written()
    monkeypatch.setattr(writing, "ROWS_AT_ONCE", 7)
    assert written() == whole


class Looking:
    """A checker of somebody else's, which keeps the slots that it is shown."""

    meanings = MappingProxyType({})
    by_partition = True

    def __init__(self):
        self.shown = []

    def check(self, evidence, verdict):
        self.shown.append(evidence.ledger)


@pytest.mark.parametrize("rows", [files.ROWS, 7])
def test_a_partition_of_a_folder_is_judged_in_however_many_row_groups_it_is(evidence, tmp_path, rows):
    for name, write in writing.writers(evidence, rows=rows).items():
        write(tmp_path / name)
    folder, looking = files.EvidenceFolder(tmp_path), Looking()
    verdict = judge(folder.partitions(), folder.head(), [*CHECKERS, looking])
    assert verdict.document() == judge(evidence.partitions(), evidence.head(), [*CHECKERS, Looking()]).document()
    shown = pa.concat_tables(looking.shown)
    assert shown.schema == CONTRACTS["slots"].schema  # texts, as a view has them
    assert shown.sort_by("slot").to_pylist() == evidence.ledger.sort_by("slot").to_pylist()


def test_some_slots_in_uneven_steps_are_judged_from_a_folder(evidence, tmp_path):
    chosen = [0, 1, 3, 6, 7, 30]
    numbers = {f"{evidence.slot_prefix}-{evidence.workload.slot_numbers[slot]}" for slot in chosen}
    some = evidence.of_slots(chosen)
    some = replace(some, answers=tally(some.workload.kind, some.records, some.errors))
    rows = pa.array([slot in numbers for slot in some.ledger["slot"].to_pylist()])
    some = some.with_slots(some.ledger.filter(rows))
    for name, write in writing.writers(some).items():
        write(tmp_path / name)
    folder = files.EvidenceFolder(tmp_path)
    verdict = judge(folder.partitions(), folder.head(), [each for each in CHECKERS if each.by_partition])
    assert verdict.checked["slots"] == len(chosen)
    assert not verdict.counts

"""A run is judged and written partition by partition, of which one is in memory at a time."""

import weakref

import pyarrow.parquet as pq
import pytest

from cpsim.config.catalog import find_scenario
from cpsim.evidence import evidence as evidence_module
from cpsim.evidence import files, writing
from cpsim.evidence.evidence import PARTITION
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

"""A share of a workload that is made as a share has the operations that the whole has of it."""

import numpy as np
import pytest

from cpsim.config.catalog import find_scenario
from cpsim.scenario import load_share, load_workload
from cpsim.scenario.formats import columns

BACK_OFF = "volunteers.black_holes={machines=0.1,jobs=0.5,back_off=true,run_time={model='gamma',scale='10s',shape=2}}"
SITES = "site=[{project='a',share=2},{project='b'},{project='a'}]"


def made(scenario, settings, index, count, seed=3):
    return load_share(find_scenario(scenario), seed, ("arrivals.jobs=80", *settings), index, count)


@pytest.mark.parametrize("jobs", [1 << 18, 33])
@pytest.mark.parametrize(
    ("scenario", "settings"),
    [("misbehaviour", []), ("challenge", []), ("misbehaviour", [BACK_OFF]), ("misbehaviour", [SITES])],
)
def test_shares_are_the_whole_divided_at_any_chunk_size_and_number_of_workers(
    in_files, monkeypatch, scenario, settings, jobs
):
    whole = load_workload(find_scenario(scenario), 3, ("arrivals.jobs=80", *settings))
    monkeypatch.setattr("cpsim.scenario.generation.JOBS_DRAWN", jobs)
    in_files()
    for count in (1, 2, 3, 7):
        shares = [made(scenario, settings, index, count) for index in range(count)]
        assert sorted(np.concatenate([share.ops for share in shares]).tolist()) == list(range(len(whole)))
        assert {share.operations for share in shares} == {len(whole)}
        assert len({share.mark for share in shares}) == 1
        for index, share in enumerate(shares):
            own = whole.of_operations(share.ops)
            assert set((own.slot_numbers[own.slot] % count).tolist()) <= {index}
            found, expected = (columns.operations_of(each) for each in (share.workload, own))
            assert found.equals(expected)
            assert columns.beside_of(share.workload)["texts"] == columns.beside_of(whole)["texts"]


def test_a_share_keeps_no_slots_and_arguments_of_others():
    whole, share = (made("misbehaviour", [], 1, count).workload for count in (1, 4))
    own = np.unique(share.slot)
    assert len(own) == len(share.slot_numbers) < len(whole.slot_numbers) / 3
    for code, (kind, table) in enumerate(share.arguments.items()):
        rows = np.count_nonzero(share.kind == code)
        assert {len(column.values) for column in table.columns.values()} <= {rows}, kind


@pytest.mark.parametrize(
    ("settings", "seed"),
    [([], 4), (["population.users=9"], 3), (["counters.claim={'job/events'=2}"], 3), (["name='other'"], 3)],
)
def test_shares_of_different_workloads_have_different_marks(settings, seed):
    assert made("challenge", settings, 0, 2, seed).mark != made("challenge", [], 0, 2).mark

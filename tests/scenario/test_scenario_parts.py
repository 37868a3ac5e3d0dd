"""A workload made part by part: the same, in flat memory, and kept as Parquet."""

import hashlib
import subprocess
import sys
from collections import defaultdict
from functools import cache

import numpy as np
import pytest

from cpsim.config import catalog
from cpsim.scenario import ScenarioError, generate, load_workload, source
from cpsim.scenario.formats import columns
from cpsim.scenario.generation import parts
from cpsim.scenario.streams import Draw, uniforms

EVERYTHING = ["misbehaviour={" + ", ".join(
    f"{name}=0.1"
    for name in (
        *("claim_twice", "claim_by_two", "claim_before_alloc", "claim_after_discard", "claim_after_expiry"),
        *("alloc_twice", "counters_after_claim", "discard_after_claim", "unknown_slot", "forged"),
        *("malformed", "oversized"),
    )
) + "}"]  # fmt: skip
ARRIVALS = {
    "constant": "{model='constant', jobs=500}",
    "poisson": "{model='poisson', jobs=500}",
    "diurnal": "{model='diurnal', jobs=500, peak_hour=12, amplitude=0.9}",
    "weekly": "{model='weekly', jobs=500, days=[1,2,3,4,5,0,0]}",
    "bursts": "{model='bursts', jobs=500, bursts=4, length='1h', share=0.6}",
    "lublin": "{model='lublin', jobs=500}",
    "phases": "{model='phases', jobs=500, phases=[{name='up', length='1h', rate=0, to=3}]}",
}


def scenario(name="smoke", settings=()):
    return source.load(catalog.find_scenario(name), settings)


def by_slot(workloads):
    """What happens to each slot, and when, in order."""
    found = defaultdict(list)
    for workload in workloads:
        for due_us, (kind, arguments) in zip(
            workload.due_us.tolist(), workload.calls(0, len(workload), "x"), strict=True
        ):
            found[arguments["slot"]].append((due_us, kind, arguments))
    return dict(found)


def busy(arrivals):
    return scenario(settings=[f"arrivals={arrivals}", *EVERYTHING])


@cache
def whole(arrivals):
    return by_slot([generate(busy(arrivals), 3)])


@pytest.mark.parametrize("jobs", [1, 7, 100, 499, 500, 1000])
@pytest.mark.parametrize("arrivals", ARRIVALS.values(), ids=ARRIVALS)
def test_parts_are_what_they_are_in_the_whole(arrivals, jobs):
    if jobs < 10:  # which makes many parts
        arrivals = arrivals.replace("500", str(20 * jobs + 20))
    assert by_slot(parts(busy(arrivals), 3, jobs)) == whole(arrivals)


@pytest.mark.parametrize("name", [name for name in catalog.scenario_names() if name != "two-projects"])
def test_each_of_the_library_comes_in_parts(name):
    found = scenario(name, ["arrivals.jobs=600", "population.machines=50"])
    assert by_slot(parts(found, None, 250)) == by_slot([generate(found)])


def test_any_part_can_be_made_alone():
    found = scenario(settings=["arrivals.jobs=1000"])
    part = generate(found, 1, (400, 410))
    assert part.slot_numbers.tolist() == list(range(401, 411))
    assert by_slot([part]).items() <= by_slot([generate(found, 1)]).items()


def test_numbers_in_order_are_those_of_the_whole():
    whole = np.sort(uniforms(5, "x", 3_000_000))
    part = Draw(5, 1_000, 1_234_567, 3_000_000)
    assert np.array_equal(part.in_order("x"), whole[1_234_567:1_235_567])
    assert part.chosen("x", 0.25)[1] == np.count_nonzero(whole < 0.25)


def test_a_scenario_of_several_sites_is_made_whole():
    found = scenario("two-projects")
    assert [len(part.slot_numbers) for part in parts(found, None, 100)] == [1_500]
    with pytest.raises(ScenarioError, match="two-projects: a scenario of several sites cannot be generated in parts"):
        generate(found, None, (0, 10))


# As Parquet


@pytest.fixture
def cpsim(cpsim, monkeypatch, tmp_path):
    """The same, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return cpsim


@pytest.mark.parametrize("jobs", [500, 70])
def test_what_was_written_is_read(tmp_path, jobs):
    found = scenario(settings=EVERYTHING)
    whole = generate(found)
    assert columns.write(parts(found, None, jobs), tmp_path / "x.parquet") == len(whole)
    read = load_workload(tmp_path / "x.parquet")
    assert by_slot([read]) == by_slot([whole])
    assert (np.diff(read.due_us) >= 0).all()
    for name in ("name", "seed", "duration_us", "machines", "users", "faults", "link_after"):
        assert getattr(read, name) == getattr(whole, name)
    assert np.array_equal(read.owner, whole.owner)


@pytest.mark.thorough
def test_the_same_seed_gives_the_same_bytes_in_any_process(tmp_path):
    files = [tmp_path / f"{number}.parquet" for number in range(2)]
    for hashing, file in enumerate(files):
        subprocess.run(
            [sys.executable, "-m", "cpsim", "scenarios", "write", "smoke", "--seed", "5", "-o", file],
            env={"PYTHONHASHSEED": str(hashing)},
            check=True,
            timeout=280,
        )
    first, second = (hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    assert first == second


@pytest.mark.thorough
def test_the_command_writes_what_run_takes(cpsim):
    assert cpsim("scenarios", "write", "smoke", "-o", "smoke.parquet") == (
        0,
        "1,968 operations in smoke.parquet\n",
        "",
    )
    status, out, _ = cpsim("run", "smoke.parquet", "--output", "run")
    assert status == 0, out
    assert "500 slots" in out


def test_mistakes_are_told(cpsim, tmp_path):
    (tmp_path / "there.parquet").touch()
    for output, wrong, told in (
        ("x.csv", 64, "name it .parquet"),
        ("there.parquet", 2, "is there already"),
        ("there.parquet/x.parquet", 2, "File exists"),
    ):
        status, _, err = cpsim("scenarios", "write", "smoke", "-o", output)
        assert status == wrong
        assert told in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there.parquet"]
    cpsim("scenarios", "write", "smoke", "-o", "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    status, _, err = cpsim("run", "cut.parquet", "--output", "run")
    assert status == 2
    assert "cut.parquet" in err


# The same everywhere, in flat memory

PINNED = "474a34793d43450368d19bbaaf52973ae8ee210f6952be047eeccac49ca4816c"
PEAK = """
import resource, sys
from cpsim.config import catalog
from cpsim.scenario import source
from cpsim.scenario.generation import parts
found = source.load(catalog.find_scenario("lhc-scale"), [f"arrivals.jobs={sys.argv[1]}"])
print(sum(map(len, parts(found, 1, 50_000))), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def numbers(workloads):
    """A digest of what happens to each slot, and when, but for the names that Faker draws."""
    operations = sorted(
        (slot, at, due_us, kind, str([value for name, value in arguments.items() if name != "machine"]))
        for slot, steps in by_slot(workloads).items()
        for at, (due_us, kind, arguments) in enumerate(steps)
    )
    return hashlib.sha256(repr(operations).encode()).hexdigest()


@pytest.mark.parametrize("jobs", [3_000, 1_000, 401])
def test_the_field_is_the_same_on_every_machine_in_any_number_of_parts(jobs):
    assert numbers(parts(scenario("lhc-scale", ["arrivals.jobs=3000"]), 1, jobs)) == PINNED


@pytest.mark.thorough
def test_memory_does_not_grow_with_length():
    peaks = []
    for jobs in (200_000, 800_000):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(jobs)], capture_output=True, text=True, check=True, timeout=280
        )
        operations, peak = map(int, done.stdout.split())
        assert operations > 2.5 * jobs
        peaks.append(peak)
    assert peaks[1] < 1.15 * peaks[0], peaks

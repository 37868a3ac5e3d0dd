import dataclasses
from collections import defaultdict
from importlib.metadata import version

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpdaemon import commands
from cpsim.config import catalog, tables
from cpsim.scenario import generate, load_workload, schema
from cpsim.scenario.models import identities
from cpsim.scenario.workload import ABSENT, KIND_CODES, Arguments, Column, constant

NUMBERS_DIGEST = "ec8cbf0abdac7ce76b109fc872eda8922f854048962c83625325d76d6ecfbdf1"
MISBEHAVING_DIGEST = "77b6db7d70b13934501a989f5349596e157ca5c6f7bac068a745a9a7227bd36b"
DIGEST, FAKER = "528e4ca691381dcced35293a21072da1317594c845b0d09972c285c752f8146b", "40.63.0"


@pytest.fixture(scope="module")
def smoke():
    return load_workload(catalog.find_scenario("smoke"), 1)


def without_faker(workload):
    meta = dataclasses.replace(workload.arguments["meta"], choices=())
    arguments = {**workload.arguments, "meta": meta}
    return dataclasses.replace(workload, machines=(), users=(), arguments=arguments)


def test_smoke_is_the_same_everywhere(smoke):
    assert without_faker(smoke).digest() == NUMBERS_DIGEST


@pytest.mark.skipif(version("faker") != FAKER, reason="another release of Faker may draw other names")
def test_smoke_is_the_same_everywhere_with_its_names(smoke):
    assert smoke.digest() == DIGEST


def test_the_seed_decides():
    path = catalog.find_scenario("smoke")
    assert load_workload(path).digest() == load_workload(path, 1).digest()
    assert load_workload(path, 2).digest() != load_workload(path, 1).digest()
    assert without_faker(load_workload(path, 2)).digest() != NUMBERS_DIGEST


def test_the_digest_covers_everything(smoke):
    assert dataclasses.replace(smoke, name="x").digest() != smoke.digest()
    assert dataclasses.replace(smoke, owner=np.roll(smoke.owner, 1)).digest() != smoke.digest()
    assert dataclasses.replace(smoke, users=(*smoke.users[:-1], "x")).digest() != smoke.digest()


def test_smoke_exercises_everything(smoke):
    calls = list(smoke.calls(0, len(smoke), "s"))
    assert {kind for kind, _ in calls} == set(commands.KINDS)
    asked = {arguments["credits"] for kind, arguments in calls if kind == "claim"}
    assert min(asked) < 5
    assert max(asked) > 20
    assert {arguments["reason"] for kind, arguments in calls if kind == "discard"} == {"expired", "unknown-vmid"}
    assert set(smoke.owner.tolist()) > {-1}


def build(**changes):
    tree = {
        "name": "test",
        "description": "test",
        "duration": "1h",
        "population": {"machines": 10, "users": 5, "linked": 0.5},
        "arrivals": {"model": "poisson", "jobs": 50},
        "run_time": {"model": "weibull", "scale": "1min", "shape": 0.7},
    }
    return tables.convert(tree | changes, schema.Scenario)


def test_streams_do_not_shift_each_other():
    plain = generate(build())
    richer = generate(
        build(
            counters={"claim": {"job/events": {"model": "poisson", "mean": 10}}},
            metadata={"site": ["a", "b"]},
            credits={"policy": "none", "claim": {"model": "uniform", "low": 1, "high": 9}},
            population={"machines": 10, "users": 50, "linked": 0.9},
        )
    )
    for kind in ("alloc", "claim"):
        code = commands.KINDS.index(kind)
        assert np.array_equal(plain.due_us[plain.kind == code], richer.due_us[richer.kind == code])
    assert np.array_equal(plain.arguments["claim"]["machine"].values, richer.arguments["claim"]["machine"].values)
    assert plain.machines == richer.machines
    more = generate(build(counters={"claim": {"new": {"model": "poisson", "mean": 3},
                                              "job/events": {"model": "poisson", "mean": 10}}}))  # fmt: skip
    assert np.array_equal(
        more.arguments["counters"]["job/events"].values, richer.arguments["counters"]["job/events"].values
    )
    assert tuple(more.arguments["counters"].columns) == ("new", "job/events")


def test_what_should_not_be_done_is_the_same_everywhere():
    names = (
        *("claim_twice", "claim_by_two", "claim_before_alloc", "alloc_twice", "counters_after_claim", "unknown_slot"),
        *("discard_after_claim", "forged", "malformed", "oversized", "wrong_credentials"),
    )
    made = generate(build(misbehaviour=dict.fromkeys(names, 0.2)))
    assert dataclasses.replace(made, machines=(), users=()).digest() == MISBEHAVING_DIGEST


def test_a_workload_has_the_arguments_that_the_protocol_has(smoke):
    for kind in smoke.arguments:
        less = {name: table for name, table in smoke.arguments.items() if name != kind}
        if not np.any(smoke.kind == KIND_CODES[kind]):  # it may be left out
            assert dataclasses.replace(smoke, arguments=less).digest() == smoke.digest()
    with pytest.raises(ValueError, match="no operation 'fly': expected some of alloc"):
        dataclasses.replace(smoke, arguments={"fly": Arguments()})
    with pytest.raises(ValueError, match="claim: arguments credits: expected machine, credits"):
        dataclasses.replace(smoke, arguments={"claim": Arguments({"credits": Column(constant(1, 3))})})
    assert smoke.arguments["claim"]["machine"].texts is smoke.machines


def test_credits_policies():
    fixed = generate(build(credits={"policy": "fixed", "credits": 7}))
    assert set(fixed.arguments["alloc"]["credits"].values) == {7}
    assert set(fixed.arguments["claim"]["credits"].values) == {ABSENT}
    least = generate(build(credits={"policy": "range", "min": 3, "claim": 1}))
    assert next(least.calls(0, 1, "p")) == ("alloc", {"slot": "p-1", "min": 3})
    assert set(least.arguments["claim"]["credits"].values) == {1}


def test_run_time_counter_is_the_time_between():
    workload = generate(build(counters={"claim": {"s": {"model": "run_time"}}}))
    due = defaultdict(dict)
    for (kind, arguments), due_us in zip(workload.calls(0, 10**6, "p"), workload.due_us.tolist(), strict=True):
        due[arguments["slot"]][kind] = due_us
        if kind == "counters":
            due[arguments["slot"]]["s"] = arguments["s"]
    assert all(slot["s"] == (slot["claim"] - slot["alloc"]) // 10**6 for slot in due.values())


def test_linked_is_exact():
    assert np.count_nonzero(generate(build()).owner >= 0) == 5
    anonymous = generate(build(population={"machines": 10, "users": 0, "linked": 0}))
    assert set(anonymous.owner) == {-1}
    assert anonymous.users == ()


@pytest.mark.thorough
def test_a_million_ids_are_unique():
    machines = identities.machines(1, 1_000_000)
    assert len(set(machines)) == 1_000_000
    assert len(set(identities.users(1, 30_000))) == 30_000


def test_faker_texts_fit_a_frame():
    for provider in ("address", "text", "profile", "sentence"):
        for text in identities.choices(1, "x", provider):
            commands.Meta("slot", {"x": text})


def times(least, most):
    return st.integers(least, most).map(lambda seconds: f"{seconds}s")


numbers = st.one_of(
    st.integers(0, 100),
    st.integers(0, 9).map(lambda low: {"model": "uniform", "low": low, "high": 2 * low}),
    st.floats(0.1, 1e4).map(lambda mean: {"model": "poisson", "mean": mean}),
    st.just({"model": "run_time"}),
)  # fmt: skip
names = st.sampled_from(["job/events", "job/cpuusage", "smashed/partons", "ü"])
scenarios = st.fixed_dictionaries(
    {
        "duration": times(1, 10**6),
        "population": st.fixed_dictionaries(
            {"machines": st.integers(1, 50), "users": st.integers(1, 50), "linked": st.floats(0, 1)}
        ),
        "arrivals": st.integers(1, 300).flatmap(
            lambda jobs: st.sampled_from(
                [
                    {"model": "constant", "jobs": jobs},
                    {"model": "poisson", "jobs": jobs},
                    {"model": "diurnal", "jobs": jobs, "peak_hour": 12, "amplitude": 1},
                ]
            )
        ),
        "run_time": st.one_of(
            times(1, 1000).map(lambda time: {"model": "constant", "value": time}),
            st.floats(0, 10).map(lambda sigma: {"model": "lognormal", "median": "1h", "sigma": sigma}),
            st.floats(0.1, 10).map(lambda shape: {"model": "weibull", "scale": "1h", "shape": shape, "max": "2h"}),
        ),
        "outcome": st.tuples(st.integers(1, 10), st.integers(0, 10), st.integers(0, 10)).map(
            lambda parts: dict(
                zip(("claim", "never", "discard"),
                    (parts[0] / sum(parts), parts[1] / sum(parts), {"late": parts[2] / sum(parts)}), strict=True)
            )
        ),
        "credits": st.one_of(
            st.just({"policy": "fixed", "credits": 3}),
            numbers.map(lambda claim: {"policy": "range", "min": 2, "max": 8, "claim": claim}),
            numbers.map(lambda claim: {"policy": "none", "claim": claim}),
        ),
        "counters": st.fixed_dictionaries(
            {}, optional={key: st.dictionaries(names, numbers, max_size=3) for key in ("claim", "discard")}
        ),
        "metadata": st.dictionaries(names, st.sampled_from([["a", "b c"], {"faker": "city"}]), max_size=2),
    }
)  # fmt: skip
COMMANDS = {"alloc": commands.Alloc, "claim": commands.Claim, "discard": commands.Discard}


def command(kind, arguments):
    if kind in COMMANDS:
        return COMMANDS[kind](**arguments)
    values = {name: value for name, value in arguments.items() if name != "slot"}
    return {"meta": commands.Meta, "counters": commands.Counters}[kind](arguments["slot"], values)


@settings(max_examples=60, deadline=None)
@given(tree=scenarios, seed=st.integers(0, 2**63 - 1))
def test_any_scenario_gives_a_sound_workload(tree, seed):
    scenario = build(**tree)
    workload = generate(scenario, seed)
    assert generate(scenario, seed).digest() == workload.digest()
    assert np.all(np.diff(workload.due_us) >= 0)
    histories = defaultdict(list)
    for kind, arguments in workload.calls(0, len(workload), "p"):
        histories[command(kind, arguments).slot].append(kind)
    jobs = scenario.arrivals.jobs
    order = ["alloc", "meta", "counters", "discard", "claim"]
    for history in histories.values():
        assert history[0] == "alloc"
        assert sorted(set(history), key=order.index) == history
        assert ("meta" in history) == bool(scenario.metadata)
        settled = history[-1] if history[-1] in {"claim", "discard"} else None
        assert not {"claim", "discard"} <= set(history)
        assert ("counters" in history) == bool(settled and getattr(scenario.counters, settled))
    assert len(histories) == jobs
    share = np.count_nonzero(workload.kind == commands.KINDS.index("claim")) / jobs
    assert abs(share - scenario.outcome.claim) <= 6 * (0.25 / jobs) ** 0.5
    assert len(set(workload.machines)) == scenario.population.machines
    assert len(set(workload.users)) == scenario.population.users
    for identity in (*workload.machines, *workload.users):
        assert identity.isascii()
        commands.Claim("slot", identity)

"""What a scenario is made of beside its own file: what it extends, what is set, and files, programs and traces."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cpsim.protocol import arguments
from cpsim.replay.pace import AsFastAsPossible
from cpsim.replay.payloads import frames
from cpsim.run import folder as run_folder
from cpsim.run.pipeline import run as perform
from cpsim.run.summary import summarise
from cpsim.scenario import ScenarioError, load_workload, source

BASE = """
description = "base"
duration = "1h"
population = { machines = 3, users = 2 }
arrivals = { model = "constant", jobs = 10 }
run_time = { model = "constant", value = "1min" }
"""


@pytest.fixture
def write(tmp_path):
    (tmp_path / "base.toml").write_text(BASE, encoding="utf-8")

    def write(name, text):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_scenario_extends_another(write):
    path = write(
        "mine.toml", 'extends = "base.toml"\npopulation.machines = 7\narrivals = { model = "poisson", jobs = 5 }'
    )
    scenario = source.load(path)
    assert (scenario.name, scenario.population.machines, scenario.population.users) == ("mine", 7, 2)
    assert scenario.arrivals.jobs == 5
    assert source.load(write("more.toml", 'extends = "mine.toml"\nseed = 9')).population.machines == 7


def test_a_scenario_extends_one_that_comes_along(write):
    assert source.load(write("mine.toml", 'extends = "challenge"\nseed = 3')).arrivals.jobs == 16_000


def test_another_model_takes_nothing_over(write):
    path = write("mine.toml", 'extends = "base.toml"\nrun_time = { model = "weibull", scale = "1h" }')
    with pytest.raises(ScenarioError, match=r"run_time\.shape is missing"):
        source.load(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("extends = 3", "extends = 3: expected the name or the path"),
        ('extends = "bas"', 'extends: no scenario "bas"'),
        ('extends = "mine.toml"', "extends: mine.toml -> mine.toml has no end"),
        ('extends = "log.swf"', r'extends = "log.swf": expected a scenario \(.toml\)'),
    ],
)
def test_what_cannot_be_extended(write, line, message):
    write("log.swf", "")
    with pytest.raises(ScenarioError, match=f"mine.toml: {message}"):
        source.load(write("mine.toml", line))


def test_keys_are_set(write):
    path = write("mine.toml", BASE)
    settings = ["population.machines=50", "duration=2h", 'counters.claim."job/events"=5', "arrivals.jobs = 4"]
    scenario = source.load(path, settings)
    assert (scenario.population.machines, scenario.duration, scenario.arrivals.jobs) == (50, 7_200_000_000, 4)
    assert scenario.counters.claim == {"job/events": 5}


@pytest.mark.parametrize(
    ("text", "message"), [(f"seed = {'[' * 5_000}", "nested too deeply"), (f"seed = {'9' * 10_000}", "not TOML")]
)
def test_hostile_toml(write, text, message):
    with pytest.raises(ScenarioError, match=f"mine.toml: .*{message}"):
        source.load(write("mine.toml", text))
    with pytest.raises(ScenarioError, match=r"--set seed = .*: expected"):
        source.load(write("mine.toml", BASE), [text])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("machines", "--set machines: expected KEY=VALUE, such as population.machines=50000"),
        ("=3", "--set =3: expected KEY=VALUE"),
        ("population.machine=3", "with --set population.machine=3: population.machine: unknown key: .* did you mean"),
        ("population.machines=many", 'population.machines = "many": expected a whole number'),
    ],
)
def test_what_cannot_be_set(write, setting, message):
    with pytest.raises(ScenarioError, match=message):
        source.load(write("mine.toml", BASE), [setting])


def test_run_times_from_a_file(write):
    write("times.txt", "# measured\n60\n2min  # slow\n\n1.5 h\n")
    path = write("mine.toml", 'extends = "base.toml"\nrun_time = { model = "empirical", file = "times.txt" }')
    scenario = source.load(path)
    assert scenario.run_time.values == [60_000_000, 120_000_000, 5_400_000_000]


@pytest.mark.parametrize(
    ("text", "message"), [("60\nsoon\n", "times.txt, line 2: 'soon'"), ("0", "line 1: '0'"), ("", "has no time")]
)
def test_a_mistake_in_a_file_of_run_times(write, text, message):
    write("times.txt", text)
    path = write("mine.toml", 'extends = "base.toml"\nrun_time = { model = "empirical", file = "times.txt" }')
    with pytest.raises(ScenarioError, match=message):
        source.load(path)


PROGRAM = """
import random
from cpdaemon import Alloc, Claim, Counters, Meta

def commands(seed):
    draw = random.Random(seed)
    for job in range(5):
        yield job, Alloc(f"job-{job}", min=2)
        yield job + 1.5, Claim(f"job-{job}", "m", draw.randint(1, 9))
    yield 2, Counters("job-1", {"a": 3})
    yield 2, Meta("job-2", {"b": "x"})
"""


def test_a_program_makes_a_workload(write):
    path = write("mine.py", PROGRAM)
    made = load_workload(path, 3)
    assert made.digest() == load_workload(path, 3).digest() != load_workload(path, 4).digest()
    assert len(made) == 12
    assert np.all(np.diff(made.due_us) >= 0)
    calls = list(made.calls(0, 12, "p"))
    assert calls[0] == ("alloc", {"slot": "p-1", "min": 2})
    assert ("counters", {"slot": "p-2", "a": 3}) in calls
    assert not (path.parent / "__pycache__").exists()


def test_a_scenario_names_a_program(write):
    write("mine.py", PROGRAM)
    path = write("site.toml", 'description = "mine"\ngenerator = "mine.py"\nseed = 4\nfaults = ["late=0.1"]')
    made = load_workload(path)
    assert (made.name, made.seed, made.faults) == ("site", 4, ("late=0.1",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "no function workload or commands: expected a function"),
        ("def commands(seed):\n    raise KeyError('no')", "mine.py, line 2: commands: KeyError: 'no'"),
        ("def commands(seed):\n    return [1]", r"commands yielded 1 as number 1: expected \(seconds, command\)"),
        ("def commands(seed):\n    return []", r"commands\(1\) yielded nothing"),
        ("def commands(seed):\n    return 5", "commands: TypeError"),
        ("def workload(seed):\n    return 5", r"workload\(1\) returned 5: expected a Workload"),
        ("import nothing_of_that_name", "mine.py, line 1: ModuleNotFoundError"),
        ("def (", "mine.py, line 1: SyntaxError"),
    ],
)
def test_what_is_wrong_with_a_program(write, text, message):
    with pytest.raises(ScenarioError, match=message):
        load_workload(write("mine.py", text))


TRACE = """time_s,kind,slot,arguments,remark
10,alloc,a,"credits=5,expire=60",
12.5,claim,a,"machine=m,credits=3",late
11,alloc,b,,
11,frame,,"claim,slot=b",
12,discard,b,reason=bad,
"""


def test_a_trace_is_replayed(write):
    made = load_workload(write("mine.csv", TRACE))
    assert made.due_us.tolist() == [0, 1_000_000, 1_000_000, 2_000_000, 2_500_000]
    assert list(made.calls(0, 5, "t")) == [
        ("alloc", {"slot": "t-1", "credits": 5, "expire": 60}),
        ("alloc", {"slot": "t-2"}),
        ("frame", {"slot": "t-3", "frame": "claim,slot=b"}),
        ("discard", {"slot": "t-2", "reason": "bad"}),
        ("claim", {"slot": "t-1", "machine": "m", "credits": 3}),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("13,fly,a,,", "kind = 'fly': expected one of alloc"),
        ("13,claim,a,credits=3,", "row 6: arguments = 'credits=3': expected a machine"),
        ("13,alloc,a,credits=7.9,", "alloc of slot a: credits = '7.9': expected a whole number"),
        ("13,alloc,a,colour=3,", "alloc: no argument 'colour': expected credits, min, max, expire"),
        ("13,alloc,,,", "row 6: slot is missing"),
        ("13,meta,a,x,", "row 6: arguments = 'x': expected name=value"),
        ("13,counters,a,,", "counters of slot a: expected at least one argument"),
        ("13,frame,,\u20ac,", "row 6: frame = '\u20ac': expected a character for each byte, none beyond U\\+00FF"),
        ("soon,alloc,a,,", "row 6: time_s = 'soon': expected a number of seconds|soon"),
    ],
)
def test_a_mistake_in_a_trace(write, line, message):
    with pytest.raises(ScenarioError, match=f"mine.csv.*{message}"):
        load_workload(write("mine.csv", TRACE + line + "\n"))


TYPED = """time_s,kind,slot,alloc.credits,claim.machine,claim.credits,discard.reason,frame,counters.n,meta.of
10,alloc,a,5,,,,,,
12.5,claim,a,,007,3,,,,
11,alloc,b,,,,,,,
11,frame,,,,,,"claim,slot=b",,
12,discard,b,,,,bad,,,
12,counters,a,,,,,,-4,
12,meta,a,,,,,,,1e5
"""


def test_a_trace_may_have_a_column_for_each_argument(write):
    made = load_workload(write("mine.csv", TYPED))
    assert list(made.calls(0, 7, "t")) == [
        ("alloc", {"slot": "t-1", "credits": 5}),
        ("alloc", {"slot": "t-2"}),
        ("frame", {"slot": "t-3", "frame": "claim,slot=b"}),
        ("discard", {"slot": "t-2", "reason": "bad"}),
        ("counters", {"slot": "t-1", "n": -4}),
        ("meta", {"slot": "t-1", "of": "1e5"}),
        ("claim", {"slot": "t-1", "machine": "007", "credits": 3}),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("13,fly,a,,,,,,,", "kind = 'fly': expected one of alloc"),
        ("13,claim,a,,,3,,,,", "row 8: arguments = 'credits=3': expected a machine for the claim"),
        ("13,alloc,a,7.9,,,,,,", "alloc of slot a: credits = '7.9': expected a whole number"),
        ("13,meta,a,,,,,,,", "meta of slot a: expected at least one argument"),
        ("13,alloc,,,,,,,,", "row 8: slot is missing"),
    ],
)
def test_a_mistake_in_a_typed_trace(write, line, message):
    with pytest.raises(ScenarioError, match=f"mine.csv.*{message}"):
        load_workload(write("mine.csv", TYPED + line + "\n"))


def test_an_argument_that_no_kind_has_is_a_mistake(write):
    with pytest.raises(ScenarioError, match="alloc: no argument 'colour': expected credits, min, max, expire"):
        load_workload(write("mine.csv", "time_s,kind,slot,alloc.colour\n1,alloc,a,red\n"))


def as_before(path):
    """The workload of a journal, written as an earlier version did: with arguments as a text."""
    table = pq.read_table(path)
    texts = []
    for row in table.to_pylist():
        own = {name.removeprefix(f"{row['kind']}."): row[name] for name in row if name.startswith(f"{row['kind']}.")}
        given = [(name, value) for name, value in own.items() if value is not None] + (
            row[row["kind"]] or [] if row["kind"] in {"counters", "meta"} else []
        )
        pairs = ",".join(f"{name}={value}" for name, value in given)
        texts.append(row["frame"].decode("latin-1") if row["kind"] == "frame" else pairs)
    earlier = table.drop_columns([field.name for field in arguments.fields()])
    earlier = earlier.append_column("arguments", pa.array(texts, pa.string()))
    before = path.parent / "before" / path.name
    before.parent.mkdir()
    pq.write_table(earlier, before)
    return load_workload(before)


def test_what_a_run_has_sent_is_sent_again(write):
    unusual = "malformed = 0.1\noversized = 0.1\nforged = 0.1\nclaim_twice = 0.1"
    misbehaving = f'extends = "smoke"\narrivals.jobs = 60\n[misbehaviour]\n{unusual}'
    first = load_workload(write("first.toml", misbehaving))
    folder = write("x", "").with_name("run")

    def replay(made, output):
        run = perform(
            lambda: made,
            None,
            AsFastAsPossible(),
            in_flight=1,
            timeout_s=100.0,
            slot_prefix="again",
            on_stage=lambda stage: None,
            on_progress=lambda planned, progress: None,
        )
        assert run.verdict.ruling == "valid", run.verdict.anomalies[:3]
        with run_folder.OutputFolder(output) as written:
            run_folder.write(run, summarise(run), written)
        return run

    replay(first, folder)
    second = load_workload(folder / "journal.parquet")
    assert as_before(folder / "journal.parquet").digest() == second.digest()
    assert second.due_us.tolist() == (first.due_us - first.due_us[0]).tolist()  # though all was sent at once
    owners = {
        machine: first.users[u] for machine, u in zip(first.machines, first.owner.tolist(), strict=True) if u >= 0
    }
    assert {
        second.users[u] == owners.get(machine) if u >= 0 else machine not in owners
        for machine, u in zip(second.machines, second.owner.tolist(), strict=True)
    } == {True}
    assert second.users
    assert [k for k, _ in second.calls(0, len(second), "p")] == [k for k, _ in first.calls(0, len(first), "p")]
    sent, again = (
        [
            frame.split(b",slot=")[0] + frame.partition(b",slot=")[2].partition(b",")[2]
            for part in frames(w, "p")
            for frame in part
        ]
        for w in (first, second)
    )
    assert sent == again


def test_what_is_no_trace(write):
    with pytest.raises(
        ScenarioError, match=re.escape("no column slot, arguments, due_us (or sent_us, or time_s, or time)")
    ):
        load_workload(write("mine.csv", "kind,x\nalloc,1\n"))
    with pytest.raises(ScenarioError, match="cannot be read as PARQUET"):
        load_workload(write("mine.parquet", "no"))
    with pytest.raises(ScenarioError, match="--set is for a scenario"):
        load_workload(write("mine.csv", TRACE), settings=["a=1"])
    with pytest.raises(ScenarioError, match=r"are for job logs, and this scenario has no \[log\]"):
        load_workload(write("mine.toml", 'extends = "smoke"'), settings=["log.jobs=1"])

"""From OK to applied: what the ledger's times say about a run."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from cpdaemon.endpoint import UnixEndpoint, parse_endpoint
from cpsim.catalog import find_scenario
from cpsim.effect import effect_delays_ns
from cpsim.fake import ANY_PORT, Fake
from cpsim.replay.clock import Rate
from cpsim.replay.journal import RECORD_TYPE, Outcome
from cpsim.run import Target, run
from cpsim.run_folder import claim_folder, write
from cpsim.scenario import load_workload
from cpsim.scenario.workload import KIND_NAMES
from cpsim.summary import summarise
from cpsim.thresholds import Threshold
from cpsim.verify.observer import CannotObserve, Observer

START_US = 1_700_000_000_000_000
"""On the server's clock, when the replay began."""


def made_up(commands, ledger, *, rate=1.0):
    """Delays in ms of commands (kind, slot, outcome, answered in ms) and a ledger (id, state, times in ms)."""
    start_ns = time.perf_counter_ns()
    records = np.zeros(len(commands), RECORD_TYPE)
    records["op"] = np.arange(len(commands))
    records["outcome"] = [outcome for _, _, outcome, _ in commands]
    records["answered_ns"] = [answered_ms * 1_000_000 for *_, answered_ms in commands]
    workload = SimpleNamespace(
        kind=np.array([KIND_NAMES.index(kind) for kind, *_ in commands], np.uint8),
        slot=np.array([slot for _, slot, *_ in commands], np.int32),
        slot_numbers=np.array([700, 7, 70]),
    )

    def on_clock(time_ms):
        return None if time_ms is None else START_US + time_ms * 1000

    slots = pa.table(
        {
            "project": pa.array([row[0] for row in ledger], pa.string()),
            "slot": pa.array([row[1] for row in ledger], pa.string()),
            "state": pa.array([row[2] for row in ledger], pa.string()),
            "allocated_us": pa.array([on_clock(row[3]) for row in ledger], pa.int64()),
            "settled_us": pa.array([on_clock(row[4]) for row in ledger], pa.int64()),
        }
    )
    observer = SimpleNamespace(clock=lambda: (START_US + (time.perf_counter_ns() - start_ns) // 1000, rate))
    told = SimpleNamespace(
        workload=workload,
        records=records,
        slots=slots,
        slot_prefix="a.b",
        target=SimpleNamespace(credentials=("p", "s")),
    )
    found = effect_delays_ns(told, observer, start_ns)
    return found if found is None else sorted(round(delay_ns / 1e6) for delay_ns in found.tolist())


COMMANDS = [
    ("alloc", 0, Outcome.ACCEPTED, 10),
    ("alloc", 1, Outcome.ACCEPTED, 20),
    ("alloc", 2, Outcome.ACCEPTED, 30),
    ("counters", 1, Outcome.ACCEPTED, 35),
    ("claim", 1, Outcome.ACCEPTED, 40),
    ("discard", 2, Outcome.ACCEPTED, 50),
]
LEDGER = [
    ("p", "a.b-7", "claimed", 120, 340),
    ("p", "a.b-700", "allocated", 13, None),
    ("p", "a.b-70", "discarded", 25, 750),
]


def test_each_delay_is_from_the_answer_to_the_ledgers_time():
    assert made_up(COMMANDS, LEDGER) == [0, 3, 100, 300, 700]


def test_what_others_did_and_what_is_not_certain_is_left_out():
    others = [
        ("q", "a.b-7", "claimed", 9_000, 9_000),  # another project's
        ("p", "aXb-7", "claimed", 9_000, 9_000),
        ("p", "a.b-7-7", "claimed", 9_000, 9_000),  # another prefix
        ("p", "a.b-71", "claimed", 9_000, 9_000),
        ("p", "a.b-70", "expired", 33, 9_000),  # nobody's command
    ]
    commands = [
        *COMMANDS[:5],
        ("claim", 1, Outcome.ACCEPTED, 45),  # one of the two was it
        ("discard", 2, Outcome.UNKNOWN, 50),
    ]
    assert made_up(commands, [*LEDGER[:2], *others]) == [3, 3, 100]


def test_a_clock_that_is_not_real_time_says_nothing():
    assert made_up(COMMANDS, LEDGER, rate=60.0) is None


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def replayed(fake, **options):
    target = Target(UnixEndpoint("./d.sock"), parse_endpoint(fake.addresses["http"]), ("p", "s"))
    return run(
        lambda: load_workload(find_scenario("smoke")),
        target,
        Rate(2000),
        in_flight=64,
        timeout_s=5.0,
        slot_prefix=None,
        on_stage=lambda _: None,
        on_progress=lambda *_: None,
        **options,
    )


def test_a_server_that_is_down_delays_the_effect_and_not_the_answers(place):
    with Fake({"p": "s"}, unix=Path("d.sock"), http=ANY_PORT) as fake:
        usual = summarise(replayed(fake))
        late = replayed(fake, faults=["down:until=0.5"])
    summary = summarise(late)
    assert late.verdict.ruling == "valid"
    times = summary.figures()["effect_ms"]
    assert usual.figures()["effect_ms"]["p50"] < 200 <= times["p90"]
    assert times["max"] < 5_000
    assert summary.effect.get_total_count() == 500 + 484  # every slot's beginning, and the ends of those that have one
    summary.check([Threshold.parse("effect_p99_ms<100"), Threshold.parse("effect_max_ms<5000")])
    assert [checked.holds for checked in summary.checked] == [False, True]
    folder = Path("run")
    write(late, summary, claim_folder(folder), folder)
    assert "#[Max" in (folder / "effect.hgrm").read_text()
    assert json.loads((folder / "run.json").read_text())["effect_ms"] == times
    assert "from OK to applied" in (folder / "report.html").read_text()


def test_a_server_that_is_gone_once_all_is_judged_costs_the_figure_alone(place, monkeypatch):
    def gone(_):
        raise CannotObserve("cannot reach it")

    monkeypatch.setattr(Observer, "clock", gone)
    with Fake({"p": "s"}, unix=Path("d.sock"), http=ANY_PORT) as fake:
        result = replayed(fake)
    assert result.verdict.ruling == "valid"
    assert summarise(result).figures()["effect_ms"] is None


def test_without_a_server_to_look_at_there_is_no_such_figure(place):
    with Fake({"p": "s"}, unix=Path("d.sock")):
        result = run(
            lambda: load_workload(find_scenario("smoke")),
            Target(UnixEndpoint("./d.sock")),
            Rate(4000),
            in_flight=64,
            timeout_s=5.0,
            slot_prefix=None,
            on_stage=lambda _: None,
            on_progress=lambda *_: None,
        )
    summary = summarise(result)
    summary.check([Threshold.parse("effect_p99_ms<100")])
    assert not summary.holds
    assert summary.figures()["effect_ms"] is None

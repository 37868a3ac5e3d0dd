"""From OK to applied: what the ledger's times say about a run."""

import html
import io
import json
import math
import re
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cpdaemon.endpoint import UnixEndpoint, parse_endpoint
from cpsim.accounts.observer import CannotObserve
from cpsim.config.catalog import find_scenario
from cpsim.config.thresholds import Threshold
from cpsim.evidence.evidence import Reading
from cpsim.evidence.journal import RECORD_TYPE, OperationOutcome
from cpsim.fake import ANY_PORT, Fake
from cpsim.judge.apply_delay import apply_delays_ns
from cpsim.judge.clock_offset import NotComparable, offset
from cpsim.net.control import ControlClient
from cpsim.replay.pace import Rate
from cpsim.run.clock_watch import ClockWatch
from cpsim.run.folder import OutputFolder, write
from cpsim.run.pipeline import run
from cpsim.run.plan import ReplayTarget
from cpsim.run.summary import show, summarise
from cpsim.scenario import load_workload
from cpsim.scenario.workload import KIND_NAMES
from cpsim.testing import ManualClock

START_NS = 5_000_000_000_000
"""On our clock, when the replay began."""
START_US = 1_700_000_000_000_000
"""On the server's clock, likewise."""
LOOKED_MS = (-10, 40, 80, 160, 300, 500, 800)
TRIP_MS = 0.2


def real_time(time_ms):
    """What a clock shows, in milliseconds since the replay began, so long after it began."""
    return time_ms


def drifting(share):
    return lambda time_ms: time_ms * (1 + share)


def set_by(step_ms, at_ms=200, until_ms=math.inf):
    return lambda time_ms: time_ms + (step_ms if at_ms <= time_ms < until_ms else 0)


def reading(clock, time_ms, trip_ms=TRIP_MS, rate=1.0):
    """A look that begins at a time, and sees the clock in its middle."""
    sent_ns = START_NS + round(time_ms * 1e6)
    return Reading(
        sent_ns, sent_ns + round(trip_ms * 1e6), START_US + math.floor(clock(time_ms + trip_ms / 2) * 1e3), rate
    )


def made_up(commands, ledger, *, clock=real_time, rate=1.0, looked_ms=LOOKED_MS, hidden=()):
    """Delays in ms of commands (kind, slot, outcome, answered in ms) and a ledger (id, state, times in ms)."""
    records = np.zeros(len(commands), RECORD_TYPE)
    records["op"] = np.arange(len(commands))
    records["outcome"] = [outcome for _, _, outcome, _ in commands]
    records["answered_ns"] = [answered_ms * 1_000_000 for *_, answered_ms in commands]
    records["sent_ns"] = np.maximum(records["answered_ns"] - SERVICE_MS * 1_000_000, 0)
    workload = SimpleNamespace(
        kind=np.array([KIND_NAMES.index(kind) for kind, *_ in commands], np.uint8),
        slot=np.array([slot for _, slot, *_ in commands], np.int32),
        slot_numbers=np.array([700, 7, 70]),
        slot_ids=(),
        sites=(),
    )

    def on_clock(time_ms):
        return None if time_ms is None else START_US + math.floor(clock(time_ms) * 1000)

    slots = pa.table(
        {
            "project": pa.array([row[0] for row in ledger], pa.string()),
            "slot": pa.array([row[1] for row in ledger], pa.string()),
            "state": pa.array([row[2] for row in ledger], pa.string()),
            "allocated_us": pa.array([on_clock(row[3]) for row in ledger], pa.int64()),
            "settled_us": pa.array([on_clock(row[4]) for row in ledger], pa.int64()),
        }
    )
    slots = slots.drop_columns(hidden)
    evidence = SimpleNamespace(
        workload=workload,
        records=records,
        ledger=slots,
        slot_prefix="a.b",
        project="p",
        readings=[reading(clock, time_ms, rate=rate) for time_ms in looked_ms],
        start_ns=START_NS,
    )
    evidence.partitions = lambda: [evidence]
    found, _, uncertainty_ns = apply_delays_ns(evidence)
    assert 0 < uncertainty_ns < 1e6
    return sorted(round(delay_ns / 1e6) for delay_ns in found.tolist())


SERVICE_MS = 8
COMMANDS = [
    ("alloc", 0, OperationOutcome.ACCEPTED, 10),
    ("alloc", 1, OperationOutcome.ACCEPTED, 20),
    ("alloc", 2, OperationOutcome.ACCEPTED, 30),
    ("counters", 1, OperationOutcome.ACCEPTED, 35),
    ("claim", 1, OperationOutcome.ACCEPTED, 40),
    ("discard", 2, OperationOutcome.ACCEPTED, 50),
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
        ("claim", 1, OperationOutcome.ACCEPTED, 45),  # one of the two was it
        ("discard", 2, OperationOutcome.UNKNOWN, 50),
    ]
    assert made_up(commands, [*LEDGER[:2], *others]) == [3, 3, 100]


def test_the_case_of_a_projects_id_makes_no_difference():
    assert made_up(COMMANDS, [("P", *row[1:]) for row in LEDGER]) == [0, 3, 100, 300, 700]


@pytest.mark.parametrize(("hidden", "delays"), [("allocated_us", [300, 700]), ("settled_us", [0, 3, 100])])
def test_delays_are_those_of_the_times_that_are_shown(hidden, delays):
    assert made_up(COMMANDS, LEDGER, hidden=[hidden]) == delays


@pytest.mark.parametrize(
    ("hidden", "why"),
    [
        (["state"], "the server's table of slots has no column `state`"),
        (["allocated_us", "settled_us"], "the server's table of slots has no columns `allocated_us` and `settled_us`"),
    ],
)
def test_times_that_are_not_shown_give_no_figure(hidden, why):
    with pytest.raises(NotComparable, match=why):
        made_up(COMMANDS, LEDGER, hidden=hidden)


def test_a_command_whose_answer_was_lost_may_have_been_the_one():
    commands = [*COMMANDS, ("claim", 1, OperationOutcome.UNKNOWN, 39), ("discard", 2, OperationOutcome.REFUSED, 45)]
    assert made_up(commands, LEDGER) == [0, 3, 100, 700]


@pytest.mark.parametrize("share", [0.01, -0.01, 0.08, 0.00001])
def test_a_clock_that_drifts_steadily_is_told_on_ours(share):
    assert made_up(COMMANDS, LEDGER, clock=drifting(share)) == [0, 3, 100, 300, 700]


NOT_STEADY = "did not run steadily"
WRONG_CLOCKS = {
    "set-ahead": (set_by(100), r"was set by about \+0\.1 s"),
    "set-back": (set_by(-100), r"was set by about -0\.1 s"),
    "set-ahead-a-little": (set_by(5), r"was set by about \+0\.005 s"),
    "set-and-set-back": (set_by(100, 150, 400), NOT_STEADY),
    "held": (lambda time_ms: min(time_ms, 100) + max(time_ms - 400, 0), NOT_STEADY),
    "stopped-in-silence": (lambda time_ms: min(time_ms, 150), NOT_STEADY),
    "ten-times-in-silence": (lambda time_ms: 10 * time_ms, NOT_STEADY),
    "set-back-between-two-looks": (set_by(-12, 10, 39), "was applied .* before it was sent"),
    "set-ahead-between-two-looks": (set_by(3_000, 700, 790), "was applied .* after the ledger was read"),
}


@pytest.mark.parametrize(("clock", "why"), WRONG_CLOCKS.values(), ids=WRONG_CLOCKS)
def test_a_clock_that_was_set_or_stopped_gives_no_figure(clock, why):
    with pytest.raises(NotComparable, match=why):
        made_up(COMMANDS, LEDGER, clock=clock)


@pytest.mark.parametrize(
    ("rate", "why"), [(0.0, "stands still"), (10.0, "runs at 10 times real time"), (0.5, "runs at 0.5 times real time")]
)
def test_a_clock_that_says_not_to_be_real_time_gives_no_figure(rate, why):
    with pytest.raises(NotComparable, match=why):
        made_up(COMMANDS, LEDGER, clock=lambda time_ms: rate * time_ms, rate=rate)


def test_two_looks_cannot_tell_a_drift_from_a_step():
    with pytest.raises(NotComparable, match="was set by"):
        made_up(COMMANDS, LEDGER, clock=drifting(0.01), looked_ms=(-10, 800))


def test_a_slot_that_is_older_than_the_run_gives_no_figure():
    with pytest.raises(NotComparable, match="older than the run"):
        made_up(COMMANDS, [("p", "a.b-700", "allocated", -60_000, None), *LEDGER])


def test_a_ledger_without_a_slot_of_the_run_gives_no_figure():
    with pytest.raises(NotComparable, match="no times of commands"):
        made_up(COMMANDS, [])


times_ms = st.floats(0, 2_000)
looks = st.lists(st.tuples(times_ms, st.floats(0.01, 50), st.floats(0, 1)), min_size=2, max_size=12)


@given(looks=looks, step_ms=st.floats(-60, 60), at_ms=times_ms, share=st.floats(-0.05, 0.05), steps=st.booleans())
def test_what_is_told_on_our_clock_is_right_to_within_the_uncertainty(looks, step_ms, at_ms, share, steps):
    clock = set_by(step_ms, at_ms) if steps else drifting(share)
    readings, last_ms = [], 0.0
    for pause_ms, trip_ms, place in looks:
        sent_ms = last_ms + pause_ms
        seen_ms = sent_ms + place * trip_ms
        last_ms = sent_ms + trip_ms
        sent_ns, received_ns = (START_NS + round(time_ms * 1e6) for time_ms in (sent_ms, last_ms))
        readings.append(Reading(sent_ns, received_ns, START_US + math.floor(clock(seen_ms) * 1e3)))
    try:
        compared = offset(readings)
    except NotComparable:
        return
    real_ms = np.linspace(looks[0][0] + looks[0][1], sent_ms, 50)
    shown_us = np.array([START_US + round(clock(time_ms) * 1e3) for time_ms in real_ms])
    wrong_ns = np.abs(compared.to_local_ns(shown_us) - START_NS - real_ms * 1e6)
    assert wrong_ns.max() <= compared.uncertainty_ns / (1 - abs(compared.drift)) + 2_000


def test_a_look_is_the_quickest_of_several_and_any_that_says_no_real_time():
    trips_ms = iter([5, 0.3, 0.9, *[2] * 6, 1, 0.1, 0.4])
    rates = iter([1.0] * 9 + [1.0, 1.0, 0.0])
    clock = ManualClock()

    def ask():
        clock.advance(next(trips_ms) / 1000)
        return START_US, next(rates)

    watch = ClockWatch(SimpleNamespace(control=SimpleNamespace(clock=ask)), clock)
    watch.read()
    watch.read(3)
    quickest, odd = watch.seen
    assert quickest.received_ns - quickest.sent_ns == 300_000
    assert (quickest.rate, odd.rate) == (1.0, 0.0)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def replayed(fake, *, on_progress=lambda *_: None, **options):
    target = ReplayTarget(UnixEndpoint("./d.sock"), parse_endpoint(fake.addresses["http"]), ("p", "s"))
    return run(
        lambda: load_workload(find_scenario("smoke")),
        target,
        Rate(2000),
        in_flight=64,
        timeout_s=5.0,
        slot_prefix=None,
        on_stage=lambda _: None,
        on_progress=on_progress,
        **options,
    )


def test_a_server_that_is_down_delays_the_effect_and_not_the_answers(place):
    with Fake({"p": "s"}, unix=Path("d.sock"), http=ANY_PORT) as fake:
        late = replayed(fake, faults=["down:until=2"])
    summary = summarise(late)
    assert late.verdict.ruling == "valid"
    times = summary.figures()["effect_ms"]
    assert times["p50"] >= 200  # the replay takes a second, and a busy machine begins it late
    assert summary.apply_delay.total == 500 + 484  # every alloc, and each end of a slot
    summary.check([Threshold.parse("effect_p99_ms<100"), Threshold.parse("effect_max_ms<500000")])
    assert [checked.holds for checked in summary.checked] == [False, True]
    folder = Path("run")
    with OutputFolder(folder) as written:
        write(late, summary, written)
    assert "#[Max" in (folder / "effect.hgrm").read_text()
    assert json.loads((folder / "run.json").read_text())["effect_ms"] == times
    assert "from OK to applied" in (folder / "report.html").read_text()


def test_a_server_that_is_gone_once_all_is_judged_costs_the_figure_alone(place, monkeypatch):
    def gone(_):
        raise CannotObserve("cannot reach it")

    monkeypatch.setattr(ControlClient, "clock", gone)
    with Fake({"p": "s"}, unix=Path("d.sock"), http=ANY_PORT) as fake:
        result = replayed(fake)
    assert result.verdict.ruling == "valid"
    figures = summarise(result).figures()
    assert (figures["effect_ms"], figures["effect_unknown"]) == (None, "cannot reach it")


CHANGES = {
    "set": ("clock/advance?seconds=30", r"was set by about \+30 s"),
    "frozen": ("clock/freeze", "stands still"),
    "ten-times": ("clock/run?rate=10", "runs at 10 times real time"),
}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("request_", "why"), CHANGES.values(), ids=CHANGES)
def test_a_servers_clock_that_is_changed_in_a_run_leaves_the_delay_unknown(place, request_, why, processes):
    answers = []

    def change(_, progress):
        if not answers and progress.elapsed_s:
            connection = HTTPConnection(server.host, server.port)
            connection.request("POST", f"/__cpsim/{request_}", headers={"Host": server.authority})
            answers.append(connection.getresponse().status)
            connection.close()

    with Fake({"p": "s"}, unix=Path("d.sock"), http=ANY_PORT) as fake:
        server = parse_endpoint(fake.addresses["http"])
        result = replayed(fake, on_progress=change, processes=processes)
    assert answers == [200]
    summary = summarise(result)
    summary.check([Threshold.parse("effect_p50_ms<100000"), Threshold.parse("p50_ms<100000")])
    assert [checked.holds for checked in summary.checked] == [False, True]
    folder, terminal = Path("run"), io.StringIO()
    with OutputFolder(folder) as written:
        write(result, summary, written)
    show(result, summary, Console(file=terminal, width=1000))
    document = json.loads((folder / "run.json").read_text())
    assert document["effect_ms"] is None
    assert not (folder / "effect.hgrm").exists()
    asserted = document["asserts"][0]["unknown"]
    for said in (document["effect_unknown"], asserted, terminal.getvalue(), (folder / "report.html").read_text()):
        assert re.search(why, html.unescape(said))
    assert "apply delay   unknown: the server's clock" in terminal.getvalue()


def test_without_a_server_to_look_at_there_is_no_such_figure(place):
    with Fake({"p": "s"}, unix=Path("d.sock")):
        result = run(
            lambda: load_workload(find_scenario("smoke")),
            ReplayTarget(UnixEndpoint("./d.sock")),
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
    assert str(summary.checked[0]) == f"effect_p99_ms<100: unknown: {summary.apply_delay_unknown}"
    assert "--server" in summary.apply_delay_unknown
    assert summary.figures()["effect_ms"] is None

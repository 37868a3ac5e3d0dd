"""Past runs: what is listed, shown, compared and removed, and what an --assert is relative to."""

import json
from pathlib import Path

import pytest

SAMPLE = Path(__file__).parent.parent / "samples/v0.3/run"


def left(folder, name, when="2026-03-01T12:00:00+00:00", verdict="valid", **changes):
    """A run folder: summaries of the sample with changes, and other files that nobody may read."""
    path = Path(folder, name)
    path.mkdir(parents=True)
    run = json.loads((SAMPLE / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(run | {"started": when} | changes))
    document = json.loads((SAMPLE / "verdict.json").read_text())
    (path / "verdict.json").write_text(json.dumps(document | {"verdict": verdict}))
    for other in ("journal.parquet", "workload.parquet", "ledger.parquet", "report.html"):
        (path / other).write_bytes(b"not read")
    return path


def times(p99, **others):
    return dict.fromkeys(("p50", "p90", "p99", "p99.9", "p99.99", "max"), p99) | others


# What an --assert is relative to


def test_an_assert_may_be_relative_to_a_past_run(cpsim, here):
    left("runs", "slow", service_ms=times(60_000.0), operations_per_s=1.0)
    command = ["run", "smoke", "--output", "out", "--baseline", "slow"]
    status, out, err = cpsim(*command, "--assert", "p99_ms<=1.1*baseline", "--assert", "operations_per_s<1*baseline")
    assert status == 1
    assert "holds  p99_ms<=1.1*baseline: it was " in out
    assert ", and 60000 in the baseline" in out
    assert "fails  operations_per_s<1*baseline: it was " in out
    [first, second] = json.loads(Path("out/run.json").read_text())["asserts"]
    assert (first["baseline"], first["holds"], second["baseline"], second["holds"]) == (60_000.0, True, 1.0, False)
    assert "the baseline runs/slow is not the same: scenario was scenario, and is smoke; " in err
    assert "--baseline runs/slow --assert 'p99_ms<=1.1*baseline'" not in err
    assert "--baseline runs/slow" in json.loads(Path("out/verdict.json").read_text())["repeat"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--assert", "p99_ms<2*baseline"], "--assert p99_ms<2*baseline: add --baseline RUN"),
        (["--baseline", "old", "--assert", "p99_ms<2"], "--baseline goes with an --assert that is relative to it"),
        (["--baseline", "old"], "--baseline goes with an --assert that is relative to it"),
        (
            ["--baseline", "odl", "--assert", "p99_ms<2*baseline"],
            "there is no run odl, and none below runs; did you mean old?",
        ),
        (["--baseline", "old", "--assert", "response_p99_ms<2*baseline"], "the baseline has no figure response_p99_ms"),
        (["--baseline", "cut", "--assert", "p99_ms<2*baseline"], "runs/cut has no figures: run.json cannot be read"),
        (
            ["--baseline", "other", "--assert", "p99_ms<2*baseline"],
            "runs/other is not a run folder: it has no run.json",
        ),
    ],
)
def test_a_baseline_that_says_nothing_is_refused_before_anything_is_sent(cpsim, here, options, says):
    left("runs", "old", response_ms=None)
    (left("runs", "cut") / "run.json").write_text('{"scenario": "sm')
    Path("runs/other").mkdir()
    status, _, err = cpsim("run", "smoke", *options)
    assert status == 64
    assert says in err
    assert sorted(path.name for path in Path("runs").iterdir()) == ["cut", "old", "other"]

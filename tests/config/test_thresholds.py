"""Thresholds: what they say of a run, and that one that cannot be checked fails."""

import json
import re

import pytest
from click.testing import CliRunner

from cpsim.cli import cli
from cpsim.config.thresholds import METRICS, METRICS_BY_KIND, Checked, Threshold, metrics
from cpsim.errors import CpsimError

FIGURES = {
    "operations": 10,
    "operations_per_s": 5.0,
    "elapsed_s": 2.0,
    "lateness_p99_ms": 0.5,
    "busy": 0.1,
    "by_kind": {
        "alloc": {"planned": 6, "accepted": 5, "refused": 1, "unknown": 0},
        "claim": {"planned": 4, "accepted": 2, "refused": 0, "unknown": 2},
    },
    "service_ms": dict.fromkeys(("p50", "p90", "p99", "p99.9", "p99.99", "max"), 1.0),
    "response_ms": dict.fromkeys(("p50", "p90", "p99", "p99.9", "p99.99", "max"), 2.0),
    "effect_ms": dict.fromkeys(("p50", "p90", "p99", "p99.9", "p99.99", "max"), 30.0),
    "by_kind_ms": {
        "claim": {
            "service_ms": dict.fromkeys(("p50", "p90", "p99", "p99.9", "p99.99", "max"), 3.0),
            "response_ms": dict.fromkeys(("p50", "p90", "p99", "p99.9", "p99.99", "max"), 4.0),
        }
    },
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("p99_ms<2.1", True),
        ("p99_ms<2", False),  # of the response time, where there is one
        ("p99_ms <= 2", True),
        ("service_p99.9_ms==1", True),
        ("effect_p99_ms<30", False),
        ("apply_delay_p99_ms<30", False),
        ("apply_delay_max_ms<31", True),
        ("error_rate<0.3", False),
        ("error_rate<=0.3", True),
        ("refused_rate<0.11", True),
        ("unknown_rate>0.1", True),
        ("operations_per_s>=5", True),
        ("lateness_p99_ms<5e-1", False),
        ("p99_ms[claim]<=4", True),
        ("p99_ms[claim]<4", False),
        ("service_max_ms[claim] <= 3", True),
        ("error_rate[claim]<=0.5", True),
        ("unknown_rate[claim]<0.5", False),
        ("operations[claim]==4", True),
    ],
)
def test_a_threshold_is_compared_with_its_figure(text, holds):
    threshold = Threshold.parse(text)
    assert threshold.holds(metrics(FIGURES)[threshold.metric]) is holds


def test_all_metrics_are_there_where_operations_had_times_to_keep():
    assert set(metrics(FIGURES)) == {*METRICS, *(f"{name}[claim]" for name in METRICS_BY_KIND)}


def test_a_figure_that_is_missing_keeps_to_nothing():
    found = metrics(FIGURES | {"response_ms": None, "lateness_p99_ms": None})
    assert found["p99_ms"] == 1.0
    assert "response_p99_ms" not in found
    assert "p99_ms[alloc]" not in found
    assert not any(Threshold("response_p99_ms", comparison, 0.0).holds(None) for comparison in ("<", ">=", "=="))


def test_without_operations_there_are_no_rates():
    nothing = {"operations": 0, "by_kind": {}, "service_ms": {}, "response_ms": None, "effect_ms": None}
    found = metrics(FIGURES | nothing)
    assert {"error_rate", "operations_per_s", "p99_ms"} & set(found) == set()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("p9_ms<2", "did you mean 'p99_ms'?"),
        ("happiness>1", "there are p50_ms, "),
        ("p99_ms", "is not METRIC<NUMBER"),
        ("p99_ms<fast", "is not METRIC<NUMBER"),
        ("p99_ms!=2", "is not METRIC<NUMBER"),
    ],
)
def test_one_that_cannot_be_is_refused(text, says):
    with pytest.raises(CpsimError, match=re.escape(says)):
        Threshold.parse(text)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("p99_ms<=1.1*baseline", True),
        ("p99_ms < 1 * baseline", False),
        ("p99_ms<=0.9*baseline", False),
        ("operations_per_s>=0.9*baseline", True),
        ("operations_per_s>=1.1*baseline", False),
    ],
)
def test_a_threshold_may_be_relative_to_the_same_figure_of_another_run(text, holds):
    figures = metrics(FIGURES)
    threshold = Threshold.parse(text)
    assert not threshold.holds(figures[threshold.metric])  # nothing is known yet of the other
    threshold = threshold.against(figures)
    assert threshold.holds(figures[threshold.metric]) is holds
    assert str(threshold) == text.replace(" ", "")
    assert Checked(threshold, 3.0).document()["baseline"] == figures[threshold.metric]
    with pytest.raises(CpsimError, match=f"the baseline has no figure {threshold.metric}"):
        threshold.against({})


@pytest.mark.parametrize(
    ("threshold", "value", "status"),
    [("error_rate<=0", 0.0, 0), ("operations>5000", 1968, 1), ("response_p99_ms<1000", None, 1)],
)
def test_a_threshold_decides_the_exit_status_and_is_in_the_document(tmp_path, threshold, value, status):
    command = ["run", "smoke", "--assert", threshold, "--json", "--output", str(tmp_path / "run")]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == status, done.output
    for text in (done.stdout, (tmp_path / "run" / "run.json").read_text()):
        assert json.loads(text)["asserts"] == [{"assert": threshold, "value": value, "holds": status == 0}]

"""Percentiles that agree with numpy's, and the file that HdrHistogram's tools read."""

import io
import re

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram

from cpsim.evidence.journal import RECORD_TYPE
from cpsim.run.latency import PERCENTILES, Histogram, senders_lateness_ns

LINE = re.compile(r" *(\d+\.\d{3}) (\d\.\d{12}) +(\d+)(?: +(\d+\.\d\d))?")


@pytest.fixture(params=["lognormal", "uniform", "seconds", "few"])
def latencies_ns(request):
    draw = np.random.default_rng(5)
    match request.param:
        case "lognormal":
            return (draw.lognormal(13, 2, 50_000)).astype(np.int64) + 1000
        case "uniform":
            return draw.integers(1000, 20_000_000, 50_000)
        case "seconds":
            return draw.integers(1_000_000_000, 600_000_000_000, 10_000)
        case _:
            return np.array([5_000, 70_000, 70_000, 900_000])


def test_percentiles_are_those_of_numpy(latencies_ns):
    figures = Histogram.of(latencies_ns).percentiles_ms()
    assert list(figures) == ["p50", "p90", "p99", "p99.9", "p99.99", "max"]
    for q in PERCENTILES:
        low, high = (np.percentile(latencies_ns / 1e6, q, method=method) for method in ("lower", "higher"))
        assert 0.999 * low - 0.001 <= figures[f"p{q:g}"] <= 1.001 * high
    assert figures["max"] == pytest.approx(latencies_ns.max() / 1e6, rel=0.001)


def test_what_is_below_a_microsecond_counts_as_one():
    recorded = Histogram.of(np.array([-5, 0, 1, 999, 1500]))
    assert recorded.total == 5
    assert recorded.percentiles_ms() == dict.fromkeys(["p50", "p90", "p99", "p99.9", "p99.99", "max"], 0.001)


def test_the_file_is_a_percentile_distribution(latencies_ns, tmp_path):
    Histogram.of(latencies_ns).write(tmp_path / "latency.hgrm")
    head, blank, *lines = (tmp_path / "latency.hgrm").read_text().splitlines()
    assert head.split() == ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
    assert blank == ""
    rows = [LINE.fullmatch(line).groups() for line in lines if not line.startswith("#")]
    values, shares, counts = (np.array(column, dtype=float) for column in list(zip(*rows, strict=True))[:3])
    assert (np.diff(values) >= 0).all()
    assert (np.diff(counts) >= 0).all()
    assert shares[-1] == 1
    assert counts[-1] == len(latencies_ns)
    assert values[-1] == pytest.approx(latencies_ns.max() / 1e6, rel=0.002)
    footer = " ".join(line for line in lines if line.startswith("#"))
    figures = {name: float(value) for name, value in re.findall(r"(\w+) += +([\d.]+)", footer)}
    assert figures["TotalCount"] == len(latencies_ns)
    assert figures["Mean"] == pytest.approx(latencies_ns.mean() / 1e6, rel=0.002, abs=0.001)
    assert figures["StdDeviation"] == pytest.approx(latencies_ns.std() / 1e6, rel=0.01)


@pytest.mark.parametrize(
    "latencies_us", [[], [1], [1, 2, 2], [2047, 2048, 2049, 4095, 4096, 8191], range(1, 90_000, 7)]
)
def test_percentiles_and_file_are_those_of_the_reference(latencies_us, tmp_path):
    mine = Histogram.of(np.array(latencies_us, dtype=np.int64) * 1000)
    mine.write(tmp_path / "latency.hgrm")
    reference, distribution = HdrHistogram(1, max([2, *latencies_us]), 3), io.BytesIO()
    for latency_us in latencies_us:
        reference.record_value(latency_us)
    reference.output_percentile_distribution(distribution, 1000.0)
    deviation_us = rb"(?<=StdDeviation   = ) *[\d.]+"  # the only figure that the reference does not scale
    in_ms = re.sub(deviation_us, lambda us: b"%12.3f" % (float(us[0]) / 1000), distribution.getvalue())
    assert (tmp_path / "latency.hgrm").read_bytes() == in_ms
    if latencies_us:
        figures = [*map(reference.get_value_at_percentile, PERCENTILES), reference.get_max_value()]
        assert list(mine.percentiles_ms().values()) == [figure / 1000 for figure in figures]


def test_no_latencies(tmp_path):
    recorded = Histogram.of(np.empty(0, np.int64))
    assert recorded.percentiles_ms() == {}
    recorded.write(tmp_path / "latency.hgrm")
    assert "Value" in (tmp_path / "latency.hgrm").read_text()


@pytest.mark.parametrize("rows", [1, 2, 64])
def test_what_the_sender_was_late_by_is_told_from_what_it_waited_for(in_files, rows):
    ms = 1_000_000
    records = np.zeros(6, RECORD_TYPE)
    records["op"] = np.arange(6)
    slots = np.array([0, 0, 1, 2, 3, 4], np.int32)
    due_ns = np.array([0, 1, 2, 3, 4, 50]) * ms
    records["sent_ns"] = np.array([0, 30, 2, 12, 31, 57]) * ms
    records["answered_ns"] = np.array([29, 40, 60, 33, 41, 58]) * ms
    given = records, lambda some: due_ns[some["op"]], lambda some: slots[some["op"]]
    in_files(rows)
    late_ms = senders_lateness_ns(*given, in_flight=3) / ms
    assert late_ms.tolist() == [0, 0, 9, 1, 0, 7]  # in the order of sending
    # the fifth had to wait for the second answer, until after it was sent; with room for all, only the second had to
    # wait: for the answer to the one before it in its slot
    assert senders_lateness_ns(*given, in_flight=64).tolist() == [0, 0, 9 * ms, ms, 27 * ms, 7 * ms]


def test_a_target_that_stands_still_makes_nobody_else_late():
    ms = 1_000_000
    due_ns = np.arange(2_000) * ms
    records = np.zeros(len(due_ns), RECORD_TYPE)
    places, stall_ns = [0] * 4, (100 * ms, 1_600 * ms)
    for number, due in enumerate(due_ns.tolist()):
        sent = max(due, min(places))
        answered = max(sent + ms // 2, stall_ns[1] if sent + ms // 2 > stall_ns[0] and sent < stall_ns[1] else 0)
        places[places.index(min(places))] = answered
        records[number] = (number, 0, 0, sent, answered)
    given = records, lambda some: due_ns[some["op"]], lambda some: some["op"]
    assert np.percentile(records["sent_ns"] - due_ns, 99) > 900 * ms
    assert senders_lateness_ns(*given).max() == 0
    records["sent_ns"][1_000:] += 7 * ms
    records["answered_ns"][1_000:] += 7 * ms
    assert senders_lateness_ns(*given).max() == 7 * ms

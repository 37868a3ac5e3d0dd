"""`nox -s bench`: what is measured where there is no C compiler, and how two runs are compared."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture
def ratios(monkeypatch):
    """The benchmarks, of which each measures nothing but once."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ratios
    import replaying
    from rounds import Row

    monkeypatch.setattr(ratios, "anywhere", lambda _: iter([("anywhere", Row(3.0, 2.0, 1.5))]))
    monkeypatch.setattr(replaying, "rows", lambda _, path: iter([(served(path), Row(1.0, 4.0, 0.25))]))
    monkeypatch.setattr(replaying, "against_the_limit", lambda *_: iter([("limit", Row(1.0, 2.0, 0.5))]))
    monkeypatch.setattr(ratios.limits, "rows", lambda *_: iter([]))
    yield ratios
    for name in [path.stem for path in BENCHMARKS.glob("*.py")]:
        sys.modules.pop(name, None)


def served(path):
    """What a daemon that only answers says to a client."""
    from cpdaemon import Client

    with Client(path) as client:
        client.alloc("x", credits=5)
    return "a daemon that only answers"


def test_without_a_compiler_all_else_is_measured(ratios, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    ratios.main([str(tmp_path / "new.json")])
    assert "there is no C compiler" in capsys.readouterr().err
    measured = json.loads((tmp_path / "new.json").read_text())
    assert set(measured) == {"anywhere", "a daemon that only answers"}


def test_two_runs_are_compared(ratios, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "old.json").write_text(json.dumps({"anywhere": {"first": 1.0, "second": 1.0, "ratio": 1.0}}))
    ratios.main([str(tmp_path / "new.json"), "--compare", str(tmp_path / "old.json")])
    rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if row[:1] == ["anywhere"]] == [["anywhere", "3", "2", "1.50", "1.00", "+50%"]]
    assert [row[-3:] for row in rows if row[:2] == ["a", "daemon"]] == [["0.25", "-", "-"]]


SLOTS_TITLES = [
    "ledger with 2,000 slots / with 1,000, commands a second of CPU",
    "dict of 2,000 texts / of 1,000, look-ups a second of CPU",
    "memory of a slot claimed with two counters, of 2,000 / of 10, bytes",
]


def test_the_ledger_alone_is_measured_with_as_many_slots_as_are_asked_for(ratios, monkeypatch, tmp_path):
    monkeypatch.setattr(ratios, "limit_of", lambda _: None)
    monkeypatch.setattr(ratios.slots, "SLOTS", 10)
    ratios.main([str(tmp_path / "new.json"), "--slots", "2000"])
    assert list(json.loads((tmp_path / "new.json").read_text())) == SLOTS_TITLES


@pytest.mark.thorough
def test_with_a_compiler_a_fake_is_measured_with_as_many_slots_too(ratios, monkeypatch, tmp_path):
    import c_limit

    if ratios.limit_of(tmp_path) is None:
        pytest.skip("there is no C compiler")
    monkeypatch.setattr(c_limit, "ROUND_S", 1.0)
    monkeypatch.setattr(ratios.limits, "BESIDE_ROUNDS", 3)
    monkeypatch.setattr(ratios.slots, "SLOTS", 10)
    monkeypatch.setattr(ratios.limits, "SLOTS", 1000)
    ratios.main([str(tmp_path / "new.json"), "--slots", "2000"])
    more = "fake with 2,000 slots / with few, commands/s, 16 clients"
    assert list(json.loads((tmp_path / "new.json").read_text())) == [*SLOTS_TITLES, more]


def test_with_a_compiler_the_programs_in_c_answer_and_ask(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import c_limit

    monkeypatch.setattr(c_limit, "ROUND_S", 1.0)
    try:
        limit = c_limit.Limit(tmp_path)
    except FileNotFoundError:
        pytest.skip("there is no C compiler")
    with limit.serving() as path, limit.serving_tcp() as address:
        assert limit.oneshot(path, 2) > 0
        assert limit.oneshot(address, 2) > 0
        served(path)
        served(address)


@pytest.mark.thorough
def test_the_memory_of_a_run_is_measured_without_sockets(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import memory

    try:
        monkeypatch.setattr(memory, "JOBS", (100, 200))
        (_, greatest), _ = memory.by_length(tmp_path)
        assert min(greatest[:2]) > 50  # MB: that is what Python and its libraries take
    finally:
        for name in ("memory", "rounds"):
            sys.modules.pop(name, None)


@pytest.mark.thorough
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of other processes is in /proc")
def test_the_memory_of_each_process_of_a_load_is_measured(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    try:
        import loading

        monkeypatch.setattr(loading, "JOBS", (100, 300))
        master, worker, *seconds = (row for _, row in loading.rows(tmp_path))
        assert min(*master[:2], *worker[:2]) > 50  # MB: that is what Python and its libraries take
        assert all(min(row[:2]) > 0 for row in seconds)
    finally:
        for name in [path.stem for path in BENCHMARKS.glob("*.py")]:
            sys.modules.pop(name, None)

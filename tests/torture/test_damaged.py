"""Damaged files, given to the command line."""

import damaged
import pytest

PART = 8
"""Of all ways to damage a file, each file is damaged in one of so many; `nox -s torture` has them all."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    damaged.prepare(folder)
    return folder


@pytest.fixture(autouse=True)
def _here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", [])


@pytest.mark.parametrize(
    ("reader", "damage", "seed"),
    [
        ("trace as CSV", "latin 1 at the front", 0),
        ("trace as Parquet", "zeroed", 0),
        ("trace as Parquet", "zeroed", 1),
        ("workload", "with a mark", 0),
        ("run's evidence.json", "nested", 0),
        ("run's verdict.json", "in utf 16", 0),
        ("run's workload.parquet", "other metadata", 0),
        ("reported journal.parquet", "with a mark", 0),
        ("exported slots.parquet", "other types", 0),
    ],
)
def test_a_damaged_file_is_named(folder, reader, damage, seed):
    assert damaged.attempt(folder, reader, damage, seed, damaged.ask(reader)[1]) is None


@pytest.mark.thorough
@pytest.mark.parametrize("part", range(0, PART, 4))  # `nox -s torture` asks for all
def test_whatever_is_damaged_is_named(folder, part):
    for reader in list(damaged.READERS)[part::PART]:
        _, whole_said = damaged.ask(reader)
        for damage in [*damaged.DAMAGES, *damaged.OTHERS][part::PART]:
            assert damaged.attempt(folder, reader, damage, part, whole_said) is None

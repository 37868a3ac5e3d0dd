"""What is put in a file is what comes out of it, and its arrays are not in memory."""

import tempfile
import tracemalloc

import numpy as np
import pytest

from cpsim.scenario.workload import Arguments, Column
from cpsim.system.shelf import Shelf, put, take

NAMES = tuple(f"machine {number}" for number in range(100))


def test_an_object_comes_back():
    thing = {"empty": np.empty(0), "one": np.broadcast_to(np.int64(3), 5), "names": NAMES, "few": ("a", "b")}
    with tempfile.TemporaryFile() as file:
        extents = [put(file, {**thing, "number": number}) for number in range(3)]
        taken = [take(file, extent) for extent in extents]
    assert [each["number"] for each in taken] == [0, 1, 2]
    for each in taken:
        assert each["one"].tolist() == [3] * 5
        assert each["one"].strides == (0,)
        assert (each["names"], each["few"], len(each["empty"])) == (NAMES, ("a", "b"), 0)


def test_arrays_are_in_the_file_and_long_tuples_in_memory_once():
    values = np.arange(500_000).reshape(-1, 2)
    arguments = Arguments({"machine": Column(values[:, 0].copy(), NAMES)}, ("a", "b"), values, (NAMES, NAMES))
    shelf = Shelf()
    tracemalloc.start()
    try:
        shelf.put("it", arguments)
        again = shelf.get("it")
        most_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most_bytes < values.nbytes / 10
    assert again.columns["b"].values.tolist() == values[:, 1].tolist()
    assert again.columns["machine"].texts is NAMES
    assert not again.free.flags.writeable


def test_there_is_nothing_on_a_shelf_without_room(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    shelf = Shelf()
    shelf.put(1, NAMES)
    assert shelf.get(1) is None
    with pytest.raises(FileNotFoundError), tempfile.TemporaryFile():
        pass

"""Rows that are sorted and arrays that are made piece by piece are those that they would be in memory."""

import numpy as np
import pytest

from cpsim.scenario.formats.appearances import Appearances
from cpsim.system import external_sort, growing
from cpsim.system.external_sort import in_order
from cpsim.system.growing import Growing, made
from cpsim.system.mapped import NoRoom

ROW = np.dtype([("key", np.int64), ("at", np.int32)])


@pytest.fixture
def small(monkeypatch):
    """Everything in files, and few rows at once."""
    for module in (growing, external_sort):
        monkeypatch.setattr(module, "ROWS", 16)
    monkeypatch.setattr(growing, "LEAST_BYTES", 1)
    monkeypatch.setattr(external_sort, "APART", 4)


@pytest.mark.parametrize("keys", [1, 2, 9, 1_000_000])
@pytest.mark.parametrize("count", [0, 1, 15, 700])
def test_rows_come_in_order_and_equal_ones_as_they_came(small, keys, count):
    rows = np.zeros(count, ROW)
    rows["key"], rows["at"] = np.random.default_rng(keys).integers(-keys, keys, count), np.arange(count)
    pieces = list(in_order((rows[start : start + 16] for start in range(0, count, 16)), "key"))
    found = np.concatenate([rows[:0], *pieces])
    assert found.tolist() == rows[np.argsort(rows["key"], kind="stable")].tolist()
    assert max(map(len, pieces), default=0) <= 16 + 4 * len(range(0, count, 16))


def test_texts_are_numbered_as_they_first_appear(small):
    texts = [f"job-{number}" for number in np.random.default_rng(1).integers(0, 90, 400)]
    appearances = Appearances()
    for text in texts:
        appearances.add(text)
    number, first = appearances.numbers()
    known = list(dict.fromkeys(texts))
    assert [known[at] for at in number] == texts
    assert first.tolist() == [texts.index(text) for text in known]


def test_an_array_grows_by_values_and_pieces(small):
    values = Growing(np.int32)
    for number in range(40):
        values.append(number)
    values.add([7, 8])
    values.append(9)
    found = values.array()
    assert (found.tolist(), found.dtype) == ([*range(40), 7, 8, 9], np.int32)
    assert not len(Growing(np.uint8).array())
    assert made(33, np.int64, lambda where: np.arange(where.start, where.stop) * 2).tolist() == list(range(0, 66, 2))


def test_an_array_without_room_says_where_room_is_needed(small, monkeypatch):
    class Full:
        def write(self, _):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    monkeypatch.setattr(growing.tempfile, "SpooledTemporaryFile", lambda _: Full())
    with pytest.raises(NoRoom, match="No space left on device; make room there, or name a folder"):
        Growing().add([1])

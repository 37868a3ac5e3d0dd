"""Rows that are sorted piece by piece are those that they would be in memory."""

import numpy as np
import pytest

from cpsim.scenario.formats.appearances import Appearances
from cpsim.system.external_sort import in_order, places_by_group

ROW = np.dtype([("key", np.int64), ("at", np.int32)])


@pytest.mark.parametrize("size", [3, 16])
@pytest.mark.parametrize("keys", [1, 2, 9, 1_000_000])
@pytest.mark.parametrize("count", [0, 1, 15, 700])
def test_rows_come_in_order_and_equal_ones_as_they_came(in_files, size, keys, count):
    in_files(16)
    rows = np.zeros(count, ROW)
    rows["key"], rows["at"] = np.random.default_rng(keys).integers(-keys, keys, count), np.arange(count)
    pieces = list(in_order((rows[start : start + size] for start in range(0, count, size)), "key"))
    found = np.concatenate([rows[:0], *pieces])
    assert found.tolist() == rows[np.argsort(rows["key"], kind="stable")].tolist()
    assert max(map(len, pieces), default=0) <= 16 + 4 * len(range(0, count, 16))


def test_texts_are_numbered_as_they_first_appear(in_files):
    in_files(16)
    texts = [f"job-{number}" for number in np.random.default_rng(1).integers(0, 90, 400)]
    appearances = Appearances()
    for text in texts:
        appearances.add(text)
    number, first = appearances.numbers()
    known = list(dict.fromkeys(texts))
    assert [known[at] for at in number] == texts
    assert first.tolist() == [texts.index(text) for text in known]


@pytest.mark.parametrize("has_room", [True, False])
def test_places_are_grouped(in_files, no_room, has_room):
    in_files()
    if not has_room:
        no_room()
    values = np.arange(50)
    places, bounds = places_by_group(50, lambda where: values[where] % 3, 4)
    assert places[bounds[1] : bounds[2]].tolist() == list(range(1, 50, 3))
    assert bounds.tolist() == [0, 17, 34, 50, 50]
    places, bounds = places_by_group(0, lambda where: values[where], 2)
    assert (places.tolist(), bounds.tolist()) == ([], [0, 0, 0])

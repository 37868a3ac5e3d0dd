"""Arrays in temporary files, and those that are made piece by piece, are those that they would be in memory."""

import resource
from tempfile import TemporaryFile

import numpy as np
import pytest

from cpsim.evidence.journal import RECORD_TYPE
from cpsim.system import mapped
from cpsim.system.growing import Growing, changeable, gathered, made
from cpsim.system.mapped import put_anywhere, stored, stretches, taken, taken_anywhere, zeros


def test_values_are_taken_from_all_over_a_file_a_few_at_a_time(in_files):
    in_files()
    values = stored(np.arange(300).reshape(100, 3))
    places = np.array([0, 5, 6, 98])
    assert taken(values, places).tolist() == values[places].tolist()
    assert taken(values, places[:0]).shape == (0, 3)


def test_values_are_taken_and_put_in_any_order(in_files):
    draw = np.random.default_rng(1)
    values, places, new = np.arange(900).reshape(300, 3), draw.integers(0, 300, 200), draw.integers(0, 99, 200)
    in_files()
    assert taken_anywhere(values, places).tolist() == values[places].tolist()
    assert taken_anywhere(values, places[:0]).shape == (0, 3)
    whole, filed = np.zeros(300, np.int64), zeros(300, np.dtype(np.int64))
    whole[places] = new  # where a place comes again, the last of its values counts
    put_anywhere(filed, places, new)
    assert filed.tolist() == whole.tolist()
    assert [(where.start, where.stop) for where in stretches(16)] == [(0, 7), (7, 14), (14, 16)]
    kept = zeros(20, RECORD_TYPE)
    kept["op"] = np.arange(20)
    mapped.give_back()
    assert kept["op"].tolist() == list(range(20))


def test_records_are_gathered_as_numbers_are(in_files):
    in_files(16)
    records = np.zeros(9, RECORD_TYPE)
    records["op"] = np.arange(9)
    assert gathered((records[:0], records[:4], records[4:]), RECORD_TYPE).tolist() == records.tolist()
    assert gathered((), RECORD_TYPE).tolist() == []


@pytest.mark.parametrize("has_room", [True, False])
def test_an_array_grows_by_values_and_pieces(in_files, no_room, has_room):
    in_files(16)
    if not has_room:
        no_room()
    values = Growing(np.int32)
    for number in range(40):
        values.append(number)
    values.add([7, 8])
    values.append(9)
    found = values.array()
    assert (found.tolist(), found.dtype) == ([*range(40), 7, 8, 9], np.int32)
    assert found.flags.writeable != has_room
    assert not len(Growing(np.uint8).array())
    assert made(33, np.int64, lambda where: np.arange(where.start, where.stop) * 2).tolist() == list(range(0, 66, 2))


def test_columns_for_which_there_is_no_room_stay_in_memory(in_files, no_room):
    in_files()
    no_room()
    values = np.arange(50)
    assert np.shares_memory(stored(values), values)
    assert gathered(iter([values, values[:3]]), np.int64).tolist() == [*range(50), 0, 1, 2]
    assert zeros(3, np.dtype(np.int64)).tolist() == [0, 0, 0]
    assert changeable(values).tolist() == values.tolist()


@pytest.fixture
def files(monkeypatch):
    """The temporary files that are made."""
    made_files = []

    def make(*arguments, **options):
        made_files.append(TemporaryFile(*arguments, **options))  # noqa: SIM115 - what is tested closes it
        return made_files[-1]

    monkeypatch.setattr("tempfile.TemporaryFile", make)
    return made_files


def test_few_values_take_no_file(files):
    values = Growing()
    values.add(np.arange(1000))
    assert values.array().tolist() == list(range(1000))
    assert not files


def test_what_was_gathered_before_the_disk_is_full_is_kept(in_files, files):
    in_files()
    pieces = [np.arange(5), np.arange(5, 9), np.arange(9, 12)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (70, before[1]))  # in the middle of a value of the second piece
    try:
        found = gathered(pieces, np.int64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert found.tolist() == list(range(12))
    assert [file.closed for file in files] == [True]

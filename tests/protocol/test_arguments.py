"""The columns of arguments are made from the table of commands: one more kind has its own, and no line of code."""

import pyarrow as pa
import pytest

from cpdaemon.commands import COMMANDS, Description, Field
from cpsim.protocol import arguments
from cpsim.scenario.workload import ABSENT, Column, joined

EXTEND = Description(
    "extend", "gives a slot more time", 1, (Field("minutes", int, required=True), Field("why", str)), free=int
)


def test_another_kind_has_columns_of_its_own():
    commands = {**COMMANDS, "extend": EXTEND}
    added = [field for field in arguments.fields(commands) if field not in arguments.fields()]
    assert [(field.name, field.type) for field in added] == [
        ("extend.minutes", pa.int64()),
        ("extend.why", pa.string()),
        ("extend", pa.map_(pa.string(), pa.int64())),
    ]
    rows = [
        ("extend", {"why": "slow", "minutes": "9", "b": "2", "a": -1}),
        ("frame", b"\xff"),
        ("claim", {"machine": "m"}),
        ("unheard of", {"minutes": 3}),
        ("extend", {"minutes": 1}),
    ]
    names = [field.name for field in arguments.fields(commands)]
    table = pa.Table.from_arrays(arguments.of_rows(rows, commands), names)
    assert table.schema.field("frame").type == pa.binary()
    given = [{name: value for name, value in row.items() if value is not None} for row in table.to_pylist()]
    assert given == [
        {"extend.minutes": 9, "extend.why": "slow", "extend": [("b", 2), ("a", -1)]},
        {"frame": b"\xff"},
        {"claim.machine": "m"},
        {},
        {"extend.minutes": 1, "extend": []},
    ]


def test_another_kind_has_arguments_in_a_workload():
    blocks = [
        (2, {"minutes": 5, "why": Column(pa.array([1, 0], pa.int32()).to_numpy(), ("slow", "busy")), "b": 1}),
        (1, {"minutes": 5}),
        (0, {"a": 7}),
    ]
    made = joined(EXTEND, blocks)
    assert [made.row(row) for row in range(3)] == [
        {"minutes": 5, "why": "busy", "b": 1},
        {"minutes": 5, "why": "slow", "b": 1},
        {"minutes": 5},
    ]
    assert made["minutes"].values.strides == (0,)  # one number for all takes no memory
    assert (made.names, made.free.tolist()) == (("b", "a"), [[1, ABSENT], [1, ABSENT], [ABSENT, ABSENT]])


def test_what_a_kind_does_not_have_is_an_error():
    with pytest.raises(ValueError, match="alloc: no argument 'colour': expected credits, min, max, expire"):
        joined(COMMANDS["alloc"], [(1, {"colour": 3})])
    codes = pa.array([0], pa.int32()).to_numpy()
    with pytest.raises(ValueError, match="the texts of an argument are the same in all blocks"):
        joined(COMMANDS["discard"], [(1, {"reason": Column(codes, (text,))}) for text in "ab"])


@pytest.mark.parametrize(
    ("kind", "given", "read", "whole"),
    [
        ("claim", {"machine": "m", "credits": 7.9}, {"machine": "m"}, False),
        ("claim", {"machine": 7, "credits": "12"}, {"machine": "7", "credits": 12}, True),
        ("claim", {"machine": "m", "credits": True}, {"machine": "m"}, False),
        ("claim", {"machine": "m", "credits": "9" * 30}, {"machine": "m"}, False),
        ("claim", {"machine": "m", "colour": "red"}, {"machine": "m"}, True),
        ("counters", {"a": 1, "b": "x"}, {"a": 1}, False),
        ("lib/claim", {"vmid": "m"}, {}, True),
    ],
)
def test_what_a_server_was_sent_is_read_as_far_as_it_has_the_right_types(kind, given, read, whole):
    assert arguments.readable(kind, given) == (read, whole)

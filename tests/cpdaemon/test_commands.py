"""Commands are values, and cannot exist invalid."""

import copy
import pickle

import pytest

from cpdaemon import Alloc, Claim, Counters, CreditPiggyError, Discard, InvalidCommand, Meta
from cpdaemon.commands import KINDS, MAX_FRAME_BYTES

EXAMPLES = [
    Alloc("s", 5),
    Alloc("s", min=1, max=3, expire=10),
    Claim("s", "m"),
    Claim("s", "m", 0),
    Discard("s"),
    Discard("s", "lost"),
    Counters("s", {"job/events": -3}),
    Meta("s", {"site": "CERN é"}),
]


@pytest.mark.parametrize(
    ("command", "kind", "arguments"),
    [
        (Alloc("s"), "alloc", {"slot": "s"}),
        (Alloc("s", 0), "alloc", {"slot": "s", "credits": 0}),
        (Alloc("s", 5, 1, 9, 60), "alloc", {"slot": "s", "credits": 5, "min": 1, "max": 9, "expire": 60}),
        (Claim("s", "m", credits=1), "claim", {"slot": "s", "machine": "m", "credits": 1}),
        (Discard("s", "lost"), "discard", {"slot": "s", "reason": "lost"}),
        (Counters("s", {"b": 1, "a": -2}), "counters", {"slot": "s", "b": 1, "a": -2}),
        (Meta("s", {"a": "b c"}), "meta", {"slot": "s", "a": "b c"}),
    ],
)
def test_arguments_have_wire_names_in_wire_order(command, kind, arguments):
    assert command.kind == kind
    assert kind in KINDS
    assert list(command.arguments().items()) == list(arguments.items())


@pytest.mark.parametrize("command", EXAMPLES, ids=repr)
def test_commands_are_values(command):
    for twin in (
        copy.copy(command),
        copy.deepcopy(command),
        pickle.loads(pickle.dumps(command)),
        eval(repr(command)),
    ):
        assert twin == command
        assert hash(twin) == hash(command)
    with pytest.raises(AttributeError, match="immutable"):
        command.slot = "other"
    with pytest.raises(AttributeError, match="immutable"):
        del command.slot
    with pytest.raises(AttributeError):
        command.extra = 1
    assert sum(command == other for other in EXAMPLES) == 1


def test_commands_match_patterns():
    match Claim("s", "m", 3):
        case Claim(slot, machine, credits):
            assert (slot, machine, credits) == ("s", "m", 3)


def test_values_are_copied_and_read_only():
    values = {"a": 1}
    command = Counters("s", values)
    values["slot"] = 9
    assert command.arguments() == {"slot": "s", "a": 1}
    with pytest.raises(TypeError):
        command.values["a"] = 2


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Alloc("j1,credits=9999"), r"alloc: slot 'j1,credits=9999' contains ','"),
        (lambda: Alloc("a=b"), "contains '='"),
        (lambda: Alloc("a\nb"), r"contains '\\n'"),
        (lambda: Alloc("a\x00"), r"contains '\\x00'"),
        (lambda: Alloc("a\x7f"), r"contains '\\x7f'"),
        (lambda: Alloc("a\x85b"), r"contains '\\x85'"),
        (lambda: Alloc("\udc80"), r"contains '\\udc80'"),
        (lambda: Alloc(" a"), "white space"),
        (lambda: Alloc("a\u3000"), "white space"),
        (lambda: Alloc(""), "slot '' is empty"),
        (lambda: Alloc(7), r"slot 7 is of type int: write str"),
        (lambda: Alloc(b"x"), "type bytes"),
        (lambda: Alloc(None), "type NoneType"),
        (lambda: Alloc(10**5000), "beyond 64 bits"),
        (lambda: Alloc("s", True), "credits True is of type bool"),
        (lambda: Alloc("s", 7.0), "credits 7.0 is of type float"),
        (lambda: Alloc("s", "7"), "credits '7' is of type str"),
        (lambda: Alloc("s", -1), "credits -1 is out of bounds"),
        (lambda: Alloc("s", 2**63), "beyond 64 bits"),
        (lambda: Alloc("s", 10**5000), "beyond 64 bits"),
        (lambda: Alloc("s", min=-1), "min -1"),
        (lambda: Alloc("s", max=-1), "max -1"),
        (lambda: Alloc("s", min=3, max=2), "min 3 is over max 2"),
        (lambda: Alloc("s", 5, 3, 2), "min 3 is over max 2"),
        (lambda: Alloc("s", expire=0), "expire 0"),
        (lambda: Alloc("s", expire=1.5), "expire 1.5"),
        (lambda: Claim("s", ""), "claim: machine '' is empty"),
        (lambda: Claim("s", "m,credits=9"), "claim: machine 'm,credits=9' contains ','"),
        (lambda: Claim("s", "m", -1), "claim: credits -1"),
        (lambda: Discard("s", "a,b"), "discard: reason"),
        (lambda: Discard("s", ""), "discard: reason '' is empty"),
        (lambda: Counters("s", {}), "nothing to send"),
        (lambda: Meta("s", {}), "nothing to send"),
        (lambda: Counters("s", [("a", 1)]), "must be a mapping"),
        (lambda: Counters("s", {"slot": 1}), "'slot' is taken"),
        (lambda: Meta("s", {"Slot": "x"}), "'Slot' is taken"),
        (lambda: Counters("s", {"": 1}), "the name '' is empty"),
        (lambda: Counters("s", {"a=1,b": 1}), "the name 'a=1,b' contains '='"),
        (lambda: Counters("s", {1: 1}), "the name 1 is of type int"),
        (lambda: Counters("s", {"a": 1.5}), "counters: a 1.5"),
        (lambda: Counters("s", {"a": True}), "counters: a True"),
        (lambda: Counters("s", {"a": -(2**63)}), "a \\(beyond 64 bits\\)"),
        (lambda: Meta("s", {"a": 5}), "meta: a 5 is of type int: write str"),
        (lambda: Meta("s", {"a": "x,slot=y"}), "meta: a 'x,slot=y' contains ','"),
    ],
)
def test_refusals_name_argument_and_value(make, said):
    with pytest.raises(InvalidCommand, match=said) as caught:
        make()
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, CreditPiggyError)
    assert caught.value.definite
    assert len(str(caught.value)) < 300


def test_the_frame_limit_is_exact():
    room = MAX_FRAME_BYTES - len("alloc,slot=")
    Alloc("x" * room)
    with pytest.raises(InvalidCommand, match="1,501 bytes"):
        Alloc("x" * (room + 1))
    with pytest.raises(InvalidCommand, match="1,501 bytes"):
        Alloc("é" * (room // 2) + "xx")


def test_subclasses_of_text_are_refused_as_they_may_write_themselves_differently():
    class Sly(str):
        __slots__ = ()

        def __format__(self, spec):
            return "x,credits=9999"

    with pytest.raises(InvalidCommand, match="type Sly"):
        Alloc(Sly("x"))

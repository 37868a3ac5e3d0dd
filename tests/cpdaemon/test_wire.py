"""Frames out and in."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpdaemon import Alloc, Claim, Counters, Discard, InvalidCommand, Meta
from cpdaemon.wire import MAX_FRAME_BYTES, MalformedFrame, parse

text = st.text(st.characters(exclude_characters=",=", exclude_categories=("Cc", "Cs")), min_size=1, max_size=20).filter(
    lambda value: value == value.strip()
)
name = text.filter(lambda value: value.lower() != "slot")
amount = st.none() | st.integers(0, 2**63 - 1)
commands = st.one_of(
    st.builds(
        Alloc,
        text,
        amount,
        st.none() | st.integers(0, 9),
        st.none() | st.integers(9, 99),
        amount.filter(lambda e: e != 0),
    ),
    st.builds(Claim, text, text, amount),
    st.builds(Discard, text, st.none() | text),
    st.builds(Counters, text, st.dictionaries(name, st.integers(-(2**40), 2**40), min_size=1, max_size=5)),
    st.builds(Meta, text, st.dictionaries(name, text, min_size=1, max_size=5)),
)


@pytest.mark.parametrize(
    ("command", "frame"),
    [
        (Alloc("x", 5), b"alloc,slot=x,credits=5"),
        (Alloc("x", min=1, max=2, expire=3), b"alloc,slot=x,min=1,max=2,expire=3"),
        (Claim("x", "m", 1), b"claim,slot=x,machine=m,credits=1"),
        (Discard("x"), b"discard,slot=x"),
        (Counters("x", {"job/events": -5}), b"counters,slot=x,job/events=-5"),
        (Meta("x", {"site": "Zürich"}), "meta,slot=x,site=Zürich".encode()),
    ],
)
def test_frames(command, frame):
    assert command.frame == frame


@given(commands)
def test_a_daemon_reads_what_was_meant(command):
    frame = command.frame
    assert len(frame) <= MAX_FRAME_BYTES
    for variant in (frame, frame + b"\n", b" \r\n" + frame + b"\t"):
        assert parse(variant) == (command.kind, {n: str(v) for n, v in command.arguments().items()})


@given(st.text(max_size=30), st.text(string.printable, max_size=30), st.text(max_size=30))
def test_nothing_can_forge_an_argument(slot, name, value):
    try:
        command = Meta(slot, {name: value})
    except InvalidCommand:
        return
    assert parse(command.frame) == ("meta", {"slot": slot, name: value})


@given(st.binary(max_size=40) | st.text("alocm,=\n ", max_size=40).map(lambda tail: f"alloc,slot=x,{tail}".encode()))
def test_any_bytes_are_a_command_or_malformed(frame):
    try:
        kind, arguments = parse(frame)
    except MalformedFrame:
        return
    assert kind in {"alloc", "claim"}
    assert arguments["slot"]


@pytest.mark.parametrize("frame", [b"ALLOC,slot=x", b"Alloc,slot=x\n", b"  alloc,slot=x\r\n"])
def test_case_and_white_space(frame):
    assert parse(frame) == ("alloc", {"slot": "x"})


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"pay,slot=x", "unknown command 'pay'"),
        (b"alloc", "no slot"),
        (b"alloc,credits=5", "no slot"),
        (b"alloc,slot=", "no slot"),
        (b"claim,slot=x", "no machine"),
        (b"claim,slot=x,machine=", "no machine"),
        (b"alloc,slot", "argument 'slot' has no '='"),
        (b"alloc,slot=x,", "argument '' has no '='"),
        (b"alloc,slot=a=b", "'slot=a=b' has more than one '='"),
        (b"alloc,slot=x,=5", "'=5' has no name"),
        (b"alloc,slot=x,slot=y", "'slot' is given twice"),
        (b"alloc,slot=x\xff", "byte 12 of the frame is not UTF-8"),
        (b"alloc,slot=x\x00y", r"control character '\\x00'"),
        (b"alloc,slot=x\nclaim,slot=x", r"control character '\\n'"),
        ("alloc,slot=x\x85y".encode(), r"control character '\\x85'"),
        (b"alloc,slot=" + b"x" * 1490, "1,501 bytes"),
    ],
)
def test_malformed_frames(frame, said):
    with pytest.raises(MalformedFrame, match=said) as caught:
        parse(frame)
    assert isinstance(caught.value, ValueError)


def test_size_is_measured_after_stripping():
    assert parse(b" " * 900 + b"alloc,slot=" + b"x" * 1489 + b"\n" * 900)[0] == "alloc"

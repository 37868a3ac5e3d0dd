"""Malformed frames and requests: valid ones that were damaged, and garbage. The same seed makes the same ones."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from cpdaemon.signing import token
from cpdaemon.wire import MalformedFrame, parse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

CREDENTIALS = ("fuzz", "secret")
FRAMES = (
    b"alloc,slot=s1,credits=5",
    b"alloc,slot=s2,min=1,max=9,expire=60",
    b"counters,slot=s1,job/events=100,job/cpuusage=-3",
    b"meta,slot=s2,site=CERN",
    b"discard,slot=s2,reason=unknown-vmid",
    b"claim,slot=s1,machine=m1,credits=1",
)
DOCUMENTS: tuple[tuple[str, dict[str, object]], ...] = (
    ("alloc", {"slot": "s1", "credits": 5}),
    ("counters", {"slot": "s1", "job/events": 100, "job/cpuusage": -3}),
    ("claim", {"slot": "s1", "machine": "m1", "credits": 1}),
    ("bulk", {"alloc": [{"slot": "s1"}, {"slot": "s2", "min": 1}], "claim": [{"slot": "s2", "machine": "m"}]}),
)
WRONG_VALUES = (
    None, True, -1, 7.9, 2**53, 2**64, -(2**63) - 1, 10**40, 1e308, "", "1e5", "-1", "7.9", "0" * 20, "\u0665",
    "\ud7ff", "\0", "x" * 5_000, [], {}, [[]], [None, 1], {"slot": {"slot": []}},
)  # fmt: skip
PIECES = (
    b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\n", b"\r\n\r\n", b",", b"=", b",,", b"==", b",slot=", b" ", b"\x1b[2J",
    b"A" * 100, b"A" * 2_000, b"{", b"}", b"[", b'"', b"\\", b"\\ud800", b"1e999", b"-", b"%00", b"%",
)  # fmt: skip


class Exchange(NamedTuple):
    """Bytes to be sent, in so many pieces; whether the sending side is then closed; and whether they are a whole."""

    pieces: list[bytes]
    half_close: bool
    whole: bool


def frames(random: Random) -> Iterator[Exchange]:
    """Frames that are no commands."""
    while True:
        draw = random.random()
        frame = random.randbytes(random.randrange(200)) if draw < 0.2 else damaged(random, random.choice(FRAMES))
        if draw > 0.9:
            frame = random.choice(FRAMES)[: random.randrange(1, 12)]
        if is_malformed(frame):
            ending = random.random()
            if ending < 0.01:
                yield Exchange([frame], half_close=False, whole=False)  # it is up to the daemon to lose patience
            elif ending < 0.1 and len(frame) > 1:
                middle = random.randrange(1, len(frame))
                yield Exchange([frame[:middle], frame[middle:]], half_close=True, whole=False)
            else:
                yield Exchange([frame], half_close=True, whole=True)


def requests(random: Random) -> Iterator[Exchange]:
    """Requests of which next to none can be done."""
    makers = (_damaged_body, _wrong_values, _deep, _not_signed, _damaged_request, _chunks, _head, _garbage)
    weights = (30, 30, 3, 10, 15, 6, 3, 3)
    while True:
        (make,) = random.choices(makers, weights)
        yield make(random)


def damaged(random: Random, text: bytes) -> bytes:
    """Bytes with a few of them changed, left out, put in, repeated, or cut off."""
    for _ in range(random.randrange(1, 4)):
        start = random.randrange(len(text) + 1)
        end = min(len(text), start + random.randrange(1, 12))
        change = random.choice(
            (b"", bytes([random.randrange(256)]), random.choice(PIECES), text[start:end] * 2, text[end:] + text[:start])
        )
        text = text[:start] + change + (text[end:] if random.random() < 0.9 else b"")
    return text


def is_malformed(frame: bytes) -> bool:
    """Whether a daemon must not take a frame."""
    try:
        parse(frame)
    except MalformedFrame:
        return bool(frame.strip())
    return False


def _request(body: bytes, name: str, authorization: str | None = None) -> bytes:
    signed = token(CREDENTIALS, body) if authorization is None else authorization
    head = (
        f"POST /api/batch/{name} HTTP/1.1\r\nHost: fuzz\r\nAuthorization: {signed}\r\nContent-Length: {len(body)}\r\n"
    )
    return head.encode() + b"\r\n" + body


def _sent(request: bytes, *, whole: bool = True) -> Exchange:
    return Exchange([request], half_close=not whole, whole=whole)


def _damaged_body(random: Random) -> Exchange:
    name, document = random.choice(DOCUMENTS)
    return _sent(_request(damaged(random, json.dumps(document).encode()), name))


def _wrong_values(random: Random) -> Exchange:
    name, document = random.choice(DOCUMENTS)
    document = dict(document)
    document[random.choice([*document, "min", "other"])] = random.choice(WRONG_VALUES)
    if name == "bulk":
        command = {"slot": "s1", random.choice(("slot", "credits", "expire")): random.choice(WRONG_VALUES)}
        document[random.choice(("alloc", "counters", "meta", "steal"))] = [command, random.choice(WRONG_VALUES)]
    return _sent(_request(json.dumps(document).encode(), name))


def _deep(random: Random) -> Exchange:
    depth = random.choice((10, 200, 900, 990, 1_000, 5_000, 50_000))
    opening, closing = random.choice(((b"[", b"]"), (b'{"slot":', b"}")))
    nest = opening * depth + b"1" + closing * random.choice((depth, depth - 1))
    name, body = random.choice((("alloc", b'{"slot":%s}'), ("bulk", b'{"alloc":[{"slot":%s}]}'), ("bulk", b"%s")))
    return _sent(_request(body % nest, name))


def _not_signed(random: Random) -> Exchange:
    body = b'{"slot":"s1"}'
    right = token(CREDENTIALS, body)
    wrong = random.choice(
        ("", "x", "sha-256,fuzz", "md5,fuzz,0", "sha-256,no,0", right[:-1] + "g", right + ",", "," * 99)
    )
    return _sent(_request(body, random.choice(("alloc", "bulk", "slots", "no-such")), wrong))


def _damaged_request(random: Random) -> Exchange:
    name, document = random.choice(DOCUMENTS)
    return _sent(damaged(random, _request(json.dumps(document).encode(), name)), whole=False)


def _chunks(random: Random) -> Exchange:
    head = b"POST /api/batch/alloc HTTP/1.1\r\nHost: fuzz\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = (
        b"5\r\nab\r\n",
        b"zz\r\n",
        b"-1\r\n",
        b"ffffffffffffffff\r\n",
        b"0\r\n",
        b"1\r\nab\r\n0\r\n\r\n",
        b"3;" + b"x" * 999,
    )
    return _sent(head + random.choice(chunks), whole=False)


def _head(random: Random) -> Exchange:
    line = random.choice((b"POST", b"\0", b"GET /api/heartbeat HTTP/9.9", b"GET " + b"/" * 70_000 + b" HTTP/1.1"))
    header = random.choice(
        (b"X: " + b"x" * 70_000, b"X" * 70_000, b": x", b"\xff: \xff", b"Content-Length: -1", b"A: b\r\n" * 9_000)
    )
    return _sent(line + b"\r\n" + header + b"\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", whole=False)


def _garbage(random: Random) -> Exchange:
    return _sent(random.randbytes(random.randrange(1, 3_000)), whole=False)

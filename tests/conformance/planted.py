"""Faults to plant in the plain server, one at a time: what a lazy or unlucky author could write, kind by kind.

python tests/conformance/planted.py [--thorough] [NAME...] prints which clauses find which fault, and what is missed.
"""
# ruff: noqa: A006, E731, PLW0108, SIM905 - a fault is a line

import argparse
import hashlib
import hmac
import html
import json
import select
import struct
import sys
import unicodedata
from collections import defaultdict
from contextlib import nullcontext
from itertools import count
from typing import NamedTuple
from urllib.parse import quote, unquote

from plain_server import HASHES, OPEN, PROJECTS, No, Server, add

from cpdaemon.endpoint import parse_endpoint
from cpsim.conformance.suite import examine
from cpsim.conformance.target import Target

MINE, OTHER = PROJECTS.items()
TARGET = {
    ("replies", False): 0.85,
    ("replies", True): 0.95,
    ("accounts", False): 0.95,
    ("accounts", True): 0.95,
}
"""What part of the faults is to be found, by where they show, without and with --thorough."""


class Fault(NamedTuple):
    """A fault.

    Attributes:
        kind: what it is about.
        plant: puts it into a server.
        shows: in "replies", or in "accounts" alone.
    """

    kind: str
    plant: object
    shows: str = "replies"


FAULTS = {}


def fault(kind, name, method, wrong, shows="replies"):
    """Plant `wrong(right, it, *arguments)` for a method of the server, or for one of its books, `books.NAME`."""

    def plant(server):
        it = server.books if method.startswith("books.") else server
        seam = method.removeprefix("books.")
        right = getattr(it, seam)
        setattr(it, seam, lambda *arguments: wrong(right, it, *arguments))

    add_fault(kind, name, plant, shows)


def add_fault(kind, name, plant, shows="replies"):
    assert name not in FAULTS, name
    FAULTS[name] = Fault(kind, plant, shows)


def refuse_if(bad):
    """Refuse what is bad, and else do what is right."""

    def wrong(right, it, *arguments):
        if bad(*arguments):
            raise No("no")
        return right(*arguments)

    return wrong


# at the same time


def unlocked(*where):
    """Nothing is locked, and a moment passes between looking and doing."""

    def plant(server):
        server.books.lock = nullcontext()
        server.books.moment = lambda what: select.select([], [], [], 0.003) if what in where else None

    return plant


RACE = "at the same time"
add_fault(RACE, "race-claim", unlocked("claim"))
add_fault(RACE, "race-alloc", unlocked("alloc"))
add_fault(RACE, "race-discard", unlocked("discard"))
add_fault(RACE, "race-claim-discard", unlocked("claim", "discard"))
add_fault(RACE, "race-all", unlocked("alloc", "claim", "discard", "counters", "credits"))
add_fault(RACE, "lost-counters", unlocked("counters"), "accounts")
add_fault(RACE, "lost-credits", unlocked("credits"), "accounts")
add_fault(RACE, "lost-waiting", unlocked("waiting_credits"), "accounts")


def stale_list(server):
    """Every alloc writes the whole table back."""
    right = server.books.alloc

    def alloc(project, given):
        before = dict(project.slots)
        right(project, given)
        made = {name: slot for name, slot in project.slots.items() if name not in before}
        select.select([], [], [], 0.003)
        project.slots = {**before, **made}

    server.books.lock, server.books.alloc = nullcontext(), alloc


add_fault(RACE, "race-table", stale_list)


def shared_reply(server):
    """The answer is kept where all threads keep theirs."""
    right, last = server.answer, []

    def answer(*arguments):
        made = right(*arguments)
        last[:] = [made]
        select.select([], [], [], 0.002)
        return last[0]

    server.answer = answer


add_fault(RACE, "race-replies", shared_reply)

# forged signatures

FORGED = "forged signatures"


def also(matches):
    """Take what matches too."""
    return lambda right, it, digest, algorithm, data, secret: (
        right(digest, algorithm, data, secret) or matches(digest, HASHES[algorithm], data, secret)
    )


for name, matches in {
    "empty-digest": lambda d, h, b, s: not d,
    "no-secret": lambda d, h, b, s: d == h(b).hexdigest(),
    "secret-first": lambda d, h, b, s: d == h(s + b).hexdigest(),
    "hmac-too": lambda d, h, b, s: d == hmac.new(s, b, h).hexdigest(),
    "secret-alone": lambda d, h, b, s: d == h(s).hexdigest(),
    "any-algorithm": lambda d, h, b, s: d in [each(b + s).hexdigest() for each in HASHES.values()],
    "md5-too": lambda d, h, b, s: d == hashlib.md5(b + s).hexdigest(),
    "prefix": lambda d, h, b, s: bool(d) and h(b + s).hexdigest().startswith(d),
    "prefix-of-eight": lambda d, h, b, s: d[:8] == h(b + s).hexdigest()[:8],
    "suffix": lambda d, h, b, s: bool(d) and h(b + s).hexdigest().endswith(d),
    "padded": lambda d, h, b, s: d.startswith(h(b + s).hexdigest()),
    "contains": lambda d, h, b, s: h(b + s).hexdigest() in d,
    "zipped": lambda d, h, b, s: all(x == y for x, y in zip(d, h(b + s).hexdigest())),  # noqa: B905 - the fault
    "first-half-of-body": lambda d, h, b, s: d == h(b[: len(b) // 2] + s).hexdigest(),
    "the-secret": lambda d, h, b, s: d == s.decode(),
    "length-alone": lambda d, h, b, s: len(d) == h().digest_size * 2,
    "sorted": lambda d, h, b, s: sorted(d) == sorted(h(b + s).hexdigest()),
    "line-end": lambda d, h, b, s: d == h(b + b"\n" + s).hexdigest(),
    "stripped-body": lambda d, h, b, s: d == h(b.strip() + s).hexdigest(),
    "one-digit-off": lambda d, h, b, s: sum(x != y for x, y in zip(d, h(b + s).hexdigest(), strict=False)) <= 1,
    "last-digit": lambda d, h, b, s: d[:-1] == h(b + s).hexdigest()[:-1],
}.items():
    fault(FORGED, f"forged-{name}", "matches", also(matches))
for place in ("bulk", "slots", "meta", "claim", "counters"):
    fault(
        FORGED,
        f"unchecked-{place}",
        "is_signed",
        lambda right, it, at, *more, place=place: at == place or right(at, *more),
    )
fault(
    FORGED,
    "unchecked-get",
    "is_signed",
    lambda right, it, at, method, *more: method == "GET" or right(at, method, *more),
)
for size in (64, 1024, 65_536):
    fault(
        FORGED,
        f"covers-{size}-only",
        "covered",
        lambda right, it, signed, n=size: signed if len(signed) <= n else signed[:n],
    )
fault(FORGED, "unknown-project", "secret", lambda right, it, name: right(name) or "")
fault(
    FORGED,
    "project-by-prefix",
    "secret",
    lambda right, it, name: next((s for p, s in PROJECTS.items() if name.startswith(p)), None),
)
fault(FORGED, "any-project", "secret", lambda right, it, name: right(name) or PROJECTS["alpha"])


def trust(right, it, method, place, query, headers, body, state):
    if state.get("project") and method != "GET":
        return state["project"], body
    state["project"], signed = right(method, place, query, headers, body, state)
    return state["project"], signed


fault(FORGED, "signed-once-a-connection", "signer", trust)
fault(FORGED, "json-again", "covered", lambda right, it, signed: reserialised(signed))


def reserialised(signed):
    try:
        return json.dumps(json.loads(signed), separators=(",", ":")).encode()
    except ValueError:
        return signed


# identity

IDENT = "identity of ids"
FOLDS = {
    "lower": str.lower,
    "upper": str.upper,
    "casefold": str.casefold,
    "stripped": str.strip,
    "left-stripped": str.lstrip,
    "right-stripped": str.rstrip,
    "nfc": lambda text: unicodedata.normalize("NFC", text),
    "nfd": lambda text: unicodedata.normalize("NFD", text),
    "nfkc": lambda text: unicodedata.normalize("NFKC", text),
    "ascii": lambda text: text.encode("ascii", "ignore").decode(),
    "accents": lambda text: "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c)),
    "latin-1": lambda text: text.encode("latin-1", "replace").decode("latin-1"),
    "unquoted": unquote,
    "plus": lambda text: text.replace("+", " "),
    "unescaped": html.unescape,
    "cut-32": lambda text: text[:32],
    "cut-64": lambda text: text[:64],
    "cut-100": lambda text: text[:100],
    "cut-128": lambda text: text[:128],
    "cut-200": lambda text: text[:200],
    "cut-255": lambda text: text[:255],
    "zeros": lambda text: text.lstrip("0"),
    "dashes": lambda text: text.replace("_", "-"),
    "blanks": lambda text: " ".join(text.split()),
    "no-blanks": lambda text: text.replace(" ", ""),
    "slashes": lambda text: text.replace("//", "/").rstrip("/"),
    "dots": lambda text: text.rstrip("."),
    "quotes": lambda text: text.replace('"', "'"),
    "words": lambda text: "".join(c for c in text if c.isalnum() or c in "-_"),
    "hash": lambda text: text.partition("#")[0],
    "bmp": lambda text: "".join(c for c in text if c <= "\uffff"),
}
for name, fold in FOLDS.items():
    folded = lambda right, it, text, fold=fold: fold(text)
    fault(IDENT, f"ids-{name}", "books.slot_id", folded)
    fault(
        IDENT,
        f"listed-{name}",
        "listing",
        lambda right, it, project, fold=fold: [fold(slot) for slot in right(project)],
    )
for name in "lower stripped right-stripped nfc nfkc accents unquoted cut-64 cut-100 zeros dashes blanks words".split():
    folded = lambda right, it, text, fold=FOLDS[name]: fold(text)
    for what in ("machine_id", "counter_name", "user_id", "meta_name", "meta_value", "reason_text"):
        if what != "user_id" or name in {"lower", "accents", "nfc", "nfkc"}:
            fault(
                IDENT,
                f"{what.partition('_')[0]}s-{name}{'-value' * (what == 'meta_value')}",
                f"books.{what}",
                folded,
                "accounts",
            )
fault(IDENT, "listed-quoted", "listing", lambda right, it, project: [quote(slot) for slot in right(project)])
fault(IDENT, "listed-html", "listing", lambda right, it, project: [html.escape(slot) for slot in right(project)])
fault(
    IDENT,
    "listed-sorted-set-lower",
    "listing",
    lambda right, it, project: sorted({slot.lower() for slot in right(project)}),
)

# sizes

SIZES = "sizes"
for most in (50, 100, 500, 1000):
    fault(SIZES, f"lists-{most}", "listing", lambda right, it, project, n=most: right(project)[:n])
    fault(SIZES, f"lists-last-{most}", "listing", lambda right, it, project, n=most: right(project)[-n:])
for most in (100, 256, 500, 1000):
    fault(SIZES, f"bulk-{most}", "commands", lambda right, it, given, n=most: given[:n])
for most in (1, 10, 100):
    fault(SIZES, f"errors-{most}", "errors", lambda right, it, errors, n=most: errors[:n])
fault(SIZES, "bulk-last-lost", "commands", lambda right, it, given: given[:-1] if len(given) > 20 else given)
fault(SIZES, "bulk-first-lost", "commands", lambda right, it, given: given[1:] if len(given) > 100 else given)
fault(
    SIZES,
    "errors-once",
    "errors",
    lambda right, it, errors: [json.loads(text) for text in dict.fromkeys(map(json.dumps, errors))],
)
for most in (65_536, 16_384, 1_000_000):
    fault(SIZES, f"body-{most}", "read_body", lambda right, it, incoming, *more, n=most: right(incoming, *more)[:n])
for most in (64, 128, 200, 255):
    fault(SIZES, f"ids-up-to-{most}", "books.alloc", refuse_if(lambda p, given, n=most: len(given.get("slot", "")) > n))
for most in (64, 100, 255):
    fault(
        SIZES,
        f"reasons-up-to-{most}",
        "books.discard",
        refuse_if(lambda p, given, n=most: len(given.get("reason", "")) > n),
    )
    fault(
        SIZES,
        f"machines-up-to-{most // 2}",
        "books.claim",
        refuse_if(lambda p, given, n=most // 2: len(given.get("machine", "")) > n),
    )
    fault(
        SIZES,
        f"meta-up-to-{most}",
        "books.check_meta",
        refuse_if(lambda slot, notes, n=most: any(len(v) > n for v in notes.values())),
    )
    fault(
        SIZES,
        f"counters-up-to-{most // 2}",
        "books.check_counters",
        refuse_if(lambda slot, values, n=most // 2: any(len(v) > n for v in values)),
    )
fault(SIZES, "ten-counters", "books.check_counters", refuse_if(lambda slot, values: len(values) > 10 or not values))
fault(SIZES, "ten-notes", "books.check_meta", refuse_if(lambda slot, notes: len(notes) > 10))
fault(
    SIZES, "hundred-counters", "books.check_counters", refuse_if(lambda slot, values: len(values) > 100 or not values)
)
for bits in (31, 32, 52):
    beyond = lambda value, n=bits: isinstance(value, int) and abs(value) >= 2**n
    fault(
        SIZES,
        f"credits-{bits}-bits",
        "books.check_terms",
        refuse_if(lambda *terms, beyond=beyond: any(map(beyond, terms)) or (terms[1] or 0) > (terms[2] or 2**99)),
    )
    fault(
        SIZES,
        f"counters-{bits}-bits",
        "books.check_counters",
        refuse_if(lambda slot, values, beyond=beyond: not values or any(map(beyond, values.values()))),
    )
fault(
    SIZES,
    "compares-as-32-bits",
    "books.check_terms",
    refuse_if(lambda c, low, high, m: None not in (low, high) and low % 2**32 > high % 2**32),
)
fault(
    SIZES,
    "compares-as-text",
    "books.check_terms",
    refuse_if(lambda c, low, high, m: None not in (low, high) and str(low) > str(high)),
)
fault(
    SIZES,
    "counts-as-float",
    "books.count",
    lambda right, it, slot, name, value: right(slot, name, int(struct.unpack("f", struct.pack("f", value))[0])),
    "accounts",
)
fault(
    SIZES,
    "counts-as-32-bits",
    "books.count",
    lambda right, it, slot, name, value: right(slot, name, (value + 2**31) % 2**32 - 2**31),
    "accounts",
)


def forgets(most):
    """Of settled slots only the last are known."""

    def wrong(right, it, project, name):
        settled = [key for key, slot in project.slots.items() if slot["state"] != OPEN]
        for key in settled[:-most]:
            del project.slots[key]
        right(project, name)

    return wrong


for most in (100, 500):
    fault(SIZES, f"forgets-after-{most}", "books.check_new", forgets(most))

# legal edges

EDGES = "legal edges refused"
for name, bad in {
    "credits-0": lambda c, low, high, m: c == 0,
    "min-0": lambda c, low, high, m: low == 0,
    "max-0": lambda c, low, high, m: high == 0,
    "min-is-max": lambda c, low, high, m: low is not None and low == high,
    "min-alone": lambda c, low, high, m: low is not None and high is None,
    "max-alone": lambda c, low, high, m: high is not None and low is None,
    "credits-and-range": lambda c, low, high, m: c is not None and (low, high) != (None, None),
    "expire-1": lambda c, low, high, m: m == 1,
    "expire-of-a-week": lambda c, low, high, m: m is not None and m > 10_080,
    "expire-of-a-year": lambda c, low, high, m: m is not None and m > 525_600,
    "expire-in-hours": lambda c, low, high, m: m is not None and m % 60,
}.items():
    fault(
        EDGES,
        f"refuses-{name}",
        "books.check_terms",
        lambda right, it, *terms, bad=bad: right(*terms) or refuse_if(bad)(right, it, *terms),
    )
for name, bad in {
    "meta-empty": lambda slot, notes: "" in notes.values(),
    "meta-twice": lambda slot, notes: set(notes) & set(slot["meta"]),
    "meta-same": lambda slot, notes: any(slot["meta"].get(name) == value for name, value in notes.items()),
    "meta-after-counters": lambda slot, notes: slot["counters"],
    "meta-numbers": lambda slot, notes: any(value.isdigit() for value in notes.values()),
    "meta-not-ascii": lambda slot, notes: not all(value.isascii() for value in notes.values()),
    "meta-slash": lambda slot, notes: any("/" in name for name in notes),
    "meta-names-of-arguments": lambda slot, notes: {"machine", "credits", "reason", "expire"} & set(notes),
}.items():
    fault(EDGES, f"refuses-{name}", "books.check_meta", refuse_if(bad))
for name, bad in {
    "counter-0": lambda slot, values: 0 in values.values(),
    "counter-negative": lambda slot, values: min(values.values()) < 0,
    "counter-sum-negative": lambda slot, values: any(
        slot["counters"].get(name, 0) + value < 0 for name, value in values.items()
    ),
    "counter-twice": lambda slot, values: set(values) & set(slot["counters"]),
    "counters-several": lambda slot, values: len(values) > 1,
    "counter-slash": lambda slot, values: any("/" in name for name in values),
}.items():
    fault(
        EDGES,
        f"refuses-{name}",
        "books.check_counters",
        lambda right, it, slot, values, bad=bad: right(slot, values) or refuse_if(bad)(right, it, slot, values),
    )
for name, bad in {
    "claim-above": lambda p, slot, machine, given: (
        slot["credits"] is None and slot["max"] is not None and int(given.get("credits", 1)) > slot["max"]
    ),
    "claim-below": lambda p, slot, machine, given: (
        slot["credits"] is None and int(given.get("credits", 1)) < (slot["min"] or 0)
    ),
    "claim-0": lambda p, slot, machine, given: str(given.get("credits")) == "0",
    "claim-without-credits": lambda p, slot, machine, given: slot["credits"] is None and "credits" not in given,
    "claim-with-credits-fixed": lambda p, slot, machine, given: slot["credits"] is not None and "credits" in given,
    "claim-without-counters": lambda p, slot, machine, given: not slot["counters"],
    "second-slot": lambda p, slot, machine, given: machine in p.machines,
    "unknown-machine": lambda p, slot, machine, given: machine not in p.machines and len(p.machines) > 3,
    "third-slot": lambda p, slot, machine, given: p.machines.get(machine, {}).get("n", 0),
}.items():
    if name != "third-slot":
        fault(EDGES, f"refuses-{name}", "books.check_claim", refuse_if(bad))
for name, bad in {
    "unknown-reasons": lambda reason: reason not in {"unspecified", "unknown-vmid", "expired", "lost"},
    "reasons-with-blanks": lambda reason: " " in reason,
    "reasons-not-ascii": lambda reason: not reason.isascii(),
    "no-reason": lambda reason: reason == "unspecified",
    "reason-in-capitals": lambda reason: reason != reason.lower(),
    "reason-of-digits": lambda reason: reason.isdigit(),
}.items():
    fault(EDGES, f"refuses-{name}", "books.check_reason", refuse_if(bad))
fault(EDGES, "refuses-ids-not-ascii", "books.alloc", refuse_if(lambda p, given: not str(given.get("slot")).isascii()))
fault(EDGES, "refuses-ids-with-blanks", "books.alloc", refuse_if(lambda p, given: " " in str(given.get("slot"))))
fault(
    EDGES,
    "refuses-discard-with-counters",
    "books.check_open",
    lambda right, it, slot, kind: (
        right(slot, kind) or refuse_if(lambda: kind == "discard" and slot["counters"])(lambda: None, it)
    ),
)

# spellings of numbers

NUMBERS = "spellings of numbers"


def spelled(read):
    """A number is whatever this reads as one."""

    def wrong(right, it, given, name, least=0):
        try:
            return right(given, name, least)
        except No:
            value = given[name]
            try:
                value = read(value)
            except (ValueError, TypeError, OverflowError, KeyError):
                value = None
            if value is None or value < least:
                raise
            return value

    return wrong


for name, read in {
    "float": lambda v: int(float(v)),
    "whole-float": lambda v: int(float(v)) if float(v).is_integer() else None,
    "any-base": lambda v: int(v, 0),
    "hex": lambda v: int(v, 16) if v.startswith("0x") else None,
    "underscores": lambda v: int(v.replace("_", "")) if "_" in v else None,
    "commas": lambda v: int(v.replace(",", "")),
    "exponent": lambda v: int(float(v)) if isinstance(v, str) and "e" in v else None,
    "true": lambda v: int(v) if isinstance(v, bool) else None,
    "first-digits": lambda v: int("".join(c for c in v.split()[0] if c.isascii() and c.isdigit())),
    "empty-is-0": lambda v: 0 if v == "" else None,
    "minus-is-0": lambda v: 0 if v == "-" else None,
    "list": lambda v: int(v[0]) if isinstance(v, list) else None,
    "object": lambda v: len(v) if isinstance(v, dict) else None,
    "digits-of-any-script": lambda v: int(v) if v.isdigit() else None,
    "anything-is-1": lambda v: 1,
    "text-is-0": lambda v: 0 if isinstance(v, str) else None,
    "blanks-inside": lambda v: int(v.replace(" ", "")) if v.strip() != v.replace(" ", "") else None,
}.items():
    fault(NUMBERS, f"reads-{name}", "books.whole", spelled(read))
fault(
    NUMBERS,
    "no-text-numbers",
    "books.whole",
    lambda right, it, given, name, least=0: refuse_if(lambda g, n, m: isinstance(g.get(n), str))(
        right, it, given, name, least
    ),
)
fault(
    NUMBERS,
    "takes-negative",
    "books.whole",
    lambda right, it, given, name, least=0: right(given, name, -(10**9) if least == 0 else least),
)
fault(
    NUMBERS, "takes-expire-0", "books.whole", lambda right, it, given, name, least=0: right(given, name, min(least, 0))
)
for kind in ("credits", "min", "max", "expire", "job/events"):
    fault(
        NUMBERS,
        f"reads-any-{kind.replace('/', '-')}",
        "books.whole",
        lambda right, it, given, name, least=0, kind=kind: (
            1 if name == kind and name in given else right(given, name, least)
        ),
    )

# rare faults

RARE = "rare faults"


def every(times, wrong):
    """Wrong once in so many times."""

    def plant_wrong(right, it, *arguments, numbers=None):
        number = next(it.__dict__.setdefault("rare", count(1)))
        return wrong(right, it, *arguments) if number % times == 0 else right(*arguments)

    return plant_wrong


lost = lambda right, it, *arguments: None
for times in (50, 200, 1000):
    fault(RARE, f"loses-1-in-{times}", "books.apply", every(times, lost))
    fault(RARE, f"loses-1-in-{times}-of-a-bulk", "of_bulk", every(times, lost))
for times in (50, 200, 500):
    fault(
        RARE, f"500-once-in-{times}", "answer", every(times, lambda right, it, *a: (500, "text/html", "<h1>Oops</h1>"))
    )
    fault(RARE, f"503-once-in-{times}", "answer", every(times, lambda right, it, *a: (503, "text/html", "busy")))
    fault(RARE, f"twice-1-in-{times}", "command", every(times, lambda right, it, *a: (right(*a), right(*a))))
fault(
    RARE,
    "500-after-the-effect-1-in-200",
    "answer",
    every(200, lambda right, it, *a: (right(*a), (500, "text/html", "Oops"))[1]),
)
fault(RARE, "closes-1-in-200", "reply", every(200, lambda right, it, connection, *a: connection.close()))
fault(
    RARE,
    "hides-1-in-300",
    "listing",
    lambda right, it, project: [s for n, s in enumerate(right(project), 1) if n % 300],
)
fault(RARE, "refuses-1-in-300", "books.apply", every(300, lambda right, it, *a: refuse_if(lambda *_: True)(right, it)))

# connections

CONN = "connections"
for name, unread in {
    "heartbeat": lambda method, path, headers: path == "/api/heartbeat",
    "unsigned": lambda method, path, headers: method == "POST" and "authorization" not in headers,
    "slots": lambda method, path, headers: path.startswith("/api/batch/slots"),
    "unknown-path": lambda method, path, headers: not path.startswith(("/api/batch", "/api/heartbeat")),
    "suffix": lambda method, path, headers: path.endswith(".xml"),
}.items():
    fault(
        CONN,
        f"leaves-body-of-{name}",
        "read_body",
        lambda right, it, incoming, *about, unread=unread: b"" if unread(*about) else right(incoming, *about),
    )


def unread_when(status):
    """A body stays on the connection when the answer is this, for it was answered by the head alone."""

    def wrong(right, it, incoming, method, path, headers):
        token = headers.get("authorization", "")
        if status == 400 and method == "POST" and "batch" in path and len(token.split(",")) != 3:
            return b""
        return right(incoming, method, path, headers)

    return wrong


fault(CONN, "leaves-body-of-400", "read_body", unread_when(400))
fault(
    CONN,
    "reads-once",
    "read_body",
    lambda right, it, incoming, method, path, headers: (
        incoming.read1(int(headers.get("content-length", 0))) if "content-length" in headers else b""
    ),
)
fault(CONN, "cuts-last-byte", "read_body", lambda right, it, incoming, *about: right(incoming, *about)[: 1 << 10])


def earlier_reply(right, it, method, path, headers, body, state):
    made = right(method, path, headers, body, state)
    state.setdefault("replies", []).append(made)
    return state["replies"][0] if len(state["replies"]) % 3 == 0 else made


fault(CONN, "earlier-reply", "answer", earlier_reply)
fault(
    CONN,
    "reply-by-path",
    "answer",
    lambda right, it, method, path, headers, body, state: state.setdefault(
        path, right(method, path, headers, body, state)
    ),
)
fault(
    CONN,
    "body-of-the-last-request",
    "answer",
    lambda right, it, method, path, headers, body, state: right(
        method, path, headers, state.setdefault("body", body) if body and "bulk" in path else body, state
    ),
)
fault(
    CONN,
    "project-of-the-first-request",
    "signer",
    lambda right, it, *a: (a[-1].setdefault("project", right(*a)[0]), right(*a)[1]),
)


def pipeline_of(order):
    def plant(server):
        right = server.read_body

        def reply(connection, status, kind, data, stays):
            held = pending.setdefault(connection, [])
            held.append(server.head(status, kind, data, stays) + data)
            if not ahead.get(connection):
                connection.sendall(b"".join(order(held)))
                held.clear()

        def read_body(incoming, *about):
            body = right(incoming, *about)
            more = bool(buffered(incoming))
            for connection in list(server.connections):
                ahead[connection] = more
            return body

        pending, ahead = {}, {}
        server.reply, server.read_body = reply, read_body

    return plant


def buffered(incoming):
    """Whether more of what was sent has been read already."""
    incoming.raw._sock.settimeout(0.002)
    try:
        return incoming.peek(1)
    except OSError:
        return b""
    finally:
        incoming.raw._sock.settimeout(None)


add_fault(CONN, "pipeline-reversed", pipeline_of(lambda held: held[::-1]))
add_fault(CONN, "pipeline-first-again", pipeline_of(lambda held: [held[0]] * len(held)))

# what replies show

REPLIES = "what replies show"
for name, unit in {"seconds": 1_000_000, "milliseconds": 1_000, "microseconds": 1}.items():
    fault(REPLIES, f"expire-in-{name}", "books.minutes_us", lambda right, it, minutes, unit=unit: minutes * unit)
fault(REPLIES, "never-expires", "books.expire", lambda right, it, slot: None)
fault(REPLIES, "expires-in-hours", "books.minutes_us", lambda right, it, minutes: right(60 * minutes))
for kind in ("claim", "discard", "counters", "meta"):
    for state in ("claimed", "discarded"):
        fault(
            REPLIES,
            f"{kind}-of-{state}",
            "books.check_open",
            lambda right, it, slot, command, kind=kind, state=state: (
                None if (command, slot["state"]) == (kind, state) else right(slot, command)
            ),
        )
fault(
    REPLIES,
    "alloc-of-discarded",
    "books.check_new",
    lambda right, it, p, name: None if p.slots.get(name, {}).get("state") == "discarded" else right(p, name),
)
fault(
    REPLIES,
    "alloc-of-claimed",
    "books.check_new",
    lambda right, it, p, name: None if p.slots.get(name, {}).get("state") == "claimed" else right(p, name),
)
fault(
    REPLIES,
    "alloc-again",
    "books.check_new",
    lambda right, it, p, name: None if p.slots.get(name, {}).get("state") == OPEN else right(p, name),
)
fault(REPLIES, "min-above-max", "books.check_terms", lambda right, it, *terms: None)
fault(REPLIES, "counters-without-one", "books.check_counters", lambda right, it, *a: None)
fault(
    REPLIES, "lists-claimed", "books.is_outstanding", lambda right, it, slot: right(slot) or slot["state"] == "claimed"
)
fault(
    REPLIES,
    "lists-discarded",
    "books.is_outstanding",
    lambda right, it, slot: right(slot) or slot["state"] == "discarded",
)
fault(REPLIES, "lists-twice", "listing", lambda right, it, project: right(project) * 2)
fault(REPLIES, "lists-all-projects", "listing", lambda right, it, project: [s for p in PROJECTS for s in right(p)])
fault(
    REPLIES,
    "hides-those-with-counters",
    "books.is_outstanding",
    lambda right, it, slot: right(slot) and not slot["counters"],
)
fault(
    REPLIES,
    "hides-those-with-metadata",
    "books.is_outstanding",
    lambda right, it, slot: right(slot) and not slot["meta"],
)
fault(REPLIES, "no-message", "refusal", lambda right, it, no: (no.status, {"result": "error"}))
fault(REPLIES, "empty-message", "refusal", lambda right, it, no: (no.status, {"result": "error", "message": ""}))
fault(
    REPLIES, "refusal-is-400", "refusal", lambda right, it, no: (400 if no.status == 500 else no.status, right(no)[1])
)
fault(
    REPLIES,
    "unknown-is-404",
    "refusal",
    lambda right, it, no: (404 if "no such" in str(no) else no.status, right(no)[1]),
)
fault(REPLIES, "used-is-409", "refusal", lambda right, it, no: (409 if "used" in str(no) else no.status, right(no)[1]))
fault(
    REPLIES, "refusal-is-200", "refusal", lambda right, it, no: (200 if no.status == 500 else no.status, right(no)[1])
)
fault(REPLIES, "result-failed", "refusal", lambda right, it, no: (no.status, {"result": "failed", "message": str(no)}))
fault(REPLIES, "forged-is-403", "refusal", lambda right, it, no: (403 if no.status == 401 else no.status, right(no)[1]))
fault(REPLIES, "code-as-text", "error", lambda right, it, said: {"message": said, "code": "500"})
fault(REPLIES, "code-400", "error", lambda right, it, said: {"message": said, "code": 400})
fault(REPLIES, "errors-without-message", "error", lambda right, it, said: {"code": 500})
fault(REPLIES, "errors-as-text", "error", lambda right, it, said: said)
fault(REPLIES, "bulk-in-document-order", "order", lambda right, it, given: list(given))
fault(
    REPLIES,
    "bulk-claims-before-discards",
    "order",
    lambda right, it, given: ["alloc", "counters", "meta", "claim", "discard", *right(given)[5:]],
    "accounts",
)
fault(
    REPLIES,
    "bulk-discards-first",
    "order",
    lambda right, it, given: ["alloc", "discard", "counters", "meta", "claim", *right(given)[5:]],
)
fault(REPLIES, "bulk-ignores-unknown", "order", lambda right, it, given: right(given)[:5])
for kind in ("meta", "counters", "discard", "claim"):
    fault(
        REPLIES,
        f"bulk-drops-{kind}",
        "of_bulk",
        lambda right, it, p, command, given, kind=kind: None if command == kind else right(p, command, given),
    )
fault(
    REPLIES,
    "bulk-one-machine",
    "bulk",
    lambda right, it, p, given: right(
        p,
        {**given, "claim": list({c.get("machine"): c for c in given["claim"]}.values())} if "claim" in given else given,
    ),
)


def one_claim_a_machine(right, it, project, given):
    machines, errors = set(), []
    for each in given.get("claim", []):
        if each.get("machine") in machines:
            errors.append(it.error("one claim a machine"))
        machines.add(each.get("machine"))
    made = right(project, given)
    return {"errors": [*made.get("errors", []), *errors]} if errors else made


fault(REPLIES, "bulk-refuses-a-machine-again", "bulk", one_claim_a_machine)
fault(
    REPLIES,
    "same-answer-to-the-same-request",
    "answer",
    lambda right, it, method, path, headers, body, state: (
        it.__dict__.setdefault("seen", {}).setdefault((path, body), right(method, path, headers, body, state))
        if "alloc" in path
        else right(method, path, headers, body, state)
    ),
)
fault(
    REPLIES,
    "nothing-of-another-suffix",
    "answer",
    lambda right, it, method, path, *a: (
        (404, "text/plain", "") if path.endswith("bulk.json") else right(method, path, *a)
    ),
)
fault(REPLIES, "text-is-json", "written", lambda right, it, suffix, *a: right("" if suffix == "text" else suffix, *a))
fault(REPLIES, "callback-ignored", "written", lambda right, it, suffix, query, *a: right(suffix, "", *a))
fault(REPLIES, "jsonp-is-json", "written", lambda right, it, suffix, *a: ("application/json", right(suffix, *a)[1]))
fault(
    REPLIES,
    "slots-of-another-can-be-claimed",
    "books.claim",
    lambda right, it, p, given: right(
        next((q for q in it.projects.values() if given.get("slot") in q.slots), p), given
    ),
)
fault(
    REPLIES,
    "ids-of-all-projects",
    "books.check_new",
    lambda right, it, p, name: [right(q, name) for q in it.projects.values()],
)


def half_made(right, it, project, given):
    try:
        right(project, given)
    except No:
        name = given.get("slot")
        if name and name not in project.slots:
            right(project, {"slot": name})
        raise


fault(REPLIES, "refused-alloc-is-made", "books.alloc", half_made)
fault(
    REPLIES,
    "refused-alloc-resets",
    "books.check_new",
    lambda right, it, p, name: p.slots.pop(name, None) and (_ for _ in ()).throw(No("the id is used")),
)


def closes_when_refused(right, it, project, given):
    try:
        right(project, given)
    except No:
        if given.get("slot") in project.slots:
            project.slots[given["slot"]]["state"] = "claimed"
        raise


fault(REPLIES, "refused-claim-settles", "books.claim", closes_when_refused)

# what accounts show

SUMS = "what accounts show"
for name, method, wrong in (
    (
        "text-adds-as-text",
        "books.count",
        lambda right, it, slot, name, value: (
            right(slot, name, value)
            if name not in slot["counters"]
            else slot["counters"].__setitem__(name, int(str(abs(slot["counters"][name])) + str(abs(value))))
        ),
    ),
    (
        "counts-once",
        "books.count",
        lambda right, it, slot, name, value: (
            None
            if slot.setdefault("last", {}).get(name) == value
            else (slot["last"].__setitem__(name, value), right(slot, name, value))
        ),
    ),
    (
        "last-counter-wins",
        "books.count",
        lambda right, it, slot, name, value: slot["counters"].__setitem__(name, value),
    ),
    ("no-negative", "books.count", lambda right, it, slot, name, value: right(slot, name, abs(value))),
    (
        "clips-at-0",
        "books.count",
        lambda right, it, slot, name, value: slot["counters"].__setitem__(
            name, max(0, slot["counters"].get(name, 0) + value)
        ),
    ),
    (
        "asked-beats-fixed",
        "books.grant",
        lambda right, it, slot, asked: right(slot, asked) + 1 if slot["credits"] == 7 else right(slot, asked),
    ),
    ("max-ignored", "books.grant", lambda right, it, slot, asked: right({**slot, "max": None}, asked)),
    ("min-ignored", "books.grant", lambda right, it, slot, asked: right({**slot, "min": None}, asked)),
    (
        "range-of-fixed",
        "books.grant",
        lambda right, it, slot, asked: min(right(slot, asked), slot["max"] if slot["max"] is not None else 10**18),
    ),
    ("default-0", "books.grant", lambda right, it, slot, asked: right(slot, 0 if asked is None else asked)),
    ("zero-is-one", "books.grant", lambda right, it, slot, asked: right(slot, asked or None)),
    ("grants-at-most-10000", "books.grant", lambda right, it, slot, asked: min(10_000, right(slot, asked))),
    (
        "waits-although-linked",
        "books.pay",
        lambda right, it, p, machine, credits, counters: (
            right(p, machine, credits, counters),
            it.machine(p, machine).update(waiting_credits=it.machine(p, machine)["credits"]),
        ),
    ),
    (
        "user-gets-no-counters",
        "books.pay",
        lambda right, it, p, machine, credits, counters: right(
            p, machine, credits, {} if machine in it.owners else counters
        ),
    ),
    ("no-total", "books.total", lambda right, it, *a: None),
    (
        "totals-of-all-projects",
        "books.total",
        lambda right, it, p, name, value: [right(q, name, value) for q in it.projects.values()],
    ),
    ("negative-totals-lost", "books.total", lambda right, it, p, name, value: right(p, name, max(0, value))),
    (
        "handed-over-twice",
        "books.hand_over",
        lambda right, it, has, account: (right(dict(has), account), right(has, account)),
    ),
    ("kept-after-hand-over", "books.hand_over", lambda right, it, has, account: right(dict(has), account)),
    (
        "counters-not-handed-over",
        "books.hand_over",
        lambda right, it, has, account: (has["waiting_counters"].clear(), right(has, account)),
    ),
    (
        "credits-not-handed-over",
        "books.hand_over",
        lambda right, it, has, account: (has.update(waiting_credits=0), right(has, account)),
    ),
    (
        "all-handed-over",
        "books.hand_over",
        lambda right, it, has, account: right({**has, "waiting_credits": has["credits"]}, account),
    ),
    ("release-takes-back", "books.release", lambda right, it, machine: (take_back(it, machine), right(machine))[1]),
    (
        "release-releases-all",
        "books.release",
        lambda right, it, machine: (
            [it.owners.pop(m) for m, u in list(it.owners.items()) if u == it.owners.get(machine) and m != machine],
            right(machine),
        )[1],
    ),
    ("release-does-nothing", "books.release", lambda right, it, machine: True),
    (
        "second-user-gets-it",
        "books.link",
        lambda right, it, machine, user: (it.owners.pop(machine, None), right(machine, user))[1],
    ),
    (
        "links-one-project",
        "books.hand_over",
        lambda right, it, has, account: right(has, account) if account in it.projects["alpha"].users.values() else None,
    ),
    ("machines-of-all-projects", "books.machine", lambda right, it, p, name: right(it.projects["alpha"], name)),
    ("users-of-all-projects", "books.user", lambda right, it, p, name: right(it.projects["alpha"], name)),
    ("reasons-unspecified", "books.reason_text", lambda right, it, text: "unspecified"),
    ("first-note-wins", "books.note", lambda right, it, slot, notes: right(slot, {**notes, **slot["meta"]})),
    ("notes-replaced", "books.note", lambda right, it, slot, notes: (slot["meta"].clear(), right(slot, notes))),
    ("notes-dropped", "books.note", lambda right, it, slot, notes: None),
    (
        "empty-notes-dropped",
        "books.note",
        lambda right, it, slot, notes: right(slot, {k: v for k, v in notes.items() if v}),
    ),
    ("default-a-week", "books.minutes_us", lambda right, it, minutes: right(10_080 if minutes == 1440 else minutes)),
    ("bulk-pays-a-machine-once", "bulk", lambda right, it, p, given: pays_once(right, it, p, given)),
    (
        "bulk-merges-counters",
        "commands",
        lambda right, it, given: (
            list({json.dumps(each): each for each in given}.values())
            if given and "machine" not in given[0] and len(given[0]) > 1
            else given
        ),
    ),
):
    fault(SUMS, name, method, wrong, "accounts")


def take_back(it, machine):
    for project in it.projects.values():
        if machine in project.machines and machine in it.owners:
            it.user(project, it.owners[machine])["credits"] -= project.machines[machine]["credits"]


def pays_once(right, it, project, given):
    paid, pay = set(), it.books.pay

    def once(p, machine, credits, counters):
        if machine not in paid:
            pay(p, machine, credits, counters)
        paid.add(machine)

    it.books.pay = once
    try:
        return right(project, given)
    finally:
        it.books.pay = pay


def discard_pays(right, it, project, given):
    right(project, given)
    slot = it.find(project, given)
    for name, value in slot["counters"].items():
        add(project.counters, name, value)


fault(SUMS, "discard-counts", "books.discard", discard_pays, "accounts")
fault(
    SUMS,
    "claim-counts-twice",
    "books.claim",
    lambda right, it, p, given: (
        right(p, given),
        it.pay(p, it.machine_id(given["machine"]), 0, it.find(p, given)["counters"]),
    )[0],
    "accounts",
)


FIRST = {
    RACE: ["CONCUR-*", "CONN-8"],
    FORGED: ["AUTH-*", "CONN-5", "SIZE-8"],
    IDENT: ["IDENT-*", "AUTH-14", "AUTH-16"],
    SIZES: ["SIZE-*", "NUMBER-*", "IDENT-3", "IDENT-4"],
    EDGES: ["CREDIT-15", "ALLOC-2", "META-*", "COUNTER-*", "DISCARD-*", "NUMBER-*", "CLAIM-*"],
    NUMBERS: ["NUMBER-*", "ALLOC-*"],
    RARE: ["SIZE-*"],
    CONN: ["CONN-*"],
    REPLIES: ["ALLOC-*", "CLAIM-*", "META-*", "COUNTER-*", "DISCARD-*", "EXPIRE-*", "BULK-*", "HTTP-*", "PROJECT-*"],
    SUMS: ["CREDIT-*", "COUNTER-*", "META-*", "LINK-*", "PROJECT-*", "BULK-*", "DISCARD-*", "NUMBER-*"],
}
"""The clauses that are for a kind; where they find nothing, all are examined."""


def examined(name, clauses=(), *, thorough=False, rate=None):
    """What the suite finds in a plain server with a fault; without one, where the name is empty."""
    fault = FAULTS.get(name, Fault("", lambda server: None))
    with Server(with_accounts=fault.shows == "accounts") as server:
        fault.plant(server)
        target = Target(
            server=parse_endpoint(server.url),
            credentials=MINE,
            other=OTHER,
            thorough=thorough,
            max_rate=rate,
            timeout_s=3.0,
        )
        return examine(target, clauses)


def main():
    """Print the clauses that find each fault, by kind."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--thorough", action="store_true")
    options = parser.parse_args()
    found, missed = defaultdict(list), defaultdict(list)
    for name, fault in FAULTS.items():
        if options.names and not any(part in name for part in options.names):
            continue
        for chosen in (FIRST[fault.kind], ()):
            outcome = examined(name, chosen, thorough=options.thorough)
            clauses = [each.clause.id for each in outcome.findings if each.result in {"deviation", "known quirk"}]
            if clauses:
                break
        errors = [f"{each.clause.id} {each.detail}" for each in outcome.findings if each.result == "error"]
        (found if clauses else missed)[fault.kind, fault.shows].append(name)
        print(
            f"{fault.kind:<22} {name:<36} {', '.join(clauses[:12]) or 'missed'}{' ...' * (len(clauses) > 12)}",
            *errors[:1],
            flush=True,
        )
    print()
    for key in sorted({*found, *missed}):
        kind, shows = key
        every = len(found[key]) + len(missed[key])
        print(f"{kind:<22} {shows:<9} {len(found[key]):>3} of {every:<3} {', '.join(missed[key])}".rstrip())
    is_enough = True
    for shows in ("replies", "accounts"):
        good, bad = (
            sum(len(names) for (_, where), names in each.items() if where == shows) for each in (found, missed)
        )
        if good + bad:
            wanted = TARGET[shows, options.thorough]
            print(f"in {shows}: {good} of {good + bad}, {good / (good + bad):.0%}; {wanted:.0%} are wanted")
            is_enough &= good >= wanted * (good + bad)
    return int(not is_enough)


if __name__ == "__main__":
    sys.exit(main())

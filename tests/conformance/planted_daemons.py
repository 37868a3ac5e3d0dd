"""Faults to plant in the plain daemon, one at a time: what a lazy or unlucky author could write, kind by kind.

python tests/conformance/planted_daemons.py [--write] [NAME...] prints which clauses find which fault, and what is missed.
"""
# ruff: noqa: E501, PLW0108, PLR0124 - a fault is a line

import argparse
import asyncio
import html
import json
import random
import re
import socket
import sys
import unicodedata
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, unquote_plus

import plain_daemon
from plain_daemon import ORDER, PROJECT, SECRET, Malformed, PlainDaemon, running

from cpdaemon.endpoint import TcpEndpoint
from cpsim.conformance.suite import examine
from cpsim.conformance.target import Target

PART = 0.95
"""What part of the faults is to be found."""
FOUND = Path(__file__).with_name("planted_daemons.json")
"""The first clause that finds each fault, or none."""


class Fault(NamedTuple):
    """A fault: what it is about, what is planted, and the daemon that has it."""

    kind: str
    planted: str
    daemon: type[PlainDaemon]


CHANCE = random.Random(7)
FAULTS = {}


def fault(kind, planted, *bases, **overrides):
    """Plant a fault: methods and settings that a daemon has instead of its own."""
    name = "-".join(re.findall(r"[\w]+", planted.lower()))
    assert name not in FAULTS
    FAULTS[name] = Fault(kind, planted, type(name, bases or (PlainDaemon,), overrides))


def of_frame(change):
    return {"parse": lambda self, frame: PlainDaemon.parse(self, change(frame))}


def of_text(change):
    return {"strip": lambda self, text: change(text.strip())}


def of_pairs(change):
    return {"checked": lambda self, kind, pairs: change(kind, PlainDaemon.checked(self, kind, pairs))}


def of_values(change):
    return of_pairs(lambda kind, given: {name: change(value) for name, value in given.items()})


def of_names(change):
    return of_pairs(lambda kind, given: {change(name): value for name, value in given.items()})


def of_slots(change):
    return of_pairs(lambda kind, given: given | {"slot": change(given["slot"])})


def of_ids(change):
    return of_pairs(
        lambda kind, given: given | {name: change(given[name]) for name in ("slot", "machine") if name in given}
    )


def of_batch(change):
    def next_batch(self):
        return change(PlainDaemon.next_batch(self))

    return {"next_batch": next_batch}


def of_document(change):
    return {"document": lambda self, batch: change(PlainDaemon.document(self, batch))}


def number(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def python_int(text):
    try:
        return int(text)
    except ValueError:
        return text


def python_float(text):
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value == value and abs(value) != float("inf") and value == int(value) else value


def numbers_of(change):
    """Change the values that are numbers: all counters, and the credits."""

    def changed(kind, given):
        numbers = {"credits", "min", "max", "expire"} if kind != "counters" else given.keys() - {"slot"}
        return {name: change(value) if kind != "meta" and name in numbers else value for name, value in given.items()}

    return of_pairs(changed)


# frames that are cut, arguments that are dropped

for size in (64, 256, 512, 1024, 1448, 1499):
    fault(
        "frames cut",
        f"frames are cut after {size} bytes",
        **of_frame(
            lambda frame, size=size: frame.strip()[:size].rpartition(b",")[0] if len(frame.strip()) > size else frame
        ),
    )
fault("frames cut", "values are cut after 255 characters", **of_values(lambda value: value[:255]))
fault("frames cut", "ids are cut after 64 characters", **of_ids(lambda value: value[:64]))
fault("frames cut", "names are cut after 100 characters", **of_names(lambda name: name[:100]))
fault(
    "frames cut",
    "a last byte is lost where there is no newline",
    **of_frame(lambda frame: frame if frame.endswith(b"\n") else frame[:-1]),
)
fault(
    "frames cut",
    "a frame of 1,500 bytes loses its last",
    **of_frame(lambda frame: frame[:-1] if len(frame) == 1500 else frame),
)
fault("frames cut", "values are cut at a blank", **of_values(lambda value: value.split(" ")[0] or value))
fault("frames cut", "values are cut at a semicolon", **of_values(lambda value: value.split(";")[0] or value))
fault("frames cut", "values are cut at a hash", **of_values(lambda value: value.split("#")[0] or value))
fault(
    "frames cut", "a frame too long is taken in part", parse=lambda self, frame: PlainDaemon.parse(self, frame[:1500])
)
fault("frames cut", "a value is cut at its second equals sign", pair=lambda self, pair: tuple(pair.split("=")[:2]))
fault("frames cut", "one read of a frame", reads_on=False)
fault("frames cut", "what comes in a second segment is lost", read=lambda self, reader: first_segment(self, reader))
fault(
    "arguments dropped",
    "the last of more than two",
    **of_pairs(
        lambda kind, given: (
            dict(list(given.items())[:-1]) if len(given) > 2 and list(given)[-1] not in {"slot", "machine"} else given
        )
    ),
)
fault("arguments dropped", "all beyond sixteen", **of_pairs(lambda kind, given: dict(list(given.items())[:16])))
fault("arguments dropped", "all beyond a hundred", **of_pairs(lambda kind, given: dict(list(given.items())[:101])))
fault(
    "arguments dropped",
    "expire",
    **of_pairs(lambda kind, given: {name: value for name, value in given.items() if name != "expire"}),
)
fault(
    "arguments dropped",
    "names with a slash",
    **of_pairs(
        lambda kind, given: (
            {name: value for name, value in given.items() if "/" not in name}
            if len([name for name in given if "/" not in name]) > 1
            else given
        )
    ),
)
fault(
    "arguments dropped",
    "names that are not ASCII",
    **of_pairs(lambda kind, given: {name: value for name, value in given.items() if name.isascii()}),
)
fault(
    "arguments dropped",
    "counters of 0",
    **of_pairs(lambda kind, given: {name: value for name, value in given.items() if value != "0"}),
)
fault(
    "arguments dropped",
    "negative counters",
    **of_pairs(
        lambda kind, given: {
            name: value
            for name, value in given.items()
            if kind != "counters" or name == "slot" or not value.startswith("-")
        }
    ),
)
fault(
    "arguments dropped",
    "the reason of a discard",
    **of_pairs(lambda kind, given: {name: value for name, value in given.items() if name != "reason"}),
)
fault(
    "arguments dropped",
    "the credits of a claim",
    **of_pairs(
        lambda kind, given: {name: value for name, value in given.items() if kind != "claim" or name != "credits"}
    ),
)
fault(
    "arguments dropped",
    "the minimum beside a maximum",
    **of_pairs(
        lambda kind, given: {name: value for name, value in given.items() if name != "min" or "max" not in given}
    ),
)


async def first_segment(daemon, reader):
    frame = await reader.read(4096)
    with suppress(TimeoutError):
        await asyncio.wait_for(reader.read(4096), plain_daemon.QUIET_S)
    return frame


# numbers that are rewritten

fault("numbers in ids rewritten", "ids that are numbers are numbers of JSON", **of_ids(number))
fault("numbers in ids rewritten", "ids lose leading zeros", **of_ids(lambda text: text.lstrip("0") or "0"))
fault(
    "numbers in ids rewritten",
    "ids in digits go through int",
    **of_ids(lambda text: str(int(text)) if text.isdigit() else text),
)
fault("numbers in ids rewritten", "values that look like numbers are numbers", **of_values(number))
fault("numbers in ids rewritten", "ids go through float", **of_ids(lambda text: str(python_float(text))))
fault(
    "numbers in ids rewritten",
    "metadata in digits is numbers",
    **of_pairs(
        lambda kind, given: {name: python_int(value) for name, value in given.items()} if kind == "meta" else given
    ),
)
fault(
    "numbers in ids rewritten",
    "names of counters in digits lose zeros",
    **of_names(lambda name: name.lstrip("0") or name),
)
fault(
    "numbers in ids rewritten",
    "true, false and null become values of JSON",
    **of_values(lambda text: {"true": True, "false": False, "null": None}.get(text, text)),
)
fault(
    "numbers in ids rewritten",
    "machines with a sign lose it",
    **of_pairs(lambda kind, given: given | {"machine": given["machine"].lstrip("+-")} if kind == "claim" else given),
)
fault("spellings of numbers", "float", **numbers_of(python_float))
fault("spellings of numbers", "int of Python, underscores and all digits", **numbers_of(python_int))
fault(
    "spellings of numbers",
    "int with a base",
    **numbers_of(lambda text: int(text, 0) if re.fullmatch("0x[0-9a-f]+", text) else text),
)
fault("spellings of numbers", "numbers of JSON", **numbers_of(number))
fault(
    "spellings of numbers",
    "what is no number counts as 0",
    **numbers_of(lambda text: text if re.fullmatch("-?[0-9]+", text) else "0"),
)
fault("spellings of numbers", "true is 1", **numbers_of(lambda text: {"true": 1}.get(text, text)))
fault("spellings of numbers", "a fraction is cut", **numbers_of(lambda text: text.partition(".")[0] or text))
fault(
    "sizes",
    "numbers wrap at 2^31",
    **numbers_of(lambda text: str((int(text) + 2**31) % 2**32 - 2**31) if re.fullmatch("-?[0-9]+", text) else text),
)
fault(
    "sizes",
    "numbers are at most 2^31",
    **numbers_of(lambda text: str(min(int(text), 2**31 - 1)) if re.fullmatch("-?[0-9]+", text) else text),
)
fault(
    "sizes",
    "numbers lose digits beyond 2^53",
    **numbers_of(lambda text: str(int(float(text))) if re.fullmatch("-?[0-9]+", text) else text),
)
fault(
    "sizes",
    "large metadata numbers lose digits",
    **of_values(lambda text: str(int(float(text))) if re.fullmatch("[0-9]{17,}", text) else text),
)
fault("sizes", "a bulk of at most 500, the rest is lost", **of_batch(lambda batch: batch[:500]))
fault("sizes", "a bulk of at most 1,000, the rest is lost", **of_batch(lambda batch: batch[:1000]))
fault(
    "sizes",
    "a queue of at most 2,000, the oldest are lost",
    keep=lambda self, kind, given: (
        self.queue.append((kind, given)),
        self.queue.__delitem__(slice(0, max(0, len(self.queue) - 2000))),
    ),
)
fault(
    "sizes",
    "a queue of at most 5,000, the newest are lost",
    keep=lambda self, kind, given: self.queue.append((kind, given)) if len(self.queue) < 5000 else None,
)
fault(
    "sizes",
    "a bulk of over 100 KB loses its last command",
    **of_batch(lambda batch: batch[:-1] if len(json.dumps(batch)) > 100_000 else batch),
)

# ids, names and values that are folded

for planted, change in {
    "lower case": str.lower,
    "upper case": str.upper,
    "case is folded": str.casefold,
    "blanks at the ends are stripped": str.strip,
    "several blanks become one": lambda text: re.sub(" +", " ", text),
    "blanks become underscores": lambda text: text.replace(" ", "_"),
    "no blanks": lambda text: text.replace(" ", ""),
    "a plus becomes a blank": unquote_plus,
    "percent escapes are decoded": unquote,
    "entities are decoded": html.unescape,
    "entities are encoded": html.escape,
    "composed normal form": lambda text: unicodedata.normalize("NFC", text),
    "decomposed normal form": lambda text: unicodedata.normalize("NFD", text),
    "compatibility normal form": lambda text: unicodedata.normalize("NFKC", text),
    "accents are lost": lambda text: (
        "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c)) or "x"
    ),
    "what is not ASCII becomes a question mark": lambda text: text.encode("ascii", "replace").decode(),
    "what is not Latin-1 is left out": lambda text: text.encode("latin-1", "ignore").decode("latin-1") or "x",
    "UTF-8 is read as Latin-1": lambda text: text.encode().decode("latin-1"),
    "quotes are removed": lambda text: text.strip("\"'") or "x",
    "backslashes are escapes": lambda text: re.sub(r"\\(.)", r"\1", text),
    "backslashes are doubled": lambda text: text.replace("\\", "\\\\"),
    "dashes become underscores": lambda text: text.replace("-", "_"),
    "dots become underscores": lambda text: text.replace(".", "_"),
    "double slashes become one": lambda text: text.replace("//", "/"),
    "slashes at the end are lost": lambda text: text.rstrip("/") or "/",
    "two bytes a character at most": lambda text: "".join(c if c < "\U00010000" else "\ufffd" for c in text),
}.items():
    kind = "inner blanks" if "blank" in planted else "case" if "case" in planted else "identity of ids"
    fault(kind, f"values: {planted}", **of_values(change))
for planted, change in {
    "lower case": str.lower,
    "stripped": str.strip,
    "composed": lambda text: unicodedata.normalize("NFC", text),
}.items():
    fault("identity of ids", f"slots: {planted}", **of_slots(change))
    fault(
        "identity of ids",
        f"machines: {planted}",
        **of_pairs(
            lambda kind, given, change=change: (
                given | {"machine": change(given["machine"])} if kind == "claim" else given
            )
        ),
    )
    fault("identity of ids", f"names: {planted}", **of_names(change))
fault("case", "the whole frame in lower case", **of_text(str.lower))
fault(
    "case",
    "the whole frame in upper case",
    **of_text(
        lambda text: (
            text.partition(",")[0]
            + "".join(text.partition(",")[1:]).upper().replace("SLOT=", "slot=").replace("MACHINE=", "machine=")
        )
    ),
)
fault(
    "inner blanks",
    "the frame is split at blanks too",
    split=lambda self, text: [part.strip() for part in text.split(",")],
)
fault(
    "inner blanks",
    "several blanks of a frame become one",
    **of_text(lambda text: " ".join(text.split(" ")) if "  " not in text else re.sub(" +", " ", text)),
)
fault("inner blanks", "a blank before a comma is lost", **of_text(lambda text: text.replace(" ,", ",")))
fault(
    "inner blanks",
    "a newline stays at the end",
    strip=lambda self, text: text.lstrip().rstrip(" \t"),
    parse=lambda self, frame: keeps_newline(self, frame),
)


def keeps_newline(daemon, frame):
    kind, given = PlainDaemon.parse(daemon, frame.strip())
    last = list(given)[-1]
    return kind, given | ({last: given[last] + "\n"} if frame.endswith(b"\n") else {})


# order

fault(
    "order within a class",
    "the newest first",
    **of_batch(lambda batch: [call for kind in ORDER for call in [each for each in batch if each[0] == kind][::-1]]),
)
fault(
    "order within a class",
    "sorted by value",
    **of_batch(lambda batch: sorted(batch, key=lambda call: (ORDER.index(call[0]), sorted(call[1].items())))),
)
fault("order within a class", "at random", **of_batch(lambda batch: random.Random(7).sample(batch, len(batch))))
fault("order within a class", "the last command first", **of_batch(lambda batch: batch[-1:] + batch[:-1]))
fault(
    "order within a class",
    "what failed goes to the end",
    after=lambda self, batch, status, body: PlainDaemon.after(self, batch, status, body) or requeue(self, batch),
)
fault(
    "order within a class",
    "a stack instead of a queue",
    keep=lambda self, kind, given: self.queue.insert(0, (kind, given)),
)
fault("order within a class", "all of a flush in one bulk", next_batch=lambda self: whole_queue(self))


def requeue(daemon, batch):
    with daemon.changed:
        daemon.queue += batch
    return True


def whole_queue(daemon):
    with daemon.changed:
        batch, daemon.queue[:] = daemon.queue[:], []
        return batch


# commands that are merged


def once_each(batch):
    return [call for number, call in enumerate(batch) if call not in batch[:number]]


def added_up(batch):
    sums, rest = defaultdict(Counter), []
    for kind, given in batch:
        if kind == "counters" and all(
            re.fullmatch("-?[0-9]+", value) for name, value in given.items() if name != "slot"
        ):
            for name, value in given.items():
                sums[given["slot"]][name] += int(value) if name != "slot" else 0
        else:
            rest.append((kind, given))
    return rest + [
        ("counters", {"slot": slot} | {name: str(value) for name, value in of.items() if name != "slot"})
        for slot, of in sums.items()
    ]


def last_of(kinds):
    def merged(batch):
        last = {(kind, given["slot"]): (kind, given) for kind, given in batch if kind in kinds}
        return [call for call in batch if call[0] not in kinds] + list(last.values())

    return merged


def updated(batch):
    metas, rest = {}, []
    for kind, given in batch:
        if kind == "meta":
            metas.setdefault(given["slot"], {}).update(given)
        else:
            rest.append((kind, given))
    return rest + [("meta", given) for given in metas.values()]


def cancelled(batch):
    gone = {given["slot"] for kind, given in batch if kind == "discard"} & {
        given["slot"] for kind, given in batch if kind == "alloc"
    }
    return [call for call in batch if call[1]["slot"] not in gone]


class Remembers(PlainDaemon):
    def keep(self, kind, given):
        seen = self.__dict__.setdefault("seen", set())
        key = (kind, *sorted(given.items()))
        if key not in seen:
            seen.add(key)
            super().keep(kind, given)


fault("merged or coalesced", "equal commands of a bulk are one", **of_batch(once_each))
fault("merged or coalesced", "a command that was there before is left out", Remembers)
fault(
    "merged or coalesced",
    "equal neighbours are one",
    **of_batch(lambda batch: [call for number, call in enumerate(batch) if not number or call != batch[number - 1]]),
)
fault("merged or coalesced", "counters are added up", **of_batch(added_up))
fault("merged or coalesced", "the last counters of a slot", **of_batch(last_of({"counters"})))
fault("merged or coalesced", "the last metadata of a slot", **of_batch(last_of({"meta"})))
fault("merged or coalesced", "metadata of a slot in one command", **of_batch(updated))
fault("merged or coalesced", "one claim of a slot", **of_batch(last_of({"claim"})))
fault("merged or coalesced", "an alloc and its discard cancel", **of_batch(cancelled))
fault(
    "merged or coalesced",
    "a second alloc is left out",
    Remembers,
    keep=lambda self, kind, given: (
        Remembers.keep(self, kind, given) if kind == "alloc" else PlainDaemon.keep(self, kind, given)
    ),
)

# rare faults


class Rare(PlainDaemon):
    def keep(self, kind, given):
        if self.taken % 1000 != 999:
            super().keep(kind, given)


fault("rare faults", "one command in a thousand is lost", Rare)
fault(
    "rare faults",
    "one command in a thousand, by chance, is lost",
    keep=lambda self, kind, given: PlainDaemon.keep(self, kind, given) if CHANCE.random() > 0.001 else None,
)
fault(
    "rare faults",
    "one command in a thousand is sent twice",
    keep=lambda self, kind, given: [PlainDaemon.keep(self, kind, given) for _ in range(1 + (self.taken % 1000 == 999))],
)
fault(
    "rare faults",
    "one batch in a hundred is lost",
    **of_batch(lambda batch: [] if CHANCE.random() < 0.01 else batch),
)
fault(
    "rare faults",
    "one command in a thousand has another slot's number",
    **of_pairs(
        lambda kind, given: {
            name: value + "0" if name == "n" and value.endswith("777") else value for name, value in given.items()
        }
    ),
)
fault(
    "rare faults",
    "one reply in a thousand is ER",
    reply_to=lambda self, frame, reader: rarely(self, frame, reader, b"ER"),
)
fault(
    "rare faults",
    "one reply in a thousand does not come",
    reply_to=lambda self, frame, reader: rarely(self, frame, reader, b""),
)
fault("rare faults", "commands that come at once are mixed up", keep=lambda self, kind, given: mixed(self, kind, given))
fault(
    "rare faults",
    "the last command of a bulk of over a hundred is lost",
    **of_batch(lambda batch: batch[:-1] if len(batch) > 100 else batch),
)


async def rarely(daemon, frame, reader, reply):
    said = await PlainDaemon.reply_to(daemon, frame, reader)
    return reply if daemon.taken % 1000 == 999 else said


def mixed(daemon, kind, given):
    if daemon.queue and daemon.taken % 500 == 499 and daemon.queue[-1][0] == kind:
        given = daemon.queue[-1][1] | {name: value for name, value in given.items() if name != "slot"}
    PlainDaemon.keep(daemon, kind, given)


# clients that leave early


class WhoWaits(PlainDaemon):
    """Answers before it queues."""

    async def reply_to(self, frame, reader):
        if reader.at_eof():
            return b"OK"
        return await super().reply_to(frame, reader)


class Crashes(PlainDaemon):
    """Loses what is queued when a client has left."""

    async def meet(self, reader, writer):
        frame = await self.read(reader)
        if not frame:
            self.queue.clear()
        writer.write(await self.reply_to(frame, reader) if frame else b"ER")
        writer.close()


fault("clients that leave early", "who has ended its side gets OK, and is forgotten", WhoWaits)
fault("clients that leave early", "who sends nothing empties the queue", Crashes)
fault(
    "clients that leave early",
    "who has ended its side gets no reply",
    say=lambda self, writer, reply: silent_at_end(self, writer, reply),
    read=lambda self, reader: note_end(self, reader),
)
fault(
    "clients that leave early",
    "who has ended its side loses its last byte",
    read=lambda self, reader: cut_at_end(self, reader),
)
fault(
    "clients that leave early",
    "who has ended its side is served twice",
    reply_to=lambda self, frame, reader: again_at_end(self, frame, reader),
)
fault(
    "clients that leave early",
    "who sends nothing stops the forwarding",
    keep=lambda self, kind, given: PlainDaemon.keep(self, kind, given) if not self.__dict__.get("over") else None,
    reply_to=lambda self, frame, reader: over(self, frame, reader),
)


async def note_end(daemon, reader):
    frame = await PlainDaemon.read(daemon, reader)
    daemon.at_end = reader.at_eof()
    return frame


async def silent_at_end(daemon, writer, reply):
    if not daemon.at_end:
        writer.write(reply)


async def cut_at_end(daemon, reader):
    frame = await PlainDaemon.read(daemon, reader)
    return frame[:-1] if reader.at_eof() else frame


async def again_at_end(daemon, frame, reader):
    if reader.at_eof() and frame:
        await PlainDaemon.reply_to(daemon, frame.replace(b"slot=", b"slot=again-", 1), reader)
        await PlainDaemon.reply_to(daemon, frame + b"0", reader)
    return await PlainDaemon.reply_to(daemon, frame, reader)


async def over(daemon, frame, reader):
    daemon.over = daemon.__dict__.get("over") or not frame
    return await PlainDaemon.reply_to(daemon, frame, reader)


# what the server answers


def dropping(*statuses):
    return {
        "after": lambda self, batch, status, body: status in statuses or PlainDaemon.after(self, batch, status, body)
    }


fault(
    "slow replies",
    "a reply later than two seconds, and all is sent again",
    timeout_s=2.0,
    after_lost=lambda self, batch: False,
)
fault("slow replies", "a reply later than two seconds, and all is dropped", timeout_s=2.0)
fault(
    "slow replies",
    "a reply later than one second, and the daemon forwards no more",
    timeout_s=1.0,
    after_lost=lambda self, batch: forwards_no_more(self),
)
fault(
    "slow replies",
    "a reply later than half a second, and all is sent again",
    timeout_s=0.5,
    after_lost=lambda self, batch: False,
)
fault(
    "slow replies",
    "a late reply empties the queue",
    after=lambda self, batch, status, body: late_empties(self, batch, status, body),
    post=lambda self, batch: timed(self, batch),
)
for statuses in ((401,), (404,), (401, 403, 404), (400, 401, 404), (503,), (500,), (500, 503)):
    fault(
        "401 and 4xx" if 401 in statuses or 404 in statuses else "5xx",
        f"a batch is dropped at {' '.join(map(str, statuses))}",
        **dropping(*statuses),
    )
fault("401 and 4xx", "a batch is dropped at 400", **dropping(400))
fault(
    "401 and 4xx",
    "the forwarding ends at 401",
    after=lambda self, batch, status, body: (
        forwards_no_more(self) if status == 401 else PlainDaemon.after(self, batch, status, body)
    ),
)
fault(
    "401 and 4xx",
    "the queue is emptied at 401",
    after=lambda self, batch, status, body: (
        whole_queue(self) is not None if status == 401 else PlainDaemon.after(self, batch, status, body)
    ),
)
fault(
    "401 and 4xx",
    "the first command of a batch is dropped at 401",
    after=lambda self, batch, status, body: (
        batch.pop(0) if status == 401 and len(batch) > 1 else None,
        PlainDaemon.after(self, batch, status, body),
    )[1],
)
fault(
    "5xx",
    "the last command of a batch is dropped at 503",
    after=lambda self, batch, status, body: (
        batch.pop() if status == 503 and len(batch) > 1 else None,
        PlainDaemon.after(self, batch, status, body),
    )[1],
)
fault("5xx", "any reply will do", after=lambda self, batch, status, body: True)
fault(
    "5xx",
    "a page with 200 will do",
    after=lambda self, batch, status, body: status == 200 or PlainDaemon.after(self, batch, status, body),
)
fault("outages", "a batch is dropped when the connection is refused", after_refused=lambda self, batch: True)
fault(
    "outages",
    "three tries, and a batch is dropped",
    after_refused=lambda self, batch: (
        self.__dict__.update(tries=self.__dict__.get("tries", 0) + 1) or self.tries % 3 == 0
    ),
)
fault(
    "outages",
    "the forwarding ends when the connection is refused",
    after_refused=lambda self, batch: forwards_no_more(self),
)
fault("outages", "a batch whose reply is lost is sent again", after_lost=lambda self, batch: False)
fault("outages", "a bulk is sent twice", send=lambda self, batch: [PlainDaemon.send(self, batch) for _ in range(2)])
fault(
    "outages",
    "a bulk with refused commands is sent again",
    after=lambda self, batch, status, body: again_at_errors(self, batch, status, body),
)
fault(
    "outages",
    "a bulk with refused commands empties the queue",
    after=lambda self, batch, status, body: (
        whole_queue(self) if b"errors" in body else None,
        PlainDaemon.after(self, batch, status, body),
    )[1],
)


def forwards_no_more(daemon):
    daemon.next_batch = list
    daemon.queue = [("alloc", {"slot": "stuck"})]
    daemon.keep = lambda kind, given: None
    daemon.queue.clear()
    return True


def timed(daemon, batch):
    began = daemon.loop.time()
    result = PlainDaemon.post(daemon, batch)
    daemon.took = daemon.loop.time() - began
    return result


def late_empties(daemon, batch, status, body):
    if daemon.took > 2:
        whole_queue(daemon)
    return PlainDaemon.after(daemon, batch, status, body)


def again_at_errors(daemon, batch, status, body):
    tries = daemon.__dict__.setdefault("again", Counter())
    tries[id(batch)] += 1
    return PlainDaemon.after(daemon, batch, status, body) and (b"errors" not in body or tries[id(batch)] > 1)


# what is missing or too much

fault(
    "whole commands",
    "counters are lost",
    keep=lambda self, kind, given: PlainDaemon.keep(self, kind, given) if kind != "counters" else None,
)
fault(
    "whole commands",
    "metadata is lost",
    keep=lambda self, kind, given: PlainDaemon.keep(self, kind, given) if kind != "meta" else None,
)
fault(
    "whole commands",
    "every fifth is lost",
    keep=lambda self, kind, given: PlainDaemon.keep(self, kind, given) if self.taken % 5 else None,
)
fault("whole commands", "nothing is forwarded", keep=lambda self, kind, given: None)
fault(
    "whole commands",
    "counters are sent twice",
    keep=lambda self, kind, given: [PlainDaemon.keep(self, kind, given) for _ in range(1 + (kind == "counters"))],
)
fault("whole commands", "what is malformed is forwarded", parse=lambda self, frame: lenient(self, frame))
fault(
    "whole commands",
    "a discard is a claim",
    keep=lambda self, kind, given: PlainDaemon.keep(
        self, "claim" if kind == "discard" else kind, given | ({"machine": "nobody"} if kind == "discard" else {})
    ),
)
fault(
    "whole commands",
    "min and max change places",
    **of_pairs(
        lambda kind, given: (
            given | {"min": given["max"], "max": given["min"]} if {"min", "max"} <= given.keys() else given
        )
    ),
)
fault(
    "whole commands",
    "a command more, with each alloc",
    keep=lambda self, kind, given: [
        PlainDaemon.keep(self, kind, each)
        for each in ([given, given | {"slot": given["slot"] + "-copy"}] if kind == "alloc" else [given])
    ],
)
fault(
    "whole commands", "a signature of another text", token=lambda self, signed: PlainDaemon.token(self, signed + b" ")
)


def lenient(daemon, frame):
    try:
        return PlainDaemon.parse(daemon, frame)
    except Malformed:
        slot = re.search(rb"slot=([^,=\s]+)", frame)
        if slot:
            PlainDaemon.keep(daemon, "alloc", {"slot": slot.group(1).decode("utf-8", "replace")})
            with daemon.changed:
                daemon.changed.notify()
        raise


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def examined(daemon, clauses, timeout_s=1.0):
    """What the suite finds in a daemon of a class."""
    behind = TcpEndpoint("127.0.0.1", free_port())
    with running(daemon(behind.port)) as port:
        where = {"daemon": TcpEndpoint("127.0.0.1", port), "behind": behind, "credentials": (PROJECT, SECRET)}
        return examine(Target(timeout_s=timeout_s, flush_interval_s=0.1, **where), clauses)


def main():
    """Print the clauses that find each fault, by kind."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--write", action="store_true", help=f"write the first clause that finds each to {FOUND.name}")
    options = parser.parse_args()
    known = json.loads(FOUND.read_text(encoding="utf-8"))
    kinds = defaultdict(list)
    for name, fault in FAULTS.items():
        if options.names and not any(part in name for part in options.names):
            continue
        clauses = []
        for chosen in ([known.get(name) or "FORWARD-16"], ["WIRE-*", "FORWARD-*"]):
            clauses = clauses or list(examined(fault.daemon, chosen).deviant)
        kinds[fault.kind].append((name, clauses))
        known[name] = clauses[0] if clauses else ""
        print(f"{fault.kind:<26} {', '.join(clauses) or 'missed':<24} {fault.planted}", flush=True)
    print()
    for kind, results in kinds.items():
        missed = [name for name, clauses in results if not clauses]
        print(f"{kind:<26} {len(results) - len(missed):>3} of {len(results):<3} {', '.join(missed)}".rstrip())
    if options.write:
        FOUND.write_text(json.dumps({name: known[name] for name in FAULTS}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

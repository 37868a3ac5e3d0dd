"""Send malformed frames to a daemon and malformed requests to a server, and see that both stay as they were.

    python tests/robustness/fuzz.py --frames 1000000 --bodies 1000000 --seed 1

Every frame must be answered ER or its connection closed, every request answered or its connection closed; the process
must stay up and its memory flat, and it must do as it should at the end. The exit status is 0 if that is so. Figures
are printed as JSON, with the seed that repeats the run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from lanes import PATIENCE_S, Lane, converse
from mutations import Exchange, frames, requests
from serving import Serving, serving

from cpdaemon import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LANES = 64
FLAT_MB = 24.0
"""What memory may grow by once a tenth has been sent: allocators keep what they once had."""


def main() -> int:
    """Run, print what was seen, and say whether it is as it must be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--bodies", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    figures: dict[str, Any] = {"seed": chosen.seed}
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir="/tmp") as folder, serving(Path(folder)) as served:
        random = Random(chosen.seed)
        figures["frames"], problems = bother(served, "frames", frames(random), is_frame_answer, count=chosen.frames)
        figures["bodies"], others = bother(served, "bodies", requests(random), is_http_answer, count=chosen.bodies)
        figures["problems"] = [*problems, *others, *still_works(served)]
    print(json.dumps(figures, indent=2))
    return 1 if figures["problems"] else 0


def is_frame_answer(exchange: Exchange, word: str) -> bool:
    """Whether a frame was answered as it may be: a part of it may have been a command."""
    return word in {"ER", "closed"} or (word == "OK" and not exchange.whole)


def is_http_answer(_: Exchange, word: str) -> bool:
    """Whether a request was answered as it may be: it was refused, or it was a good one after all."""
    return word.startswith(("2", "4", "500")) or word == "closed"


def bother(
    served: Serving, what: str, exchanges: Iterator[Exchange], is_right: Callable[[Exchange, str], bool], *, count: int
) -> tuple[dict[str, Any], list[str]]:
    """Send so many, through every socket that takes them; what is seen, and what is wrong with it."""
    kinds = ("unix", "tcp") if what == "frames" else ("http",)
    lanes = [
        Lane(partial(served.connect, kinds[number % len(kinds)]), keeps=what == "bodies") for number in range(LANES)
    ]
    words: Counter[str] = Counter()
    problems: list[str] = []

    def note(exchange: Exchange, word: str) -> None:
        words[word] += 1
        if not is_right(exchange, word) and len(problems) < 10:
            problems.append(f"{word} for {b''.join(exchange.pieces)[:200]!r}")

    def send(number: int) -> float:
        silent = converse(lanes, islice(exchanges, number), note)
        if silent:
            problems.append(f"{silent} {what} were not answered")
        served.control("reset", "POST")
        return served.memory_mb()

    begun_s = time.monotonic()
    tenth = -(-count // 10)
    memory_mb = [send(tenth) for _ in range(10)]
    for lane in lanes:
        lane.end()
    figures = {
        "sent": 10 * tenth,
        "answers": dict(words.most_common()),
        "per_s": round(10 * tenth / (time.monotonic() - begun_s)),
        "memory_mb": [round(value, 1) for value in memory_mb],
    }
    if memory_mb[-1] > memory_mb[0] + FLAT_MB:
        problems.append(f"memory has grown from {memory_mb[0]:.1f} to {memory_mb[-1]:.1f} MB")
    return figures, problems


def still_works(served: Serving) -> list[str]:
    """What is wrong with the process in the end."""
    if served.process.poll() is not None:
        return [f"the process has ended with status {served.process.returncode}"]
    for kind in ("unix", "tcp"):
        with Client(served.addresses[kind]) as client:
            client.alloc(f"last-{kind}", credits=5)
    problems: list[str] = served.control("balance")["violations"]
    deadline = time.monotonic() + PATIENCE_S
    while served.control("totals")["projects"]["fuzz"]["allocated"] < 2:
        if time.monotonic() > deadline:
            return [*problems, "what was allocated last is not there"]
    return problems


if __name__ == "__main__":
    sys.exit(main())

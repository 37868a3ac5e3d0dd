"""Run the whole site from many seeds.

    python tests/torture/torture.py 10000 --first 0

The exit status is 0 if the books agree in all of them; each seed for which they do not has a line, which repeats it.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections import Counter

import torture_site


class Failed(AssertionError):
    """The books of a seed do not agree; the message is one line, which says how to repeat it."""


def run(seed):
    """Run a seed, and return its world; raises Failed."""
    try:
        return torture_site.run(seed)
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise Failed(f"python tests/torture/torture.py 1 --first {seed}  # {what}") from error


def total(seeds):
    """How often everything came in all runs of some seeds."""
    counts = Counter()
    for seed in seeds:
        counts += figures(run(seed))
    return counts


def figures(world):
    """How often everything came in a run."""
    counts = Counter(world.counts)
    for process in (world.daemon, world.server):
        counts.update(process.disk.log)
    for command in world.books.commands():
        counts["acknowledged" if command.status == "OK" else command.status] += 1
        counts["in two segments"] += len(command.sent) > 1
    counts["applied"] += world.applied
    counts["refused"] += world.refused
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("seeds", nargs="?", type=int, default=10_000, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--digests", action="store_true", help="print the digest of each run's trace")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    began_s = time.monotonic()
    counts, failed = Counter(), 0
    for seed in range(given.first, given.first + given.seeds):
        try:
            world = run(seed)
        except Failed as error:
            failed += 1
            print(error, flush=True)
            continue
        counts += figures(world)
        if given.digests:
            print(world.trace.hexdigest())
        elif sys.stderr.isatty():
            print(f"\r{seed + 1 - given.first:,} of {given.seeds:,}", end="", file=sys.stderr)
    if not given.digests:
        print(json.dumps({"seeds": given.seeds, "failed": failed, "s": round(time.monotonic() - began_s, 1), **counts}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

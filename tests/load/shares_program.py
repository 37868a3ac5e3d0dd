"""Divides the evidence of a run folder into shares, as workers of Locust have them, and adds up what they answer.

It is a program, because `cpsim.load` has Locust patch the process. Usage: shares_program.py RUNFOLDER; it prints a
JSON object for each number of shares: the verdict, the figures, and the digest of the journal that was put together.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import msgpack
import numpy as np

import cpsim.replay.wires.connect  # noqa: F401, isort: skip - before Locust, as `cpsim load` has it
from cpsim.evidence.files import JOURNAL, EvidenceFolder
from cpsim.evidence.writing import journal_rows, write_rows
from cpsim.judge.judge import CHECKERS
from cpsim.load.adding import add_up
from cpsim.load.asking import WorkerLost
from cpsim.load.judging import by_workers
from cpsim.load.outcome import Shares
from cpsim.load.share import WorkersShare, partitions_of
from cpsim.run.documents import verdict_document
from cpsim.run.measured import Measured

WARM_UP_S = 0.05


def of_share(whole, index, count):
    """The evidence of a share."""
    numbers = whole.workload.slot_numbers
    ops = np.flatnonzero(numbers[whole.workload.slot] % count == index)
    records = whole.records[np.isin(whole.records["op"], ops)].copy()
    records["op"] = np.searchsorted(ops, records["op"])
    return replace(
        whole,
        workload=whole.workload.of_operations(ops),
        records=records,
        schedule_us=None if whole.schedule_us is None else whole.schedule_us[ops],
        numbers=ops,
        in_parts=partitions_of(len(whole.workload), count),
        seen=None,
    )


def sent(values):
    """What Locust makes of values that it sends."""
    return msgpack.loads(msgpack.dumps(values, use_bin_type=True), raw=False, strict_map_key=False)


def load_of(whole, count, lost=None):
    """A load of so many shares, of which the worker of one may be lost when it is to judge."""
    workers = [WorkersShare(of_share(whole, index, count)) for index in range(count)]

    def ask(share, what, given):
        if what == "judge" and share.index == lost:
            raise WorkerLost
        return sent(workers[share.index].answer(what, sent(given)))

    states = [SimpleNamespace(worker=f"worker-{index}", index=index, lost=False, begun=True) for index in range(count)]
    return Shares(SimpleNamespace(warm_up_s=WARM_UP_S), len(whole.workload), states, ask, None)


def heard(whole, times):
    """How many values the figures of a load have in which each operation was sent so many times.

    The three slowest slots, of which all that was sent is told, are left out.
    """
    ops = np.repeat(np.arange(len(whole.workload)), times)
    records = np.repeat(whole.records, times)
    records["op"] = np.arange(len(records))
    share = WorkersShare(replace(whole, workload=whole.workload.of_operations(ops), records=records))
    return sum(
        values_in({name: each for name, each in share.answer(what, given).items() if name != "slowest"})
        for what, given in (
            ("sums", {"warm_up_s": 0.0}),
            ("over_time", {"last_ns": int(records["answered_ns"].max())}),
            ("by_interval", {"first": 0, "stop": 30}),
            ("by_second", {"first": 0, "stop": 30}),
        )
    )


def values_in(answer):
    """How many values an answer has at any depth."""
    if isinstance(answer, dict):
        answer = answer.values()
    return sum(map(values_in, answer)) if isinstance(answer, Iterable) and not isinstance(answer, str) else 1


def figures(measured, over_time):
    """Figures that JSON carries."""
    found = {name: getattr(measured, name) for name in ("by_kind", "errors", "lateness_p99_ms", "seconds", "sent")}
    found |= {"left_out": measured.warm_up_operations, "per_second": measured.times.per_second}
    found |= {"by_kind_ms": measured.times.by_kind_ms()}
    names = ("step_s", "offered", "achieved", "refused", "unknown", "service_ms", "response_ms", "in_flight", "outages")
    return found | {name: getattr(over_time, name) for name in names}


def main():
    from cpsim.run.over_time import OverTime
    from cpsim.run.pipeline import ApplyDelay

    whole = EvidenceFolder(Path(sys.argv[1])).whole()
    alone = figures(Measured.of(whole, WARM_UP_S), OverTime.of(whole, ApplyDelay(unknown="nobody looked")))
    print(json.dumps({"figures": alone, "heard": [heard(whole, times) for times in (1, 10)]}))
    for count in (1, 2, 4, 7):
        shares = load_of(whole, count)
        added = add_up(shares.ask_all, WARM_UP_S)
        head = replace(whole.head(), in_parts=shares.partitions, answers=added.answers, errors=added.errors)
        verdict = by_workers(shares, head, CHECKERS)
        lost = by_workers(load_of(whole, count, lost=0), head, CHECKERS)
        with TemporaryDirectory() as name:
            shares.write(JOURNAL, Path(name) / "joined")
            divided = replace(whole, in_parts=shares.partitions)
            write_rows(
                JOURNAL, (t for part in range(divided.count) for t in journal_rows(divided, part)), Path(name) / "one"
            )
            joined, one = (sha256((Path(name) / file).read_bytes()).hexdigest() for file in ("joined", "one"))
        print(
            json.dumps(
                {
                    "shares": count,
                    "verdict": verdict_document(head, verdict),
                    "lost": verdict_document(head, lost),
                    "figures": figures(added.measured, added.drawn.over_time),
                    "parts": added.parts,
                    "is_joined": joined == one,
                    "slowest": [each.title.rpartition(" after ")[2] for each in added.drawn.slowest],
                }
            )
        )


main()

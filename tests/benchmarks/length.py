"""The greatest memory of a run, stage by stage, without sockets: all is accepted, and accounts show all of it.

    python tests/benchmarks/length.py JOBS OUTPUT

runs so many jobs of the challenge, three operations each, with accounts compared and the run folder written, and
prints a line for each stage: the greatest resident memory, files that are mapped included, and processor time.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys
import time
from pathlib import Path

os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # as in `cpsim.__main__`

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cpdaemon.endpoint import UnixEndpoint, parse_endpoint
from cpsim.accounts.observer import Observer
from cpsim.accounts.view import ACCOUNTS, CONTRACTS, NEXT
from cpsim.config.catalog import find_scenario
from cpsim.replay.pace import AsFastAsPossible
from cpsim.replay.wires.wire import ACCEPTED
from cpsim.run import folder as run_folder
from cpsim.run import observing, pipeline
from cpsim.run.drivers import Wiring
from cpsim.run.plan import ReplayTarget
from cpsim.run.summary import summarise
from cpsim.scenario import load_workload
from cpsim.scenario.workload import ABSENT, KIND_CODES
from cpsim.system.mapped import keep_nothing_large, let_go, put_anywhere, stretches, zeros
from cpsim.system.process import prepare_arrow

PAGE = 10_000
PROJECT, PREFIX = "cern", "challenge"
EXPIRE_US = 2 * 86_400_000_000
RESET = Path("/proc/self/clear_refs")
SCALE = 1 if sys.platform == "darwin" else 1024


class Wire:
    """Accepts all that is sent, at once."""

    dropped = 0

    def __init__(self, *_, **__):
        self._sent = 0
        self._answered = []

    def send(self, _):
        self._sent += 1
        self._answered.append(self._sent)
        return self._sent

    def poll(self, _):
        answered, self._answered = self._answered, []
        return answered

    def receive(self, _):
        return ACCEPTED

    def abandon(self, _):
        return False

    def close(self):
        pass


class Accounts:
    """What accounts show of which every operation of a workload was applied, page by page, when the first is read."""

    def __init__(self, workload):
        self._workload = workload
        self._rows = {kind: zeros(len(workload.slot_numbers), np.dtype(np.int32)) for kind in KIND_CODES}  # 0: none
        for where in stretches(len(workload)):
            for kind, rows in self._rows.items():
                mine = workload.kind[where] == KIND_CODES[kind]
                put_anywhere(rows, workload.slot[where][mine], workload.row[where][mine] + 1)
        self._names = workload.arguments["counters"].names
        self._earned = np.zeros((len(workload.machines), 1 + len(self._names)), np.int64)
        self._now_us = 0

    def exists(self):
        return True

    def totals(self):
        return {"pending": 0, "projects": {PROJECT: {"allocated": 0}}}

    def clock(self):
        return time.monotonic_ns() // 1000, 1.0

    def table(self, name, query=None):
        if name == "accounts.parquet":
            return _parquet(self._machines())
        start = query.get("cursor", 0)
        if not start:
            self._now_us, _ = self.clock()
        page = self._slots(slice(start, start + PAGE))
        let_go()
        stop = start + len(page)
        following = {NEXT: json.dumps({"cursor": stop})} if stop < len(self._workload.slot_numbers) else None
        return _parquet(page.replace_schema_metadata(following))

    def _slots(self, where):
        workload, arguments, schema = self._workload, self._workload.arguments, CONTRACTS["slots"].schema
        claim, discard, counters = (self._rows[kind][where] - 1 for kind in ("claim", "discard", "counters"))
        claimed, discarded, many = claim >= 0, discard >= 0, len(claim)
        machine = arguments["claim"]["machine"].values[claim.clip(0)]
        reason = arguments["discard"]["reason"]
        values = np.where((counters >= 0)[:, None], arguments["counters"].free[counters.clip(0)], ABSENT)
        given = values != ABSENT
        np.add.at(self._earned[:, 0], machine[claimed], 1)
        np.add.at(self._earned[:, 1:], machine[claimed], np.where(given, values, 0)[claimed])
        columns = {
            "project": pa.array([PROJECT] * many),
            "slot": pa.array([f"{PREFIX}-{number}" for number in workload.slot_numbers[where].tolist()]),
            "state": pa.array(["allocated", "claimed", "discarded"]).take(pa.array(claimed + 2 * discarded)),
            "machine": pa.array(workload.machines).take(pa.array(machine, mask=~claimed)),
            "reason": pa.array(reason.texts).take(pa.array(reason.values[discard.clip(0)], mask=~discarded)),
            "granted": pa.array(np.ones(many, np.int64), mask=~claimed),
            "allocated_us": pa.array(np.full(many, self._now_us)),
            "expires_us": pa.array(np.full(many, self._now_us + EXPIRE_US)),
            "settled_us": pa.array(np.full(many, self._now_us), mask=~(claimed | discarded)),
            "counters": pa.MapArray.from_arrays(
                np.append(0, np.cumsum(given.sum(axis=1))).astype(np.int32),
                pa.array(self._names).take(pa.array(np.nonzero(given)[1])),
                pa.array(values[given]),
            ),
            "meta": pa.array([[]] * many, schema.field("meta").type),
        }
        return pa.table([columns.get(each.name, pa.nulls(many)).cast(each.type) for each in schema], schema)

    def _machines(self):
        names = ("credits", *self._names)
        rows = []
        for machine, earned in zip(self._workload.machines, self._earned.tolist(), strict=True):
            counters = [(name, value) for name, value in zip(names[1:], earned[1:], strict=True) if value]
            sums = {"credits": earned[0], "counters": counters}
            waiting = {f"waiting_{name}": value for name, value in sums.items()}
            rows.append({"project": PROJECT, "kind": "machine", "id": machine, **sums, **waiting})
        return pa.Table.from_pylist([row for row in rows if row["credits"]], ACCOUNTS)


def _parquet(table):
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


class Stages:
    """The greatest memory of each stage, where the system has it by stages, and in all."""

    def __init__(self):
        self._name, self._begun_s, self.most_bytes = "importing", time.process_time(), 0

    def begin(self, name):
        """End a stage, and begin another one."""
        self.most_bytes = max(self.most_bytes, most := _most_bytes())
        now_s = time.process_time()
        print(f"{self._name:24} {most / 1e6:6.0f} MB {now_s - self._begun_s:8.1f} s", file=sys.stderr, flush=True)
        if RESET.exists():
            RESET.write_text("5", encoding="ascii")
        self._name, self._begun_s = name, now_s

    def around(self, room, name, stage, after):
        """Have a function of a module be a stage of its own."""
        function = getattr(room, name)

        def call(*args, **kwargs):
            self.begin(stage)
            try:
                return function(*args, **kwargs)
            finally:
                self.begin(after)

        setattr(room, name, call)


def _most_bytes():
    if RESET.exists():
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * SCALE


def run(jobs, output):
    """Run so many jobs; returns the greatest memory in bytes, and the number of operations."""
    prepare_arrow()
    keep_nothing_large()
    stages, made = Stages(), []

    def load():
        made.append(load_workload(find_scenario("challenge"), 7, (f"arrivals.jobs={jobs}",)))
        return made[0]

    class FakeObserver(Observer):
        def __init__(self, *args):
            super().__init__(*args)
            self.control = Accounts(made[0])

        def outstanding(self):
            return set()

    pipeline.Observer = FakeObserver
    stages.around(observing, "_look", "reading accounts", "judging")
    stages.around(pipeline, "apply_delays_ns", "apply delays", "...")
    target = ReplayTarget(UnixEndpoint("none"), parse_endpoint("http://127.0.0.1:1/api"), (PROJECT, "none"))
    with run_folder.OutputFolder(output) as written:
        done = pipeline.run(
            load,
            target,
            AsFastAsPossible(),
            in_flight=64,
            timeout_s=10.0,
            slot_prefix=PREFIX,
            on_stage=stages.begin,
            on_progress=lambda *_: None,
            wiring=Wiring(connect=Wire),
            folder=written.partial,
        )
        stages.begin("figures")
        summary = summarise(done)
        stages.around(run_folder.page, "html", "the page", "writing the run folder")
        stages.begin("writing the run folder")
        run_folder.write(done, summary, written)
        stages.begin("")
    assert done.verdict.ruling == "valid", done.verdict.counts
    assert not done.apply_delay.unknown, done.apply_delay.unknown
    return stages.most_bytes, len(done.evidence.records)


if __name__ == "__main__":
    print(*run(int(sys.argv[1]), Path(sys.argv[2])))

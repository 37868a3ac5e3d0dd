"""A run that is cut short leaves what was sent and answered, and that can be judged."""

import json
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cpdaemon.endpoint import UnixEndpoint, parse_endpoint
from cpsim.config.catalog import find_scenario
from cpsim.errors import CpsimError
from cpsim.evidence import beginning
from cpsim.evidence.evidence import Evidence
from cpsim.evidence.files import EvidenceFolder
from cpsim.evidence.journal import RECORD_TYPE, Journal, OperationOutcome
from cpsim.evidence.unfinished import journals_in
from cpsim.fake import ANY_PORT, Fake
from cpsim.judge.judge import CHECKERS, judge
from cpsim.replay.assignment import Assignment
from cpsim.replay.pace import AsFastAsPossible
from cpsim.run import folder as run_folder
from cpsim.run.drivers import Wiring
from cpsim.run.pipeline import run
from cpsim.run.plan import ReplayTarget
from cpsim.scenario import load_workload

PROJECT, SECRET = "Proj", "hush"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def target():
    with Fake({PROJECT: SECRET}, unix=Path("cp.sock"), http=ANY_PORT) as started:
        server = parse_endpoint(started.addresses["http"])
        yield ReplayTarget(UnixEndpoint("cp.sock"), server, (PROJECT, SECRET))


class Killed:
    """A wiring by which the run folder is copied at an answer: it is what a kill at that moment would have left."""

    def __init__(self, folder, at, *, is_flushed=True):
        self.folder, self._at, self._is_flushed = folder, at, is_flushed
        self.answers = 0
        self.wiring = Wiring(connect=self._connect, follow=self._follow)

    def _connect(self, *arguments, **options):
        wire = Wiring().connect(*arguments, **options)
        receive = wire.receive

        def received(descriptor):
            answer = receive(descriptor)
            self.answers += answer is not None
            if self.answers == self._at and answer is not None:
                if self._is_flushed:
                    self._journal.flush()
                shutil.copytree(self.folder, "killed")
            return answer

        wire.receive = received
        return wire

    @contextmanager
    def _follow(self, parts):
        ((self._journal, _),) = parts
        yield


def perform(target, killed, *, jobs=60):
    with run_folder.OutputFolder(Path("out")) as written:
        killed.folder = written.partial
        return run(
            lambda: load_workload(find_scenario("smoke"), None, (f"arrivals.jobs={jobs}",)),
            target,
            AsFastAsPossible(),
            in_flight=4,
            timeout_s=5.0,
            slot_prefix=None,
            on_stage=lambda _: None,
            on_progress=lambda *_: None,
            wiring=killed.wiring,
            folder=written.partial,
        )


def verdict_of(folder):
    return judge(folder.partitions(), folder.head(), CHECKERS)


@pytest.mark.parametrize("is_flushed", [True, False])
def test_what_a_killed_run_leaves_is_judged(target, cpsim, monkeypatch, is_flushed):
    monkeypatch.setattr("cpsim.evidence.evidence.PARTITION", 50)
    whole = perform(target, Killed(None, 100, is_flushed=is_flushed)).evidence
    status, out, _ = cpsim("judge", "killed", "--json")
    document = json.loads(out)
    assert (status, document["verdict"]) == (2, "unknown")
    left = EvidenceFolder(Path("killed")).whole()
    known = left.records[left.records["outcome"] != OperationOutcome.UNKNOWN]
    answered, cut_short = len(known), "the run was cut short, or still goes on"
    unknown = len(whole.records) - answered
    assert answered == 99 if is_flushed else answered <= 99
    assert document["not_verified"] == [
        f"Whether commands were applied: {cut_short}, and nobody has looked at the accounts.",
        *([] if answered else ["Everything: no operation was accepted."]),
        "0 operations were not sent: the run was interrupted.",
        f"What became of up to {unknown} operations that may have been sent last: {cut_short}.",
    ]
    assert known.tolist() == whole.records[np.isin(whole.records["op"], known["op"])].tolist()
    # all was applied by the end: later accounts fit what may have been sent
    later = verdict_of(EvidenceFolder(Path("killed"), whole.view, project=PROJECT))
    assert not later.counts
    assert later.checked["slots"] == 60


def test_what_was_not_sent_yet_cannot_have_been_applied(target):
    """Operations are said to be sent a few at a time: those that come later are not excused."""
    whole = perform(target, Killed(None, 100), jobs=400).evidence
    left = EvidenceFolder(Path("killed")).whole()
    assert 99 < len(left.records) < len(whole.records)
    sent_by_then = whole.records["sent_ns"] < np.sort(whole.records["answered_ns"])[98]
    assert set(whole.records["op"][sent_by_then]) <= set(left.records["op"].tolist())
    later = verdict_of(EvidenceFolder(Path("killed"), whole.view, project=PROJECT))
    assert later.counts["phantom"]


def begun(workload, processes):
    """A folder of a run by several processes in which nothing was sent yet, and the share of each."""
    empty = np.empty(
        0, [("op", "<i4"), ("outcome", "u1"), ("error", "<u2"), ("sent_ns", "<i8"), ("answered_ns", "<i8")]
    )
    evidence = Evidence(
        workload=workload,
        slot_prefix="x",
        fresh=True,
        embedded=False,
        endpoint=UnixEndpoint("cp.sock"),
        project=None,
        records=empty,
        errors=[""],
        answers=np.zeros((6, 1), np.int64),
        unsent=len(workload),
    )
    beginning.begin(evidence, Path.cwd(), processes)
    whole = Assignment(workload, np.arange(len(workload)), None, "x", UnixEndpoint("cp.sock"), None, 4, 1.0)
    return [whole.part(index, processes) for index in range(processes)]


@pytest.mark.parametrize("torn", [b"", b'{"upto"'])
def test_the_journals_of_several_processes_are_told_apart(torn, cpsim):
    workload = load_workload(find_scenario("smoke"), None, ("arrivals.jobs=60",))
    shares = begun(workload, 3)
    for share, path in enumerate(journals_in(Path.cwd(), 3)):
        journal = Journal(path)
        journal.upto(10)
        for op in (5, 2, 3):
            journal.record(op, OperationOutcome.REFUSED, f"error {share} {op % 2}", 1_234 * op, 10_000 * op + 1)
        journal.close()
        for file in (path, path.with_suffix(".notes")):
            file.write_bytes(file.read_bytes() + torn)
    left = EvidenceFolder(Path.cwd()).whole()
    assert left.unsent == len(workload) - 30
    of_op = {int(record["op"]): record for record in left.records}
    for share, part in enumerate(shares):
        for op in range(10):
            record = of_op[int(part.ops[op])]
            if op in {5, 2, 3}:
                assert left.errors[record["error"]] == f"error {share} {op % 2}"
                assert (record["sent_ns"], record["answered_ns"]) == (1_234 * op // 1000 * 1000, 10_000 * op)
            else:
                assert (left.errors[record["error"]], record["outcome"]) == ("interrupted", OperationOutcome.UNKNOWN)
                before = [10_000 * o for o in (5, 2, 3) if part.workload.slot[o] == part.workload.slot[op]]
                assert (record["sent_ns"], record["answered_ns"]) == (max(before, default=0), 50_000)
    assert cpsim("judge", ".")[0] == 2


def test_a_folder_that_could_not_be_made_whole_has_the_verdict_of_the_run(target, cpsim, monkeypatch):
    def fails(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("cpsim.evidence.writing.write_journal", fails)
    Path("secret").write_text(SECRET, encoding="utf-8")
    server = ["--server", str(target.server), "--project", PROJECT, "--secret-file", "secret"]
    options = ["smoke", "--set", "arrivals.jobs=60", "--asap", "--output", "out"]
    status, out, err = cpsim("run", *options, "--target", "./cp.sock", *server)
    assert status == 2, err
    assert err.startswith(
        "what there is can be judged: cpsim judge out.partial\ncpsim: out could not be written: journal"
    )
    assert "verdict       valid" in out
    assert {"journal-1.raw", "journal-1.notes", "ledger.parquet"} <= {
        path.name for path in Path("out.partial").iterdir()
    }
    status, out, _ = cpsim("judge", "out.partial", "--json")
    assert (status, out) == (0, Path("out.partial/verdict.json").read_text(encoding="utf-8"))
    assert "judge what there is of it, out.partial" in cpsim("judge", "out")[2]


def test_a_disk_without_room_for_the_journal_is_told_before_anything_is_sent(target, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 4_000))
    workload = load_workload(find_scenario("smoke"), None, ("arrivals.jobs=60",))
    with pytest.raises(CpsimError, match=r"takes at least 0 MB, and the disk of \S+ has 0 MB free; nothing was sent"):
        begun(workload, 1)


def test_temporary_files_on_the_same_disk_need_room_too(target, monkeypatch):
    workload = load_workload(find_scenario("smoke"), None, ("arrivals.jobs=60",))
    begun(workload, 1)
    free = Path("workload.parquet").stat().st_size + len(workload) * RECORD_TYPE.itemsize + 1_000
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, free))
    with pytest.raises(CpsimError, match=r"with temporary files, takes at least .* with --output or TMPDIR$"):
        begun(workload, 1)
    monkeypatch.setattr("tempfile.tempdir", str(Path.cwd() / "on another disk"))
    begun(workload, 1)


def test_journals_that_are_no_evidence_are_told(cpsim):
    begun(load_workload(find_scenario("smoke"), None, ("arrivals.jobs=60",)), 1)
    (path,) = journals_in(Path.cwd(), 1)
    assert re.search("journal-1.raw is missing: nothing had been sent, or", cpsim("judge", ".")[2])
    journal = Journal(path)
    journal.upto(10**6)
    journal.close()
    assert re.search("journal-1.raw is damaged: it is not that of the workload", cpsim("judge", ".")[2])

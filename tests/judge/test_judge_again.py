"""A run is judged again from its folder, with nothing running: the verdict is the same, byte for byte."""

import json
import re
import shutil
import sys
from collections import Counter
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cpdaemon.endpoint import UnixEndpoint, parse_endpoint
from cpsim.cli import cli
from cpsim.config.catalog import find_scenario
from cpsim.errors import CpsimError
from cpsim.evidence import evidence as evidence_module
from cpsim.evidence.evidence import by_partition
from cpsim.evidence.files import EvidenceFolder
from cpsim.fake import ANY_PORT, Fake
from cpsim.judge.judge import CHECKERS, judge
from cpsim.judge.model import Span
from cpsim.judge.verdict import EXAMPLES, SHOWN_ANOMALIES, Verdict
from cpsim.replay.pace import AsFastAsPossible, Rate, Virtual
from cpsim.run import folder as run_folder
from cpsim.run.pipeline import run
from cpsim.run.plan import ReplayTarget
from cpsim.run.summary import summarise
from cpsim.scenario import load_workload
from cpsim.system.mapped_rows import pieces

PROJECT, SECRET = "Proj", "hush"
SMALL = """
description = "test"
duration = "1d"
population = { machines = 2, users = 1 }
arrivals = { model = "constant", jobs = 20 }
run_time = { model = "constant", value = "10min" }
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def perform(target=None, *, scenario="smoke", settings=("arrivals.jobs=60",), pace=None, folder="out", **options):
    """A run in its folder."""
    result = run(
        lambda: load_workload(find_scenario(scenario), None, settings),
        target,
        pace or AsFastAsPossible(),
        in_flight=16,
        timeout_s=options.pop("timeout_s", 5.0),
        slot_prefix=None,
        command=lambda seed: f"cpsim run {scenario} --seed {seed}",
        on_stage=lambda _: None,
        on_progress=options.pop("on_progress", lambda *_: None),
        **options,
    )
    with run_folder.OutputFolder(Path(folder)) as written:
        run_folder.write(result, summarise(result), written)
    return result


def again(folder="out"):
    """The exit status and the document of `cpsim judge`."""
    done = CliRunner().invoke(cli, ["judge", folder, "--json"], standalone_mode=False)
    return done.exception.code if isinstance(done.exception, SystemExit) else done.exit_code, done.stdout


def is_same(folder="out"):
    status, document = again(folder)
    kept = Path(folder, "verdict.json").read_text(encoding="utf-8")
    return document == kept and status == {"valid": 0, "invalid": 1, "unknown": 2}[json.loads(kept)["verdict"]]


@pytest.fixture
def site():
    with Fake({PROJECT: SECRET}, unix=Path("cp.sock"), http=ANY_PORT) as started:
        yield started


def server_of(site):
    return parse_endpoint(site.addresses["http"]), (PROJECT, SECRET)


@pytest.fixture
def target(site):
    """A site in this process: a run that has one of its own starts a process."""
    return ReplayTarget(UnixEndpoint("cp.sock"), *server_of(site))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pace": Rate(1000)},
        {"processes": 2},
        {
            "settings": ["arrivals.jobs=20"],
            "pace": Virtual(),
            "timeout_s": 100.0,
            "faults": ["server.lose-reply:probability=0.1"],
        },
        {"faults": ["daemon.lose-reply:probability=0.1"]},
        {"scenario": "misbehaviour", "settings": ["arrivals.jobs=50"]},
        {"scenario": "two-projects", "settings": ["arrivals.jobs=60"]},
    ],
)
def test_what_was_valid_is_valid(options):
    assert perform(**options).verdict.ruling == "valid"
    assert is_same()


def test_what_was_wrong_is_wrong_with_the_same_examples():
    with Fake({PROJECT: SECRET}, unix=Path("cp.sock"), http=ANY_PORT, quirks=frozenset({"reclaim"})) as site:
        server, credentials = server_of(site)
        target = ReplayTarget(UnixEndpoint("cp.sock"), server, credentials)
        result = perform(target, scenario="duplicate-claims", settings=["arrivals.jobs=100"])
    assert result.verdict.ruling == "invalid"
    assert result.verdict.examples
    assert is_same()


def test_what_was_not_seen_is_unknown():
    with Fake({PROJECT: SECRET}, unix=Path("cp.sock")):
        assert perform(ReplayTarget(UnixEndpoint("cp.sock"))).verdict.ruling == "unknown"
    assert is_same()


def test_where_outstanding_slots_were_all_that_was_seen(site, monkeypatch):
    from cpsim.server.http import Api, Response

    respond = Api.respond
    closed = Response(404, b"no such page")
    monkeypatch.setattr(
        Api, "respond", lambda api, asked: closed if asked.path.startswith("/__cpsim/") else respond(api, asked)
    )
    server, credentials = server_of(site)
    assert "no control API" in perform(ReplayTarget(server, server, credentials)).verdict.not_verified[0]
    assert is_same()


def test_what_was_not_sent_is_counted(target):
    result = perform(target, pace=Rate(200), stop_after_s=0.1)
    assert result.evidence.unsent > 0
    assert is_same()


def test_the_same_on_another_machine_and_in_partitions(site, monkeypatch):
    """What a partition holds does not change which slots are wrong."""
    site.set_quirks(frozenset({"reclaim"}))
    server, credentials = server_of(site)
    target = ReplayTarget(UnixEndpoint("cp.sock"), server, credentials)
    result = perform(target, scenario="duplicate-claims", settings=["arrivals.jobs=100"], folder="whole")
    whole_size = evidence_module.PARTITION
    monkeypatch.setattr(evidence_module, "PARTITION", 60)
    evidence = result.evidence
    assert evidence.count > 3
    parts = list(evidence.partitions())
    assert sum(len(part.workload.slot_numbers) for part in parts) == len(evidence.workload.slot_numbers)
    assert sum(len(part.ledger) for part in parts) == len(evidence.ledger)
    verdict = judge(evidence.partitions(), evidence.head(), CHECKERS)
    with run_folder.OutputFolder(Path("parts")) as written:
        parts = replace(result, verdict=verdict)
        run_folder.write(parts, summarise(parts), written)
    monkeypatch.setattr(evidence_module, "PARTITION", whole_size)
    shutil.move("parts", "elsewhere")
    assert is_same("elsewhere")
    assert verdict.counts == result.verdict.counts
    assert verdict.checked == result.verdict.checked
    assert sorted(map(str, verdict.anomalies)) == sorted(map(str, result.verdict.anomalies))
    whole = EvidenceFolder(Path("elsewhere")).whole()
    assert whole.records.tolist() == evidence.records.tolist()
    assert whole.workload.digest() == EvidenceFolder(Path("whole")).whole().workload.digest()
    assert judge([whole], whole.head(), CHECKERS).document() == result.verdict.document()


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_each_row_of_a_ledger_is_put_in_its_partition_once(monkeypatch, rows):
    monkeypatch.setattr(evidence_module, "ROWS_AT_ONCE", rows)
    looked_at = []

    def noted(table, rows):
        for piece in pieces(table, rows):
            looked_at.append(len(piece))
            yield piece

    monkeypatch.setattr(evidence_module, "pieces", noted)
    ids = [*(f"a-{number}" for number in range(20, 0, -1)), "b-1", "a-", "a-1x", "A-1"]
    slots_of = by_partition(pa.table({"slot": ids}), 3, "a")
    parts = [slots_of(index)["slot"].to_pylist() for index in range(3)]
    assert sum(looked_at) == len(ids)
    assert max(looked_at) <= rows
    numbers = {each: int(each[2:]) if each in ids[:20] else 0 for each in ids}
    assert parts == [[each for each in ids if numbers[each] % 3 == index] for index in range(3)]
    assert slots_of(2)["slot"].to_pylist() == parts[2]
    assert len(by_partition(pa.table({"slot": ["a-1"]}), 3, "a")(2)) == 0
    monkeypatch.setattr("tempfile.tempdir", "missing")
    slots_of = by_partition(pa.table({"slot": ids}), 3, "a")
    assert [slots_of(index)["slot"].to_pylist() for index in range(3)] == parts


def test_another_verdict_than_at_the_end_of_the_run_is_told(target):
    perform(target)
    folder = Path("out/verdict.json")
    folder.write_text(folder.read_text().replace('"valid"', '"invalid"'))
    done = CliRunner().invoke(cli, ["judge", "out"], standalone_mode=False)
    assert "verdict       valid (60 slots, 19 machines," in done.output
    assert "not as at the end of the run: see out/verdict.json" in done.output


# Verdicts are values


names = st.sampled_from(["lost", "altered", "phantom"])
found = st.builds(
    lambda checked, uncertain, findings, unsearched, sentences: (checked, uncertain, findings, unsearched, sentences),
    st.integers(0, 3),
    st.integers(0, 3),
    st.lists(st.tuples(names, st.integers(1, 4)), max_size=6),
    st.integers(0, 2),
    st.lists(st.sampled_from("ABC"), max_size=3),
)


def verdict_of(part, *, number):
    checked, uncertain, findings, unsearched, sentences = part
    verdict = Verdict(Counter({"slots": checked}), uncertain, unsearched=unsearched, not_verified=list(sentences))
    for place, (name, steps) in enumerate(findings):
        anomaly = verdict.find(name, f"{number}-{place}", "wrong")
        verdict.add_example(anomaly, [None] * steps, Span(0, 0), None)
    return verdict


def test_the_ledger_as_a_whole_is_not_read_where_no_slot_is_looked_for(target, monkeypatch):
    perform(target)
    monkeypatch.setattr("cpsim.evidence.files.MappedRows", None)  # what reads it as a whole
    assert is_same()


@given(found, found, found)
def test_merging_is_associative(one, two, three):
    a, b, c = (verdict_of(part, number=number) for number, part in enumerate((one, two, three)))
    left, right = a.merged(b).merged(c), a.merged(b.merged(c))
    assert left == right
    assert left.counts.total() == a.counts.total() + b.counts.total() + c.counts.total()
    assert all(len(kept) <= EXAMPLES for kept in left.examples.values())
    assert a.merged(Verdict()) == Verdict().merged(a) == a.merged(Verdict())


def test_what_is_shown_stays_bounded():
    parts = [verdict_of((0, 0, [("lost", 1)] * 600, 0, []), number=number) for number in range(3)]
    verdict = parts[0].merged(parts[1]).merged(parts[2])
    assert (len(verdict.anomalies), verdict.counts["lost"]) == (SHOWN_ANOMALIES, 1_800)


# What is no evidence


def without_any():
    shutil.rmtree("out")


def without_all_but(*names):
    def spoil():
        for path in Path("out").iterdir():
            if path.name not in names:
                path.unlink()

    return spoil


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run folder, to be copied."""
    with chdir(tmp_path_factory.mktemp("kept")):
        perform()
        return Path("out").resolve()


def without(name):
    return lambda: Path("out", name).unlink()


def spoiled(name, text):
    def spoil():
        path = Path("out", name)
        path.write_bytes(path.read_bytes()[:-50] if text is None else text(path.read_text()).encode())

    return spoil


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (without_any, "out is not a run folder: there is no such folder"),
        (without_all_but(), "out is not a run folder: it has no evidence.json"),
        (
            without_all_but("run.json"),
            "out was written by an earlier version of cpsim, without evidence.json: repeat the run",
        ),
        (without("journal.parquet"), "out has no journal.parquet, which is evidence: the run folder is not whole"),
        (without("workload.parquet"), "out has no workload.parquet, which is evidence"),
        (without("ledger.parquet"), "out has no ledger.parquet, which is evidence"),
        (spoiled("journal.parquet", None), "out/journal.parquet is damaged or cut short"),
        (spoiled("workload.parquet", None), "out/workload.parquet is damaged or cut short"),
        (spoiled("evidence.json", lambda text: text[:-9]), "out/evidence.json is damaged"),
        (
            spoiled("evidence.json", lambda text: text.replace('"answers"', '"replies"')),
            "evidence.json is damaged: Key",
        ),
        (spoiled("evidence.json", lambda text: text.replace('"view"', '"sight"')), "json is damaged: KeyError: 'view'"),
        (spoiled("evidence.json", lambda text: text.replace('"version": 1', '"version": 9')), "has format 9, and this"),
        (
            spoiled("evidence.json", lambda text: text.replace('"unsent": 0', '"unsent": 7')),
            "operations, and evidence.json counts",
        ),
        (spoiled("evidence.json", lambda text: "[]"), "out/evidence.json is damaged"),
    ],
)
def test_what_is_no_evidence_is_told(kept, prepare, said):
    shutil.copytree(kept, "out")
    prepare()
    done = CliRunner().invoke(cli, ["judge", "out"], standalone_mode=False)
    assert isinstance(done.exception, CpsimError), done
    assert said in str(done.exception)


# Checkers of others

PLUGIN = """
class Slow:
    meanings = {"too slow": "An answer took longer than this site allows."}
    by_partition = True

    def check(self, evidence, verdict):
        for record in evidence.records[:1]:
            verdict.find("too slow", str(evidence.endpoint), "it took long")

class Broken:
    meanings = {}
    by_partition = False

    def check(self, evidence, verdict):
        verdict.checked["nothing"] += 1
        raise ValueError("this is odd")

def longest_ms(evidence):
    return (evidence.records["answered_ns"] - evidence.records["sent_ns"]).max() / 1e6

def odd(evidence):
    raise ValueError("this is odd")

def service_us(evidence, records):
    return (records["answered_ns"] - records["sent_ns"]) // 1000

def short(evidence, records):
    return records["sent_ns"][1:]
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install(GROUP, NAME=TARGET): a package with entry points in a group."""

    def with_points(group, **points):
        site = tmp_path / "site"
        described = site / "plugin-1.0.dist-info"
        described.mkdir(parents=True)
        (site / "cpsim_plugin_of_test.py").write_text(PLUGIN)
        (described / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
        lines = [f"{name} = cpsim_plugin_of_test:{target}" for name, target in points.items()]
        (described / "entry_points.txt").write_text("\n".join([f"[cpsim.{group}]", *lines]))
        monkeypatch.syspath_prepend(site)

    yield with_points
    sys.modules.pop("cpsim_plugin_of_test", None)


def test_a_checker_of_another_package_judges_too(install, target):
    install("checkers", slow="Slow")
    result = perform(target)
    assert result.verdict.counts == {"too slow": 1}
    document = json.loads(Path("out/verdict.json").read_text())
    assert document["meanings"] == {"too slow": "An answer took longer than this site allows."}
    assert is_same()


def test_a_checker_that_fails_verifies_nothing(install, target):
    install("checkers", broken="Broken")
    (sentence,) = perform(target).verdict.not_verified
    assert sentence.startswith("What the checker Broken checks: ValueError: this is odd (cpsim_plugin_of_test, line ")
    assert is_same()


def test_a_checker_that_cannot_be_loaded_is_told_before_anything_is_sent(install):
    install("checkers", gone="Gone")
    sent = []
    with pytest.raises(CpsimError, match=r"gone of cpsim.checkers cannot be loaded from cpsim_plugin_of_test:Gone"):
        perform(on_progress=lambda *_: sent.append(1))
    assert not sent


def test_a_checker_in_python(target):
    class Any:
        meanings = MappingProxyType({"odd": "Something is odd."})
        by_partition = True

        def check(self, evidence, verdict):
            verdict.checked["oddities"] += len(evidence.records)
            verdict.find("odd", "it", "is odd")

    verdict = perform(target, checkers=[Any()]).verdict
    assert (verdict.counts, verdict.checked["oddities"]) == ({"odd": 1}, verdict.checked["replies"])
    assert again()[0] == 0  # without it


def test_a_metric_of_another_package_can_be_asserted(install):
    install("metrics", longest_ms="longest_ms", strange="odd")
    (scenario := Path("small.toml")).write_text(SMALL)
    asserts = ["--assert", "longest_ms<100000", "--assert", "strange<1"]
    done = CliRunner().invoke(cli, ["run", str(scenario), "--output", "out", *asserts], standalone_mode=False)
    assert done.exception.code == 1
    assert re.search(r"^longest_ms    [\d,.]+$", done.output, re.MULTILINE)
    assert "strange       unknown: ValueError: this is odd (cpsim_plugin_of_test, line" in done.output
    assert "fails  strange<1: unknown: ValueError: this is odd (cpsim_plugin_of_test, line" in done.output
    document = json.loads(Path("out/run.json").read_text())
    longest_ms, strange = (document["metrics"][name] for name in ("longest_ms", "strange"))
    assert longest_ms == pytest.approx(document["service_ms"]["max"], rel=0.01)
    assert strange is None
    assert [checked["holds"] for checked in document["asserts"]] == [True, False]


def test_a_metric_that_nobody_has_is_none():
    done = CliRunner().invoke(cli, ["run", "smoke", "--assert", "longest_ms<1"], standalone_mode=False)
    assert "no metric 'longest_ms'" in str(done.exception)


def test_a_column_of_another_package_is_in_the_journal(install, target):
    install("columns", service_us="service_us")
    evidence = perform(target, settings=["arrivals.jobs=20"]).evidence
    journal = pq.read_table("out/journal.parquet")
    times = journal["answered_us"].to_numpy() - journal["sent_us"].to_numpy()
    assert journal["service_us"].to_numpy().tolist() == times.tolist()
    assert len(times) == len(evidence.records)
    assert is_same()


@pytest.mark.parametrize(
    ("name", "column", "said"),
    [
        ("service_us", "short", r"journal.parquet: the column 'service_us' has \d+ values for"),
        ("service_us", "odd", "journal.parquet: the column 'service_us' failed: TypeError"),
        ("slot", "service_us", "journal.parquet: the journal has a column 'slot' of its own"),
    ],
)
def test_a_column_that_fails_leaves_the_other_files(install, target, name, column, said):
    install("columns", **{name: column})
    with pytest.raises(run_folder.NotWritten, match=said):
        perform(target, settings=["arrivals.jobs=50"])
    assert Path("out.partial/verdict.json").is_file()
    assert not Path("out.partial/journal.parquet").exists()

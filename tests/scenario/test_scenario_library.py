"""The scenarios that come along: each is what it says, and gets the verdict that it must get."""

import json
import tomllib
import xml.etree.ElementTree as ET

import jsonschema_rs
import pyarrow.parquet as pq
import pytest

from cpsim.config import catalog
from cpsim.replay.pace import AsFastAsPossible
from cpsim.run.pipeline import run as perform
from cpsim.scenario import load_workload, picture, source
from cpsim.scenario.json_schema import json_schema

NAMES = catalog.scenario_names()
USERS = ["population.machines=60", "population.users=20"]
ONE_USER = ["population.machines=60"]
LISTED = {
    *("smoke", "challenge", "lhc-scale", "million-machines", "steady", "thundering-herd", "duplicate-claims"),
    *("expiry-storm", "black-hole", "black-friday", "flaky-server", "daemon-restart", "counters-only", "linked-late"),
    *("misbehaviour", "two-projects", "crash"),
}


@pytest.mark.parametrize(
    ("name", "jobs"),
    [(name, 120) for name in NAMES[::5]] + [pytest.param(name, 400, marks=pytest.mark.thorough) for name in NAMES],
)
def test_each_gets_its_verdict_in_small(name, jobs):
    path = catalog.find_scenario(name)
    settings = [f"arrivals.jobs={jobs}", *(ONE_USER if name == "linked-late" else USERS)]
    run = perform(
        lambda: load_workload(path, None, settings),
        None,
        AsFastAsPossible(),
        in_flight=16,
        timeout_s=100.0,
        slot_prefix=None,
        on_stage=lambda stage: None,
        on_progress=lambda planned, progress: None,
    )
    assert run.verdict.ruling == source.load(path).verdict, (run.verdict.anomalies[:3], run.verdict.not_verified)
    assert run.verdict.checked["slots"] >= 0.75 * jobs


@pytest.mark.parametrize("name", NAMES)
def test_each_begins_with_its_purpose(name):
    text = catalog.find_scenario(name).read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert len(text.splitlines()) < 70


def test_machines_that_are_linked_late_earn_all_the_same():
    path = catalog.find_scenario("linked-late")
    assert load_workload(path, None, ONE_USER).link_after


@pytest.mark.thorough
def test_what_a_crash_leaves_is_complete(cpsim, tmp_path):
    """While the next life begins, commands are refused: how many crashes come depends on how long that takes."""
    status, out, err = cpsim("run", "crash", "--speed", 2, "--json", "--output", tmp_path / "out")
    assert (status, err) == (0, "")
    run = json.loads(out)
    fired = [fault["fired"] for fault in run["faults"]]
    assert [0] * 4 < fired <= [1] * 4
    assert max(fired) == 1
    firings = json.loads((tmp_path / "out/faults.json").read_text(encoding="utf-8"))["firings"]
    assert len(firings) == sum(fired)
    assert {firing["action"] for firing in firings} <= {"crash-before-ok", "crash-after-ok", "crash-after-commit"}
    assert run["anomalies_by_name"] == {}
    ledger = set(pq.read_table(tmp_path / "out/ledger.parquet")["slot"].to_pylist())
    journal = pq.read_table(tmp_path / "out/journal.parquet").to_pylist()
    acknowledged = {row["slot"] for row in journal if (row["kind"], row["outcome"]) == ("alloc", "accepted")}
    assert 0 < len(acknowledged) < 1_000
    assert acknowledged <= ledger


def test_they_are_listed(cpsim):
    status, out, err = cpsim("scenarios")
    assert (status, err) == (0, "")
    assert {line.split()[0] for line in out.splitlines()} == set(NAMES) == LISTED


def test_one_is_shown_with_its_curves(cpsim):
    status, out, _ = cpsim("scenarios", "show", "smoke", "--set", "arrivals.jobs=100")
    assert status == 0
    assert "Twenty machines, 500 jobs" in out
    assert "# --set arrivals.jobs=100" in out
    assert "jobs are allocated: 100, up to" in out
    assert "jobs are claimed: " in out
    assert "█" in out


def test_curves_are_drawn(cpsim, tmp_path):
    drawing = tmp_path / "curves.svg"
    status, out, err = cpsim("scenarios", "show", "black-friday", "--plot", drawing)
    assert (status, out, err) == (0, "", "")
    root = ET.fromstring(drawing.read_text(encoding="utf-8"))
    assert len(root.findall("{*}polygon")) == 2
    assert any("20,000" in (text.text or "") for text in root.findall("{*}text"))


def test_curves_hold_every_operation():
    workload = load_workload(catalog.find_scenario("smoke"))
    arrivals = picture.curves(workload)[0][0]
    assert arrivals.kind == "alloc"
    assert arrivals.counts.sum() == 500


@pytest.mark.parametrize(
    ("arguments", "expected", "message"),
    [
        (["show", "smok"], 64, 'did you mean "smoke"'),
        (["show", "smoke", "--set", "arrivals.job=1"], 2, 'did you mean "jobs"'),
        (["show", "smoke", "--plot", f"{__file__}/folder.svg"], 2, "File exists"),
    ],
)
def test_what_cannot_be_shown(cpsim, arguments, expected, message):
    status, out, err = cpsim("scenarios", *arguments)
    assert status == expected
    assert message in err
    assert "Traceback" not in out + err


SCHEMAS = {
    "generated": json.loads(json_schema()),
    "committed": json.loads(catalog.find_scenario("smoke").with_name("scenario.schema.json").read_text("utf-8")),
}


@pytest.fixture(params=SCHEMAS)
def validator(request):
    """What accepts and refuses documents: the schema beside the scenarios, and the one that is generated."""
    return jsonschema_rs.validator_for(SCHEMAS[request.param])


def outline(schema):
    """What our own code decides of a schema: the tables, their keys, what is said of them, and which are required."""
    return {
        name: (
            sorted(table.get("required", [])),
            {key: " ".join(each.get("description", "").split()) for key, each in table["properties"].items()},
        )
        for name, table in schema["$defs"].items()
    }


def test_the_schema_beside_them_is_current():
    assert outline(SCHEMAS["committed"]) == outline(SCHEMAS["generated"])


def test_the_schema_is_printed(cpsim):
    status, out, _ = cpsim("scenarios", "--schema")
    assert (status, json.loads(out)) == (0, SCHEMAS["generated"])


@pytest.mark.parametrize("name", NAMES)
def test_the_schema_accepts_each(name, validator):
    assert validator.is_valid(tomllib.loads(catalog.find_scenario(name).read_text(encoding="utf-8")))


WHOLE = tomllib.loads(catalog.find_scenario("smoke").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "change",
    [
        {"durration": "1h"},
        {"duration": "1 parsec"},
        {"population": {"machines": 0, "users": 1}},
        {"arrivals": {"model": "poison", "jobs": 1}},
        {"arrivals": {"model": "diurnal", "jobs": 1}},
        {"misbehaviour": {"claim_twice": 2}},
    ],
)
def test_the_schema_refuses_mistakes(change, validator):
    assert not validator.is_valid(WHOLE | change)


def test_the_schema_knows_what_extends_and_programs(validator):
    assert validator.is_valid({"extends": "smoke", "population": {"machines": 3}})
    assert not validator.is_valid({"extends": "smoke", "population": {"machine": 3}})
    assert validator.is_valid({"description": "mine", "generator": "mine.py"})
    assert not validator.is_valid({"population": {"machines": 3, "users": 1}})

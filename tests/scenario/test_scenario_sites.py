"""Several sites and projects in one scenario: made, replayed, and judged apart."""

import dataclasses

import pyarrow.parquet
import pytest

from cpdaemon.endpoint import UnixEndpoint, parse_endpoint
from cpsim.config import catalog
from cpsim.errors import CpsimError
from cpsim.fake.daemons import Site
from cpsim.fake.fake import ANY_PORT, Fake
from cpsim.replay.pace import AsFastAsPossible, Virtual
from cpsim.run import folder as run_folder
from cpsim.run import summary
from cpsim.run.pipeline import run as perform
from cpsim.run.plan import ReplayTarget
from cpsim.scenario import ScenarioError, load_workload, source

PATH = catalog.find_scenario("two-projects")
SMALL = ["arrivals.jobs=300", "misbehaviour={claim_twice=0.1, unknown_slot=0.1, malformed=0.1}"]
SECRETS = {"main": "s-0", "atlas": "s-1", "cms": "s-2"}


def performed(target=None, pace=None, path=PATH, settings=SMALL, **options):
    return perform(
        lambda: load_workload(path, None, settings),
        target,
        pace or AsFastAsPossible(),
        in_flight=16,
        timeout_s=2.0,
        slot_prefix=None,
        on_stage=lambda stage: None,
        on_progress=lambda planned, progress: None,
        **options,
    )


def at(folder, projects=("atlas", "cms", "cms"), quirks=frozenset()):
    """A fake with a daemon for each of these projects, and where they are."""
    lanes = [folder / f"{index}.socket" for index in range(len(projects))]
    sites = [Site(project_id=project, unix=lane) for project, lane in zip(projects, lanes, strict=True)]
    fake = Fake(SECRETS, http=ANY_PORT, unix=folder / "main.socket", sites=sites, quirks=quirks)

    def target():
        server = parse_endpoint(fake.addresses["http"])
        main = UnixEndpoint(str(folder / "main.socket"))
        return ReplayTarget(main, server, ("main", SECRETS["main"]), tuple(UnixEndpoint(str(lane)) for lane in lanes))

    return fake, target


# The workload


def test_each_project_counts_its_slots_from_one():
    workload = load_workload(PATH, 1, SMALL)
    assert workload.projects == ("atlas", "cms")
    numbers = {project: workload.of_project(project)[0].slot_numbers.tolist() for project in workload.projects}
    assert numbers["atlas"] == list(range(1, len(numbers["atlas"]) + 1))
    assert numbers["cms"] == list(range(1, len(numbers["cms"]) + 1))
    assert len(numbers["atlas"]) + len(numbers["cms"]) == len(workload.slot_numbers)


def test_jobs_are_shared_out_as_it_says():
    workload = load_workload(PATH, 1, ["arrivals.jobs=20000"])
    counts = [(workload.site == index).sum() for index in range(3)]
    assert counts == pytest.approx([10_000, 5_000, 5_000], rel=0.05)


def test_sites_change_nothing_else():
    one, several = load_workload(PATH, 1, [*SMALL, "site=[]"]), load_workload(PATH, 1, SMALL)
    assert one.sites == ()
    bare = dataclasses.replace(several, sites=(), site=several.site[:0], slot_numbers=one.slot_numbers)
    assert bare.digest() == one.digest() != several.digest()


def test_one_site_is_as_none():
    alone = ['site=[{project="atlas"}]']
    assert load_workload(PATH, 1, alone).digest() == load_workload(PATH, 1, ["site=[]"]).digest()


@pytest.mark.parametrize(
    ("sites", "told"),
    [
        ('[{project="a"}, {project="A"}]', 'site[1]: project = "A" and "a" are one: case does not count'),
        ('[{project="a", share=0}]', "site: all have the share 0"),
        ('[{project="a,b"}]', "site[0].project"),
        ('[{project="a", share=-1}]', "site[0].share"),
        ("[{share=1}]", "project"),
        ("[" + '{project="a"},' * 101 + "]", "site: 101 of them, and 100 can be"),
    ],
)
def test_mistakes_are_told(sites, told):
    with pytest.raises(ScenarioError, match="site") as raised:
        source.load(PATH, [f"site={sites}"])
    assert told in str(raised.value)


# The verdict


@pytest.mark.parametrize("options", [{}, {"pace": Virtual()}, {"processes": 2}], ids=["asap", "virtual", "processes"])
def test_projects_are_kept_apart(options):
    run = performed(**options)
    assert run.verdict.ruling == "valid", run.verdict.anomalies[:3]
    slots = run.evidence.ledger.to_pylist()
    ids = {project: {slot["slot"] for slot in slots if slot["project"] == project} for project in ("atlas", "cms")}
    assert len(ids["atlas"] & ids["cms"]) > 100
    assert run.verdict.checked["slots"] == len(run.plan.workload.slot_numbers) - (run.plan.workload.kind == 5).sum()


def test_a_server_whose_projects_share_their_slot_ids_is_found(tmp_path):
    fake, target = at(tmp_path, quirks=frozenset({"global-slot-ids"}))
    with fake:
        run = performed(target())
    assert run.verdict.ruling == "invalid"
    details = [anomaly.detail for anomaly in run.verdict.anomalies]
    assert any(detail.startswith("in project ") for detail in details), details[:3]


def test_a_daemon_that_works_for_another_project_is_found(tmp_path):
    fake, target = at(tmp_path, projects=("atlas", "cms", "atlas"))
    with fake:
        run = performed(target())
    assert run.verdict.ruling == "invalid"
    assert {"in project atlas", "in project cms"} <= {
        anomaly.detail.partition(",")[0] for anomaly in run.verdict.anomalies if anomaly.detail.startswith("in project")
    }


def test_sites_that_are_all_there_are_a_target(tmp_path):
    fake, target = at(tmp_path)
    with fake:
        assert performed(target()).verdict.ruling == "valid"


def test_one_endpoint_is_not_enough(tmp_path):
    fake, target = at(tmp_path)
    with fake, pytest.raises(CpsimError, match=r"3 sites \(projects atlas, cms\).*leave out --target.*--set site=\[\]"):
        performed(dataclasses.replace(target(), lanes=()))


# What is kept


def test_the_journal_says_whose_each_was_and_is_replayed(tmp_path):
    first = performed()
    folder = tmp_path / "first"
    with run_folder.OutputFolder(folder) as written:
        run_folder.write(first, summary.summarise(first), written)
    journal = pyarrow.parquet.read_table(folder / "journal.parquet")
    assert set(journal["project"].to_pylist()) == {"atlas", "cms"}
    again = performed(path=folder / "journal.parquet", settings=[])
    assert sorted(again.plan.workload.projects) == ["atlas", "cms"]
    assert again.verdict.ruling == "valid", again.verdict.anomalies[:3]

    def state(run):
        columns = ("project", "state", "machine", "granted")
        return sorted(str([slot[column] for column in columns]) for slot in run.evidence.ledger.to_pylist())

    assert state(first) == state(again)

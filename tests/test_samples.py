"""What earlier versions have left on disk is opened, reported on and replayed: see tests/samples/README.md."""

import http.client
import json
import runpy
import shutil
import sys
import tarfile
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cpdaemon.endpoint import parse_endpoint
from cpdaemon.signing import token
from cpsim.daemon.client import BulkClient
from cpsim.daemon.site import Daemon
from cpsim.daemon.spool import Spool
from cpsim.fake import ANY_PORT, Fake
from cpsim.fake.settings import load

SAMPLES = Path(__file__).parent / "samples"
SECRETS = {"physics": "physics-secret", "chemistry": "chemistry-secret"}
GUARD_S = 60.0
"""Against hanging: nothing waits so long."""
REFUSED_JOB_1 = "slot 'job-1' is settled: it was claimed"
NEVER_ALLOCATED = "slot 'unknown' was never allocated"


@pytest.fixture
def sample(here):
    """A copy of the samples, those of v0.1 in the current folder: to open a file may write to it."""
    shutil.copytree(SAMPLES / "v0.1", here, dirs_exist_ok=True)
    for version in ("v0.2", "v0.3", "v0.4"):
        shutil.copytree(SAMPLES / version, here / version)
    return here


@pytest.fixture
def cpsim(cpsim):
    """Return cpsim(*arguments) -> the JSON that it printed, with the exit status 0 unless another is expected."""

    def call(*arguments, status=0):
        code, out, err = cpsim(*arguments)
        assert code == status, err
        return json.loads(out)

    return call


@pytest.fixture
def reported(cpsim):
    """Return reported(path, *names) -> the tables of these reports, by report and title; the books balance."""

    def report(path, *names):
        document = cpsim("report", path, *names, "--format", "json")
        assert document["balanced"]
        return {
            part["name"]: {
                table["title"]: [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
                for table in part["tables"]
            }
            for part in document["reports"]
        }

    return report


def columns(rows, *names):
    """The rows of a table, as tuples of some columns."""
    return [tuple(row[name] for name in names) for row in rows]


def request(fake, method, path, body=b"", headers=None):
    """The status and the JSON that a fake's server answers."""
    with closing(http.client.HTTPConnection(urlsplit(fake.addresses["http"]).netloc, timeout=GUARD_S)) as connection:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def bulk(fake, batch, body):
    """The answer to a batch of physics."""
    signed = {"Authorization": token(("physics", SECRETS["physics"]), body), "CreditPiggy-Batch": batch}
    return request(fake, "POST", "/api/batch/bulk", body, signed)


def slots(fake, project="physics"):
    """(state, machine, user, granted, counters) of each slot; the books balance."""
    assert fake.inspector.balance().violations == []
    views = fake.inspector.slots(project).items
    return {view.slot: (str(view.state), view.machine, view.user, view.granted, view.counters) for view in views}


def machines(fake, project):
    """(user, credits, counters, credits that wait for a user) of each machine."""
    views = fake.inspector.machines(project).items
    return {view.machine: (view.user, view.credits, view.counters, view.waiting_credits) for view in views}


def users(fake, project):
    """(credits, counters) of each user."""
    return {view.user: (view.credits, view.counters) for view in fake.inspector.users(project).items}


def delivered(fake, spool):
    """Have a daemon deliver what a spool holds."""
    endpoint = parse_endpoint(fake.addresses["http"])
    with (
        closing(BulkClient(endpoint, ("physics", SECRETS["physics"]), GUARD_S)) as server,
        Daemon(server, "physics", tcp=ANY_PORT, spool=Spool(spool)) as daemon,
    ):
        pass  # at its end it delivers what it has
    assert daemon.pending == 0


@pytest.mark.parametrize("path", ["run", "v0.2/run", "v0.3/run"])
def test_a_run_folder(sample, reported, path):
    found = reported(path, "summary", "leaderboards", "reconciliation", "outcomes", "counters", "expired")
    states = ("allocated", "claimed", "discarded", "expired", "outstanding")
    assert columns(found["summary"]["Slots by state"], *states) == [(40, 27, 9, 4, 0)]
    whole = ("credits", "credits_without_owner", "machines", "users")
    assert columns(found["summary"]["Projects"], *whole) == [(334, 79, 6, 2)]
    assert columns(found["summary"]["What decided the credits"], "rule", "slots", "credits") == [
        ("as asked", 15, 169),
        ("limited to the maximum", 6, 120),
        ("raised to the minimum", 4, 20),
        ("at the maximum", 1, 20),
        ("at the minimum", 1, 5),
    ]
    assert columns(found["leaderboards"]["Leading machines"], "machine", "user", "credits", "claimed") == [
        ("email-63-1.herman-schmidt.com", "jobrien-2", 92, 6),
        ("laptop-75-4.shah-spears.com", "icombs-1", 61, 5),
        ("desktop-08-3.esparza-lopez.com", "icombs-1", 52, 5),
        ("desktop-33-2.clark.biz", "icombs-1", 50, 4),
        ("desktop-53-5.powell-kaiser.org", None, 42, 3),
        ("lt-14-0.fritz.com", None, 37, 4),
    ]
    assert columns(found["leaderboards"]["Leading users"], "user", "credits") == [("icombs-1", 163), ("jobrien-2", 92)]
    assert columns(found["reconciliation"]["By finding"], "slots", "acknowledged_credits", "granted_credits") == [
        (39, 309, 309),
        (2, 40, 25),
        (1, 14, 0),
    ]
    assert columns(found["outcomes"]["Discards by reason"], "reason", "slots") == [("unknown-vmid", 5), ("expired", 4)]
    assert columns(found["counters"]["By project"], "counter", "total") == [
        ("job/cpuusage", 55_088),
        ("job/events", 26_909),
        ("smashed/partons", 66),
    ]
    expired = columns(found["expired"]["The last to expire"], "slot")
    assert expired == [("job-36",), ("job-26",), ("job-21",), ("job-3",)]


@pytest.mark.parametrize("path", ["v0.3/run", "v0.3/run-of-two"])
def test_a_run_is_judged_again(sample, cpsim, path):
    assert cpsim("judge", path, "--json") == json.loads(Path(path, "verdict.json").read_text(encoding="utf-8"))


def test_a_run_folder_of_two_projects(sample, reported):
    found = reported("run-of-two", "summary", "leaderboards", "outstanding")
    states = ("project", "allocated", "claimed", "discarded", "expired", "outstanding")
    assert columns(found["summary"]["Slots by state"], *states) == [("atlas", 3, 2, 0, 0, 1), ("cms", 5, 2, 3, 0, 0)]
    assert columns(found["leaderboards"]["Leading users"], "project", "user", "credits") == [
        ("atlas", "icombs-1", 20),
        ("cms", "icombs-1", 5),
    ]
    assert columns(found["outstanding"]["The oldest"], "project", "slot", "least_credits", "most_credits") == [
        ("atlas", "job-2", 5, 20)
    ]


def test_two_run_folders_are_compared(sample, cpsim):
    (comparison,) = cpsim("report", "run", "comparison", "--against", "run-of-two", "--format", "json")["reports"]
    assert comparison["tables"]


@pytest.mark.parametrize("path", ["store/ledger.db", "export", "export/slots.parquet", "export/ledger.jsonl"])
def test_a_store_and_its_exports_are_reported_on(sample, reported, path):
    found = reported(path, "summary", "leaderboards", "outcomes", "counters", "outstanding")
    states = ("project", "allocated", "claimed", "discarded", "expired", "outstanding")
    assert columns(found["summary"]["Slots by state"], *states) == [
        ("chemistry", 3, 2, 0, 0, 1),
        ("physics", 9, 5, 1, 1, 2),
    ]
    assert columns(found["summary"]["Projects"], "project", "credits", "credits_without_owner") == [
        ("chemistry", 57, 7),
        ("physics", 36, 23),
    ]
    assert columns(found["leaderboards"]["Leading machines"], "project", "machine", "user", "credits") == [
        ("chemistry", "worker-1", None, 50),
        ("physics", "worker-3", None, 20),
        ("physics", "worker-1", None, 11),
        ("chemistry", "worker-3", None, 7),
        ("physics", "worker-2", "bob", 5),
    ]
    assert columns(found["leaderboards"]["Leading users"], "project", "user", "credits") == [
        ("chemistry", "alice", 50),
        ("physics", "alice", 8),
        ("physics", "bob", 5),
    ]
    assert columns(found["outcomes"]["Discards by reason"], "reason", "slots") == [("unknown-vmid", 1)]
    assert columns(found["counters"]["By project"], "counter", "total") == [
        ("job/events", 1110),
        ("smashed/partons", -3),
    ]
    assert columns(found["outstanding"]["Liability"], "project", "slots", "least_credits", "most_credits") == [
        ("chemistry", 1, 8, 8),
        ("physics", 2, 2, 10),
    ]
    if path == "store/ledger.db":
        assert columns(found["summary"]["Commands refused"], "refused") == [(1,), (2,)]


def test_a_store_is_served_as_it_was_left(sample):
    with load(Path("store/serve.toml")).fake() as fake:
        assert slots(fake) == {
            "fixed": ("claimed", "worker-1", "alice", 7, {"job/events": 1000, "smashed/partons": -3}),
            "low": ("claimed", "worker-2", "bob", 5, {"job/events": 10}),
            "high": ("claimed", "worker-3", None, 20, {}),
            "late": ("claimed", "worker-1", "alice", 1, {"job/events": 100}),
            "bad": ("discarded", None, None, None, {}),
            "expired": ("expired", None, None, None, {}),
            "open": ("allocated", None, None, None, {"job/events": 5}),
            "due": ("allocated", None, None, None, {}),
            "last": ("claimed", "worker-1", None, 3, {}),
        }
        assert slots(fake, "chemistry") == {
            "fixed": ("claimed", "worker-1", "alice", 50, {}),
            "quirky-1": ("claimed", "worker-3", None, 7, {}),
            "quirky-2": ("allocated", None, None, None, {}),
        }
        assert machines(fake, "physics") == {
            "worker-1": (None, 11, {"job/events": 1100, "smashed/partons": -3}, 3),
            "worker-2": ("bob", 5, {"job/events": 10}, 0),
            "worker-3": (None, 20, {}, 20),
        }
        assert machines(fake, "chemistry") == {"worker-1": (None, 50, {}, 0), "worker-3": (None, 7, {}, 7)}
        assert users(fake, "physics") == {
            "alice": (8, {"job/events": 1100, "smashed/partons": -3}),
            "bob": (5, {"job/events": 10}),
        }
        assert users(fake, "chemistry") == {"alice": (50, {})}
        assert [(link.machine, link.user) for link in fake.inspector.links().items] == [("worker-2", "bob")]
        assert fake.accounts.outstanding("physics") == ["open", "due"]
        totals = fake.inspector.totals().projects
        assert {name: (project.refused, project.reasons) for name, project in totals.items()} == {
            "physics": (2, {"unknown-vmid": 1}),
            "chemistry": (1, {}),
        }
        assert fake.inspector.clock().now_us == 1_704_078_000_000_000  # 2024-01-01T03:00:00Z
        fake.inspector.link([("worker-1", "alice"), ("worker-3", "carol")])
        assert users(fake, "physics")["alice"] == (11, {"job/events": 1100, "smashed/partons": -3})
        assert users(fake, "physics")["carol"] == (20, {})
        assert users(fake, "chemistry")["carol"] == (7, {})


def test_the_journal_of_a_store(sample):
    with load(Path("store/serve.toml")).fake() as fake:
        fixed = fake.inspector.slot("physics", "fixed")
        assert fixed.slot.meta == {"site": "Zürich"}
        assert [(command.kind, command.arguments) for command in fixed.history] == [
            ("alloc", {"slot": "fixed", "credits": 7, "expire": 500_000_000}),
            ("counters", {"slot": "fixed", "job/events": 1000, "smashed/partons": -3}),
            ("meta", {"slot": "fixed", "site": "Zürich"}),
            ("claim", {"slot": "fixed", "machine": "worker-1", "credits": 99}),
        ]
        late = fake.inspector.slot("physics", "late").history
        assert [(command.kind, command.at_us) for command in late] == [
            ("alloc", 1_704_067_200_000_000),
            ("counters", 1_704_074_400_000_000),
            ("claim", 1_704_074_400_000_000),
        ]
        kinds = [command.kind for command in fake.inspector.journal("physics").items]
        assert kinds == [
            *["alloc"] * 6,
            *["counters"] * 2,
            "meta",
            *["claim"] * 4,
            *["discard", "lib/claim", "alloc", "alloc", "counters", "counters", "claim", "claim", "lib/release"],
            *["alloc", "claim"],
        ]
        refusals = [command.refusal for project in SECRETS for command in fake.inspector.refusals(project).items]
        assert refusals == [
            NEVER_ALLOCATED,
            "slot 'low' is settled: it was claimed",
            "credits='9.9' is not a whole number",
        ]
        assert [command.arguments["slot"] for command in fake.inspector.journal("chemistry").items] == [
            *("fixed", "quirky-1", "quirky-2", "quirky-3", "fixed", "quirky-1")
        ]


def test_a_batch_that_a_store_knows_is_answered_again_and_not_applied(sample):
    with load(Path("store/serve.toml")).fake() as fake:
        before = slots(fake), machines(fake, "physics"), fake.inspector.totals()
        status, answer = bulk(fake, "first", Path("store/first.json").read_bytes())
        assert (status, answer["result"], answer["batch"]) == (200, "ok", "first")
        assert [(error["class"], error["index"], error["message"]) for error in answer["errors"]] == [
            ("claim", 3, NEVER_ALLOCATED)
        ]
        status, answer = bulk(fake, "given-up", b'{"counters":[{"slot":"open","job/events":1}]}')
        assert (status, answer["result"]) == (409, "error")
        assert (slots(fake), machines(fake, "physics"), fake.inspector.totals()) == before


def test_what_has_come_due_since_a_store_was_left_has_expired(sample):
    with Fake(SECRETS, http=ANY_PORT, store=Path("store/ledger.db")) as fake:
        assert fake.accounts.outstanding("physics") == ["open"]
        assert slots(fake)["due"][0] == "expired"
        assert fake.accounts.outstanding("chemistry") == ["quirky-2"]
        assert request(fake, "GET", "/__cpsim/totals")[1]["projects"]["physics"]["expired"] == 2


def test_what_a_spool_holds_is_shown(sample, cpsim):
    spool = ("daemon", "--spool", "spool/daemon.spool", "--json")
    shown = cpsim(*spool, "--status", status=1)
    assert shown.pop("oldest_s") >= 0
    assert shown == {
        "running": False,
        "queued": 7,
        "delivered": 3,
        "refused": 2,
        "dead_letters": 2,
        "set_aside": 2,
        "retries": 7,
        "full": False,
        "trouble": "[Errno 111] cannot connect to http://127.0.0.1:9/api: Connection refused",
        "trouble_s": 0.0,
        "failures": ["dead letters: 2; --failed lists them, --requeue or --forget settles each"],
    }
    failed = cpsim(*spool, "--failed")
    assert columns(failed, "position", "why", "command") == [
        (4, "refused", "claim,slot=job-1,machine=worker-2"),
        (5, "refused", "claim,slot=unknown,machine=worker-1"),
        (6, "dead letter", "counters,slot=job-2,job/events=7"),
        (7, "dead letter", "meta,slot=job-2,site=Zürich"),
    ]
    assert columns(failed[:2], "error") == [(REFUSED_JOB_1,), (NEVER_ALLOCATED,)]


def test_what_a_spool_holds_is_delivered_once(sample, cpsim):
    path = Path("spool/daemon.spool")
    with Fake(SECRETS, http=ANY_PORT) as fake:
        delivered(fake, path)
        assert slots(fake) == {
            "job-3": ("claimed", "worker-3", None, 9, {"job/events": 11}),
            "job-4": ("discarded", None, None, None, {}),
            "job-5": ("allocated", None, None, None, {}),
        }
        assert fake.inspector.slot("physics", "job-3").slot.meta == {"site": "Zürich"}
        sent = {}
        for command in fake.inspector.journal("physics").items:
            sent.setdefault(command.arguments["slot"], []).append(command.kind)
        assert sent == {
            "job-3": ["alloc", "counters", "meta", "claim"],
            "job-4": ["alloc", "discard"],
            "job-5": ["alloc"],
        }
    shown = cpsim("daemon", "--spool", path, "--status", "--json", status=1)
    assert columns([shown], "queued", "delivered", "refused", "set_aside", "trouble") == [(0, 10, 2, 2, "")]


def test_what_was_exported_is_what_the_spool_held(sample, cpsim, command_line, capsys):
    assert command_line("daemon", "--spool", "imported.spool", "--import", "v0.4/moved/moved.jsonl") == 0
    assert "imported 7 queued commands, 4 refused commands and dead letters" in capsys.readouterr().out
    held, holds = (
        cpsim("daemon", "--spool", path, "--failed", "--json") for path in ("spool/daemon.spool", "imported.spool")
    )
    fields = ("at_us", "why", "command", "error")
    assert columns(holds, *fields) == columns(held, *fields)
    with Fake(SECRETS, http=ANY_PORT) as fake:
        delivered(fake, Path("imported.spool"))
        assert {name: state for name, (state, *_) in slots(fake).items()} == {
            "job-3": "claimed",
            "job-4": "discarded",
            "job-5": "allocated",
        }


def test_what_a_killed_server_and_a_killed_daemon_left_is_applied_once(sample, cpsim):
    with tarfile.open("killed.tar.gz") as archive:
        archive.extractall(filter="data")
    shown = cpsim("daemon", "--spool", "daemon.spool", "--status", "--json")
    assert columns([shown], "queued", "delivered", "retries") == [(3, 1, 1)]
    with Fake(SECRETS, http=ANY_PORT, unix=Path("own.socket"), store=Path("ledger.db")) as fake:
        assert slots(fake)["job-1"] == ("allocated", None, None, None, {"job/events": 100})
        delivered(fake, Path("daemon.spool"))
        fake.wait_until_idle(GUARD_S)
        assert slots(fake) == {
            "job-1": ("claimed", "worker-2", None, 3, {"job/events": 111}),
            "own-1": ("claimed", "worker-1", None, 2, {}),
        }
        assert fake.inspector.totals().projects["physics"].refused == 0
    shown = cpsim("daemon", "--spool", "daemon.spool", "--status", "--json")
    assert columns([shown], "queued", "delivered", "refused", "set_aside") == [(0, 4, 0, 0)]


@pytest.mark.parametrize(
    ("trace", "operations", "states", "credits"),
    [
        ("scenario.toml", 152, {"claimed": 27, "expired": 4, "discarded": 9}, 334),
        ("workload.parquet", 57, {"claimed": 10, "expired": 1, "discarded": 4}, 98),
        ("run/journal.parquet", 152, {"claimed": 27, "allocated": 4, "discarded": 9}, 334),
        ("run-of-two/journal.parquet", 28, {"claimed": 4, "allocated": 1, "discarded": 3}, 43),
        ("recording.parquet", 8, {"claimed": 1, "allocated": 1, "discarded": 1}, 9),
        ("v0.2/run/journal.parquet", 152, {"claimed": 27, "allocated": 4, "discarded": 9}, 334),
        ("v0.3/run/journal.parquet", 152, {"claimed": 27, "allocated": 4, "discarded": 9}, 334),
        ("v0.3/run/workload.parquet", 152, {"claimed": 27, "expired": 4, "discarded": 9}, 334),
        ("v0.3/run-of-two/workload.parquet", 28, {"claimed": 4, "expired": 1, "discarded": 3}, 43),
        ("v0.2/recording.parquet", 8, {"claimed": 1, "allocated": 1, "discarded": 1}, 9),
        ("recording.csv", 8, {"claimed": 1, "allocated": 1, "discarded": 1}, 9),
    ],
)
def test_what_can_be_replayed_is(sample, cpsim, trace, operations, states, credits):
    replayed = cpsim("run", trace, "--virtual", "--output", "replayed", "--json")
    assert replayed["verdict"] == "valid"
    assert columns([replayed], "operations", "slots_by_state", "credits_granted") == [(operations, states, credits)]


def test_samples_are_not_written_over(sample, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in sample.rglob("*")}
    monkeypatch.setattr(sys, "argv", ["make.py", str(sample)])
    with pytest.raises(SystemExit, match="is there already"):
        runpy.run_path(str(SAMPLES / "make.py"), run_name="__main__")
    assert {path: path.stat().st_mtime_ns for path in sample.rglob("*")} == before

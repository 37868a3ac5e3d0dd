"""Slots are judged while a run goes on, and `--fail-fast` ends it at the first that is wrong."""

import json
import re
import sys
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from cpdaemon.endpoint import parse_endpoint
from cpsim.accounts.observer import Observer
from cpsim.errors import UsageError
from cpsim.evidence.journal import Journal, OperationOutcome
from cpsim.fake import ANY_PORT, Fake
from cpsim.replay.pace import AsFastAsPossible, Virtual
from cpsim.run.ahead import Ahead, Lookout, Way
from cpsim.run.live_figures import LiveFigures
from cpsim.run.plan import Plan, ReplayTarget
from cpsim.scenario import generate, source
from cpsim.testing import ManualClock

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))
import plain_server

SMALL = """
description = "a little"
duration = "1h"
population = { machines = 4, users = 2 }
arrivals = { model = "constant", jobs = 200 }
run_time = { model = "constant", value = "5min" }
outcome = { claim = 0.5, discard = { late = 0.5 } }
metadata = { site = ["here", "there"] }
counters.claim = { "job/events" = { model = "poisson", mean = 100 } }
"""
START_NS = 1_000_000


@pytest.fixture(scope="module")
def workload():
    return generate(source.parse(SMALL, "small.toml"), 7)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with Fake({"p": "s"}, unix=tmp_path_factory.mktemp("site") / "cp.sock", http=ANY_PORT) as fake:
        yield fake


def plan_of(workload, endpoint, server=None, pace=None, **target):
    where = ReplayTarget(endpoint, server, None if server is None else ("p", "s"), **target)
    return Plan(workload, where, pace or AsFastAsPossible(), "w", datetime.now(UTC), 4, 5.0)


@contextmanager
def lookout_at(workload, site, *, feed=True):
    """(lookout, its clock, a journal that it follows) at a site's daemon."""
    endpoint, server = (parse_endpoint(site.addresses[name]) for name in ("unix", "http"))
    plan, clock = plan_of(workload, endpoint, server), ManualClock()
    observer = Observer(server, ("p", "s"), 60.0)
    cursor = observer.control.applied("p")["next"] if feed else None
    clock.advance(1)
    with closing(Journal()) as journal:
        lookout = Lookout(plan, Way(has_view=True, cursor=cursor), observer, clock)
        lookout.follow(journal)
        yield lookout, clock, journal


def send(site, workload, journal, ops, error=""):
    """Have the accounts take operations, and note them; those with an error are not applied."""
    outcome = OperationOutcome.REFUSED if error else OperationOutcome.ACCEPTED
    for op in ops:
        if not error:
            site.accounts.apply("p", list(workload.calls(op, op + 1, "w")))
        journal.record(op, outcome, error, op * 1000, op * 1000 + 500)
    journal.flush()


@pytest.mark.parametrize("feed", [True, False])
def test_slots_are_counted_as_soon_as_they_are_complete(workload, site, feed):
    site.reset()
    with lookout_at(workload, site, feed=feed) as (lookout, _, journal):
        send(site, workload, journal, range(400))
        list(lookout.look())
        assert lookout.judge.valid == 0  # the replay has not begun, as far as is told
        lookout.begin(START_NS, [[""]])
        list(lookout.look())
        begun = lookout.judge.valid
        assert 0 < begun < len(workload.slot_numbers)
        send(site, workload, journal, range(400, len(workload)))
        list(lookout.look())
        assert (lookout.judge.valid, lookout.judge.findings) == (len(workload.slot_numbers), 0)
        assert lookout.judge.waiting == 0


def test_a_record_whose_error_is_not_told_yet_waits(workload, site):
    site.reset()
    with lookout_at(workload, site) as (lookout, _, journal):
        lookout.begin(START_NS, [[""]])
        send(site, workload, journal, [0], "ER")
        send(site, workload, journal, range(1, len(workload)))
        list(lookout.look())
        assert (lookout.judge.valid, lookout.judge.waiting) == (0, 0)
        lookout.begin(START_NS, [["", "ER"]])
        list(lookout.look())
        # the slot that was never allocated refuses what comes later; through a daemon nobody sees that
        assert (lookout.judge.valid, lookout.judge.findings) == (len(workload.slot_numbers), 0)


def test_a_server_that_is_away_is_asked_again(workload, here):
    with (
        Fake({"p": "s"}, unix=here / "cp.sock", http=ANY_PORT) as fake,
        lookout_at(workload, fake) as (lookout, _, journal),
    ):
        lookout.begin(START_NS, [[""]])
        send(fake, workload, journal, range(len(workload)))
        fake.faults.add("server.down")
        list(lookout.look())
        assert lookout.judge.valid == 0
        fake.faults.clear()
        list(lookout.look())
        assert lookout.judge.valid == len(workload.slot_numbers)


def test_who_cannot_judge_says_why(workload):
    unix, server = parse_endpoint("./cp.sock"), parse_endpoint("http://127.0.0.1:9/api")
    for plan, why in (
        (plan_of(workload, unix), "no server shows the accounts (--server URL)"),
        (plan_of(workload, unix, server, accounts="accounts/"), "accounts/ is read once, when all is sent"),
        (plan_of(workload, unix, server, pace=Virtual()), "time is virtual"),
    ):
        with Ahead() as ahead:
            assert ahead.text == ""
            ahead.begin(plan, None)
            assert ahead.text == f"judged at the end: {why}"
            assert not ahead.look([], START_NS)
        with Ahead(fail_fast=True) as ahead, pytest.raises(UsageError, match=f"^--fail-fast .*: {re.escape(why)}$"):
            ahead.begin(plan, None)


def test_figures_have_what_is_judged():
    names = {family.name for family in LiveFigures().families()}
    ahead = SimpleNamespace(is_started=True, valid=7, findings=2)
    (family,) = (each for each in LiveFigures(ahead).families() if each.name not in names)
    assert family.samples == [({"result": "valid"}, 7), ({"result": "finding"}, 2)]


@pytest.mark.parametrize("options", [["--virtual"], ["--target", "./cp.sock"]])
def test_fail_fast_is_refused_where_nothing_can_be_judged(here, cpsim, options):
    Path("small.toml").write_text(SMALL)
    with Fake({"p": "s"}, unix=here / "cp.sock"):
        status, _, err = cpsim("run", "small.toml", "--fail-fast", *options, "--output", "out")
    assert (status, "--fail-fast" in err) == (64, True)
    assert not Path("out").exists()


def perform(cpsim, target, *options, project="p", secret="s", rate=150):
    Path("small.toml").write_text(SMALL)
    Path("secret").write_text(secret)
    at = ["--target", *target, "--project", project, "--secret-file", "secret", "--fail-fast", "--json"]
    status, out, _ = cpsim("run", "small.toml", "--seed", 7, "--rate", rate, *at, *options, "--output", "out")
    return status, json.loads(out)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("quirk", "fault", "name", "options"),
    [
        ("resend-duplicates", "server.lose-reply:probability=0.3", "duplicated", ()),
        ("drop-on-error", "server.status=503:nth=3", "lost", ("--processes", "2")),
    ],
)
def test_a_run_ends_at_the_first_finding(workload, here, cpsim, quirk, fault, name, options):
    with Fake({"p": "s"}, unix=here / "cp.sock", http=ANY_PORT, quirks=frozenset({quirk})) as fake:
        target = ["./cp.sock", "--server", fake.addresses["http"]]
        status, run = perform(cpsim, target, "--fault", fault, "--timeout", 1, *options, rate=40)
    assert (status, run["verdict"], run["interrupted"]) == (1, "invalid", False)
    assert run["stopped_by"].startswith(f"{name}: small-")
    assert set(run["anomalies_by_name"]) >= {name}
    assert run["operations"] < len(workload)
    assert run["checked"]["replies"] == run["operations"]  # the verdict is on all that was sent
    page = Path("out/report.html").read_text(encoding="utf-8")
    unsent = f"{len(workload) - run['operations']:,} operations were not sent"
    assert f"A finding ended the replay: {unsent}. It was {name}: small-" in page


@pytest.mark.thorough
def test_heavy_faults_end_no_run(workload, here, cpsim):
    """The server is away for longer than is waited for, and replies are lost, late and cut on both ways."""
    faults = [
        *("server.status=503:from=1,until=3", "server.lose-reply:probability=0.2", "server.cut:probability=0.1"),
        *("daemon.lose-reply:probability=0.05", "daemon.hang:probability=0.02", "daemon.late=0.3:probability=0.02"),
    ]
    with Fake({"p": "s"}, unix=here / "cp.sock", http=ANY_PORT) as fake:
        target = ["./cp.sock", "--server", fake.addresses["http"]]
        options = [word for fault in faults for word in ("--fault", fault)]
        status, run = perform(cpsim, target, *options, "--timeout", 1, "--in-flight", 200)
    assert (status, run["verdict"], run["stopped_by"]) == (0, "valid", None)
    assert run["operations"] == len(workload)


class Forgetful(plain_server.Books):
    """Books that forget discards, after some."""

    discards = 0

    def settle(self, slot, state, **more):
        self.discards += state == "discarded"
        if state != "discarded" or self.discards < 5:
            super().settle(slot, state, **more)


@pytest.mark.thorough
def test_a_server_without_a_control_api_is_judged_by_its_list(workload, here, cpsim):
    project, secret = next(iter(plain_server.PROJECTS.items()))
    with plain_server.Server() as server:
        server.books = Forgetful()
        status, run = perform(cpsim, [server.url], "--timeout", 1, project=project, secret=secret, rate=40)
        assert (status, run["verdict"]) == (1, "invalid")
        assert run["stopped_by"].endswith("listed as outstanding, but should be discarded")
        assert run["operations"] < len(workload)

"""Our own daemon and server keep every clause, whatever of them can be seen."""

import itertools
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cpdaemon.endpoint import parse_endpoint
from cpsim.conformance.clause import Need, catalogue
from cpsim.conformance.clauses import test_delivery, test_expiry, test_wire
from cpsim.conformance.examiner import Examiner
from cpsim.conformance.findings import NotVerifiable
from cpsim.conformance.suite import examine
from cpsim.conformance.target import Target, Traffic, reach
from cpsim.fake import ANY_PORT, Fake
from cpsim.quirks import PROFILES
from cpsim.testing import ManualClock

MINE, OTHER = ("alpha", "first secret"), ("beta", "second secret")
CLAUSES = {
    "WIRE-14": test_wire.test_two_segments,
    "DELIVER-11": test_delivery.test_segments_that_look_whole,
    "EXPIRE-8": test_expiry.test_settled_slots_do_not_expire,
    "EXPIRE-9": test_expiry.test_grants_nothing,
}


def test_every_clause_passes_on_the_pair(examine_fake, of_the_pair, unseen):
    outcome = examine_fake()
    assert outcome.deviant == {}
    assert {finding.clause.id for finding in outcome.findings} == set(of_the_pair)
    assert {finding.result for finding in outcome.findings} <= {"pass", "not verifiable"}
    assert unseen(outcome) == set()
    assert outcome.ruling == "valid"


@pytest.mark.parametrize("options", [{"tcp": True}, {"flush_interval_s": 0.2}], ids=["tcp", "flushing"])
def test_and_on_other_kinds_of_pairs(examine_fake, unseen, options):
    outcome = examine_fake(**options)
    assert outcome.deviant == {}
    assert unseen(outcome) == set()


def test_and_on_one_that_keeps_what_it_is_told(examine_fake, unseen, tmp_path):
    outcome = examine_fake(store=tmp_path / "ledger.db")
    assert outcome.deviant == {}
    assert unseen(outcome) == set()


def test_a_daemon_alone_shows_its_answers_and_no_more(examine_fake):
    outcome = examine_fake(clauses=(), tier="daemon")
    assert outcome.deviant == {}
    results = {finding.clause.id: finding.result for finding in outcome.findings}
    assert results == {
        id: "pass" if clause.needs == (Need.DAEMON,) else "not verifiable" for id, clause in catalogue().items()
    }
    (claim,) = (finding for finding in outcome.findings if finding.clause.id == "CLAIM-6")
    assert "--server URL" in claim.detail


def test_a_server_alone_is_seen_whole_but_for_the_daemon(examine_fake):
    outcome = examine_fake(clauses=(), tier="server")
    assert outcome.deviant == {}
    results = {finding.clause.id: finding.result for finding in outcome.findings}
    assert results == {
        id: "pass" if {Need.SERVER, Need.OTHER, Need.ACCOUNTS}.issuperset(clause.needs) else "not verifiable"
        for id, clause in catalogue().items()
    }


@pytest.mark.thorough
def test_deployed_shows_exactly_the_quirks_that_are_listed(examine_fake, page, unseen):
    outcome = examine_fake(PROFILES["deployed"], profile="deployed", flush_interval_s=0.6)
    left_open = {"bulk-shapes", "jsonp-unfiltered", "text-plain-success", "last-name-wins"}
    only_thorough = {"empty-ids", "shared-names", "short-queue"}
    assert set(outcome.quirks) == PROFILES["deployed"] - page.OF_THE_MIDDLE.keys() - left_open - only_thorough
    assert outcome.counts["deviation"] == outcome.counts["error"] == 0
    assert unseen(outcome) == set()
    assert outcome.ruling == "valid"


def test_a_quirk_is_a_deviation_from_the_document(examine_fake):
    outcome = examine_fake({"reclaim"}, ["CLAIM-6"])
    assert outcome.ruling == "invalid"
    (finding,) = outcome.findings
    assert (finding.result, finding.quirk, finding.expected, finding.got) == (
        "deviation",
        "reclaim",
        "refused",
        "accepted",
    )
    assert any("/batch/claim" in line for line in finding.transcript)


@pytest.mark.thorough
def test_what_earlier_runs_left_changes_nothing(tmp_path, monkeypatch, of_the_pair, unseen):
    monkeypatch.chdir(tmp_path)
    with Fake(dict([MINE, OTHER]), unix=Path("cp.sock"), http=ANY_PORT) as fake:
        server = parse_endpoint(fake.addresses["http"])
        target = Target(daemon=parse_endpoint("./cp.sock"), server=server, credentials=MINE, other=OTHER)
        for _ in range(2):
            outcome = examine(target, of_the_pair)
            assert outcome.deviant == {}
            assert unseen(outcome) == set()


@pytest.mark.thorough
def test_cpsim_daemon_in_front_of_a_server_keeps_every_clause(tmp_path, monkeypatch, of_the_pair, unseen):
    monkeypatch.chdir(tmp_path)
    Path("secret").write_text(MINE[1], encoding="utf-8")
    with Fake(dict([MINE, OTHER]), http=ANY_PORT) as fake:
        where = ["--tcp", "127.0.0.1:0", "--server", fake.addresses["http"], "--spool", "spool.db"]
        project = ["--project", MINE[0], "--secret-file", "secret", "--flush-interval", "0.2"]
        command = [sys.executable, "-c", "from cpsim.cli import main; main()", "daemon", *where, *project]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as daemon:
            kind, address = daemon.stdout.readline().split()
            assert kind == "tcp"
            server = parse_endpoint(fake.addresses["http"])
            target = Target(daemon=parse_endpoint(address), server=server, credentials=MINE, other=OTHER)
            outcome = examine(target, of_the_pair)
            daemon.terminate()
    assert outcome.deviant == {}
    assert unseen(outcome) == set()


def test_a_daemon_that_takes_longer_than_anybody_waits_is_said_once(examine_fake):
    outcome = examine_fake(clauses=["DELIVER-*"], flush_interval_s=30.0, timeout_s=1.0)
    assert outcome.deviant == {"DELIVER-1": ""}
    assert outcome.counts["not verifiable"] == len(outcome.findings) - 1
    (late,) = (finding for finding in outcome.findings if finding.result == "deviation")
    assert "--timeout" in late.expected


def test_a_list_of_slots_that_is_too_long_is_not_looked_at_again(examine_fake, monkeypatch):
    monkeypatch.setattr("cpsim.conformance.examiner.MOST_LISTED_BYTES", 10)
    outcome = examine_fake(clauses=["ALLOC-1", "CLAIM-1"], tier="server")
    assert {finding.clause.id: finding.result for finding in outcome.findings} == {
        "ALLOC-1": "not verifiable",
        "CLAIM-1": "pass",
    }


def test_no_more_is_sent_a_second_than_is_allowed(examine_fake):
    outcome = examine_fake(clauses=["WIRE-1", "WIRE-2"], tier="daemon", max_rate=5000.0)
    assert outcome.sent == 10
    clock = ManualClock()
    traffic = Traffic(50.0, clock=clock)
    times_s = []
    for _ in range(outcome.sent):
        traffic.pass_on()
        times_s.append(clock.monotonic())
    assert times_s == pytest.approx([number / 50 for number in range(10)])
    clock.advance(60)
    traffic.pass_on()
    assert clock.monotonic() == pytest.approx(9 / 50 + 60)  # a pause is no credit, and no debt either


def test_no_run_sends_more_than_is_enough_for_any_endpoint(examine_fake, monkeypatch):
    monkeypatch.setattr("cpsim.conformance.target.MOST_COMMANDS", 20)
    outcome = examine_fake(clauses=["CREDIT-*"], tier="server")
    assert outcome.sent == 20
    assert outcome.counts["error"] > 0
    assert outcome.ruling == "unknown"


def test_what_others_do_meanwhile_changes_nothing(tmp_path, monkeypatch, of_the_pair, unseen):
    monkeypatch.chdir(tmp_path)
    over = threading.Event()

    def live(accounts):
        for number in itertools.count():
            if over.is_set():
                return
            slot, machine = f"theirs-{number}", f"theirs-{number % 50}"
            calls = [("alloc", {"slot": slot, "credits": 3}), ("counters", {"slot": slot, "job/events": 5})]
            accounts.apply("alpha", [*calls, ("claim", {"slot": slot, "machine": machine})][: number % 4])
            accounts.link([(machine, "somebody")])
            over.wait(0.001)

    with Fake(dict([MINE, OTHER]), unix=Path("cp.sock"), http=ANY_PORT) as fake:
        others = threading.Thread(target=live, args=[fake.accounts])
        others.start()
        server = parse_endpoint(fake.addresses["http"])
        target = Target(daemon=parse_endpoint("./cp.sock"), server=server, credentials=MINE, other=OTHER)
        outcome = examine(target, of_the_pair)
        over.set()
        others.join()
    assert outcome.deviant == {}
    assert unseen(outcome) == set()


def test_long_listings_are_read_page_by_page(examine_fake, monkeypatch):
    monkeypatch.setattr("cpsim.net.control.PAGE", 3)
    outcome = examine_fake(clauses=["CREDIT-*", "LINK-*", "PROJECT-*"], tier="server")
    assert outcome.deviant == {}


def test_a_rehearsal_lists_what_is_sent_and_sends_nothing(examine_fake, of_the_pair):
    def lines(outcome, begin):
        """What is sent for each clause, without the run's own id, signatures, and the looks at what came of it."""
        return {
            finding.clause.id: [
                re.sub(
                    r"(?i)verify-([0-9a-f]{8}|[0-9a-f]*…)|[0-9a-f]{40,}|(?<=auth=)sha[^ ]*",
                    "*",
                    re.sub(", (through the control|at the same time|on a connection).*", "", line.removeprefix("> ")),
                )
                for line in finding.transcript
                if line.startswith(begin) and "/batch/slots" not in line and "(end of" not in line
            ]
            for finding in outcome.findings
        }

    planned = examine_fake(rehearse=True)
    sent = examine_fake()
    assert planned.sent == 0
    assert planned.counts == {"planned": len(of_the_pair)}
    planned_lines, sent_lines = lines(planned, ""), lines(sent, "> ")
    for id in ("DELIVER-11", "DELIVER-12", "WIRE-14"):  # these send more on a machine that is busy
        del sent_lines[id][len(planned_lines[id]) :]
    assert planned_lines == sent_lines


class Busy(Examiner):
    """An examiner whose machine is busy for a while: the first pauses are longer than a daemon waits for a segment."""

    def __init__(self, target_view, clause):
        super().__init__(target_view, clause)
        self.too_long_s = [0.2, 0.2]

    def pause(self, seconds):
        super().pause(self.too_long_s.pop() if self.too_long_s else seconds)


@pytest.mark.parametrize("id", ["WIRE-14", "DELIVER-11"])
def test_a_second_segment_that_a_busy_machine_sends_late_says_nothing_of_the_daemon(id, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Fake(dict([MINE]), unix=Path("cp.sock"), http=ANY_PORT) as fake:
        server = parse_endpoint(fake.addresses["http"])
        target_view = reach(Target(daemon=parse_endpoint("./cp.sock"), server=server, credentials=MINE))
        examiner = Busy(target_view, catalogue()[id])
        CLAUSES[id](examiner)
    assert not examiner.too_long_s


@pytest.mark.parametrize("id", ["EXPIRE-8", "EXPIRE-9"])
def test_what_expires_because_somebody_else_moves_the_clock_says_nothing_of_the_server(id):
    with Fake(dict([MINE]), http=ANY_PORT) as fake:
        target_view = reach(Target(server=parse_endpoint(fake.addresses["http"]), credentials=MINE))

        class Disturbed(Examiner):
            """An examiner beside whom another moves the clock with every command."""

            def ask(self, request):
                self.accounts.advance(90)
                return super().ask(request)

        with pytest.raises(NotVerifiable, match="something else moves"):
            CLAUSES[id](Disturbed(target_view, catalogue()[id]))

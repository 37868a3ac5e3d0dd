"""What should not be done, done on purpose, end to end: refused, without effect, and judged so."""

import dataclasses

import numpy as np
import pytest

from cpdaemon.endpoint import TcpEndpoint, UnixEndpoint, UrlEndpoint, parse_endpoint
from cpdaemon.wire import MalformedFrame, parse
from cpsim import fake
from cpsim.evidence.journal import OperationOutcome
from cpsim.judge.checkers.replies import MalformedFrames
from cpsim.judge.verdict import Verdict
from cpsim.replay.pace import AsFastAsPossible
from cpsim.run.pipeline import run as perform
from cpsim.run.plan import ReplayTarget
from cpsim.scenario import generate, source
from cpsim.scenario.models.misbehaviour import MALFORMED, OVERSIZED, WRONG_CREDENTIALS, Misbehaviour
from cpsim.scenario.workload import FRAME, Arguments, Column

PROJECT, SECRET = "Proj", "hush"
PLAIN = """
description = "misbehaving"
duration = "1h"
expire = "2d"
population = { machines = 9, users = 3 }
arrivals = { model = "poisson", jobs = 200 }
run_time = { model = "lognormal", median = "5min", sigma = 0.5 }
outcome = { claim = 0.6, never = 0.2, discard = { late = 0.2 } }
"""
NAMES = list(Misbehaviour.__struct_fields__)


def workload(**shares):
    lines = "".join(f"{name} = {share}\n" for name, share in shares.items())
    return generate(source.parse(f"{PLAIN}[misbehaviour]\n{lines}", "bad.toml"))


@pytest.fixture
def site(tmp_path):
    with fake.Fake({PROJECT: SECRET}, unix=tmp_path / "s", tcp=fake.ANY_PORT, http=fake.ANY_PORT) as started:
        yield started


def replay(site, made, kind):
    server = parse_endpoint(site.addresses["http"])
    assert isinstance(server, UrlEndpoint)
    endpoint = server if kind == "http" else parse_endpoint(site.addresses[kind])
    assert isinstance(endpoint, UnixEndpoint | TcpEndpoint | UrlEndpoint)
    return perform(
        lambda: made,
        ReplayTarget(endpoint, server, (PROJECT, SECRET)),
        AsFastAsPossible(),
        in_flight=8,
        timeout_s=100.0,
        slot_prefix="m",
        on_stage=lambda stage: None,
        on_progress=lambda planned, progress: None,
    )


@pytest.mark.parametrize("name", NAMES)
def test_each_is_sent_and_judged_valid_at_a_server(site, name):
    made = workload(**{name: 0.5})
    assert len(made) > len(workload())
    run = replay(site, made, "http")
    assert run.verdict.ruling == "valid", run.verdict.anomalies
    refused = int(np.count_nonzero(run.evidence.records["outcome"] == 1))
    expires_in_time = name == "claim_after_expiry"  # as fast as possible, two days do not pass
    assert refused >= (0 if expires_in_time else len(made) - len(workload()))


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_all_together_are_judged_valid_at_a_daemon(site, kind):
    made = workload(**dict.fromkeys(NAMES, 0.1))
    run = replay(site, made, kind)
    assert run.verdict.ruling == "valid", run.verdict.anomalies
    is_frame = made.kind[run.evidence.records["op"]] == FRAME
    assert is_frame.sum() > 20
    assert {run.evidence.errors[code] for code in run.evidence.records["error"][is_frame]} == {"ER"}
    assert not run.evidence.records["outcome"][~is_frame].any()


def test_a_frame_that_is_taken_is_a_finding(site):
    site.behave(frozenset({"cut-values"}))  # which takes alloc,slot=ID=x for slot ID
    run = replay(site, workload(malformed=0.1), "unix")
    assert run.verdict.counts["wrongly accepted"]
    assert "alloc,slot={slot}=x" in next(
        found.detail for found in run.verdict.anomalies if found.name == "wrongly accepted"
    )


@pytest.mark.parametrize(
    ("taken", "ruling"),
    [
        ("claim,slot={slot},machine=m,machine=n", "valid"),
        ("meta,slot={slot},text=a\x01b", "valid"),
        ("meta,slot={slot},text=\xff\xfe", "valid"),
        ("\xff\xfe,slot={slot}", "invalid"),
        ("claim,slot={slot}", "invalid"),
    ],
)
def test_what_the_protocol_leaves_open_may_be_taken(site, taken, ruling):
    made = workload(malformed=0.1)
    form, forms = made.arguments["frame"]["frame"]
    made = dataclasses.replace(
        made, arguments={**made.arguments, "frame": Arguments({"frame": Column(form, (taken,) * len(forms))})}
    )
    evidence = replay(site, made, "unix").evidence
    frames = made.kind[evidence.records["op"]] == FRAME
    records = evidence.records.copy()
    records["outcome"][frames] = OperationOutcome.ACCEPTED
    verdict = Verdict()
    MalformedFrames().check(dataclasses.replace(evidence, records=records), verdict)
    assert verdict.ruling == ruling
    assert bool(verdict.anomalies) == (ruling == "invalid")
    assert all(found.detail.endswith(f": {taken}") for found in verdict.anomalies)


def test_a_frame_that_is_a_command_may_be_taken_though_its_server_must_refuse_it(site):
    made = workload(malformed=0.1)
    form, forms = made.arguments["frame"]["frame"]
    taken = Arguments({"frame": Column(form, ("alloc,slot={slot},credits=7.9",) * len(forms))})
    run = replay(site, dataclasses.replace(made, arguments={**made.arguments, "frame": taken}), "unix")
    assert run.verdict.ruling == "valid", run.verdict.anomalies


def test_wrong_credentials_are_answered_401(site):
    run = replay(site, workload(wrong_credentials=0.5), "http")
    is_frame = run.plan.workload.kind[run.evidence.records["op"]] == FRAME
    (said,) = {run.evidence.errors[code] for code in run.evidence.records["error"][is_frame]}
    assert said.startswith("HTTP 401: ")


def test_a_server_that_takes_wrong_credentials_is_found():
    made = workload(wrong_credentials=0.5)
    with fake.Fake({PROJECT: f"not {SECRET}"}, http=fake.ANY_PORT) as lax:  # which is what they are signed with
        run = perform(
            lambda: made,
            ReplayTarget(parse_endpoint(lax.addresses["http"]), None, (PROJECT, SECRET)),
            AsFastAsPossible(),
            in_flight=8,
            timeout_s=100.0,
            slot_prefix="m",
            on_stage=lambda stage: None,
            on_progress=lambda planned, progress: None,
        )
    taken = next(anomaly for anomaly in run.verdict.anomalies if anomaly.name == "wrongly accepted")
    assert run.verdict.counts["wrongly accepted"] == (made.kind == FRAME).sum()
    assert taken.detail.startswith("a malformed frame was answered with success: ")


@pytest.mark.parametrize("form", [*MALFORMED, *OVERSIZED, *WRONG_CREDENTIALS])
def test_every_frame_is_none(form):
    with pytest.raises(MalformedFrame):
        parse(form.encode("latin-1").replace(b"{slot}", b"some-1"))


def test_shares_are_of_those_concerned():
    made = workload(claim_after_discard=1.0)
    assert len(made) - len(workload()) == len(made.arguments["discard"]["reason"].values)
    assert len(workload(unknown_slot=1.0).slot_numbers) == 400

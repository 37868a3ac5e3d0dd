"""`/metrics`, as Prometheus' own parsers read it."""

import json
import math
import urllib.error
import urllib.request

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from cpdaemon import Client, ReplyLost
from cpsim.fake import ANY_PORT, Fake
from cpsim.metrics.apply_delays import ApplyDelays
from cpsim.metrics.duration_buckets import BOUNDS_S, DurationBuckets
from cpsim.testing import ManualClock

PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def get(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as response:
        return response.headers["Content-Type"], response.read().decode()


def scrape(url, accept=OPENMETRICS):
    """The samples of a scrape, {name: {labels: value}}, read by the parser of the format that was asked for."""
    content_type, text = get(url, Accept=accept)
    assert content_type.split(";")[0] == accept.split(";")[0]
    parse = openmetrics_parser if accept == OPENMETRICS else parser
    found = {}
    for family in parse.text_string_to_metric_families(text):
        for sample in family.samples:
            labels = frozenset(item for item in sample.labels.items() if item[0] not in {"daemon", "version", "python"})
            assert labels not in found.setdefault(sample.name, {}), sample
            found[sample.name][labels] = sample.value
    return found


def of(**labels):
    return frozenset(labels.items())


@pytest.fixture
def fake(here):
    with Fake({"p": "s"}, unix=here / "cp.sock", http=ANY_PORT, faults=["daemon.error:slot=bad"]) as fake:
        yield fake


@pytest.fixture
def url(fake):
    return fake.addresses["http"].removesuffix("/api") + "/metrics"


def send(address):
    """Send commands: three allocs, two claims, of which one is refused by the server, and one ER of a fault."""
    with Client(address) as client:
        for slot in "abc":
            client.alloc(slot, credits=5)
        client.claim("a", "m")
        client.claim("never", "m")
        with pytest.raises(Exception, match="ER"):
            client.alloc("bad", credits=5)


@pytest.mark.parametrize("accept", [PLAIN, OPENMETRICS])
def test_the_figures_are_those_of_what_was_sent(fake, url, accept):
    send("./cp.sock")
    fake.wait_until_idle()
    with Client(fake.addresses["http"], ("p", "s")) as client:
        client.discard("b")
    found = scrape(url, accept)
    assert found["cpsim_server_commands_total"] == {
        of(project="p", kind="alloc", outcome="accepted"): 3,
        of(project="p", kind="claim", outcome="accepted"): 1,
        of(project="p", kind="claim", outcome="refused"): 1,
        of(project="p", kind="discard", outcome="accepted"): 1,
    }
    assert found["cpsim_daemon_replies_total"] == {
        of(project="p", kind="alloc", reply="OK"): 3,
        of(project="p", kind="claim", reply="OK"): 2,
        of(project="p", kind="", reply="ER"): 1,
    }
    slots = {dict(labels)["state"]: value for labels, value in found["cpsim_server_slots"].items()}
    assert slots == {"outstanding": 1, "claimed": 1, "discarded": 1, "expired": 0}
    assert found["cpsim_server_credits"] == {of(project="p"): 5}
    assert found["cpsim_server_request_duration_seconds_count"] == {of(): 1}
    assert found["cpsim_daemon_reply_duration_seconds_count"] == {of(project="p"): 6}
    assert found["cpsim_daemon_apply_delay_seconds_count"] == {of(project="p"): 5}
    assert found["cpsim_daemon_queued_commands"] == {of(project="p"): 0}
    assert found["cpsim_server_pending_commands"] == {of(): 0}
    assert found["cpsim_faults_fired_total"] == {of(stage="daemon", action="error"): 1}
    assert found["cpsim_build_info"] == {of(): 1}


def test_replies_are_counted_however_many_and_whatever_keeps_them_from_the_client(here):
    faults = ["daemon.lose-reply:slot=lost"]
    with Fake({"p": "s"}, unix=here / "cp.sock", http=ANY_PORT, faults=faults) as fake:
        with Client("./cp.sock") as client:
            for number in range(600):
                client.alloc(f"s{number}")
            with pytest.raises(ReplyLost):
                client.alloc("lost")
        found = scrape(fake.addresses["http"].removesuffix("/api") + "/metrics")
    assert found["cpsim_daemon_replies_total"] == {of(project="p", kind="alloc", reply="OK"): 601}
    assert found["cpsim_daemon_reply_duration_seconds_count"] == {of(project="p"): 601}
    assert found["cpsim_daemon_reply_duration_seconds_sum"][of(project="p")] > 0


def test_what_waits_is_queued_and_has_an_age(here):
    with Fake({"p": "s"}, unix=here / "cp.sock", http=ANY_PORT, flush_interval_s=3600) as fake:
        url = fake.addresses["http"].removesuffix("/api") + "/metrics"
        assert scrape(url)["cpsim_daemon_oldest_command_age_seconds"] == {of(project="p"): 0}
        with Client("./cp.sock") as client:
            client.alloc("a")
        found = scrape(url)
        assert found["cpsim_daemon_queued_commands"] == {of(project="p"): 1}
        assert found["cpsim_server_pending_commands"] == {of(): 1}
        assert found["cpsim_daemon_oldest_command_age_seconds"][of(project="p")] > 0
        assert found["cpsim_daemon_apply_delay_seconds_count"] == {of(project="p"): 0}
        fake.reset()
        found = scrape(url)
        assert found["cpsim_daemon_oldest_command_age_seconds"] == {of(project="p"): 0}
        assert found["cpsim_daemon_apply_delay_seconds_count"] == {of(project="p"): 0}  # it was not applied
        assert found["cpsim_daemon_replies_total"] == {of(project="p", kind="alloc", reply="OK"): 1}


def test_a_spool_has_its_size_and_its_tally(here):
    with Fake({"p": "s"}, unix=here / "cp.sock", http=ANY_PORT, store=here / "store") as fake:
        with Client("./cp.sock") as client:
            client.alloc("a")
        fake.wait_until_idle()
        found = scrape(fake.addresses["http"].removesuffix("/api") + "/metrics")
    assert found["cpsim_daemon_delivered_commands_total"] == {of(project="p"): 1}
    assert found["cpsim_daemon_spool_size_bytes"][of(project="p")] > 0
    zero = ("retries_total", "dead_letters", "spool_full", "outage_seconds", "refused_commands_total")
    assert [found[f"cpsim_daemon_{name}"] for name in zero] == [{of(project="p"): 0}] * len(zero)


def test_whoever_may_use_the_control_api_may_scrape(here):
    with Fake({"p": "s"}, http=ANY_PORT, control_token="t") as fake:
        url = fake.addresses["http"].removesuffix("/api") + "/metrics"
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(url)
        assert refused.value.code == 401
        assert "cpsim_build_info" in get(url, Authorization="Bearer t")[1]
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(url, b"", {"Authorization": "Bearer t"}), timeout=60)
        assert (refused.value.code, refused.value.headers["Allow"]) == (405, "GET")
        assert json.loads(refused.value.read())["message"] == "/metrics supports GET"


def test_a_histogram_counts_up_to_each_bound_and_beyond():
    histogram = DurationBuckets()
    for duration_s, count in ((0.001, 2), (0.0011, 1), (1e9, 3)):
        histogram.observe(duration_s, count)
    counts, sum_s = histogram.read()
    upto = dict(zip([*BOUNDS_S, math.inf], counts, strict=True))
    assert (upto[0.0005], upto[0.001], upto[0.0025], upto[7200], upto[math.inf]) == (0, 2, 3, 3, 6)
    assert sum_s == pytest.approx(3e9 + 0.0031)
    at_once = DurationBuckets()
    at_once.observe_all([1e9, 0.001, 0.0011, 1e9, 0.001, 1e9])
    assert at_once.read() == (counts, pytest.approx(sum_s))


def test_apply_delays_are_those_of_each_command():
    clock, progress = ManualClock(), [7, 5]  # two wait from before
    delays = ApplyDelays(lambda: tuple(progress), clock.monotonic)

    def note(come, left, *, then_s=0.0):
        progress[:] = come, left
        delays.note()
        clock.advance(then_s)

    note(10, 5, then_s=2)
    assert delays.oldest_s() == 2
    note(11, 8, then_s=5)  # the two, and one after 2 s
    assert delays.buckets.read()[0][-1] == 1
    note(11, 11)  # two after 7 s, one after 5 s
    assert delays.buckets.read()[0][-1] == 4
    assert delays.buckets.read()[1] == 2 + 7 + 7 + 5
    assert delays.oldest_s() == 0
    note(15, 11, then_s=1)
    with delays.forgetting():
        note(15, 15)
    note(16, 16)
    assert delays.buckets.read()[0][-1] == 5
    assert delays.buckets.read()[1] == 21

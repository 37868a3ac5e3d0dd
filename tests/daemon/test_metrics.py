"""`/metrics` of `cpsim daemon`: the figures of a spool, as Prometheus' own parsers read them."""

import socket
import sqlite3
import urllib.error
import urllib.request
from contextlib import ExitStack, closing, contextmanager

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from cpdaemon import Client
from cpdaemon.endpoint import parse_endpoint
from cpsim.daemon.client import BulkClient
from cpsim.daemon.metrics import daemon_metrics
from cpsim.daemon.metrics_server import MetricsServer
from cpsim.daemon.site import Daemon
from cpsim.daemon.spool import Spool
from cpsim.daemon.spool_status import SELECT_FIRST, read_status, status_of
from cpsim.errors import CpsimError
from cpsim.fake import ANY_PORT, Fake
from cpsim.store.log import Log


def scrape(url):
    """The values of a scrape by name, of metrics that have one sample."""
    request = urllib.request.Request(url, headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    with urllib.request.urlopen(request, timeout=60) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    return {sample.name: sample.value for family in families for sample in family.samples}


def scrape_until(url, name, value):
    """The first scrape in which a metric has reached a value."""
    for _ in range(20_000):
        found = scrape(url)
        if found[name] >= value:
            return found
    raise AssertionError(found)


@pytest.fixture
def serve(here):
    """Return serve(url of the server) -> the URL of a daemon's metrics; it listens at cp.sock."""
    with ExitStack() as undo:

        def serve(url):
            server = undo.enter_context(closing(BulkClient(parse_endpoint(url), ("p", "s"), 60.0)))
            daemon = undo.enter_context(Daemon(server, "p", unix=here / "cp.sock", spool=Spool(here / "spool")))
            return undo.enter_context(MetricsServer(ANY_PORT, lambda: daemon_metrics([daemon])))

        yield serve


@contextmanager
def daemon_of(spool):
    """A daemon that delivers nothing of its spool."""
    with (
        closing(BulkClient(parse_endpoint("http://127.0.0.1:9/api"), ("p", "s"), 60.0)) as server,
        Daemon(server, "p", unix=spool.path.parent / "cp.sock", spool=spool, flush_interval_s=3600) as daemon,
    ):
        yield daemon


def test_what_the_server_accepted_and_refused(serve):
    with Fake({"p": "s"}, http=ANY_PORT) as fake:
        url = serve(fake.addresses["http"])
        with Client("./cp.sock") as client:
            client.alloc("a", credits=5)
            client.claim("a", "m")
            client.claim("never", "m")
        found = scrape_until(url, "cpsim_daemon_apply_delay_seconds_count", 3)
    assert found["cpsim_daemon_delivered_commands_total"] == 2
    assert found["cpsim_daemon_refused_commands_total"] == 1
    assert found["cpsim_daemon_reply_duration_seconds_count"] == 3
    assert found["cpsim_daemon_queued_commands"] == 0
    assert found["cpsim_daemon_oldest_command_age_seconds"] == 0
    assert found["cpsim_daemon_spool_size_bytes"] > 0
    assert found["cpsim_daemon_dead_letters"] == found["cpsim_daemon_spool_full"] == 0


def test_an_outage(serve):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        away = f"http://127.0.0.1:{nobody.getsockname()[1]}/api"
    url = serve(away)
    with Client("./cp.sock") as client:
        client.alloc("a")
    found = scrape_until(url, "cpsim_daemon_retries_total", 1)
    assert found["cpsim_daemon_queued_commands"] == 1
    assert found["cpsim_daemon_oldest_command_age_seconds"] > 0
    assert found["cpsim_daemon_delivered_commands_total"] == 0
    assert found["cpsim_daemon_apply_delay_seconds_count"] == 0


def test_what_is_no_scrape_and_what_cannot_be_read():
    def metrics():
        raise CpsimError("the spool is gone")

    with MetricsServer(ANY_PORT, metrics) as url:
        for wrong, body, status in ((url + "x", None, 404), (url, b"", 405), (url, None, 503)):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(wrong, body, timeout=60)
            assert refused.value.code == status
    assert refused.value.read() == b"the spool is gone\n"


def instructions(path, statements):
    """How many instructions of its machine SQLite runs for statements."""
    counted = []
    with closing(sqlite3.connect(path)) as database:
        for sql in statements:
            database.set_progress_handler(lambda: counted.append(1), 1)
            database.execute(sql).fetchall()
            database.set_progress_handler(None, 1)
    return len(counted)


def test_a_scrape_looks_at_as_much_of_a_spool_however_much_waits_there(here):
    asked = []

    class Recorded(Log):
        def query(self, sql, parameters=()):
            asked.append(sql)
            return super().query(sql, parameters)

    with daemon_of(spool := Spool(here / "spool", open_log=Recorded)) as daemon:
        spool.put(["alloc,slot=a"], {}, lambda _: None)
        spool.wait()
        asked.clear()
        families = {family.name: family.samples for family in daemon_metrics([daemon])}
        with_one = instructions(here / "spool", asked)
        spool.put([f"alloc,slot={slot}" for slot in range(5_000)], {}, lambda _: None)
        spool.wait()
        assert 0 < with_one == instructions(here / "spool", asked)
        assert families["cpsim_daemon_oldest_command_age_seconds"][0][1] >= 0
        assert status_of(spool).queued == read_status(here / "spool").queued == 5_001


def test_what_a_scrape_counts_as_applied_waits_in_it_no_more(here):
    class DeliversMeanwhile(Log):
        def query(self, sql, parameters=()):
            rows = super().query(sql, parameters)
            if sql == SELECT_FIRST and rows:
                spool.settle(spool.take(), [])
                daemon.delays.note()
            return rows

    with daemon_of(spool := Spool(here / "spool", open_log=DeliversMeanwhile)) as daemon:
        spool.put(["alloc,slot=a"], {}, lambda _: None)
        spool.wait()
        spool.release(1)
        delays = []
        for _ in range(2):
            families = {family.name: family.samples for family in daemon_metrics([daemon])}
            delays.append(families["cpsim_daemon_apply_delay_seconds"][0][1].up_to[-1])
    assert delays == [0, 1]


def test_dead_letters_are_counted_as_they_come_and_go(here):
    with closing(Spool(here / "spool")) as spool:
        spool.put(["rubbish", "alloc,slot=a", "more rubbish"], {}, lambda _: None)
        spool.wait()
        spool.release(3)
        spool.settle(spool.take(), [])
        dead = status_of(spool).dead_letters, spool.failed
        spool.forget([1])
        left = status_of(spool).dead_letters, spool.failed
    assert (dead, left) == ((2, 2), (1, 1))
    with closing(Spool(here / "spool")) as again:
        assert status_of(again).dead_letters == read_status(here / "spool").dead_letters == 1
        again.clear()
        assert (status_of(again).dead_letters, again.failed) == (0, 0)

"""The courier, against a server on a real socket that answers nonsense."""

import json
import random
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from replies import Ledger, http, ok

from cpdaemon.endpoint import parse_endpoint
from cpsim.daemon.client import BulkClient
from cpsim.daemon.courier import Courier
from cpsim.daemon.spool import Spool
from cpsim.daemon.spool_status import read_failed, read_status
from cpsim.store.log import Log
from cpsim.testing import ManualClock

SLOTS = ["a", "b", "c"]
LONG_S = 60


NESTED = {depth: b'{"result":"ok","errors":' + b"[" * depth + b"]" * depth + b"}" for depth in (900, 50_000)}
TEXTS = {
    "an empty body": http(b""),
    "no JSON": http(b"<html>"),
    "no UTF-8": http(b'{"result":"ok","errors":"\xff"}'),
    "no object": http(b"[]"),
    "null": http(b"null"),
    "a result of another type": http(b'{"result":["ok"]}'),
    "a number of many digits": http(b'{"result":"ok","errors":' + b"9" * 5_000 + b"}"),
    "errors nested deeply": http(NESTED[900]),
    "errors nested very deeply": http(NESTED[50_000]),
    "half a surrogate": http(b'{"result":"ok","errors":"\\ud800"}'),
    "a gateway's page": http(b"<h1>Bad Gateway</h1>", b"HTTP/1.1 502 Bad Gateway\r\n"),
    "no HTTP": b"SSH-2.0-OpenSSH_9.9\r\n",
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "half a body": http(b'{"result":"ok"}')[:-3],
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}",
    "a header that is none": b"HTTP/1.1 200 OK\r\n: nonsense\r\n\r\n",
    "a status that is none": b"HTTP/1.1 2OO OK\r\n\r\n",
    "chunks without a size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "a coding that nobody knows": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: zip\r\n\r\n",
}
POSITIONS = [None, "0", -1, 3, True, 1.0, 10**30, [], {}]
ERRORS = {
    **{f"errors {value!r}": value for value in (None, 5, True, "no", {"position": 0}, [5], [None], [[]])},
    **{
        f"{key} {value!r}": [{"message": "no", "code": 500, "class": "alloc", "index": 0} | {key: value}]
        for key, values in {"class": ["claim", 5, [], ""], "index": [3, -1, True, "0", 1.0, [], 10**30]}.items()
        for value in values
    },
    "the same command twice": [{"message": "no", "class": "alloc", "index": 0, "position": 0}] * 2,
    **{f"position {value!r}": [{"message": "no", "position": value}] for value in POSITIONS},
    "a position that is missing": [{"message": "no"}],
}
PROBED = {name: ok(batch=value) for name, value in {"a number": 5, "null": None, "a list": ["probe"]}.items()}
POSTED = TEXTS | {name: ok(errors=value) for name, value in ERRORS.items() if "position" not in name}
GIVEN_UP = (
    TEXTS
    | {name: ok(applied=True, errors=value) for name, value in ERRORS.items() if "position" in name or "twice" in name}
    | {f"applied {value!r}": ok(applied=value) for value in (None, 1, "yes", [])}
)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.wfile.write(self.server.ledger.answer(self.headers["CreditPiggy-Batch"], document))

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.lock = threading.Lock()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def deliver(server, tmp_path_factory):
    """Return deliver(ledger) -> (slots that failed with why, status), once all has left the spool."""

    def run(ledger):
        server.ledger = ledger
        path = tmp_path_factory.mktemp("spool") / "spool"
        clock = ManualClock()
        spool = Spool(path, clock=clock, open_log=partial(Log, threaded=False))
        last = spool.put([f"alloc,slot={slot}" for slot in SLOTS], {}, lambda _: None)
        spool.wait()
        spool.release(last)
        url = parse_endpoint(f"http://127.0.0.1:{server.server_address[1]}/api")
        to = BulkClient(url, ("p", "s"), LONG_S)
        courier = Courier(spool, to, 0.0, clock=clock, chance=random.Random(1))
        while spool.pending:
            clock.advance(courier.step() or 0.0)
        to.close()
        spool.close()
        return {row.command.removeprefix("alloc,slot="): row.why for row in read_failed(path)}, read_status(path)

    return run


def check(ledger, failed):
    """Nothing is lost, nothing is applied twice."""
    assert max(ledger.applied.values(), default=0) <= 1
    assert failed.keys() <= set(SLOTS)
    for slot in SLOTS:
        if slot not in failed:
            assert ledger.applied[slot] == 1
        elif failed[slot] == "refused":
            assert ledger.applied[slot] == 0


@pytest.mark.parametrize("name", GIVEN_UP)
def test_what_a_server_says_of_a_batch_that_was_given_up(deliver, name):
    ledger = Ledger(posted=[http(b"<html>")] * 8, given_up=[GIVEN_UP[name]] * 2)
    failed, status = deliver(ledger)
    check(ledger, failed)
    assert (failed, status.delivered) == ({}, 3)


@pytest.mark.parametrize("name", POSTED)
def test_what_a_server_says_of_a_batch(deliver, name):
    ledger = Ledger(posted=[POSTED[name]] * 2)
    failed, status = deliver(ledger)
    check(ledger, failed)
    assert (failed, status.delivered, status.retries) == ({}, 3, 2)


@pytest.mark.parametrize("name", TEXTS)
def test_what_a_server_says_when_it_is_asked_whether_it_knows_batch_ids(deliver, name):
    ledger = Ledger(probed=[TEXTS[name]] * 2)
    failed, status = deliver(ledger)
    check(ledger, failed)
    assert (failed, status.delivered) == ({}, 3)


@pytest.mark.parametrize("name", PROBED)
def test_a_server_that_repeats_another_batch_id_knows_none(deliver, name):
    ledger = Ledger(probed=[PROBED[name]], posted=[http(b"<html>")])
    failed, status = deliver(ledger)
    check(ledger, failed)
    assert failed == dict.fromkeys(SLOTS, "dead letter")
    assert status.delivered == 0


@given(
    st.lists(st.sampled_from([*TEXTS.values(), *PROBED.values()]), max_size=4),
    st.lists(st.sampled_from([*POSTED.values()]), max_size=20),
    st.lists(st.sampled_from([*GIVEN_UP.values()]), max_size=6),
)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_whatever_a_server_says_nothing_is_lost_and_nothing_is_applied_twice(deliver, probed, posted, given_up):
    ledger = Ledger(probed, posted, given_up)
    failed, _ = deliver(ledger)
    check(ledger, failed)

"""What is sent as JSON is ASCII: the server in production answers 500 to any other byte in a signed body."""

import dataclasses
import hashlib
import http.client
import json
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cpdaemon import Client, commands
from cpdaemon.endpoint import TcpEndpoint, parse_endpoint
from cpsim.daemon.client import BulkClient
from cpsim.daemon.site import Daemon
from cpsim.fake import ANY_PORT, Fake
from cpsim.replay import payloads
from cpsim.scenario.models.misbehaviour import WRONG_CREDENTIALS
from cpsim.scenario.workload import FRAME, Arguments, Column

CREDENTIALS = ("demo", "s3crét")
SLOT = "é-名-😀"


class Handler(BaseHTTPRequestHandler):
    """Refuses any byte above 127 as the server in production does, and any wrong digest."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        signed = f"sha-256,demo,{hashlib.sha256(body + CREDENTIALS[1].encode()).hexdigest()}"
        if not body.isascii():
            self.reply(500, b"<h1>Server Error (500)</h1>")
        elif self.headers["Authorization"] != signed:
            self.reply(401, b'{"result": "error", "message": "wrong digest"}')
        else:
            self.server.taken.append((self.path.rpartition("/")[2], json.loads(body)))
            self.reply(200, b'{"result": "ok"}')

    def reply(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def production():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.taken = []
        server.endpoint = parse_endpoint(f"http://127.0.0.1:{server.server_port}/api")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_client_library_sends_ascii(production):
    with Client(production.endpoint, CREDENTIALS) as client:
        client.alloc(SLOT)
        sent = [commands.Meta(SLOT, {"größe": "😀"}), commands.Discard(SLOT, "Ende é")]
        assert {outcome.result for outcome in client.send_many(sent)} == {"accepted"}
    assert production.taken == [
        ("alloc", {"slot": SLOT}),
        ("bulk", {"meta": [{"slot": SLOT, "größe": "😀"}], "discard": [{"slot": SLOT, "reason": "Ende é"}]}),
    ]


def test_a_batch_with_such_a_command_is_delivered(production):
    slots = ["before", SLOT, "after"]
    server = BulkClient(production.endpoint, CREDENTIALS, 5.0)
    with (
        closing(server),
        Daemon(server, "demo", tcp=TcpEndpoint("127.0.0.1", 0)) as daemon,
        Client(daemon.addresses["tcp"]) as client,
    ):
        for slot in slots:
            client.alloc(slot)
    taken = [arguments["slot"] for _, document in production.taken for arguments in document.get("alloc", [])]
    assert taken == slots


def test_a_replay_sends_ascii(production, awkward, replay):
    prefix = 'é"\\😀'
    requests = [
        request for chunk in payloads.requests(awkward, prefix, production.endpoint, CREDENTIALS) for request in chunk
    ]
    replayed = replay(production.endpoint, requests, slots=awkward.slot.tolist(), in_flight=1)
    assert set(replayed.errors) == {""}
    assert production.taken == list(awkward.calls(0, len(awkward), prefix))


def test_a_body_with_the_wrong_digest_is_ascii_too(production, awkward, replay):
    frames = Arguments({"frame": Column(awkward.row[:1] * 0, WRONG_CREDENTIALS)})
    one = {name: getattr(awkward, name)[:1] for name in ("due_us", "kind", "slot", "row")}
    workload = dataclasses.replace(
        awkward,
        **one | {"kind": one["kind"] * 0 + FRAME, "row": one["row"] * 0},
        arguments={**awkward.arguments, "frame": frames},
    )
    (requests,) = payloads.requests(workload, 'é"', production.endpoint, CREDENTIALS)
    assert replay(production.endpoint, requests).errors == ["HTTP 401: wrong digest"]


@pytest.mark.parametrize("path", ["slots", "slots.jsonp"])
def test_replies_are_ascii(path):
    with Fake({"demo": "s"}, http=ANY_PORT) as fake:
        endpoint = parse_endpoint(fake.addresses["http"])
        with Client(endpoint, ("demo", "s")) as client:
            client.alloc(SLOT)
        digest = hashlib.sha256(b"s").hexdigest()
        connection = http.client.HTTPConnection(endpoint.host, endpoint.port)
        connection.request("GET", f"{endpoint.path}/batch/{path}?&auth=sha-256,demo,{digest}")
        reply = connection.getresponse().read()
        connection.close()
    assert reply.isascii()
    assert json.loads(reply[reply.index(b"{") : reply.rindex(b"}") + 1])["data"] == [SLOT]

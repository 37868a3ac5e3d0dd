"""Daemons that say the same in another way are found to be right; one that says something else is found."""

import hashlib
import json
import socketserver
import threading
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from queue import Queue
from urllib.parse import quote, urlencode

import pytest
from ports import free_port

from cpdaemon.endpoint import TcpEndpoint
from cpsim.conformance.suite import examine
from cpsim.conformance.target import Target

PROJECT, SECRET = "Site", "hush"
QUIET_S = 0.05


def digest(payload):
    return hashlib.sha256(payload + SECRET.encode()).hexdigest()


def signed(payload):
    return {"authorization": f"SHA-256,{PROJECT.upper()},{digest(payload).upper()}"}


class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        frame = self.request.recv(4096)
        self.request.settimeout(QUIET_S)
        try:
            while b"\n" not in frame and (more := self.request.recv(4096)):
                frame += more
        except TimeoutError:
            pass
        if frame:
            self.server.queue.put(frame.decode().strip())
            self.request.sendall(b"OK")


class Daemon(socketserver.ThreadingTCPServer):
    """Forwards each command as `forward(connection, kind, arguments)` writes it, one after the other."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port, forward):
        super().__init__(("127.0.0.1", 0), Handler)
        self.queue, self.ended = Queue(), threading.Event()
        self.port, self.forward = port, forward

    def deliver(self):
        while (frame := self.queue.get()) is not None:
            kind, *pairs = frame.split(",")
            while not self.ended.is_set():
                with (
                    suppress(OSError, HTTPException),  # the server is away
                    closing(HTTPConnection("127.0.0.1", self.port, timeout=280)) as connection,
                ):
                    self.forward(connection, kind.lower(), dict(pair.split("=") for pair in pairs))
                    connection.getresponse().read()
                    break
                self.ended.wait(QUIET_S)


@contextmanager
def served(port, forward):
    with Daemon(port, forward) as daemon:
        threads = [threading.Thread(target=target) for target in (daemon.serve_forever, daemon.deliver)]
        for thread in threads:
            thread.start()
        yield daemon.server_address[1]
        daemon.shutdown()
        daemon.ended.set()
        daemon.queue.put(None)
        for thread in threads:
            thread.join()


def examined(forward, clauses, timeout_s=5.0):
    behind = TcpEndpoint("127.0.0.1", free_port())
    with served(behind.port, forward) as port:
        daemon = TcpEndpoint("127.0.0.1", port)
        return examine(
            Target(daemon=daemon, behind=behind, credentials=(PROJECT, SECRET), timeout_s=timeout_s), clauses
        )


def single(change, **style):
    """Forward a command as an object of its own, changed."""

    def forward(connection, kind, arguments):
        body = json.dumps(change(kind, arguments), **style).encode()
        connection.request("POST", f"/api/batch/{kind}", body, signed(body))

    return forward


def backwards(_, arguments):
    return dict(reversed(arguments.items()))


def numbers_as_numbers(kind, arguments):
    whole = {"credits", "min", "max", "expire"} if kind != "counters" else arguments.keys() - {"slot"}
    return {
        name: int(value) if kind != "meta" and name in whole else value for name, value in sorted(arguments.items())
    }


def in_a_bulk(connection, kind, arguments):
    body = json.dumps({"claim": [], "alloc": [], kind: [backwards(kind, arguments)]}, indent=1).encode()
    connection.request("POST", "/api/batch/bulk.json", body, signed(body))


def by_get(connection, kind, arguments):
    query = urlencode(dict(reversed(arguments.items())))
    token = quote(f"sha-256,{PROJECT},{digest(query.encode())}", safe="")
    connection.request("GET", f"/api/batch/{kind}?{query}&auth={token}")


def as_text(connection, kind, arguments):
    body = ",".join(f"{name}={value}" for name, value in sorted(arguments.items())).encode()
    connection.request("POST", f"/api/batch/{kind}.text", body, signed(body))


def in_chunks(connection, kind, arguments):
    body = json.dumps(arguments).encode()
    chunks = iter([body[:7], body[7:]])
    connection.request("POST", f"/api/batch/{kind}", chunks, signed(body), encode_chunked=True)


SAME = {
    "backwards": single(backwards),
    "numbers-as-numbers": single(numbers_as_numbers),
    "blanks": single(backwards, indent=2, ensure_ascii=False),
    "in-a-bulk": in_a_bulk,
    "by-get": by_get,
    "as-text": as_text,
    "in-chunks": in_chunks,
}


@pytest.mark.parametrize("forward", SAME.values(), ids=SAME)
def test_the_same_said_otherwise_is_the_same(forward):
    outcome = examined(forward, ["FORWARD-1", "FORWARD-2", "FORWARD-3", "FORWARD-6", "FORWARD-11"], timeout_s=60.0)
    assert outcome.deviant == {}
    assert outcome.ruling == "valid"


def changed(of_kind, name, change):
    """Forward commands as they were told, but for one value of one kind."""

    def change_one(kind, arguments):
        if kind == of_kind and name in arguments:
            arguments = arguments | {name: change(arguments[name])}
        return backwards(kind, arguments)

    return single(change_one)


WRONG = {
    "another-number": changed("alloc", "max", lambda value: int(value) + 1),
    "text-of-another-number": changed("counters", "job/cpuusage", lambda value: value + "0"),
    "a-sign-lost": changed("counters", "smashed/partons", lambda value: value.strip("-")),
    "a-number-for-text": changed("meta", "build", int),
    "a-number-for-text-of-the-same-digits": changed("meta", "count", int),
    "truth-for-a-number": changed("alloc", "min", lambda _: True),
    "a-fraction": changed("alloc", "min", lambda _: 1.5),
    "a-list": changed("meta", "site", lambda value: [value]),
    "nothing": changed("claim", "credits", lambda _: None),
    "another-case": changed("meta", "job/kind", str.title),
    "a-name-less": single(lambda _, told: {name: told[name] for name in told if name != "expire"}),
    "a-name-more": single(lambda kind, told: told | ({"reason": "x"} if kind == "claim" else {})),
    "values-swapped": single(
        lambda _, told: told | {"min": told["max"], "max": told["min"]} if "min" in told else told
    ),
}


@pytest.mark.parametrize("forward", WRONG.values(), ids=WRONG)
def test_what_says_something_else_is_found(forward):
    outcome = examined(forward, ["FORWARD-2"])
    assert outcome.ruling == "invalid"
    (finding,) = outcome.findings
    assert "never delivered" in finding.detail
    assert any(line.startswith("at the server, and never sent: ") for line in finding.transcript)

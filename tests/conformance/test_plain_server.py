"""A plain server that is right gets no complaint, in whatever harmless shape; with a fault, the clauses find it."""

import json
import select
from itertools import count

import pytest

from cpdaemon.endpoint import parse_endpoint
from cpsim.conformance.clause import Need, catalogue
from cpsim.conformance.suite import examine
from cpsim.conformance.target import Target

MINE, OTHER = ("alpha", "first secret"), ("beta", "second secret")


def in_http_1_0(server):
    server.stays = lambda status: False
    head = server.head
    server.head = lambda *reply: head(*reply).replace(b"HTTP/1.1", b"HTTP/1.0", 1)


def chunked(server):
    def reply(connection, status, kind, data, stays):
        head = (
            server.head(status, kind, data, stays)
            .decode()
            .replace(f"Content-Length: {len(data)}", "Transfer-Encoding: chunked")
        )
        half = len(data) // 2
        chunks = b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in (data[:half], data[half:]) if part)
        connection.sendall(head.encode() + chunks + b"0\r\n\r\n")

    server.reply = reply


def without_a_length(server):
    server.stays = lambda status: False
    head = server.head
    server.head = lambda status, kind, data, stays: head(status, kind, data, stays).replace(
        f"Content-Length: {len(data)}\r\n".encode(), b""
    )


def with_other_headers(server):
    head = server.head
    server.head = lambda *reply: (
        head(*reply).lower().replace(b"http/1.1", b"HTTP/1.1").replace(b"\r\n", b"\r\nX-Odd: a, b\r\n", 1)
    )


def in_another_layout(server):
    def dumps(document):
        if document.get("result") == "ok":
            document = {"errors": [], "took": 0.5, **document}
        return "\n" + json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    server.dumps = dumps


def with_empty_successes_in_text(server):
    right = server.written

    def written(suffix, query, status, document):
        if suffix == "text" and status == 200 and "data" not in document:
            return "text/plain", ""
        return right(suffix, query, status, document)

    server.written = written


def closing_each_connection(server):
    server.stays = lambda status: False


def in_pieces(server):
    def reply(connection, status, kind, data, stays):
        whole = server.head(status, kind, data, stays) + data
        size = max(7, len(whole) // 5)
        for place in range(0, len(whole), size):
            connection.sendall(whole[place : place + size])

    server.reply = reply


def with_two_clocks(server):
    now_us, looks = server.books.now_us, count()
    server.books.now_us = lambda: now_us() + 1_000 * (next(looks) % 2)


def slow(server):
    right = server.answer
    server.answer = lambda *request: (select.select([], [], [], 0.05), right(*request))[1]


def slow_in_bulks(server):
    right = server.of_bulk
    server.of_bulk = lambda *command: (select.select([], [], [], 0.01), right(*command))[1]


HARMLESS = {
    "plain": lambda server: None,
    "http-1.0": in_http_1_0,
    "chunked": chunked,
    "no-length": without_a_length,
    "header-case": with_other_headers,
    "layout": in_another_layout,
    "text-empty": with_empty_successes_in_text,
    "closing": closing_each_connection,
    "pieces": in_pieces,
    "two-clocks": with_two_clocks,
}
QUICK = ["ALLOC-*", "BULK-*", "CLAIM-*", "CONN-*", "EXPIRE-4", "HTTP-*", "CREDIT-15"]


def find(plain_server, plant, clauses=(), **target):
    """What the suite finds in a plain server that is changed in a way."""
    with plain_server.Server(with_accounts=target.pop("with_accounts", True)) as server:
        plant(server)
        where = parse_endpoint(server.url)
        return examine(Target(server=where, credentials=MINE, other=OTHER, **target), clauses)


@pytest.mark.thorough
@pytest.mark.parametrize("thorough", [False, True], ids=["default", "thorough"])
def test_a_plain_server_passes_every_clause(plain_server, thorough):
    outcome = find(plain_server, HARMLESS["plain"], thorough=thorough)
    there = {Need.SERVER, Need.OTHER, Need.ACCOUNTS} | ({Need.THOROUGH} if thorough else set())
    results = {finding.clause.id: finding.result for finding in outcome.findings}
    assert outcome.deviant == {}
    assert results == {
        id: "pass" if there.issuperset(clause.needs) else "not verifiable" for id, clause in catalogue().items()
    }


@pytest.mark.parametrize("shape", HARMLESS)
def test_a_harmless_shape_gets_no_complaint(plain_server, shape):
    outcome = find(plain_server, HARMLESS[shape], QUICK)
    assert outcome.deviant == {}
    assert outcome.counts["not verifiable"] == sum(
        Need.DAEMON in each.clause.needs or Need.THOROUGH in each.clause.needs for each in outcome.findings
    )


@pytest.mark.thorough
@pytest.mark.parametrize("shape", list(HARMLESS)[1::3])
def test_nor_does_it_from_any_clause(plain_server, shape):
    assert find(plain_server, HARMLESS[shape], with_accounts=False).deviant == {}


@pytest.mark.thorough
def test_a_slow_server_gets_none(plain_server):
    outcome = find(plain_server, slow, ["ALLOC-*", "CONCUR-*", "BULK-*", "SIZE-3"], with_accounts=False)
    assert outcome.deviant == {}


@pytest.mark.thorough
def test_bulks_are_as_large_as_a_slow_server_can_answer_in_time(plain_server):
    outcome = find(plain_server, slow_in_bulks, ["BULK-10"], timeout_s=2.0)
    assert outcome.counts == {"pass": 1}


def test_a_reply_that_does_not_come_in_time_is_no_deviation(plain_server):
    def silent(server):
        right = server.answer
        server.answer = lambda method, path, *more: (
            (select.select([], [], [], 2.0) and None) if "discard" in path else None,
            right(method, path, *more),
        )[1]

    outcome = find(plain_server, silent, ["DISCARD-4", "ALLOC-1"], timeout_s=1.0)
    assert {finding.clause.id: finding.result for finding in outcome.findings} == {
        "ALLOC-1": "pass",
        "DISCARD-4": "not verifiable",
    }
    (late,) = (finding for finding in outcome.findings if finding.clause.id == "DISCARD-4")
    assert "--timeout" in late.detail


@pytest.mark.parametrize("secret", ["alpha", "none", "x", "ÄÖ"])
def test_whatever_the_secret_is_a_forgery_is_none_that_is_right(plain_server, monkeypatch, secret):
    monkeypatch.setitem(plain_server.PROJECTS, "alpha", secret)
    with plain_server.Server() as server:
        target = Target(server=parse_endpoint(server.url), credentials=("alpha", secret))
        assert examine(target, ["AUTH-*"]).deviant == {}

"""The HTTP API over a real socket: what is asked, what is answered, and what is left in the accounts."""

import json
import logging
import socket
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpsim.net.http.messages import Failure, Request

OK = {"result": "ok"}
ALGORITHMS = ["sha-1", "sha-256", "sha-512"]


def error(message):
    return {"result": "error", "message": message}


def answer(reply):
    status, body = reply
    return status, json.loads(body)


@pytest.fixture(autouse=True)
def no_server_error(caplog):
    """An exception inside the server is a bug, whatever the client is told of it."""
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


# Paths, methods, formats


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_heartbeat(site, method):
    assert site.request(method, "/api/heartbeat") == (200, b"OK")
    assert site.headers["Content-Type"].startswith("text/plain")


COMMANDS = [
    ("alloc", {"slot": "s", "min": 1, "max": 9, "expire": 5}),
    ("counters", {"slot": "s", "job/events": -5}),
    ("meta", {"slot": "s", "site": "Zürich & co"}),
    ("claim", {"slot": "s", "machine": "m", "credits": 4}),
]


@pytest.mark.parametrize("suffix", ["", ".json"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_commands_by_post(site, algorithm, suffix):
    for kind, arguments in COMMANDS:
        assert answer(site.post(f"{kind}{suffix}", arguments, algorithm=algorithm)) == (200, OK)
        assert site.headers["Content-Type"] == "application/json"
    slot = site.slots()["s"]
    assert (slot.granted, slot.machine, slot.meta) == (4, "m", {"site": "Zürich & co"})
    assert slot.counters == {"job/events": -5}
    assert answer(site.post("alloc", {"slot": "t"})) == (200, OK)
    assert answer(site.post("discard", {"slot": "t", "reason": "lost"})) == (200, OK)
    assert site.slots()["t"].reason == "lost"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_commands_by_get(site, algorithm):
    for kind, arguments in COMMANDS:
        query = "&".join(f"{quote(name)}={quote(str(value))}" for name, value in arguments.items())
        assert answer(site.get(kind, query, algorithm=algorithm)) == (200, OK)
    slot = site.slots()["s"]
    assert (slot.granted, slot.machine, slot.meta) == (4, "m", {"site": "Zürich & co"})


@pytest.mark.parametrize("ask", ["get", "post"])
def test_the_slots_not_yet_settled(site, ask):
    assert answer(getattr(site, ask)("slots")) == (200, {"result": "ok", "data": []})
    for slot in "abc":
        site.post("alloc", {"slot": slot})
    site.post("alloc", {"slot": "not ours"}, project="q", secret="other")
    site.post("claim", {"slot": "b", "machine": "m"})
    assert answer(getattr(site, ask)("slots.json")) == (200, {"result": "ok", "data": ["a", "c"]})
    assert getattr(site, ask)("slots.text") == (200, b"a\nc\n")


def test_text(site):
    assert site.post("alloc.text", b"slot=s,credits=5\n") == (200, b"result: ok\n")
    assert site.headers["Content-Type"].startswith("text/plain")
    assert site.post("alloc.text", b"slot=s") == (500, b"ERROR\nslot 's' was already allocated\n")
    assert site.post("alloc.text", b"slot") == (400, b"ERROR\nthe body is not name=value,name=value\n")
    assert site.post("alloc.text")[0] == 400
    assert site.get("claim.text", "slot=s&machine=m") == (200, b"result: ok\n")
    assert site.slots()["s"].granted == 5
    assert site.post("alloc.text", b"slot=x", secret="wrong")[1].startswith(b"ERROR\nunknown project")


def test_jsonp(site):
    assert site.post("alloc.jsonp", {"slot": "s"}) == (200, b'jsonp_callback({"result": "ok"});')
    assert site.headers["Content-Type"].startswith("text/javascript")
    assert site.get("slots.jsonp", "callback=my.back_1") == (200, b'my.back_1({"result": "ok", "data": ["s"]});')
    status, script = site.get("alloc.jsonp", "slot=s&callback=f")
    assert status == 500
    assert script.startswith(b'f({"result": "error"')
    assert site.get("meta.jsonp", "slot=s&a=b&callback=f")[0] == 200
    assert site.slots()["s"].meta == {"a": "b"}


@pytest.mark.parametrize("name", ["alert(1)//", "1st", "a b", "a..b", "<script>", "é", "f\n"])
def test_a_callback_that_is_no_name_stops_the_command(site, name):
    status, document = answer(site.get("alloc.jsonp", f"slot=s&callback={quote(name)}"))
    assert (status, document["message"]) == (400, "callback is not the name of a JavaScript function")
    assert site.slots() == {}


@pytest.mark.parametrize("name", ["alloc", "slots", "bulk", "nothing"])
def test_an_unknown_suffix(site, name):
    assert site.post(f"{name}.xml", {"slot": "s"}) == (500, b"Unknown API protocol 'xml' requested")
    assert site.headers["Content-Type"].startswith("text/plain")
    assert site.slots() == {}


@pytest.mark.parametrize(
    "path", ["/nothing", "/api", "/api/", "/api/batch", "/apibatch/alloc", "/api/heartbeat/", "/batch/alloc", "/é", "*"]
)
def test_paths_that_do_not_exist(site, path):
    status, document = answer(site.request("GET", quote(path, safe="/*")))
    assert status == 404
    assert document["message"].startswith("no such path")


def test_a_command_that_does_not_exist(site):
    assert answer(site.post("pay", {"slot": "s"})) == (404, error("no such path '/api/batch/pay'"))


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
@pytest.mark.parametrize("path", ["heartbeat", "batch/alloc"])
def test_other_methods(site, method, path):
    status, body = site.request(method, f"/api/{path}")
    assert status == 405
    assert body == b"" if method == "HEAD" else json.loads(body)["result"] == "error"
    assert site.request("GET", "/api/heartbeat") == (200, b"OK")


# Authentication: every row of the table of statuses


@pytest.mark.parametrize(
    ("header", "status", "message"),
    [
        (None, 400, "no Authorization header"),
        ("", 400, "the token is not ALGORITHM,PROJECT,DIGEST"),
        ("Basic abc", 400, "the token is not ALGORITHM,PROJECT,DIGEST"),
        ("sha-256,Physics", 400, "the token is not ALGORITHM,PROJECT,DIGEST"),
        ("sha-256,Physics,a,b", 400, "the token is not ALGORITHM,PROJECT,DIGEST"),
        ("md5,Physics,00", 400, "unknown algorithm 'md5'; use one of sha-1, sha-256, sha-512"),
        ("sha256,Physics,00", 400, "unknown algorithm 'sha256'; use one of sha-1, sha-256, sha-512"),
        ("sha-256,nobody,00", 401, "unknown project, or the digest does not match"),
        ("sha-256,Physics,00", 401, "unknown project, or the digest does not match"),
        ("sha-256,Physics,", 401, "unknown project, or the digest does not match"),
        ("sha-256,Physics,ü", 401, "unknown project, or the digest does not match"),
        ("sha-256,,", 401, "unknown project, or the digest does not match"),
    ],
)
def test_tokens_that_open_nothing(site, header, status, message):
    headers = {} if header is None else {"Authorization": header}
    assert answer(site.request("POST", "/api/batch/alloc", b'{"slot":"s"}', headers)) == (status, error(message))
    assert site.slots() == {}


def test_an_unknown_project_is_not_opened_by_an_empty_secret(site):
    assert site.post("alloc", {"slot": "s"}, project="nobody", secret="")[0] == 401


@pytest.mark.parametrize("change", [str.upper, str.title, lambda token: f"  {token} "])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_case_makes_no_difference(site, algorithm, change):
    body = b'{"slot":"s"}'
    token = change(site.sign(body, algorithm, project="pHYSICS"))
    assert answer(site.request("POST", "/api/batch/alloc", body, {"aUTHORIZATION": token})) == (200, OK)
    assert answer(site.request("GET", f"/api/batch/slots?&auth={quote(change(site.sign(b'', algorithm)))}")) == (
        200,
        {"result": "ok", "data": ["s"]},
    )


@pytest.mark.parametrize("body", [b'{"slot":"s"} ', b'{"slot": "s"}', b'\n{"slot":"s"}', b'{"slot":"t"}'])
def test_the_exact_bytes_are_signed(site, body):
    token = site.sign(b'{"slot":"s"}')
    assert site.request("POST", "/api/batch/alloc", body, {"Authorization": token})[0] == 401
    assert answer(site.post("alloc", body)) == (200, OK)


def test_a_signature_is_of_one_project(site):
    assert site.post("alloc", {"slot": "s"}, project="q")[0] == 401
    assert site.post("alloc", {"slot": "s"}, secret="other")[0] == 401
    assert site.post("alloc", {"slot": "s"}, project="q", secret="other")[0] == 200
    assert site.slots() == {}


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("", 400, "no &auth= in the query"),
        ("?slot=s", 400, "no &auth= in the query"),
        ("?slot=s&myauth={token}", 400, "no &auth= in the query"),
        ("?slot=s;auth={token}", 400, "no &auth= in the query"),
        ("?auth={token}&slot=s", 400, "no &auth= in the query"),
        ("?auth={token}", 400, "no &auth= in the query"),
        ("?slot=s&auth={token}&", 400, "auth= is not the last argument of the query"),
        ("?slot=s&auth=", 400, "the token is not ALGORITHM,PROJECT,DIGEST"),
        ("?slot=s&auth=a,b", 400, "the token is not ALGORITHM,PROJECT,DIGEST"),
        ("?slot=s&auth=md5,b,c", 400, "unknown algorithm 'md5'; use one of sha-1, sha-256, sha-512"),
        ("?slot=t&auth={token}", 401, "unknown project, or the digest does not match"),
        ("?slot=%73&auth={token}", 401, "unknown project, or the digest does not match"),
    ],
)
def test_queries_that_open_nothing(site, query, status, message):
    path = "/api/batch/alloc" + query.format(token=site.sign(b"slot=s"))
    assert answer(site.request("GET", path)) == (status, error(message))
    assert site.slots() == {}


def test_the_header_is_for_post_only(site):
    headers = {"Authorization": site.sign(b"")}
    assert site.request("GET", "/api/batch/slots", headers=headers)[0] == 400
    assert site.request("POST", f"/api/batch/slots?auth={site.sign(b'')}")[0] == 400


# Refusals and bodies that are none


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("alloc", {"slot": "open"}, "slot 'open' was already allocated"),
        ("claim", {"slot": "never", "machine": "m"}, "slot 'never' was never allocated"),
        ("claim", {"slot": "open"}, "missing argument 'machine'"),
        ("alloc", {}, "missing argument 'slot'"),
        ("alloc", {"slot": "new", "credits": "7.9"}, "credits='7.9' is not a whole number"),
        ("alloc", {"slot": "new", "credits": 7.9}, "credits=7.9 is not a whole number"),
        ("alloc", {"slot": "new", "credits": -1}, "credits=-1 is negative"),
        ("alloc", {"slot": "new", "min": 2, "max": 1}, "min=2 is above max=1"),
        ("alloc", {"slot": "new", "expire": 0}, "expire=0 is not a positive number of minutes"),
        ("counters", {"slot": "open", "n": [1]}, "n=a list is not a whole number"),
        ("meta", {"slot": "open", "n": {"a": None}}, "n must be text, not an object"),
        ("discard", {"slot": "gone"}, "slot 'gone' is settled: it was discarded"),
    ],
)
def test_refused_commands(site, kind, arguments, message):
    for slot in ("open", "gone"):
        site.post("alloc", {"slot": slot})
    site.post("discard", {"slot": "gone"})
    before = site.slots()
    assert answer(site.post(kind, arguments)) == (500, error(message))
    assert site.slots() == before


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"slot=s",
        b"{'slot': 's'}",
        b"NaN",
        b'{"slot": NaN}',
        b'{"slot": "s", "credits": 1e999}',
        b'{"slot": "\\ud800"}',
        b'{"slot": "\xff"}',
        b'{"\xff": 1}',
        b"\xff\xfe",
        b'{"slot": "s"} {}',
        b'{"slot": ' + b"1" * 5000 + b"}",
        b"[]",
        b"5",
        b"null",
        b'"slot"',
        b'[{"slot": "s"}]',
    ],
    ids=range(18),
)
@pytest.mark.parametrize("name", ["alloc", "bulk"])
def test_bodies_that_are_no_objects(site, name, body):
    status, document = answer(site.post(name, body))
    assert status == 400
    assert document["message"].startswith("the body is not ")
    assert site.slots() == {}


def lists(levels):
    return b"[" * levels + b"]" * levels


def objects(levels):
    return b'{"a":' * levels + b"1" + b"}" * levels


MANY = b",".join(b'{"slot":"m%d","y":[[]]}' % number for number in range(50))


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("alloc", b'{"slot":"s","x":%s}'),
        ("alloc", b'{"slot":"s","x":%s,"y":[{},{},{},{"x":[1]}]}'),
        ("alloc.json", b'{"slot":"s","x\\u0021":%s}'),
        ("bulk", b'{"alloc":[{"slot":"s","x":%s}]}'),
        ("bulk", b'{"alloc":[MANY,{"slot":"s","x":%s},MANY]}'.replace(b"MANY", MANY)),
        ("bulk", b'{"alloc":[1,[],"[{",{"slot":"s","x":%s},{"slot":"[["}],"steal":[[1]]}'),
    ],
)
@pytest.mark.parametrize("nested", [lists, objects])
def test_how_deep_an_argument_may_be_nested(site, name, body, nested):
    """As deep in every form, and what is taken can be shown."""
    for levels in (33, 34, 100, 900, 950, 990, 3_000, 100_000):
        for _ in range(2):
            assert answer(site.post(name, body % nested(levels))) == (
                400,
                error("an argument is nested deeper than 32 levels"),
            )
    assert site.slots() == {}
    assert answer(site.post(name, body % nested(32)))[0] == 200
    assert "s" in site.slots()
    shown = json.loads(site.request("GET", "/__cpsim/slot?project=Physics&slot=s")[1])
    assert len(shown["history"]) == 1


@pytest.mark.parametrize(("levels", "status"), [(32, 200), (33, 400)])
def test_how_deep_an_argument_of_a_class_in_a_query_may_be(site, levels, status):
    query = "alloc=" + quote(b'[{"slot":"s","x":%s}]' % lists(levels))
    assert answer(site.get("bulk", query))[0] == status


@pytest.mark.parametrize("levels", [33, 3_000, 100_000])
def test_what_takes_no_nesting_at_all_says_so_at_every_depth(site, levels):
    body = b'{"vmid":%s,"webid":"u"}' % lists(levels)
    headers = {"Authorization": site.sign(body)}
    assert answer(site.request("POST", "/api/lib/claim", body, headers))[0] == 400
    for name in ("links", "faults", "quirks"):
        status, document = answer(site.request("POST", f"/__cpsim/{name}", lists(levels)))
        assert status == 400
        assert document["message"].startswith("the body does not fit: ")


@pytest.mark.parametrize("name", ["alloc", "bulk"])
@pytest.mark.parametrize("body", [b"[" * 100_000, lists(990)])
def test_what_is_deep_and_no_object(site, name, body):
    assert answer(site.post(name, body)) == (400, error("an argument is nested deeper than 32 levels"))


# Bulk


ORDERED = {
    "alloc": [{"slot": "s"}, {"slot": "d"}],
    "counters": [{"slot": "s", "n": 1}, {"slot": "s", "n": 2}],
    "meta": [{"slot": "s", "a": "b"}],
    "discard": [{"slot": "d"}],
    "claim": [{"slot": "s", "machine": "m"}],
}


@pytest.mark.parametrize(
    "order", [list(ORDERED), list(reversed(ORDERED)), ["claim", "meta", "alloc", "discard", "counters"]]
)
def test_classes_are_applied_in_their_own_order(site, order):
    assert answer(site.post("bulk", {kind: ORDERED[kind] for kind in order})) == (200, OK)
    slot = site.slots()["s"]
    assert (slot.state, slot.counters, slot.meta) == ("claimed", {"n": 3}, {"a": "b"})
    assert site.slots()["d"].state == "discarded"


def test_a_bulk_of_nothing(site):
    assert answer(site.post("bulk", {})) == (200, OK)
    assert answer(site.post("bulk", {"alloc": []})) == (200, OK)


def test_bulk_errors_name_their_command_and_stop_nothing(site):
    document = {
        "claim": [{"slot": "never", "machine": "m"}, {"slot": "a", "machine": "m"}],
        "pay": [{"slot": "a"}],
        "alloc": [{"slot": "a"}, {"slot": "a"}, 5, {"slot": "b", "credits": "7.9"}, {"slot": "c"}],
        "meta": {"slot": "a"},
        "Claim": [],
    }
    status, reply = answer(site.post("bulk", document))
    assert (status, reply["result"]) == (200, "ok")
    assert all(error["code"] == 500 for error in reply["errors"])
    told = {(error["class"], error.get("index")): error["message"] for error in reply["errors"]}
    assert told == {
        ("claim", 0): "slot 'never' was never allocated",
        ("alloc", 1): "slot 'a' was already allocated",
        ("alloc", 2): "5 is not an object",
        ("alloc", 3): "credits='7.9' is not a whole number",
        ("meta", None): "meta is not a list of commands",
        ("pay", None): "unknown class 'pay'",
        ("Claim", None): "unknown class 'Claim'",
    }
    assert [error["class"] for error in reply["errors"][-2:]] == ["pay", "Claim"]
    assert {name: slot.state for name, slot in site.slots().items()} == {"a": "claimed", "c": "allocated"}


@pytest.mark.parametrize(
    ("body", "received"),
    [
        (b'{"claim":[{"slot":"a","machine":"m"}], "alloc":[{"slot":"a"},{"slot":"a"}]}', "alloc a, alloc a, claim a"),
        (b' {"alloc":[{"slot":"a"}]}', "alloc a"),
        (b'{"alloc":[{"slot":"Z\\u00fcrich"}]}', "alloc Z\u00fcrich"),
        (b'{"alloc":[{"slot":"a"},7],"discard":9,"nothing":[{"slot":"b"}]}', "alloc a"),
        (b'{"alloc":[{"slot":"a"}],"alloc":[{"slot":"b"}]}', "alloc b"),
        (b'{"alloc":[{"slot":12}]}', "alloc 12"),
    ],
)
def test_the_journal_has_what_a_bulk_brought(site, body, received):
    site.post("bulk", body)
    journal = site.fake.inspector.journal("Physics").items
    assert ", ".join(f"{command.kind} {command.arguments['slot']}" for command in journal) == received
    for command in journal:
        slot = str(command.arguments["slot"])
        assert command in site.fake.inspector.slot("Physics", slot).history
    if "alloc a, alloc a" in received:
        assert [command.refusal for command in journal] == [None, "slot 'a' was already allocated", None]


def test_a_query_or_a_text_that_looks_like_a_document_is_read_as_what_it_is(site):
    query = '{"alloc":[]}=7&alloc=' + quote('[{"slot":"a"}]')
    status, reply = answer(site.get("bulk", query))
    assert (status, reply["errors"][0]["message"]) == (200, "unknown class '{\"alloc\":[]}'")
    assert site.post("bulk.text", b'{"alloc":[]}=1,alloc=x')[0] == 200
    assert [command.kind for command in site.fake.inspector.journal("Physics").items] == ["alloc"]


def test_bulk_by_get_and_as_text(site):
    query = f"alloc={quote(json.dumps([{'slot': 'a'}]))}&claim={quote(json.dumps([{'slot': 'a', 'machine': 'm'}]))}"
    assert answer(site.get("bulk", query)) == (200, OK)
    assert site.slots()["a"].state == "claimed"
    assert site.get("bulk", "alloc=no")[0] == 400
    status, body = site.get("bulk.text", query)
    assert status == 200
    result, errors = body.decode().splitlines()
    assert result == "result: ok"
    assert len(json.loads(errors.removeprefix("errors: "))) == 2


# HTTP itself


def signed_post(site, body, *, version="1.1", extra="", length=True):
    head = f"POST /api/batch/alloc HTTP/{version}\r\nHost: x\r\nAuthorization: {site.sign(body)}\r\n{extra}"
    return (head + (f"Content-Length: {len(body)}\r\n" if length else "") + "\r\n").encode()


def test_connections_are_kept(site):
    site.request("GET", "/api/heartbeat")
    sock = site.connection.sock
    for slot in "abc":
        site.post("alloc", {"slot": slot})
        site.post("alloc", {"slot": slot})
        site.request("GET", "/nothing")
    assert site.connection.sock is sock


def test_requests_in_one_write_are_answered_in_order(site):
    bodies = [json.dumps({"slot": slot}).encode() for slot in "aab"]
    last = signed_post(site, bodies[2], extra="Connection: close\r\n") + bodies[2]
    replies = site.raw(b"".join(signed_post(site, body) + body for body in bodies[:2]) + last)
    assert [reply[:3] for reply in replies.split(b"HTTP/1.1 ")[1:]] == [b"200", b"500", b"200"]
    assert list(site.slots()) == ["a", "b"]


def test_a_request_in_pieces(site):
    body = b'{"slot":"s"}'
    request = signed_post(site, body, extra="Connection: close\r\n") + body
    with socket.create_connection(site.address, timeout=280) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request:
            sock.sendall(bytes([byte]))
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")


def test_expect_100_continue(site):
    body = b'{"slot":"s"}'
    with socket.create_connection(site.address, timeout=280) as sock:
        sock.sendall(signed_post(site, body, extra="Expect: 100-continue\r\n"))
        assert sock.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_chunked_body(site):
    body = b'{"slot":"s", "credits": 5}'
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (body[:3], body[3:20], body[20:]))
    request = signed_post(site, body, extra="Transfer-Encoding: chunked\r\nConnection: close\r\n", length=False)
    assert site.raw(request + chunks + b"0\r\n\r\n").startswith(b"HTTP/1.1 200")
    assert site.slots()["s"].credits == 5


def test_http_1_0_ends_with_the_reply(site):
    body = b'{"slot":"s"}'
    reply = site.raw(signed_post(site, body, version="1.0") + body)
    assert reply.partition(b" ")[2].startswith(b"200")
    assert reply.endswith(b'{"result": "ok"}')


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit(limited_site, chunked):
    site = limited_site(body_bytes=1_000)
    good = b'{"slot":"s"}'.ljust(1_000)
    assert answer(site.post("alloc", good)) == (200, OK)
    body = b'{"slot":"t"}'.ljust(500_000)
    headers = {"Authorization": site.sign(body)}
    pieces = (body[start : start + 9_000] for start in range(0, len(body), 9_000)) if chunked else body
    assert answer(site.request("POST", "/api/batch/alloc", pieces, headers)) == (
        413,
        error("the body is over 1000 bytes"),
    )
    assert list(site.slots()) == ["s"]
    assert site.request("GET", "/api/heartbeat") == (200, b"OK")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET http:// HTTP/1.1\r\n\r\n",
        b"POST /api/batch/alloc HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_not_http(site, request_bytes):
    assert site.raw(request_bytes).startswith(b"HTTP/1.1 400")
    assert site.request("GET", "/api/heartbeat") == (200, b"OK")


def test_clients_that_leave_in_the_middle_leave_nothing(site):
    body = b'{"slot":"s"}'
    request = signed_post(site, body) + body
    for end in (5, 60, len(request) - 1):
        with socket.create_connection(site.address) as sock:
            sock.sendall(request[:end])
    assert site.request("GET", "/api/heartbeat") == (200, b"OK")
    assert site.slots() == {}


# Fuzzing: whatever comes, the connection stays and the answer is one of the table's


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**53, 2**63, 2**64, -(10**400), "7.9", "", "1e3", "\x00", "😀", "slot"])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["slot", "credits", "min", "max", "expire", "machine", "reason", "n"]) | st.text(max_size=3)
arguments = st.dictionaries(names, values, max_size=5) | values
documents = st.dictionaries(
    st.sampled_from(["alloc", "counters", "meta", "discard", "claim", "pay"]), st.lists(arguments, max_size=3) | values
)
bodies = (
    (arguments | documents).map(lambda document: json.dumps(document).encode())
    | st.binary(max_size=40)
    | st.lists(
        st.sampled_from([b"{", b"}", b"[", b"]", b'"', b":", b",", b"NaN", b"\\ud800", b"1", b"e9", b"slot"])
    ).map(b"".join)
)


@pytest.mark.thorough
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["alloc", "counters", "meta", "discard", "claim", "bulk", "slots"]),
    suffix=st.sampled_from(["", ".json", ".text", ".jsonp"]),
    body=bodies,
)
def test_any_body_gets_an_answer(shared_site, name, suffix, body):
    status, reply = shared_site.post(f"{name}{suffix}", body)
    assert status in {200, 400, 500}
    text = reply.decode()
    if suffix == ".text":
        assert text.startswith("ERROR\n") == (status != 200)
        return
    document = json.loads(text.removeprefix("jsonp_callback(").removesuffix(");"))
    assert document["result"] == ("ok" if status == 200 else "error")
    with shared_site.fake.accounts.reading() as ledger:
        assert list(ledger.violations()) == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["GET", "POST"]),
    path=st.text("aloc./?&=%20bulkth-é{}[]", max_size=20).map(lambda tail: "/api/batch/" + quote(tail, safe="/?&=.%")),
    token=st.text("sha-256,Physic\x7fé ", max_size=20).map(lambda text: text.strip().encode()),
)
def test_any_request_gets_an_answer(shared_site, method, path, token):
    status, _ = shared_site.request(method, path, b"{}", {"Authorization": token})
    assert status in {400, 401, 404, 500}


def test_what_is_refused_leaves_nothing_to_the_garbage_collector(site, left_to_the_collector):
    with left_to_the_collector() as left:
        statuses = [
            site.post("alloc", {"slot": "s"}, secret="wrong")[0],
            site.post("alloc", b"no JSON")[0],
            site.post("claim", {"slot": "never"})[0],
            site.post("bulk", {"claim": [{"slot": "never"}]})[0],
            site.get("alloc", "slot=s", secret="wrong")[0],
            site.post("nothing", {})[0],
        ]
    assert statuses == [401, 400, 500, 200, 401, 404]
    assert not [thing for thing in left if isinstance(thing, Failure | Request)]

"""Machines given to users and taken back, over the HTTP API."""

import json

import pytest

CLAIM = {"vmid": "m", "webid": "u"}
OK = (200, {"result": "ok"})


def answer(reply):
    status, body = reply
    return status, json.loads(body)


def send(site, name, arguments, **signing):
    body = json.dumps(arguments).encode()
    return answer(site.request("POST", f"/api/lib/{name}", body, {"Authorization": site.sign(body, **signing)}))


def error(message):
    return 500, {"result": "error", "message": message}


def owners(site):
    with site.fake.accounts.reading() as ledger:
        return dict(ledger.owners)


def test_what_waited_on_a_machine_goes_to_its_user(site):
    site.post("alloc", {"slot": "a", "credits": 5})
    site.post("claim", {"slot": "a", "machine": "m"})
    assert send(site, "claim", CLAIM) == OK
    with site.fake.accounts.reading() as ledger:
        assert ledger.project("Physics").users["u"].credits == 5
    assert send(site, "claim", CLAIM) == OK
    assert send(site, "claim", {"vmid": "m", "webid": "v"}) == error(
        "machine 'm' is linked to user 'u'; release it first"
    )
    assert send(site, "release", {"vmid": "m"}) == OK
    assert send(site, "claim", {"vmid": "m", "webid": "v"}) == OK
    with site.fake.accounts.reading() as ledger:
        assert ledger.project("Physics").users["u"].credits == 5
        assert list(ledger.violations()) == []


def test_a_release_may_name_the_user(site):
    send(site, "claim", {"vmid": 7, "webid": 8})
    assert owners(site) == {"7": "8"}
    assert send(site, "release", {"vmid": "7", "webid": "u"}) == error("machine '7' is linked to user '8', not to 'u'")
    assert send(site, "release", {"vmid": "7", "webid": "8"}) == OK
    assert send(site, "release", {"vmid": "7", "webid": "8"}) == error("machine '7' is linked to no user")


def test_what_was_asked_is_in_the_journal(site):
    send(site, "claim", CLAIM)
    send(site, "release", {"vmid": "m", "webid": "v"})
    send(site, "claim", {"vmid": "m"})
    send(site, "claim", {"vmid": ["m"], "webid": "u"})
    assert site.fake.inspector.totals().refused == 3
    assert [entry[1:] for entry in site.fake.accounts.journal.read("Physics")] == [
        ("lib/claim", CLAIM, None),
        ("lib/release", {"vmid": "m", "webid": "v"}, "machine 'm' is linked to user 'u', not to 'v'"),
        ("lib/claim", {"vmid": "m"}, "missing argument 'webid'"),
        ("lib/claim", {"vmid": ["m"], "webid": "u"}, "vmid must be text, not a list"),
    ]


def test_in_every_format(site):
    query = "vmid=m&webid=u"
    for name in ("claim", "release"):
        signed = f"{query}&auth={site.sign(query.encode())}"
        assert answer(site.request("GET", f"/api/lib/{name}.json?{signed}")) == OK
    body = b"vmid=m,webid=u"
    for name in ("claim", "release"):
        reply = site.request("POST", f"/api/lib/{name}.text", body, {"Authorization": site.sign(body)})
        assert reply == (200, b"result: ok\n")
    query = "vmid=m&webid=u&callback=got"
    for name in ("claim", "release"):
        signed = f"{query}&auth={site.sign(query.encode())}"
        assert site.request("GET", f"/api/lib/{name}.jsonp?{signed}") == (200, b'got({"result": "ok"});')


def test_a_request_that_is_not_signed_changes_nothing(site):
    assert site.request("POST", "/api/lib/claim", json.dumps(CLAIM).encode())[0] == 400
    assert send(site, "claim", CLAIM, secret="wrong")[0] == 401
    assert site.request("GET", "/api/lib/claim?vmid=m&webid=u")[0] == 400
    assert owners(site) == {}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("claim", {"vmid": "m"}, "missing argument 'webid'"),
        ("claim", {"vmid": "", "webid": "u"}, "missing argument 'vmid'"),
        ("claim", {"vmid": "m", "webid": ["u"]}, "webid must be text, not a list"),
        ("claim", {"vmid": True, "webid": "u"}, "vmid must be text, not True"),
        ("release", {}, "missing argument 'vmid'"),
        ("claim", CLAIM | {"other": {}}, "other must be text, not an object"),
    ],
)
def test_arguments_that_do_not_fit(site, name, arguments, message):
    assert send(site, name, arguments) == error(message)
    assert owners(site) == {}


def test_what_else_is_there_is_not_there(site):
    for name in ("session", "", "bulk", "claim/m", "lib/claim"):
        assert send(site, name, CLAIM)[0] == 404
    body = json.dumps(CLAIM).encode()
    headers = {"Authorization": site.sign(body)}
    assert site.request("POST", "/api/batch/lib/claim", body, headers)[0] == 404
    assert site.request("POST", "/api/batch/release", body, headers)[0] == 404

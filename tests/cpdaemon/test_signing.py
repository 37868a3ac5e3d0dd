"""Tokens, bodies, batches, and the reading of replies."""

import json
from itertools import combinations_with_replacement, pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpdaemon import BadReply, EndpointError, Refused
from cpdaemon.commands import KINDS
from cpdaemon.signing import bulk_batches, bulk_body, bulk_errors, read_reply, single_body, token

UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SHA_512 = (
    "d25354ae78810bb76d12600f666341b2a917560e80f2f5291c6e53dd1cc7cdd2"
    "7b4fcf2b53e6ae041d785367bcedca1803c06d3fa365acfcb524ffb5dcc998d5"
)


@pytest.mark.parametrize(
    ("algorithm", "digest"),
    [  # printf '{"slot":"x","credits":5}s3cret' | sha1sum, sha256sum, sha512sum
        ("sha-1", "8dec9b75e3c91324055ffa68bd19be32de1fce4d"),
        ("sha-256", "216b9d59eb7429b05cba7c758d57eeb9d15a31a4bcd2a9efe60b0ed46bd54c25"),
        (
            "sha-512",
            SHA_512,
        ),
    ],
)
def test_golden_tokens(algorithm, digest):
    body = single_body({"slot": "x", "credits": 5})
    assert body == b'{"slot":"x","credits":5}'
    assert token(("proj", "s3cret"), body, algorithm) == f"{algorithm},proj,{digest}"


@pytest.mark.parametrize(
    "credentials",
    [
        None,
        "ab",
        ("p",),
        ("p", 5),
        (5, "hush"),
        ("", "hush"),
        ("p", ""),
        ("a,b", "hush"),
        ("a\r\nb", "hush"),
        ("é", "hush"),
        (" p", "hush"),
        ("p", "hush\udc80"),
        ("p", b"hush"),
    ],
)
def test_bad_credentials_are_refused_and_not_quoted(credentials):
    with pytest.raises(EndpointError) as caught:
        token(credentials, b"")
    assert "hush" not in str(caught.value)


def test_unknown_algorithms_are_refused():
    with pytest.raises(EndpointError, match="unknown algorithm 'md5'"):
        token(("p", "s"), b"", "md5")


def test_bulk_bodies_hold_classes_in_the_order_of_application():
    calls = [("claim", {"slot": "a"}), ("alloc", {"slot": "é"}), ("claim", {"slot": "b"})]
    body = bulk_body(calls)
    assert body == b'{"alloc":[{"slot":"\\u00e9"}],"claim":[{"slot":"a"},{"slot":"b"}]}'


calls = st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from("abc")), max_size=40).map(
    lambda pairs: [(kind, {"slot": slot, "n": str(n)}) for n, (kind, slot) in enumerate(pairs)]
)


@UNTIMED
@given(calls, st.integers(1, 8))
def test_batches_keep_the_order_of_every_slot(calls, max_commands):
    batches = list(bulk_batches(calls, max_commands))
    assert [call for batch in batches for call in batch] == calls
    assert all(1 <= len(batch) <= max_commands for batch in batches)
    applied = []
    for batch in batches:
        classes = json.loads(bulk_body(batch))
        applied += [(kind, arguments) for kind in KINDS for arguments in classes.get(kind, [])]

    def of(slot, kinds, calls):
        return [arguments["n"] for kind, arguments in calls if arguments["slot"] == slot and kind in kinds]

    for kinds in combinations_with_replacement(KINDS, 2):
        if kinds != ("counters", "meta"):  # these two do not depend on one another
            assert all(of(slot, kinds, applied) == of(slot, kinds, calls) for slot in "abc")


@UNTIMED
@given(calls)
def test_batches_are_cut_only_where_they_must_be(calls):
    batches = list(bulk_batches(calls))
    for batch, following in pairwise(batches):
        kind, arguments = following[0]
        before = [k for k, a in batch if a["slot"] == arguments["slot"]]
        assert any(KINDS.index(k) > KINDS.index(kind) for k in before)
        assert not (kind == "counters" and set(before) <= {"alloc", "counters", "meta"})


@pytest.mark.parametrize(
    ("status", "body", "error", "said"),
    [
        (500, b'{"result":"error","message":"Unknown slot"}', Refused, "status 500: Unknown slot"),
        (401, b'{"result":"error","message":"no"}', Refused, "status 401: no"),
        (400, b'{"result":"error"}', Refused, "status 400"),
        (404, b"<h1>Not here</h1>", Refused, "status 404: <h1>Not here"),
        (301, b"", Refused, "status 301"),
        (200, b'{"result":"error","message":"no"}', Refused, "no"),
        (200, b"hello", BadReply, "hello"),
        (200, b"\xff", BadReply, "200"),
        (200, b"[" * 100_000, BadReply, "200"),
        (200, b"[]", BadReply, "200"),
        (200, b'{"result":"maybe"}', BadReply, "maybe"),
        (500, b"<h1>Server Error</h1>", BadReply, "Server Error"),
        (502, b'{"result":"error","message":"no"}', BadReply, "502"),
        (503, b"", BadReply, "503"),
        (204, b"", BadReply, "204"),
    ],
)
def test_replies_that_do_not_accept(status, body, error, said):
    with pytest.raises(error, match=said) as caught:
        read_reply(status, body)
    assert caught.value.definite == (error is Refused)
    assert len(str(caught.value)) < 500


def test_a_reply_that_accepts():
    assert read_reply(200, b'{"result":"ok","x":1}') == {"result": "ok", "x": 1}


def outcomes(errors):
    calls = [("claim", {"slot": "a"}), ("alloc", {"slot": "b"}), ("claim", {"slot": "c"})]
    found = bulk_errors(calls, {"result": "ok", "errors": errors})
    return ["ok" if error is None else "refused" if error.definite else "unknown" for error in found], found


def test_no_errors_is_all_accepted():
    assert bulk_errors([("alloc", {"slot": "a"})], {"result": "ok"}) == [None]
    assert outcomes([])[0] == ["ok"] * 3


def test_errors_with_class_and_index_are_exact():
    results, errors = outcomes([{"message": "late", "code": 500, "class": "claim", "index": 1}])
    assert results == ["ok", "ok", "refused"]
    assert str(errors[2]) == "late"
    assert errors[2].status == 500


def test_errors_without_place_leave_all_in_doubt_unless_as_many_as_commands():
    results, errors = outcomes([{"message": "late", "code": 500}])
    assert results == ["unknown"] * 3
    assert "1 of 3" in str(errors[0])
    assert "late" in str(errors[0])
    assert outcomes([{"message": "late", "code": 500}] * 3)[0] == ["refused"] * 3
    assert outcomes([{"message": "late"}] * 4)[0] == ["unknown"] * 3


def test_mixed_errors_leave_only_the_rest_in_doubt():
    exact = {"message": "no", "class": "alloc", "index": 0}
    assert outcomes([exact, {"message": "?"}])[0] == ["unknown", "refused", "unknown"]
    assert outcomes([exact, {"message": "?"}, {"message": "?"}])[0] == ["refused"] * 3


@pytest.mark.parametrize(
    "place",
    [
        {"class": [], "index": 0},
        {"class": "claim", "index": 2},
        {"class": "claim", "index": -1},
        {"class": "claim", "index": True},
        {"class": "claim", "index": 1.0},
        {"class": "claim", "index": "1"},
        {"class": "claim", "index": 10**30},
        {"class": "alloc", "index": 1},
        {"class": "nothing", "index": 0},
        {"class": "claim"},
        {"index": 0},
    ],
)
def test_an_error_that_names_no_command_makes_the_reply_malformed(place):
    assert outcomes([{"message": "no", **place}])[0] == ["unknown"] * 3
    assert outcomes([{"message": "no", **place}] * 3)[0] == ["unknown"] * 3
    exact = {"message": "no", "class": "alloc", "index": 0}
    results, errors = outcomes([exact, {"message": "no", **place}])
    assert results == ["unknown"] * 3
    assert errors[0].unnamed == 0


def test_a_command_that_is_named_twice_makes_the_reply_malformed():
    exact = {"message": "no", "class": "alloc", "index": 0}
    assert outcomes([exact, exact])[0] == ["unknown"] * 3


@pytest.mark.parametrize("errors", [None, "no", [5], {"message": "no"}])
def test_unreadable_lists_of_errors_leave_all_in_doubt(errors):
    assert outcomes(errors)[0] == ["unknown"] * 3


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
SCALARS |= st.sampled_from(["alloc", "claim", 0, 1, -1, 10**400, "\ud800", "\0"])
VALUES = st.recursive(
    SCALARS, lambda each: st.lists(each, max_size=4) | st.dictionaries(st.text(max_size=5), each, max_size=4)
)
ERRORS = st.dictionaries(st.sampled_from(["class", "index", "message", "code", "position"]), VALUES)


def is_plausible(errors):
    """Whether each error names a command of its own, of those in `outcomes`, or none."""
    there = [("claim", 0), ("alloc", 0), ("claim", 1)]
    for error in errors if isinstance(errors, list) else [None]:
        if not isinstance(error, dict):
            return False
        place = error.get("class"), error.get("index")
        if place == (None, None):
            continue
        if place not in there or type(place[1]) is not int:
            return False
        there.remove(place)
    return True


@pytest.mark.thorough
@UNTIMED
@given(VALUES | st.lists(ERRORS | VALUES, max_size=4))
def test_any_list_of_errors_can_be_read(errors):
    results, found = outcomes(errors)
    if not is_plausible(errors):
        assert results == ["unknown"] * 3
    for error in found:
        assert error is None or str(error).encode()  # it can be written down


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("depth", [500, 100_000])
def test_what_is_nested_deeply_can_be_told(depth):
    assert outcomes(nested(depth))[0] == ["unknown"] * 3
    assert outcomes([{"message": nested(depth), "class": "alloc", "index": 0}])[0] == ["ok", "refused", "ok"]


def said_of(status, body):
    """What a reply says, or the error that it is, as text."""
    try:
        return read_reply(status, body)["result"]
    except (Refused, BadReply) as error:
        return str(error)


@UNTIMED
@given(st.integers(0, 999) | st.sampled_from([200, 500]), st.binary() | VALUES.map(json.dumps).map(str.encode))
def test_any_reply_is_read_or_an_error_that_can_be_told(status, body):
    assert said_of(status, body).encode()


@UNTIMED
@given(st.sampled_from([200, 400, 500, 503]), st.sampled_from(["ok", "error", None, 5, []]), VALUES)
def test_any_document_is_read_or_an_error_that_can_be_told(status, result, message):
    assert said_of(status, json.dumps({"result": result, "message": message}).encode()).encode()

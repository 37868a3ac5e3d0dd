"""Authentication: what a signature covers, and what is answered to a bad one."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from cpdaemon.signing import ALGORITHMS, token
from cpsim.conformance.clause import Known, Level, Need, clause
from cpsim.conformance.examiner import compact, form

if TYPE_CHECKING:
    from cpsim.conformance.examiner import Examiner
    from cpsim.conformance.exchange import Reply


def rejected(cp: Examiner, reply: Reply, status: int) -> None:
    """A request has to be turned away with a status, and an error that says so."""
    cp.check("status", status, reply.status)
    cp.check("result", "error", reply.document.get("result"))


@clause("AUTH-1", "4", Need.SERVER)
def test_algorithms(cp: Examiner) -> None:
    """A request may be signed with sha-1, sha-256 or sha-512."""
    for algorithm in ALGORITHMS:
        body = compact({"slot": cp.new()})
        reply = cp.request("/batch/alloc", body, authorization=token(cp.project, body, algorithm))
        cp.check(f"answer to {algorithm}", "accepted", reply.outcome)


@clause("AUTH-2", "4", Need.SERVER)
def test_algorithms_of_a_get(cp: Examiner) -> None:
    """A GET may be signed with sha-1, sha-256 or sha-512."""
    for algorithm in ALGORITHMS:
        query = form({"slot": cp.new()})
        signed = token(cp.project, query, algorithm)
        reply = cp.request("/batch/alloc", method="GET", query=query, authorization=signed)
        cp.check(f"answer to {algorithm}", "accepted", reply.outcome)


@clause("AUTH-3", "4", Need.SERVER)
def test_case(cp: Examiner) -> None:
    """Case makes no difference in the header."""
    for change in (str.upper, str.lower, str.title):
        body = compact({"slot": cp.new()})
        reply = cp.request("/batch/alloc", body, authorization=change(token(cp.project, body)))
        cp.check("answer", "accepted", reply.outcome)


@clause("AUTH-4", "4", Need.SERVER)
def test_no_header(cp: Examiner) -> None:
    """A POST without an Authorization header is 400."""
    rejected(cp, cp.request("/batch/alloc", compact({"slot": cp.new()}), authorization=None), 400)


@clause("AUTH-5", "4", Need.SERVER)
def test_no_auth(cp: Examiner) -> None:
    """A GET without auth= is 400."""
    query = form({"slot": cp.new()})
    rejected(cp, cp.request("/batch/alloc", method="GET", query=query, authorization=None), 400)


@clause("AUTH-6", "4", Need.SERVER)
def test_auth_not_last(cp: Examiner) -> None:
    """A GET whose auth= is not last is 400."""
    query = form({"slot": cp.new()})
    sent = query + b"&auth=" + token(cp.project, query).encode() + b"&credits=5"
    rejected(cp, cp.request("/batch/alloc", method="GET", query=sent, authorization=None), 400)


@clause("AUTH-7", "4", Need.SERVER)
def test_not_three_parts(cp: Examiner) -> None:
    """A token that has not three parts is 400."""
    body = compact({"slot": cp.new()})
    good = token(cp.project, body)
    for bad in ("nonsense", good.rpartition(",")[0], f"{good},more"):
        rejected(cp, cp.request("/batch/alloc", body, authorization=bad), 400)


@clause("AUTH-8", "4", Need.SERVER)
def test_unknown_algorithm(cp: Examiner) -> None:
    """An unknown algorithm is 400."""
    body = compact({"slot": cp.new()})
    project, secret = cp.project
    for name in ("md5", "sha-224"):
        digest = hashlib.new(name.replace("-", ""), body + secret.encode(), usedforsecurity=False).hexdigest()
        rejected(cp, cp.request("/batch/alloc", body, authorization=f"{name},{project},{digest}"), 400)


@clause("AUTH-9", "4", Need.SERVER)
def test_not_json(cp: Examiner) -> None:
    """A signed body that is not JSON is 400."""
    rejected(cp, cp.request("/batch/alloc", b"slot=x"), 400)
    rejected(cp, cp.request("/batch/alloc", b'{"slot": '), 400)
    rejected(cp, cp.request("/batch/bulk", b'{"alloc": [}'), 400)


@clause("AUTH-10", "4", Need.SERVER)
def test_unknown_project(cp: Examiner) -> None:
    """An unknown project is 401."""
    body = compact({"slot": cp.new()})
    stranger = (cp.new("project"), cp.project[1])
    rejected(cp, cp.request("/batch/alloc", body, authorization=token(stranger, body)), 401)


@clause("AUTH-11", "4", Need.SERVER)
def test_wrong_digest(cp: Examiner) -> None:
    """A digest that does not match is 401: of another secret, or of another body, or cut."""
    project, secret = cp.project
    body = compact({"slot": cp.new()})
    good = token(cp.project, body)
    for bad in (
        token((project, secret + "x"), body),
        token(cp.project, body + b" "),
        token(cp.project, b""),
        good[:-1],
        good[:-1] + ("0" if good[-1] != "0" else "1"),
    ):
        rejected(cp, cp.request("/batch/alloc", body, authorization=bad), 401)


@clause("AUTH-12", "4", Need.SERVER)
def test_wrong_digest_of_a_get(cp: Examiner) -> None:
    """So is that of a GET whose query is another than the one signed."""
    slot = cp.new()
    signed = token(cp.project, form({"slot": slot}))
    reply = cp.request("/batch/alloc", method="GET", query=form({"slot": slot, "credits": 5}), authorization=signed)
    rejected(cp, reply, 401)


@clause("AUTH-13", "4", Need.SERVER)
def test_turned_away_is_not_applied(cp: Examiner) -> None:
    """What is turned away has no effect."""
    slot = cp.new()
    body = compact({"slot": slot})
    cp.request("/batch/alloc", body, authorization=None)
    cp.request("/batch/alloc", body, authorization=token(cp.project, b"something else"))
    cp.request("/batch/bulk", compact({"alloc": [{"slot": slot}]}), authorization=None)
    cp.see_unlisted(slot)


@clause("AUTH-14", "4", Need.SERVER, quirks=["ascii-only"])
def test_exact_bytes(cp: Examiner) -> None:
    """The digest is of the body's exact bytes: white space, the order of names, escapes, letters of any script."""
    for template in (
        '{"slot": "%s"}',
        ' {\n\t"slot" :"%s" } \n',
        '{"max":9,"slot":"%s","min":1}',
        '{"slot":"%s-\\u00e9\\/"}',
        '{"slot":"%s-é-名"}',
    ):
        reply = cp.request("/batch/alloc", (template % cp.new()).encode())
        known = [] if template.isascii() else [Known("ascii-only", "refused")]
        cp.check(f"answer to {template}", "accepted", reply.outcome, *known)


@clause("AUTH-15", "4", Need.SERVER)
def test_no_other_bytes(cp: Examiner) -> None:
    """A digest of the same document in other bytes is 401."""
    slot = cp.new()
    signed = token(cp.project, compact({"slot": slot}))
    rejected(cp, cp.request("/batch/alloc", f'{{"slot": "{slot}"}}'.encode(), authorization=signed), 401)


@clause("AUTH-16", "4", Need.SERVER)
def test_exact_query(cp: Examiner) -> None:
    """That of a GET is of the query as it was sent, with whatever is percent-encoded in it."""
    first, second = cp.new(), cp.new()
    plain, encoded = f"slot={first}/x".encode(), f"slot={second}%2Fx".encode()
    for query in (plain, encoded):
        reply = cp.request("/batch/alloc", method="GET", query=query)
        cp.check("answer", "accepted", reply.outcome)
    cp.check("slots", sorted([f"{first}/x", f"{second}/x"]), sorted(cp.outstanding()))


@clause("AUTH-17", "4", Need.SERVER, level=Level.SHOULD)
def test_no_nonce(cp: Examiner) -> None:
    """A request can be signed beforehand, and sent again: there is no time and no nonce."""
    signed = token(cp.project, b"")
    for _ in range(2):
        cp.check("status", 200, cp.request("/batch/slots", authorization=signed).status)

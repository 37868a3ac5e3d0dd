"""Authentication: what a signature covers, and what is answered to a bad one."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

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


def forgeries(project: tuple[str, str], body: bytes) -> dict[str, str]:
    """Tokens of somebody without the secret, or with a wrong idea of the digest, by what their digest is."""
    name, secret = project
    key = secret.encode()

    def digest(data: bytes, algorithm: str = "sha256") -> str:
        return hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()

    good = digest(body + key)
    md5 = digest(body + key, "md5")
    digests = {
        "empty": "",
        "of the body alone": digest(body),
        "of the secret alone": digest(key),
        "of nothing": digest(b""),
        "of the secret before the body": digest(key + body),
        "of the body, a line's end, and the secret": digest(body + b"\n" + key),
        "of the body, the secret, and a line's end": digest(body + key + b"\n"),
        "of the body and the project": digest(body + name.encode()),
        "of the secret in capitals": digest(body + key.swapcase() + b"."),
        "of the secret cut": digest(body + key[:-1]),
        "of the body's first half": digest(body[: len(body) // 2] + key),
        "an HMAC": hmac.new(key, body, "sha256").hexdigest(),
        "the secret itself": secret,
        "sha-1's": digest(body + key, "sha1"),
        "sha-1's padded": digest(body + key, "sha1").ljust(64, "0"),
        "sha-512's": digest(body + key, "sha512"),
        "a part of sha-512's": digest(body + key, "sha512")[:64],
        "md5's": md5,
        "cut to one digit": good[:1],
        "cut to eight digits": good[:8],
        "cut to a half": good[:32],
        "cut by one digit": good[:-1],
        "cut before": good[1:],
        "padded": f"{good}0",
        "padded before": f"0{good}",
        "there twice": good + good,
        "changed in the last digit": f"{good[:-1]}{_other(good[-1])}",
        "changed in the first digit": f"{_other(good[0])}{good[1:]}",
        "changed in the middle": f"{good[:31]}{_other(good[31])}{good[32:]}",
        "changed after eight digits": f"{good[:8]}{'0' * 56}",
        "sorted": "".join(sorted(good)),
        "reversed": good[::-1],
        "zeros": "0" * 64,
        "a word": "none",
        "a star": "*",
    }
    # a project whose secret is its name signs rightly with its name
    forged = {what: f"sha-256,{name},{made}" for what, made in digests.items() if made != good}
    forged["sha-256's, called sha-1's"] = f"sha-1,{name},{good}"
    forged["md5's, called sha-1's"] = f"sha-1,{name},{md5}"
    return forged


def _other(digit: str) -> str:
    return "1" if digit == "0" else "0"


@clause("AUTH-18", "4", Need.SERVER)
def test_forged(cp: Examiner) -> None:
    """A digest that is forged, of whatever, cut, padded, empty or changed in a digit, is 401."""
    body = compact({"slot": cp.new()})
    for what, forged in forgeries(cp.project, body).items():
        reply = cp.request("/batch/alloc", body, authorization=forged)
        turned_away = reply.status == 400 and what == "empty"  # two parts and nothing are no three parts, to some
        cp.check(f"status, with a digest that is {what}", 401, 401 if turned_away else reply.status)


@clause("AUTH-19", "4", Need.SERVER)
def test_forged_get(cp: Examiner) -> None:
    """So is that of a GET."""
    query = form({"slot": cp.new()})
    forged = forgeries(cp.project, query)
    for what, signed in forged.items():
        if any(word in what for word in ("empty", "padded", "alone", "before", "cut to", "star", "sha-")):
            reply = cp.request("/batch/alloc", method="GET", query=query, authorization=signed)
            got = 401 if reply.status == 400 and what == "empty" else reply.status
            cp.check(f"status, with a digest that is {what}", 401, got)


PATHS: Final = ("alloc", "counters", "meta", "discard", "claim", "bulk", "slots")


@clause("AUTH-20", "4", Need.SERVER)
def test_every_path(cp: Examiner) -> None:
    """Every path needs a signature, in every format: without one it is 400, with a wrong one 401."""
    body = compact({"slot": cp.new()})
    for path in PATHS:
        sent = b"" if path == "slots" else body
        rejected(cp, cp.request(f"/batch/{path}", sent, authorization=None), 400)
        rejected(cp, cp.request(f"/batch/{path}", sent, authorization=token(cp.project, sent + b" ")), 401)
        reply = cp.request(f"/batch/{path}.json", sent, authorization=token(cp.project, sent + b" "))
        rejected(cp, reply, 401)
        if path != "bulk":
            query = form({"slot": cp.new()})
            reply = cp.request(f"/batch/{path}", method="GET", query=query, authorization=token(cp.project, b"x"))
            cp.check("status", 401, reply.status)
    for path in ("alloc.text", "slots.text"):
        cp.check("status", 400, cp.request(f"/batch/{path}", b"slot=x", authorization=None).status)
        reply = cp.request(f"/batch/{path}", b"slot=x", authorization=token(cp.project, b""))
        cp.check("status", 401, reply.status)
        cp.check("first line", "ERROR", (reply.text.splitlines() or [""])[0])
    wrong = token(cp.project, b"x")
    reply = cp.request("/batch/slots.jsonp", method="GET", query=b"callback=f", authorization=wrong)
    cp.check("status", 401, reply.status)


@clause("AUTH-21", "4", Need.SERVER)
def test_like_projects(cp: Examiner) -> None:
    """A project whose id only looks like one that is known is 401, whatever signs for it."""
    body = compact({"slot": cp.new()})
    name, secret = cp.project
    for stranger in (f"{name}x", f"x{name}", f"{name} x", f"{name}%", cp.new("project")):
        for key in (secret, "", stranger, "secret"):
            digest = hashlib.sha256(body + key.encode()).hexdigest()
            reply = cp.request("/batch/alloc", body, authorization=f"sha-256,{stranger},{digest}")
            cp.check(f"status of project {stranger}", 401, reply.status)
    for key in ("", secret):
        digest = hashlib.sha256(body + key.encode()).hexdigest()
        reply = cp.request("/batch/alloc", body, authorization=f"sha-256,,{digest}")
        cp.check("a project without a name is turned away", expected=True, got=reply.status in {400, 401})


@clause("AUTH-22", "4", Need.SERVER)
def test_changed_after_signing(cp: Examiner) -> None:
    """A body, or a query, that is changed in any place after it was signed is 401."""
    body = compact({"slot": cp.new(), "credits": 5, "min": 1, "max": 9})
    good = token(cp.project, body)
    longer = body[:-1] + b',"expire":60}'
    for place in (2, len(body) // 2, len(body) - 2):
        changed = body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]
        rejected(cp, cp.request("/batch/alloc", changed, authorization=good), 401)
    for changed in (longer, body + b"\n", b" " + body, body.upper(), b"{}", b""):
        rejected(cp, cp.request("/batch/alloc", changed, authorization=good), 401)
    query = form({"slot": cp.new(), "credits": 5})
    signed = token(cp.project, query)
    for changed in (query[:-1] + b"6", query.upper(), query.replace(b"=", b"=x", 1), query + b"&"):
        reply = cp.request("/batch/alloc", method="GET", query=changed, authorization=signed)
        cp.check("status", 401, reply.status)

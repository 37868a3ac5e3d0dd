"""Connections: one that is kept carries several requests, and each reply is that of its own request.

A server may close a connection after any reply; what it did not answer then says nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpdaemon.signing import token
from cpsim.conformance.clause import Known, Level, Need, clause
from cpsim.conformance.examiner import compact

if TYPE_CHECKING:
    from cpsim.conformance.examiner import Examiner
    from cpsim.conformance.exchange import HttpRequest, Reply


def see_outcome(cp: Examiner, what: str, expected: str, reply: Reply | None) -> None:
    """A reply has to be that of a command; a connection that the server has closed says nothing."""
    if reply is not None:
        cp.check(f"answer to {what}", expected, reply.outcome)


def see_status(cp: Examiner, what: str, expected: int, reply: Reply | None) -> None:
    """A reply has to have a status."""
    if reply is not None:
        cp.check(f"status of {what}", expected, reply.status)


def heartbeat(cp: Examiner) -> HttpRequest:
    """A request that is not signed, and whose reply is like no other."""
    return cp.signed("/heartbeat", method="GET", authorization=None)


@clause("CONN-1", "4", Need.SERVER)
def test_kept(cp: Examiner) -> None:
    """On a connection that is kept, each request gets its own reply, signed or not, accepted or refused."""
    slot = cp.new()
    body = compact({"slot": cp.new()})
    with cp.kept() as connection:
        see_outcome(cp, "alloc", "accepted", connection.ask(cp.signed_command("alloc", slot)))
        see_outcome(cp, "alloc of a used id", "refused", connection.ask(cp.signed_command("alloc", slot)))
        see_status(cp, "a heartbeat", 200, connection.ask(heartbeat(cp)))
        see_status(cp, "an unsigned alloc", 400, connection.ask(cp.signed("/batch/alloc", body, authorization=None)))
        wrong = token(cp.project, b"something else")
        see_status(cp, "a forged alloc", 401, connection.ask(cp.signed("/batch/alloc", body, authorization=wrong)))
        see_outcome(cp, "a refused discard", "refused", connection.ask(cp.signed_command("discard", cp.new())))
        listing = connection.ask(cp.signed("/batch/slots"))
        if listing is not None:
            cp.check(f"{slot} is listed", expected=True, got=slot in listing.document.get("data", [slot]))
        discarded = connection.ask(cp.signed_command("discard", slot))
        see_outcome(cp, "discard", "accepted", discarded)
        see_outcome(cp, "alloc of a settled id", "refused", connection.ask(cp.signed_command("alloc", slot)))
    if discarded is not None:
        cp.see_unlisted(slot)


@clause("CONN-2", "4", Need.SERVER)
def test_pipelined(cp: Examiner) -> None:
    """Requests that are sent at once on one connection are answered in their order, each with its own reply."""
    slot = cp.new()
    with cp.kept() as connection:
        connection.send(
            cp.signed_command("alloc", slot),
            cp.signed_command("alloc", slot),
            cp.signed_command("discard", cp.new()),
            cp.signed_command("discard", slot),
            cp.signed_command("alloc", cp.new()),
        )
        for expected in ("accepted", "refused", "refused", "accepted", "accepted"):
            reply = connection.reply()
            if reply is None:
                return
            cp.check("answer", expected, reply.outcome)
            if not connection.is_open:
                return


@clause("CONN-3", "4", Need.SERVER)
def test_leftovers(cp: Examiner) -> None:
    """A body that a request does not need, or that is turned away, is no part of the next request."""
    slot = cp.new()
    cp.accept("alloc", slot)
    body = heartbeat(cp).encode("leftover", kept=True)  # what takes it for a request answers it
    forged = token(cp.project, b"something else")
    for request in (
        cp.signed("/heartbeat", body, authorization=None),
        cp.signed("/batch/slots", body),
        cp.signed("/batch/alloc", body, authorization=None),
        cp.signed("/batch/alloc", body, authorization=forged),
        cp.signed("/batch/alloc", body, authorization="nonsense"),
        cp.signed("/batch/bulk", body),
        cp.signed("/batch/slots.xml", body),
        cp.signed("/nothing/here", body),
        cp.signed("/batch/alloc", compact({"slot": cp.new(), "log": "x" * 2_000}), authorization=forged),
        cp.signed("/batch/slots.xml", body, authorization=None),
    ):
        with cp.kept() as connection:
            connection.ask(request)
            see_outcome(cp, f"alloc after {request.path}", "refused", connection.ask(cp.signed_command("alloc", slot)))
            reply = connection.ask(heartbeat(cp))
            if reply is not None:
                cp.check("heartbeat", "200 OK", f"{reply.status} {reply.text.strip()}")
    cp.see_listed(slot)


@clause("CONN-4", "4", Need.SERVER)
def test_pieces(cp: Examiner) -> None:
    """A request that comes in pieces is read to its end."""
    for pieces in ((1, 10), (40, 200), (60, 100, 150, 170, 190, 210, 230), (300, 310)):
        slot = cp.new()
        with cp.kept() as connection:
            connection.send(cp.signed_command("alloc", slot, credits=5, min=1, max=9), pieces=pieces)
            see_outcome(cp, "alloc", "accepted", connection.reply())
        cp.see_listed(slot)


@clause("CONN-5", "4", Need.SERVER)
def test_who_signs(cp: Examiner) -> None:
    """Each request is signed for itself, whatever was signed on its connection before."""
    slot = cp.new()
    body = compact({"slot": slot})
    stranger = token((cp.new("project"), cp.project[1]), body)
    for path, sent in (("/batch/alloc", body), ("/batch/bulk", compact({"alloc": [{"slot": slot}]}))):
        for authorization, status in ((None, 400), (stranger, 401), (token(cp.project, b""), 401)):
            with cp.kept() as connection:
                connection.ask(cp.signed("/batch/slots"))
                reply = connection.ask(cp.signed(path, sent, authorization=authorization))
                see_status(cp, f"{path} on a connection that carried a signed request", status, reply)
    cp.see_unlisted(slot)


@clause("CONN-6", "4", Need.SERVER, Need.OTHER)
def test_two_projects(cp: Examiner) -> None:
    """A connection may carry requests of two projects."""
    mine, theirs = cp.new(), cp.new()
    with cp.kept() as connection:
        see_outcome(cp, "alloc", "accepted", connection.ask(cp.signed_command("alloc", mine)))
        request = cp.signed("/batch/alloc", compact({"slot": theirs}), project=cp.other)
        reply = connection.ask(request)
        if reply is None:
            return
        see_outcome(cp, "alloc of the other", "accepted", reply)
    cp.see_unlisted(theirs)
    cp.see_listed(theirs, project=cp.other)
    cp.see_listed(mine)


@clause("CONN-7", "4", Need.SERVER, level=Level.SHOULD)
def test_names_of_headers(cp: Examiner) -> None:
    """Case makes no difference in the name of a header."""
    for name in ("authorization", "AUTHORIZATION"):
        request = cp.signed_command("alloc", cp.new())
        request.headers[name] = request.headers.pop("Authorization")
        cp.check(f"answer to {name}", "accepted", cp.ask(request).outcome)


@clause("CONN-8", "4", Need.SERVER)
def test_one_beside_another(cp: Examiner) -> None:
    """Requests that come at the same time on several connections each get their own reply."""
    for _ in range(2):
        slot, slots = cp.new(), [cp.new() for _ in range(3)]
        cp.accept("alloc", slot)
        replies = cp.ask_together(
            [
                cp.signed_command("alloc", slot),
                cp.signed_command("alloc", slots[0]),
                heartbeat(cp),
                cp.signed_command("alloc", slots[1]),
                cp.signed_command("discard", cp.new()),
                cp.signed_command("alloc", slots[2]),
                cp.signed("/batch/alloc", compact({"slot": cp.new()}), authorization=None),
                cp.signed("/batch/slots.xml"),
            ]
        )
        got = [reply.outcome if reply.status in {200, 500} else str(reply.status) for reply in replies]
        got[2] = replies[2].text.strip()
        got[7] = f"{replies[7].status} {replies[7].text.strip()}"
        expected = ["refused", "accepted", "OK", "accepted", "refused", "accepted", "400"]
        cp.check("answers", [*expected, "500 Unknown API protocol 'xml' requested"], got)
        cp.check("slots", sorted([slot, *slots]), sorted(cp.outstanding()))
        for each in (slot, *slots):
            cp.accept("discard", each)


@clause("CONN-9", "4", Need.SERVER, quirks=["discard-settled"])
def test_bulks(cp: Examiner) -> None:
    """Bulks that come one after the other on a connection are each applied, with errors of their own."""
    first, second, third = cp.new(), cp.new(), cp.new()
    with cp.kept() as connection:
        for bulk, refused in (
            ({"alloc": [first, second]}, 0),
            ({"alloc": [first, third]}, 1),
            ({"discard": [first, second, third]}, 0),
            ({"discard": [first, second]}, 2),
        ):
            body = compact({kind: [{"slot": slot} for slot in slots] for kind, slots in bulk.items()})
            reply = connection.ask(cp.signed("/batch/bulk", body))
            if reply is None:
                return
            see_outcome(cp, "the bulk", "accepted", reply)
            known = Known("discard-settled" if "discard" in bulk else "", 0)
            cp.check("how many errors", refused, len(reply.document.get("errors", [])), known)

"""Requests and frames of a shape on which the document says little, or that nobody sends on purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from cpdaemon.signing import token
from cpsim.conformance.clause import Known, Level, Need, clause
from cpsim.conformance.examiner import form

if TYPE_CHECKING:
    from cpsim.conformance.examiner import Examiner


@clause("SHAPE-1", "4", Need.SERVER, quirks=["html-errors"])
def test_an_error_is_json(cp: Examiner) -> None:
    """The reply to a refused command is JSON, whatever is wrong with the command."""
    slot = cp.new()
    cp.accept("alloc", slot)
    for kind, arguments in (("counters", {"job/events": "many"}), ("counters", {"job/events": []})):
        reply = cp.command(kind, slot, arguments)
        is_html = reply.text.lstrip().startswith("<")
        cp.check("the error is HTML", False, is_html, Known("html-errors", seen=True))  # noqa: FBT003


@clause("SHAPE-2", "4", Need.SERVER, quirks=["token-strict"], level=Level.SHOULD)
def test_an_encoded_token(cp: Examiner) -> None:
    """The token of a GET may be percent-encoded, as every value of a query may be."""
    query = form({"slot": cp.new()})
    signed = query + b"&auth=" + quote(token(cp.project, query), safe="-").encode()
    reply = cp.request("/batch/alloc", method="GET", query=signed, authorization=None)
    cp.check("status", 200, reply.status, Known("token-strict", 400))


@clause("SHAPE-3", "3", Need.DAEMON, Need.THOROUGH, quirks=["short-queue"], level=Level.SHOULD)
def test_a_queue(cp: Examiner) -> None:
    """Of sixteen clients that connect at once, none finds the queue full."""
    cp.check("some are refused", False, cp.refusals(16) > 0, Known("short-queue", seen=True))  # noqa: FBT003

"""Requests and frames of a shape on which the document says little, or that nobody sends on purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from cpdaemon.signing import token
from cpsim.conformance.clause import Known, Level, Need, clause
from cpsim.conformance.examiner import form

if TYPE_CHECKING:
    from cpsim.conformance.examiner import Examiner
    from cpsim.conformance.exchange import Reply

PASSED: Known = Known("jsonp-unfiltered", seen=True)


def form_of(reply: Reply) -> str:
    """How an error is written."""
    if reply.document.get("result") == "error":
        return "JSON"
    return "HTML" if reply.text.lstrip().startswith("<") else "neither"


@clause("SHAPE-1", "4", Need.SERVER, quirks=["bulk-shapes"], level=Level.SHOULD)
def test_a_class_that_is_no_list(cp: Examiner) -> None:
    """A class of a bulk that is no list is one error, and stops nothing."""
    slot = cp.new()
    errors = cp.bulk({"alloc": [{"slot": slot}], "claim": "abcd"})
    cp.check("how many errors", 1, len(errors), Known("bulk-shapes", 4))
    cp.see_listed(slot)


@clause("SHAPE-2", "4", Need.SERVER, quirks=["html-errors"])
def test_an_error_is_json(cp: Examiner) -> None:
    """The reply to a refused command is JSON, whatever is wrong with the command."""
    slot = cp.new()
    cp.accept("alloc", slot)
    for kind, arguments in (("counters", {"job/events": "many"}), ("counters", {"job/events": []})):
        reply = cp.command(kind, slot, arguments)
        cp.check("status", 500, reply.status)
        cp.check("the error is", "JSON", form_of(reply), Known("html-errors", "HTML"))


@clause("SHAPE-3", "4", Need.SERVER, quirks=["jsonp-unfiltered"], level=Level.SHOULD)
def test_a_callback_that_is_code(cp: Examiner) -> None:
    """A callback that is not the name of a function is refused, or its letters are not passed through."""
    reply = cp.request("/batch/slots.jsonp", method="GET", query=b"callback=alert(1)%3B%2F%2F")
    cp.check("the reply begins with the callback", False, reply.text.startswith("alert(1);//"), PASSED)  # noqa: FBT003


@clause("SHAPE-4", "4", Need.SERVER, quirks=["token-strict"], level=Level.SHOULD)
def test_an_encoded_token(cp: Examiner) -> None:
    """The token of a GET may be percent-encoded, as every value of a query may be."""
    query = form({"slot": cp.new()})
    signed = query + b"&auth=" + quote(token(cp.project, query), safe="-").encode()
    reply = cp.request("/batch/alloc", method="GET", query=signed, authorization=None)
    cp.check("status", 200, reply.status, Known("token-strict", 400))


@clause("SHAPE-5", "4", Need.SERVER, quirks=["text-plain-success"], level=Level.SHOULD)
def test_a_malformed_text(cp: Examiner) -> None:
    """A body of .text that is not name=value,name=value is 400, as one that is not JSON is."""
    reply = cp.request("/batch/alloc.text", b"slot")
    cp.check("status", 400, reply.status, Known("text-plain-success", 500))


@clause("SHAPE-6", "3", Need.DAEMON, quirks=["last-name-wins"], level=Level.SHOULD)
def test_a_name_given_twice(cp: Examiner) -> None:
    """A frame that gives a name twice is answered ER, for nobody can know which value is meant."""
    cp.send(f"alloc,slot={cp.new()},credits=1,credits=2\n", "ER", Known("last-name-wins", "OK"))


@clause("SHAPE-7", "3", Need.DAEMON, quirks=["short-queue"], level=Level.SHOULD)
def test_a_queue(cp: Examiner) -> None:
    """Of sixteen clients that connect at once, none finds the queue full."""
    cp.check("some are refused", False, cp.refusals(16) > 0, Known("short-queue", seen=True))  # noqa: FBT003


@clause("SHAPE-8", "2", Need.SERVER, Need.ACCOUNTS, quirks=["shared-names"], level=Level.SHOULD)
def test_a_counter_named_like_a_sum(cp: Examiner) -> None:
    """A counter may have the name of a sum, such as credits, and is a counter like any other."""
    slot, machine, user = cp.new(), cp.new("machine"), cp.new("user")
    cp.link(machine, user)
    cp.accept("alloc", slot)
    cp.accept("counters", slot, {"credits": 3})
    cp.accept("claim", slot, machine=machine)
    cp.see_user(user, Known("shared-names", {"counters": {}}), counters={"credits": 3})

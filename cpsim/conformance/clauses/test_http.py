"""The HTTP API: paths, methods, formats, and how it says no."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from cpsim.conformance.clause import Known, Need, clause
from cpsim.conformance.examiner import compact, form

if TYPE_CHECKING:
    from cpsim.conformance.examiner import Examiner


@clause("HTTP-1", "4", Need.SERVER, quirks=["heartbeat-post"])
def test_heartbeat(cp: Examiner) -> None:
    """/heartbeat answers 200 and OK to GET and POST, and asks for no signature."""
    for method in ("GET", "POST"):
        reply = cp.request("/heartbeat", method=method, authorization=None)
        known = [Known("heartbeat-post", 403)] if method == "POST" else []
        cp.check("status", 200, reply.status, *known)
        cp.check("text", "OK", reply.text.strip())


@clause("HTTP-2", "4", Need.SERVER)
def test_success(cp: Examiner) -> None:
    """Each command has a path that takes a POST; success is 200 and {"result": "ok"}."""
    slot, other = cp.new(), cp.new()
    for kind, arguments in (
        ("alloc", {"slot": slot}),
        ("counters", {"slot": slot, "job/events": 1}),
        ("meta", {"slot": slot, "site": "here"}),
        ("claim", {"slot": slot, "machine": cp.new("machine")}),
        ("alloc", {"slot": other}),
        ("discard", {"slot": other}),
    ):
        reply = cp.request(f"/batch/{kind}", compact(arguments))
        cp.check("status", 200, reply.status)
        cp.check("result", "ok", reply.document.get("result"))


@clause("HTTP-3", "4", Need.SERVER)
def test_refusal(cp: Examiner) -> None:
    """A refused command is 500 and {"result": "error", "message": ...}."""
    reply = cp.command("claim", cp.new(), machine=cp.new("machine"))
    cp.check("status", 500, reply.status)
    cp.check("result", "error", reply.document.get("result"))
    cp.check("there is a message", expected=True, got=bool(reply.document.get("message")))


@clause("HTTP-4", "4", Need.SERVER, quirks=["counters-get"])
def test_get(cp: Examiner) -> None:
    """Each command can be a GET, its arguments the query string, percent-encoded."""
    slot, other = f"{cp.new()}/é b", cp.new()
    for kind, arguments in (
        ("alloc", {"slot": slot, "min": 1, "max": 5}),
        ("counters", {"slot": slot, "job/events": 1}),
        ("meta", {"slot": slot, "site": "Genève"}),
        ("alloc", {"slot": other}),
        ("discard", {"slot": other, "reason": "lost"}),
    ):
        reply = cp.request(f"/batch/{kind}", method="GET", query=form(arguments))
        known = [Known("counters-get", "refused")] if kind == "counters" else []
        cp.check(f"answer to {kind}", "accepted", reply.outcome, *known)
    cp.see_listed(slot)
    reply = cp.request("/batch/claim", method="GET", query=form({"slot": slot, "machine": cp.new("machine")}))
    cp.check("answer to claim", "accepted", reply.outcome)


@clause("HTTP-5", "4", Need.SERVER)
def test_refused_get(cp: Examiner) -> None:
    """A GET of a refused command is refused too."""
    reply = cp.request("/batch/discard", method="GET", query=form({"slot": cp.new()}))
    cp.check("answer", "refused", reply.outcome)


@clause("HTTP-6", "4", Need.SERVER)
def test_slots(cp: Examiner) -> None:
    """/batch/slots answers {"result": "ok", "data": [ids]}: a slot from its alloc until it is settled."""
    slots = [cp.new() for _ in range(3)]
    for slot in slots:
        cp.accept("alloc", slot)
    reply = cp.request("/batch/slots")
    cp.check("result", "ok", reply.document.get("result"))
    data = reply.document.get("data")
    cp.check(
        "data is a list of text",
        expected=True,
        got=isinstance(data, list) and all(isinstance(each, str) for each in data),
    )
    cp.check("slots", sorted(slots), sorted(cp.outstanding()))
    cp.accept("discard", slots[1])
    cp.check("slots", sorted({slots[0], slots[2]}), sorted(cp.outstanding()))


@clause("HTTP-7", "4", Need.SERVER)
def test_json_suffix(cp: Examiner) -> None:
    """.json is the same as no suffix."""
    slot = cp.new()
    cp.check("answer", "accepted", cp.request("/batch/alloc.json", compact({"slot": slot})).outcome)
    cp.check("answer", "refused", cp.request("/batch/alloc.json", compact({"slot": slot})).outcome)
    data = cp.request("/batch/slots.json").document.get("data")
    cp.check(f"{slot} is listed", expected=True, got=isinstance(data, list) and slot in data)


@clause("HTTP-8", "4", Need.SERVER, quirks=["text-plain-success"])
def test_text_suffix(cp: Examiner) -> None:
    """.text takes name=value,name=value and answers in lines, name: value."""
    slot = cp.new()
    reply = cp.request("/batch/alloc.text", f"slot={slot},min=1,max=5".encode())
    cp.check("status", 200, reply.status)
    lines = reply.text.splitlines()
    got = "result: ok" if "result: ok" in lines else reply.text
    cp.check("a line of the reply", "result: ok", got, Known("text-plain-success", ""))
    cp.see_listed(slot)


@clause("HTTP-9", "4", Need.SERVER)
def test_text_error(cp: Examiner) -> None:
    """An error in .text has a first line ERROR."""
    reply = cp.request("/batch/discard.text", f"slot={cp.new()}".encode())
    cp.check("status", 500, reply.status)
    cp.check("first line", "ERROR", (reply.text.splitlines() or [""])[0])


@clause("HTTP-10", "4", Need.SERVER)
def test_text_list(cp: Examiner) -> None:
    """A list in .text is plain lines."""
    slot = cp.new()
    cp.accept("alloc", slot)
    reply = cp.request("/batch/slots.text")
    cp.check("status", 200, reply.status)
    cp.check(f"there is a line {slot}", expected=True, got=slot in reply.text.splitlines())


def unwrapped(text: str, callback: str) -> object:
    """What a call of a function in JavaScript is given, if the text is that and no more."""
    call = re.fullmatch(rf"\s*(?:/\*.*?\*/)?\s*{re.escape(callback)}\s*\((.*)\)\s*;?\s*", text, re.DOTALL)
    try:
        return json.loads(call[1]) if call else text
    except ValueError:
        return text


@clause("HTTP-11", "4", Need.SERVER)
def test_jsonp(cp: Examiner) -> None:
    """.jsonp wraps the reply into the function that callback names, or into jsonp_callback, as text/javascript."""
    for query, callback in ((form({"callback": "credit.got"}), "credit.got"), (b"", "jsonp_callback")):
        slot = cp.new()
        sent = query + (b"&" if query else b"") + form({"slot": slot})
        reply = cp.request("/batch/alloc.jsonp", method="GET", query=sent)
        cp.check("status", 200, reply.status)
        cp.check("content type", "text/javascript", reply.content_type.partition(";")[0].strip().lower())
        document = unwrapped(reply.text, callback)
        cp.check("result", "ok", document.get("result") if isinstance(document, dict) else document)
        cp.see_listed(slot)


@clause("HTTP-12", "4", Need.SERVER)
def test_jsonp_error(cp: Examiner) -> None:
    """An error in .jsonp is wrapped as well."""
    sent = form({"callback": "got", "slot": cp.new()})
    reply = cp.request("/batch/discard.jsonp", method="GET", query=sent)
    document = unwrapped(reply.text, "got")
    cp.check("status", 500, reply.status)
    cp.check("result", "error", document.get("result") if isinstance(document, dict) else document)


@clause("HTTP-13", "4", Need.SERVER)
def test_unknown_suffix(cp: Examiner) -> None:
    """Any other suffix is 500, and a text that names it."""
    for suffix in ("xml", "yaml"):
        reply = cp.request(f"/batch/slots.{suffix}")
        cp.check("status", 500, reply.status)
        cp.check("text", f"Unknown API protocol '{suffix}' requested", reply.text.strip())


@clause("HTTP-14", "4", Need.SERVER, quirks=["ascii-only"])
def test_beyond_ascii(cp: Examiner) -> None:
    """A body may hold any text, as UTF-8 or as JSON escapes it."""
    plain, escaped = f"{cp.new()}-é-名", f"{cp.new()}-é-名"
    raw = json.dumps({"slot": plain}, ensure_ascii=False).encode()
    cp.check("answer", "accepted", cp.request("/batch/alloc", raw).outcome, Known("ascii-only", "refused"))
    cp.check("answer", "accepted", cp.request("/batch/alloc", compact({"slot": escaped})).outcome)
    cp.check("slots", sorted([plain, escaped]), sorted(cp.outstanding()))

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


@clause("HTTP-8", "4", Need.SERVER)
def test_text_suffix(cp: Examiner) -> None:
    """.text takes name=value,name=value and answers in lines, name: value."""
    slot = cp.new()
    reply = cp.request("/batch/alloc.text", f"slot={slot},min=1,max=5".encode())
    cp.check("status", 200, reply.status)
    lines = reply.text.splitlines()
    cp.check("the body is empty, or has a line 'result: ok'", expected=True, got=not lines or "result: ok" in lines)
    cp.see_listed(slot)
    cp.check("status", 500, cp.request("/batch/alloc.text", f"slot={slot}".encode()).status)
    for kind, more in (
        ("counters", "job/events=5,n=-1"),
        ("meta", "site=here"),
        ("claim", f"machine={slot}-m,credits=3"),
    ):
        cp.check("status", 200, cp.request(f"/batch/{kind}.text", f"slot={slot},{more}".encode()).status)


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


META_DROPPED = Known("meta-dropped", "accepted")


@clause("HTTP-15", "4", Need.SERVER, quirks=["meta-dropped"])
def test_every_refusal(cp: Examiner) -> None:
    """Whatever a command is refused for, it is 500 and {"result": "error", "message": ...}."""
    slot = cp.new()
    cp.accept("alloc", slot)
    for kind, arguments in (
        ("alloc", {"slot": slot}),
        ("alloc", {}),
        ("counters", {"slot": cp.new(), "job/events": 1}),
        ("counters", {"job/events": 1}),
        ("meta", {"slot": cp.new(), "site": "here"}),
        ("discard", {"slot": cp.new()}),
        ("discard", {}),
        ("claim", {"slot": cp.new(), "machine": cp.new("machine")}),
        ("claim", {"slot": slot}),
        ("claim", {}),
    ):
        for reply in (
            cp.request(f"/batch/{kind}", compact(arguments)),
            cp.request(f"/batch/{kind}.json", method="GET", query=form(arguments)) if arguments else None,
        ):
            if reply is None:
                continue
            if "job/events" in arguments and kind == "counters" and reply.status == 500 and not reply.document:
                continue  # a page about a GET of counters, which another clause is about
            known = Known("meta-dropped", (200, "ok", False))
            message = reply.document.get("message")
            got = (reply.status, reply.document.get("result"), isinstance(message, str) and bool(message))
            cp.check(
                f"status, result and whether there is a message, of a refused {kind}", (500, "error", True), got, known
            )
    cp.see_listed(slot)


@clause("HTTP-16", "4", Need.SERVER, quirks=["meta-dropped"])
def test_every_get(cp: Examiner) -> None:
    """A GET does what a POST does: its refusals are refused, and its numbers are numbers."""
    slot = cp.new()

    def get(kind: str, **arguments: object) -> str:
        return cp.request(f"/batch/{kind}", method="GET", query=form(arguments)).outcome

    cp.check("answer to alloc", "accepted", get("alloc", slot=slot, min=9, max=10, expire=60))
    cp.check("answer to a second alloc", "refused", get("alloc", slot=slot))
    cp.check("answer to an alloc without a slot", "refused", get("alloc", credits=5))
    cp.check("answer to an alloc of many credits", "refused", get("alloc", slot=cp.new(), credits="many"))
    cp.check("answer to meta of an unknown slot", "refused", get("meta", slot=cp.new(), site="here"), META_DROPPED)
    cp.check("answer to a claim without a machine", "refused", get("claim", slot=slot))
    cp.check("answer to a claim", "accepted", get("claim", slot=slot, machine=cp.new("machine"), credits=3))
    reply = cp.request("/batch/slots", method="GET")
    cp.check("status of the list", True, reply.status in {200, 400})  # noqa: FBT003 - `auth=` may be the only parameter or not
    for text in ("a&b", "a=b", "a%b", "a+b", "a b", "é"):
        odd = f"{cp.new()}-{text}"
        cp.check(f"answer to alloc of {odd}", "accepted", get("alloc", slot=odd))
        cp.see_listed(odd)
        cp.check("answer to discard", "accepted", get("discard", slot=odd, reason=text.replace("é", "e")))


@clause("HTTP-17", "4", Need.SERVER)
def test_json_as_it_may_be(cp: Examiner) -> None:
    """A body may be JSON in any layout, with its names in any order, escapes, and more than a command needs to be."""
    for template in (
        '{ "credits" : 5 , "slot" : "%s" }',
        '\r\n{\r\n\t"slot": "%s",\r\n\t"min": 1\r\n}\r\n',
        '{"\\u0073lot": "%s"}',
        '{"slot": "%s\\ud83d\\ude00"}',
    ):
        cp.check("answer", "accepted", cp.request("/batch/alloc", (template % cp.new()).encode()).outcome)
    slots = [cp.new() for _ in range(2)]
    body = f'{{\n  "alloc": [\n    {{"slot": "{slots[0]}"}},\n    {{"slot": "{slots[1]}"}}\n  ]\n}}'
    reply = cp.request("/batch/bulk.json", body.encode())
    cp.check("answer to the bulk", "accepted", reply.outcome)
    cp.check("errors", [], reply.document.get("errors", []))
    cp.check("slots are listed", [], sorted(set(slots) - set(cp.outstanding())))

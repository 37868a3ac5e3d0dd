"""Bulk: many commands in one request, class by class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.conformance.clause import Known, Need, clause

if TYPE_CHECKING:
    from cpsim.conformance.examiner import Examiner


@clause("BULK-1", "4", Need.SERVER)
def test_every_class(cp: Examiner) -> None:
    """A bulk of every class is answered 200 and {"result": "ok"}, without errors."""
    slots = [cp.new() for _ in range(3)]
    errors = cp.bulk(
        {
            "alloc": [{"slot": slot} for slot in slots],
            "counters": [{"slot": slots[0], "job/events": 5}],
            "meta": [{"slot": slots[0], "site": "here"}],
            "discard": [{"slot": slots[1], "reason": "lost"}],
        }
    )
    cp.check("errors", [], errors)
    cp.check("slots", sorted([slots[0], slots[2]]), sorted(cp.outstanding()))
    cp.check("errors", [], cp.bulk({"claim": [{"slot": slots[0], "machine": cp.new("machine")}]}))


@clause("BULK-2", "4", Need.SERVER)
def test_order_of_classes(cp: Examiner) -> None:
    """Classes are applied in the order alloc, counters, meta, discard, claim, whatever their order in the document."""
    first, second = cp.new(), cp.new()
    errors = cp.bulk(
        {
            "claim": [{"slot": first, "machine": cp.new("machine")}],
            "discard": [{"slot": second}],
            "meta": [{"slot": first, "site": "here"}],
            "counters": [{"slot": first, "job/events": 5}],
            "alloc": [{"slot": first}, {"slot": second}],
        }
    )
    cp.check("errors", [], errors)


@clause("BULK-3", "4", Need.SERVER, Need.ACCOUNTS)
def test_effect(cp: Examiner) -> None:
    """What a bulk does is what its commands do one by one in that order."""
    slot, machine, counter = cp.new(), cp.new("machine"), cp.new("counter")
    cp.bulk(
        {
            "claim": [{"slot": slot, "machine": machine, "credits": 25}],
            "counters": [{"slot": slot, counter: 5}, {"slot": slot, counter: 6}],
            "alloc": [{"slot": slot, "max": 10}],
        }
    )
    cp.see_slot(slot, state="claimed", granted=10)
    cp.see_machine(machine, credits=10, counters={counter: 11})


@clause("BULK-4", "4", Need.SERVER, Need.ACCOUNTS, quirks=["claim-settled"])
def test_discard_before_claim(cp: Examiner) -> None:
    """A slot that one bulk discards and claims is discarded, and the claim is refused."""
    slot = cp.new()
    errors = cp.bulk(
        {
            "claim": [{"slot": slot, "machine": cp.new("machine")}],
            "discard": [{"slot": slot}],
            "alloc": [{"slot": slot}],
        }
    )
    cp.see_slot(slot, state="discarded")
    cp.check("how many errors", 1, len(errors), Known("claim-settled", 0))


@clause("BULK-5", "4", Need.SERVER)
def test_errors(cp: Examiner) -> None:
    """Refused commands are listed in errors, each with a message and code 500, and stop nothing."""
    used, last = cp.new(), cp.new()
    cp.accept("alloc", used)
    errors = cp.bulk(
        {
            "alloc": [{"slot": used}, {}, {"slot": last}],
            "counters": [{"slot": cp.new(), "job/events": 1}, {"slot": last, "job/events": 1}],
        }
    )
    cp.check("how many errors", 3, len(errors))
    for error in errors:
        fields = error if isinstance(error, dict) else {}
        cp.check("there is a message", expected=True, got=bool(fields.get("message")))
        cp.check("code", 500, fields.get("code"))
    cp.see_listed(last)


@clause("BULK-6", "4", Need.SERVER)
def test_unknown_class(cp: Examiner) -> None:
    """An unknown class is one error, and stops nothing."""
    slot = cp.new()
    errors = cp.bulk({"release": [{"slot": slot}], "alloc": [{"slot": slot}]})
    cp.check("how many errors", 1, len(errors))
    cp.see_listed(slot)


@clause("BULK-7", "4", Need.SERVER, quirks=["bulk-abort"])
def test_no_number(cp: Examiner) -> None:
    """A value that is not a number is one error, and stops nothing."""
    first, second = cp.new(), cp.new()
    classes = {
        "alloc": [{"slot": first}, {"slot": cp.new(), "credits": "many"}, {"slot": second}],
        "counters": [{"slot": first, "job/events": "many"}],
    }
    errors = cp.bulk(classes, Known("bulk-abort", 500))
    cp.check("how many errors", 2, len(errors))
    cp.see_listed(first)
    cp.see_listed(second)


@clause("BULK-8", "4", Need.SERVER)
def test_empty(cp: Examiner) -> None:
    """A bulk without commands is answered 200 and {"result": "ok"}."""
    cp.check("errors", [], cp.bulk({}))
    cp.check("errors", [], cp.bulk({"alloc": [], "claim": []}))


@clause("BULK-9", "4", Need.SERVER, Need.ACCOUNTS)
def test_order_in_a_class(cp: Examiner) -> None:
    """Commands of one class are applied in their order: of two allocs of an id, the first one counts."""
    slot, machine = cp.new(), cp.new("machine")
    errors = cp.bulk({"alloc": [{"slot": slot, "credits": 5}, {"slot": slot, "credits": 9}]})
    cp.check("how many errors", 1, len(errors))
    cp.accept("claim", slot, machine=machine)
    cp.see_machine(machine, credits=5)


@clause("BULK-10", "4", Need.SERVER)
def test_many(cp: Examiner) -> None:
    """A bulk may have hundreds of commands."""
    commands = [{"slot": cp.new()} for _ in range(300)]
    cp.check("errors", [], cp.in_bulks("alloc", commands, whole=True).errors)
    cp.check("slots that are missing", [], sorted({each["slot"] for each in commands} - set(cp.outstanding())))
    cp.check("errors", [], cp.in_bulks("discard", commands, whole=True).errors)


@clause("BULK-11", "4", Need.SERVER)
def test_counters_before_discard(cp: Examiner) -> None:
    """Counters and metadata of a slot that the same bulk discards are accepted, for they come before."""
    slot = cp.new()
    errors = cp.bulk(
        {
            "discard": [{"slot": slot}],
            "meta": [{"slot": slot, "site": "here"}],
            "counters": [{"slot": slot, "job/events": 5}],
            "alloc": [{"slot": slot}],
        }
    )
    cp.check("errors", [], errors)


@clause(
    "BULK-12",
    "4",
    Need.SERVER,
    quirks=["reclaim", "claim-settled", "discard-settled", "counters-settled", "meta-dropped"],
)
def test_settled_slots(cp: Examiner) -> None:
    """Whatever a bulk commands of a settled slot is refused."""
    claimed, discarded = cp.new(), cp.new()
    cp.bulk({"alloc": [{"slot": claimed}, {"slot": discarded}], "discard": [{"slot": discarded}]})
    cp.bulk({"claim": [{"slot": claimed, "machine": cp.new("machine")}]})
    for slot, claims in ((discarded, "claim-settled"), (claimed, "reclaim")):
        for kind, given, quirk in (
            ("alloc", {}, ""),
            ("counters", {"job/events": 1}, "counters-settled"),
            ("meta", {"site": "here"}, "meta-dropped"),
            ("claim", {"machine": cp.new("machine")}, claims),
            ("discard", {}, "discard-settled"),
        ):
            errors = cp.bulk({kind: [{"slot": slot, **given}]})
            cp.check(f"how many errors of {kind}", 1, len(errors), Known(quirk, 0))


@clause("BULK-13", "4", Need.SERVER, quirks=["meta-dropped"])
def test_unknown_slots(cp: Examiner) -> None:
    """Whatever a bulk commands of a slot that was never allocated, or of none, is refused, each command by itself."""
    good = cp.new()
    missing = [{}, {"slot": cp.new()}]
    errors = cp.bulk(
        {
            "alloc": [{}, {"slot": good}, {"credits": 5}],
            "counters": [{**each, "job/events": 1} for each in missing] + [{"slot": good, "job/events": 1}],
            "discard": [*missing],
            "claim": [{**each, "machine": cp.new("machine")} for each in missing] + [{"slot": good}],
        }
    )
    cp.check("how many errors", 2 + 2 + 2 + 3, len(errors))
    errors = cp.bulk({"meta": [*({**each, "site": "here"} for each in missing), {"slot": good, "site": "here"}]})
    cp.check("how many errors of meta", 2, len(errors), Known("meta-dropped", 0))
    cp.see_listed(good)


@clause("BULK-14", "4", Need.SERVER, quirks=["reclaim", "discard-settled"])
def test_same_slot(cp: Examiner) -> None:
    """Of two allocs, two discards or two claims of a slot in one bulk, one is refused; of other commands, none."""
    first, second = cp.new(), cp.new()
    cp.check("errors of two allocs", 1, len(cp.bulk({"alloc": [{"slot": first}, {"slot": first}]})))
    cp.accept("alloc", second)
    twice = {"counters": [{"slot": first, "job/events": 1}] * 2, "meta": [{"slot": first, "site": "here"}] * 2}
    cp.check("errors of two counters and two meta", [], cp.bulk(twice))
    discards = cp.bulk({"discard": [{"slot": second}] * 2})
    cp.check("errors of two discards", 1, len(discards), Known("discard-settled", 0))
    claims = [{"slot": first, "machine": cp.new("machine")} for _ in range(2)]
    cp.check("errors of two claims", 1, len(cp.bulk({"claim": claims})), Known("reclaim", 0))


@clause("BULK-15", "4", Need.SERVER, quirks=["slots-list-claimed"])
def test_one_machine(cp: Examiner) -> None:
    """A machine may claim several slots in one bulk."""
    slots, machine = [cp.new() for _ in range(3)], cp.new("machine")
    cp.check("errors", [], cp.bulk({"alloc": [{"slot": slot} for slot in slots]}))
    cp.check("errors", [], cp.bulk({"claim": [{"slot": slot, "machine": machine} for slot in slots]}))
    cp.check("slots", [], sorted(cp.outstanding()), Known("slots-list-claimed", sorted(slots)))


@clause("BULK-16", "4", Need.SERVER, Need.ACCOUNTS)
def test_equal_commands(cp: Examiner) -> None:
    """Equal counters of one bulk all count, and so do several claims of a machine, with a user or without."""
    counter, user = cp.new("counter"), cp.new("user")
    for machine in (cp.new("machine"), cp.new("machine")):
        slots = [cp.new() for _ in range(3)]
        cp.bulk(
            {
                "alloc": [{"slot": slot, "credits": 7} for slot in slots],
                "counters": [{"slot": slot, counter: 5} for slot in slots for _ in range(2)],
                "claim": [{"slot": slot, "machine": machine} for slot in slots],
            }
        )
        cp.see_machine(machine, credits=21, counters={counter: 30})
        cp.link(machine, user)
    slots = [cp.new() for _ in range(2)]
    cp.bulk(
        {
            "alloc": [{"slot": slot} for slot in slots],
            "counters": [{"slot": slots[0], counter: 1}],
            "claim": [{"slot": slot, "machine": machine, "credits": 2} for slot in slots],
        }
    )
    cp.see_user(user, credits=46, counters={counter: 61})
    cp.see_machine(machine, credits=25, waiting_credits=0)


@clause("BULK-17", "4", Need.SERVER, Need.ACCOUNTS, quirks=["counters-empty"])
def test_errors_change_nothing(cp: Examiner) -> None:
    """A command of a bulk that is refused changes nothing, and the others of its class count whole."""
    slot, other, machine, counter = cp.new(), cp.new(), cp.new("machine"), cp.new("counter")
    errors = cp.bulk(
        {
            "alloc": [{"slot": slot, "max": 5}, {"slot": slot, "credits": 99}, {"slot": other, "credits": 4}],
            "counters": [{"slot": cp.new(), counter: 50}, {"slot": slot, counter: 2}, {"slot": slot}],
            "meta": [{"slot": slot, "site": "here"}],
            "discard": [{"slot": cp.new(), "reason": counter}],
            "claim": [
                {"slot": cp.new(), "machine": machine},
                {"slot": slot, "machine": machine, "credits": 8},
                {"slot": other, "machine": machine},
            ],
        }
    )
    cp.check("how many errors", 5, len(errors), Known("counters-empty", 4))
    cp.see_slot(slot, state="claimed", granted=5, counters={counter: 2})
    cp.see_machine(machine, credits=9, counters={counter: 2})
    cp.see_total("reasons", counter, None)

"""alloc: a slot is made once, on terms that can be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.conformance.clause import Known, Level, Need, clause
from cpsim.conformance.examiner import compact

if TYPE_CHECKING:
    from cpsim.conformance.examiner import Examiner


@clause("ALLOC-1", "2", Need.SERVER)
def test_a_new_slot(cp: Examiner) -> None:
    """An id that was never used is allocated, and is outstanding from then on."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.see_listed(slot)


@clause("ALLOC-2", "2", Need.SERVER)
def test_terms(cp: Examiner) -> None:
    """An alloc may have credits, a min, a max, an expire, or none of them; credits, min and max may be 0."""
    cp.accept("alloc", cp.new(), credits=5)
    cp.accept("alloc", cp.new(), credits=0)
    cp.accept("alloc", cp.new(), min=1)
    cp.accept("alloc", cp.new(), max=9)
    cp.accept("alloc", cp.new(), min=1, max=9)
    cp.accept("alloc", cp.new(), min=4, max=4)
    cp.accept("alloc", cp.new(), min=0, max=0)
    cp.accept("alloc", cp.new(), credits=5, min=1, max=9)
    cp.accept("alloc", cp.new(), expire=1)
    cp.accept("alloc", cp.new(), expire=100_000)


@clause("ALLOC-3", "4", Need.SERVER, level=Level.SHOULD)
def test_numbers_as_text(cp: Examiner) -> None:
    """Numbers are taken as text too, as a frame has them."""
    cp.accept("alloc", cp.new(), credits="5")
    cp.accept("alloc", cp.new(), min="1", max="10", expire="60")


@clause("ALLOC-4", "2", Need.SERVER)
def test_an_allocated_id(cp: Examiner) -> None:
    """An id that is allocated is refused."""
    slot = cp.new()
    cp.accept("alloc", slot, credits=5)
    cp.refuse("alloc", slot, credits=5)
    cp.refuse("alloc", slot)


@clause("ALLOC-5", "2", Need.SERVER)
def test_a_claimed_id(cp: Examiner) -> None:
    """An id whose slot was claimed is refused."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.accept("claim", slot, machine=cp.new("machine"))
    cp.refuse("alloc", slot)


@clause("ALLOC-6", "2", Need.SERVER, Need.ACCOUNTS, quirks=["slots-vanish"])
def test_an_id_claimed_by_the_machine_of_a_user(cp: Examiner) -> None:
    """An id whose slot was claimed by a machine that has a user is refused."""
    slot, machine = cp.new(), cp.new("machine")
    cp.link(machine, cp.new("user"))
    cp.accept("alloc", slot)
    cp.accept("claim", slot, machine=machine)
    cp.refuse("alloc", slot, quirk="slots-vanish")


@clause("ALLOC-7", "2", Need.SERVER)
def test_a_discarded_id(cp: Examiner) -> None:
    """An id whose slot was discarded is refused."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.accept("discard", slot)
    cp.refuse("alloc", slot)


@clause("ALLOC-8", "2", Need.SERVER, quirks=["float-credits"])
def test_min_above_max(cp: Examiner) -> None:
    """A min above the max is refused."""
    cp.refuse("alloc", cp.new(), min=6, max=5, quirk="float-credits")


@clause("ALLOC-9", "2", Need.SERVER, quirks=["float-credits"])
def test_negative_terms(cp: Examiner) -> None:
    """Negative credits, min or max are refused."""
    cp.refuse("alloc", cp.new(), credits=-1, quirk="float-credits")
    cp.refuse("alloc", cp.new(), min=-1, quirk="float-credits")
    cp.refuse("alloc", cp.new(), max=-1, quirk="float-credits")


@clause("ALLOC-10", "2", Need.SERVER, quirks=["float-credits"])
def test_broken_terms(cp: Examiner) -> None:
    """Credits, a min or a max that is not a whole number is refused."""
    cp.refuse("alloc", cp.new(), credits="7.9", quirk="float-credits")
    cp.refuse("alloc", cp.new(), min="7.9", quirk="float-credits")
    cp.refuse("alloc", cp.new(), max="7.9", quirk="float-credits")
    cp.refuse("alloc", cp.new(), credits=7.9, quirk="float-credits")


@clause("ALLOC-11", "2", Need.SERVER)
def test_terms_that_are_no_numbers(cp: Examiner) -> None:
    """Credits, a min or a max that is no number is refused."""
    cp.refuse("alloc", cp.new(), credits="many")
    cp.refuse("alloc", cp.new(), min="few")
    cp.refuse("alloc", cp.new(), max="many")


@clause("ALLOC-12", "2", Need.SERVER, quirks=["float-credits"])
def test_no_time(cp: Examiner) -> None:
    """An expire of zero, or that is no number, is refused."""
    cp.refuse("alloc", cp.new(), expire=0, quirk="float-credits")
    cp.refuse("alloc", cp.new(), expire="soon")


@clause("ALLOC-13", "2", Need.SERVER, quirks=["float-credits"])
def test_a_time_that_is_negative_or_broken(cp: Examiner) -> None:
    """An expire that is negative or not a whole number is refused."""
    cp.refuse("alloc", cp.new(), expire=-1, quirk="float-credits")
    cp.refuse("alloc", cp.new(), expire="1.5", quirk="float-credits")


@clause("ALLOC-14", "4", Need.SERVER)
def test_no_slot(cp: Examiner) -> None:
    """An alloc without a slot is refused."""
    cp.refuse("alloc", None, credits=5)
    cp.refuse("alloc", None)


@clause("ALLOC-15", "2", Need.SERVER, quirks=["half-made-slots"])
def test_refused_alloc_makes_nothing(cp: Examiner) -> None:
    """A refused alloc makes no slot: the id is not outstanding, and can still be allocated."""
    slot = cp.new()
    cp.refuse("alloc", slot, credits="many")
    cp.see_unlisted(slot, Known("half-made-slots", seen=True))
    cp.accept("alloc", slot)


@clause("ALLOC-16", "2", Need.SERVER, Need.ACCOUNTS)
def test_refused_alloc_changes_nothing(cp: Examiner) -> None:
    """An alloc that is refused because the id is used leaves the slot's terms as they were."""
    slot = cp.new()
    cp.accept("alloc", slot, min=2, max=8)
    cp.refuse("alloc", slot, credits=99)
    cp.accept("claim", slot, machine=cp.new("machine"), credits=5)
    cp.see_slot(slot, granted=5)


@clause("ALLOC-17", "2", Need.SERVER)
def test_the_same_request_again(cp: Examiner) -> None:
    """A request that comes again, byte by byte, is a command again: it is refused, in a bulk or alone."""
    alone, bulk = compact({"slot": cp.new()}), compact({"alloc": [{"slot": cp.new()}]})
    cp.check("answer", "accepted", cp.request("/batch/alloc", alone).outcome)
    cp.check("answer", "refused", cp.request("/batch/alloc", alone).outcome)
    cp.check("errors", 0, len(cp.request("/batch/bulk", bulk).document.get("errors", [])))
    cp.check("errors", 1, len(cp.request("/batch/bulk", bulk).document.get("errors", [])))


@clause("ALLOC-18", "2", Need.SERVER)
def test_refused_alloc_leaves_the_slot(cp: Examiner) -> None:
    """An alloc that is refused because the id is used leaves the slot outstanding, and to be claimed."""
    slot = cp.new()
    cp.accept("alloc", slot, credits=5)
    cp.refuse("alloc", slot, credits=6)
    cp.refuse("alloc", slot, min=6, max=5)
    cp.see_listed(slot)
    cp.accept("counters", slot, {"job/events": 1})
    cp.accept("claim", slot, machine=cp.new("machine"))
    cp.refuse("alloc", slot, credits=6)


@clause("ALLOC-19", "2", Need.SERVER, quirks=["half-made-slots"])
def test_refused_allocs_make_nothing(cp: Examiner) -> None:
    """An alloc refused for its terms, whichever, makes no slot: it is not listed, and its id is still free."""
    for terms in ({"credits": "many"}, {"min": "few"}, {"max": "many"}, {"expire": "soon"}):
        slot = cp.new()
        cp.refuse("alloc", slot, dict[str, object](terms))
        cp.refuse("claim", slot, machine=cp.new("machine"), quirk="half-made-slots")
        cp.see_unlisted(slot)
        cp.accept("alloc", slot)
        cp.accept("discard", slot)

"""meta: text on a slot, and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.conformance.clause import Known, Need, clause

if TYPE_CHECKING:
    from cpsim.conformance.examiner import Examiner


@clause("META-1", "2", Need.SERVER)
def test_an_allocated_slot(cp: Examiner) -> None:
    """Metadata of an allocated slot is accepted, and the slot stays outstanding."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.accept("meta", slot, {"site": "here", "job/kind": "simulation"})
    cp.see_listed(slot)


@clause("META-2", "2", Need.SERVER, Need.ACCOUNTS, quirks=["meta-dropped"])
def test_kept(cp: Examiner) -> None:
    """Metadata is kept, as it was given."""
    slot, given = cp.new(), {"site": "Genève", "job/kind": "two words"}
    cp.accept("alloc", slot)
    cp.accept("meta", slot, given)
    cp.see_slot(slot, Known("meta-dropped", {"meta": {}}), meta=given)


@clause("META-3", "2", Need.SERVER, Need.ACCOUNTS, quirks=["meta-dropped"])
def test_last_wins(cp: Examiner) -> None:
    """The last value of a name wins; other names are left alone."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.accept("meta", slot, {"site": "here", "host": "one"})
    cp.accept("meta", slot, {"site": "there"})
    cp.see_slot(slot, Known("meta-dropped", {"meta": {}}), meta={"site": "there", "host": "one"})


@clause("META-4", "2", Need.SERVER, Need.ACCOUNTS)
def test_never_aggregated(cp: Examiner) -> None:
    """Metadata goes to no machine, even a number."""
    slot, machine = cp.new(), cp.new("machine")
    cp.accept("alloc", slot)
    cp.accept("meta", slot, {"events": "12"})
    cp.accept("claim", slot, machine=machine)
    cp.see_machine(machine, credits=1, counters={})


@clause("META-5", "2", Need.SERVER, quirks=["meta-dropped"])
def test_an_unknown_slot(cp: Examiner) -> None:
    """Metadata of a slot that was never allocated is refused."""
    cp.refuse("meta", cp.new(), {"site": "here"}, quirk="meta-dropped")


@clause("META-6", "2", Need.SERVER, quirks=["meta-dropped"])
def test_a_settled_slot(cp: Examiner) -> None:
    """Metadata of a claimed or a discarded slot is refused."""
    claimed, discarded = cp.new(), cp.new()
    cp.accept("alloc", claimed)
    cp.accept("claim", claimed, machine=cp.new("machine"))
    cp.refuse("meta", claimed, {"site": "here"}, quirk="meta-dropped")
    cp.accept("alloc", discarded)
    cp.accept("discard", discarded)
    cp.refuse("meta", discarded, {"site": "here"}, quirk="meta-dropped")


@clause("META-7", "2", Need.SERVER, quirks=["meta-dropped"])
def test_nothing_to_note(cp: Examiner) -> None:
    """Metadata without a name, or without a slot, is refused."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.refuse("meta", slot, quirk="meta-dropped")
    cp.refuse("meta", None, {"site": "here"}, quirk="meta-dropped")


@clause("META-8", "2", Need.SERVER)
def test_again(cp: Examiner) -> None:
    """Metadata may come again, for a name that is set, with the same value, and be empty."""
    slot = cp.new()
    cp.accept("alloc", slot)
    for value in ("here", "there", "there", "", "here"):
        cp.accept("meta", slot, {"site": value})
    cp.accept("meta", slot, {"machine": "one", "reason": "none", "credits": "5", "expire": "soon"})
    cp.accept("meta", slot, {"number": "12", "text": '1.5e3, a=b;"c"', "script": "Zürich 東京"})
    cp.see_listed(slot)
    cp.accept("claim", slot, machine=cp.new("machine"))


@clause("META-9", "2", Need.SERVER, Need.ACCOUNTS, quirks=["meta-dropped"])
def test_empty_and_again(cp: Examiner) -> None:
    """An empty value is a value, and the last one wins even if it is empty, or came before."""
    slot = cp.new()
    cp.accept("alloc", slot)
    for value in ("here", "", "here", "there"):
        cp.accept("meta", slot, {"site": value, "none": ""})
    cp.see_slot(slot, Known("meta-dropped", {"meta": {}}), meta={"site": "there", "none": ""})
    cp.accept("meta", slot, {"site": ""})
    cp.see_slot(slot, Known("meta-dropped", {"meta": {}}), meta={"site": "", "none": ""})

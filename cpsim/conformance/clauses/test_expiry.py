"""Expiry: a slot that nobody settles is settled by time. Only a clock that can be moved shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.conformance.clause import Known, Need, clause

if TYPE_CHECKING:
    from cpsim.conformance.examiner import Examiner


MINUTE_US = 60_000_000
LIVE: Known = Known("expire-live", {"state": "allocated"})


def expired(cp: Examiner, credits: int = 0) -> str:
    """A slot whose time has come."""
    slot = cp.new()
    cp.accept("alloc", slot, expire=1, credits=credits)
    cp.advance(1)
    return slot


@clause("EXPIRE-1", "2", Need.SERVER, Need.ACCOUNTS, quirks=["expire-live"])
def test_when_its_time_has_come(cp: Examiner) -> None:
    """A slot expires when its time has come."""
    cp.see_slot(expired(cp), LIVE, state="expired")


@clause("EXPIRE-2", "2", Need.SERVER, Need.ACCOUNTS, quirks=["expire-live"])
def test_not_outstanding(cp: Examiner) -> None:
    """An expired slot is not outstanding any more."""
    cp.see_unlisted(expired(cp), Known("expire-live", seen=True))


@clause("EXPIRE-3", "2", Need.SERVER, Need.ACCOUNTS, quirks=["expire-live"])
def test_not_before(cp: Examiner) -> None:
    """A slot does not expire before its time has come."""
    slot = cp.new()
    with cp.before(cp.clock_us() + 120 * MINUTE_US):
        cp.accept("alloc", slot, expire=120)
        cp.advance(100)
        cp.see_alive(slot, Known("expire-live", "expired"))


@clause("EXPIRE-4", "2", Need.SERVER, Need.ACCOUNTS)
def test_default(cp: Examiner) -> None:
    """Without an expire, a slot has 1440 minutes."""
    slot = cp.new()
    cp.accept("alloc", slot)
    cp.see_lifetime(slot, minutes=1440)


@clause("EXPIRE-5", "2", Need.SERVER, Need.ACCOUNTS, quirks=["claim-settled", "expire-live"])
def test_claim(cp: Examiner) -> None:
    """An expired slot cannot be claimed."""
    slot, machine = expired(cp, credits=9), cp.new("machine")
    cp.see_slot(slot, LIVE, state="expired")
    cp.refuse("claim", slot, machine=machine, quirk="claim-settled")
    cp.see_machine(machine, credits=0)


@clause("EXPIRE-6", "2", Need.SERVER, Need.ACCOUNTS, quirks=["expire-live", "meta-dropped"])
def test_other_commands(cp: Examiner) -> None:
    """An expired slot takes no counters and no metadata, and cannot be discarded."""
    slot = expired(cp)
    cp.see_slot(slot, LIVE, state="expired")
    cp.refuse("counters", slot, {"job/events": 1})
    cp.refuse("meta", slot, {"site": "here"}, quirk="meta-dropped")
    cp.refuse("discard", slot)
    cp.see_slot(slot, state="expired")


@clause("EXPIRE-7", "2", Need.SERVER, Need.ACCOUNTS)
def test_the_id_stays_used(cp: Examiner) -> None:
    """An expired slot's id cannot be allocated again."""
    cp.refuse("alloc", expired(cp))


@clause("EXPIRE-8", "2", Need.SERVER, Need.ACCOUNTS)
def test_settled_slots_do_not_expire(cp: Examiner) -> None:
    """A slot that was claimed or discarded in time stays so."""
    claimed, discarded, machine = cp.new(), cp.new(), cp.new("machine")
    with cp.before(cp.clock_us() + MINUTE_US):
        cp.accept("alloc", claimed, credits=3, expire=1)
        cp.accept("alloc", discarded, expire=1)
        cp.accept("claim", claimed, machine=machine)
        cp.accept("discard", discarded)
    cp.advance(1)
    cp.see_slot(claimed, state="claimed", granted=3)
    cp.see_slot(discarded, state="discarded")
    cp.see_machine(machine, credits=3)


@clause("EXPIRE-9", "2", Need.SERVER, Need.ACCOUNTS)
def test_grants_nothing(cp: Examiner) -> None:
    """Neither credits nor counters of an expired slot are granted."""
    slot, counter = cp.new(), cp.new("counter")
    with cp.before(cp.clock_us() + MINUTE_US):
        cp.accept("alloc", slot, credits=9, expire=1)
        cp.accept("counters", slot, {counter: 7})
    cp.advance(1)
    cp.see_slot(slot, granted=None, machine=None)
    cp.see_total("counters", counter, None)


@clause("EXPIRE-10", "2", Need.SERVER)
def test_minutes(cp: Examiner) -> None:
    """The unit of expire is a minute: a slot of one minute is there after a second and more."""
    slot, other = cp.new(), cp.new()
    cp.accept("alloc", slot, expire=1)
    cp.accept("alloc", other, expire=60)
    if cp.sees_accounts:
        cp.see_lifetime(slot, minutes=1)
        cp.see_lifetime(other, minutes=60)
        return
    cp.pause(1.5)
    cp.see_listed(slot)
    cp.see_listed(other)
    cp.accept("counters", slot, {"job/events": 1})
    cp.accept("claim", slot, machine=cp.new("machine"))


@clause("EXPIRE-11", "2", Need.SERVER, Need.THOROUGH, quirks=["claim-settled", "expire-live"])
def test_a_minute(cp: Examiner) -> None:
    """A slot of one minute is closed after it, listed or not, and one of an hour is not."""
    slot, other = cp.new(), cp.new()
    cp.accept("alloc", slot, expire=1)
    cp.accept("alloc", other, expire=60)
    if cp.sees_accounts:
        cp.advance(1)
    else:
        cp.pause(61)
    cp.see_unlisted(slot, Known("expire-live", seen=True))
    cp.refuse("claim", slot, machine=cp.new("machine"), quirk="claim-settled")
    cp.accept("counters", other, {"job/events": 1})
    cp.see_listed(other)

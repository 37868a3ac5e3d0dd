"""What quirks of the server replace in the rules of its ledger; the defaults are the protocol's."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal

from cpsim.protocol.slots import ALLOCATED, CommandRefused, MalformedArgument, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cpsim.protocol.slots import State, Transition

LARGEST_INTEGER: Final = 2**53 - 1
"""The largest number accepted: every JSON reader holds it exactly."""
MOST_DIGITS: Final = 17
"""The most characters of a number given as text, with its sign."""
NUMBERS_KEPT: Final = 1_024


def read_text(arguments: Mapping[str, object], name: str) -> str:
    """Read an id, a reason or metadata."""
    value = arguments.get(name)
    if type(value) is str and value:
        return value
    if value is None or value == "":
        raise CommandRefused(f"missing argument {name!r}")
    if type(value) is int:
        return str(value)
    raise CommandRefused(f"{name} must be text, not {shown(value)}")


def read_integer(name: str, value: object) -> int:
    """Read a counter: a whole number, or the text of one."""
    number = None
    if type(value) is int:
        number = value
    elif type(value) is str and len(value) <= MOST_DIGITS:
        number = _number(value)
    if number is None and not (type(value) is str and _is_whole(value)):
        raise MalformedArgument(f"{name}={shown(value)} is not a whole number{_advice(name, value)}")
    if number is None or abs(number) > LARGEST_INTEGER:
        raise MalformedArgument(f"{name}={shown(value)} is beyond {LARGEST_INTEGER}")
    return number


def read_term(name: str, value: object) -> int | None:
    """Read credits, a bound of them, or minutes; None where none are given."""
    if value is None:
        return None
    number = read_integer(name, value)
    if number < 0:
        raise CommandRefused(f"{name}={number} is negative")
    return number


def check_terms(least: int | None, most: int | None, expire: int | None) -> None:
    """Refuse a range whose least is above its most, and an expiry at once."""
    if least is not None and most is not None and least > most:
        raise CommandRefused(f"min={least} is above max={most}")
    if expire == 0:
        raise CommandRefused("expire=0 is not a positive number of minutes")


def is_allocated(state: State, has_user: bool) -> bool:  # noqa: ARG001, FBT001 - quirks look at it
    """Whether a slot is listed as outstanding."""
    return state is ALLOCATED


@dataclass(frozen=True)
class LedgerPolicy:
    """The rules that a quirk can replace.

    Attributes:
        transitions: what settled slots admit; added to the ledger's `TRANSITIONS`.
        unread: kinds of commands that are accepted without being looked at, and change nothing.
        text: reads an argument that is text; raises CommandRefused.
        integer: reads a counter, by name and value; raises CommandRefused.
        term: reads credits, bounds and minutes likewise; None where there is none.
        check_terms: checks a range and an expiry, None where not given; raises CommandRefused.
        reason: reads the reason of a discard, as `text` does.
        needs_counters: whether counters without a counter are refused.
        listed: whether a slot is outstanding: of its state, and whether its machine has a user.
        ids: of what a slot id has to be the only one.
        half_made: whether an alloc that is refused for a malformed argument makes the slot, without terms.
        expires: whether slots expire in time; else housekeeping deletes those whose time has not come.
        keeps_paid: whether the slots that a user was paid for stay.
        shown_as: counters that are shown as sums of the server's own: `credits`, `allocated`, `claimed` or `discarded`.
    """

    transitions: tuple[Transition, ...] = ()
    unread: frozenset[str] = frozenset()
    text: Callable[[Mapping[str, object], str], str] = read_text
    integer: Callable[[str, object], int] = read_integer
    term: Callable[[str, object], int | None] = read_term
    check_terms: Callable[[int | None, int | None, int | None], None] = check_terms
    reason: Callable[[Mapping[str, object], str], str] = read_text
    needs_counters: bool = True
    listed: Callable[[State, bool], bool] = is_allocated
    ids: Literal["project", "server"] = "project"
    half_made: bool = False
    expires: bool = True
    keeps_paid: bool = True
    shown_as: Mapping[str, str] = field(default_factory=dict)


def _advice(name: str, value: object) -> str:
    """What to send instead of a number with a fraction of zero."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return ""
    return f": send {name}={int(number)}" if number.is_integer() and abs(number) <= LARGEST_INTEGER else ""


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and text.isascii()


@lru_cache(NUMBERS_KEPT)
def _number(text: str) -> int | None:
    """The whole number in a short text, or None; cached, because few texts recur often."""
    return int(text) if _is_whole(text) else None

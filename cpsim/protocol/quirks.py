"""The quirks: differences of the daemon and the server in production from their document.

Each has a name and can be switched on alone; the profile `deployed` has all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from cpdaemon.commands import COMMANDS
from cpsim.errors import CpsimError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Quirk(NamedTuple):
    """One difference: its name, its tier, and its effect."""

    name: str
    tier: Literal["server", "daemon"]
    effect: str


QUIRKS: Final = {
    quirk.name: quirk
    for quirk in (
        Quirk("reclaim", "server", "a slot on a machine without a user can be claimed again, by any machine"),
        Quirk("claim-settled", "server", "a discarded or expired slot can still be claimed"),
        Quirk("discard-settled", "server", "a claimed slot can still be discarded"),
        Quirk("slots-list-claimed", "server", "claimed slots of machines without a user are listed as outstanding"),
        Quirk("global-slot-ids", "server", "a slot id used by one project is refused to every other"),
        Quirk("counters-settled", "server", "counters on a claimed or discarded slot are still accepted"),
        Quirk("meta-dropped", "server", "metadata is accepted and discarded"),
        Quirk("float-credits", "server", "7.9 is accepted and truncated; negative credits and min > max are accepted"),
        Quirk(
            "bulk-abort",
            "server",
            "a malformed number aborts a bulk with an HTML 500; earlier commands stay applied; errors name no command",
        ),
        Quirk(
            "expire-live",
            "server",
            "no slot expires; a housekeeping job (POST /__cpsim/housekeep) expires those whose time has not come",
        ),
        Quirk("slots-vanish", "server", "a slot claimed by a machine with a user is deleted; its id is free again"),
        Quirk("ack-before-delivery", "daemon", "OK is sent when the command is in memory; a crash loses the queue"),
        Quirk("drop-on-error", "daemon", "a batch answered with anything but 200 and result: ok is dropped"),
        Quirk("errors-ignored", "daemon", "the errors of a bulk reply are ignored"),
        Quirk("resend-duplicates", "daemon", "a batch whose reply was lost is resent whole; counters double"),
        Quirk("flush-starves", "daemon", "every command delays the flush, until more than 5,000 are queued"),
        Quirk("reorder-classes", "daemon", "commands are grouped by class; their order across classes is lost"),
        Quirk("cut-values", "daemon", "slot=a=b becomes a; an argument without = closes the connection unanswered"),
        Quirk("single-read", "daemon", "one read of at most 1,500 bytes, whatever has arrived"),
        Quirk(
            "busy-when-down",
            "daemon",
            "with the server unreachable and 5,000 commands queued, every loop turn retries",
        ),
    )
}
PROFILES: Final = {"documented": frozenset[str](), "deployed": frozenset(QUIRKS)}


def numbers_in(kind: str, arguments: Mapping[str, object]) -> list[object]:
    """Return the values of a command that should be numbers: a server with `bulk-abort` aborts at a malformed one."""
    return [value for name, value in arguments.items() if COMMANDS[kind].type_of(name) is int]


def chosen(profile: str, names: Iterable[str]) -> frozenset[str]:
    """Return the quirks of a profile and those named.

    Raises:
        CpsimError: there is no quirk or profile of that name.
    """
    unknown = [name for name in names if name not in QUIRKS]
    if unknown:
        raise CpsimError(f"no quirk {unknown[0]!r}; there are {', '.join(QUIRKS)}")
    if profile not in PROFILES:
        raise CpsimError(f"no profile {profile!r}; there are {', '.join(PROFILES)}")
    return PROFILES[profile] | frozenset(names)

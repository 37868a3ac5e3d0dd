"""The states of a slot, a row of its life cycle, and a command that is refused."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

LONGEST_QUOTE: Final = 80


class State(StrEnum):
    """The state of a slot."""

    ALLOCATED = "allocated"
    CLAIMED = "claimed"
    DISCARDED = "discarded"
    EXPIRED = "expired"


ALLOCATED, CLAIMED, DISCARDED, EXPIRED = State
"""As globals, because Python takes nine times as long to look up a member in its class."""


class Transition(NamedTuple):
    """A command's transition of a slot from one state to another.

    Attributes:
        kind: the kind of command.
        before: the state before; None for an unused id.
        after: the state after.
        quirk: the quirk that has this row.
        waiting: whether a slot has it only until a user is paid for it.
    """

    kind: str
    before: State | None
    after: State
    quirk: str = ""
    waiting: bool = False


class CommandRefused(Exception):
    """The command was refused and changed nothing; the message gives the reason."""


class MalformedArgument(CommandRefused):
    """The command was refused because an argument cannot be read."""


def shown(value: object) -> str:
    """A value as messages quote it: short, whatever its size or depth."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= LONGEST_QUOTE else f"{text[: LONGEST_QUOTE - 1]}…"

"""The slots of the server behind a daemon under test: which commands it refuses, by section 2 of docs/protocol.md.

It grants nothing: the state of a slot is all that decides whether a command is refused, or has an effect once more.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from cpdaemon.commands import COMMANDS, NAMED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cpdaemon.commands import Description
    from cpdaemon.signing import Call

NEW: Final = "allocated"
WHOLE: Final = re.compile(r"-?[0-9]{1,4000}")


class SlotStates:
    """The state of every slot."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}

    @property
    def outstanding(self) -> list[str]:
        """The ids of the slots that are not settled."""
        return [slot for slot, state in self._states.items() if state == NEW]

    def apply(self, call: Call) -> str:
        """Apply a command of a known kind; returns why it is refused, "" if it is accepted."""
        kind, arguments = call
        command = COMMANDS[kind]
        for name in NAMED[kind]:
            if not isinstance(arguments.get(name), str) or not arguments[name]:
                return f"it has no {name}"
        why = _wrong_numbers(command, arguments)
        if why:
            return why
        if command.free is not None and len(arguments) < 2:
            return "it has nothing but a slot"
        slot = str(arguments["slot"])
        state = self._states.get(slot)
        if command.state == NEW and state is not None:
            return f"slot {slot!r} has been allocated"
        if NEW not in {command.state, state}:
            return f"slot {slot!r} is {state or 'unknown'}"
        self._states[slot] = command.state or NEW
        return ""


def _wrong_numbers(command: Description, arguments: Mapping[str, object]) -> str:
    """What is wrong with the numbers of a command, whatever its slot is; "" if nothing is."""
    least = {field.name: field.least for field in command.fields}
    numbers = {}
    for name, value in arguments.items():
        if command.type_of(name) is not int:
            continue
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if not is_number and not (isinstance(value, str) and WHOLE.fullmatch(value)):
            return f"{name} is no whole number"
        numbers[name] = int(str(value))
        if name in least and numbers[name] < least[name]:
            return f"{name} is below {least[name]}"
    if "min" in numbers and "max" in numbers and "credits" not in numbers and numbers["min"] > numbers["max"]:
        return "min is above max"
    return ""

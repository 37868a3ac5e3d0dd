"""A bulk of other shapes is read as far as it goes: text in place of a list letter by letter, an object name by name.

What cannot be read is an HTML 500, behind what was read; all unknown classes are one error; by GET, `auth` is a class.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cpdaemon.commands import COMMANDS, KINDS

if TYPE_CHECKING:
    from typing import Any

    from cpsim.quirks.policies.request import Lists, RequestPolicy


def request(requests: RequestPolicy) -> RequestPolicy:
    """Return how the server reads and answers requests with it."""
    return replace(requests, takes_auth=requests.takes_auth | {"bulk"}, read_bulk=_read)


def _read(classes: object) -> Lists:
    lists: dict[str, list[Any]] = {}
    if not isinstance(classes, dict):
        return lists, [], classes not in ([], "")
    for kind in (kind for kind in KINDS if kind in classes):
        commands = lists[kind] = []
        if not isinstance(classes[kind], list | dict | str):
            return lists, [], True
        for command in classes[kind]:
            if not isinstance(command, dict) and _breaks(kind, command):
                return lists, [], True
            commands.append(command if isinstance(command, dict) else {})
    unknown = [kind for kind in classes if kind not in KINDS]
    return lists, [(f"unknown classes {', '.join(unknown)}", unknown[0])] if unknown else [], False


def _breaks(kind: str, command: object) -> bool:
    """Whether what is no object breaks a bulk off: where it seems to have the required names, or cannot be searched."""
    if kind == "meta":
        return False
    if not isinstance(command, list | str):
        return True
    return all(name in command for name in ("slot", *(field.name for field in COMMANDS[kind].fields if field.required)))

"""How deep what is sent may be nested: a limit of ours, because Python's and SQLite's change with their releases."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_DEPTH: Final = 32
"""Levels of objects and lists of which an argument of a command may consist; a file of tables likewise."""
NESTING: Final = frozenset({dict, list, tuple})
NO_OPENING: Final = bytes(set(range(256)) - set(b"[{"))
"""All that does not begin a level; to leave it out takes a third of the time of counting what does."""
TOKEN: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[][{}]')


class TooDeep(ValueError):
    """Something is nested too deeply."""


def check(values: Iterable[object], levels: int = MAX_DEPTH) -> None:
    """Look whether values consist of no more than so many levels of objects and lists.

    Raises:
        TooDeep: one does.
    """
    nested = [value for value in values if type(value) in NESTING]
    while nested:
        if levels == 0:
            raise TooDeep(f"an argument is nested deeper than {MAX_DEPTH} levels")
        levels -= 1
        nested = [
            inner
            for value in nested
            for inner in (value.values() if isinstance(value, dict) else value)  # type: ignore[attr-defined]
            if type(inner) in NESTING
        ]


def opened(text: bytes) -> int:
    """The number of opening brackets of a JSON text, with those in its strings; it has no more objects and lists."""
    return len(text.translate(None, NO_OPENING))


def cut(text: str, levels: int) -> str:
    """A JSON text with null in the place of every object and list that is nested deeper than so many levels."""
    kept: list[str] = []
    depth = begin = 0
    for token in TOKEN.finditer(text):
        match token[0]:
            case "[" | "{":
                if depth == levels:
                    kept += text[begin : token.start()], "null"
                depth += 1
            case "]" | "}":
                depth -= 1
                if depth == levels:
                    begin = token.end()
    return "".join((*kept, text[begin:]))

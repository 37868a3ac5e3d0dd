"""The nesting limit of arguments: our own, because the limits of Python and SQLite change with their releases."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_DEPTH: Final = 32
"""Levels of objects and lists in an argument of a command, or of tables in a TOML file."""
NESTING: Final = frozenset({dict, list, tuple})
NO_OPENING: Final = bytes(set(range(256)) - set(b"[{"))
"""All bytes but opening brackets; deleting them takes a third of the time of counting brackets."""
TOKEN: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[][{}]')


class TooDeep(ValueError):
    """An argument is nested too deeply."""


def check(values: Iterable[object], levels: int = MAX_DEPTH) -> None:
    """Check that no value has more levels of objects and lists.

    Raises:
        TooDeep: a value has more.
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
    """Return the number of opening brackets in a JSON text, its strings included: a bound of its objects and lists."""
    return len(text.translate(None, NO_OPENING))


def cut(text: str, levels: int) -> str:
    """Return a JSON text with null in place of every object and list below this many levels."""
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

"""Arguments of public constructors, checked where they are given: not later, in a thread."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cpsim.errors import CpsimError

LONGEST_S: Final = 86_400
"""The longest time that a setting can be: a day, in seconds."""


class WrongArgument(CpsimError, TypeError, ValueError):
    """An argument of a constructor cannot be used; the message names it, its value, and what to give."""


def check(name: str, value: object, kinds: type | tuple[type, ...], expected: str) -> None:
    """Raise WrongArgument unless a value is of one of some types; a truth value is no number.

    Args:
        name: of the argument.
        value: the value.
        kinds: the types.
        expected: what to give, in words.
    """
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise WrongArgument(f"{name} is {value!r}, and must be {expected}")


def check_many(name: str, values: object, example: str) -> None:
    """Raise WrongArgument unless a value holds others; a text is one value, and does not.

    Args:
        name: of the argument.
        values: the value.
        example: of what it may hold, as it would be written.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise WrongArgument(f"{name} is {values!r}, and must be a list, such as [{example}]")


def check_seconds(name: str, value: float) -> None:
    """Raise WrongArgument unless a value is a number of seconds from 0 to `LONGEST_S`."""
    expected = f"from 0 to {LONGEST_S:,} seconds"
    check(name, value, (int, float), expected)
    if not 0 <= value <= LONGEST_S:
        raise WrongArgument(f"{name} is {value!r}, and must be {expected}")

"""The results of a clause, beside passing."""

from __future__ import annotations

import json
from typing import Final

SHOWN: Final = 300


class Deviation(AssertionError):
    """The endpoint deviates from the clause.

    Attributes:
        what: what was compared.
        expected: what the protocol says.
        got: what came back.
        quirk: the name of the known quirk that this is; empty if it is none.
    """

    def __init__(self, what: str, expected: str, got: str, quirk: str = "") -> None:
        super().__init__(f"{what}: expected {expected}, got {got}")
        self.what = what
        self.expected = expected
        self.got = got
        self.quirk = quirk


class Overdue(Deviation):
    """A required event did not happen in time."""


class NotVerifiable(Exception):
    """The endpoint cannot show what the clause is about; the message says what would make it visible."""


class CannotRun(Exception):
    """The clause could not be checked, for a reason that says nothing about the protocol."""


def shown(value: object) -> str:
    """A value as it is shown: whole, or its beginning."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: SHOWN + 1])
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def shown_bytes(data: bytes) -> str:
    """Bytes as they are shown: as text, with escapes where they are none."""
    return shown(data.decode("utf-8", "backslashreplace"))

"""Pseudonyms for the names in a recording.

A pseudonym depends on a random key of the recording, which is never stored: within the recording a name always has the
same pseudonym, and afterwards nobody can reverse it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from cpdaemon.commands import COMMANDS, NAMED

if TYPE_CHECKING:
    from collections.abc import Mapping

CACHE_SIZE: Final = 1 << 16
"""Cached pseudonyms; others are computed again."""
DIGITS: Final = 16
PROTOCOL_WORDS: Final = frozenset(
    word.encode()
    for command in COMMANDS.values()
    for word in (command.kind, "slot", *(field.name for field in command.fields))
)
SLOT: Final = b"{slot}"
"""Placeholder of the slot's id in a trace."""

_WORD: Final = re.compile(rb"\{slot\}|[^,=\x00-\x20\x7f]+")
_ASCII_WORD: Final = re.compile(rb"\{slot\}|[!-+\--<>-~]+")


class Pseudonyms:
    """The pseudonyms of one recording."""

    def __init__(self) -> None:
        key = secrets.token_bytes(32)

        @lru_cache(CACHE_SIZE)
        def digits(purpose: str, name: bytes) -> str:
            return hmac.new(key, purpose.encode() + b":" + name, hashlib.sha256).hexdigest()

        self._digits = digits

    def slot(self, slot_id: str) -> str:
        """Return the pseudonym of a slot's id."""
        return f"slot-{self._digits('slot', slot_id.encode())[:DIGITS]}"

    def arguments(self, kind: str, arguments: Mapping[str, str]) -> dict[str, str]:
        """Return arguments with pseudonyms for names (the machine) and for the texts of metadata."""
        renamed = {name: f"{name}-{self._digits(name, arguments[name].encode())[:DIGITS]}" for name in NAMED[kind][1:]}
        if COMMANDS[kind].free is str:
            renamed |= {name: self._digits(kind, text.encode())[:DIGITS] for name, text in arguments.items()}
        return {**arguments, **renamed}

    def frame(self, frame: bytes) -> bytes:
        """Return a malformed frame with a pseudonym of equal length for every word; it stays as malformed."""
        try:
            frame.decode()
            words = _WORD
        except UnicodeDecodeError:
            words = _ASCII_WORD  # the other bytes are what makes it malformed
        return words.sub(lambda word: self._word(word[0]), frame)

    def _word(self, word: bytes) -> bytes:
        if word == SLOT or word.lower() in PROTOCOL_WORDS:
            return word
        digits = self._digits("frame", word).encode()
        return (digits * (len(word) // len(digits) + 1))[: len(word)]

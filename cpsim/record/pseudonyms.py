"""Other names for what a recording should not tell.

A name's pseudonym depends on a key that is made for the recording and kept nowhere: within the recording a name always
has the same pseudonym, and nobody can find out afterwards whose it is.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from cpdaemon.commands import COMMANDS

if TYPE_CHECKING:
    from collections.abc import Mapping

NAMES_KEPT: Final = 1 << 16
"""Pseudonyms that are kept at hand: the others are worked out again."""
DIGITS: Final = 16
SAID_BY_THE_PROTOCOL: Final = frozenset(
    word.encode()
    for command in COMMANDS.values()
    for word in (command.kind, "slot", *(field.name for field in command.fields))
)
NAMING: Final = {
    command.kind: [field.name for field in command.fields if field.value is str and field.required]
    for command in COMMANDS.values()
}
"""The arguments of each kind that name somebody: texts that it cannot do without."""
SLOT: Final = b"{slot}"
"""Stands in a trace for the slot's id."""

_WORD: Final = re.compile(rb"\{slot\}|[^,=\x00-\x20\x7f]+")
_ASCII_WORD: Final = re.compile(rb"\{slot\}|[!-+\--<>-~]+")


class Pseudonyms:
    """The pseudonyms of one recording."""

    def __init__(self) -> None:
        key = secrets.token_bytes(32)

        @lru_cache(NAMES_KEPT)
        def digits(purpose: str, name: bytes) -> str:
            return hmac.new(key, purpose.encode() + b":" + name, hashlib.sha256).hexdigest()

        self._digits = digits

    def slot(self, slot_id: str) -> str:
        """For a slot's id."""
        return f"slot-{self._digits('slot', slot_id.encode())[:DIGITS]}"

    def arguments(self, kind: str, arguments: Mapping[str, str]) -> dict[str, str]:
        """For what names somebody in a command's arguments: the machine, and the texts of metadata."""
        told = {name: f"{name}-{self._digits(name, arguments[name].encode())[:DIGITS]}" for name in NAMING[kind]}
        if COMMANDS[kind].free is str:
            told |= {name: self._digits(kind, text.encode())[:DIGITS] for name, text in arguments.items()}
        return {**arguments, **told}

    def frame(self, frame: bytes) -> bytes:
        """For every word of a frame that is no command; it stays as long as it was, and as broken."""
        try:
            frame.decode()
            words = _WORD
        except UnicodeDecodeError:
            words = _ASCII_WORD  # the other bytes are what is wrong with it
        return words.sub(lambda word: self._word(word[0]), frame)

    def _word(self, word: bytes) -> bytes:
        if word == SLOT or word.lower() in SAID_BY_THE_PROTOCOL:
            return word
        digits = self._digits("frame", word).encode()
        return (digits * (len(word) // len(digits) + 1))[: len(word)]

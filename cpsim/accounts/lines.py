"""JSON lines: an object in each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from cpsim.accounts.view import NoLedger

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def json_rows(lines: Iterable[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of lines, each with the number of its line, from 1; empty lines are none.

    Raises:
        NoLedger: a line is no object of JSON.
    """
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise NoLedger(f"line {number} is no object of JSON, but begins {line[:40]!r}") from error

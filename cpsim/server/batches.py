"""The known batches of a project: a repeated or late batch is applied at most once."""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING, Final

import msgspec

from cpsim.server.ledger import Refusal  # noqa: TC001 - msgspec reads it

if TYPE_CHECKING:
    from collections.abc import Sequence

LONGEST_ID: Final = 200
"""Characters of a batch's id."""
NUMBERED: Final = re.compile("([0-9a-f]{32})-([1-9][0-9]{0,15})")
"""An id of cpsim's daemons: sender and sequence number."""
SENDERS_KEPT: Final = 10_000
"""Known senders of a project: those that sent last."""
OTHERS_KEPT: Final = 10_000
"""Known ids of other kinds of a project: those that came last."""
OTHERS_KEPT_US: Final = 7 * 86_400_000_000
"""How long ids of other kinds are known."""
REFUSALS_KEPT: Final = 100_000
"""Refusals kept of a project's batches, for answers to repeats."""


class BatchNotApplied(Exception):
    """A batch is not applied because of an earlier one."""


class BatchGivenUp(BatchNotApplied):
    """The sender had given up the batch."""


class BatchSeen(BatchNotApplied):
    """The batch, or a later one of its sender, came before; its answer is no longer known."""


class BatchAnswer(msgspec.Struct):
    """The answer to a batch.

    Attributes:
        batch_id: the batch's name, a blank, and a digest of its commands; without a digest, the batch was given up.
        at_us: the time of its arrival.
        refusals: the refused commands; None if they are no longer kept.
        sequence: the sequence number, if the id has one.
    """

    batch_id: str
    at_us: int
    refusals: list[Refusal] | None
    sequence: int = 0


class Batches(msgspec.Struct):
    """The known batches of a project.

    A sender sends a batch only when it knows the outcome of the one before. So only the latest batch of each sender is
    known, and a lower number is too late. Batches with other ids are known one by one.
    """

    senders: dict[str, BatchAnswer] = {}
    others: dict[str, BatchAnswer] = {}
    refused: int = 0
    """The number of refusals kept."""

    def answer(self, batch_id: str) -> list[Refusal] | None:
        """The refusals of a batch that came before; None if it did not.

        Args:
            batch_id: as in `BatchAnswer`.

        Raises:
            BatchGivenUp: the sender has given up the batch.
            BatchSeen: the batch may have been applied, and its answer is unknown.
        """
        name = _name(batch_id)
        known = self._of_sender(name)
        if known is None:
            known = self.others.get(f"{name} ") or self.others.get(batch_id)
        elif known.batch_id not in {batch_id, f"{name} "}:
            raise BatchSeen(f"batch {name!r} has come before, with other commands")
        return None if known is None else _refusals(known)

    def answer_to_name(self, name: str) -> list[Refusal] | None:
        """The refusals of a batch by its name, whatever its commands; raises as `answer` does."""
        known = self._of_sender(name) or self.others.get(f"{name} ")
        if known is None:
            known = next((answer for answer in self.others.values() if _name(answer.batch_id) == name), None)
        return None if known is None else _refusals(known)

    def add(self, batch_id: str, at_us: int, refusals: Sequence[Refusal]) -> None:
        """Add a new batch that was applied or, without commands, given up."""
        answer = BatchAnswer(batch_id, at_us, list(refusals))
        self.refused += len(refusals)
        if match := NUMBERED.fullmatch(_name(batch_id)):
            answer.sequence = int(match[2])
            self._forget(self.senders, match[1])
            self.senders[match[1]] = answer
            if len(self.senders) > SENDERS_KEPT:
                self._forget(self.senders, next(iter(self.senders)))
        else:
            self._forget(self.others, batch_id)
            self.others[batch_id] = answer
            while len(self.others) > OTHERS_KEPT or next(iter(self.others.values())).at_us < at_us - OTHERS_KEPT_US:
                self._forget(self.others, next(iter(self.others)))
        if self.refused > REFUSALS_KEPT:
            self._forget_refusals()

    def _of_sender(self, name: str) -> BatchAnswer | None:
        """The latest batch of a sender if it has this name; None if the sender's numbers are lower."""
        match = NUMBERED.fullmatch(name)
        known = self.senders.get(match[1]) if match else None
        if match is None or known is None or known.sequence < int(match[2]):
            return None
        if known.sequence > int(match[2]):
            raise BatchSeen(f"batch {name!r} comes too late: its sender has gone on to number {known.sequence}")
        return known

    def _forget(self, answers: dict[str, BatchAnswer], key: str) -> None:
        answer = answers.pop(key, None)
        if answer is not None:
            self.refused -= len(answer.refusals or ())

    def _forget_refusals(self) -> None:
        """Drop refusals down to half the limit: the oldest first, and those of senders last."""
        for answer in chain(self.others.values(), self.senders.values()):
            if self.refused <= REFUSALS_KEPT // 2:
                break
            if answer.refusals:
                self.refused -= len(answer.refusals)
                answer.refusals = None


def _name(batch_id: str) -> str:
    """The part of a batch id before the digest."""
    name, blank, _ = batch_id.rpartition(" ")
    return name if blank else batch_id


def _refusals(known: BatchAnswer) -> list[Refusal]:
    name = _name(known.batch_id)
    if known.batch_id.endswith(" "):
        raise BatchGivenUp(f"batch {name!r} was given up by its sender")
    if known.refusals is None:
        raise BatchSeen(f"batch {name!r} was applied, and its refusals are no longer kept")
    return known.refusals

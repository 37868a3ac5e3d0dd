"""The verdict on a run: valid, invalid or unknown; with counts, anomalies, and what could not be verified."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from cpsim.judge.anomalies import ANOMALIES
from cpsim.judge.corrections import Corrections
from cpsim.judge.granted import Granted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cpsim.judge.model import SlotState, Span, Step

SHOWN_ANOMALIES: Final = 1_000
"""Anomalies kept in full; all are counted."""
EXAMPLES: Final = 3
"""Examples kept of each anomaly: the slots with the fewest commands."""


class Ruling(StrEnum):
    """The ruling on a run."""

    VALID = "valid"
    INVALID = "invalid"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Anomaly:
    """One deviation from the protocol.

    Attributes:
        name: one of `ANOMALIES`.
        subject: the slot, account or sum that is wrong.
        detail: what is wrong, as a sentence.
        slots: the fewest slots that show the anomaly, if known.
    """

    name: str
    subject: str
    detail: str
    slots: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """A slot that shows an anomaly, with its history.

    Attributes:
        anomaly: the anomaly.
        steps: the slot's operations, in the order of sending.
        seen: when the state was read.
        found: the state, or None if it is unknown.
    """

    anomaly: Anomaly
    steps: tuple[Step, ...]
    seen: Span
    found: SlotState | None


@dataclass(slots=True)
class Verdict:
    """The findings so far.

    Attributes:
        checked: comparisons made, by kind.
        uncertain: slots with more than one allowed state.
        counts: anomalies by name.
        anomalies: the first of them.
        examples: by the anomaly's name, the slots with the fewest commands.
        explained: what a known quirk explains, by the quirk's name; it is no anomaly.
        explained_sums: sums of accounts that known quirks explain, by the quirks' names.
        corrections: what known quirks may have put sums of accounts off by.
        granted: what claims granted, with which sums of accounts are compared.
        explanations: the first of what is explained, as anomalies of that name.
        unsearched: slots whose commands have too many possible orders to try.
        still_listed: claimed slots that are listed as outstanding, where no more is shown.
        rests_on: the tables of accounts that were compared.
        not_verified: sentences: what could not be verified, and what would make it visible.
        meanings: each anomaly that may be found, and what it means.
        within: the prefix of the next details, for one of several projects.
    """

    checked: Counter[str] = field(default_factory=Counter)
    uncertain: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    anomalies: list[Anomaly] = field(default_factory=list)
    examples: defaultdict[str, list[Example]] = field(default_factory=lambda: defaultdict(list))
    explained: Counter[str] = field(default_factory=Counter)
    explained_sums: Counter[str] = field(default_factory=Counter)
    corrections: Corrections = field(default_factory=Corrections)
    granted: Granted = field(default_factory=Granted)
    explanations: list[Anomaly] = field(default_factory=list)
    unsearched: int = 0
    still_listed: int = 0
    rests_on: list[str] = field(default_factory=list)
    not_verified: list[str] = field(default_factory=list)
    meanings: Mapping[str, str] = field(default_factory=lambda: ANOMALIES)
    within: str = ""

    @property
    def ruling(self) -> Ruling:
        """Invalid if there is an anomaly; else unknown if something could not be verified; else valid.

        What is `explained` is none.
        """
        if self.counts:
            return Ruling.INVALID
        return Ruling.UNKNOWN if self.unknowns() else Ruling.VALID

    @property
    def explains(self) -> bool:
        """Whether known quirks explain anything."""
        return bool(self.explained or self.explained_sums)

    def unknowns(self) -> list[str]:
        """What could not be verified, a sentence each."""
        unknown = list(self.not_verified)
        if self.still_listed:
            why = "they are still listed as outstanding, as servers do whose quirk is slots-list-claimed"
            unknown.append(f"Whether {self.still_listed:,} slots were claimed: {why}. Accounts would show it.")
        if self.unsearched:
            why = "too many of their commands overlap, or were never answered, to try every order"
            unknown.append(f"{self.unsearched:,} slots: {why}.")
        return unknown

    def merged(self, other: Verdict) -> Verdict:
        """The verdict on both of two partitions, or by both of two checkers.

        Merging is associative, and however slots are divided, the whole is the same: findings of slots come first, in
        the order of the slots' numbers.
        """
        examples: defaultdict[str, list[Example]] = defaultdict(list)
        for name in sorted({*self.examples, *other.examples}):
            both = [*self.examples.get(name, ()), *other.examples.get(name, ())]
            examples[name] = sorted(both, key=lambda each: (len(each.steps), _place(each.anomaly)))[:EXAMPLES]
        return Verdict(
            checked=_sum(self.checked, other.checked),
            uncertain=self.uncertain + other.uncertain,
            counts=_by_name(self.counts, other.counts),
            anomalies=sorted([*self.anomalies, *other.anomalies], key=_place)[:SHOWN_ANOMALIES],
            examples=examples,
            explained=_by_name(self.explained, other.explained),
            explained_sums=_by_name(self.explained_sums, other.explained_sums),
            corrections=self.corrections.merged(other.corrections),
            granted=self.granted.merged(other.granted),
            explanations=sorted([*self.explanations, *other.explanations], key=_place)[:SHOWN_ANOMALIES],
            unsearched=self.unsearched + other.unsearched,
            still_listed=self.still_listed + other.still_listed,
            rests_on=list(dict.fromkeys([*self.rests_on, *other.rests_on])),
            not_verified=list(dict.fromkeys([*self.not_verified, *other.not_verified])),
            meanings={**self.meanings, **other.meanings},
        )

    def find(self, name: str, subject: str, detail: str, slots: Sequence[str] = ()) -> Anomaly:
        """Add an anomaly; `name` is one of `meanings`."""
        assert name in self.meanings, name
        anomaly = Anomaly(name, subject, f"{self.within}{detail}", tuple(slots))
        self.counts[name] += 1
        if len(self.anomalies) < SHOWN_ANOMALIES:
            self.anomalies.append(anomaly)
        return anomaly

    def explain(self, quirk: str, subject: str, detail: str) -> None:
        """Add a slot that a quirk explains of which the user says that it is known."""
        self.explained[quirk] += 1
        self._keep_explanation(Anomaly(quirk, subject, f"{self.within}{detail}", (subject,)))

    def explain_sum(self, quirks: str, subject: str, detail: str) -> None:
        """Add a sum of accounts that known quirks explain."""
        self.explained_sums[quirks] += 1
        self._keep_explanation(Anomaly(quirks, subject, detail))

    def _keep_explanation(self, found: Anomaly) -> None:
        if len(self.explanations) < SHOWN_ANOMALIES:
            self.explanations.append(found)

    def add_example(self, anomaly: Anomaly, steps: Sequence[Step], seen: Span, found: SlotState | None) -> None:
        """Keep a slot's history as an example of an anomaly, if it is among the shortest."""
        if not self._is_example(anomaly.name, len(steps)):
            return
        examples = self.examples[anomaly.name]
        examples.append(Example(anomaly, tuple(steps), seen, found))
        examples.sort(key=lambda example: len(example.steps))
        del examples[EXAMPLES:]

    def shows(self, name: str, steps: int) -> bool:
        """Whether an anomaly of a slot of so many operations would be kept, in full or as an example."""
        return len(self.anomalies) < SHOWN_ANOMALIES or self._is_example(name, steps)

    def _is_example(self, name: str, steps: int) -> bool:
        examples = self.examples.get(name, ())
        return len(examples) < EXAMPLES or steps < len(examples[-1].steps)

    def count(self, name: str, *, uncertain: bool) -> None:
        """Count a slot of which nothing is kept; without a name, it is as it may be."""
        self.uncertain += uncertain
        if name:
            self.counts[name] += 1

    def document(self) -> dict[str, Any]:
        """The verdict as a JSON document, without the examples."""
        known = {
            "known_quirks": dict(self.explained),
            "known_quirks_in_sums": dict(self.explained_sums),
            "explained": [
                {"quirk": found.name, "subject": found.subject, "detail": found.detail} for found in self.explanations
            ],
        }
        return {
            "verdict": self.ruling.value,
            **(known if self.explains else {}),
            "checked": dict(self.checked),
            "rests_on": self.rests_on,
            "slots_with_several_acceptable_states": self.uncertain,
            "anomalies_by_name": dict(self.counts),
            "meanings": {name: self.meanings[name] for name in self.counts},
            "anomalies": [
                {"name": found.name, "subject": found.subject, "detail": found.detail, "slots": list(found.slots)}
                for found in self.anomalies
            ],
            "not_verified": self.unknowns(),
        }


def _place(found: Anomaly) -> tuple[bool, int, str]:
    """Where a finding comes among others: those of slots first, those that are of no slot as they were found."""
    of_slot = found.slots == (found.subject,)
    return (False, len(found.subject), found.subject) if of_slot else (True, 0, "")


def _by_name(one: Counter[str], other: Counter[str]) -> Counter[str]:
    """The sums of two counters, in the order of the names."""
    return Counter(dict(sorted(_sum(one, other).items())))


def _sum(one: Counter[str], other: Counter[str]) -> Counter[str]:
    """The sums of two counters, zeros too."""
    both = Counter(one)
    both.update(other)
    return both

"""The verdict on a run: valid, invalid or unknown; what was checked, what was found, what could not be seen."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from cpsim.judge.anomalies import ANOMALIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cpsim.judge.model import SlotState, Span, Step

SHOWN_ANOMALIES: Final = 1_000
"""Anomalies kept one by one; all are counted."""
EXAMPLES: Final = 3
"""Slots of each anomaly kept with their history: those with the fewest commands."""


class Ruling(StrEnum):
    """What a run has shown."""

    VALID = "valid"
    INVALID = "invalid"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Anomaly:
    """One thing that is not as the protocol has it.

    Attributes:
        name: one of `ANOMALIES`.
        subject: the slot, account or sum concerned.
        detail: what is wrong with it, as a sentence.
        slots: the fewest slots that show it, as far as they are known.
    """

    name: str
    subject: str
    detail: str
    slots: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """A slot that shows an anomaly, with all that happened to it.

    Attributes:
        anomaly: what it shows.
        steps: its operations, as they were sent.
        seen: when it was looked at.
        found: the state in which it was, if that can be seen.
    """

    anomaly: Anomaly
    steps: tuple[Step, ...]
    seen: Span
    found: SlotState | None


@dataclass(slots=True)
class Verdict:
    """Findings as they are collected.

    Attributes:
        checked: how many things of each kind were compared.
        uncertain: slots that were left with more than one acceptable state.
        counts: anomalies by name.
        anomalies: the first of them.
        examples: by the anomaly's name, the slots with the fewest commands that show it.
        unseen: sentences: what could not be verified, and what would make it visible.
        within: begins the details of what is found now, where there are several projects.
    """

    checked: Counter[str] = field(default_factory=Counter)
    uncertain: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    anomalies: list[Anomaly] = field(default_factory=list)
    examples: defaultdict[str, list[Example]] = field(default_factory=lambda: defaultdict(list))
    unseen: list[str] = field(default_factory=list)
    within: str = ""

    @property
    def ruling(self) -> Ruling:
        """Invalid if anything is wrong; else unknown if anything was not seen; else valid."""
        if self.counts:
            return Ruling.INVALID
        return Ruling.UNKNOWN if self.unseen else Ruling.VALID

    def find(self, name: str, subject: str, detail: str, slots: Sequence[str] = ()) -> Anomaly:
        """Add an anomaly; `name` is one of `ANOMALIES`."""
        assert name in ANOMALIES, name
        anomaly = Anomaly(name, subject, f"{self.within}{detail}", tuple(slots))
        self.counts[name] += 1
        if len(self.anomalies) < SHOWN_ANOMALIES:
            self.anomalies.append(anomaly)
        return anomaly

    def exemplify(self, anomaly: Anomaly, steps: Sequence[Step], seen: Span, found: SlotState | None) -> None:
        """Keep a slot's history as an example of an anomaly, if it is among the shortest."""
        examples = self.examples[anomaly.name]
        if len(examples) == EXAMPLES and len(steps) >= len(examples[-1].steps):
            return
        examples.append(Example(anomaly, tuple(steps), seen, found))
        examples.sort(key=lambda example: len(example.steps))
        del examples[EXAMPLES:]

    def document(self) -> dict[str, Any]:
        """The verdict as JSON has it, without the examples."""
        return {
            "verdict": self.ruling.value,
            "checked": dict(self.checked),
            "slots_with_several_acceptable_states": self.uncertain,
            "anomalies_by_name": dict(self.counts),
            "meanings": {name: ANOMALIES[name] for name in self.counts},
            "anomalies": [
                {"name": found.name, "subject": found.subject, "detail": found.detail, "slots": list(found.slots)}
                for found in self.anomalies
            ],
            "not_verified": self.unseen,
        }

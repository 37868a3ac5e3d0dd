"""The verdict on a run: valid, invalid or unknown; what was checked, what was found, what could not be seen."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

SHOWN_ANOMALIES: Final = 1_000
"""Anomalies kept one by one; all are counted."""


class Ruling(StrEnum):
    """What a run has shown."""

    VALID = "valid"
    INVALID = "invalid"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Anomaly:
    """One thing that is not as the protocol has it: its name, the slot or account concerned, and a sentence."""

    name: str
    subject: str
    detail: str


@dataclass(slots=True)
class Verdict:
    """Findings as they are collected.

    Attributes:
        checked: how many things of each kind were compared.
        uncertain: slots that an unknown outcome left with more than one acceptable state.
        counts: anomalies by name.
        anomalies: the first of them.
        unseen: sentences: what could not be verified, and what would make it visible.
    """

    checked: Counter[str] = field(default_factory=Counter)
    uncertain: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    anomalies: list[Anomaly] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)

    @property
    def ruling(self) -> Ruling:
        """Invalid if anything is wrong; else unknown if anything was not seen; else valid."""
        if self.counts:
            return Ruling.INVALID
        return Ruling.UNKNOWN if self.unseen else Ruling.VALID

    def find(self, name: str, subject: str, detail: str) -> None:
        """Add an anomaly."""
        self.counts[name] += 1
        if len(self.anomalies) < SHOWN_ANOMALIES:
            self.anomalies.append(Anomaly(name, subject, detail))

    def document(self) -> dict[str, Any]:
        """The verdict as JSON has it."""
        return {
            "verdict": self.ruling.value,
            "checked": dict(self.checked),
            "slots_with_several_acceptable_states": self.uncertain,
            "anomalies_by_name": dict(self.counts),
            "anomalies": [
                {"name": found.name, "subject": found.subject, "detail": found.detail} for found in self.anomalies
            ],
            "not_verified": self.unseen,
        }

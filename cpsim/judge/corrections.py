"""What the sums of accounts may differ by from what slots show, because of quirks that a target is known to have.

Each slot has some possible histories (`model`), of which each says what accounts have beside what the slot shows. Added
up over all slots, they say by how much a sum may be off. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cpsim.judge.model import Branch

CREDITS: Final = "credits"
WHOLE: Final = ""
"""In place of a machine: the project's sum over all of them."""


MOST_AMOUNTS: Final = 500


class Amounts(NamedTuple):
    """What a sum may be off by: some amounts or, where these became too many, all between the least and the most."""

    some: frozenset[int] | None
    least: int
    most: int

    @classmethod
    def of(cls, amounts: Iterable[int]) -> Amounts:
        """Some amounts."""
        some = frozenset(amounts)
        return cls(some if len(some) <= MOST_AMOUNTS else None, min(some), max(some))

    def plus(self, other: Amounts) -> Amounts:
        """The sums of one of these and one of the others."""
        if self.some is not None and other.some is not None and len(self.some) * len(other.some) <= MOST_AMOUNTS**2:
            return Amounts.of(one + another for one in self.some for another in other.some)
        return Amounts(None, self.least + other.least, self.most + other.most)

    def admit(self, amount: int) -> bool:
        """Whether a sum may be off by an amount."""
        return self.least <= amount <= self.most if self.some is None else amount in self.some

    def admit_about(self, amount: int, give: int) -> bool:
        """Whether a sum may be off by an amount, or by `give` more or less."""
        some = (self.least, self.most) if self.some is None else self.some
        return self.admit(amount) or any(abs(amount - each) <= give for each in some)


NONE: Final = Amounts.of([0])


class Correction(NamedTuple):
    """What a sum may be off by: of what was earned, and of what users have and what waits; and which quirks do that."""

    earned: Amounts = NONE
    held: Amounts = NONE
    quirks: frozenset[str] = frozenset()

    def plus(self, other: Correction) -> Correction:
        """Both."""
        return Correction(self.earned.plus(other.earned), self.held.plus(other.held), self.quirks | other.quirks)


NOTHING: Final = Correction()


@dataclass(slots=True)
class Corrections:
    """Corrections by project, machine and name of a sum; merging is associative.

    Attributes:
        unknown: slots with too many possible histories to say.
    """

    unknown: int = 0
    _found: dict[tuple[str, str, str], Correction] = field(default_factory=dict)

    def of(self, project: str, machine: str, name: str) -> Correction:
        """What a machine's sum may be off by, or a project's with `WHOLE`; upper and lower case of projects are one."""
        return self._found.get((project.lower(), machine, name), NOTHING)

    def add(self, project: str, histories: Sequence[Branch]) -> None:
        """Add a slot of which these histories are possible."""
        effects = [_effects(history) for history in histories]
        for place in {place for effect in effects for place in effect}:
            earned, held = zip(*(effect.get(place, (0, 0)) for effect in effects), strict=True)
            named = frozenset(each.quirk for history in histories for each in history.beside)
            self._add((project.lower(), *place), Correction(Amounts.of(earned), Amounts.of(held), named))

    def _add(self, key: tuple[str, str, str], more: Correction) -> None:
        self._found[key] = self._found.get(key, NOTHING).plus(more)

    def plain(self) -> list[Any]:
        """The same as values that JSON carries."""
        return [
            self.unknown,
            [
                [*key, *([each.some and sorted(each.some), *each[1:]] for each in found[:2]), sorted(found.quirks)]
                for key, found in self._found.items()
            ],
        ]

    @classmethod
    def of_plain(cls, values: Sequence[Any]) -> Self:
        """What `plain` has made values of."""
        unknown, rows = values
        corrections = cls(unknown)
        for project, machine, name, *amounts, quirks in rows:
            earned, held = (Amounts(some and frozenset(some), *bounds) for some, *bounds in amounts)
            corrections._found[project, machine, name] = Correction(earned, held, frozenset(quirks))
        return corrections

    def merged(self, other: Corrections) -> Corrections:
        """Those of both."""
        both = Corrections(self.unknown + other.unknown, dict(self._found))
        for key, more in other._found.items():
            both._add(key, more)
        return both


def _effects(history: Branch) -> dict[tuple[str, str], tuple[int, int]]:
    """How far a history puts the sums off, by machine and name: of what was earned, and of what is held."""
    effects: dict[tuple[str, str], tuple[int, int]] = {}
    for beside in history.beside:
        for name, amount in ((CREDITS, beside.credits), *beside.counters):
            for machine in (beside.machine, WHOLE):
                earned, held = effects.get((machine, name), (0, 0))
                effects[machine, name] = (earned + beside.earned * amount, held + beside.held * amount)
    return effects

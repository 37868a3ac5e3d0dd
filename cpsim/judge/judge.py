"""The judgement of a run's evidence: pure, so that the same evidence has the same verdict, whoever judges it.

A checker compares the evidence with what the protocol says. Others come by entry points of the group `cpsim.checkers`,
each a class without arguments, or are given as objects.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial, reduce
from typing import TYPE_CHECKING, Final, Protocol

from cpsim.errors import CpsimError, in_one_line
from cpsim.evidence import extensions
from cpsim.evidence.extensions import installed
from cpsim.evidence.files import with_texts
from cpsim.judge import checkers
from cpsim.judge.corrections import Corrections
from cpsim.judge.granted import Granted
from cpsim.judge.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from cpsim.evidence.evidence import Evidence


class Checker(Protocol):
    """Compares evidence with what should be.

    Attributes:
        meanings: the name of each anomaly that it can find, and what that means.
        by_partition: whether it checks slots, partition by partition; else it checks once, without operations.
    """

    @property
    def meanings(self) -> Mapping[str, str]: ...  # noqa: D102 - an attribute
    @property
    def by_partition(self) -> bool: ...  # noqa: D102 - an attribute
    def check(self, evidence: Evidence, verdict: Verdict) -> None:
        """Add what is found to the verdict, and sentences about what could not be verified."""


OWN: Final = sorted(checkers.found(), key=lambda checker: not checker.by_partition)
OF_ACCOUNTS: Final = tuple(checker for checker in OWN if getattr(checker, "of_accounts", False))
"""The checkers of what commands did, those of slots first; the accounts may need time to show it."""
OF_REPLIES: Final = tuple(checker for checker in OWN if checker not in OF_ACCOUNTS)
CHECKERS: Final = (*OF_ACCOUNTS, *OF_REPLIES)


def checkers_of_others() -> list[Checker]:
    """The checkers of other packages, in the order of their names.

    Raises:
        CpsimError: one cannot be loaded or made.
    """
    found: list[Checker] = []
    for name, checker in installed(extensions.CHECKERS).items():
        try:
            found.append(checker())
        except Exception as error:
            raise CpsimError(f"{name} of {extensions.CHECKERS} cannot be made: {in_one_line(error)}") from error
    return found


def names_of(chosen: Sequence[Checker]) -> list[str]:
    """The names of checkers, by which others find the same ones elsewhere."""
    return [f"{type(checker).__module__}.{type(checker).__qualname__}" for checker in chosen]


def judge(partitions: Iterable[Evidence], head: Evidence, chosen: Sequence[Checker]) -> Verdict:
    """Judge evidence.

    Args:
        partitions: the evidence by partitions of slots.
        head: the evidence without operations.
        chosen: the checkers; findings are in their order within a partition.
    """
    return concluded(of_each(partitions, chosen), head, chosen)


def of_each(partitions: Iterable[Evidence], chosen: Sequence[Checker]) -> Iterator[list[Verdict]]:
    """What each checker finds in each partition; a loop would have two of them in memory."""
    return map(partial(of_partition, chosen=chosen), partitions)


def of_partition(part: Evidence, chosen: Sequence[Checker]) -> list[Verdict]:
    """What each checker finds in a partition of slots; nothing, if it does not check by partition."""
    in_texts = part if all(checker in CHECKERS for checker in chosen) else with_texts(part)
    return [
        _checked(checker, part if checker in CHECKERS else in_texts) if checker.by_partition else Verdict()
        for checker in chosen
    ]


def concluded(of_partitions: Iterable[Sequence[Verdict]], head: Evidence, chosen: Sequence[Checker]) -> Verdict:
    """The verdict on all partitions and on what concerns none.

    Args:
        of_partitions: what `of_partition` has found in each, in the order of the partitions.
        head: the evidence without operations.
        chosen: the same checkers.
    """
    found = [Verdict() for _ in chosen]
    for more in of_partitions:
        found = merged(found, more)
    corrections = reduce(Corrections.merged, (verdict.corrections for verdict in found))
    granted = reduce(Granted.merged, (verdict.granted for verdict in found))
    for place, checker in enumerate(chosen):
        if not checker.by_partition:
            whole = _checked(checker, head, corrections, granted)
            found[place] = replace(whole, corrections=Corrections(), granted=Granted())
    return reduce(Verdict.merged, found, Verdict())


def merged(found: Sequence[Verdict], more: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts of the same checkers on some partitions and on later ones."""
    return [Verdict.merged(*both) for both in zip(found, more, strict=True)]


def _checked(
    checker: Checker, evidence: Evidence, corrections: Corrections | None = None, granted: Granted | None = None
) -> Verdict:
    """What a checker finds, which is told what others have found of sums. One that fails verifies nothing."""
    sums = corrections or Corrections(), granted or Granted()
    verdict = Verdict(meanings=checker.meanings, corrections=sums[0], granted=sums[1])
    try:
        checker.check(evidence, verdict)
    except Exception as error:
        if checker in CHECKERS:
            raise
        return Verdict(not_verified=[f"What the checker {type(checker).__name__} checks: {in_one_line(error)}."])
    return verdict

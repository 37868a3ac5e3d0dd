"""Past runs beside one another: what differs between two, what is usual for runs alike, and a scenario over time.

Two runs alone do not say which differences are noise. A difference is called usual by one rule: at least `LEAST_ALIKE`
other runs are of the same workload, target, pace, faults and machine as the first, and the figure of the second is not
outside theirs.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cpsim.config.thresholds import RATES, TIMES, parts_of
from cpsim.evidence import past
from cpsim.evidence.past import RunState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from cpsim.evidence.past import PastRun, RunFigures
    from cpsim.run.folder import OutputFolder

LEAST_ALIKE: Final = 5
"""Other runs that are needed to say what is usual: of fewer, too many lie outside by chance."""
KINDS_OF_TIMES: Final = ("service", "response", "apply_delay")
SHOWN: Final = (
    *("operations", "operations_per_s", "elapsed_s", *RATES),
    *(f"{kind}_{time}_ms" for kind in KINDS_OF_TIMES for time in TIMES),
    "lateness_p99_ms",
)
"""Metrics that are compared, in this order; those of other packages follow."""
REPEATED: Final = {"busy", *(f"{time}_ms" for time in TIMES), *(f"effect_{time}_ms" for time in TIMES)}
"""Metrics that say what others say, or nothing of the target."""


@dataclass(frozen=True, slots=True)
class ComparedFigure:
    """A figure of two runs.

    Attributes:
        name: that of a metric, or what the accounts or the verdict count.
        one: of the first run; None if it is not known.
        other: of the second run; None if it is not known.
        usual: the least and the greatest of other runs like the first; None if they are too few.
    """

    name: str
    one: float | None
    other: float | None
    usual: tuple[float, float] | None = None

    @property
    def change(self) -> float | None:
        """By what share of the first the second is greater; None if that is not known."""
        return None if not self.one or self.other is None else self.other / self.one - 1

    @property
    def is_usual(self) -> bool | None:
        """Whether the second is not outside of what is usual; None if that is not known."""
        return None if self.usual is None or self.other is None else self.usual[0] <= self.other <= self.usual[1]

    def document(self) -> dict[str, Any]:
        """The figure as JSON."""
        usual = None if self.usual is None else list(self.usual)
        return {"name": self.name, "one": self.one, "other": self.other, "change": self.change, "usual": usual}


@dataclass(frozen=True, slots=True)
class ComparedRuns:
    """Two runs beside one another.

    Attributes:
        one, other: the runs.
        differences: what differs between what was done: its name, and the words for it of each.
        figures: of performance.
        accounts: credits and slots, and what the verdict counts.
        alike: how many other runs are like the first.
    """

    one: PastRun
    other: PastRun
    differences: list[tuple[str, str, str]]
    figures: list[ComparedFigure]
    accounts: list[ComparedFigure]
    alike: int

    @classmethod
    def of(cls, one: PastRun, other: PastRun, beside: Iterable[PastRun] = ()) -> ComparedRuns:
        """Compare two runs.

        Args:
            one: the first.
            other: the second.
            beside: runs that may be like the first, to know what is usual.

        Raises:
            CpsimError: one of the two has no figures.
        """
        names = {one.path.resolve(), other.path.resolve()}
        others = [run for run in beside if run.path.resolve() not in names and not run.path.is_symlink()]
        alike = [run for run in others if _likeness(run) == _likeness(one)]
        alike = alike if _likeness(one) is not None and len(alike) >= LEAST_ALIKE else []
        usual = [run.metrics() for run in alike]
        first, second = one.metrics(), other.metrics()
        known = [name for name in SHOWN if name in first or name in second]
        more = sorted(name for name in {*first, *second} - {*SHOWN} - REPEATED if parts_of(name)[1] is None)
        figures = [
            ComparedFigure(name, first.get(name), second.get(name), _range([each.get(name) for each in usual]))
            for name in (*known, *more)
        ]
        return cls(one, other, differences(one, other), figures, _accounts(one, other), len(alike))

    def document(self) -> dict[str, Any]:
        """The comparison as JSON."""
        return {
            "runs": [str(run.path) for run in (self.one, self.other)],
            "verdicts": [run.ruling for run in (self.one, self.other)],
            "differences": [{"what": what, "one": one, "other": other} for what, one, other in self.differences],
            "alike": self.alike,
            "figures": [figure.document() for figure in self.figures],
            "accounts": [figure.document() for figure in self.accounts],
        }


def differences(one: PastRun, other: PastRun) -> list[tuple[str, str, str]]:
    """What differs between what two runs did: its name, and the words for it of each."""
    first, second = facts(one), facts(other)
    return [(name, first[name], second[name]) for name in first if name in second and first[name] != second[name]]


def facts(run: PastRun) -> dict[str, str]:
    """What a run did, where and by what, in words by name; less of a search for capacity."""
    known = {"scenario": run.scenario, "target": run.target}
    figures = run.figures
    if figures is None:
        return known
    machine = [f"{value} processors" if name == "processors" else str(value) for name, value in figures.machine.items()]
    return known | {
        "server": figures.server or "none",
        "seed": str(figures.seed),
        "workload": (figures.workload_sha256 or "unknown")[:12],
        "pace": figures.pace,
        "faults": _faults(figures),
        "interrupted": "yes" if figures.interrupted else "no",
        "machine": ", ".join(machine) or "unknown",
        **{f"version of {name}": number for name, number in figures.versions.items()},
    }


def over_time(runs: Iterable[PastRun]) -> dict[tuple[str, str, str], list[PastRun]]:
    """Runs by scenario, target and pace, the oldest first; only whole runs."""
    found: dict[tuple[str, str, str], list[PastRun]] = {}
    for run in sorted(runs, key=lambda run: (run.at, run.path.name)):
        if run.state == RunState.RUN and run.figures is not None:
            found.setdefault((run.scenario, run.target, run.figures.pace), []).append(run)
    return found


def changes(runs: Sequence[PastRun]) -> list[str]:
    """For each run, what it did otherwise than the one before it; empty where nothing is known to differ."""
    said = [""]
    for before, after in itertools.pairwise(runs):
        said.append("; ".join(f"{what}: {now}" for what, _, now in differences(before, after)))
    return said


def _faults(figures: RunFigures) -> str:
    return ", ".join(str(each.get("fault")) for each in figures.faults) or "none"


def _likeness(run: PastRun) -> tuple[str, ...] | None:
    """What runs alike have in common; None of one that is not whole."""
    if run.state != RunState.RUN or run.figures is None or run.figures.interrupted:
        return None
    did = facts(run)
    return tuple(did[name] for name in ("workload", "target", "server", "pace", "faults", "machine"))


def _range(values: Sequence[float | None]) -> tuple[float, float] | None:
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known and len(known) == len(values) else None


def _accounts(one: PastRun, other: PastRun) -> list[ComparedFigure]:
    """Credits, slots by state, and findings by name; none of a search."""
    if one.figures is None or other.figures is None:
        return []
    found = [ComparedFigure("credits granted", one.figures.credits_granted, other.figures.credits_granted)]
    first, second = one.figures.slots_by_state, other.figures.slots_by_state
    found += [
        ComparedFigure(
            f"slots {state}",
            None if first is None else first.get(state, 0),
            None if second is None else second.get(state, 0),
        )
        for state in dict.fromkeys([*(first or {}), *(second or {})])
    ]
    before, after = ({} if run.verdict is None else run.verdict.anomalies_by_name for run in (one, other))
    found += [ComparedFigure(name, before.get(name, 0), after.get(name, 0)) for name in {**before, **after}]
    return found


def baseline_note(baseline: Path | None, output: OutputFolder) -> str:
    """A sentence on how a run differs from its baseline in what was done.

    It is empty without a baseline, without a whole run folder, and if nothing differs.
    """
    if baseline is None or not output.is_whole:
        return ""
    one, other = past.read(baseline), past.read(output.path)
    said = [f"{what} was {before}, and is {now}" for what, before, now in differences(one, other)]
    if one.state == RunState.RUN and one.ruling != "valid":
        said.insert(0, f"its verdict was {one.ruling}")
    return f"the baseline {baseline} is not the same: {'; '.join(said)}" if said else ""

"""Thresholds on a run's figures: `p99_ms<20`, or `p99_ms<=1.1*baseline`, against the same figure of another run.

A threshold on a figure that the run does not have fails.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final

from cpdaemon.commands import COMMANDS
from cpsim.errors import CpsimError

if TYPE_CHECKING:
    from collections.abc import Mapping

COMPARISONS: Final = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq}
FORM: Final = re.compile(r"\s*([\w.]+(?:\[\w+\])?)\s*(<=|>=|==|<|>)\s*(\d+(?:\.\d+)?(?:e-?\d+)?)(\s*\*\s*baseline)?\s*")
TIMES: Final = ("p50", "p90", "p99", "p99.9", "p99.99", "max")
OUTCOMES: Final = ("accepted", "refused", "unknown")
RATES: Final = {"error_rate": ("refused", "unknown"), "refused_rate": ("refused",), "unknown_rate": ("unknown",)}
APPLY_DELAY_PREFIXES: Final = ("apply_delay_", "effect_")
"""The prefix of metrics of the apply delay, and its earlier name."""
NEED_DUE_TIMES: Final = ("response_", "lateness_")
"""The prefix of metrics that there are only if operations had due times."""
OTHERS: Final = "cpsim.metrics"
"""The group of entry points that are metrics of other packages."""
METRICS: Final = (
    *(f"{time}_ms" for time in TIMES),
    *(f"service_{time}_ms" for time in TIMES),
    *(f"response_{time}_ms" for time in TIMES),
    *(f"{prefix}{time}_ms" for prefix in APPLY_DELAY_PREFIXES for time in TIMES),
    *("lateness_p99_ms", "operations", "operations_per_s", "elapsed_s", "busy"),
    *RATES,
)
"""Names of figures. A time without prefix is the response time if operations had due times, else the service time."""
METRICS_BY_KIND: Final = (
    *(f"{prefix}{time}_ms" for prefix in ("", "service_", "response_") for time in TIMES),
    *("operations", *RATES),
)
"""Those that there are for each kind of command too, as `p99_ms[claim]`."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """A figure, a comparison and a number, which may be times the same figure of another run, the baseline.

    Attributes:
        metric: the name of the figure.
        comparison: one of COMPARISONS.
        limit: the number.
        is_relative: whether the number is times the baseline's figure.
        baseline: that figure, once it is known.
    """

    metric: str
    comparison: str
    limit: float
    is_relative: bool = False
    baseline: float | None = None

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Parse `METRIC<NUMBER` or `METRIC<NUMBER*baseline`; also <=, >, >= and ==.

        METRIC may be that of one kind of command, as `p99_ms[claim]`.

        Raises:
            CpsimError: the text has another form, or the metric is unknown.
        """
        found = FORM.fullmatch(text)
        if found is None:
            raise CpsimError(
                f"{text!r} is not METRIC<NUMBER, such as p99_ms<20, error_rate<0.001 or p99_ms<=1.1*baseline"
            )
        metric, comparison, limit, times_baseline = found.groups()
        known = [*METRICS, *entry_points(group=OTHERS).names]
        name, kind = parts_of(metric)
        if kind is not None and name in known and name not in METRICS_BY_KIND:
            raise CpsimError(f"{name} is of all kinds of commands together: leave out [{kind}]")
        all_known = [*known, *names_by_kind()]
        if metric not in all_known:
            close = get_close_matches(metric, all_known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}; of a kind, p99_ms[claim]"
            raise CpsimError(f"no metric {metric!r}; {hint}")
        return cls(metric, comparison, float(limit), is_relative=times_baseline is not None)

    def against(self, figures: Mapping[str, float]) -> Threshold:
        """The threshold with the figure of a baseline, if it is relative to one.

        Args:
            figures: of the baseline, as `metrics` gives them.

        Raises:
            CpsimError: the baseline has no such figure.
        """
        if not self.is_relative:
            return self
        if self.metric not in figures:
            raise CpsimError(f"{self}: the baseline has no figure {self.metric}")
        return replace(self, baseline=figures[self.metric])

    def holds(self, value: float | None) -> bool:
        """Whether a value meets the threshold; None does not, nor does any where the baseline is not known."""
        limit = self.limit
        if self.is_relative:
            if self.baseline is None:
                return False
            limit *= self.baseline
        return value is not None and bool(COMPARISONS[self.comparison](value, limit))

    def __str__(self) -> str:
        return f"{self.metric}{self.comparison}{self.limit:g}{'*baseline' if self.is_relative else ''}"


@dataclass(frozen=True, slots=True)
class Checked:
    """A threshold, the value of its metric, and why the value is unknown, if it is."""

    threshold: Threshold
    value: float | None
    unknown: str | None = None

    @property
    def holds(self) -> bool:
        """Whether the value meets the threshold."""
        return self.threshold.holds(self.value)

    def document(self) -> dict[str, Any]:
        """The threshold in `run.json`."""
        document = {"assert": str(self.threshold), "value": self.value, "holds": self.holds}
        if self.threshold.is_relative:
            document["baseline"] = self.threshold.baseline
        return document if self.unknown is None else document | {"unknown": self.unknown}

    def __str__(self) -> str:
        missing = f"unknown: {self.unknown}" if self.unknown else "there is no such figure in this run"
        found = missing if self.value is None else f"it was {self.value:g}"
        baseline = self.threshold.baseline
        against = "" if baseline is None else f", and {baseline:g} in the baseline"
        return f"{self.threshold}: {found}{against}"


def names_by_kind() -> list[str]:
    """The names of metrics of one kind of command, as `p99_ms[claim]`."""
    return [f"{name}[{kind}]" for name in METRICS_BY_KIND for kind in COMMANDS]


def parts_of(metric: str) -> tuple[str, str | None]:
    """The name of a metric without the kind of command, and the kind; None if it is of all kinds."""
    name, _, kind = metric.removesuffix("]").partition("[")
    return name, kind or None


def metrics(figures: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a run, from the figures of `run.json`."""
    found = {name: figures[name] for name in ("operations", "operations_per_s", "elapsed_s", "lateness_p99_ms", "busy")}
    found |= _times(figures)
    for prefix in APPLY_DELAY_PREFIXES:
        found |= {f"{prefix}{name}_ms": value for name, value in (figures["effect_ms"] or {}).items()}
    found |= figures.get("metrics", {})
    for kind, times in figures.get("by_kind_ms", {}).items():
        counts_of_kind = figures["by_kind"].get(kind, {})
        operations = sum(counts_of_kind.get(outcome, 0) for outcome in OUTCOMES)
        of_kind = _times(times) | _rates(counts_of_kind, operations) | {"operations": operations}
        found |= {f"{name}[{kind}]": value for name, value in of_kind.items()}
    counts = Counter[str]()
    for outcomes in figures["by_kind"].values():
        counts.update(outcomes)
    found |= _rates(counts, figures["operations"])
    if not figures["operations"]:
        del found["operations_per_s"]
    return {name: value for name, value in found.items() if value is not None}


def _times(figures: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are service and response times, from `service_ms` and `response_ms` of figures."""
    found: dict[str, float] = {}
    for kind in ("service", "response"):
        times = figures[f"{kind}_ms"] or {}
        found |= {f"{kind}_{name}_ms": value for name, value in times.items()}
        found |= {f"{name}_ms": value for name, value in times.items()}
    return found


def _rates(counts: Mapping[str, int], operations: int) -> dict[str, float]:
    """The rates of errors, from counts by outcome; none of no operation."""
    if not operations:
        return {}
    return {name: sum(counts.get(each, 0) for each in outcomes) / operations for name, outcomes in RATES.items()}

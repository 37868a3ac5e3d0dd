"""A verdict as plain values, which JSON carries to another process, and back."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cpsim.judge.corrections import Corrections
from cpsim.judge.granted import Granted
from cpsim.judge.model import SlotState, Span, Step
from cpsim.judge.verdict import Anomaly, Example, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

COUNTERS = ("checked", "counts", "explained", "explained_sums")
AS_THEY_ARE = ("uncertain", "unsearched", "still_listed", "rests_on", "not_verified")


def to_plain(verdict: Verdict) -> dict[str, Any]:
    """A verdict as an object of JSON."""
    return {
        **{name: dict(getattr(verdict, name)) for name in (*COUNTERS, "meanings")},
        **{name: getattr(verdict, name) for name in AS_THEY_ARE},
        **{name: list(map(_anomaly, getattr(verdict, name))) for name in ("anomalies", "explanations")},
        "examples": {name: list(map(_example, examples)) for name, examples in verdict.examples.items()},
        "corrections": verdict.corrections.plain(),
        "granted": _granted(verdict.granted),
    }


def of_plain(document: dict[str, Any]) -> Verdict:
    """The verdict that `to_plain` has made an object of."""
    examples = {name: list(map(_of_example, found)) for name, found in document["examples"].items()}
    fields: dict[str, Any] = {name: document[name] for name in (*AS_THEY_ARE, "meanings")}
    fields |= {name: Counter(document[name]) for name in COUNTERS}
    fields |= {name: list(map(_of_anomaly, document[name])) for name in ("anomalies", "explanations")}
    fields |= {
        "corrections": Corrections.of_plain(document["corrections"]),
        "granted": _of_granted(document["granted"]),
    }
    return Verdict(**fields, examples=defaultdict(list, examples))


def _granted(granted: Granted) -> list[Any]:
    return [granted.holders.to_pylist(), list(granted.names), granted.values.tolist()]


def _of_granted(values: Sequence[Any]) -> Granted:
    holders, names, sums = values
    of_holders = np.array(sums, np.int64).reshape(-1, len(names))
    return Granted(pa.array(holders, pa.string()), tuple(names), of_holders)


def _anomaly(found: Anomaly) -> list[Any]:
    return [found.name, found.subject, found.detail, list(found.slots)]


def _of_anomaly(values: Sequence[Any]) -> Anomaly:
    name, subject, detail, slots = values
    return Anomaly(name, subject, detail, tuple(slots))


def _example(example: Example) -> list[Any]:
    found = example.found
    state = None if found is None else [*found[:4], sorted(found.counters), sorted(found.meta)]
    steps = [[*step[:1], dict(step.arguments), *step[2:]] for step in example.steps]
    return [_anomaly(example.anomaly), steps, list(example.seen), state]


def _of_example(values: Sequence[Any]) -> Example:
    anomaly, steps, seen, state = values
    found = None
    if state is not None:
        *known, counters, meta = state
        found = SlotState(*known, *(frozenset(map(tuple, pairs)) for pairs in (counters, meta)))
    history = tuple(Step(kind, arguments, Span(*span), *rest) for kind, arguments, span, *rest in steps)
    return Example(_of_anomaly(anomaly), history, Span(*seen), found)

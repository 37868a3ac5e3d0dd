"""The history of a slot in the order of time: as text, and as the bars of a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cpsim.judge.model import SlotState, Step
    from cpsim.judge.verdict import Example

THINNEST: Final = 1.0
"""Percent of the picture's width that a bar has at least."""
LABEL_CHARACTERS: Final = 42


class Bar(NamedTuple):
    """One row of the picture: a command from its sending to its answer, or the reading of the final state.

    `begin` and `width` are percent of the picture's width; `when` is the time since the first command, and what became
    of the command.
    """

    begin: float
    width: float
    label: str
    outcome: str
    when: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """A slot's timeline.

    Attributes:
        title: the slot, the anomaly's name, and what is wrong.
        lines: one for each command, and one for the final state.
        bars: one for each line. They are in the order of time and overlap where commands did, but stretches are not to
            scale: each is drawn by its logarithm, so that commands of a millisecond can be told apart in a minute.
        seconds: from the first command to the reading of the final state.
    """

    title: str
    lines: list[str]
    bars: list[Bar]
    seconds: float


def timeline(example: Example) -> Timeline:
    """The timeline of a slot that shows an anomaly."""
    anomaly = example.anomaly
    seen = "not settled or not there" if example.found is None else shown(example.found)
    title = f"{anomaly.subject}: {anomaly.name}: {anomaly.detail}"
    return timeline_of(title, example.steps, (example.seen.earliest_ns, f"seen: {seen}"))


def timeline_of(title: str, steps: Sequence[Step], seen: tuple[int, str] | None = None) -> Timeline:
    """The timeline of a slot's commands.

    Args:
        title: what it shows.
        steps: one at least, in the order of sending.
        seen: when the final state was read, in nanoseconds, and the state; None to leave it out.
    """
    start_ns = steps[0].span.earliest_ns
    rows = [(step.span.earliest_ns, step.over_ns, _said(step), _outcome(step)) for step in steps]
    wide = max(len(said) for _, _, said, _ in rows)
    if seen is not None:
        rows.append((seen[0], seen[0], seen[1], "seen"))
    places = _places([moment for row in rows for moment in row[:2]])
    lines, bars = [], []
    for from_ns, to_ns, said, outcome in rows:
        at = f"{(from_ns - start_ns) / 1e9:+12.6f} s"
        took = "" if outcome == "seen" else f"  {outcome} after {(to_ns - from_ns) / 1e6:.3f} ms"
        lines.append(f"{at}  {said:<{wide}}{took}" if took else f"{at}  {said}")
        label = said if len(said) <= LABEL_CHARACTERS else f"{said[: LABEL_CHARACTERS - 1]}…"
        width = max(places[to_ns] - places[from_ns], THINNEST)
        bars.append(Bar(round(places[from_ns], 2), round(width, 2), label, outcome, f"{at.strip()}{took}"))
    return Timeline(title, lines, bars, (max(places) - start_ns) / 1e9)


def _places(moments_ns: Sequence[int]) -> dict[int, float]:
    """Where each moment is, from 0 to 100 less the width of the thinnest bar."""
    moments = sorted(set(moments_ns))
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    widths = [1 + math.log10(gap / min(gaps)) for gap in gaps]
    scale = (100 - THINNEST) / (sum(widths) or 1)
    places = {moments[0]: 0.0}
    for moment, width in zip(moments[1:], widths, strict=True):
        places[moment] = places[moments[len(places) - 1]] + scale * width
    return places


def shown(state: SlotState) -> str:
    """A state as a phrase."""
    words = [state.phase]
    if state.machine is not None:
        words.append(f"by {state.machine}")
    if state.granted is not None:
        words.append(f"for {state.granted} credits")
    if state.reason is not None:
        words.append(f"as {state.reason}")
    entries = [f"{name}={value}" for name, value in (*sorted(state.counters), *sorted(state.meta))]
    return " ".join(words) + (f", {','.join(entries)}" if entries else "")


def _said(step: Step) -> str:
    arguments = ",".join(f"{name}={value}" for name, value in step.arguments.items() if name != "slot")
    return f"{step.kind} {arguments}".rstrip()


def _outcome(step: Step) -> str:
    if step.applied is None:
        return "unknown"
    return "refused" if step.accepted is False or not step.applied else "accepted"

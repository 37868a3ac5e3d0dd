"""The history of a slot in the order of time: as text, and as the bars of a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from cpsim.judge.model import SlotState, Step
    from cpsim.judge.verdict import Example

WIDTH: Final = 1000
"""The picture's width, in its own units; a row is ROW high, and the bars begin at LEFT."""
ROW: Final = 26
LEFT: Final = 400
THINNEST: Final = 4
LABEL_CHARACTERS: Final = 42


class Bar(NamedTuple):
    """One row of the picture: a command from its sending to its answer, or the reading of the final state."""

    y: int
    x: float
    width: float
    label: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """A slot's timeline.

    Attributes:
        title: the slot, the anomaly's name, and what is wrong.
        lines: one for each command, and one for the final state.
        bars: one for each line.
        height: of the picture.
        seconds: from the first command to the reading of the final state.
    """

    title: str
    lines: list[str]
    bars: list[Bar]
    height: int
    seconds: float


def timeline(example: Example) -> Timeline:
    """The timeline of a slot that shows an anomaly."""
    steps = example.steps
    start_ns = steps[0].span.earliest_ns
    last_ns = max(start_ns + 1, example.seen.earliest_ns, *(step.over_ns for step in steps))
    scale = (WIDTH - LEFT - THINNEST) / (last_ns - start_ns)
    rows = [(step.span.earliest_ns, step.over_ns, _said(step), _outcome(step)) for step in steps]
    seen = "not settled or not there" if example.found is None else shown(example.found)
    rows.append((example.seen.earliest_ns, example.seen.earliest_ns, f"seen: {seen}", "seen"))
    lines, bars = [], []
    wide = max(len(said) for _, _, said, outcome in rows if outcome != "seen")
    for number, (from_ns, to_ns, said, outcome) in enumerate(rows):
        at = f"{(from_ns - start_ns) / 1e9:+12.6f} s  "
        took = "" if outcome == "seen" else f"  {outcome} after {(to_ns - from_ns) / 1e6:.3f} ms"
        lines.append(f"{at}{said:<{wide}}{took}" if took else f"{at}{said}")
        label = said if len(said) <= LABEL_CHARACTERS else f"{said[: LABEL_CHARACTERS - 1]}…"
        x, width = LEFT + scale * (from_ns - start_ns), max(scale * (to_ns - from_ns), THINNEST)
        bars.append(Bar(number * ROW, round(x, 1), round(width, 1), label, outcome))
    anomaly = example.anomaly
    title = f"{anomaly.subject}: {anomaly.name}: {anomaly.detail}"
    return Timeline(title, lines, bars, len(rows) * ROW, (last_ns - start_ns) / 1e9)


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

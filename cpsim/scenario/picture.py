"""Charts of a workload, for a terminal and as SVG: when jobs are allocated, and when and how they end."""

from __future__ import annotations

import itertools
from html import escape
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from cpdaemon.commands import COMMANDS
from cpsim.scenario.workload import KIND_CODES

if TYPE_CHECKING:
    from cpsim.scenario.workload import Int64, Workload

COLUMNS: Final = 64
ROWS: Final = 6
BLOCKS: Final = " ▁▂▃▄▅▆▇█"
CURVES: Final = {kind: f"jobs are {command.state}" for kind, command in COMMANDS.items() if command.state is not None}
"""The commands that begin or end a slot, and the title of each chart."""
COLOURS: Final = dict(zip(CURVES, itertools.cycle(("#4477aa", "#ee6677", "#228833", "#aa3377")), strict=False))
UNITS: Final = ((86_400e6, "d"), (3_600e6, "h"), (60e6, "min"), (1e6, "s"))
WIDTH, HEIGHT, LEFT, GAP = 800, 120, 60, 60


class Curve(NamedTuple):
    """The number of operations of a kind in each interval."""

    kind: str
    counts: Int64


def curves(workload: Workload, columns: int = COLUMNS) -> tuple[list[Curve], int]:
    """The curves of a workload, and their end in microseconds: at 99% of operations, or the end of arrivals."""
    last_us = int(np.quantile(workload.due_us, 0.99)) if len(workload) else 0
    end_us = max(workload.duration_us, last_us, 1)
    found = []
    for kind in CURVES:
        due_us = workload.due_us[workload.kind == KIND_CODES[kind]]
        if len(due_us):
            found.append(Curve(kind, np.histogram(due_us, bins=columns, range=(0, end_us))[0].astype(np.int64)))
    return found, end_us


def text(workload: Workload) -> str:
    """The curves for a terminal, one below the other."""
    drawn, end_us = curves(workload)
    lines = []
    for curve in drawn:
        most = max(int(curve.counts.max()), 1)
        eighths = np.ceil(curve.counts * (ROWS * 8 / most)).astype(np.int64)
        lines.append(f"{CURVES[curve.kind]}: {int(curve.counts.sum()):,}, up to {most:,} in {time(end_us / COLUMNS)}")
        heights = [np.clip(eighths - 8 * row, 0, 8).tolist() for row in reversed(range(ROWS))]
        lines += ["  │" + "".join(BLOCKS[height] for height in row) for row in heights]
        lines.append("  └" + "─" * COLUMNS)
        right = time(end_us)
        lines.append("   0" + " " * (COLUMNS - 1 - len(right)) + right)
    return "\n".join(lines) + "\n"


def svg(workload: Workload) -> str:
    """The curves as an SVG document."""
    drawn, end_us = curves(workload, 200)
    height = len(drawn) * (HEIGHT + GAP) + GAP // 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + LEFT + 20} {height}" font-size="13">',
        f"<title>{escape(workload.name)}</title>",
    ]
    for number, curve in enumerate(drawn):
        bottom = number * (HEIGHT + GAP) + HEIGHT + GAP // 2
        most = max(int(curve.counts.max()), 1)
        step = WIDTH / len(curve.counts)
        points = [f"{LEFT},{bottom}"]
        for place, count in enumerate(curve.counts.tolist()):
            y = bottom - HEIGHT * count / most
            points += [f"{LEFT + place * step:.1f},{y:.1f}", f"{LEFT + (place + 1) * step:.1f},{y:.1f}"]
        points.append(f"{LEFT + WIDTH},{bottom}")
        parts += [
            f'<polygon points="{" ".join(points)}" fill="{COLOURS[curve.kind]}"/>',
            f'<text x="{LEFT}" y="{bottom - HEIGHT - 8}">{CURVES[curve.kind]}: {int(curve.counts.sum()):,}</text>',
            f'<text x="{LEFT - 6}" y="{bottom - HEIGHT + 12}" text-anchor="end">{most:,}</text>',
            f'<text x="{LEFT}" y="{bottom + 18}">0</text>',
            f'<text x="{LEFT + WIDTH}" y="{bottom + 18}" text-anchor="end">{time(end_us)}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def time(time_us: float) -> str:
    """A length of time in its largest unit."""
    for unit_us, unit in UNITS:
        if time_us >= unit_us:
            return f"{time_us / unit_us:.3g} {unit}"
    return f"{time_us / 1e3:.3g} ms"

"""Pages as text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

import jinja2

from cpdaemon.commands import KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
LAST_SHOWN_US: Final = 253_402_300_799_000_000
"""The end of the year 9999."""
NOTHING: Final = "\N{EN DASH}"
LONGEST_SHOWN: Final = 120
LONGEST_LINK: Final = 2_000
CHART: Final = (600, 120)
"""The width and height of a chart, in its own units."""
SHORTEST_S: Final = 0.01


def page(name: str, **values: object) -> str:
    """The page of that name."""
    return _environment().get_template(f"{name}.html.j2").render(page=name, **values)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cpsim.server.dashboard", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": _number, "moment": _moment, "short": _short, "seconds": _seconds}
    environment.globals |= {
        "at": _at,
        "columns": _columns,
        "kinds": tuple(KINDS),
        "version": version("creditpiggy-sim"),
    }
    return environment


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _moment(at_us: int | None) -> str:
    """A time in UTC, to the millisecond."""
    if at_us is None:
        return NOTHING
    if at_us > LAST_SHOWN_US:
        return "never"
    return (EPOCH + timedelta(microseconds=at_us)).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _short(text: object, length: int = LONGEST_SHOWN) -> str:
    """A text, cut to a length."""
    whole = str(text)
    return whole if len(whole) <= length else f"{whole[: length - 1]}…"


def _seconds(duration_s: float | None) -> str:
    if duration_s is None:
        return NOTHING
    if duration_s < SHORTEST_S:
        return f"under {SHORTEST_S * 1000:.0f} ms"
    return f"{duration_s * 1000:,.0f} ms" if duration_s < 1 else f"{duration_s:,.1f} s"


def _at(page_name: str, **query: object) -> str:
    """The address of a page; "" if it is too long."""
    asked = {name: value for name, value in query.items() if value is not None}
    address = f"/{page_name}?{urlencode(asked, errors='replace')}" if asked else f"/{page_name}"
    return address if len(address) <= LONGEST_LINK else ""


def _columns(seconds: Sequence[Mapping[str, int]], most: int) -> list[tuple[str, str]]:
    """The outline of each kind's columns: one per second, stacked, the latest at the right."""
    width, height = CHART
    step = width / 60
    floors = [0.0] * len(seconds)
    outlines = []
    for kind in KINDS:
        path = []
        for index, each in enumerate(seconds):
            tall = each[kind] / most * height if most else 0.0
            if tall:
                left = width - (len(seconds) - index) * step
                path.append(f"M{left:.1f} {height - floors[index]:.1f}h{step - 1:.1f}v{-tall:.1f}h{1 - step:.1f}z")
                floors[index] += tall
        outlines.append((kind, "".join(path)))
    return outlines

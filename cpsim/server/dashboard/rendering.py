"""Pages as text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Final
from urllib.parse import urlencode

import jinja2

from cpsim.faults.spec import ACTIONS, REQUESTS
from cpsim.server.dashboard import charts
from cpsim.ui.pages import live_script, script, style

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
LAST_SHOWN_US: Final = 253_402_300_799_000_000
"""The end of the year 9999."""
NOTHING: Final = "\N{EN DASH}"
LONGEST_SHOWN: Final = 120
LONGEST_LINK: Final = 2_000
FEW_S: Final = 0.01
"""Seconds below which two decimals of a millisecond are shown."""


def page(name: str, **values: object) -> str:
    """The page of that name."""
    return _environment().get_template(f"{name}.html.j2").render(page=name, **values)


@cache
def file(name: str) -> str:
    """The stylesheet or the script, with what all pages have in common."""
    own = files("cpsim.server.dashboard").joinpath(name).read_text(encoding="utf-8")
    return style() + own if name.endswith(".css") else own + script() + live_script()


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
        "actions": ACTIONS,
        "requests": REQUESTS,
        "over_time": charts.over_time,
        "waterfall": charts.waterfall,
        "version": version("creditpiggy-sim"),
    }
    return environment


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _moment(at_us: int | None) -> str:
    """A time in UTC, to the millisecond, with its offset."""
    if at_us is None:
        return NOTHING
    if at_us > LAST_SHOWN_US:
        return "never"
    return (EPOCH + timedelta(microseconds=at_us)).isoformat(" ", "milliseconds")


def _short(text: object, length: int = LONGEST_SHOWN) -> str:
    """A text, cut to a length."""
    whole = str(text)
    return whole if len(whole) <= length else f"{whole[: length - 1]}…"


def _seconds(duration_s: float | None) -> str:
    if duration_s is None:
        return NOTHING
    if duration_s < FEW_S:
        return f"{duration_s * 1000:.2f} ms"
    return f"{duration_s * 1000:,.0f} ms" if duration_s < 1 else f"{duration_s:,.1f} s"


def _at(page_name: str, **query: object) -> str:
    """The address of a page; "" if it is too long."""
    asked = {name: value for name, value in query.items() if value is not None}
    address = f"/{page_name}?{urlencode(asked, errors='replace')}" if asked else f"/{page_name}"
    return address if len(address) <= LONGEST_LINK else ""

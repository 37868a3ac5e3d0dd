"""Pages that are one file: their common layout, stylesheet and script, with the chart library in it."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import jinja2


@cache
def template(package: str, name: str) -> jinja2.Template:
    """A template of a package, which extends `layout.html.j2`.

    The layout needs `title`, `contents` (what the sections are) and `sections` (anchor and name of each). With
    `live`, the page is refreshed from `/`; it then needs a button `pause` and a place `news`.
    """
    loader = jinja2.DictLoader({"layout.html.j2": _text("layout.html.j2"), name: _text(name, package)})
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {"style": style(), "script": script(), "live_script": live_script()}
    return environment.get_template(name)


def style() -> str:
    """The stylesheet of pages, with the chart library's."""
    return _text("vendor/uplot/uPlot.min.css") + _text("page.css")


def script() -> str:
    """The script of pages, with the chart library."""
    return _text("vendor/uplot/uPlot.iife.min.js") + _text("page.js")


def live_script() -> str:
    """The script that refreshes a page which changes."""
    return _text("live.js")


def _text(name: str, package: str = "cpsim.ui") -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")

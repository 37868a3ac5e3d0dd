"""How the documentation is built: `nox -s docs`. It fetches nothing, and neither does what is built."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING

from pygments.lexers import TextLexer
from sphinx.errors import ExtensionError

if TYPE_CHECKING:
    import click
    from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

FETCHED = {
    ".html": re.compile(r"<(?:script|img|iframe|link)\b[^>]*\s(?:src|href)=\"(?:https?:)?//[^\"]*"),
    ".css": re.compile(r"(?:@import|url\()\s*['\"]?(?:https?:)?//[^'\")]*"),
}
LONE_STAR = re.compile(r"(?<!\*)\*(?!\*)")
project = "cpsim"
author = "the cpsim authors"
release = version = installed("creditpiggy-sim")
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
    "generated",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"cpsim {version}"
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False
html_theme_options = {"footer_icons": []}
pygments_style = "default"
pygments_dark_style = "github-dark"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
default_role = "code"
smartquotes = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "inherited-members": False}
autoclass_content = "class"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
suppress_warnings = ["config.cache"]


def as_text(_: Sphinx, __: click.Context, lines: list[str]) -> None:
    """Show the examples in the help of a command as they are, and a star as a star."""
    shown: list[str] = []
    before = ""
    for line in lines:
        if line.startswith("| "):
            shown += [] if before.startswith("| ") else ["", ".. code-block:: text", ""]
            shown.append(f"    {line[2:]}")
        else:
            shown.append(LONE_STAR.sub(r"\*", line))
        before = line
    lines[:] = shown


def fetches_nothing(app: Sphinx, error: Exception | None) -> None:
    """See to it that no page asks another site for anything."""
    if error is None:
        for path in Path(app.outdir).rglob("*"):
            pattern = FETCHED.get(path.suffix)
            if pattern is not None and (found := pattern.search(path.read_text(encoding="utf-8"))):
                raise ExtensionError(f"{path} would fetch {found[0]}")


def setup(app: Sphinx) -> None:
    """Make known what the extensions do not know."""
    app.connect("build-finished", fetches_nothing)
    app.add_lexer("csv", TextLexer)
    for part in ("description", "options"):
        app.connect(f"sphinx-click-process-{part}", as_text)

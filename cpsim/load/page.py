"""The verdict on Locust's page, in a tab of its own."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from flask import request

if TYPE_CHECKING:
    from flask import Response
    from locust.web import WebUI

    from cpsim.load.telling import Told

KEY: Final = "verdict"
STYLE: Final = "<style>.MuiFormControl-root:has(input[name=userCount],input[name=spawnRate]){display:none}</style>"
"""Hides the fields for users and their ramp, which Locust shows without effect."""


def show_verdict(page: WebUI, told: Told) -> None:
    """Add a tab to Locust's page with what the last run came to, and hide what means nothing to a replay."""
    columns = [{"key": "what", "title": "Last run"}, {"key": "found", "title": ""}]
    page.template_args |= {
        "extended_tabs": [{"title": "Verdict", "key": KEY}],
        "extended_tables": [{"key": KEY, "structure": columns}],
    }

    @page.app.after_request
    def add_verdict(response: Response) -> Response:
        if request.path == "/stats/requests" and response.is_json:
            document = response.get_json()
            document["extended_stats"] = [{"key": KEY, "data": rows(told.text or told.so_far)}]
            response.set_data(json.dumps(document))
        elif request.path == "/" and response.mimetype == "text/html":
            response.set_data(response.get_data(as_text=True).replace("</head>", f"{STYLE}</head>", 1))
        return response


def rows(told: str) -> list[dict[str, str]]:
    """The lines of a summary as rows of a table, a name and what follows it; the verdict comes first."""
    lines = [line for line in told.splitlines() if line.strip()]
    lines.sort(key=lambda line: not line.startswith("verdict"))
    if not lines:
        return [{"what": "There is no verdict yet.", "found": ""}]
    parts = (re.split(r"(?<=\S)\s{2,}", line) for line in lines)
    return [{"what": what, "found": ", ".join(found)} for what, *found in parts]

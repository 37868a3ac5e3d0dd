"""The heartbeat answers POST with 403 and HTML."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cpsim.quirks.policies.request import page

if TYPE_CHECKING:
    from cpsim.net.http.messages import Request, Response
    from cpsim.quirks.policies.request import RequestPolicy


def request(requests: RequestPolicy) -> RequestPolicy:
    """Return how the server reads and answers requests with it."""
    return replace(requests, before=(*requests.before, _refuse_post))


def _refuse_post(request: Request, folder: str, _: str) -> Response | None:
    if folder != "heartbeat" or request.method != "POST":
        return None
    return page(403, "403 Forbidden")

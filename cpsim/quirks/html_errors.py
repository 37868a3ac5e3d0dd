"""A malformed number in a single command is an HTML 500, and so are a body that is no object, and other methods.

Without a signature they are 400; the list of slots is answered by any method.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cpsim.quirks.policies.request import broken_off

if TYPE_CHECKING:
    from cpsim.net.http.messages import Request, Response
    from cpsim.quirks.policies.request import RequestPolicy


def request(requests: RequestPolicy) -> RequestPolicy:
    """Return how the server reads and answers requests with it."""
    return replace(requests, methods=None, page=True, signed=(*requests.signed, _refuse_method))


def _refuse_method(request: Request, folder: str, name: str) -> Response | None:
    if request.method in {"GET", "POST"} or (folder, name) == ("batch", "slots"):
        return None
    return broken_off()

"""Success as text is an empty body, unless there is data; an error's second line is `message: ...`.

A malformed body is 500; errors of a bulk are an HTML 500; a value ends at a second `=`, and names keep their blanks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cpsim.quirks.policies.request import broken_off

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from cpsim.net.http.messages import Failure, Request, Response
    from cpsim.quirks.policies.request import RequestPolicy


def request(requests: RequestPolicy) -> RequestPolicy:
    """Return how the server reads and answers requests with it."""
    return replace(requests, read_text=_read, formats={**requests.formats, "text": _write})


def _read(body: bytes) -> dict[str, Any]:
    fields = [field.split("=") for field in body.decode("utf-8", "replace").split(",")]
    if not all(len(field) > 1 for field in fields):
        from cpsim.net.http.messages import Failure  # noqa: PLC0415 - see `broken_off`

        raise Failure(500, "the body is not name=value,name=value")
    return {field[0]: field[1] for field in fields}


def _write(_: Request, answer: Mapping[str, object] | Failure) -> Response:
    from cpsim.net.http.messages import Failure, Response  # noqa: PLC0415 - likewise

    content_type = b"text/plain; charset=utf-8"
    if isinstance(answer, Failure):
        return Response(answer.status, f"ERROR\nmessage: {answer}\n".encode(), content_type)
    if "errors" in answer:
        return broken_off()
    data = answer.get("data")
    lines = data if isinstance(data, list) else []
    return Response(200, "".join(f"{line}\n" for line in lines).encode(), content_type)

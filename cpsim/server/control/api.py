"""The control API under `/__cpsim/`: an `Inspector` over HTTP.

A request calls a method of the inspector, with its query and body as arguments. The answer is the result, as JSON
unless the request's name says otherwise. `GET /__cpsim/openapi.json` describes all requests.
`GET /metrics` has the metrics of the server and its daemons, for whoever has access to the control API.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

import msgspec

from cpsim.errors import CpsimError
from cpsim.metrics.exposition import METRICS_PATH, exposition
from cpsim.net.http.messages import Failure, Request, Response
from cpsim.server.control import openapi
from cpsim.server.control.actions import ACTIONS, JSON, WITHIN
from cpsim.server.control.expectations import Expectation
from cpsim.server.control.inspection import Unknown
from cpsim.server.control.waiting import Provisional
from cpsim.server.journal import JournalFull
from cpsim.system.extras import MissingExtra

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cpsim.metrics.exposition import Family
    from cpsim.net.http.messages import Headers
    from cpsim.server.control.access import Access
    from cpsim.server.control.actions import ControlAction
    from cpsim.server.control.fault_inspection import FaultInspector
    from cpsim.server.dashboard.pages import Dashboard

CONTROL_PATH: Final = "/__cpsim/"
DESCRIPTION: Final = "openapi.json"


class Control:
    """Answers control requests.

    Args:
        inspector: reads and changes the accounts, or whatever the requests are about.
        access: checks requests.
        dashboard: the pages.
        metrics: returns the metrics, if there are any; raises CpsimError.
        actions: the requests, by method and name.
    """

    def __init__(
        self,
        inspector: FaultInspector,
        access: Access,
        dashboard: Dashboard | None = None,
        metrics: Callable[[], Iterable[Family]] | None = None,
        actions: Mapping[tuple[str, str], ControlAction] = ACTIONS,
    ) -> None:
        self._inspector = inspector
        self._access = access
        self._dashboard = dashboard
        self._metrics = metrics
        self._actions = actions

    def covers(self, path: str) -> bool:
        """Whether a request path belongs to the control API."""
        return path.startswith(CONTROL_PATH) or (path == METRICS_PATH and self._metrics is not None)

    def page(self, request: Request) -> Response | None:
        """The page of a request; None if there is no such page."""
        if self._dashboard is None or not self._dashboard.covers(request.path):
            return None
        return self._dashboard.respond(request)

    def respond(self, request: Request) -> Response:
        """Answer one control request."""
        try:
            self._access.check(request)
            return self._answer(request, request.path.removeprefix(CONTROL_PATH))
        except Failure as failure:
            return error_response(failure.status, failure, failure.headers)
        except Unknown as error:
            return error_response(404, error)
        except ValueError as error:  # of clock, faults and quirks: arguments of another shape have failed before
            return error_response(409, error)
        except MissingExtra as error:
            return error_response(501, error)
        except (JournalFull, CpsimError) as error:  # a record is full
            return error_response(507, error)

    def _scrape(self, request: Request, metrics: Callable[[], Iterable[Family]]) -> Response:
        if request.method != "GET":
            raise Failure(405, f"{METRICS_PATH} supports GET", ((b"allow", b"GET"),))
        content_type, text = exposition(metrics(), request.headers.get(b"accept", b"").decode("latin-1"))
        return Response(200, text, content_type)

    def _answer(self, request: Request, name: str) -> Response:
        if request.path == METRICS_PATH and self._metrics is not None:
            return self._scrape(request, self._metrics)
        methods = ["GET"] if name == DESCRIPTION else [method for method, known in self._actions if known == name]
        if not methods:
            raise Failure(404, f"there is no {request.path!r}; {CONTROL_PATH}{DESCRIPTION} describes the requests")
        if request.method not in methods:
            allowed = ", ".join(methods)
            raise Failure(405, f"{request.path} supports {allowed}", ((b"allow", allowed.encode()),))
        if name == DESCRIPTION:
            return Response(200, _line(openapi.document(self._actions, needs_token=self._access.needs_token)))
        action = self._actions[request.method, name]
        arguments = _arguments(action, request)
        within_s = arguments.pop(WITHIN, 0.0)
        answer = action.perform(self._inspector, **arguments)
        if isinstance(answer, Expectation) and not answer.final and within_s:
            return Provisional(200, _line(answer), within_s=within_s)
        body = _line(answer) if action.content_type == JSON else answer
        return Response(200, body, action.content_type.encode())


def _arguments(action: ControlAction, request: Request) -> dict[str, Any]:
    pairs = parse_qsl(request.query.decode("utf-8", "replace"), keep_blank_values=True)
    if len(dict(pairs)) < len(pairs):
        raise Failure(400, "an argument of the query is given twice")
    try:
        query = msgspec.convert(dict(pairs), action.query, strict=False)
    except ValueError as error:
        raise Failure(400, f"the query does not fit: {error}") from error
    given = ((name, getattr(query, name)) for name in query.__struct_fields__)
    arguments = {name: value for name, value in given if value is not msgspec.UNSET}
    if action.body is not None:
        try:
            arguments[action.body] = msgspec.json.decode(request.body, type=action.hints[action.body])
        except (ValueError, RecursionError) as error:
            raise Failure(400, f"the body does not fit: {error}") from error
    elif request.body.strip():
        raise Failure(400, f"{request.path} takes no body: its arguments go into the query")
    return arguments


def error_response(status: int, message: object, headers: Headers = ()) -> Response:
    """The answer to a request that is refused, as the control API has it."""
    return Response(status, _line(openapi.Error(result="error", message=str(message))), headers=headers)


def _line(value: object) -> bytes:
    """A value as a line of JSON."""
    return msgspec.json.encode(value) + b"\n"

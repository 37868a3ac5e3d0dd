"""One HTTP connection: uvicorn's, which answers at once what can be answered at once.

For each request uvicorn starts a task and exchanges events with the application. That is for requests whose bodies
or answers have to be waited for. One that is here whole, and whose answer needs no waiting, is answered in the same
step: that takes half the time. All else, and all that HTTP asks for, is left to uvicorn.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from cpsim.server.messages import Request, Response

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

FAILED = Response(HTTPStatus.INTERNAL_SERVER_ERROR, b"Internal Server Error", b"text/plain; charset=utf-8")


class Connection(HttpToolsProtocol):
    """Serves an application that has a method `at_once` besides: the answer to a whole request, or None."""

    _waiting: tuple[RequestResponseCycle, Any] | None = None
    """The request that is not answered yet, nor has a task, while its body arrives."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401 - uvicorn's
        is_whole = not cycle.more_body  # it has stood in line behind others
        if is_whole or cycle.waiting_for_100_continue or cycle.scope["method"] not in {"GET", "POST"}:
            super()._start_asgi_task(cycle, app)
        else:
            self._waiting = cycle, app

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self._waiting is not None and self.flow.read_paused:
            self._wait_no_longer()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self._waiting is not None and self._waiting[0] is self.cycle:
            response = self._at_once(self.cycle)
            if response is None:
                self._wait_no_longer()
            else:
                self._waiting = None
                self._answer(self.cycle, response)

    def _wait_no_longer(self) -> None:
        assert self._waiting is not None
        waiting, self._waiting = self._waiting, None
        super()._start_asgi_task(*waiting)

    def _at_once(self, cycle: RequestResponseCycle) -> Response | None:
        scope = cycle.scope
        request = Request(
            scope["method"], scope["path"], scope["query_string"], dict(scope["headers"]), bytes(cycle.body)
        )
        try:
            response: Response | None = self.config.app.at_once(request)  # type: ignore[union-attr]
        except Exception:
            self.logger.exception("Exception in the application")
            cycle.keep_alive = False
            return FAILED
        return response

    def _answer(self, cycle: RequestResponseCycle, response: Response) -> None:
        head = b"%scontent-type: %s\r\ncontent-length: %d\r\n" % (
            STATUS_LINE[response.status],
            response.content_type,
            len(response.body),
        )
        for name, value in response.headers:
            head += b"%s: %s\r\n" % (name, value)
        if not cycle.keep_alive:
            head += b"connection: close\r\n"
        self.transport.write(b"%s\r\n%s" % (head, response.body))
        cycle.response_started = cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()

"""One HTTP connection: uvicorn's, which answers at once what can be answered at once.

For each request uvicorn starts a task, which exchanges events with the application. That is for requests whose
bodies or answers must be waited for. One that is soon here whole, and whose answer needs no waiting, is answered in
the step in which it is complete, in half the time. Until then it is only noted, so that uvicorn can still take it
over. All others, and all else that HTTP asks for, are uvicorn's from the beginning.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Protocol

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from cpsim.server.messages import Request, Response

FAILED = Response(HTTPStatus.INTERNAL_SERVER_ERROR, b"Internal Server Error", b"text/plain; charset=utf-8")


class Prompt(Protocol):
    """An ASGI application that can do without."""

    def at_once(self, request: Request) -> Response | None:
        """The answer to a whole request, or None if it must be waited for."""


class Connection(HttpToolsProtocol):
    """Serves a `Prompt` application."""

    _body: bytes | None = None
    """That of the request which is only noted, as far as it has come; None while there is none."""

    def on_headers_complete(self) -> None:  # noqa: D102 - inherited
        if self._is_plain():
            self._body = b""
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:  # noqa: D102 - inherited
        if self._body is None:
            super().on_body(body)
            return
        self._body += body
        if len(self._body) > HIGH_WATER_LIMIT:
            self._hand_over()

    def on_message_complete(self) -> None:  # noqa: D102 - inherited
        if self._body is not None:
            response = self._answer(self._body)
            if response is not None:
                self._body = None
                self._send(response)
                return
            self._hand_over()
        super().on_message_complete()

    def shutdown(self) -> None:  # noqa: D102 - inherited
        if self._body is not None:
            self._hand_over()  # what has begun is answered
        super().shutdown()

    def _is_plain(self) -> bool:
        """Whether nothing about a request needs uvicorn."""
        return (
            (self.cycle is None or self.cycle.response_complete)
            and not self.expect_100_continue
            and not self.parser.should_upgrade()
            and self.parser.get_method() in {b"GET", b"POST"}
            and self.url.startswith(b"/")
            and not self.url.startswith(b"//")
            and b"%" not in self.url
            and b"#" not in self.url
            and self.url.isascii()
        )

    def _hand_over(self) -> None:
        """Let uvicorn have the request."""
        body, self._body = self._body, None
        super().on_headers_complete()
        if body:
            super().on_body(body)

    def _answer(self, body: bytes) -> Response | None:
        path, _, query = self.url.partition(b"?")
        request = Request(self.parser.get_method().decode(), path.decode(), query, dict(self.headers), body)
        app: Prompt = self.config.app  # type: ignore[assignment]
        try:
            return app.at_once(request)
        except Exception:
            self.logger.exception("Exception in the application")
            return FAILED

    def _send(self, response: Response) -> None:
        head = b"%scontent-type: %s\r\ncontent-length: %d\r\n" % (
            STATUS_LINE[response.status],
            response.content_type,
            len(response.body),
        )
        for name, value in response.headers:
            head += b"%s: %s\r\n" % (name, value)
        if response is not FAILED and self.parser.should_keep_alive() and self.parser.get_http_version() != "1.0":
            self.transport.write(b"%s\r\n%s" % (head, response.body))
        else:
            self.transport.write(b"%sconnection: close\r\n\r\n%s" % (head, response.body))
            self.transport.close()
        self.on_response_complete()

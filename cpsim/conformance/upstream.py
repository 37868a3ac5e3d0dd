"""The server that a daemon under test forwards to: it records deliveries, and answers them as the test sets.

It keeps no accounts. A batch is *applied* if a real server would have applied it: if its answer was a success, or would
have been one had it not been lost.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote

from cpdaemon.commands import KINDS
from cpsim.clock import SYSTEM_CLOCK
from cpsim.system.threads import Thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    from cpdaemon.endpoint import TcpEndpoint
    from cpdaemon.signing import Call

BATCH_HEADER: Final = "CreditPiggy-Batch"
LONGEST_HANG_S: Final = 600.0
PAGE: Final = b"<h1>Server Error (500)</h1>"
ANSWERS: Final = ("ok", "500", "503", "not-json", "hang", "cut", "lose", "errors")
"""How a batch may be answered: `cut` and `lose` apply it first; `errors` applies all of it but what is refused."""
LONGEST_LINE_BYTES: Final = 65_536
APPLYING: Final = {"ok", "cut", "lose", "errors"}


@dataclass(frozen=True, slots=True)
class Delivery:
    """A request that carried commands.

    Attributes:
        at_s: the time of its arrival, on the monotonic clock.
        path: the path, such as `/api/batch/bulk`.
        batch_id: the batch's id; "" if it has none.
        commands: in the order in which a server applies them.
        signature_error: what is wrong with its signature; "" if nothing is.
        answer: one of `ANSWERS`.
        applied: whether a server would have applied it, once for a batch id.
    """

    at_s: float
    path: str
    batch_id: str
    commands: tuple[Call, ...]
    signature_error: str
    answer: str
    applied: bool


@dataclass(slots=True)
class _AnswerRule:
    """The answer to the next `count` batches, and the slots whose commands are refused."""

    answer: str = "ok"
    count: int | None = None
    refused: frozenset[str] = field(default_factory=frozenset)


class Upstream:
    """A server for a daemon under test; a context manager.

    Args:
        address: where it listens; port 0 takes a free one, which `address` then has.
        credentials: (project id, secret) that requests should be signed with.
        knows_batches: whether it applies a batch id once, and says so.

    Raises:
        OSError: the address cannot be listened at (from `start`).
    """

    def __init__(self, address: TcpEndpoint, credentials: tuple[str, str], *, knows_batches: bool = False) -> None:
        self.host, self.port = address.host, address.port
        self.knows_batches = knows_batches
        self._credentials = credentials
        self._deliveries: list[Delivery] = []
        self._changed = threading.Condition()
        self._rule = _AnswerRule()
        self._rule_changes = 0
        self._server: _Server | None = None
        self._thread: Thread | None = None
        self._placeholder: socket.socket | None = None

    def start(self) -> None:
        """Start or restart serving."""
        if self._placeholder is not None:
            self._placeholder.close()
            self._placeholder = None
        self._server = _Server(self, (self.host, self.port))
        self.port = self._server.server_address[1]
        self._thread = Thread(partial(self._server.serve_forever, 0.01), "cpsim-upstream")
        self._thread.start()

    def serve_normally(self) -> None:
        """Answer every request normally from now on."""
        self.answer("ok")
        if self._server is None:
            self.start()

    def refuse(self) -> None:
        """Close every connection and refuse new ones until `start`; the address stays bound."""
        self.stop()
        self._placeholder = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        self._placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._placeholder.bind((self.host, self.port))

    def stop(self) -> None:
        """Close every connection, and release the address.

        Raises:
            ThreadFailed: an unexpected error kept a request from being answered; the server has stopped all the same.
        """
        self.answer("ok")
        if self._placeholder is not None:
            self._placeholder.close()
            self._placeholder = None
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.break_off()
            self._server.server_close()
            thread, self._server, self._thread = self._thread, None, None
            thread.check()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def answer(self, answer: str, count: int | None = None, refused: frozenset[str] = frozenset()) -> None:
        """Set the answer to the next `count` batches, or to all.

        Args:
            answer: one of `ANSWERS`.
            count: for how many batches; "ok" follows.
            refused: ids of slots whose commands are refused, for "errors".
        """
        assert answer in ANSWERS
        with self._changed:
            self._rule = _AnswerRule(answer, count, refused)
            self._rule_changes += 1
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Have `stop` raise an unexpected error."""
        if self._thread is not None:
            self._thread.fail(error)

    @property
    def deliveries(self) -> list[Delivery]:
        """The requests that carried commands, in the order of arrival."""
        with self._changed:
            return list(self._deliveries)

    def wait_for(self, condition: Callable[[list[Delivery]], bool], timeout_s: float) -> bool:
        """Wait until the deliveries fulfil a condition; returns whether they did in time."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self._deliveries), timeout_s)

    def take(
        self, path: str, batch_id: str, commands: tuple[Call, ...], signature_error: str
    ) -> tuple[str, int, bytes]:
        """Record a request; returns the kind of answer, and the status and body of a well-formed one."""
        with self._changed:
            rule = self._rule
            answer = rule.answer if commands else "ok"
            if commands and rule.count is not None:
                rule.count -= 1
                if rule.count <= 0:
                    self._rule = _AnswerRule()
            again = self.knows_batches and any(seen.applied and seen.batch_id == batch_id for seen in self._deliveries)
            applied = answer in APPLYING and not (again and batch_id) and not signature_error
            if commands:
                delivery = Delivery(
                    SYSTEM_CLOCK.monotonic(), path, batch_id, commands, signature_error, answer, applied
                )
                self._deliveries.append(delivery)
            self._changed.notify_all()
            if answer == "hang":
                before = self._rule_changes
                self._changed.wait_for(lambda: self._rule_changes > before, LONGEST_HANG_S)
        document: dict[str, Any] = {"result": "ok"}
        if batch_id and self.knows_batches:
            document["batch"] = batch_id
        if signature_error:
            return answer, *_reply(401, {"result": "error", "message": signature_error}, path)
        if answer == "errors":
            refused = [call for call in commands if str(call[1].get("slot")) in rule.refused]
            errors = [{"message": f"slot {call[1]['slot']} is refused", "code": 500} for call in refused]
            if errors and _place(path)[0] != "bulk":
                return answer, *_reply(500, {"result": "error", "message": errors[0]["message"]}, path)
            document["errors"] = errors
        return answer, *_reply(200, document, path)

    def signature_error(self, token: str, payload: bytes) -> str:
        """What is wrong with the token that a request carries; "" if nothing is."""
        project, secret = self._credentials
        parts = token.strip().split(",")
        if len(parts) != 3:
            return "its Authorization is not ALGORITHM,PROJECT,DIGEST"
        algorithm = parts[0].lower()
        if algorithm not in {"sha-1", "sha-256", "sha-512"}:
            return f"it is signed with {parts[0]!r}"
        if parts[1].lower() != project.lower():
            return f"it is signed for project {parts[1]!r}"
        digest = hashlib.new(algorithm.replace("-", ""), payload + secret.encode()).hexdigest()
        return "" if hmac.compare_digest(digest.encode(), parts[2].lower().encode()) else "its digest does not match"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, upstream: Upstream, address: tuple[str, int]) -> None:
        self.upstream = upstream
        self.connections: set[socket.socket] = set()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def break_off(self) -> None:
        """End every connection."""
        for connection in list(self.connections):
            _end(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as socketserver has it
        """Say nothing of clients that have gone."""
        del request, client_address
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            self.upstream.fail(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server.connections.add(self.request)
        super().setup()

    def finish(self) -> None:
        self.server.connections.discard(self.request)
        super().finish()

    def log_message(self, *_: object) -> None:
        """Log nothing: requests are recorded elsewhere."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        signed, _, token = query.rpartition("auth=")
        signed = signed.removesuffix("&")
        self._take(path, signed.encode(), dict(parse_qsl(signed, keep_blank_values=True)), unquote(token))

    def do_POST(self) -> None:
        try:
            body = self._body()
        except ValueError:
            self.close_connection = True
            self._respond(400, b"the length of the body is no number", "text/plain")
            return
        path = self.path.partition("?")[0]
        document = _pairs(body) if _place(path)[1] == "text" else _decoded(body or b"{}")
        self._take(path, body, document, self.headers.get("Authorization", ""))

    def _body(self) -> bytes:
        """The body, whole or in chunks, as HTTP/1.1 lets a client choose. Raises ValueError if it is neither."""
        if self.headers.get("Transfer-Encoding", "").strip().lower() != "chunked":
            return self._read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(LONGEST_LINE_BYTES).partition(b";")[0], 16):
            body += self._read(size)
            self.rfile.readline(LONGEST_LINE_BYTES)
        while self.rfile.readline(LONGEST_LINE_BYTES).strip():
            pass  # trailers
        return body

    def _read(self, size: int) -> bytes:
        if size < 0:
            raise ValueError(f"a body cannot have {size} bytes")
        return self.rfile.read(size)

    def _take(self, path: str, payload: bytes, document: object, token: str) -> None:
        upstream = self.server.upstream
        if path.endswith("/heartbeat"):
            self._respond(200, b"OK", "text/plain")
            return
        commands = tuple(_commands(path, document))
        signature_error = upstream.signature_error(token, payload)
        answer, status, body = upstream.take(path, self.headers.get(BATCH_HEADER, ""), commands, signature_error)
        if answer in {"lose", "hang"}:
            self.close_connection = True
            _end(self.request)
        elif answer == "cut":
            self.close_connection = True
            self._respond(200, body, sent=len(body) // 2)
        elif answer == "not-json":
            self._respond(200, PAGE, "text/html")
        elif answer in {"500", "503"}:
            self._respond(int(answer), PAGE, "text/html")
        else:
            self._respond(status, body, "text/plain" if _place(path)[1] == "text" else "application/json")

    def _respond(self, status: int, body: bytes, kind: str = "application/json", sent: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:sent])


def _end(connection: socket.socket) -> None:
    with suppress(OSError):  # it may have ended already
        connection.shutdown(socket.SHUT_RDWR)


def _place(path: str) -> tuple[str, str]:
    """The name in a path, such as bulk, and the suffix, which selects the format."""
    name, _, suffix = path.rpartition("/")[2].partition(".")
    return name, suffix


def _pairs(text: bytes) -> dict[str, str] | None:
    """`name=value,name=value`; None if it is not that."""
    try:
        return dict(pair.split("=", 1) for pair in text.decode().strip().split(",") if pair)
    except ValueError:
        return None


def _reply(status: int, document: dict[str, Any], path: str) -> tuple[int, bytes]:
    """A status, and a document in the format that a path asks for."""
    if _place(path)[1] == "text":
        lines = [f"{name}: {value}" for name, value in document.items()]
        return status, "\n".join(lines if status == 200 else ["ERROR", *lines]).encode()
    return status, json.dumps(document).encode()


def _commands(path: str, document: object) -> Iterator[Call]:
    """The commands of a request, in the order in which a server applies them."""
    kind = _place(path)[0]
    if not isinstance(document, dict):
        return
    if kind in KINDS:
        yield kind, document
    elif kind == "bulk":
        for name in KINDS:
            members = document.get(name)
            members = _decoded(members) if isinstance(members, str) else members
            if isinstance(members, list):
                yield from ((name, arguments) for arguments in members if isinstance(arguments, dict))


def _decoded(text: bytes | str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None

"""The server that a daemon under test forwards to: it records deliveries, and answers them as the test sets.

It keeps no accounts. A batch is *applied* if a real server would have applied it: if its answer was a success, or would
have been one had it not been lost.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import socket
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote_to_bytes

from cpdaemon.commands import KINDS
from cpsim.clock import SYSTEM_CLOCK
from cpsim.net.http.carrier import Carrier
from cpsim.net.http.messages import Cut, Ending, Response
from cpsim.net.refusal import refusing

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from cpdaemon.endpoint import TcpEndpoint
    from cpdaemon.signing import Call
    from cpsim.net.http.application import Answer, Caller
    from cpsim.net.http.messages import Request

BATCH_HEADER: Final = b"creditpiggy-batch"
LONGEST_HANG_S: Final = 600.0
PAGE: Final = b"<h1>Server Error (500)</h1>"
ANSWERS: Final = ("ok", "500", "503", "not-json", "hang", "cut", "lose", "errors")
"""How a batch may be answered: `cut` and `lose` apply it first; `errors` applies all of it but what is refused."""
PLAIN: Final = b"text/plain"
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
        self._rule_changed = _promise()
        self._carrier: Carrier[Response] | None = None
        self._placeholder: socket.socket | None = None

    def start(self) -> None:
        """Start or restart serving."""
        sock, self._placeholder = self._placeholder or self._bound(), None
        self.port = sock.getsockname()[1]
        self._carrier = Carrier(_Answers(self), [sock], "cpsim-upstream")
        self._carrier.start()
        self._carrier.call(self._carrier.accept)

    def serve_normally(self) -> None:
        """Answer every request normally from now on."""
        self.answer("ok")
        if self._carrier is None:
            self.start()

    def refuse(self) -> None:
        """Close every connection and refuse new ones until `start`; the address stays bound."""
        self.stop()
        self._placeholder = self._bound()

    def _bound(self) -> socket.socket:
        """A socket that has the address and does not listen."""
        return refusing(socket.AF_INET6 if ":" in self.host else socket.AF_INET, (self.host, self.port))

    def stop(self) -> None:
        """Close every connection, and release the address.

        Raises:
            ThreadFailed: an unexpected error kept a request from being answered; the server has stopped all the same.
        """
        self.answer("ok")
        if self._placeholder is not None:
            self._placeholder.close()
            self._placeholder = None
        if self._carrier is not None:
            self._carrier.stop()
            carrier, self._carrier = self._carrier, None
            carrier.check()

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
            changed, self._rule_changed = self._rule_changed, _promise()
        changed.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Have `stop` raise an unexpected error; called in the thread of the server."""
        if self._carrier is not None:
            self._carrier.fail(error)

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
    ) -> tuple[str, int, bytes, Future[None]]:
        """Record a request.

        Returns:
            The kind of answer, the status and body of a well-formed one, and what is done once the rule has changed.
        """
        with self._changed:
            rule, changed = self._rule, self._rule_changed
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
        document: dict[str, Any] = {"result": "ok"}
        if batch_id and self.knows_batches:
            document["batch"] = batch_id
        if signature_error:
            return answer, *_reply(401, {"result": "error", "message": signature_error}, path), changed
        if answer == "errors":
            refused = [call for call in commands if str(call[1].get("slot")) in rule.refused]
            errors = [{"message": f"slot {call[1]['slot']} is refused", "code": 500} for call in refused]
            if errors and _place(path)[0] != "bulk":
                return answer, *_reply(500, {"result": "error", "message": errors[0]["message"]}, path), changed
            document["errors"] = errors
        return answer, *_reply(200, document, path), changed

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


class _Answers:
    """The `Application` of an upstream."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    def answer(self, request: Request, caller: Caller, /) -> Answer | Coroutine[Any, Any, Answer]:
        """Record a request, and answer it by the rule."""
        del caller
        try:
            return self._answer(request)
        except Exception as error:
            self._upstream.fail(error)
            raise

    def finish(self, commands: Sequence[Response], /) -> Sequence[Response]:
        """No command waits for others."""
        return commands

    def refusal(self, status: int, message: str, /) -> Response:
        """The answer to a request that is not HTTP."""
        return Response(status, message.encode(), PLAIN)

    def _answer(self, request: Request) -> Answer | Coroutine[Any, Any, Answer]:
        path = request.path
        if path.endswith("/heartbeat"):
            return Response(200, b"OK", PLAIN)
        if request.method == "GET":
            payload, _, shown = request.query.rpartition(b"auth=")
            payload, token = payload.removesuffix(b"&"), unquote_to_bytes(shown).decode("latin-1")
            document: object = dict(parse_qsl(payload.decode("utf-8", "replace"), keep_blank_values=True))
        elif request.method == "POST":
            payload, token = request.body, request.headers.get(b"authorization", b"").decode("latin-1")
            document = _pairs(payload) if _place(path)[1] == "text" else _decoded(payload or b"{}")
        else:
            return Response(501, b"this server knows GET and POST", PLAIN)
        batch_id = request.headers.get(BATCH_HEADER, b"").decode("latin-1")
        signature_error = self._upstream.signature_error(token, payload)
        commands = tuple(_commands(path, document))
        answer, status, body, changed = self._upstream.take(path, batch_id, commands, signature_error)
        if answer == "hang":
            return _hang(changed)
        other: dict[str, Answer] = {
            "lose": Ending.CLOSE,
            "cut": Cut(Response(200, body)),
            "not-json": Response(200, PAGE, b"text/html"),
            "500": Response(500, PAGE, b"text/html"),
            "503": Response(503, PAGE, b"text/html"),
        }
        return other.get(answer, Response(status, body, PLAIN if _place(path)[1] == "text" else b"application/json"))


async def _hang(changed: Future[None]) -> Answer:
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.wrap_future(changed), LONGEST_HANG_S)
    return Ending.CLOSE


def _promise() -> Future[None]:
    """A future that nobody can cancel."""
    promise: Future[None] = Future()
    promise.set_running_or_notify_cancel()
    return promise


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

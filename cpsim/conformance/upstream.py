"""The server that a daemon under test forwards to: it records deliveries, and answers them as the test sets.

It is a server by section 4 of docs/protocol.md, with a ledger of slots that refuses what section 2 refuses. A batch is
*applied* if its answer is a success, or would have been one had it not been lost; each of its commands is then
*accepted* or refused by the ledger.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import socket
import threading
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote_to_bytes

from cpdaemon.commands import COMMANDS, KINDS
from cpsim.clock import SYSTEM_CLOCK
from cpsim.conformance.ledger import SlotStates
from cpsim.net.http.carrier import Carrier
from cpsim.net.http.messages import Cut, Ending, Response
from cpsim.net.refusal import refusing

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable, Sequence
    from types import TracebackType
    from typing import Self

    from cpdaemon.endpoint import TcpEndpoint
    from cpdaemon.signing import Call
    from cpsim.net.http.application import Answer, Caller
    from cpsim.net.http.messages import Request

    Same = tuple[str, frozenset[tuple[str, Hashable]]]

BATCH_HEADER: Final = b"creditpiggy-batch"
LONGEST_HANG_S: Final = 600.0
SEEN_S: Final = 0.01
"""How long it takes to see that a client has left."""
LATE_S: Final = 2.5
"""How long a `late` answer takes."""
PAGE: Final = b"<h1>Server Error (500)</h1>"
ANSWERS: Final = (
    *("ok", "400", "401", "404", "500", "503", "not-json", "hang"),
    *("late", "cut", "lose", "errors"),
)
"""How a batch may be answered. `late`, `cut` and `lose` apply it first; `errors` applies what is not refused."""
APPLYING: Final = {"ok", "late", "cut", "lose", "errors"}
OF_A_BULK: Final = {"400", "500"}
"""Answers by which a command that comes alone is refused for good; instead of them, it gets the next."""
OF_ANY: Final = "503"
PLAIN: Final = b"text/plain"
TYPES: Final = {"text": PLAIN, "jsonp": b"text/javascript"}
FORMATS: Final = ("", "json", "text", "jsonp")
ALGORITHMS: Final = ("sha-1", "sha-256", "sha-512")


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
        applied: whether the server has applied it, once for a batch id.
        accepted: for each command, whether that changed anything: it was applied, and not refused.
    """

    at_s: float
    path: str
    batch_id: str
    commands: tuple[Call, ...]
    signature_error: str
    answer: str
    applied: bool
    accepted: tuple[bool, ...]


@dataclass(slots=True)
class _AnswerRule:
    """The answer to the next `count` batches, and to the one after them, and the slots whose commands are refused."""

    answer: str = "ok"
    count: int | None = None
    refused: frozenset[str] = field(default_factory=frozenset)
    then: str = "ok"


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
        self._ledger = SlotStates()
        self._replies: dict[str, tuple[int, dict[str, Any]]] = {}
        self.applied: Counter[Same] = Counter()
        """How often each command came in a batch that was applied."""
        self.accepted: Counter[Same] = Counter()
        """How often each command was accepted."""
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

    def answer(
        self, answer: str, count: int | None = None, refused: frozenset[str] = frozenset(), then: str = "ok"
    ) -> None:
        """Set the answer to the next `count` batches, or to all.

        Args:
            answer: one of `ANSWERS`.
            count: for how many batches.
            refused: ids of slots whose commands are refused, for "errors".
            then: the answer to the one batch after these, one of `ANSWERS`; "ok" follows.
        """
        assert {answer, then} <= set(ANSWERS)
        with self._changed:
            self._rule = _AnswerRule(answer, count, refused, then)
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

    def outstanding(self) -> list[str]:
        """The ids of the slots that are not settled."""
        with self._changed:
            return self._ledger.outstanding

    def take(
        self, place: _Place, batch_id: str, commands: tuple[Call, ...], unknown: list[str], signature_error: str
    ) -> tuple[str, int, dict[str, Any], Future[None]]:
        """Record a request that carries commands, and apply them.

        Returns:
            The kind of answer, the status and document of a well-formed one, and what is done once the rule changes.
        """
        with self._changed:
            rule, changed = self._rule, self._rule_changed
            answer = rule.answer
            if answer in OF_A_BULK and not place.is_bulk:
                answer = OF_ANY
            if rule.count is not None:
                rule.count -= 1
                if rule.count <= 0:
                    self._rule = _AnswerRule(rule.then, 1)
            known = self._replies.get(batch_id) if batch_id and self.knows_batches else None
            applied = answer in APPLYING and known is None and not signature_error
            refusals = [self._apply(call, rule.refused) if applied else "" for call in commands]
            accepted = tuple(applied and not why for why in refusals)
            self._deliveries.append(
                Delivery(
                    *(SYSTEM_CLOCK.monotonic(), place.path, batch_id, commands, signature_error, answer),
                    *(applied, accepted),
                )
            )
            status, document = known or _reply(place, [*filter(None, refusals), *unknown])
            if batch_id and self.knows_batches:
                document["batch"] = batch_id
                if applied:
                    self._replies[batch_id] = status, document
            self._changed.notify_all()
        return answer, status, document, changed

    def _apply(self, call: Call, refused: frozenset[str]) -> str:
        """Apply a command; returns why it is refused, "" if it is not."""
        slot = str(call[1].get("slot"))
        why = f"slot {slot} is refused" if slot in refused else self._ledger.apply(call)
        key = same(call)
        self.applied[key] += 1
        self.accepted[key] += not why
        return why

    def signature_error(self, token: str, payload: bytes) -> tuple[int, str]:
        """What is wrong with the token that a request carries: the status, and a sentence; 200 if nothing is."""
        project, secret = self._credentials
        parts = token.strip().split(",")
        if len(parts) != 3:
            return 400, "its Authorization is not ALGORITHM,PROJECT,DIGEST"
        algorithm = parts[0].lower()
        if algorithm not in ALGORITHMS:
            return 400, f"it is signed with {parts[0]!r}"
        if parts[1].lower() != project.lower():
            return 401, f"it is signed for project {parts[1]!r}"
        digest = hashlib.new(algorithm.replace("-", ""), payload + secret.encode()).hexdigest()
        is_right = hmac.compare_digest(digest.encode(), parts[2].lower().encode())
        return (200, "") if is_right else (401, "its digest does not match")


@dataclass(frozen=True, slots=True)
class _Place:
    """A path, the name at its end, such as bulk, and its suffix, which selects the format."""

    path: str
    name: str
    suffix: str

    @property
    def is_bulk(self) -> bool:
        return self.name == "bulk"


class _Answers:
    """The `Application` of an upstream."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    def answer(self, request: Request, caller: Caller, /) -> Answer | Coroutine[Any, Any, Answer]:
        """Record a request, and answer it by the rule."""
        try:
            return self._answer(request, caller)
        except Exception as error:
            self._upstream.fail(error)
            raise

    def finish(self, commands: Sequence[Response], /) -> Sequence[Response]:
        """No command waits for others."""
        return commands

    def refusal(self, status: int, message: str, /) -> Response:
        """The answer to a request that is not HTTP."""
        return Response(status, message.encode(), PLAIN)

    def _answer(self, request: Request, caller: Caller) -> Answer | Coroutine[Any, Any, Answer]:
        place = _place(request.path)
        if place.name == "heartbeat":
            return Response(200, b"OK", PLAIN)
        if not place.path.endswith(f"/batch/{place.path.rpartition('/')[2]}"):
            return Response(404, b"there is nothing here", PLAIN)
        if place.suffix not in FORMATS:
            return Response(500, f"Unknown API protocol '{place.suffix}' requested".encode(), PLAIN)
        if request.method == "GET":
            payload, _, shown = request.query.rpartition(b"auth=")
            payload, token = payload.removesuffix(b"&"), unquote_to_bytes(shown).decode("latin-1")
            document: object = dict(parse_qsl(payload.decode("utf-8", "replace"), keep_blank_values=True))
        elif request.method == "POST":
            payload, token = request.body, request.headers.get(b"authorization", b"").decode("latin-1")
            document = _pairs(payload) if place.suffix == "text" else _decoded(payload or b"{}")
        else:
            return Response(501, b"this server knows GET and POST", PLAIN)
        return self._answer_to(request, caller, place, document, self._upstream.signature_error(token, payload))

    def _answer_to(
        self, request: Request, caller: Caller, place: _Place, document: object, signed: tuple[int, str]
    ) -> Answer | Coroutine[Any, Any, Answer]:
        """The answer to a request with a document, whose signature by itself would be answered so."""
        status, signature_error = signed
        callback = "jsonp_callback"
        if isinstance(document, dict) and place.suffix == "jsonp":
            callback = str(document.pop("callback", callback))
        changed, answer = _promise(), "ok"
        commands, unknown = _commands(place, document)
        if commands:
            batch_id = request.headers.get(BATCH_HEADER, b"").decode("latin-1")
            answer, code, reply, changed = self._upstream.take(place, batch_id, commands, unknown, signature_error)
        elif not isinstance(document, dict):
            code, reply = 400, _error("its body is no object")
        elif place.name == "slots":
            code, reply = 200, {"result": "ok", "data": self._upstream.outstanding()}
        else:
            code, reply = _reply(place, unknown if place.is_bulk else [f"there is no command {place.name!r}"])
            if place.is_bulk and self._upstream.knows_batches and BATCH_HEADER in request.headers:
                reply["batch"] = request.headers[BATCH_HEADER].decode("latin-1")
        if status != 200:
            code, reply = status, _error(signature_error)
        if answer == "hang":
            return self._hang(changed, caller, lambda: self._answer(request, caller))
        response = Response(code, _encoded(reply, place.suffix, callback), TYPES.get(place.suffix, b"application/json"))
        if answer == "late":
            return _late(response)
        other: dict[str, Answer] = {
            "lose": Ending.CLOSE,
            "cut": Cut(response),
            "not-json": Response(200, PAGE, b"text/html"),
            "400": Response(400, json.dumps(_error("it is malformed")).encode()),
            "401": Response(401, json.dumps(_error("who signs it is unknown")).encode()),
            "404": Response(404, b"there is nothing here", PLAIN),
            "500": Response(500, PAGE, b"text/html"),
            "503": Response(503, PAGE, b"text/html"),
        }
        return other.get(answer, response)

    @staticmethod
    async def _hang(
        changed: Future[None], caller: Caller, answer: Callable[[], Answer | Coroutine[Any, Any, Answer]]
    ) -> Answer:
        """Answer once the rule has changed, unless the caller has left by then: then nothing is applied."""
        left, released = asyncio.ensure_future(caller.left()), asyncio.ensure_future(asyncio.wrap_future(changed))
        await asyncio.wait({left, released}, timeout=LONGEST_HANG_S, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(SEEN_S)
        has_left = left.done() or not released.done()
        left.cancel()
        released.cancel()
        if has_left:
            return Ending.CLOSE
        made = answer()
        return await made if asyncio.iscoroutine(made) else made


async def _late(response: Response) -> Answer:
    await asyncio.sleep(LATE_S)
    return response


def _promise() -> Future[None]:
    """A future that nobody can cancel."""
    promise: Future[None] = Future()
    promise.set_running_or_notify_cancel()
    return promise


def _place(path: str) -> _Place:
    name, _, suffix = path.rpartition("/")[2].partition(".")
    return _Place(path, name, suffix)


def _pairs(text: bytes) -> dict[str, str] | None:
    """`name=value,name=value`; None if it is not that."""
    try:
        return dict(pair.split("=", 1) for pair in text.decode().strip().split(",") if pair)
    except ValueError:
        return None


def _error(message: str) -> dict[str, Any]:
    return {"result": "error", "message": message}


def _reply(place: _Place, refusals: list[str]) -> tuple[int, dict[str, Any]]:
    """The status and document that answer commands, of which some are refused."""
    if not refusals:
        return 200, {"result": "ok"}
    if not place.is_bulk:
        return 500, _error(refusals[0])
    return 200, {"result": "ok", "errors": [{"message": why, "code": 500} for why in refusals]}


def _encoded(document: dict[str, Any], suffix: str, callback: str) -> bytes:
    """A document in the format that a suffix asks for."""
    if suffix == "text":
        lines = document.get("data")
        if lines is None:
            lines = [f"{name}: {value}" for name, value in document.items()]
        return "\n".join(["ERROR", *lines] if document["result"] == "error" else lines).encode()
    text = json.dumps(document)
    return (f"{callback}({text})" if suffix == "jsonp" else text).encode()


def _commands(place: _Place, document: object) -> tuple[tuple[Call, ...], list[str]]:
    """The commands of a request, in the order in which a server applies them; and what is wrong with the others."""
    if not isinstance(document, dict):
        return (), []
    if place.name in KINDS:
        return ((place.name, document),), []
    if not place.is_bulk:
        return (), []
    commands: list[Call] = []
    wrong = [f"there is no command {name!r}" for name in document if name not in KINDS]
    for name in KINDS:
        members = document.get(name, [])
        members = _decoded(members) if isinstance(members, str) else members
        if isinstance(members, list):
            commands += [(name, arguments) for arguments in members if isinstance(arguments, dict)]
    return tuple(commands), wrong


def _decoded(text: bytes | str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def same(call: Call) -> Same:
    """A key of a command: its kind, and a value for each name, because the names of an object have no order.

    Values of a frame are text. A whole number may come as a number of JSON or as its text; any other value has to come
    as that text.
    """
    kind, arguments = call
    return kind, frozenset((name, _value(kind, name, value)) for name, value in arguments.items())


def _value(kind: str, name: str, value: object) -> str | tuple[str]:
    """The text of a value; in a tuple, which no text equals, the JSON of one that the argument cannot have."""
    if isinstance(value, str):
        return value
    is_whole = COMMANDS[kind].type_of(name) is int
    if is_whole and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return (json.dumps(value),)

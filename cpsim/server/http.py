"""The server's HTTP API.

`Api.respond` and `Api.finish` are functions from requests to responses; `Api.answer` waits for the store between them.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from cpdaemon.commands import KINDS
from cpsim.errors import CpsimError
from cpsim.net.http.messages import Failure, Request, Response
from cpsim.protocol import depth
from cpsim.protocol.slots import shown
from cpsim.quirks.policies.request import broken_off
from cpsim.server.batches import LONGEST_ID, BatchNotApplied
from cpsim.server.control.waiting import Provisional, settled
from cpsim.server.ledger import MalformedRefusal
from cpsim.server.service import DIGESTS
from cpsim.store.log import InDoubt

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence

    from cpsim.net.http.application import Answer, Caller
    from cpsim.quirks.policies.request import RequestPolicy
    from cpsim.server.control.api import Control
    from cpsim.server.service import AccountServer, Call

    Document = Mapping[str, object] | Failure

API_PATH: Final = "/api"
CALLBACK_NAME: Final = re.compile(r"[A-Za-z_$][\w$]*(\.[A-Za-z_$][\w$]*)*", re.ASCII)
BEYOND_ASCII: Final = re.compile(r"[^\x00-\x7f]+")
TEXT: Final = b"text/plain; charset=utf-8"
CALL_BEGINS: Final = {kind: b'["%s",' % kind.encode() for kind in KINDS}
"""The JSON of a call, up to its arguments."""
BATCH: Final = b"creditpiggy-batch"
"""The header with a bulk request's id: a repeated request is applied once."""
DEFAULT_CALLBACK: Final = "jsonp_callback"
REQUESTS: Final = {"heartbeat": {""}, "batch": {"bulk", "slots", *KINDS}, "lib": {"claim", "release"}}


PAGE: Final = broken_off()
"""How the server in production answers where it breaks off."""


class SingleCommand(msgspec.Struct):
    """A command from a request of its own, not applied yet."""

    project_id: str
    call: Call
    written: bytes
    """The call as JSON."""
    request: Request
    render: Callable[[Request, Document], Response]
    failure: Failure | None = None
    """The refusal, if the command was refused."""


class _BrokenOff(Exception):
    """A quirk has broken a request off."""


class Api:
    """The API of an account server, an `Application` of the HTTP server.

    Args:
        accounts: the account server.
        control: the control API under `/__cpsim/`, and its pages under `/`, where it is enabled.
    """

    def __init__(self, accounts: AccountServer, control: Control | None = None) -> None:
        self._accounts = accounts
        self._control = control

    def respond(self, request: Request) -> Response | SingleCommand:
        """Answer one request; `finish` answers a single command."""
        route = ROUTES.get(request.path)
        if route is None:
            if self._control is not None and self._control.covers(request.path):
                return self._control.respond(request)
            route = _route(request.path)
        folder, name, suffix = route
        if folder not in REQUESTS:
            page = None if self._control is None else self._control.page(request)
            return self._no_such_path(request) if page is None else page
        requests = self._accounts.requests
        for look in requests.before:
            if (answer := look(request, folder, name)) is not None:
                return answer
        if requests.methods is not None and request.method not in requests.methods:
            return _json(Failure(405, f"{request.method} is not supported; use GET or POST"))
        if folder == "heartbeat":
            return Response(200, b"OK", TEXT)
        return self._answer(request, folder, name, suffix)

    def finish(self, commands: Sequence[SingleCommand]) -> list[Response]:
        """Apply commands, together for each project, and answer each, in order, as if it had come alone."""
        of_project: dict[str, list[SingleCommand]] = {}
        for command in commands:
            of_project.setdefault(command.project_id, []).append(command)
        for project_id, members in of_project.items():
            self._apply(project_id, members)
        return [
            PAGE if command.failure is BROKEN_OFF else command.render(command.request, command.failure or DONE)
            for command in commands
        ]

    def _apply(self, project_id: str, commands: Sequence[SingleCommand]) -> None:
        """Apply commands of a project, and note the refusals."""
        calls, written = [], []
        for command in commands:
            calls.append(command.call)
            written.append(command.written)
        page = self._accounts.requests.page
        for refusal in self._accounts.apply(project_id, calls, None, b"[" + b",".join(written) + b"]"):
            is_page = page and type(refusal) is MalformedRefusal
            commands[refusal.position].failure = BROKEN_OFF if is_page else Failure(500, refusal.message)

    def _answer(self, request: Request, folder: str, name: str, suffix: str) -> Response | SingleCommand:
        """Perform the request of a path, and answer in the format of its suffix."""
        requests = self._accounts.requests
        render = requests.formats.get(suffix) or FORMATS.get(suffix)
        if render is None:
            return Response(500, f"Unknown API protocol {suffix!r} requested".encode(), TEXT)
        if suffix == "jsonp" and not requests.any_callback and not CALLBACK_NAME.fullmatch(_callback(request)):
            return _json(Failure(400, "callback is not the name of a JavaScript function"))
        try:
            answer = self._perform(requests, request, (folder, name, suffix))
        except Failure as failure:
            return render(request, self._turned_away(request, failure))
        except _BrokenOff:
            return PAGE
        if isinstance(answer, SingleCommand):
            answer.render = render
            return answer
        return answer if isinstance(answer, Response) else render(request, answer)

    def _no_such_path(self, request: Request) -> Response:
        return _json(self._turned_away(request, Failure(404, f"no such path {request.path!r}")))

    def _turned_away(self, request: Request, failure: Failure) -> Failure:
        """Note a request of which nothing reaches the journal; return why."""
        if failure.status < 500:
            line = f"{request.method} {request.path!r:.100}: status {failure.status}, {failure}"
            self._accounts.journal.turned_away.append((self._accounts.clock.now_us(), line))
        return failure

    def _perform(
        self, requests: RequestPolicy, request: Request, route: tuple[str, str, str]
    ) -> dict[str, object] | Response | SingleCommand:
        folder, name, suffix = route
        project_id, signed = self._authenticate(request, is_strict=requests.strict)
        for look in requests.signed:
            if (answer := look(request, folder, name)) is not None:
                return answer
        if name not in REQUESTS[folder]:
            raise Failure(404, f"no such path {request.path!r}")
        if name == "slots":
            return {"result": "ok", "data": self._accounts.outstanding(project_id)}
        arguments = _arguments(requests, request, signed, name, suffix)
        if folder == "lib":
            return self._lib(project_id, name, arguments)
        document = None
        if request.method == "POST" and suffix != "text" and signed.startswith(b"{") and b"\\" not in signed:
            document = signed  # the journal is searched for unescaped text
        if name == "bulk":
            return self._bulk(request, project_id, arguments, signed, document)
        call = (name, arguments)
        written = msgspec.json.encode(call) if document is None else CALL_BEGINS[name] + document + b"]"
        return SingleCommand(project_id, call, written, request, FORMATS[suffix])

    def _authenticate(self, request: Request, *, is_strict: bool) -> tuple[str, bytes]:
        """The project that signed a request, and the bytes that the digest covers."""
        if request.method == "GET":
            signed, found, token = request.query.partition(b"&auth=")
            if not found:
                raise Failure(400, "no &auth= in the query")
            if b"&" in token:
                raise Failure(400, "auth= is not the last argument of the query")
            token = token if is_strict else unquote_to_bytes(token)
        else:
            signed = request.body
            if (header := request.headers.get(b"authorization")) is None:
                raise Failure(400, "no Authorization header")
            token = header
        parts = token.decode("utf-8", "replace").strip().lower().split(",")
        if len(parts) != 3:
            raise Failure(400, "the token is not ALGORITHM,PROJECT,DIGEST")
        algorithm, project, digest = parts
        if is_strict and self._accounts.known_id(project) != project:
            raise Failure(401, "unknown project")
        if algorithm not in DIGESTS:
            raise Failure(400, f"unknown algorithm {algorithm!r}; use one of {', '.join(DIGESTS)}")
        project_id = self._accounts.authenticate(algorithm, project, digest, signed)
        if project_id is None:
            raise Failure(401, "unknown project, or the digest does not match")
        return project_id, signed

    def _lib(self, project_id: str, name: str, arguments: Mapping[str, object]) -> dict[str, object]:
        refusals = self._accounts.change_owner(project_id, (f"lib/{name}", arguments))
        if refusals:
            raise Failure(500, refusals[0].message)
        return DONE

    def _bulk(
        self,
        request: Request,
        project_id: str,
        classes: Any,  # noqa: ANN401 - a quirk may read any JSON
        signed: bytes,
        document: bytes | None,
    ) -> dict[str, object]:
        requests = self._accounts.requests
        # a server that breaks bulks off cannot promise to apply them once
        batch = "" if requests.breaks_off else request.headers.get(BATCH, b"").decode("latin-1")
        if len(batch) > LONGEST_ID:
            raise Failure(400, f"the id of the batch has {len(batch):,} characters: at most {LONGEST_ID} are accepted")
        # other commands with the same id are another batch
        batch_id = f"{batch} {hashlib.sha256(signed).hexdigest()}" if batch else None
        try:
            if batch and not classes:
                return {"result": "ok", "batch": batch} | self._given_up(project_id, batch)
            errors = list(self._apply_bulk(requests, project_id, classes, batch_id, document))
        except BatchNotApplied as reason:
            raise Failure(409, str(reason)) from reason
        if requests.breaks_off:  # in production, an error does not name its command
            errors = [{"message": error["message"], "code": error["code"]} for error in errors]
        return {"result": "ok"} | ({"batch": batch} if batch else {}) | ({"errors": errors} if errors else {})

    def _given_up(self, project_id: str, batch: str) -> dict[str, object]:
        """Whether a batch was applied, and its refusals; a batch that was not applied never will be."""
        refusals = self._accounts.give_up(project_id, batch)
        if refusals is None:
            return {"applied": False}
        errors = [{"message": message, "code": 500, "position": position} for position, message in refusals]
        return {"applied": True} | ({"errors": errors} if errors else {})

    def _apply_bulk(
        self,
        requests: RequestPolicy,
        project_id: str,
        classes: Any,  # noqa: ANN401 - a quirk may read any JSON
        batch_id: str | None,
        document: bytes | None,
    ) -> Iterator[dict[str, object]]:
        """Apply a bulk document class by class; yields an error for each refused command."""
        lists, errors, is_broken = _lists(classes) if requests.read_bulk is None else requests.read_bulk(classes)
        calls: list[Call] = []
        for kind, commands in lists.items():
            if {dict}.issuperset(map(type, commands)):
                calls += zip(repeat(kind), commands)
                continue
            for index, arguments in enumerate(commands):
                if type(arguments) is not dict:
                    yield _bulk_error(f"{shown(arguments)} is not an object", kind, index)
            document = None
            calls += [(kind, arguments) for arguments in commands if type(arguments) is dict]
        if requests.read_bulk is not None or lists.keys() != set(KINDS):
            document = None
        refusals = self._accounts.apply(project_id, calls, batch_id, document, breaks_off=requests.breaks_off)
        if is_broken or (requests.breaks_off and refusals and type(refusals[-1]) is MalformedRefusal):
            raise _BrokenOff
        if refusals:
            origins = [
                (kind, index)
                for kind, commands in lists.items()
                for index, arguments in enumerate(commands)
                if type(arguments) is dict
            ]
            for refusal in refusals:
                yield _bulk_error(refusal.message, *origins[refusal.position])
        for message, kind in errors:
            yield _bulk_error(message, kind)

    def answer(self, request: Request, caller: Caller, /) -> Answer | Coroutine[Any, Any, Answer] | SingleCommand:
        """Answer one request, or begin to: with a store, the answer waits for its commit.

        An answer of the control API that what will come may change waits for that.
        """
        if self._accounts.store is None and type(response := self.respond(request)) is not Provisional:
            return response
        return settled(partial(self._durable, request), caller)

    def refusal(self, status: int, message: str, /) -> Response:
        """The answer to a request that is not HTTP, or beyond a limit."""
        return _json(Failure(status, message))

    def _answered(self, request: Request) -> Response:
        answer = self.respond(request)
        return answer if isinstance(answer, Response) else self.finish([answer])[0]

    async def _durable(self, request: Request) -> Response:
        """Answer one request, with a store after the changes that the answer shows are on disk."""
        store = self._accounts.store
        if store is None:
            return self._answered(request)
        try:
            self._accounts.recover()  # before the request is performed
            store.begin()
            response = self._answered(request)
            await store.durable()
        except InDoubt as problem:
            return _json(Failure(504, str(problem)))
        except CpsimError as problem:
            return _json(Failure(503, str(problem)))
        return response


def _route(path: str) -> tuple[str, str, str]:
    """The parts of /api/FOLDER/NAME.SUFFIX or /api/heartbeat; empty for another path."""
    folder, slash, rest = path.removeprefix(f"{API_PATH}/").partition("/")
    if not path.startswith(f"{API_PATH}/") or bool(slash) == (folder == "heartbeat"):
        return "", "", ""
    name, _, suffix = rest.partition(".")
    return folder, name, suffix


def _bulk_error(message: str, kind: str, index: int | None = None) -> dict[str, object]:
    """One entry of a bulk reply's `errors`; class and index name the command."""
    error: dict[str, object] = {"message": message, "code": 500, "class": kind}
    return error if index is None else error | {"index": index}


def _lists(classes: Mapping[str, object]) -> tuple[dict[str, list[Any]], list[tuple[str, str]], bool]:
    """The lists of commands of a bulk, and what is wrong with it: see `RequestPolicy.read_bulk`."""
    given = {kind: classes.get(kind, []) for kind in KINDS}
    lists = {kind: commands for kind, commands in given.items() if isinstance(commands, list)}
    errors = [(f"{kind} is not a list of commands", kind) for kind in given if kind not in lists]
    return lists, errors + [(f"unknown class {kind!r}", kind) for kind in classes if kind not in KINDS], False


def _arguments(requests: RequestPolicy, request: Request, signed: bytes, name: str, suffix: str) -> Any:  # noqa: ANN401
    if request.method == "GET":
        query = request.query if name in requests.takes_auth else signed
        pairs = dict(parse_qsl(query.decode("utf-8", "replace"), keep_blank_values=True))
        if suffix == "jsonp" and name not in requests.takes_auth:
            pairs.pop("callback", None)
        if name != "bulk" or requests.read_bulk is not None:
            return pairs
        return {kind: _decoded(text.encode(), 2) for kind, text in pairs.items()}
    if suffix == "text":
        return (requests.read_text or _read_text)(request.body)
    arguments = _decoded(request.body, 3 if name == "bulk" else 1)
    if not isinstance(arguments, dict) and (name != "bulk" or requests.read_bulk is None):
        if requests.page:
            raise _BrokenOff
        raise Failure(400, "the body is not a JSON object")
    return arguments


def _read_text(body: bytes) -> dict[str, Any]:
    """Read `name=value,name=value`."""
    fields = [field.partition("=") for field in body.decode("utf-8", "replace").strip().split(",")]
    if not all(equals for _, equals, _ in fields):
        raise Failure(400, "the body is not name=value,name=value")
    return {key.strip(): value for key, _, value in fields}


def _decoded(text: bytes, levels: int) -> object:
    """Decode JSON in which arguments are at a level: of a command, a class of a bulk, or a bulk."""
    try:
        value = msgspec.json.decode(text)
        levels += depth.MAX_DEPTH
        # one of the commands is on the way down
        if len(text) > 2 * levels and depth.opened(text) - _commands(value) >= levels:
            depth.check([value], levels)
    except (RecursionError, depth.TooDeep) as error:
        raise Failure(400, f"an argument is nested deeper than {depth.MAX_DEPTH} levels") from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise Failure(400, f"the body is not JSON: {error}") from error
    return value


def _commands(value: object) -> int:
    """The number of objects in a list, or in the lists of a bulk."""
    if isinstance(value, list):
        return list(map(type, value)).count(dict)
    lists = value.values() if isinstance(value, dict) else ()
    return sum(list(map(type, commands)).count(dict) for commands in lists if type(commands) is list)


def _document(answer: Document) -> tuple[int, Mapping[str, object]]:
    if isinstance(answer, Failure):
        return answer.status, {"result": "error", "message": str(answer)}
    return 200, answer


def _encoded(document: object) -> bytes:
    """JSON as the server in production writes it: ASCII, with blanks."""
    written = msgspec.json.format(msgspec.json.encode(document), indent=0)
    return written if written.isascii() else BEYOND_ASCII.sub(_escaped, written.decode()).encode()


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]


def _json(answer: Document) -> Response:
    status, document = _document(answer)
    return Response(status, _encoded(document))


def _as_json(_: Request, answer: Document) -> Response:
    return DONE_AS_JSON if answer is DONE else _json(answer)


def _as_text(_: Request, answer: Document) -> Response:
    status, document = _document(answer)
    data = document.get("data")
    if isinstance(answer, Failure):
        lines = ["ERROR", str(answer)]
    elif isinstance(data, list):
        lines = data
    else:
        lines = [f"{name}: {_as_line(value)}" for name, value in document.items()]
    return Response(status, "".join(f"{line}\n" for line in lines).encode(), TEXT)


def _as_line(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _as_jsonp(request: Request, answer: Document) -> Response:
    status, document = _document(answer)
    script = b"%s(%s);" % (_callback(request).encode(), _encoded(document))
    return Response(status, script, b"text/javascript; charset=utf-8")


def _callback(request: Request) -> str:
    pairs = parse_qsl(request.query.decode("utf-8", "replace"), keep_blank_values=True)
    return dict(pairs).get("callback", DEFAULT_CALLBACK)


ROUTES: Final = {
    path: _route(path)
    for folder, names in REQUESTS.items()
    for name in filter(None, names)
    for suffix in ("", ".json", ".text", ".jsonp")
    for path in (f"{API_PATH}/{folder}/{name}{suffix}",)
}
"""The parts of the usual paths."""
DONE: Final[dict[str, object]] = {"result": "ok"}
DONE_AS_JSON: Final = _json(DONE)
BROKEN_OFF: Final = Failure(500, "a malformed argument")
"""Stands for `PAGE`."""
FORMATS: Final[dict[str, Callable[[Request, Document], Response]]] = {
    "": _as_json,
    "json": _as_json,
    "text": _as_text,
    "jsonp": _as_jsonp,
}

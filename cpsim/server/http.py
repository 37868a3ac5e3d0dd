"""The server's HTTP API.

`Api.respond` and `Api.finish` are functions from requests to responses; `Api.answer` waits for the store between them.
"""

from __future__ import annotations

import hashlib
import json
import re
from itertools import repeat, takewhile
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from cpdaemon.commands import KINDS
from cpsim.errors import CpsimError
from cpsim.net.http.messages import Failure, Request, Response
from cpsim.protocol import depth
from cpsim.server.batches import LONGEST_ID, BatchNotApplied
from cpsim.server.ledger import shown
from cpsim.server.quirks import aborts_bulk
from cpsim.server.service import DIGESTS
from cpsim.store.log import InDoubt

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence

    from cpsim.net.http.application import Answer, Caller
    from cpsim.server.control.api import Control
    from cpsim.server.service import AccountServer, Call

    Document = Mapping[str, object] | Failure
    Render = Callable[[Request, Document], Response]

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


class SingleCommand(msgspec.Struct):
    """A command from a request of its own, not applied yet."""

    project_id: str
    call: Call
    written: bytes
    """The call as JSON."""
    request: Request
    render: Render
    failure: Failure | None = None
    """The refusal, if the command was refused."""


class _BulkAborted(Exception):
    """The quirk `bulk-abort` has aborted a request."""


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
            return _json(Failure(404, f"no such path {request.path!r}")) if page is None else page
        if request.method not in {"GET", "POST"}:
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
        return [command.render(command.request, command.failure or DONE) for command in commands]

    def _apply(self, project_id: str, commands: Sequence[SingleCommand]) -> None:
        """Apply commands of a project, and note the refusals."""
        calls, written = [], []
        for command in commands:
            calls.append(command.call)
            written.append(command.written)
        for position, message in self._accounts.apply(project_id, calls, None, b"[" + b",".join(written) + b"]"):
            commands[position].failure = Failure(500, message)

    def _answer(self, request: Request, folder: str, name: str, suffix: str) -> Response | SingleCommand:
        """Perform the request of a path, and answer in the format of its suffix."""
        render = FORMATS.get(suffix)
        if render is None:
            return Response(500, f"Unknown API protocol {suffix!r} requested".encode(), TEXT)
        if suffix == "jsonp" and not CALLBACK_NAME.fullmatch(_callback(request)):
            return _json(Failure(400, "callback is not the name of a JavaScript function"))
        try:
            answer = self._perform(request, folder, name, suffix)
        except Failure as failure:
            return render(request, failure)
        except _BulkAborted:
            return Response(500, b"<h1>Server Error (500)</h1>", b"text/html")
        return answer if isinstance(answer, SingleCommand) else render(request, answer)

    def _perform(self, request: Request, folder: str, name: str, suffix: str) -> dict[str, object] | SingleCommand:
        project_id, signed = self._authenticate(request)
        if name not in REQUESTS[folder]:
            raise Failure(404, f"no such path {request.path!r}")
        if name == "slots":
            return {"result": "ok", "data": self._accounts.outstanding(project_id)}
        arguments = _arguments(request, signed, name, suffix)
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

    def _authenticate(self, request: Request) -> tuple[str, bytes]:
        """The project that signed a request, and the bytes that the digest covers."""
        if request.method == "GET":
            signed, found, last = request.query.rpartition(b"auth=")
            if not found or (signed and not signed.endswith(b"&")):
                raise Failure(400, "no &auth= in the query")
            if b"&" in last:
                raise Failure(400, "auth= is not the last argument of the query")
            signed = signed[:-1]
            token = unquote_to_bytes(last)
        else:
            signed = request.body
            if (header := request.headers.get(b"authorization")) is None:
                raise Failure(400, "no Authorization header")
            token = header
        parts = token.decode("utf-8", "replace").strip().lower().split(",")
        if len(parts) != 3:
            raise Failure(400, "the token is not ALGORITHM,PROJECT,DIGEST")
        algorithm, project, digest = parts
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
        classes: Mapping[str, object],
        signed: bytes,
        document: bytes | None,
    ) -> dict[str, object]:
        is_bare = "bulk-abort" in self._accounts.quirks
        # a server that aborts batches cannot promise to apply them once
        batch = "" if is_bare else request.headers.get(BATCH, b"").decode("latin-1")
        if len(batch) > LONGEST_ID:
            raise Failure(400, f"the id of the batch has {len(batch):,} characters: at most {LONGEST_ID} are accepted")
        # other commands with the same id are another batch
        batch_id = f"{batch} {hashlib.sha256(signed).hexdigest()}" if batch else None
        try:
            if batch and not classes:
                return {"result": "ok", "batch": batch} | self._given_up(project_id, batch)
            errors = list(self._apply_bulk(project_id, classes, batch_id, document))
        except BatchNotApplied as reason:
            raise Failure(409, str(reason)) from reason
        if is_bare:  # in production, an error does not name its command
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
        self, project_id: str, classes: Mapping[str, object], batch_id: str | None, document: bytes | None
    ) -> Iterator[dict[str, object]]:
        """Apply a bulk document class by class; yields an error for each refused command."""
        calls: list[Call] = []
        lists: dict[str, list[Any]] = {}
        for kind in KINDS:
            commands = classes.get(kind, [])
            if not isinstance(commands, list):
                yield _bulk_error(f"{kind} is not a list of commands", kind)
                document = None
                continue
            lists[kind] = commands
            if not {dict}.issuperset(map(type, commands)):
                for index, arguments in enumerate(commands):
                    if type(arguments) is not dict:
                        yield _bulk_error(f"{shown(arguments)} is not an object", kind, index)
                commands = [arguments for arguments in commands if type(arguments) is dict]
                document = None
            calls += zip(repeat(kind), commands)
        if "bulk-abort" in self._accounts.quirks:
            whole = list(takewhile(lambda call: not aborts_bulk(*call), calls))
            if len(whole) < len(calls):
                self._accounts.apply(project_id, whole)
                raise _BulkAborted
        if refusals := self._accounts.apply(project_id, calls, batch_id, document):
            origins = [
                (kind, index)
                for kind, commands in lists.items()
                for index, arguments in enumerate(commands)
                if type(arguments) is dict
            ]
            for refusal in refusals:
                yield _bulk_error(refusal.message, *origins[refusal.position])
        for kind in classes:
            if kind not in KINDS:
                yield _bulk_error(f"unknown class {kind!r}", kind)

    def answer(self, request: Request, caller: Caller, /) -> Answer | Coroutine[Any, Any, Answer] | SingleCommand:
        """Answer one request, or begin to: with a store, the answer waits for its commit."""
        del caller
        return self.respond(request) if self._accounts.store is None else self._durable(request)

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


def _arguments(request: Request, signed: bytes, name: str, suffix: str) -> dict[str, Any]:
    if request.method == "GET":
        pairs = dict(parse_qsl(signed.decode("utf-8", "replace"), keep_blank_values=True))
        if suffix == "jsonp":
            pairs.pop("callback", None)
        return {kind: _decoded(text.encode(), 2) for kind, text in pairs.items()} if name == "bulk" else pairs
    if suffix == "text":
        text = request.body.decode("utf-8", "replace").strip()
        fields = [field.partition("=") for field in text.split(",")]
        if not all(equals for _, equals, _ in fields):
            raise Failure(400, "the body is not name=value,name=value")
        return {key.strip(): value for key, _, value in fields}
    arguments = _decoded(request.body, 3 if name == "bulk" else 1)
    if not isinstance(arguments, dict):
        raise Failure(400, "the body is not a JSON object")
    return arguments


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
    return dict(parse_qsl(request.query.decode("utf-8", "replace"))).get("callback", DEFAULT_CALLBACK)


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
FORMATS: Final[dict[str, Render]] = {
    "": _as_json,
    "json": _as_json,
    "text": _as_text,
    "jsonp": _as_jsonp,
}

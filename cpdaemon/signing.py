"""What travels over HTTP: signed request bodies, and what a server's reply says; pure."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cpdaemon.commands import COMMANDS, KINDS
from cpdaemon.errors import BadReply, CreditPiggyError, EndpointError, Refused

__all__ = [
    "ALGORITHMS",
    "Call",
    "bulk_batches",
    "bulk_body",
    "bulk_errors",
    "read_reply",
    "single_body",
    "token",
]

ALGORITHMS = ("sha-1", "sha-256", "sha-512")

Call = tuple[str, Mapping[str, str | int]]
"""A command that need not be checked: its kind, and its arguments under their wire names."""

_RANK = {kind: command.rank for kind, command in COMMANDS.items()}


def token(credentials: tuple[str, str], payload: bytes, algorithm: str = "sha-256") -> str:
    """Return the Authorization value that signs a request.

    Args:
        credentials: (project id, secret).
        payload: the raw body, or for GET the query string before `&auth=`.
        algorithm: one of `ALGORITHMS`.

    Raises:
        EndpointError: the credentials or the algorithm cannot be used. No message quotes a credential.
    """
    if algorithm not in ALGORITHMS:
        raise EndpointError(f"unknown algorithm {algorithm!r}: use one of {', '.join(ALGORITHMS)}")
    if not isinstance(credentials, tuple | list) or [type(part) for part in credentials] != [str, str]:
        raise EndpointError("credentials must be a pair of texts, (project id, secret)")
    project, secret = credentials
    if not secret or not project:
        raise EndpointError("the project id or the secret is empty")
    if "," in project or not (project.isascii() and project.isprintable()) or project != project.strip():
        raise EndpointError("the project id must be printable ASCII, without ',' and without white space around it")
    try:
        digest = hashlib.new(algorithm.replace("-", ""), payload + secret.encode()).hexdigest()
    except UnicodeEncodeError:
        raise EndpointError("the secret cannot be encoded as UTF-8") from None
    return f"{algorithm},{project},{digest}"


def single_body(arguments: Mapping[str, str | int]) -> bytes:
    """Return the JSON body of a request that carries one command."""
    return _compact(arguments)


def bulk_body(calls: Iterable[Call]) -> bytes:
    """Return the JSON body of one bulk request, its classes in the order in which a server applies them.

    Raises:
        KeyError: a call is of no known kind.
    """
    classes: dict[str, list[Mapping[str, str | int]]] = {kind: [] for kind in KINDS}
    for kind, arguments in calls:
        classes[kind].append(arguments)
    return _compact({kind: members for kind, members in classes.items() if members})


def bulk_batches(calls: Iterable[Call], max_commands: int = 1000) -> Iterator[list[Call]]:
    """Cut calls into consecutive batches that keep the order of every slot's commands.

    A server applies a batch class by class. So a batch ends before a call that would be applied before one that
    the batch already holds for the same slot, unless the two are counters and meta, whose order makes no difference.

    Args:
        calls: each with a `slot` among its arguments.
        max_commands: most calls in one batch; at least 1.

    Yields:
        Batches, none of them empty; joined, they are the calls as given.

    Raises:
        KeyError: a call is of no known kind, or has no slot.
    """
    batch: list[Call] = []
    reached: dict[str | int, int] = {}
    for call in calls:
        slot, rank = call[1]["slot"], _RANK[call[0]]
        if rank < reached.get(slot, 0) or len(batch) >= max_commands:
            yield batch
            batch, reached = [], {}
        batch.append(call)
        reached[slot] = rank
    if batch:
        yield batch


def read_reply(status: int, body: bytes) -> dict[str, Any]:
    """Return a server's reply, if it says that the request was accepted.

    Args:
        status: HTTP status.
        body: the reply's body, JSON.

    Raises:
        Refused: the server, or something before it, turned the request away.
        BadReply: it cannot be told from this whether the request was applied.
    """
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        reply = None
    fields = reply if isinstance(reply, dict) else {}
    result = fields.get("result")
    if status == 200 and result == "ok":
        return fields
    said = _clipped(fields["message"] if "message" in fields else body.decode(errors="replace"))
    if 300 <= status < 500 or (status in {200, 500} and result == "error"):
        raise Refused(f"the server refused with HTTP status {status}: {said}", status)
    raise BadReply(f"HTTP status {status} does not say what became of the command: {said}")


def bulk_errors(calls: Sequence[Call], reply: Mapping[str, Any]) -> list[CreditPiggyError | None]:
    """Find which commands of a bulk request were refused.

    An error in the reply may name its command by `class` and `index`, its position within that class in the
    request. Errors without them are laid to no single command, unless they are as many as the commands left. One that
    names no command of the request, or one that was named before, makes the reply malformed: then all is unknown.

    Args:
        calls: the request's commands.
        reply: the server's reply, as `read_reply` returned it.

    Returns:
        One item a call: None if accepted, `Refused`, or `BadReply` if it may be one of those refused.
    """
    listed = reply.get("errors", [])
    if not isinstance(listed, list) or not all(isinstance(error, dict) for error in listed):
        return _unreadable(listed, len(calls))
    seen = dict.fromkeys(KINDS, 0)
    places: dict[tuple[object, object], int] = {}
    for place, (kind, _) in enumerate(calls):
        places[kind, seen[kind]] = place
        seen[kind] += 1
    found: dict[int, CreditPiggyError] = {}
    astray = []
    for error in listed:
        kind, index = error.get("class"), error.get("index")
        if kind is None and index is None:
            astray.append(error)
            continue
        named = places.get((kind, index)) if type(kind) is str and type(index) is int else None
        if named is None or named in found:
            return _unreadable(listed, len(calls))
        found[named] = _refusal([error])
    if not astray:
        return [found.get(place) for place in range(len(calls))]
    left = len(calls) - len(found)
    doubt: CreditPiggyError = _refusal(astray)
    if len(astray) != left:
        said = f"the server refused {len(astray)} of {left} commands without saying which: {doubt}"
        doubt = BadReply(said, len(astray))
    return [found.get(place, doubt) for place in range(len(calls))]


def _unreadable(listed: object, count: int) -> list[CreditPiggyError | None]:
    return [BadReply(f"the server's list of errors cannot be read: {_clipped(listed)}")] * count


def _refusal(errors: list[dict[str, Any]]) -> Refused:
    messages = dict.fromkeys(_clipped(error.get("message", "no message")) for error in errors)
    code = errors[0].get("code")
    return Refused(_clipped("; ".join(messages)), code if type(code) is int else None)


def _clipped(value: object) -> str:
    """Return what a server wrote as a short line that can be encoded."""
    try:
        text = " ".join(str(value).split())
    except RecursionError:
        return "(nested too deeply to be shown)"
    text = text if len(text) <= 300 else f"{text[:299]}…"
    return text.encode(errors="backslashreplace").decode()


def _compact(value: object) -> bytes:
    """JSON in ASCII, for the server in production answers any other byte with an error."""
    return json.dumps(value, separators=(",", ":")).encode()

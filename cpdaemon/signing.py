"""The HTTP API: signed request bodies, and the parsing of replies; pure."""

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
"""An unchecked command: its kind, and its arguments by their wire names."""

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
    """Return the JSON body of a request with one command."""
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

    A server applies a batch class by class. So a batch ends before a call that would overtake an earlier one of the
    same slot, unless the two are counters and meta, whose order makes no difference.

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
    """Return a server's reply if it accepts the request.

    Args:
        status: HTTP status.
        body: the reply's body, JSON.

    Raises:
        Refused: the server, or a proxy, refused the request.
        BadReply: the reply does not say whether the request was applied.
    """
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        reply = None
    fields = reply if isinstance(reply, dict) else {}
    result = fields.get("result")
    if status == 200 and result == "ok":
        return fields
    message = _clipped(fields["message"] if "message" in fields else body.decode(errors="replace"))
    if 300 <= status < 500 or (status in {200, 500} and result == "error"):
        raise Refused(f"the server refused with HTTP status {status}: {message}", status)
    raise BadReply(f"HTTP status {status} does not name the command's outcome: {message}")


def bulk_errors(calls: Sequence[Call], reply: Mapping[str, Any]) -> list[CreditPiggyError | None]:
    """Find which commands of a bulk request were refused.

    An error in the reply may name its command by `class` and `index`, its position within that class in the request.
    Errors without them belong to no single command, unless they are as many as the remaining commands. An error that
    names no command of the request, or the same as another, makes the reply malformed: then all outcomes are unknown.

    Args:
        calls: the request's commands.
        reply: the server's reply, as `read_reply` returned it.

    Returns:
        One item per call: None if accepted, `Refused`, or `BadReply` if it may be one of those refused.
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
    unnamed = []
    for error in listed:
        kind, index = error.get("class"), error.get("index")
        if kind is None and index is None:
            unnamed.append(error)
            continue
        named = places.get((kind, index)) if type(kind) is str and type(index) is int else None
        if named is None or named in found:
            return _unreadable(listed, len(calls))
        found[named] = _refusal([error])
    if not unnamed:
        return [found.get(place) for place in range(len(calls))]
    left = len(calls) - len(found)
    unknown: CreditPiggyError = _refusal(unnamed)
    if len(unnamed) != left:
        text = f"the server refused {len(unnamed)} of {left} commands without naming them: {unknown}"
        unknown = BadReply(text, len(unnamed))
    return [found.get(place, unknown) for place in range(len(calls))]


def _unreadable(listed: object, count: int) -> list[CreditPiggyError | None]:
    return [BadReply(f"the server's list of errors cannot be read: {_clipped(listed)}")] * count


def _refusal(errors: list[dict[str, Any]]) -> Refused:
    messages = dict.fromkeys(_clipped(error.get("message", "no message")) for error in errors)
    code = errors[0].get("code")
    return Refused(_clipped("; ".join(messages)), code if type(code) is int else None)


def _clipped(value: object) -> str:
    """Return a server's text as a short line of valid Unicode."""
    try:
        text = " ".join(str(value).split())
    except RecursionError:
        return "(nested too deeply to show)"
    text = text if len(text) <= 300 else f"{text[:299]}…"
    return text.encode(errors="backslashreplace").decode()


def _compact(value: object) -> bytes:
    """Return ASCII JSON, because the server in production answers other bytes with an error."""
    return json.dumps(value, separators=(",", ":")).encode()

"""The server as a courier sees it: a receiver of batches, over HTTP."""

from __future__ import annotations

import json
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from cpdaemon.commands import KINDS
from cpdaemon.errors import BadReply, CreditPiggyError, Refused
from cpdaemon.signing import bulk_body, bulk_errors, read_reply, token
from cpdaemon.transport import HttpPool
from cpsim.net.http.client import fetch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cpdaemon.endpoint import UrlEndpoint
    from cpdaemon.signing import Call

    Outcomes = Sequence[CreditPiggyError | None]

UNAVAILABLE: Final = 503
BATCH_HEADER: Final = "CreditPiggy-Batch"


class Server(Protocol):
    """The receiver of batches."""

    def knows_batches(self) -> bool:
        """Return whether the server applies a batch once, however often it comes; raises CreditPiggyError."""

    def post(self, batch_id: str | None, calls: Sequence[Call]) -> Outcomes:
        """Return the outcome of each call; raises CreditPiggyError if they were not applied, or may not have been."""

    def give_up(self, batch_id: str | None, calls: Sequence[Call]) -> Outcomes | None:
        """Return the outcome of each call of a batch without a reply; None if it was not applied and never will be.

        Without an id, None means only that the server answers other batches. Raises CreditPiggyError if it does not.
        """


class BulkClient:
    """A server's `/batch/bulk`, over keep-alive connections.

    Args:
        endpoint: the server's base URL.
        credentials: (project id, secret).
        timeout_s: seconds that one request may take.
        follows: whether a redirection is followed, by GET; what comes of it changes nothing.

    Raises:
        EndpointError: the credentials cannot be used.
    """

    def __init__(
        self,
        endpoint: UrlEndpoint,
        credentials: tuple[str, str],
        timeout_s: float,
        *,
        follows: bool = False,
    ) -> None:
        token(credentials, b"")
        self._credentials = credentials
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._pool = HttpPool(endpoint, timeout_s)
        if follows:
            self._pool.on_redirect = self._follow

    def renew(self, secret: str) -> None:
        """Sign further requests with another secret, and read the files for TLS anew.

        Raises:
            EndpointError: one of them cannot be used; all is as it was.
        """
        credentials = self._credentials[0], secret
        token(credentials, b"")
        self._pool.renew()
        self._credentials = credentials

    def knows_batches(self) -> bool:
        """Ask with an empty batch, which any server accepts."""
        return self._bulk("probe", b"{}").get("batch") == "probe"

    def post(self, batch_id: str | None, calls: Sequence[Call]) -> Outcomes:
        """Send one batch; encode one of an earlier version as that version did, because the server compares bytes."""
        body = bulk_body(calls)
        if batch_id is not None and "-" not in batch_id:
            body = json.dumps(json.loads(body), ensure_ascii=False, separators=(",", ":")).encode()
        return _outcomes(calls, self._bulk(batch_id, body))

    def give_up(self, batch_id: str | None, calls: Sequence[Call]) -> Outcomes | None:
        """Send a command that must be refused, then an empty batch under the id, whose reply names the outcome."""
        self._bulk(None, bulk_body([("meta", {"slot": f"cpsim-{uuid.uuid4().hex}", "is": "there"})]))
        if batch_id is None:
            return None
        reply = self._bulk(batch_id, b"{}")
        if type(reply.get("applied")) is not bool:
            raise BadReply(f"the server does not say whether it has applied batch {batch_id}, which fails repeatedly")
        if not reply["applied"]:
            return None
        places = [(kind, index) for kind in KINDS for index, _ in enumerate(call for call in calls if call[0] == kind)]
        errors = reply.get("errors", [])
        named = [_named(error, places) for error in errors] if isinstance(errors, list) else errors
        return _outcomes(calls, {"errors": named})

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def _follow(self, place: str) -> None:
        """Ask for the place of a redirection, if it is one of this server's."""
        if place.startswith("/"):
            with suppress(CreditPiggyError):
                fetch(self._endpoint, "GET", place, connect_s=self._timeout_s, timeout_s=self._timeout_s)

    def _bulk(self, batch_id: str | None, body: bytes) -> dict[str, object]:
        header = "" if batch_id is None else f"{BATCH_HEADER}: {batch_id}\r\n"
        return accepted(*self._pool.post("/batch/bulk", token(self._credentials, body), body, header))


def accepted(status: int, body: bytes) -> dict[str, object]:
    """Return a server's reply if it accepts the batch; raises CreditPiggyError."""
    if status == UNAVAILABLE:
        raise Refused("the server is unavailable", status)
    return read_reply(status, body)


def _named(error: object, places: Sequence[tuple[str, int]]) -> dict[str, object]:
    """Give an error of a given-up batch the class and index of its command; raises BadReply."""
    position = error.get("position") if isinstance(error, dict) else None
    if type(position) is not int or position not in range(len(places)):
        raise BadReply(f"the server lists an error whose position is not one of the {len(places)} commands")
    assert isinstance(error, dict)
    kind, index = places[position]
    return error | {"class": kind, "index": index}


def _outcomes(calls: Sequence[Call], reply: Mapping[str, object]) -> Outcomes:
    """Return the outcome of each call; raises BadReply if the reply does not name it."""
    outcomes = bulk_errors(calls, reply)
    for error in outcomes:
        if isinstance(error, BadReply) and not error.unnamed:
            raise error
    return outcomes

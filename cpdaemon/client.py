"""Sends commands to one endpoint, and raises an error for each command that is not accepted."""

from collections.abc import Generator, Iterable, Iterator, Mapping

from cpdaemon.commands import Alloc, Claim, Command, Counters, Discard, Meta
from cpdaemon.endpoint import Endpoint, UrlEndpoint, parse_endpoint
from cpdaemon.errors import BadReply, CreditPiggyError, EndpointError, NotSent, Refused
from cpdaemon.transport import HttpPool, exchange
from cpdaemon.value import Value

TYPE_CHECKING = False  # typing takes longer to import than this package
if TYPE_CHECKING:
    from typing import Literal, Self

    from cpdaemon.signing import Call

    Answer = list[CreditPiggyError | None] | CreditPiggyError
    Batch = tuple[list[Command], list[Call]]

__all__ = ["Client", "Outcome"]

_MAX_TIMEOUT_S = 86_400


class Outcome(Value):
    """The outcome of one of many commands.

    Attributes:
        command: the command.
        result: "accepted" (by a daemon: queued), "refused" (without effect), or "unknown" (perhaps applied).
        error: the reason, unless accepted.
    """

    __match_args__ = ("command", "result", "error")
    command: Command
    result: "Literal['accepted', 'refused', 'unknown']"
    error: CreditPiggyError | None

    def __init__(
        self,
        command: Command,
        result: "Literal['accepted', 'refused', 'unknown']",
        error: CreditPiggyError | None = None,
    ) -> None:
        self._freeze(command=command, result=result, error=error)


class BaseClient:
    """What a client sends and reads, without a connection: the part that both kinds of client share."""

    def __init__(
        self,
        endpoint: str | Endpoint,
        credentials: tuple[str, str] | None = None,
        timeout_s: float = 10.0,
        algorithm: str = "sha-256",
        *,
        ca: str | None = None,
        client_cert: str | None = None,
        client_key: str | None = None,
    ) -> None:
        if not isinstance(timeout_s, (int, float)) or not 0 < timeout_s <= _MAX_TIMEOUT_S:
            raise EndpointError(f"timeout_s {timeout_s!r} must be more than 0 and at most {_MAX_TIMEOUT_S:,} seconds")
        self._endpoint = endpoint if isinstance(endpoint, Endpoint) else parse_endpoint(endpoint)
        if (ca, client_cert, client_key) != (None, None, None):
            if not isinstance(self._endpoint, UrlEndpoint):
                raise EndpointError(f"{self._endpoint} has no TLS: a CA file and a certificate are for https://")
            self._endpoint = self._endpoint.with_tls(ca, client_cert, client_key)
        self._credentials = credentials
        self._timeout_s = timeout_s
        self._algorithm = algorithm
        self._closed = False
        if isinstance(self._endpoint, UrlEndpoint):
            from cpdaemon import signing  # noqa: PLC0415 - a daemon's client needs neither hashlib nor json

            if credentials is None:
                raise EndpointError(f"{self._endpoint} needs credentials: give (project id, secret)")
            self._signing = signing
            self._token(b"")  # raises here, not at the first command, if the credentials are invalid
        elif credentials is not None:
            raise EndpointError(f"{self._endpoint} is a daemon, which has its own credentials: give none")
        self._open()

    def _open(self) -> None:
        """Make what keeps connections, of arguments that were checked."""
        raise NotImplementedError

    def _frame(self, command: Command) -> bytes:
        """Return the frame of a command to a daemon."""
        if self._closed:
            raise NotSent("this client is closed")
        return command.frame

    def _check(self, command: Command, reply: bytes) -> None:
        """Raise for a daemon's reply that does not accept a command."""
        if reply == b"ER":
            raise Refused(f"the daemon at {self._endpoint} refused {command!r:.200} as malformed (ER)")
        if reply != b"OK":
            raise BadReply(f"{self._endpoint} answered {reply[:60]!r}, neither OK nor ER: is it a daemon?")

    def _single(self, command: Command) -> tuple[str, str, bytes]:
        """Return path, Authorization and body of a request with one command."""
        return self._signed(f"/batch/{command.kind}", self._signing.single_body(command.arguments()))

    def _signed(self, path: str, body: bytes) -> tuple[str, str, bytes]:
        if self._closed:
            raise NotSent("this client is closed")
        return path, self._token(body), body

    def _outcomes(self, commands: list[Command]) -> "Generator[Batch, Answer, list[Outcome]]":
        """Yield batches to send one after the other; each is answered with an error per command, or one for all."""
        outcomes: list[Outcome] = []
        stopped: NotSent | None = None
        for calls in self._batches(commands):
            batch = commands[len(outcomes) : len(outcomes) + len(calls)]
            errors: list[CreditPiggyError | None] = [stopped] * len(batch)
            if stopped is None:
                answer = yield batch, calls
                if not isinstance(answer, CreditPiggyError):
                    errors = answer
                else:
                    errors = [answer] * len(batch)
                    if not isinstance(answer, Refused):
                        stopped = NotSent(f"not sent, because an earlier command failed: {answer}")
            outcomes += map(_outcome, batch, errors)
        return outcomes

    def _batches(self, commands: list[Command]) -> "Iterator[list[Call]]":
        calls: list[Call] = [(command.kind, command.arguments()) for command in commands]
        if isinstance(self._endpoint, UrlEndpoint):
            return self._signing.bulk_batches(calls)
        return ([call] for call in calls)

    def _token(self, payload: bytes) -> str:
        assert self._credentials is not None
        return self._signing.token(self._credentials, payload, self._algorithm)


class Client(BaseClient):
    """A client of one daemon or one server; threads and forked processes may share it.

    Each command to a daemon has its own connection, and accepted means queued. Connections to a server are kept alive,
    and accepted means applied. No command is ever sent twice.

    Args:
        endpoint: an address, as text (see `parse_endpoint`) or parsed.
        credentials: (project id, secret), for a URL only.
        timeout_s: seconds that one exchange may take, from connecting to the end of the reply; at most a day.
        algorithm: signature of requests to a URL: "sha-1", "sha-256" or "sha-512".
        ca: for https, file of the certificates of the authorities to trust, instead of the system's; PEM.
        client_cert: for https, file of the certificate that is shown to the server; PEM.
        client_key: file of its private key, unless it is in the same file.

    Raises:
        EndpointError: the endpoint, or the credentials or a file for it, cannot be used.
    """

    def _open(self) -> None:
        if isinstance(self._endpoint, UrlEndpoint):
            self._pool = HttpPool(self._endpoint, self._timeout_s)

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections, and refuse further commands."""
        self._closed = True
        if isinstance(self._endpoint, UrlEndpoint):
            self._pool.close()

    def alloc(
        self,
        slot_id: str,
        min: int | None = None,
        max: int | None = None,
        credits: int | None = None,
        *,
        expire: int | None = None,
    ) -> None:
        """Allocate a slot; see `cpdaemon.cpapi_alloc`."""
        self.send(Alloc(slot_id, credits, min, max, expire))

    def discard(self, slot_id: str, reason: str | None = None) -> None:
        """Discard a slot; see `cpdaemon.cpapi_discard`."""
        self.send(Discard(slot_id, reason))

    def claim(self, slot_id: str, machine_id: str, credits: int | None = None) -> None:
        """Claim a slot; see `cpdaemon.cpapi_claim`."""
        self.send(Claim(slot_id, machine_id, credits))

    def counters(self, /, slot_id: str, **kwargs: int) -> None:
        """Add to a slot's counters; see `cpdaemon.cpapi_counters`."""
        self.send(Counters(slot_id, kwargs))

    def meta(self, /, slot_id: str, **kwargs: str) -> None:
        """Set metadata of a slot; see `cpdaemon.cpapi_meta`."""
        self.send(Meta(slot_id, kwargs))

    def send(self, command: Command) -> None:
        """Send one command.

        Raises:
            CreditPiggyError: the command was not accepted, or perhaps not: see the error's `definite`.
        """
        if isinstance(self._endpoint, UrlEndpoint):
            self._post(*self._single(command))
        else:
            self._check(command, exchange(self._endpoint, self._frame(command), self._timeout_s))

    def send_many(self, commands: Iterable[Command]) -> list[Outcome]:
        """Send commands, in bulk to a server, so that the commands of each slot take effect in the order given.

        The first failure other than a refusal stops sending: the remaining commands are refused, with `NotSent`.

        Returns:
            One outcome per command, in the order given. Where a server does not name the commands of a bulk request
            that it refused, each that may be one of them is "unknown".
        """
        steps = self._outcomes(list(commands))
        try:
            batch = next(steps)
            while True:
                try:
                    answer: Answer = self._send_batch(*batch)
                except CreditPiggyError as error:
                    answer = error
                batch = steps.send(answer)
        except StopIteration as end:
            outcomes: list[Outcome] = end.value
            return outcomes

    def _send_batch(self, batch: list[Command], calls: "list[Call]") -> list[CreditPiggyError | None]:
        if len(batch) == 1:
            self.send(batch[0])
            return [None]
        reply = self._post(*self._signed("/batch/bulk", self._signing.bulk_body(calls)))
        errors: list[CreditPiggyError | None] = self._signing.bulk_errors(calls, reply)
        return errors

    def _post(self, path: str, authorization: str, body: bytes) -> Mapping[str, object]:
        reply: Mapping[str, object] = self._signing.read_reply(*self._pool.post(path, authorization, body))
        return reply


def _outcome(command: Command, error: CreditPiggyError | None) -> Outcome:
    if error is None:
        return Outcome(command, "accepted")
    return Outcome(command, "refused" if error.definite else "unknown", error)

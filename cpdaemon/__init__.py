"""The CreditPiggy client library: sends commands about slots to a daemon, or directly to a server.

Usage::

    cpapi_setup("/var/run/creditapi.socket")     or "HOST:PORT", or a URL with credentials
    cpapi_alloc("job-1", credits=5)
    cpapi_counters("job-1", **{"job/events": 1000})
    cpapi_claim("job-1", "machine-1")

These functions share one default client; use `Client` for several, and `AsyncClient` in an event loop. Every failure
is a `CreditPiggyError`, which is `definite` if the command certainly had no effect; see `cpdaemon.errors`.
"""

from cpdaemon.client import Client, Outcome
from cpdaemon.commands import Alloc, Claim, Command, Counters, Discard, Meta
from cpdaemon.endpoint import (
    DEFAULT_ENDPOINT,
    Endpoint,
    TcpEndpoint,
    UnixEndpoint,
    UrlEndpoint,
    parse_endpoint,
)
from cpdaemon.errors import (
    BadReply,
    ConnectFailed,
    ConnectTimeout,
    CreditPiggyError,
    EndpointError,
    InvalidCommand,
    NoSuchSocket,
    NotSent,
    Refused,
    ReplyLost,
    ReplyTimeout,
)

__all__ = [
    "DEFAULT_ENDPOINT",
    "Alloc",
    "AsyncClient",
    "BadReply",
    "Claim",
    "Client",
    "Command",
    "ConnectFailed",
    "ConnectTimeout",
    "Counters",
    "CreditPiggyError",
    "Discard",
    "Endpoint",
    "EndpointError",
    "InvalidCommand",
    "Meta",
    "NoSuchSocket",
    "NotSent",
    "Outcome",
    "Refused",
    "ReplyLost",
    "ReplyTimeout",
    "TcpEndpoint",
    "UnixEndpoint",
    "UrlEndpoint",
    "cpapi_alloc",
    "cpapi_claim",
    "cpapi_counters",
    "cpapi_discard",
    "cpapi_meta",
    "cpapi_setup",
    "parse_endpoint",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cpdaemon.aio import AsyncClient

_client = Client(DEFAULT_ENDPOINT)


def __getattr__(name: str) -> object:
    """Return what is imported when it is asked for: asyncio takes longer than the rest of the package."""
    if name != "AsyncClient":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cpdaemon.aio import AsyncClient  # noqa: PLC0415

    return AsyncClient


def __dir__() -> list[str]:
    """Return all names, also those that are not imported yet."""
    return sorted({*globals(), *__all__})


def cpapi_setup(
    server_endpoint: str,
    credentials: tuple[str, str] | None = None,
    *,
    ca: str | None = None,
    client_cert: str | None = None,
    client_key: str | None = None,
) -> None:
    """Set the endpoint of the next commands; before the first call it is `DEFAULT_ENDPOINT`.

    Args:
        server_endpoint: a daemon's UNIX socket ("/var/run/creditapi.socket") or network address
            ("1.2.3.4:5667", "[::1]:5667"), or a server's URL ("https://cp.org/api").
        credentials: (project_id, project_auth), for a URL only.
        ca: for https, file of the certificates of the authorities to trust, instead of the system's; PEM.
        client_cert: for https, file of the certificate that is shown to the server; PEM.
        client_key: file of its private key, unless it is in the same file.

    Raises:
        EndpointError: the endpoint, or the credentials or a file for it, cannot be used; the previous endpoint stays.
    """
    global _client
    client = Client(server_endpoint, credentials, ca=ca, client_cert=client_cert, client_key=client_key)
    previous, _client = _client, client
    previous.close()


def cpapi_alloc(
    slot_id: str,
    min: int | None = None,
    max: int | None = None,
    credits: int | None = None,
    *,
    expire: int | None = None,
) -> None:
    """Allocate a slot, with exact credits, or a range, or neither.

    Args:
        slot_id: id never used before in the project.
        min: least credits that a claim grants.
        max: most credits that a claim grants.
        credits: exact credits that a claim grants; the range is then ignored.
        expire: minutes until the slot expires; 1440 by default.

    Raises:
        CreditPiggyError: the command was not accepted, or perhaps not: see the error's `definite`.
    """
    _client.alloc(slot_id, min, max, credits, expire=expire)


def cpapi_discard(slot_id: str, reason: str | None = None) -> None:
    """Discard a slot: it grants nothing.

    Args:
        slot_id: id of an allocated slot.
        reason: a word such as "expired", "invalid" or "lost".

    Raises:
        CreditPiggyError: the command was not accepted, or perhaps not: see the error's `definite`.
    """
    _client.discard(slot_id, reason)


def cpapi_claim(slot_id: str, machine_id: str, credits: int | None = None) -> None:
    """Claim a slot for the machine that did its work.

    Args:
        slot_id: id of an allocated slot.
        machine_id: id of the machine that earns the credits.
        credits: credits to grant; ignored if alloc gave credits, limited to the range if it gave one.

    Raises:
        CreditPiggyError: the command was not accepted, or perhaps not: see the error's `definite`.
    """
    _client.claim(slot_id, machine_id, credits)


def cpapi_counters(slot_id: str, **kwargs: int) -> None:
    """Add to counters of a slot, which a claim adds to the machine's and the user's.

    Args:
        slot_id: id of an allocated slot.
        **kwargs: number to add, by counter; write a name such as job/events as `**{"job/events": 5}`.

    Raises:
        CreditPiggyError: the command was not accepted, or perhaps not: see the error's `definite`.
    """
    _client.counters(slot_id, **kwargs)


def cpapi_meta(slot_id: str, **kwargs: str) -> None:
    """Set metadata of a slot; it is never aggregated.

    Args:
        slot_id: id of an allocated slot.
        **kwargs: text by name.

    Raises:
        CreditPiggyError: the command was not accepted, or perhaps not: see the error's `definite`.
    """
    _client.meta(slot_id, **kwargs)

"""A Locust user for locustfiles."""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING, ClassVar
from uuid import uuid4

from locust import User

from cpdaemon import Client
from cpdaemon.endpoint import UrlEndpoint, parse_endpoint
from cpdaemon.errors import CreditPiggyError, InvalidCommand, NotSent
from cpsim.clock import SYSTEM_CLOCK
from cpsim.load.guard import FAILED
from cpsim.replay.failures import kind_of
from cpsim.ui.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from locust.env import Environment

_process = uuid4().hex[:12]
_numbers = itertools.count()


class CreditPiggyUser(User):
    """Sends commands to a daemon or a server, its `host`, and reports each to Locust under the command's name.

    A command that fails is a failure in Locust's statistics, under its kind, or the reason why it was not sent; no
    exception is raised. An invalid host or invalid credentials end the process.

    Attributes:
        host: a socket's path, HOST:PORT or URL; Locust's --host.
        credentials: (project id, secret), for a URL.
        timeout_s: seconds to wait for an answer.
        tls: for an https URL, the arguments `ca`, `client_cert` and `client_key` of `cpdaemon.Client`.
    """

    abstract = True
    credentials: ClassVar[tuple[str, str] | None] = None
    timeout_s: ClassVar[float] = 10.0
    tls: ClassVar[Mapping[str, str]] = {}

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        try:
            endpoint = parse_endpoint(self.host or environment.host or "")
            self._client = Client(endpoint, self.credentials, self.timeout_s, **self.tls)
        except CreditPiggyError as error:
            # Locust waits forever for a user that cannot be made, unless its worker quits
            environment.events.user_error.fire(user_instance=self, exception=error, tb=error.__traceback__)
            environment.events.quitting.fire(environment=environment)
            print(f"cpsim: {printable(str(error))}", file=sys.stderr)
            sys.exit(FAILED)
        self._method = "POST" if isinstance(endpoint, UrlEndpoint) else "SEND"

    def new_slot(self) -> str:
        """A new slot id, unique over users, processes and runs."""
        return f"load-{_process}-{next(_numbers)}"

    def alloc(self, slot: str, **arguments: int) -> bool:
        """Allocate a slot, with the arguments of `Client.alloc`; returns whether it was accepted."""
        return self._send(self._client.alloc, slot, **arguments)

    def claim(self, slot: str, machine: str, credits: int | None = None) -> bool:
        """Claim a slot for a machine; returns whether that was accepted."""
        return self._send(self._client.claim, slot, machine, *(() if credits is None else (credits,)))

    def discard(self, slot: str, *reason: str) -> bool:
        """Discard a slot; returns whether that was accepted."""
        return self._send(self._client.discard, slot, *reason)

    def counters(self, slot: str, **values: int) -> bool:
        """Add to a slot's counters; returns whether that was accepted."""
        return self._send(self._client.counters, slot, **values)

    def meta(self, slot: str, **values: str) -> bool:
        """Set a slot's metadata; returns whether that was accepted."""
        return self._send(self._client.meta, slot, **values)

    def on_stop(self) -> None:
        """Close the client."""
        self._client.close()

    def _send(self, command: Callable[..., None], *arguments: str | int, **named: str | int) -> bool:
        begun_s = SYSTEM_CLOCK.monotonic()
        failure: CreditPiggyError | None = None
        try:
            command(*arguments, **named)
        except CreditPiggyError as error:
            failure = error
        self.environment.events.request.fire(
            request_type=self._method,
            name=command.__name__,
            response_time=(SYSTEM_CLOCK.monotonic() - begun_s) * 1000,
            response_length=0,
            # no slot ids in the texts: Locust's report has a line for each text
            exception=failure and type(failure)(_text(failure)),
            context=self.context(),
        )
        return failure is None


def _text(error: CreditPiggyError) -> str:
    """Why a command was not sent, or the kind of another failure."""
    if isinstance(error, InvalidCommand):
        return error.reason
    if isinstance(error, NotSent):
        return error.strerror or str(error)
    kind = kind_of(str(error))
    return type(error).__name__ if kind == "other" else kind

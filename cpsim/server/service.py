"""The account server: one ledger, its projects' secrets and its clock, safe to call from several threads."""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from cpsim.server.ledger import Ledger, Refused
from cpsim.server.quirks import QuirkyLedger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    Call = tuple[str, Mapping[str, object]]


def wall_clock_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1000


class Refusal(NamedTuple):
    """A command of a batch that was refused: its position in the batch, and why."""

    position: int
    message: str


class AccountServer:
    """Applies commands to a ledger, one batch at a time.

    Args:
        projects: project id to secret.
        now_us: the clock, microseconds since 1970.
        quirks: how it differs from what is documented: names from `cpsim.quirks.QUIRKS`.

    Raises:
        ValueError: two project ids differ only by case, or an id or a secret is empty.
    """

    def __init__(
        self,
        projects: Mapping[str, str],
        now_us: Callable[[], int] = wall_clock_us,
        quirks: frozenset[str] = frozenset(),
    ) -> None:
        self._secrets: dict[str, tuple[str, bytes]] = {}
        for project_id, secret in projects.items():
            if not project_id or "," in project_id or not secret:
                raise ValueError(f"project {project_id!r} needs an id without commas, and a secret")
            if project_id.lower() in self._secrets:
                raise ValueError(f"project id {project_id!r} is given twice; case makes no difference")
            self._secrets[project_id.lower()] = (project_id, secret.encode())
        self.quirks = quirks
        self._ledger = QuirkyLedger(quirks) if quirks else Ledger()
        self._lock = threading.Lock()
        self._clock = now_us
        self._latest_us = 0
        self.refused = 0

    def authenticate(self, algorithm: str, project_id: str, digest: str, payload: bytes) -> str | None:
        """The project whose secret signed the payload, or None. Case makes no difference."""
        known_id, secret = self._secrets.get(project_id.lower(), (None, b""))
        expected = hashlib.new(algorithm.replace("-", ""), payload + secret).hexdigest()
        return known_id if hmac.compare_digest(expected.encode(), digest.lower().encode()) else None

    def apply(self, project_id: str, calls: Iterable[Call]) -> list[Refusal]:
        """Apply commands in the order given; what is refused stops nothing."""
        refusals: list[Refusal] = []
        with self._lock:
            now_us = self._now_us()
            apply = self._ledger.apply
            for position, (kind, arguments) in enumerate(calls):
                try:
                    apply(project_id, kind, arguments, now_us)
                except Refused as refused:
                    refusals.append(Refusal(position, str(refused)))
            self.refused += len(refusals)
        return refusals

    def outstanding(self, project_id: str) -> list[str]:
        """The ids of a project's slots that are not settled."""
        with self._lock:
            return self._ledger.outstanding(project_id, self._now_us())

    def link(self, links: Iterable[Sequence[str]]) -> list[Refusal]:
        """Link each (machine id, user id); what is refused stops nothing."""
        refusals = []
        with self._lock:
            for position, (machine_id, user_id) in enumerate(links):
                try:
                    self._ledger.link(machine_id, user_id)
                except Refused as refused:
                    refusals.append(Refusal(position, str(refused)))
        return refusals

    @contextmanager
    def reading(self) -> Iterator[Ledger]:
        """The ledger, up to date and standing still while the context lasts."""
        with self._lock:
            self._ledger.expire(self._now_us())
            yield self._ledger

    def _now_us(self) -> int:
        self._latest_us = max(self._latest_us, self._clock())
        return self._latest_us

"""A server's accounts, through its control API, where it has one.

Listings are read from where they ended when the suite first looked: what it makes itself stands behind that.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from cpsim.conformance.exchange import HttpRequest
from cpsim.conformance.findings import CannotRun
from cpsim.net.control import ControlClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cpsim.conformance.exchange import Reply


class AccountsView:
    """Looks into a server's accounts, moves its clock and links its machines.

    Args:
        ask: sends a request.
    """

    def __init__(self, ask: Callable[[HttpRequest], Reply]) -> None:
        def sent(method: str, path: str, body: bytes, *, slowly: bool) -> tuple[int, bytes]:
            del slowly
            reply = ask(HttpRequest(method, path, body))
            return reply.status, reply.body

        self._control = ControlClient(sent, CannotRun, "")
        self._ends: dict[tuple[str, str], int] = {}

    def exists(self) -> bool:
        """Whether the server has a control API, and lets it be used."""
        return self._control.exists()

    def slot(self, project: str, slot: str) -> dict[str, Any] | None:
        """A slot, or None if the server knows none of that id."""
        return self._find("slots", project, "slot", slot)

    def machine(self, project: str, machine: str) -> dict[str, Any] | None:
        """What a machine has in a project, or None."""
        return self._find("machines", project, "machine", machine)

    def user(self, project: str, user: str) -> dict[str, Any] | None:
        """What a user has in a project, or None."""
        return self._find("users", project, "user", user)

    def totals(self, project: str) -> dict[str, Any]:
        """A project's totals; empty before its first command."""
        totals: dict[str, Any] = self._control.totals()["projects"].get(project, {})
        return totals

    def holdings(self, project: str) -> Iterator[dict[str, Any]]:
        """Every machine and every user of a project, as of one moment."""
        for line in self._control.ledger().splitlines():
            entry = json.loads(line)
            if entry.get("project") == project and entry["type"] in {"machine", "user"}:
                yield entry

    def link(self, machine: str, user: str) -> bool:
        """Link a machine to a user; whether that was done."""
        return not self._control.link([(machine, user)])

    def release(self, machine: str) -> bool:
        """Take a machine from its user; whether that was done."""
        return not self._control.release([machine])

    def now_us(self) -> int:
        """The server's time, microseconds since 1970."""
        now_us, _ = self._control.clock()
        return now_us

    def advance(self, seconds: int) -> None:
        """Let the server's clock jump ahead."""
        self._control.advance_clock(seconds)

    def note_ends(self, project: str) -> None:
        """Note where the listings of a project end now: what the suite makes stands behind that."""
        self._ends["slots", project] = int(self.totals(project).get("allocated", 0))
        for listing in ("machines", "users"):
            self._find(listing, project, "project", "")

    def _find(self, listing: str, project: str, key: str, wanted: str) -> dict[str, Any] | None:
        start = self._ends.get((listing, project), 0)
        found = self._scan(listing, project, key, wanted, start)
        if found is None and start and listing == "slots":  # a slot moves up when an earlier one is deleted
            return self._scan(listing, project, key, wanted, 0)
        return found

    def _scan(self, listing: str, project: str, key: str, wanted: str, cursor: int) -> dict[str, Any] | None:
        while True:
            page = self._control.page(listing, project, cursor)
            for item in page["items"]:
                if item[key] == wanted:
                    found: dict[str, Any] = item
                    return found
            if page["next"] is None:
                self._ends.setdefault((listing, project), cursor + len(page["items"]))
                return None
            cursor = page["next"]

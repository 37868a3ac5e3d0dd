"""A server's accounts, through its control API, where it has one.

Listings are read from where they ended when the suite first looked: what it makes itself stands behind that.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from cpsim.conformance.exchange import HttpRequest
from cpsim.conformance.findings import CannotRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cpsim.conformance.exchange import Reply

CONTROL_PATH: Final = "/__cpsim/"
PAGE: Final = 10_000


class AccountsView:
    """Looks into a server's accounts, moves its clock and links its machines.

    Args:
        ask: sends a request.
    """

    def __init__(self, ask: Callable[[HttpRequest], Reply]) -> None:
        self._ask = ask
        self._ends: dict[tuple[str, str], int] = {}

    def exists(self) -> bool:
        """Whether the server has a control API, and lets it be used."""
        reply = self._ask(HttpRequest("GET", f"{CONTROL_PATH}totals"))
        return reply.status == 200 and "pending" in reply.document

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
        totals: dict[str, Any] = self._read("GET", "totals")["projects"].get(project, {})
        return totals

    def holdings(self, project: str) -> Iterator[dict[str, Any]]:
        """Every machine and every user of a project, as of one moment."""
        reply = self._ask(HttpRequest("GET", f"{CONTROL_PATH}ledger.jsonl"))
        if reply.status != 200:
            raise CannotRun(f"the control API answered ledger.jsonl with {reply}")
        for line in reply.body.splitlines():
            entry = json.loads(line)
            if entry.get("project") == project and entry["type"] in {"machine", "user"}:
                yield entry

    def link(self, machine: str, user: str) -> bool:
        """Link a machine to a user; whether that was done."""
        return not self._read("POST", "links", [[machine, user]])

    def release(self, machine: str) -> bool:
        """Take a machine from its user; whether that was done."""
        return not self._read("POST", "releases", [machine])

    def now_us(self) -> int:
        """The server's time, microseconds since 1970."""
        return int(self._read("GET", "clock")["now_us"])

    def advance(self, seconds: int) -> None:
        """Let the server's clock jump ahead."""
        self._read("POST", f"clock/advance?seconds={seconds}")

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
            query = urlencode({"project": project, "cursor": cursor, "limit": PAGE})
            page = self._read("GET", f"{listing}?{query}")
            for item in page["items"]:
                if item[key] == wanted:
                    found: dict[str, Any] = item
                    return found
            if page["next"] is None:
                self._ends.setdefault((listing, project), cursor + len(page["items"]))
                return None
            cursor = page["next"]

    def _read(self, method: str, name: str, body: object = None) -> Any:  # noqa: ANN401 - JSON
        data = b"" if body is None else json.dumps(body).encode()
        reply = self._ask(HttpRequest(method, f"{CONTROL_PATH}{name}", data))
        try:
            if reply.status == 200:
                return json.loads(reply.body)
        except ValueError:
            pass
        raise CannotRun(f"the control API answered {method} {name} with {reply}")

"""Reads a server: its control API if it has one, else the slots that `/batch/slots` lists."""

from __future__ import annotations

import io
import json
from itertools import chain
from typing import TYPE_CHECKING, Final

from cpdaemon.signing import token
from cpsim.accounts.lines import json_rows
from cpsim.accounts.pages import read_table, slot_pages
from cpsim.accounts.view import NoLedger, UnfitTable, View
from cpsim.clock import SYSTEM_CLOCK
from cpsim.errors import CpsimError
from cpsim.net.control import ControlClient
from cpsim.net.http.client import CannotReach, fetch
from cpsim.system.mapped import NoRoom
from cpsim.system.mapped_rows import MappedRows, together

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from cpdaemon.endpoint import UrlEndpoint
    from cpsim.clock import Clock

    _Amounts = dict[str, int]

POLL_S: Final = 0.01
TABLE_TAKES: Final = 20
"""Time-outs that a server may take to make a table: it may have millions of rows."""


class CannotObserve(CpsimError):
    """The server did not answer a request as it should; the message says what it answered."""


class NothingNew(CannotObserve):
    """A source would show again what it showed when it was last read: nobody has written it anew since."""


class Observer:
    """Reads a server's state.

    Args:
        server: its base URL.
        credentials: (project id, secret).
        timeout_s: for each request.
        clock: measures the waits for a server that is down.

    Attributes:
        control: its control API.
        outage_s: the longest outage, by a fault, for which a request is retried.

    Raises:
        EndpointError: the credentials cannot be used (from the first request that needs them).
    """

    def __init__(
        self, server: UrlEndpoint, credentials: tuple[str, str], timeout_s: float, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._server = server
        self._credentials = credentials
        self._timeout_s = timeout_s
        self._clock = clock
        self.control = ControlClient(self._request, CannotObserve, f" on {server}")
        self.outage_s = 0.0

    def view(self) -> View:
        """What the control API shows of the accounts: `slots.parquet` and `accounts.parquet`, else `ledger.jsonl`.

        Slots are read page by page where the server has pages, so that its other requests wait for one at most. They
        are then in a temporary file.

        Raises:
            CannotObserve: a table is not as the contract has it, the server does not answer as it should, or there is
                no room for the slots.
        """
        try:
            slots, accounts = self._slots(), read_table(self.control, self._server, CannotObserve, "accounts.parquet")
        except NoRoom as error:
            raise CannotObserve(str(error)) from error
        lines = self.control.table("ledger.jsonl") if slots is None or accounts is None else None
        try:
            return View.of_tables(slots, accounts) if lines is None else View.of_lines(json_rows(io.BytesIO(lines)))
        except NoLedger as error:
            raise CannotObserve(f"ledger.jsonl on {self._server} is not the ledger as JSON lines: {error}") from error
        except UnfitTable as error:
            raise CannotObserve(f"the accounts of {self._server}: {error}") from error

    def view_and_meanwhile(self) -> tuple[View, dict[str, _Amounts]]:
        """The view, and what claims granted while it was read: its tables are not of one moment.

        That is by project and name, as far as the server tells it. Raises CannotObserve.
        """
        before = self._granted()
        view = self.view()
        return view, _grown(before, self._granted())

    def _granted(self) -> dict[str, _Amounts]:
        """The credits and counters that claims granted, by project."""
        projects = self.control.totals()["projects"]
        return {name: _amounts(totals) for name, totals in projects.items() if isinstance(totals, dict)}

    def outstanding(self) -> set[str]:
        """The ids of the project's slots that are not settled, as the API lists them."""
        path = f"{self._server.path}/batch/slots"
        status, body = self._request("POST", path, b"", headers={"Authorization": token(self._credentials, b"")})
        if status != 200:
            text = " ".join(body[:200].decode("utf-8", "replace").split())
            hint = "" if status != 404 or self._server.path else " (a server's URL usually ends in /api)"
            raise CannotObserve(f"POST {path} on {self._server} answered {status}: {text}{hint}")
        try:
            return set(json.loads(body)["data"])
        except (ValueError, TypeError, LookupError, RecursionError):
            raise CannotObserve(f"POST {path} on {self._server} answered no list of slots") from None

    def _slots(self) -> pa.Table | None:
        """The slots of all pages, or at once if there are no pages; None if they are not shown as Parquet."""
        pages = slot_pages(self.control, self._server, CannotObserve)
        first = next(pages, None)
        if first is None:
            return None
        with MappedRows(first.schema) as rows:
            for page in together(chain([first], pages)):
                rows.add(page)
            return rows.table()

    def _request(
        self, method: str, path: str, body: bytes, *, slowly: bool = False, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        until_s = self._clock.monotonic() + self.outage_s
        timeout_s = TABLE_TAKES * self._timeout_s if slowly else self._timeout_s
        while True:
            try:
                return fetch(
                    self._server, method, path, body, headers=headers, connect_s=self._timeout_s, timeout_s=timeout_s
                )
            except CannotReach as error:
                if self._clock.monotonic() > until_s:
                    raise CannotObserve(str(error)) from error
                self._clock.sleep(POLL_S)


def _amounts(totals: Mapping[str, object]) -> _Amounts:
    counters = totals.get("counters")
    amounts = {**(counters if isinstance(counters, dict) else {}), "credits": totals.get("credits")}
    return {name: amount for name, amount in amounts.items() if isinstance(amount, int)}


def _grown(before: Mapping[str, _Amounts], after: Mapping[str, _Amounts]) -> dict[str, _Amounts]:
    """By how much amounts have grown, by project and name; or what they were, if they are less: somebody began anew."""
    grown: dict[str, _Amounts] = {}
    for project in before.keys() | after.keys():
        old, new = before.get(project, {}), after.get(project, {})
        for name in old.keys() | new.keys():
            then, now = old.get(name, 0), new.get(name, 0)
            if now != then:
                grown.setdefault(project, {})[name] = now - then if now > then else then
    return grown

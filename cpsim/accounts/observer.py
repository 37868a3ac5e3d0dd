"""Reads a server: its control API if it has one, else the slots that `/batch/slots` lists."""

from __future__ import annotations

import http.client
import io
import json
import ssl
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet

from cpdaemon.signing import token
from cpsim.clock import SYSTEM_CLOCK
from cpsim.errors import CpsimError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cpdaemon.endpoint import UrlEndpoint
    from cpsim.clock import Clock

CONTROL_PATH: Final = "/__cpsim/"
POLL_S: Final = 0.01
TABLE_TAKES: Final = 20
"""Time-outs that a server may take to make a table: it may have millions of rows."""
Row = dict[str, Any]
_NUMBERS: Final = pa.map_(pa.string(), pa.int64())
SLOTS: Final = pa.schema(
    [(name, pa.string()) for name in ("project", "slot", "state", "machine", "user", "reason")]
    + [(name, pa.int64()) for name in ("credits", "min", "max", "granted", "allocated_us", "expires_us", "settled_us")]
    + [("counters", _NUMBERS), ("meta", pa.map_(pa.string(), pa.string()))]
)
ACCOUNTS: Final = pa.schema(
    [(name, pa.string()) for name in ("project", "kind", "id", "user")]
    + [("credits", pa.int64()), ("counters", _NUMBERS), ("waiting_credits", pa.int64()), ("waiting_counters", _NUMBERS)]
)


class CannotObserve(CpsimError):
    """The server did not answer a request as it should; the message says what it answered."""


class _NoParquet(CannotObserve):
    """The server is installed without the extra that writes Parquet."""


class Observer:
    """Reads a server's state.

    Args:
        server: its base URL.
        credentials: (project id, secret).
        timeout_s: for each request.
        clock: measures the waits for a server that is down.

    Attributes:
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
        self.outage_s = 0.0

    def has_control(self) -> bool:
        """Whether the server has a control API."""
        status, body = self._request("GET", f"{CONTROL_PATH}totals")
        try:
            totals = json.loads(body)
        except ValueError:  # a server that answers everything
            return False
        return status == 200 and isinstance(totals, dict) and "pending" in totals

    def totals(self) -> tuple[int, object]:
        """How many acknowledged commands have not reached the accounts, and all totals."""
        totals = json.loads(self._fetch("GET", f"{CONTROL_PATH}totals"))
        return int(totals["pending"]), totals

    def slots(self) -> pa.Table:
        """One row per slot of the server's ledger."""
        return self._table("slots.parquet", SLOTS, {"slot": _slot})

    def accounts(self) -> pa.Table:
        """One row per machine and user of the server's ledger."""
        return self._table("accounts.parquet", ACCOUNTS, {"machine": _account, "user": _account})

    def link(self, links: Sequence[tuple[str, str]]) -> None:
        """Link machines to users."""
        self._fetch("POST", f"{CONTROL_PATH}links", json.dumps(links).encode())

    def clock(self) -> tuple[int, float]:
        """The server's time, in microseconds since 1970, and its rate, as a multiple of real time."""
        body = self._fetch("GET", f"{CONTROL_PATH}clock")
        try:
            shown = json.loads(body)
            return int(shown["now_us"]), float(shown["rate"])
        except (ValueError, TypeError, LookupError):
            raise CannotObserve(f"GET {CONTROL_PATH}clock on {self._server} answered no time and rate") from None

    def freeze_clock(self) -> int:
        """Freeze a fake's clock; returns its time, in microseconds since 1970."""
        return int(json.loads(self._fetch("POST", f"{CONTROL_PATH}clock/freeze"))["now_us"])

    def set_clock(self, now_us: int) -> None:
        """Set a fake's clock to a time that is not before its own."""
        self._fetch("POST", f"{CONTROL_PATH}clock/set?now_us={now_us}")

    def faults(self) -> list[dict[str, Any]]:
        """The faults that are set at a fake, how many commands each has selected, and how often it fired."""
        found: list[dict[str, Any]] = json.loads(self._fetch("GET", f"{CONTROL_PATH}faults"))
        return found

    def set_faults(self, faults: Sequence[str]) -> None:
        """Replace the faults of a fake."""
        self._fetch("POST", f"{CONTROL_PATH}faults", json.dumps(faults).encode())

    def add_faults(self, faults: Sequence[str]) -> None:
        """Add faults to a fake."""
        self._fetch("POST", f"{CONTROL_PATH}faults/add", json.dumps(faults).encode())

    def remove_faults(self, faults: Sequence[str]) -> None:
        """Remove faults from a fake."""
        self._fetch("POST", f"{CONTROL_PATH}faults/remove", json.dumps(faults).encode())

    def firings(self) -> list[dict[str, Any]]:
        """The faults of a fake that fired, in order."""
        found: list[dict[str, Any]] = []
        cursor: int | None = 0
        while cursor is not None:
            page = json.loads(self._fetch("GET", f"{CONTROL_PATH}firings?cursor={cursor}&limit=10000"))
            found += page["items"]
            cursor = page["next"]
        return found

    def outstanding(self) -> set[str]:
        """The ids of the project's slots that are not settled, as the API lists them."""
        path = f"{self._server.path}/batch/slots"
        body = self._fetch("POST", path, headers={"Authorization": token(self._credentials, b"")})
        try:
            return set(json.loads(body)["data"])
        except (ValueError, TypeError, LookupError):
            raise CannotObserve(f"POST {path} on {self._server} answered no list of slots") from None

    def _table(self, name: str, schema: pa.Schema, rows: Mapping[str, Callable[[Row], Row]]) -> pa.Table:
        patience_s = TABLE_TAKES * self._timeout_s
        try:
            body = self._fetch("GET", f"{CONTROL_PATH}{name}", patience_s=patience_s)
        except _NoParquet:
            body = self._fetch("GET", f"{CONTROL_PATH}ledger.jsonl", patience_s=patience_s)
            try:
                lines = [json.loads(line) for line in body.splitlines()]
                return pa.Table.from_pylist(
                    [rows[line["type"]](line) for line in lines if line["type"] in rows], schema
                )
            except (ValueError, TypeError, LookupError, AttributeError, OverflowError, pa.ArrowException) as error:
                where = f"{CONTROL_PATH}ledger.jsonl on {self._server}"
                raise CannotObserve(f"{where} is not the ledger as JSON lines: {error}") from error
        try:
            with pyarrow.parquet.ParquetFile(io.BytesIO(body)) as file:  # `read_table` would import pandas
                return file.read()
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise CannotObserve(f"{CONTROL_PATH}{name} on {self._server} is not Parquet: {error}") from error

    def _fetch(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        patience_s: float | None = None,
    ) -> bytes:
        status, answer = self._request(method, path, body, headers, patience_s)
        if status != 200:
            text = " ".join(answer[:200].decode("utf-8", "replace").split())
            if status == 404 and not self._server.path:
                text += " (a server's URL usually ends in /api)"
            kind = _NoParquet if status == 501 else CannotObserve
            raise kind(f"{method} {path} on {self._server} answered {status}: {text}")
        return answer

    def _request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        patience_s: float | None = None,
    ) -> tuple[int, bytes]:
        until_s = self._clock.monotonic() + self.outage_s
        while True:
            try:
                return self._exchange(method, path, body, headers or {}, patience_s)
            except CannotObserve:
                if self._clock.monotonic() > until_s:
                    raise
                self._clock.sleep(POLL_S)

    def _exchange(
        self, method: str, path: str, body: bytes, headers: dict[str, str], patience_s: float | None
    ) -> tuple[int, bytes]:
        arguments: dict[str, Any] = {
            "host": self._server.host,
            "port": self._server.port,
            "timeout": self._timeout_s,
        }
        connection = (
            http.client.HTTPSConnection(**arguments, context=ssl.create_default_context())
            if self._server.scheme == "https"
            else http.client.HTTPConnection(**arguments)
        )
        try:
            connection.connect()
            connection.sock.settimeout(self._timeout_s if patience_s is None else patience_s)
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise CannotObserve(f"cannot reach {self._server}: {reason}; is it running there?") from error
        finally:
            connection.close()


def _slot(line: Row) -> Row:
    """A row of the table of slots."""
    return line | {"counters": list(line["counters"].items()), "meta": list(line["meta"].items())}


def _account(line: Row) -> Row:
    """A row of the table of accounts."""
    kind = line["type"]
    waiting = line.get("waiting_counters")
    return line | {
        "kind": kind,
        "id": line[kind],
        "user": line["user"] if kind == "machine" else None,
        "counters": list(line["counters"].items()),
        "waiting_counters": None if waiting is None else list(waiting.items()),
    }

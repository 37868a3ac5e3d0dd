"""The control API under `/__cpsim/`: look into the accounts, and link machines to users.

| request | answer |
|---|---|
| `GET /__cpsim/totals` | slots by state, credits, counters, reasons of each project; refusals; commands under way |
| `GET /__cpsim/balance` | the conservation laws that do not hold |
| `GET /__cpsim/slots` | every slot, as Parquet |
| `GET /__cpsim/accounts` | every machine and user, as Parquet |
| `POST /__cpsim/links` | link machines to users: a JSON list of `[machine, user]` |

It is for loopback only: it asks for no credentials.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from cpsim.server.http import Request, Response

if TYPE_CHECKING:
    from collections.abc import Callable

    from cpsim.server.ledger import Ledger
    from cpsim.server.service import AccountServer

CONTROL_PATH: Final = "/__cpsim/"
PARQUET: Final = b"application/vnd.apache.parquet"
T = TypeVar("T")


class Control:
    """Answers control requests.

    Args:
        accounts: whose books are shown.
        pending: how many commands were acknowledged by the daemon and have not reached the accounts.
    """

    def __init__(self, accounts: AccountServer, pending: Callable[[], int]) -> None:
        self._accounts = accounts
        self._pending = pending
        self._actions: dict[tuple[str, str], Callable[[Request], Response]] = {
            ("GET", "totals"): self._totals,
            ("GET", "balance"): self._balance,
            ("GET", "slots"): self._slots,
            ("GET", "accounts"): self._owners,
            ("POST", "links"): self._links,
        }

    def covers(self, path: str) -> bool:
        """Whether a request path is the control API's to answer."""
        return path.startswith(CONTROL_PATH)

    def respond(self, request: Request) -> Response:
        """Answer one control request."""
        action = self._actions.get((request.method, request.path.removeprefix(CONTROL_PATH)))
        if action is None:
            known = ", ".join(f"{method} {CONTROL_PATH}{name}" for method, name in self._actions)
            return _error(404, f"no such request {request.method} {request.path}; there are {known}")
        return action(request)

    def _totals(self, _: Request) -> Response:
        pending = self._pending()
        with self._accounts.reading() as ledger:
            projects = {
                project_id: {
                    "allocated": len(project.slots),
                    "outstanding": project.outstanding,
                    **project.settled,
                    "credits": project.granted.credits,
                    "counters": project.granted.counters,
                    "reasons": project.reasons,
                }
                for project_id, project in ledger.projects.items()
            }
            document = {"pending": pending, "refused": self._accounts.refused, "projects": projects}
            return Response(200, msgspec.json.encode(document))

    def _balance(self, _: Request) -> Response:
        with self._accounts.reading() as ledger:
            return Response(200, msgspec.json.encode({"violations": list(ledger.violations())}))

    def _slots(self, _: Request) -> Response:
        with self._accounts.reading() as ledger:
            return Response(200, slots_parquet(ledger), PARQUET)

    def _owners(self, _: Request) -> Response:
        with self._accounts.reading() as ledger:
            return Response(200, accounts_parquet(ledger), PARQUET)

    def _links(self, request: Request) -> Response:
        try:
            links = msgspec.json.decode(request.body, type=list[tuple[str, str]])
        except ValueError as error:  # not JSON, not UTF-8, or of another shape
            return _error(400, f"the body is not a list of [machine, user]: {error}")
        refusals = self._accounts.link(links)
        return Response(200, msgspec.json.encode([refusal._asdict() for refusal in refusals]))


def _error(status: int, message: str) -> Response:
    return Response(status, msgspec.json.encode({"result": "error", "message": message}))


def slots_parquet(ledger: Ledger) -> bytes:
    """One row per slot: where it is in its life, its terms, and what it granted. Times in microseconds."""
    import pyarrow as pa  # noqa: PLC0415 - slow to import, and few ask

    rows = [
        (project_id, slot_id, slot)
        for project_id, project in ledger.projects.items()
        for slot_id, slot in project.slots.items()
    ]
    slots = [slot for _, _, slot in rows]
    columns = {
        "project": pa.array([project_id for project_id, _, _ in rows], pa.string()),
        "slot": pa.array([slot_id for _, slot_id, _ in rows], pa.string()),
        "state": pa.array([slot.state for slot in slots], pa.string()),
        "machine": pa.array([slot.machine for slot in slots], pa.string()),
        "reason": pa.array([slot.reason for slot in slots], pa.string()),
    }
    for name in ("credits", "min", "max", "granted", "allocated_us", "expires_us", "settled_us"):
        columns[name] = pa.array([getattr(slot, name) for slot in slots], pa.int64())
    counters, meta = pa.map_(pa.string(), pa.int64()), pa.map_(pa.string(), pa.string())
    columns["counters"] = pa.array([_items(slot.counters) for slot in slots], counters)
    columns["meta"] = pa.array([_items(slot.meta) for slot in slots], meta)
    return _parquet(pa.table(columns))


def accounts_parquet(ledger: Ledger) -> bytes:
    """One row per machine and per user of each project: what it earned, and what waits for an owner."""
    import pyarrow as pa  # noqa: PLC0415

    rows = [
        (project_id, "machine", machine_id, ledger.owners.get(machine_id), machine.earned, machine.waiting)
        for project_id, project in ledger.projects.items()
        for machine_id, machine in project.machines.items()
    ] + [
        (project_id, "user", user_id, None, account, None)
        for project_id, project in ledger.projects.items()
        for user_id, account in project.users.items()
    ]
    counters = pa.map_(pa.string(), pa.int64())
    columns = {
        "project": pa.array([row[0] for row in rows], pa.string()),
        "kind": pa.array([row[1] for row in rows], pa.string()),
        "id": pa.array([row[2] for row in rows], pa.string()),
        "user": pa.array([row[3] for row in rows], pa.string()),
        "credits": pa.array([row[4].credits for row in rows], pa.int64()),
        "counters": pa.array([_items(row[4].counters) for row in rows], counters),
        "waiting_credits": pa.array([row[5] and row[5].credits for row in rows], pa.int64()),
        "waiting_counters": pa.array([row[5] and _items(row[5].counters) for row in rows], counters),
    }
    return _parquet(pa.table(columns))


def _items(values: dict[str, T] | None) -> list[tuple[str, T]]:
    return [] if values is None else list(values.items())


def _parquet(table: object) -> bytes:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet  # noqa: PLC0415

    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())

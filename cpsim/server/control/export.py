"""The whole ledger as a file: Parquet tables of slots and of accounts, or JSON lines of both."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import dropwhile, islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from cpsim.errors import CpsimError
from cpsim.server.control.views import (
    LinkView,
    MachineView,
    PlainView,
    SlotView,
    UserView,
    machine_view,
    slot_view,
    user_view,
)
from cpsim.system.extras import require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cpsim.server.accounts import Slot
    from cpsim.server.ledger import Ledger

T = TypeVar("T")
PARQUET: Final = "a table as Parquet, unlike ledger.jsonl,"


def slots_parquet(ledger: Ledger, project_id: str | None = None, cursor: int = 0, limit: int | None = None) -> bytes:
    """One row per slot: state, terms, and the credit it granted, with machine and user. Times in microseconds.

    Args:
        ledger: the accounts.
        project_id: the project with the first slot; None for the first project.
        cursor: the place of that slot in its project.
        limit: most rows. Where they are as many, the schema metadata says where the next slot is, see
            `cpsim.accounts.view.NEXT`.

    Raises:
        MissingExtra: the extra `run` is not installed.
        CpsimError: credits or a counter are more than 64 bits hold.
    """
    require("run", PARQUET)
    import pyarrow as pa  # noqa: PLC0415 - slow to import, and few ask

    from cpsim.accounts.view import CONTRACTS, NEXT  # noqa: PLC0415

    rows, following = _slots(ledger, project_id, cursor, limit)
    slots = [slot for _, _, slot in rows]
    columns = {}
    values: list[Any]
    with _report_overflow(ledger, SlotView):
        for field in CONTRACTS["slots"].schema:
            if field.name in {"project", "slot"}:
                values = [row[field.name == "slot"] for row in rows]
            elif field.name in {"counters", "meta"}:
                values = [_items(getattr(slot, field.name)) for slot in slots]
            else:
                values = [getattr(slot, field.name) for slot in slots]
            columns[field.name] = pa.array(values, field.type)
    metadata = None if following is None else {NEXT: msgspec.json.encode(following)}
    return _parquet(pa.table(columns).replace_schema_metadata(metadata))


def _slots(
    ledger: Ledger, project_id: str | None, cursor: int, limit: int | None
) -> tuple[list[tuple[str, str, Slot]], dict[str, str | int] | None]:
    """Up to `limit` slots, each with its project and id, and where the next one is, if there are as many."""
    rows: list[tuple[str, str, Slot]] = []
    for name, project in dropwhile(lambda each: project_id not in {None, each[0]}, ledger.projects.items()):
        end = None if limit is None else cursor + limit - len(rows)
        rows += ((name, slot_id, slot) for slot_id, slot in islice(project.slots.items(), cursor, end))
        if len(rows) == limit:
            return rows, {"project": name, "cursor": end or 0}
        cursor = 0
    return rows, None


def accounts_parquet(ledger: Ledger, salt: str) -> bytes:
    """One row per machine and per user of each project: earned credit, and credit that waits for a user.

    Args:
        ledger: the accounts.
        salt: goes into the schema metadata, see `cpsim.accounts.view.SALT`.

    Raises:
        MissingExtra: the extra `run` is not installed.
        CpsimError: credits or a counter are more than 64 bits hold.
    """
    require("run", PARQUET)
    import pyarrow as pa  # noqa: PLC0415

    from cpsim.accounts.view import ACCOUNTS, SALT  # noqa: PLC0415

    rows = [
        (project_id, "machine", machine_id, ledger.owners.get(machine_id), machine.earned, machine.waiting)
        for project_id, project in ledger.projects.items()
        for machine_id, machine in project.machines.items()
    ] + [
        (project_id, "user", user_id, None, account, None)
        for project_id, project in ledger.projects.items()
        for user_id, account in project.users.items()
    ]
    with _report_overflow(ledger, MachineView, UserView):
        columns = {
            "project": [row[0] for row in rows],
            "kind": [row[1] for row in rows],
            "id": [row[2] for row in rows],
            "user": [row[3] for row in rows],
            "credits": [row[4].credits for row in rows],
            "counters": [_items(row[4].counters) for row in rows],
            "waiting_credits": [row[5] and row[5].credits for row in rows],
            "waiting_counters": [row[5] and _items(row[5].counters) for row in rows],
        }
        return _parquet(pa.table(columns, ACCOUNTS.with_metadata({SALT: salt})))


@contextmanager
def _report_overflow(ledger: Ledger, *kinds: type[PlainView]) -> Iterator[None]:
    """Name the value that is too large for a column."""
    try:
        yield
    except OverflowError:
        messages = (_beyond_64_bits(view) for view in _views(ledger) if isinstance(view, kinds))
        raise CpsimError(next(filter(None, messages))) from None


def _beyond_64_bits(view: Any) -> str | None:  # noqa: ANN401 - of a slot, a machine or a user
    kind = view.__struct_config__.tag
    for name, value in msgspec.structs.asdict(view).items():
        sums = {f"{name} {key}": number for key, number in value.items()} if isinstance(value, dict) else {name: value}
        for shown, number in sums.items():
            if isinstance(number, int) and not -(2**63) <= number < 2**63:
                whose = f"project {view.project!r}, {kind} {getattr(view, kind)!r}"
                return f"{whose}: {shown} is {number}, beyond the 64 bits of a Parquet column; ledger.jsonl has it"
    return None


def _items(values: dict[str, T] | None) -> list[tuple[str, T]]:
    return [] if values is None else list(values.items())


def _parquet(table: object) -> bytes:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet  # noqa: PLC0415

    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def json_lines(ledger: Ledger) -> bytes:
    """One JSON object per slot, machine and user of each project, then per link; `type` says which."""
    return msgspec.json.Encoder().encode_lines(_views(ledger))


def _views(ledger: Ledger) -> Iterator[PlainView]:
    for project_id, project in ledger.projects.items():
        for slot_id, slot in project.slots.items():
            yield slot_view(project_id, slot_id, slot)
        for machine_id, machine in project.machines.items():
            yield machine_view(project_id, machine_id, machine, ledger.owners.get(machine_id))
        for user_id, account in project.users.items():
            yield user_view(project_id, user_id, account)
    for machine_id, user_id in ledger.owners.items():
        yield LinkView(machine=machine_id, user=user_id)

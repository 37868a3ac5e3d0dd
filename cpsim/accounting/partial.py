"""Accounts of which only a part is shown, made into the tables that reports read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cpsim.accounts.view import ACCOUNTS, CONTRACTS
from cpsim.errors import CpsimError

if TYPE_CHECKING:
    from pathlib import Path

    from cpsim.accounts.view import View

NEEDED: Final = ("state", "machine", "granted")
"""The columns of slots without which nobody can say who earned what."""
BALANCES: Final = {
    "machines": ("user", "credits", "counters", "waiting_credits", "waiting_counters"),
    "users": ("credits", "counters"),
}
"""What is needed of machines and users: the sum over those of which a column is hidden would be wrong."""
NO_BALANCES: Final = "Owners and balances of machines and users are not known, as not all of these are shown."
NO_TIMES: Final = (
    "The accounts do not show when slots were allocated and settled: each counts as of the time at which they were "
    "read, recent averages and rates are as if all had come then, and how long slots took is not known."
)
NO_COUNTERS: Final = "The accounts do not show the counters of slots: none is summed."


def write(view: View, name: str, folder: Path, at_us: int) -> tuple[Path, Path | None, bool, str]:
    """Write the tables of a view with all the columns that reports read, empty where they are not shown.

    Args:
        view: what is shown.
        name: of its source, for messages.
        folder: takes the tables.
        at_us: when it was read, in microseconds since 1970.

    Returns:
        The table of slots; that of machines and users, or None; whether times are known; sentences on what is missing.

    Raises:
        CpsimError: it does not show who earned what.
    """
    if view.slots is None:
        raise CpsimError(f"{name} shows no table of slots: nobody can say for what credit was granted")
    if hidden := [column for column in NEEDED if column not in view.slots.column_names]:
        raise CpsimError(f"{name} does not show the {hidden[0]} of slots: nobody can say who earned what")
    notes = []
    slots = _whole(view.slots, CONTRACTS["slots"].schema)
    has_times = _shows_times(slots)
    if not has_times:
        notes.append(NO_TIMES)
        at = pa.repeat(pa.scalar(at_us, pa.int64()), len(slots))
        settled = pc.if_else(pc.equal(slots["state"], "allocated"), pa.scalar(None, pa.int64()), at)
        for column, values in (("allocated_us", at), ("settled_us", settled)):
            slots = slots.set_column(slots.column_names.index(column), column, values)
    if not (has_counters := _shows(view.slots, ("counters",))):
        notes.append(NO_COUNTERS)
    pq.write_table(slots, folder / "slots.parquet")
    if not all(_shows(getattr(view, table), columns) for table, columns in BALANCES.items()):
        return folder / "slots.parquet", None, has_times, " ".join([*notes, NO_BALANCES])
    assert view.accounts is not None
    accounts = _whole(view.accounts.filter(pc.not_equal(view.accounts["kind"], "project")), ACCOUNTS)
    accounts = accounts.replace_schema_metadata(view.accounts.schema.metadata)
    if not has_counters:
        for column in ("counters", "waiting_counters"):  # there is nothing to compare them with
            nothing = pa.nulls(len(accounts), ACCOUNTS.field(column).type)
            accounts = accounts.set_column(accounts.column_names.index(column), column, nothing)
    pq.write_table(accounts, folder / "accounts.parquet")
    return folder / "slots.parquet", folder / "accounts.parquet", has_times, " ".join(notes)


def _shows(table: pa.Table | None, columns: tuple[str, ...]) -> bool:
    return table is not None and set(columns) <= set(table.column_names)


def _whole(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with all columns of a schema; null where it has none."""
    return pa.table(
        {
            field.name: table[field.name] if field.name in table.column_names else pa.nulls(len(table), field.type)
            for field in schema
        }
    )


def _shows_times(slots: pa.Table) -> bool:
    """Whether it is known of every slot when it was allocated and, if it is settled, when that was."""
    is_settled = pc.not_equal(slots["state"], "allocated")
    unknown = pc.or_(pc.is_null(slots["allocated_us"]), pc.and_(is_settled, pc.is_null(slots["settled_us"])))
    return not pc.any(unknown).as_py()

"""Users: who earned what, on which days, through which machines and slots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cpsim.accounting import Figure, Table, first_of, ranked, tied

if TYPE_CHECKING:
    import pandas as pd

    from cpsim.accounting import Accounts
    from cpsim.accounting.blocks import Block

MOST_USERS: Final = 200
MOST_MACHINES: Final = 10
MOST_SLOTS: Final = 5
USER: Final = ("project", "user")
MACHINE: Final = (*USER, "machine")

MACHINES: Final = """
WITH wanted AS (SELECT unnest($1::VARCHAR[]) AS project, unnest($2::VARCHAR[]) AS user)
SELECT *, count(*) OVER (PARTITION BY project, user) AS there
FROM (
    SELECT slots.project, slots.user, machine, count(*) AS slots, sum(granted)::BIGINT AS credits,
        max(settled_us) AS last_us
    FROM slots JOIN wanted ON slots.project = wanted.project AND slots.user = wanted.user
    WHERE state = 'claimed' AND settled_us >= getvariable('since_us')
    GROUP BY slots.project, slots.user, machine
)
QUALIFY row_number() OVER (PARTITION BY project, user ORDER BY credits DESC, machine) <= $3
ORDER BY project, user, credits DESC, machine
"""
SLOTS: Final = """
WITH wanted AS (
    SELECT unnest($1::VARCHAR[]) AS project, unnest($2::VARCHAR[]) AS user, unnest($3::VARCHAR[]) AS machine
)
SELECT slots.project, slots.user, slots.machine, settled_us, slot, granted AS credits
FROM slots JOIN wanted
    ON slots.project = wanted.project AND slots.user = wanted.user AND slots.machine = wanted.machine
WHERE state = 'claimed' AND settled_us >= getvariable('since_us')
QUALIFY row_number() OVER (
    PARTITION BY slots.project, slots.user, slots.machine ORDER BY settled_us DESC, slot) <= $4
ORDER BY slots.project, slots.user, slots.machine, settled_us DESC, slot
"""


def build(frames: Accounts) -> list[Block]:
    """The users asked for, or the leading ones, with their days, machines and latest slots within the period."""
    rows = ranked(frames.users, "credits", "user")
    top = max(frames.top, MOST_USERS)
    if frames.subjects:
        rows = rows[rows["user"].isin(frames.subjects)]
        top = len(rows)
    if rows.empty:
        return []
    shown = rows.head(top)
    others = f"{rows['credits'].iloc[top:].sum():,} credits"
    note = " ".join(filter(None, (first_of(top, len(rows), others), tied(rows, top))))
    machines = frames.query(MACHINES, (*_keys(shown, USER), max(frames.top, MOST_MACHINES)))
    machines["last_at"] = frames.when(machines["last_us"]).dt.floor("s")
    slots = frames.query(SLOTS, (*_keys(machines, MACHINE), MOST_SLOTS))
    columns = ["rank", *USER, "credits", "period_credits", "claimed", "machines"]
    if (shown["credits"] == shown["period_credits"]).all():
        columns.remove("period_credits")
    blocks: list[Block] = [Table("Users", shown[columns].rename(columns={"claimed": "slots"}), note, None)]
    if frames.source.has_times:
        days = frames.daily("user", list(zip(shown["project"], shown["user"], strict=True)))
        note = f"Days are those of clocks in {frames.timezone.key}; the ones without credits are left out."
        days = days[["project", "id", "start_at", "slots", "credits"]].rename(columns={"id": "user"})
        blocks.append(Figure("Credits per day", days, "bars", "start_at", ["credits"], note, None, within=USER))
    return [
        *blocks,
        Table(
            "Machines",
            machines[[*MACHINE, "slots", "credits", "last_at"]],
            _about(int(machines.drop_duplicates(USER)["there"].sum()), len(machines), "machines with most credits"),
            None,
            within=USER,
        ),
        Table(
            "Latest slots",
            slots.assign(claimed_at=frames.when(slots["settled_us"]))[[*MACHINE, "claimed_at", "slot", "credits"]],
            _about(int(machines["slots"].sum()), len(slots), "latest slots of each"),
            None,
            within=MACHINE,
        ),
    ]


def _keys(frame: pd.DataFrame, names: tuple[str, ...]) -> list[list[str]]:
    return [frame[name].tolist() for name in names]


def _about(there: int, shown: int, what: str) -> str:
    if shown >= there:
        return ""
    return f"The {what}: {shown:,} of {there:,}. The report user-statement, with --for USER, has every slot of a user."

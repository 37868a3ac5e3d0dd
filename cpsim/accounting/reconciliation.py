"""What a client's journal says was acknowledged, against what the ledger says happened, slot by slot.

Slots by the million are compared in one pass over narrow columns: ids of machines and texts of counters as 64-bit
hashes, so that a difference would have to hide behind one in 2^64. Only slots that differ are kept by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cpsim.accounting.books import DUE, RULE
from cpsim.accounting.rollups import PERIOD

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

AGREES: Final = "agrees"
APPLIED: Final = "a reply was lost: the command was applied"
LOST: Final = "a reply was lost: the command was not applied"
NO_DIFFERENCE: Final = (AGREES, APPLIED, LOST)
"""What is no difference: a command whose reply was lost may have been applied or not."""
OTHERS: Final = "not of this run"
"""Slots that the journal does not know and whose ids are not the run's: they are not compared."""
UNSURE: Final = "counters of several commands"

SENT: Final = """
SELECT slot, bit_or(flag) AS flags, count(*) FILTER (flag = 2) AS claims, count(*) FILTER (flag = 8) AS counted,
    bit_xor(claimant) AS claimant, bit_xor(counters) AS counters, bool_and(gave) IS NOT TRUE AS defaulted,
    if(count(claimant) = 1, max(credits), NULL) AS asked
FROM (
    SELECT slot, flag, if(flag & 18 > 0, hash(machine), NULL) AS claimant,
        if(flag & 18 > 0, credits IS NOT NULL, NULL) AS gave, if(flag & 18 > 0, coalesce(credits, 1), NULL) AS credits,
        if(flag = 8, hash(counters), NULL) AS counters
    FROM (SELECT slot, counters, "claim.machine" AS machine, "claim.credits" AS credits, CASE outcome
            WHEN 'accepted' THEN CASE kind WHEN 'alloc' THEN 1 WHEN 'claim' THEN 2 WHEN 'discard' THEN 4 ELSE 8 END
            WHEN 'unknown' THEN CASE kind WHEN 'claim' THEN 16 WHEN 'discard' THEN 32 WHEN 'counters' THEN 64 ELSE 0 END
            ELSE 0 END AS flag
        FROM journal WHERE kind IN ('alloc', 'claim', 'discard', 'counters'))
) GROUP BY slot
"""
"""What was sent for each slot; `flags` has a bit for each kind of command that was acknowledged (alloc 1, claim 2,
discard 4, counters 8) or whose reply was lost (claim 16, discard 32, counters 64)."""

FINDING: Final = f"""CASE
    WHEN state = 'claimed' AND claims = 1 AND flags IN (3, 11) AND machine = claimant AND granted = due
        AND held IS NOT DISTINCT FROM counters THEN '{AGREES}'
    WHEN absent THEN if(flags & 7 > 0, 'acknowledged, but the ledger has no such slot', '{AGREES}')
    WHEN unsent THEN if(starts_with(slot, getvariable('run_prefix')),
        'in the ledger, but the journal has no such slot', '{OTHERS}')
    WHEN claims > 1 THEN 'claims acknowledged more than once'
    WHEN flags & 6 = 6 THEN 'both a claim and a discard acknowledged'
    WHEN claims > 0 AND state <> 'claimed' THEN 'claim acknowledged, but the slot is ' || state
    WHEN flags & 4 > 0 AND state <> 'discarded' THEN 'discard acknowledged, but the slot is ' || state
    WHEN state = 'claimed' AND flags & 18 = 0 THEN 'claimed, but the journal has no such claim'
    WHEN state = 'discarded' AND flags & 36 = 0 THEN 'discarded, but the journal has no such discard'
    WHEN state = 'claimed' AND claims = 1 AND flags & 16 = 0 AND machine <> claimant THEN 'claimed by another machine'
    WHEN state = 'claimed' AND claims = 1 AND granted <> due THEN 'granted other credits than were due'
    WHEN flags & 72 = 0 AND held IS NOT NULL THEN 'counters differ'
    WHEN counted > 0 AND flags & 64 = 0 AND held IS DISTINCT FROM counters THEN '{UNSURE}'
    WHEN flags & 16 > 0 THEN if(state = 'claimed', '{APPLIED}', '{LOST}')
    WHEN flags & 32 > 0 THEN if(state = 'discarded', '{APPLIED}', '{LOST}')
    ELSE '{AGREES}' END"""

COMPARED: Final = f"""
CREATE TEMP TABLE compared AS
WITH ours AS (
    SELECT slot, project, state, hash(machine) AS machine, granted, credits, min, max, settled_us,
        if(cardinality(counters) = 0, NULL, hash(counters)) AS held
    FROM run_ledger
), joined AS (
    SELECT coalesce(s.slot, o.slot) AS slot, s.* EXCLUDE (slot), o.* EXCLUDE (slot), o.slot IS NULL AS absent,
        s.slot IS NULL AS unsent, if(claims > 0, coalesce(o.credits, {DUE}), 0) AS due
    FROM ({SENT}) s FULL JOIN ours o ON s.slot = o.slot
), judged AS (
    SELECT {FINDING} AS finding, if(state = 'claimed' AND {PERIOD}, {RULE}, NULL) AS rule,
        if(finding IN {(*NO_DIFFERENCE, OTHERS)!r}, NULL, slot) AS slot, project, due,
        if(state = 'claimed', granted, 0) AS granted
    FROM joined
)
SELECT finding, rule, project, slot, count(*) AS slots, coalesce(sum(due), 0)::BIGINT AS acknowledged_credits,
    coalesce(sum(granted), 0)::BIGINT AS granted_credits
FROM judged GROUP BY finding, rule, project, slot
"""

RESOLVED: Final = f"""
CREATE TEMP TABLE unsure AS SELECT slot FROM compared WHERE finding = '{UNSURE}';
UPDATE compared SET finding = 'counters differ' WHERE finding = '{UNSURE}' AND slot IN (
    WITH sent AS (
        SELECT slot, entry.key AS counter, sum(entry.value)::BIGINT AS total
        FROM (SELECT slot, unnest(map_entries(counters)) AS entry FROM journal SEMI JOIN unsure USING (slot)
            WHERE kind = 'counters' AND outcome = 'accepted') GROUP BY slot, counter
    ), held AS (
        SELECT slot, entry.key AS counter, entry.value AS total
        FROM (SELECT slot, unnest(map_entries(counters)) AS entry FROM run_ledger SEMI JOIN unsure USING (slot))
    )
    SELECT coalesce(s.slot, h.slot) FROM sent s FULL JOIN held h ON s.slot = h.slot AND s.counter = h.counter
    WHERE s.total IS DISTINCT FROM h.total
);
UPDATE compared SET finding = '{AGREES}' WHERE finding = '{UNSURE}';
DROP TABLE unsure;
"""
"""Counters that came in several commands, or in another order, are added up name by name."""

TOTALS: Final = f"""
SELECT finding, sum(slots)::BIGINT AS slots, sum(acknowledged_credits)::BIGINT AS acknowledged_credits,
    sum(granted_credits)::BIGINT AS granted_credits,
    sum(granted_credits)::BIGINT - sum(acknowledged_credits)::BIGINT AS difference_credits
FROM compared WHERE finding <> '{OTHERS}' GROUP BY finding ORDER BY slots DESC, finding
"""

NOT_COMPARED: Final = f"""
SELECT '{OTHERS}: not compared' AS finding, sum(slots)::BIGINT AS slots, sum(credits)::BIGINT AS granted_credits
FROM (
    SELECT slots, granted_credits AS credits FROM compared WHERE finding = '{OTHERS}'
    UNION ALL
    SELECT 1, if(state = 'claimed', granted, 0) FROM ledger WHERE project <> getvariable('run_project')
) HAVING sum(slots) > 0
"""
"""The rest of the ledger, if there is any; `TOTALS` leaves it out."""

RULES: Final = f"""
SELECT project, rule, sum(slots)::BIGINT AS slots, sum(granted_credits)::BIGINT AS credits
FROM (
    SELECT project, rule, slots, granted_credits FROM compared WHERE rule IS NOT NULL
    UNION ALL
    SELECT project, {RULE}, 1, granted FROM (
        SELECT *, NULL AS asked, NULL AS defaulted FROM ledger
        WHERE project <> getvariable('run_project') AND state = 'claimed' AND {PERIOD})
) GROUP BY project, rule ORDER BY project, slots DESC, rule
"""

DIFFERENCES: Final = f"""
WITH differing AS (
    SELECT slot, finding, acknowledged_credits FROM compared WHERE finding NOT IN {(*NO_DIFFERENCE, OTHERS)!r}
    ORDER BY finding, slot LIMIT $1
), sent AS (
    SELECT slot, count(*) FILTER (kind = 'claim' AND outcome = 'accepted') AS claims,
        count(*) FILTER (kind = 'discard' AND outcome = 'accepted') AS discards,
        min("claim.machine") FILTER (kind = 'claim') AS claimant
    FROM journal SEMI JOIN differing USING (slot) GROUP BY slot
)
SELECT d.slot, finding, coalesce(claims, 0) AS claims_acknowledged, coalesce(discards, 0) AS discards_acknowledged,
    claimant AS claimed_for, acknowledged_credits AS due_credits, state AS ledger_state, machine AS ledger_machine,
    granted AS granted_credits
FROM differing d LEFT JOIN sent s ON d.slot = s.slot
LEFT JOIN (SELECT * FROM run_ledger SEMI JOIN differing USING (slot)) l ON d.slot = l.slot
ORDER BY finding, d.slot
"""


def verdict(totals: pd.DataFrame) -> tuple[str, bool]:
    """Whether journal and ledger agree, in a sentence, and whether no slot differs; of `TOTALS`."""
    differing = totals[~totals["finding"].isin(NO_DIFFERENCE)]
    slots, there = int(differing["slots"].sum()), int(totals["slots"].sum())
    credits = int(totals["difference_credits"].sum())
    if slots or credits:
        more = f"the ledger granted {credits:+,} credits more than were acknowledged"
        return f"{slots:,} of {there:,} slots differ; {more}.", not slots
    return f"All {there:,} slots agree, and so do the credits.", True


def reconcile(database: duckdb.DuckDBPyConnection, project: str | None, prefix: str) -> None:
    """Make the table `compared`: a row per slot that differs, and one for all others of a finding and rule.

    Args:
        database: it has the views of `Books`.
        project: whose slots the run was about, if that is known.
        prefix: begins the ids of the run's slots.
    """
    database.execute("SET VARIABLE run_project = $1::VARCHAR", [project])
    database.execute("SET VARIABLE run_prefix = $1::VARCHAR", [prefix])
    database.execute(
        "CREATE TEMP VIEW run_ledger AS SELECT * FROM ledger "
        "WHERE getvariable('run_project') IS NULL OR project = getvariable('run_project')"
    )
    database.execute(COMPARED)
    database.execute(RESOLVED)

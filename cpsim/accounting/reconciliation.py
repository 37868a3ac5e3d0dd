"""What a client's journal says was acknowledged, against what the ledger says happened, slot by slot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import duckdb

AGREES: Final = "agrees"
UNKNOWN_APPLIED: Final = "a reply was lost: the command was applied"
UNKNOWN_LOST: Final = "a reply was lost: the command was not applied"
NO_DIFFERENCE: Final = (AGREES, UNKNOWN_APPLIED, UNKNOWN_LOST)
"""What is no difference: a command whose reply was lost may have been applied or not."""

ACKNOWLEDGED: Final = """
CREATE TEMP TABLE acknowledged AS
SELECT slot, bool_or(kind = 'alloc' AND outcome = 'accepted') AS allocated,
    count(*) FILTER (kind = 'claim' AND outcome = 'accepted') AS claims,
    count(*) FILTER (kind = 'discard' AND outcome = 'accepted') AS discards,
    count(*) FILTER (kind = 'counters' AND outcome = 'accepted') AS counted,
    count(*) FILTER (kind = 'claim' AND outcome = 'unknown') AS unknown_claims,
    count(*) FILTER (kind = 'discard' AND outcome = 'unknown') AS unknown_discards,
    count(*) FILTER (kind = 'counters' AND outcome = 'unknown') AS unknown_counters,
    any_value(arguments) FILTER (kind = 'claim' AND outcome <> 'refused') AS claim,
    any_value(arguments) FILTER (kind = 'counters' AND outcome = 'accepted') AS counters
FROM journal WHERE kind <> 'meta' GROUP BY slot
"""

COMPARED: Final = """
CREATE TEMP TABLE compared AS
WITH ours AS (
    SELECT * FROM ledger WHERE getvariable('run_project') IS NULL OR project = getvariable('run_project')
), joined AS (
    SELECT coalesce(a.slot, l.slot) AS slot, a.* EXCLUDE (slot), l.project, l.state, l.machine, l.granted,
        l.credits AS fixed, l.min, l.max, l.counters AS held, l.slot IS NULL AS absent, a.slot IS NULL AS unsent,
        regexp_extract(a.claim, '(?:^|,)machine=([^,]*)', 1) AS claimant,
        coalesce(TRY_CAST(nullif(regexp_extract(a.claim, '(?:^|,)credits=(-?[0-9]+)(?:,|$)', 1), '') AS BIGINT), 1)
            AS asked
    FROM acknowledged a FULL JOIN ours l ON a.slot = l.slot
), expecting AS (
    SELECT * EXCLUDE (asked), if(claims > 0, coalesce(fixed,
        greatest(least(asked, coalesce(max, asked)), coalesce(min, asked))), 0)::BIGINT AS expected,
        list_sort(string_split(counters, ',')) = list_sort(list_transform(map_entries(held),
            lambda entry: entry.key || '=' || entry.value)) AS counters_agree
    FROM joined WHERE NOT unsent OR starts_with(slot, getvariable('run_prefix'))
)
SELECT slot, project, state, machine, granted, claims, discards, claimant, expected, counted, CASE
    WHEN absent AND (allocated OR claims > 0 OR discards > 0) THEN 'acknowledged, but the ledger has no such slot'
    WHEN absent THEN '{AGREES}'
    WHEN unsent THEN 'in the ledger, but the journal has no such slot'
    WHEN claims > 1 THEN 'claims acknowledged more than once'
    WHEN claims > 0 AND discards > 0 THEN 'both a claim and a discard acknowledged'
    WHEN claims > 0 AND state <> 'claimed' THEN 'claim acknowledged, but the slot is ' || state
    WHEN discards > 0 AND state <> 'discarded' THEN 'discard acknowledged, but the slot is ' || state
    WHEN state = 'claimed' AND claims + unknown_claims = 0 THEN 'claimed, but the journal has no such claim'
    WHEN state = 'discarded' AND discards + unknown_discards = 0 THEN 'discarded, but the journal has no such discard'
    WHEN state = 'claimed' AND machine <> claimant THEN 'claimed by another machine'
    WHEN state = 'claimed' AND claims = 1 AND granted <> expected THEN 'granted other credits than were due'
    WHEN counted = 0 AND unknown_counters = 0 AND cardinality(held) > 0 THEN 'counters differ'
    WHEN counted > 0 AND unknown_counters = 0 AND NOT counters_agree THEN '{UNSURE}'
    WHEN unknown_claims > 0 THEN if(state = 'claimed', '{UNKNOWN_APPLIED}', '{UNKNOWN_LOST}')
    WHEN unknown_discards > 0 THEN if(state = 'discarded', '{UNKNOWN_APPLIED}', '{UNKNOWN_LOST}')
    ELSE '{AGREES}' END AS finding
FROM expecting
"""
UNSURE: Final = "counters of several commands"

RESOLVED: Final = """
UPDATE compared SET finding = 'counters differ' WHERE slot IN (
    WITH unsure AS (SELECT slot FROM compared WHERE finding = '{UNSURE}'), sent AS (
        SELECT slot, split_part(argument, '=', 1) AS counter, sum(split_part(argument, '=', 2)::BIGINT)::BIGINT AS total
        FROM (SELECT slot, unnest(string_split(arguments, ',')) AS argument FROM journal SEMI JOIN unsure USING (slot)
            WHERE kind = 'counters' AND outcome = 'accepted') GROUP BY slot, counter
    ), held AS (
        SELECT slot, entry.key AS counter, entry.value AS total
        FROM (SELECT slot, unnest(map_entries(counters)) AS entry FROM ledger SEMI JOIN unsure USING (slot))
    )
    SELECT coalesce(s.slot, h.slot) FROM sent s FULL JOIN held h ON s.slot = h.slot AND s.counter = h.counter
    WHERE s.total IS DISTINCT FROM h.total
);
UPDATE compared SET finding = '{AGREES}' WHERE finding = '{UNSURE}';
DROP TABLE acknowledged;
"""

TOTALS: Final = """
SELECT finding, count(*) AS slots, coalesce(sum(expected), 0)::BIGINT AS acknowledged_credits,
    coalesce(sum(granted) FILTER (state = 'claimed'), 0)::BIGINT AS granted_credits,
    granted_credits - acknowledged_credits AS difference_credits
FROM compared GROUP BY finding ORDER BY slots DESC, finding
"""

DIFFERENCES: Final = """
SELECT slot, finding, claims AS claims_acknowledged, discards AS discards_acknowledged, claimant AS claimed_for,
    expected AS due_credits, state AS ledger_state, machine AS ledger_machine, granted AS granted_credits
FROM compared WHERE finding NOT IN ? ORDER BY finding, slot LIMIT ?
"""


def reconcile(database: duckdb.DuckDBPyConnection, project: str | None, prefix: str) -> None:
    """Make the table `compared`: a row per slot of the journal or of the run, and what was found about it.

    Args:
        database: it has the views of `Books`.
        project: whose slots the run was about, if that is known.
        prefix: begins the ids of the run's slots.
    """
    words = {
        "{AGREES}": AGREES,
        "{UNKNOWN_APPLIED}": UNKNOWN_APPLIED,
        "{UNKNOWN_LOST}": UNKNOWN_LOST,
        "{UNSURE}": UNSURE,
    }
    database.execute("SET VARIABLE run_project = $1::VARCHAR", [project])
    database.execute("SET VARIABLE run_prefix = $1::VARCHAR", [prefix])
    for statement in (ACKNOWLEDGED, COMPARED, RESOLVED):
        for word, text in words.items():
            statement = statement.replace(word, text)  # noqa: PLW2901 - it is what is replaced in
        database.execute(statement)

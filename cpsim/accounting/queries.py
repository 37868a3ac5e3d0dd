"""The queries behind the frames of `Accounts`, over the views of `Books` and the tables of `rollups`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pandas as pd
import pyarrow as pa

from cpsim.accounting.books import ASKED, RULE
from cpsim.accounting.recent_average import exact_sum
from cpsim.accounting.rollups import BINS_AN_OCTAVE, PERIOD, SECOND_PARTS

if TYPE_CHECKING:
    import duckdb

INTEGERS: Final = {kind: pd.Int64Dtype() for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64())}
PROJECTS: Final = f"""
WITH holders AS (
    SELECT project, count(*) FILTER (kind = 'machine') AS machines, count(*) FILTER (kind = 'user') AS users,
        coalesce(sum(waiting_credits), 0)::BIGINT AS waiting_credits FROM accounts GROUP BY project
), later AS (
    SELECT project, sum(after_credits)::BIGINT AS waiting_credits FROM grant_sums WHERE user IS NULL GROUP BY project
), averages AS (SELECT project, {exact_sum("recent")} AS recent FROM machine_averages GROUP BY project)
SELECT p.project, allocated, outstanding, claimed, discarded, expired, credits, period_allocated, period_claimed,
    period_discarded, period_expired, period_credits, machines, users,
    h.waiting_credits - coalesce(l.waiting_credits, 0) AS waiting_credits, coalesce(recent, 0) AS recent_credits_a_day,
    first_us, last_us
FROM project_sums p LEFT JOIN holders h ON p.project = h.project LEFT JOIN later l ON p.project = l.project
LEFT JOIN averages a ON p.project = a.project
ORDER BY p.project
"""

MACHINES: Final = f"""
WITH held AS (SELECT * FROM accounts WHERE kind = 'machine'), sums AS (
    SELECT project, machine, sum(COLUMNS(* EXCLUDE (project, machine, user, first_us, last_us, turnaround_s)))::BIGINT,
        min(first_us) AS first_us, max(last_us) AS last_us, {exact_sum("turnaround_s", SECOND_PARTS)} AS turnaround_s,
        sum(before_credits + period_credits + after_credits)::BIGINT AS granted,
        sum(after_credits) FILTER (user IS NULL)::BIGINT AS waiting_later
    FROM grant_sums GROUP BY project, machine
)
SELECT coalesce(h.project, s.project) AS project, coalesce(h.id, s.machine) AS machine, h.user,
    coalesce(claimed, 0) AS claimed, coalesce(h.credits, granted) - coalesce(after_credits, 0) AS credits,
    coalesce(period_credits, 0) AS period_credits, coalesce(earlier_credits, 0) AS earlier_credits,
    h.waiting_credits - coalesce(waiting_later, 0) AS waiting_credits, coalesce(recent, 0) AS recent_credits_a_day,
    coalesce(earlier_recent, 0) AS earlier_recent_credits_a_day, first_us, last_us,
    if(getvariable('has_times'), turnaround_s / nullif(claimed, 0), NULL) AS turnaround_s,
    coalesce(ranged, 0) AS ranged, coalesce(at_max, 0) AS at_max,
    coalesce(against_terms, 0) AS against_terms, h.credits - coalesce(granted, 0) AS unexplained_credits
FROM held h FULL JOIN sums s ON h.project = s.project AND h.id = s.machine
LEFT JOIN machine_averages r ON r.project = s.project AND r.machine = s.machine
WHERE getvariable('until_us') > coalesce(first_us, 0)
ORDER BY credits DESC, project, machine
"""

USERS: Final = """
WITH held AS (SELECT project, id, credits FROM accounts WHERE kind = 'user'), owning AS (
    SELECT project, user, count(*) AS machines FROM owners GROUP BY project, user
), sums AS (
    SELECT project, user, sum(claimed)::BIGINT AS claimed, sum(period_credits)::BIGINT AS period_credits,
        sum(after_credits)::BIGINT AS after_credits, sum(before_credits)::BIGINT AS before_credits,
        sum(earlier_credits)::BIGINT AS earlier_credits, min(first_us) AS first_us, max(last_us) AS last_us
    FROM grant_sums WHERE user IS NOT NULL GROUP BY project, user
)
SELECT h.project, h.id AS user, coalesce(machines, 0) AS machines, coalesce(claimed, 0) AS claimed,
    h.credits - coalesce(after_credits, 0) AS credits, coalesce(s.period_credits, 0) AS period_credits,
    h.credits - coalesce(after_credits + period_credits + before_credits - earlier_credits, 0) AS earlier_credits,
    coalesce(recent, 0) AS recent_credits_a_day, coalesce(earlier_recent, 0) AS earlier_recent_credits_a_day,
    first_us, last_us,
    h.credits - coalesce(before_credits + period_credits + after_credits, 0) AS unexplained_credits
FROM held h LEFT JOIN owning w ON h.project = w.project AND h.id = w.user
LEFT JOIN sums s ON h.project = s.project AND h.id = s.user
LEFT JOIN user_averages r ON h.project = r.project AND h.id = r.user
ORDER BY credits DESC, h.project, h.id
"""

COUNTERS: Final = """
SELECT project, counter, sum(total)::BIGINT AS total, sum(slots)::BIGINT AS slots, count(*) AS machines
FROM counter_sums GROUP BY project, counter ORDER BY project, counter
"""

AGES: Final = ("under an hour", "1 to 6 hours", "6 to 24 hours", "1 to 7 days", "over 7 days")

OUTSTANDING: Final = f"""
SELECT project, {list(AGES)!r}[age + 1] AS age, slots, least_credits, most_credits, unlimited, oldest_us,
    next_expiry_us
FROM outstanding_sums ORDER BY project, outstanding_sums.age
"""

DURATIONS: Final = f"""
SELECT project, what, if(bin < 0, 0.0, pow(2, bin / {BINS_AN_OCTAVE}.0) / 1e6) AS from_s,
    if(bin < 0, 0.0, pow(2, (bin + 1) / {BINS_AN_OCTAVE}.0) / 1e6) AS to_s, slots, total_s, least_us / 1e6 AS least_s,
    most_us / 1e6 AS most_s
FROM duration_sums ORDER BY project, what, bin
"""

TIMES: Final = """
SELECT project, start_us, coalesce(sum(slots) FILTER (event = 'allocated'), 0)::BIGINT AS allocated,
    coalesce(sum(slots) FILTER (event = 'claimed'), 0)::BIGINT AS claimed,
    coalesce(sum(slots) FILTER (event = 'discarded'), 0)::BIGINT AS discarded,
    coalesce(sum(slots) FILTER (event = 'expired'), 0)::BIGINT AS expired, sum(credits)::BIGINT AS credits
FROM time_sums GROUP BY project, start_us ORDER BY project, start_us
"""


def rules(*, journal: bool) -> str:
    """Grants of the period and their credits by rule."""
    claims = _joined("claims") if journal else "SELECT *, NULL AS asked, NULL AS defaulted FROM chosen"
    return f"""
    WITH chosen AS (SELECT * FROM slots WHERE state = 'claimed' AND {PERIOD})
    SELECT project, {RULE} AS rule, count(*) AS slots, sum(granted)::BIGINT AS credits
    FROM ({claims}) GROUP BY project, rule ORDER BY project, slots DESC, rule"""


KEPT_GRANTS: Final = "SELECT * FROM kept_grants ORDER BY project, id, at_us, slot"
"""The grants that `keep_grants` has kept, in the order of `grants`."""


def grants(holder: str, *, journal: bool) -> str:
    """The grants of the period to some holders; its parameters are the lists of their projects and of their ids."""
    return f"{_grants(holder, journal=journal)} ORDER BY project, id, settled_us, slot"


def keep_grants(holder: str, *, journal: bool) -> str:
    """Make the table of `KEPT_GRANTS`; parameters are those of `grants`. To join and sort at once takes more memory."""
    return f"CREATE OR REPLACE TEMP TABLE kept_grants AS {_grants(holder, journal=journal)}"


def _grants(holder: str, *, journal: bool) -> str:
    claims = (
        _joined("(SELECT * FROM claims SEMI JOIN chosen ON claims.slot = chosen.slot)")
        if journal
        else "SELECT *, NULL AS asked, NULL AS defaulted FROM chosen"
    )
    return f"""
    WITH wanted AS (SELECT unnest($1::VARCHAR[]) AS project, unnest($2::VARCHAR[]) AS id), chosen AS (
        SELECT slots.project, slot, machine, credits, min, max, granted, settled_us, wanted.id FROM slots
        JOIN wanted ON slots.project = wanted.project AND slots.{holder} = wanted.id
        WHERE state = 'claimed' AND {PERIOD}
    )
    SELECT project, id, settled_us AS at_us, slot, machine, {RULE} AS rule, granted AS credits
    FROM ({claims})"""


def granted_by_interval(holder: str) -> str:
    """Grants of the period to some holders by shortest interval; its parameters are those of `grants`."""
    return f"""
    WITH wanted AS (SELECT unnest($1::VARCHAR[]) AS project, unnest($2::VARCHAR[]) AS id)
    SELECT slots.project, id, settled_us // getvariable('bucket_us') * getvariable('bucket_us') AS start_us,
        count(*) AS slots, sum(granted)::BIGINT AS credits
    FROM slots JOIN wanted ON slots.project = wanted.project AND slots.{holder} = wanted.id
    WHERE state = 'claimed' AND {PERIOD} GROUP BY ALL ORDER BY slots.project, id, start_us"""


def leading_counters(holder: str) -> str:
    """The leading machines or users of each counter; the parameter is their number."""
    if holder == "machine":
        sums = "SELECT project, counter, machine AS id, total FROM counter_sums"
    else:
        sums = """SELECT project, entry.key AS counter, id, entry.value AS total
        FROM (SELECT project, id, unnest(map_entries(counters)) AS entry FROM accounts WHERE kind = 'user')"""
    return f"""
    WITH sums AS ({sums})
    SELECT project, counter, rank() OVER (PARTITION BY project, counter ORDER BY total DESC) AS rank, id, total
    FROM sums QUALIFY row_number() OVER (PARTITION BY project, counter ORDER BY total DESC, id) <= $1
    ORDER BY project, counter, rank, id"""


def _joined(claims: str) -> str:
    """The chosen slots with the credits that claims requested, if known."""
    return f"""
    SELECT chosen.*, asked, defaulted FROM chosen LEFT JOIN ({ASKED.format(claims=claims)}) a
    ON a.slot = chosen.slot AND a.machine = chosen.machine AND coalesce(a.project, chosen.project) = chosen.project"""


def frame(query: duckdb.DuckDBPyRelation) -> pd.DataFrame:
    """The rows of a query, whole numbers as `Int64`."""
    return frame_of(query.to_arrow_table())


def frame_of(table: pa.Table | pa.RecordBatch) -> pd.DataFrame:
    """The rows of a table, whole numbers as `Int64`."""
    return table.to_pandas(types_mapper=INTEGERS.get)

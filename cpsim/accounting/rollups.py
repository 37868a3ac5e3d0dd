"""Sums over slots, small enough for pandas: each can be computed in parts and put together again.

That is what lets the same figures come from one process or from a cluster. A rollup's query runs over the views of
`Books`; where these show only a part of the slots, the parts of an account are added up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cpsim.accounting import recent_average

BINS_AN_OCTAVE: Final = 64
"""How finely durations are told apart: quantiles are exact to about one percent."""


SECOND_PARTS: Final = 1_000_000
"""Sums of seconds are sums of microseconds."""


@dataclass(frozen=True, slots=True)
class Rollup:
    """A table of sums.

    Attributes:
        query: SQL over the views of `Books`.
        keys: the columns that name a row.
        sums, least, most: the other columns: of parts, they are added up, or the least or the most is taken.
        by: the column of slots by which parts may be cut; where that is a key, rows come whole from one part.
    """

    query: str
    keys: tuple[str, ...]
    sums: tuple[str, ...]
    least: tuple[str, ...] = ()
    most: tuple[str, ...] = ()
    by: str = "slot"

    def combined(self, parts: str) -> str:
        """The query that puts parts together."""
        measures = [*(f"{self._sum(name)} AS {name}" for name in self.sums)]
        measures += [f"min({name}) AS {name}" for name in self.least]
        measures += [f"max({name}) AS {name}" for name in self.most]
        keys = ", ".join(self.keys)
        return f"SELECT {keys}, {', '.join(measures)} FROM {parts} GROUP BY {keys}"

    def _sum(self, name: str) -> str:
        """Whole numbers stay whole: DuckDB adds them up to 128 bits."""
        if name.endswith("recent"):
            return recent_average.exact_sum(name)
        return recent_average.exact_sum(name, SECOND_PARTS) if name.endswith("_s") else f"sum({name})::BIGINT"


PERIOD: Final = "settled_us >= getvariable('since_us') AND settled_us < getvariable('until_us')"

ROLLUPS: Final = {
    "project_sums": Rollup(
        f"""
        SELECT project, count(*) AS allocated, count(*) FILTER (state = 'allocated') AS outstanding,
            count(*) FILTER (state = 'claimed') AS claimed, count(*) FILTER (state = 'discarded') AS discarded,
            count(*) FILTER (state = 'expired') AS expired,
            coalesce(sum(granted) FILTER (state = 'claimed'), 0)::BIGINT AS credits,
            count(*) FILTER (allocated_us >= getvariable('since_us')) AS period_allocated,
            count(*) FILTER (state = 'claimed' AND {PERIOD}) AS period_claimed,
            count(*) FILTER (state = 'discarded' AND {PERIOD}) AS period_discarded,
            count(*) FILTER (state = 'expired' AND {PERIOD}) AS period_expired,
            coalesce(sum(granted) FILTER (state = 'claimed' AND {PERIOD}), 0)::BIGINT AS period_credits,
            min(allocated_us) AS first_us, max(greatest(allocated_us, settled_us)) AS last_us
        FROM slots GROUP BY project""",
        ("project",),
        (
            *("allocated", "outstanding", "claimed", "discarded", "expired", "credits"),
            *("period_allocated", "period_claimed", "period_discarded", "period_expired", "period_credits"),
        ),
        least=("first_us",),
        most=("last_us",),
    ),
    "grant_sums": Rollup(
        f"""
        SELECT project, machine, user, count(*) FILTER (settled_us < getvariable('until_us')) AS claimed,
            coalesce(sum(granted) FILTER (settled_us < getvariable('since_us')), 0)::BIGINT AS before_credits,
            coalesce(sum(granted) FILTER ({PERIOD}), 0)::BIGINT AS period_credits,
            coalesce(sum(granted) FILTER (settled_us >= getvariable('until_us')), 0)::BIGINT AS after_credits,
            coalesce(sum(granted) FILTER (settled_us < getvariable('earlier_us')), 0)::BIGINT AS earlier_credits,
            min(settled_us) FILTER (settled_us < getvariable('until_us')) AS first_us,
            max(settled_us) FILTER (settled_us < getvariable('until_us')) AS last_us,
            coalesce(sum(settled_us - allocated_us) FILTER (settled_us < getvariable('until_us')), 0) / 1e6
                AS turnaround_s,
            count(*) FILTER (credits IS NULL AND min IS DISTINCT FROM max AND settled_us < getvariable('until_us'))
                AS ranged,
            count(*) FILTER (credits IS NULL AND min IS DISTINCT FROM max AND granted = max
                AND settled_us < getvariable('until_us')) AS at_max,
            count(*) FILTER ((granted <> credits OR (credits IS NULL AND (granted < min OR granted > max)))
                AND settled_us < getvariable('until_us')) AS against_terms
        FROM ledger WHERE state = 'claimed' GROUP BY project, machine, user""",
        ("project", "machine", "user"),
        (
            *("claimed", "before_credits", "period_credits", "after_credits", "earlier_credits", "turnaround_s"),
            *("ranged", "at_max", "against_terms"),
        ),
        least=("first_us",),
        most=("last_us",),
    ),
    "time_sums": Rollup(
        f"""
        SELECT project, allocated_us // getvariable('bucket_us') * getvariable('bucket_us') AS start_us,
            'allocated' AS event, count(*) AS slots, 0::BIGINT AS credits
        FROM slots WHERE allocated_us >= getvariable('since_us') GROUP BY ALL
        UNION ALL
        SELECT project, settled_us // getvariable('bucket_us') * getvariable('bucket_us'), state, count(*),
            coalesce(sum(granted), 0)::BIGINT
        FROM slots WHERE {PERIOD} GROUP BY ALL""",
        ("project", "start_us", "event"),
        ("slots", "credits"),
    ),
    "reason_sums": Rollup(
        f"""
        SELECT project, coalesce(reason, 'unspecified') AS reason, count(*) AS slots
        FROM slots WHERE state = 'discarded' AND {PERIOD} GROUP BY ALL""",
        ("project", "reason"),
        ("slots",),
    ),
    "counter_sums": Rollup(
        """
        SELECT project, machine, entry.key AS counter, sum(entry.value)::BIGINT AS total, count(*) AS slots
        FROM (SELECT project, machine, unnest(map_entries(counters)) AS entry FROM slots WHERE state = 'claimed')
        GROUP BY ALL""",
        ("project", "machine", "counter"),
        ("total", "slots"),
    ),
    "duration_sums": Rollup(
        f"""
        WITH durations AS (
            SELECT project, state AS what, settled_us - allocated_us AS took_us FROM slots WHERE {PERIOD}
            UNION ALL
            SELECT project, 'outstanding', getvariable('until_us') - allocated_us FROM slots WHERE state = 'allocated'
            UNION ALL
            SELECT project, 'waited', greatest(settled_us - allocated_us - cpu_s * 1000000, 0)
            FROM (SELECT project, settled_us, allocated_us, counters['job/cpuusage'] AS cpu_s FROM slots
                WHERE state = 'claimed' AND {PERIOD}) WHERE cpu_s BETWEEN 0 AND 1e9
        )
        SELECT project, what, if(took_us > 0, floor(log2(took_us) * {BINS_AN_OCTAVE})::INTEGER, -1) AS bin,
            count(*) AS slots, sum(took_us) / 1e6 AS total_s, min(took_us) AS least_us, max(took_us) AS most_us
        FROM durations WHERE getvariable('has_times') GROUP BY ALL""",
        ("project", "what", "bin"),
        ("slots", "total_s"),
        least=("least_us",),
        most=("most_us",),
    ),
    "outstanding_sums": Rollup(
        """
        SELECT project, age, count(*) AS slots, sum(least_credits)::BIGINT AS least_credits,
            coalesce(sum(most_credits), 0)::BIGINT AS most_credits, count(*) FILTER (most_credits IS NULL) AS unlimited,
            min(allocated_us) AS oldest_us, min(expires_us) AS next_expiry_us
        FROM (SELECT *, coalesce(credits, min, 0) AS least_credits, coalesce(credits, max) AS most_credits,
            CASE WHEN allocated_us > getvariable('until_us') - 3600000000 THEN 0
                WHEN allocated_us > getvariable('until_us') - 21600000000 THEN 1
                WHEN allocated_us > getvariable('until_us') - 86400000000 THEN 2
                WHEN allocated_us > getvariable('until_us') - 604800000000 THEN 3 ELSE 4 END AS age
            FROM slots WHERE state = 'allocated')
        GROUP BY project, age""",
        ("project", "age"),
        ("slots", "least_credits", "most_credits", "unlimited"),
        least=("oldest_us", "next_expiry_us"),
    ),
    "machine_averages": Rollup(
        recent_average.sql(
            "project, machine",
            "(SELECT project, machine, allocated_us, settled_us, granted FROM ledger WHERE state = 'claimed')",
            {"recent": "getvariable('until_us')", "earlier_recent": "getvariable('earlier_us')"},
        ),
        ("project", "machine"),
        ("recent", "earlier_recent"),
        by="machine",
    ),
    "user_averages": Rollup(
        recent_average.sql(
            "project, user",
            "(SELECT project, user, allocated_us, settled_us, granted FROM ledger "
            "WHERE state = 'claimed' AND user IS NOT NULL)",
            {"recent": "getvariable('until_us')", "earlier_recent": "getvariable('earlier_us')"},
        ),
        ("project", "user"),
        ("recent", "earlier_recent"),
        by="user",
    ),
}

"""Conservation laws: credits and counters of slots, machines, users and the server's totals agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import duckdb

LAWS: Final = """
WITH balances AS (
    SELECT project, coalesce(sum(credits) FILTER (kind = 'machine'), 0)::BIGINT AS machines,
        coalesce(sum(credits) FILTER (kind = 'user'), 0)::BIGINT + coalesce(sum(waiting_credits), 0)::BIGINT AS owned
    FROM accounts GROUP BY project
), entries AS (
    SELECT project, kind AS holder, unnest(map_entries(counters)) AS entry FROM accounts
    UNION ALL
    SELECT project, 'waiting', unnest(map_entries(waiting_counters)) FROM accounts WHERE kind = 'machine'
), held AS (
    SELECT project, entry.key AS counter, coalesce(sum(entry.value) FILTER (holder = 'machine'), 0)::BIGINT AS machines,
        coalesce(sum(entry.value) FILTER (holder <> 'machine'), 0)::BIGINT AS owned
    FROM entries GROUP BY project, counter
), granted AS (
    SELECT project, counter, sum(total)::BIGINT AS total FROM counter_sums GROUP BY project, counter
), laws AS (
    SELECT project, 'slots: allocated = outstanding + claimed + discarded + expired' AS law, allocated AS expected,
        outstanding + claimed + discarded + expired AS found, 0 AS place FROM project_sums
    UNION ALL
    SELECT coalesce(p.project, b.project), 'credits: granted by slots = earned by machines', coalesce(p.credits, 0),
        coalesce(b.machines, 0), 1 FROM project_sums p FULL JOIN balances b ON p.project = b.project
        WHERE getvariable('has_accounts')
    UNION ALL
    SELECT project, 'credits: earned by machines = held by users + waiting', machines, owned, 2 FROM balances
    UNION ALL
    SELECT coalesce(g.project, h.project), 'counter ' || coalesce(g.counter, h.counter)
        || ': granted by slots = earned by machines', coalesce(g.total, 0), coalesce(h.machines, 0), 3
        FROM granted g FULL JOIN held h ON g.project = h.project AND g.counter = h.counter
        WHERE getvariable('has_accounts')
    UNION ALL
    SELECT project, 'counter ' || counter || ': earned by machines = held by users + waiting', machines, owned, 4
        FROM held
    UNION ALL
    SELECT t.project, 'server''s own count of ' || t.what || ' = that of its slots', t.counted,
        coalesce(CASE t.what WHEN 'allocated' THEN allocated WHEN 'outstanding' THEN outstanding
            WHEN 'claimed' THEN claimed WHEN 'discarded' THEN discarded WHEN 'expired' THEN expired
            ELSE credits END, 0), 5
        FROM counted t LEFT JOIN project_sums p ON t.project = p.project
)
SELECT project, law, expected, found, found - expected AS difference, found = expected AS holds
FROM laws ORDER BY project, place, law
"""
COUNTED: Final = ("allocated", "outstanding", "claimed", "discarded", "expired", "credits")


def prepare(
    database: duckdb.DuckDBPyConnection,
    totals: dict[str, dict[str, Any]] | None,
    projects: tuple[str, ...],
    *,
    has_accounts: bool,
) -> None:
    """Put beside the rollups what the server itself counted, for `LAWS`."""
    database.execute(f"SET VARIABLE has_accounts = {has_accounts}")
    database.execute("CREATE TEMP TABLE counted (project VARCHAR, what VARCHAR, counted BIGINT)")
    rows = [
        (project, what, counts[what])
        for project, counts in (totals or {}).items()
        if not projects or project in projects
        for what in COUNTED
    ]
    if rows:
        database.executemany("INSERT INTO counted VALUES (?, ?, ?)", rows)

"""Accounts as pandas frames, computed lazily.

The docstring of a frame says what a row is. Credits and counters are whole numbers (`Int64`), never floats, and
missing where unknown; ids are text; columns that end in `_us` are microseconds since 1970, UTC, those
in `_s` seconds, those in `_credits_a_day` credits a day. `Accounts.when` turns microseconds into times of a zone.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pandas as pd

from cpsim.accounting import conservation, expectation, intervals, queries, reconciliation
from cpsim.accounting.books import LEAST_MEMORY_MB, MEMORY_MB, Books
from cpsim.accounting.engines import Cluster, Here, RollupEngine, named_errors
from cpsim.accounting.sources import Source, gather
from cpsim.config.zones import find_zone
from cpsim.errors import CpsimError
from cpsim.system.checks import WrongArgument

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Self

    import duckdb

    from cpsim.accounts.sources import AccountsSource

WEEK_US: Final = 7 * 86_400_000_000
BUCKETS_US: Final = (1_000, 10_000, 100_000, 1_000_000, 60_000_000, 900_000_000)
"""Widths of the shortest interval told apart; a quarter of an hour fits the days of every time zone, but
for a few of the past on which clocks were changed at one minute past midnight."""
MOST_BUCKETS: Final = 2_000


class Accounts:
    """The accounts of a ledger; `Accounts.load` opens them. A context manager that deletes its temporary files.

    Attributes:
        source: the files of the accounts.
        books: the period and the projects that count.
        timezone: in which days begin and times are shown.
        top: number of rows of a leaderboard.
        subjects: ids of the machines and users of statements; empty for the leading ones.
        memory_mb: memory that this process may take.
        against: the accounts to compare with, or None.
        expectation: a row per finding when the ledger is compared with a job manager's record, with the number of
            slots; None unless `expect` was called.
        expectation_notes: sentences on what is odd about that record.
    """

    def __init__(self, source: Source, books: Books, engine: RollupEngine, spill: Path, memory_mb: int) -> None:
        self.source = source
        self.books = books
        self.timezone = find_zone("UTC")
        self.top = 10
        self.subjects: tuple[str, ...] = ()
        self.against: Accounts | None = None
        self.expectation: pd.DataFrame | None = None
        self.expectation_notes: list[str] = []
        self.projects_known: list[str] = []
        self._engine = engine
        self._spill = spill
        self.memory_mb = memory_mb
        self._rolled: set[str] = set()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def load(
        cls,
        where: str | Path | AccountsSource,
        *,
        since: str | None = None,
        until: str | None = None,
        projects: Sequence[str] = (),
        timezone: str = "UTC",
        top: int = 10,
        scheduler: str | None = None,
        token: str | None = None,
        memory_mb: int = MEMORY_MB,
    ) -> Self:
        """Open the accounts of a run folder, a store, an export, or a running fake.

        Args:
            where: a path, a URL, or a source of anybody's accounts.
            since: begin of the period, an ISO date such as "2026-03-01", which is the start of that day, or a date
                and time such as "2026-03-01T12:00" or "2026-03-01T12:00:00.5+01:00"; in `timezone` unless it has an
                offset of its own; by default that of the ledger.
            until: end of the period, excluded; by default that of the ledger.
            projects: ids of the projects that count; by default all.
            timezone: a name such as "Europe/Zurich".
            top: how many rows a leaderboard has.
            scheduler: address of a Dask scheduler whose workers do the sums.
            token: of the control API at the URL, if it needs one.
            memory_mb: what this process may take, 300 or more: what does not fit is on disk meanwhile.

        Raises:
            CpsimError: there are no accounts, they are damaged or in use, or an argument makes no sense; it is a
                UsageError if a time or a time zone is none.
        """
        if memory_mb < LEAST_MEMORY_MB:
            raise WrongArgument(f"memory_mb is {memory_mb:,}, and must be {LEAST_MEMORY_MB} or more")
        zone = find_zone(timezone)
        since_us = None if since is None else intervals.moment_us("since", since, zone)
        until_us = None if until is None else intervals.moment_us("until", until, zone)
        folder = tempfile.TemporaryDirectory(prefix="cpsim-report-")
        try:
            source = gather(where, Path(folder.name), token)
            engine = Here() if scheduler is None else Cluster(scheduler)
            spill = Path(folder.name) / "spill"
            accounts = cls(source, Books.of(source), engine, spill, memory_mb)
            accounts.timezone, accounts.top, accounts._folder = zone, top, folder
            accounts._cut(since_us, until_us, tuple(projects))
        except BaseException:
            folder.cleanup()
            raise
        return accounts

    def close(self) -> None:
        """Delete temporary files, and free memory."""
        self._opened.close()
        if isinstance(self._engine, Cluster):
            self._engine.close()
        if self._folder is not None:
            self._folder.cleanup()
        if self.against is not None:
            self.against.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def empty(self) -> bool:
        """Whether no slot was allocated before the period's end."""
        return bool(self.projects.empty)

    @property
    def chosen(self) -> tuple[str, ...]:
        """The ids of the projects that count."""
        return self.books.projects or tuple(self.projects_known)

    @property
    def has_accounts(self) -> bool:
        """Whether the balances of machines and users are known, and who owns which machine."""
        return self.source.accounts is not None

    def when(self, moments_us: pd.Series) -> pd.Series:
        """Microseconds as times of `timezone` (`datetime64[us, tz]`)."""
        return (
            pd.to_datetime(moments_us.astype("Int64"), unit="us", utc=True)
            .dt.as_unit("us")
            .dt.tz_convert(self.timezone)
        )

    @property
    def begin(self) -> pd.Timestamp | None:
        """The period's begin; None if the ledger is empty, and neither the server nor anybody else said when."""
        return self.at(self.since_us) if self._knows[0] else None

    @property
    def end(self) -> pd.Timestamp | None:
        """The period's end, excluded; None likewise."""
        return self.at(self.books.until_us) if self._knows[1] else None

    @property
    def period(self) -> str:
        """The period in words."""
        if self.begin is None and self.end is None:
            return "at no known time"
        begin, end = ("?" if time is None else time.isoformat(" ", "minutes") for time in (self.begin, self.end))
        return f"{begin} to {end} {self.timezone.key}"

    def at(self, moment_us: int) -> pd.Timestamp:
        """A time in microseconds as a time of `timezone`."""
        return pd.Timestamp(moment_us, unit="us", tz="UTC").tz_convert(self.timezone)

    def query(self, sql: str, parameters: Sequence[object] = ()) -> pd.DataFrame:
        """The rows of a DuckDB query, for what no frame has.

        There are the views `slots` (as of the period's end), `ledger` (all there
        is), `accounts`, `owners`, `journal` (what a client sent) and `received` (what the server was sent), and every
        table of `cpsim.accounting.rollups` that a frame has needed so far.

        Raises:
            CpsimError: a sum is beyond 64 bits, or a file is damaged.
        """
        with named_errors(self.source):
            return queries.frame(self._database.sql(sql, params=list(parameters)))

    # -- frames ------------------------------------------------------------------------------------------------------

    @cached_property
    def projects(self) -> pd.DataFrame:
        """A row per project: its slots by state and credits, at the period's end and within it.

        Columns: project, allocated, outstanding, claimed, discarded, expired, credits, period_allocated,
        period_claimed, period_discarded, period_expired, period_credits, refused (commands, where the server told),
        machines, users, waiting_credits (of the credits, those that no user had at the ledger's end),
        recent_credits_a_day (sum over its machines), first_us, last_us.
        """
        refused = pd.DataFrame(
            [(project, counts["refused"]) for project, counts in (self.source.totals or {}).items()],
            columns=["project", "refused"],
        ).astype({"project": "str", "refused": "Int64"})
        found = self._frame(queries.PROJECTS, "project_sums", "grant_sums", "machine_averages")
        return found.merge(refused, on="project", how="left")

    @cached_property
    def machines(self) -> pd.DataFrame:
        """A row per machine and project, those with most credits first.

        Columns: project, machine, user (missing: nobody), claimed (slots), credits (at the period's end),
        period_credits, earlier_credits (at the time ranks are compared with), waiting_credits (of the credits, those
        that no user had at the ledger's end), recent_credits_a_day, earlier_recent_credits_a_day, first_us and last_us
        (its grants), turnaround_s (mean), ranged (claims of slots with a range), at_max (of these, granted the
        maximum), against_terms (grants that the slot's terms do not allow), unexplained_credits (held, but granted by
        no slot that is there).
        """
        return self._frame(queries.MACHINES, "grant_sums", "machine_averages")

    @cached_property
    def users(self) -> pd.DataFrame:
        """A row per user and project, those with most credits first.

        Columns: project, user, machines (owned now), claimed, credits, period_credits, earlier_credits,
        recent_credits_a_day, earlier_recent_credits_a_day, first_us, last_us, unexplained_credits (held, but granted
        by no slot that is there). A grant is the user's who has its credits, whoever owns the machine now.
        """
        return self._frame(queries.USERS, "grant_sums", "user_averages")

    @cached_property
    def slots(self) -> pd.DataFrame:
        """A row per slot, as of the period's end: the whole ledger in memory, some 300 bytes a slot.

        Columns: project, slot, state, machine, user, reason, credits, min, max, granted, allocated_us, expires_us,
        settled_us, counters, meta (both lists of pairs).
        """
        return self._frame("SELECT * FROM slots ORDER BY allocated_us, project, slot")

    @cached_property
    def counters(self) -> pd.DataFrame:
        """A row per project and counter: what claimed slots granted.

        Columns: project, counter, total, slots (that had it), machines.
        """
        return self._frame(queries.COUNTERS, "counter_sums")

    @cached_property
    def reasons(self) -> pd.DataFrame:
        """A row per project and reason of discards within the period: project, reason, slots."""
        return self._frame("SELECT * FROM reason_sums ORDER BY slots DESC, project, reason", "reason_sums")

    @cached_property
    def rules(self) -> pd.DataFrame:
        """A row per project and rule that decided grants within the period: project, rule, slots, credits."""
        if self.reconciliation is not None:
            return self.query(reconciliation.RULES)
        return self._frame(queries.rules(journal=self.has_claims))

    @cached_property
    def outstanding(self) -> pd.DataFrame:
        """A row per project and age of slots that are not settled.

        Columns: project, age, slots, least_credits and most_credits (that claims can still cost; most counts the slots
        with a limit), unlimited (slots without one), oldest_us (allocation), next_expiry_us.
        """
        return self._frame(queries.OUTSTANDING, "outstanding_sums")

    @cached_property
    def durations(self) -> pd.DataFrame:
        """A row per project, what, and length of time: a histogram of how long slots took.

        Columns: project, what (claimed, discarded, expired: from allocation to the end; outstanding: age so far;
        waited: turnaround without the CPU time in `job/cpuusage`), from_s and to_s (of the bin), slots, total_s,
        least_s, most_s.
        """
        return self._frame(queries.DURATIONS, "duration_sums")

    @cached_property
    def times(self) -> pd.DataFrame:
        """A row per project and shortest interval: slots allocated and settled, and credits granted, within the period.

        Columns: project, start_us, allocated, claimed, discarded, expired, credits.
        """
        return self._frame(queries.TIMES, "time_sums")

    @cached_property
    def checks(self) -> pd.DataFrame:
        """A row per conservation law of the whole ledger, whatever the period.

        Columns: project, law, expected, found, difference, holds.
        """
        whole = replace(self.books, until_us=max(self.books.until_us, self.end_us))
        with named_errors(self.source):
            if whole == self.books:
                return self._laws(self._database, whole)
            with whole.open(self._spill, self.memory_mb) as database:
                return self._laws(database, whole)

    @property
    def balanced(self) -> bool:
        """Whether every conservation law holds."""
        return bool(self.checks["holds"].all())

    @cached_property
    def reconciliation(self) -> pd.DataFrame | None:
        """A row per kind of finding when the client's journal is compared with the ledger.

        None without a journal, if it is of a project that does not count, or of several projects, whose slots have ids
        in common.

        Columns: finding, slots, acknowledged_credits, granted_credits, difference_credits.
        """
        run = self.source.run or {}
        project, chosen = run.get("project"), self.books.projects
        if self.source.journal is None or run.get("projects") or (chosen and project and project not in chosen):
            return None
        prefix = run.get("slot_prefix")
        with named_errors(self.source):
            reconciliation.reconcile(self._database, project, "" if prefix is None else f"{prefix}-")
        return self.query(reconciliation.TOTALS)

    def expect(self, record: Path, slot: str = "{job}") -> None:
        """Compare the ledger with a job manager's own record; `expectation` and `unexpected` have the result.

        Args:
            record: a job log, a table of slots and states (CSV or Parquet), or a scenario file with a `[log]`.
            slot: how slots are named after jobs.

        Raises:
            CpsimError, OSError: the record cannot be read.
        """
        expected, self.expectation_notes, slot = expectation.read(record, slot)
        with named_errors(self.source):
            expectation.compare(self._database, expected, slot)
        self.expectation = self.query(expectation.TOTALS)

    @property
    def unexpected_slots(self) -> int:
        """How many slots are missing, extra or different."""
        totals = self.expectation
        return 0 if totals is None else int(totals.loc[totals["finding"] != expectation.AGREES, "slots"].sum())

    # -- frames with arguments ---------------------------------------------------------------------------------------

    def differences(self, limit: int = 1_000) -> pd.DataFrame:
        """The first slots about which the client's journal and the ledger differ, a row each.

        Columns: slot, finding, claims_acknowledged, discards_acknowledged, claimed_for, due_credits, ledger_state,
        ledger_machine, granted_credits.
        """
        if self.reconciliation is None:
            return pd.DataFrame()
        return self.query(reconciliation.DIFFERENCES, (limit,))

    def unexpected(self, limit: int = 1_000) -> pd.DataFrame:
        """The first slots that are missing, extra or other than a job manager's record has it, a row each.

        Columns: finding, slot, job_status, project, ledger_state, ledger_machine.
        """
        return pd.DataFrame() if self.expectation is None else self.query(expectation.DIFFERENCES, (limit,))

    def grants(self, holder: str, ids: Sequence[tuple[str, str]]) -> pd.DataFrame:
        """A row per grant within the period to some machines or users, in the order of time.

        Columns: project, id, at_us, slot, machine, rule (what decided the credits), credits.

        Args:
            holder: "machine" or "user".
            ids: pairs of project and id.
        """
        sql = queries.grants(holder, journal=self.has_claims)
        return self.query(sql, ([project for project, _ in ids], [name for _, name in ids]))

    def many_grants(self, holder: str, project: str, name: str, rows: int) -> Iterator[pd.DataFrame]:
        """The rows of `grants` of one holder, so many at a time, in memory that does not grow with them."""
        with named_errors(self.source):
            self._database.execute(queries.keep_grants(holder, journal=self.has_claims), [[project], [name]])
            for batch in self._database.sql(queries.KEPT_GRANTS).to_arrow_reader(rows):
                yield queries.frame_of(batch)

    def daily(self, holder: str, ids: Sequence[tuple[str, str]]) -> pd.DataFrame:
        """A row per day of the period on which some machines or users were granted credits.

        Columns: project, id, start_at (of the day, on clocks of the zone), slots, credits. Arguments: as of `grants`.
        """
        keys = ([project for project, _ in ids], [name for _, name in ids])
        found = self.query(queries.granted_by_interval(holder), keys)
        found = found.assign(start_at=self.when(intervals.starts(found["start_us"], self.timezone, "day")))
        return found.groupby(["project", "id", "start_at"], as_index=False)[["slots", "credits"]].sum()

    def leading_counters(self, holder: str, top: int) -> pd.DataFrame:
        """The machines or users that have most of each counter: project, counter, rank, id, total."""
        self._roll_up("counter_sums")
        return self.query(queries.leading_counters(holder), (top,))

    def over_time(self, every: str = "auto") -> pd.DataFrame:
        """A row per project and interval of the period in which something happened.

        Columns: project, start_at (a time of the chosen zone), allocated, claimed, discarded, expired, credits,
        cumulative_credits (from the period's begin).

        Args:
            every: "hour", "day" or "week" (from Monday), as clocks of the zone have them; "auto" takes what divides
                the period into some hundred.
        """
        times = self.times
        starts = intervals.starts(times["start_us"], self.timezone, every)
        found = times.assign(start_at=self.when(starts)).drop(columns="start_us")
        found = found.groupby(["project", "start_at"], as_index=False).sum()
        return found.assign(cumulative_credits=found.groupby("project")["credits"].cumsum())

    def quantiles(self, what: str) -> pd.DataFrame:
        """A row per project: how long slots took, exact to about one percent.

        Columns: project, slots, mean_s, least_s, p50_s, p90_s, p99_s, most_s.

        Args:
            what: as in `durations`.
        """
        return intervals.quantiles(self.durations[self.durations["what"] == what])

    @property
    def has_claims(self) -> bool:
        """Whether there is a journal that tells what claims asked for."""
        return self.source.journal is not None or self.source.received is not None

    # -- how ---------------------------------------------------------------------------------------------------------

    @cached_property
    def _opened(self) -> duckdb.DuckDBPyConnection:
        """The one connection, for opening another takes longer than most queries."""
        return self.books.open(self._spill, self.memory_mb)

    @cached_property
    def _database(self) -> duckdb.DuckDBPyConnection:
        self.books.choose(self._opened)
        return self._opened

    def _frame(self, sql: str, *rollups: str) -> pd.DataFrame:
        for rollup in rollups:
            self._roll_up(rollup)
        return self.query(sql)

    def _roll_up(self, name: str) -> None:
        if name not in self._rolled:
            with named_errors(self.source):
                self._engine.roll_up(name, self.books, self._database)
            self._rolled.add(name)

    def _laws(self, database: duckdb.DuckDBPyConnection, books: Books) -> pd.DataFrame:
        for name in ("project_sums", "counter_sums"):
            if books == self.books:
                self._roll_up(name)
            else:
                self._engine.roll_up(name, books, database)
        conservation.prepare(database, self.source.totals, books.projects, has_accounts=self.has_accounts)
        return queries.frame(database.sql(conservation.LAWS))

    def _cut(self, since_us: int | None, until_us: int | None, projects: tuple[str, ...]) -> None:
        """Choose the period and the projects."""
        with named_errors(self.source):
            listed = self._opened.sql("SELECT DISTINCT project FROM ledger ORDER BY ALL").fetchall()
            span = "SELECT min(allocated_us), max(greatest(allocated_us, settled_us)) FROM ledger"
            ((first_us, last_us),) = self._opened.sql(span).fetchall()
        known = [name for (name,) in listed]
        self.projects_known = [*known, *(name for name in self.source.totals or () if name not in known)]
        for project in projects:
            if project not in self.projects_known:
                there = ", ".join(self.projects_known) or "none"
                raise CpsimError(f'no project "{project}" in {self.source.name}; there are: {there}')
        self.end_us: int = max(last_us or 0, self.source.now_us or 0) + 1
        earliest_us = (self.source.now_us or 0) if first_us is None else first_us
        begin_us = earliest_us if since_us is None else since_us
        self.since_us: int = begin_us
        knows = first_us is not None or self.source.now_us is not None
        self._knows = tuple(knows or given_us is not None for given_us in (since_us, until_us))
        stop_us = (self.end_us if knows else max(self.end_us, begin_us)) if until_us is None else until_us
        if begin_us > stop_us:
            raise CpsimError(f"the period is empty: it would begin at {self.at(begin_us)}, end at {self.at(stop_us)}")
        width_us = max(1, min(stop_us, self.end_us) - max(begin_us, earliest_us))
        self.books = replace(
            self.books,
            since_us=begin_us,
            until_us=stop_us,
            earlier_us=max(0, stop_us - WEEK_US) if since_us is None else since_us,
            bucket_us=next((width for width in BUCKETS_US if width_us <= width * MOST_BUCKETS), BUCKETS_US[-1]),
            projects=projects,
        )

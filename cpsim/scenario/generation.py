"""A scenario made exact: its models drawn from, and the operations put in order."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Final

import numpy as np

from cpsim.scenario import identities, models, volunteers
from cpsim.scenario.arrivals import arrive
from cpsim.scenario.misbehaviour import FORGED, FRAMES, Chooser, forms
from cpsim.scenario.numbers import Work, numbers
from cpsim.scenario.run_times import run_times
from cpsim.scenario.schema import AroundRange, FixedCredits, FromFaker, RangeCredits
from cpsim.scenario.streams import Draw, uniforms
from cpsim.scenario.values import LONGEST_US, ScenarioError
from cpsim.scenario.workload import (
    ABSENT,
    AllocTable,
    ClaimTable,
    CountersTable,
    DiscardTable,
    FrameTable,
    Int32,
    Int64,
    MetaTable,
    Workload,
    constant,
    slot_numbers,
    timeline,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cpsim.scenario.schema import Counters, NoCredits, Population, Scenario, Site

DEFAULT_EXPIRE_US: Final = models.DAY_US
JOBS_AT_ONCE: Final = 500_000
MISBEHAVED: Final = "misbehaved"
"""The reason of a discard that should not be."""


def parts(scenario: Scenario, seed: int | None = None, jobs: int = JOBS_AT_ONCE) -> Iterator[Workload]:
    """Make a scenario exact, so many jobs at a time in the order of their arrival: memory does not grow with length.

    It is one part if it has several sites, or black holes that back off.
    """
    total = scenario.arrivals.jobs
    if _indivisible(scenario):
        yield generate(scenario, seed)
        return
    for first in range(0, total, jobs):
        yield generate(scenario, seed, (first, min(first + jobs, total)))


def generate(scenario: Scenario, seed: int | None = None, part: tuple[int, int] | None = None) -> Workload:
    """Make a scenario exact.

    The same scenario and seed give the same columns, bit for bit, on every Python, numpy and processor. The
    texts that Faker draws are the same for the same release of Faker.

    A job is a slot: allocated (and given its metadata) when the job arrives, counted and settled when it comes
    back, even past the scenario's duration. Its machine is drawn evenly from all.

    Args:
        scenario: what should happen.
        seed: 0 or more; None takes the scenario's own.
        part: the first of the jobs that are made, from 0, and the one after the last: they are what they are in the
            whole, which is not made. (All arrivals are, where they come in bursts or as Lublin's.)

    Raises:
        ScenarioError: it has several sites, or black holes that back off, and a part is asked for.
    """
    draw = _draw(scenario, scenario.seed if seed is None else seed, part)
    jobs = _jobs(scenario, draw)
    claimed, discarded = jobs.ended(0), jobs.ended(1, len(jobs.reasons))
    counters, counted = _counters(scenario.counters, draw, jobs.work, claimed, discarded)
    meta = _metadata(scenario.metadata, draw)
    everyone = np.arange(draw.jobs, dtype=np.int32)
    asked = _asked(scenario.credits, draw, jobs.work)
    plan = _Plan(draw, jobs, asked)
    sites, site = _sites(scenario.site, draw)
    wrong = Chooser(scenario.misbehaviour, draw)
    arrival_us, end_us = jobs.arrival_us, jobs.end_us
    plan.claim(arrival_us, wrong("claim_before_alloc", everyone))
    plan.add("alloc", arrival_us, everyone)
    plan.add("alloc", arrival_us, again := wrong("alloc_twice", everyone))
    plan.add("meta", arrival_us, everyone[: len(meta.values)])
    plan.add("counters", end_us, counted)
    plan.add("discard", end_us, discarded)
    plan.claim(end_us, claimed)
    plan.claim(end_us, wrong("claim_twice", claimed))
    plan.claim(end_us, wrong("claim_by_two", claimed), others=1)
    if (twice := scenario.volunteers.duplicates) is not None:
        delays_us = run_times(twice.after, draw, "volunteers.duplicates.after")
        plan.claim(end_us + delays_us, claimed[draw("volunteers.duplicates")[claimed] < twice.share])
    plan.claim(end_us, wrong("claim_after_discard", discarded))
    plan.add("counters", end_us, late := wrong("counters_after_claim", claimed))
    plan.add("discard", end_us, undone := wrong("discard_after_claim", claimed))
    lasts_us = DEFAULT_EXPIRE_US if scenario.expire is None else int(scenario.expire)
    plan.claim(arrival_us + lasts_us + models.MINUTE_US, wrong("claim_after_expiry", jobs.ended(len(jobs.reasons) + 1)))
    plan.claim_beside(wrong("unknown_slot", everyone), wrong.counts("unknown_slot"))
    forged, forged_in_all = wrong("forged", everyone), wrong.counts("forged")
    plan.forge(forged, forged_in_all)
    for name in FRAMES:
        plan.send(name, wrong(name, everyone), wrong.counts(name))
    due_us, kind, slot, row = timeline(plan.blocks)
    return Workload(
        name=scenario.name,
        seed=draw.seed,
        duration_us=int(scenario.duration),
        due_us=due_us,
        kind=kind,
        slot=slot,
        row=row,
        slot_numbers=slot_numbers(sites, site := plan.of_slots(site)) if sites else np.concatenate(plan.numbers),
        alloc=_alloc(scenario, draw.jobs + len(again), len(forged), forged_in_all[0]),
        counters=_with_late(counters, len(late), scenario.misbehaviour.counters_after_claim),
        meta=meta,
        discard=_discards(jobs, discarded, len(undone), scenario.misbehaviour.discard_after_claim),
        claim=ClaimTable(np.concatenate(plan.machines), np.concatenate(plan.credits)),
        machines=identities.machines(draw.seed, scenario.population.machines),
        users=identities.users(draw.seed, scenario.population.users),
        owner=_owners(scenario.population, draw.seed),
        faults=tuple(scenario.faults),
        link_after=scenario.population.link == "after",
        sites=sites,
        site=site,
        frame=FrameTable(tuple(chain.from_iterable(FRAMES.values())) if plan.forms else (), _joined(plan.forms)),
    )


@dataclass(frozen=True, slots=True)
class _Jobs:
    """What becomes of each job.

    `outcome` is 0 for a claim, then an index from 1 up into `reasons`, and one more for a job never heard of again.
    """

    arrival_us: Int64
    end_us: Int64
    outcome: Int64
    machine: Int32
    machines: int
    work: Work
    reasons: tuple[str, ...]

    def ended(self, first: int, last: int | None = None) -> Int32:
        """The jobs with these outcomes."""
        return np.flatnonzero((self.outcome >= first) & (self.outcome <= (first if last is None else last))).astype(
            np.int32
        )


def _jobs(scenario: Scenario, draw: Draw) -> _Jobs:
    field = scenario.volunteers
    arrival_us = arrive(scenario.arrivals, draw, int(scenario.duration))
    run_us = run_times(scenario.run_time, draw)
    shares = [scenario.outcome.claim, *scenario.outcome.discard.values(), scenario.outcome.never]
    outcome = models.choose(draw("outcome"), shares)
    reasons = tuple(scenario.outcome.discard)
    machines = scenario.population.machines
    machine = models.pick(draw("machine"), machines)
    hosts = Draw(draw.seed, machines)
    gflops = None
    if field.speed is not None:
        of_host, average = volunteers.speeds(field.speed, hosts)
        gflops = of_host[machine]
        run_us = models.microseconds(run_us * average / gflops, LONGEST_US)
    if (holes := field.black_holes) is not None:
        if holes.reason not in reasons:
            outcome[outcome > len(reasons)] += 1
            reasons = (*reasons, holes.reason)
        swallowed = np.flatnonzero(draw("volunteers.black_holes") < holes.jobs)
        bad = np.argsort(hosts("volunteers.bad"), kind="stable")[: max(1, round(holes.machines * machines))]
        hole = models.pick(draw("volunteers.black_holes.machine"), len(bad))
        lasts_us = run_times(holes.run_time, draw, "volunteers.black_holes.run_time")
        if holes.back_off:
            takes = volunteers.taken(arrival_us[swallowed], hole[swallowed], lasts_us[swallowed])
            swallowed = swallowed[takes]
        drawn = hole[swallowed]
        machine[swallowed] = bad[drawn]
        outcome[swallowed] = 1 + reasons.index(holes.reason)
        run_us = run_us.copy()
        run_us[swallowed] = lasts_us[swallowed]
    end_us = arrival_us + run_us
    if field.availability is not None:
        end_us = volunteers.turns(field.availability, hosts).ends_us(machine, arrival_us, run_us)
    if field.late is not None:
        delay_us = run_times(field.late.by, draw, "volunteers.late.by")
        end_us = end_us + np.where(draw("volunteers.late") < field.late.share, delay_us, 0)
    if field.lifetime is not None:
        outcome[volunteers.gone(int(field.lifetime), draw, end_us - arrival_us)] = len(reasons) + 1
    return _Jobs(arrival_us, end_us, outcome, machine, machines, Work(run_us, gflops), reasons)


class _Plan:
    """The blocks of operations, and the rows of claims and frames, as they are added."""

    def __init__(self, draw: Draw, jobs: _Jobs, asked: Int64) -> None:
        self.slots = draw.jobs
        self.numbers = [np.arange(draw.first + 1, draw.first + draw.jobs + 1)]
        self._next = draw.whole.jobs + 1
        self._beside: list[Int32] = []
        self.blocks: list[tuple[str, Int64, Int32]] = []
        self.machines: list[Int32] = []
        self.credits: list[Int64] = []
        self.forms: list[Int64] = []
        self._jobs = jobs
        self._asked = asked

    def add(self, kind: str, due_us: Int64, jobs: Int32) -> None:
        """Operations of jobs on their slots, at the jobs' times."""
        self._put(kind, due_us[jobs], jobs)

    def claim(self, due_us: Int64, jobs: Int32, *, others: int = 0) -> None:
        """Claims of jobs' slots by their machines, or by others."""
        self._claim(due_us[jobs], jobs, jobs, others)

    def claim_beside(self, jobs: Int32, in_all: tuple[int, int]) -> None:
        """Claims of slots beside those of the jobs, when they arrive."""
        self._claim(self._jobs.arrival_us[jobs], self._new(jobs, in_all), jobs)

    def forge(self, jobs: Int32, in_all: tuple[int, int]) -> None:
        """Allocations beside those of the jobs that must be refused, and claims of them."""
        slots = self._new(jobs, in_all)
        self._put("alloc", self._jobs.arrival_us[jobs], slots)
        self._claim(self._jobs.arrival_us[jobs], slots, jobs)

    def send(self, name: str, jobs: Int32, in_all: tuple[int, int]) -> None:
        """Frames that are no commands, when jobs arrive."""
        slots = self._new(jobs, in_all)
        if in_all[1]:
            self._put("frame", self._jobs.arrival_us[jobs], slots)
            self.forms.append(forms(name, len(jobs), in_all[0]))

    def _claim(self, due_us: Int64, slots: Int32, jobs: Int32, others: int = 0) -> None:
        self._put("claim", due_us, slots)
        self.machines.append((self._jobs.machine[jobs] + others) % np.int32(self._jobs.machines))
        self.credits.append(self._asked[jobs])

    def _put(self, kind: str, due_us: Int64, slots: Int32) -> None:
        self.blocks.append((kind, due_us, slots))

    def of_slots(self, of_jobs: Int32) -> Int32:
        """What each job has, for each slot: one beside those of the jobs has what its job has."""
        return of_jobs[np.concatenate([np.arange(len(of_jobs)), *self._beside])] if len(of_jobs) else of_jobs

    def _new(self, jobs: Int32, in_all: tuple[int, int]) -> Int32:
        """Slots beside those of the jobs, numbered after all of those."""
        before, total = in_all
        self.numbers.append(np.arange(self._next + before, self._next + before + len(jobs)))
        self._next += total
        self._beside.append(jobs)
        self.slots += len(jobs)
        return np.arange(self.slots - len(jobs), self.slots, dtype=np.int32)


def _sites(sites: Sequence[Site], draw: Draw) -> tuple[tuple[str, ...], Int32]:
    """The project of each site, and the site of each job; none if there is but one."""
    if len(sites) < 2:
        return (), np.empty(0, dtype=np.int32)
    shares = np.array([site.share for site in sites])
    return tuple(site.project for site in sites), models.choose(draw("site"), shares / shares.sum()).astype(np.int32)


def _indivisible(scenario: Scenario) -> str:
    """Why no part of a scenario can be made without the rest, if none can."""
    if len(scenario.site) > 1:
        return "a scenario of several sites"
    holes = scenario.volunteers.black_holes
    return "a scenario whose black holes back off" if holes is not None and holes.back_off else ""


def _draw(scenario: Scenario, seed: int, part: tuple[int, int] | None) -> Draw:
    if part is None:
        return Draw(seed, scenario.arrivals.jobs)
    if why := _indivisible(scenario):
        raise ScenarioError(f"{scenario.name}: {why} is made whole, for what a job is depends on those before it")
    first, last = part
    return Draw(seed, last - first, first, scenario.arrivals.jobs)


def _alloc(scenario: Scenario, rows: int, forged: int, forged_before: int) -> AllocTable:
    policy = scenario.credits
    fixed = policy.credits if isinstance(policy, FixedCredits) else None
    low, high = (policy.min, policy.max) if isinstance(policy, RangeCredits) else (None, None)
    expire_min = None if scenario.expire is None else scenario.expire // models.MINUTE_US
    columns = [constant(value, rows) for value in (fixed, low, high, expire_min)]
    if forged:
        tricks = [FORGED[i % len(FORGED)] for i in range(forged_before, forged_before + forged)]
        names = ("credits", "min", "max", "expire")
        columns = [
            np.append(column, [trick.get(name, ABSENT) for trick in tricks])
            for name, column in zip(names, columns, strict=True)
        ]
    return AllocTable(*columns)


def _with_late(counters: CountersTable, count: int, share: float) -> CountersTable:
    """A table with so many rows more, for slots that are claimed already."""
    if not share:
        return counters
    names = counters.names or ("job/events",)
    values = np.full((len(counters.values) + count, len(names)), ABSENT)
    values[: len(counters.values), : counters.values.shape[1]] = counters.values
    values[len(counters.values) :, 0] = 1
    return CountersTable(names, values)


def _discards(jobs: _Jobs, discarded: Int32, undone: int, share: float) -> DiscardTable:
    reason = (jobs.outcome[discarded] - 1).astype(np.int32)
    if not share:
        return DiscardTable(jobs.reasons, reason)
    last = np.full(undone, len(jobs.reasons), dtype=np.int32)
    return DiscardTable((*jobs.reasons, MISBEHAVED), np.append(reason, last))


def _joined(parts: list[Int64]) -> Int32:
    return np.concatenate([np.empty(0, dtype=np.int64), *parts]).astype(np.int32)


def _asked(credits: FixedCredits | RangeCredits | NoCredits, draw: Draw, work: Work) -> Int64:
    """What the claim of each job asks for."""
    asked = None if isinstance(credits, FixedCredits) else credits.claim
    if asked is None:
        return constant(None, draw.jobs)
    if isinstance(asked, AroundRange):
        assert isinstance(credits, RangeCredits)
        return _around(asked, credits, draw)
    return numbers(asked, draw, "credits.claim", work)


def _around(asked: AroundRange, credits: RangeCredits, draw: Draw) -> Int64:
    """Claims below, above and inside a range."""
    assert credits.min is not None
    assert credits.max is not None
    side, value = draw("credits.side"), draw("credits.claim")
    inside = models.uniform_integers(value, credits.min, credits.max)
    below = models.uniform_integers(value, 0, credits.min - 1)
    above = models.uniform_integers(value, credits.max + 1, 2 * credits.max + 1)
    return np.where(side < asked.below, below, np.where(side < asked.below + asked.above, above, inside))


def _counters(
    counters: Counters, draw: Draw, work: Work, claimed: Int32, discarded: Int32
) -> tuple[CountersTable, Int32]:
    """The table, and the slot of each of its rows."""
    groups = [("claim", counters.claim, claimed), ("discard", counters.discard, discarded)]
    counted = np.sort(np.concatenate([slots for _, given, slots in groups if given] or [claimed[:0]]))
    names = tuple(dict.fromkeys([*counters.claim, *counters.discard]))
    values = np.full((len(counted), len(names)), ABSENT)
    for outcome, given, slots in groups:
        rows = np.searchsorted(counted, slots)
        for name, number in given.items():
            drawn = numbers(number, draw, f"counters.{outcome}.{name}", work)
            values[rows, names.index(name)] = drawn[slots]
    return CountersTable(names, values), counted


def _metadata(metadata: Mapping[str, list[str] | FromFaker], draw: Draw) -> MetaTable:
    choices = tuple(
        identities.choices(draw.seed, name, values.faker) if isinstance(values, FromFaker) else tuple(values)
        for name, values in metadata.items()
    )
    values = np.empty((draw.jobs if metadata else 0, len(metadata)), dtype=np.int32)
    for column, name in enumerate(metadata):
        values[:, column] = models.pick(draw(f"metadata.{name}"), len(choices[column]))
    return MetaTable(tuple(metadata), choices, values)


def _owners(population: Population, seed: int) -> Int32:
    """As many machines as `linked` says, chosen at random, each given to a user at random."""
    owner = models.pick(uniforms(seed, "owner", population.machines), population.users)
    order = np.argsort(uniforms(seed, "linked", population.machines), kind="stable")
    owner[order[round(population.linked * population.machines) :]] = -1
    return owner

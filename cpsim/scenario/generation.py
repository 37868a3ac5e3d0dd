"""Generation: a workload from a scenario: draw from its models, and sort the operations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from typing import TYPE_CHECKING, Final

import numpy as np

from cpsim.scenario.blocks import Blocks
from cpsim.scenario.formats import columns
from cpsim.scenario.models import distributions as models
from cpsim.scenario.models import identities, volunteers
from cpsim.scenario.models.arrivals import arrive
from cpsim.scenario.models.misbehaviour import FORGED, FRAMES, Chooser, forms
from cpsim.scenario.models.numbers import Work, numbers
from cpsim.scenario.models.run_times import run_times
from cpsim.scenario.schema import AroundRange, FixedCredits, FromFaker, RangeCredits
from cpsim.scenario.share import WorkloadShare
from cpsim.scenario.streams import Draw, uniforms
from cpsim.scenario.values import LONGEST_US, ScenarioError
from cpsim.scenario.workload import ABSENT, Column, Given, Int32, Int64, UInt8, Workload, slot_numbers
from cpsim.system.growing import made
from cpsim.system.mapped import give_back, stored, zeros

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cpsim.scenario.schema import Counters, NoCredits, Population, Scenario, Site

DEFAULT_EXPIRE_US: Final = models.DAY_US
JOBS_AT_ONCE: Final = 500_000
JOBS_DRAWN: Final = 1 << 18
"""Jobs of a whole workload that are drawn at a time."""
MISBEHAVED: Final = "misbehaved"
"""The reason of a discard that is misbehaviour."""
NO_SITE: Final = np.empty(0, np.int32)
FORMS: Final = tuple(chain.from_iterable(FRAMES.values()))


def parts(scenario: Scenario, seed: int | None = None, jobs: int = JOBS_AT_ONCE) -> Iterator[Workload]:
    """Generate a scenario's workload, `jobs` jobs at a time in order of arrival: memory does not grow with its length.

    A scenario of several sites, or with black holes that back off, is one part.
    """
    total = scenario.arrivals.jobs
    if _indivisible(scenario):
        yield generate(scenario, seed)
        return
    for first in range(0, total, jobs):
        yield generate(scenario, seed, (first, min(first + jobs, total)))


def generate(scenario: Scenario, seed: int | None = None, part: tuple[int, int] | None = None) -> Workload:
    """Generate a scenario's workload.

    The same scenario and seed give the same columns, bit for bit, on every Python, numpy and processor. Large ones are
    made in parts, and are in files, so that memory does not grow with their length. The texts that Faker draws are the
    same for the same release of Faker.

    A job is a slot: allocated (with its metadata) when the job arrives; its counters are sent and the slot settled when
    the job returns, even after the scenario's duration. The job's machine is drawn uniformly.

    Args:
        scenario: the scenario.
        seed: 0 or more; None takes the scenario's seed.
        part: range of jobs to generate, from 0, end excluded; they equal the same jobs of the whole workload. (Bursts
            and Lublin arrivals generate the arrival times of all jobs.)

    Raises:
        ScenarioError: `part` is given, and the scenario has several sites, or black holes that back off.
    """
    draw = _draw(scenario, scenario.seed if seed is None else seed, part)
    sites = tuple(site.project for site in scenario.site) if len(scenario.site) > 1 else ()
    numbered, site, blocks = _blocks(scenario, draw)
    give_back()
    timeline = blocks.timeline()
    give_back()
    numbers = slot_numbers(sites, site) if sites else numbered
    return _workload(scenario, draw.seed, blocks, timeline, numbers, sites=sites, site=site)


def generate_share(scenario: Scenario, seed: int | None, index: int, count: int) -> WorkloadShare:
    """Generate a share of a scenario's workload; the scenario has one site.

    Its operations are those of the whole. Of all others, no more than the due times are kept meanwhile.

    Args:
        scenario: the scenario.
        seed: 0 or more; None takes the scenario's seed.
        index: which share of all.
        count: how many shares there are.
    """
    draw = Draw(scenario.seed if seed is None else seed, scenario.arrivals.jobs)
    blocks, first, last = Blocks(), (index - 1) % count, 0
    mark = sha256()
    for plan in _plans(scenario, draw):
        plan.blocks.update(mark.update)
        slots, last = np.concatenate(plan.numbers) - 1, plan.last
        blocks.extend(plan.blocks, np.where(slots % count == first, (slots - first) // count, -1))
        give_back()
    timeline, ops, operations = blocks.share()
    give_back()
    own = len(range(first, last, count))
    numbers = made(own, np.int64, lambda where: np.arange(where.start, where.stop) * count + first + 1)
    workload = _workload(scenario, draw.seed, blocks, timeline, numbers)
    mark.update(json.dumps(columns.beside_of(workload)).encode())
    return WorkloadShare(workload, ops, operations, mark.hexdigest())


def _workload(
    scenario: Scenario,
    seed: int,
    blocks: Blocks,
    timeline: tuple[Int64, UInt8, Int32, Int32],
    numbers: Int64,
    *,
    sites: tuple[str, ...] = (),
    site: Int32 = NO_SITE,
) -> Workload:
    due_us, kind, slot, row = timeline
    return Workload(
        name=scenario.name,
        seed=seed,
        duration_us=int(scenario.duration),
        due_us=due_us,
        kind=kind,
        slot=slot,
        row=row,
        slot_numbers=numbers,
        arguments=blocks.arguments(),
        machines=identities.machines(seed, scenario.population.machines),
        users=identities.users(seed, scenario.population.users),
        owner=_owners(scenario.population, seed),
        faults=tuple(scenario.faults),
        link_after=scenario.population.link == "after",
        sites=sites,
        site=site,
    )


def _blocks(scenario: Scenario, draw: Draw) -> tuple[Int64, Int32, Blocks]:
    """The operations of jobs, the numbers of their slots, and the site of each."""
    if draw.total is not None or draw.jobs <= JOBS_DRAWN:
        plan = _planned(scenario, draw, volunteers.BackOff())
        return stored(np.concatenate(plan.numbers)), plan.of_slots(_sites(scenario.site, draw)), plan.blocks
    blocks, last, site = Blocks(), 0, np.empty(0, np.int32)
    for plan in _plans(scenario, draw):
        slots, last = np.concatenate(plan.numbers) - 1, plan.last
        blocks.extend(plan.blocks, slots)
        if len(of_jobs := _sites(scenario.site, plan.draw)):
            site = site if len(site) else zeros(last, site.dtype)
            site[slots] = plan.of_slots(of_jobs)
        give_back()
    return made(last, np.int64, lambda where: np.arange(where.start + 1, where.stop + 1)), site, blocks


def _plans(scenario: Scenario, draw: Draw) -> Iterator[_Plan]:
    """The operations of all jobs, so many jobs at a time."""
    back_off = volunteers.BackOff()
    for first in range(0, draw.jobs, JOBS_DRAWN):
        yield _planned(scenario, Draw(draw.seed, min(JOBS_DRAWN, draw.jobs - first), first, draw.jobs), back_off)


def _planned(scenario: Scenario, draw: Draw, back_off: volunteers.BackOff) -> _Plan:
    """The operations of the jobs that are drawn; `back_off` knows of those before them."""
    jobs = _jobs(scenario, draw, back_off)
    claimed, discarded = jobs.ended(0), jobs.ended(1, len(jobs.reasons))
    counted, counters = _counters(scenario.counters, draw, jobs.work, claimed, discarded)
    meta = _metadata(scenario.metadata, draw)
    terms = _terms(scenario)
    reasons = (*jobs.reasons, MISBEHAVED) if scenario.misbehaviour.discard_after_claim else jobs.reasons
    everyone = np.arange(draw.jobs, dtype=np.int32)
    machines = identities.machines(draw.seed, scenario.population.machines)
    plan = _Plan(draw, jobs, machines, _asked(scenario.credits, draw, jobs.work))
    wrong = Chooser(scenario.misbehaviour, draw)
    arrival_us, end_us = jobs.arrival_us, jobs.end_us
    plan.claim(arrival_us, wrong("claim_before_alloc", everyone))
    plan.add("alloc", arrival_us, everyone, terms)
    plan.add("alloc", arrival_us, wrong("alloc_twice", everyone), terms)
    if meta:
        plan.add("meta", arrival_us, everyone, meta)
    plan.add("counters", end_us, counted, counters)
    plan.add("discard", end_us, discarded, {"reason": Column((jobs.outcome[discarded] - 1).astype(np.int32), reasons)})
    plan.claim(end_us, claimed)
    plan.claim(end_us, wrong("claim_twice", claimed))
    plan.claim(end_us, wrong("claim_by_two", claimed), others=1)
    if (twice := scenario.volunteers.duplicates) is not None:
        delays_us = run_times(twice.after, draw, "volunteers.duplicates.after")
        plan.claim(end_us + delays_us, claimed[draw("volunteers.duplicates")[claimed] < twice.share])
    plan.claim(end_us, wrong("claim_after_discard", discarded))
    if scenario.misbehaviour.counters_after_claim:
        late = wrong("counters_after_claim", claimed)
        plan.add("counters", end_us, late, {next(iter(counters), "job/events"): 1})
    undone = wrong("discard_after_claim", claimed)
    last = np.full(len(undone), len(jobs.reasons), dtype=np.int32)
    plan.add("discard", end_us, undone, {"reason": Column(last, reasons)})
    lasts_us = DEFAULT_EXPIRE_US if scenario.expire is None else int(scenario.expire)
    plan.claim(arrival_us + lasts_us + models.MINUTE_US, wrong("claim_after_expiry", jobs.ended(len(jobs.reasons) + 1)))
    plan.claim_beside(wrong("unknown_slot", everyone), wrong.counts("unknown_slot"))
    plan.forge(wrong("forged", everyone), wrong.counts("forged"))
    for name in FRAMES:
        plan.send(name, wrong(name, everyone), wrong.counts(name))
    return plan


@dataclass(frozen=True, slots=True)
class _Jobs:
    """The jobs' machines, times and outcomes.

    `outcome` is 0 for a claim, 1 + index into `reasons` for a discard,
    and 1 + len(reasons) for a job that never returns.
    """

    arrival_us: Int64
    end_us: Int64
    outcome: Int64
    machine: Int32
    machines: int
    work: Work
    reasons: tuple[str, ...]

    def ended(self, first: int, last: int | None = None) -> Int32:
        """The jobs with outcomes from `first` to `last`."""
        return np.flatnonzero((self.outcome >= first) & (self.outcome <= (first if last is None else last))).astype(
            np.int32
        )


def _jobs(scenario: Scenario, draw: Draw, back_off: volunteers.BackOff) -> _Jobs:
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
        absorbed = np.flatnonzero(draw("volunteers.black_holes") < holes.jobs)
        bad = np.argsort(hosts("volunteers.bad"), kind="stable")[: max(1, round(holes.machines * machines))]
        hole = models.pick(draw("volunteers.black_holes.machine"), len(bad))
        lasts_us = run_times(holes.run_time, draw, "volunteers.black_holes.run_time")
        if holes.back_off:
            takes = back_off.taken(arrival_us[absorbed], hole[absorbed], lasts_us[absorbed])
            absorbed = absorbed[takes]
        drawn = hole[absorbed]
        machine[absorbed] = bad[drawn]
        outcome[absorbed] = 1 + reasons.index(holes.reason)
        run_us = run_us.copy()
        run_us[absorbed] = lasts_us[absorbed]
    end_us = arrival_us + run_us
    if field.availability is not None:
        end_us = volunteers.turns(field.availability, hosts).ends_us(machine, arrival_us, run_us)
    if field.late is not None:
        delay_us = run_times(field.late.by, draw, "volunteers.late.by")
        end_us = end_us + np.where(draw("volunteers.late") < field.late.share, delay_us, 0)
    if field.lifetime is not None:
        outcome[volunteers.gone(int(field.lifetime), draw, end_us - arrival_us)] = len(reasons) + 1
    work = Work(stored(run_us), None if gflops is None else stored(gflops))
    jobs = _Jobs(stored(arrival_us), stored(end_us), stored(outcome), stored(machine), machines, work, reasons)
    del run_us, gflops, arrival_us, end_us, outcome, machine
    give_back()
    return jobs


class _Plan:
    """Collects operations, block by block."""

    def __init__(self, draw: Draw, jobs: _Jobs, machines: tuple[str, ...], asked: Int64 | None) -> None:
        self.draw = draw
        self.slots = draw.jobs
        self.numbers = [np.arange(draw.first + 1, draw.first + draw.jobs + 1)]
        self.blocks = Blocks()
        self._next = draw.whole.jobs + 1
        self._beside: list[Int32] = []
        self._jobs = jobs
        self.machines = machines
        self._asked = asked

    @property
    def last(self) -> int:
        """The number of the last slot of the whole workload."""
        return self._next - 1

    def add(self, kind: str, due_us: Int64, jobs: Int32, given: Mapping[str, Given]) -> None:
        """Add operations of jobs on their slots, at the jobs' times."""
        self.blocks.add(kind, due_us[jobs], jobs, given)

    def claim(self, due_us: Int64, jobs: Int32, *, others: int = 0) -> None:
        """Add claims of jobs' slots by their machines, or by the machines `others` further on."""
        self._claim(due_us[jobs], jobs, jobs, others)

    def claim_beside(self, jobs: Int32, in_all: tuple[int, int]) -> None:
        """Add claims of additional slots, when jobs arrive."""
        self._claim(self._jobs.arrival_us[jobs], self._new(jobs, in_all), jobs)

    def forge(self, jobs: Int32, in_all: tuple[int, int]) -> None:
        """Add invalid allocations of additional slots, and claims of them."""
        slots = self._new(jobs, in_all)
        tricks = [FORGED[number % len(FORGED)] for number in range(in_all[0], in_all[0] + len(jobs))]
        names = dict.fromkeys(name for trick in FORGED for name in trick)
        given = {name: np.array([trick.get(name, ABSENT) for trick in tricks], np.int64) for name in names}
        self.blocks.add("alloc", self._jobs.arrival_us[jobs], slots, given)
        self._claim(self._jobs.arrival_us[jobs], slots, jobs)

    def send(self, name: str, jobs: Int32, in_all: tuple[int, int]) -> None:
        """Add malformed frames, when jobs arrive."""
        slots = self._new(jobs, in_all)
        if in_all[1]:
            chosen = forms(name, len(jobs), in_all[0]).astype(np.int32)
            self.blocks.add("frame", self._jobs.arrival_us[jobs], slots, {"frame": Column(chosen, FORMS)})

    def _claim(self, due_us: Int64, slots: Int32, jobs: Int32, others: int = 0) -> None:
        machine = (self._jobs.machine[jobs] + others) % np.int32(self._jobs.machines)
        asked = None if self._asked is None else self._asked[jobs]
        self.blocks.add("claim", due_us, slots, {"machine": Column(machine, self.machines), "credits": asked})

    def of_slots(self, of_jobs: Int32) -> Int32:
        """Values of jobs, as values of slots: an additional slot has its job's value."""
        return of_jobs[np.concatenate([np.arange(len(of_jobs)), *self._beside])] if len(of_jobs) else of_jobs

    def _new(self, jobs: Int32, in_all: tuple[int, int]) -> Int32:
        """Additional slots, numbered after those of the jobs."""
        before, total = in_all
        self.numbers.append(np.arange(self._next + before, self._next + before + len(jobs)))
        self._next += total
        self._beside.append(jobs)
        self.slots += len(jobs)
        return np.arange(self.slots - len(jobs), self.slots, dtype=np.int32)


def _sites(sites: Sequence[Site], draw: Draw) -> Int32:
    """The site of each job; empty if there is one site."""
    if len(sites) < 2:
        return np.empty(0, dtype=np.int32)
    shares = np.array([site.share for site in sites])
    return models.choose(draw("site"), shares / shares.sum()).astype(np.int32)


def _indivisible(scenario: Scenario) -> str:
    """Why the scenario cannot be generated in parts; empty if it can."""
    if len(scenario.site) > 1:
        return "a scenario of several sites"
    holes = scenario.volunteers.black_holes
    return "a scenario whose black holes back off" if holes is not None and holes.back_off else ""


def _draw(scenario: Scenario, seed: int, part: tuple[int, int] | None) -> Draw:
    if part is None:
        return Draw(seed, scenario.arrivals.jobs)
    if why := _indivisible(scenario):
        raise ScenarioError(
            f"{scenario.name}: {why} cannot be generated in parts, because a job depends on the jobs before it"
        )
    first, last = part
    return Draw(seed, last - first, first, scenario.arrivals.jobs)


def _terms(scenario: Scenario) -> dict[str, Given]:
    """The arguments of every allocation."""
    policy = scenario.credits
    terms: dict[str, Given] = {"expire": None if scenario.expire is None else scenario.expire // models.MINUTE_US}
    if isinstance(policy, FixedCredits):
        return terms | {"credits": policy.credits}
    return terms | {"min": policy.min, "max": policy.max} if isinstance(policy, RangeCredits) else terms


def _asked(credits: FixedCredits | RangeCredits | NoCredits, draw: Draw, work: Work) -> Int64 | None:
    """The credits that each job's claim requests; None if claims request none."""
    asked = None if isinstance(credits, FixedCredits) else credits.claim
    if asked is None:
        return None
    if isinstance(asked, AroundRange):
        assert isinstance(credits, RangeCredits)
        return _around(asked, credits, draw)
    return numbers(asked, draw, "credits.claim", work)


def _around(asked: AroundRange, credits: RangeCredits, draw: Draw) -> Int64:
    """Requested credits below, above and inside a range."""
    assert credits.min is not None
    assert credits.max is not None
    side, value = draw("credits.side"), draw("credits.claim")
    inside = models.uniform_integers(value, credits.min, credits.max)
    below = models.uniform_integers(value, 0, credits.min - 1)
    above = models.uniform_integers(value, credits.max + 1, 2 * credits.max + 1)
    return np.where(side < asked.below, below, np.where(side < asked.below + asked.above, above, inside))


def _counters(
    counters: Counters, draw: Draw, work: Work, claimed: Int32, discarded: Int32
) -> tuple[Int32, dict[str, Given]]:
    """The jobs with counters, and the value of each counter."""
    groups = [("claim", counters.claim, claimed), ("discard", counters.discard, discarded)]
    counted = np.sort(np.concatenate([slots for _, given, slots in groups if given] or [claimed[:0]]))
    values: dict[str, Given] = {}
    for name in dict.fromkeys(name for _, given, _ in groups for name in given):
        column = np.full(len(counted), ABSENT)
        for outcome, given, slots in groups:
            if name in given:
                drawn = numbers(given[name], draw, f"counters.{outcome}.{name}", work)
                column[np.searchsorted(counted, slots)] = drawn[slots]
        values[name] = stored(column)
    return stored(counted), values


def _metadata(metadata: Mapping[str, list[str] | FromFaker], draw: Draw) -> dict[str, Given]:
    """The metadata of each slot."""
    given: dict[str, Given] = {}
    for name, values in metadata.items():
        choices = identities.choices(draw.seed, name, values.faker) if isinstance(values, FromFaker) else tuple(values)
        given[name] = Column(models.pick(draw(f"metadata.{name}"), len(choices)), choices)
    return given


def _owners(population: Population, seed: int) -> Int32:
    """The owner of each machine: a random user for a random share `linked` of the machines, else -1."""
    owner = models.pick(uniforms(seed, "owner", population.machines), population.users)
    order = np.argsort(uniforms(seed, "linked", population.machines), kind="stable")
    owner[order[round(population.linked * population.machines) :]] = -1
    return owner

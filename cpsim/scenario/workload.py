"""A workload: every operation of a scenario with its due time, in columns."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from cpdaemon.commands import KINDS
from cpsim.scenario import identities, models, schema
from cpsim.scenario.streams import uniforms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cpsim.scenario.arithmetic import Floats

UInt8 = npt.NDArray[np.uint8]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

ABSENT: Final = int(np.iinfo(np.int64).min)
"""Stands in an int64 column of arguments for one that is not given."""


@dataclass(frozen=True, slots=True, eq=False)
class AllocTable:
    """Arguments of alloc, one row per slot; ABSENT where not given."""

    credits: Int64
    min: Int64
    max: Int64
    expire_min: Int64


@dataclass(frozen=True, slots=True, eq=False)
class CountersTable:
    """Arguments of counters: values of shape (rows, names); ABSENT where not given, never a whole row."""

    names: tuple[str, ...]
    values: Int64


@dataclass(frozen=True, slots=True, eq=False)
class MetaTable:
    """Arguments of meta: values of shape (rows, names) are indices into the choices of their name."""

    names: tuple[str, ...]
    choices: tuple[tuple[str, ...], ...]
    values: Int32


@dataclass(frozen=True, slots=True, eq=False)
class DiscardTable:
    """Arguments of discard: `reason` holds indices into `reasons`."""

    reasons: tuple[str, ...]
    reason: Int32


@dataclass(frozen=True, slots=True, eq=False)
class ClaimTable:
    """Arguments of claim: `machine` indexes the workload's machines; credits are ABSENT where not given."""

    machine: Int32
    credits: Int64


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """Operations in the order in which they are due; those of a slot in the order in which they must happen.

    Attributes:
        name: of the scenario or log.
        seed: what it was generated from.
        duration_us: time within which slots are allocated; operations may be due later.
        due_us: int64[operations], non-decreasing, microseconds since the scenario starts.
        kind: uint8[operations], index into `cpdaemon.commands.KINDS`.
        slot: int32[operations], index of the slot.
        row: int32[operations], row in the argument table of its kind.
        slot_numbers: int64[slots], distinct, the number that ends the slot's id.
        alloc, counters, meta, discard, claim: the argument tables.
        machines: ids of machines.
        users: ids of users.
        owner: int32[machines], index into `users`, -1 for a machine without a user.
        faults: what goes wrong meanwhile, as `cpsim faults` has it.
    """

    name: str
    seed: int
    duration_us: int
    due_us: Int64
    kind: UInt8
    slot: Int32
    row: Int32
    slot_numbers: Int64
    alloc: AllocTable
    counters: CountersTable
    meta: MetaTable
    discard: DiscardTable
    claim: ClaimTable
    machines: tuple[str, ...]
    users: tuple[str, ...]
    owner: Int32
    faults: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.due_us)

    def digest(self) -> str:
        """SHA-256 over everything, in hex: equal for equal workloads, on any machine."""
        digest = hashlib.sha256()
        _update(digest.update, self)
        return digest.hexdigest()

    def calls(self, start: int, stop: int, prefix: str) -> Iterator[tuple[str, dict[str, str | int]]]:
        """The operations from `start` up to `stop` in readable form, one by one: for looking, not for speed.

        Args:
            start: first operation.
            stop: the one after the last.
            prefix: begins the slot ids, "PREFIX-NUMBER".

        Yields:
            The kind and the arguments under their names on the wire, as `("claim", {"slot": "x-1", ...})`.
        """
        for op in range(start, min(stop, len(self))):
            kind = KINDS[self.kind[op]]
            slot = f"{prefix}-{self.slot_numbers[self.slot[op]]}"
            yield kind, {"slot": slot, **self._arguments(kind, int(self.row[op]))}

    def _arguments(self, kind: str, row: int) -> dict[str, str | int]:
        match kind:
            case "meta":
                values = zip(self.meta.names, self.meta.choices, self.meta.values[row], strict=True)
                return {name: choices[value] for name, choices, value in values}
            case "discard":
                return {"reason": self.discard.reasons[self.discard.reason[row]]}
            case "alloc":
                table = self.alloc
                numbers = {
                    "credits": table.credits[row],
                    "min": table.min[row],
                    "max": table.max[row],
                    "expire": table.expire_min[row],
                }
            case "counters":
                numbers = dict(zip(self.counters.names, self.counters.values[row], strict=True))
            case _:
                numbers = {"credits": self.claim.credits[row]}
        given: dict[str, str | int] = {name: int(value) for name, value in numbers.items() if value != ABSENT}
        return {"machine": self.machines[self.claim.machine[row]], **given} if kind == "claim" else given


def _update(update: Callable[[bytes], None], value: object) -> None:
    if isinstance(value, np.ndarray):
        update(f"{value.dtype.newbyteorder('<').str}{value.shape}".encode())
        for start in range(0, len(value), 1 << 20):
            chunk = value[start : start + (1 << 20)]
            update(chunk.astype(chunk.dtype.newbyteorder("<"), order="C", copy=False).tobytes())
    elif is_dataclass(value):
        for field in fields(value):
            update(f"{field.name}:".encode())
            _update(update, getattr(value, field.name))
    else:
        update(json.dumps(value).encode())


def timeline(blocks: list[tuple[str, Int64, Int32]]) -> tuple[Int64, UInt8, Int32, Int32]:
    """Merge blocks of operations in order of their due times.

    Args:
        blocks: kind, due_us and slot of operations whose rows are 0, 1, ...; one block per kind, in the order
            in which operations of a slot must happen when they are due at the same microsecond.

    Returns:
        The columns due_us, kind, slot and row of a workload.
    """
    due_us = np.concatenate([due for _, due, _ in blocks])
    order = np.argsort(due_us, kind="stable")
    kind = np.concatenate([np.full(len(due), KINDS.index(name), dtype=np.uint8) for name, due, _ in blocks])
    slot = np.concatenate([slot for _, _, slot in blocks])
    row = np.concatenate([np.arange(len(due), dtype=np.int32) for _, due, _ in blocks])
    return due_us[order], kind[order], slot[order], row[order]


def constant(value: int | None, rows: int) -> Int64:
    """A read-only column of one value (None: ABSENT) that takes no memory."""
    return np.broadcast_to(np.int64(ABSENT if value is None else value), rows)


def generate(scenario: schema.Scenario, seed: int | None = None) -> Workload:
    """Make a scenario exact.

    The same scenario and seed give the same columns, bit for bit, on every Python, numpy and processor. The
    texts that Faker draws are the same for the same release of Faker.

    A job is a slot: allocated (and given its metadata) when the job arrives, counted and settled when its run
    time has passed, even past the scenario's duration. Its machine is drawn evenly from all.

    Args:
        scenario: what should happen.
        seed: 0 or more; None takes the scenario's own.
    """
    draw = _Draw(scenario.seed if seed is None else seed, scenario.arrivals.jobs)
    arrival_us = _arrivals(scenario, draw)
    run_us = _run_times(scenario.run_time, draw)
    reasons = tuple(scenario.outcome.discard)
    shares = [scenario.outcome.claim, *scenario.outcome.discard.values(), scenario.outcome.never]
    outcome = models.choose(draw("outcome"), shares)
    slots = np.arange(draw.jobs, dtype=np.int32)
    claimed = slots[outcome == 0]
    discarded = slots[(outcome > 0) & (outcome <= len(reasons))]
    counters, counted = _counters(scenario.counters, draw, run_us, claimed, discarded)
    meta = _metadata(scenario.metadata, draw)
    end_us = arrival_us + run_us
    blocks = [
        ("alloc", arrival_us, slots),
        ("meta", arrival_us[: len(meta.values)], slots[: len(meta.values)]),
        ("counters", end_us[counted], counted),
        ("discard", end_us[discarded], discarded),
        ("claim", end_us[claimed], claimed),
    ]
    due_us, kind, slot, row = timeline(blocks)
    machines = scenario.population.machines
    return Workload(
        name=scenario.name,
        seed=draw.seed,
        duration_us=int(scenario.duration),
        due_us=due_us,
        kind=kind,
        slot=slot,
        row=row,
        slot_numbers=np.arange(1, draw.jobs + 1),
        alloc=_alloc(scenario, draw.jobs),
        counters=counters,
        meta=meta,
        discard=DiscardTable(reasons, (outcome[discarded] - 1).astype(np.int32)),
        claim=ClaimTable(
            models.pick(draw("machine"), machines)[claimed], _asked(scenario.credits, draw, run_us, claimed)
        ),
        machines=identities.machines(draw.seed, machines),
        users=identities.users(draw.seed, scenario.population.users),
        owner=_owners(scenario.population, draw.seed),
        faults=tuple(scenario.faults),
    )


@dataclass(frozen=True, slots=True)
class _Draw:
    """One uniform number per job for a purpose."""

    seed: int
    jobs: int

    def __call__(self, purpose: str) -> Floats:
        return uniforms(self.seed, purpose, self.jobs)


def _arrivals(scenario: schema.Scenario, draw: _Draw) -> Int64:
    duration_us = int(scenario.duration)
    match scenario.arrivals:
        case schema.ConstantArrivals():
            return models.constant_arrivals(draw.jobs, duration_us)
        case schema.PoissonArrivals():
            return models.poisson_arrivals(draw("arrivals"), duration_us)
        case schema.DiurnalArrivals(_, peak_hour, amplitude):
            return models.diurnal_arrivals(draw("arrivals"), duration_us, peak_hour, amplitude)


def _run_times(run_time: schema.RunTimes, draw: _Draw) -> Int64:
    match run_time:
        case schema.ConstantTime(value):
            return constant(value, draw.jobs)
        case schema.LognormalTime(median, sigma, max_us):
            pairs = uniforms(draw.seed, "run_time", 2 * draw.jobs).reshape(-1, 2).T
            return models.lognormal_times(pairs, median, sigma, max_us)
        case schema.WeibullTime(scale, shape, max_us):
            return models.weibull_times(draw("run_time"), scale, shape, max_us)


def _numbers(number: schema.Number, draw: _Draw, purpose: str, run_us: Int64) -> Int64:
    match number:
        case schema.Uniform(low, high):
            return models.uniform_integers(draw(purpose), low, high)
        case schema.Poisson(mean):
            return models.poisson_integers(draw(purpose), mean)
        case schema.RunTime():
            return run_us // models.SECOND_US
        case _:
            return constant(number, draw.jobs)


def _alloc(scenario: schema.Scenario, rows: int) -> AllocTable:
    policy = scenario.credits
    fixed = policy.credits if isinstance(policy, schema.FixedCredits) else None
    low, high = (policy.min, policy.max) if isinstance(policy, schema.RangeCredits) else (None, None)
    expire_min = None if scenario.expire is None else scenario.expire // models.MINUTE_US
    return AllocTable(*(constant(value, rows) for value in (fixed, low, high, expire_min)))


def _asked(
    credits: schema.FixedCredits | schema.RangeCredits | schema.NoCredits,
    draw: _Draw,
    run_us: Int64,
    claimed: Int32,
) -> Int64:
    asked = None if isinstance(credits, schema.FixedCredits) else credits.claim
    if asked is None:
        return constant(None, len(claimed))
    return _numbers(asked, draw, "credits.claim", run_us)[claimed]


def _counters(
    counters: schema.Counters, draw: _Draw, run_us: Int64, claimed: Int32, discarded: Int32
) -> tuple[CountersTable, Int32]:
    """The table, and the slot of each of its rows."""
    groups = [("claim", counters.claim, claimed), ("discard", counters.discard, discarded)]
    counted = np.sort(np.concatenate([slots for _, numbers, slots in groups if numbers] or [claimed[:0]]))
    names = tuple(dict.fromkeys([*counters.claim, *counters.discard]))
    values = np.full((len(counted), len(names)), ABSENT)
    for outcome, numbers, slots in groups:
        rows = np.searchsorted(counted, slots)
        for name, number in numbers.items():
            drawn = _numbers(number, draw, f"counters.{outcome}.{name}", run_us)
            values[rows, names.index(name)] = drawn[slots]
    return CountersTable(names, values), counted


def _metadata(metadata: Mapping[str, list[str] | schema.FromFaker], draw: _Draw) -> MetaTable:
    choices = tuple(
        identities.choices(draw.seed, name, values.faker) if isinstance(values, schema.FromFaker) else tuple(values)
        for name, values in metadata.items()
    )
    values = np.empty((draw.jobs if metadata else 0, len(metadata)), dtype=np.int32)
    for column, name in enumerate(metadata):
        values[:, column] = models.pick(draw(f"metadata.{name}"), len(choices[column]))
    return MetaTable(tuple(metadata), choices, values)


def _owners(population: schema.Population, seed: int) -> Int32:
    """As many machines as `linked` says, chosen at random, each given to a user at random."""
    owner = models.pick(uniforms(seed, "owner", population.machines), population.users)
    order = np.argsort(uniforms(seed, "linked", population.machines), kind="stable")
    owner[order[round(population.linked * population.machines) :]] = -1
    return owner

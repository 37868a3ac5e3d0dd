"""The format of scenario files: sections as types, with precise errors.

The types below are the format; `docs/scenarios.md` explains it key by key.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, field

from cpdaemon.commands import MAX_FRAME_BYTES
from cpsim.config import tables
from cpsim.errors import CpsimError
from cpsim.faults.spec import Fault
from cpsim.scenario.models import identities
from cpsim.scenario.models.arrivals import Arrivals
from cpsim.scenario.models.misbehaviour import Misbehaviour
from cpsim.scenario.models.numbers import Cobblestones, Number, RunTime, Uniform
from cpsim.scenario.models.run_times import RunTimes
from cpsim.scenario.models.volunteers import Volunteers
from cpsim.scenario.values import (
    UNIT_US,
    Credits,
    Jobs,
    Machines,
    Mean,
    Model,
    Name,
    Section,
    Seed,
    Share,
    Text,
    Time,
    Users,
    Weight,
)

SLOT_ID_CHARACTERS: Final = 100
"""Bytes of the longest slot id of a replay, for the check of frame sizes."""


MOST_SITES: Final = 100


class Population(Section, frozen=True):
    """Who computes: `linked` is the share of machines that belong to a user, `link` when it becomes known."""

    machines: Machines
    users: Users
    linked: Share = 1.0
    link: Annotated[Literal["before", "after"], Meta(description='"before" or "after"')] = "before"

    def __post_init__(self) -> None:
        if self.linked and not self.users:
            raise ValueError(f"linked = {self.linked:g} needs at least one user: raise users, or set linked = 0")


class Outcome(Section, frozen=True):
    """How jobs end, as shares of 1: claimed, discarded (by reason), or never heard of again."""

    claim: Share = 0.0
    never: Share = 0.0
    discard: dict[Text, Share] = field(default_factory=dict)

    def __post_init__(self) -> None:
        total = self.claim + self.never + sum(self.discard.values())
        if abs(total - 1) > 1e-9:
            raise ValueError(f"the shares (claim, never, discard) sum to {total:.6g}, and must sum to 1")


class _Policy(Section, frozen=True, tag_field="policy"): ...


class FixedCredits(_Policy, frozen=True, tag="fixed"):
    """The allocation says what the slot grants."""

    credits: Credits


class AroundRange(Model, frozen=True, tag="around"):
    """So large shares of the claims ask for less than `min` and for more than `max`, the others for what is between."""

    below: Share = 0.0
    above: Share = 0.0

    def __post_init__(self) -> None:
        if self.below + self.above > 1:
            raise ValueError(f"below and above sum to {self.below + self.above:.6g}, and must not be above 1")


class RangeCredits(_Policy, frozen=True, tag="range"):
    """The allocation limits what the claim asks for to `min`, `max` or both."""

    min: Credits | None = None
    max: Credits | None = None
    claim: Number | AroundRange | None = None

    def __post_init__(self) -> None:
        if self.min is None and self.max is None:
            raise ValueError("a range needs min or max, or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min = {self.min} is above max = {self.max}: swap them")
        if isinstance(self.claim, AroundRange):
            if not self.min or self.max is None:
                raise ValueError('a claim "around" a range needs min, above 0, and max')
        else:
            _check_claim(self.claim)


class NoCredits(_Policy, frozen=True, tag="none"):
    """The claim alone says what it is worth; one credit if it says nothing."""

    claim: Number | None = None

    def __post_init__(self) -> None:
        _check_claim(self.claim)


def _check_claim(claim: Number | None) -> None:
    least = claim.low if isinstance(claim, Uniform) else claim if isinstance(claim, int) else 0
    if least < 0:
        raise ValueError(f"claim = {least}: a claim cannot ask for less than 0")


class Counters(Section, frozen=True):
    """What is counted just before a slot is settled, by how it is settled."""

    claim: dict[Name, Number] = field(default_factory=dict)
    discard: dict[Name, Number] = field(default_factory=dict)


class Site(Section, frozen=True):
    """A site with a daemon of its own, which works for a `project` and has a `share` of the jobs, relative."""

    project: Text
    share: Weight = 1.0


class FromFaker(Section, frozen=True):
    """Values drawn from a provider of Faker."""

    faker: str

    def __post_init__(self) -> None:
        known = identities.providers()
        if self.faker not in known:
            raise ValueError(f'faker = "{self.faker}" is no provider of Faker{tables.suggestion(self.faker, known)}')


Choices = Annotated[list[Text], Meta(min_length=1, description="a list of at least one text")]


Faults = Annotated[list[str], Meta(description="a list of faults; see cpsim faults")]
Ruling = Annotated[Literal["valid", "invalid", "unknown"], Meta(description='"valid", "invalid" or "unknown"')]


class Scenario(Section, frozen=True):
    """What should happen.

    Attributes:
        name: of the file, unless it says otherwise.
        description: what it is for.
        duration: time within which jobs arrive; their work may end later.
        seed: used unless another is given.
        expire: how long a slot stays allocated, in whole minutes; None leaves it to the server.
        faults: what goes wrong meanwhile, as `cpsim faults` has it; times in seconds of the scenario.
        verdict: what a right CreditPiggy gets for it.
        site: the sites, where there are several; all machines work for all of them.
    """

    name: Text
    description: str
    duration: Time
    population: Population
    arrivals: Arrivals
    run_time: RunTimes
    seed: Seed = 1
    expire: Time | None = None
    outcome: Outcome = Outcome(claim=1.0)
    volunteers: Volunteers = Volunteers()
    misbehaviour: Misbehaviour = Misbehaviour()
    credits: FixedCredits | RangeCredits | NoCredits = NoCredits()
    counters: Counters = Counters()
    metadata: dict[Name, Choices | FromFaker] = field(default_factory=dict)
    faults: Faults = field(default_factory=list)
    verdict: Ruling = "valid"
    site: list[Site] = field(default_factory=list)

    def __post_init__(self) -> None:
        _check_faults(self.faults)
        _check_sites(self.site)
        if self.expire is not None and self.expire % UNIT_US["min"]:
            raise ValueError(f"expire = {self.expire / 1e6:g}s: expected whole minutes, such as 90min, 36h or 7d")
        self._check_speed()
        _check_frame("counters.claim", dict.fromkeys(self.counters.claim, str(-(10**12))))
        _check_frame("counters.discard", dict.fromkeys(self.counters.discard, str(-(10**12))))
        _check_frame("metadata", {name: _longest(values) for name, values in self.metadata.items()})

    def _check_speed(self) -> None:
        """Check that cobblestones come with a speed of hosts."""
        numbers = {
            f"counters.{how}.{name}": number
            for how in ("claim", "discard")
            for name, number in getattr(self.counters, how).items()
        }
        numbers["credits.claim"] = getattr(self.credits, "claim", None)
        for place, number in numbers.items():
            if isinstance(number, Cobblestones) and self.volunteers.speed is None:
                raise ValueError(
                    f'{place}: cobblestones need the hosts\' speed: add volunteers.speed, such as {{ model = "lhc" }}'
                )


class Generated(Section, frozen=True):
    """A scenario whose workload a Python file makes."""

    name: Text
    description: str
    generator: Text
    seed: Seed = 1
    faults: Faults = field(default_factory=list)

    def __post_init__(self) -> None:
        _check_faults(self.faults)


Status = Literal["completed", "failed", "cancelled", "unknown"]
FieldName = Literal["user", "group", "account", "executable", "queue", "partition"]
ColumnName = Literal[
    "job", "submit", "start", "end", "run_time", "status", "exit_code", "user", "machine", "owner",
    "group", "account", "executable", "queue", "partition",
]  # fmt: skip
Format = Literal["swf", "sacct", "jobcomp", "condor_log", "condor_history", "table"]
"""The files of `cpsim.scenario.formats.job_logs` (test)."""
SkipBad = Annotated[int, Meta(ge=0, le=10**9, description="a whole number from 0 up")]


SlotPattern = Annotated[
    str,
    Meta(
        pattern=r"^[^{},=\s\x00-\x1f\x7f]{0,60}\{job\}[^{},=\s\x00-\x1f\x7f]{0,60}$(?!\n)",
        description="a text with {job} in it, such as {job} or slurm-{job}",
    ),
]


class TimeColumn(Section, frozen=True):
    """A column of times or durations that are numbers of a unit."""

    name: str
    unit: Literal["s", "ms", "us", "ns"] = "s"


class Log(Section, frozen=True):
    """How a job log becomes slots.

    Attributes:
        file: the log, beside the scenario file.
        format: one of those in `cpsim.scenario.formats.job_logs`; None tells it by the file's name and content.
        columns: of a table, the name of each column that counts; without it a column has the name of what it is.
        statuses: of a table, what the texts in its column of statuses mean.
        delimiter: of a table that is CSV.
        timezone: whose clocks show the log's times, where these have no offset.
        skip_bad: most bad rows that are skipped.
        since, until: the jobs submitted from then on, and before then: a time, or a duration since the first one.
        jobs: the first so many of these; None takes all.
        outcome: by a job's status: "claim", "never", or the reason of a discard; others stay as in `OUTCOMES`.
        credits: what a claim asks for: a number, or the run time in whole seconds.
        run_time_scale: run times are multiplied by it.
        machines: how many; as many as the log's nodes without it.
        machine: which of them runs a job: one of its user's "own", "any", or the "node" that the log names; None is
            "node" where the log says whose a machine is, else "own".
        projects: the field of the log that says which project a job is of; each is a site of its own. One without it.
        slot: the ids of slots, with the job's in place of {job}; None gives them ids that no earlier run has used.
    """

    file: Text
    format: Format | None = None
    columns: dict[ColumnName, str | TimeColumn] = field(default_factory=dict)
    statuses: dict[str, Status] = field(default_factory=dict)
    delimiter: Annotated[str, Meta(min_length=1, max_length=1, description="a single character")] = ","
    timezone: str = "UTC"
    skip_bad: SkipBad = 0
    since: str | None = None
    until: str | None = None
    jobs: Jobs | None = None
    outcome: dict[Status, Text] = field(default_factory=dict)
    credits: Credits | RunTime = 1
    run_time_scale: Mean = 1.0
    machines: Machines | None = None
    machine: Annotated[Literal["own", "any", "node"], Meta(description='"own", "any" or "node"')] | None = None
    projects: FieldName | None = None
    slot: SlotPattern | None = None


OUTCOMES: Final[dict[Status, str]] = {
    "completed": "claim",
    "unknown": "claim",
    "failed": "failed",
    "cancelled": "cancelled",
}


class Logged(Section, frozen=True):
    """A scenario that a job log tells."""

    name: Text
    description: str
    log: Log
    seed: Seed = 1
    faults: Faults = field(default_factory=list)
    verdict: Ruling = "valid"

    def __post_init__(self) -> None:
        _check_faults(self.faults)


def _check_sites(sites: list[Site]) -> None:
    if sites and not any(site.share for site in sites):
        raise ValueError("site: all have the share 0: give one of them a share")
    if len(sites) > MOST_SITES:
        raise ValueError(f"site: {len(sites)} of them, and {MOST_SITES} can be: each is a daemon of its own")
    spelt: dict[str, str] = {}
    for index, site in enumerate(sites):
        other = spelt.setdefault(site.project.lower(), site.project)
        if other != site.project:
            raise ValueError(f'site[{index}]: project = "{site.project}" and "{other}" are one: case does not count')


def _check_faults(texts: list[str]) -> None:
    for index, text in enumerate(texts):
        try:
            Fault.parse(text)
        except CpsimError as error:
            raise ValueError(f"faults[{index}]: {error}") from None


def _check_frame(place: str, values: dict[str, str]) -> None:
    size = len("counters,slot=") + SLOT_ID_CHARACTERS
    size += sum(len(f",{name}={value}".encode()) for name, value in values.items())
    if size > MAX_FRAME_BYTES:
        raise ValueError(
            f"{place}: makes a frame of up to {size:,} bytes, and a daemon reads {MAX_FRAME_BYTES:,}: "
            "give fewer or shorter names and texts"
        )


def _longest(values: list[str] | FromFaker) -> str:
    if isinstance(values, FromFaker):
        return "x" * identities.MAX_CHOICE_CHARACTERS
    return max(values, key=lambda value: len(value.encode()))

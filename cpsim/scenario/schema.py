"""A scenario file: its sections as types, and mistakes in it told precisely.

The types below are the format; `scenarios/README.md` explains it key by key.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Final, Self

from msgspec import Meta, Struct

from cpdaemon.commands import MAX_FRAME_BYTES
from cpsim import tables
from cpsim.errors import Problem
from cpsim.faults import Fault
from cpsim.scenario import identities

SLOT_ID_CHARACTERS: Final = 100
"""How long a slot id may become at replay without a frame growing too large."""

_UNIT_US: Final = {"ms": 1_000, "s": 1_000_000, "min": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_LONGEST_US: Final = 3_650 * _UNIT_US["d"]
_NO_FRAME: Final = r",=\x00-\x1f\x7f-\x9f"
_TEXT: Final = rf"[^\s{_NO_FRAME}]([^{_NO_FRAME}]*[^\s{_NO_FRAME}])?$(?!\n)"


_DURATION: Final = "a time with its unit, up to 3650d, such as 500ms, 90s, 5min, 8h or 1d"


class ScenarioError(Problem, ValueError):
    """A mistake in a scenario or a job log: names the file, the place, the value and what is allowed."""


class Duration(int):
    """A length of time in microseconds, written as a number and a unit, such as "90s" or "1.5h"."""

    def __new__(cls, text: str) -> Self:
        """Read "90s", "5min", "8h", "1d".

        Raises:
            ValueError: it is something else, or nothing, or above ten years.
        """
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(ms|s|min|h|d)", text) if isinstance(text, str) else None
        time_us = round(float(found[1]) * _UNIT_US[found[2]]) if found else 0
        if not 0 < time_us <= _LONGEST_US:
            raise ValueError(f"expected {_DURATION}")
        return super().__new__(cls, time_us)


Time = Annotated[Duration, Meta(description=_DURATION)]
Text = Annotated[
    str, Meta(pattern="^" + _TEXT, description="text without , = or control characters, nor white space around it")
]
Name = Annotated[
    str,
    Meta(
        pattern=f"^(?![sS][lL][oO][tT]$){_TEXT}",
        description="a name without , = or control characters, nor white space around it, other than slot",
    ),
]
Share = Annotated[float, Meta(ge=0, le=1, description="a number from 0 to 1")]
Hour = Annotated[float, Meta(ge=0, lt=24, description="an hour of the day, from 0 to below 24")]
Sigma = Annotated[float, Meta(ge=0, le=10, description="a number from 0 to 10")]
Shape = Annotated[float, Meta(ge=0.1, le=100, description="a number from 0.1 to 100")]
Mean = Annotated[float, Meta(gt=0, le=1e9, description="a number above 0, up to 1,000,000,000")]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1, description="a whole number from 0 up, below 2**63")]
Machines = Annotated[int, Meta(ge=1, le=10_000_000, description="a whole number from 1 to 10,000,000")]
Users = Annotated[int, Meta(ge=0, le=10_000_000, description="a whole number from 0 to 10,000,000")]
Jobs = Annotated[int, Meta(ge=1, le=100_000_000, description="a whole number from 1 to 100,000,000")]
Whole = Annotated[int, Meta(ge=-(10**12), le=10**12, description="a whole number within 10**12 of 0")]
Credits = Annotated[int, Meta(ge=0, le=10**12, description="a whole number from 0 to 10**12")]


class _Section(Struct, frozen=True, forbid_unknown_fields=True): ...


class _Model(_Section, frozen=True, tag_field="model"): ...


class Population(_Section, frozen=True):
    """Who computes: `linked` is the share of machines that belong to a user."""

    machines: Machines
    users: Users
    linked: Share = 1.0

    def __post_init__(self) -> None:
        if self.linked and not self.users:
            raise ValueError(f"linked = {self.linked:g} needs at least one user: raise users, or set linked = 0")


class ConstantArrivals(_Model, frozen=True, tag="constant"):
    """Evenly spaced."""

    jobs: Jobs


class PoissonArrivals(_Model, frozen=True, tag="poisson"):
    """At random, at an even rate."""

    jobs: Jobs


class DiurnalArrivals(_Model, frozen=True, tag="diurnal"):
    """At random, at a rate that follows the time of day."""

    jobs: Jobs
    peak_hour: Hour
    amplitude: Share


class ConstantTime(_Model, frozen=True, tag="constant"):
    """All jobs run equally long."""

    value: Time


class LognormalTime(_Model, frozen=True, tag="lognormal"):
    """`sigma` is the standard deviation of the natural logarithm."""

    median: Time
    sigma: Sigma
    max: Time = Duration("365d")


class WeibullTime(_Model, frozen=True, tag="weibull"):
    """`shape` below 1 has a heavy tail, 1 is exponential with mean `scale`."""

    scale: Time
    shape: Shape
    max: Time = Duration("365d")


class Uniform(_Model, frozen=True, tag="uniform"):
    """Whole numbers from `low` to `high`, all equally likely."""

    low: Whole
    high: Whole

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low = {self.low} is above high = {self.high}: swap them")


class Poisson(_Model, frozen=True, tag="poisson"):
    """Counts of rare events."""

    mean: Mean


class RunTime(_Model, frozen=True, tag="run_time"):
    """The job's run time in whole seconds."""


Arrivals = ConstantArrivals | PoissonArrivals | DiurnalArrivals
RunTimes = ConstantTime | LognormalTime | WeibullTime
Number = Whole | Uniform | Poisson | RunTime


class Outcome(_Section, frozen=True):
    """How jobs end, as shares of 1: claimed, discarded (by reason), or never heard of again."""

    claim: Share = 0.0
    never: Share = 0.0
    discard: dict[Text, Share] = {}

    def __post_init__(self) -> None:
        total = self.claim + self.never + sum(self.discard.values())
        if abs(total - 1) > 1e-9:
            raise ValueError(f"the shares (claim, never, discard) sum to {total:.6g}, and must sum to 1")


class _Policy(_Section, frozen=True, tag_field="policy"): ...


class FixedCredits(_Policy, frozen=True, tag="fixed"):
    """The allocation says what the slot grants."""

    credits: Credits


class RangeCredits(_Policy, frozen=True, tag="range"):
    """The allocation limits what the claim asks for to `min`, `max` or both."""

    min: Credits | None = None
    max: Credits | None = None
    claim: Number | None = None

    def __post_init__(self) -> None:
        if self.min is None and self.max is None:
            raise ValueError("a range needs min or max, or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min = {self.min} is above max = {self.max}: swap them")
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


class Counters(_Section, frozen=True):
    """What is counted just before a slot is settled, by how it is settled."""

    claim: dict[Name, Number] = {}
    discard: dict[Name, Number] = {}


class FromFaker(_Section, frozen=True):
    """Values drawn from a provider of Faker."""

    faker: str

    def __post_init__(self) -> None:
        known = identities.providers()
        if self.faker not in known:
            raise ValueError(f'faker = "{self.faker}" is no provider of Faker{tables.suggestion(self.faker, known)}')


Choices = Annotated[list[Text], Meta(min_length=1, description="a list of at least one text")]


class Scenario(_Section, frozen=True):
    """What should happen.

    Attributes:
        name: of the file, unless it says otherwise.
        description: what it is for.
        duration: time within which jobs arrive; their work may end later.
        seed: used unless another is given.
        expire: how long a slot stays allocated, in whole minutes; None leaves it to the server.
        faults: what goes wrong meanwhile, as `cpsim faults` has it; times in seconds since the replay began.
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
    credits: FixedCredits | RangeCredits | NoCredits = NoCredits()
    counters: Counters = Counters()
    metadata: dict[Name, Choices | FromFaker] = {}
    faults: Annotated[list[str], Meta(description="a list of faults; see cpsim faults")] = []

    def __post_init__(self) -> None:
        _check_faults(self.faults)
        if self.expire is not None and self.expire % _UNIT_US["min"]:
            raise ValueError(f"expire = {self.expire / 1e6:g}s: expected whole minutes, such as 90min, 36h or 7d")
        _check_frame("counters.claim", dict.fromkeys(self.counters.claim, str(-(10**12))))
        _check_frame("counters.discard", dict.fromkeys(self.counters.discard, str(-(10**12))))
        _check_frame("metadata", {name: _longest(values) for name, values in self.metadata.items()})


def _check_faults(texts: list[str]) -> None:
    for index, text in enumerate(texts):
        try:
            Fault.parse(text)
        except Problem as problem:
            raise ValueError(f"faults[{index}]: {problem}") from None


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


def load(path: Path) -> Scenario:
    """Read a scenario file.

    Raises:
        ScenarioError: it has a mistake.
        OSError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path}: not UTF-8 text: {error}") from error
    return parse(text, str(path))


def parse(text: str, source: str) -> Scenario:
    """Read the text of a scenario file.

    Args:
        text: TOML.
        source: its path, for messages and for the scenario's name.

    Raises:
        ScenarioError: it has a mistake.
    """
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{source}: not TOML: {error}") from error
    tree.setdefault("name", safe_name(Path(source)))
    try:
        return tables.convert(tree, Scenario)
    except ValueError as error:
        raise ScenarioError(f"{source}: {error}") from error


def safe_name(path: Path) -> str:
    """A file's name as it may begin the ids of slots."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.name.removesuffix(".gz").rpartition(".")[0]) or "scenario"

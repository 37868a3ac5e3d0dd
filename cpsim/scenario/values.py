"""Basic types of scenario files: times, texts, numbers and tables."""

from __future__ import annotations

import re
from typing import Annotated, Final, Self

from msgspec import Meta, Struct

from cpsim.errors import CpsimError, UsageError

UNIT_US: Final = {"ms": 1_000, "s": 1_000_000, "min": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
LONGEST_US: Final = 3_650 * UNIT_US["d"]
_NO_FRAME: Final = r",=\x00-\x1f\x7f-\x9f"
TEXT_PATTERN: Final = rf"[^\s{_NO_FRAME}]([^{_NO_FRAME}]*[^\s{_NO_FRAME}])?$(?!\n)"


_DURATION: Final = "a time with its unit, up to 3650d, such as 500ms, 90s, 5min, 8h or 1d"


class ScenarioError(CpsimError, ValueError):
    """An error in a scenario or a job log; the message names the file, the place, the value and what is allowed."""


class SettingError(ScenarioError, UsageError):
    """A setting is no KEY=VALUE, or the file has no keys to set."""


class Duration(int):
    """A length of time in microseconds, written as a number and a unit, such as "90s" or "1.5h"."""

    def __new__(cls, text: str) -> Self:
        """Read "90s", "5min", "8h", "1d".

        Raises:
            ValueError: the text has another form, or the time is 0 or above ten years.
        """
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(ms|s|min|h|d)", text) if isinstance(text, str) else None
        time_us = float(found[1]) * UNIT_US[found[2]] if found else 0.0
        if not 0.5 < time_us <= LONGEST_US:  # so that it is not rounded to 0
            raise ValueError(f"expected {_DURATION}")
        return super().__new__(cls, round(time_us))


Time = Annotated[Duration, Meta(description=_DURATION)]
Text = Annotated[
    str,
    Meta(pattern="^" + TEXT_PATTERN, description="text without , = or control characters, nor white space around it"),
]
Name = Annotated[
    str,
    Meta(
        pattern=f"^(?![sS][lL][oO][tT]$){TEXT_PATTERN}",
        description="a name without , = or control characters, nor white space around it, other than slot",
    ),
]
Share = Annotated[float, Meta(ge=0, le=1, description="a number from 0 to 1")]
Hour = Annotated[float, Meta(ge=0, lt=24, description="an hour of the day, from 0 to below 24")]
Sigma = Annotated[float, Meta(ge=0, le=10, description="a number from 0 to 10")]
Shape = Annotated[float, Meta(ge=0.1, le=100, description="a number from 0.1 to 100")]
Weight = Annotated[float, Meta(ge=0, le=1e9, description="a number from 0 to 1,000,000,000")]
Mean = Annotated[float, Meta(gt=0, le=1e9, description="a number above 0, up to 1,000,000,000")]
LogTime = Annotated[float, Meta(ge=0.01, le=10_000, description="a number from 0.01 to 10,000")]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1, description="a whole number from 0 up, below 2**63")]
Machines = Annotated[int, Meta(ge=1, le=10_000_000, description="a whole number from 1 to 10,000,000")]
Users = Annotated[int, Meta(ge=0, le=10_000_000, description="a whole number from 0 to 10,000,000")]
Jobs = Annotated[int, Meta(ge=1, le=100_000_000, description="a whole number from 1 to 100,000,000")]
Whole = Annotated[int, Meta(ge=-(10**12), le=10**12, description="a whole number within 10**12 of 0")]
Credits = Annotated[int, Meta(ge=0, le=10**12, description="a whole number from 0 to 10**12")]


class Section(Struct, frozen=True, forbid_unknown_fields=True):
    """A table of a scenario file."""


class Model(Section, frozen=True, tag_field="model"):
    """A table whose `model` says which keys it has."""

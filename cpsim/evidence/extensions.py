"""What other packages add by entry points: checkers, metrics and columns.

- `cpsim.checkers`: a class, called without arguments, that makes a `cpsim.judge.judge.Checker`.
- `cpsim.metrics`: a function of the evidence that returns a number, or None. Its name is that of the metric.
- `cpsim.columns`: a function of the evidence and some of its records that returns an Arrow array, with a value for each
  record. Its name is that of the column in `journal.parquet`.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from typing import TYPE_CHECKING, Any, Final

from cpsim.errors import CpsimError, in_one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from cpsim.evidence.evidence import Evidence

    Metric = Callable[[Evidence], float | None]
    Column = Callable[[Evidence, npt.NDArray[np.void]], pa.Array]

CHECKERS: Final = "cpsim.checkers"
METRICS: Final = "cpsim.metrics"
COLUMNS: Final = "cpsim.columns"


def installed(group: str) -> dict[str, Any]:
    """What the entry points of a group name, in the order of their names.

    Raises:
        CpsimError: one cannot be loaded.
    """
    found = {}
    for point in sorted(_points(tuple(sys.path))[group], key=lambda point: point.name):
        try:
            found[point.name] = point.load()
        except Exception as error:
            raise CpsimError(
                f"{point.name} of {group} cannot be loaded from {point.value}: {in_one_line(error)}"
            ) from error
    return found


@cache
def _points(_path: tuple[str, ...]) -> dict[str, EntryPoints]:
    """Those of each group. All distributions of the search path are read for it, which may be hundreds: once."""
    found = entry_points()
    return {group: found.select(group=group) for group in (CHECKERS, METRICS, COLUMNS)}


def check() -> None:
    """Load all of them, before a run that would miss them at its end.

    Raises:
        CpsimError: one cannot be loaded.
    """
    for group in (CHECKERS, METRICS, COLUMNS):
        installed(group)

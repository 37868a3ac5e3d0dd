"""Optional libraries, by the extra that installs them."""

from __future__ import annotations

import importlib.util
from typing import Final

from cpsim.errors import CpsimError

DISTRIBUTION: Final = "creditpiggy-sim"
"""Its name in pip."""
_RUN: Final = ("faker", "numpy", "pyarrow")
EXTRAS: Final = {
    "run": _RUN,
    "load": (*_RUN, "locust", "psutil"),
    "report": (*_RUN, "duckdb", "openpyxl", "pandas"),
    "sql": (*_RUN, "sqlalchemy"),
    "dask": (*_RUN, "distributed"),
    "test": ("hypothesis", "pytest"),
}
"""The libraries of each extra, by their names in pip, which are those of their modules."""


class MissingExtra(CpsimError, ModuleNotFoundError):
    """Libraries of an extra are missing; the message names them and the pip command."""


def require(extra: str, what: str) -> None:
    """Check that the libraries of an extra are installed, without importing them.

    Args:
        extra: a name from `EXTRAS`.
        what: the feature that needs it, for the message.

    Raises:
        MissingExtra: at least one is not installed.
    """
    missing = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if missing:
        listed = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
        raise MissingExtra(f"{what} needs {listed}: pip install '{DISTRIBUTION}[{extra}]'")

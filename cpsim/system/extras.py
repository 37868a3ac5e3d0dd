"""The libraries that an installation may leave out, by the extra that brings them."""

from __future__ import annotations

import importlib.util
from typing import Final

from cpsim.errors import CpsimError

DISTRIBUTION: Final = "creditpiggy-sim"
"""What pip installs."""
_RUN: Final = ("faker", "hdrhistogram", "numpy", "pyarrow")
EXTRAS: Final = {
    "run": _RUN,
    "load": (*_RUN, "locust", "psutil"),
    "report": (*_RUN, "duckdb", "openpyxl", "pandas"),
    "test": ("hypothesis", "pytest"),
}
"""The libraries of each extra, by the names that pip knows."""
_MODULES: Final = {"hdrhistogram": "hdrh"}
"""What is imported, where that has another name."""


class MissingExtra(CpsimError, ModuleNotFoundError):
    """Libraries of an extra are not installed; the message names them, and what to type."""


def require(extra: str, what: str) -> None:
    """Find the libraries of an extra, without importing them.

    Args:
        extra: its name, as in `EXTRAS`.
        what: what needs it, for the message.

    Raises:
        MissingExtra: at least one is not installed.
    """
    missing = [name for name in EXTRAS[extra] if importlib.util.find_spec(_MODULES.get(name, name)) is None]
    if missing:
        listed = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
        raise MissingExtra(f"{what} needs {listed}: pip install '{DISTRIBUTION}[{extra}]'")

"""Settings of a process that serves or measures: garbage collection, thread switching, open files."""

from __future__ import annotations

import gc
import resource
import sys
from contextlib import contextmanager, suppress
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

GARBAGE_THRESHOLD: Final = 200_000
"""A ledger is millions of objects without cycles: more frequent collection wastes time."""
FILE_LIMITS: Final = (65_536, 10_240)
"""Requested limits of open files, in order; macOS grants only the second."""

SWITCH_INTERVAL_S: Final = 0.0005
"""Time after which a thread that draws progress yields the interpreter to the one that measures."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """Shorten pauses by the garbage collector and by other threads while the context lasts."""
    thresholds, interval_s = gc.get_threshold(), sys.getswitchinterval()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(interval_s)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def tune_process() -> None:
    """Freeze existing objects for the garbage collector, and raise the limit of open files."""
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in FILE_LIMITS:
        if soft != resource.RLIM_INFINITY and soft < wanted and (hard == resource.RLIM_INFINITY or wanted <= hard):
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                return


class _WithoutPandas(MetaPathFinder):
    """Finds no pandas."""

    def find_spec(self, name: str, _path: object, _target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name=name)


def do_without_pandas() -> None:
    """Keep pyarrow from importing pandas, which takes half a second, to see whether it is given anything of pandas'."""
    sys.meta_path.insert(0, _WithoutPandas())


def prepare_arrow() -> None:
    """Have pyarrow look for pandas now, in vain. Needs the extra "run".

    At its first array it would import pandas, which takes half a second; who needs pandas imports it as ever, and
    pyarrow does where it makes a frame.
    """
    import pyarrow as pa  # noqa: PLC0415 - slow to import

    finder = _WithoutPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([])
    finally:
        sys.meta_path.remove(finder)

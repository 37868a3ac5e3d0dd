"""A workload from a user's Python file.

The file has a function `workload(seed)` that returns a `Workload`, or a function `commands(seed)` that yields pairs of
a time in seconds and a command of `cpdaemon`. The seed, a whole number, should determine all random values.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import sys
import traceback
from typing import TYPE_CHECKING, Any, Final

from cpdaemon.commands import Command
from cpsim.errors import reason
from cpsim.scenario.formats.trace import of_calls
from cpsim.scenario.source import safe_name
from cpsim.scenario.values import ScenarioError
from cpsim.scenario.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from cpsim.scenario.formats.trace import Call

LONGEST_S: Final = 1e9
FUNCTIONS: Final = "a function workload(seed) that returns a Workload, or commands(seed) that yields (seconds, command)"


def load(path: Path, seed: int, name: str | None = None) -> Workload:
    """Run a Python file's function.

    Args:
        path: the file.
        seed: argument of the function.
        name: prefix of slot ids; None takes the file's name.

    Raises:
        ScenarioError: the file cannot be loaded, raises, or returns something else.
        OSError: it cannot be read.
    """
    name = safe_name(path) if name is None else name
    module = _module(path)
    whole, one_by_one = (getattr(module, function, None) for function in ("workload", "commands"))
    if callable(whole):
        made = _call(path, "workload", lambda: whole(seed))
        if not isinstance(made, Workload):
            raise ScenarioError(f"{path}: workload({seed}) returned {_shown(made)}: expected a Workload")
        return made
    if not callable(one_by_one):
        raise ScenarioError(f"{path}: no function workload or commands: expected {FUNCTIONS}")
    calls = _call(path, "commands", lambda: list(_calls(path, one_by_one(seed))))
    if not calls:
        raise ScenarioError(f"{path}: commands({seed}) yielded nothing: expected (seconds, command), at least once")
    return of_calls(name, seed, calls)


def _module(path: Path) -> object:
    path.read_bytes()  # an OSError names the file
    specification = importlib.util.spec_from_file_location("_cpsim_generator", path)
    if specification is None or specification.loader is None:
        raise ScenarioError(f"{path}: not a Python file: expected {FUNCTIONS}")
    module = importlib.util.module_from_spec(specification)
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        _call(path, "", functools.partial(specification.loader.exec_module, module))
    finally:
        sys.dont_write_bytecode = written
    return module


def _call(path: Path, function: str, call: Any) -> Any:  # noqa: ANN401 - whatever a user's function returns
    """Call a user's code; an exception becomes a ScenarioError with its place."""
    try:
        return call()
    except ScenarioError:
        raise
    except Exception as error:
        file = str(path.absolute())
        own = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        line = own[-1] if own else getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        during = f"{function}: " if function else ""
        raise ScenarioError(f"{path}{where}: {during}{type(error).__name__}: {reason(error)}") from error


def _calls(path: Path, pairs: Iterable[object]) -> Iterator[Call]:
    for number, pair in enumerate(pairs, 1):
        match pair:
            case (int() | float() as time_s, Command() as command) if 0 <= time_s <= LONGEST_S and math.isfinite(
                time_s
            ):
                arguments = dict(command.arguments())
                slot = str(arguments.pop("slot"))
                yield round(time_s * 1e6), command.kind, slot, arguments
            case _:
                raise ScenarioError(
                    f"{path}: commands yielded {_shown(pair)} as number {number}: expected (seconds, command), the "
                    "seconds from 0 up, the command one of cpdaemon's, such as Alloc('job-1')"
                )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"

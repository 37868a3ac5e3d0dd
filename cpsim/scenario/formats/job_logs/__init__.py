"""One file a format of job logs. A class here is found by its file."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from cpsim.scenario.formats.job_format import JobFormat
from cpsim.scenario.formats.job_log import JobLog
from cpsim.scenario.schema import Log
from cpsim.scenario.values import ScenarioError

if TYPE_CHECKING:
    from pathlib import Path

    from cpsim.scenario.formats.jobs import Jobs


def found() -> dict[str, type[JobFormat]]:
    """The formats of this folder, by name, in the order of their files."""
    modules = {module.name: import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)}
    return {
        name: made
        for name, module in modules.items()
        for made in vars(module).values()
        if isinstance(made, type) and issubclass(made, JobFormat) and made.__module__ == module.__name__
    }


def format_of(path: Path, log: Log | None = None) -> type[JobFormat] | None:
    """The format of a file; None if it has none of these.

    Raises:
        ScenarioError: it is compressed, and damaged.
        OSError: it cannot be read.
    """
    formats = found()
    if log is not None and log.format is not None:
        return formats[log.format]
    name = path.name.lower().removesuffix(".gz")
    named = next((made for made in formats.values() if name.endswith(made.suffixes)), None)
    if named is not None and not named.doubted:
        return named
    head = JobLog(path, log or Log(file=str(path))).head()
    return next((made for made in formats.values() if made.recognises(head)), named)


def is_sure(path: Path) -> bool:
    """Whether a file has one of these formats, and is no other table."""
    made = format_of(path)
    return made is not None and not made.doubted


def read(path: Path, log: Log, *, needs_times: bool = True) -> tuple[Jobs, list[str]]:
    """The jobs of a log, and sentences on what was odd.

    Args:
        path: the file.
        log: how it is read.
        needs_times: whether a job without times is an error.

    Raises:
        ScenarioError: it has none of the formats; more rows are bad than may be; there is no job; or the compressed
            file is damaged.
        OSError: it cannot be read.
    """
    made = format_of(path, log)
    if made is None:
        raise ScenarioError(f"{path}: no job log that is known: expected {known()}; its format can be given in [log]")
    file = JobLog(path, log, needs_times=needs_times)
    jobs = made(file).read()
    file.ended()
    return jobs, file.notes


def known() -> str:
    """What can be read, in words."""
    *others, last = (made.what for made in found().values())
    return f"{', '.join(others)} or {last}"

"""Formatting of values, for people and for files."""

from __future__ import annotations

import datetime as dt
import math
import re
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

UNITS: Final = {"at": "", "ms": ", ms", "percent": ", %", "s": ", s"}
"""What becomes of the ends of columns' names."""
PERCENTILE: Final = re.compile(r"p\d")


def records(frame: pd.DataFrame) -> Iterator[list[Any]]:
    """The rows of a frame as plain values: text, int, float, bool, aware datetime, or None where there is nothing."""
    columns = [[_plain(value) for value in frame[name].array] for name in frame.columns]
    return map(list, zip(*columns, strict=True)) if columns else iter(())


def texts(frame: pd.DataFrame) -> Iterator[list[str]]:
    """The rows of a frame as people read them; the times of a column to what the finest of them tells."""
    columns = [_texts([_plain(value) for value in frame[name].array]) for name in frame.columns]
    return map(list, zip(*columns, strict=True)) if columns else iter(())


def machine_text(value: object) -> str:
    """A value as files have it: no grouping of digits, a point before decimals, times as ISO 8601 with their offset."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dt.datetime):
        return value.isoformat(timespec="microseconds" if value.microsecond else "seconds")
    return str(value)


def human_text(value: object) -> str:
    """A value as people read it: digits in groups of three, few decimals, times to what they tell."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        size = abs(value)
        return f"{value:,.0f}" if size >= 1000 else f"{value:.2f}" if size >= 0.1 or not size else f"{value:.3g}"
    return _time_text(value) if isinstance(value, dt.datetime) else str(value)


def is_numeric(frame: pd.DataFrame, column: str) -> bool:
    """Whether a column holds numbers."""
    kind = frame[column].dtype
    return pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind)


def shown(frame: pd.DataFrame, projects: Sequence[str]) -> pd.DataFrame:
    """A frame without its column of projects if there is one project."""
    spare = "project" in frame and len(projects) <= 1 and len(frame.columns) > 1
    return frame.drop(columns="project") if spare else frame


def page_heading(column: str) -> str:
    """The heading of a column on a page: `start_at` is "Start", `p99_s` "p99, s", `period_slots` "Slots in period"."""
    if column.startswith("period_"):
        column = f"{column.removeprefix('period_')} in period"
    name, _, last = column.rpartition("_")
    if name and last in UNITS:
        column = f"{name}{UNITS[last]}"
    words = column.replace("_", " ")
    return words if PERCENTILE.match(words) else words[:1].upper() + words[1:]


def heading(column: str) -> str:
    """The heading of a column."""
    return column.replace("_", " ")


def _texts(values: list[Any]) -> list[str]:
    """Values of a column as people read them."""
    times = [value for value in values if isinstance(value, dt.datetime)]
    if not times or all(moment.time() == dt.time() for moment in times):
        return [human_text(value) for value in values]
    has_fractions = any(moment.microsecond for moment in times)
    return [
        f"{value:%Y-%m-%d %H:%M:%S}" + (f".{value.microsecond // 1000:03}" if has_fractions else "")
        if isinstance(value, dt.datetime)
        else human_text(value)
        for value in values
    ]


def _time_text(moment: dt.datetime) -> str:
    if moment.time() == dt.time():
        return f"{moment:%Y-%m-%d}"
    fraction = f".{moment.microsecond // 1000:03}" if moment.microsecond else ""
    return f"{moment:%Y-%m-%d %H:%M:%S}{fraction}"


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever a report's author put there
    if isinstance(value, list | dict | set | tuple):
        return str(value)
    if value is None or pd.isna(value):
        return None
    if isinstance(value, pd.Timestamp):
        return value.to_pydatetime(warn=False)
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, float) and not math.isfinite(plain):
        return None
    return plain if isinstance(plain, bool | int | float | str | dt.datetime) else str(plain)

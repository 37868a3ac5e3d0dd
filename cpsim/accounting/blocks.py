"""What a report is made of: tables, figures and sentences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

Kind = Literal["line", "area", "bars", "stacked", "ranking"]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows and columns.

    Attributes:
        title: what they are.
        frame: one row per what the title says, with units last in the columns' names; its index is not shown.
        note: what a reader must know to read it right, in a sentence or two.
    """

    title: str
    frame: pd.DataFrame
    note: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart, and the table it is drawn from, which is shown beside it.

    Attributes:
        title: what it shows.
        frame: its table.
        kind: "line" or "area" over `x`; "bars" or "stacked" for each `x`; "ranking", bars that lie.
        x: the column of times, numbers or names.
        y: the columns of numbers.
        note: as of a table.
    """

    title: str
    frame: pd.DataFrame
    kind: Kind
    x: str
    y: Sequence[str]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence of its own; a warning is shown as such."""

    text: str
    warning: bool = False


Block = Table | Figure | Note


@dataclass(frozen=True, slots=True)
class Report:
    """A report that was made: its name, its title, and its blocks."""

    name: str
    title: str
    blocks: list[Block] = field(default_factory=list)

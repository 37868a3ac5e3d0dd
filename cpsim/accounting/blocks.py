"""What a report is made of: tables, figures and sentences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

Kind = Literal["line", "area", "bars", "stacked", "ranking"]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows and columns.

    Attributes:
        title: what they are.
        frame: one row per what the title says, with units last in the columns' names; its index is not shown.
        note: what a reader must know to read it right, in a sentence or two.
        sums: the columns that break a figure down, each with the name of that figure: a column of `Accounts.projects`
            ("against.COLUMN": of the accounts compared with), or "TITLE: COLUMN" of the same report. Their rows add up
            to it, project by project where there is a column of projects. None where rows are no breakdown, such as
            those of a list of the leading ones.
    """

    title: str
    frame: pd.DataFrame
    note: str = ""
    sums: Mapping[str, str] | None = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart, and the table it is drawn from, which is shown beside it.

    Attributes:
        title: what it shows.
        frame: its table.
        kind: "line" or "area" over `x`; "bars" or "stacked" for each `x`; "ranking", bars that lie.
        x: the column of times, numbers or names.
        y: the columns of numbers.
        note, sums: as of a table.
    """

    title: str
    frame: pd.DataFrame
    kind: Kind
    x: str
    y: Sequence[str]
    note: str = ""
    sums: Mapping[str, str] | None = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence of its own; a warning is shown as such."""

    text: str
    warning: bool = False


Block = Table | Figure | Note


def first_of(shown: int, there: int, rest: str = "") -> str:
    """What a list leaves out, in a sentence for its note; nothing if it is whole.

    Args:
        shown: rows of the list.
        there: how many there are.
        rest: what the others have, such as "1,200 credits".
    """
    if shown >= there:
        return ""
    return f"The first {shown:,} of {there:,}{f'; the others have {rest}' if rest else ''}."


@dataclass(frozen=True, slots=True)
class Report:
    """A report that was made: its name, its title, and its blocks."""

    name: str
    title: str
    blocks: list[Block] = field(default_factory=list)

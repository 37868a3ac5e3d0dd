"""Blocks of reports: tables, figures and notes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from cpsim.errors import CpsimError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import pandas as pd

Kind = Literal["line", "area", "bars", "stacked", "ranking"]


@dataclass(frozen=True, slots=True)
class LongTable:
    """A table that is not in memory.

    Attributes:
        rows: how many there are.
        pieces: makes all of them, piece by piece; the index counts anew in each.
    """

    rows: int
    pieces: Callable[[], Iterator[pd.DataFrame]]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows and columns.

    Attributes:
        title: the title, which says what a row is.
        frame: the rows; units end the columns' names; the index is not shown.
        note: explanation for the reader, in a sentence or two.
        sums: the columns that break a figure down, each with the name of that figure: a column of `Accounts.projects`
            ("against.COLUMN": of the accounts compared with), or "TITLE: COLUMN" of the same report. Their rows add up
            to it, project by project where there is a column of projects. None where rows are no breakdown, such as
            those of a list of the leading ones.
        is_folded: whether the page shows and prints it only when somebody unfolds it.
        within: columns whose values name the row, of an earlier table of the report, that a row belongs to; the page
            shows it when somebody unfolds that row. Empty for a table of its own.
        whole: the whole table, where it is too long for `frame`, which then has the first rows; None elsewhere.
    """

    title: str
    frame: pd.DataFrame
    note: str = ""
    sums: Mapping[str, str] | None = field(default_factory=dict)
    is_folded: bool = False
    within: tuple[str, ...] = ()
    whole: LongTable | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart, shown beside its table.

    Attributes:
        title: the title.
        frame: the table.
        kind: "line" or "area" over `x`; "bars" or "stacked" for each `x`; "ranking", horizontal bars.
        x: the column of times, numbers or names.
        y: the columns of numbers.
        note, sums, within: as of a table.
    """

    title: str
    frame: pd.DataFrame
    kind: Kind
    x: str
    y: Sequence[str]
    note: str = ""
    sums: Mapping[str, str] | None = field(default_factory=dict)
    within: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence, which may be a warning."""

    text: str
    warning: bool = False


Block = Table | Figure | Note


def first_of(shown: int, there: int, rest: str = "") -> str:
    """A sentence for the note of a list: what the list leaves out; empty if it is complete.

    Args:
        shown: number of rows shown.
        there: number of rows in all.
        rest: total of the other rows, such as "1,200 credits".
    """
    if shown >= there:
        return ""
    return f"The first {shown:,} of {there:,}{f'; the others have {rest}' if rest else ''}."


@dataclass(frozen=True, slots=True)
class Report:
    """A report: name, title and blocks."""

    name: str
    title: str
    blocks: list[Block] = field(default_factory=list)


def row_count(block: Table | Figure) -> int:
    """How many rows there are, in `frame` or not."""
    return len(block.frame) if isinstance(block, Figure) or block.whole is None else block.whole.rows


def check_fits(reports: Sequence[Report]) -> None:
    """Raise CpsimError if a table is not in memory, for an output that has all rows of each and is made there."""
    for report in reports:
        for block in report.blocks:
            if isinstance(block, Table) and block.whole is not None:
                raise CpsimError(
                    f"{block.title}: too many rows for the memory that a report may take: {block.note} Allow more with "
                    "--memory MB, choose a shorter period with --since and --until, or write --format csv or parquet, "
                    "which take them piece by piece"
                )

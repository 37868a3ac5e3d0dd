"""Reports as an Excel workbook: a sheet of contents, and one for each table."""

from __future__ import annotations

import datetime as dt
import math
import re
from importlib.metadata import version
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Final
from zipfile import ZIP_DEFLATED, ZipFile

from openpyxl import Workbook
from openpyxl.cell import WriteOnlyCell
from openpyxl.styles import Alignment, Font
from openpyxl.utils import get_column_letter
from openpyxl.worksheet.hyperlink import Hyperlink
from openpyxl.writer.excel import ExcelWriter

from cpsim.accounting.blocks import Note, Table, check_fits
from cpsim.accounting.files import FORBIDDEN
from cpsim.accounting.screen import balance, notices
from cpsim.accounting.values import human_text, is_numeric, machine_text, page_heading, records
from cpsim.errors import CpsimError
from cpsim.system.replacing import replacing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd

    from cpsim.accounting.accounts import Accounts
    from cpsim.accounting.blocks import Figure, Report

MOST_ROWS: Final = 1_048_575
"""Rows of a sheet below its head."""
EXACT: Final = 10**15
"""Excel keeps fifteen digits; a longer number is written as text."""
FIRST_YEAR: Final = 1901
"""Excel's calendar begins in 1900, and has a 29 February in it; an earlier time is written as text."""
NAME_UNITS: Final = 31
"""The longest name of a sheet, in UTF-16 code units."""
MOST_OF_A_REPORT: Final = 15
"""A longer name of a report is in no name of a sheet."""
NOT_IN_NAMES: Final = re.compile(r"[\x00-\x1f\[\]:*?/\\\ufffe\uffff]")
FORMULA: Final = ("=", "+", "-", "@")
CONTENTS: Final = "Contents"
TAKEN: Final = (CONTENTS, "History")
"""Names that no table may have; the second is Excel's own."""
WIDTHS: Final = (9, 60)
NOTE_WIDTH: Final = 90
NOTE_LETTERS: Final = 105
"""Of a note, in a line: letters are narrower than the digits that a width counts."""
LINE_POINTS: Final = 15
FONT: Final = "Calibri"
MEASURED_ROWS: Final = 1_000
NO_TIME: Final = (1980, 1, 1, 0, 0, 0)


def write(accounts: Accounts, reports: Sequence[Report], path: Path) -> None:
    """Write a workbook, which has no time of its own. Ids are text, whatever they begin with: none becomes a formula.

    Raises:
        CpsimError: a table has more rows than a sheet can hold, or than the memory that it may take.
    """
    check_fits(reports)
    laws = Table("Conservation laws", accounts.checks)
    blocks = [("", laws), *_tables(reports)]
    names = sheet_names([(report, block.title) for report, block in blocks])
    book = Workbook(write_only=True)
    book.properties.creator = f"cpsim {version('creditpiggy-sim')}"
    book.properties.created = book.properties.modified = dt.datetime(*NO_TIME)  # noqa: DTZ001 - openpyxl takes naive ones
    contents = book.create_sheet(CONTENTS)
    longest = max(len(block.title) for _, block in blocks)
    for column, width in zip("ABC", (min(longest + 1, WIDTHS[1]), 12, NOTE_WIDTH), strict=True):
        contents.column_dimensions[column].width = width
    _fit_to_width(contents)
    rows = _contents(accounts, reports, [*zip(names, (block for _, block in blocks), strict=True)])
    for number, row in enumerate(rows, 1):
        lines = max((len(wrap(value, NOTE_LETTERS)) for value, style in row if value and style == "wrapped"), default=1)
        contents.row_dimensions[number].height = LINE_POINTS * lines if lines > 1 else None
        contents.append([None if value is None else _cell(contents, value, style) for value, style in row])
    for name, (_, block) in zip(names, blocks, strict=True):
        _write_table(book.create_sheet(name), block.frame, name, accounts.timezone.key)
    with replacing(path) as partial, _Archive(partial, "w", ZIP_DEFLATED) as archive:
        ExcelWriter(book, archive).save()


def sheet_names(tables: Sequence[tuple[str, str]]) -> list[str]:
    """A name for each table's sheet: its title, with its report where several tables have that title.

    A title that is too long is cut between two words, and ends in an ellipsis; names that would be the same, for which
    Excel does not tell upper from lower case, are numbered.

    Args:
        tables: report and title of each.
    """
    titles = [NOT_IN_NAMES.sub("-", title).strip("' ") or "Table" for _, title in tables]
    folded = [title.casefold() for title in titles]
    used = {name.casefold() for name in TAKEN}
    names = []
    for (report, _), title in zip(tables, titles, strict=True):
        shared = 0 < _units(report) <= MOST_OF_A_REPORT and folded.count(title.casefold()) > 1
        end = f" ({NOT_IN_NAMES.sub('-', report)})" if shared else ""
        name, number = _shortened(title, end), 1
        while name.casefold() in used:
            number += 1
            name = _shortened(title, f"{end} {number}")
        used.add(name.casefold())
        names.append(name)
    return names


def _shortened(title: str, end: str) -> str:
    room = NAME_UNITS - _units(end)
    if _units(title) <= room:
        return title + end
    while _units(title) > room - 1:
        title = title[:-1]
    words, _, _ = title.rpartition(" ")
    return f"{words if len(words) > room / 2 else title}…{end}"


def _units(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def _tables(reports: Sequence[Report]) -> Iterator[tuple[str, Table | Figure]]:
    for report in reports:
        name = report.title.partition(":")[0]
        yield from ((name, block) for block in report.blocks if not isinstance(block, Note))


Row = list[tuple[Any, str]]
"""The values of a row's cells, each with how it is shown: "", "title", "bold", "wrapped", or "link SHEET"."""


def _contents(
    accounts: Accounts, reports: Sequence[Report], sheets: Sequence[tuple[str, Table | Figure]]
) -> Iterator[Row]:
    """What the accounts are of, whether they balance, and each report with a link to each of its tables."""

    def line(name: str, block: Table | Figure) -> Row:
        return [(block.title, f"link {name}"), (len(block.frame), ""), (block.note or None, "wrapped")]

    yield [(f"Credit of {', '.join(accounts.chosen) or accounts.source.name}", "title")]
    yield [(f"{accounts.source.kind[:1].upper()}{accounts.source.kind[1:]} {accounts.source.name}", "")]
    yield [(f"{accounts.period[:1].upper()}{accounts.period[1:]}", "")]
    yield from ([(sentence, "bold")] for sentence in (*notices(accounts), balance(accounts)))
    yield []
    yield [("Table", "bold"), ("Rows", "right"), ("Note", "bold")]
    rest = iter(sheets)
    yield line(*next(rest))
    for report in reports:
        yield []
        yield [(report.title, "bold")]
        for block in report.blocks:
            yield [(block.text, "")] if isinstance(block, Note) else line(*next(rest))


def _write_table(sheet: Any, frame: pd.DataFrame, name: str, zone: str) -> None:  # noqa: ANN401 - openpyxl has no types
    if len(frame) > MOST_ROWS:
        raise CpsimError(f"{name} has more rows than a sheet can hold: choose --format csv or parquet")
    heads = [
        f"{page_heading(column)} ({zone})" if frame[column].dtype.kind == "M" else page_heading(column)
        for column in frame.columns
    ]
    formats = [_format(frame, column) for column in frame.columns]
    for number, column in enumerate(frame.columns):
        texts = [human_text(value) for (value,) in records(frame[[column]].head(MEASURED_ROWS))]
        longest = max(map(len, (f"{heads[number]}  ", formats[number] if "y" in formats[number] else "", *texts)))
        sheet.column_dimensions[get_column_letter(number + 1)].width = min(max(WIDTHS[0], longest + 1), WIDTHS[1])
    sheet.freeze_panes = "A2"
    sheet.print_title_rows = "1:1"
    _fit_to_width(sheet)
    if heads:
        sheet.auto_filter.ref = f"A1:{get_column_letter(len(heads))}{len(frame) + 1}"
    styles = ["right" if is_numeric(frame, column) else "bold" for column in frame.columns]
    sheet.append([_cell(sheet, head, style) for head, style in zip(heads, styles, strict=True)])
    for row in records(frame):
        sheet.append(
            [None if value is None else _cell(sheet, value, form) for value, form in zip(row, formats, strict=True)]
        )


def _fit_to_width(sheet: Any) -> None:  # noqa: ANN401
    """Print all columns of a sheet on one page."""
    sheet.page_setup.orientation, sheet.page_setup.fitToHeight = "landscape", 0
    sheet.sheet_properties.pageSetUpPr.fitToPage = True


def _cell(sheet: Any, value: object, style: str) -> Any:  # noqa: ANN401
    """A cell; its style is a number's or a time's format, or one of `Row`."""
    is_number = isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < EXACT)
    if isinstance(value, dt.datetime) and value.year >= FIRST_YEAR:
        value, is_number = value.replace(tzinfo=None), True
    cell = WriteOnlyCell(sheet, value if is_number else FORBIDDEN.sub("�", machine_text(value)))
    if not is_number:
        cell.data_type = "s"
        cell.quotePrefix = cell.value.startswith(FORMULA)
        if isinstance(value, int):
            cell.alignment = Alignment(horizontal="right")
    elif style:
        cell.number_format = style
    if style in {"title", "bold", "right"}:
        cell.font = Font(name=FONT, bold=True, size=16 if style == "title" else 11)
    if style == "right":
        cell.alignment = Alignment(horizontal="right")
    if style == "wrapped":
        cell.alignment = Alignment(horizontal="left", wrap_text=True, indent=1)
    if style.startswith("link "):
        place = style.removeprefix("link ").replace("'", "''")
        cell.hyperlink = Hyperlink(ref="A1", location=f"'{place}'!A1")
        cell.font = Font(name=FONT, color="0563C1", underline="single")
    return cell


def _format(frame: pd.DataFrame, column: str) -> str:
    """How Excel shows a column's numbers or times; empty for text."""
    values = frame[column]
    if values.dtype.kind == "M":
        there = values.dropna()
        if (there == there.dt.normalize()).all():
            return "yyyy-mm-dd"
        return "yyyy-mm-dd hh:mm:ss.000" if there.dt.microsecond.any() else "yyyy-mm-dd hh:mm:ss"
    if not is_numeric(frame, column):
        return ""
    if values.dtype.kind in "iu":
        return "#,##0"
    sizes = [abs(value) for (value,) in records(frame[[column]].head(MEASURED_ROWS)) if value]
    decimals = min(6, max(2, 1 - math.floor(math.log10(min(sizes, default=1)))))
    return f"#,##0.{'0' * decimals}"


class _Archive(ZipFile):
    """A ZIP file whose entries have no time of their own."""

    def open(self, name: Any, mode: Any = "r", pwd: bytes | None = None, *, force_zip64: bool = False) -> Any:  # noqa: ANN401
        """An entry to read or write; text and files are written through this."""
        if mode == "w":
            name.date_time, name.compress_type = NO_TIME, ZIP_DEFLATED
        return super().open(name, mode, pwd, force_zip64=force_zip64)

"""Reports as files: CSV, Parquet, JSON, Excel, Markdown; each written whole before it takes its name."""

from __future__ import annotations

import csv
import json
import re
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from cpsim.accounting.blocks import Note, Table
from cpsim.accounting.values import machine_text, records
from cpsim.errors import CpsimError
from cpsim.system.replacing import replacing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd

    from cpsim.accounting.accounts import Accounts
    from cpsim.accounting.blocks import Figure, Report

EXCEL_ROWS: Final = 1_048_575
EXCEL_EXACT: Final = 10**15
"""Excel keeps fifteen digits; a longer number is written as text."""
SHEET_NAME: Final = 31
FORBIDDEN: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def tables(reports: Sequence[Report]) -> Iterator[tuple[str, Table | Figure]]:
    """Every table under a unique name, such as "leaderboards-leading-machines"."""
    seen: dict[str, int] = {}
    for report in reports:
        for block in report.blocks:
            if isinstance(block, Note):
                continue
            name = re.sub(r"[^a-z0-9.]+", "-", f"{report.name}-{block.title}".lower()).strip("-.")[:100]
            seen[name] = seen.get(name, 0) + 1
            yield (name if seen[name] == 1 else f"{name}-{seen[name]}"), block


def write_csv(accounts: Accounts, reports: Sequence[Report], folder: Path) -> None:
    """A file for each table (RFC 4180, UTF-8), and one for the conservation laws."""
    for name, block in _all_tables(accounts, reports):
        with replacing(folder / f"{name}.csv") as partial, partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(block.frame.columns)
            writer.writerows(map(machine_text, row) for row in records(block.frame))


def write_parquet(accounts: Accounts, reports: Sequence[Report], folder: Path) -> None:
    """A file for each table, and one for the conservation laws."""
    for name, block in _all_tables(accounts, reports):
        with replacing(folder / f"{name}.parquet") as partial:
            pq.write_table(pa.Table.from_pandas(block.frame, preserve_index=False), partial, compression="zstd")


def document(accounts: Accounts, reports: Sequence[Report]) -> dict[str, Any]:
    """All reports as one JSON document; times are text with their offset."""
    return {
        **_about(accounts),
        "checks": _json_table(accounts.checks),
        "reports": [
            {
                "name": report.name,
                "title": report.title,
                "notes": [block.text for block in report.blocks if isinstance(block, Note)],
                "tables": [
                    {"title": block.title, "note": block.note, **_json_table(block.frame)}
                    for block in report.blocks
                    if not isinstance(block, Note)
                ],
            }
            for report in reports
        ],
    }


def json_text(accounts: Accounts, reports: Sequence[Report]) -> str:
    """The document as text."""
    return json.dumps(document(accounts, reports), indent=1, allow_nan=False) + "\n"


def write_excel(accounts: Accounts, reports: Sequence[Report], path: Path) -> None:
    """A workbook with a sheet for each table. Ids are text, whatever they begin with: none becomes a formula."""
    from openpyxl import Workbook  # noqa: PLC0415 - only a workbook needs it
    from openpyxl.cell import WriteOnlyCell  # noqa: PLC0415
    from openpyxl.styles import Font  # noqa: PLC0415

    book = Workbook(write_only=True)
    used: set[str] = set()
    for name, block in _all_tables(accounts, reports):
        sheet = book.create_sheet(_sheet_name(name, used))
        sheet.freeze_panes = "A2"

        def cell(value: object, *, bold: bool = False) -> WriteOnlyCell:
            if isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < EXCEL_EXACT):
                return WriteOnlyCell(sheet, value)  # noqa: B023 - used in this turn only
            made = WriteOnlyCell(sheet, FORBIDDEN.sub("�", machine_text(value)))  # noqa: B023
            made.data_type = "s"
            if bold:
                made.font = Font(bold=True)
            return made

        sheet.append([cell(column, bold=True) for column in block.frame.columns])
        for number, row in enumerate(records(block.frame)):
            if number == EXCEL_ROWS:
                raise CpsimError(f"{name} has more rows than a sheet can hold: choose --format csv or parquet")
            sheet.append([None if value is None else cell(value) for value in row])
    with replacing(path) as partial:
        book.save(partial)


def markdown(accounts: Accounts, reports: Sequence[Report]) -> str:
    """All reports as Markdown, with tables in GitHub's dialect."""
    about = _about(accounts)
    times = (about["since"], about["until"])
    period = accounts.period if None in times else " to ".join(times)
    balance = "The books balance." if accounts.balanced else "**The books do not balance.**"
    lines = [f"# Credit of {_inert(accounts.source.name)}", "", f"{about['kind']}, {period}. {balance}", ""]
    lines += _markdown_table(accounts.checks)
    for report in reports:
        lines += [f"## {_inert(report.title)}", "", f"{balance}", ""]
        for block in report.blocks:
            if isinstance(block, Note):
                lines += [_inert(block.text), ""]
                continue
            lines += [f"### {_inert(block.title)}", "", *_markdown_table(block.frame)]
            if block.note:
                lines += [_inert(block.note), ""]
    return "\n".join(lines)


def _all_tables(accounts: Accounts, reports: Sequence[Report]) -> Iterator[tuple[str, Table | Figure]]:
    yield "checks", Table("Conservation", accounts.checks)
    yield from tables(reports)


def _about(accounts: Accounts) -> dict[str, Any]:
    return {
        "source": accounts.source.name,
        "kind": accounts.source.kind,
        "note": accounts.source.note,
        "projects": list(accounts.chosen),
        "timezone": accounts.timezone.key,
        "since": None if accounts.begin is None else accounts.begin.isoformat(),
        "until": None if accounts.end is None else accounts.end.isoformat(),
        "empty": accounts.empty,
        "balanced": accounts.balanced,
    }


def _json_table(frame: pd.DataFrame) -> dict[str, Any]:
    rows = [
        [
            value if value is None or isinstance(value, bool | int | float | str) else machine_text(value)
            for value in row
        ]
        for row in records(frame)
    ]
    return {"columns": list(frame.columns), "rows": rows}


def _markdown_table(frame: pd.DataFrame) -> list[str]:
    rows = [[_inert(machine_text(value)) for value in row] for row in records(frame)]
    marks = ["---:" if kind.kind in "iuf" else "---" for kind in frame.dtypes]
    head = ["| " + " | ".join(map(_inert, frame.columns)) + " |", "| " + " | ".join(marks) + " |"]
    return [*head, *("| " + " | ".join(row) + " |" for row in rows), ""]


def _inert(text: str) -> str:
    """Text with Markdown's syntax escaped."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(text.split()))


def _sheet_name(name: str, used: set[str]) -> str:
    short = name[:SHEET_NAME]
    number = 1
    while short in used:
        number += 1
        short = f"{name[: SHEET_NAME - len(str(number)) - 1]}-{number}"
    used.add(short)
    return short

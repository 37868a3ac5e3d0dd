"""Reports as files: CSV, Parquet, JSON, Markdown; each written whole before it takes its name."""

from __future__ import annotations

import csv
import json
import re
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from cpsim.accounting.blocks import Note, Table, check_fits
from cpsim.accounting.values import machine_text, records
from cpsim.system.replacing import replacing
from cpsim.ui.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd

    from cpsim.accounting.accounts import Accounts
    from cpsim.accounting.blocks import Figure, Report

PIECE_ROWS: Final = 1 << 14
MARKDOWN_ROWS: Final = 40
"""Rows, in Markdown, of what belongs to the rows of another table."""
BLANKS: Final = "\t\n\r"
MARKDOWN: Final = str.maketrans(
    {letter: f"\\{letter}" for letter in r"\`*_{}[]<>#|~&$"} | {letter: f"&#{ord(letter)};" for letter in BLANKS}
)
LOST_SPACES: Final = re.compile(r"^ +| +$|(?<= ) +")
FORBIDDEN: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""What XML cannot have."""
LIST_MARK: Final = re.compile(r"^(\d*)([-+=.)])")


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
            for piece in _pieces(block):
                writer.writerows(map(machine_text, row) for row in records(piece))


def write_parquet(accounts: Accounts, reports: Sequence[Report], folder: Path) -> None:
    """A file for each table, and one for the conservation laws."""
    for name, block in _all_tables(accounts, reports):
        with replacing(folder / f"{name}.parquet") as partial:
            pieces = _pieces(block)
            first = pa.Table.from_pandas(next(pieces), preserve_index=False)
            with pq.ParquetWriter(partial, first.schema, compression="zstd") as writer:
                writer.write_table(first)
                for piece in pieces:
                    writer.write_table(pa.Table.from_pandas(piece, first.schema, preserve_index=False))


def _pieces(block: Table | Figure) -> Iterator[pd.DataFrame]:
    """All rows of a table; at least one piece, which may be empty."""
    frame = block.frame
    if isinstance(block, Table) and block.whole is not None:
        yield from block.whole.pieces()
        return
    for start in range(0, max(1, len(frame)), PIECE_ROWS):
        yield frame.iloc[start : start + PIECE_ROWS]


def document(accounts: Accounts, reports: Sequence[Report]) -> dict[str, Any]:
    """All reports as one JSON document; times are text with their offset.

    Raises:
        CpsimError: a table has too many rows for the memory that it may take.
    """
    check_fits(reports)
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


def markdown(accounts: Accounts, reports: Sequence[Report]) -> str:
    """All reports as Markdown, with tables in GitHub's dialect; raises CpsimError as `document` does."""
    check_fits(reports)
    about = _about(accounts)
    times = (about["since"], about["until"])
    period = accounts.period if None in times else " to ".join(times)
    balance = "The books balance." if accounts.balanced else "**The books do not balance.**"
    lines = [f"# Credit of {_inert(accounts.source.name)}", "", f"{about['kind']}, {_inert(period)}. {balance}", ""]
    lines += _markdown_table(accounts.checks)
    for report in reports:
        lines += [f"## {_inert(report.title)}", "", f"{balance}", ""]
        for block in report.blocks:
            if isinstance(block, Note):
                lines += [_paragraph(block.text), ""]
                continue
            rows = block.frame.head(MARKDOWN_ROWS) if block.within else block.frame
            lines += [f"### {_inert(block.title)}", "", *_markdown_table(rows)]
            if len(rows) < len(block.frame):
                lines += [f"The first {len(rows):,} of {len(block.frame):,} rows; the CSV format has all.", ""]
            if block.note:
                lines += [_paragraph(block.note), ""]
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
    r"""Text that Markdown shows as it is, on one line; characters that Markdown cannot have as `\x1b` and the like."""
    if not text.isprintable():
        text = "".join(letter if letter in BLANKS else printable(letter) for letter in text)
    return LOST_SPACES.sub(lambda found: "&#32;" * len(found[0]), text.translate(MARKDOWN))


def _paragraph(text: str) -> str:
    """Text that begins a line, where some more characters would begin a list."""
    return LIST_MARK.sub(r"\1\\\2", _inert(text))

"""Reports as one self-contained HTML file, to view, print and publish."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from markupsafe import escape

from cpsim.accounting.blocks import Figure, Note, Table, row_count
from cpsim.accounting.charts import chart
from cpsim.accounting.screen import balance, notices
from cpsim.accounting.values import human_text, is_numeric, machine_text, page_heading, records, shown, texts
from cpsim.ui.pages import template

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from cpsim.accounting.accounts import Accounts
    from cpsim.accounting.blocks import Block, Report

MOST_ROWS: Final = 100
"""Rows of a table on the page; the other formats have all."""
MOST_LETTERS: Final = 200
"""Characters of a text on the page."""
LONG: Final = 40
"""Characters from which a text is broken into lines."""
CELL_BYTES: Final = 40
"""What the markup of a cell takes, about."""
BLOCK_BYTES: Final = 700
"""What the markup of a table or chart takes without its rows, about."""
LEAST_BYTES: Final = 4_000
"""What a folded table gets, at least."""
OPEN_BYTES: Final = 450_000
FOLDED_BYTES: Final = 450_000
LIST_BYTES: Final = 200_000
"""What the page has room for: what everybody sees, folded tables, and both the charts and the tables of lists that
unfold."""
TILES: Final = ("credits", "claimed", "outstanding", "discarded", "expired", "machines", "users")


@dataclass
class Room:
    """How many bytes are left for a part of the page."""

    left: int

    def take(self, size_bytes: int) -> bool:
        """Whether so many bytes were left; they are taken."""
        if size_bytes > self.left:
            return False
        self.left -= size_bytes
        return True

    def part(self, most_bytes: int) -> Room:
        """A part of it, of so many bytes at most."""
        part = Room(min(most_bytes, self.left))
        self.left -= part.left
        return part


class ReportPage:
    """What the template shows of accounts."""

    def __init__(self, accounts: Accounts, reports: Sequence[Report]) -> None:
        self.accounts = accounts
        self.open, self.folded = Room(OPEN_BYTES), Room(FOLDED_BYTES)
        self.charts, self.lists = Room(LIST_BYTES), Room(LIST_BYTES)
        folded = sum(isinstance(block, Table) and block.is_folded for report in reports for block in report.blocks)
        self.share_bytes = max(LEAST_BYTES, FOLDED_BYTES // max(1, folded))
        self.anchors: dict[tuple[object, object], str] = {}

    def section(self, report: Report) -> dict[str, Any]:
        """A report, with how many of its tables there is no room for."""
        shown_blocks = [block for block in report.blocks if not _is_part(block)]
        blocks = [self.block(block, report.blocks) for block in shown_blocks]
        return {
            "name": _anchor(report.name),
            "title": report.title,
            "is_folded": any(isinstance(block, Table) and block.is_folded for block in report.blocks),
            "blocks": [block for block in blocks if block is not None],
            "left_out": blocks.count(None),
        }

    def block(self, block: Block, others: Sequence[Block]) -> dict[str, Any] | None:
        """A block; None if there is no room for it."""
        if isinstance(block, Note):
            return {"text": block.text, "warning": block.warning}
        is_folded = isinstance(block, Table) and block.is_folded
        room = self.folded.part(self.share_bytes) if is_folded else self.open
        title = _cut(block.title)
        if not room.take(BLOCK_BYTES + 3 * _size(title) + _size(block.note)):
            return None
        made: dict[str, Any] = {"title": title, "note": block.note}
        parts = [other for other in others if not isinstance(other, Note) and _is_part(other)]
        if isinstance(block, Table) and parts and set(parts[0].within) <= set(block.frame.columns):
            made["outline"], made["total"] = Outline(self, block, parts).items(), len(block.frame)
            made["notes"] = [other.note for other in parts if other.note]
            return made
        made["table"] = self.table(shown(block.frame, self.accounts.chosen), room, self.links(block.frame))
        made["table"]["total"] = row_count(block)
        if isinstance(block, Figure):
            drawn = chart(block, self.accounts.timezone.key)
            fits = drawn is not None and room.take(len(drawn.__html__().encode()))
            made["chart"] = drawn if fits else None
            if drawn is not None and not fits:
                made["note"] = f"{block.note} The chart has no room on this page.".lstrip()
            made["is_wide"] = block.kind == "ranking"
        else:
            made["is_folded"] = block.is_folded
        return made

    def links(self, frame: pd.DataFrame) -> list[str | None]:
        """The anchor, for each row, of its user's place in the list that unfolds."""
        if not self.anchors or not {"project", "user"} <= set(frame.columns):
            return []
        return [self.anchors.get(key) for key in zip(frame["project"], frame["user"], strict=True)]

    def table(self, frame: pd.DataFrame, room: Room, links: Sequence[str | None] = ()) -> dict[str, Any]:
        """The rows of a table that there is room for."""
        first = frame.head(MOST_ROWS)
        rows = []
        for number, (values, written) in enumerate(zip(records(first), texts(first), strict=True)):
            cells = [_cell(value, text) for value, text in zip(values, written, strict=True)]
            if not room.take(sum(CELL_BYTES + _size(text) + len(key or "") for text, key in cells)):
                break
            rows.append((cells, links[number] if number < len(links) else None))
        return {
            "heads": [(page_heading(name), _class(first, name), name) for name in frame.columns],
            "rows": rows,
            "total": len(frame),
        }


class Outline:
    """A table whose rows unfold to what belongs to them.

    Args:
        page: it gets an anchor for each row.
        table: the table.
        parts: the tables and figures whose rows belong to its rows, or to rows of one another.
    """

    def __init__(self, page: ReportPage, table: Table, parts: Sequence[Table | Figure]) -> None:
        self.page, self.frame, self.parts = page, table.frame, parts
        self.groups = [dict(iter(part.frame.groupby(list(part.within)))) for part in parts]

    def items(self) -> list[dict[str, Any]]:
        """The rows, each with its anchor."""
        items = self.rows(self.frame, self.parts[0].within)
        for number, item in enumerate(items, 1):
            item["anchor"] = f"of-{number}"
            self.page.anchors[item["key"]] = item["anchor"]
        return items

    def rows(self, frame: pd.DataFrame, keys: Sequence[str]) -> list[dict[str, Any]]:
        """The rows of a table whose keys are these, with what belongs to each as far as there is room."""
        others = [name for name in frame.columns if name not in {*keys, "rank"}]
        items: list[dict[str, Any]] = []
        for row, facts in zip(frame.to_dict("records"), texts(frame[others]), strict=True):
            key = tuple(row[name] for name in keys)
            name = _cut(str(key[-1]))
            if not self.page.lists.take(BLOCK_BYTES // 2 + 2 * _size(name)):
                break
            items.append(
                {
                    "key": key,
                    "rank": row.get("rank"),
                    "name": name,
                    "project": key[0] if len(self.page.accounts.chosen) > 1 and len(keys) == 2 else "",
                    "facts": [(page_heading(other).lower(), fact) for other, fact in zip(others, facts, strict=True)],
                }
            )
        for item in items:  # all rows come before what belongs to the first of them
            there = [number for number in range(len(self.parts)) if self.has(number, item["key"], keys)]
            found = [self.part(number, item["key"], keys) for number in there]
            item["parts"] = [part for part in found if part is not None]
            item["left_out"] = found.count(None)
        return items

    def has(self, number: int, key: tuple[object, ...], keys: Sequence[str]) -> bool:
        """Whether something of one table or figure belongs to a row."""
        return tuple(self.parts[number].within) == tuple(keys) and key in self.groups[number]

    def part(self, number: int, key: tuple[object, ...], keys: Sequence[str]) -> dict[str, Any] | None:
        """What belongs to a row of one table or figure; None if there is no room."""
        part, rows = self.parts[number], self.groups[number][key]
        if isinstance(part, Figure):
            zone = self.page.accounts.timezone.key
            drawn = chart(Figure(part.title, rows, part.kind, part.x, part.y), zone, is_late=True)
            fits = drawn is not None and self.page.charts.take(len(drawn.__html__().encode()))
            return {"chart": drawn} if fits else None
        deeper = (other.within for other in self.parts if other.within[: len(keys)] == tuple(keys) != other.within)
        if (within := next(deeper, None)) is not None and set(within) <= set(rows.columns):
            unfolds = self.rows(rows, within)
            return {"title": part.title, "unfolds": unfolds} if unfolds else None
        table = self.page.table(rows.drop(columns=list(keys)), self.page.lists)
        return {"title": part.title, "table": table} if table["rows"] else None


def html(accounts: Accounts, reports: Sequence[Report]) -> str:
    """The page, which has less than 1.5 MB however many there are of whom, and says what it leaves out."""
    if accounts.empty:
        reports = [report for report in reports if not all(_is_empty(block) for block in report.blocks)]
    projects, page = accounts.projects, ReportPage(accounts, reports)
    lists_first = sorted(reports, key=lambda report: not any(_is_part(block) for block in report.blocks))
    sections = {id(report): page.section(report) for report in lists_first}
    return template("cpsim.accounting", "page.html.j2").render(
        title=_cut(f"Credit of {', '.join(accounts.chosen) or accounts.source.name}"),
        contents="Reports",
        sections=[(_anchor(report.name), report.title.partition(":")[0]) for report in reports],
        source=accounts.source,
        period=accounts.period,
        version=version("creditpiggy-sim"),
        notices=notices(accounts),
        tiles=[(page_heading(name), _total(projects[name])) for name in TILES],
        balanced=accounts.balanced,
        balance=balance(accounts),
        checks=page.table(accounts.checks, page.open),
        broken=page.table(accounts.checks[~accounts.checks["holds"]], page.open),
        reports=[sections[id(report)] for report in reports],
    )


def _is_part(block: Block) -> bool:
    """Whether a block is shown where a row of another unfolds."""
    return not isinstance(block, Note) and bool(block.within)


def _is_empty(block: Block) -> bool:
    return not isinstance(block, Note) and block.frame.empty


def _total(counts: pd.Series) -> str:
    known = counts.dropna()
    return human_text(0 if counts.empty else None if known.empty else int(known.sum()))


def _cell(value: object, text: str) -> tuple[str, str | None]:
    """A cell's text, and what it is sorted by where that is something else."""
    return _cut(text), None if isinstance(value, str) or machine_text(value) == text else machine_text(value)


def _cut(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}…"


def _size(text: str) -> int:
    """How many bytes a text takes on the page."""
    return len(escape(text).encode())


def _class(frame: pd.DataFrame, column: str) -> str:
    """The CSS class of a column's cells."""
    if is_numeric(frame, column):
        return "num"
    if frame[column].dtype.kind == "M":
        return "time"
    return "long" if max((len(str(value)) for value in frame[column]), default=0) > LONG else ""


def _anchor(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "-", name)

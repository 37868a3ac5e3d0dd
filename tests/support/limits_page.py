"""The tables of docs/reference/limits.md."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/reference/limits.md"
UNITS = {"MiB": 2**20, "": 1, **dict.fromkeys(("bytes", "s", "levels", "characters", "commands", "items"), 1)}


def limits(command):
    """The numbers of a command's table, in bytes, seconds or pieces, by the name of the limit."""
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {command}\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| ")]
    assert all(len(row) == 4 and all(cell.strip() for cell in row) for row in rows)
    return {name.strip(): _number(most.strip()) for name, most, _, _ in rows[1:]}


def _number(text):
    number, unit = re.fullmatch(r"([0-9.,]+) ?([A-Za-z]*)", text).groups()
    return float(number.replace(",", "")) * UNITS[unit]


class Meetings:
    """The limits of a command's table that tests meet."""

    def __init__(self, command):
        self.page = limits(command)
        self.met = set()

    def meets(self, *names):
        """Decorate the test that meets some limits."""
        assert self.page.keys() >= {*names}
        self.met |= {*names}
        return lambda test: test

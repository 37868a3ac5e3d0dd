"""Bars of text, in eighths of a column."""

from __future__ import annotations

from typing import Final

EIGHTHS: Final = " ▏▎▍▌▋▊▉"


def bar(share: float, columns: int, *, is_ascii: bool = False) -> str:
    """A bar, at least an eighth of a column long where there is anything.

    Args:
        share: of the longest bar, from 0 to 1.
        columns: length of the longest.
        is_ascii: whether it is of `#`, for output that has no other letters.
    """
    if share <= 0:
        return ""
    if is_ascii:
        return "#" * max(1, round(columns * share))
    eighths = max(1, round(8 * columns * share))
    return f"{'█' * (eighths // 8)}{EIGHTHS[eighths % 8]}".rstrip()

"""The slots of the commands that the accounts took lately, for whoever follows them; for nobody, nothing is kept."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

KEPT: Final = 200_000
"""Commands of a project whose slots are kept, some 70 bytes each. After as many that nobody asked for, none is."""


class _Followed:
    """The latest commands of a project: their slots, the number of the next one, and up to where somebody has asked."""

    def __init__(self, begin: int, limit: int) -> None:
        self.slots: deque[str] = deque(maxlen=limit)
        self.end = self.asked = begin


class AppliedFeed:
    """Numbers the commands of each project from when somebody first asks for them.

    Args:
        limit: commands of a project that are kept.
    """

    def __init__(self, limit: int = KEPT) -> None:
        self._limit = limit
        self._followed: dict[str, _Followed] = {}
        self._begin = 0
        """Where the numbers of a project begin that is followed anew: above all that were given out."""

    def add(self, project_id: str, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Keep the slots of commands of a project, in their order, if somebody follows it."""
        followed = self._followed.get(project_id)
        if followed is None:
            return
        followed.slots.extend(str(arguments.get("slot", "")) for _, arguments in calls)
        followed.end += len(calls)
        if followed.end - followed.asked > self._limit:
            self.forget(project_id)

    def read(self, project_id: str, cursor: int | None, limit: int) -> tuple[list[str], int, bool]:
        """The slots of up to `limit` commands from a number on, and the number after them.

        Args:
            project_id: whose commands; it is followed from now on.
            cursor: the number of the first; None for the next one that comes.
            limit: most commands.

        Returns:
            Also whether commands from the cursor on are no longer known; then no slots, and the number of the next
            command that comes.
        """
        followed = self._followed.setdefault(project_id, _Followed(self._begin, self._limit))
        first = followed.end - len(followed.slots)
        followed.asked = followed.end
        if cursor is None or not first <= cursor <= followed.end:
            return [], followed.end, cursor is not None
        slots = list(islice(followed.slots, cursor - first, cursor - first + limit))
        return slots, cursor + len(slots), False

    def forget(self, project_id: str | None = None) -> None:
        """Follow a project no more, or none."""
        for name in list(self._followed) if project_id is None else [project_id]:
            if followed := self._followed.pop(name, None):
                self._begin = max(self._begin, followed.end + 1)

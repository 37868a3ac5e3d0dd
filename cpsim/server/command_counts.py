"""How many commands a server has received, for its metrics."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cpsim.server.ledger import Refusal


class CommandCounts(Counter[tuple[str, str, str]]):
    """The number of commands by project, kind and outcome, which is `accepted` or `refused`; nothing resets it."""

    def add(self, project_id: str, calls: Sequence[tuple[str, Mapping[str, Any]]], refusals: Sequence[Refusal]) -> None:
        """Count commands of a project, of which some were refused."""
        kinds = [kind for kind, _ in calls]
        for refusal in refusals:
            self[project_id, kinds[refusal.position], "refused"] += 1
            kinds[refusal.position] = ""
        for kind in {*kinds} - {""}:  # not each command: a batch has few kinds
            self[project_id, kind, "accepted"] += kinds.count(kind)

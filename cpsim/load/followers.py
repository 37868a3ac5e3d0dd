"""What follows a load: in each worker a process that judges its slots meanwhile, and one that serves the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cpsim.run.ahead import Ahead, text_of

if TYPE_CHECKING:
    from collections.abc import Iterable


class JudgedByShares:
    """Slots that workers have judged while a load goes on.

    Args:
        fail_fast: whether the first finding ends the replay.

    Attributes:
        valid: slots that were found as they should be.
        findings: slots that nothing explains.
        stopped_by: the finding that ends the replay; "" if none does.
        text: what is judged so far, for people; "" before the replay.
    """

    def __init__(self, *, fail_fast: bool) -> None:
        self._fail_fast = fail_fast
        self.begin()

    def begin(self) -> None:
        """Forget the replay before."""
        self.valid = self.findings = 0
        self.is_started = False
        self.stopped_by = self.text = ""

    def take(self, shares: Iterable[dict[str, Any]]) -> None:
        """Take what `told_of` says of each share."""
        found = [share for share in shares if share]
        self.valid, self.findings = (sum(share[name] for share in found) for name in ("valid", "findings"))
        self.is_started = any(share["is_started"] for share in found)
        if found:
            why_not = next((share["why_not"] for share in found if share["why_not"]), "")
            self.text = text_of(self.valid, self.findings, found[0]["as_far_as"], why_not)
        if self._fail_fast and not self.stopped_by:
            self.stopped_by = next((share["found"] for share in found if share["found"]), "")


def told_of(ahead: Ahead) -> dict[str, Any]:
    """What a worker tells of its share."""
    names = ("valid", "findings", "found", "why_not", "as_far_as", "is_started")
    return {name: getattr(ahead, name) for name in names}

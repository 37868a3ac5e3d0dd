"""What follows a load: in each worker a process that judges its slots meanwhile, and one that serves the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cpsim.run.ahead import text_of
from cpsim.run.breach import Breaches
from cpsim.run.live_figures import Counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    import numpy.typing as npt

    from cpsim.load.master import Share
    from cpsim.load.settings import Settings
    from cpsim.run.ahead import Ahead
    from cpsim.run.live import LivePage
    from cpsim.run.live_figures import LiveFigures
    from cpsim.run.plan import Plan


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


class Meanwhile:
    """Takes what workers tell while a load goes on: counts, what breaks asserts, which slots are judged, and records.

    Args:
        settings: of the load.
        figures: takes the counts.

    Attributes:
        judged: the slots that are judged.
        live: the page of the run; None if there is none.
        broken: the assert that ends the replay; "" if none does.
    """

    def __init__(self, settings: Settings, figures: LiveFigures) -> None:
        self._figures = figures
        self.judged = figures.ahead = JudgedByShares(fail_fast=settings.fail_fast)
        self.live: LivePage | None = None
        self._breaches: Breaches | None = None
        self.broken = ""

    def begin(self) -> None:
        """Forget the replay before."""
        self._breaches, self.broken = None, ""
        self.judged.begin()

    def expect(self, plan: Plan, schedule_us: npt.NDArray[np.int64] | None) -> None:
        """Take note of what is to be sent, and when."""
        if plan.stop_on:
            self._breaches = Breaches(plan.stop_on, plan.workload, schedule_us, plan.warm_up_s)
        self._figures.plan(len(plan.workload))

    def follow(self, plan: Plan, shares: Sequence[Share]) -> None:
        """Have the page, if there is one, show the shares of a plan."""
        if self.live is not None:
            self.live.begin(plan, ())
            self.live.follow([share.file for share in shares])

    def take(self, share: Share, data: dict[str, Any], shares: Sequence[Share]) -> bool:
        """Take what a worker tells; returns whether that ends the replay."""
        self._figures.add(Counted(*data["counted"]))
        share.breaches, share.judged = data["breaches"], data["judged"] or {}
        self.judged.take(each.judged for each in shares)
        counts = [sum(each) for each in zip(*(each.breaches for each in shares if each.breaches), strict=True)]
        broken = self._breaches.set_counts(counts) if counts and self._breaches is not None else None
        if broken is not None and not self.broken:
            self.broken = str(broken)
        if self.live is not None:
            share.take(data["records"])
            share.errors = data["errors"]
            self.live.tell([each.errors for each in shares], self.judged.text)
        return bool(self.broken or self.judged.stopped_by)


def told_of(ahead: Ahead) -> dict[str, Any]:
    """What a worker tells of its share."""
    names = ("valid", "findings", "found", "why_not", "as_far_as", "is_started")
    return {name: getattr(ahead, name) for name in names}

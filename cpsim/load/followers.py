"""The processes that follow a load: one serves its page, and one judges slots meanwhile."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import IO, TYPE_CHECKING

from cpsim.net.listen import Listen
from cpsim.run.ahead import Ahead
from cpsim.run.live import LivePage, live_page

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from cpsim.accounts.observer import Observer
    from cpsim.load.settings import Settings
    from cpsim.run.live_figures import LiveFigures
    from cpsim.run.plan import Plan


class Followers:
    """Have them read what the workers report, in a file for each share of the slots.

    Args:
        live: serves the page, if it is wanted.
        ahead: judges, if somebody sees that.
    """

    def __init__(self, live: LivePage | None = None, ahead: Ahead | None = None) -> None:
        self._live, self.ahead = live, ahead
        self._start_ns = 0

    def begin(self, plan: Plan, observer: Observer | None, files: Sequence[IO[bytes]]) -> None:
        """Start them for a plan, and a file for each share of its slots.

        Raises:
            CannotObserve, UsageError: see `Ahead.begin`.
        """
        if self._live is not None:
            self._live.begin(plan, ())
        if self.ahead is not None:
            self.ahead.begin(plan, observer)
        for follower in (self._live, self.ahead):
            if follower is not None:
                follower.follow(files)

    def go(self, start_ns: int) -> None:
        """Take note of when the replay begins, on the local monotonic clock."""
        self._start_ns = start_ns

    def tell(self, errors: Sequence[Sequence[str]]) -> None:
        """Tell of new records, and the texts of the errors of all shares."""
        if self._live is not None:
            self._live.tell(errors, self.text)
        if self.ahead is not None:
            self.ahead.tell(errors, self._start_ns)

    def hear(self) -> str:
        """The finding that ends the replay; "" if none does."""
        return self.ahead.stopped_by if self.ahead is not None and self.ahead.hear() else ""

    @property
    def text(self) -> str:
        """What is judged so far; "" if nothing is."""
        return "" if self.ahead is None else self.ahead.text


@contextmanager
def followers_of(settings: Settings, output: Path, figures: LiveFigures, *, has_page: bool) -> Iterator[Followers]:
    """The followers that a load should have, while the context lasts.

    Args:
        settings: of the load.
        output: its run folder.
        figures: show what is judged, too.
        has_page: whether Locust has a page, which shows what is judged.

    Raises:
        OSError: the address of the page cannot be bound.
    """
    is_seen = settings.fail_fast or settings.page is not None or settings.metrics is not None or has_page
    with (
        nullcontext() if settings.page is None else live_page(Listen(settings.page), output) as live,
        Ahead(fail_fast=settings.fail_fast) if is_seen else nullcontext() as ahead,
    ):
        figures.ahead = ahead
        yield Followers(live, ahead)

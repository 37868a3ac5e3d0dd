"""What is told of a load: on the console, and on Locust's page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.ui.printable import printable
from cpsim.ui.terminal import console, printed

if TYPE_CHECKING:
    from collections.abc import Callable

    from locust.env import Environment
    from rich.console import Console


class Told:
    """Prints the summary of each run; without a page, behind all that Locust prints at its end.

    Args:
        environment: Locust's.
        headless: whether there is no page.

    Attributes:
        text: the summary of the last run, or why there is none; empty before the first.
        so_far: what is judged of a run that goes on; empty if nothing is.
    """

    def __init__(self, environment: Environment, *, headless: bool) -> None:
        self.text = self.so_far = ""
        self._headless = headless
        self._last: Callable[[Console], None] | None = None
        environment.events.quit.add_listener(self._print_last)

    def begin(self) -> None:
        """Forget the run before."""
        self.text = self.so_far = ""

    def fail(self, why: str) -> None:
        """Take why a run failed; it is printed elsewhere."""
        self.text = f"failed  {printable(why)}\n"

    def say(self, show: Callable[[Console], None]) -> None:
        """Tell what a function prints."""
        self.text += printed(show)
        if self._headless:
            self._last = show
        else:
            show(console)

    def _print_last(self, **_: object) -> None:
        if self._last is not None:
            self._last(console)
            console.file.flush()

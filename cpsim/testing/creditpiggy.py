"""A CreditPiggy for one test, or a project at a shared server."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from cpsim.clock import STEADY_CLOCK, real_dates
from cpsim.fake import ANY_PORT, Fake
from cpsim.quirks import chosen
from cpsim.system.extras import require
from cpsim.testing.assertions import Assertions
from cpsim.testing.project import PROJECT
from cpsim.testing.rules import Rules
from cpsim.testing.waiting import AsyncWaiting, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Self

    from cpsim.server.clock import ServerClock
    from cpsim.testing.background import Replay

NOBODY: Final = "nobody"
"""The project of a server without projects."""


class _Site(Assertions, Rules):
    """The methods that both kinds of CreditPiggy share."""

    def replay(
        self, scenario: str, *, rate: float | None = None, speed: float | None = None, seed: int | None = None
    ) -> Replay:
        """Replay a scenario in the background, at the same daemon, until it is over or this is stopped.

        Its slots, machines and users are among the others. Rules and refusals leave them out: those are about the code
        under test.

        Args:
            scenario: a name or a path, as for `cpsim run`.
            rate: operations a second; without it and `speed`, they follow one another as fast as they are answered.
            speed: a multiple of the scenario's own times.
            seed: of the workload; the scenario's own, if it is None.

        Raises:
            MissingExtra: the extra `run` is not installed.
        """
        require("run", "a replay")
        with real_dates():
            from cpsim.testing.background import Replay  # noqa: PLC0415 - numpy and pyarrow, for those who replay

            replay = Replay(self, scenario, number=len(self._replays), rate=rate, speed=speed, seed=seed)
        self._replays.append(replay)
        return replay

    def _finish(self, error: BaseException | None) -> None:
        """Stop, and add the report to the test's error, or raise one for refusals and faults that never fired."""
        __tracebackhide__ = True
        self.stop()
        if not self.is_original:
            return
        if isinstance(error, Exception):
            error.add_note(f"\nCreditPiggy, {self.report()}")
        elif error is None and (complaint := self.complaint()):
            raise AssertionError(complaint)


class CreditPiggy(_Site, Waiting):
    """A daemon and an account server for one test, in this process, on addresses of their own.

    Leaving the `with` fails if a command was refused or malformed, or a fault never fired, unless `allow_refusals` or
    `allow_unfired` is set. The arguments are those of `ProjectFixture`:

        with CreditPiggy() as creditpiggy:
            my_manager.run_job("job-1", on="worker-7", credit_endpoint=creditpiggy.endpoint)
            creditpiggy.assert_claimed("job-1", machine="worker-7")
    """

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        __tracebackhide__ = True
        self._finish(error)


class AsyncCreditPiggy(_Site, AsyncWaiting):
    """The same for a test in an asyncio event loop: `async with`, and `await` for the four `wait_...`.

    All else is called as ever; views and assertions hold the loop up until what was acknowledged has arrived, at most
    two seconds.
    """

    async def __aenter__(self) -> Self:
        await _in_thread(self.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        __tracebackhide__ = True
        await _in_thread(self.stop)
        self._finish(error)


async def _in_thread(call: Callable[[], object]) -> None:
    """Call in a thread, and not in the loop's own pool, whose end fails if a test freezes the loop's time."""
    with ThreadPoolExecutor(1, "cpsim-start") as pool:
        await asyncio.get_running_loop().run_in_executor(pool, call)


class CreditPiggyServer:
    """One account server for many tests, each with a project and a daemon of its own; a context manager.

    Args:
        profile: "documented" or "deployed".
        quirks: names from `cpsim quirks`, besides those of the profile.
        options: what its projects have, where they are not given it: other arguments of `CreditPiggy`.

    Raises:
        CpsimError: there is no such profile or quirk.
    """

    def __init__(self, *, profile: str = "documented", quirks: Iterable[str] = (), **options: Any) -> None:  # noqa: ANN401
        self.fake = Fake({NOBODY: NOBODY}, http=ANY_PORT, quirks=chosen(profile, quirks), clock=STEADY_CLOCK)
        self._options = options
        self._numbers = count(1)

    def project(self, project: str | None = None, **options: Any) -> CreditPiggy:  # noqa: ANN401 - Project's own
        """A project of its own at this server, empty: use it in a `with`.

        Slots, accounts, journal, refusals, the daemon and its faults are its own. The clock is the server's, and who
        owns a machine is known to the whole server: `link` is undone at the end.

        Args:
            project: its id; a new one, if it is None.
            options: those of `CreditPiggy`, but for `profile` and `quirks`.
        """
        return CreditPiggy(
            project=project or f"{PROJECT}-{next(self._numbers)}", fake=self.fake, **(self._options | options)
        )

    @property
    def url(self) -> str:
        """The URL of the server's API."""
        return self.fake.addresses["http"]

    @property
    def clock(self) -> ServerClock:
        """The server's clock, which is that of all its projects."""
        return self.fake.accounts.clock

    def start(self) -> None:
        """Listen."""
        self.fake.start()

    def stop(self) -> None:
        """Stop listening."""
        self.fake.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

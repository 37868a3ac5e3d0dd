"""Reading accounts under Locust, whose greenlets run meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import gevent

from cpsim.accounts.observer import Observer
from cpsim.clock import Clock, SystemClock
from cpsim.load.aside import aside

if TYPE_CHECKING:
    from cpsim.accounts.view import View
    from cpsim.run.plan import Plan


class _GreenletClock(SystemClock):
    """The machine's clock; while one greenlet sleeps, Locust's others run."""

    sleep = staticmethod(gevent.sleep)


class _Observer(Observer):
    """Reads accounts in a thread."""

    def view(self) -> View:
        """What the control API shows of the accounts."""
        return aside(super().view)


CLOCK: Final[Clock] = _GreenletClock()


def observer_of(plan: Plan) -> Observer | None:
    """Who reads the accounts of a plan's server; None if there is none to observe."""
    target = plan.target
    if target.server is None or target.credentials is None:
        return None
    return _Observer(target.server, target.credentials, plan.timeout_s, CLOCK)

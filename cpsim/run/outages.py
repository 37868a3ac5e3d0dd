"""What goes wrong during a replay, at times of the scenario where the replay keeps its times."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cpsim.errors import CpsimError
from cpsim.faults.spec import Fault
from cpsim.replay.pace import Speed, Virtual

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cpsim.accounts.observer import Observer
    from cpsim.replay.pace import Pace
    from cpsim.run.pipeline import Run


class Outages:
    """Faults that come and go with a clock that jumps: whoever moves it says so.

    Args:
        observer: of the fake that fails.
        faults: each with a `from` or an `until`, in seconds on that clock.

    Raises:
        CpsimError: the server would be out of reach, and its clock with it.
    """

    def __init__(self, observer: Observer, faults: Sequence[Fault]) -> None:
        for fault in faults:
            if fault.action == "down":
                raise CpsimError(
                    f"fault {str(fault)!r}: a server that is down could not be told in virtual time that it is over; "
                    "take daemon.refuse, or server.status=503 with a probability"
                )
        self.moments_us = [
            round(at_s * 1e6) for fault in faults for at_s in (fault.from_s, fault.until_s) if at_s is not None
        ]
        """When one begins or ends."""
        self._observer = observer
        self._coming = list(faults)
        self._present: list[Fault] = []
        self.met: list[dict[str, Any]] = []
        """Those that are over: each with how many commands it selected, and how often it fired."""

    def at(self, now_s: float) -> None:
        """Have the faults of a moment, and no others."""
        for fault in [fault for fault in self._present if fault.until_s is not None and fault.until_s <= now_s]:
            self._end(fault)
        for fault in [fault for fault in self._coming if (fault.from_s or 0.0) <= now_s]:
            self._coming.remove(fault)
            if fault.until_s is None or now_s < fault.until_s:
                self._observer.add_faults([str(_without_times(fault))])
                self._present.append(fault)
            else:
                self._note_missed(fault)

    def end(self) -> None:
        """Have none any more."""
        for fault in list(self._present):
            self._end(fault)
        for fault in self._coming:
            self._note_missed(fault)
        self._coming.clear()

    def _note_missed(self, fault: Fault) -> None:
        self.met.append({"fault": str(fault), "selected": 0, "fired": 0})

    def _end(self, fault: Fault) -> None:
        text = str(_without_times(fault))
        (*_, counted) = [set_ for set_ in self._observer.faults() if set_["fault"] == text]
        self.met.append(counted | {"fault": str(fault)})
        self._observer.remove_faults([text])
        self._present.remove(fault)


@contextlib.contextmanager
def failing(
    result: Run, observer: Observer | None, faults: Sequence[str], timeout_s: float
) -> Iterator[Outages | None]:
    """Have the fake fail while the context lasts; then note what came of it.

    Yields:
        In virtual time, the faults that have times; whoever moves the clock tells them the time.

    Raises:
        CpsimError: there is no fake to fail, or it cannot fail like this in virtual time.
    """
    if not faults:
        yield None
        return
    if observer is None or not observer.has_control():
        raise CpsimError(
            "only a fake can have faults: leave out --target, or name the cpsim serve behind it with --server"
        )
    lasting = [_at_the_pace(Fault.parse(text), result.pace) for text in faults]
    outages = None
    if isinstance(result.pace, Virtual):
        for fault in lasting:
            if fault.crashes:
                raise CpsimError(
                    f"fault {str(fault)!r}: a process that crashes takes along the clock, which stands still in "
                    "virtual time: leave out --virtual, or the fault"
                )
        timed = [fault for fault in lasting if fault.from_s is not None or fault.until_s is not None]
        outages = Outages(observer, timed)
        lasting = [fault for fault in lasting if fault not in timed]
    before = [str(fault["fault"]) for fault in observer.faults()]
    earlier = len(observer.firings())
    observer.set_faults([*before, *map(str, lasting)])
    began_s = time.monotonic()
    try:
        yield outages
    finally:
        if outages is not None:
            outages.end()
            result.faults = outages.met
        outage_s = max((fault.until_s or 0.0 for fault in lasting if fault.action == "down"), default=0.0)
        observer.outage_s = max(0.0, began_s + outage_s - time.monotonic()) + timeout_s
        result.faults += observer.faults()[len(before) :]
        result.firings = observer.firings()[earlier:]
        observer.set_faults(before)


def _at_the_pace(fault: Fault, pace: Pace) -> Fault:
    """A fault with its times as seconds of the replay, where it keeps the scenario's times at another speed."""
    if not isinstance(pace, Speed):
        return fault
    from_s, until_s = (None if at_s is None else at_s / pace.factor for at_s in (fault.from_s, fault.until_s))
    return replace(fault, from_s=from_s, until_s=until_s)


def _without_times(fault: Fault) -> Fault:
    return replace(fault, from_s=None, until_s=None)

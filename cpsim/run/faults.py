"""Faults during a run, at times of the scenario if the replay keeps its times."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cpsim.accounts.observer import CannotObserve
from cpsim.errors import CpsimError
from cpsim.faults.spec import Fault
from cpsim.replay.pace import Speed, Virtual

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cpsim.accounts.observer import Observer
    from cpsim.clock import Clock
    from cpsim.replay.pace import Pace
    from cpsim.run.plan import Plan


class TimedFaults:
    """Faults that begin and end at times of a virtual clock; the replay reports each jump of the clock with `at`.

    Args:
        observer: of the fake that takes the faults.
        faults: each with a `from` or an `until`, in seconds on the virtual clock.

    Raises:
        CpsimError: a fault would make the server, and so its clock, unreachable.
    """

    def __init__(self, observer: Observer, faults: Sequence[Fault]) -> None:
        for fault in faults:
            if fault.action == "down":
                raise CpsimError(
                    f"fault {str(fault)!r}: in virtual time, a server that is down cannot be started again; "
                    "use daemon.refuse, or server.status=503 with a probability"
                )
        self.moments_us = [
            round(at_s * 1e6) for fault in faults for at_s in (fault.from_s, fault.until_s) if at_s is not None
        ]
        """Times at which a fault begins or ends, in microseconds."""
        self._observer = observer
        self._upcoming = list(faults)
        self._active: list[Fault] = []
        self.ended: list[dict[str, Any]] = []
        """Ended faults: each with how many commands it selected, and how often it fired."""

    def at(self, now_s: float) -> None:
        """Set the faults that are active at a time on the virtual clock."""
        for fault in [fault for fault in self._active if fault.until_s is not None and fault.until_s <= now_s]:
            self._end(fault)
        for fault in [fault for fault in self._upcoming if (fault.from_s or 0.0) <= now_s]:
            self._upcoming.remove(fault)
            if fault.until_s is None or now_s < fault.until_s:
                self._observer.control.add_faults([str(_without_times(fault))])
                self._active.append(fault)
            else:
                self._note_missed(fault)

    def end(self) -> None:
        """Remove all faults."""
        for fault in list(self._active):
            self._end(fault)
        for fault in self._upcoming:
            self._note_missed(fault)
        self._upcoming.clear()

    def _note_missed(self, fault: Fault) -> None:
        self.ended.append({"fault": str(fault), "selected": 0, "fired": 0})

    def _end(self, fault: Fault) -> None:
        text = str(_without_times(fault))
        (*_, counted) = [set_ for set_ in self._observer.control.faults() if set_["fault"] == text]
        self.ended.append(counted | {"fault": str(fault)})
        self._observer.control.remove_faults([text])
        self._active.remove(fault)


class SetFaults:
    """The faults of a run.

    Attributes:
        timed: those that have times, in virtual time; else None.
        since_s: the monotonic time from which their times count, if there are any.
        found: `faults`, `firings` and `faults_unknown` of the evidence, once they are no longer set.
    """

    def __init__(self) -> None:
        self.timed: TimedFaults | None = None
        self.since_s: float | None = None
        self.found: dict[str, Any] = {}


@contextlib.contextmanager
def faults_during(plan: Plan, observer: Observer | None, faults: Sequence[str], clock: Clock) -> Iterator[SetFaults]:
    """Set faults at the fake while the context lasts, and find out which fired.

    Raises:
        CpsimError: there is no fake to take faults, or a fault cannot be set in virtual time.
    """
    set_ = SetFaults()
    if not faults:
        yield set_
        return
    if observer is None or not observer.control.exists():
        raise CpsimError(
            "only a fake takes faults: leave out --target, or name the cpsim serve behind it with --server"
        )
    lasting = [_at_the_pace(Fault.parse(text), plan.pace) for text in faults]
    if isinstance(plan.pace, Virtual):
        for fault in lasting:
            if fault.crashes:
                raise CpsimError(
                    f"fault {str(fault)!r}: a process that crashes loses the clock of virtual time: leave "
                    "out --virtual, or the fault"
                )
        timed = [fault for fault in lasting if fault.from_s is not None or fault.until_s is not None]
        set_.timed = TimedFaults(observer, timed)
        lasting = [fault for fault in lasting if fault not in timed]
    before = [str(fault["fault"]) for fault in observer.control.faults()]
    earlier = len(observer.control.firings())
    observer.control.set_faults([*before, *map(str, lasting)])
    set_.since_s = began_s = clock.monotonic()
    try:
        yield set_
    finally:
        outage_s = max((fault.until_s or 0.0 for fault in lasting if fault.action == "down"), default=0.0)
        observer.outage_s = max(0.0, began_s + outage_s - clock.monotonic()) + plan.timeout_s
        try:
            if set_.timed is not None:
                set_.timed.end()
                set_.found["faults"] = tuple(set_.timed.ended)
            set_.found["faults"] = (*set_.found.get("faults", ()), *observer.control.faults()[len(before) :])
            set_.found["firings"] = tuple(observer.control.firings()[earlier:])
            observer.control.set_faults(before)
        except CannotObserve as error:  # what was sent and answered is evidence all the same
            set_.found["faults_unknown"] = str(error)


def _at_the_pace(fault: Fault, pace: Pace) -> Fault:
    """A fault with its times in seconds of the replay, if the replay has another speed than the scenario."""
    if not isinstance(pace, Speed):
        return fault
    from_s, until_s = (None if at_s is None else at_s / pace.factor for at_s in (fault.from_s, fault.until_s))
    return replace(fault, from_s=from_s, until_s=until_s)


def _without_times(fault: Fault) -> Fault:
    return replace(fault, from_s=None, until_s=None)

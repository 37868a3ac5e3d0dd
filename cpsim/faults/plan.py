"""The plan of the faults of a fake: which are set, which fires for a command, and which have fired.

A command meets one fault at most: of several that would fire for it, the first in the plan; and a process one crash.
Whether a probability is met depends on the seed, the fault and the number of the command alone, so that the same
commands meet the same faults.
"""

from __future__ import annotations

import logging
import math
import threading
from contextlib import contextmanager
from fnmatch import fnmatchcase
from hashlib import blake2b
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple, TypedDict

from cpsim.errors import CpsimError
from cpsim.faults.spec import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import Unpack

log = logging.getLogger(__name__)

MAX_FIRINGS: Final = 100_000
"""How many firings are kept."""


class Selection(TypedDict, total=False):
    """Which commands a fault is for: see `Fault`."""

    stage: str
    kind: str | None
    slot: str | None
    nth: int | None
    count: int | None
    probability: float | None
    from_s: float | None
    until_s: float | None


class Firing(NamedTuple):
    """A fault that came to pass, so many seconds after the fake started; without a command if it is for all."""

    time_s: float
    stage: str
    action: str
    kind: str
    slot: str
    project: str


class FaultProgress(NamedTuple):
    """How far a plan is.

    Attributes:
        begun_s: when it began, on its clock.
        faults: for each fault its text, how many commands it has selected, and how often it fired.
        firings: what came to pass.
        missed: how much more did, for which the record has no room.
    """

    begun_s: float
    faults: list[tuple[str, int, int]]
    firings: list[Firing]
    missed: int


class _Armed:
    """A fault in a plan, and what has come of it."""

    __slots__ = ("fault", "fired", "hooks", "selected")

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.hooks = fault.hooks
        self.selected = self.fired = 0

    def is_due(self, now_s: float) -> bool:
        """Whether it is its time."""
        until_s = self.fault.until_s
        return now_s >= (self.fault.from_s or 0) and (until_s is None or now_s < until_s)

    def next_change_s(self, now_s: float) -> float:
        """Seconds until its time begins or ends."""
        times_s = (self.fault.from_s or 0, math.inf if self.fault.until_s is None else self.fault.until_s)
        return min((time_s - now_s for time_s in times_s if time_s > now_s), default=math.inf)

    def selects(self, subjects: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
        """The first of (kind, slot id) that it is for."""
        kind, slot = self.fault.kind, self.fault.slot
        for subject in subjects:
            if kind in {None, subject[0]} and (slot is None or fnmatchcase(subject[1], slot)):
                return subject
        return None

    def fires(self, seed: int) -> bool:
        """Whether it fires for the command that it has selected now."""
        fault = self.fault
        count = 1 if fault.count is None and fault.nth is not None else fault.count
        if self.selected < (fault.nth or 1) or (count is not None and self.fired >= count):
            return False
        if fault.probability is None:
            return True
        word = blake2b(f"{seed} {fault} {self.selected}".encode(), digest_size=8).digest()
        return int.from_bytes(word) < fault.probability * 2**64


class FaultPlan:
    """The faults of a fake, for both its tiers; they may be changed at any time, from any thread.

    Where a fault is expected as an argument, its text will do. A change is whole or, if it raises, none; and it is in
    force when the call that makes it returns.

    Args:
        faults: those to begin with.
        clock: seconds since any moment; those of the faults count from `begin`.
        seed: of the probabilities.
        crash: ends this process at once; without it, there can be no crashes.

    Attributes:
        daemon: whether a fault may fire for the next command that comes to the daemon.
        server: likewise for the next request that comes to the server.
        delivery: likewise for the next commands that a daemon in the same process passes on, or they may be refused.

    Raises:
        CpsimError: there is no such fault, or it is a crash and this process must not end.
    """

    def __init__(
        self,
        faults: Iterable[Fault | str] = (),
        *,
        clock: Callable[[], float] = monotonic,
        seed: int = 1,
        crash: Callable[[], object] | None = None,
    ) -> None:
        self.daemon = self.server = self.delivery = False
        self._clock = clock
        self._seed = seed
        self._crash = crash
        self._crashing = self._resumed = False
        self._lock = threading.RLock()
        self._armed: list[_Armed] = []
        self._watchers: list[Callable[[], object]] = []
        self._firings: list[Firing] = []
        self._missed = 0
        self.replace(faults)

    # The plan

    def __iter__(self) -> Iterator[Fault]:
        return iter([armed.fault for armed in self._armed])

    def replace(self, faults: Iterable[Fault | str]) -> None:
        """Have these faults, and no others; what is counted begins anew, and so do the seconds of their times."""
        made = self._made(faults)
        with self._lock:
            self._begun_s = self._clock()
            self._set(made)
        self._tell()

    def add(self, *faults: Fault | str) -> None:
        """Have these faults besides."""
        made = self._made(faults)
        with self._lock:
            self._set([*self._armed, *made])
        self._tell()

    def remove(self, *faults: Fault | str) -> None:
        """Have one fault less of each that is given.

        Raises:
            CpsimError: there is no such fault in the plan.
        """
        with self._lock:
            left = list(self._armed)
            for fault in map(_fault, faults):
                found = next((armed for armed in reversed(left) if armed.fault == fault), None)
                if found is None:
                    raise CpsimError(
                        f"fault {str(fault)!r} is not set; these are: {', '.join(map(str, self)) or 'none'}"
                    )
                left.remove(found)
            self._set(left)
        self._tell()

    def clear(self) -> None:
        """Have no faults."""
        self.replace(())

    @contextmanager
    def during(self, *faults: Fault | str) -> Iterator[None]:
        """Have these faults besides, while the context lasts."""
        made = [_fault(fault) for fault in faults]
        self.add(*made)
        try:
            yield
        finally:
            left = list(self)
            self.remove(*(fault for fault in made if fault in left))

    @property
    def firings(self) -> list[Firing]:
        """What came to pass, in order.

        Raises:
            CpsimError: more than `MAX_FIRINGS` did.
        """
        with self._lock:
            if self._missed:
                raise CpsimError(
                    f"the record of faults is full: it keeps {MAX_FIRINGS:,} firings, and {self._missed:,} came after "
                    "them; forget them to begin anew"
                )
            return list(self._firings)

    def latest(self, most: int = MAX_FIRINGS) -> list[Firing]:
        """The last of what came to pass, in order, as far as it is kept."""
        with self._lock:
            return self._firings[-most:]

    def forget_firings(self, project: str | None = None) -> None:
        """Begin the record of what came to pass anew, or that of a project."""
        with self._lock:
            if project is None:
                self._firings.clear()
                self._missed = 0
            else:
                self._firings = [firing for firing in self._firings if firing.project != project]

    def describe(self) -> list[tuple[str, int, int]]:
        """For each fault: its text, how many commands it has selected, and how often it fired."""
        with self._lock:
            return [(str(armed.fault), armed.selected, armed.fired) for armed in self._armed]

    def progress(self) -> FaultProgress:
        """How far it is, for a plan of another process of this machine to `resume`."""
        with self._lock:
            return FaultProgress(self._begun_s, self.describe(), list(self._firings), self._missed)

    def resume(self, progress: FaultProgress) -> None:
        """Go on where another plan was; `begin` then lets the seconds of the faults' times count on."""
        self.replace([text for text, *_ in progress.faults])
        with self._lock:
            for armed, (_, selected, fired) in zip(self._armed, progress.faults, strict=True):
                armed.selected, armed.fired = selected, fired
            self._begun_s, self._resumed = progress.begun_s, True
            self._firings, self._missed = list(progress.firings), progress.missed

    # Each of these is a context in which there is one fault more: `with faults.hang(kind="claim"): ...`

    def refuse(self, **selection: Unpack[Selection]) -> AbstractContextManager[None]:
        """The daemon refuses connections."""
        return self.during(Fault("refuse", **selection))

    def down(self, **selection: Unpack[Selection]) -> AbstractContextManager[None]:
        """The server refuses connections, and a daemon in the same fake keeps its commands."""
        return self.during(Fault("down", **selection))

    def hang(self, **selection: Unpack[Selection]) -> AbstractContextManager[None]:
        """A command is not taken, and never answered."""
        return self.during(Fault("hang", **selection))

    def late(self, delay_s: float, **selection: Unpack[Selection]) -> AbstractContextManager[None]:
        """A command is taken and answered after so many seconds."""
        return self.during(Fault("late", delay_s, **selection))

    def lose_reply(self, **selection: Unpack[Selection]) -> AbstractContextManager[None]:
        """A command is taken, and the connection closed without an answer."""
        return self.during(Fault("lose-reply", **selection))

    def close(self, **selection: Unpack[Selection]) -> AbstractContextManager[None]:
        """A command is not taken, and the connection closed without an answer."""
        return self.during(Fault("close", **selection))

    def reset(self, **selection: Unpack[Selection]) -> AbstractContextManager[None]:
        """A command is not taken, and the connection reset."""
        return self.during(Fault("reset", **selection))

    def error(self, **selection: Unpack[Selection]) -> AbstractContextManager[None]:
        """The daemon does not take a command, and answers ER."""
        return self.during(Fault("error", **selection))

    def pieces(self, delay_s: float | None = None, **selection: Unpack[Selection]) -> AbstractContextManager[None]:
        """The daemon takes a command, and answers byte by byte, with a pause."""
        return self.during(Fault("pieces", delay_s, **selection))

    def status(self, status: int, **selection: Unpack[Selection]) -> AbstractContextManager[None]:
        """The server does not take a request, and answers with this status."""
        return self.during(Fault("status", status, **selection))

    def cut(self, **selection: Unpack[Selection]) -> AbstractContextManager[None]:
        """The server takes a request, and sends half of its answer's body."""
        return self.during(Fault("cut", **selection))

    def not_json(self, **selection: Unpack[Selection]) -> AbstractContextManager[None]:
        """The server does not take a request, and answers 200 with a page of HTML."""
        return self.during(Fault("not-json", **selection))

    # For the tiers

    def begin(self) -> None:
        """Count the seconds of the faults' times from now, unless this goes on with another plan."""
        if not self._resumed:
            self._begun_s = self._clock()

    def draw(self, hook: str, subjects: Sequence[tuple[str, str]], project: str = "") -> Fault | None:
        """The fault that fires now, if one does.

        Args:
            hook: "daemon", "server" or "delivery": the moment.
            subjects: what it is about: (kind, slot id), "" where there is no slot. Several are one request.
            project: whose they are.
        """
        now_s = self._elapsed_s()
        firing = None
        with self._lock:
            for armed in self._armed:
                if hook not in armed.hooks or not armed.is_due(now_s):
                    continue
                subject = armed.selects(subjects)
                if subject is None:
                    continue
                armed.selected += 1
                dies = armed.fault.crashes
                if firing is None and armed.fires(self._seed) and not (dies and self._crashing):
                    firing = armed
                    self._crashing = self._crashing or dies
                    stage = armed.fault.stage or ("daemon" if hook == "delivery" else hook)
                    self._record(armed, now_s, stage, subject, project)
        return None if firing is None else firing.fault

    def refuses(self, stage: str) -> bool:
        """Whether a stage refuses connections now."""
        now_s = self._elapsed_s()
        with self._lock:
            due = [armed for armed in self._states(stage) if armed.is_due(now_s)]
            for armed in due:
                if not armed.fired:
                    self._record(armed, now_s, stage, ("", ""), "")
        return bool(due)

    def next_change_s(self, stage: str) -> float | None:
        """Seconds until a stage may begin or cease to refuse connections, if the plan is left as it is."""
        now_s = self._elapsed_s()
        with self._lock:
            soonest_s = min((armed.next_change_s(now_s) for armed in self._states(stage)), default=math.inf)
        return None if soonest_s == math.inf else soonest_s

    def watch(self, watcher: Callable[[], object]) -> None:
        """Call this after each change of the plan."""
        self._watchers.append(watcher)

    def unwatch(self, watcher: Callable[[], object]) -> None:
        """Call it no more."""
        self._watchers.remove(watcher)

    def crash(self) -> None:
        """End this process at once; nothing comes to pass meanwhile, and only the log can tell what has."""
        assert self._crash is not None
        with self._lock:
            for firing in self._firings[-1:]:
                log.warning("%s.%s, for %s of slot %r: this process dies", *firing[1:5])
            self._crash()

    def _elapsed_s(self) -> float:
        return self._clock() - self._begun_s

    def _made(self, faults: Iterable[Fault | str]) -> list[_Armed]:
        made = [_fault(fault) for fault in faults]
        for fault in made:
            if fault.crashes and self._crash is None:
                raise CpsimError(
                    f"fault {str(fault)!r} would end the process that runs this fake: serve it in a process of its "
                    "own, as cpsim serve does"
                )
        return [_Armed(fault) for fault in made]

    def _set(self, plan: list[_Armed]) -> None:
        self._armed = plan
        hooks = frozenset[str]().union(*(armed.hooks for armed in plan))
        self.daemon, self.server = (hook in hooks for hook in ("daemon", "server"))
        self.delivery = "delivery" in hooks or any(self._states("server"))

    def _tell(self) -> None:
        for watcher in list(self._watchers):
            watcher()

    def _states(self, stage: str) -> Iterator[_Armed]:
        return (armed for armed in self._armed if armed.fault.stage == stage and not armed.hooks)

    def _record(self, armed: _Armed, now_s: float, stage: str, subject: tuple[str, str], project: str) -> None:
        armed.fired += 1
        log.info("fault %s fires, for %s of slot %r", armed.fault, subject[0] or "all", subject[1])
        if len(self._firings) < MAX_FIRINGS:
            self._firings.append(Firing(now_s, stage, armed.fault.action, *subject, project))
        else:
            self._missed += 1


def _fault(fault: Fault | str) -> Fault:
    return Fault.parse(fault) if isinstance(fault, str) else fault

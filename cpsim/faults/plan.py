"""The plan of a fake's faults: which are set, which fires for a command, and which have fired.

Several faults can meet one command, in the order of the plan: one that drops it is the last. One crash happens in a
process. Whether a fault with a probability fires depends only on the seed, the fault and the number of the command, so
that the same commands get the same faults.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter, deque
from contextlib import contextmanager
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypedDict

from cpsim.clock import SYSTEM_CLOCK
from cpsim.errors import CpsimError
from cpsim.faults.spec import ACTIONS, Fault, unknown
from cpsim.protocol.exchange import Passage
from cpsim.system.checks import check, check_many

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from contextlib import AbstractContextManager
    from typing import Unpack

    from cpsim.clock import Clock
    from cpsim.protocol.exchange import Exchange, Interceptor

log = logging.getLogger(__name__)

MAX_FIRINGS: Final = 100_000
"""Number of firings that are recorded."""
UNFIRED_KEPT: Final = 1_000
"""Number of faults that are recorded of those that were removed before they fired."""


class Selection(TypedDict, total=False):
    """The commands that a fault selects: see `Fault`."""

    stage: str
    kind: str | None
    slot: str | None
    project: str | None
    nth: int | None
    count: int | None
    probability: float | None
    from_s: float | None
    until_s: float | None


class Firing(NamedTuple):
    """A fault that fired, `time_s` seconds after the fake started; kind and slot are "" if it is for all commands."""

    time_s: float
    stage: str
    action: str
    kind: str
    slot: str
    project: str


class FaultContext(Protocol):
    """Makes a context with one more fault of some action."""

    def __call__(self, value: float | None = None, /, **selection: Unpack[Selection]) -> AbstractContextManager[None]:
        """Return the context; `value` is the action's argument."""


class FaultProgress(NamedTuple):
    """The progress of a plan.

    Attributes:
        begun_s: its start, on its clock.
        faults: text of each fault, number of selected commands, and number of firings.
        firings: the recorded firings.
        missed: number of firings beyond the record's limit.
    """

    begun_s: float
    faults: list[tuple[str, int, int]]
    firings: list[Firing]
    missed: int


class _Armed:
    """A fault in a plan, and its counts."""

    __slots__ = ("action", "fault", "fired", "hooks", "selected")

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.action = ACTIONS[fault.action](fault.value)
        self.hooks = fault.hooks
        self.selected = self.fired = 0

    @property
    def had_no_chance(self) -> bool:
        """Whether it has not fired, and that was not by chance."""
        return not self.fired and (self.fault.probability is None or not self.selected)

    def is_due(self, now_s: float) -> bool:
        """Return whether the fault's time has begun and not ended."""
        until_s = self.fault.until_s
        return now_s >= (self.fault.from_s or 0) and (until_s is None or now_s < until_s)

    def next_change_s(self, now_s: float) -> float:
        """Return the seconds until its time begins or ends."""
        times_s = (self.fault.from_s or 0, math.inf if self.fault.until_s is None else self.fault.until_s)
        return min((time_s - now_s for time_s in times_s if time_s > now_s), default=math.inf)

    def selects(self, exchange: Exchange) -> tuple[str, str] | None:
        """Return the first (kind, slot id) of an exchange that it selects."""
        kind, slot = self.fault.kind, self.fault.slot
        if self.fault.project not in {None, exchange.project}:
            return None
        for subject in exchange.subjects:
            if kind in {None, subject[0]} and (slot is None or fnmatchcase(subject[1], slot)):
                return subject
        return None

    def fires(self, seed: int) -> bool:
        """Return whether it fires for the command that it selected last."""
        fault = self.fault
        count = 1 if fault.count is None and fault.nth is not None else fault.count
        if self.selected < (fault.nth or 1) or (count is not None and self.fired >= count):
            return False
        if fault.probability is None:
            return True
        word = blake2b(f"{seed} {fault} {self.selected}".encode(), digest_size=8).digest()
        return int.from_bytes(word) < fault.probability * 2**64


class FaultPlan:
    """The faults of a fake's two tiers; any thread may change them at any time.

    Methods accept a fault as a `Fault` or as text. A change that raises changes nothing; otherwise it is in force when
    the call returns.

    Args:
        faults: the initial faults.
        clock: its monotonic time is that of the faults, whose times count from `begin`.
        seed: seed of the probabilities.
        crash: ends this process at once; without it, crashes are refused.
        held: stages whose sockets another process holds too, so that they cannot refuse connections.

    Attributes:
        daemon: whether a fault may fire for the next command at the daemon.
        server: whether a fault may fire for the next request at the server.
        delivery: whether a fault may fire for, or refuse, the next batch of a daemon in the same process.

    Raises:
        CpsimError: there is no such fault, it is a crash and `crash` is None, or it refuses connections at a stage that
            is `held`.
    """

    def __init__(
        self,
        faults: Iterable[Fault | str] = (),
        *,
        clock: Clock = SYSTEM_CLOCK,
        seed: int = 1,
        crash: Callable[[], object] | None = None,
        held: Collection[str] = (),
    ) -> None:
        check_many("faults", faults, "'hang:count=1'")
        self.daemon = self.server = self.delivery = False
        self._clock = clock
        self._seed = seed
        self._crash = crash
        self._held = held
        self._crashing = self._resumed = False
        self._lock = threading.RLock()
        self._armed: list[_Armed] = []
        self._removed: deque[_Armed] = deque(maxlen=UNFIRED_KEPT)
        """Those that were removed before they fired."""
        self._watchers: list[Callable[[], object]] = []
        self._firings: list[Firing] = []
        self.fired: Counter[tuple[str, str]] = Counter()
        """Number of firings since the start, by stage and action; nothing resets it."""
        self._missed = 0
        self._initial = tuple(faults)
        self.replace(self._initial)

    # The plan

    def __iter__(self) -> Iterator[Fault]:
        return iter([armed.fault for armed in self._armed])

    def replace(self, faults: Iterable[Fault | str]) -> None:
        """Replace all faults; restart their counts and times."""
        made = self._parsed(faults)
        with self._lock:
            self._begun_s = self._clock.monotonic()
            self._set(made)
        self._notify()

    def add(self, *faults: Fault | str) -> None:
        """Add faults."""
        made = self._parsed(faults)
        with self._lock:
            self._set([*self._armed, *made])
        self._notify()

    def remove(self, *faults: Fault | str) -> None:
        """Remove each of these faults once.

        Raises:
            CpsimError: a fault is not in the plan.
        """
        with self._lock:
            left = list(self._armed)
            for fault in map(as_fault, faults):
                found = next((armed for armed in reversed(left) if armed.fault == fault), None)
                if found is None:
                    raise CpsimError(
                        f"fault {str(fault)!r} is not set; these are: {', '.join(map(str, self)) or 'none'}"
                    )
                left.remove(found)
            self._set(left)
        self._notify()

    def clear(self) -> None:
        """Remove all faults."""
        self.replace(())

    def restart(self, faults: Iterable[Fault | str] | None = None) -> None:
        """Clear what is recorded, and set the initial faults again, or these, with new counts and times."""
        self.forget_firings()
        self.replace(self._initial if faults is None else faults)
        self._removed.clear()

    @contextmanager
    def during(self, *faults: Fault | str) -> Iterator[None]:
        """Add faults while the context lasts."""
        made = [as_fault(fault) for fault in faults]
        self.add(*made)
        try:
            yield
        finally:
            left = list(self)
            self.remove(*(fault for fault in made if fault in left))

    @property
    def firings(self) -> list[Firing]:
        """The recorded firings, in order.

        Raises:
            CpsimError: there were more than `MAX_FIRINGS`.
        """
        with self._lock:
            if self._missed:
                raise CpsimError(
                    f"the record of faults is full: it keeps {MAX_FIRINGS:,} firings, and {self._missed:,} came after "
                    "them; clear it to restart it"
                )
            return list(self._firings)

    def unfired(self) -> list[tuple[Fault, int]]:
        """Return each fault that never fired, though not by chance, and its number of selected commands.

        Those that were removed since the plan was made, or restarted, come first.
        """
        with self._lock:
            return [(armed.fault, armed.selected) for armed in (*self._removed, *self._armed) if armed.had_no_chance]

    def latest(self, most: int = MAX_FIRINGS) -> list[Firing]:
        """Return the last recorded firings, in order."""
        with self._lock:
            return self._firings[-most:]

    def forget_firings(self, project: str | None = None) -> None:
        """Clear the recorded firings, of one project or of all."""
        with self._lock:
            if project is None:
                self._firings.clear()
                self._missed = 0
            else:
                self._firings = [firing for firing in self._firings if firing.project != project]

    def describe(self) -> list[tuple[str, int, int]]:
        """Return the text of each fault, its number of selected commands, and its number of firings."""
        with self._lock:
            return [(str(armed.fault), armed.selected, armed.fired) for armed in self._armed]

    def progress(self) -> FaultProgress:
        """Return the progress, which a plan of another process on this machine can `resume`."""
        with self._lock:
            return FaultProgress(self._begun_s, self.describe(), list(self._firings), self._missed)

    def resume(self, progress: FaultProgress) -> None:
        """Continue another plan; `begin` then keeps the times of the faults."""
        self.replace([text for text, *_ in progress.faults])
        with self._lock:
            for armed, (_, selected, fired) in zip(self._armed, progress.faults, strict=True):
                armed.selected, armed.fired = selected, fired
            self._begun_s, self._resumed = progress.begun_s, True
            self._firings, self._missed = list(progress.firings), progress.missed

    def __getattr__(self, name: str) -> FaultContext:
        """Return a context with one more fault, of the action of this name: `with faults.hang(kind="claim"): ...`."""
        action = name.replace("_", "-")
        if action not in ACTIONS:
            raise AttributeError(f"no action {unknown(action, ACTIONS)}", name=name, obj=self)

        def context(value: float | None = None, **selection: Unpack[Selection]) -> AbstractContextManager[None]:
            return self.during(Fault(action, value, **selection))

        context.__doc__ = f"{ACTIONS[action].effect}."
        return context

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(action.replace("-", "_") for action in ACTIONS)]

    # For the tiers

    def begin(self) -> None:
        """Count the faults' times from now, unless this plan continues another."""
        if not self._resumed:
            self._begun_s = self._clock.monotonic()

    def intercept(self, exchange: Exchange) -> Passage | None:
        """Return the passage of an exchange through the faults that fire for it now; None if there are none."""
        now_s = self._elapsed_s()
        with self._lock:
            selecting: list[tuple[_Armed, tuple[str, str]]] = []
            for armed in self._armed:
                if exchange.hook not in armed.hooks or not armed.is_due(now_s):
                    continue
                subject = armed.selects(exchange)
                if subject is not None:
                    armed.selected += 1
                    selecting.append((armed, subject))
            passage = Passage(exchange._replace(time_s=now_s), self._firing(selecting, exchange, now_s))
        return passage or None

    def has_all(self, passage: Passage) -> bool:
        """Return whether all faults that a command has met are still in the plan."""
        left = {id(armed.action) for armed in list(self._armed)}
        return left.issuperset(map(id, passage.passed))

    def _firing(
        self, selecting: Iterable[tuple[_Armed, tuple[str, str]]], exchange: Exchange, now_s: float
    ) -> Iterator[Interceptor]:
        """Yield the faults that fire, of those that select something, as long as they are asked for."""
        for armed, subject in selecting:
            dies = armed.action.crashes
            if armed.fires(self._seed) and not (dies and self._crashing):
                self._crashing = self._crashing or dies
                stage = armed.fault.stage or ("daemon" if exchange.hook == "delivery" else exchange.hook)
                self._record(armed, now_s, stage, subject, exchange.project)
                yield armed.action

    def refuses(self, stage: str) -> bool:
        """Return whether a stage refuses connections now."""
        now_s = self._elapsed_s()
        with self._lock:
            due = [armed for armed in self._states(stage) if armed.is_due(now_s)]
            for armed in due:
                if not armed.fired:
                    self._record(armed, now_s, stage, ("", ""), "")
        return bool(due)

    def next_change_s(self, stage: str) -> float | None:
        """Return the seconds until a stage may start or stop refusing connections, if the plan stays unchanged."""
        now_s = self._elapsed_s()
        with self._lock:
            soonest_s = min((armed.next_change_s(now_s) for armed in self._states(stage)), default=math.inf)
        return None if soonest_s == math.inf else soonest_s

    def watch(self, watcher: Callable[[], object]) -> None:
        """Call a function after each change of the plan."""
        self._watchers.append(watcher)

    def unwatch(self, watcher: Callable[[], object]) -> None:
        """Stop calling a function after changes."""
        self._watchers.remove(watcher)

    def crash(self) -> None:
        """End this process at once; no other fault fires meanwhile, and the log alone records the last firing."""
        assert self._crash is not None
        with self._lock:
            for firing in self._firings[-1:]:
                log.warning("%s.%s, for %s of slot %r: this process dies", *firing[1:5])
            self._crash()

    def _elapsed_s(self) -> float:
        return self._clock.monotonic() - self._begun_s

    def _parsed(self, faults: Iterable[Fault | str]) -> list[_Armed]:
        made = [as_fault(fault) for fault in faults]
        for fault in made:
            if fault.crashes and self._crash is None:
                raise CpsimError(
                    f"fault {str(fault)!r} would end the process that runs this fake: serve it in its own process, "
                    "with cpsim serve"
                )
            if fault.stage in self._held and not fault.hooks:
                raise CpsimError(
                    f"fault {str(fault)!r} cannot refuse connections at a socket that the service manager holds: serve "
                    "at an address of your own"
                )
        return [_Armed(fault) for fault in made]

    def _set(self, plan: list[_Armed]) -> None:
        self._removed += [armed for armed in self._armed if armed.had_no_chance and armed not in plan]
        self._armed = plan
        hooks = frozenset[str]().union(*(armed.hooks for armed in plan))
        self.daemon, self.server = (hook in hooks for hook in ("daemon", "server"))
        self.delivery = "delivery" in hooks or any(self._states("server"))

    def _notify(self) -> None:
        for watcher in list(self._watchers):
            watcher()

    def _states(self, stage: str) -> Iterator[_Armed]:
        return (armed for armed in self._armed if armed.fault.stage == stage and not armed.hooks)

    def _record(self, armed: _Armed, now_s: float, stage: str, subject: tuple[str, str], project: str) -> None:
        armed.fired += 1
        self.fired[stage, armed.fault.action] += 1
        log.info("fault %s fires, for %s of slot %r", armed.fault, subject[0] or "all", subject[1])
        if len(self._firings) < MAX_FIRINGS:
            self._firings.append(Firing(now_s, stage, armed.fault.action, *subject, project))
        else:
            self._missed += 1


def as_fault(fault: Fault | str) -> Fault:
    """Return a fault that may be given as text."""
    check("a fault", fault, (Fault, str), "a Fault or a text, such as 'hang:count=1'")
    return Fault.parse(fault) if isinstance(fault, str) else fault

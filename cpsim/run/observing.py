"""Waits until commands are applied, and sees the accounts then."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from cpdaemon.endpoint import UrlEndpoint
from cpsim.accounts.observer import CannotObserve
from cpsim.evidence.evidence import Seen
from cpsim.judge.judge import OF_ACCOUNTS, OF_REPLIES, checkers_of_others, judge
from cpsim.judge.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cpsim.accounts.observer import Observer
    from cpsim.clock import Clock
    from cpsim.evidence.evidence import Evidence
    from cpsim.judge.judge import Checker

LONGEST_WAIT: Final = 20
"""Limit of the wait for commands that are still being applied, in timeouts."""
SHORTEST_QUIET_S: Final = 0.05
LONGEST_QUIET_S: Final = 1.0
"""Bounds of the quiet time before the next judgement, which is as long as a judgement takes."""
POLL_S: Final = 0.01


def conclude(
    evidence: Evidence,
    observer: Observer | None,
    timeout_s: float,
    clock: Clock,
    checkers: Sequence[Checker] | None = None,
) -> tuple[Evidence, Verdict]:
    """See the accounts as soon as they are as they should be, or no longer change, and judge.

    Args:
        evidence: of the replay.
        observer: reads the server's accounts; None if there is no server to observe.
        timeout_s: seconds without change in the accounts after which missing commands count as lost.
        clock: measures the waits; its monotonic time is that of the evidence.
        checkers: others than the product's own; None for those that are installed.
    """
    if observer is None:
        verdict = _judged(evidence, OF_ACCOUNTS)
    else:
        try:
            evidence, verdict = _observe(evidence, observer, timeout_s, clock)
        except CannotObserve as error:
            evidence = replace(evidence, seen=None, unseen=str(error))
            verdict = _judged(evidence, OF_ACCOUNTS)
    others = checkers_of_others() if checkers is None else checkers
    return evidence, verdict.merged(_judged(evidence, [*OF_REPLIES, *others]))


def _judged(evidence: Evidence, checkers: Sequence[Checker]) -> Verdict:
    return judge(evidence.partitions(), evidence.head(), checkers)


def _observe(evidence: Evidence, observer: Observer, timeout_s: float, clock: Clock) -> tuple[Evidence, Verdict]:
    """Judge until the accounts are as they should be, or have not changed for `timeout_s`.

    A daemon may take its time to forward commands; while it does, the judge waits, within a limit. Requests during the
    wait are cheap; all accounts are read only when they no longer change.
    """
    end = clock.monotonic() + LONGEST_WAIT * timeout_s
    control = observer.control.exists()
    signal = observer.control.totals if control else observer.outstanding
    if control:
        _wait(lambda: not observer.control.totals()["pending"], clock.monotonic() + timeout_s, clock)
    changed, verdict = True, Verdict()
    while True:
        begun = clock.monotonic()
        shown, counts = signal(), verdict.counts
        evidence = replace(evidence, seen=_look(evidence, observer, clock, control=control))
        verdict = _judged(evidence, OF_ACCOUNTS)
        now = clock.monotonic()
        if not verdict.counts or now > end or isinstance(evidence.endpoint, UrlEndpoint):
            return evidence, verdict
        if not changed and counts == verdict.counts:
            return evidence, verdict
        changed = _wait(lambda: signal() != shown, min(now + timeout_s, end), clock)  # noqa: B023 - called at once
        if changed:
            _wait_until_quiet(signal, min(max(now - begun, SHORTEST_QUIET_S), LONGEST_QUIET_S), end, clock)


def _look(evidence: Evidence, observer: Observer, clock: Clock, *, control: bool) -> Seen:
    from_ns = clock.monotonic_ns() - evidence.start_ns
    view = observer.view() if control else None
    outstanding = None if control else frozenset(observer.outstanding())
    to_ns = clock.monotonic_ns() - evidence.start_ns
    if evidence.virtual_ns is not None:
        last_ns = int(evidence.virtual_ns[-1]) if len(evidence.virtual_ns) else 0
        from_ns = to_ns = max(last_ns, evidence.workload.duration_us * 1_000)
    return Seen(from_ns, to_ns, view, outstanding)


def _wait(condition: Callable[[], bool], deadline: float, clock: Clock) -> bool:
    """Poll a condition, with backoff, until it is true; False if it is not by the deadline."""
    pause_s = POLL_S
    while not condition():
        if clock.monotonic() > deadline:
            return False
        clock.sleep(pause_s)
        pause_s = min(1.5 * pause_s, LONGEST_QUIET_S)
    return True


def _wait_until_quiet(signal: Callable[[], object], quiet_s: float, deadline: float, clock: Clock) -> None:
    shown, now = None, signal()
    while shown != now and clock.monotonic() < deadline:
        clock.sleep(quiet_s)
        shown, now = now, signal()

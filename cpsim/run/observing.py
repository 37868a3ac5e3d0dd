"""Waits until commands are applied, and sees the accounts then."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from cpdaemon.endpoint import UrlEndpoint
from cpsim.accounts.observer import CannotObserve, NothingNew
from cpsim.evidence.evidence import Seen
from cpsim.judge.books import imbalances
from cpsim.judge.judge import OF_ACCOUNTS, OF_REPLIES, checkers_of_others, judge
from cpsim.judge.verdict import Verdict
from cpsim.system.mapped import give_back

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cpsim.accounts.observer import Observer
    from cpsim.accounts.sources import AccountsSource
    from cpsim.clock import Clock
    from cpsim.evidence.evidence import Evidence, Imbalance
    from cpsim.judge.judge import Checker

    Judging = Callable[[Evidence, Sequence[Checker]], Verdict]

LONGEST_WAIT: Final = 20
"""Limit of the wait for commands that are still being applied, in timeouts."""
SHORTEST_QUIET_S: Final = 0.05
LONGEST_QUIET_S: Final = 1.0
"""Bounds of the quiet time before the next judgement, which is as long as a judgement takes."""
POLL_S: Final = 0.01
READ_TAKES: Final = 20
"""Timeouts for which a source of accounts may pause: it may have millions of rows to put together."""


def imbalances_before(
    observer: Observer | None, source: AccountsSource | None, timeout_s: float
) -> tuple[Imbalance, ...] | None:
    """The sums of a target's accounts that do not agree before a run; None if the target does not show them.

    Args:
        observer: reads the server's accounts; None if there is no server to observe.
        source: shows the accounts in place of the server; None if the server shows them itself.
        timeout_s: seconds to wait for an answer.

    Raises:
        CannotObserve: the source cannot be read.
    """
    if source is not None:  # what cannot be read is said before anything is sent
        return imbalances(source.read(READ_TAKES * timeout_s))
    if observer is None or not observer.control.exists():
        return None
    try:
        projects = observer.control.totals()["projects"].values()
        is_new = all(isinstance(totals, dict) and totals.get("allocated") == 0 for totals in projects)
        if is_new:
            return ()
        return imbalances(*observer.view_and_meanwhile())
    except CannotObserve:
        return None


def conclude(
    evidence: Evidence,
    observer: Observer | None,
    timeout_s: float,
    clock: Clock,
    checkers: Sequence[Checker] | None = None,
    *,
    source: AccountsSource | None = None,
    judged: Judging | None = None,
) -> tuple[Evidence, Verdict]:
    """See the accounts as soon as they are as they should be, or no longer change, and judge.

    Args:
        evidence: of the replay.
        observer: reads the server's accounts; None if there is no server to observe.
        timeout_s: seconds without change in the accounts after which missing commands count as lost.
        clock: measures the waits; its monotonic time is that of the evidence.
        checkers: others than the product's own; None for those that are installed.
        source: shows the accounts in place of the server; None if the server shows them itself.
        judged: judges by some checkers; None judges all in this process.
    """
    judged = judged or _judged
    if source is not None:
        evidence, verdict = _observe_source(evidence, source, timeout_s, clock, judged)
    elif observer is None:
        verdict = judged(evidence, OF_ACCOUNTS)
    else:
        try:
            evidence, verdict = _observe(evidence, observer, timeout_s, clock, judged)
        except CannotObserve as error:
            evidence = replace(evidence, seen=None, unseen=str(error))
            verdict = judged(evidence, OF_ACCOUNTS)
    others = checkers_of_others() if checkers is None else checkers
    return evidence, verdict.merged(judged(evidence, [*OF_REPLIES, *others]))


def _judged(evidence: Evidence, checkers: Sequence[Checker]) -> Verdict:
    give_back()
    return judge(evidence.partitions(), evidence.head(), checkers)


def _observe(
    evidence: Evidence, observer: Observer, timeout_s: float, clock: Clock, judged: Judging
) -> tuple[Evidence, Verdict]:
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
        verdict = judged(evidence, OF_ACCOUNTS)
        now = clock.monotonic()
        is_settled = not (verdict.not_verified and _comes_more(evidence))
        at_once = isinstance(evidence.endpoint, UrlEndpoint)
        if now > end or (is_settled and (at_once or not verdict.counts)):
            return evidence, verdict
        if not changed and counts == verdict.counts:
            return evidence, verdict
        changed = _wait(lambda: signal() != shown, min(now + timeout_s, end), clock)  # noqa: B023 - called at once
        if changed:
            quiet_s = min(max(now - begun, SHORTEST_QUIET_S), LONGEST_QUIET_S)
            until = min(end, clock.monotonic() + timeout_s)  # others may keep the server busy for ever
            _wait_until_quiet(signal, quiet_s, until, clock)


def _comes_more(evidence: Evidence) -> bool:
    """Whether claims of the run's projects came while the accounts were read."""
    assert evidence.seen is not None
    return not {project.lower() for project in evidence.projects}.isdisjoint(map(str.lower, evidence.seen.meanwhile))


def _observe_source(
    evidence: Evidence, source: AccountsSource, timeout_s: float, clock: Clock, judged: Judging
) -> tuple[Evidence, Verdict]:
    """Judge until the accounts of a source are as they should be, or what is wrong has not changed for `timeout_s`.

    A source is read as a whole, and rests at least as long as that took before it is read again. It may be a copy that
    lags behind, or be read while commands are being applied: what is wrong then is right a little later. One that
    fails is read again for as long.
    """
    begun = since = clock.monotonic()
    pause_s, wrong, verdict = POLL_S, None, Verdict()
    try:
        while True:
            from_s, failure = clock.monotonic(), None
            try:
                evidence = replace(evidence, seen=_seen_in(source, evidence, timeout_s, clock))
                verdict = judged(evidence, OF_ACCOUNTS)
            except CannotObserve as error:
                failure = None if isinstance(error, NothingNew) and wrong is not None else error
            now = clock.monotonic()
            if failure is None and verdict.counts != wrong:
                wrong, since = verdict.counts, now
            if failure is None and not wrong:
                return evidence, verdict
            if now - since >= timeout_s or now - begun > LONGEST_WAIT * timeout_s:
                if failure is not None:
                    raise failure
                return evidence, verdict
            clock.sleep(max(pause_s, now - from_s))
            pause_s = min(1.5 * pause_s, LONGEST_QUIET_S)
    except CannotObserve as error:
        why = str(error)
    except KeyboardInterrupt:
        why = f"the reading of {source} was interrupted"
    evidence = replace(evidence, seen=None, unseen=why)
    return evidence, judged(evidence, OF_ACCOUNTS)


def _seen_in(source: AccountsSource, evidence: Evidence, timeout_s: float, clock: Clock) -> Seen:
    from_ns = clock.monotonic_ns() - evidence.start_ns
    view = source.read(READ_TAKES * timeout_s)
    return Seen(from_ns, clock.monotonic_ns() - evidence.start_ns, view)


def _look(evidence: Evidence, observer: Observer, clock: Clock, *, control: bool) -> Seen:
    from_ns = clock.monotonic_ns() - evidence.start_ns
    view, meanwhile = observer.view_and_meanwhile() if control else (None, {})
    outstanding = None if control else frozenset(observer.outstanding())
    to_ns = clock.monotonic_ns() - evidence.start_ns
    if evidence.virtual_ns is not None:
        last_ns = int(evidence.virtual_ns[-1]) if len(evidence.virtual_ns) else 0
        from_ns = to_ns = max(last_ns, evidence.workload.duration_us * 1_000)
    return Seen(from_ns, to_ns, view, outstanding, meanwhile)


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

"""The main job: a workload replayed at an endpoint, the effect observed, judged, and written down."""

from __future__ import annotations

import contextlib
import resource
import secrets
import signal
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from cpdaemon.commands import Discard
from cpdaemon.endpoint import UnixEndpoint, UrlEndpoint, parse_endpoint
from cpdaemon.errors import InvalidCommand
from cpsim.errors import Problem
from cpsim.fake import FakeProcess
from cpsim.replay.connect import open_wire
from cpsim.replay.engine import Engine, Progress, operations
from cpsim.replay.journal import RECORD_TYPE, Journal, Outcome
from cpsim.replay.payloads import frames, requests
from cpsim.verify.history import judge_balance, judge_machines, judge_outstanding, judge_slots
from cpsim.verify.model import Span, Step
from cpsim.verify.observer import CannotObserve, Observer
from cpsim.verify.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt
    import pyarrow as pa

    from cpdaemon.endpoint import Endpoint
    from cpsim.replay.clock import Pace
    from cpsim.scenario.workload import Workload

EMBEDDED_PROJECT: Final = "cpsim"
LONGEST_WAIT: Final = 20
"""How many time-outs long an effect is waited for that goes on arriving."""
LONGEST_PATIENCE_S: Final = 1.0
PREFIX_BYTES: Final = 80
"""The longest slot prefix: workloads are checked for slot ids of up to a hundred bytes."""
UNFIT: Final = ("HTTP 400: ", "HTTP 401: ")
"""How errors begin by which a server says that a request is malformed or not signed; none is."""
FILES_BESIDE: Final = 64
"""Open files that a run needs beside its connections."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to replay, and where to look.

    Attributes:
        endpoint: a daemon or a server.
        server: the server whose accounts show the effect, if there is one to look at.
        credentials: (project id, secret) at that server.
    """

    endpoint: Endpoint
    server: UrlEndpoint | None = None
    credentials: tuple[str, str] | None = None


@dataclass(slots=True)
class Run:
    """One run and all that came of it. Times are nanoseconds since the replay began."""

    workload: Workload
    target: Target
    embedded: bool
    pace: Pace
    slot_prefix: str
    started: datetime
    elapsed_s: float = 0.0
    interrupted: bool = False
    schedule_us: npt.NDArray[np.int64] | None = None
    records: npt.NDArray[np.void] = field(default_factory=lambda: np.empty(0, RECORD_TYPE))
    errors: list[str] = field(default_factory=list)
    slots: pa.Table | None = None
    accounts: pa.Table | None = None
    verdict: Verdict = field(default_factory=Verdict)


def run(
    load: Callable[[], Workload],
    target: Target | None,
    pace: Pace,
    *,
    in_flight: int,
    timeout_s: float,
    slot_prefix: str | None,
    on_stage: Callable[[str], None],
    on_progress: Callable[[int, Progress], None],
) -> Run:
    """Replay a workload at a target and judge the effect.

    Args:
        load: makes the workload; called while an embedded fake starts up.
        target: where to; None embeds a fake in a process of its own.
        pace: when operations are due.
        in_flight: operations under way at once.
        timeout_s: for one operation, and for its effect to show.
        slot_prefix: begins the ids of the slots; None makes one that no earlier run has used.
        on_stage: told what is being done, in words.
        on_progress: told the number of operations in all, and how far the replay is.

    Raises:
        CannotObserve, OSError: the target cannot be reached or looked at.
        Problem: the embedded fake did not start, or so many operations cannot be in flight here.
        InvalidCommand: the slot prefix cannot be in a command.
    """
    if slot_prefix is not None:
        check_prefix(slot_prefix)
    _allow_open_files(in_flight + FILES_BESIDE)
    with _embedded() if target is None else contextlib.nullcontext(lambda: target) as locate:
        on_stage("making the workload")
        workload = load()
        started = datetime.now(UTC)
        result = Run(
            workload=workload,
            target=locate(),
            embedded=target is None,
            pace=pace,
            slot_prefix=slot_prefix or _fresh_prefix(workload, started, embedded=target is None),
            started=started,
        )
        observer = _observer(result.target, timeout_s)
        if observer is not None:
            observer.outstanding()  # a wrong address or secret should show before anything is sent
            if result.embedded:
                observer.link(
                    [(workload.machines[m], workload.users[u]) for m, u in enumerate(workload.owner.tolist()) if u >= 0]
                )
        on_stage("replaying")
        start = _replay(result, in_flight, timeout_s, on_progress)
        on_stage("verifying")
        _judge(result, observer, start, timeout_s)
        return result


@contextlib.contextmanager
def _embedded() -> Iterator[Callable[[], Target]]:
    """A fake in a process of its own; yields a function that waits for it and says where it is."""
    secret = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="cpsim-") as folder:
        socket_path = Path(folder) / "daemon.sock"
        with FakeProcess({EMBEDDED_PROJECT: secret}, socket_path) as process:

            def locate() -> Target:
                addresses = process.addresses()
                server = parse_endpoint(addresses["http"])
                assert isinstance(server, UrlEndpoint)
                return Target(UnixEndpoint(addresses["unix"]), server, (EMBEDDED_PROJECT, secret))

            yield locate


def check_prefix(slot_prefix: str) -> None:
    """Raise InvalidCommand if slot ids cannot begin like this."""
    Discard(slot_prefix)
    size = len(slot_prefix.encode())
    if size > PREFIX_BYTES:
        raise InvalidCommand(f"the slot prefix has {size} bytes: at most {PREFIX_BYTES} leave room for the rest")


def _fresh_prefix(workload: Workload, started: datetime, *, embedded: bool) -> str:
    suffix = "" if embedded else f"-{started:%Y%m%d%H%M%S}-{secrets.token_hex(3)}"
    return workload.name.encode()[: PREFIX_BYTES - len(suffix)].decode(errors="ignore") + suffix


def _allow_open_files(count: int) -> None:
    """Raise this process's limit of open files, and so that of a process it starts, if it is too low."""
    limit, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or count <= limit:
        return
    if highest != resource.RLIM_INFINITY and count > highest:
        raise Problem(
            f"{count:,} files would be open at once, and this system allows {highest:,}: lower --in-flight, or raise "
            "the limit with ulimit -n"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, highest))


def _observer(target: Target, timeout_s: float) -> Observer | None:
    if target.server is None or target.credentials is None:
        return None
    return Observer(target.server, target.credentials, timeout_s)


def _replay(result: Run, in_flight: int, timeout_s: float, on_progress: Callable[[int, Progress], None]) -> int:
    """Replay, and put what came of it into the run; returns when it began, on the performance counter."""
    workload, endpoint = result.workload, result.target.endpoint
    if isinstance(endpoint, UrlEndpoint):
        assert result.target.credentials is not None
        payloads = requests(workload, result.slot_prefix, endpoint, result.target.credentials)
    else:
        payloads = frames(workload, result.slot_prefix)
    result.schedule_us = result.pace.schedule(workload.due_us)
    wire = open_wire(endpoint, timeout_s)
    journal = Journal()
    engine = Engine(
        wire,
        journal,
        in_flight=in_flight,
        timeout_s=timeout_s,
        on_progress=lambda progress: on_progress(len(workload), progress),
    )

    def interrupt(*_: object) -> None:
        result.interrupted = True
        engine.stop()

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        result.elapsed_s = engine.run(operations(workload.slot, result.schedule_us, payloads))
        result.records, result.errors = journal.records(), journal.errors
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        journal.close()
        wire.close()
    return engine.start_ns


def _judge(result: Run, observer: Observer | None, start_ns: int, timeout_s: float) -> None:
    """Judge the effect, as far as it can be seen, and the replies."""
    try:
        _judge_effect(result, observer, start_ns, timeout_s)
    except CannotObserve as error:
        result.slots = result.accounts = None
        result.verdict = Verdict(unseen=[f"The effect: {error}."])
    _judge_replies(result)


def _judge_effect(result: Run, observer: Observer | None, start_ns: int, timeout_s: float) -> None:
    """Look at the effect until it is as it should be, or nothing has moved for `timeout_s`.

    A daemon may take its time to pass commands on; as long as it does, it is waited for, within a bound.
    """
    end = time.monotonic() + LONGEST_WAIT * timeout_s
    deadline = time.monotonic() + timeout_s
    shown: object = None
    control = observer is not None and observer.has_control()
    patience_s = 0.05
    while True:
        verdict = result.verdict = Verdict()
        seen_from = time.perf_counter_ns() - start_ns
        if control and observer is not None:
            observer.wait_until_applied()
            result.slots, result.accounts = observer.slots(), observer.accounts()
            seen = Span(seen_from, time.perf_counter_ns() - start_ns)
            assert result.target.credentials is not None
            judge_slots(_histories(result, seen), result.slots, result.target.credentials[0], seen, verdict)
            judge_balance(result.slots, result.accounts, verdict)
            judge_machines(result.slots, result.accounts, verdict)
        elif observer is not None:
            outstanding = observer.outstanding()
            seen = Span(seen_from, time.perf_counter_ns() - start_ns)
            judge_outstanding(_histories(result, seen), outstanding, seen, verdict)
            verdict.unseen.append(
                "Credits, counters and how slots were settled: the server has no control API, and shows only which "
                "slots are outstanding."
            )
        else:
            verdict.unseen.append(
                "The effect of every command: a daemon shows only its acknowledgements. Give the server behind it "
                "with --server URL --project ID --secret-file FILE."
            )
        now = time.monotonic()
        if not verdict.counts or now > min(deadline, end) or isinstance(result.target.endpoint, UrlEndpoint):
            break
        if shown != verdict.counts:
            shown, deadline = verdict.counts, now + timeout_s
        time.sleep(patience_s)
        patience_s = min(2 * patience_s, LONGEST_PATIENCE_S)


def _judge_replies(result: Run) -> None:
    outcomes = result.records["outcome"] if len(result.records) else np.empty(0)
    accepted = int(np.count_nonzero(outcomes == Outcome.ACCEPTED))
    result.verdict.checked["replies"] += len(result.records)
    for code, error in enumerate(result.errors):
        if error == "ER" or error.startswith(UNFIT):
            refused = int(np.count_nonzero(result.records["error"] == code))
            subject = str(result.target.endpoint)
            result.verdict.find("wrongly refused", subject, f"{refused:,} well-formed commands were answered {error}")
    if accepted == 0 and len(result.workload):
        result.verdict.unseen.append("Everything: no operation was accepted.")
    if result.interrupted:
        missing = len(result.workload) - len(result.records)
        result.verdict.unseen.append(f"{missing:,} operations were not sent: the run was interrupted.")


def _histories(result: Run, seen: Span) -> dict[str, list[Step]]:
    """Each slot's operations as the judge wants them, from the journal."""
    by_server = isinstance(result.target.endpoint, UrlEndpoint)
    by_rule = [error.startswith("HTTP 500: ") for error in result.errors]
    histories: defaultdict[str, list[Step]] = defaultdict(list)
    records = iter(result.records.tolist())
    record = next(records, None)
    for op, (kind, arguments) in enumerate(result.workload.calls(0, len(result.workload), result.slot_prefix)):
        if record is None or record[0] != op:
            continue
        _, outcome, error, sent_ns, answered_ns = record
        span = Span(sent_ns, answered_ns if by_server else seen.latest_ns)
        judged = by_server and (outcome == Outcome.ACCEPTED or by_rule[error])
        accepted = outcome == Outcome.ACCEPTED if judged else None
        applied = {Outcome.ACCEPTED: True, Outcome.REFUSED: judged, Outcome.UNKNOWN: None}
        histories[str(arguments["slot"])].append(Step(kind, arguments, span, applied[outcome], accepted))
        record = next(records, None)
    return histories

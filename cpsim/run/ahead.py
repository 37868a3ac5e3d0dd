"""Judging while a replay goes on, in a process of its own that follows the replay and looks at the accounts.

Where the control API tells which commands were applied, the process asks for the slots of these; elsewhere it reads all
that is shown of the accounts, at longer intervals. It rests for several times as long as a look takes.
"""

from __future__ import annotations

import json
import select
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from cpdaemon.endpoint import UrlEndpoint
from cpsim.accounts.observer import CannotObserve, Observer
from cpsim.accounts.view import CONTRACTS, View
from cpsim.clock import SYSTEM_CLOCK
from cpsim.errors import UsageError
from cpsim.evidence.evidence import Seen
from cpsim.evidence.journal import RECORD_TYPE, Journal
from cpsim.evidence.reader import JournalReader
from cpsim.judge.ahead import CHUNK, AheadJudge, Subject
from cpsim.judge.model import SlotState
from cpsim.net.control import PAGE
from cpsim.replay.pace import Virtual
from cpsim.run.follower import Channel, Follower, handed
from cpsim.system.process import prepare_arrow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from cpsim.clock import Clock
    from cpsim.run.plan import Plan, ReplayTarget

    Records = npt.NDArray[np.void]

LOOK_S: Final = 1.0
"""Seconds between two looks, at least."""
REST: Final = 4
REST_OF_SERVER: Final = 20
"""A look is followed by a rest of so many times its duration, and of the time in which all accounts were read."""
REFUSED: Final = "--fail-fast needs slots that can be judged while they are sent: {}"
JUDGED: Final = ["project", "slot", "state", *SlotState._fields[1:]]
NAMES: Final = 1_000
"""Slots of a request: the server's other requests wait for one at most."""


class Way(NamedTuple):
    """How the accounts can be looked at.

    Attributes:
        has_view: whether the server shows its accounts; else it lists which slots are outstanding.
        cursor: of the feed of applied commands when the replay began; None if there is no such feed.
    """

    has_view: bool
    cursor: int | None


class Ahead(Follower):
    """Judges slots while a replay goes on, as far as that can be; a context manager, at whose end it stops.

    Args:
        fail_fast: whether the first finding ends the replay.
        clock: by which journals are flushed.

    Attributes:
        valid: slots that were found as they should be.
        findings: slots that nothing explains.
        found: the first of them, as a text; "" as long as there is none.
        why_not: why nothing is judged before the end; "" if it is.
        as_far_as: how far that goes, as the end of a phrase; "" if slots are judged whole.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK, *, fail_fast: bool = False) -> None:
        super().__init__("cpsim.run.ahead", clock, answers=True)
        self._fail_fast = fail_fast
        self.valid = self.findings = 0
        self.found = self.why_not = ""
        self.as_far_as = ""

    def begin(self, plan: Plan, observer: Observer | None) -> None:
        """Start, for a plan whose replay is about to begin.

        Raises:
            CannotObserve: the server does not answer as it should.
            UsageError: the first finding is to end the replay, and nothing can be judged before the end.
        """
        self.why_not = why_not(plan)
        if self.why_not:
            if self._fail_fast:
                raise UsageError(REFUSED.format(self.why_not))
            return
        assert observer is not None
        project, control = plan.target.project, observer.control
        assert project is not None
        has_view = control.exists()
        cursor = control.applied(project)["next"] if has_view and control.follows(project) else None
        self.as_far_as = "" if has_view else ", as far as what is outstanding tells"
        self.start((plan, Way(has_view, cursor)))

    def look(self, journals: Sequence[Journal], start_ns: int) -> bool:
        """Take note of what is judged; returns whether that ends the replay.

        Args:
            journals: those that are followed, which are flushed once a second.
            start_ns: when the replay began, on the local monotonic clock.
        """
        if self.why_not or not self.is_started:
            return False
        self.flush_journals(journals, start_ns=start_ns)
        return self.hear()

    def tell(self, errors: Sequence[Sequence[str]], start_ns: int) -> None:
        """Tell the texts of the errors of each journal, whose file has all records, and when the replay began."""
        self.tell_known(errors, start_ns=start_ns)

    def hear(self) -> bool:
        """Take note of what is judged, without a look at journals; returns whether that ends the replay."""
        if self.why_not or not self.is_started:
            return False
        try:
            for answer in self.answers():
                self.valid, self.findings, self.found = answer["valid"], answer["findings"], answer["found"]
        except EOFError:
            self.why_not = "the process that judges meanwhile has ended"
        return bool(self.stopped_by)

    @property
    def stopped_by(self) -> str:
        """The finding that ends the replay; "" if none does."""
        return self.found if self._fail_fast else ""

    @property
    def text(self) -> str:
        """What is judged so far, for people; "" before the replay."""
        if not self.why_not and not self.is_started:
            return ""
        return text_of(self.valid, self.findings, self.as_far_as, self.why_not)


def text_of(valid: int, findings: int, as_far_as: str, why_not: str) -> str:
    """What is judged so far, for people; see `Ahead`."""
    if why_not:
        return f"judged at the end: {why_not}"
    return f"valid so far{as_far_as}: {valid:,} slots, {findings:,} findings"


def why_not(plan: Plan) -> str:
    """Why slots of a plan cannot be judged before the end; "" if they can."""
    if isinstance(plan.pace, Virtual):
        return "time is virtual"
    if plan.workload.projects:
        return "the scenario has several sites"
    return why_not_at(plan.target)


def why_not_at(target: ReplayTarget) -> str:
    """Why slots at a target cannot be judged before the end; "" if they can."""
    if target.accounts is not None:
        return f"{target.accounts} is read once, when all is sent"
    if target.server is None or target.credentials is None:
        return "no server shows the accounts (--server URL)"
    return ""


class _Share:
    """The records of a journal, and of its errors those that were told."""

    def __init__(self, journal: Journal, ops: npt.NDArray[np.int64] | None) -> None:
        self._reader = JournalReader(journal, ops)
        self._held = np.empty(0, RECORD_TYPE)
        self.errors = [""]

    def read(self, codes: dict[str, int]) -> Records:
        """The new records, up to the first whose error is not told yet, with the numbers of errors in `codes`."""
        records = np.concatenate([self._held, self._reader.read()])
        untold = np.flatnonzero(records["error"] >= len(self.errors))
        records, self._held = np.split(records, untold[:1]) if len(untold) else (records, records[:0])
        known = [codes.setdefault(error, len(codes)) for error in self.errors]
        records["error"] = np.array(known, np.uint16)[records["error"]]
        return records


class Lookout:
    """Looks at journals and accounts, and has slots judged.

    Args:
        plan: of the replay.
        way: how the accounts can be looked at.
        observer: of the server.
        clock: that of the replay.

    Attributes:
        judge: what has judged them.
    """

    def __init__(self, plan: Plan, way: Way, observer: Observer, clock: Clock = SYSTEM_CLOCK) -> None:
        target = plan.target
        assert target.project is not None
        self._plan, self._way, self._observer, self._clock = plan, way, observer, clock
        self._project = target.project
        self._cursor = way.cursor
        self._start_ns = 0
        self._read_s = 0.0
        self._shares: dict[int, _Share] = {}
        self._codes = {"": 0}
        self.judge = AheadJudge(
            Subject(
                workload=plan.workload,
                prefix=plan.slot_prefix,
                project=target.project,
                direct=isinstance(target.endpoint, UrlEndpoint),
                fresh=plan.fresh,
                quirks=target.quirks,
                apply_delay_ns=int(plan.timeout_s * 1e9),
            )
        )

    def rest_s(self, took_s: float) -> float:
        """The seconds to rest after a look that took so many."""
        return max(LOOK_S, REST * took_s, REST_OF_SERVER * self._read_s)

    def follow(self, journal: Journal, place: int = 0, of: int = 1) -> None:
        """Follow the journal of a share of the slots, one of so many."""
        self._shares[place] = _Share(journal, None if of == 1 else self._plan.assignment().part(place, of).ops)

    def begin(self, start_ns: int, errors: Sequence[list[str]]) -> None:
        """Take note of when the replay began, in local monotonic time, and of the errors of each journal so far."""
        self._start_ns = start_ns
        for place, texts in enumerate(errors):
            self._shares[place].errors = texts

    def look(self) -> Iterator[None]:
        """Look once, if the replay has begun; yields whenever slots were judged. A server may be away."""
        if not self._start_ns:
            return
        for share in self._shares.values():
            records = share.read(self._codes)
            self.judge.take(records, list(self._codes))
        with suppress(CannotObserve):
            if self._cursor is not None:
                yield from self._look_at_feed(self._cursor)
            else:
                self._look_at_view()
                yield

    def _look_at_feed(self, cursor: int) -> Iterator[None]:
        slots = [""] * PAGE
        while len(slots) == PAGE:
            page = self._observer.control.applied(self._project, cursor)
            self._cursor, cursor, slots = page["next"], page["next"], page["slots"]
            if page["missed"]:
                self.judge.miss_applied()
            self.judge.take_applied(slots)
        due = self.judge.due(self._now_ns())
        workload, prefix = self._plan.workload, self._plan.slot_prefix
        for start in range(0, len(due), CHUNK):
            chosen = due[start : start + CHUNK]
            names = [workload.slot_id(slot, prefix) for slot in chosen.tolist()]
            from_ns, rows = self._now_ns(), []
            for first in range(0, len(names), NAMES):
                rows += self._observer.control.named_slots(self._project, names[first : first + NAMES])
            self.judge.judge_states(chosen, Seen(from_ns, self._now_ns(), View(slots=_table_of(rows))))
            yield

    def _look_at_view(self) -> None:
        from_ns = self._now_ns()
        view = self._observer.view() if self._way.has_view else None
        outstanding = None if self._way.has_view else frozenset(self._observer.outstanding())
        self._read_s = (self._now_ns() - from_ns) / 1e9
        self.judge.judge_view(Seen(from_ns, self._now_ns(), view, outstanding))

    def _now_ns(self) -> int:
        return self._clock.monotonic_ns() - self._start_ns


def _table_of(slots: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Slots as the control API lists them as a table, with the columns that are judged.

    Raises:
        CannotObserve: they are not as it lists them.
    """
    fields = [CONTRACTS["slots"].schema.field(name) for name in JUDGED]
    try:
        columns = [[slot[field.name] for slot in slots] for field in fields]
        return pa.table(
            [
                pa.array([list(each.items()) for each in column] if pa.types.is_map(field.type) else column, field.type)
                for field, column in zip(fields, columns, strict=True)
            ],
            JUDGED,
        )
    except (LookupError, TypeError, AttributeError, OverflowError, pa.ArrowException) as error:
        raise CannotObserve(f"a slot is not as the control API shows one: {error}") from error


def main() -> None:
    """Judge what is handed on standard input, until the process that replays it ends; answer on standard output."""
    prepare_arrow()
    channel = Channel(int(sys.argv[1]))
    plan, way = handed()
    target = plan.target
    lookout = Lookout(plan, way, Observer(target.server, target.credentials, plan.timeout_s))
    next_s, told = SYSTEM_CLOCK.monotonic(), ""
    with suppress(EOFError, BrokenPipeError):
        while True:
            wait_s = max(0.0, next_s - SYSTEM_CLOCK.monotonic())
            if select.select([channel.sock], [], [], wait_s)[0]:
                for message in channel.receive():
                    if "journal" in message:
                        lookout.follow(Journal(descriptors=[message["descriptor"]]), message["journal"], message["of"])
                    else:
                        lookout.begin(message["start_ns"], message["errors"])
                continue
            began_s = SYSTEM_CLOCK.monotonic()
            for _ in lookout.look():
                judge, found = lookout.judge, lookout.judge.first
                first = "" if found is None else f"{found.name}: {found.subject}: {found.detail}"
                answer = json.dumps({"valid": judge.valid, "findings": judge.findings, "found": first})
                if answer != told:
                    told = answer
                    print(answer, flush=True)
            now_s = SYSTEM_CLOCK.monotonic()
            next_s = now_s + lookout.rest_s(now_s - began_s)

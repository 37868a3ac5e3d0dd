"""The server's store: every change of the accounts in a durable log, and snapshots that keep the log short.

The accounts are a function of their changes, so the log of changes is what must survive. A snapshot replaces the
changes before it, in one commit; it is due when the log has grown to the size of the last one, so a restart
reads at most about twice what the accounts themselves take. What was received is kept beside it, for the journal.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from cpsim.errors import CpsimError
from cpsim.protocol import depth
from cpsim.server.accounts import ProjectAccounts, Slot
from cpsim.server.batches import Batches  # noqa: TC001 - msgspec reads it
from cpsim.server.ledger import Refusal  # noqa: TC001
from cpsim.store.log import MIN_FREE_BYTES, InDoubt, Log, cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

KIND: Final = "store"
TABLES: Final = """
CREATE TABLE IF NOT EXISTS snapshot (part INTEGER PRIMARY KEY, content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS received (position INTEGER PRIMARY KEY, project TEXT NOT NULL, record TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS received_by ON received (project, position);
"""
RECEIVED: Final = ("apply", "note")
"""The changes that the journal shows."""
SEEN: Final = "expire"
"""The change that only says how late it was when somebody looked."""
KEEP_RECEIVED: Final = """
INSERT INTO received SELECT position, json_extract(substr(call, 1, instr(call, ',') - 1), '$'), record FROM (
    SELECT position, record, CASE
        WHEN substr(change, 1, 9) = '"apply",[' THEN substr(change, 10)
        WHEN substr(change, 1, 8) = '"note",[' THEN substr(change, 9)
    END AS call FROM (SELECT position, record, substr(record, instr(record, ',') + 1) AS change FROM log)
) WHERE position <= ? AND call IS NOT NULL
"""
"""Both have a project, which has no comma, calls, a batch id, and refusals. SQLite does not read the calls, because how
deep they may be nested there depends on its release."""
READ_RECEIVED: Final = "SELECT position, record FROM received WHERE position > ? ORDER BY position LIMIT ?"
LEAST_LOG: Final = 16 * 2**20
"""Characters of log before a first snapshot."""
SLOTS_A_PART: Final = 10_000
CHANGES_A_READ: Final = 1_000


class StoredAccounts(msgspec.Struct):
    """What the server knows, to begin with, the ledger's slots among the projects; and how it behaves."""

    at_us: int = 0
    refused: dict[str, int] = {}
    projects: dict[str, ProjectAccounts] = {}
    owners: dict[str, str] = {}
    answers: dict[str, dict[str, list[Refusal]]] = {}
    """Of batches by their ids, as earlier versions had them."""
    quirks: list[str] = []
    overflows: dict[str, int] = {}
    batches: dict[str, Batches] = {}


_decode = msgspec.json.Decoder(tuple[int, str, list[Any]]).decode
_decode_received = msgspec.json.Decoder(
    tuple[int, str, tuple[str, list[msgspec.Raw], str | None, list[tuple[int, str]]]]
).decode
R = TypeVar("R", bound=tuple[int, str, Sequence[Any]])
LEVELS: Final = depth.MAX_DEPTH + 5
"""Of a record: its own, and those of the change, the calls, a call and its arguments."""


class Store:
    """An open store.

    Args:
        path: the file; made if it is not there.

    Raises:
        CpsimError: the file is in use, damaged, or something else; or it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._log = Log(path, KIND, TABLES, in_sequence=True)
        self._logged = self._snapshot_size = 0
        self._resets: dict[str | None, int] = {}
        self._problem = CpsimError(f"{path} cannot be written")
        self._own = threading.local()
        self._latest = _done()
        self._undone = 0
        """How often changes were undone."""
        self.is_broken = False
        """Whether a change could not be written, so that none is taken before `resume`."""

    @property
    def path(self) -> Path:
        """The file itself, whatever links lead to it."""
        return self._log.path

    def resume(self) -> None:
        """Take changes again. Those that were not written are lost: the accounts are what is in the store now.

        Raises:
            CpsimError: it cannot be written yet, or not for long.
        """
        if shutil.disk_usage(self._log.path.parent).free < MIN_FREE_BYTES:
            raise CpsimError(f"{self._log.path}: its disk has less than 1 MiB free: until it has, nothing is taken")
        self._log.resume()
        self._logged, self._resets = 0, {}
        self._latest = _done()
        self._undone += 1
        self.is_broken = False
        log.info("%s can be written again; changes that were not written are undone", self._log.path)

    def snapshot(self) -> StoredAccounts:
        """The accounts as they were last written whole."""
        head, *parts = [content for (content,) in self._log.query("SELECT content FROM snapshot ORDER BY part")] or [
            "{}"
        ]
        self._snapshot_size = len(head) + sum(map(len, parts))
        accounts = msgspec.json.decode(head, type=StoredAccounts)
        for part in parts:
            project_id, slots = msgspec.json.decode(part, type=tuple[str, dict[str, Slot]])
            accounts.projects[project_id].slots |= slots
        return accounts

    def changes(self) -> Iterator[tuple[int, str, list[Any]]]:
        """What changed since the snapshot, in order: when, what, with which arguments."""
        position = 0
        while found := self._log.read(position, self._log.last, CHANGES_A_READ):
            for position, record in found:
                self._logged += len(record)
                at_us, what, arguments = _read(_decode, record)
                if what == "reset":
                    self._resets[arguments[0]] = position
                yield at_us, what, arguments

    def received(self) -> Iterator[tuple[str, int, list[msgspec.Raw], list[tuple[int, str]]]]:
        """What the journal had when the snapshot was written: project, time, commands as JSON, and refusals."""
        last = 0
        while found := self._log.query(READ_RECEIVED, (last, CHANGES_A_READ)):
            for last, record in found:  # noqa: B007 - the next query goes on from there
                at_us, _, (project_id, calls, _, refusals) = _read(_decode_received, record)
                yield project_id, at_us, calls, refusals

    def begin(self) -> None:
        """Have `durable` and `wait` mean what this thread changes from now on."""
        self._own.change = None
        self._own.undone = self._undone

    def keep(self, at_us: int, *changes: tuple[str, Sequence[object]]) -> Future[None]:
        """Write changes, all of them or none: of each, what and its arguments.

        Returns:
            Their outcome: nothing, or a CpsimError.

        Raises:
            CpsimError: an earlier one could not be written.
        """
        if self.is_broken:
            raise self._problem
        records = [msgspec.json.encode((at_us, *change)).decode() for change in changes]
        self._logged += sum(map(len, records))
        outcome: Future[None] = Future()
        outcome.set_running_or_notify_cancel()  # who no longer waits for it does not undo it
        last = self._log.append(records, then=partial(self._note, outcome))
        self._latest = outcome
        for position, (what, arguments) in enumerate(changes, last - len(changes) + 1):
            if what != SEEN:
                self._own.change = outcome
            if what == "reset":
                (project_id,) = arguments
                assert project_id is None or isinstance(project_id, str)
                self._resets[project_id] = position
        return outcome

    @property
    def wants_snapshot(self) -> bool:
        """Whether the log has grown so long that the accounts should be written whole."""
        return self._logged > max(LEAST_LOG, self._snapshot_size)

    def replace(self, accounts: StoredAccounts) -> None:
        """Write the accounts whole, in the place of all changes so far; if that fails, no change fails with it."""
        contents = [""]
        for project_id, project in accounts.projects.items():
            slots = iter(project.slots.items())
            while part := dict(islice(slots, SLOTS_A_PART)):
                contents.append(msgspec.json.encode((project_id, part)).decode())
            machines = {name: dataclasses.replace(one, waiting_slots=[]) for name, one in project.machines.items()}
            accounts.projects[project_id] = dataclasses.replace(project, slots={}, lifetimes={}, machines=machines)
        contents[0] = msgspec.json.encode(accounts).decode()
        self._logged, self._snapshot_size = 0, sum(map(len, contents))
        last = self._log.last
        forgotten = self._resets | dict.fromkeys(accounts.overflows, last)  # once more where that failed before
        self._log.append(
            [],
            (KEEP_RECEIVED, (last,)),
            *(
                ("DELETE FROM received WHERE position <= ? AND project = coalesce(?, project)", (position, project_id))
                for project_id, position in forgotten.items()
            ),
            ("DELETE FROM snapshot", ()),
            *(("INSERT INTO snapshot VALUES (?, ?)", numbered) for numbered in enumerate(contents)),
            *cut(last),
            then=self._note_snapshot,
            alone=True,
        )

    async def durable(self) -> None:
        """Return once what an answer rests on is on disk: this thread's own change since `begin`, or all so far.

        A change is answered by its own commit, whatever became of later ones. Who has made none has seen all.

        Raises:
            CpsimError: it could not be written; `InDoubt`, if it may be there after a restart.
        """
        await asyncio.wrap_future(self._outcome())

    def wait(self) -> None:
        """Likewise, for a thread."""
        self._outcome().result()

    def check(self) -> None:
        """Raise ThreadFailed if its writer has met an error that nobody expected."""
        self._log.check()

    def close(self) -> None:
        """Write what is left, and let go of the file."""
        self._log.close()

    def _outcome(self) -> Future[None]:
        change: Future[None] | None = getattr(self._own, "change", None)
        if change is not None:
            return change
        if getattr(self._own, "undone", self._undone) != self._undone:
            raise self._problem  # what was seen may have been undone since
        return self._latest

    def _note(self, outcome: Future[None], problem: CpsimError | None) -> None:
        """From the log's thread: a change is on disk, or could not be written."""
        if problem is None:
            outcome.set_result(None)
            return
        if not self.is_broken:
            self._problem = CpsimError(f"{problem}; until it can be written, nothing is taken")
            self.is_broken = True
            log.error("%s", self._problem)
        outcome.set_exception(problem if isinstance(problem, InDoubt) else self._problem)

    def _note_snapshot(self, problem: CpsimError | None) -> None:
        if problem is not None and not self.is_broken:
            log.warning(
                "the accounts could not be written whole, which is tried again when as many changes have come; "
                "each of them is kept: %s",
                problem,
            )


def _read(decode: Callable[[str], R], record: str) -> R:
    """A record; what an earlier version has taken, and is nested deeper than is taken now, is null in it."""
    try:
        change = decode(record)
    except RecursionError:
        return decode(depth.cut(record, LEVELS))
    _, what, arguments = change
    expected = LEVELS
    if what in RECEIVED:
        _, calls, _, refusals = arguments
        expected += 2 * len(calls) + len(refusals)
    return change if depth.opened(record.encode()) <= expected else decode(depth.cut(record, LEVELS))


def _done() -> Future[None]:
    done: Future[None] = Future()
    done.set_result(None)
    return done

"""The server's store: every change of the accounts in a durable log, and snapshots that keep the log short.

The accounts are a function of their changes, so the log of changes must survive. A snapshot replaces the changes before
it, in one commit. A snapshot is due when the log has grown to the size of the last one, so a restart reads at most
about twice the size of the accounts. A table holds the received commands, for the journal.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from cpsim.errors import CpsimError
from cpsim.protocol import depth
from cpsim.server.accounts import ProjectAccounts, Slot
from cpsim.server.batches import Batches  # noqa: TC001 - msgspec reads it
from cpsim.server.ledger import Refusal  # noqa: TC001
from cpsim.store.log import MIN_FREE_BYTES, DamagedRecord, InDoubt, Log, cut
from cpsim.store.schema import checksum, sum_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

KIND: Final = "store"
TABLES: Final = """
CREATE TABLE IF NOT EXISTS snapshot (part INTEGER PRIMARY KEY, content TEXT NOT NULL, checksum BLOB);
CREATE TABLE IF NOT EXISTS received
(position INTEGER PRIMARY KEY, project TEXT NOT NULL, record TEXT NOT NULL, checksum BLOB);
CREATE INDEX IF NOT EXISTS received_by ON received (project, position);
CREATE TABLE IF NOT EXISTS identity (salt TEXT NOT NULL);
INSERT INTO identity SELECT lower(hex(randomblob(16))) WHERE NOT EXISTS (SELECT 1 FROM identity);
"""
CHECKED: Final = {"log": ["record"], "snapshot": ["content"], "received": ["record"]}
"""The texts of which each table's checksums are."""
RECEIVED: Final = ("apply", "note")
"""Changes that the journal shows."""
EXPIRED: Final = "expire"
"""The change that holds only a time, up to which slots have expired."""
MOVE_RECEIVED: Final = """
INSERT INTO received SELECT position, json_extract(substr(call, 1, instr(call, ',') - 1), '$'), record, checksum FROM (
    SELECT position, record, checksum, CASE
        WHEN substr(change, 1, 9) = '"apply",[' THEN substr(change, 10)
        WHEN substr(change, 1, 8) = '"note",[' THEN substr(change, 9)
    END AS call FROM (SELECT position, record, checksum, substr(record, instr(record, ',') + 1) AS change FROM log)
) WHERE position <= ? AND call IS NOT NULL AND substr(record, -3) = ']]]'
"""
"""Both changes have a project, which has no comma, calls, a batch id, and refusals. SQLite does not parse the calls,
because its limit on nesting depends on its release. The first version, which kept no journal, wrote no refusals."""
READ_RECEIVED: Final = f"""
SELECT position, record, {sum_of("record")} FROM received WHERE position > ? ORDER BY position LIMIT ?
"""  # noqa: S608 - of constants
READ_SNAPSHOT: Final = f"SELECT part, content, {sum_of('content')} FROM snapshot ORDER BY part"  # noqa: S608 - of constants
DAMAGED: Final = {
    "snapshot": ("the accounts' snapshot", ""),
    "log": (
        "the accounts' changes",
        "; or go on without this change: sqlite3 {path} 'DELETE FROM log WHERE position = {number}'",
    ),
    "received": (
        "the journal",
        "; or go on without it: sqlite3 {path} 'DELETE FROM received WHERE position = {number}'",
    ),
}
"""What the records of each table are, and what can be done without one that is damaged."""
LEAST_LOG_CHARACTERS: Final = 16 * 2**20
"""Characters of log before the first snapshot."""
SLOTS_A_PART: Final = 10_000
CHANGES_A_READ: Final = 1_000


class StoredAccounts(msgspec.Struct):
    """The accounts and quirks in a snapshot."""

    at_us: int = 0
    refused: dict[str, int] = {}
    projects: dict[str, ProjectAccounts] = {}
    owners: dict[str, str] = {}
    answers: dict[str, dict[str, list[Refusal]]] = {}
    """Answers to batches by batch id, as earlier versions wrote them."""
    quirks: list[str] = []
    overflows: dict[str, int] = {}
    batches: dict[str, Batches] = {}


_decode = msgspec.json.Decoder(tuple[int, str, list[Any]]).decode
_decode_received = msgspec.json.Decoder(
    tuple[int, str, tuple[str, list[msgspec.Raw], str | None, list[tuple[int, str]]]]
).decode
R = TypeVar("R", bound=tuple[int, str, Sequence[Any]])
LEVELS: Final = depth.MAX_DEPTH + 5
"""The levels of a record: its own, the change, the calls, a call and its arguments."""


class Store:
    """An open store.

    Args:
        path: the file; created if missing.
        open_log: opens its log.

    Raises:
        CpsimError: the file is in use, damaged, or no store; or it cannot be created.
    """

    def __init__(self, path: Path, open_log: Callable[..., Log] = Log) -> None:
        self._log = open_log(path, KIND, TABLES, in_sequence=True)
        self._logged = self._snapshot_size = 0
        self._resets: dict[str | None, int] = {}
        self._problem = CpsimError(f"{path} cannot be written")
        self._own = threading.local()
        self._latest = _done()
        ((salt,),) = self._log.query("SELECT salt FROM identity")
        self.salt = str(salt)
        """A random text that is made with the store, and stays: what ids for strangers are made from."""
        self._undone = 0
        """The number of times that changes were undone."""
        self.is_broken = False
        """Whether a change could not be written; until `resume`, further changes are refused."""

    @property
    def path(self) -> Path:
        """The file, with links resolved."""
        return self._log.path

    def resume(self) -> None:
        """Accept changes again. Changes that were not written are lost: the accounts are those in the store.

        Raises:
            CpsimError: the store cannot be written, or its disk is nearly full.
        """
        if self._log.free_bytes() < MIN_FREE_BYTES:
            raise CpsimError(f"{self._log.path}: until its disk has 1 MiB free, changes are refused")
        self._log.resume()
        self._logged, self._resets = 0, {}
        self._latest = _done()
        self._undone += 1
        self.is_broken = False
        log.info("%s can be written again; changes that were not written are undone", self._log.path)

    def snapshot(self) -> StoredAccounts:
        """The accounts of the last snapshot.

        Raises:
            CpsimError: it cannot be read, or is damaged.
        """
        accounts = StoredAccounts()
        self._snapshot_size = 0
        names: dict[str | None, str | None] = {}
        for part, content, written in self._log.query(READ_SNAPSHOT):
            self._snapshot_size += len(content)
            with self._named("snapshot", part):
                _check(part, content, written)
                if part == 0:
                    accounts = msgspec.json.decode(content, type=StoredAccounts)
                else:
                    project_id, slots = msgspec.json.decode(content, type=tuple[str, dict[str, Slot]])
                    _share(slots.values(), names)
                    accounts.projects[project_id].slots |= slots
        return accounts

    def changes(self) -> Iterator[tuple[int, str, list[Any]]]:
        """The changes since the snapshot, in order: time, change and arguments.

        Raises:
            CpsimError: one cannot be read, or is damaged.
        """
        position = 0
        while found := self._read_log(position):
            for position, record in found:
                self._logged += len(record)
                with self._named("log", position):
                    at_us, what, arguments = _read(_decode, record)
                if what == "reset":
                    self._resets[arguments[0]] = position
                yield at_us, what, arguments

    def received(self) -> Iterator[tuple[str, int, list[msgspec.Raw], list[tuple[int, str]]]]:
        """The journal at the snapshot: project, time, commands as JSON, and refusals.

        Raises:
            CpsimError: a record cannot be read, or is damaged.
        """
        last = 0
        while found := self._log.query(READ_RECEIVED, (last, CHANGES_A_READ)):
            for last, record, written in found:
                with self._named("received", last):
                    _check(last, record, written)
                    at_us, _, (project_id, calls, _, refusals) = _read(_decode_received, record)
                yield project_id, at_us, calls, refusals

    def _read_log(self, after: int) -> list[tuple[int, str]]:
        try:
            return self._log.read(after, self._log.last, CHANGES_A_READ)
        except DamagedRecord as damage:
            with self._named("log", damage.position):
                raise ValueError("its checksum does not match") from damage
            raise

    @contextmanager
    def _named(self, table: str, number: int) -> Iterator[None]:
        """Raise an error about a record as one that names the file and the record, and says what to do."""
        try:
            yield
        except (ValueError, KeyError) as error:
            what, advice = DAMAGED[table]
            advice = advice.format(path=self._log.path, number=number)
            raise CpsimError(
                f"{self._log.path}: record {number} of {what} is damaged: {error}. Nothing was changed: put back a "
                f"copy of the file and its -wal{advice}"
            ) from error

    def begin(self) -> None:
        """From now on, `durable` and `wait` are about changes of this thread."""
        self._own.change = None
        self._own.undone = self._undone

    def keep(self, at_us: int, *changes: tuple[str, Sequence[object]]) -> Future[None]:
        """Write changes, each with its arguments, all or none of them.

        Returns:
            The outcome: None, or a CpsimError.

        Raises:
            CpsimError: an earlier change could not be written.
        """
        if self.is_broken:
            raise self._problem
        records = [msgspec.json.encode((at_us, *change)).decode() for change in changes]
        self._logged += sum(map(len, records))
        outcome: Future[None] = Future()
        outcome.set_running_or_notify_cancel()  # a waiter's cancellation does not cancel the write
        last = self._log.append(records, then=partial(self._note, outcome))
        self._latest = outcome
        for position, (what, arguments) in enumerate(changes, last - len(changes) + 1):
            if what != EXPIRED:
                self._own.change = outcome
            if what == "reset":
                (project_id,) = arguments
                assert project_id is None or isinstance(project_id, str)
                self._resets[project_id] = position
        return outcome

    @property
    def wants_snapshot(self) -> bool:
        """Whether a snapshot is due."""
        return self._logged > max(LEAST_LOG_CHARACTERS, self._snapshot_size)

    def replace(self, accounts: StoredAccounts) -> None:
        """Write a snapshot in place of all changes so far; its failure fails no change."""
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
        forgotten = self._resets | dict.fromkeys(accounts.overflows, last)  # with those of a failed snapshot
        self._log.append(
            [],
            (MOVE_RECEIVED, (last,)),
            *(
                ("DELETE FROM received WHERE position <= ? AND project = coalesce(?, project)", (position, project_id))
                for project_id, position in forgotten.items()
            ),
            ("DELETE FROM snapshot", ()),
            *(
                ("INSERT INTO snapshot VALUES (?, ?, ?)", (part, content, checksum(part, content)))
                for part, content in enumerate(contents)
            ),
            *cut(last),
            then=self._note_snapshot,
            alone=True,
        )

    async def durable(self) -> None:
        """Return when this thread's change since `begin` is on disk; without one, when all changes so far are.

        A change has the outcome of its own commit, whatever the outcome of later ones.

        Raises:
            CpsimError: the change could not be written; `InDoubt` if it may be there after a restart.
        """
        await asyncio.wrap_future(self._outcome())

    def wait(self) -> None:
        """Wait in a thread, as `durable` does in an event loop."""
        outcome = self._outcome()
        self._log.run_until(outcome.done)
        outcome.result()

    def after_a_turn(self, then: Callable[[], object]) -> None:
        """Call a function once all that is to be written is; called from any thread."""
        self._log.append([], then=lambda _: then())

    def check(self) -> None:
        """Raise ThreadFailed if the writer has ended by an unexpected error."""
        self._log.check()

    def close(self) -> None:
        """Write what is left, and close the file."""
        self._log.close()

    def _outcome(self) -> Future[None]:
        change: Future[None] | None = getattr(self._own, "change", None)
        if change is not None:
            return change
        if getattr(self._own, "undone", self._undone) != self._undone:
            raise self._problem  # the accounts that this thread read may have been undone
        return self._latest

    def _note(self, outcome: Future[None], problem: CpsimError | None) -> None:
        """Set the outcome of a change; called in the log's thread."""
        if problem is None:
            outcome.set_result(None)
            return
        if not self.is_broken:
            self._problem = CpsimError(f"{problem}; until the store can be written, changes are refused")
            self.is_broken = True
            log.error("%s", self._problem)
        outcome.set_exception(problem if isinstance(problem, InDoubt) else self._problem)

    def _note_snapshot(self, problem: CpsimError | None) -> None:
        if problem is not None and not self.is_broken:
            log.warning(
                "a snapshot of the accounts could not be written; it is retried after as many changes again, and no "
                "change is lost: %s",
                problem,
            )


def _share(slots: Iterable[Slot], names: dict[str | None, str | None]) -> None:
    """Have slots of a snapshot share what is equal, as they did before: machines and users, and times nearby."""
    times: dict[Any, Any] = {}
    for slot in slots:
        slot.machine = names.setdefault(slot.machine, slot.machine)
        slot.user = names.setdefault(slot.user, slot.user)
        slot.allocated_us = times.setdefault(slot.allocated_us, slot.allocated_us)
        slot.expires_us = times.setdefault(slot.expires_us, slot.expires_us)
        slot.settled_us = times.setdefault(slot.settled_us, slot.settled_us)


def _check(number: int, record: str, written: bytes | None) -> None:
    """Raise ValueError if a record is not what was written; of records of earlier versions, that is not known."""
    if written is not None and checksum(number, record) != written:
        raise ValueError("its checksum does not match")


def _read(decode: Callable[[str], R], record: str) -> R:
    """Decode a record; values of earlier versions that are nested deeper than the limit are null."""
    try:
        change = decode(record)
    except RecursionError:
        return decode(depth.cut(record, LEVELS))
    _, what, arguments = change
    expected = LEVELS
    if what in RECEIVED:
        _, calls, _, *refusals = arguments
        expected += 2 * len(calls) + sum(map(len, refusals))
    return change if depth.opened(record.encode()) <= expected else decode(depth.cut(record, LEVELS))


def _done() -> Future[None]:
    done: Future[None] = Future()
    done.set_result(None)
    return done

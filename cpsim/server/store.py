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
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cpsim.errors import Problem
from cpsim.log import LEAST_FREE, Log, cut
from cpsim.server.accounts import Project, Slot

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

log = logging.getLogger(__name__)

KIND: Final = "store"
TABLES: Final = """
CREATE TABLE IF NOT EXISTS snapshot (part INTEGER PRIMARY KEY, content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS received (position INTEGER PRIMARY KEY, project TEXT NOT NULL, record TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS received_by ON received (project, position);
"""
KEEP_RECEIVED: Final = """
INSERT INTO received SELECT position, json_extract(record, '$[2][0]'), record FROM log
WHERE position <= ? AND json_extract(record, '$[1]') IN ('apply', 'note')
"""
"""Both have a project, calls, a batch id, and refusals."""
READ_RECEIVED: Final = "SELECT position, record FROM received WHERE position > ? ORDER BY position LIMIT ?"
LEAST_LOG: Final = 16 * 2**20
"""Characters of log before a first snapshot."""
SLOTS_A_PART: Final = 10_000
CHANGES_A_READ: Final = 1_000


class Accounts(msgspec.Struct):
    """What the server knows, to begin with, the ledger's slots among the projects; and how it behaves."""

    at_us: int = 0
    refused: dict[str, int] = {}
    projects: dict[str, Project] = {}
    owners: dict[str, str] = {}
    answers: dict[str, dict[str, list[Any]]] = {}
    quirks: list[str] = []
    overflows: dict[str, int] = {}


_decode_received = msgspec.json.Decoder(
    tuple[int, str, tuple[str, list[msgspec.Raw], str | None, list[tuple[int, str]]]]
).decode


class Store:
    """An open store.

    Args:
        path: the file; made if it is not there.

    Raises:
        Problem: the file is in use, damaged, or something else; or it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._log = Log(path, KIND, TABLES, in_sequence=True)
        self._logged = self._snapshot_size = 0
        self._resets: dict[str | None, int] = {}
        self._problem: Problem | None = None
        self.is_broken = False
        """Whether a change could not be written, so that none is taken before `resume`."""
        self.failures = 0
        """How often that came to be so."""

    @property
    def path(self) -> Path:
        """The file itself, whatever links lead to it."""
        return self._log.path

    def resume(self) -> None:
        """Take changes again. Those that were not written are lost: the accounts are what is in the store now.

        Raises:
            Problem: it cannot be written yet, or not for long.
        """
        if shutil.disk_usage(self._log.path.parent).free < LEAST_FREE:
            raise Problem(f"{self._log.path}: its disk has less than 1 MiB free: until it has, nothing is taken")
        self._log.resume()
        self._logged, self._resets = 0, {}
        self.is_broken = False
        log.info("%s can be written again; changes that were not written are undone", self._log.path)

    def snapshot(self) -> Accounts:
        """The accounts as they were last written whole."""
        head, *parts = [content for (content,) in self._log.query("SELECT content FROM snapshot ORDER BY part")] or [
            "{}"
        ]
        self._snapshot_size = len(head) + sum(map(len, parts))
        accounts = msgspec.json.decode(head, type=Accounts)
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
                at_us, what, arguments = msgspec.json.decode(record)
                if what == "reset":
                    self._resets[arguments[0]] = position
                yield at_us, what, arguments

    def received(self) -> Iterator[tuple[str, int, list[msgspec.Raw], list[tuple[int, str]]]]:
        """What the journal had when the snapshot was written: project, time, commands as JSON, and refusals."""
        last = 0
        while found := self._log.query(READ_RECEIVED, (last, CHANGES_A_READ)):
            for last, record in found:  # noqa: B007 - the next query goes on from there
                at_us, _, (project_id, calls, _, refusals) = _decode_received(record)
                yield project_id, at_us, calls, refusals

    def keep(self, at_us: int, what: str, arguments: Sequence[object]) -> None:
        """Write one change.

        Raises:
            Problem: an earlier one could not be written.
        """
        self._check(self.failures)
        record = msgspec.json.encode((at_us, what, arguments)).decode()
        self._logged += len(record)
        position = self._log.append([record], then=self._note)
        if what == "reset":
            (project_id,) = arguments
            assert project_id is None or isinstance(project_id, str)
            self._resets[project_id] = position

    @property
    def wants_snapshot(self) -> bool:
        """Whether the log has grown so long that the accounts should be written whole."""
        return self._logged > max(LEAST_LOG, self._snapshot_size)

    def replace(self, accounts: Accounts) -> None:
        """Write the accounts whole, in the place of all changes so far."""
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
        forgotten = self._resets | dict.fromkeys(accounts.overflows, last)
        self._resets = {}
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
            then=self._note,
        )

    async def durable(self, failures: int) -> None:
        """Return once every change so far is on disk.

        Args:
            failures: what `failures` was before these changes.

        Raises:
            Problem: one could not be written.
        """
        loop = asyncio.get_running_loop()
        written: asyncio.Future[None] = loop.create_future()

        def tell() -> None:
            if not written.done():
                written.set_result(None)

        def on_disk(_: Problem | None) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(tell)

        self._log.append([], then=on_disk)
        await written
        self._check(failures)

    def wait(self, failures: int) -> None:
        """Likewise, for a thread."""
        with suppress(Problem):  # `_check` knows it too
            self._log.wait()
        self._check(failures)

    def check(self) -> None:
        """Raise ThreadFailed if its writer has met an error that nobody expected."""
        self._log.check()

    def close(self) -> None:
        """Write what is left, and let go of the file."""
        self._log.close()

    def _check(self, failures: int) -> None:
        if self._problem is not None and (self.is_broken or self.failures != failures):
            raise self._problem

    def _note(self, problem: Problem | None) -> None:
        if problem is not None and not self.is_broken:
            self._problem = Problem(f"{problem}; until it can be written, nothing is taken")
            self.failures += 1
            self.is_broken = True
            log.error("%s", self._problem)

"""The account server: one ledger, its projects' secrets and its clock, safe to call from several threads."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from contextlib import contextmanager
from itertools import starmap
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from cpsim.clock import SYSTEM_CLOCK
from cpsim.protocol import depth
from cpsim.protocol.slots import CommandRefused, shown
from cpsim.quirks import composed
from cpsim.quirks.policies.ledger import LedgerPolicy
from cpsim.quirks.policies.request import RequestPolicy
from cpsim.server.applied import AppliedFeed
from cpsim.server.batches import Batches, BatchGivenUp
from cpsim.server.clock import ServerClock
from cpsim.server.command_counts import CommandCounts
from cpsim.server.journal import DEFAULT_LIMIT, CommandJournal
from cpsim.server.ledger import Ledger, MalformedRefusal, Refusal
from cpsim.server.store import EXPIRED, StoredAccounts
from cpsim.system.checks import check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from cpsim.server.store import Store

    Call = tuple[str, Mapping[str, object]]

T = TypeVar("T")
DIGESTS: Final = {"sha-1": hashlib.sha1, "sha-256": hashlib.sha256, "sha-512": hashlib.sha512}
_encode = msgspec.json.Encoder().encode


class AccountServer:
    """Applies commands to a ledger, one batch at a time.

    Args:
        projects: project id to secret.
        now_us: real time, microseconds since 1970; `clock` follows it until `clock` is changed.
        quirks: names from `cpsim.quirks.QUIRKS`.
        journal_limit: commands of each project that `journal` keeps.
        store: holds the earlier accounts, and every change; None to keep them in memory only.

    Raises:
        ValueError: two project ids differ only by case, or an id or a secret is empty.
    """

    def __init__(
        self,
        projects: Mapping[str, str],
        now_us: Callable[[], int] = SYSTEM_CLOCK.now_us,
        quirks: frozenset[str] = frozenset(),
        journal_limit: int = DEFAULT_LIMIT,
        store: Store | None = None,
    ) -> None:
        self._secrets: dict[str, tuple[str, bytes]] = {}
        for project_id, secret in projects.items():
            self.add_project(project_id, secret)
        self._configured = frozenset(self.projects)
        self.quirks = frozenset[str]()
        self.requests, self.rules = RequestPolicy(), LedgerPolicy()
        self._ledger = self._new_ledger()
        self._lock = threading.RLock()
        self.clock = ServerClock(now_us)
        self.journal = CommandJournal(journal_limit)
        self.applied = AppliedFeed()
        self._refused: dict[str, int] = {}
        self.counts = CommandCounts()
        self._batches: dict[str, Batches] = {}
        self._changes: dict[str, Callable[..., list[Refusal]]] = {
            "apply": self._apply,
            "note": self._note,
            "link": self._link,
            "release": self._release,
            "reset": self._reset,
            "behave": self._apply_quirks,
            "expire": self._expire,
            "housekeep": self._housekeep,
        }
        self.store = store
        self.salt = secrets.token_hex(16) if store is None else store.salt
        """A random text that is kept with the accounts: what ids for strangers are made from."""
        if store is not None:
            self._restore(store)
            self.clock.before_jump = self._write_time
        if self.quirks != quirks:
            self.set_quirks(quirks)

    @property
    def projects(self) -> list[str]:
        """The ids of the projects that can sign requests."""
        return [project_id for project_id, _ in list(self._secrets.values())]

    def add_project(self, project_id: str, secret: str) -> None:
        """Add a project.

        Raises:
            ValueError: its id differs from another's only by case, or the id or the secret is empty.
        """
        check("a project's id", project_id, str, "a text")
        check(f"the secret of project {project_id!r}", secret, (str, NoneType), "a text")
        if not project_id or "," in project_id or not secret:
            raise ValueError(f"project {project_id!r} needs an id without commas, and a secret")
        if project_id.lower() in self._secrets:
            raise ValueError(f"project id {project_id!r} is given twice; case makes no difference")
        self._secrets[project_id.lower()] = (project_id, secret.encode())

    def set_secrets(self, projects: Mapping[str, str]) -> None:
        """Replace the secrets of the projects that it was made with, by project id.

        Raises:
            ValueError: they are not these projects, or a secret is empty; nothing has changed.
        """
        given = {project_id.lower(): (project_id, secret.encode()) for project_id, secret in projects.items()}
        if self._configured != projects.keys():
            were = ", ".join(sorted(self._configured))
            raise ValueError(f"the projects are now {', '.join(projects)}: restart, or put back {were}")
        if not all(projects.values()):
            raise ValueError("a secret is empty")
        self._secrets |= given

    def known_id(self, project_id: str) -> str:
        """A project's id in its own case; "" if there is no such project."""
        return self._secrets.get(project_id.lower(), ("", b""))[0]

    def remove_project(self, project_id: str) -> None:
        """Remove a project with its slots, accounts and journal."""
        self._secrets.pop(project_id.lower(), None)
        self.reset(project_id)

    @property
    def refused(self) -> int:
        """The number of refused commands."""
        return sum(self._refused.values())

    def refused_of(self, project_id: str) -> int:
        """The number of refused commands of a project."""
        return self._refused.get(project_id, 0)

    def authenticate(self, algorithm: str, project_id: str, digest: str, payload: bytes) -> str | None:
        """The project whose secret signed the payload, or None; the arguments are in lower case."""
        known_id, secret = self._secrets.get(project_id, (None, b""))
        expected = DIGESTS[algorithm](payload + secret).hexdigest()
        return known_id if hmac.compare_digest(expected.encode(), digest.encode()) else None

    def apply(
        self,
        project_id: str,
        calls: Sequence[Call],
        batch_id: str | None = None,
        document: bytes | None = None,
        *,
        breaks_off: bool = False,
    ) -> list[Refusal]:
        """Apply commands in the order given; a refused command does not stop the others.

        A batch with an id is applied once: a repeat gets the first answer. The id is a name, and perhaps a blank and a
        digest of the commands: see `cpsim.server.batches`. The `document` of the commands, a list or a bulk, goes into
        the journal unchanged, if it is given. With `breaks_off`, a malformed command is the last: see
        `Ledger.apply_all`.

        Raises:
            BatchNotApplied: the batch was given up, or its answer is no longer known; nothing was applied.
            CpsimError: the store cannot be written.
            TooDeep: an argument is nested too deeply; nothing was applied. With a document, the caller has checked.
        """
        if document is None:
            depth.check(value for _, arguments in calls for value in arguments.values())
        with self._lock:
            self._recover()
            if batch_id is not None and (batches := self._batches.get(project_id)):
                answer = batches.answer(batch_id)
                if answer is not None:
                    return answer
            now_us = self.clock.now_us()
            if breaks_off:
                refusals = self._apply(now_us, project_id, calls, batch_id, breaks_off=True)
                if refusals and type(refusals[-1]) is MalformedRefusal:
                    calls, document = calls[: refusals[-1].position + 1], None
                written = self._written(project_id, calls, document)
            else:
                written = self._written(project_id, calls, document)
                refusals = self._apply(now_us, project_id, calls, batch_id)
            self.journal.add(project_id, now_us, calls, written, refusals)
            self.counts.add(project_id, calls, refusals)
            self.applied.add(project_id, calls)
            if self.store is not None:
                self._keep(self.store, now_us, ("apply", (project_id, msgspec.Raw(written), batch_id, refusals)))
        return refusals

    def _written(self, project_id: str, calls: Sequence[Call], document: bytes | None) -> bytes:
        """Commands as JSON, where somebody keeps it."""
        if self.store is not None:
            return _encode(calls)
        return (document or _encode(calls)) if self.journal.has_room(project_id, len(calls)) else b""

    def change_owner(self, project_id: str, call: Call) -> list[Refusal]:
        """Link a machine to a user, or release it, at a project's request, which goes into the project's journal.

        Args:
            project_id: the project that requests it.
            call: `lib/claim` or `lib/release`, with `vmid` and `webid`. A release may leave out the user; the machine
                must be linked to a user that it names.

        Raises:
            CpsimError: the store cannot be written.
        """
        with self._lock:
            self._recover()
            now_us = self.clock.now_us()
            refusals, changes = self._change_owner(now_us, *call)
            noted = (project_id, [call], None, refusals)
            self._note(now_us, *noted)
            if self.store is not None:
                self._keep(self.store, now_us, *changes, ("note", noted))
        return refusals

    def _change_owner(
        self, now_us: int, name: str, arguments: Mapping[str, object]
    ) -> tuple[list[Refusal], list[tuple[str, list[Any]]]]:
        """The refusals of a request to link or release a machine, and the changes that it made."""
        wrong_name = next((key for key, value in arguments.items() if type(value) not in {str, int}), None)
        if wrong_name is not None:
            return [Refusal(0, f"{wrong_name} must be text, not {shown(arguments[wrong_name])}")], []
        is_claim = name == "lib/claim"
        named = ("vmid", "webid") if is_claim or "webid" in arguments else ("vmid",)
        for argument in named:
            if arguments.get(argument) in {None, ""}:
                return [Refusal(0, f"missing argument {argument!r}")], []
        machine_id, *user_ids = (str(arguments[argument]) for argument in named)
        owner = self._ledger.owners.get(machine_id)
        if not is_claim and user_ids and owner not in {None, *user_ids}:
            return [Refusal(0, f"machine {machine_id!r} is linked to user {owner!r}, not to {user_ids[0]!r}")], []
        change, subject = ("link", (machine_id, *user_ids)) if is_claim else ("release", machine_id)
        return self._changes[change](now_us, [subject]), [(change, [[subject]])]

    def give_up(self, project_id: str, batch: str) -> list[Refusal] | None:
        """The answer to a batch of this name; None if it was not applied, and from now on never will be.

        Args:
            project_id: the project of the batch.
            batch: the name of the batch.

        Raises:
            BatchSeen: the answer is no longer known.
            CpsimError: the store cannot be written.
        """
        with self._lock:
            self._recover()
            try:
                answer = self._batches.get(project_id, Batches()).answer_to_name(batch)
            except BatchGivenUp:
                return None
            if answer is None:
                self._change_locked("apply", project_id, [], f"{batch} ", [])
        return answer

    def note_malformed(self, project_id: str, frame: bytes) -> None:
        """Add a frame to the journal that a project's daemon refused as malformed."""
        with self._lock:
            self.journal.add_malformed(project_id, self.clock.now_us(), frame)

    def outstanding(self, project_id: str) -> list[str]:
        """The ids of a project's outstanding slots."""
        with self.reading() as ledger:
            return ledger.outstanding(project_id, self.clock.latest_us)

    def link(self, links: Sequence[Sequence[str]]) -> list[Refusal]:
        """Link each (machine id, user id); a refusal does not stop the others."""
        return self._change("link", links)

    def release(self, machine_ids: Sequence[str]) -> list[Refusal]:
        """Release each machine from its user; a refusal does not stop the others."""
        return self._change("release", machine_ids)

    def reset(self, project_id: str | None = None) -> None:
        """Reset one project, or everything.

        A project loses its slots, its accounts and its journal. Other projects do not change, and machines stay linked
        to their users, because links belong to the whole server. Resetting everything removes the links too, and has
        the clock follow real time again.
        """
        with self._lock:
            self._recover()
            if project_id is None:
                self.clock.reset()
            self._change_locked("reset", project_id)

    def housekeep(self) -> None:
        """Run the housekeeping job once: see `Ledger.housekeep`."""
        self._change("housekeep")

    def set_quirks(self, quirks: frozenset[str]) -> None:
        """Replace the quirks; commands applied before are not affected.

        Raises:
            CpsimError: the store cannot be written.
        """
        names = sorted(quirks)
        with self._lock:
            self._recover()
            self._apply_quirks(0, names)
            if self.store is None:
                return
            outcome = self.store.keep(0, ("behave", [names]))  # without a time: the clock may not have started
        outcome.result()

    @contextmanager
    def reading(self) -> Iterator[Ledger]:
        """The ledger, up to date and locked within the context."""
        with self._lock:
            self._recover()
            now_us = self.clock.now_us()
            if self._ledger.expire(now_us) and self.store is not None:
                self._keep(self.store, now_us, (EXPIRED, ()))  # expired slots that were shown must stay expired
            yield self._ledger

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock the accounts against other threads within the context."""
        with self._lock:
            yield

    def _change(self, what: str, *arguments: object) -> list[Refusal]:
        """Change the accounts, and keep the change."""
        with self._lock:
            self._recover()
            return self._change_locked(what, *arguments)

    def _change_locked(self, what: str, *arguments: object) -> list[Refusal]:
        now_us = self.clock.now_us()
        refusals = self._changes[what](now_us, *arguments)
        if self.store is not None:
            self._keep(self.store, now_us, (what, arguments))
        return refusals

    def recover(self) -> None:
        """Restore the accounts from the store, if it could not be written and can be now.

        Raises:
            CpsimError: the store still cannot be written.
        """
        with self._lock:
            self._recover()

    def _recover(self) -> None:
        if self.store is not None and self.store.is_broken:
            self.store.resume()
            self.journal.forget_received()
            self._restore(self.store)

    def write_time(self) -> None:
        """Write the time to the store, if there is one and the clock has been read.

        Raises:
            CpsimError: the store cannot be written.
        """
        if self.store is not None and self.clock.latest_us:
            self._write_time(self.clock.now_us())

    def _write_time(self, now_us: int) -> None:
        """Write a time to the store, where nothing else may show it."""
        assert self.store is not None
        with self._lock:
            self._recover()
            outcome = self._keep(self.store, now_us, (EXPIRED, ()))
        outcome.result()

    def _keep(self, store: Store, now_us: int, *changes: tuple[str, Sequence[object]]) -> Future[None]:
        outcome = store.keep(now_us, *changes)
        if store.wants_snapshot:
            store.replace(self._accounts(now_us))
        return outcome

    def _apply(
        self,
        now_us: int,
        project_id: str,
        calls: Sequence[Call],
        batch_id: str | None,
        _: object = None,
        *,
        breaks_off: bool = False,
    ) -> list[Refusal]:
        refusals = self._ledger.apply_all(project_id, calls, now_us, breaks_off=breaks_off)
        self._count_refused(project_id, len(refusals))
        if batch_id is not None:
            self._batches.setdefault(project_id, Batches()).add(batch_id, now_us, refusals)
        return refusals

    def _note(
        self, now_us: int, project_id: str, calls: Sequence[Call], _: str | None, refusals: Sequence[Sequence[Any]]
    ) -> list[Refusal]:
        self._count_refused(project_id, len(refusals))
        self.journal.add(project_id, now_us, calls, _encode(calls), list(starmap(Refusal, refusals)))
        return []

    def _count_refused(self, project_id: str, count: int) -> None:
        if count:
            self._refused[project_id] = self._refused.get(project_id, 0) + count

    def _link(self, _: int, links: Iterable[Sequence[str]]) -> list[Refusal]:
        return _each(lambda link: self._ledger.link(*link), links)

    def _release(self, _: int, machine_ids: Iterable[str]) -> list[Refusal]:
        return _each(self._ledger.release, machine_ids)

    def _reset(self, _: int, project_id: str | None) -> list[Refusal]:
        self.applied.forget(project_id)
        if project_id is None:
            self._ledger = self._new_ledger()
            self._refused.clear()
            self._batches.clear()
            self.journal.forget_all()
        else:
            self._ledger.forget(project_id)
            self._refused.pop(project_id, None)
            self._batches.pop(project_id, None)
            self.journal.forget(project_id)
        return []

    def _expire(self, now_us: int) -> list[Refusal]:
        self._ledger.expire(now_us)
        return []

    def _housekeep(self, now_us: int) -> list[Refusal]:
        self._ledger.housekeep(now_us)
        return []

    def _apply_quirks(self, _: int, quirks: Iterable[str]) -> list[Refusal]:
        projects, owners = self._ledger.projects, self._ledger.owners
        self.quirks = frozenset(quirks)
        self._ledger = self._new_ledger()
        self._ledger.restore(projects, owners)
        return []

    def _accounts(self, now_us: int) -> StoredAccounts:
        ledger = self._ledger
        return StoredAccounts(
            now_us,
            self._refused,
            dict(ledger.projects),
            ledger.owners,
            quirks=sorted(self.quirks),
            overflows=self.journal.overflows,
            batches=self._batches,
        )

    def _restore(self, store: Store) -> None:
        """Restore the accounts from a store; the clock continues from their time."""
        kept = store.snapshot()
        self._refused = kept.refused
        self.quirks = frozenset(kept.quirks)
        self._ledger = self._new_ledger()
        self._ledger.restore(kept.projects, kept.owners)
        self._batches = kept.batches
        for project_id, answers in kept.answers.items():
            for batch_id, refusals in answers.items():
                self._batches.setdefault(project_id, Batches()).add(batch_id, kept.at_us, refusals)
        for project_id, received_us, encoded, refused in store.received():
            written = b"[%s]" % b",".join(map(bytes, encoded))
            calls = msgspec.json.decode(written) if refused else encoded
            self.journal.add(project_id, received_us, calls, written, list(starmap(Refusal, refused)))
        for project_id, received in kept.overflows.items():
            self.journal.overflow(project_id, received)
        at_us = kept.at_us
        for changed_us, what, arguments in store.changes():
            refusals = self._changes[what](changed_us, *arguments)
            if what == "apply":
                self.journal.add(arguments[0], changed_us, arguments[1], _encode(arguments[1]), refusals)
            is_new = what == "reset" and arguments[0] is None  # the clock may have gone back
            at_us = changed_us if is_new else max(at_us, changed_us)
        self._ledger.expire(at_us)
        self.clock.resume(at_us)

    def _new_ledger(self) -> Ledger:
        """A ledger with the rules of the quirks, which also set how requests are read."""
        self.requests = composed(RequestPolicy(), self.quirks)
        self.rules = composed(LedgerPolicy(), self.quirks)
        return Ledger(self.rules)


def _each(change: Callable[[T], None], subjects: Iterable[T]) -> list[Refusal]:
    refusals = []
    for position, subject in enumerate(subjects):
        try:
            change(subject)
        except CommandRefused as refused:
            refusals.append(Refusal(position, str(refused)))
    return refusals

"""One random sequence: its commands go to the target and to the model, and what comes of them is compared."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from cpdaemon.commands import Command
from cpsim.clock import SYSTEM_CLOCK
from cpsim.conformance.actions import Action, Bulk, ExpectedBooks, Linking, Releasing, renamed
from cpsim.conformance.expected import ExpectedSlots, found_state, wrong_sums
from cpsim.conformance.findings import Deviation
from cpsim.judge.quirks import BREAKING, LISTS_CLAIMED

if TYPE_CHECKING:
    from cpsim.conformance.examiner import Examiner
    from cpsim.conformance.walk import Walks
    from cpsim.judge.model import SlotState


class SequenceRun:
    """One sequence of commands, sent to the target and to the model.

    Commands name slots and machines by numbers, which are replaced by new ids.
    """

    def __init__(self, examiner: Examiner, walks: Walks, *, sees_accounts: bool) -> None:
        self._examiner = examiner
        self._walks = walks
        self._sees_accounts = sees_accounts
        self._ids: dict[str, str] = {}
        self._slots = ExpectedSlots()
        self._quirky = ExpectedSlots(walks.target.quirks, is_behind=walks.target.daemon is not None)
        self._books = ExpectedBooks()
        self.sent: list[Action] = []

    def do(self, action: Action) -> None:
        """Do something, and compare the answer with the model's.

        Raises:
            Deviation: the answers differ.
        """
        self.sent.append(action)
        named = renamed(action, self._named)
        if isinstance(named, Bulk):
            self._send_bulk(named)
        elif isinstance(named, Command):
            self._send(named)
        elif self._sees_accounts:
            self._tie(named)

    def _send(self, command: Command) -> None:
        self._walks.commands += 1
        now_ns = SYSTEM_CLOCK.monotonic_ns()
        is_accepted = self._follow(command, now_ns)
        if self._walks.target.daemon is not None:
            self._quirky.note(command, now_ns, accepted=None)
            self._examiner.send(command.frame.decode())
            return
        accepts, refuses = self._quirky.may(command, now_ns)
        arguments = {name: value for name, value in command.arguments().items() if name != "slot"}
        outcome = self._examiner.command(command.kind, command.slot, arguments).outcome
        if not {"accepted": accepts, "refused": refuses}.get(outcome, False):
            self._examiner.check(
                f"answer to {command.frame.decode()}", "accepted" if is_accepted else "refused", outcome
            )
        self._quirky.note(command, now_ns, accepted=outcome == "accepted" if self._examiner.sees else None)

    def _send_bulk(self, bulk: Bulk) -> None:
        commands, now_ns = bulk.in_order(), SYSTEM_CLOCK.monotonic_ns()
        outcomes = self._quirky.foreseen(commands, now_ns)
        if self._walks.target.daemon is not None or outcomes is None:  # a bulk does not say which it refused
            for command in commands:
                self._send(command)
            return
        self._walks.commands += len(commands)
        document: dict[str, list[object]] = {}
        for command in bulk.commands:
            document.setdefault(command.kind, []).append(command.arguments())
        for command, is_accepted in zip(commands, outcomes, strict=True):
            self._follow(command, now_ns)
            self._quirky.note(command, now_ns, accepted=is_accepted)
        errors = self._examiner.bulk(document)
        self._examiner.check(f"errors of a bulk of {len(commands)}", outcomes.count(False), len(errors))

    def _follow(self, command: Command, now_ns: int) -> bool:
        """Let the model without quirks have a command; returns whether it is to be accepted."""
        is_accepted, _ = self._slots.may(command, now_ns)
        self._slots.note(command, now_ns, accepted=is_accepted)
        if is_accepted:
            (branch,) = self._slots.branches(command.slot)
            self._books.pay(command.slot, branch.state)
        return is_accepted

    def _tie(self, tie: Linking | Releasing) -> None:
        if self._walks.target.daemon is not None:
            self._examiner.wait_until_applied()
        if self._books.admits(tie):
            if isinstance(tie, Linking):
                self._quirky.note_link()
                self._examiner.link(tie.machine, tie.user)
            else:
                self._examiner.release(tie.machine)

    def look_back(self) -> None:
        """Compare the state of every slot with the model's.

        Raises:
            Deviation: the states differ.
        """
        if self._walks.target.server is None or not self.sent:
            return
        if self._walks.target.daemon is not None:
            self._examiner.wait_until_applied()
        slots = [slot for name, slot in self._ids.items() if name.startswith("slot")]
        shown = Counter(filter(None, map(self._look_at_slot, slots)))
        self._walks.known_quirks += shown
        if not self._sees_accounts:
            return
        if not (breaking := BREAKING & self._quirky.quirks):
            self._look_at_books()
            return
        self._look_at_sums(slots)
        if not shown:
            try:
                self._look_at_books()
            except Deviation:  # which quirks explain: a machine that claimed twice, say
                self._walks.known_quirks[" + ".join(sorted(breaking))] += 1

    def _look_at_slot(self, slot: str) -> str:
        """Compare a slot with the model; returns the known quirks that it shows, if any."""
        (branch,) = self._slots.branches(slot)
        if not self._sees_accounts:
            return self._look_at_list(slot, branch.state.phase)
        row = self._examiner.accounts.slot(self._examiner.project[0], slot)
        found, hidden = found_state(row)
        if found == branch.state.without(hidden) and not self._quirky.quirks:
            return ""
        quirk = self._quirky.quirk_of(slot, found, SYSTEM_CLOCK.monotonic_ns(), hidden)
        if quirk is None:
            self._examiner.check(f"slot {slot}", _seen(branch.state), _seen(found))
        return quirk or ""

    def _look_at_list(self, slot: str, phase: str) -> str:
        """Compare a slot with the list of those that are outstanding."""
        phases = {branch.state.phase for branch in self._quirky.branches(slot)}
        is_listed = self._examiner.listed(slot)
        if is_listed and "claimed" in phases and LISTS_CLAIMED in self._walks.target.quirks:
            return LISTS_CLAIMED
        if not any((each == "allocated") == is_listed for each in phases):
            self._examiner.check(f"{slot} is listed by /batch/slots", phase == "allocated", is_listed)
        return self._quirky.quirk_of(slot, None, SYSTEM_CLOCK.monotonic_ns()) or ""

    def _look_at_sums(self, slots: list[str]) -> None:
        """Compare sums that known quirks have changed with what they make of them."""
        accounts, project = self._examiner.accounts, self._examiner.project[0]
        states = {slot: found_state(accounts.slot(project, slot)) for slot in slots}
        hidden = {name for _, names in states.values() for name in names}
        found = {slot: state for slot, (state, _) in states.items()}
        if hidden & {"machine", "granted", "counters"}:
            return
        machines, users = (
            {id: read(project, id) or {} for name, id in self._ids.items() if name.startswith(kind)}
            for kind, read in (("machine", accounts.machine), ("user", accounts.user))
        )
        corrections = self._quirky.corrections(found, SYSTEM_CLOCK.monotonic_ns(), hidden)
        if corrections.unknown:
            return
        for what, expected, got in wrong_sums(found, machines, users, corrections):
            self._examiner.check(what, expected, str(got))

    def _look_at_books(self) -> None:
        for machine, held in self._books.machines.items():
            self._examiner.see_machine(
                machine,
                credits=held.credits,
                counters=held.counters,
                waiting_credits=held.waiting_credits,
                waiting_counters=held.waiting_counters,
            )
        for user, got in self._books.users.items():
            self._examiner.see_user(user, credits=got.credits, counters=got.counters)

    def keep(self) -> None:
        """Keep this sequence: it deviates."""
        self._walks.sequence = self.sent

    def _named(self, name: str) -> str:
        """The id in the place of a number."""
        if name not in self._ids:
            self._ids[name] = self._examiner.new(name.partition("-")[0])
        return self._ids[name]


def _seen(state: SlotState) -> dict[str, object]:
    """A state as the accounts show it."""
    fields = {name: dict(value) if isinstance(value, frozenset) else value for name, value in state._asdict().items()}
    return {"state": fields.pop("phase"), **fields}

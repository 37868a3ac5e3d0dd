"""What a random sequence may have done to slots and sums at a target that is known to have quirks.

Pure; the judge's model says what a command may lead to.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final

from cpdaemon.commands import COMMANDS
from cpsim.judge.corrections import CREDITS, WHOLE, Corrections
from cpsim.judge.model import MODELLED, NO_QUIRKS, START, Beside, SlotState, Span, Step, branches_after, branches_at
from cpsim.judge.orders import TooManyOrders
from cpsim.judge.quirks import BY_FAULT, explanation, fitting_histories

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from cpdaemon.commands import Command
    from cpsim.judge.corrections import Amounts
    from cpsim.judge.model import Branch, Quirks

    Row = Mapping[str, object]

UNTRIGGERED: Final = {*BY_FAULT, "global-slot-ids", "slots-vanish"}
"""Quirks whose trigger is not in a random sequence: a fault, another project; or a link, which adds its quirk."""
BY_LINK: Final = "slots-vanish"
LATE: Final = "counters-settled"
REORDERS: Final = "reorder-classes"
MOST_POSITIONS: Final = 2_000
"""Histories of a slot that are looked at for the name of the quirk that explains it."""


def step_of(command: Command, now_ns: int, *, accepted: bool | None = None) -> Step:
    """A command as the model has it, applied at a time."""
    return Step(command.kind, command.arguments(), Span(now_ns, now_ns), applied=True, accepted=accepted)


class ExpectedSlots:
    """The histories that slots may have had, by the commands and the replies so far.

    Args:
        known: quirks that the target may have.
        is_behind: whether commands pass through a daemon, which may reorder them.
    """

    def __init__(self, known: Quirks = NO_QUIRKS, *, is_behind: bool = False) -> None:
        self._known = known & MODELLED
        self.quirks = self._known - UNTRIGGERED - (set() if is_behind else {REORDERS})
        self._steps: defaultdict[str, list[Step]] = defaultdict(list)
        self._branches: defaultdict[str, set[Branch]] = defaultdict(lambda: {START})

    def note_link(self) -> None:
        """A machine was linked: what that triggers is possible from now on."""
        self.quirks |= self._known & {BY_LINK}

    def branches(self, slot: str) -> set[Branch]:
        """The histories that a slot may have had."""
        return self._branches[slot]

    def may(self, command: Command, now_ns: int) -> tuple[bool, bool]:
        """Whether a command may be accepted, and whether it may be refused."""
        accepted, refused = (
            bool(self._after(command.slot, step_of(command, now_ns, accepted=outcome))) for outcome in (True, False)
        )
        return accepted, refused

    def foreseen(self, commands: Iterable[Command], now_ns: int) -> list[bool] | None:
        """Whether each of some commands is accepted, one after the other; None if that is not certain for all."""
        steps, branches, outcomes = self._steps, self._branches, []
        self._steps, self._branches = defaultdict(list), branches.copy()
        try:
            for command in commands:
                accepts, refuses = self.may(command, now_ns)
                if accepts and refuses:
                    return None
                self.note(command, now_ns, accepted=accepts)
                outcomes.append(accepts)
        finally:
            self._steps, self._branches = steps, branches
        return outcomes

    def note(self, command: Command, now_ns: int, *, accepted: bool | None) -> None:
        """Add a command that was accepted or refused, as it may be, or of which that is not known."""
        step = step_of(command, now_ns, accepted=accepted)
        self._steps[command.slot].append(step)
        self._branches[command.slot] = self._after(command.slot, step)

    def quirk_of(self, slot: str, found: SlotState | None, now_ns: int, hidden: Collection[str] = ()) -> str | None:
        """The quirks that a slot shows, in its replies and, if it was seen, in its state; "" for none.

        Returns:
            None if nothing explains them.
        """
        steps, seen = self._steps[slot], Span(now_ns, now_ns)
        if fitting_histories(steps, seen, found, NO_QUIRKS, hidden=hidden):
            return ""
        if name := explanation(steps, seen, found, self.quirks, hidden=hidden, most_positions=MOST_POSITIONS):
            return name
        if any(found is None or found == branch.state.without(hidden) for branch in self._aged(slot, seen)):
            return " + ".join(sorted(self.quirks))
        if REORDERS in self.quirks and any(
            fitting_histories(order, seen, found, self.quirks - {REORDERS}, hidden=hidden) for order in _batched(steps)
        ):
            return REORDERS
        return None

    def corrections(self, slots: Mapping[str, SlotState], now_ns: int, hidden: Collection[str]) -> Corrections:
        """What quirks may have put sums off by, at slots that were found so."""
        corrections, seen = Corrections(), Span(now_ns, now_ns)
        for slot, found in slots.items():
            try:
                fitting = fitting_histories(self._steps[slot], seen, found, self.quirks, hidden=hidden)
            except TooManyOrders:
                corrections.unknown += 1
            else:
                corrections.add("", fitting)
        return corrections

    def _after(self, slot: str, step: Step) -> set[Branch]:
        afters = (after for branch in self._branches[slot] for after in branches_after(branch, step, self.quirks))
        return {_without_amounts(after) for after in afters}

    def _aged(self, slot: str, seen: Span) -> Iterator[Branch]:
        return (aged for branch in self._branches[slot] for aged in branches_at(branch, seen, self.quirks))


def _without_amounts(branch: Branch) -> Branch:
    """A history, of which only what may follow matters: how late counters were taken."""
    late = {(each.earned, each.held) for each in branch.beside if each.quirk == LATE}
    return branch._replace(beside=tuple(Beside(LATE, "", 0, frozenset(), *each) for each in sorted(late)))


def _batched(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """The orders in which a daemon may pass commands on that groups each of two batches by kind."""
    kinds = [*COMMANDS]
    for end in range(len(steps) + 1):
        batches = (steps[:end], steps[end:])
        order = [step for batch in batches for step in sorted(batch, key=lambda step: kinds.index(step.kind))]
        yield [step._replace(span=steps[0].span, answered_ns=steps[0].span.earliest_ns) for step in order]


def wrong_sums(
    slots: Mapping[str, SlotState],
    machines: Mapping[str, Row],
    users: Mapping[str, Row],
    corrections: Corrections,
) -> Iterator[tuple[str, str, int]]:
    """The sums that are not as claims and known quirks make them: whose they are, what is expected, and what is there.

    Args:
        slots: every slot as it was found.
        machines: what each machine has.
        users: what each user has.
        corrections: what quirks explain.
    """
    granted: Counter[tuple[str, str]] = Counter()
    for state in slots.values():
        if state.machine is not None and state.granted is not None:
            for name, amount in ((CREDITS, state.granted), *state.counters):
                granted[state.machine, name] += amount
    held, total = Counter[str](), Counter[str]()
    for (_, name), amount in granted.items():
        total[name] += amount
    for machine, row in machines.items():
        earned = _amounts(row)
        _add(held, _amounts(row, "waiting_"))
        for name in sorted({*earned, *(name for other, name in granted if other == machine)}):
            known = corrections.of("", machine, name).earned
            if not _admits(known, earned[name] - granted[machine, name]):
                yield f"{name} of machine {machine}", _expected(granted[machine, name], known), earned[name]
    for row in users.values():
        _add(held, _amounts(row))
    for name in sorted({*held, *total}):
        known = corrections.of("", WHOLE, name).held
        if not _admits(known, held[name] - total[name]):
            yield f"{name} that users have and that wait", _expected(total[name], known), held[name]


def _amounts(row: Row, prefix: str = "") -> Counter[str]:
    counters = row.get(f"{prefix}counters")
    amounts = Counter(counters if isinstance(counters, dict) else {})
    credits = row.get(f"{prefix}credits")
    amounts[CREDITS] = credits if isinstance(credits, int) else 0
    return amounts


def _add(sums: Counter[str], more: Counter[str]) -> None:
    for name, amount in more.items():
        sums[name] += amount


def _admits(known: Amounts, off: int) -> bool:
    return not off or known.admit(off)


def _expected(granted: int, known: Amounts) -> str:
    least, most = granted + min(0, known.least), granted + max(0, known.most)
    return f"{least}" if least == most else f"{least} to {most}"


def found_state(row: Row | None) -> tuple[SlotState, list[str]]:
    """A slot's row of the accounts as a state, and the fields that it does not show."""
    if row is None:
        return SlotState("absent"), []
    hidden = [name for name in SlotState._fields[1:] if name not in row]
    fields = {name: row.get(name) for name in ("machine", "granted", "reason")}
    maps = {name: frozenset((row.get(name) or {}).items()) for name in ("counters", "meta")}  # type: ignore[attr-defined]
    return SlotState(str(row.get("state")), **fields, **maps), hidden  # type: ignore[arg-type]

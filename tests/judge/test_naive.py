"""Three readings of the protocol agree on random commands: a naive one, the fake's ledger, and the verifier's model.

The naive one is written straight from section 2 of the protocol. It keeps a log and nothing else: every question is
answered by reading the log again. CI runs 50,000 commands; a million take a few minutes:

    CPSIM_TEST_NAIVE_COMMANDS=1000000 pytest tests/judge/test_naive.py --timeout 0
"""

import os
import random
from collections import Counter

import pytest

from cpsim.judge.model import SlotState, Span, Step, possible_states
from cpsim.protocol.slots import CommandRefused
from cpsim.server.ledger import Ledger

COMMANDS = int(os.environ.get("CPSIM_TEST_NAIVE_COMMANDS", "50000"))
A_WORLD = 2_500
"""Commands to one set of books; then the books are compared and new ones begun."""
MINUTE_US = 60_000_000


class Log:
    """All that was accepted, in the order of its coming: (time, project, kind, arguments)."""

    def __init__(self):
        self.entries = []
        self.of_slot = {}

    def offer(self, now_us, project, kind, arguments):
        """Write a command down if it is accepted; says whether."""
        past = self.of_slot.get((project, arguments["slot"]), [])
        good = GOOD[kind](arguments, past) and (
            state(past, now_us) == ("never used" if kind == "alloc" else "ALLOCATED")
        )
        if good:
            self.entries.append((now_us, project, kind, arguments))
            self.of_slot.setdefault((project, arguments["slot"]), []).append(self.entries[-1])
        return good

    def link(self, machine, user):
        """A machine is linked to at most one user at a time."""
        if self.owner(machine) not in {None, user}:
            return False
        self.entries.append((None, None, "link", (machine, user)))
        return True

    def release(self, machine):
        """Take a machine from its user."""
        if self.owner(machine) is None:
            return False
        self.entries.append((None, None, "release", (machine, None)))
        return True

    def owner(self, machine):
        """Whose a machine is."""
        changes = [
            given[1] for _, _, kind, given in self.entries if kind in {"link", "release"} and given[0] == machine
        ]
        return changes[-1] if changes else None

    def books(self):
        """Who has what, by (project, what, whose, credits or counter); read from the first entry to the last."""
        has, owner = Counter(), {}
        for _, project, kind, given in self.entries:
            if kind == "claim":
                machine = given["machine"]
                events = self.of_slot[project, given["slot"]]
                for name, value in [("credits", granted(events)), *counters(events).items()]:
                    has[project, "earned", machine, name] += value
                    account = ("user", owner[machine]) if owner.get(machine) else ("waiting", machine)
                    has[(project, *account, name)] += value
            elif kind == "link":
                machine, owner[machine] = given
                for place in [place for place in has if place[1:3] == ("waiting", machine)]:
                    has[place[0], "user", owner[machine], place[3]] += has.pop(place)
            elif kind == "release":
                owner[given[0]] = None
        return {place: value for place, value in has.items() if value}


def whole(value):
    """The whole number that a value says, or None."""
    text = str(value)
    return int(text) if text.removeprefix("-").isdecimal() else None


def at_least(value, least):
    return value is None or (whole(value) is not None and whole(value) >= least)


def good_alloc(given, _):
    low, high = given.get("min"), given.get("max")
    if not all(at_least(given.get(name), 0) for name in ("credits", "min", "max")) or not at_least(
        given.get("expire"), 1
    ):
        return False
    return low is None or high is None or whole(low) <= whole(high)


def good_claim(given, past):
    promised = past and past[0][3].get("credits") is not None
    return "machine" in given and (promised or at_least(given.get("credits"), 0))


GOOD = {
    "alloc": good_alloc,
    "claim": good_claim,
    "discard": lambda given, _: True,
    "meta": lambda given, _: len(given) > 1,
    "counters": lambda given, _: (
        len(given) > 1 and all(whole(given[name]) is not None for name in given if name != "slot")
    ),
}


def state(events, now_us):
    """Where a slot is in its life."""
    kinds = [kind for _, _, kind, _ in events]
    if not kinds:
        return "never used"
    if "claim" in kinds:
        return "CLAIMED"
    if "discard" in kinds:
        return "DISCARDED"
    start_us, _, _, promised = events[0]
    return "ALLOCATED" if now_us < start_us + whole(promised.get("expire", 1440)) * MINUTE_US else "EXPIRED"


def granted(events):
    """What a slot's claim granted."""
    promised, asked = events[0][3], events[-1][3]
    if "credits" in promised:
        return whole(promised["credits"])
    least, most = whole(promised.get("min", -1)), whole(promised.get("max", 10**18))
    return sorted([least, whole(asked.get("credits", 1)), most])[1]


def counters(events):
    """The sums of a slot's counters."""
    sums = {}
    for _, _, kind, given in events:
        for name in given if kind == "counters" else ():
            if name != "slot":
                sums[name] = sums.get(name, 0) + whole(given[name])
    return sums


def described(events, now_us):
    """A slot's state in the words of the verifier."""
    kinds, given = [event[2] for event in events], [event[3] for event in events]
    meta = {}
    for kind, arguments in zip(kinds, given, strict=True):
        meta |= {name: str(text) for name, text in arguments.items() if kind == "meta" and name != "slot"}
    claimed, discarded = "claim" in kinds, "discard" in kinds
    return SlotState(
        state(events, now_us).lower(),
        given[-1]["machine"] if claimed else None,
        granted(events) if claimed else None,
        given[-1].get("reason", "unspecified") if discarded else None,
        frozenset(counters(events).items()),
        frozenset(meta.items()),
    )


class World:
    """Random commands of two projects, offered to the log and to the ledger."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.log, self.ledger = Log(), Ledger()
        self.now_us = 1_000_000
        self.history = {}
        self.accepted = Counter()

    def number(self, *more):
        return self.random.choice([0, 1, 1, 2, 5, 9, "3", "12", *(more if self.random.random() < 0.1 else ())])

    def some(self, **given):
        return {name: value for name, value in given.items() if self.random.random() < 0.4}

    def arguments(self, kind):
        number, choice = self.number, self.random.choice
        bad = (-1, "x", "1.5", "-4")
        match kind:
            case "alloc":
                given = self.some(credits=number(*bad), min=number(*bad), max=number(*bad))
                return given | self.some(expire=choice([1, 2, 3, 3, "2", 600, 0, -1, "soon"]))
            case "counters":
                return self.some(a=number("x", "2.0"), b=choice([-1, "-20", 3]), c=number())
            case "meta":
                return self.some(site=choice("xyz"), kind=choice("xyz"), number=5)
            case "discard":
                return self.some(reason=choice(["late", "broken"]))
            case _:
                machine = {} if self.random.random() < 0.03 else {"machine": f"m{self.random.randrange(12)}"}
                return machine | self.some(credits=number(*bad))

    def step(self):
        """Offer one command, or link or release a machine."""
        self.now_us += self.random.choice([0, 0, 1, 5, 10, 10]) * 1_000_000
        if self.random.random() < 0.03:
            machine, user = f"m{self.random.randrange(12)}", f"u{self.random.randrange(5)}"
            how, who = self.random.choice(
                [("link", (machine, user)), ("link", (machine, user)), ("release", (machine,))]
            )
            assert getattr(self.log, how)(*who) == self.told(getattr(self.ledger, how), *who)
            return
        kind = self.random.choice(["alloc", "alloc", "counters", "counters", "meta", "discard", "claim", "claim"])
        project = self.random.choice("pq")
        fresh = self.now_us // (MINUTE_US // 3)
        arguments = {"slot": f"s{max(0, fresh - self.random.randrange(16))}", **self.arguments(kind)}
        good = self.log.offer(self.now_us, project, kind, arguments)
        assert good == self.told(self.ledger.apply, project, kind, arguments, self.now_us), (kind, arguments)
        at = Span(self.now_us * 1000, self.now_us * 1000)
        self.history.setdefault((project, arguments["slot"]), []).append(Step(kind, arguments, at, True, good))
        self.accepted[kind, good] += 1

    def told(self, change, *arguments):
        try:
            change(*arguments)
        except CommandRefused:
            return False
        return True

    def compare(self):
        """Compare every slot and every account."""
        self.ledger.expire(self.now_us)
        seen = Span(self.now_us * 1000, self.now_us * 1000)
        for (project, slot_id), steps in self.history.items():
            events = self.log.of_slot.get((project, slot_id), [])
            naive = described(events, self.now_us) if events else SlotState("absent")
            assert possible_states(steps, seen) == {naive}
            assert possible_states([step._replace(accepted=None) for step in steps], seen) == {naive}
            slot = self.ledger.project(project).slots.get(slot_id)
            assert naive == SlotState("absent") if slot is None else naive == state_of(slot)
        assert self.log.books() == dict(held(self.ledger))
        assert list(self.ledger.violations()) == []


def state_of(slot):
    entries = [frozenset((given or {}).items()) for given in (slot.counters, slot.meta)]
    return SlotState(str(slot.state), slot.machine, slot.granted, slot.reason, *entries)


def held(ledger):
    for project_id, project in ledger.projects.items():
        accounts = [("user", user, account) for user, account in project.users.items()]
        for name, machine in project.machines.items():
            accounts += [("earned", name, machine.earned), ("waiting", name, machine.waiting)]
        for what, whose, account in accounts:
            for name, value in [("credits", account.credits), *account.counters.items()]:
                if value:
                    yield (project_id, what, whose, name), value


@pytest.mark.parametrize("part", range(4))
def test_three_readings_of_the_protocol_agree(part):
    told = Counter()
    for world_number in range(part, max(4, COMMANDS // A_WORLD), 4):
        world = World(world_number)
        for _ in range(A_WORLD):
            world.step()
        world.compare()
        told += world.accepted
    kinds = ("alloc", "counters", "meta", "discard", "claim")
    assert all(told[kind, good] > told.total() / 100 for kind in kinds for good in (True, False)), told

"""The accounts: every command, every refusal, and books that always balance."""

import copy
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpsim.judge.model import SlotState, Span, Step, possible_states
from cpsim.protocol.slots import CommandRefused, State
from cpsim.quirks.policies.ledger import LARGEST_INTEGER
from cpsim.server.accounts import Account
from cpsim.server.ledger import LAST_US, MINUTE_US, Ledger

DAY_US = 1440 * MINUTE_US


class Books:
    """A ledger, spoken to in one project at one time."""

    def __init__(self):
        self.ledger = Ledger()
        self.now_us = 0

    def __call__(self, kind, slot="s", project="p", **arguments):
        self.ledger.apply(project, kind, {"slot": slot, **arguments}, self.now_us)

    def refuses(self, said, kind, arguments, project="p"):
        before = self.everything()
        with pytest.raises(CommandRefused, match=said):
            self.ledger.apply(project, kind, arguments, self.now_us)
        assert self.everything() == before

    def everything(self):
        return copy.deepcopy((self.ledger.projects, self.ledger.owners))

    def slot(self, slot="s", project="p"):
        return self.ledger.projects[project].slots[slot]

    @property
    def p(self):
        return self.ledger.projects["p"]


@pytest.fixture
def books():
    books = Books()
    yield books
    assert list(books.ledger.violations()) == []


# The table


def test_alloc(books):
    books.now_us = 7
    books("alloc", credits=5, expire=2)
    slot = books.slot()
    assert (slot.state, slot.credits, slot.min, slot.max) == (State.ALLOCATED, 5, None, None)
    assert (slot.allocated_us, slot.expires_us) == (7, 7 + 2 * MINUTE_US)
    assert books.p.outstanding == 1


def test_a_slot_lives_for_a_day_unless_told_otherwise(books):
    books("alloc")
    assert books.slot().expires_us == DAY_US


def test_counters_add_up(books):
    books("alloc")
    books("counters", **{"job/events": 5, "down": -3})
    books("counters", **{"job/events": "-2", "zero": "0"})
    assert books.slot().counters == {"job/events": 3, "down": -3, "zero": 0}
    assert books.p.granted == Account()


def test_the_last_metadata_wins(books):
    books("alloc")
    books("meta", site="CERN", queue="short")
    books("meta", site="DESY", run=7)
    assert books.slot().meta == {"site": "DESY", "queue": "short", "run": "7"}


def test_discard_grants_nothing_and_counts_the_reason(books):
    for slot, reason in (("a", {}), ("b", {"reason": "lost"}), ("c", {"reason": "lost"})):
        books("alloc", slot, credits=5)
        books("counters", slot, n=1)
        books("discard", slot, **reason)
    assert books.p.reasons == {"unspecified": 1, "lost": 2}
    assert books.p.settled[State.DISCARDED] == 3
    assert books.p.granted == Account()
    assert books.p.outstanding == 0


def test_claim_grants_credits_and_counters(books):
    books("alloc", credits=5)
    books("counters", n=2)
    books.now_us = 9
    books("claim", machine="m")
    slot = books.slot()
    assert (slot.state, slot.machine, slot.granted, slot.settled_us) == (State.CLAIMED, "m", 5, 9)
    assert books.p.granted == books.p.machines["m"].earned == Account(5, {"n": 2})


def test_a_machine_id_may_be_a_number(books):
    books("alloc", 5)
    books("claim", 5, machine=12)
    assert books.slot("5").machine == "12"


# Refusals, each of which changes nothing


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"min": 2, "max": 1}, "min=2 is above max=1"),
        ({"credits": 5, "min": "2", "max": "1"}, "above"),
        *(({name: "-1"}, f"{name}=-1 is negative") for name in ("credits", "min", "max", "expire")),
        *(({name: "7.9"}, f"{name}='7.9' is not a whole") for name in ("credits", "min", "max", "expire")),
        *(({"credits": bad}, "not a whole") for bad in ("", " 5", "5 ", "+5", "1e3", "٣", "five", 7.0, True, [1])),
        ({"credits": {"a": 1}}, "credits=an object is not"),
        ({"credits": LARGEST_INTEGER + 1}, "beyond"),
        ({"credits": "9" * 17}, "is beyond"),
        ({"credits": [1] * 1000}, r"credits=a list is not"),
        ({"credits": "x" * 1000}, r"credits='x{78}… is not"),
        ({"expire": 0}, "not a positive"),
        ({"expire": "0"}, "not a positive"),
    ],
)
def test_terms_that_are_refused(books, arguments, said):
    books("alloc", "other")
    books.refuses(said, "alloc", {"slot": "s", **arguments})


@pytest.mark.parametrize("kind", ["alloc", "counters", "meta", "discard", "claim"])
@pytest.mark.parametrize(
    ("slot", "said"),
    [
        ({}, "missing argument 'slot'"),
        ({"slot": ""}, "missing argument 'slot'"),
        ({"slot": None}, "missing argument 'slot'"),
        ({"slot": True}, "must be text, not True"),
        ({"slot": 1.5}, "must be text, not 1.5"),
        ({"slot": [[]]}, "must be text, not a list"),
    ],
)
def test_no_command_without_a_slot(books, kind, slot, said):
    books("alloc")
    books.refuses(said, kind, {**slot, "machine": "m"})


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        ("pay", {}, "unknown command 'pay'"),
        ("ALLOC", {}, "unknown command"),
        ("alloc", {}, "already allocated"),
        ("counters", {}, "without a counter"),
        ("counters", {"n": 1, "half": "0.5"}, "half='0.5' is not a whole number"),
        ("counters", {"n": None}, "not a whole number"),
        ("meta", {}, "without a name"),
        ("meta", {"a": "b", "none": None}, "missing argument 'none'"),
        ("meta", {"a": "b", "list": []}, "must be text"),
        ("discard", {"reason": ""}, "missing argument 'reason'"),
        ("discard", {"reason": False}, "must be text"),
        ("claim", {}, "missing argument 'machine'"),
        ("claim", {"machine": ""}, "missing argument 'machine'"),
        ("claim", {"machine": "m", "credits": "-1"}, "negative"),
        ("claim", {"machine": "m", "credits": "7.9"}, "not a whole"),
    ],
)
def test_refused_on_an_open_slot(books, kind, arguments, said):
    books("alloc")
    books("counters", n=1)
    books("meta", a="b")
    books.refuses(said, kind, {"slot": "s", **arguments})


COMMANDS = {
    "alloc": {},
    "counters": {"n": 1},
    "meta": {"a": "b"},
    "discard": {"reason": "lost"},
    "claim": {"machine": "m"},
}


@pytest.mark.parametrize("kind", COMMANDS)
@pytest.mark.parametrize("end", ["claimed", "discarded", "expired"])
def test_a_settled_slot_is_closed(books, end, kind):
    books("alloc", expire=1)
    if end == "expired":
        books.now_us = MINUTE_US
        books.ledger.expire(MINUTE_US)
    else:
        books({"claimed": "claim", "discarded": "discard"}[end], **({"machine": "m"} if end == "claimed" else {}))
    assert books.slot().state == end
    said = "already allocated" if kind == "alloc" else f"is settled: it was {end}"
    books.refuses(said, kind, {"slot": "s", **COMMANDS[kind]})


@pytest.mark.parametrize("kind", ["counters", "meta", "discard", "claim"])
def test_a_slot_that_never_was(books, kind):
    books("alloc", "other")
    books.refuses("'s' was never allocated", kind, {"slot": "s", **COMMANDS[kind]})


# Credits


@pytest.mark.parametrize(
    ("terms", "asked", "granted"),
    [
        ({}, None, 1),
        ({}, 0, 0),
        ({}, 7, 7),
        ({"credits": 5}, 9, 5),
        ({"credits": 0}, 9, 0),
        ({"credits": 5}, "no number", 5),
        ({"credits": 5, "min": 7, "max": 9}, 8, 5),
        ({"min": 3, "max": 5}, None, 3),
        ({"min": 3, "max": 5}, 2, 3),
        ({"min": 3, "max": 5}, 3, 3),
        ({"min": 3, "max": 5}, 5, 5),
        ({"min": 3, "max": 5}, 6, 5),
        ({"min": 3, "max": 3}, 9, 3),
        ({"min": 3}, 99, 99),
        ({"max": 0}, None, 0),
        ({"max": LARGEST_INTEGER}, LARGEST_INTEGER, LARGEST_INTEGER),
    ],
)
@pytest.mark.parametrize("form", [lambda value: value, str], ids=["numbers", "text"])
def test_what_a_claim_grants(books, terms, asked, granted, form):
    books("alloc", **{name: form(value) for name, value in terms.items()})
    books("claim", machine="m", **({} if asked is None else {"credits": form(asked)}))
    assert books.slot().granted == books.p.granted.credits == granted


# Time


@pytest.mark.parametrize("kind", ["counters", "meta", "discard", "claim"])
def test_the_deadline_is_exact(books, kind):
    books("alloc", "early", expire=1)
    books("alloc", "late", expire=1)
    books.now_us = MINUTE_US - 1
    books(kind, "early", **COMMANDS[kind])
    books.now_us = MINUTE_US
    with pytest.raises(CommandRefused, match="it was expired"):
        books(kind, "late", **COMMANDS[kind])
    assert books.slot("late").settled_us == MINUTE_US
    assert books.slot("early").state != State.EXPIRED or kind in {"counters", "meta"}


def test_what_expires_does_so_at_its_deadline_however_late_it_is_seen(books):
    books("alloc", "a", expire=2)
    books("alloc", "b", expire=1)
    books("alloc", "c", expire=3)
    books("counters", "a", n=1)
    assert books.ledger.outstanding("p", 2 * MINUTE_US) == ["c"]
    assert [books.slot(name).settled_us for name in "abc"] == [2 * MINUTE_US, MINUTE_US, None]
    assert books.p.settled[State.EXPIRED] == 2
    assert books.p.granted == Account()


def test_a_slot_may_outlive_any_clock(books):
    books("alloc", expire=LARGEST_INTEGER)
    assert books.slot().expires_us == LAST_US
    books.now_us = 2**60
    books("claim", machine="m")


# Machines and users


def earn(books, machine, credits, slot):
    books("alloc", slot, credits=credits)
    books("counters", slot, n=credits)
    books("claim", slot, machine=machine)


def test_what_waits_goes_to_the_user_and_what_follows_directly(books):
    earn(books, "m", 5, "a")
    machine = books.p.machines["m"]
    assert machine.waiting == Account(5, {"n": 5})
    assert books.p.users == {}
    books.ledger.link("m", "u")
    assert machine.waiting == Account()
    assert books.p.users == {"u": Account(5, {"n": 5})}
    earn(books, "m", 2, "b")
    assert machine.waiting == Account()
    assert books.p.users == {"u": Account(7, {"n": 7})}
    books.ledger.link("m", "u")
    assert books.p.users == {"u": Account(7, {"n": 7})}
    assert machine.earned == Account(7, {"n": 7})


def test_a_release_takes_nothing_back(books):
    books.ledger.link("m", "u")
    earn(books, "m", 5, "a")
    books.ledger.release("m")
    earn(books, "m", 2, "b")
    assert books.p.users == {"u": Account(5, {"n": 5})}
    assert books.p.machines["m"].waiting == Account(2, {"n": 2})
    books.ledger.link("m", "v")
    assert books.p.users == {"u": Account(5, {"n": 5}), "v": Account(2, {"n": 2})}


def test_a_machine_has_one_user(books):
    books.ledger.link("m", "u")
    with pytest.raises(CommandRefused, match="linked to user 'u'; release it first"):
        books.ledger.link("m", "v")
    with pytest.raises(CommandRefused, match="linked to no user"):
        books.ledger.release("n")
    assert books.ledger.owners == {"m": "u"}


def test_a_user_may_have_many_machines(books):
    for machine in "mno":
        books.ledger.link(machine, "u")
        earn(books, machine, 3, f"slot-{machine}")
    assert books.p.users == {"u": Account(9, {"n": 9})}


# Projects


def test_projects_do_not_know_one_another(books):
    books("alloc", credits=5)
    books("alloc", credits=7, project="q")
    books("claim", machine="m")
    books("claim", machine="m", project="q")
    q = books.ledger.projects["q"]
    assert (books.p.granted.credits, q.granted.credits) == (5, 7)
    assert (books.p.machines["m"].earned.credits, q.machines["m"].earned.credits) == (5, 7)
    books.ledger.link("m", "u")
    assert (books.p.users["u"].credits, q.users["u"].credits) == (5, 7)
    books("alloc", "only-p")
    books.refuses("never allocated", "claim", {"slot": "only-p", "machine": "m"}, project="q")
    assert books.ledger.outstanding("q", 0) == []


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda p: p.settled.update({State.CLAIMED: 0}), "1 slots are claimed, but 0 were counted"),
        (lambda p: p.reasons.update(lost=1), "discards by reason"),
        (lambda p: p.machines["m"].earned.add(1, {}), "the machines hold"),
        (lambda p: p.machines["m"].waiting.add(0, {"n": 1}), "the users and waiting hold"),
        (lambda p: setattr(p.slots["a"], "granted", 4), "the slots hold"),
    ],
)
def test_violations_are_told(break_it, said):
    books = Books()
    earn(books, "m", 5, "a")
    break_it(books.p)
    violations = list(books.ledger.violations())
    assert violations
    assert all(law.startswith("project 'p': ") for law in violations)
    assert any(said in law for law in violations)


# Properties


amounts = st.none() | st.integers(0, 6) | st.integers(0, 6).map(str)
slots = st.sampled_from("abc")
projects = st.sampled_from("pq")


def given_arguments(**strategies):
    return st.fixed_dictionaries(strategies).map(lambda d: {k: v for k, v in d.items() if v is not None})


calls = st.one_of(
    st.tuples(
        st.just("alloc"),
        given_arguments(slot=slots, credits=amounts, min=amounts, max=amounts, expire=st.none() | st.integers(1, 3)),
    ),
    st.tuples(
        st.just("counters"),
        st.tuples(slots, st.dictionaries(st.sampled_from("xy"), st.integers(-3, 3), min_size=1)).map(
            lambda pair: {"slot": pair[0], **pair[1]}
        ),
    ),
    st.tuples(
        st.just("meta"),
        st.tuples(slots, st.dictionaries(st.sampled_from("xy"), st.sampled_from("vw"), min_size=1)).map(
            lambda pair: {"slot": pair[0], **pair[1]}
        ),
    ),
    st.tuples(st.just("discard"), given_arguments(slot=slots, reason=st.none() | st.sampled_from(["lost", "late"]))),
    st.tuples(st.just("claim"), given_arguments(slot=slots, machine=st.sampled_from("mn"), credits=amounts)),
)
seconds = st.integers(0, 90) | st.just(60)


class Recount:
    """What one project should hold, kept by adding up what was accepted."""

    def __init__(self):
        self.terms = {}
        self.counters = {}
        self.allocated = self.claimed = self.discarded = self.credits = 0
        self.totals = {}

    def take(self, kind, arguments):
        slot = arguments["slot"]
        if kind == "alloc":
            self.allocated += 1
            self.terms[slot] = arguments
            self.counters[slot] = {}
        elif kind == "counters":
            self.add(self.counters[slot], {name: n for name, n in arguments.items() if name != "slot"})
        elif kind == "discard":
            self.discarded += 1
        elif kind == "claim":
            self.claimed += 1
            terms = {name: int(value) for name, value in self.terms[slot].items() if name != "slot"}
            wish = int(arguments.get("credits", 1))
            ranged = min(max(wish, terms.get("min", 0)), terms.get("max", 10**9))
            self.credits += terms.get("credits", ranged)
            self.add(self.totals, self.counters[slot])

    @staticmethod
    def add(sums, values):
        for name, value in values.items():
            sums[name] = sums.get(name, 0) + value


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(projects, calls, seconds)
        | st.tuples(st.sampled_from(["link", "release"]), st.sampled_from("mn"), st.sampled_from("uv")),
        max_size=40,
    )
)
def test_the_books_balance_after_every_command(steps):
    ledger = Ledger()
    recounts = {"p": Recount(), "q": Recount()}
    now_us = 0
    for what, *details in steps:
        try:
            if what == "link":
                ledger.link(*details)
            elif what == "release":
                ledger.release(details[0])
            else:
                call, pause_s = details
                now_us += pause_s * 1_000_000
                ledger.apply(what, *call, now_us)
                recounts[what].take(*call)
        except CommandRefused:
            pass
        assert list(ledger.violations()) == []
    ledger.expire(now_us)
    for project_id, project in ledger.projects.items():
        recount = recounts[project_id]
        assert len(project.slots) == recount.allocated
        assert project.settled[State.CLAIMED] == recount.claimed
        assert project.settled[State.DISCARDED] == recount.discarded == sum(project.reasons.values())
        assert project.granted == Account(recount.credits, recount.totals)
        states = [slot.state for slot in project.slots.values()]
        assert project.outstanding == states.count(State.ALLOCATED)
        held = [machine.waiting for machine in project.machines.values()] + list(project.users.values())
        assert sum(account.credits for account in held) == recount.credits


@settings(deadline=None)
@given(st.lists(st.tuples(calls, seconds), max_size=25), seconds)
def test_the_judge_agrees(steps, last_pause_s):
    """The verifier's model shares no code with the ledger; they must see the same history."""
    ledger = Ledger()
    histories = {slot: [] for slot in "abc"}
    now_us = 0
    for (kind, arguments), pause_s in steps:
        if int(arguments.get("min", 0)) > int(arguments.get("max", 9)):
            continue  # a command that the client library does not let anyone make
        now_us += pause_s * 1_000_000
        try:
            ledger.apply("p", kind, arguments, now_us)
            accepted = True
        except CommandRefused:
            accepted = False
        span = Span(now_us * 1000, now_us * 1000)
        histories[arguments["slot"]].append(Step(kind, arguments, span, None, accepted))
    now_us += last_pause_s * 1_000_000
    ledger.expire(now_us)
    for slot_id, history in histories.items():
        seen = ledger.project("p").slots.get(slot_id)
        state = SlotState("absent") if seen is None else state_of(seen)
        assert possible_states(history, Span(now_us * 1000, now_us * 1000)) == {state}


def state_of(slot):
    counters, meta = frozenset((slot.counters or {}).items()), frozenset((slot.meta or {}).items())
    return SlotState(str(slot.state), slot.machine, slot.granted, slot.reason, counters, meta)


def test_slots_that_come_together_have_one_number_for_their_expiry():
    """Each number of its own takes 32 bytes."""
    books = Ledger()
    books.apply_all("p", [("alloc", {"slot": slot}) for slot in "abc"], 10**12)
    books.apply("p", "alloc", {"slot": "d", "expire": 1}, 10**12)
    books.apply("p", "alloc", {"slot": "e"}, 10**12 + 1)
    expiries = [slot.expires_us for slot in books.projects["p"].slots.values()]
    day_us = 1440 * MINUTE_US
    assert expiries == [10**12 + day_us] * 3 + [10**12 + MINUTE_US, 10**12 + day_us + 1]
    assert len(set(map(id, expiries))) == 3


def test_a_ledger_that_nobody_has_is_gone_at_once():
    """No cycle keeps it: the collector of garbage would leave millions of slots for a long time."""
    books = Ledger()
    books.apply("p", "alloc", {"slot": "s"}, 0)
    gone = weakref.ref(books)
    del books
    assert gone() is None

"""Servers that keep wrong books, run for real: each is found out, under the name of what it does wrong."""

from itertools import count
from pathlib import Path

import pytest

from cpdaemon.endpoint import UnixEndpoint, parse_endpoint
from cpsim.fake import ANY_PORT, Fake
from cpsim.protocol.slots import CommandRefused, State
from cpsim.replay.pace import AsFastAsPossible
from cpsim.run.pipeline import ReplayTarget, run
from cpsim.scenario import generate, source
from cpsim.server.accounts import Account
from cpsim.server.ledger import Ledger

CREDENTIALS = ("p", "secret")
WORKLOAD = generate(
    source.parse(
        """
        description = "everything, in small"
        duration = "1d"
        population = { machines = 8, users = 4, linked = 0.5 }
        arrivals = { model = "constant", jobs = 60 }
        run_time = { model = "constant", value = "10min" }
        outcome = { claim = 0.7, never = 0.1, discard = { late = 0.2 } }
        credits = { policy = "range", min = 5, max = 20, claim = { model = "uniform", low = 1, high = 30 } }
        counters.claim = { events = { model = "poisson", mean = 100 }, success = 1 }
        counters.discard = { failure = 1 }
        metadata = { site = ["here", "there"] }
        """,
        "small.toml",
    ),
    7,
)


def perform(fake, where, timeout_s=5.0):
    server = parse_endpoint(fake.addresses["http"])
    endpoint = {"unix": UnixEndpoint("cp.sock"), "http": server}.get(where) or parse_endpoint(fake.addresses[where])
    return run(
        lambda: WORKLOAD,
        ReplayTarget(endpoint, server, CREDENTIALS),
        AsFastAsPossible(),
        in_flight=8,
        timeout_s=timeout_s,
        slot_prefix="w",
        on_stage=lambda stage: None,
        on_progress=lambda planned, progress: None,
    ).verdict


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Start a fake when called, after the test has put its ledger wrong."""
    monkeypatch.chdir(tmp_path)
    started = []

    def start():
        started.append(Fake(dict([CREDENTIALS]), unix=Path("cp.sock"), tcp=ANY_PORT, http=ANY_PORT))
        started[-1].start()
        started[-1].accounts.link([(WORKLOAD.machines[m], f"u{m}") for m in range(4)])
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def sabotage(monkeypatch):
    """Return sabotage(kind, wrong): what the command does becomes wrong(right, ledger, project, slot_id, arguments).

    `right(arguments)` does what is right.
    """

    def put_other_commands(kind, others):
        apply_all = Ledger.apply_all

        def patched(ledger, project_id, calls, now_us, **_):
            done = [other for call in calls for other in (others(call[1]) if call[0] == kind else [call])]
            return apply_all(ledger, project_id, done, now_us)

        monkeypatch.setattr(Ledger, "apply_all", patched)

    def put(kind, wrong):
        if kind in {"claim", "discard"} and wrong in {do_nothing, claim_instead}:
            put_other_commands(kind, wrong)
            return
        method = getattr(Ledger, f"_{kind}")

        def patched(ledger, project, slot, arguments, now_us):
            """`slot` is the slot's id to alloc, and the slot itself to the others."""

            def right(given):
                method(ledger, project, slot, {"slot": arguments["slot"], **given}, now_us)

            wrong(right, ledger, project, arguments["slot"], arguments)

        monkeypatch.setattr(Ledger, f"_{kind}", patched)

    return put


@pytest.mark.parametrize("where", ["unix", "tcp", "http"])
def test_right_books_are_valid(fake, where):
    verdict = perform(fake(), where)
    assert (verdict.ruling, verdict.anomalies, verdict.not_verified) == ("valid", [], [])
    assert verdict.checked["slots"] == 60
    assert verdict.checked["replies"] == len(WORKLOAD)


def clamp_too_high(claim, ledger, project, slot_id, arguments):
    project.slots[slot_id].max += 1
    claim(arguments)


def clamp_too_low(claim, ledger, project, slot_id, arguments):
    project.slots[slot_id].min -= 1
    claim(arguments)


def ignore_what_is_asked(claim, ledger, project, slot_id, arguments):
    claim({"machine": arguments["machine"]})


def credit_another_machine(claim, ledger, project, slot_id, arguments):
    claim({**arguments, "machine": "somebody"})


def grant_twice(claim, ledger, project, slot_id, arguments):
    claim(arguments)
    slot = project.slots[slot_id]
    machine = project.machines[slot.machine]
    owner = ledger.owners.get(slot.machine)
    for account in (project.granted, machine.earned, machine.waiting if owner is None else project.users[owner]):
        account.add(slot.granted, slot.counters or {})


def forget_the_user(claim, ledger, project, slot_id, arguments):
    claim(arguments)
    for user in project.users:
        project.users[user] = Account()


def forget_the_slot(claim, ledger, project, slot_id, arguments):
    claim(arguments)
    del project.slots[slot_id]


def grant_counters_on_discard(discard, ledger, project, slot_id, arguments):
    discard(arguments)
    project.machines[next(iter(project.machines))].earned.add(0, project.slots[slot_id].counters or {})


def forget_the_reason(discard, ledger, project, slot_id, arguments):
    discard({})


def claim_instead(arguments):
    return [("claim", {"slot": arguments["slot"], "machine": "somebody"})]


def do_nothing(*_):
    return []


def do_it_twice(right, ledger, project, slot_id, arguments):
    right(arguments)
    right(arguments)


def count_one_more(counters, ledger, project, slot_id, arguments):
    counters({name: int(value) + 1 for name, value in arguments.items() if name != "slot"})


def note_something_else(meta, ledger, project, slot_id, arguments):
    meta(dict.fromkeys(arguments.keys() - {"slot"}, "nonsense"))


def expire_at_once(alloc, ledger, project, slot_id, arguments):
    alloc(arguments)
    if slot_id.endswith("7"):
        project.slots[slot_id].state = State.EXPIRED


def refuse(right, ledger, project, slot_id, arguments):
    raise CommandRefused("not today")


WRONG = [
    ("claim", clamp_too_high, "over-credited"),
    ("claim", clamp_too_low, "under-credited"),
    ("claim", ignore_what_is_asked, "under-credited"),
    ("claim", credit_another_machine, "altered"),
    ("claim", grant_twice, "over-credited"),
    ("claim", forget_the_user, "not conserved"),
    ("claim", forget_the_slot, "lost"),
    ("claim", do_nothing, "lost"),
    ("discard", grant_counters_on_discard, "not conserved"),
    ("discard", forget_the_reason, "altered"),
    ("discard", claim_instead, "resurrected"),
    ("discard", do_nothing, "lost"),
    ("counters", do_it_twice, "duplicated"),
    ("counters", count_one_more, "altered"),
    ("counters", do_nothing, "lost"),
    ("meta", do_nothing, "lost"),
    ("meta", note_something_else, "altered"),
    ("alloc", expire_at_once, "early expiry"),
    ("alloc", do_nothing, "lost"),
]


@pytest.mark.parametrize(("kind", "wrong", "name"), WRONG)
def test_wrong_books_are_found_behind_a_daemon(fake, sabotage, kind, wrong, name):
    sabotage(kind, wrong)
    verdict = perform(fake(), "unix")
    assert verdict.ruling == "invalid"
    assert name in verdict.counts


@pytest.mark.parametrize(
    ("kind", "wrong", "name"),
    [
        *(case for case in WRONG if case[1:] not in [(expire_at_once, "early expiry"), (do_nothing, "lost")]),
        ("meta", do_nothing, "lost"),
        ("alloc", expire_at_once, "early expiry"),
        ("claim", refuse, "wrongly refused"),
        ("meta", refuse, "wrongly refused"),
    ],
)
def test_wrong_books_are_found_at_a_server(fake, sabotage, kind, wrong, name):
    sabotage(kind, wrong)
    verdict = perform(fake(), "http")
    assert verdict.ruling == "invalid"
    assert name in verdict.counts


def test_one_lost_command_in_many_is_found(fake, sabotage):
    numbers = count()
    sabotage("counters", lambda right, *given: None if next(numbers) == 30 else right(given[-1]))
    verdict = perform(fake(), "tcp")
    assert "lost" in verdict.counts

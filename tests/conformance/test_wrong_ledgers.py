"""Ledgers that are wrong in one way each: the clauses that speak of it find every one of them."""

import pytest

from cpsim.protocol.slots import CommandRefused, State
from cpsim.server import http
from cpsim.server.accounts import Account, ProjectAccounts
from cpsim.server.http import Api
from cpsim.server.ledger import Ledger, Refusal


@pytest.fixture
def sabotage(monkeypatch):
    """Return sabotage(kind, wrong): what the command does becomes wrong(right, ledger, project, slot_id, arguments).

    `right(arguments)` does what is right.
    """

    def put_before_all(wrong):
        """An id that is used is refused before the ledger's alloc sees it, so this has to come before that."""
        apply_all = Ledger.apply_all

        def patched(ledger, project_id, calls, now_us, **_):
            refusals = []
            for position, (kind, arguments) in enumerate(calls):

                def right(given, kind=kind, arguments=arguments):
                    call = kind, {"slot": arguments.get("slot"), **given}
                    for refusal in apply_all(ledger, project_id, [call], now_us):
                        raise CommandRefused(refusal.message)

                try:
                    if kind == "alloc":
                        wrong(right, ledger, ledger.project(project_id), arguments.get("slot"), arguments)
                    else:
                        right(arguments)
                except CommandRefused as refused:
                    refusals.append(Refusal(position, str(refused)))
            return refusals

        monkeypatch.setattr(Ledger, "apply_all", patched)

    def put(kind, wrong):
        if kind == "alloc":
            put_before_all(wrong)
            return
        method = getattr(Ledger, f"_{kind}")

        def patched(ledger, project, slot_id, arguments, now_us):
            def right(given):
                method(ledger, project, slot_id, given, now_us)

            wrong(right, ledger, project, slot_id, arguments)

        monkeypatch.setattr(Ledger, f"_{kind}", patched)

    return put


def accounts_of(ledger, project, machine):
    """Whatever has what a machine earned."""
    owner = ledger.owners.get(machine)
    account = project.machines[machine].waiting if owner is None else project.users[owner]
    return project.granted, project.machines[machine].earned, account


def max_one_higher(claim, ledger, project, slot_id, arguments):
    if slot_id in project.slots and project.slots[slot_id].max is not None:
        project.slots[slot_id].max += 1
    claim(arguments)


def min_one_lower(claim, ledger, project, slot_id, arguments):
    if slot_id in project.slots and project.slots[slot_id].min:
        project.slots[slot_id].min -= 1
    claim(arguments)


def max_one_lower(claim, ledger, project, slot_id, arguments):
    if slot_id in project.slots and project.slots[slot_id].max:
        project.slots[slot_id].max -= 1
    claim(arguments)


def min_one_higher(claim, ledger, project, slot_id, arguments):
    if slot_id in project.slots and project.slots[slot_id].min:
        project.slots[slot_id].min += 1
    claim(arguments)


def no_max_without_min(claim, ledger, project, slot_id, arguments):
    if slot_id in project.slots and project.slots[slot_id].min is None:
        project.slots[slot_id].max = None
    claim(arguments)


def no_min_without_max(claim, ledger, project, slot_id, arguments):
    if slot_id in project.slots and project.slots[slot_id].max is None:
        project.slots[slot_id].min = None
    claim(arguments)


def zero_is_nothing_asked(claim, ledger, project, slot_id, arguments):
    claim({name: value for name, value in arguments.items() if name != "credits" or value})


def what_is_asked_is_ignored(claim, ledger, project, slot_id, arguments):
    claim({name: value for name, value in arguments.items() if name != "credits"})


def nothing_asked_is_nothing(claim, ledger, project, slot_id, arguments):
    claim({"credits": 0} | arguments)


def default_is_not_limited(claim, ledger, project, slot_id, arguments):
    if slot_id in project.slots and "credits" not in arguments and project.slots[slot_id].credits is None:
        project.slots[slot_id].credits = 1
    claim(arguments)


def what_is_asked_beats_what_is_fixed(claim, ledger, project, slot_id, arguments):
    if slot_id in project.slots and "credits" in arguments:
        project.slots[slot_id].credits = None
    claim(arguments)


def range_limits_what_is_fixed(claim, ledger, project, slot_id, arguments):
    slot = project.slots.get(slot_id)
    if slot and slot.credits is not None and (slot.min is not None or slot.max is not None):
        arguments, slot.credits = {**arguments, "credits": slot.credits}, None
    claim(arguments)


def fixed_zero_is_none(claim, ledger, project, slot_id, arguments):
    if slot_id in project.slots and not project.slots[slot_id].credits:
        project.slots[slot_id].credits = None
    claim(arguments)


def credits_twice(claim, ledger, project, slot_id, arguments):
    claim(arguments)
    slot = project.slots[slot_id]
    for account in accounts_of(ledger, project, slot.machine):
        account.add(slot.granted, {})


def counters_twice(claim, ledger, project, slot_id, arguments):
    claim(arguments)
    slot = project.slots[slot_id]
    for account in accounts_of(ledger, project, slot.machine):
        account.add(0, slot.counters or {})


def no_counters(claim, ledger, project, slot_id, arguments):
    counters, project.slots[slot_id].counters = project.slots[slot_id].counters, None
    claim(arguments)
    project.slots[slot_id].counters = counters


def another_machine(claim, ledger, project, slot_id, arguments):
    claim({**arguments, "machine": f"{arguments.get('machine') or ''}2"})


def anybody(claim, ledger, project, slot_id, arguments):
    claim({"machine": "anybody"} | arguments)


def nothing_waits(claim, ledger, project, slot_id, arguments):
    claim(arguments)
    project.machines[arguments["machine"]].waiting = Account()


def user_gets_nothing(claim, ledger, project, slot_id, arguments):
    claim(arguments)
    owner = ledger.owners.get(arguments["machine"])
    if owner:
        project.users[owner] = Account()


def waits_and_is_paid(claim, ledger, project, slot_id, arguments):
    claim(arguments)
    machine = arguments["machine"]
    if machine in ledger.owners:
        project.machines[machine].waiting.add(project.slots[slot_id].granted, {})


def total_is_not_kept(claim, ledger, project, slot_id, arguments):
    before = Account(project.granted.credits, dict(project.granted.counters))
    claim(arguments)
    project.granted = before


def claim_frees_the_id(claim, ledger, project, slot_id, arguments):
    claim(arguments)
    del project.slots[slot_id]


def last_value_wins(counters, ledger, project, slot_id, arguments):
    if slot_id in project.slots and project.slots[slot_id].counters:
        for name in arguments.keys() & project.slots[slot_id].counters.keys():
            project.slots[slot_id].counters[name] = 0
    counters(arguments)


def never_negative(counters, ledger, project, slot_id, arguments):
    counters({name: str(value).lstrip("-") if name != "slot" else value for name, value in arguments.items()})


def names_in_lower_case(counters, ledger, project, slot_id, arguments):
    counters({name.lower(): value for name, value in arguments.items()})


def counted_at_once(counters, ledger, project, slot_id, arguments):
    counters(arguments)
    project.granted.add(0, {name: int(value) for name, value in arguments.items() if name != "slot"})


def one_by_one(counters, ledger, project, slot_id, arguments):
    for name in arguments:
        if name != "slot":
            counters({"slot": slot_id, name: arguments[name]})
    if len(arguments) < 2:
        counters(arguments)


def one_counter_only(counters, ledger, project, slot_id, arguments):
    counters(dict(list(arguments.items())[:2]))


def numbers_are_tried(counters, ledger, project, slot_id, arguments):
    counters(
        {name: value if str(value).lstrip("-").isdigit() else 0 for name, value in arguments.items()}
        | {"slot": slot_id}
    )


def first_value_wins(meta, ledger, project, slot_id, arguments):
    before = dict(project.slots[slot_id].meta or {}) if slot_id in project.slots else {}
    meta(arguments)
    project.slots[slot_id].meta |= before


def metadata_replaced(meta, ledger, project, slot_id, arguments):
    if slot_id in project.slots and project.slots[slot_id].state is State.ALLOCATED:
        project.slots[slot_id].meta = None
    meta(arguments)


def metadata_counted(meta, ledger, project, slot_id, arguments):
    meta(arguments)
    numbers = {name: int(value) for name, value in arguments.items() if name != "slot" and str(value).isdigit()}
    slot = project.slots[slot_id]
    slot.counters = (slot.counters or {}) | numbers


def metadata_in_ascii(meta, ledger, project, slot_id, arguments):
    meta({name: str(value).encode("ascii", "replace").decode() for name, value in arguments.items()})


def counters_granted_on_discard(discard, ledger, project, slot_id, arguments):
    discard(arguments)
    project.granted.add(0, project.slots[slot_id].counters or {})


def credits_granted_on_discard(discard, ledger, project, slot_id, arguments):
    discard(arguments)
    project.slots[slot_id].granted = project.slots[slot_id].credits


def reason_forgotten(discard, ledger, project, slot_id, arguments):
    discard({name: value for name, value in arguments.items() if name != "reason"})


def reason_not_counted(discard, ledger, project, slot_id, arguments):
    before = dict(project.reasons)
    discard(arguments)
    project.reasons = before


def reason_of_another_name(discard, ledger, project, slot_id, arguments):
    discard({"reason": "unknown"} | arguments)


def discard_frees_the_id(discard, ledger, project, slot_id, arguments):
    discard(arguments)
    del project.slots[slot_id]
    project.settled[State.DISCARDED] -= 1


def discard_does_nothing(discard, ledger, project, slot_id, arguments):
    if slot_id not in project.slots:
        discard(arguments)


def realloc(alloc, ledger, project, slot_id, arguments):
    if slot_id in project.slots and project.slots[slot_id].state is State.ALLOCATED:
        del project.slots[slot_id]
    alloc(arguments)


def refused_alloc_changes_terms(alloc, ledger, project, slot_id, arguments):
    try:
        alloc(arguments)
    except CommandRefused:
        if slot_id in project.slots and "credits" in arguments and type(arguments["credits"]) is int:
            project.slots[slot_id].credits = arguments["credits"]
        raise


def refused_alloc_makes_a_slot(alloc, ledger, project, slot_id, arguments):
    try:
        alloc(arguments)
    except CommandRefused:
        if slot_id not in project.slots:
            alloc({})
        raise


def equal_bounds_refused(alloc, ledger, project, slot_id, arguments):
    if arguments.get("min") is not None and arguments.get("min") == arguments.get("max"):
        raise CommandRefused("no range")
    alloc(arguments)


def zero_refused(alloc, ledger, project, slot_id, arguments):
    if arguments.get("credits") == 0:
        raise CommandRefused("no credits")
    alloc(arguments)


def swapped_bounds(alloc, ledger, project, slot_id, arguments):
    least, most = arguments.get("min"), arguments.get("max")
    if type(least) is int and type(most) is int and least > most:
        arguments = arguments | {"min": most, "max": least}
    alloc(arguments)


def terms_swapped(alloc, ledger, project, slot_id, arguments):
    if "min" in arguments and "max" not in arguments:
        arguments = {name: value for name, value in arguments.items() if name != "min"} | {"max": arguments["min"]}
    alloc(arguments)


def one_day_is_a_week(alloc, ledger, project, slot_id, arguments):
    alloc({"expire": 10_080} | arguments)


def minutes_are_hours(alloc, ledger, project, slot_id, arguments):
    expire = arguments.get("expire")
    alloc(arguments | {"expire": 60 * expire} if type(expire) is int else arguments)


def minutes_are_half(alloc, ledger, project, slot_id, arguments):
    expire = arguments.get("expire")
    alloc(arguments | {"expire": (expire + 1) // 2} if type(expire) is int and expire > 0 else arguments)


def anything_is_one(alloc, ledger, project, slot_id, arguments):
    alloc({name: 1 if name == "credits" and value == "many" else value for name, value in arguments.items()})


WRONG = [
    ("claim", max_one_higher, "CREDIT-7"),
    ("claim", max_one_lower, "CREDIT-7"),
    ("claim", min_one_lower, "CREDIT-6"),
    ("claim", min_one_higher, "CREDIT-6"),
    ("claim", no_max_without_min, "CREDIT-9"),
    ("claim", no_min_without_max, "CREDIT-8"),
    ("claim", zero_is_nothing_asked, "CREDIT-12"),
    ("claim", what_is_asked_is_ignored, "CREDIT-5"),
    ("claim", nothing_asked_is_nothing, "CREDIT-4"),
    ("claim", default_is_not_limited, "CREDIT-10"),
    ("claim", what_is_asked_beats_what_is_fixed, "CREDIT-2"),
    ("claim", range_limits_what_is_fixed, "CREDIT-3"),
    ("claim", fixed_zero_is_none, "CREDIT-12"),
    ("claim", credits_twice, "CREDIT-1"),
    ("claim", counters_twice, "COUNTER-3"),
    ("claim", no_counters, "COUNTER-3"),
    ("claim", another_machine, "CLAIM-9"),
    ("claim", anybody, "CLAIM-4"),
    ("claim", nothing_waits, "LINK-1"),
    ("claim", user_gets_nothing, "LINK-2"),
    ("claim", waits_and_is_paid, "LINK-2"),
    ("claim", total_is_not_kept, "CONSERVE-4"),
    ("claim", claim_frees_the_id, "ALLOC-5"),
    ("counters", last_value_wins, "COUNTER-2"),
    ("counters", never_negative, "COUNTER-2"),
    ("counters", names_in_lower_case, "COUNTER-2"),
    ("counters", counted_at_once, "COUNTER-4"),
    ("counters", one_by_one, "COUNTER-12"),
    ("counters", one_counter_only, "COUNTER-2"),
    ("counters", numbers_are_tried, "COUNTER-10"),
    ("meta", first_value_wins, "META-3"),
    ("meta", metadata_replaced, "META-3"),
    ("meta", metadata_counted, "META-4"),
    ("meta", metadata_in_ascii, "META-2"),
    ("discard", counters_granted_on_discard, "DISCARD-7"),
    ("discard", credits_granted_on_discard, "DISCARD-7"),
    ("discard", reason_forgotten, "DISCARD-2"),
    ("discard", reason_not_counted, "DISCARD-2"),
    ("discard", reason_of_another_name, "DISCARD-3"),
    ("discard", discard_frees_the_id, "ALLOC-7"),
    ("discard", discard_does_nothing, "DISCARD-1"),
    ("alloc", realloc, "ALLOC-4"),
    ("alloc", refused_alloc_changes_terms, "ALLOC-16"),
    ("alloc", refused_alloc_makes_a_slot, "ALLOC-15"),
    ("alloc", equal_bounds_refused, "ALLOC-2"),
    ("alloc", zero_refused, "ALLOC-2"),
    ("alloc", swapped_bounds, "ALLOC-8"),
    ("alloc", terms_swapped, "CREDIT-8"),
    ("alloc", one_day_is_a_week, "EXPIRE-4"),
    ("alloc", minutes_are_hours, "EXPIRE-1"),
    ("alloc", minutes_are_half, "EXPIRE-3"),
    ("alloc", anything_is_one, "ALLOC-11"),
]


@pytest.mark.parametrize(("kind", "wrong", "clause"), WRONG, ids=lambda value: getattr(value, "__name__", None))
def test_a_wrong_ledger_is_found(examine_fake, sabotage, kind, wrong, clause):
    sabotage(kind, wrong)
    outcome = examine_fake(clauses=[clause.partition("-")[0] + "-*"], tier="server")
    assert clause in outcome.deviant
    assert not outcome.counts["error"]
    if clause != "COUNTER-12":  # that is a should
        assert outcome.ruling == "invalid"


def test_what_waits_is_paid_and_waits_on(examine_fake, monkeypatch):
    def link(ledger, machine_id, user_id):
        waited = {name: project.machines.get(machine_id) for name, project in ledger.projects.items()}
        kept = {name: machine.waiting for name, machine in waited.items() if machine is not None}
        right(ledger, machine_id, user_id)
        for name, waiting in kept.items():
            ledger.projects[name].machines[machine_id].waiting = waiting

    right = Ledger.link
    monkeypatch.setattr(Ledger, "link", link)
    outcome = examine_fake(clauses=["LINK-*"], tier="server")
    assert {"LINK-1", "LINK-4"} <= set(outcome.deviant)


def test_what_waits_is_lost(examine_fake, monkeypatch):
    def link(ledger, machine_id, user_id):
        for project in ledger.projects.values():
            if machine_id in project.machines:
                project.machines[machine_id].waiting = Account()
        right(ledger, machine_id, user_id)

    right = Ledger.link
    monkeypatch.setattr(Ledger, "link", link)
    outcome = examine_fake(clauses=["LINK-*"], tier="server")
    assert {"LINK-1", "LINK-4"} <= set(outcome.deviant)


def test_the_second_user_takes_over(examine_fake, monkeypatch):
    def link(ledger, machine_id, user_id):
        ledger.owners[machine_id] = user_id
        right(ledger, machine_id, user_id)

    right = Ledger.link
    monkeypatch.setattr(Ledger, "link", link)
    assert "LINK-5" in examine_fake(clauses=["LINK-*"], tier="server").deviant


def test_a_release_takes_back(examine_fake, monkeypatch):
    def release(ledger, machine_id):
        owner = ledger.owners[machine_id]
        right(ledger, machine_id)
        for project in ledger.projects.values():
            project.users.pop(owner, None)

    right = Ledger.release
    monkeypatch.setattr(Ledger, "release", release)
    assert "LINK-3" in examine_fake(clauses=["LINK-*"], tier="server").deviant


def test_claimed_slots_are_outstanding(examine_fake, monkeypatch):
    monkeypatch.setattr(ProjectAccounts, "outstanding", property(lambda project: len(project.slots)))
    assert "CONSERVE-1" in examine_fake(clauses=["CONSERVE-*"], tier="server").deviant


def test_users_have_more_than_machines(examine_fake, monkeypatch):
    def link(ledger, machine_id, user_id):
        right(ledger, machine_id, user_id)
        for project in ledger.projects.values():
            project.users.setdefault(user_id, Account()).add(1, {"gift": 1})

    right = Ledger.link
    monkeypatch.setattr(Ledger, "link", link)
    deviant = examine_fake(clauses=["LINK-1", "CONSERVE-*"], tier="server").deviant
    assert {"CONSERVE-2", "CONSERVE-3", "CONSERVE-4"} <= set(deviant)


def test_settled_slots_expire(examine_fake, monkeypatch):
    def expire(ledger, now_us):
        for project in ledger.projects.values():
            for slot in project.slots.values():
                if slot.expires_us <= now_us:
                    slot.state = State.EXPIRED
        right(ledger, now_us)

    right = Ledger.expire
    monkeypatch.setattr(Ledger, "expire", expire)
    assert "EXPIRE-8" in examine_fake(clauses=["EXPIRE-*"], tier="server").deviant


def test_projects_share_their_slots(examine_fake, monkeypatch):
    right = Ledger.project
    monkeypatch.setattr(Ledger, "project", lambda ledger, project_id: right(ledger, "alpha"))
    deviant = examine_fake(clauses=["PROJECT-*"], tier="server").deviant
    assert {"PROJECT-1", "PROJECT-2", "PROJECT-3", "PROJECT-4", "PROJECT-5"} <= set(deviant)


def test_projects_share_their_machines(examine_fake, monkeypatch):
    right = Ledger.project

    def project(ledger, project_id):
        found = right(ledger, project_id)
        found.machines = right(ledger, "alpha").machines
        return found

    monkeypatch.setattr(Ledger, "project", project)
    assert "PROJECT-4" in examine_fake(clauses=["PROJECT-*"], tier="server").deviant


@pytest.mark.parametrize(
    ("order", "clause"),
    [
        (("alloc", "counters", "meta", "claim", "discard"), "BULK-4"),
        (("alloc", "claim", "counters", "meta", "discard"), "BULK-2"),
        (("counters", "alloc", "meta", "discard", "claim"), "BULK-2"),
        (("alloc", "discard", "counters", "meta", "claim"), "BULK-11"),
    ],
)
def test_classes_in_another_order(examine_fake, monkeypatch, order, clause):
    monkeypatch.setattr(http, "KINDS", order)
    assert clause in examine_fake(clauses=["BULK-*"], tier="server").deviant


def test_a_bulk_that_forgets_its_last_command(examine_fake, monkeypatch):
    def bulk(api, project_id, classes, batch_id, _):
        cut = {kind: commands[:-1] for kind, commands in classes.items() if isinstance(commands, list)}
        return right(api, project_id, cut, batch_id, None)

    right = Api._apply_bulk
    monkeypatch.setattr(Api, "_apply_bulk", bulk)
    assert "BULK-1" in examine_fake(clauses=["BULK-*"], tier="server").deviant

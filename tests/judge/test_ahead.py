"""Slots that are judged while a replay goes on: every right one is counted, and no alarm is false."""

import random
from collections import deque

import msgspec
import numpy as np
import pytest

from cpsim.accounts.view import View
from cpsim.evidence.evidence import Seen
from cpsim.evidence.journal import RECORD_TYPE, OperationOutcome
from cpsim.judge.ahead import AheadJudge, Subject
from cpsim.protocol.slots import ALLOCATED
from cpsim.scenario import generate, source
from cpsim.scenario.workload import KIND_NAMES
from cpsim.server.control.inspection import Inspector
from cpsim.server.service import AccountServer

SCENARIO = """
description = "a little"
duration = "1h"
population = { machines = 4, users = 2 }
arrivals = { model = "constant", jobs = 60 }
run_time = { model = "constant", value = "10min" }
outcome = { claim = 0.5, discard = { late = 0.5 } }
"""
DELAY = 300_000
"""The apply delay that is waited for, in nanoseconds: of the time of thirty operations."""
STEP = 10_000
ERRORS = ["", "lost"]


@pytest.fixture(scope="module")
def workload():
    return generate(source.parse(SCENARIO, "little.toml"), 7)


class Site:
    """A daemon that acknowledges commands and forwards them in order, when it is let, and the accounts behind it."""

    def __init__(self, workload, *, direct=False, quirks=frozenset(), fresh=True):
        self.workload = workload
        self.accounts = AccountServer({"p": "s"}, quirks=quirks)
        self.inspector = Inspector(self.accounts)
        self.cursor = self.inspector.applied("p").next
        self.queue = deque()
        self.direct = direct
        self.now_ns = 0
        self.records = []
        self.judge = AheadJudge(Subject(workload, "w", "p", direct, fresh, frozenset(), DELAY))

    def send(self, op, *, is_lost=False, is_applied=True):
        """Send an operation; its reply may be lost, and it may not be applied then."""
        (call,) = self.workload.calls(op, op + 1, "w")
        if is_applied:
            self.queue.append(call)
        if self.direct:
            self.forward()
        outcome = OperationOutcome.UNKNOWN if is_lost else OperationOutcome.ACCEPTED
        self.records.append((op, outcome, int(is_lost), self.now_ns, self.now_ns + STEP // 2))
        self.now_ns += STEP

    def forward(self, count=None):
        """Apply what waits, or so many commands of it."""
        count = len(self.queue) if count is None else min(count, len(self.queue))
        self.accounts.apply("p", [self.queue.popleft() for _ in range(count)])

    def read(self):
        self.judge.take(np.array(self.records, RECORD_TYPE), ERRORS)
        self.records = []

    def look(self, *, misses=False):
        """Judge by the feed of applied commands; returns the slots that were looked at."""
        self.read()
        page = self.inspector.applied("p", self.cursor)
        self.cursor = page.next
        if misses:
            self.judge.miss_applied()
        else:
            self.judge.take_applied(page.slots)
        slots = self.judge.due(self.now_ns)
        names = [self.workload.slot_id(slot, "w") for slot in slots.tolist()]
        self.judge.judge_states(slots, self.seen(self.inspector.named_slots("p", names)))
        return slots

    def look_at_view(self):
        """Judge by a view of all accounts."""
        self.read()
        self.judge.judge_view(self.seen(self.inspector.slots("p").items))

    def look_at_list(self):
        """Judge by the list of outstanding slots."""
        self.read()
        outstanding = frozenset(self.accounts.outstanding("p"))
        self.judge.judge_view(Seen(self.now_ns, self.now_ns, None, outstanding))

    def seen(self, slots):
        lines = (msgspec.json.decode(msgspec.json.encode(slot)) for slot in slots)
        table = View.of_lines(enumerate(lines)).slots
        return Seen(self.now_ns, self.now_ns, View(slots=table))

    def break_slots(self, change, state="claimed"):
        """Damage slots of some state in the accounts; returns how many there are."""
        with self.accounts.reading() as ledger:
            chosen = [slot for slot in ledger.projects["p"].slots.values() if slot.state == state]
            for slot in chosen:
                change(slot)
        return len(chosen)


LOOKS = {"feed": Site.look, "view": Site.look_at_view, "list": Site.look_at_list}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("seed", range(2))
def test_outages_delays_and_lost_replies_raise_no_alarm(workload, look, seed):
    """The daemon stands still for longer than is waited for, and then forwards all; replies are lost all the time."""
    luck, site = random.Random(seed), Site(workload)
    until = 0
    for op in range(len(workload)):
        is_lost = luck.random() < 0.05
        site.send(op, is_lost=is_lost, is_applied=not is_lost or luck.random() < 0.5)
        if op >= until:
            site.forward(luck.choice([None, None, 1, 3]))
            if op % 70 == 20:
                until = op + luck.choice([40, 60])  # longer than the apply delay that is waited for
        if luck.random() < 0.1:
            LOOKS[look](site)
    site.forward()
    site.now_ns += 2 * DELAY
    LOOKS[look](site)
    assert (site.judge.findings, site.judge.first) == (0, None)
    if look != "list":  # what is not listed may be on its way, until something that is later shows that it is not
        assert site.judge.valid == len(workload.slot_numbers)
        assert site.judge.waiting == 0
    else:
        assert site.judge.valid > 0


def test_the_memory_is_that_of_what_goes_on(workload):
    site, most = Site(workload), 0
    for op in range(len(workload)):
        site.send(op)
        site.forward()
        if not op % 20:
            site.look()
            most = max(most, site.judge.waiting)
    site.look()
    assert site.judge.valid == len(workload.slot_numbers)
    assert site.judge.waiting == 0
    assert most < len(workload) / 2


@pytest.mark.parametrize("direct", [True, False])
def test_what_no_delay_explains_is_found_at_once(workload, direct):
    site = Site(workload, direct=direct)
    for op in range(len(workload)):
        site.send(op)
    site.forward()

    def change(slot):
        slot.granted += 1

    broken = site.break_slots(change)
    site.look()
    assert broken
    assert (site.judge.findings, site.judge.valid) == (broken, len(workload.slot_numbers) - broken)
    assert site.judge.first.name == "over-credited"
    assert site.judge.first.detail.startswith("granted is")


@pytest.mark.parametrize("look", ["view", "list"])
def test_what_a_server_accepted_may_take_its_time_to_be_shown(workload, look):
    site, few = Site(workload, direct=True), 10
    for op in np.flatnonzero(workload.slot < few).tolist():
        site.send(op)
    assert site.now_ns < DELAY
    wrong = site.break_slots(lambda slot: setattr(slot, "state", ALLOCATED), "discarded")
    LOOKS[look](site)
    assert (site.judge.findings, site.judge.valid) == (0, few - wrong)
    site.now_ns += DELAY
    LOOKS[look](site)
    assert site.judge.findings == wrong > 0


@pytest.mark.parametrize("look", LOOKS)
def test_what_is_lost_is_found_when_later_commands_are_there(workload, look):
    site = Site(workload)
    lost = np.flatnonzero(workload.kind == KIND_NAMES.index("discard"))[:2]
    found_ns = None
    for op in range(len(workload)):
        site.send(op, is_applied=op not in lost)
        site.forward()
        if not op % 5:
            LOOKS[look](site)
        if site.judge.findings and found_ns is None:
            found_ns = site.now_ns
    assert site.judge.findings == len(lost)
    assert site.judge.first.name == "lost"
    assert found_ns - lost[0] * STEP > DELAY


def test_after_some_of_the_feed_was_missed_all_that_waits_is_looked_at(workload):
    site = Site(workload)
    for op in range(len(workload)):
        site.send(op)
    site.forward()
    assert len(site.look(misses=True)) == len(workload.slot_numbers)
    assert site.judge.valid == len(workload.slot_numbers)


def test_a_slot_that_waits_for_its_commands_is_not_looked_at(workload):
    site = Site(workload)
    for op in range(len(workload)):
        site.send(op)
    assert not len(site.look())
    site.forward(1)
    site.look()
    assert (site.judge.valid, site.judge.findings) == (0, 0)


def test_damage_in_more_slots_than_are_named_is_counted_whole(workload, monkeypatch):
    monkeypatch.setattr("cpsim.judge.ahead.SHOWN_ANOMALIES", 3)
    monkeypatch.setattr("cpsim.judge.verdict.SHOWN_ANOMALIES", 3)
    site = Site(workload, direct=True)
    for op in range(len(workload)):
        site.send(op)
    broken = site.break_slots(lambda slot: setattr(slot, "machine", "another"))
    site.look()
    assert site.judge.findings == broken > 3

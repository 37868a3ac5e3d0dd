"""The fast way to judge slots finds what the slow one finds, and nothing else."""

import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from cpdaemon.commands import KINDS
from cpsim.judge import columns, slots
from cpsim.judge.model import MINUTE_NS, MODELLED, SlotState, Span
from cpsim.judge.orders import possible
from cpsim.judge.quirks import Suspects
from cpsim.judge.slots import judge_histories, judge_outstanding, judge_slots
from cpsim.judge.verdict import Verdict
from cpsim.scenario.formats.arrow import places_among
from cpsim.scenario.workload import ABSENT

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("project", "slot", "state", "machine", "reason")),
        ("granted", pa.int64()),
        ("counters", pa.map_(pa.string(), pa.int64())),
        ("meta", pa.map_(pa.string(), pa.string())),
    ]
)
USUAL = [
    ("alloc",),
    ("alloc", "counters"),
    ("alloc", "meta", "counters", "claim"),
    ("alloc", "counters", "meta", "claim"),
    ("alloc", "claim"),
    ("alloc", "meta", "discard"),
    ("alloc", "counters", "discard"),
    ("alloc", "claim", "discard"),
    ("alloc", "claim", "counters"),
    ("alloc", "counters", "counters", "meta", "meta", "claim"),
]
SLOTS = 1_500
HIDDEN = [[], ["granted", "reason"], ["machine", "counters"], ["meta"]]
SEEDS = [0, 1, *(pytest.param(seed, marks=pytest.mark.thorough) for seed in range(2, 6))]


class Chance:
    """Draws everything from one seed."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.one = self.random.choice

    def rarely(self):
        return self.random.random() < 0.05

    def often(self):
        return self.random.random() < 0.5

    def arguments(self, kind):
        amounts = [0, 1, 2, 3, 4, 5, -1] if self.rarely() else [0, 1, 2, 3, 4, 5]
        given = {
            "alloc": {
                "credits": self.one(amounts),
                "min": self.one([0, 1, 2]),
                "max": self.one([2, 3, 1]),
                "expire": self.one([10**12, 1, 1, 1, 0]),
            },
            "counters": {"a": self.one([-2, 0, 1]), "b": self.one([1, 2])},
            "claim": {"machine": self.one("mn"), "credits": self.one(amounts)},
            "meta": {"a": self.one("xy"), "b": self.one("xz")},
            "discard": {"reason": self.one("rs")},
        }[kind]
        if kind in {"meta", "discard"}:
            return given
        kept = {name: value for name, value in given.items() if name == "machine" or self.often()}
        return kept or (given if kind == "counters" else {})

    def calls(self, number):
        """The calls of a slot with what became of them; mostly as they are in a replay."""
        usual = self.random.random() < 0.8
        kinds = self.one(USUAL) if usual else [self.one(KINDS) for _ in range(self.random.randrange(6))]
        now_ns = number % 100
        for kind in kinds:
            now_ns += (
                self.one([0, 1, 1, 1, MINUTE_NS - 1, MINUTE_NS]) if self.rarely() or not usual else self.one([0, 1])
            )
            took_ns = self.one([0, 1, 2])
            outcome, error = self.one([(0, 0), (0, 0), (0, 0), (1, 1), (1, 2), (2, 3)]) if self.rarely() else (0, 0)
            yield kind, number, self.arguments(kind), (outcome, error, now_ns, now_ns + took_ns)
            now_ns += self.one([0, took_ns]) if self.rarely() or not usual else took_ns

    def varied(self, calls, number):
        """The calls of another slot: with other amounts and texts, and now and then another time, outcome or credit."""
        mark = self.one(["", "'"])
        for kind, _, given, (outcome, error, sent_ns, answered_ns) in calls:
            arguments = dict(given)
            for name, value in given.items():
                if kind == "counters":
                    arguments[name] = value * self.one([1, 1, 1, 7, 0])
                elif type(value) is str and kind != "discard":
                    arguments[name] = value + mark
                elif type(value) is int and self.rarely():
                    arguments[name] = value + 1
            later_ns = self.one([0, 1, 2, MINUTE_NS]) if self.rarely() else 0
            fate = self.one([(0, 0), (1, 1), (2, 3)]) if self.random.random() < 0.2 else (outcome, error)
            yield kind, number, arguments, (*fate, sent_ns + later_ns, answered_ns + later_ns)

    def damage(self, row):
        entries = [(self.one("abc"), self.one([-2, 0, 1, 2])) for _ in range(self.random.randrange(4))]
        doubled = [(name, 2 * amount) for name, amount in row["counters"]]
        texts = [(self.one("abc"), self.one("xyz")) for _ in range(self.random.randrange(4))]
        strange = {
            "state": self.one([*columns.PHASES, "lost in space", None]),
            "machine": self.one(["m", "n", "o", None]),
            "reason": self.one(["r", "s", "t", None]),
            "granted": self.one([None, -1, 0, 1, 2, 3]),
            "counters": self.one([entries, [], row["counters"][:1], row["counters"] * 2, doubled]),
            "meta": self.one([texts, [], row["meta"][:1], row["meta"] * 2]),
            "project": self.one(["p", "P", "q"]),
            "slot": self.one(["w-1", "w-01", "w-2", "v-1", None]),
        }
        return row | {name: value for name, value in strange.items() if self.rarely() or name == self.damaged}

    def ledger(self, history):
        """A row for each slot of a history, in a state that is allowed, or damaged."""
        rows = []
        for slot, steps in history.steps(history.sent_for()):
            states = sorted(possible(steps, history.seen), key=str) or [SlotState("allocated")]
            state = self.one(states)
            row = {
                "project": self.one("pP"),
                "slot": history.slot_id(slot),
                "state": state.phase,
                "machine": state.machine,
                "reason": state.reason,
                "granted": state.granted,
                "counters": sorted(state.counters),
                "meta": sorted(state.meta),
            }
            self.damaged = self.one(list(row)) if self.random.random() < 0.3 else None
            changed = row if self.damaged is None else self.damage(row)
            if state.phase != "absent" or changed is not row:
                rows.append(changed)
            if self.rarely():
                rows.append(self.damage(row))
        self.random.shuffle(rows)
        return pa.Table.from_pylist(rows, SCHEMA)

    def with_other_entries(self, table):
        """The rows of a ledger, of which every other has other counters, and every other other metadata."""
        others = {
            "counters": [lambda n: n, lambda _: 0, lambda n: 2 * n, lambda n: n + 1],
            "meta": [str, lambda _: "x"],
        }
        rows = table.to_pylist()
        for row in rows:
            for kind, changes in others.items():
                if self.random.random() < 0.5:
                    changed = [(name, self.one(changes)(value)) for name, value in row[kind]]
                    row[kind] = [entry for entry in changed if self.often()]
        return pa.Table.from_pylist(rows, SCHEMA)


def plain(verdict):
    """All that a verdict says of slots, in an order of its own."""
    return sorted(map(str, verdict.anomalies)), verdict.counts, verdict.uncertain, verdict.checked, verdict.not_verified


def state_of(made, should, slot):
    """The state that is expected of an ordinary slot, as the model has it."""
    counters, meta = should.counters[slot], should.meta[slot]
    sums = {} if counters < 0 else made.arguments["counters"].row(counters)
    texts = {} if meta < 0 else made.arguments["meta"].row(meta)
    return SlotState(
        columns.PHASES[should.phase[slot]],
        None if should.machine[slot] < 0 else made.machines[should.machine[slot]],
        None if should.granted[slot] == ABSENT else should.granted[slot],
        None if should.reason[slot] < 0 else made.arguments["discard"]["reason"].texts[should.reason[slot]],
        frozenset(sums.items()),
        frozenset(texts.items()),
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("direct", [False, True])
def test_ordinary_slots_have_the_one_state_that_the_model_allows(history_of, seed, direct):
    chance = Chance(seed)
    calls = sorted((call for number in range(1, SLOTS) for call in chance.calls(number)), key=lambda call: call[3][2])
    marks = [(op, *mark) for op, (*_, mark) in enumerate(calls) if not chance.rarely()]
    phases = set()
    for seen in (Span(200, 210), Span(MINUTE_NS, MINUTE_NS + 9), Span(MINUTE_NS + 40, MINUTE_NS + 60)):
        history = history_of([call[:3] for call in calls], marks, direct=direct, seen=seen)
        should = columns.expected(history)
        assert should.ordinary.sum() > SLOTS / 10
        for slot, steps in history.steps(should.ordinary):
            state = state_of(history.workload, should, slot)
            assert possible(steps, seen) == {state}
            phases.add(state.phase)
    assert phases == set(columns.PHASES) - (set() if direct else {"expired"})


def test_a_discard_without_a_reason_is_for_the_model(history_of):
    calls = [call for number in (1, 2) for call in (("alloc", number, {}), ("discard", number, {"reason": "r"}))]
    calls[3] = ("discard", 2, {})
    marks = [(op, 0, 0, op, op) for op in range(4)]
    should = columns.expected(history_of(calls, marks, direct=True, seen=Span(9, 9)))
    assert should.ordinary.tolist() == [True, False]


@pytest.mark.thorough
@pytest.mark.parametrize(("seed", "hidden"), [*enumerate(2 * HIDDEN)])
@pytest.mark.parametrize("direct", [False, True])
def test_both_ways_find_the_same(history_of, seed, direct, hidden, monkeypatch):
    chance = Chance(seed)
    monkeypatch.setattr(columns, "ROWS", chance.one([7, SLOTS, columns.ROWS]))
    monkeypatch.setattr("cpsim.judge.slots.CHUNK", chance.one([7, SLOTS]))
    monkeypatch.setattr("cpsim.judge.verdict.SHOWN_ANOMALIES", SLOTS)
    calls = [call for number in range(1, SLOTS) for call in chance.calls(number)]
    calls.sort(key=lambda call: call[3][2])
    marks = [(op, *mark) for op, (*_, mark) in enumerate(calls) if not chance.rarely()]
    seen = Span(*chance.one([(200, 210), (MINUTE_NS + 40, MINUTE_NS + 60), (MINUTE_NS + 50, MINUTE_NS + 50)]))
    history = history_of([call[:3] for call in calls], marks, direct=direct, seen=seen)
    table = chance.ledger(history).drop_columns(hidden)
    fast, slow = Verdict(), Verdict()
    judge_slots(history, table, "p", fast)
    every = {history.slot_id(slot): steps for slot, steps in history.steps(history.sent_for())}
    judge_histories(every, table, "p", seen, slow)
    assert plain(fast) == plain(slow)
    ours = table.filter(pa.array([project.lower() == "p" for project in table["project"].to_pylist()], pa.bool_()))
    judged_fast = columns.correct_slots(
        history, ours, columns.indices(ours["slot"], columns.slot_ids(history.workload, history.prefix))
    )
    assert min(judged_fast.sum(), slow.counts.total()) > SLOTS / 20  # both ways are taken, and there is much to find
    assert len(slow.counts) > 6 - len(hidden)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.thorough) for seed in range(1, 6))])
@pytest.mark.parametrize("direct", [False, True])
def test_slots_that_are_alike_are_judged_as_each_of_them_alone(history_of, seed, direct, monkeypatch):
    chance = Chance(seed)
    monkeypatch.setattr("cpsim.judge.slots.CHUNK", chance.one([7, 500]))
    monkeypatch.setattr("cpsim.judge.slots.MOST_EXPLAINED", 60)
    monkeypatch.setattr("cpsim.judge.verdict.SHOWN_ANOMALIES", 20)
    kinds = [list(chance.calls(1)) for _ in range(8)]
    calls = sorted(
        (call for number in range(1, SLOTS // 2) for call in chance.varied(chance.one(kinds), number)),
        key=lambda call: call[3][2],
    )
    marks = [(op, *mark) for op, (*_, mark) in enumerate(calls)]
    seen = Span(*chance.one([(200, 210), (MINUTE_NS + 40, MINUTE_NS + 60)]))
    history = history_of([call[:3] for call in calls], marks, direct=direct, seen=seen)
    table = chance.with_other_entries(chance.ledger(history))
    judged, judge_slot = Counter(), slots.judge_slot

    def counted(*arguments, **options):
        judged[way] += 1
        return judge_slot(*arguments, **options)

    monkeypatch.setattr(slots, "judge_slot", counted)
    found = {}
    for way in ("alike", "alone"):
        found[way] = verdict = Verdict()
        judge_slots(history, table, "p", verdict, fresh=True, suspects=Suspects(possible=MODELLED))
        monkeypatch.setattr(slots, "shapes", lambda _, runs, *__: np.full(len(runs.slots), -1))
    one, other = found.values()
    assert (one.document(), one.examples) == (other.document(), other.examples)
    assert one.counts.total() > 100
    assert one.uncertain > 20
    assert judged["alike"] < 0.8 * judged["alone"]


@pytest.mark.parametrize("sent", [[0], [3], [7], [-2], [3, 0], [3, 7], [3, 3], [7, -7], [0, 0]])
def test_counters_are_alike_only_where_the_same_was_made_of_them(history_of, sent, monkeypatch):
    """One slot for each sum that a server may show, twice; what became of the last command is unknown."""
    found = [None, 0, *{factor * each + more for each in [*sent, sum(sent)] for factor in (1, 2) for more in (0, 1)}]
    calls, marks, rows = [], [], []
    for number, has in enumerate([*found, *found], start=1):
        of_slot = [("alloc", {}), *(("counters", {"a": each}) for each in sent), ("meta", {"a": "x"})]
        for at, (kind, given) in enumerate(of_slot):
            marks.append((len(calls), *((0, 0) if kind != "meta" else (2, 3)), 10 * at, 10 * at + 1))
            calls.append((kind, number, given))
        row = dict.fromkeys(SCHEMA.names) | {"project": "p", "slot": f"w-{number}", "state": "allocated", "meta": []}
        rows.append(row | {"counters": [] if has is None else [("a", has)]})
    history = history_of(calls, marks, direct=True, seen=Span(200, 210))
    verdicts = []
    for _ in range(2):
        verdicts.append(Verdict())
        judge_slots(history, pa.Table.from_pylist(rows, SCHEMA), "p", verdicts[-1])
        monkeypatch.setattr(slots, "shapes", lambda _, runs, *__: np.full(len(runs.slots), -1))
    one, other = verdicts
    assert (one.document(), one.examples) == (other.document(), other.examples)
    assert {"lost", "altered"} <= {*one.counts}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("direct", [False, True])
def test_both_ways_find_the_same_among_outstanding_slots(history_of, seed, direct, monkeypatch):
    chance = Chance(seed)
    calls = sorted((call for number in range(1, SLOTS) for call in chance.calls(number)), key=lambda call: call[3][2])
    marks = [(op, *mark) for op, (*_, mark) in enumerate(calls)]
    seen = Span(*chance.one([(200, 210), (MINUTE_NS + 40, MINUTE_NS + 60)]))
    history = history_of([call[:3] for call in calls], marks, direct=direct, seen=seen)
    outstanding = {f"w-{number}" for number in range(SLOTS) if chance.often()}
    fast, slow = Verdict(), Verdict()
    judge_outstanding(history, outstanding, fast)
    monkeypatch.setattr("cpsim.judge.slots.correct_outstanding", lambda history, _: history.sent_for() & False)
    judge_outstanding(history, outstanding, slow)
    assert plain(fast) == plain(slow)
    assert slow.counts.total() > SLOTS / 20


@pytest.mark.parametrize("known", [[7], [5, 5], [3, 5, 7], [1, 2, 5, 7]])
def test_numbers_are_found_among_known_ones_in_even_steps_and_others(known):
    known = np.array(known)
    places = places_among(known, np.array([-1, *known, 9]))
    assert np.array_equal(known[places[1:-1]], known)
    assert places.min() >= 0
    assert places.max() < len(known)

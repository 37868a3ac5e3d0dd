"""What a fault is, as text and as a value, and which fault of a plan fires."""

import threading

import pytest

from cpsim.errors import CpsimError
from cpsim.faults.actions.rate import MOST_WAITING
from cpsim.faults.plan import MAX_FIRINGS, FaultPlan
from cpsim.faults.spec import ACTIONS, Fault
from cpsim.protocol.exchange import Answer, End, Exchange
from cpsim.testing import ManualClock

CLAIM = [("claim", "job-1")]


@pytest.fixture
def clock():
    return ManualClock()


def meets(plan, subjects, hook="daemon"):
    """What a command or request meets."""
    return plan.intercept(Exchange(hook, subjects))


def fired(plan, commands, hook="daemon"):
    """The numbers of the commands, from 1 up, for which a fault fires."""
    return [number for number, subject in enumerate(commands, 1) if meets(plan, [subject], hook)]


@pytest.mark.parametrize(
    "text",
    [
        "hang",
        "daemon.hang:kind=claim,slot=job-*,nth=3,count=1",
        "server.status=503:probability=0.1,from=10,until=20",
        "late=0.5:count=20",
        "server.down:from=1.5",
        "daemon.crash-after-ok:slot=a:b=c",
        "server.late=1:kind=bulk",
        "late=1:kind=heartbeat",
        "daemon.error:project=p",
    ],
)
def test_a_fault_is_the_text_it_was_read_from(text):
    fault = Fault.parse(text)
    assert str(fault) == text
    assert Fault.parse(str(fault)) == fault


def test_a_fault_of_a_project_leaves_the_others_alone():
    plan = FaultPlan(["error:project=p,nth=2"])
    meeting = ["q", "p", "q", "p", "q"]
    assert [bool(plan.intercept(Exchange("daemon", CLAIM, project))) for project in meeting] == [
        *(False, False, False, True, False)
    ]
    assert [firing.project for firing in plan.firings] == ["p"]


def test_an_action_of_one_stage_has_that_stage():
    assert Fault("refuse").stage == "daemon"
    assert Fault.parse("status=503") == Fault("status", 503, stage="server")
    assert str(Fault("pieces")) == "daemon.pieces=0.05"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("daemon.hnag", "the daemon has no action 'hnag'; there are .*; did you mean 'hang'?"),
        ("demon.hang", "no stage 'demon'; there are daemon, server; did you mean 'daemon'?"),
        ("server.pieces", "the server has no action 'pieces'"),
        ("", "no action ''; there are"),
        ("hang=3", "hang takes no value"),
        ("status", "status needs a value, status=VALUE, an HTTP status from 200 to 599"),
        ("status=99", "status is 99, and must be an HTTP status from 200 to 599"),
        ("status=ok", "status is 'ok', and must be"),
        ("late=-1", "late is -1.0, and must be seconds from 0 to 86,400"),
        ("rate", "rate needs a value, rate=VALUE, commands a second from 0.01 to 1,000,000"),
        ("rate=0", "rate is 0.0, and must be commands a second from 0.01"),
        ("rate=nan", "rate is nan, and must be"),
        ("hang:nth=0", "nth is 0, and must be a whole number from 1 up"),
        ("hang:count=two", "count is 'two', and must be a whole number from 1 up"),
        ("hang:knd=claim", "no key 'knd'; there are kind, .*; did you mean 'kind'?"),
        ("hang:kind=clam", "kind is 'clam', and must be one of alloc, "),
        ("daemon.late=1:kind=bulk", "kind is 'bulk', and must be one of alloc, .*, claim at a daemon"),
        ("pieces:kind=slots", "kind is 'slots', and must be one of alloc, .* at a daemon"),
        ("crash-after-ok:kind=heartbeat", "kind is 'heartbeat', and must be one of alloc, .* at a daemon"),
        ("hang:slot", "slot is '', and must be a pattern"),
        ("hang:nth=1,nth=2", "nth is given twice"),
        ("hang:probability=1.1", "probability is 1.1, and must be a number above 0 and at most 1"),
        ("hang:probability=nan", "probability is nan, and"),
        ("hang:from=4,until=3", "until must be later than from"),
        (
            "refuse:kind=claim",
            "kind cannot apply here, because a refused connection has no command; use from and until",
        ),
        ("hang:", "no key ''"),
    ],
)
def test_what_is_wrong_with_a_text_is_said(text, message):
    with pytest.raises(CpsimError, match=f"^fault .*: {message}") as caught:
        Fault.parse(text)
    assert text.partition(":")[0] in str(caught.value)


def test_what_is_wrong_with_a_value_is_said():
    with pytest.raises(CpsimError, match="nth is True, and must be a whole number"):
        Fault("hang", nth=True)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("hang", [1, 2, 3, 4, 5, 6]),
        ("hang:kind=claim", [2, 4, 6]),
        ("hang:slot=b*", [3, 4]),
        ("hang:kind=claim,slot=[ab]", [2, 4]),
        ("hang:nth=3", [3]),
        ("hang:count=2", [1, 2]),
        ("hang:nth=2,count=3", [2, 3, 4]),
        ("hang:kind=claim,nth=2", [4]),
        ("server.hang", []),
    ],
)
def test_a_fault_selects(text, numbers):
    commands = [(kind, slot) for slot in ("a", "b", "c") for kind in ("alloc", "claim")]
    assert fired(FaultPlan([text]), commands) == numbers


def test_a_probability_depends_on_the_seed_alone():
    first, same, other = (fired(FaultPlan(["hang:probability=0.3"], seed=seed), CLAIM * 1000) for seed in (1, 1, 2))
    assert first == same != other
    assert 200 < len(first) < 400


def test_a_probability_is_the_same_beside_other_faults():
    alone = fired(FaultPlan(["hang:probability=0.3"]), CLAIM * 100)
    plan = FaultPlan(["late=1:probability=0.3", "hang:probability=0.3"])
    met = [meets(plan, CLAIM) for _ in range(100)]
    hung = {number for number, passage in enumerate(met, 1) if passage and passage.instead is End.HANG}
    late = {number for number, passage in enumerate(met, 1) if passage and passage.delay_s}
    assert hung == set(alone)
    assert hung & late
    assert late - hung


def test_a_window_counts_from_the_beginning(clock):
    plan = FaultPlan(["hang:from=10,until=20"], clock=clock)
    clock.advance(100)
    plan.begin()
    for step_s, fires in ((0, False), (9.9, False), (0.1, True), (9.9, True), (0.1, False)):
        clock.advance(step_s)
        assert bool(meets(plan, CLAIM)) is fires


def test_what_refuses_is_told_with_its_changes(clock):
    plan = FaultPlan(["refuse:from=10,until=20"], clock=clock)
    assert (plan.refuses("daemon"), plan.next_change_s("daemon")) == (False, 10)
    clock.advance(15)
    assert (plan.refuses("daemon"), plan.next_change_s("daemon")) == (True, 5)
    assert (plan.refuses("server"), plan.next_change_s("server")) == (False, None)
    clock.advance(5)
    assert (plan.refuses("daemon"), plan.next_change_s("daemon")) == (False, None)
    assert plan.firings == [(15, "daemon", "refuse", "", "", "")]


def test_what_drops_a_command_is_the_last_fault_it_meets():
    plan = FaultPlan(["late=1", "close:nth=2", "hang"])
    assert [meets(plan, CLAIM).instead for _ in range(3)] == [End.HANG, End.CLOSE, End.HANG]
    assert plan.describe() == [("late=1", 3, 3), ("close:nth=2", 3, 1), ("hang", 3, 2)]


def test_several_faults_meet_one_command():
    plan = FaultPlan(["late=1", "lose-reply:nth=2", "late=0.5", "daemon.error:nth=3"])
    first, second, third = (meets(plan, CLAIM) for _ in range(3))
    assert (first.delay_s, first.instead, first.back(b"OK")) == (1.5, None, Answer(b"OK"))
    assert (second.delay_s, second.instead, second.back(b"OK")) == (1.5, None, End.CLOSE)
    assert (third.delay_s, third.instead, third.back(b"ER")) == (1.5, Answer(b"ER"), Answer(b"ER"))
    assert [firing.action for firing in plan.firings] == [
        *("late", "late"),
        *("late", "lose-reply", "late"),
        *("late", "late", "error"),
    ]


def test_a_request_is_one_however_many_commands_it_has():
    plan = FaultPlan(["status=503:slot=b,nth=2"])
    bulk = [("bulk", ""), ("alloc", "b"), ("claim", "b")]
    assert [bool(meets(plan, bulk, "server")) for _ in range(3)] == [False, True, False]
    assert plan.firings[0][2:] == ("status", "alloc", "b", "")


def test_a_plan_changes_as_a_whole_or_not_at_all():
    plan = FaultPlan(["hang"])
    for change in (plan.replace, lambda texts: plan.add(*texts), lambda texts: plan.remove("hang", *texts)):
        with pytest.raises(CpsimError):
            change(["close", "no-such"])
        assert list(plan) == [Fault("hang")]


def test_a_plan_is_changed_piece_by_piece():
    plan = FaultPlan()
    assert not plan.daemon
    plan.add("hang", "server.close", "hang")
    assert (plan.daemon, plan.server, plan.delivery) == (True, True, True)
    plan.remove(Fault("hang"))
    assert list(map(str, plan)) == ["hang", "server.close"]
    with pytest.raises(CpsimError, match=r"is not set; these are: hang, server.close"):
        plan.remove("cut")
    plan.clear()
    assert list(plan) == []
    assert not plan.daemon


def test_a_context_has_its_fault_and_no_longer():
    plan = FaultPlan(["cut"])
    with plan.hang(kind="claim", stage="daemon"), plan.during("late=1", "status=500"):
        assert list(map(str, plan)) == ["server.cut", "daemon.hang:kind=claim", "late=1", "server.status=500"]
    assert list(map(str, plan)) == ["server.cut"]
    with plan.down():
        plan.clear()
    assert list(plan) == []


def waits(plan, *subjects):
    """The seconds that commands wait, or what is done in their place."""
    met = [meets(plan, [subject]) for subject in subjects]
    return [passage and (passage.instead or passage.delay_s) for passage in met]


def test_a_rate_lets_commands_go_on_one_after_the_other(clock):
    plan = FaultPlan(["rate=2:kind=claim"], clock=clock)
    claim, other = CLAIM[0], ("alloc", "job-1")
    assert waits(plan, claim, other, claim, claim) == [0, None, 0.5, 1]
    clock.advance(0.25)
    assert waits(plan, claim) == [1.25]
    clock.advance(1.75)  # when the last of them has just gone on
    assert waits(plan, claim, claim) == [0, 0.5]
    clock.advance(100)
    assert waits(plan, claim, claim) == [0, 0.5]  # what was not used before is lost
    plan.replace(["server.rate=4"])
    bulk = [("bulk", ""), ("alloc", "a"), ("alloc", "b")]
    assert [meets(plan, subjects, "server").delay_s for subjects in (bulk, bulk, [other])] == [0, 0.25, 0.5]


def test_a_rate_is_kept_with_other_delays(clock):
    plan = FaultPlan(["late=3:nth=1", "rate=2", "rate=1:slot=a", "pieces=5"], clock=clock)
    assert waits(plan, ("claim", "b"), ("claim", "a"), ("claim", "a"), ("claim", "b")) == [3, 3.5, 4.5, 4.5]


def test_a_full_queue_of_a_rate_closes_connections(clock):
    plan = FaultPlan(["rate=7"], clock=clock)
    assert waits(plan, *CLAIM * (MOST_WAITING + 1))[-1] == pytest.approx(MOST_WAITING / 7)
    assert waits(plan, *CLAIM * 2) == [End.CLOSE] * 2
    clock.advance(1)
    assert waits(plan, *CLAIM * 8)[6:] == [pytest.approx(MOST_WAITING / 7), End.CLOSE]


def test_every_action_has_a_context():
    plan = FaultPlan()
    values = {"late": [0.5], "status": [503], "rate": [5]}
    for action in ACTIONS:
        if not action.startswith("crash"):
            with getattr(plan, action.replace("-", "_"))(*values.get(action, []), until_s=5):
                assert [fault.action for fault in plan] == [action]


def test_a_crash_needs_a_process_that_may_end():
    with pytest.raises(CpsimError, match=r"'daemon.crash-after-ok' would end the process that runs this fake"):
        FaultPlan(["crash-after-ok"])
    plan = FaultPlan(["crash-after-commit"], crash=lambda: None)
    assert (plan.daemon, plan.server, plan.delivery) == (False, True, True)


def test_one_crash_at_a_time(clock):
    plan = FaultPlan(["daemon.crash-after-ok:nth=2,count=3", "daemon.hang:nth=4"], crash=lambda: None)
    assert fired(plan, CLAIM * 5) == [2, 4]  # what crashes has not yet, and nobody else need


def test_a_plan_goes_on_where_another_was(clock):
    earlier = FaultPlan(["close:count=1", "hang:nth=4", "daemon.refuse:from=5,until=8"], clock=clock)
    plan = FaultPlan(clock=clock)
    assert fired(earlier, CLAIM * 3) == [1]
    clock.advance(4)
    plan.resume(earlier.progress())
    plan.begin()
    assert not plan.refuses("daemon")
    assert fired(plan, CLAIM * 3) == [1]
    assert plan.describe()[:2] == [("close:count=1", 6, 1), ("hang:nth=4", 6, 1)]
    clock.advance(3)
    assert plan.refuses("daemon")
    assert [(firing.time_s, firing.action) for firing in plan.firings] == [(0, "close"), (4, "hang"), (7, "refuse")]


def test_watchers_are_told_of_each_change():
    plan = FaultPlan()
    seen = []
    plan.watch(lambda: seen.append(len(list(plan))))
    with plan.hang(), plan.cut():
        pass
    assert seen == [1, 2, 1, 0]


@pytest.mark.thorough
def test_a_full_record_says_so():
    plan = FaultPlan(["hang"])
    for _ in range(MAX_FIRINGS + 2):
        meets(plan, CLAIM)
    with pytest.raises(CpsimError, match="keeps 100,000 firings, and 2 came after"):
        _ = plan.firings
    plan.forget_firings()
    assert plan.firings == []


def test_a_count_holds_among_threads():
    plan = FaultPlan(["hang:count=500"])
    counts = []
    threads = [threading.Thread(target=lambda: counts.append(len(fired(plan, CLAIM * 1000)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == len(plan.firings) == 500


def test_which_never_fired():
    plan = FaultPlan(["hang:slot=no", "late=0:kind=alloc,nth=2"])
    with plan.during("error:slot=no", "late=0:slot=a,probability=1e-9"):
        plan.intercept(Exchange("daemon", [("alloc", "a")], "p"))
    assert [(fault.action, selected) for fault, selected in plan.unfired()] == [("error", 0), ("hang", 0), ("late", 1)]
    plan.intercept(Exchange("daemon", [("alloc", "b")], "p"))
    assert [fault.action for fault, _ in plan.unfired()] == ["error", "hang"]  # the other was left to chance
    plan.restart(["down:from=3600"])
    assert [fault.action for fault, _ in plan.unfired()] == ["down"]

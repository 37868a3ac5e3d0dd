"""Expectations of the control API: what differs, and how long an answer waits for what is expected."""

import asyncio
import json
import socket
import threading
from pathlib import Path
from urllib.parse import urlencode

import pytest

from cpdaemon import Client
from cpsim.fake import ANY_PORT, Fake
from cpsim.server.control.actions import LONGEST_WAIT_S
from cpsim.server.control.waiting import LOOK_S, LOOK_SHARE, Provisional, settled
from cpsim.testing import ManualClock

GUARD_S = 100


@pytest.fixture
def fake(tmp_path):
    with Fake({"p": "s", "q": "t"}, unix=tmp_path / "s", http=ANY_PORT) as fake:
        yield fake


@pytest.fixture
def client(fake):
    return Client(fake.addresses["unix"])


@pytest.fixture
def ask(fake, visit):
    """ask(request, **query): the status and the document."""
    site = visit(fake)

    def ask(request, method="GET", **query):
        query = {"project": "p"} | query
        given = urlencode({name: value for name, value in query.items() if value is not None})
        status, body = site.request(method, f"/__cpsim/{request}?{given}")
        assert body.endswith(b"\n")
        return status, json.loads(body)

    return ask


@pytest.fixture
def expect(ask, fake):
    """expect(what, **query): once nothing is pending, whether it holds, the message's lines, and if it is final."""

    def expect(what, **query):
        fake.wait_until_idle(GUARD_S)
        status, found = ask(f"expect/{what}", **query)
        assert status == 200, found
        return found["holds"], found["message"].splitlines(), found["final"]

    return expect


def test_a_slot_as_expected(client, expect):
    client.alloc("job-1", min=1, max=10)
    assert expect("slot", slot="job-1") == (True, [], True)
    assert expect("slot", slot="job-1", state="allocated") == (True, [], True)
    client.counters("job-1", **{"job/events": 7, "job/success": 1})
    client.meta("job-1", owner="alice")
    client.claim("job-1", "w", credits=25)
    terms = {"state": "claimed", "machine": "w", "credits": 10, "counters": "job/events=7", "meta": "owner=alice"}
    assert expect("slot", slot="job-1", **terms) == (True, [], True)


def test_what_differs_is_named_with_the_history(client, expect):
    client.alloc("job-1", credits=5)
    holds, lines, final = expect("slot", slot="job-1", state="claimed", credits=6)
    assert (holds, final) == (False, False)
    assert lines[:4] == [
        "slot 'job-1' is not as expected:",
        "  state: expected 'claimed', is 'allocated'",
        "  credits: expected 6, is 5",
        "history of slot 'job-1':",
    ]
    assert lines[4].endswith("alloc,slot=job-1,credits=5")


def test_what_was_settled_otherwise_is_final(client, expect, fake):
    client.alloc("job-1")
    client.discard("job-1", "disk full")
    assert expect("slot", slot="job-1", state="discarded", reason="disk full")[0]
    holds, lines, final = expect("slot", slot="job-1", state="claimed")
    assert (holds, final) == (False, True)
    assert lines[1] == "  state: expected 'claimed', is 'discarded'"
    fake.set_quirks(frozenset({"reclaim"}))  # then another machine may claim it yet
    assert not expect("slot", slot="job-1", state="claimed")[2]


def test_a_slot_that_is_not_there_is_named_with_the_nearest(client, expect):
    client.alloc("job-1")
    holds, lines, final = expect("slot", slot="job-l")
    assert (holds, final) == (False, False)
    assert lines == [
        "there is no slot 'job-l'; there is 1 other; did you mean 'job-1'?",
        "nothing has come for it",
    ]


def test_a_slot_that_a_quirk_has_deleted_is_explained(client, expect, fake):
    fake.set_quirks(frozenset({"slots-vanish"}))
    fake.accounts.link([("w", "alice")])
    client.alloc("job-1")
    client.claim("job-1", "w")
    lines = expect("slot", slot="job-1", state="claimed")[1]
    assert lines[0] == "there is no slot 'job-1' (the quirk slots-vanish deletes what is claimed); there are 0 others"
    assert lines[-1].endswith("claim,slot=job-1,machine=w")


def test_what_cannot_be_expected_is_refused(ask):
    assert ask("expect/slot", slot="a", counters="job/events") == (
        409,
        {"result": "error", "message": "counters: 'job/events' is not NAME=VALUE"},
    )
    assert ask("expect/rule", rule="no-refusals", slots="a")[1]["message"] == (
        "no-refusals takes no slots; settled-once does"
    )
    assert ask("expect/rule", rule="nothing-sent-twice", kinds="allocs")[0] == 409
    assert ask("expect/idle", project="r")[0] == 404
    assert ask("rules", project="r")[0] == 404
    assert ask("expect/idle", within_s=LONGEST_WAIT_S + 1)[0] == 400


def test_a_good_run_keeps_all_rules(client, ask):
    client.alloc("job-1")
    client.claim("job-1", "w")
    assert ask("expect/idle", within_s=LONGEST_WAIT_S)[1]["holds"]
    status, found = ask("rules")
    assert status == 200
    assert [view["rule"] for view in found if view["holds"]] == [
        "faults-fired",
        "no-claim-before-alloc",
        "no-refusals",
        "no-slot-leaked",
        "nothing-sent-twice",
        "settled-once",
    ]
    assert not any(view["message"] for view in found)


def test_each_rule_finds_what_breaks_it(client, expect, fake):
    client.claim("job-1", "w")
    client.alloc("job-1")
    client.alloc("job-2", credits=1)
    client.alloc("job-2", credits=1)
    fake.faults.add("error:slot=job-3,nth=1")
    rules = {
        "no-claim-before-alloc": (
            ["slots claimed before allocation: 1:", "  job-1: claimed before it was allocated"],
            True,
        ),
        "no-slot-leaked": (
            ["slots allocated and never settled: 2:", "  job-1: allocated", "  job-2: allocated"],
            False,
        ),
        "nothing-sent-twice": (
            ["slots sent more than once: 1:", "  job-2: alloc,slot=job-2,credits=1 came 2 times"],
            True,
        ),
        "settled-once": (["slots not settled exactly once: 1:", "  job-1: claim came, 0 accepted"], True),
        "faults-fired": (
            ["faults that never fired: 1:", "  daemon.error:slot=job-3,nth=1, which selected 0 commands"],
            False,
        ),
    }
    for rule, (first, is_final) in rules.items():
        holds, lines, final = expect("rule", rule=rule)
        assert (holds, lines[: len(first)], final) == (False, first, is_final)
    holds, lines, final = expect("rule", rule="no-refusals")
    assert (holds, lines[0], final) == (False, "2 refused by the accounts:", True)
    assert expect("rule", rule="nothing-sent-twice", kinds="claim,discard")[0]
    holds, lines, final = expect("rule", rule="settled-once", slots="job-2")
    assert (holds, lines[1], final) == (False, "  job-2: neither claim nor discard came, 0 accepted", False)
    assert expect("rule", rule="settled-once", project="q")[0]


def test_a_malformed_frame_is_a_refusal(expect, fake):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(fake.addresses["unix"])
        sock.sendall(b"allocate,slot=a\n")
        assert sock.recv(2) == b"ER"
    holds, lines, _ = expect("rule", rule="no-refusals")
    assert not holds
    assert lines[0] == "1 malformed, answered ER by the daemon:"


def test_a_rule_is_not_said_to_hold_while_commands_are_pending(ask, fake, client):
    with fake.faults.status(503, stage="server"):
        client.alloc("job-1")
        pending = {"holds": False, "message": "1 acknowledged commands have not reached the accounts", "final": False}
        assert ask("expect/rule", rule="settled-once") == (200, pending)
        assert ask("expect/idle") == (200, pending)
        assert ask("expect/slot", slot="job-1")[1]["message"].endswith(pending["message"])
        assert ask("expect/idle", project="q")[1]["holds"]
    assert ask("expect/idle", within_s=LONGEST_WAIT_S)[1]["holds"]
    assert ask("expect/rule", rule="settled-once")[1]["holds"]


def in_thread(call):
    """Begin a call; returns what waits for its result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()

    def result():
        thread.join(GUARD_S)
        return results[0]

    return result


@pytest.fixture
def starts(tmp_path, visit, wait_for):
    """starts(store): a fake that the test stops, asking it in a thread, and waiting for so many looks."""

    def start(store=None):
        fake = Fake({"p": "s"}, unix=tmp_path / "s", http=ANY_PORT, store=store)
        fake.start()
        counted = []
        pending = fake.inspector.sites.pending
        fake.inspector.sites.pending = lambda project: (counted.append(project), pending(project))[1]
        site = visit(fake)
        path = f"/__cpsim/expect/slot?project=p&slot=job-1&state=claimed&machine=w&within_s={LONGEST_WAIT_S}"
        answer = in_thread(lambda: json.loads(site.request("GET", path)[1]))
        wait_for(lambda: len(counted) >= 2)
        return fake, answer

    return start


@pytest.mark.parametrize("stored", [False, True])
def test_an_answer_waits_until_the_slot_is_as_expected(tmp_path, starts, stored):
    fake, answer = starts(tmp_path / "store" if stored else None)
    client = Client(fake.addresses["unix"])
    client.alloc("job-1")
    client.claim("job-1", "w")
    assert answer() == {"holds": True, "message": "", "final": True}
    fake.stop()


def test_an_answer_that_waits_does_not_hold_up_the_servers_end(starts):
    fake, answer = starts()
    fake.stop()
    assert answer()["holds"] is False


class Asking:
    """A caller who waits."""

    def __init__(self):
        self.stopping, self.leaving = asyncio.Event(), asyncio.Event()

    async def left(self):
        await self.leaving.wait()


def looked(within_s, *, look_s=0.0, end=lambda caller, looks: None):
    """How often an answer is looked for, and the seconds that this takes by the loop's clock."""
    clock, looks = ManualClock(), []

    class Loop(asyncio.SelectorEventLoop):
        time = staticmethod(clock.monotonic)

    async def passing():
        while True:
            clock.advance(LOOK_S / 4)
            await asyncio.sleep(0)

    async def waited():
        caller = Asking()
        time = asyncio.ensure_future(passing())

        async def answer():
            looks.append(clock.monotonic())
            clock.advance(look_s)
            end(caller, looks)
            return Provisional(200, b"", within_s=within_s)

        found = await settled(answer, caller)
        time.cancel()
        return found

    with asyncio.Runner(loop_factory=Loop) as runner:
        assert type(runner.run(waited())) is Provisional
    return len(looks), clock.monotonic()


def test_an_answer_waits_for_its_time_and_no_longer():
    looks, took_s = looked(1.0)
    assert 0.5 / LOOK_S < looks <= 1 / LOOK_S + 2
    assert 1.0 <= took_s < 1.0 + 4 * LOOK_S


def test_looks_that_take_long_leave_the_server_its_time():
    looks, _ = looked(20.0, look_s=0.2)
    assert looks <= 20 / (0.2 * (LOOK_SHARE + 1)) + 3


@pytest.mark.parametrize("event", ["stopping", "leaving"])
def test_an_answer_ends_with_its_caller_and_with_the_server(event):
    looks, _ = looked(60.0, end=lambda caller, looks: len(looks) == 3 and getattr(caller, event).set())
    assert looks == 3


def test_a_project_is_added_with_a_daemon_and_removed(ask, fake, client):
    client.alloc("job-1")
    status, added = ask("projects/add", "POST", project="tests")
    assert status == 200
    own = Client(added["unix"])
    own.alloc("job-1")
    own.claim("job-1", "w")
    with Client(added["url"], credentials=("tests", added["secret"])) as signed:
        signed.alloc("job-2")
    Client(added["tcp"]).alloc("job-3")
    assert ask("expect/slot", project="tests", slot="job-1", state="claimed", within_s=LONGEST_WAIT_S)[1]["holds"]
    assert ask("expect/slot", project="tests", slot="job-3", within_s=LONGEST_WAIT_S)[1]["holds"]
    assert len(ask("slots", project="tests", state="allocated")[1]["items"]) == 2
    assert ask("expect/slot", slot="job-1", state="allocated", within_s=LONGEST_WAIT_S)[1][
        "holds"
    ]  # that of the other project
    path = Path(added["unix"])
    assert path.exists()
    assert ask("projects/remove", "POST", project="tests") == (200, ["p", "q"])
    assert not path.exists()
    assert ask("slots", project="tests")[0] == 404
    assert [daemon.project_id for daemon in fake.daemons] == ["p"]


def test_projects_without_a_name_get_one_each(visit):
    with Fake({"p": "s", "Project-2": "s"}, http=ANY_PORT) as fake:
        site = visit(fake)
        added = [json.loads(site.request("POST", "/__cpsim/projects/add")[1]) for _ in range(2)]
        assert [project["project"] for project in added] == ["project-1", "project-3"]
        assert len({project["secret"] for project in added}) == 2
        listed = json.loads(site.request("GET", "/__cpsim/daemons")[1])
        assert [(daemon["project"], daemon["added"]) for daemon in listed] == [("project-1", True), ("project-3", True)]
        folder = Path(added[0]["unix"]).parent
        assert folder.is_dir()
    assert not folder.exists()


def test_a_project_is_removed_with_what_is_pending(ask, fake):
    added = ask("projects/add", "POST", project="tests", flush_interval_s=86_400)[1]
    Client(added["unix"]).alloc("job-1")
    assert fake.pending == 1
    assert ask("projects/remove", "POST", project="tests")[0] == 200
    assert fake.pending == 0


def test_a_daemon_is_added_and_removed_once_it_is_idle(ask, fake):
    added = ask("daemons/add", "POST", flush_interval_s=86_400)[1]
    assert (added["project"], added["added"]) == ("p", True)
    Client(added["unix"]).alloc("job-1")
    status, refused = ask("daemons/remove", "POST", project=None, unix=added["unix"])
    assert (status, refused["message"]) == (
        409,
        f"1 commands of the daemon at {added['unix']} are pending: wait until it is idle",
    )
    fake.daemons[1].drop()
    assert ask("daemons/remove", "POST", project=None, unix=added["unix"])[0] == 200
    assert len(fake.daemons) == 1


def test_what_was_not_added_is_not_removed(ask, fake):
    assert ask("projects/remove", "POST")[1]["message"] == (
        "project 'p' was not added while the server served; added were: none"
    )
    status, refused = ask("daemons/remove", "POST", project=None, unix=fake.addresses["unix"])
    assert status == 409
    assert "was added while the server served; added were: none" in refused["message"]
    assert ask("projects/add", "POST", project="P")[1]["message"] == (
        "project id 'P' is given twice; case makes no difference"
    )
    assert ask("daemons/add", "POST", project="r")[0] == 409

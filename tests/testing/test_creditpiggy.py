"""CreditPiggy as a context manager: its addresses, what it shows, and what it leaves behind."""

import asyncio
import os
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

import cpsim.testing
from cpdaemon import Client, NotSent
from cpsim.errors import CpsimError
from cpsim.fake import Fake
from cpsim.server.journal import JournalFull
from cpsim.testing import AsyncCreditPiggy, CreditPiggy, CreditPiggyServer

READ_ENVIRONMENT = """
import os
from pathlib import Path
from cpdaemon import Client
secret = Path(os.environ["CREDITPIGGY_SECRET_FILE"]).read_text().strip()
for endpoint, credentials in [
    (os.environ["CREDITPIGGY_ENDPOINT"], None),
    (os.environ["CREDITPIGGY_TCP"], None),
    (os.environ["CREDITPIGGY_URL"], (os.environ["CREDITPIGGY_PROJECT"], secret)),
]:
    with Client(endpoint, credentials) as client:
        client.alloc(f"slot-{len(endpoint)}-{endpoint.partition(':')[0]}")
"""


def folder_of(creditpiggy):
    return Path(creditpiggy.endpoint).parent


def cpsim_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("cpsim")]


def run_job(endpoint, slot, machine="worker-7"):
    with Client(endpoint) as client:
        client.alloc(slot, credits=5)
        client.counters(slot, events=1000)
        client.claim(slot, machine)


def test_public_names_are_sorted_and_there():
    names = cpsim.testing.__all__
    assert names == sorted(names)
    assert all(hasattr(cpsim.testing, name) for name in names)


def test_every_address_leads_to_the_same_accounts(creditpiggy):
    for number, (endpoint, credentials) in enumerate(
        [(creditpiggy.unix, None), (creditpiggy.tcp, None), (creditpiggy.url, creditpiggy.credentials)]
    ):
        with Client(endpoint, credentials) as client:
            client.alloc(f"job-{number}")
    assert sorted(creditpiggy.slots) == ["job-0", "job-1", "job-2"]
    assert creditpiggy.endpoint == creditpiggy.unix


def test_what_it_shows(creditpiggy):
    run_job(creditpiggy.endpoint, "job-1")
    creditpiggy.link("worker-7", "alice")
    slot, machine, user = creditpiggy.slots["job-1"], creditpiggy.machines["worker-7"], creditpiggy.users["alice"]
    assert (slot.state, slot.machine, slot.granted, slot.counters) == ("claimed", "worker-7", 5, {"events": 1000})
    assert (machine.credits, machine.user, machine.counters) == (5, "alice", {"events": 1000})
    assert (user.credits, user.counters) == (5, {"events": 1000})
    assert [command.kind for command in creditpiggy.journal] == ["alloc", "counters", "claim"]
    assert creditpiggy.refusals == creditpiggy.malformed == []
    assert repr(user) == "UserView(project='project', user='alice', credits=5, counters={'events': 1000})"
    assert "state='claimed'" in repr(slot)
    assert "None" not in repr(slot)
    with pytest.raises(ValueError, match="linked to user 'alice'"):
        creditpiggy.link("worker-7", "bob")


def test_two_are_isolated():
    with CreditPiggy() as one, CreditPiggy() as other:
        run_job(one.endpoint, "job-1")
        one.clock.advance(hours=25)
        with one.faults.refuse(), Client(other.endpoint) as client:
            client.alloc("job-1")
        assert list(other.slots) == ["job-1"]
        other.assert_outstanding("job-1")
        assert one.credentials[1] != other.credentials[1]


def test_time_passes_when_told(creditpiggy, client):
    client.alloc("job-1")
    creditpiggy.clock.advance(hours=25)
    creditpiggy.assert_expired("job-1")


def test_nothing_is_left_behind():
    with CreditPiggy() as creditpiggy:
        folder = folder_of(creditpiggy)
        assert creditpiggy.environment
        run_job(creditpiggy.endpoint, "job-1")
    assert not folder.exists()
    assert cpsim_threads() == []
    creditpiggy.assert_claimed("job-1")  # what was seen can still be looked at
    with pytest.raises(CpsimError, match="is not running: use it in a `with`"):
        _ = creditpiggy.endpoint


def test_it_runs_once(creditpiggy):
    with pytest.raises(CpsimError, match="has been started before: make another"):
        creditpiggy.start()
    creditpiggy.stop()
    creditpiggy.stop()
    with pytest.raises(CpsimError, match="has been started before"):
        creditpiggy.start()


def test_a_long_folder_for_temporary_files_is_avoided(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with CreditPiggy() as creditpiggy:
        assert len(creditpiggy.unix) < 100
        run_job(creditpiggy.endpoint, "job-1")
    assert list(long.iterdir()) == []


def test_programs_find_it_in_the_environment(creditpiggy):
    environment = creditpiggy.environment
    secret_file = Path(environment["CREDITPIGGY_SECRET_FILE"])
    assert stat.S_IMODE(secret_file.stat().st_mode) == 0o600
    assert creditpiggy.environment == environment
    subprocess.run([sys.executable, "-c", READ_ENVIRONMENT], env=os.environ | environment, check=True)
    assert len(creditpiggy.slots) == 3


@pytest.mark.parametrize("frame", ["claim,slot=job-1,machine=w", "clam,slot=job-1"])
def test_leaving_fails_for_what_was_refused(frame, say):
    with pytest.raises(AssertionError) as failure, CreditPiggy() as creditpiggy:
        say(creditpiggy.endpoint, frame)
    assert frame in str(failure.value)
    assert "allow_refusals=True" in str(failure.value)


def test_refusals_can_be_allowed(say):
    with CreditPiggy(allow_refusals=True) as creditpiggy:
        say(creditpiggy.endpoint, "claim,slot=job-1,machine=w")
        say(creditpiggy.endpoint, "clam,slot=job-1")
        assert [command.kind for command in creditpiggy.refusals] == ["claim"]
        assert [bad.frame for bad in creditpiggy.malformed] == ["clam,slot=job-1"]


def test_an_error_that_ends_the_test_tells_what_came(say):
    with pytest.raises(ZeroDivisionError) as failure, CreditPiggy() as creditpiggy:
        _ = 1 / len(say(creditpiggy.endpoint, "claim,slot=job-1,machine=w")[2:])
    (note,) = failure.value.__notes__
    assert "claim,slot=job-1,machine=w   refused: slot 'job-1' was never allocated" in note


def test_the_report_has_all_that_went_wrong(creditpiggy, client, say):
    with creditpiggy.faults.error(kind="discard"):
        assert say(creditpiggy.endpoint, "discard,slot=job-1") == "ER"
    client.claim("job-1", "w")
    say(creditpiggy.endpoint, "clam,slot=job-1")
    report = creditpiggy.report()
    assert "daemon.error discard of slot 'job-1'" in report
    assert "claim,slot=job-1,machine=w   refused: slot 'job-1' was never allocated" in report
    assert "'clam,slot=job-1'   malformed" in report


def test_a_long_report_shows_the_last(creditpiggy, client):
    for number in range(50):
        client.alloc(f"job-{number}")
    report = creditpiggy.report()
    assert "last commands of 50 received" in report
    assert "30 before these" in report
    assert "slot=job-29" not in report
    assert "slot=job-30" in report
    assert "slot=job-49" in report


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quirks": ["reclam"]}, "no quirk 'reclam'; there are ascii-only"),
        ({"profile": "deplyed"}, "no profile 'deplyed'; there are documented, deployed"),
        ({"faults": ["hangs"]}, "fault 'hangs': no action 'hangs'"),
        ({"flush_interval_s": -1}, "flush_interval_s is -1, and must be from 0"),
        ({"flush_interval_s": float("nan")}, "flush_interval_s is nan"),
    ],
)
def test_what_cannot_be_is_said(options, message):
    with pytest.raises(CpsimError, match=message):
        CreditPiggy(**options)


def test_another_site_of_the_same_project(creditpiggy):
    with CreditPiggy(beside=creditpiggy) as other:
        with Client(creditpiggy.endpoint) as client:
            client.alloc("job-1", credits=5)
        creditpiggy.wait_for_alloc("job-1")
        with creditpiggy.faults.refuse(), Client(other.endpoint) as client:  # this site alone is out of reach
            client.claim("job-1", "worker-7")
        other.assert_claimed("job-1", machine="worker-7")
        creditpiggy.assert_claimed("job-1", machine="worker-7")
        socket_file = Path(other.endpoint)
    assert not socket_file.exists()
    with Client(creditpiggy.endpoint) as client:
        client.alloc("job-2")
    assert list(creditpiggy.slots) == ["job-1", "job-2"]


def test_a_link_that_was_there_before_outlives_the_project():
    with CreditPiggyServer() as server:
        server.fake.accounts.link([("worker-7", "alice")])
        with server.project() as one:
            one.link("worker-7", "alice")
            one.link("worker-8", "alice")
        with server.fake.accounts.reading() as ledger:
            assert ledger.owners == {"worker-7": "alice"}


def test_a_server_isolates_projects():
    with CreditPiggyServer() as server:
        with server.project() as one, server.project() as other:
            assert one.url == other.url == server.url
            run_job(one.endpoint, "job-1", "worker-7")
            with Client(other.url, other.credentials) as client, one.faults.refuse():
                client.alloc("job-1")
            one.link("worker-7", "alice")
            assert list(one.users) == ["alice"]
            assert other.users == {}
            other.assert_outstanding("job-1")
        with server.project() as third:
            run_job(third.endpoint, "job-1", "worker-7")
            assert third.machines["worker-7"].user is None  # links end with the project that made them
            assert third.users == {}
        assert server.fake.daemons == []
        assert server.fake.accounts.projects == ["nobody"]
    assert cpsim_threads() == []


def test_a_project_of_a_server_fails_for_its_own_refusals(say):
    with CreditPiggyServer() as server, server.project() as good:
        with pytest.raises(AssertionError, match="slot 'job-1' was never allocated"), server.project() as bad:
            say(bad.endpoint, "claim,slot=job-1,machine=w")
        run_job(good.endpoint, "job-1")


def test_a_server_has_one_set_of_quirks():
    with CreditPiggyServer(quirks=["meta-dropped"]) as server:
        with server.project(quirks=["meta-dropped"]) as creditpiggy, Client(creditpiggy.endpoint) as client:
            client.alloc("job-1")
            client.meta("job-1", experiment="atlas")
            assert creditpiggy.assert_outstanding("job-1").meta == {}
        with pytest.raises(CpsimError, match="those of the fake that the project is added to"):
            server.project(quirks=["reclaim"])


def test_a_project_can_be_added_to_any_fake(tmp_path):
    with Fake({"p": "s"}, unix=Path(tempfile.mkdtemp(dir=tmp_path, prefix="s")) / "s") as fake:
        with CreditPiggy(fake=fake, project="mine") as creditpiggy:
            run_job(creditpiggy.endpoint, "job-1")
            creditpiggy.assert_claimed("job-1")
        with pytest.raises(ValueError, match="'P' is given twice"):
            CreditPiggy(fake=fake, project="P").start()


def test_a_journal_that_is_full_is_told():
    with Fake({"p": "s"}, journal_limit=1) as fake:
        creditpiggy = CreditPiggy(fake=fake, project="mine")
        creditpiggy.start()
        folder = folder_of(creditpiggy)
        run_job(creditpiggy.endpoint, "job-1")
        creditpiggy.wait_for_claim("job-1")
        assert "no room for all 3 commands received" in creditpiggy.report()
        with pytest.raises(JournalFull, match="is full"):
            creditpiggy.stop()
        assert fake.accounts.projects == ["p"]
        assert not folder.exists()


def test_a_start_that_fails_leaves_nothing(monkeypatch):
    folders = []
    make = tempfile.mkdtemp

    def keep(*arguments, **keywords):
        folders.append(Path(make(*arguments, **keywords)))
        return str(folders[-1])

    with CreditPiggyServer() as server:
        server.fake.add_project("mine", "secret")
        monkeypatch.setattr(tempfile, "mkdtemp", keep)
        with pytest.raises(ValueError, match="given twice"):
            server.project("mine").start()
    assert [folder.exists() for folder in folders] == [False]


def test_a_forked_process_can_send_and_not_stop_it(creditpiggy, forked):
    def child():
        run_job(creditpiggy.endpoint, "job-1")
        creditpiggy.stop()
        creditpiggy.fake.stop()
        try:
            _ = creditpiggy.slots
        except CpsimError as problem:
            assert "forked" in str(problem)  # noqa: PT017 - pytest.raises is for one process
            return 0
        return 1

    assert forked(child) == 0
    run_job(creditpiggy.endpoint, "job-2")
    creditpiggy.assert_settled_once("job-1", "job-2")


def test_a_forked_process_may_leave_the_context(forked):
    with CreditPiggy() as creditpiggy:

        def child():
            creditpiggy.__exit__(None, None, None)
            return 0

        assert forked(child) == 0
        run_job(creditpiggy.endpoint, "job-1")
        creditpiggy.assert_claimed("job-1")


def test_asynchronous():
    async def test():
        async with AsyncCreditPiggy() as creditpiggy:
            job = asyncio.create_task(asyncio.to_thread(run_job, creditpiggy.endpoint, "job-1"))
            slot = await creditpiggy.wait_for_claim("job-1")
            await job
            assert slot.granted == 5
            await creditpiggy.wait_until_idle()
            creditpiggy.assert_claimed("job-1", machine="worker-7")
            return Path(creditpiggy.endpoint)

    assert not asyncio.run(test()).exists()


def test_asynchronous_and_refused(say):
    async def test():
        async with AsyncCreditPiggy() as creditpiggy:
            await asyncio.to_thread(say, creditpiggy.endpoint, "claim,slot=job-1,machine=w")

    with pytest.raises(AssertionError, match="slot 'job-1' was never allocated"):
        asyncio.run(test())


def test_a_client_finds_nobody_afterwards():
    with CreditPiggy() as creditpiggy:
        endpoint = creditpiggy.tcp
    with Client(endpoint) as client, pytest.raises(NotSent):
        client.alloc("job-1")


def test_a_reset_begins_anew(creditpiggy, say):
    creditpiggy.link("m", "u")
    creditpiggy.clock.freeze()
    creditpiggy.fake.set_quirks(frozenset({"reclaim"}))
    run_job(creditpiggy.unix, "before")
    assert say(creditpiggy.unix, "nonsense") == "ER"
    creditpiggy.faults.add("daemon.hang", "server.down")
    where = creditpiggy.environment
    creditpiggy.reset()
    assert (creditpiggy.environment, list(creditpiggy.faults), creditpiggy.clock.rate) == (where, [], 1)
    assert creditpiggy.journal == creditpiggy.malformed == []
    assert creditpiggy.slots == creditpiggy.users == {}
    creditpiggy.assert_never_blocked(longer_than_s=0)
    creditpiggy.link("m", "another")
    run_job(creditpiggy.unix, "after")
    assert list(creditpiggy.slots) == ["after"]
    assert "quirks: none" in creditpiggy.report()


def test_a_reset_of_one_of_many_leaves_the_others(say):
    with CreditPiggyServer(allow_unfired=True) as server, server.project() as mine, server.project() as other:
        for each in (mine, other):
            run_job(each.unix, "before")
            each.link(f"m-{each.project}", "u")
            each.faults.add("daemon.error:slot=x")
        mine.reset()
        assert (list(mine.slots), list(other.slots)) == ([], ["before"])
        assert [link.machine for link in server.fake.inspector.links().items] == [f"m-{other.project}"]
        assert (len(list(mine.faults)), len(list(other.faults))) == (0, 1)
        run_job(mine.unix, "after")
        assert list(mine.slots) == ["after"]


def test_a_reset_needs_one_that_runs():
    with pytest.raises(CpsimError, match="not running"):
        CreditPiggy().reset()

"""The fake as a whole: it starts at once, stops at once, and leaves nothing behind."""

import os
import socket
import sys
import threading
import urllib.request
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from cpdaemon import Client, NotSent, Refused, TcpEndpoint
from cpsim.daemon.spool import Spool
from cpsim.errors import CpsimError
from cpsim.fake import ANY_PORT, Fake, FakeProcess, Site
from cpsim.faults.plan import FaultPlan
from cpsim.metrics.waits import Waits

PROJECTS = {"p": "s", "q": "t"}


def descriptors():
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0  # noqa: PTH208


def cpsim_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("cpsim")]


@pytest.fixture(scope="module")
def first_loop():
    """The first event loop of a process opens what all later ones share."""
    with Fake(PROJECTS, http=ANY_PORT):
        pass


@pytest.fixture
def nothing_left(here, first_loop):
    before = descriptors()
    yield
    assert cpsim_threads() == []
    assert descriptors() == before
    assert list(here.iterdir()) == []


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("flush_interval_s", [0.0, 3600.0])
def test_it_starts_and_stops_at_once(here, flush_interval_s):
    everything = {"unix": here / "cp.sock", "tcp": ANY_PORT, "http": ANY_PORT, "flush_interval_s": flush_interval_s}
    for _ in range(5):
        fake = Fake(PROJECTS, **everything)
        fake.start()
        with Client("./cp.sock") as client:
            client.alloc("a")
        assert list(fake.addresses) == ["unix", "tcp", "http"]
        fake.stop()
        with fake.accounts.reading() as ledger:
            assert list(ledger.project("p").slots) == ["a"]


@pytest.mark.usefixtures("nothing_left")
def test_each_address_leads_to_the_same_accounts(here):
    with Fake(PROJECTS, unix=here / "cp.sock", tcp=ANY_PORT, http=ANY_PORT) as fake:
        with Client("./cp.sock") as client:
            client.alloc("a")
        fake.wait_until_idle()
        with Client(fake.addresses["tcp"]) as client:
            client.counters("a", n=1)
        fake.wait_until_idle()
        with Client(fake.addresses["http"], ("p", "s")) as client:
            client.claim("a", "m")
        with Client(fake.addresses["http"], ("q", "t")) as client, pytest.raises(Refused, match="never allocated"):
            client.claim("a", "m")
    with fake.accounts.reading() as ledger:
        assert ledger.project("p").granted.counters == {"n": 1}


@pytest.mark.usefixtures("nothing_left")
def test_several_side_by_side(here):
    fakes = [Fake(PROJECTS, unix=here / f"{number}.sock", tcp=ANY_PORT, http=ANY_PORT) for number in range(4)]
    for fake in fakes:
        fake.start()
    assert len({address for fake in fakes for address in fake.addresses.values()}) == 12
    for number, fake in enumerate(fakes):
        with Client(fake.addresses["tcp"]) as client:
            client.alloc(f"slot-{number}")
    for number, fake in enumerate(fakes):
        fake.stop()
        with fake.accounts.reading() as ledger:
            assert list(ledger.project("p").slots) == [f"slot-{number}"]


@pytest.mark.usefixtures("nothing_left")
def test_a_path_can_be_used_again(here):
    for _ in range(3):
        with Fake(PROJECTS, unix=here / "cp.sock"), Client("./cp.sock") as client:
            client.alloc("a")


def test_clients_under_way_do_not_hold_up_the_end(here):
    with Fake(PROJECTS, unix=here / "cp.sock", http=ANY_PORT) as fake:
        host, port = fake.addresses["http"].removeprefix("http://").removesuffix("/api").split(":")
        http = socket.create_connection((host, int(port)))
        silent = socket.socket(socket.AF_UNIX)
        silent.connect("cp.sock")
    for sock in (http, silent):
        assert sock.recv(1) == b""
        sock.close()


@pytest.mark.parametrize("failing", ["unix", "tcp", "http"])
@pytest.mark.usefixtures("nothing_left")
def test_a_start_that_fails_leaves_nothing(here, failing):
    addresses = {"unix": here / "cp.sock", "tcp": ANY_PORT, "http": ANY_PORT}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        addresses[failing] = Path("nowhere/cp.sock") if failing == "unix" else TcpEndpoint("127.0.0.1", port)
        with pytest.raises(OSError, match=r"cannot listen at (nowhere|127\.0\.0\.1:\d)"):
            Fake(PROJECTS, **addresses, flush_interval_s=1).start()


@pytest.mark.usefixtures("nothing_left")
def test_a_host_that_cannot_be_leaves_nothing(here):
    with pytest.raises(OSError, match="cannot listen at"):
        Fake(PROJECTS, unix=here / "cp.sock", http=TcpEndpoint("a..b", 0)).start()


def test_a_start_that_fails_leaves_the_files_of_others(here):
    with Fake(PROJECTS, unix=here / "cp.sock"), Client("./cp.sock") as client:
        with pytest.raises(OSError, match="another process is serving there"):
            Fake(PROJECTS, unix=here / "cp.sock", http=ANY_PORT).start()
        client.alloc("a")


def test_a_fake_needs_a_project():
    with pytest.raises(ValueError, match="needs a project"):
        Fake({})


def test_a_process_of_its_own(here):
    with FakeProcess() as process:
        addresses = process.serve(PROJECTS, here / "cp.sock")
        with Client(addresses["unix"]) as client:
            client.alloc("a")
        with Client(addresses["http"], ("q", "t")) as client:
            client.alloc("a")
    assert list(here.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="shows which libraries a process has loaded")
def test_a_process_of_its_own_does_without_pandas(here):
    """Which pyarrow imports wherever it is installed."""
    with FakeProcess() as process:
        addresses = process.serve(PROJECTS, here / "cp.sock")
        urllib.request.urlopen(f"{addresses['http'].removesuffix('/api')}/__cpsim/slots.parquet", timeout=280).close()
        loaded = str([child.memory_maps() for child in psutil.Process().children()])
    assert "/pyarrow/" in loaded
    assert "/pandas/" not in loaded


def test_a_process_that_has_nothing_to_serve_ends(capfd):
    with FakeProcess():
        pass
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("store", [None, Path("store")])
def test_a_process_that_cannot_serve_says_why(here, capfd, store):
    with FakeProcess() as process, pytest.raises(CpsimError, match="the embedded fake ended with status 1"):
        process.serve(PROJECTS, here / "missing" / "cp.sock", store=store)
    said = "cannot listen at missing/cp.sock: No such file or directory"
    assert capfd.readouterr() == ("", f"cpsim: the embedded fake: {said}\n")


@pytest.mark.usefixtures("nothing_left")
def test_sites_and_projects_come_and_go(here):
    with Fake(PROJECTS, unix=here / "cp.sock", http=ANY_PORT) as fake:
        fake.add_project("r", "u")
        site = fake.add_site(Site(project_id="r", unix=here / "r.sock", tcp=ANY_PORT, flush_interval_s=60))
        with Client(site.addresses["unix"]) as client:
            client.alloc("a")
        with Client(site.addresses["tcp"]) as client:
            client.claim("a", "m")
        with Client("./cp.sock") as client:
            client.alloc("a")
        assert fake.pending >= 2
        fake.remove_site(site)
        assert not (here / "r.sock").exists()
        with Client(fake.addresses["http"], ("r", "u")) as client, pytest.raises(Refused, match="it was claimed"):
            client.claim("a", "n")  # what was acknowledged has been passed on
        fake.remove_project("r")
        with Client(fake.addresses["http"], ("r", "u")) as client, pytest.raises(Refused, match="unknown project"):
            client.alloc("b")
        fake.add_project("r", "v")
        with Client(fake.addresses["http"], ("r", "v")) as client:
            client.alloc("a")  # nothing is left of the other
        fake.wait_until_idle()
        assert fake.inspector.slot("p", "a").slot.state == "allocated"


@pytest.mark.usefixtures("nothing_left")
def test_a_project_takes_its_sites_along(here):
    with Fake(PROJECTS, unix=here / "cp.sock") as fake:
        fake.add_project("r", "u")
        fake.add_site(Site(project_id="r", unix=here / "1.sock"))
        fake.add_site(Site(project_id="r", unix=here / "2.sock"))
        fake.remove_project("r")
        assert [path.name for path in here.iterdir()] == ["cp.sock"]
        assert [daemon.project_id for daemon in fake.daemons] == ["p"]


@pytest.mark.usefixtures("nothing_left")
def test_a_site_that_cannot_be_leaves_the_others(here):
    with Fake(PROJECTS, unix=here / "cp.sock") as fake:
        with pytest.raises(OSError, match="another process is serving there"):
            fake.add_site(Site(project_id="q", unix=here / "cp.sock", tcp=ANY_PORT))
        with pytest.raises(ValueError, match="there is no project 'r'; there are p, q"):
            fake.add_site(Site(project_id="r", unix=here / "r.sock"))
        with pytest.raises(ValueError, match="project id 'P' is given twice"):
            fake.add_project("P", "s")
        with Client("./cp.sock") as client:
            client.alloc("a")


@pytest.mark.usefixtures("nothing_left")
def test_a_site_meets_the_faults_of_the_fake_or_its_own(here):
    with Fake(PROJECTS, unix=here / "cp.sock") as fake:
        plan = FaultPlan()
        with_the_fake = fake.add_site(Site(project_id="p", unix=here / "1.sock"))
        fake.add_site(Site(project_id="p", unix=here / "2.sock"), faults=plan)
        with fake.faults.refuse(), Client("./2.sock") as client:
            client.alloc("a")
            with Client("./1.sock") as other, pytest.raises(NotSent):
                other.alloc("b")
        with plan.refuse(), Client("./1.sock") as client:
            client.alloc("b")
        fake.remove_site(with_the_fake)
        with fake.faults.refuse(), Client("./2.sock") as client:
            client.alloc("c")  # a plan goes on without those who have left


def test_a_site_with_a_store_has_a_spool(here):
    with Fake(PROJECTS, unix=here / "cp.sock", store=here / "store") as fake:
        fake.add_project("r", "u")
        site = fake.add_site(Site(project_id="r", unix=here / "r.sock"))
        with Client("./r.sock") as client:
            client.alloc("a")
        fake.remove_site(site)
        assert (here / "store.r.spool").exists()
        assert fake.inspector.slot("r", "a").slot.state == "allocated"


def test_each_daemon_of_a_project_has_a_spool_of_its_own(here):
    sites = [Site(project_id="p", unix=here / f"{number}.sock", flush_interval_s=60) for number in (1, 2)]
    for started in range(2):  # and the same one when all begin anew
        with Fake(PROJECTS, sites=sites, store=here / "store") as fake:
            for site in sites:
                with Client(f"./{site.unix}") as client:
                    client.alloc(f"{started} {site.unix}")
            assert fake.pending == 2
    with Fake(PROJECTS, store=here / "store") as fake:
        assert len(fake.inspector.slots("p").items) == 4
    assert {path.name for path in here.glob("*.spool")} == {"store.p.spool", "store.p+2.spool"}


def test_a_store_through_a_link_has_the_spools_of_the_store_itself(here):
    (here / "other").mkdir()
    (here / "other" / "link").symlink_to("../store")
    with Fake({"p": "s"}, store=here / "store"):
        pass
    with Fake({"p": "s"}, unix=here / "cp.sock", store=here / "other" / "link") as fake:
        assert [daemon.spool_path for daemon in fake.daemons] == [(here / "store.p.spool").resolve()]
        with pytest.raises(CpsimError, match="is in use by another process"):
            Fake({"p": "s"}, store=here / "store")
    assert [path.name for path in (here / "other").iterdir()] == ["link"]


def test_spools_beside_a_link_to_the_store_are_told(here):
    (here / "other").mkdir()
    (here / "other" / "link").symlink_to("../store")
    with Fake({"p": "s"}, store=here / "store"):
        pass
    left = here / "other" / "link.p.spool"
    with closing(Spool(left)) as spool:
        spool.put(["alloc,slot=a"], {}, lambda _: None)
    with Fake({"p": "s"}, unix=here / "cp.sock", store=here / "other" / "link") as fake:
        assert fake.left_spools() == {left: 1}


def test_waits_are_noted_where_that_is_asked_for(here):
    waits = Waits()
    with Fake(PROJECTS, unix=here / "cp.sock", http=ANY_PORT, waits=waits) as fake:
        with fake.faults.late(0.5, nth=1), Client("./cp.sock") as client:
            client.alloc("a")
        with Client(fake.addresses["http"], ("p", "s")) as client:
            client.alloc("b")
    noted = {wait.what: wait for wait in waits.longest()}
    assert noted.keys() == {"alloc,slot=a", "POST /api/batch/alloc"}
    assert noted["alloc,slot=a"].wait_s >= 0.5
    assert all(wait.is_over for wait in noted.values())

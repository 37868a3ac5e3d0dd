"""Where a CreditPiggy listens, who reaches it there, and what is said when nobody has."""

import os
import socket
import stat
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from ports import free_port

from cpdaemon import Client, ConnectFailed
from cpsim.errors import CpsimError
from cpsim.testing import CreditPiggy, CreditPiggyServer, NotInTime

NOBODY = 65_534


def alloc(endpoint, slot):
    with Client(endpoint) as client:
        client.alloc(slot)


def permissions(path):
    return stat.S_IMODE(Path(path).stat().st_mode)


def why_nothing_came(creditpiggy):
    with pytest.raises(NotInTime) as failure:
        creditpiggy.wait_for_alloc("job-1", timeout_s=0)
    return str(failure.value)


def test_it_listens_where_it_is_told(tmp_path):
    path, port = tmp_path / "creditapi.socket", free_port()
    with CreditPiggy(path=path, port=port, mode=0o622) as creditpiggy:
        assert (creditpiggy.endpoint, creditpiggy.tcp) == (str(path), f"127.0.0.1:{port}")
        assert permissions(path) == 0o622
        alloc(str(path), "job-1")
        alloc(f"127.0.0.1:{port}", "job-2")
        assert sorted(creditpiggy.slots) == ["job-1", "job-2"]
    assert list(tmp_path.iterdir()) == []


def test_only_a_mode_opens_its_own_folder():
    with CreditPiggy() as closed, CreditPiggy(mode=0o666) as opened, CreditPiggy(mode=0o620) as of_a_group:
        for each, socket_has, folder_has in [(opened, 0o666, 0o711), (of_a_group, 0o620, 0o710)]:
            assert permissions(each.endpoint) == socket_has
            assert permissions(Path(each.endpoint).parent) == folder_has
        assert permissions(Path(closed.endpoint).parent) == 0o700


def test_a_socket_that_refused_for_a_while_is_as_open_as_before():
    with CreditPiggy(mode=0o602) as creditpiggy:
        with creditpiggy.faults.refuse():
            assert permissions(creditpiggy.endpoint) == 0o602
        assert permissions(creditpiggy.endpoint) == 0o602
        alloc(creditpiggy.endpoint, "job-1")
        creditpiggy.assert_outstanding("job-1")


def test_it_listens_at_one_more_path(tmp_path):
    path = tmp_path / "more"
    with CreditPiggy() as creditpiggy:
        assert creditpiggy.listen_at(path, mode=0o666) == str(path)
        assert permissions(path) == 0o666
        alloc(str(path), "job-1")
        alloc(creditpiggy.endpoint, "job-2")
        assert set(creditpiggy.slots) == {"job-1", "job-2"}  # each daemon has a queue of its own
        with creditpiggy.faults.refuse(), pytest.raises(ConnectFailed):
            alloc(str(path), "job-3")
        creditpiggy.reset()
        alloc(str(path), "job-4")
        assert list(creditpiggy.slots) == ["job-4"]
        with pytest.raises(OSError, match="another process is serving there"):
            creditpiggy.listen_at(path)
        with pytest.raises(CpsimError, match=r"path: .* has 2.. bytes, and the system takes at most"):
            creditpiggy.listen_at("x" * 200)
    assert not path.exists()


def test_a_project_of_a_server_listens_at_one_more_path(tmp_path):
    path = tmp_path / "more"
    with CreditPiggyServer() as server, server.project() as creditpiggy:
        creditpiggy.listen_at(path)
        alloc(str(path), "job-1")
        creditpiggy.assert_outstanding("job-1")
        creditpiggy.stop()
        assert not path.exists()
        assert server.fake.daemons == []


def test_a_path_that_cannot_be_is_said(tmp_path):
    with pytest.raises(CpsimError, match=r"path: .* bytes, and the system takes at most"):
        CreditPiggy(path=tmp_path / ("x" * 200))
    with pytest.raises(OSError, match=r"cannot listen at .*/no/s: No such file or directory"):
        CreditPiggy(path=tmp_path / "no" / "s").start()


def test_one_address_serves_one_test_after_the_other(tmp_path):
    with CreditPiggy(path=tmp_path / "s", quirks=["reclaim"]) as endpoint:
        for faults in ([], ["late=0:kind=alloc"], []):
            with CreditPiggy(at=endpoint, faults=faults) as creditpiggy:
                assert (creditpiggy.endpoint, creditpiggy.url) == (str(tmp_path / "s"), endpoint.url)
                assert creditpiggy.environment == endpoint.environment
                assert creditpiggy.slots == creditpiggy.users == {}
                assert list(map(str, creditpiggy.faults)) == faults
                assert creditpiggy.fake.accounts.quirks == frozenset()
                creditpiggy.clock.advance(hours=1)
                creditpiggy.link("worker-7", "alice")
                alloc(endpoint.endpoint, "job-1")
                creditpiggy.assert_outstanding("job-1")
            alloc(endpoint.endpoint, "between-tests")
        assert "alloc,slot=job-1" in creditpiggy.report()  # of its own time
        assert "between-tests" not in creditpiggy.report()
        with (
            pytest.raises(AssertionError, match="slot 'job-1' was never"),
            CreditPiggy(at=endpoint) as refused,
            Client(refused.endpoint) as client,
        ):
            client.claim("job-1", "worker-7")
        with CreditPiggy(at=endpoint) as creditpiggy:
            alloc(creditpiggy.endpoint, "job-1")
            creditpiggy.reset()
            assert creditpiggy.slots == {}
        with CreditPiggy(at=endpoint, flush_interval_s=3600) as creditpiggy:
            alloc(creditpiggy.endpoint, "job-1")
            assert creditpiggy.pending == 1
        with pytest.raises(CpsimError, match="are those of the one that this is at"):
            CreditPiggy(at=endpoint, mode=0o666)


def test_why_nothing_came_names_who_may_connect(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o700)
    with CreditPiggy(path=folder / "s", mode=0o600) as creditpiggy:
        said = why_nothing_came(creditpiggy)
        assert "nothing has come for it, nor for any other:" in said
        assert f"socket {folder / 's'} (srw------- " in said
        assert "may connect; mode=0o666 lets all users" in said
        assert f"folder {folder} (drwx------ " in said
    folder.chmod(0o755)
    with CreditPiggy(path=folder / "s", mode=0o666) as creditpiggy:
        said = why_nothing_came(creditpiggy)
        assert f"socket {folder / 's'} (srw-rw-rw- " in said
        assert "every user may connect" in said
        assert f"folder {folder} " not in said


def test_why_nothing_came_looks_at_the_file(tmp_path):
    path = tmp_path / ("x" * (101 - len(os.fsencode(tmp_path))))
    with CreditPiggy(path=path) as creditpiggy:
        assert "the path has 102 bytes: some clients take no more than 100" in why_nothing_came(creditpiggy)
        path.unlink()
        assert f"socket {path}: No such file or directory; somebody has removed it" in why_nothing_came(creditpiggy)
        with socket.socket(socket.AF_UNIX) as another:
            another.bind(str(path))
            assert f"socket {path} is another's" in why_nothing_came(creditpiggy)
        path.unlink()


def test_why_nothing_came_names_the_attempts_that_were_refused():
    with CreditPiggy() as creditpiggy:
        for path, authorization in [("/batch/alloc", "sha-256,project,wrong"), ("/batch", ""), ("x", "")]:
            with pytest.raises(HTTPError):
                urlopen(Request(f"{creditpiggy.url}{path}", b"{}", {"Authorization": authorization}))
        with creditpiggy.faults.refuse():
            said = why_nothing_came(creditpiggy)
        assert "refused by the server: POST '/api/batch/alloc': status 401, unknown project, or the digest" in said
        assert "refused by the server: POST '/apix': status 404, no such path '/apix'" in said
        assert "fault daemon.refuse: connections are refused" in said
        creditpiggy.reset()
        assert "refused by" not in why_nothing_came(creditpiggy)
        alloc(creditpiggy.endpoint, "job-2")
        said = why_nothing_came(creditpiggy)
        assert said.endswith("nothing has come for it")  # what has come shows that it can be reached
        with pytest.raises(AssertionError, match=r"nothing has come for it$"):
            creditpiggy.assert_claimed("job-1")


@pytest.mark.thorough
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user; CI is root")
def test_another_user_reaches_it(forked, tmp_path):
    def status_of(path):
        def child():
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(280)
                try:
                    client.connect(str(path))
                except PermissionError:
                    return 13
                client.sendall(b"alloc,slot=job-1\n")
                return 0 if client.recv(2) == b"OK" else 1

        return forked(child)

    with CreditPiggy() as closed:
        assert status_of(closed.endpoint) == 13
        assert "root may connect; mode=0o666 lets all users" in why_nothing_came(closed)
    with CreditPiggy(mode=0o666) as creditpiggy:
        assert status_of(creditpiggy.endpoint) == 0
        creditpiggy.assert_outstanding("job-1")
        creditpiggy.reset()
        with creditpiggy.faults.refuse():
            pass
        assert status_of(creditpiggy.endpoint) == 0
        creditpiggy.assert_outstanding("job-1")
        folder = tmp_path / "closed"
        folder.mkdir(mode=0o700)
        assert status_of(creditpiggy.listen_at(folder / "s", mode=0o666)) == 13  # the folder is closed, and those above
        creditpiggy.reset()
        assert f"folder {folder} (drwx------ root root) is closed to other users" in why_nothing_came(creditpiggy)

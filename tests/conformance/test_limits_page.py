"""Each limit of docs/reference/limits.md for the verifier: its number, and what happens there."""

import json
import socket
from types import SimpleNamespace

import limits_page
import pytest

from cpdaemon.endpoint import TcpEndpoint
from cpdaemon.signing import token
from cpsim.cli.verify import POLITE_RATE
from cpsim.cli.verify import verify as command
from cpsim.conformance import examiner, frames, target, transport, upstream
from cpsim.conformance.examiner import Examiner
from cpsim.conformance.exchange import Reply
from cpsim.conformance.findings import CannotRun, NotVerifiable
from cpsim.conformance.frames import DaemonConnection
from cpsim.conformance.leavings import Leavings
from cpsim.conformance.target import Target, Traffic
from cpsim.conformance.transport import Network
from cpsim.conformance.upstream import Upstream
from cpsim.testing import ManualClock

GUARD_S = 60
MEETINGS = limits_page.Meetings("cpsim verify")
meets = MEETINGS.meets
NUMBERS = {
    "Time for a reply, and for what was acknowledged to be applied": next(
        each.default for each in command.params if each.name == "timeout_s"
    ),
    "Commands a second to a target that is not ours": POLITE_RATE,
    "Commands and requests of a run": target.MOST_COMMANDS,
    "The same, with `--behind`": target.MOST_COMMANDS_TO_US,
    "Prefix of ids": target.LONGEST_PREFIX_BYTES,
    "Reply of a daemon that is read": frames.MOST_BYTES,
    "List of outstanding slots": examiner.MOST_LISTED_BYTES,
    "Requests at the same time": examiner.MOST_AT_ONCE,
    "Time of `--restart-command` and `--failed-command`": transport.LONGEST_COMMAND_S,
    "Time for which the server of `--behind` keeps a request waiting": upstream.LONGEST_HANG_S,
}


def test_the_page_has_the_numbers_of_the_program():
    assert MEETINGS.page == NUMBERS
    assert MEETINGS.met == MEETINGS.page.keys()


@meets("Time for a reply, and for what was acknowledged to be applied")
def test_a_daemon_that_does_not_answer(cpsim, here):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("d.sock")
        listening.listen(100)
        status, out, _ = cpsim("verify", "./d.sock", "-k", "WIRE-1", "--timeout", "0.05", "--json")
    assert status == 1
    assert "no reply" in json.dumps(json.loads(out)["clauses"])
    view = SimpleNamespace(transport=SimpleNamespace(sees=True), target=Target(timeout_s=3), leavings=Leavings())
    with pytest.raises(NotVerifiable, match="no reply within 3 s"):
        Examiner(view, SimpleNamespace(id="CLAIM-1")).seen(Reply(0, "", b"", is_late=True))


@meets("Commands a second to a target that is not ours")
def test_the_rate():
    clock = ManualClock()
    traffic = Traffic(POLITE_RATE, clock=clock)
    for _ in range(int(POLITE_RATE) + 1):
        traffic.pass_on()
    assert clock.monotonic() == pytest.approx(1)


@meets("Commands and requests of a run", "The same, with `--behind`")
@pytest.mark.parametrize("most", [target.MOST_COMMANDS, target.MOST_COMMANDS_TO_US])
def test_the_number_of_commands(most):
    traffic = Traffic(None, most)
    for _ in range(most):
        traffic.pass_on()
    with pytest.raises(CannotRun, match="the most of one run"):
        traffic.pass_on()


@meets("Prefix of ids")
def test_a_long_prefix(cpsim):
    prefix = "x" * target.LONGEST_PREFIX_BYTES
    assert cpsim("verify", "--dry-run", "-k", "CLAIM-1", "--slot-prefix", prefix)[0] == 0
    assert cpsim("verify", "--dry-run", "-k", "CLAIM-1", "--slot-prefix", f"{prefix}x")[0] == 64


@meets("Reply of a daemon that is read")
def test_a_long_reply():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(GUARD_S)
        theirs.sendall(b"x" * 3 * frames.MOST_BYTES)
        assert len(DaemonConnection(ours).everything()) == frames.MOST_BYTES


@meets("List of outstanding slots", "Requests at the same time")
def test_what_no_clause_does():
    view = SimpleNamespace(listing_bytes=examiner.MOST_LISTED_BYTES + 1, transport=None, target=None)
    examining = Examiner(view, SimpleNamespace(id="CLAIM-1"))
    with pytest.raises(NotVerifiable, match="lists 4,000,001 bytes"):
        examining.outstanding()
    with pytest.raises(AssertionError):
        examining.ask_together([None] * (examiner.MOST_AT_ONCE + 1))


@meets("Time of `--restart-command` and `--failed-command`")
def test_a_command_that_does_not_end(monkeypatch):
    monkeypatch.setattr(transport, "LONGEST_COMMAND_S", 0.05)
    with pytest.raises(CannotRun, match=r"took longer than 0\.05 s"):
        Network(Target(), Traffic(None)).run("exec sleep 100")


@meets("Time for which the server of `--behind` keeps a request waiting")
def test_a_server_that_hangs(monkeypatch):
    monkeypatch.setattr(upstream, "LONGEST_HANG_S", 0.05)
    with Upstream(TcpEndpoint("127.0.0.1", 0), ("p", "s")) as server:
        server.answer("hang")
        with socket.create_connection((server.host, server.port), GUARD_S) as sock:
            body = b'{"alloc": [{"slot": "s"}]}'
            head = f"POST /api/batch/bulk HTTP/1.1\r\nAuthorization: {token(('p', 's'), body)}\r\n"
            sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert sock.recv(100) == b""

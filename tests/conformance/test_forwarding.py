"""`cpsim verify DAEMON --behind ADDRESS`: the middle under test, as documented and with each quirk alone."""

import socket
import subprocess
import sys

import pytest

from cpsim.conformance.clause import catalogue

CPSIM = [sys.executable, "-P", "-m", "cpsim"]
FORWARD = [name for name in catalogue() if name.startswith("FORWARD-")]
SLOW = {"FORWARD-10", "FORWARD-28", "FORWARD-29"}
"""Clauses that wait for seconds or send thousands of commands, and show no quirk."""
MIDDLE = ["ack-before-delivery", "drop-on-error", "errors-ignored", "resend-duplicates", "flush-starves"]
MIDDLE += ["reorder-classes", "cut-values", "single-read", "busy-when-down"]


def broken(document):
    return {(row["id"], row["quirk"]) for row in document["clauses"] if row["result"] in {"deviation", "error"}}


def test_a_daemon_as_documented_keeps_every_promise(examine_daemon):
    status, document = examine_daemon()
    assert broken(document) == set()
    assert (status, document["verdict"]) == (0, "valid")
    assert {row["result"] for row in document["clauses"]} == {"pass"}
    measured = [figure for row in document["clauses"] for figure in row["measured"]]
    assert [figure.partition(":")[0] for figure in measured] == [
        "from acknowledgement to arrival",
        "acknowledged with the server up",
        "acknowledged with the server down and thousands waiting",
        "commands of which none may be lost",
    ]


@pytest.mark.parametrize("quirk", MIDDLE)
def test_each_quirk_is_found_by_its_name_and_nothing_else(examine_daemon, page, quirk):
    # without a spool, nothing says what was refused; and only one quirk changes the pace, which takes long to see
    left_out = {"FORWARD-12"} if quirk == "ack-before-delivery" else set()
    left_out |= set() if quirk == "busy-when-down" else {"FORWARD-14"}
    left_out |= SLOW
    clauses = [name for name in FORWARD if name not in left_out]
    should = {(clause, quirk) for clause in (page.OF_THE_MIDDLE | page.OF_BOTH)[quirk]}
    for _ in range(3 if quirk == "busy-when-down" else 1):  # a machine that is busy all the time hides what is slow
        status, document = examine_daemon("--quirk", quirk, clauses=clauses)
        if broken(document) == should:
            break
    assert broken(document) == should
    assert (status, document["quirks"]) == (1, [quirk])


def test_the_daemon_in_production_has_the_quirks_that_are_known(examine_daemon):
    clauses = [name for name in FORWARD if name not in {"FORWARD-12", "FORWARD-14"} | SLOW]
    status, document = examine_daemon("--profile", "deployed", clauses=clauses, profile="deployed")
    assert broken(document) == set()
    assert document["quirks"] == sorted(set(MIDDLE) - {"errors-ignored", "busy-when-down"})
    assert (status, document["verdict"]) == (0, "valid")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("http://127.0.0.1:1/api", "--behind", "127.0.0.1:0"), "is a server itself"),
        (("./d.sock", "--behind", "nowhere"), "is not HOST:PORT"),
        (("./d.sock", "--behind", "127.0.0.1:0"), "needs --project ID and --secret-file FILE"),
        (("./d.sock", "--behind", "127.0.0.1:0", "--server", "http://127.0.0.1:1/api"), "exclude one another"),
    ],
)
def test_wrong_usage(tmp_path, options, said):
    run = subprocess.run(
        [*CPSIM, "verify", *options], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=280
    )
    assert run.returncode == 64
    assert said in run.stderr


def test_an_address_that_is_taken(tmp_path):
    (tmp_path / "secret").write_text("hush")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [
            *CPSIM,
            "verify",
            "./d.sock",
            "--behind",
            address,
            "--project",
            "p",
            "--secret-file",
            "secret",
        ]
        run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=280)
    assert run.returncode == 2
    assert run.stderr.startswith(f"cpsim: cannot be the server at {address}: Address already in use")

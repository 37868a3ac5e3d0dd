"""Who leaves removes what it has made, and not what another has put in its place."""

import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from cpsim.cli.announce import announcing
from cpsim.fake import Fake
from cpsim.system.own_file import OwnFile


def test_a_file_is_removed_by_its_own_maker_alone(here):
    path = Path("file")
    path.touch()
    mine, successor = OwnFile(path), Path("other")
    successor.touch()
    successor.replace(path)
    mine.remove()
    assert path.exists()
    OwnFile(path).remove()
    assert not path.exists()
    OwnFile(path).remove()


@pytest.mark.parametrize("faults", [[], ["refuse"]])
def test_a_fake_leaves_its_successors_socket(here, faults):
    path = here / "cp.sock"
    with Fake({"p": "s"}, unix=path):
        moved = here / "moved.sock"
        path.rename(moved)
        with Fake({"p": "s"}, unix=path, faults=faults):
            path.unlink()
            moved.rename(path)
        assert path.is_socket()
    assert not path.exists()


def test_a_fake_that_refuses_removes_its_socket(here):
    path = here / "cp.sock"
    with Fake({"p": "s"}, unix=path, faults=["refuse"]) as fake:
        assert path.is_socket()
        fake.faults.clear()
        with fake.faults.refuse():
            pass
    assert not path.exists()


def test_a_ready_file_that_another_server_has_written_stays(here):
    path = Path("ready")
    with ExitStack() as first:
        first.enter_context(announcing(path))("unix ./one.sock\n")
        with ExitStack() as second:
            second.enter_context(announcing(path))("unix ./two.sock\n")
            first.close()
            assert path.read_text() == "unix ./two.sock\n"
        assert not path.exists()


@pytest.mark.thorough
def test_a_recorder_leaves_its_successors_socket(here, wait_for):
    with Fake({"p": "s"}, unix=here / "target.sock"), ExitStack() as stopping:
        command = [sys.executable, "-m", "cpsim", "record", "--listen", "./cp.sock", "--target", "./target.sock"]
        first = subprocess.Popen(
            [*command, "--output", "first.csv", "--ready-file", "ready"], stdout=subprocess.DEVNULL
        )
        stopping.callback(first.kill)
        wait_for(Path("ready").exists)
        Path("cp.sock").unlink()
        with Fake({"p": "s"}, unix=here / "cp.sock"):
            first.send_signal(signal.SIGTERM)
            assert first.wait(60) == 0
            assert Path("cp.sock").is_socket()

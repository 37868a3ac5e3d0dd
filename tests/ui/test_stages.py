"""The progress of a run: a line that is rewritten on a terminal, and seldom a line elsewhere."""

from io import StringIO

import pytest
from rich.console import Console

from cpsim.metrics.progress import Progress
from cpsim.testing import ManualClock
from cpsim.ui.terminal import Stages


@pytest.fixture
def file():
    return StringIO()


def test_a_pipe_gets_a_line_every_ten_seconds_at_most(file):
    clock = ManualClock()
    with Stages(clock, Console(file=file)) as stages:
        for number in range(100):
            stages.begin("CLAIM-1")
            stages.count(number, 100, f"{number}/100, no deviation")
            clock.advance(1.0)
    assert file.getvalue().splitlines() == [f"{number}/100, no deviation" for number in range(10, 100, 10)]


def test_a_pipe_gets_the_progress_of_a_replay_once_a_minute(file):
    clock = ManualClock()
    with Stages(clock, Console(file=file)) as stages:
        stages.begin("replaying")
        for second in range(130):
            stages.progress(2_000, Progress(float(second), 10 * second, 0, 0))
            clock.advance(1.0)
    assert file.getvalue().splitlines() == [
        "600/2,000  10/s  0 errors  0:02:20 left",
        "1,200/2,000  10/s  0 errors  0:01:20 left",
    ]


def test_a_stage_begins_without_the_bar_of_the_one_before(file):
    with Stages(ManualClock(), Console(file=file, force_terminal=True, width=140)) as stages:
        stages.begin("replaying")
        stages.progress(2_000, Progress(2.0, 2_000, 0, 0))
        stages.begin("judging")
    last = file.getvalue().rpartition("judging")[2]
    assert "2,000" not in last
    assert "0:00:00" not in last


def test_a_terminal_shows_the_progress_of_a_replay_and_what_is_judged(file):
    with Stages(ManualClock(), Console(file=file, force_terminal=True, width=140)) as stages:
        assert stages.is_shown
        stages.begin("replaying")
        stages.progress(2_000, Progress(2.0, 995, 3, 2), "valid so far: 300 slots, 0 findings")
    assert "1,000/2,000  500/s  5 errors  valid so far: 300 slots, 0 findings" in file.getvalue()
    assert not Stages(ManualClock(), Console(file=file)).is_shown


def test_a_terminal_gets_one_line_which_is_set_aside_for_what_is_printed(file):
    with Stages(ManualClock(), Console(file=file, force_terminal=True, width=100)) as stages:
        stages.begin("CLAIM-1")
        stages.count(57, 198, "57/198, 1 deviation")
        with stages.set_aside():
            shown = file.getvalue()
            file.write("a deviation\n")
        stages.count(58, 198, "58/198, 1 deviation")
    assert "57/198, 1 deviation" in shown
    assert shown.endswith("\x1b[2K")  # the line is erased
    assert "58/198, 1 deviation" in file.getvalue().partition("a deviation\n")[2]

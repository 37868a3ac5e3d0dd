"""The record of how long callers wait."""

from cpsim.metrics.waits import LONGEST_KEPT, Wait, Waits
from cpsim.testing import ManualClock


def test_those_that_are_not_over_grow():
    clock = ManualClock()
    waits = Waits(clock)
    waits.begin("a", "al", waits.now_s())
    clock.advance(1)
    waits.begin("a", "alloc", waits.now_s())
    waits.begin("b", "claim", waits.now_s())
    clock.advance(2)
    assert waits.longest() == [Wait(3.0, "alloc", is_over=False), Wait(2.0, "claim", is_over=False)]
    assert waits.end("a")
    assert not waits.end("a")
    clock.advance(1)
    assert waits.longest() == [Wait(3.0, "claim", is_over=False), Wait(3.0, "alloc", is_over=True)]


def test_the_longest_are_kept():
    clock = ManualClock()
    clock.advance(1000)
    waits = Waits(clock)
    for number in range(1000):
        waits.add(f"{number}", number * 7 % 1000)
    assert [wait.wait_s for wait in waits.longest()] == [1000.0 - n for n in range(LONGEST_KEPT)]

"""The record of how long callers wait."""

from cpsim.metrics.waits import LONGEST_KEPT, Wait, Waits


class Time:
    now_s = 0.0

    def __call__(self):
        return self.now_s


def test_those_that_are_not_over_grow():
    time = Time()
    waits = Waits(time)
    waits.begin("a", "al", waits.now_s())
    time.now_s = 1.0
    waits.begin("a", "alloc", waits.now_s())
    waits.begin("b", "claim", waits.now_s())
    time.now_s = 3.0
    assert waits.longest() == [Wait(3.0, "alloc", is_over=False), Wait(2.0, "claim", is_over=False)]
    assert waits.end("a")
    assert not waits.end("a")
    time.now_s = 4.0
    assert waits.longest() == [Wait(3.0, "claim", is_over=False), Wait(3.0, "alloc", is_over=True)]


def test_the_longest_are_kept():
    time = Time()
    time.now_s = 1000.0
    waits = Waits(time)
    for number in range(1000):
        waits.add(f"{number}", number * 7 % 1000)
    assert [wait.wait_s for wait in waits.longest()] == [1000.0 - n for n in range(LONGEST_KEPT)]

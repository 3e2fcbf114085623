"""Seconds of what goes on side by side: each for itself, and all of them together."""

from contextlib import ExitStack

import pytest
from treegrpo_cli.rollout import timings
from treegrpo_cli.rollout.timings import Stopwatch


class Clock:
    """Stands where it is put."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timings, "time", clock)
    return clock


def test_overlapping_calls_add_up_and_are_also_counted_once(clock: Clock) -> None:
    watch = Stopwatch()
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(watch.running())  # from 0 to 3
        clock.now = 2
        second.enter_context(watch.running())  # from 2 to 7
        clock.now = 3
        first.close()
        clock.now = 7
    clock.now = 10
    with watch.running():  # from 10 to 11
        clock.now = 11
    assert (watch.count, watch.sum_s, watch.any_s) == (3, 3 + 5 + 1, 7 + 1)
    watch.reset()
    assert (watch.count, watch.sum_s, watch.any_s) == (0, 0, 0)


def test_what_fails_is_counted_too(clock: Clock) -> None:
    watch = Stopwatch()

    def fail() -> None:
        with watch.running():
            clock.now = 4
            raise ConnectionError

    with pytest.raises(ConnectionError):
        fail()
    assert (watch.count, watch.sum_s, watch.any_s) == (1, 4, 4)

"""How long the rest of a sweep takes, from what was timed so far."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qwenbench.runfolder.cells import Cell, LoadPoint
from qwenbench.sweep.progress import Expected, Schedule, duration


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def cell(config: str, concurrency: int, repeat: int = 1) -> Cell:
    return Cell(config, 1, LoadPoint("math", "instruct-general", concurrency, None, repeat))


LEVELS = (1, 64)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timed(clock: Clock) -> Callable[..., Schedule]:
    """A schedule of three configurations with two loads each, of which `done` were timed: 100 s start, 10 and 50 s."""

    def make(done: int, slots: int = 1) -> Schedule:
        cells = [cell(config, level) for config in "abc" for level in LEVELS]
        expected = Expected(300.0, lambda point: 20.0 if point.concurrency == 1 else 25.0)
        schedule = Schedule(cells, 0, expected, slots, clock)
        for one in cells[:done]:
            if one.point.concurrency == 1:
                schedule.launching(one.config_id, 1)
                clock.now += 100
            schedule.cell_started(one)
            clock.now += 10 if one.point.concurrency == 1 else 50
            schedule.cell_done(one)
        return schedule

    return make


def test_nothing_is_said_before_a_point_was_timed(timed: Callable[..., Schedule]) -> None:
    assert timed(0).seconds_left() is None
    assert str(timed(0)) == "0/6 points"


def test_each_load_is_estimated_from_its_own_points_and_a_start_once_a_launch(timed: Callable[..., Schedule]) -> None:
    assert timed(2).seconds_left() == pytest.approx(2 * 100 + 2 * (10 + 50))
    assert timed(4).seconds_left() == pytest.approx(100 + 10 + 50)
    assert timed(6).seconds_left() == 0


def test_a_load_that_was_not_timed_yet_is_scaled_from_those_that_were(timed: Callable[..., Schedule]) -> None:
    # one point of 20 expected seconds took 10, so 25 expected ones are taken for 12.5; no jump by the start's 100 s
    assert timed(1).seconds_left() == pytest.approx(12.5 + 2 * (100 + 10 + 12.5))


def test_the_running_point_counts_down_and_never_below_zero(timed: Callable[..., Schedule], clock: Clock) -> None:
    schedule = timed(4)
    schedule.launching("c", 1)
    clock.now += 100
    schedule.cell_started(cell("c", 1))
    clock.now += 4
    assert schedule.seconds_left() == pytest.approx(6 + 50)
    clock.now += 40
    assert schedule.seconds_left() == pytest.approx(50)


def test_repeats_that_are_added_are_counted(timed: Callable[..., Schedule]) -> None:
    schedule = timed(6)
    schedule.add([cell("c", 1, repeat=2)])
    assert str(schedule) == "6/7 points, 10 s left"


def test_the_cells_of_a_failed_launch_are_not_waited_for(timed: Callable[..., Schedule]) -> None:
    schedule = timed(4)
    schedule.given_up("c", 1)
    assert str(schedule) == "4/6 points, 0 s left"


def test_a_resumed_run_counts_what_it_has(clock: Clock) -> None:
    schedule = Schedule([cell("b", 1)], 3, Expected(1.0, lambda point: 1.0), clock=clock)
    assert str(schedule) == "3/4 points"


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (3700, "1 h 01 min")])
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words

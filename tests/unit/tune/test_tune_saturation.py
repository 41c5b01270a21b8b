"""Whether a queue grows: a drift that only scatters is none, one that doubles the wait is."""

from __future__ import annotations

import numpy as np

from qwenbench.tune.saturation import grows


def test_a_wait_that_rises_all_the_time_is_over_saturation_and_scatter_is_not() -> None:
    random = np.random.default_rng(4)
    rising = 100 + 10 * np.arange(200) + random.exponential(50, 200)
    assert grows(rising)
    assert not grows(rising[:40]), "too few to say"
    assert not grows(rising[::-1])
    assert not grows(1000 + 0.5 * np.arange(200)), "sure, and too small to matter"
    steady = [grows(100 + random.exponential(50, 200)) for _ in range(200)]
    assert sum(steady) <= 5


def test_failed_requests_are_left_out() -> None:
    assert not grows([None] * 200)
    assert grows([None if place % 3 else 100.0 + 10 * place for place in range(600)])

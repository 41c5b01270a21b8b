"""Shares of requests against what must be: exact, at every count."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.analysis.intervals import ShareTest, at_most, breaks, share_test, shows


@given(st.integers(1, 60), st.integers(-1, 61), st.floats(0.01, 0.99))
def test_the_distribution_is_the_sum_of_its_terms(trials: int, count: int, share: float) -> None:
    by_hand = math.fsum(
        math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(min(count, trials) + 1)
    )
    assert at_most(count, trials, share) == pytest.approx(by_hand, abs=1e-9)


@pytest.mark.parametrize(("misses", "trials"), [(0, 299), (1, 473), (2, 628)])
def test_a_p99_needs_so_many_requests(misses: int, trials: int) -> None:
    assert share_test(trials - misses, trials, 0.99).verdict == "shown"
    assert share_test(trials - 1 - misses, trials - 1, 0.99).verdict == "open"


def test_what_128_requests_say() -> None:
    assert (share_test(128, 128, 0.99).verdict, share_test(128, 128, 0.99).further) == ("open", 171)
    assert share_test(122, 128, 0.99).verdict == "broken"
    assert (share_test(0, 0, 0.99).verdict, share_test(0, 0, 0.99).further) == ("open", 299)
    # exactly at the limit no number would do
    assert share_test(990, 1000, 0.99).further is None
    assert share_test(299, 299, 0.99).further == 0


@given(st.integers(0, 400), st.integers(0, 400), st.sampled_from([0.5, 0.9, 0.99]))
def test_verdicts_exclude_each_other_and_further_requests_settle(within: int, missed: int, needed: float) -> None:
    test = share_test(within, within + missed, needed)
    assert not (shows(test.within, test.trials, needed) and breaks(test.within, test.trials, needed))
    further = test.further
    if test.verdict == "open" and further is not None and test.trials:
        trials = test.trials + further
        lost = math.ceil(missed / test.trials * trials - 1e-9)
        assert share_test(trials - lost, trials, needed).verdict != "open"


def test_limits_are_called_wrongly_in_at_most_one_of_twenty_measurements() -> None:
    rng = np.random.default_rng(7)
    for share, wrong in ((0.9899, "shown"), (0.9901, "broken")):
        for trials in (128, 300, 1000):
            counts = rng.binomial(trials, share, 4000)
            called = sum(share_test(int(count), trials, 0.99).verdict == wrong for count in counts)
            assert called <= 0.06 * 4000, (share, trials)


def test_a_range_is_judged_by_both_its_ends() -> None:
    assert ShareTest(0.99, 400, 399, 400).verdict == "open"  # 399 of 400 do not show it
    assert ShareTest(0.9, 400, 380, 400).verdict == "shown"
    assert ShareTest(0.99, 400, 100, 385).verdict == "broken"

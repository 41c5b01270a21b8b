"""Token lengths: what may be written, and that draws stay within it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qwenbench.errors import UsageError
from qwenbench.workload.scenario import Lengths, parse_lengths

bounds = st.tuples(st.integers(1, 10_000), st.integers(1, 10_000)).map(sorted)


@given(bounds)
def test_both_spellings_are_read(pair: list[int]) -> None:
    low, high = pair
    assert parse_lengths(f"{low}-{high}", "--output-tokens") == Lengths(min=low, max=high)
    assert parse_lengths(f" {low} ", "--output-tokens") == Lengths.model_validate(low) == Lengths(min=low, max=low)


@pytest.mark.parametrize("text", ["", "0", "-5", "5-", "9-3", "1.5", "many", "1-2-3", "0-4", "99999999", "1e3"])
def test_anything_else_is_refused_with_the_option(text: str) -> None:
    with pytest.raises(UsageError, match=r"--output-tokens .*128 or 64-256"):
        parse_lengths(text, "--output-tokens")


@pytest.mark.parametrize(
    "fields",
    [{"min": 5, "max": 4}, {"min": 5, "max": 9, "median": 4}, {"min": 1, "max": 9, "sigma": 0}, True, [1], None],
)
def test_files_are_checked_too(fields: object) -> None:
    with pytest.raises(ValidationError):
        Lengths.model_validate(fields)


@given(bounds, st.integers(0, 2**32), st.booleans())
def test_draws_stay_within_their_bounds(pair: list[int], seed: int, log_normal: bool) -> None:
    low, high = pair
    lengths = Lengths(min=low, max=high, median=(low + high) // 2 if log_normal else None, sigma=3)
    random = np.random.default_rng(seed)
    assert all(low <= lengths.draw(random) <= high for _ in range(20))


def test_a_uniform_draw_reaches_both_ends() -> None:
    random = np.random.default_rng(1)
    assert {Lengths(min=3, max=5).draw(random) for _ in range(200)} == {3, 4, 5}


def test_a_log_normal_has_its_median_and_a_tail_to_the_right() -> None:
    random = np.random.default_rng(2)
    lengths = Lengths(min=1, max=100_000, median=120, sigma=0.7)
    drawn = np.array([lengths.draw(random) for _ in range(4000)])
    assert np.median(drawn) == pytest.approx(120, rel=0.05)
    assert np.mean(drawn) == pytest.approx(120 * np.exp(0.7**2 / 2), rel=0.06)  # mean of a log-normal

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from analysis_records import request, table
from hypothesis import given
from hypothesis import strategies as st
from point_contexts import point_context

from qwenbench.analysis.columns import METRICS
from qwenbench.analysis.intervals import (
    Estimate,
    critical_t,
    interval_of_means,
    percentile_variance,
    relative_half_width,
    two_level,
    two_sided_p,
)
from qwenbench.analysis.point import summarise_point
from qwenbench.analysis.run import point_frame, read_points
from qwenbench.analysis.statistics import summary_rows
from qwenbench.runfolder.cells import Cell, LoadPoint


@pytest.mark.parametrize(
    ("degrees", "t"), [(1, 12.7062), (2, 4.30265), (4, 2.77645), (9, 2.26216), (30, 2.04227), (1e7, 1.959964)]
)
def test_critical_t_agrees_with_the_tables(degrees: float, t: float) -> None:
    assert critical_t(degrees) == pytest.approx(t, rel=3e-6)
    assert two_sided_p(t, degrees) == pytest.approx(0.05, rel=2e-5)


@given(st.floats(0, 100), st.floats(1, 500))
def test_p_is_a_probability_and_symmetric(t: float, degrees: float) -> None:
    assert 0 <= two_sided_p(t, degrees) <= 1
    assert two_sided_p(t, degrees) == two_sided_p(-t, degrees)


def test_interval_of_means_by_hand() -> None:
    estimate = interval_of_means([10.0, 12.0, 14.0])
    assert (estimate.n, estimate.value) == (3, 12.0)
    assert estimate.half_width == pytest.approx(4.30265 * 2 / math.sqrt(3), rel=1e-5)  # s = 2
    assert (estimate.low + estimate.high) / 2 == pytest.approx(12.0)


def test_one_repeat_has_no_interval() -> None:
    estimate = interval_of_means([10.0, math.nan])
    assert (estimate.n, estimate.value, estimate.low, estimate.high) == (1, 10.0, None, None)
    assert interval_of_means([]).value is None
    assert relative_half_width([10.0]) is None


def test_relative_half_width_is_what_until_ci_compares() -> None:
    assert relative_half_width([100.0, 100.0, 100.0]) == 0.0
    assert relative_half_width([9.0, 10.0, 11.0]) == pytest.approx(4.30265 / math.sqrt(3) / 10, rel=1e-5)


def test_equal_repeats_still_have_the_uncertainty_of_their_requests() -> None:
    assert two_level([5.0, 5.0], None).se == 0.0
    assert two_level([5.0, 5.0], [4.0, 4.0]).se == pytest.approx(math.sqrt(4 / 2))
    # and where repeats differ more than that, the classical standard error stands
    assert two_level([0.0, 10.0], [0.01, 0.01]).se == pytest.approx(5.0)


def bootstrap_percentile(repeats: Sequence[np.ndarray], percent: float) -> Estimate:
    """The mean over repeats of a percentile, as `repeat_table` makes it from request records."""
    filled = [np.sort(sample) for sample in repeats if len(sample)]
    values = [float(np.percentile(sample, percent)) for sample in filled]
    return two_level(values, [percentile_variance(sample, percent) for sample in filled])


@pytest.mark.parametrize("percent", [50.0, 90.0, 99.0])
def test_percentile_variance_equals_that_of_plain_resampling(percent: float) -> None:
    rng = np.random.default_rng(1)
    values = np.sort(rng.gamma(4, 10, 300))
    plain = np.percentile(rng.choice(values, (4000, 300)), percent, axis=1)
    assert math.sqrt(percentile_variance(values, percent)) == pytest.approx(plain.std(), rel=0.12)


def test_bootstrap_percentile_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        shifts = rng.normal(0, 2, 3)  # repeats differ too, not only their requests
        estimate = bootstrap_percentile([rng.normal(100 + shift, 10, 200) for shift in shifts], 50.0)
        covered += estimate.low <= 100 <= estimate.high
    assert covered >= 184  # 95 % asked for; 92 % and more seen


@given(st.lists(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), min_size=1, max_size=5), st.floats(1, 99))
def test_bootstrap_percentile_never_fails_and_holds_its_value(samples: list[list[float]], percent: float) -> None:
    estimate = bootstrap_percentile([np.array(sample) for sample in samples], percent)
    assert estimate.n == len(samples)
    if estimate.low is not None:
        assert estimate.low <= estimate.value <= estimate.high


def rows_of(ttfts: dict[int, float], **fields: Any) -> tuple[pd.DataFrame, dict[str, Any]]:
    rows, tables = [], {}
    for repeat, ttft in ttfts.items():
        records = table([request(i * 1000, (i + 1) * 1000, ttft_ms=ttft + i % 5) for i in range(20)])
        context = point_context(repeat=repeat, **fields)
        row = summarise_point(records, None, None, context)
        rows.append(row)
        tables[Cell.of_row(row).cell_id] = records
    return point_frame(rows), tables


def test_summary_has_one_row_per_load_point_with_n_value_low_high() -> None:
    points, tables = rows_of({1: 100.0, 2: 110.0, 3: 120.0})
    summary = summary_rows(points, tables.get)
    assert len(summary) == 1
    row = summary.iloc[0]
    assert (row["config_id"], row["concurrency"], row["ttft_mean_n"]) == ("cap16-seq16", 1, 3)
    assert row["ttft_mean"] == pytest.approx(112.0)
    half = 4.30265 * 10 / math.sqrt(3)
    assert row["ttft_mean_high"] - row["ttft_mean"] == pytest.approx(half, rel=1e-4)
    assert row["ttft_p99_n"] == 0 and row["ttft_p99"] is None
    assert {f"{key}_low" for key in METRICS} <= set(summary.columns)


def test_summary_with_one_repeat_or_invalid_ones() -> None:
    points, _ = rows_of({1: 100.0})
    row = summary_rows(points).iloc[0]
    assert row["ttft_mean_n"] == 1 and row["ttft_mean_low"] is None
    points, _ = rows_of({1: 100.0, 2: 500.0})
    points.loc[1, "valid"] = False
    row = summary_rows(points).iloc[0]
    assert (row["ttft_mean_n"], row["ttft_mean"]) == (1, pytest.approx(102.0))
    assert len(summary_rows(point_frame([]))) == 0


def test_summary_survives_a_csv(tmp_path: Path) -> None:
    points, tables = rows_of({1: 100.0, 2: 104.0})
    points.to_csv(tmp_path / "points.csv", index=False)
    again = summary_rows(read_points(tmp_path / "points.csv"), tables.get)
    assert again.iloc[0]["ttft_mean"] == pytest.approx(104.0)
    assert again.iloc[0]["ttft_mean_low"] == pytest.approx(summary_rows(points, tables.get).iloc[0]["ttft_mean_low"])


@pytest.mark.parametrize(("concurrency", "rate"), [(8, None), (None, 2.5), (None, None)])
def test_cell_ids_are_the_sweeps_own(concurrency: int | None, rate: float | None) -> None:
    cell = Cell("cap16-seq16", 2, LoadPoint("math x", "instruct-general", concurrency, rate, 3))
    row = {"config_id": "cap16-seq16", "launch": 2, "scenario": "math x", "profile": "instruct-general",
           "concurrency": concurrency, "rate": rate, "repeat": 3}  # fmt: skip
    assert Cell.of_row(row).cell_id == cell.cell_id

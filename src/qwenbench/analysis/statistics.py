"""Intervals over repeats: Student's t for means, a two-level bootstrap for percentiles. See docs/statistics.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from qwenbench.analysis.cells import LOAD_POINT, cell_id_of, latencies_in_window, row_records, valid_rows
from qwenbench.analysis.columns import METRICS
from qwenbench.analysis.request_arrays import Floats
from qwenbench.analysis.student import critical_t

CONFIDENCE = 0.95
DRAWS = 500
"""Resamples per percentile: the standard error that comes of them is good to about 3 %."""

RequestsOf = Callable[[str], pa.Table | None]
"""Cell id -> its request records, or None when they are not at hand (Run.requests)."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over repeats with its standard error. `se` is None with fewer than two repeats."""

    n: int
    value: float | None
    se: float | None = None

    @property
    def degrees(self) -> int:
        """Degrees of freedom of the standard error."""
        return self.n - 1

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % interval."""
        return None if self.se is None else critical(self.degrees) * self.se

    @property
    def low(self) -> float | None:
        """Lower end of the 95 % interval; None with one repeat, which is only indicative."""
        return None if self.half_width is None or self.value is None else self.value - self.half_width

    @property
    def high(self) -> float | None:
        """Upper end of the 95 % interval."""
        return None if self.half_width is None or self.value is None else self.value + self.half_width


def interval_of_means(values: Sequence[float]) -> Estimate:
    """Mean of the repeats' values with Student's t interval. NaN values are left out."""
    return two_level([value for value in values if not math.isnan(value)], None)


def bootstrap_percentile(repeats: Sequence[Floats], percent: float) -> Estimate:
    """Mean over repeats of a percentile of each repeat's requests, with its interval.

    The standard error is that of resampling repeats first, then requests (see `two_level`).
    Repeats without values are left out.
    """
    filled = [values for values in repeats if len(values)]
    values = [float(np.percentile(sample, percent)) for sample in filled]
    return two_level(values, [percentile_variance(np.sort(sample), percent) for sample in filled])


def two_level(values: Sequence[float], within: Sequence[float] | None) -> Estimate:
    """Mean over R repeats; `within` is the variance of each repeat's value when its requests are resampled.

    Resampling repeats with replacement, then the requests of each, gives the mean a variance of
    (population variance of the values + mean of `within`) / R: the exact variance of the two-level bootstrap
    (Davison & Hinkley 1997, section 3.8). With few repeats that is too small by (R - 1)/R where repeats differ
    more than their requests explain, so it is never taken smaller than the classical s^2 / R.
    """
    count = len(values)
    if count == 0:
        return Estimate(0, None)
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(1, mean)
    squares = math.fsum((value - mean) ** 2 for value in values)
    variance = squares / (count - 1) / count
    if within is not None:
        variance = max(variance, (squares / count + math.fsum(within) / count) / count)
    return Estimate(count, mean, math.sqrt(variance))


def combined(parts: Sequence[tuple[float, Estimate]]) -> Estimate:
    """A weighted sum of independent estimates; unknown where a part is. The least repeated part sets `n`."""
    count = min(estimate.n for _, estimate in parts)
    values = [estimate.value for _, estimate in parts]
    if any(value is None for value in values):
        return Estimate(0, None)
    value = math.fsum(weight * estimate.value for weight, estimate in parts if estimate.value is not None)
    errors = [weight * estimate.se for weight, estimate in parts if estimate.se is not None]
    return Estimate(count, value, math.hypot(*errors) if len(errors) == len(parts) else None)


def mean_variance(values: Floats) -> float:
    """Variance of the mean of resampled requests."""
    return float(values.var()) / len(values)


def percentile_variance(ordered: Floats, percent: float) -> float:
    """Variance of a percentile (numpy's linear method) of resampled requests; `ordered` ascending.

    The k-th smallest of n values drawn with replacement from `ordered` is its quantile at U, where U is the
    k-th smallest of n uniforms: Beta(k, n - k + 1). So only U is drawn, not n values (Efron 1979).
    """
    if len(ordered) < 2:
        return 0.0
    lower, upper, share = _drawn_positions(len(ordered), percent)
    below = ordered[lower]
    return float((below + share * (ordered[upper] - below)).var())


@lru_cache(maxsize=2048)
def _drawn_positions(count: int, percent: float) -> tuple[NDArray[np.int64], NDArray[np.int64], float]:
    """Positions in the ordered values of the two neighbours of a resample's percentile, and the share of the upper."""
    rng = np.random.default_rng([count, round(percent * 1000)])
    place = (count - 1) * percent / 100
    k = min(int(place), count - 2)
    first = rng.beta(k + 1, count - k, DRAWS)
    second = first + (1 - first) * rng.beta(1, count - k - 1, DRAWS)
    lower, upper = (np.minimum((u * count).astype(np.int64), count - 1) for u in (first, second))
    return lower, upper, place - k


def relative_half_width(values: Sequence[float]) -> float | None:
    """Half the 95 % interval of the repeats' mean / the mean: what --until-ci compares. None under two repeats."""
    estimate = interval_of_means(values)
    if estimate.half_width is None or not estimate.value:
        return None
    return estimate.half_width / abs(estimate.value)


@lru_cache(maxsize=256)
def critical(degrees: int) -> float:
    """Half of a 95 % interval in standard errors, with so many degrees of freedom."""
    return critical_t(degrees, CONFIDENCE)


def estimates_of(rows: pd.DataFrame, requests_of: RequestsOf | None = None) -> dict[str, Estimate]:
    """Metric -> estimate over the valid repeats (and launches) of one load point.

    `rows` are its rows of points.csv. With request records the latencies' intervals come from the
    two-level bootstrap, else from the repeats alone. ITL's always do: gaps of one request are not independent.
    """
    valid = valid_rows(rows)
    samples = _samples(valid, requests_of) if len(valid) > 1 else None
    found = {}
    for key, column in METRICS.items():
        if column.name not in valid:
            found[key] = Estimate(0, None)
            continue
        values = pd.to_numeric(valid[column.name]).to_numpy(dtype=np.float64)
        known = ~np.isnan(values)
        within = _within(key, [sample for sample, has in zip(samples, known, strict=True) if has]) if samples else None
        found[key] = two_level(values[known].tolist(), within)
    return found


def _samples(rows: pd.DataFrame, requests_of: RequestsOf | None) -> list[dict[str, Floats]] | None:
    """Ordered latencies by name, for each row; None when any row's records are missing."""
    if requests_of is None:
        return None
    samples = []
    for row in row_records(rows):
        requests = requests_of(cell_id_of(row))
        if requests is None:
            return None
        samples.append({name: np.sort(values) for name, values in latencies_in_window(requests, row).items()})
    return samples


def _within(key: str, samples: Sequence[Mapping[str, Floats]]) -> list[float] | None:
    name, _, statistic = key.rpartition("_")
    if any(name not in sample or len(sample[name]) == 0 for sample in samples):
        return None
    if statistic == "mean":
        return [mean_variance(sample[name]) for sample in samples]
    return [percentile_variance(sample[name], float(statistic[1:])) for sample in samples]


def summary_rows(points: pd.DataFrame, requests_of: RequestsOf | None = None) -> pd.DataFrame:
    """points_summary.csv: one row per load point with METRIC, METRIC_n, METRIC_low and METRIC_high for each metric.

    `points` is points.csv. METRIC is the mean over valid repeats under the metric's key (`ttft_p99`);
    low and high are empty with one repeat.
    """
    rows: list[dict[str, Any]] = []
    if len(points):
        by = [name for name in LOAD_POINT if name in points]
        for group, members in points.groupby(by, dropna=False, sort=False):
            row: dict[str, Any] = dict(zip(by, group, strict=True))
            for key, estimate in estimates_of(members, requests_of).items():
                row |= {
                    key: estimate.value,
                    f"{key}_n": estimate.n,
                    f"{key}_low": estimate.low,
                    f"{key}_high": estimate.high,
                }
            rows.append(row)
    return pd.DataFrame(rows, columns=summary_columns())


def summary_columns() -> list[str]:
    """The columns of points_summary.csv."""
    return [*LOAD_POINT, *(name for key in METRICS for name in (key, f"{key}_n", f"{key}_low", f"{key}_high"))]

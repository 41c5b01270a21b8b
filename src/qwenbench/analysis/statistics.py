"""Figures over the repeats of each load point, with 95 % intervals: points_summary.csv. See docs/statistics.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from qwenbench.analysis.columns import METRICS
from qwenbench.analysis.intervals import Estimate, mean_variance, percentile_variance, standard_error
from qwenbench.analysis.request_arrays import COLUMNS, Floats, RequestArrays
from qwenbench.analysis.run import LOAD_POINT, Point, records
from qwenbench.analysis.window import CLOSED, Window, window_of
from qwenbench.runfolder.damage import table_or_none
from qwenbench.runfolder.names import RunPaths

KEYS = tuple(METRICS)
_REPEAT = ("launch", "repeat", "seed")
READERS = 2
"""Threads that read request records: most of the time goes there, and it frees the interpreter."""
RequestsOf = Callable[[str], pa.Table | None]
"""Cell id -> its request records, or None when they are not at hand (Run.requests)."""


@dataclass(frozen=True, slots=True)
class RepeatTable:
    """Every metric of every load point over its valid repeats and launches. Arrays are load points x KEYS."""

    load_points: tuple[Mapping[str, Any], ...]
    """LOAD_POINT columns of each; unknown ones None."""
    n: NDArray[np.int64]
    value: Floats
    """Mean over the repeats; NaN where no repeat has one."""
    se: Floats
    """Standard error; NaN under two repeats."""
    values: Floats
    """Every repeat's own figures, points x KEYS; NaN where unknown or invalid."""
    group: NDArray[np.int64]
    """The load point of each of them."""
    repeats: tuple[tuple[Any, ...], ...]
    """(launch, repeat, seed) of each of them."""

    @property
    def launches(self) -> NDArray[np.int64]:
        """Launches with a valid point, by load point."""
        seen: list[set[Any]] = [set() for _ in self.load_points]
        for row in np.flatnonzero((~np.isnan(self.values)).any(axis=1)):
            seen[self.group[row]].add(self.repeats[row][0])
        return np.array([len(launches) for launches in seen], dtype=np.int64)

    def repeats_of(self, index: int) -> dict[tuple[Any, ...], Floats]:
        """(launch, repeat, seed) -> figures, of the valid repeats of one load point."""
        rows = np.flatnonzero(self.group == index)
        return {self.repeats[row]: self.values[row] for row in rows if not np.isnan(self.values[row]).all()}

    def estimates(self, index: int) -> dict[str, Estimate]:
        """Metric -> estimate of one load point."""
        columns = zip(KEYS, self.n[index].tolist(), self.value[index].tolist(), self.se[index].tolist(), strict=True)
        return {key: Estimate(n, v if n else None, se if n > 1 else None, floor=0.0) for key, n, v, se in columns}


def requests_under(folder: Path) -> RequestsOf:
    """Reads the request records of a run's cells without their gaps, which are most of the bytes."""
    paths = RunPaths(folder)

    def read(cell_id: str) -> pa.Table | None:
        cost = "intervals of its point come from repeats alone"
        return table_or_none(paths.cell_requests(cell_id), cost, columns=list(COLUMNS))

    return read


def repeat_table(points: pd.DataFrame, requests_of: RequestsOf | None = None) -> RepeatTable:
    """All load points of points.csv with their estimates.

    With request records the intervals of latencies come from the two-level bootstrap, else from the repeats alone.
    Those of rates always do, and those of ITL: gaps of one request are not independent.
    """
    numbers = points.groupby(list(LOAD_POINT), dropna=False, sort=False).ngroup()
    group: NDArray[np.int64] = np.asarray(numbers, dtype=np.int64)
    count = int(group.max()) + 1 if len(group) else 0
    first = np.unique(group, return_index=True)[1]
    names = records(points.iloc[first], LOAD_POINT)
    values = np.full((len(points), len(KEYS)), np.nan)
    for place, column in enumerate(METRICS.values()):
        values[:, place] = points[column.name].to_numpy(dtype=np.float64, na_value=np.nan)
    values[~points["valid"].to_numpy(dtype=np.bool_, na_value=False)] = np.nan
    seen = ~np.isnan(values)
    n = _summed(group, count, seen.astype(np.float64))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = _summed(group, count, np.where(seen, values, 0.0)) / n
        squares = _summed(group, count, np.where(seen, (values - mean[group]) ** 2, 0.0))
        # unknown for one repeat, it is unknown for the load point
        within = _summed(group, count, np.where(seen, _within(points, seen, group, requests_of), 0.0)) / n
        error = standard_error(n, squares, within)
    repeats = tuple(tuple(row.values()) for row in records(points, _REPEAT))
    return RepeatTable(tuple(names), n.astype(np.int64), mean, error, values, group, repeats)


def _summed(group: NDArray[np.int64], count: int, values: Floats) -> Floats:
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, group, values)
    return sums


def _within(
    points: pd.DataFrame, seen: NDArray[np.bool_], group: NDArray[np.int64], requests_of: RequestsOf | None
) -> Floats:
    """Variance of each point's figures when its requests are resampled (points x KEYS); NaN where not known."""
    within = np.full(seen.shape, np.nan)
    if requests_of is None:
        return within
    usable = seen.any(axis=1)
    repeated = usable & (np.bincount(group[usable], minlength=int(group.max()) + 1)[group] > 1)
    rows = map(Point.of, records(points[repeated]))
    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(partial(_cell_variances, requests_of), rows))
    if found:
        within[repeated] = found
    return within


def _cell_variances(requests_of: RequestsOf, point: Point) -> list[float]:
    requests = requests_of(point.cell.cell_id)
    latencies = latencies_in_window(requests, point) if requests is not None else {}
    ordered = {name: np.sort(values) for name, values in latencies.items() if len(values)}
    return [_variance(ordered, *key.rpartition("_")[::2]) for key in KEYS]


def latencies_in_window(requests: pa.Table, point: Point) -> dict[str, Floats]:
    """ttft, ttfo, tpot and e2e (ms, no NaN) of the requests that a point's latency columns were made of.

    Empty when nothing succeeded, or when the point's window is not known.
    """
    arrays = RequestArrays.of(requests)
    window = window_of_point(arrays, point)
    if window is None:
        return {}
    started = window.holds_start(arrays.begin_ns) & arrays.ok
    picked = {name: values[started] for name, values in arrays.latencies_ms().items()}
    return {name: values[~np.isnan(values)] for name, values in picked.items()}


def window_of_point(arrays: RequestArrays, point: Point) -> Window | None:
    """The window that a point's figures are of.

    Of runs of before it was kept it follows from the requests alone in a closed loop; in an open loop it does not.
    """
    if point.window is not None:
        return point.window
    return window_of(arrays, CLOSED, point.cell.point.concurrency) if point.load_shape == CLOSED else None


def _variance(ordered: Mapping[str, Floats], name: str, statistic: str) -> float:
    if name not in ordered:
        return float("nan")
    values = ordered[name]
    return mean_variance(values) if statistic == "mean" else percentile_variance(values, float(statistic[1:]))


def summary_rows(points: pd.DataFrame, requests_of: RequestsOf | None = None) -> pd.DataFrame:
    """points_summary.csv: one row per load point with METRIC, METRIC_n, METRIC_low and METRIC_high for each metric.

    `points` is points.csv. METRIC is the mean over valid repeats under the metric's key (`ttft_p99`);
    low and high are empty with one repeat.
    """
    table = repeat_table(points, requests_of)
    rows = [
        [
            *load_point.values(),
            *(figure for e in table.estimates(index).values() for figure in (e.value, e.n, e.low, e.high)),
        ]
        for index, load_point in enumerate(table.load_points)
    ]
    return pd.DataFrame(rows, columns=summary_columns())


def summary_columns() -> list[str]:
    """The columns of points_summary.csv."""
    return [*LOAD_POINT, *(name for key in METRICS for name in (key, f"{key}_n", f"{key}_low", f"{key}_high"))]

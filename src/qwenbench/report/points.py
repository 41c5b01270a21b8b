"""Load points over their repeats, one value with an interval per metric, and their time lines, thinned out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from qwenbench.analysis.columns import METRICS
from qwenbench.analysis.intervals import interval_of_means
from qwenbench.analysis.request_arrays import Floats
from qwenbench.analysis.run import LOAD_POINT, Run, level_of, records
from qwenbench.analysis.server_samples import column_values
from qwenbench.runfolder.cells import Cell, load_label
from qwenbench.runfolder.damage import if_readable
from qwenbench.runfolder.names import AT, RunPaths

Estimate = tuple[float, float | None, float | None]
"""Value, low and high (95 %). Low and high are None where one repeat gives no interval."""
Row = Mapping[str, Any]
"""A row of points.csv or points_summary.csv by column; None: not known."""
Summary = Mapping[tuple[Any, ...], Row]
"""Load point -> its row of points_summary.csv."""


@dataclass(frozen=True, slots=True)
class PointView:
    """One load point of one configuration, over its repeats and launches."""

    config: str
    workload: str
    level: float | None
    """Client streams, or sessions per second of an open loop."""
    load: str
    """The same for people: `32`, `2/s`, `trace`."""
    n: int
    """Repeats that the estimates stand on."""
    launches: int
    """Launches that they are of."""
    valid: bool
    invalid_reason: str | None
    bound: str | None
    bound_all: str | None
    requests_that_fit: float | None
    kv_cache_gib: float | None
    requests_failed: int
    metrics: Mapping[str, Estimate]


def quick_to_filter(points: pd.DataFrame) -> pd.DataFrame:
    """The same table, laid out for many small selections of rows: columns of one type lie side by side, and strings
    are Python's own. A run of 1,000 points takes a quarter of the time that way."""
    words = {name: object for name, kind in points.dtypes.items() if isinstance(kind, pd.StringDtype)}
    return points.astype(words).copy()


def workload_names(points: pd.DataFrame) -> pd.Series[str]:
    """Each row's workload: the scenario, with its profile where one scenario was run under several."""
    scenario = points["scenario"].astype("string").fillna("")
    profile = points["profile"].astype("string").fillna("")
    several = profile.groupby(scenario).transform("nunique") > 1
    return scenario.where(~several, scenario + " · " + profile).astype(str)


def workload_index(points: pd.DataFrame) -> dict[tuple[str, str], str]:
    """(scenario, profile) -> the workload."""
    keys = zip(points["scenario"].astype(str), points["profile"].astype(str), strict=True)
    return dict(zip(keys, workload_names(points), strict=True))


def read_summary(path: Path) -> Summary:
    """points_summary.csv by load point; empty when the folder was shipped without it."""
    table = if_readable(pd.read_csv, path, "intervals come from repeats alone")
    if table is None or not set(LOAD_POINT) <= {"machine", *table.columns}:
        return {}
    return {_key(row): row for row in records(table)}


def point_views(points: pd.DataFrame, summary: Summary | None = None) -> tuple[PointView, ...]:
    """One view per load point, in the order of the configurations' first appearance and of rising load.

    Intervals come from `summary`, which the sweep made with the request records; a load point that it lacks gets
    those over its repeats alone.
    """
    if points.empty:
        return ()
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in records(points.assign(_workload=workload_names(points))):
        groups.setdefault(_key(row), []).append(row)
    views = [_view(rows, (summary or {}).get(key)) for key, rows in groups.items()]
    order = {config: index for index, config in enumerate(dict.fromkeys(points["config_id"].astype(str)))}
    return tuple(sorted(views, key=lambda view: (order[view.config], view.workload, view.level or 0.0)))


def _view(rows: list[Row], summary: Row | None) -> PointView:
    first, usable = rows[0], [row for row in rows if row["valid"]]
    used = usable or rows  # invalid points are shown too, hollow, so theirs are taken as they are
    return PointView(
        config=str(first["config_id"]),
        workload=str(first["_workload"]),
        level=level_of(first),
        load=load_label(first["concurrency"], first["rate"], short=True),
        n=len(used),
        launches=len({row["launch"] for row in used}),
        valid=bool(usable),
        invalid_reason=None if usable else _joined(rows, "invalid_reason"),
        bound=max(bounds, key=bounds.count) if (bounds := _words(used, "bound")) else None,
        bound_all=_joined(used, "bound_all"),
        requests_that_fit=next(iter(_numbers(used, "requests_that_fit")), None),
        kv_cache_gib=next(iter(_numbers(used, "kv_cache_gib")), None),
        requests_failed=int(sum(_numbers(rows, "requests_failed"))),
        metrics=_summarised(summary) if usable and summary is not None else _over_repeats(used),
    )


def _key(row: Row) -> tuple[Any, ...]:
    return (str(row["config_id"]).partition(AT)[0], *(row.get(name) for name in LOAD_POINT[1:]))


def _summarised(row: Row) -> dict[str, Estimate]:
    return {
        key: short_estimate(row[key], row.get(f"{key}_low"), row.get(f"{key}_high"))
        for key in METRICS
        if row.get(key) is not None
    }


def _over_repeats(rows: list[Row]) -> dict[str, Estimate]:
    means = {key: interval_of_means(_numbers(rows, column.name)) for key, column in METRICS.items()}
    bounded = {key: replace(mean, floor=0.0) for key, mean in means.items()}
    return {key: short_estimate(m.value, m.low, m.high) for key, m in bounded.items() if m.value is not None}


def short_estimate(value: float, low: float | None, high: float | None) -> Estimate:
    """Value, low and high to six significant digits: more than any clock here gives, and a third of the file's size."""
    below, above = (None if bound is None else float(f"{bound:.6g}") for bound in (low, high))
    return (float(f"{value:.6g}"), below, above)


def _numbers(rows: list[Row], name: str) -> list[float]:
    return [float(row[name]) for row in rows if row.get(name) is not None]


def _words(rows: list[Row], name: str) -> list[str]:
    return [str(row[name]) for row in rows if row.get(name)]


def _joined(rows: list[Row], name: str) -> str | None:
    return "; ".join(dict.fromkeys(_words(rows, name))) or None


MOST_TIMELINES = 160
"""Points that carry a time line; with MOST_SAMPLES this keeps them under about 1.5 MB of the page."""
MOST_SAMPLES = 160
"""Instants kept of each stream of samples."""

Series = tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class TimelineView:
    """What was watched while one load point ran, thinned out. All series are as long as their own time axis."""

    config: str
    workload: str
    level: float | None
    repeat: int
    t: Series
    """Seconds from the first sample, of the server's metrics."""
    running: Series
    waiting: Series
    kv_cache_usage: Series
    preemptions: Series
    """Since the first sample."""
    output_tokens_per_s: Series
    vram_t: Series
    """Seconds from the same instant, of the VRAM samples."""
    vram_gib: Series


def timelines(run: Run) -> tuple[tuple[TimelineView, ...], int]:
    """The time lines of up to MOST_TIMELINES points, and how many points with samples were left out.

    One repeat of each point; where there are too many, they are taken evenly over the run's points, so that every
    configuration and load keeps some.
    """
    if run.points.empty:
        return (), 0
    points = run.points.assign(_workload=workload_names(run.points))
    first = records(points.drop_duplicates(["config_id", "_workload", "concurrency", "rate"]))
    rows = [row for row in first if _has_samples(run, row)]
    chosen = rows
    if len(rows) > MOST_TIMELINES:
        chosen = [rows[index] for index in np.linspace(0, len(rows) - 1, MOST_TIMELINES).round().astype(int)]
    views = [view for row in chosen if (view := _timeline(run, row)) is not None]
    return tuple(views), len(rows) - len(chosen)


def _has_samples(run: Run, row: Row) -> bool:
    paths, config, cell = RunPaths(run.path), str(row["config_id"]), Cell.of_row(row).cell_id
    return paths.metrics_samples(config, cell).exists() or paths.nvml_samples(config, cell).exists()


def _timeline(run: Run, row: Row) -> TimelineView | None:
    config, cell = str(row["config_id"]), Cell.of_row(row).cell_id
    metrics, nvml = (
        table if table is not None and table.num_rows else None
        for table in (run.metrics(config, cell), run.nvml(config, cell))
    )
    starts = [table["t_ns"][0].as_py() for table in (metrics, nvml) if table is not None]
    if not starts:
        return None
    series = _server_series(metrics, min(starts)) | _vram_series(metrics, nvml, min(starts))
    return TimelineView(config, str(row["_workload"]), level_of(row), int(row["repeat"]), **series)


_GAUGES = ("running", "waiting", "kv_cache_usage")


def _server_series(table: pa.Table | None, start: int) -> dict[str, Series]:
    if table is None:
        return dict.fromkeys(("t", *_GAUGES, "preemptions", "output_tokens_per_s"), ())
    t, lost = (table["t_ns"].to_numpy() - start) / 1e9, column_values(table, "preemptions_total")
    gauges = {name: column_values(table, name) for name in _GAUGES}
    rate = _rate(t, column_values(table, "generation_tokens_total"))
    return thinned({"t": t, **gauges, "preemptions": lost - lost[0], "output_tokens_per_s": rate})


def _vram_series(metrics: pa.Table | None, nvml: pa.Table | None, start: int) -> dict[str, Series]:
    """NVML's, the largest card at each instant; the simulator's own figure where there is no NVML."""
    if nvml is not None:
        used = nvml.select(["t_ns", "used_mib"]).to_pandas().groupby("t_ns")["used_mib"].max()
    elif metrics is not None:
        used = pd.Series(column_values(metrics, "vram_used_mib"), metrics["t_ns"].to_numpy())
    else:
        used = pd.Series(dtype=float)
    used = used.dropna()
    return thinned({"vram_t": (used.index.to_numpy() - start) / 1e9, "vram_gib": used.to_numpy() / 1024})


def _rate(t: Floats, counter: Floats) -> Floats:
    """Per second between samples; unknown at the first, and where the counter fell (the server restarted)."""
    step, gained = np.diff(t, prepend=np.nan), np.diff(counter, prepend=np.nan)
    rate: Floats = np.full(len(t), np.nan)
    np.divide(gained, step, out=rate, where=(step > 0) & (gained >= 0))
    return rate


_MEANS = {"t": 2, "vram_t": 2, "output_tokens_per_s": 1}
"""Series of which each group keeps the mean -> decimal places."""


def thinned(columns: Mapping[str, Floats]) -> dict[str, Series]:
    """Columns of one length over at most MOST_SAMPLES groups of neighbours. Peaks must not be thinned away, so gauges
    keep the largest of each group; times and rates their mean."""
    length = len(next(iter(columns.values())))
    if not length:
        return dict.fromkeys(columns, ())
    starts = np.linspace(0, length, min(length, MOST_SAMPLES) + 1).round().astype(int)[:-1]
    found: dict[str, Series] = {}
    for name, values in columns.items():
        kept = np.fmax.reduceat(values, starts)
        if name in _MEANS:
            known = np.add.reduceat((~np.isnan(values)).astype(int), starts)
            kept = np.add.reduceat(np.nan_to_num(values), starts) / np.where(known, known, np.nan)
        digits = _MEANS.get(name, 3)
        found[name] = tuple(None if np.isnan(value) else round(float(value), digits) for value in kept)
    return found

"""Load points over their repeats, one value with an interval per metric, and their time lines, thinned out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qwenbench.analysis.columns import METRICS
from qwenbench.analysis.intervals import interval_of_means
from qwenbench.analysis.run import LOAD_POINT, records
from qwenbench.analysis.server_samples import column_values
from qwenbench.runfolder.cells import Cell, load_label
from qwenbench.runfolder.damage import if_readable
from qwenbench.runfolder.names import AT, RunPaths

Estimate = tuple[float, float | None, float | None]
"""Value, low and high (95 %). Low and high are None where one repeat gives no interval."""
Row = Mapping[str, Any]
"""A row of points.csv or points_summary.csv by column."""
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
    running_peak: float | None
    waiting_peak: float | None
    preemptions: float | None
    requests_ok: int
    requests_failed: int
    metrics: Mapping[str, Estimate]


def quick_to_filter(points: pd.DataFrame) -> pd.DataFrame:
    """The same table, laid out for many small selections of rows: columns of one type lie side by side, and strings
    are Python's own. A run of 1,000 points takes a quarter of the time that way."""
    words = {name: object for name, kind in points.dtypes.items() if isinstance(kind, pd.StringDtype)}
    return points.astype(words).copy()


def known(value: Any) -> Any:
    """The value as a plain Python one, None for NaN and other unknowns."""
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, float | np.floating) and not np.isfinite(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


def workload_names(points: pd.DataFrame) -> pd.Series[str]:
    """Each row's workload: the scenario, with its profile where one scenario was run under several."""
    scenario = points["scenario"].astype("string").fillna("")
    profile = points["profile"].astype("string").fillna("")
    several = profile.groupby(scenario).transform("nunique") > 1
    return scenario.where(~several, scenario + " · " + profile).astype(str)


def workload_index(points: pd.DataFrame) -> dict[tuple[str, str], str]:
    names = workload_names(points)
    keys = zip(points["scenario"].astype(str), points["profile"].astype(str), strict=True)
    return dict(zip(keys, names, strict=True))


def level_of(row: Mapping[Any, Any]) -> float | None:
    """Client streams of a closed loop, else the scheduled rate; None for a trace."""
    for name in ("concurrency", "rate"):
        value = known(row.get(name))
        if value is not None:
            return float(value)
    return None


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
    views = [_view(key, rows, summary or {}) for key, rows in groups.items()]
    order = {config: index for index, config in enumerate(dict.fromkeys(points["config_id"].astype(str)))}
    return tuple(sorted(views, key=lambda view: (order[view.config], view.workload, view.level or 0.0)))


def _view(key: tuple[Any, ...], rows: list[Row], summary: Summary) -> PointView:
    usable = [row for row in rows if is_true(row.get("valid", True))]
    valid = bool(usable)
    # invalid points are shown too, hollow, so theirs are taken as they are
    used = usable or rows
    return PointView(
        config=str(rows[0]["config_id"]),
        workload=str(rows[0]["_workload"]),
        level=level_of(rows[0]),
        load=load_label(known(rows[0].get("concurrency")), known(rows[0].get("rate")), short=True),
        n=len(used),
        launches=len({known(row.get("launch")) for row in used}),
        valid=valid,
        invalid_reason=None if valid else _joined(rows, "invalid_reason"),
        bound=_most_common(used, "bound"),
        bound_all=_joined(used, "bound_all"),
        requests_that_fit=next(iter(_numbers(used, "requests_that_fit")), None),
        kv_cache_gib=next(iter(_numbers(used, "kv_cache_gib")), None),
        running_peak=max(_numbers(used, "running_peak"), default=None),
        waiting_peak=max(_numbers(used, "waiting_peak"), default=None),
        preemptions=max(_numbers(used, "preemptions"), default=None),
        requests_ok=int(sum(_numbers(rows, "requests_ok"))),
        requests_failed=int(sum(_numbers(rows, "requests_failed"))),
        metrics=_summarised(summary[key]) if valid and key in summary else _over_repeats(used),
    )


def is_true(value: Any) -> bool:
    """Whether a cell of a column of booleans, or of their words, says true."""
    return str(value).lower() in ("true", "1", "1.0")


def _key(row: Row) -> tuple[Any, ...]:
    return (str(row["config_id"]).partition(AT)[0], *(known(row.get(name)) for name in LOAD_POINT[1:]))


def _summarised(row: Row) -> dict[str, Estimate]:
    found = {}
    for key in METRICS:
        value = known(row.get(key))
        if value is not None:
            found[key] = short_estimate(value, known(row.get(f"{key}_low")), known(row.get(f"{key}_high")))
    return found


def _over_repeats(rows: list[Row]) -> dict[str, Estimate]:
    found = {}
    for key, column in METRICS.items():
        mean = replace(interval_of_means(_numbers(rows, column.name)), floor=0.0)
        if mean.value is not None:
            found[key] = short_estimate(mean.value, mean.low, mean.high)
    return found


def short_estimate(value: float, low: float | None, high: float | None) -> Estimate:
    """Value, low and high to six significant digits: more than any clock here gives, and a third of the file's size."""
    below, above = (None if bound is None else float(f"{bound:.6g}") for bound in (low, high))
    return (float(f"{value:.6g}"), below, above)


def _numbers(rows: list[Row], name: str) -> list[float]:
    found = (known(row.get(name)) for row in rows)
    return [float(value) for value in found if isinstance(value, int | float)]


def _words(rows: list[Row], name: str) -> list[str]:
    return [str(word) for row in rows if (word := known(row.get(name))) not in (None, "")]


def _most_common(rows: list[Row], name: str) -> str | None:
    words = _words(rows, name)
    return max(words, key=words.count) if words else None


def _joined(rows: list[Row], name: str) -> str | None:
    return "; ".join(dict.fromkeys(_words(rows, name))) or None


if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from qwenbench.analysis.run import Run

MOST_TIMELINES = 160
"""Points that carry a time line; with MOST_SAMPLES this keeps them under about 1.5 MB of the page."""
MOST_SAMPLES = 160
"""Instants kept of each stream of samples."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TimelineView:
    """What was watched while one load point ran, thinned out. All series are as long as their own time axis."""

    config: str
    workload: str
    level: float | None
    repeat: int
    t: tuple[float, ...]
    """Seconds from the first sample, of the server's metrics."""
    running: tuple[float | None, ...]
    waiting: tuple[float | None, ...]
    kv_cache_usage: tuple[float | None, ...]
    preemptions: tuple[float | None, ...]
    """Since the first sample."""
    output_tokens_per_s: tuple[float | None, ...]
    vram_t: tuple[float, ...]
    """Seconds from the same instant, of the VRAM samples."""
    vram_gib: tuple[float | None, ...]


def timelines(run: Run) -> tuple[tuple[TimelineView, ...], int]:
    """The time lines of up to MOST_TIMELINES points, and how many points with samples were left out.

    One repeat of each point; where there are too many, they are taken evenly over the run's points, so that every
    configuration and load keeps some.
    """
    if run.points.empty:
        return (), 0
    points = run.points.assign(_workload=workload_names(run.points))
    keys = [name for name in ("config_id", "_workload", "concurrency", "rate") if name in points]
    first = points.drop_duplicates(keys)
    rows = [row for _, row in first.iterrows() if _has_samples(run, row)]
    chosen = rows
    if len(rows) > MOST_TIMELINES:
        chosen = [rows[index] for index in np.linspace(0, len(rows) - 1, MOST_TIMELINES).round().astype(int)]
    views = [view for row in chosen if (view := _timeline(run, row)) is not None]
    return tuple(views), len(rows) - len(chosen)


def _has_samples(run: Run, row: pd.Series[Any]) -> bool:
    paths, config, cell = RunPaths(run.path), str(row["config_id"]), _cell(row)
    samples = (paths.metrics_samples(config, cell), paths.nvml_samples(config, cell))
    return any(path.exists() for path in samples)


def _cell(row: pd.Series[Any]) -> str:
    return Cell.of_row(row.to_dict()).cell_id


def _timeline(run: Run, row: pd.Series[Any]) -> TimelineView | None:
    config, cell = str(row["config_id"]), _cell(row)
    metrics, nvml = run.metrics(config, cell), run.nvml(config, cell)
    starts = [table["t_ns"][0].as_py() for table in (metrics, nvml) if table is not None and table.num_rows]
    if not starts:
        return None
    start = min(starts)
    t, series = _server_series(metrics, start)
    vram_t, vram = _vram_series(metrics, nvml, start)
    return TimelineView(
        config=config,
        workload=str(row["_workload"]),
        level=level_of(row.to_dict()),
        repeat=int(row["repeat"]),
        t=t,
        running=series["running"],
        waiting=series["waiting"],
        kv_cache_usage=series["kv_cache_usage"],
        preemptions=series["preemptions"],
        output_tokens_per_s=series["output_tokens_per_s"],
        vram_t=vram_t,
        vram_gib=vram,
    )


_SERVER_SERIES = ("running", "waiting", "kv_cache_usage", "preemptions", "output_tokens_per_s")


def _server_series(table: pa.Table | None, start: int) -> tuple[tuple[float, ...], dict[str, tuple[float | None, ...]]]:
    if table is None or table.num_rows == 0:
        return (), dict.fromkeys(_SERVER_SERIES, ())
    t = (table["t_ns"].to_numpy() - start) / 1e9
    preempted = column_values(table, "preemptions_total")
    raw: dict[str, Floats] = {
        "running": column_values(table, "running"),
        "waiting": column_values(table, "waiting"),
        "kv_cache_usage": column_values(table, "kv_cache_usage"),
        "preemptions": preempted - (preempted[0] if preempted.size else 0.0),
        "output_tokens_per_s": _rate(t, column_values(table, "generation_tokens_total")),
    }
    groups = _groups(len(t))
    peaks = {name: _rounded(_reduce(values, groups, np.max)) for name, values in raw.items()}
    peaks["output_tokens_per_s"] = _rounded(_reduce(raw["output_tokens_per_s"], groups, np.mean), digits=1)
    return _times(t, groups), peaks


def _vram_series(
    metrics: pa.Table | None, nvml: pa.Table | None, start: int
) -> tuple[tuple[float, ...], tuple[float | None, ...]]:
    """NVML's, the largest card at each instant; the simulator's own figure where there is no NVML."""
    if nvml is not None and nvml.num_rows:
        frame = nvml.select(["t_ns", "used_mib"]).to_pandas().groupby("t_ns")["used_mib"].max().dropna()
        t, used = frame.index.to_numpy(), frame.to_numpy(dtype=float)
    elif metrics is not None and metrics.num_rows:
        t, used = metrics["t_ns"].to_numpy(), column_values(metrics, "vram_used_mib")
        t, used = t[~np.isnan(used)], used[~np.isnan(used)]
    else:
        return (), ()
    groups = _groups(len(t))
    return _times((t - start) / 1e9, groups), _rounded(_reduce(used / 1024, groups, np.max))


def _rate(t: Floats, counter: Floats) -> Floats:
    """Per second between samples; unknown at the first, and where the counter fell (the server restarted)."""
    rate = np.full(len(t), np.nan)
    step, gained = np.diff(t), np.diff(counter)
    usable = (step > 0) & (gained >= 0)
    rate[1:][usable] = gained[usable] / step[usable]
    return rate


def _groups(length: int) -> list[slice]:
    edges = np.linspace(0, length, min(length, MOST_SAMPLES) + 1).round().astype(int)
    return [slice(low, high) for low, high in pairwise(edges) if high > low]


def _reduce(values: Floats, groups: list[slice], how: Any) -> Floats:
    """Peaks must not be thinned away, so gauges keep the largest of each group and rates their mean."""
    kept = (values[group][~np.isnan(values[group])] for group in groups)
    return np.array([how(part) if part.size else np.nan for part in kept], dtype=float)


def _times(t: Floats, groups: list[slice]) -> tuple[float, ...]:
    return tuple(round(float(t[group].mean()), 2) for group in groups)


def _rounded(values: Floats, digits: int = 3) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(value) else round(float(value), digits) for value in values)

"""The time line of a load point: VRAM, KV usage, running, waiting, preemptions and tokens/s, thinned out."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qwenbench.report.points import level_of, workload_names
from qwenbench.runfolder.cells import Cell
from qwenbench.runfolder.names import RunPaths

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
    preempted = _column(table, "preemptions_total")
    raw: dict[str, Floats] = {
        "running": _column(table, "running"),
        "waiting": _column(table, "waiting"),
        "kv_cache_usage": _column(table, "kv_cache_usage"),
        "preemptions": preempted - (preempted[0] if preempted.size else 0.0),
        "output_tokens_per_s": _rate(t, _column(table, "generation_tokens_total")),
    }
    groups = _groups(len(t))
    peaks = {name: _shown(_reduce(values, groups, np.max)) for name, values in raw.items()}
    peaks["output_tokens_per_s"] = _shown(_reduce(raw["output_tokens_per_s"], groups, np.mean), digits=1)
    return _times(t, groups), peaks


def _vram_series(
    metrics: pa.Table | None, nvml: pa.Table | None, start: int
) -> tuple[tuple[float, ...], tuple[float | None, ...]]:
    """NVML's, the largest card at each instant; the simulator's own figure where there is no NVML."""
    if nvml is not None and nvml.num_rows:
        frame = nvml.select(["t_ns", "used_mib"]).to_pandas().groupby("t_ns")["used_mib"].max().dropna()
        t, used = frame.index.to_numpy(), frame.to_numpy(dtype=float)
    elif metrics is not None and metrics.num_rows:
        t, used = metrics["t_ns"].to_numpy(), _column(metrics, "vram_used_mib")
        t, used = t[~np.isnan(used)], used[~np.isnan(used)]
    else:
        return (), ()
    groups = _groups(len(t))
    return _times((t - start) / 1e9, groups), _shown(_reduce(used / 1024, groups, np.max))


def _column(table: pa.Table, name: str) -> Floats:
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    return np.asarray(table[name].to_pandas(), dtype=np.float64)


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


def _shown(values: Floats, digits: int = 3) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(value) else round(float(value), digits) for value in values)

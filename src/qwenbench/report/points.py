"""Load points over their repeats: from one row per repeat to one value with an interval per metric."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from qwenbench.analysis.cells import LOAD_POINT, row_records, valid_rows
from qwenbench.analysis.columns import METRICS
from qwenbench.analysis.statistics import estimates_of, interval_of_means
from qwenbench.report.document import Estimate, PointView

Summary = Mapping[tuple[Any, ...], Mapping[str, Any]]
"""Load point -> its row of points_summary.csv."""


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
    """(scenario, profile) -> workload."""
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
    if not path.exists():
        return {}
    table = pd.read_csv(path)
    if not set(LOAD_POINT) <= set(table.columns):
        return {}
    return {_key(row): row for row in row_records(table)}


def point_views(points: pd.DataFrame, summary: Summary | None = None) -> tuple[PointView, ...]:
    """One view per load point, in the order of the configurations' first appearance and of rising load.

    Intervals come from `summary`, which the sweep made with the request records; a load point that it lacks gets
    those over its repeats alone.
    """
    if points.empty:
        return ()
    table = points.assign(_workload=workload_names(points))
    keys = [name for name in LOAD_POINT if name in table]
    views = [_view(group, summary or {}) for _, group in table.groupby(keys, dropna=False, sort=False)]
    order = {config: index for index, config in enumerate(dict.fromkeys(points["config_id"].astype(str)))}
    return tuple(sorted(views, key=lambda view: (order[view.config], view.workload, view.level or 0.0)))


def _view(group: pd.DataFrame, summary: Summary) -> PointView:
    usable = valid_rows(group)
    valid = len(usable) > 0
    used = usable if valid else group
    first = {str(name): value for name, value in group.iloc[0].items()}
    return PointView(
        config=str(first["config_id"]),
        workload=str(first["_workload"]),
        level=level_of(first),
        n=len(used),
        valid=valid,
        invalid_reason=None if valid else _joined(group, "invalid_reason"),
        bound=_most_common(used, "bound"),
        bound_all=_joined(used, "bound_all"),
        requests_that_fit=_first(used, "requests_that_fit"),
        kv_cache_gib=_first(used, "kv_cache_gib"),
        running_peak=_largest(used, "running_peak"),
        waiting_peak=_largest(used, "waiting_peak"),
        preemptions=_largest(used, "preemptions"),
        requests_ok=int(_numbers(group, "requests_ok").sum()),
        requests_failed=int(_numbers(group, "requests_failed").sum()),
        metrics=_summarised(summary[_key(first)]) if valid and _key(first) in summary else _estimated(used, valid),
    )


def _key(row: Mapping[Any, Any]) -> tuple[Any, ...]:
    return tuple(known(row.get(name)) for name in LOAD_POINT)


def _summarised(row: Mapping[str, Any]) -> dict[str, Estimate]:
    found = {}
    for key in METRICS:
        value = known(row.get(key))
        if value is not None:
            found[key] = _estimate(value, known(row.get(f"{key}_low")), known(row.get(f"{key}_high")))
    return found


def _estimated(rows: pd.DataFrame, valid: bool) -> dict[str, Estimate]:
    """Over the repeats alone. Invalid points are shown too, hollow, so theirs are taken as they are."""
    if valid:
        estimates = estimates_of(rows)
    else:
        estimates = {key: interval_of_means(_numbers(rows, column.name).tolist()) for key, column in METRICS.items()}
    return {key: _estimate(e.value, e.low, e.high) for key, e in estimates.items() if e.value is not None}


def _estimate(value: float, low: float | None, high: float | None) -> Estimate:
    return (_short(value), None if low is None else _short(low), None if high is None else _short(high))


def _short(value: float) -> float:
    """Six significant digits: more than any clock here gives, and a third of the file's size."""
    return float(f"{value:.6g}")


def _numbers(group: pd.DataFrame, name: str) -> pd.Series[float]:
    if name not in group:
        return pd.Series(dtype=float)
    return pd.to_numeric(group[name], errors="coerce").replace([np.inf, -np.inf], np.nan).dropna()


def _first(group: pd.DataFrame, name: str) -> float | None:
    values = _numbers(group, name)
    return float(values.iloc[0]) if len(values) else None


def _largest(group: pd.DataFrame, name: str) -> float | None:
    values = _numbers(group, name)
    return float(values.max()) if len(values) else None


def _words(group: pd.DataFrame, name: str) -> list[str]:
    return [word for word in group[name].dropna().astype(str) if word] if name in group else []


def _most_common(group: pd.DataFrame, name: str) -> str | None:
    words = _words(group, name)
    return max(words, key=words.count) if words else None


def _joined(group: pd.DataFrame, name: str) -> str | None:
    return "; ".join(dict.fromkeys(_words(group, name))) or None

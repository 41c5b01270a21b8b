"""Load points over their repeats: from one row per repeat to one value with an interval per metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from qwenbench.analysis.columns import METRICS
from qwenbench.analysis.intervals import interval_of_means
from qwenbench.analysis.run import LOAD_POINT, records
from qwenbench.runfolder.cells import load_label
from qwenbench.runfolder.damage import if_readable

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
    table = if_readable(pd.read_csv, path, "intervals come from repeats alone")
    if table is None or not set(LOAD_POINT) <= set(table.columns):
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
    return tuple(known(row.get(name)) for name in LOAD_POINT)


def _summarised(row: Row) -> dict[str, Estimate]:
    found = {}
    for key in METRICS:
        value = known(row.get(key))
        if value is not None:
            found[key] = _estimate(value, known(row.get(f"{key}_low")), known(row.get(f"{key}_high")))
    return found


def _over_repeats(rows: list[Row]) -> dict[str, Estimate]:
    found = {}
    for key, column in METRICS.items():
        mean = interval_of_means(_numbers(rows, column.name))
        if mean.value is not None:
            found[key] = _estimate(mean.value, mean.low, mean.high)
    return found


def _estimate(value: float, low: float | None, high: float | None) -> Estimate:
    return (_short(value), None if low is None else _short(low), None if high is None else _short(high))


def _short(value: float) -> float:
    """Six significant digits: more than any clock here gives, and a third of the file's size."""
    return float(f"{value:.6g}")


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

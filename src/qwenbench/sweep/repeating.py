"""--until-ci: which load points need another repeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from qwenbench.analysis.intervals import relative_half_width
from qwenbench.runfolder.cells import LoadPoint
from qwenbench.sweep.plan import Plan

MOST_REPEATS = 20
METRIC = "output_tokens_per_s"


def next_repeats(plan: Plan, points: Sequence[Mapping[str, Any]], config_id: str, launch: int) -> list[LoadPoint]:
    """One more repeat of each load point of this launch whose 95 % interval is still wider than asked for.

    Empty without --until-ci, and for points that have MOST_REPEATS already or whose rate is not known.
    """
    target = plan.options.until_ci
    if target is None:
        return []
    more = []
    for point in plan.points:
        if point.repeat != 1:
            continue
        rows = [row for row in points if _is_repeat(row, point, config_id, launch)]
        values = [float(row[METRIC]) for row in rows if row.get(METRIC) is not None]
        if not values or len(rows) >= MOST_REPEATS:
            continue
        width = relative_half_width(values)
        if width is None or width > target:
            more.append(replace(point, repeat=max(int(row["repeat"]) for row in rows) + 1))
    return more


def _is_repeat(row: Mapping[str, Any], point: LoadPoint, config_id: str, launch: int) -> bool:
    return bool(
        row["config_id"] == config_id
        and row["launch"] == launch
        and row["scenario"] == point.scenario
        and row["profile"] == point.profile
        and row["concurrency"] == point.concurrency
        and row["rate"] == point.rate
    )

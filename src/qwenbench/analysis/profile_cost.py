"""What a sampling profile costs: the same server, scenario and load with its fields and with none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwenbench.analysis.columns import METRICS
from qwenbench.analysis.intervals import Estimate, critical, interval_of_means
from qwenbench.analysis.run import Run, records, valid_rows

BASE = "none"
"""The profile without any sampling field: what the others are held against."""
COSTS = ("itl_p50", "output_tokens_per_s")
_SAME = ("config_id", "scenario", "load_shape", "concurrency", "rate")


@dataclass(frozen=True, slots=True)
class ProfileCost:
    """One metric under a profile against the same without sampling fields."""

    config_id: str
    scenario: str
    concurrency: float | None
    rate: float | None
    profile: str
    metric: str
    before: float
    """Without sampling fields."""
    after: float
    change: float
    """after / before - 1."""
    low: float | None
    high: float | None
    """95 %; None where a side has one repeat. Both are of the same launches, whose spread is not in it."""


def profile_costs(run: Run) -> list[ProfileCost]:
    """Every profile of a run against `none`, where both were measured; empty otherwise."""
    if run.points.empty:
        return []
    groups: dict[tuple[Any, ...], dict[str, list[Mapping[str, Any]]]] = {}
    for row in records(valid_rows(run.points)):
        groups.setdefault(tuple(row[name] for name in _SAME), {}).setdefault(str(row["profile"]), []).append(row)
    found = []
    for (config, scenario, _, concurrency, rate), profiles in groups.items():
        for profile, rows in profiles.items():
            if profile == BASE or BASE not in profiles:
                continue
            for metric in COSTS:
                base, own = _estimate(profiles[BASE], metric), _estimate(rows, metric)
                if base.value and own.value is not None:
                    change, low, high = relative(own, base)
                    where = (str(config), str(scenario), concurrency, rate, profile, metric)
                    found.append(ProfileCost(*where, base.value, own.value, change, low, high))
    return found


def _estimate(rows: list[Mapping[str, Any]], metric: str) -> Estimate:
    values = (row.get(METRICS[metric].name) for row in rows)
    return interval_of_means([float(value) for value in values if value is not None])


def relative(own: Estimate, base: Estimate) -> tuple[float, float | None, float | None]:
    """own / base - 1 with its 95 % interval (delta method; degrees of freedom of the smaller sample)."""
    assert own.value is not None and base.value is not None
    ratio = own.value / base.value
    if own.se is None or base.se is None or own.value == 0:
        return ratio - 1, None, None
    half = critical(min(own.degrees, base.degrees)) * abs(ratio) * math.hypot(own.se / own.value, base.se / base.value)
    return ratio - 1, ratio - 1 - half, ratio - 1 + half

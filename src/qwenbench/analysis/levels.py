"""A configuration's figures at a number of users: measured, or interpolated between two measured concurrencies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from qwenbench.analysis.cells import valid_rows
from qwenbench.analysis.statistics import Estimate, combined, estimates_of

FACTS = (
    "kv_cache_gib", "kv_cache_blocks", "kv_cache_tokens", "requests_that_fit", "vram_ready_mib", "vram_peak_mib",
    "vram_over_budget_mib", "startup_s", "preemptions", "waiting_peak",
)  # fmt: skip
"""Columns without an interval that an answer shows."""
_SMALLEST_COUNTS = frozenset({"kv_cache_gib", "kv_cache_blocks", "kv_cache_tokens", "requests_that_fit"})


@dataclass(frozen=True, slots=True)
class Workload:
    """A scenario under a sampling profile, and its share of the traffic (all shares together are 1)."""

    scenario: str
    profile: str
    weight: float

    def __str__(self) -> str:
        return f"{self.scenario} ({self.profile})"


@dataclass(frozen=True, slots=True)
class Level:
    """One measured concurrency of one configuration and workload, over its valid repeats."""

    concurrency: int
    estimates: Mapping[str, Estimate]
    facts: Mapping[str, float]
    """FACTS that are known: the least favourable value of the repeats."""
    requests_failed: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What is expected at a number of users, and the measured levels that it rests on (one, or two around it)."""

    workload: Workload
    estimates: Mapping[str, Estimate]
    levels: tuple[Level, ...]

    @property
    def interpolated(self) -> bool:
        """Whether it lies between two measured concurrencies."""
        return len(self.levels) > 1


@dataclass(frozen=True, slots=True)
class Curve:
    """The measured levels of a configuration under one workload, by rising concurrency."""

    workload: Workload
    levels: tuple[Level, ...]

    def at(self, users: int) -> Reading | None:
        """The figures at so many users: linear between two measured concurrencies; None beyond them."""
        below = [level for level in self.levels if level.concurrency <= users]
        above = [level for level in self.levels if level.concurrency >= users]
        if not below or not above:
            return None
        low, high = below[-1], above[0]
        if low is high:
            return Reading(self.workload, low.estimates, (low,))
        share = (users - low.concurrency) / (high.concurrency - low.concurrency)
        estimates = {
            key: combined(((1 - share, low.estimates[key]), (share, high.estimates[key]))) for key in low.estimates
        }
        return Reading(self.workload, estimates, (low, high))

    def measured(self) -> str:
        """The measured concurrencies, for people."""
        return ", ".join(str(level.concurrency) for level in self.levels)


def workloads_of(points: pd.DataFrame, weights: Mapping[str, float]) -> tuple[Workload, ...]:
    """The workloads of a run with their shares; without weights every scenario weighs the same.

    A scenario's weight is split evenly over the profiles that it was run under.
    """
    chosen = weights or dict.fromkeys(points["scenario"].astype(str), 1.0)
    total = math.fsum(chosen.values())
    found = []
    for scenario, weight in chosen.items():
        profiles = list(dict.fromkeys(points.loc[points["scenario"] == scenario, "profile"].astype(str)))
        found += [Workload(scenario, profile, weight / total / len(profiles)) for profile in profiles]
    return tuple(found)


def rows_under(points: pd.DataFrame, workload: Workload) -> pd.DataFrame:
    """The closed-loop rows of a workload."""
    wanted = (points["scenario"] == workload.scenario) & (points["profile"] == workload.profile)
    return points[wanted & points["concurrency"].notna()]


def curve_of(rows: pd.DataFrame, workload: Workload) -> Curve:
    """The curve of one configuration's rows under a workload, from valid points only."""
    valid = valid_rows(rows_under(rows, workload))
    levels = [_level(group) for _, group in valid.groupby("concurrency")]
    return Curve(workload, tuple(sorted(levels, key=lambda level: level.concurrency)))


def _level(rows: pd.DataFrame) -> Level:
    concurrency = int(pd.to_numeric(rows["concurrency"]).iloc[0])
    facts = {}
    for name in FACTS:
        values = pd.to_numeric(rows[name]).dropna() if name in rows else pd.Series(dtype=float)
        if len(values):
            facts[name] = float(values.min() if name in _SMALLEST_COUNTS else values.max())
    failed = int(pd.to_numeric(rows["requests_failed"]).fillna(0).sum())
    return Level(concurrency, estimates_of(rows), facts, failed)


def mixed(readings: Sequence[Reading]) -> dict[str, Estimate]:
    """Each metric's mean over workloads by weight. Unknown under one of them, it is unknown for the mix."""
    return {
        key: combined([(reading.workload.weight, reading.estimates[key]) for reading in readings])
        for key in readings[0].estimates
    }

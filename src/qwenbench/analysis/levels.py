"""A configuration's figures at a number of users: measured, or interpolated between two measured concurrencies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from qwenbench.analysis.columns import column_of
from qwenbench.analysis.intervals import Estimate, combined
from qwenbench.analysis.run import Point, grouped, records, valid_rows
from qwenbench.analysis.spread import NONE as NO_SPREAD
from qwenbench.analysis.spread import Spread
from qwenbench.analysis.statistics import repeat_table

FACTS = (
    "kv_cache_gib", "kv_cache_blocks", "kv_cache_tokens", "requests_that_fit", "vram_ready_mib", "vram_peak_mib",
    "vram_over_budget_mib", "startup_s", "preemptions", "waiting_peak",
)  # fmt: skip
"""Columns without an interval that an answer shows, of several values the least favourable one."""


def facts_of(points: Iterable[Point]) -> dict[str, float]:
    """The FACTS that are known: of capacities the smallest, of uses the largest."""
    every = tuple(points)
    seen = {name: [value for point in every if (value := point.number(name)) is not None] for name in FACTS}
    pick = {name: min if column_of(name).better == "higher" else max for name in FACTS}
    return {name: pick[name](values) for name, values in seen.items() if values}


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
    points: tuple[Point, ...]
    """Its valid points, one per repeat and launch."""

    @property
    def requests_failed(self) -> int:
        return int(sum(point.number("requests_failed") or 0 for point in self.points))

    @property
    def launches(self) -> int:
        return len({point.cell.launch for point in self.points})


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

    def nearest(self, users: int) -> Reading:
        """The figures at the measured concurrency that is nearest to so many users."""
        level = min(self.levels, key=lambda level: abs(level.concurrency - users))
        return Reading(self.workload, level.estimates, (level,))

    def measured(self) -> str:
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


def curves_of(
    points: pd.DataFrame, workloads: Sequence[Workload], spread: Spread = NO_SPREAD
) -> dict[tuple[str, Workload], Curve]:
    """The curve of every configuration under every workload, from valid closed-loop points only.

    Estimates of what was launched once hold the `spread` between launches.
    """
    valid = valid_rows(points)
    valid = valid[valid["concurrency"].notna()]
    table = repeat_table(valid)
    members = grouped(zip(table.group.tolist(), records(valid), strict=True), lambda member: member[0])
    levels: dict[tuple[str, str, str], list[Level]] = {}
    for index, point in enumerate(table.load_points):
        name = (str(point["config_id"]), str(point["scenario"]), str(point["profile"]))
        own = tuple(Point.of(row) for _, row in members[index])
        launches = len({member.cell.launch for member in own})
        estimates = {key: spread.of_one_launch(found, launches) for key, found in table.estimates(index).items()}
        level = Level(int(point["concurrency"]), estimates, own)
        levels.setdefault(name, []).append(level)
    curves = {}
    for config in dict.fromkeys(points["config_id"].astype(str)):
        for workload in workloads:
            found = levels.get((config, workload.scenario, workload.profile), [])
            curves[config, workload] = Curve(workload, tuple(sorted(found, key=lambda level: level.concurrency)))
    return curves


def mixed(readings: Sequence[Reading]) -> dict[str, Estimate]:
    """Each metric's mean over workloads by weight. Unknown under one of them, it is unknown for the mix."""
    return {
        key: combined([(reading.workload.weight, reading.estimates[key]) for reading in readings])
        for key in readings[0].estimates
    }

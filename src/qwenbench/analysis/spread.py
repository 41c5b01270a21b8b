"""How far measurements of one configuration lie apart: what a single launch cannot show (docs/statistics.md), and cold
starts that held another KV cache than the restart does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from qwenbench.analysis.intervals import Estimate
from qwenbench.analysis.run import LOAD_POINT, Run, columns_of, grouped, records, valid_rows

METRIC = "output_tokens_per_s"
"""The metric whose spread stands for all."""
MIN_DEGREES = 3
"""Degrees of freedom from which a run's own launches say how far launches lie apart."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Relative standard deviations of one configuration's figures."""

    point: float
    """Between two load points of one launch."""
    launch: float
    """Between launches, beyond that."""
    degrees: float
    source: str
    """Where it is from, for people."""

    def of_one_launch(self, estimate: Estimate, launches: int) -> Estimate:
        """The estimate with the spread between launches added, where there was one launch only.

        Several launches show it themselves. Degrees of freedom after Welch and Satterthwaite, rounded down to a tenth.
        """
        if launches != 1 or estimate.value is None or (self.launch == 0 and self.point == 0):
            return estimate
        between = (self.launch * estimate.value) ** 2
        if estimate.se is None or estimate.se == 0:
            within, freedom = (self.point * estimate.value) ** 2 / max(1, estimate.n), self.degrees
        else:
            within, freedom = estimate.se**2, estimate.degrees
        total = between + within
        if total == 0:
            return estimate
        degrees = total**2 / (between**2 / self.degrees + within**2 / freedom)
        return replace(estimate, se=math.sqrt(total), freedom=math.floor(degrees * 10) / 10)


RECORDED = Spread(
    point=0.10 / math.sqrt(2),
    launch=math.sqrt((0.18**2 - 0.10**2) / 2),
    degrees=30,
    source="the spread recorded on an H100 (10 % between two points, 18 % between two launches; docs/statistics.md)",
)
"""Differences between two measurements of one configuration, as standard deviations: d / sqrt(2) each."""
NONE = Spread(0.0, 0.0, 30, "none: the simulator plays no spread between launches")


def spread_of(run: Run) -> Spread:
    """The spread between a run's launches: its own where enough configurations were launched again, else RECORDED.

    Repeats and launches of each load point as a nested analysis of variance of log tokens/s, pooled over all of them.
    A simulated run has the spread that --sim-spread plays, and without it none.
    """
    own = _own(run)
    if own is not None:
        return own
    return NONE if run.simulated and not run.part("options").get("sim_spread") else RECORDED


def _own(run: Run) -> Spread | None:
    rows = records(valid_rows(run.points), (*LOAD_POINT, "launch", METRIC)) if len(run.points) else []
    usable = [row for row in rows if row["launch"] is not None and (row[METRIC] or 0) > 0]
    points = [
        [np.log([row[METRIC] for row in own]) for own in grouped(alike, columns_of("launch")).values()]
        for alike in grouped(usable, columns_of(*LOAD_POINT)).values()
    ]
    """Of each load point each launch's log tokens/s."""
    degrees = sum(len(launches) - 1 for launches in points)
    if degrees < MIN_DEGREES:
        return None
    between = sum(len(launches) * float(np.var([own.mean() for own in launches])) for launches in points) / degrees
    point, within_degrees = RECORDED.point**2, sum(len(own) - 1 for launches in points for own in launches)
    if within_degrees >= MIN_DEGREES:
        point = sum(len(own) * float(own.var()) for launches in points for own in launches) / within_degrees
    repeats = float(np.mean([len(own) for launches in points if len(launches) > 1 for own in launches]))
    words = f"the spread between this run's own launches ({math.sqrt(between):.1%})"
    return Spread(math.sqrt(point), math.sqrt(max(0.0, between - point / repeats)), degrees, words)


SAME_GIB = 0.05
"""Figures that were printed with two decimals and differ by less are the same."""


@dataclass(frozen=True, slots=True)
class StartDifference:
    """A cold and a warm start of one configuration that did not hold the same."""

    config_id: str
    cold_launch: int
    warm_launch: int
    cold_kv_gib: float
    warm_kv_gib: float
    cold_activations_gib: float | None
    warm_activations_gib: float | None

    def __str__(self) -> str:
        activations = ""
        if self.cold_activations_gib is not None and self.warm_activations_gib is not None:
            activations = f" (peak activations {self.cold_activations_gib:.2f} and {self.warm_activations_gib:.2f} GiB)"
        return (
            f"{self.config_id}: launch {self.cold_launch} compiled and held {self.cold_kv_gib:.2f} GiB of KV cache, "
            f"launch {self.warm_launch} did not and held {self.warm_kv_gib:.2f}{activations}: compiling may be charged "
            "as activations (vllm#54122); a restart, as users run it, holds what the warm start did"
        )


def start_differences(run: Run) -> list[StartDifference]:
    """Configurations whose cold start held another KV cache than a warm one."""
    starts: dict[str, dict[str, tuple[int, Mapping[str, Any]]]] = {}
    for (config_id, launch), ledger in sorted(run.launch_ledgers.items(), key=lambda item: item[0]):
        if ledger.get("compile_cache") in ("cold", "warm") and ledger.get("kv_cache_gib") is not None:
            starts.setdefault(config_id, {}).setdefault(ledger["compile_cache"], (launch, ledger))
    found = []
    for config_id, kinds in starts.items():
        if len(kinds) == 2:
            (cold, first), (warm, again) = kinds["cold"], kinds["warm"]
            held = (first["kv_cache_gib"], again["kv_cache_gib"])
            activations = (first.get("activations_gib"), again.get("activations_gib"))
            if abs(held[0] - held[1]) > SAME_GIB:
                found.append(StartDifference(config_id, cold, warm, *held, *activations))
    return found


CAPACITIES = ("kv_cache_gib", "kv_cache_blocks", "kv_cache_tokens", "requests_that_fit")


def without_cold_capacities(points: pd.DataFrame, differences: Sequence[StartDifference]) -> pd.DataFrame:
    """The rows with the capacities of such cold launches left out: what is told of a configuration is its restart's."""
    points = points.copy()
    for difference in differences:
        cold = (points["config_id"] == difference.config_id) & (points["launch"] == difference.cold_launch)
        points.loc[cold, list(CAPACITIES)] = pd.NA
    return points

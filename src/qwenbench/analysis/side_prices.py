"""What sampling profiles cost, up to how many streams a drafter pays, and what a cold start hides: from one run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from qwenbench.analysis.changes import Between, relative_changes
from qwenbench.analysis.run import Run
from qwenbench.analysis.spread import Spread, spread_of
from qwenbench.analysis.statistics import KEYS, RepeatTable, repeat_table
from qwenbench.runfolder.cells import load_label

NO_PROFILE = "none"
"""No sampling field is sent: what profiles are held against."""
METRICS = ("output_tokens_per_s", "itl_p50", "ttft_p50")
"""Figures of which a price is told."""
DRAFTER = "speculative-config"
SAME_GIB = 0.05
"""Figures that were printed with two decimals and differ by less are the same."""


@dataclass(frozen=True, slots=True)
class ProfilePrice:
    """One figure under a profile, against no profile in the same launch. Shares; None: not known."""

    config_id: str
    scenario: str
    profile: str
    load: str
    metric: str
    none: float
    value: float
    change: float
    low: float | None
    """95 % interval of the change: repeats, or with one repeat the spread between points of a launch."""
    high: float | None


@dataclass(frozen=True, slots=True)
class DrafterPrice:
    """What a drafter's step costs at one load, and what it must give to pay."""

    without: str
    """Configurations: without the drafter, and with it."""
    with_drafter: str
    scenario: str
    profile: str
    concurrency: int
    step_ms_without: float
    step_ms_with: float
    needed: float
    """Tokens a step from which on it pays: the ratio of the two (a chunk is a step)."""
    accepted: float | None
    """Tokens a step that it gave, by the engine's counters."""

    @property
    def pays(self) -> bool | None:
        """Whether it gave more than it needed; None where the engine does not tell."""
        return None if self.accepted is None else self.accepted > self.needed


def profile_prices(run: Run) -> list[ProfilePrice]:
    """What each profile costs against `none`, at every load that was measured under both; empty without such a pair.

    Both are of the same launches and servers, so only the spread between points stands between them.
    """
    table, spread = repeat_table(run.points), spread_of(run)
    places = {_load_of(point): index for index, point in enumerate(table.load_points)}
    found: list[ProfilePrice] = []
    for (*load, profile), index in places.items():
        base = places.get((*load, NO_PROFILE))
        if base is not None and profile != NO_PROFILE:
            found += _price_of(table, base, index, spread)
    return found


def _load_of(point: Mapping[str, Any]) -> tuple[Any, ...]:
    names = ("config_id", "scenario", "load_shape", "concurrency", "rate", "profile")
    return tuple(point[name] for name in names)


def _price_of(table: RepeatTable, base: int, index: int, spread: Spread) -> Iterator[ProfilePrice]:
    point = table.load_points[index]
    for key in METRICS:
        column = KEYS.index(key)
        before, after = float(table.value[base, column]), float(table.value[index, column])
        if math.isnan(before) or math.isnan(after) or before <= 0 or after <= 0:
            continue
        low, high = _interval(table, base, index, column, spread)
        yield ProfilePrice(
            config_id=str(point["config_id"]),
            scenario=str(point["scenario"]),
            profile=str(point["profile"]),
            load=load_label(point["concurrency"], point["rate"]),
            metric=key,
            none=before,
            value=after,
            change=after / before - 1,
            low=low,
            high=high,
        )


def _interval(
    table: RepeatTable, base: int, index: int, column: int, spread: Spread
) -> tuple[float | None, float | None]:
    """That of `compare`; of single repeats the log ratio +- 1.96 sqrt(2) x the spread between points."""
    once = table.n[base, column] < 2 or table.n[index, column] < 2
    if once:
        if spread.point == 0:
            return None, None
        centre = math.log(float(table.value[index, column] / table.value[base, column]))
        half = 1.96 * math.sqrt(2) * spread.point
        return math.expm1(centre - half), math.expm1(centre + half)
    pick = np.ix_([base], [column]), np.ix_([index], [column])
    found = relative_changes(
        table.n[pick[0]], table.value[pick[0]], table.se[pick[0]],
        table.n[pick[1]], table.value[pick[1]], table.se[pick[1]], None, Between(np.zeros(1), spread.degrees),
    )  # fmt: skip
    return float(found.low[0, 0]), float(found.high[0, 0])


def drafter_prices(run: Run) -> list[DrafterPrice]:
    """For each pair of configurations that differ in --speculative-config only: break-even and what was accepted.

    The step is the median gap between chunks: a chunk is what one step gave a request, drafted tokens and all.
    """
    table = repeat_table(run.points)
    lengths = _acceptance(run)
    found = []
    for without, with_drafter in _drafter_pairs(run):
        at = {_workload_of(point): i for i, point in enumerate(table.load_points) if point["config_id"] == without}
        for index, point in enumerate(table.load_points):
            base = at.get(_workload_of(point))
            if point["config_id"] != with_drafter or base is None or point["concurrency"] is None:
                continue
            column = KEYS.index("itl_p50")
            off, on = float(table.value[base, column]), float(table.value[index, column])
            if math.isnan(off) or math.isnan(on) or off <= 0:
                continue
            found.append(
                DrafterPrice(
                    without=without,
                    with_drafter=with_drafter,
                    scenario=str(point["scenario"]),
                    profile=str(point["profile"]),
                    concurrency=int(point["concurrency"]),
                    step_ms_without=off,
                    step_ms_with=on,
                    needed=on / off,
                    accepted=lengths.get((with_drafter, *_workload_of(point))),
                )
            )
    return sorted(found, key=lambda price: (price.with_drafter, price.scenario, price.profile, price.concurrency))


def pays_up_to(prices: Sequence[DrafterPrice]) -> int | None:
    """The largest concurrency up to which a drafter pays at every measured load; 0: at none, None: not known."""
    best = 0
    for price in sorted(prices, key=lambda price: price.concurrency):
        if price.pays is None:
            return None
        if not price.pays:
            break
        best = price.concurrency
    return best


def _workload_of(point: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(point[name] for name in ("scenario", "profile", "load_shape", "concurrency", "rate"))


def _acceptance(run: Run) -> dict[tuple[Any, ...], float]:
    found: dict[tuple[Any, ...], list[float]] = {}
    for point in run.measured:
        value = point.number("acceptance_length")
        if point.valid and value is not None:
            found.setdefault((point.cell.config_id, *_workload_of(point.values)), []).append(value)
    return {key: sum(values) / len(values) for key, values in found.items()}


def _drafter_pairs(run: Run) -> Iterator[tuple[str, str]]:
    drafters: dict[tuple[Any, ...], list[tuple[str, str | None]]] = {}
    for config_id, launch in run.launches.items():
        server = launch.get("server")
        if not isinstance(server, Mapping):
            continue
        flags = dict(server.get("flags") or {})
        drafter = flags.pop(DRAFTER, None)
        same = (server.get("model"), *sorted((name, str(value)) for name, value in flags.items()))
        off = drafter is None or str(drafter).strip().lower() in ("", "none", "null", "{}")
        drafters.setdefault(same, []).append((config_id, None if off else str(drafter)))
    for members in drafters.values():
        for without, drafter in members:
            if drafter is None:
                yield from ((without, other) for other, named in members if named is not None)


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
    by_config: dict[str, dict[int, Mapping[str, Any]]] = {}
    for (config_id, launch), ledger in run.launch_ledgers.items():
        by_config.setdefault(config_id, {})[launch] = ledger
    found = []
    for config_id, launches in by_config.items():
        kinds: dict[str, tuple[int, Mapping[str, Any]]] = {}
        for launch, ledger in sorted(launches.items()):
            if ledger.get("compile_cache") in ("cold", "warm") and ledger.get("kv_cache_gib") is not None:
                kinds.setdefault(str(ledger["compile_cache"]), (launch, ledger))
        if len(kinds) < 2:
            continue
        (cold, first), (warm, again) = kinds["cold"], kinds["warm"]
        if abs(first["kv_cache_gib"] - again["kv_cache_gib"]) > SAME_GIB:
            found.append(
                StartDifference(
                    config_id, cold, warm, first["kv_cache_gib"], again["kv_cache_gib"],
                    first.get("activations_gib"), again.get("activations_gib"),
                )
            )  # fmt: skip
    return found


CAPACITIES = ("kv_cache_gib", "kv_cache_blocks", "kv_cache_tokens", "requests_that_fit")


def without_cold_capacities(points: pd.DataFrame, differences: Sequence[StartDifference]) -> pd.DataFrame:
    """The rows with the capacities of such cold launches left out: what is told of a configuration is its restart's."""
    points = points.copy()
    for difference in differences:
        cold = (points["config_id"] == difference.config_id) & (points["launch"] == difference.cold_launch)
        points.loc[cold, list(CAPACITIES)] = pd.NA
    return points

"""The price of capture (what each step of --max-cudagraph-capture-size costs in memory and time, and buys in speed),
and of a sampling profile: the same server, scenario and load with its fields and with none.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import pandas as pd

from qwenbench.analysis.columns import METRICS, VARIED
from qwenbench.analysis.intervals import Estimate, combined, critical, interval_of_means
from qwenbench.analysis.run import Run, columns_of, grouped, records, valid_rows

PRINTED_GIB_ERROR = 0.01
"""Two figures that were printed with two decimals differ by so much less or more than their difference says."""

PER_LAUNCH = (
    "kv_cache_gib", "kv_cache_blocks", "kv_cache_tokens", "vram_ready_mib", "startup_s", "graphs_estimated_gib",
    "graphs_actual_gib", "kv_cache_tokens_logged", "capture_s",
)  # fmt: skip
"""Figures of a launch, from points.csv where it has them, else from the ledger."""
PER_SCENARIO = ("requests_that_fit",)
PER_LOAD = ("output_tokens_per_s", "itl_ms_p50")


class Config(NamedTuple):
    """A configuration of a chain of capture sizes."""

    config_id: str
    capture: int
    max_num_seqs: int | None
    """Follows the capture size where the sweep matched the two, as the seed advises."""


class Load(NamedTuple):
    """What a figure depends on; None: not on that."""

    scenario: str | None = None
    profile: str | None = None
    load_shape: str | None = None
    concurrency: float | None = None
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class Price:
    """One figure's change from one capture size to the next larger one, all else being equal."""

    smaller: Config
    larger: Config
    load: Load
    metric: str
    before: float
    after: float
    change: float
    low: float | None
    """Lower end of the change's 95 % interval; None with one repeat (indicative only)."""
    high: float | None
    basis: str
    """`repeats`, `rounding` (of the printed figure) or `indicative`."""


def price_of_capture(points: pd.DataFrame, ledgers: Mapping[str, Mapping[str, Any]]) -> list[Price]:
    """A price for each step of capture size, load and figure that both sides know.

    `points` are rows of points.csv (only valid ones count), `ledgers` config_id -> memory.json. Configurations are
    compared when everything but capture (and a max-num-seqs that follows it) is the same. Without two capture sizes
    there is none.
    """
    rows = valid_rows(points)
    needed = ("config_id", "launch", "repeat", *Load._fields, *PER_LAUNCH, *PER_SCENARIO, *PER_LOAD)
    own = grouped(records(rows, [name for name in needed if name in rows]), lambda row: str(row["config_id"]))
    figures = {config: _figures(found, ledgers.get(config, {})) for config, found in own.items()}
    return [price for smaller, larger in _steps(rows) for price in _prices(smaller, larger, figures)]


def _steps(rows: pd.DataFrame) -> Iterator[tuple[Config, Config]]:
    """Neighbouring capture sizes within each chain of otherwise equal configurations."""
    others = [str(n) for n in rows.columns if n in ("gpu_memory_utilization", "machine") or str(n).startswith(VARIED)]
    chains: dict[tuple[Any, ...], list[Config]] = {}
    for row in records(rows.drop_duplicates("config_id"), ("config_id", "capture", "max_num_seqs", *others)):
        capture, seqs = row["capture"], row["max_num_seqs"]
        if isinstance(capture, int):
            config = Config(str(row["config_id"]), capture, seqs if isinstance(seqs, int) else None)
            key = ("follows" if seqs == capture else seqs, *(str(row[name]) for name in others))
            chains.setdefault(key, []).append(config)
    for (seqs, *rest), chain in chains.items():
        # a crossed list has its diagonal (capture = max-num-seqs) in the chain of that max-num-seqs too
        diagonal = chains.get(("follows", *rest), []) if seqs != "follows" else []
        whole = chain + [config for config in diagonal if config.max_num_seqs == seqs]
        for smaller, larger in itertools.pairwise(sorted(whole, key=lambda config: config.capture)):
            if smaller.capture < larger.capture:
                yield smaller, larger


def _figures(rows: Iterable[Mapping[str, Any]], ledger: Mapping[str, Any]) -> dict[tuple[str, Load], list[float]]:
    """Metric and load -> its values: one a launch (its points repeat its figures), or one a repeat of the load."""
    found: dict[tuple[str, Load], dict[Any, list[float]]] = {}
    for row in rows:
        launch, whole = row["launch"], Load(*(row[name] for name in Load._fields))
        kinds = (PER_LAUNCH, Load(), launch), (PER_SCENARIO, Load(whole.scenario), launch)
        for metrics, load, sample in (*kinds, (PER_LOAD, whole, (launch, row["repeat"]))):
            for metric in metrics:
                if row.get(metric) is not None:
                    found.setdefault((metric, load), {}).setdefault(sample, []).append(float(row[metric]))
    values = {key: [median(own) for own in samples.values()] for key, samples in found.items()}
    told = {(name, Load()): [float(ledger[name])] for name in PER_LAUNCH if ledger.get(name) is not None}
    return told | values


def _prices(
    smaller: Config, larger: Config, figures: Mapping[str, Mapping[tuple[str, Load], list[float]]]
) -> Iterator[Price]:
    old, new = figures[smaller.config_id], figures[larger.config_id]
    for (metric, load), values in old.items():
        first, second = interval_of_means(values), interval_of_means(new.get((metric, load), []))
        if first.value is None or second.value is None:
            continue
        change = combined([(1.0, second), (-1.0, first)])
        interval = _interval(change, PRINTED_GIB_ERROR if metric.endswith("_gib") else 0.0)
        yield Price(smaller, larger, load, metric, first.value, second.value, second.value - first.value, *interval)


def _interval(change: Estimate, rounding: float) -> tuple[float | None, float | None, str]:
    if change.low is not None and change.high is not None:
        return change.low - rounding, change.high + rounding, "repeats"
    if change.value is not None and rounding:
        return change.value - rounding, change.value + rounding, "rounding"
    return None, None, "indicative"


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
    found = []
    rows = records(valid_rows(run.points)) if len(run.points) else []
    for (config, scenario, _, concurrency, rate), alike in grouped(rows, columns_of(*_SAME)).items():
        profiles = grouped(alike, lambda row: str(row["profile"]))
        bases = profiles.pop(BASE, [])
        for profile, metric in itertools.product(profiles, COSTS):
            base, own = _estimate(bases, metric), _estimate(profiles[profile], metric)
            if base.value and own.value is not None:
                where = (str(config), str(scenario), concurrency, rate, profile, metric)
                found.append(ProfileCost(*where, base.value, own.value, *relative(own, base)))
    return found


def _estimate(rows: Iterable[Mapping[str, Any]], metric: str) -> Estimate:
    values = (row[METRICS[metric].name] for row in rows)
    return interval_of_means([float(value) for value in values if value is not None])


def relative(own: Estimate, base: Estimate) -> tuple[float, float | None, float | None]:
    """own / base - 1 with its 95 % interval (delta method; degrees of freedom of the smaller sample)."""
    assert own.value is not None and base.value is not None
    ratio = own.value / base.value
    if own.se is None or base.se is None or own.value == 0:
        return ratio - 1, None, None
    half = critical(min(own.degrees, base.degrees)) * abs(ratio) * math.hypot(own.se / own.value, base.se / base.value)
    return ratio - 1, ratio - 1 - half, ratio - 1 + half

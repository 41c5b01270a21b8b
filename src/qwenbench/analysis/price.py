"""The price of capture (what each step of --max-cudagraph-capture-size costs in memory and time, and buys in speed),
and of a sampling profile: the same server, scenario and load with its fields and with none.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from qwenbench.analysis.columns import METRICS, VARIED
from qwenbench.analysis.intervals import Estimate, combined, critical, interval_of_means
from qwenbench.analysis.run import Run, records, valid_rows

PRINTED_GIB_ERROR = 0.01
"""Two figures that were printed with two decimals differ by so much less or more than their difference says."""

PER_LAUNCH: dict[str, str] = {
    "kv_cache_gib": "GiB",
    "kv_cache_blocks": "blocks",
    "kv_cache_tokens": "tokens",
    "vram_ready_mib": "MiB",
    "startup_s": "s",
}
"""Figures of a launch, from points.csv (else from the ledger, where it has them)."""
FROM_LEDGER: dict[str, str] = {
    "graphs_estimated_gib": "GiB",
    "graphs_actual_gib": "GiB",
    "kv_cache_tokens_logged": "tokens",
    "capture_s": "s",
}
PER_SCENARIO: dict[str, str] = {"requests_that_fit": "requests"}
PER_LOAD: dict[str, str] = {"output_tokens_per_s": "tok/s", "itl_ms_p50": "ms"}

_LOAD = ("scenario", "profile", "load_shape", "concurrency", "rate")


@dataclass(frozen=True, slots=True)
class Price:
    """One figure's change from one capture size to the next larger one, all else being equal."""

    config_from: str
    config_to: str
    capture_from: int
    capture_to: int
    max_num_seqs_from: int | None
    max_num_seqs_to: int | None
    """Follows the capture size where the sweep matched the two, as the seed advises."""
    scenario: str | None
    profile: str | None
    load_shape: str | None
    concurrency: float | None
    rate: float | None
    metric: str
    unit: str
    before: float | None
    after: float | None
    change: float | None
    low: float | None
    """Lower end of the change's 95 % interval; None with one repeat (indicative only)."""
    high: float | None
    basis: str
    """`repeats`, `rounding` (of the printed figure) or `indicative`."""


COLUMNS = tuple(Price.__dataclass_fields__)


def price_of_capture(points: pd.DataFrame, ledgers: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """One row per step of capture size, load and figure, with the columns of `Price`.

    `points` are rows of points.csv (only valid ones count), `ledgers` config_id -> memory.json. Configurations are
    compared when everything but capture (and a max-num-seqs that follows it) is the same. A figure that either
    side lacks has no row. Without two capture sizes the frame is empty.
    """
    rows = valid_rows(points)
    prices = [price for before, after in _steps(rows) for price in _prices(rows, ledgers, before, after)]
    return pd.DataFrame([asdict(price) for price in prices], columns=list(COLUMNS))


@dataclass(frozen=True, slots=True)
class _Config:
    config_id: str
    capture: int
    max_num_seqs: int | None


def _steps(rows: pd.DataFrame) -> Iterator[tuple[_Config, _Config]]:
    """Neighbouring capture sizes within each chain of otherwise equal configurations."""
    others = [str(n) for n in rows.columns if n in ("gpu_memory_utilization", "machine") or str(n).startswith(VARIED)]
    chains: dict[tuple[Any, ...], list[_Config]] = {}
    for row in records(rows.drop_duplicates("config_id"), ("config_id", "capture", "max_num_seqs", *others)):
        capture, seqs = row["capture"], row["max_num_seqs"]
        if not isinstance(capture, int):
            continue
        config = _Config(str(row["config_id"]), capture, seqs if isinstance(seqs, int) else None)
        fixed = "follows" if seqs == config.capture else seqs
        key = (fixed, *(str(row[name]) for name in others))
        chains.setdefault(key, []).append(config)
    for chain in _with_crossed(chains):
        ordered = sorted(chain, key=lambda config: config.capture)
        for before, after in itertools.pairwise(ordered):
            if before.capture < after.capture:
                yield before, after


def _with_crossed(chains: Mapping[tuple[Any, ...], list[_Config]]) -> Iterator[list[_Config]]:
    """A crossed list has its diagonal (capture = max-num-seqs) in the chain of that max-num-seqs too."""
    for key, chain in chains.items():
        if key[0] == "follows":
            yield chain
            continue
        diagonal = chains.get(("follows", *key[1:]), [])
        yield chain + [config for config in diagonal if config.max_num_seqs == key[0]]


def _prices(
    rows: pd.DataFrame, ledgers: Mapping[str, Mapping[str, Any]], before: _Config, after: _Config
) -> Iterator[Price]:
    mine = {config.config_id: rows[rows["config_id"].astype(str) == config.config_id] for config in (before, after)}
    old, new = mine[before.config_id], mine[after.config_id]
    for metric, unit in (PER_LAUNCH | FROM_LEDGER).items():
        pair = [
            _launches(own, metric, ledgers.get(config.config_id, {})) for own, config in ((old, before), (new, after))
        ]
        yield from _price(before, after, {}, metric, unit, *pair)
    for names, metrics, values_of in ((("scenario",), PER_SCENARIO, _launches), (_LOAD, PER_LOAD, _values)):
        olds, news = _by_load(old, names), _by_load(new, names)
        for load in olds:
            if load in news:
                shown = dict(zip(names, load, strict=True))
                for metric, unit in metrics.items():
                    pair = [values_of(own[load], metric) for own in (olds, news)]
                    yield from _price(before, after, shown, metric, unit, *pair)


def _price(
    before: _Config,
    after: _Config,
    load: Mapping[str, Any],
    metric: str,
    unit: str,
    old: list[float],
    new: list[float],
) -> Iterator[Price]:
    first, second = interval_of_means(old), interval_of_means(new)
    if first.value is None or second.value is None:
        return
    change = combined([(1.0, second), (-1.0, first)])
    low, high, basis = _interval(change, unit)
    yield Price(
        config_from=before.config_id,
        config_to=after.config_id,
        capture_from=before.capture,
        capture_to=after.capture,
        max_num_seqs_from=before.max_num_seqs,
        max_num_seqs_to=after.max_num_seqs,
        **{name: load.get(name) for name in _LOAD},
        metric=metric,
        unit=unit,
        before=first.value,
        after=second.value,
        change=change.value,
        low=low,
        high=high,
        basis=basis,
    )


def _interval(change: Estimate, unit: str) -> tuple[float | None, float | None, str]:
    if change.value is None:
        return None, None, "indicative"
    rounding = PRINTED_GIB_ERROR if unit == "GiB" else 0.0
    if change.low is not None and change.high is not None:
        return change.low - rounding, change.high + rounding, "repeats"
    if rounding:
        return change.value - rounding, change.value + rounding, "rounding"
    return None, None, "indicative"


def _launches(rows: pd.DataFrame, metric: str, ledger: Mapping[str, Any] | None = None) -> list[float]:
    """One value per launch: the points of a launch repeat its figures."""
    if metric in rows:
        values = [float(value) for value in rows[metric].groupby(rows["launch"]).median().dropna()]
        if values:
            return values
    value = ledger.get(metric) if ledger is not None else None
    return [float(value)] if value is not None else []


def _values(rows: pd.DataFrame, metric: str) -> list[float]:
    return [float(value) for value in rows[metric].dropna()]


def _by_load(rows: pd.DataFrame, names: tuple[str, ...]) -> dict[tuple[Any, ...], pd.DataFrame]:
    """The rows of each load, in the order of points.csv; a column that is missing or empty is None in the key."""
    if rows.empty:
        return {}
    groups = rows.groupby(list(names), dropna=False, sort=False)
    return {tuple(map(_plain, key)): own for key, own in groups}


def _plain(value: Any) -> Any:
    if pd.isna(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


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

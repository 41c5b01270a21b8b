"""The price of capture (what each step of --max-cudagraph-capture-size costs in memory and time, and buys in speed),
its second gain; the price of a sampling profile: the same server, scenario and load with its fields and with none; and
what a drafter (MTP, EAGLE, ngram) has to gain to pay.

The second gain: a prompt that fits under the captured size runs in graphs, which spares the host its launches. Measured
where a run has two captures of otherwise equal configurations, the load's prompts between them; elsewhere told from the
recorded servers (capacity/graphs.py), with what it would cost.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from qwenbench.analysis.columns import METRICS, VARIED
from qwenbench.analysis.intervals import Estimate, combined, critical, interval_of_means
from qwenbench.analysis.run import Run, columns_of, grouped, mean_of, records, valid_rows
from qwenbench.capacity.graphs import GAIN_UP_TO_TOKENS, MEASURED_CAPTURES, capture_gain_words, graphs_gib
from qwenbench.runfolder.cells import load_label

PRINTED_GIB_ERROR = 0.01
"""Two figures that were printed with two decimals differ by so much less or more than their difference says."""

PER_LAUNCH = (
    "kv_cache_gib", "kv_cache_blocks", "kv_cache_tokens", "vram_ready_mib", "startup_s", "graphs_estimated_gib",
    "graphs_actual_gib", "kv_cache_tokens_logged", "capture_s",
)  # fmt: skip
"""Figures of a launch, from points.csv where it has them, else from the ledger."""
PER_SCENARIO = ("requests_that_fit",)
PER_LOAD = ("output_tokens_per_s", "itl_ms_p50")


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration of a chain of capture sizes."""

    config_id: str
    capture: int
    max_num_seqs: int | None
    """Follows the capture size where the sweep matched the two, as the seed advises."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a figure depends on; None: not on that."""

    scenario: str | None = None
    profile: str | None = None
    load_shape: str | None = None
    concurrency: float | None = None
    rate: float | None = None


_LOAD = tuple(field.name for field in fields(Load))


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
    needed = ("config_id", "launch", "repeat", *_LOAD, *PER_LAUNCH, *PER_SCENARIO, *PER_LOAD)
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
        launch, whole = row["launch"], Load(*(row[name] for name in _LOAD))
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


@dataclass(frozen=True, slots=True)
class Reached:
    """One closed-loop load whose prompts fit under the larger of two captures; means over repeats and launches."""

    larger: str
    smaller: str
    """Configurations that differ in capture alone."""
    capture: int
    smaller_capture: int
    scenario: str
    concurrency: int
    prompt_tokens: float
    """Mean of the load's prompts."""
    ttft_ms: tuple[float, float]
    tokens_per_s: tuple[float, float]
    kv_cache_gib: tuple[float, float] | None
    """With the larger capture, with the smaller one; medians of TTFT."""

    def __str__(self) -> str:
        (ttft, ttft_before), (rate, rate_before) = self.ttft_ms, self.tokens_per_s
        price = ""
        if self.kv_cache_gib is not None:
            price = f" for {self.kv_cache_gib[1] - self.kv_cache_gib[0]:.2f} GiB of KV cache"
        prompts = f"{self.scenario}'s prompts of about {self.prompt_tokens:,.0f} tokens"
        return (
            f"{prompts} fit under capture {self.capture:,}, not under {self.smaller_capture:,}: TTFT p50 at "
            f"{load_label(self.concurrency, None)} "
            f"{ttft:,.0f} ms for {ttft_before:,.0f}, tokens/s {rate:,.0f} for {rate_before:,.0f}{price}"
        )


_NEEDED = ("ttft_ms_p50", "output_tokens_per_s", "input_tokens_per_s", "requests_per_s", "concurrency", "capture")


def captures_reached(points: pd.DataFrame) -> tuple[Reached, ...]:
    """Every load that the smallest capture above its prompts and the largest below them both measured."""
    if points.empty or not {*_NEEDED, "gpu_memory_utilization", "max_num_seqs"} <= set(points):
        return ()
    varied = [str(name) for name in points if str(name).startswith(VARIED)]
    load = ("scenario", "profile", "concurrency", "gpu_memory_utilization", "max_num_seqs", *varied)
    rows = records(valid_rows(points).dropna(subset=list(_NEEDED)), (*load, *_NEEDED, "config_id", "kv_cache_gib"))
    found = []
    for alike in grouped(rows, columns_of(*load)).values():
        prompts = _prompt_tokens(alike)
        above = [row["capture"] for row in alike if row["capture"] >= prompts]
        below = [row["capture"] for row in alike if row["capture"] < prompts]
        if above and below and prompts <= GAIN_UP_TO_TOKENS:
            found.append(_reached(alike, (min(above), max(below)), prompts))
    return tuple(found)


def _reached(alike: Sequence[Mapping[str, Any]], captures: tuple[int, int], prompts: float) -> Reached:
    sides = [[row for row in alike if row["capture"] == capture] for capture in captures]
    names = [str(side[0]["config_id"]) for side in sides]

    def pair(name: str) -> tuple[float, float] | None:
        larger, smaller = (mean_of(side, name) for side in sides)
        return None if larger is None or smaller is None else (larger, smaller)

    ttft, rate, where = pair("ttft_ms_p50"), pair("output_tokens_per_s"), alike[0]
    assert ttft is not None and rate is not None  # they are _NEEDED
    load = str(where["scenario"]), int(where["concurrency"])
    return Reached(names[0], names[1], *captures, *load, prompts, ttft, rate, pair("kv_cache_gib"))


def reach_notes(points: pd.DataFrame, config_id: str, users: int | None) -> Iterator[str]:
    """What the run shows of the gain for a configuration at these users; where it shows nothing and the prompts do not
    fit, what recorded servers gained."""
    measured = [
        found
        for found in captures_reached(points)
        if config_id in (found.larger, found.smaller) and users in (None, found.concurrency)
    ]
    yield from map(str, measured)
    own = points[(points["config_id"] == config_id) & points["concurrency"].notna()]
    if measured or own.empty or not {*_NEEDED, "max_num_seqs"} <= set(own):
        return
    rows = records(own.dropna(subset=["input_tokens_per_s", "requests_per_s"]))
    prompts, capture, seqs = _prompt_tokens(rows), own["capture"].iloc[0], own["max_num_seqs"].iloc[0]
    if not rows or pd.isna(capture) or pd.isna(seqs) or prompts <= capture:
        return
    enough = next((size for size in MEASURED_CAPTURES if size >= prompts), None)
    if enough is not None:
        price = graphs_gib(enough, int(seqs)) - graphs_gib(int(capture), int(seqs))
        yield (
            f"prompts of about {prompts:,.0f} tokens run outside the graphs of capture {capture:,.0f}; a larger one is "
            f"not in this run (--capture {enough} --max-num-seqs {seqs:.0f}): {capture_gain_words(price)} (docs/gpu.md)"
        )


def _prompt_tokens(rows: Sequence[Mapping[str, Any]]) -> float:
    """Mean prompt tokens of a load's requests; NaN without any."""
    return float(np.mean([row["input_tokens_per_s"] / row["requests_per_s"] for row in rows])) if rows else math.nan


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
    rows = records(valid_rows(run.points))
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


DRAFTER = "vary_speculative_config"
"""Column of a sweep that varied the drafter."""


@dataclass(frozen=True, slots=True)
class BreakEven:
    """What a drafter has to gain in a step to pay, at one load, mean over scenarios. None: not known."""

    config_id: str
    without_id: str
    """The same configuration without a drafter."""
    level: float
    step_ms: float
    """Median step with the drafter: the gap between two chunks."""
    step_without_ms: float
    gained: float | None
    """Tokens that a request gained in a step."""

    @property
    def needed(self) -> float:
        """Tokens a step from which on the drafter pays."""
        return self.step_ms / self.step_without_ms

    @property
    def pays(self) -> bool | None:
        return None if self.gained is None else self.gained > self.needed


def break_evens(run: Run) -> list[BreakEven]:
    """Every configuration with a drafter against the one that differs in nothing else, load by load.

    Needs a sweep that varied speculative-config with `unset` (or nothing) among its values; empty otherwise.
    """
    if run.points.empty or DRAFTER not in run.points:
        return []
    rows = [row for row in records(valid_rows(run.points)) if row["concurrency"] is not None]
    drafters = {row["config_id"] for row in rows if row["drafted_tokens"] is not None}
    others = (str(name) for name in run.points if str(name).startswith(VARIED) and name != DRAFTER)
    found = []
    for alike in grouped(rows, columns_of("capture", "max_num_seqs", "gpu_memory_utilization", *others)).values():
        bare = next((row["config_id"] for row in alike if row["config_id"] not in drafters), None)
        levels = grouped(alike, columns_of("config_id", "concurrency"))
        for (config, level), own in levels.items():
            step, without = mean_of(own, "itl_ms_p50"), mean_of(levels.get((bare, level), ()), "itl_ms_p50")
            if config in drafters and step is not None and without:
                gained = mean_of(own, "acceptance_length")
                found.append(BreakEven(str(config), str(bare), float(level), step, without, gained))
    return sorted(found, key=lambda each: (each.config_id, each.level))


def pays_up_to(found: Sequence[BreakEven]) -> float | None:
    """The load up to which one configuration's drafter pays at every measured one; 0: at none, None: not known."""
    paying = list(itertools.takewhile(lambda each: each.pays is not False, sorted(found, key=lambda each: each.level)))
    return None if any(each.pays is None for each in paying) else max((each.level for each in paying), default=0.0)

"""Capture's second gain: a prompt that fits under the captured size runs in graphs, which spares the host its launches.

Measured where a run has two captures of otherwise equal configurations, the load's prompts between them; elsewhere
told from the recorded servers (capacity/graphs.py), with what it would cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from qwenbench.analysis.columns import VARIED
from qwenbench.analysis.run import columns_of, grouped, mean_of, records, valid_rows
from qwenbench.capacity.graphs import GAIN_UP_TO_TOKENS, MEASURED_CAPTURES, capture_gain_words, graphs_gib


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
        load = f"{self.concurrency} stream{'' if self.concurrency == 1 else 's'}"
        prompts = f"{self.scenario}'s prompts of about {self.prompt_tokens:,.0f} tokens"
        return (
            f"{prompts} fit under capture {self.capture:,}, not under {self.smaller_capture:,}: TTFT p50 at {load} "
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

"""Capture's second gain: a prompt that fits under the captured size runs in graphs, which spares the host its launches.

Measured where a run has two captures of otherwise equal configurations, the load's prompts between them; elsewhere
told from the recorded servers (capacity/graphs.py), with what it would cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from qwenbench.analysis.columns import VARIED
from qwenbench.analysis.run import valid_rows
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
    rows = valid_rows(points).dropna(subset=list(_NEEDED))
    same = ["gpu_memory_utilization", "max_num_seqs", *(str(n) for n in rows if str(n).startswith(VARIED))]
    if rows.empty:
        return ()
    loads = ["scenario", "profile", "concurrency", *same]
    rows = rows.assign(_prompts=rows["input_tokens_per_s"] / rows["requests_per_s"])
    rows["_prompts"] = rows.groupby(loads, dropna=False, sort=False)["_prompts"].transform("mean")
    rows["_fits"] = rows["capture"] >= rows["_prompts"]
    both = rows.groupby(loads, dropna=False, sort=False)["_fits"].transform("nunique") == 2
    found = []
    for load, own in rows[both & (rows["_prompts"] <= GAIN_UP_TO_TOKENS)].groupby(loads, dropna=False, sort=False):
        prompts = float(own["_prompts"].iloc[0])
        above, below = own[own["_fits"]], own[~own["_fits"]]
        pair = (above[above["capture"] == above["capture"].min()], below[below["capture"] == below["capture"].max()])
        ttft, rate, kv = (
            tuple(float(side[name].mean()) for side in pair)
            for name in ("ttft_ms_p50", "output_tokens_per_s", "kv_cache_gib")
        )
        names = [str(side["config_id"].iloc[0]) for side in pair]
        captures = [int(side["capture"].iloc[0]) for side in pair]
        known = None if any(map(math.isnan, kv)) else (kv[0], kv[1])
        streams = int(own["concurrency"].iloc[0])
        found.append(
            Reached(names[0], names[1], captures[0], captures[1], str(load[0]), streams, prompts,
                    (ttft[0], ttft[1]), (rate[0], rate[1]), known)
        )  # fmt: skip
    return tuple(found)


def reach_notes(points: pd.DataFrame, config_id: str, users: int | None) -> Iterator[str]:
    """What the run shows of the gain for a configuration at these users; where it shows nothing and the prompts do not
    fit, what recorded servers gained."""
    measured = [
        found
        for found in captures_reached(points)
        if config_id in (found.larger, found.smaller) and users in (None, found.concurrency)
    ]
    yield from map(str, measured)
    rows = points[(points["config_id"] == config_id) & points["concurrency"].notna()]
    if measured or rows.empty or not {*_NEEDED, "max_num_seqs"} <= set(rows):
        return
    prompts, capture, seqs = _prompt_tokens(rows), rows["capture"].iloc[0], rows["max_num_seqs"].iloc[0]
    if pd.isna(prompts) or pd.isna(capture) or pd.isna(seqs) or prompts <= capture:
        return
    enough = next((size for size in MEASURED_CAPTURES if size >= prompts), None)
    if enough is not None:
        price = graphs_gib(enough, int(seqs)) - graphs_gib(int(capture), int(seqs))
        yield (
            f"prompts of about {prompts:,.0f} tokens run outside the graphs of capture {capture:,.0f}; a larger one is "
            f"not in this run (--capture {enough} --max-num-seqs {seqs:.0f}): {capture_gain_words(price)} (docs/gpu.md)"
        )


def _prompt_tokens(rows: pd.DataFrame) -> float:
    """Mean prompt tokens of a load's requests; NaN where it is not known."""
    return float((rows["input_tokens_per_s"] / rows["requests_per_s"]).mean())

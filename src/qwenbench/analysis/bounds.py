"""Why a load point is not faster: what bounded it, from the server's own gauges within the window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

BOUNDS = {
    "client": "the load generator could not keep up",
    "kv": "the KV cache is full: requests were preempted or wait for blocks",
    "scheduler": "--max-num-seqs is reached while requests wait",
    "graph-miss": "decode batches are larger than the largest captured FULL graph",
    "prefill": "prompts take half of each step's token budget or more",
    "load": "nothing is full: more clients would still gain",
    "decode": "every decode step is as full as it gets: more clients would not gain",
}
"""Bound -> what it means, in the order in which the first that holds is taken."""

KV_FULL = 0.95
"""KV usage at which waiting requests wait for blocks."""
HALF = 0.5
"""Share of samples, or of the step budget, from which on a bound holds."""

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bound:
    """What bounded a point."""

    first: str | None
    """The first bound that holds; None when the server's gauges are not known."""
    all: tuple[str, ...]
    """Every bound that holds, in the order of BOUNDS."""
    evidence: Mapping[str, str]
    """Bound -> the figures that say so; also for those that were checked and did not hold."""


def bounds(
    metrics: pa.Table,
    *,
    max_num_seqs: int | None,
    capture_effective_full: int | None,
    max_num_batched_tokens: int | None,
    client_saturated: bool,
    more_load_gains: bool | None = None,
) -> Bound:
    """What bounded a point, by design.md's thresholds.

    `metrics` has METRICS_SCHEMA, only rows within the window. `capture_effective_full` is the largest FULL graph
    (0: none at all; None: not known, or a device without graphs). `more_load_gains` says whether the next higher
    load gave more tokens/s; where that is not known, free places under max_num_seqs count as gain to be had.
    Unknown limits and gauges leave their bound unchecked.
    """
    evidence: dict[str, str] = {}
    holding: list[str] = []
    running, waiting, usage = (_column(metrics, name) for name in ("running", "waiting", "kv_cache_usage"))
    checks = {
        "client": (client_saturated, "the client was saturated") if client_saturated else None,
        "kv": _kv(metrics, waiting, usage),
        "scheduler": _scheduler(running, waiting, max_num_seqs),
        "graph-miss": _graph_miss(running, capture_effective_full),
        "prefill": _prefill(metrics, max_num_batched_tokens),
    }
    for name, outcome in checks.items():
        if outcome is None:
            continue
        holds, evidence[name] = outcome
        if holds:
            holding.append(name)
    if not holding and _known(running).any():
        name, evidence[name] = _load_or_decode(running, max_num_seqs, more_load_gains)
        holding.append(name)
    return Bound(holding[0] if holding else None, tuple(holding), evidence)


def _kv(metrics: pa.Table, waiting: Values, usage: Values) -> tuple[bool, str] | None:
    preempted = _grown(_column(metrics, "preemptions_total"))
    both = _known(waiting) & _known(usage)
    if preempted is None and not both.any():
        return None
    full = (usage[both] >= KV_FULL) & (waiting[both] > 0)
    parts = []
    if preempted is not None:
        parts.append(f"{preempted:.0f} preemptions")
    if both.any():
        parts.append(f"usage >= {KV_FULL:g} with requests waiting in {full.mean():.0%} of {both.sum()} samples")
        parts.append(f"peak usage {usage[both].max():.2f}")
    return bool((preempted or 0) > 0 or full.any()), ", ".join(parts)


def _scheduler(running: Values, waiting: Values, max_num_seqs: int | None) -> tuple[bool, str] | None:
    both = _known(running) & _known(waiting)
    if max_num_seqs is None or not both.any():
        return None
    share = float(((running[both] >= max_num_seqs) & (waiting[both] > 0)).mean())
    return (
        share >= HALF,
        f"all {max_num_seqs} places taken with requests waiting in {share:.0%} of {both.sum()} samples",
    )


def _graph_miss(running: Values, capture: int | None) -> tuple[bool, str] | None:
    known = running[_known(running)]
    if capture is None or not known.size:
        return None
    share = float((known > capture).mean())
    words = f"more than {capture} running in {share:.0%} of {known.size} samples, mean {known.mean():.1f}"
    return share >= HALF, words


def _prefill(metrics: pa.Table, budget: int | None) -> tuple[bool, str] | None:
    """Prompt tokens computed (found in the prefix cache: not computed) per step, against the step's budget."""
    steps = _grown(_column(metrics, "iteration_tokens_count"))
    prompts = _grown(_column(metrics, "prompt_tokens_total"))
    if not budget or not steps or prompts is None:
        return None
    computed = max(0.0, prompts - (_grown(_column(metrics, "prefix_hits_total")) or 0.0))
    share = computed / steps / budget
    return share >= HALF, f"{computed / steps:.0f} prompt tokens per step, {share:.0%} of the budget of {budget}"


def _load_or_decode(running: Values, max_num_seqs: int | None, gains: bool | None) -> tuple[str, str]:
    peak = float(np.nanmax(running))
    if gains is not None:
        return ("load", "the next higher load gave more") if gains else ("decode", "the next higher load gave no more")
    if max_num_seqs is None or peak < max_num_seqs:
        limit = "" if max_num_seqs is None else f" of {max_num_seqs} places"
        return "load", f"at most {peak:.0f}{limit} were running, and none of the other bounds holds"
    return "decode", f"all {max_num_seqs} places were in use, and none of the other bounds holds"


def _column(metrics: pa.Table, name: str) -> Values:
    if name not in metrics.column_names:
        return np.full(metrics.num_rows, np.nan)
    return np.asarray(metrics[name].cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def _known(values: Values) -> NDArray[np.bool_]:
    return ~np.isnan(values)


def _grown(counter: Values) -> float | None:
    """How much a counter grew within the window; None without two values, a restart counts from 0."""
    known = counter[_known(counter)]
    if known.size < 2:
        return None
    steps = np.diff(known)
    return float(np.where(steps >= 0, steps, known[1:]).sum())

"""Why a load point is not faster: what bounded it, from the server's own gauges within the window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qwenbench.analysis.run import grouped, level_of
from qwenbench.analysis.server_samples import column_values, known_values

BOUNDS = {
    "client": "the load generator could not keep up",
    "kv": "the KV cache is full: requests were preempted or wait for blocks",
    "scheduler": "--max-num-seqs is reached while requests wait",
    "graph-miss": "decode batches are larger than the largest captured FULL graph",
    "prefill": "most of the time between tokens goes into steps that carry other requests' prompts",
    "load": "nothing is full, and a higher load that was measured gives more",
    "decode": "every decode step is as full as it gets: more clients would not gain",
}
"""Bound -> what it means, in the order in which the first that holds is taken."""
ADVICE = {
    "kv": "more KV cache (a higher --gpu-memory-utilization where VRAM allows it, --kv-cache-dtype fp8), or fewer "
    "requests at a time (--max-num-seqs)",
    "scheduler": "a higher --max-num-seqs, with --max-cudagraph-capture-size to match",
    "graph-miss": "--max-cudagraph-capture-size of at least the batch, times 1 + drafted tokens with a drafter "
    "(24.0 -> 13 ms a token at 128 streams, H200)",
    "prefill": "no fewer than 2,048 --max-num-batched-tokens (1,024 cost 11 to 21 % of tokens/s), asynchronous "
    "scheduling on (off cost 16 to 21 %), FlashInfer's sampler where top-k or top-p is used (without it ITL 6.0 -> 9.0 "
    "ms at 16 streams), a capture size above the prompts' length (TTFT -12 to -35 % at one stream), a host with faster "
    "cores: such a step waits for it (all measured on an H100, docs/metrics.md)",
}
"""Bound -> what was measured to help, never a guess."""

KV_FULL = 0.95
"""KV usage at which waiting requests wait for blocks."""
HALF = 0.5
"""Share of samples, or of the step budget, from which on a bound holds."""

Values = NDArray[np.float64]
Check = tuple[bool, str] | None
"""Whether a bound holds and the figures that say so; None: not known."""

NEARLY = 0.95
"""Share of the places that must run for them to count as taken."""
TAKEN = 0.25
"""Share of samples with every place taken from which on a queue is one for places."""
QUEUE_SHARE = 0.1
"""Share of the requests' time in the server's queue from which on they wait."""
MORE = 1.05
"""A higher load gives more when its tokens/s are so many times these."""


@dataclass(frozen=True, slots=True)
class TimeShares:
    """Where the time of the window's requests went, as shares of it. None: not known."""

    decode: float
    """Ordinary gaps between tokens."""
    stalls: float
    """Gaps over 2.5 x the median one: other requests' prefills, or the host."""
    first_token: float
    """To the first token, the queue left out where it is known: their own prefill."""
    queue: float | None

    def __str__(self) -> str:
        first = "own prefill" if self.queue is not None else "first token"
        named = (("decode", self.decode), ("prefill of others", self.stalls), (first, self.first_token))
        parts = [f"{name} {share:.0%}" for name, share in named]
        return ", ".join(parts if self.queue is None else [*parts, f"queue {self.queue:.0%}"])

    @property
    def stalls_lead(self) -> bool:
        """Whether stalls hold the largest share."""
        return self.stalls > max(self.decode, self.first_token, self.queue or 0.0)


@dataclass(frozen=True, slots=True)
class Bound:
    first: str | None
    """The first bound that holds; None when the server's gauges are not known, or when nothing is full and no higher
    load tells whether more clients would gain."""
    all: tuple[str, ...]
    """Every bound that holds, in the order of BOUNDS."""
    evidence: Mapping[str, str]
    """Bound -> the figures that say so; also for those that were checked and did not hold."""

    def told(self, shares: TimeShares | None) -> str | None:
        """Every bound that holds with its evidence, and where the time went."""
        words = [f"{name} ({self.evidence[name]})" if name in self.evidence else name for name in self.all]
        if self.first is None and "load" in self.evidence:
            words.append(f"{NOT_KNOWN}: {self.evidence['load']}")
        return "; ".join([*words, *([f"time: {shares}"] if shares is not None else [])]) or None


NOT_KNOWN = "whether more clients would gain is not known"
"""Beginning of what `bound_all` says where only a higher load could tell."""


def bounds(
    metrics: pa.Table,
    *,
    max_num_seqs: int | None,
    capture_effective_full: int | None,
    max_num_batched_tokens: int | None,
    client_saturated: bool,
    drafted: int = 0,
    shares: TimeShares | None = None,
    full_graph_share: float | None = None,
) -> Bound:
    """What bounded a point.

    `metrics` has METRICS_SCHEMA, only rows within the window. `capture_effective_full` is the largest FULL graph
    (0: none at all; None: not known, or a device without graphs), in rows: with a drafter of `drafted` tokens a request
    takes 1 + drafted of them. `full_graph_share` is what the server itself counted of decode steps
    (engine/speed_settings.py): it outranks what the number of running requests lets expect. Unknown limits and gauges
    leave their bound unchecked. Whether a higher load gives more cannot be seen in one point: see `settle_load`.
    """
    running, waiting, usage = (column_values(metrics, name) for name in ("running", "waiting", "kv_cache_usage"))
    queue = _queue(waiting, shares)
    checks: dict[str, Check] = {
        "client": (client_saturated, "the client was saturated") if client_saturated else None,
        "kv": _kv(metrics, waiting, usage),
        "scheduler": _scheduler(running, max_num_seqs, queue),
        "graph-miss": _graph_miss(running, capture_effective_full, 1 + drafted, full_graph_share),
    }
    checks["prefill"] = _prefill(metrics, max_num_batched_tokens, shares, queue, _holds(checks, "kv", "scheduler"))
    evidence = {name: found[1] for name, found in checks.items() if found is not None}
    holding = [name for name in checks if _holds(checks, name)]
    if not holding and known_values(running).size:
        most = float(np.nanmax(running))
        if max_num_seqs is not None and most >= max_num_seqs:
            evidence["decode"] = f"all {max_num_seqs} places were in use, and none of the other bounds holds"
            holding.append("decode")
        else:
            limit = "" if max_num_seqs is None else f" of {max_num_seqs} places"
            evidence["load"] = f"at most {most:.0f}{limit} were running, and nothing is full"
    return Bound(holding[0] if holding else None, tuple(holding), evidence)


def settle_load(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of points.csv with `load` or `decode` as the bound where a higher measured load of the same configuration,
    workload and launch tells which; the others are left as they are.

    `load`: the next higher load gave over MORE times the tokens/s (means over repeats of valid points).
    """
    usable = [row for row in points if row.get("valid") and row.get("output_tokens_per_s") is not None]
    rates = {}
    for load, alike in grouped(usable, _same).items():
        levels = grouped(alike, level_of)
        rates[load] = {level: fmean(row["output_tokens_per_s"] for row in own) for level, own in levels.items()}
    return [_settled(row, rates.get(_same(row), {})) for row in points]


def _same(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("config_id", "machine", "scenario", "profile", "load_shape", "launch"))


def _settled(row: Mapping[str, Any], rates: Mapping[float | None, float]) -> Mapping[str, Any]:
    """`rates`: tokens/s by load."""
    told, level = row.get("bound_all"), level_of(row)
    if row.get("bound") is not None or not told or NOT_KNOWN not in told or level is None or level not in rates:
        return row
    higher = min((other for other in rates if other is not None and other > level), default=None)
    if higher is None:
        return row
    ours, theirs = rates[level], rates[higher]
    bound = "load" if theirs > MORE * ours else "decode"
    words = f"{bound} ({theirs / ours - 1:+.0%} tokens/s at {higher:g})" if ours > 0 else bound
    return {**row, "bound": bound, "bound_all": told.replace(NOT_KNOWN, words, 1)}


def _holds(checks: Mapping[str, Check], *names: str) -> bool:
    return any(outcome[0] for name in names if (outcome := checks[name]) is not None)


def _queue(waiting: Values, shares: TimeShares | None) -> Check:
    """Whether requests wait in the server, from its gauge and from its own clock."""
    known, parts, waits = known_values(waiting), [], False
    if known.size:
        share = float((known > 0).mean())
        waits = share >= HALF
        parts.append(f"requests waiting in {share:.0%} of {known.size} samples, {known.max():.0f} at the peak")
    if shares is not None and shares.queue is not None:
        waits = waits or shares.queue >= QUEUE_SHARE
        parts.append(f"{shares.queue:.0%} of their time was in the queue")
    return (waits, ", ".join(parts)) if parts else None


def _kv(metrics: pa.Table, waiting: Values, usage: Values) -> Check:
    preempted = _grown(column_values(metrics, "preemptions_total"))
    both = ~np.isnan(waiting) & ~np.isnan(usage)
    full = (usage[both] >= KV_FULL) & (waiting[both] > 0)
    parts = [] if preempted is None else [f"{preempted:.0f} preemptions"]
    if both.any():
        parts.append(f"usage >= {KV_FULL:g} with requests waiting in {full.mean():.0%} of {both.sum()} samples")
        parts.append(f"peak usage {usage[both].max():.2f}")
    return (bool((preempted or 0) > 0 or full.any()), ", ".join(parts)) if parts else None


def _scheduler(running: Values, max_num_seqs: int | None, queue: Check) -> Check:
    """Requests wait, and the places were taken in a quarter of the samples or more. The two gauges of one sample need
    not agree: they are a step old, and a place is empty for a moment between two requests (recorded: 62 to 64 of 64
    running while 64 waited).

    Without a known --max-num-seqs (a server that was already there) the places are as many as ran at the most, if that
    is where it stayed: in half the samples or more.
    """
    known = known_values(running)
    if queue is None or not known.size:
        return None
    most, places = float(known.max()), max_num_seqs
    if places is None:
        if float((known >= NEARLY * most).mean()) < HALF:
            return None
        places = round(most)
    taken = float((known >= NEARLY * places).mean())
    words = f"the {places} places taken in {taken:.0%} of {known.size} samples, {queue[1]}"
    return taken >= TAKEN and queue[0], words


def _graph_miss(running: Values, capture: int | None, rows: int, counted: float | None) -> Check:
    if counted is not None:
        return 1.0 - counted >= HALF, f"measured: {1.0 - counted:.0%} of decode steps ran outside of a full graph"
    known = known_values(running)
    if capture is None or not known.size:
        return None
    share = float((known * rows > capture).mean())
    batch = f"more than {capture} running" if rows == 1 else f"more than {capture} rows ({rows} a request)"
    return share >= HALF, f"{batch} in {share:.0%} of {known.size} samples, mean {known.mean():.1f}; inferred"


def _prefill(
    metrics: pa.Table, budget: int | None, shares: TimeShares | None, queue: Check, places_or_blocks: bool
) -> Check:
    """Stalls hold the largest share of the requests' time; or prompt tokens computed (found in the prefix cache: not
    computed) take half of each step's budget; or requests wait though places and blocks are free."""
    parts, holds = [], False
    if shares is not None:
        holds = shares.stalls_lead
        parts.append(f"{shares.stalls:.0%} of the requests' time went into stalls, {shares.decode:.0%} into decoding")
    steps = _grown(column_values(metrics, "iteration_tokens_count"))
    prompts = _grown(column_values(metrics, "prompt_tokens_total"))
    if budget and steps and prompts is not None:
        computed = max(0.0, prompts - (_grown(column_values(metrics, "prefix_hits_total")) or 0.0))
        share = computed / steps / budget
        holds = holds or share >= HALF
        parts.append(f"{computed / steps:.0f} prompt tokens per step, {share:.0%} of the budget of {budget}")
    if queue is not None and queue[0] and not places_or_blocks:
        holds = True
        parts.append(f"{queue[1]}, with places and blocks free")
    return (holds, ", ".join(parts)) if parts else None


def _grown(counter: Values) -> float | None:
    """How much a counter grew within the window; None without two values, a restart counts from 0."""
    known = known_values(counter)
    if known.size < 2:
        return None
    steps = np.diff(known)
    return float(np.where(steps >= 0, steps, known[1:]).sum())

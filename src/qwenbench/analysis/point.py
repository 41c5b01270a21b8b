"""One load point's row of points.csv, from its request records and samples. Definitions: docs/metrics.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qwenbench.analysis import server_samples as server
from qwenbench.analysis.bounds import TimeShares, bounds
from qwenbench.analysis.columns import COLUMN_NAMES, varied_column
from qwenbench.analysis.request_arrays import (
    Gaps,
    RequestArrays,
    disagreements,
    empty_columns,
    failure_reasons,
    gaps_of,
    latency_columns,
    met_limits,
    tokens_from,
)
from qwenbench.analysis.server_samples import clock_columns
from qwenbench.analysis.window import CLOSED, IN_FLIGHT_SHARE, Window, mean_in_flight, window_of
from qwenbench.capacity.kv import NULL_BLOCKS, KvLayout
from qwenbench.engine.config import Configuration, ServerConfig
from qwenbench.engine.speed_settings import GraphSteps, full_graph_share
from qwenbench.engine.startup_log import StartupLog
from qwenbench.observe.ledger import MemoryLedger
from qwenbench.observe.nvml import MIB_PER_GIB
from qwenbench.runfolder.cells import Cell

if TYPE_CHECKING:
    from qwenbench.load.client_error import ClientError

NO_LEDGER = MemoryLedger(StartupLog())
"""Nothing was read of the server: a server that was already there, without its log."""

BROKEN = "broken output"
"""Words by which an invalid_reason tells that the answers themselves were bad."""
MAX_BROKEN_SHARE = 0.1
"""Largest share of judged answers that may be broken output; a single false alarm in 16 answers is none yet."""


@dataclass(frozen=True, slots=True)
class PointContext:
    """What a point is of, beside its records and samples. Held as it was made; only the row flattens it.

    None: not known.
    """

    cell: Cell
    configuration: Configuration
    load_shape: str = CLOSED
    """`closed`, or `poisson`, `gamma`, `constant`, `trace`."""
    seed: int = 0
    simulated: bool = False
    on_cards: bool = False
    """It was started on cards that NVML watches, so their memory counts although it is simulated."""
    node: str | None = None
    """The host that the server runs on."""
    machine: str | None = None
    """See machines.py."""
    length_controlled: bool | None = True
    ramp_s: float = 0.0
    schedule_start_ns: int | None = None
    """Open loop: LoadResult.started_ns."""
    schedule_s: float | None = None
    """Open loop: length of the schedule in seconds where --duration sets it; else it ends with its last arrival."""
    slo: Mapping[str, float] = field(default_factory=dict)
    """Per-request limits in ms: ttft, ttfo, tpot, itl (mean), e2e."""

    launched: ServerConfig | None = None
    """The server as it was started: with --card its utilisation is of the real card."""
    ledger: MemoryLedger = NO_LEDGER
    layout: KvLayout | None = None
    vram_before_mib: Mapping[str, float] = field(default_factory=dict)
    """Card -> used memory before the launch (simulator: one card `sim`)."""
    max_num_batched_tokens: int | None = None
    """Step budget in tokens."""
    startup_s: float | None = None
    request_tokens: int | None = None
    """The 95th percentile of the scenario's requests over its whole draw, prompt and answer."""

    client_error: ClientError | None = None
    client_invalid_reason: str | None = None
    """Why the client or its clock was not good enough for this point (load/client_error.py), told there only."""
    graph_steps: Sequence[GraphSteps] = ()
    """Steps of the point by graph, where the server's log counts them."""
    client_saturated: bool = False
    """A client process used up its core during the point."""
    canary_accuracy: float | None = None
    natural_broken_share: float | None = None
    """Share of broken answers in the natural-stop pass: counts where the point's own answers were not judged."""
    natural_broken_kinds: str = ""
    """The kinds that it found, for the reason."""
    broken_limit: float = MAX_BROKEN_SHARE


def summarise_point(
    requests: pa.Table, metrics: pa.Table | None, nvml: pa.Table | None, context: PointContext
) -> dict[str, Any]:
    """The point's row: every name of POINT_COLUMNS and one vary_FLAG per varied flag, None where unknown.

    `requests` has REQUEST_SCHEMA (warm-up excluded), `metrics` METRICS_SCHEMA and `nvml` NVML_SCHEMA.
    Rates and energy are over the window, latencies of requests that started in it, peaks and counters
    over the whole point.
    """
    arrays = RequestArrays.of(requests)
    concurrency = context.cell.point.concurrency
    window = window_of(
        arrays, context.load_shape, concurrency, context.ramp_s, context.schedule_start_ns, context.schedule_s
    )
    row: dict[str, Any] = dict.fromkeys(COLUMN_NAMES)
    row |= _identity(context)
    row |= {"requests_ok": int(arrays.ok.sum()), "requests_failed": int((~arrays.ok).sum())}
    row |= {"error_top": failure_reasons(requests), "disagreements": disagreements(requests)}
    row["tokens_from"] = tokens_from(requests)
    if window is not None and arrays.ok.any():
        started = window.holds_start(arrays.begin_ns) & arrays.ok
        row |= {"window": window.kind, "duration_s": window.duration_s}
        row |= {"window_start_ns": window.start_ns, "window_end_ns": window.end_ns}
        row["requests_in_window"] = int(started.sum())
        row |= _in_flight(arrays, window, context)
        row |= _rates(arrays, window, context)
        row |= _latencies(requests, arrays, started)
        row["goodput_rps"] = _goodput(requests, arrays, window, context.slo)
    row["prefix_hit_rate"] = _prefix_hit_rate(arrays, metrics)
    broken = pc.mean(pc.greater(pc.list_value_length(requests["broken"]), 0)).as_py()  # of the answers that were judged
    row["broken_share"] = context.natural_broken_share if broken is None else broken
    row["requests_that_fit"] = _requests_that_fit(arrays, context)
    row |= _server(metrics)
    row |= server.drafting_columns(metrics)
    row |= clock_columns(nvml, window)
    row |= _cards(server.cards_of(nvml, metrics, context.simulated and not context.on_cards), window, arrays, context)
    row |= _validity(row, _broken_kinds(requests) or context.natural_broken_kinds, context)
    if window is not None:
        row |= _bounds(requests, arrays, metrics, window, context)
    return row


def _identity(context: PointContext) -> dict[str, Any]:
    point, configuration, ledger = context.cell.point, context.configuration, context.ledger
    return {
        "config_id": context.cell.config_id,
        "scenario": point.scenario,
        "profile": point.profile,
        "load_shape": context.load_shape,
        "concurrency": point.concurrency,
        "rate": point.rate,
        "repeat": point.repeat,
        "launch": context.cell.launch,
        "seed": context.seed,
        "simulated": context.simulated,
        "node": context.node,
        "machine": context.machine,
        "length_controlled": context.length_controlled,
        "capture": configuration.server.capture,
        "max_num_seqs": configuration.server.max_num_seqs,
        "gpu_memory_utilization": configuration.utilization,
        "gpu_memory_utilization_effective": context.launched.gpu_memory_utilization if context.launched else None,
        "kv_cache_gib": ledger.startup.kv_cache_gib,
        "kv_cache_blocks": ledger.kv_cache_blocks,
        "kv_cache_tokens": ledger.kv_cache_tokens,
        "startup_s": context.startup_s,
        "client_error_ms": context.client_error.mean_ms if context.client_error else None,
        "client_error_p99_ms": context.client_error.p99_ms if context.client_error else None,
        "canary_accuracy": context.canary_accuracy,
        **{varied_column(flag): value for flag, value in configuration.vary.items()},
    }


def _rates(arrays: RequestArrays, window: Window, context: PointContext) -> dict[str, Any]:
    seconds = window.duration_s
    completed = int((window.holds_end(arrays.ended_ns) & arrays.ok).sum())
    if seconds <= 0 or completed == 0:
        return {}  # nothing ended: a rate of 0 would be made of what did not end
    started = window.holds_start(arrays.begin_ns) & arrays.ok
    inputs = _sum(arrays.input_tokens[started])
    generated = arrays.tokens_between(window.start_ns, window.end_ns)
    outputs = generated / seconds if generated is not None else None
    input_rate = inputs / seconds if inputs is not None else None
    users = context.cell.point.concurrency if context.load_shape == CLOSED else None
    return {
        "requests_per_s": completed / seconds,
        "input_tokens_per_s": input_rate,
        "output_tokens_per_s": outputs,
        "total_tokens_per_s": input_rate + outputs if input_rate is not None and outputs is not None else None,
        "output_tokens_per_s_per_user": outputs / users if outputs is not None and users else None,
    }


def _latencies(requests: pa.Table, arrays: RequestArrays, started: np.ndarray) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name, values in arrays.latencies_ms().items():
        columns |= latency_columns(name, values[started])
    gaps = gaps_of(requests, started)
    columns |= latency_columns("itl", gaps.values_ms) if gaps.usable else empty_columns("itl")
    stalls = gaps.stalls()
    if stalls is not None:
        columns |= {"itl_stall_share": stalls[0], "itl_stall_ms_p50": None if np.isnan(stalls[1]) else stalls[1]}
    return columns | {"merged_share": gaps.merged_share}


def _in_flight(arrays: RequestArrays, window: Window, context: PointContext) -> dict[str, Any]:
    """What the load really was, and a note where a closed loop held less than its label says."""
    mean, streams = mean_in_flight(arrays, window), context.cell.point.concurrency
    note = None
    if mean is not None and streams is not None and mean < IN_FLIGHT_SHARE * streams:
        note = f"{mean:.1f} of {streams} streams were under way on average: this is not the load that its name says"
    return {"in_flight_mean": mean, "window_note": note}


def _goodput(requests: pa.Table, arrays: RequestArrays, window: Window, slo: Mapping[str, float]) -> float | None:
    if not slo or window.duration_s <= 0:
        return None
    latencies = dict(arrays.latencies_ms())
    if "itl" in slo:
        gaps: Gaps = gaps_of(requests, np.ones(arrays.count, dtype=np.bool_))
        if not gaps.usable:
            return None
        latencies["itl"] = gaps.mean_per_request_ms()
    good = met_limits(slo, latencies) & arrays.ok & window.holds_end(arrays.ended_ns)
    return int(good.sum()) / window.duration_s


def _prefix_hit_rate(arrays: RequestArrays, metrics: pa.Table | None) -> float | None:
    """From the server's counters, else from what `usage` said per request."""
    if metrics is not None:
        queries, hits = server.growth(metrics, "prefix_queries_total"), server.growth(metrics, "prefix_hits_total")
        if queries and hits is not None:
            return hits / queries
    told = ~np.isnan(arrays.cached_tokens) & (arrays.input_tokens > 0)
    if not told.any():
        return None
    return float(arrays.cached_tokens[told].sum() / arrays.input_tokens[told].sum())


def _requests_that_fit(arrays: RequestArrays, context: PointContext) -> int | None:
    """floor(usable blocks / blocks of the scenario's p95 request; unknown: of this point's)."""
    tokens = server.known_values((arrays.input_tokens + arrays.output_tokens)[arrays.ok])
    total, length = context.ledger.kv_cache_blocks, context.request_tokens
    if length is None and len(tokens):
        length = int(np.ceil(np.percentile(tokens, 95)))
    if total is None or context.layout is None or length is None:
        return None
    blocks = context.layout.blocks_held(length)
    return (total - NULL_BLOCKS) // blocks if blocks > 0 else None


def _server(metrics: pa.Table | None) -> dict[str, Any]:
    if metrics is None or metrics.num_rows == 0:
        return {}
    return {
        "kv_cache_usage_peak": server.peak(metrics, "kv_cache_usage"),
        "preemptions": _whole(server.growth(metrics, "preemptions_total")),
        "running_peak": _whole(server.peak(metrics, "running")),
        "waiting_peak": _whole(server.peak(metrics, "waiting")),
    }


def _cards(cards: pa.Table, window: Window | None, arrays: RequestArrays, context: PointContext) -> dict[str, Any]:
    peaks = server.by_card(cards, "used_mib", np.max)
    before = context.vram_before_mib
    own_peaks = server.own_peaks_mib(cards, before)
    budget_gib = context.ledger.budget_gib
    over = max(own_peaks.values()) - budget_gib * MIB_PER_GIB if own_peaks and budget_gib is not None else None
    row: dict[str, Any] = {
        "vram_before_mib": max(before.values(), default=None),
        "vram_ready_mib": context.ledger.vram.ready_mib,
        "vram_peak_mib": max(peaks.values(), default=None),
        "vram_own_peak_mib": max(own_peaks.values(), default=None),
        "vram_over_budget_mib": over,
    }
    if window is not None:
        busy = server.card_means(cards, window, "util_pct")
        watts = server.card_means(cards, window, "power_w")
        row["gpu_util_mean"] = None if busy is None else float(np.mean(busy))
        row["power_w_mean"] = None if watts is None else sum(watts)
        row["energy_j_per_output_token"] = server.energy_per_token_j(cards, window, arrays.tokens_between)
    return row


def _broken_kinds(requests: pa.Table) -> str:
    """Kinds of broken output found, the most frequent first, with their counts."""
    found = pc.value_counts(pc.list_flatten(requests["broken"].combine_chunks())).to_pylist()
    return ", ".join(f"{kind['values']} {kind['counts']}" for kind in sorted(found, key=lambda k: -k["counts"]))


def _validity(row: Mapping[str, Any], broken_kinds: str, context: PointContext) -> dict[str, Any]:
    reasons = []
    if row["requests_ok"] == 0:
        why = f" ({row['error_top']})" if row["error_top"] else ""
        reasons.append(f"every request failed{why}" if row["requests_failed"] else "no request was sent")
    if context.client_invalid_reason:
        reasons.append(context.client_invalid_reason)
    if row["broken_share"] is not None and row["broken_share"] > context.broken_limit:
        reasons.append(f"{row['broken_share']:.1%} of the answers were {BROKEN} ({broken_kinds})")
    return {"valid": not reasons, "invalid_reason": "; ".join(reasons) or None}


def _bounds(
    requests: pa.Table, arrays: RequestArrays, metrics: pa.Table | None, window: Window, context: PointContext
) -> dict[str, Any]:
    if metrics is None or metrics.num_rows == 0:
        return {"bound": "client", "bound_all": "client"} if context.client_saturated else {}
    inside = server.during(metrics, window)
    clock = server.server_clock(inside)
    started = window.holds_start(arrays.begin_ns) & arrays.ok
    shares = _time_shares(requests, arrays, started, clock["server_queue_ms_mean"])
    startup, seqs = context.ledger.startup, context.configuration.server.max_num_seqs
    drafted = startup.speculative_tokens or 0
    found = bounds(
        inside,
        max_num_seqs=seqs,
        capture_effective_full=startup.capture_effective_full,
        max_num_batched_tokens=context.max_num_batched_tokens,
        client_saturated=context.client_saturated,
        drafted=drafted,
        shares=shares,
        full_graph_share=full_graph_share(context.graph_steps, None if seqs is None else seqs * (1 + drafted)),
    )
    return {"bound": found.first, "bound_all": found.told(shares), **clock}


def _time_shares(
    requests: pa.Table, arrays: RequestArrays, started: np.ndarray, queue_ms: float | None
) -> TimeShares | None:
    """Where the time of these requests went: their E2E is the time to the first token and the gaps after it."""
    gaps = gaps_of(requests, started)
    stalls, total = gaps.stalls(), float(np.nansum(arrays.e2e_ms[started]))
    first = arrays.ttft_ms[started]
    if stalls is None or total <= 0 or np.isnan(first).all():
        return None
    between = float(gaps.values_ms.sum(dtype=np.float64)) / total
    queue = None if queue_ms is None else queue_ms * int(started.sum()) / total
    to_first = float(np.nansum(first)) / total
    return TimeShares(
        decode=between * (1 - stalls[0]),
        stalls=between * stalls[0],
        first_token=max(0.0, to_first - (queue or 0.0)),
        queue=queue,
    )


def _sum(values: np.ndarray) -> float | None:
    return None if np.isnan(values).all() else float(np.nansum(values))


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)

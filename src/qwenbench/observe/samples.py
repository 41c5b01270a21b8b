"""Schemas of the two sample streams that are taken while a load point runs."""

from __future__ import annotations

import pyarrow as pa

NVML_SCHEMA = pa.schema(
    [
        ("t_ns", pa.int64()),  # CLOCK_REALTIME
        ("gpu", pa.string()),  # UUID
        ("used_mib", pa.float64()),
        ("own_mib", pa.float64()),  # of it the server's processes; null where NVML does not tell
        ("power_w", pa.float64()),
        ("energy_j", pa.float64()),  # NVML's total energy counter
        ("util_pct", pa.float64()),
        ("sm_clock_mhz", pa.float64()),
        ("mem_clock_mhz", pa.float64()),
        ("temperature_c", pa.float64()),
        ("power_limit_w", pa.float64()),  # as enforced now
        ("throttle", pa.int64()),  # NVML's clock event reasons, a bit each (analysis/clocks.py)
        ("other_pids", pa.string()),  # comma-separated pid:name of processes that are not the server's
    ]
)

METRICS_SCHEMA = pa.schema(
    [
        ("t_ns", pa.int64()),
        ("running", pa.float64()),
        ("waiting", pa.float64()),
        ("kv_cache_usage", pa.float64()),  # 0..1
        ("preemptions_total", pa.float64()),
        ("drafts_total", pa.float64()),  # vllm:spec_decode_*: drafts of all requests, a drafter's only
        ("drafted_tokens_total", pa.float64()),
        ("accepted_tokens_total", pa.float64()),
        ("prompt_tokens_total", pa.float64()),
        ("generation_tokens_total", pa.float64()),
        ("prefix_queries_total", pa.float64()),  # tokens looked up
        ("prefix_hits_total", pa.float64()),  # tokens found
        ("iteration_tokens_sum", pa.float64()),  # vllm:iteration_tokens_total histogram: tokens of all steps
        ("iteration_tokens_count", pa.float64()),  # and the number of steps
        ("iteration_tokens_buckets", pa.map_(pa.float64(), pa.float64())),  # steps of at most so many tokens
        ("queue_time_sum", pa.float64()),  # vllm:request_queue_time_seconds, s of finished requests
        ("queue_time_count", pa.float64()),
        ("prefill_time_sum", pa.float64()),  # vllm:request_prefill_time_seconds, s
        ("prefill_time_count", pa.float64()),
        ("waiting_capacity", pa.float64()),  # vllm:num_requests_waiting_by_reason: for a place, blocks or budget
        ("waiting_deferred", pa.float64()),  # for something else (a grammar, KV from elsewhere)
        ("server_late_mean_ms", pa.float64()),  # simulator and truth server only: own lateness per token
        ("server_late_p99_ms", pa.float64()),
        ("rss_bytes", pa.float64()),  # main memory of the API server's process
        ("vram_used_mib", pa.float64()),  # simulator only
        ("power_w", pa.float64()),  # simulator only
        ("energy_j", pa.float64()),  # simulator only
    ]
)
"""An unknown value is null, never 0."""

"""vLLM's /metrics: KV usage, running, waiting, preemptions, prefix hits, sampled while the load runs."""

from __future__ import annotations

import asyncio
import contextlib
import math
import operator
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from prometheus_client.parser import text_string_to_metric_families

from qwenbench.bounded_http import NoReplyError, Questions

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

PERIOD_S = 0.5

_GAUGES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_cache_usage",
    "vllm:gpu_cache_usage_perc": "kv_cache_usage",
    "vllm:num_preemptions_total": "preemptions_total",
    "vllm:spec_decode_num_drafts_total": "drafts_total",
    "vllm:spec_decode_num_draft_tokens_total": "drafted_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_total": "accepted_tokens_total",
    "vllm:prefix_cache_queries_total": "prefix_queries_total",
    "vllm:prefix_cache_hits_total": "prefix_hits_total",
    "process_resident_memory_bytes": "rss_bytes",
    **{f"vllm:{name}": name for name in ("prompt_tokens_total", "generation_tokens_total")},
    **{
        f"vllm:{family}_{part}": f"{name}_{part}"
        for family, name in (
            ("iteration_tokens_total", "iteration_tokens"),
            ("request_queue_time_seconds", "queue_time"),
            ("request_prefill_time_seconds", "prefill_time"),
        )
        for part in ("sum", "count")
    },
    **{
        f"qwenbench_sim:{name}": name
        for name in ("server_late_mean_ms", "server_late_p99_ms", "vram_used_mib", "power_w", "energy_j")
    },
}
_WORST_OF_ENGINES = frozenset({"kv_cache_usage", "server_late_mean_ms", "server_late_p99_ms"})


@dataclass(frozen=True, slots=True)
class Scrape:
    values: Mapping[str, float]
    """METRICS_SCHEMA names that the server has; several engines (data parallel) are added up, usages are the
    largest."""
    step_buckets: Mapping[float, float]
    """Tokens -> steps of at most so many tokens (vllm:iteration_tokens_total); all engines added up."""
    cache_config: Mapping[str, str]
    """Labels of vllm:cache_config_info (num_gpu_blocks, block_size, ...)."""


_BUCKETS = "vllm:iteration_tokens_total_bucket"
_BY_REASON = "vllm:num_requests_waiting_by_reason"
_NAMES = (*_GAUGES, _BUCKETS, _BY_REASON, "vllm:cache_config_info")
_WANTED = tuple(name.encode() for name in _NAMES)
"""Beginnings of the lines that are read: parsing all histograms costs ten times as much."""


def _can_be(label: str) -> bool:
    """Whether a label's value is text, or a number that counts something: no infinity, nothing beyond 2^53."""
    try:
        return abs(float(label)) < 2.0**53
    except ValueError:
        return True


def _is_number(edge: str) -> bool:
    try:
        return not math.isnan(float(edge))
    except ValueError:
        return False


def parse_metrics(text: str) -> Scrape:
    """Reads a /metrics answer. What is not there is missing from the result, never 0.

    Raises ValueError for lines that are none of the format's.
    """
    values: dict[str, float] = {}
    buckets: dict[float, float] = {}
    cache_config: dict[str, str] = {}
    relevant = "\n".join(line for line in text.split("\n") if line.startswith(_NAMES)) + "\n"
    try:
        families = list(text_string_to_metric_families(relevant))
    except LookupError as error:  # the parser's own, at a label that does not end
        raise ValueError(f"no metrics: {error}") from error
    for family in families:
        for sample in family.samples:
            if sample.name == "vllm:cache_config_info":
                cache_config = {name: value for name, value in sample.labels.items() if _can_be(value)}
            if (
                sample.name == _BUCKETS
                and math.isfinite(sample.value)
                and _is_number(edge := sample.labels.get("le", ""))
            ):
                buckets[float(edge)] = buckets.get(float(edge), 0.0) + sample.value
            name = _GAUGES.get(sample.name)
            if sample.name == _BY_REASON and (reason := sample.labels.get("reason")) in ("capacity", "deferred"):
                name = f"waiting_{reason}"
            if name is None or not math.isfinite(sample.value):
                continue  # +Inf and NaN are no readings
            combine = max if name in _WORST_OF_ENGINES else operator.add
            values[name] = combine(values[name], sample.value) if name in values else sample.value
    return Scrape(values, buckets, cache_config)


async def scrape(questions: Questions, *, aside: bool = False) -> Scrape | None:
    """One reading, or None when the server has no /metrics, none with a name of vLLM's, or none in time.

    `aside`: see `ask_lines`.
    """
    try:
        reply = await questions.ask_lines("/metrics", _WANTED, aside=aside)
    except NoReplyError:
        return None
    if reply.status != 200:
        return None
    try:
        reading = parse_metrics(reply.body.decode("utf-8", "replace"))
    except ValueError:
        return None
    return reading if reading.values else None


class MetricsScraper:
    """Reads /metrics every half second from `start` until `stop`, and once more at the end."""

    def __init__(self, questions: Questions, period_s: float = PERIOD_S) -> None:
        self._questions = questions
        self._period = period_s
        self._rows: list[dict[str, Any]] = []
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> MetricsScraper:
        """Takes the first reading, so that counters have a start value, then goes on in a task."""
        await self._read()
        self._task = asyncio.create_task(self._run())
        return self

    async def _read(self, *, aside: bool = False) -> None:
        reading = await scrape(self._questions, aside=aside)
        if reading is not None:
            buckets = sorted(reading.step_buckets.items()) or None
            self._rows.append({"t_ns": time.time_ns(), **reading.values, "iteration_tokens_buckets": buckets})

    async def _run(self) -> None:
        clock = asyncio.get_running_loop()
        due = clock.time()
        while True:
            due += self._period
            await asyncio.sleep(max(0.0, due - clock.time()))
            await self._read(aside=True)

    @property
    def latest(self) -> Mapping[str, Any]:
        return self._rows[-1] if self._rows else {}

    async def stop(self) -> pa.Table:
        """Ends scraping; all readings as METRICS_SCHEMA (no rows: the server has no /metrics)."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            await self._read()
        return pa.Table.from_pylist(self._rows, schema=METRICS_SCHEMA)

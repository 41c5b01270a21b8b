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

_BUCKETS = "vllm:iteration_tokens_total_bucket"
_CACHE_CONFIG = "vllm:cache_config_info"
_SOURCES: Mapping[str, tuple[str, ...]] = {
    "running": ("vllm:num_requests_running",),
    "waiting": ("vllm:num_requests_waiting",),
    "kv_cache_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),  # 0..1
    "preemptions_total": ("vllm:num_preemptions_total",),
    "drafts_total": ("vllm:spec_decode_num_drafts_total",),  # drafts of all requests, a drafter's only
    "drafted_tokens_total": ("vllm:spec_decode_num_draft_tokens_total",),
    "accepted_tokens_total": ("vllm:spec_decode_num_accepted_tokens_total",),
    "prompt_tokens_total": ("vllm:prompt_tokens_total",),
    "generation_tokens_total": ("vllm:generation_tokens_total",),
    "prefix_queries_total": ("vllm:prefix_cache_queries_total",),  # tokens looked up
    "prefix_hits_total": ("vllm:prefix_cache_hits_total",),  # tokens found
    "iteration_tokens_sum": ("vllm:iteration_tokens_total_sum",),  # tokens of all steps
    "iteration_tokens_count": ("vllm:iteration_tokens_total_count",),  # and the number of steps
    "iteration_tokens_buckets": (),  # steps of at most so many tokens: `_BUCKETS`
    "queue_time_sum": ("vllm:request_queue_time_seconds_sum",),  # s of finished requests
    "queue_time_count": ("vllm:request_queue_time_seconds_count",),
    "prefill_time_sum": ("vllm:request_prefill_time_seconds_sum",),  # s
    "prefill_time_count": ("vllm:request_prefill_time_seconds_count",),
    "waiting_capacity": ("vllm:num_requests_waiting_by_reason capacity",),  # for a place, blocks or budget
    "waiting_deferred": ("vllm:num_requests_waiting_by_reason deferred",),  # for something else (a grammar, KV)
    "server_late_mean_ms": ("qwenbench_sim:server_late_mean_ms",),  # simulator only: own lateness per token
    "server_late_p99_ms": ("qwenbench_sim:server_late_p99_ms",),
    "rss_bytes": ("process_resident_memory_bytes",),  # main memory of the API server's process
    "vram_used_mib": ("qwenbench_sim:vram_used_mib",),
    "power_w": ("qwenbench_sim:power_w",),
    "energy_j": ("qwenbench_sim:energy_j",),
}
"""Column -> the samples that it is read from, a `reason` label behind the name."""
_COLUMN_OF = {source: column for column, sources in _SOURCES.items() for source in sources}
_WORST_OF_ENGINES = frozenset({"kv_cache_usage", "server_late_mean_ms", "server_late_p99_ms"})
_NAMES = tuple({source.split()[0] for source in (*_COLUMN_OF, _BUCKETS, _CACHE_CONFIG)})
_WANTED = tuple(name.encode() for name in _NAMES)
"""Beginnings of the lines that are read: parsing all histograms costs ten times as much."""

METRICS_SCHEMA = pa.schema(
    [
        ("t_ns", pa.int64()),
        *(
            (column, pa.float64() if sources else pa.map_(pa.float64(), pa.float64()))
            for column, sources in _SOURCES.items()
        ),
    ]
)
"""An unknown value is null, never 0."""

PERIOD_S = 0.5


@dataclass(frozen=True, slots=True)
class Scrape:
    values: Mapping[str, float]
    """METRICS_SCHEMA names that the server has; several engines (data parallel) are added up, usages are the
    largest."""
    step_buckets: Mapping[float, float]
    """Tokens -> steps of at most so many tokens (vllm:iteration_tokens_total); all engines added up."""
    cache_config: Mapping[str, str]
    """Labels of vllm:cache_config_info (num_gpu_blocks, block_size, ...)."""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _can_be(label: str) -> bool:
    """Whether a label's value is text, or a number that counts something: no infinity, nothing beyond 2^53."""
    value = _number(label)
    return value is None or abs(value) < 2.0**53


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
    for sample in (sample for family in families for sample in family.samples):
        if sample.name == _CACHE_CONFIG:
            cache_config = {name: value for name, value in sample.labels.items() if _can_be(value)}
        if not math.isfinite(sample.value):
            continue  # +Inf and NaN are no readings
        edge = _number(sample.labels.get("le", ""))
        if sample.name == _BUCKETS and edge is not None and not math.isnan(edge):
            buckets[edge] = buckets.get(edge, 0.0) + sample.value
        column = _COLUMN_OF.get(" ".join([sample.name, *filter(None, [sample.labels.get("reason")])]))
        if column is not None:
            combine = max if column in _WORST_OF_ENGINES else operator.add
            values[column] = combine(values[column], sample.value) if column in values else sample.value
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

"""What /metrics says: vLLM's families (names, labels and buckets of 0.20 and 0.26) and the simulator's own gauges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qwenbench.capacity.cards import Card
from qwenbench.simulator.engine import Engine
from qwenbench.simulator.memory import MemoryPlan
from qwenbench.simulator.options import ServeOptions


def metrics_page(engine: Engine, options: ServeOptions, plan: MemoryPlan, card: Card) -> bytes:
    """The text of /metrics in Prometheus' format: vLLM's families that a benchmark reads, then the simulator's own."""
    return generate_latest(_Page(list(_families(engine, options, plan, card))))


class _Page(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _family(
    kind: type[GaugeMetricFamily | CounterMetricFamily],
    labels: Mapping[str, str],
    name: str,
    text: str,
    value: float | Mapping[str, float],
    by: str = "",
    **more: Any,
) -> Metric:
    """A family of one value, or of one for each value of the label `by`."""
    family = kind(f"vllm:{name}", text, labels=[*labels, *([by] if by else [])])
    for own, number in value.items() if isinstance(value, Mapping) else [("", value)]:
        family.add_metric([*labels.values(), *([own] if by else [])], float(number), **more)
    return family


def _families(engine: Engine, options: ServeOptions, plan: MemoryPlan, card: Card) -> Iterator[Metric]:
    labels = {"engine": "0", "model_name": options.served_model_names[0]}
    metrics, scheduler = engine.metrics, engine.scheduler
    gauge = partial(_family, GaugeMetricFamily, labels)
    counter = partial(_family, CounterMetricFamily, labels, created=metrics.created)

    yield gauge("num_requests_running", "Number of requests in model execution batches.", engine.running)
    yield gauge("num_requests_waiting", "Number of requests waiting to be processed.", engine.waiting)
    reasons = {"capacity": engine.waiting, "deferred": 0}
    yield gauge("num_requests_waiting_by_reason", "Number of waiting requests by reason.", reasons, "reason")
    states = {"awake": 1, "weights_offloaded": 0, "discard_all": 0}
    yield gauge("engine_sleep_state", "Engine sleep state.", states, "sleep_state")
    yield gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", scheduler.pool.usage)

    accepted = metrics.accepted_by_position
    if accepted:
        by_position = {str(at): count for at, count in enumerate(accepted)}
        text = "Accepted tokens per draft position."
        yield counter("spec_decode_num_accepted_tokens_per_pos", text, by_position, "position")
    yield counter("prefix_cache_queries", "Prefix cache queries, in tokens.", scheduler.prefix_queries)
    yield counter("prefix_cache_hits", "Prefix cache hits, in tokens.", scheduler.prefix_hits)
    yield counter("num_preemptions", "Cumulative number of preemption from the engine.", scheduler.preemptions)
    yield counter("prompt_tokens", "Number of prefill tokens processed.", metrics.prompt_tokens)
    yield counter("prompt_tokens_cached", "Number of cached prompt tokens.", metrics.prompt_tokens_cached)
    yield counter("generation_tokens", "Number of generation tokens processed.", metrics.generation_tokens)
    if accepted:
        yield counter("spec_decode_num_drafts", "Number of spec decoding drafts.", metrics.drafts)
        yield counter("spec_decode_num_draft_tokens", "Number of draft tokens.", metrics.drafts * len(accepted))
        yield counter("spec_decode_num_accepted_tokens", "Number of accepted tokens.", sum(accepted))
    cached = metrics.prompt_tokens_cached
    sources = {"local_compute": metrics.prompt_tokens - cached, "local_cache_hit": cached, "external_kv_transfer": 0}
    yield counter("prompt_tokens_by_source", "Number of prompt tokens by source.", sources, "source")
    text = "Count of successfully processed requests."
    yield counter("request_success", text, metrics.finished, "finished_reason")

    yield from (histogram.family(labels) for histogram in metrics.histograms)
    text = "Information of the LLMEngine CacheConfig"
    yield _family(GaugeMetricFamily, cache_labels(options, plan), "cache_config_info", text, 1.0)

    own = {
        "server_late_mean_ms": ("mean time by which tokens left after they were due", engine.lateness.mean_ms),
        "server_late_p99_ms": ("99th percentile of the same", engine.lateness.p99_ms),
        "vram_used_mib": ("what NVML would show, by a model", engine.vram.used_mib),
        "power_w": ("power draw, by a model", engine.energy.power_w),
        "energy_j": ("energy since the start, by a model", engine.energy.energy_j),
        "vram_total_mib": ("NVML's total of the card", card.vram_mib),
        "card": ("1, with the card's name", 1.0),
    }
    for name, (text, value) in own.items():
        family = GaugeMetricFamily(f"qwenbench_sim:{name}", f"SIMULATED: {text}", labels=["card"])
        family.add_metric([card.name], value)
        yield family


def cache_labels(options: ServeOptions, plan: MemoryPlan) -> dict[str, str]:
    """The cache's settings as the version labels them: 0.20's block_size is wrong for a hybrid model there as well."""
    new = options.vllm_version != "0.20.2"
    labels: dict[str, object] = {
        "_block_size_resolved": True,
        "block_size": plan.layout.block_tokens if new else 16,
        "cache_dtype": options.kv_cache_dtype,
        "calculate_kv_scales": False,
        "enable_prefix_caching": options.enable_prefix_caching,
        "engine": 0,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "kv_cache_memory_bytes": options.kv_cache_memory_bytes,
        "mamba_block_size": plan.layout.block_tokens if options.enable_prefix_caching else plan.max_model_len,
        "mamba_cache_dtype": "auto",
        "mamba_cache_mode": "align" if options.enable_prefix_caching else "none",
        "mamba_ssm_cache_dtype": "float32",
        "num_cpu_blocks": None,
        "num_gpu_blocks": plan.num_blocks,
        "num_gpu_blocks_override": options.num_gpu_blocks_override,
        "prefix_caching_hash_algo": "sha256",
        "sliding_window": None,
        "user_specified_block_size": False,
    }
    if new:
        labels |= {
            "kv_cache_max_concurrency": f"{plan.max_concurrency:.4g}",
            "kv_cache_size_tokens": plan.tokens_logged,
        }
    return {name: str(value) for name, value in labels.items()}

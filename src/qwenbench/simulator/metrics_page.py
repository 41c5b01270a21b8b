"""The /metrics page of the simulated server."""

from __future__ import annotations

from qwenbench.capacity.cards import Card
from qwenbench.simulator.engine import Engine
from qwenbench.simulator.memory import MemoryPlan
from qwenbench.simulator.metrics import Exposition
from qwenbench.simulator.options import ServeOptions


def metrics_page(engine: Engine, options: ServeOptions, plan: MemoryPlan, card: Card) -> str:
    """vLLM's families that a benchmark reads, then the simulator's own gauges (qwenbench_sim:*)."""
    page = Exposition(options.served_model_names[0], engine.metrics.created)
    _gauges(page, engine)
    _counters(page, engine)
    _histograms(page, engine)
    page.gauge(
        "vllm:cache_config_info",
        "Information of the LLMEngine CacheConfig",
        1.0,
        _cache_labels(options, plan),
    )
    _own(page, engine, card)
    return page.text()


def _gauges(page: Exposition, engine: Engine) -> None:
    waiting = float(engine.waiting)
    page.gauge(
        "vllm:num_requests_running",
        "Number of requests in model execution batches.",
        float(engine.running),
    )
    page.gauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.", waiting)
    page.gauges(
        "vllm:num_requests_waiting_by_reason",
        "Number of requests waiting to be processed, by reason.",
        {'reason="capacity"': waiting, 'reason="deferred"': 0.0},
    )
    page.gauges(
        "vllm:engine_sleep_state",
        "Engine sleep state.",
        {
            'sleep_state="awake"': 1.0,
            'sleep_state="weights_offloaded"': 0.0,
            'sleep_state="discard_all"': 0.0,
        },
    )
    page.gauge(
        "vllm:kv_cache_usage_perc",
        "KV-cache usage. 1 means 100 percent usage.",
        engine.scheduler.pool.usage,
    )


def _counters(page: Exposition, engine: Engine) -> None:
    metrics, scheduler = engine.metrics, engine.scheduler
    computed = metrics.prompt_tokens - metrics.prompt_tokens_cached
    page.counter("vllm:prefix_cache_queries", "Prefix cache queries, in tokens.", scheduler.prefix_queries)
    page.counter("vllm:prefix_cache_hits", "Prefix cache hits, in tokens.", scheduler.prefix_hits)
    page.counter("vllm:num_preemptions", "Cumulative number of preemption from the engine.", scheduler.preemptions)
    page.counter("vllm:prompt_tokens", "Number of prefill tokens processed.", metrics.prompt_tokens)
    page.counters(
        "vllm:prompt_tokens_by_source",
        "Number of prompt tokens by source.",
        {
            'source="local_compute"': computed,
            'source="local_cache_hit"': metrics.prompt_tokens_cached,
            'source="external_kv_transfer"': 0,
        },
    )
    page.counter("vllm:prompt_tokens_cached", "Number of cached prompt tokens.", metrics.prompt_tokens_cached)
    page.counter("vllm:generation_tokens", "Number of generation tokens processed.", metrics.generation_tokens)
    page.counters(
        "vllm:request_success",
        "Count of successfully processed requests.",
        {f'finished_reason="{reason}"': count for reason, count in metrics.finished.items()},
    )


def _histograms(page: Exposition, engine: Engine) -> None:
    metrics = engine.metrics
    families = (
        ("vllm:request_prompt_tokens", "Number of prefill tokens processed.", metrics.request_prompt),
        ("vllm:request_generation_tokens", "Number of generation tokens.", metrics.request_generation),
        ("vllm:iteration_tokens_total", "Histogram of tokens per engine_step.", metrics.iteration_tokens),
        ("vllm:request_params_max_tokens", "The max_tokens request parameter.", metrics.request_max_tokens),
        ("vllm:time_to_first_token_seconds", "Time to first token in seconds.", metrics.ttft),
        ("vllm:inter_token_latency_seconds", "Inter-token latency in seconds.", metrics.itl),
        ("vllm:request_time_per_output_token_seconds", "Time per output token per request.", metrics.tpot),
        ("vllm:e2e_request_latency_seconds", "End to end request latency in seconds.", metrics.e2e),
        ("vllm:request_queue_time_seconds", "Time spent in WAITING phase.", metrics.queue),
        ("vllm:request_inference_time_seconds", "Time spent in RUNNING phase.", metrics.inference),
        ("vllm:request_prefill_time_seconds", "Time spent in PREFILL phase.", metrics.prefill),
        ("vllm:request_decode_time_seconds", "Time spent in DECODE phase.", metrics.decode),
    )
    for name, text, histogram in families:
        page.histogram(name, text, histogram)


def _cache_labels(options: ServeOptions, plan: MemoryPlan) -> str:
    """As 0.20.2 labels them: block_size is wrong for a hybrid model there as well."""
    mode = "align" if options.enable_prefix_caching else "none"
    mamba_block = plan.block_tokens if options.enable_prefix_caching else plan.max_model_len
    labels = {
        "_block_size_resolved": True,
        "block_size": 16,
        "cache_dtype": options.kv_cache_dtype,
        "calculate_kv_scales": False,
        "enable_prefix_caching": options.enable_prefix_caching,
        "engine": 0,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "kv_cache_memory_bytes": options.kv_cache_memory_bytes,
        "mamba_block_size": mamba_block,
        "mamba_cache_dtype": "auto",
        "mamba_cache_mode": mode,
        "mamba_ssm_cache_dtype": "float32",
        "num_cpu_blocks": None,
        "num_gpu_blocks": plan.num_blocks,
        "num_gpu_blocks_override": options.num_gpu_blocks_override,
        "prefix_caching_hash_algo": "sha256",
        "sliding_window": None,
        "user_specified_block_size": False,
    }
    return ",".join(f'{name}="{value}"' for name, value in labels.items())


def _own(page: Exposition, engine: Engine, card: Card) -> None:
    labels = f'card="{card.name}"'
    values = {
        "server_late_mean_ms": ("mean time by which tokens left after they were due", engine.lateness.mean_ms),
        "server_late_p99_ms": ("99th percentile of the same", engine.lateness.p99_ms),
        "vram_used_mib": ("what NVML would show, by a model", engine.vram.used_mib),
        "power_w": ("power draw, by a model", engine.energy.power_w),
        "energy_j": ("energy since the start, by a model", engine.energy.energy_j),
        "vram_total_mib": ("NVML's total of the card", float(card.nvml_mib)),
        "card": ("1, with the card's name", 1.0),
    }
    for name, (text, value) in values.items():
        page.gauge(f"qwenbench_sim:{name}", f"SIMULATED: {text}", value, labels)

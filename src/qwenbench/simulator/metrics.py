"""What /metrics says: vLLM's families (names, labels and buckets of 0.20 and 0.26) and the simulator's own gauges."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from qwenbench.capacity.cards import Card
from qwenbench.simulator.memory import MemoryPlan
from qwenbench.simulator.options import ServeOptions

if TYPE_CHECKING:
    from qwenbench.simulator.engine import Engine

SECONDS_LONG = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
SECONDS_TTFT = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
SECONDS_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000)
TOKENS_STEP = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")


class Histogram:
    """Counts with fixed upper bounds; takes many equal values at once, which prometheus_client's own does not."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


class EngineMetrics:
    def __init__(self, drafted_positions: int = 0) -> None:
        self.created = time.time()
        self.prompt_tokens = 0
        self.prompt_tokens_cached = 0
        self.generation_tokens = 0
        self.drafts = 0
        self.accepted_by_position = [0] * drafted_positions
        self.finished = dict.fromkeys(FINISH_REASONS, 0)
        self.iteration_tokens = Histogram(TOKENS_STEP)
        self.ttft = Histogram(SECONDS_TTFT)
        self.itl = Histogram(SECONDS_TOKEN)
        self.tpot = Histogram(SECONDS_TOKEN)
        self.e2e = Histogram(SECONDS_LONG)
        self.queue = Histogram(SECONDS_LONG)
        self.inference = Histogram(SECONDS_LONG)
        self.prefill = Histogram(SECONDS_LONG)
        self.decode = Histogram(SECONDS_LONG)
        self.request_prompt = Histogram(TOKENS)
        self.request_generation = Histogram(TOKENS)
        self.request_max_tokens = Histogram(TOKENS)
        self.request_computed = Histogram(TOKENS)


def metrics_page(engine: Engine, options: ServeOptions, plan: MemoryPlan, card: Card) -> bytes:
    """The text of /metrics in Prometheus' format."""
    return generate_latest(_Page(engine, options, plan, card))


class _Page(Collector):
    def __init__(self, engine: Engine, options: ServeOptions, plan: MemoryPlan, card: Card) -> None:
        self._engine = engine
        self._options = options
        self._plan = plan
        self._card = card
        self._labels = {"engine": "0", "model_name": options.served_model_names[0]}

    def collect(self) -> Iterator[Metric]:
        """vLLM's families that a benchmark reads, then the simulator's own (qwenbench_sim:*)."""
        yield from self._gauges()
        yield from self._counters()
        yield from self._histograms()
        yield _gauge(
            "vllm:cache_config_info",
            "Information of the LLMEngine CacheConfig",
            [(cache_labels(self._options, self._plan), 1.0)],
        )
        yield from self._own()

    def _gauges(self) -> Iterator[Metric]:
        engine, labels = self._engine, self._labels
        waiting = float(engine.waiting)
        running = float(engine.running)
        yield _gauge("vllm:num_requests_running", "Number of requests in model execution batches.", [(labels, running)])
        yield _gauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.", [(labels, waiting)])
        yield _gauge(
            "vllm:num_requests_waiting_by_reason",
            "Number of waiting requests by reason.",
            [(labels | {"reason": "capacity"}, waiting), (labels | {"reason": "deferred"}, 0.0)],
        )
        states = {"awake": 1.0, "weights_offloaded": 0.0, "discard_all": 0.0}
        yield _gauge(
            "vllm:engine_sleep_state",
            "Engine sleep state.",
            [(labels | {"sleep_state": state}, value) for state, value in states.items()],
        )
        usage = engine.scheduler.pool.usage
        yield _gauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", [(labels, usage)])

    def _counters(self) -> Iterator[Metric]:
        metrics, scheduler, labels = self._engine.metrics, self._engine.scheduler, self._labels
        cached = metrics.prompt_tokens_cached
        plain = (
            ("prefix_cache_queries", "Prefix cache queries, in tokens.", scheduler.prefix_queries),
            ("prefix_cache_hits", "Prefix cache hits, in tokens.", scheduler.prefix_hits),
            ("num_preemptions", "Cumulative number of preemption from the engine.", scheduler.preemptions),
            ("prompt_tokens", "Number of prefill tokens processed.", metrics.prompt_tokens),
            ("prompt_tokens_cached", "Number of cached prompt tokens.", cached),
            ("generation_tokens", "Number of generation tokens processed.", metrics.generation_tokens),
        )
        for name, text, value in plain:
            yield self._counter(name, text, [(labels, value)])
        sources = {
            "local_compute": metrics.prompt_tokens - cached,
            "local_cache_hit": cached,
            "external_kv_transfer": 0,
        }
        yield self._counter(
            "prompt_tokens_by_source",
            "Number of prompt tokens by source.",
            [(labels | {"source": source}, value) for source, value in sources.items()],
        )
        yield self._counter(
            "request_success",
            "Count of successfully processed requests.",
            [(labels | {"finished_reason": reason}, count) for reason, count in metrics.finished.items()],
        )
        drafted = self._options.speculative_tokens
        if not drafted:
            return
        accepted = metrics.accepted_by_position
        speculation = (
            ("spec_decode_num_drafts", "Number of spec decoding drafts.", metrics.drafts),
            ("spec_decode_num_draft_tokens", "Number of draft tokens.", metrics.drafts * drafted),
            ("spec_decode_num_accepted_tokens", "Number of accepted tokens.", sum(accepted)),
        )
        for name, text, value in speculation:
            yield self._counter(name, text, [(labels, value)])
        yield self._counter(
            "spec_decode_num_accepted_tokens_per_pos",
            "Accepted tokens per draft position.",
            [(labels | {"position": str(at)}, count) for at, count in enumerate(accepted)],
        )

    def _counter(self, name: str, text: str, rows: list[tuple[Mapping[str, str], float]]) -> Metric:
        created = self._engine.metrics.created
        family = CounterMetricFamily(f"vllm:{name}", text, labels=list(rows[0][0]))
        for labels, value in rows:
            family.add_metric(list(labels.values()), float(value), created=created)
        return family

    def _histograms(self) -> Iterator[Metric]:
        metrics = self._engine.metrics
        families = (
            ("request_prompt_tokens", "Number of prefill tokens processed.", metrics.request_prompt),
            ("request_generation_tokens", "Number of generation tokens.", metrics.request_generation),
            ("iteration_tokens_total", "Histogram of tokens per engine_step.", metrics.iteration_tokens),
            ("request_params_max_tokens", "The max_tokens request parameter.", metrics.request_max_tokens),
            ("request_prefill_kv_computed_tokens", "New KV tokens computed in prefill.", metrics.request_computed),
            ("time_to_first_token_seconds", "Time to first token in seconds.", metrics.ttft),
            ("inter_token_latency_seconds", "Inter-token latency in seconds.", metrics.itl),
            ("request_time_per_output_token_seconds", "Time per output token per request.", metrics.tpot),
            ("e2e_request_latency_seconds", "End to end request latency in seconds.", metrics.e2e),
            ("request_queue_time_seconds", "Time spent in WAITING phase.", metrics.queue),
            ("request_inference_time_seconds", "Time spent in RUNNING phase.", metrics.inference),
            ("request_prefill_time_seconds", "Time spent in PREFILL phase.", metrics.prefill),
            ("request_decode_time_seconds", "Time spent in DECODE phase.", metrics.decode),
        )
        for name, text, histogram in families:
            count = 0
            buckets: list[tuple[str, float]] = []
            bounds = [*(repr(float(bound)) for bound in histogram.bounds), "+Inf"]
            for bound, number in zip(bounds, histogram.counts, strict=True):
                count += number
                buckets.append((bound, float(count)))
            family = HistogramMetricFamily(f"vllm:{name}", text, labels=list(self._labels))
            family.add_metric(list(self._labels.values()), buckets, histogram.total)
            yield family

    def _own(self) -> Iterator[Metric]:
        engine, labels = self._engine, {"card": self._card.name}
        values = {
            "server_late_mean_ms": ("mean time by which tokens left after they were due", engine.lateness.mean_ms),
            "server_late_p99_ms": ("99th percentile of the same", engine.lateness.p99_ms),
            "vram_used_mib": ("what NVML would show, by a model", engine.vram.used_mib),
            "power_w": ("power draw, by a model", engine.energy.power_w),
            "energy_j": ("energy since the start, by a model", engine.energy.energy_j),
            "vram_total_mib": ("NVML's total of the card", float(self._card.vram_mib)),
            "card": ("1, with the card's name", 1.0),
        }
        for name, (text, value) in values.items():
            yield _gauge(f"qwenbench_sim:{name}", f"SIMULATED: {text}", [(labels, value)])


def _gauge(name: str, text: str, rows: list[tuple[Mapping[str, str], float]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(rows[0][0]))
    for labels, value in rows:
        family.add_metric(list(labels.values()), value)
    return family


def cache_labels(options: ServeOptions, plan: MemoryPlan) -> dict[str, str]:
    """The cache's settings as the version labels them: 0.20's block_size is wrong for a hybrid model there as well."""
    new = options.vllm_version != "0.20.2"
    labels: dict[str, object] = {
        "_block_size_resolved": True,
        "block_size": plan.block_tokens if new else 16,
        "cache_dtype": options.kv_cache_dtype,
        "calculate_kv_scales": False,
        "enable_prefix_caching": options.enable_prefix_caching,
        "engine": 0,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "kv_cache_memory_bytes": options.kv_cache_memory_bytes,
        "mamba_block_size": plan.block_tokens if options.enable_prefix_caching else plan.max_model_len,
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

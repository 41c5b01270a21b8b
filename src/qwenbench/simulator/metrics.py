"""What /metrics says: vLLM's families (names, labels and buckets of 0.20 and 0.26) and the simulator's own gauges."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

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

    __slots__ = ("bounds", "counts", "name", "text", "total")

    def __init__(self, name: str, text: str, bounds: tuple[float, ...]) -> None:
        self.name = name
        self.text = text
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def family(self, labels: Mapping[str, str]) -> Metric:
        edges = [*(repr(float(bound)) for bound in self.bounds), "+Inf"]
        buckets = [(edge, float(count)) for edge, count in zip(edges, accumulate(self.counts), strict=True)]
        family = HistogramMetricFamily(f"vllm:{self.name}", self.text, labels=list(labels))
        family.add_metric(list(labels.values()), buckets, self.total)
        return family


class EngineMetrics:
    def __init__(self, drafted_positions: int = 0) -> None:
        self.created = time.time()
        self.prompt_tokens = 0
        self.prompt_tokens_cached = 0
        self.generation_tokens = 0
        self.drafts = 0
        self.accepted_by_position = [0] * drafted_positions
        self.finished = dict.fromkeys(FINISH_REASONS, 0)
        made = Histogram
        self.request_prompt = made("request_prompt_tokens", "Number of prefill tokens processed.", TOKENS)
        self.request_generation = made("request_generation_tokens", "Number of generation tokens.", TOKENS)
        self.iteration_tokens = made("iteration_tokens_total", "Histogram of tokens per engine_step.", TOKENS_STEP)
        self.request_max_tokens = made("request_params_max_tokens", "The max_tokens request parameter.", TOKENS)
        self.request_computed = made("request_prefill_kv_computed_tokens", "New KV tokens computed in prefill.", TOKENS)
        self.ttft = made("time_to_first_token_seconds", "Time to first token in seconds.", SECONDS_TTFT)
        self.itl = made("inter_token_latency_seconds", "Inter-token latency in seconds.", SECONDS_TOKEN)
        self.tpot = made("request_time_per_output_token_seconds", "Time per output token per request.", SECONDS_TOKEN)
        self.e2e = made("e2e_request_latency_seconds", "End to end request latency in seconds.", SECONDS_LONG)
        self.queue = made("request_queue_time_seconds", "Time spent in WAITING phase.", SECONDS_LONG)
        self.inference = made("request_inference_time_seconds", "Time spent in RUNNING phase.", SECONDS_LONG)
        self.prefill = made("request_prefill_time_seconds", "Time spent in PREFILL phase.", SECONDS_LONG)
        self.decode = made("request_decode_time_seconds", "Time spent in DECODE phase.", SECONDS_LONG)

    @property
    def histograms(self) -> list[Histogram]:
        """In the order of the page."""
        return [value for value in vars(self).values() if isinstance(value, Histogram)]


def metrics_page(engine: Engine, options: ServeOptions, plan: MemoryPlan, card: Card) -> bytes:
    """The text of /metrics in Prometheus' format: vLLM's families that a benchmark reads, then the simulator's own."""
    labels = {"engine": "0", "model_name": options.served_model_names[0]}
    settings = cache_labels(options, plan)
    families = [
        *(_family(GaugeMetricFamily, f"vllm:{name}", text, rows) for name, text, rows in _gauges(engine, labels)),
        *(
            _family(CounterMetricFamily, f"vllm:{name}", text, rows, created=engine.metrics.created)
            for name, text, rows in _counters(engine, labels)
        ),
        *(histogram.family(labels) for histogram in engine.metrics.histograms),
        _family(
            GaugeMetricFamily,
            "vllm:cache_config_info",
            "Information of the LLMEngine CacheConfig",
            [(settings, 1.0)],
        ),
        *(
            _family(GaugeMetricFamily, f"qwenbench_sim:{name}", f"SIMULATED: {text}", [({"card": card.name}, value)])
            for name, text, value in _own(engine, card)
        ),
    ]
    return generate_latest(_Page(families))


class _Page(Collector):
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Sequence[Metric]:
        return self._families


Rows = Sequence[tuple[Mapping[str, str], float]]
"""Labels and value of each line of a family."""
Family = tuple[str, str, Rows]
"""Name, what it is, its lines."""


def _family(
    kind: type[GaugeMetricFamily | CounterMetricFamily], name: str, text: str, rows: Rows, **more: Any
) -> Metric:
    family = kind(name, text, labels=list(rows[0][0]))
    for labels, value in rows:
        family.add_metric(list(labels.values()), float(value), **more)
    return family


def _by(labels: Mapping[str, str], name: str, values: Mapping[str, float]) -> Rows:
    return [({**labels, name: key}, value) for key, value in values.items()]


def _gauges(engine: Engine, labels: Mapping[str, str]) -> list[Family]:
    reasons = {"capacity": engine.waiting, "deferred": 0.0}
    states = {"awake": 1.0, "weights_offloaded": 0.0, "discard_all": 0.0}
    usage = engine.scheduler.pool.usage
    return [
        ("num_requests_running", "Number of requests in model execution batches.", [(labels, engine.running)]),
        ("num_requests_waiting", "Number of requests waiting to be processed.", [(labels, engine.waiting)]),
        (
            "num_requests_waiting_by_reason",
            "Number of waiting requests by reason.",
            _by(labels, "reason", reasons),
        ),
        ("engine_sleep_state", "Engine sleep state.", _by(labels, "sleep_state", states)),
        ("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", [(labels, usage)]),
    ]


def _counters(engine: Engine, labels: Mapping[str, str]) -> Iterator[Family]:
    metrics, scheduler = engine.metrics, engine.scheduler
    cached = metrics.prompt_tokens_cached
    drafted, accepted = len(metrics.accepted_by_position), metrics.accepted_by_position
    plain = [
        ("prefix_cache_queries", "Prefix cache queries, in tokens.", scheduler.prefix_queries),
        ("prefix_cache_hits", "Prefix cache hits, in tokens.", scheduler.prefix_hits),
        ("num_preemptions", "Cumulative number of preemption from the engine.", scheduler.preemptions),
        ("prompt_tokens", "Number of prefill tokens processed.", metrics.prompt_tokens),
        ("prompt_tokens_cached", "Number of cached prompt tokens.", cached),
        ("generation_tokens", "Number of generation tokens processed.", metrics.generation_tokens),
    ]
    if drafted:
        plain += [
            ("spec_decode_num_drafts", "Number of spec decoding drafts.", metrics.drafts),
            ("spec_decode_num_draft_tokens", "Number of draft tokens.", metrics.drafts * drafted),
            ("spec_decode_num_accepted_tokens", "Number of accepted tokens.", sum(accepted)),
        ]
        by_position = {str(at): float(count) for at, count in enumerate(accepted)}
        text = "Accepted tokens per draft position."
        yield "spec_decode_num_accepted_tokens_per_pos", text, _by(labels, "position", by_position)
    yield from ((name, text, [(labels, value)]) for name, text, value in plain)
    sources = {"local_compute": metrics.prompt_tokens - cached, "local_cache_hit": cached, "external_kv_transfer": 0}
    yield "prompt_tokens_by_source", "Number of prompt tokens by source.", _by(labels, "source", sources)
    text = "Count of successfully processed requests."
    yield "request_success", text, _by(labels, "finished_reason", metrics.finished)


def _own(engine: Engine, card: Card) -> list[tuple[str, str, float]]:
    return [
        ("server_late_mean_ms", "mean time by which tokens left after they were due", engine.lateness.mean_ms),
        ("server_late_p99_ms", "99th percentile of the same", engine.lateness.p99_ms),
        ("vram_used_mib", "what NVML would show, by a model", engine.vram.used_mib),
        ("power_w", "power draw, by a model", engine.energy.power_w),
        ("energy_j", "energy since the start, by a model", engine.energy.energy_j),
        ("vram_total_mib", "NVML's total of the card", card.vram_mib),
        ("card", "1, with the card's name", 1.0),
    ]


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

"""What follows the steps: vLLM's counts; power, energy and VRAM as NVML would show it, roughly; how late tokens left.

SIMULATED.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from itertools import accumulate, pairwise

from prometheus_client.core import HistogramMetricFamily, Metric

from qwenbench.capacity.cards import Card
from qwenbench.simulator.memory import MemoryPlan
from qwenbench.simulator.scheduler import Step

POWER_LIMIT_W = {
    "rtx-5090": 575.0, "rtx-5080": 360.0, "rtx-4090": 450.0, "rtx-3090": 350.0, "l4": 72.0, "l40s": 350.0,
    "a100-80g": 400.0, "h100": 700.0, "h200": 700.0,
}  # fmt: skip
"""Data sheets' board power, W."""
UNKNOWN_LIMIT_W = 400.0
"""For other cards: the power model is rough anyway."""

DRAFTED_SHARE = 0.8
"""What each drafted token adds to VRAM beyond the budget: 4,390 MiB at 64 streams with three, 1,280 without."""


class EnergyMeter:
    """Power while a step runs follows its work; between steps the card idles."""

    def __init__(
        self, figures: Mapping[str, float], limit_w: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._idle_w = figures["idle_w"]
        self._range_w = limit_w - self._idle_w
        self._base = figures["busy_share"]
        self._per_sequence = figures["per_sequence_share"]
        self._prefill = figures["prefill_share"]
        self._clock = clock
        self._started = clock()
        self._busy_j = 0.0
        self._busy_s = 0.0
        self._last_w = self._idle_w
        self._last_end = self._started

    def step(self, step: Step) -> None:
        share = self._prefill if step.prefill_tokens >= 512 else self._base + self._per_sequence * step.decodes
        watts = self._idle_w + self._range_w * min(share, 1.0)
        seconds = step.seconds
        self._busy_j += watts * seconds
        self._busy_s += seconds
        # NVML's figure is itself an average over about a tenth of a second.
        weight = min(seconds / 0.1, 1.0)
        self._last_w += (watts - self._last_w) * weight
        self._last_end = self._clock()

    @property
    def power_w(self) -> float:
        return self._last_w if self._clock() - self._last_end < 0.1 else self._idle_w

    @property
    def energy_j(self) -> float:
        idle_s = max(self._clock() - self._started - self._busy_s, 0.0)
        return self._busy_j + idle_s * self._idle_w


class VramGauge:
    """What NVML would show: it rises with the largest batch seen, by PyTorch's allocator, and never falls."""

    def __init__(self, plan: MemoryPlan, card: Card, overshoot: list[list[float]], drafted: int = 0) -> None:
        self._share = 1.0 + DRAFTED_SHARE * drafted
        self._ready = plan.ready_mib
        self._limit = card.vram_mib
        self._overshoot = overshoot
        self._largest = 0
        self.used_mib = plan.ready_mib

    def saw(self, running: int) -> None:
        if running > self._largest:
            self._largest = running
            self.used_mib = min(self._ready + _between(running, self._overshoot) * self._share, self._limit)


def _between(x: float, line: list[list[float]]) -> float:
    """y at x on a line through points (x, y) in the order of x; beyond its ends the y there (NumPy's `interp`, whose
    import would double a simulator's start)."""
    for (left, low), (right, high) in pairwise(line):
        if x < right:
            return low + (high - low) * max(x - left, 0.0) / (right - left)
    return line[-1][1]


class Lateness:
    """How late tokens left this process, in ms after the instant at which the model had them due."""

    _STEP_MS = 0.05
    _SIZE = 4000

    def __init__(self) -> None:
        self._counts = [0] * (self._SIZE + 1)
        self._number = 0
        self._sum = 0.0

    def add(self, milliseconds: float, tokens: int) -> None:
        self._counts[min(int(max(milliseconds, 0.0) / self._STEP_MS), self._SIZE)] += tokens
        self._number += tokens
        self._sum += milliseconds * tokens

    @property
    def mean_ms(self) -> float:
        """Mean over all tokens since the start; 0 when there were none."""
        return self._sum / self._number if self._number else 0.0

    @property
    def p99_ms(self) -> float:
        """99th percentile since the start, rounded up to 0.05 ms, at most 200 ms."""
        left = self._number * 0.01
        for index in range(self._SIZE, -1, -1):
            left -= self._counts[index]
            if left < 0:
                return (index + 1) * self._STEP_MS
        return 0.0


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

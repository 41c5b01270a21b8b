"""What /metrics says: vLLM 0.20's names, labels and buckets, and the simulator's own gauges beside them."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping

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
    """A Prometheus histogram with fixed upper bounds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Counts a value so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


class EngineMetrics:
    """Counters of one engine since its start."""

    def __init__(self) -> None:
        self.created = time.time()
        self.prompt_tokens = 0
        self.prompt_tokens_cached = 0
        self.generation_tokens = 0
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


class Lateness:
    """How late tokens left this process, in ms after the instant at which the model had them due."""

    _STEP_MS = 0.05
    _SIZE = 4000

    def __init__(self) -> None:
        self._counts = [0] * (self._SIZE + 1)
        self._number = 0
        self._sum = 0.0

    def add(self, milliseconds: float, tokens: int) -> None:
        """So many tokens left so late."""
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


class Exposition:
    """Builds the text of /metrics in Prometheus' format."""

    def __init__(self, model_name: str, created: float) -> None:
        self._labels = f'engine="0",model_name="{model_name}"'
        self._created = created
        self._lines: list[str] = []

    def gauge(self, name: str, text: str, value: float, labels: str | None = None) -> None:
        """One value."""
        self._head(name, text, "gauge")
        self._lines.append(f"{name}{{{self._labels if labels is None else labels}}} {value!r}")

    def gauges(self, name: str, text: str, values: Mapping[str, float]) -> None:
        """Several values with one more label each, which is given whole: `reason="capacity"`."""
        self._head(name, text, "gauge")
        self._lines += [f"{name}{{{self._labels},{label}}} {value!r}" for label, value in values.items()]

    def counter(self, name: str, text: str, value: float) -> None:
        """A counter (`name` without _total) and its _created gauge."""
        self.counters(name, text, {"": value})

    def counters(self, name: str, text: str, values: Mapping[str, float]) -> None:
        """A counter with one more label each."""
        self._head(f"{name}_total", text, "counter")
        rows = [(self._with(label), value) for label, value in values.items()]
        self._lines += [f"{name}_total{{{labels}}} {float(value)!r}" for labels, value in rows]
        self._head(f"{name}_created", text, "gauge")
        self._lines += [f"{name}_created{{{labels}}} {self._created!r}" for labels, _ in rows]

    def histogram(self, name: str, text: str, histogram: Histogram) -> None:
        """Buckets, count and sum."""
        self._head(name, text, "histogram")
        count = 0
        bounds: Iterable[str] = [*(repr(float(bound)) for bound in histogram.bounds), "+Inf"]
        engine, model = self._labels.split(",", 1)
        for bound, number in zip(bounds, histogram.counts, strict=True):
            count += number
            self._lines.append(f'{name}_bucket{{{engine},le="{bound}",{model}}} {float(count)!r}')
        self._lines.append(f"{name}_count{{{self._labels}}} {float(count)!r}")
        self._lines.append(f"{name}_sum{{{self._labels}}} {histogram.total!r}")

    def text(self) -> str:
        """The whole page."""
        return "\n".join(self._lines) + "\n"

    def _with(self, label: str) -> str:
        return f"{self._labels},{label}" if label else self._labels

    def _head(self, name: str, text: str, kind: str) -> None:
        self._lines.append(f"# HELP {name} {text}")
        self._lines.append(f"# TYPE {name} {kind}")

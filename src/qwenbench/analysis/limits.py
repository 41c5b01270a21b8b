"""Limits on metrics, as users write them: `ttft_p99=1000ms,tpot_p50=25ms`."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass

from qwenbench.analysis.columns import METRICS, Column
from qwenbench.analysis.request_arrays import LIMITS as PER_REQUEST
from qwenbench.errors import UsageError

_VALUE = re.compile(r"(inf|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(ms|s)?\Z")


@dataclass(frozen=True, slots=True)
class Limit:
    """A bound on a metric of a point: at most where lower is better, at least where higher is."""

    key: str
    bound: float
    """In the metric's own unit (ms for latencies)."""
    per_request: str | None = None
    """The latency (`ttft`) when it was given as a limit on every request; `key` is then its 99th percentile."""

    @property
    def column(self) -> Column:
        """The metric's definition."""
        return METRICS[self.key]

    @property
    def latency(self) -> str:
        """The latency of a request that it is on (`ttft` of ttft_p99)."""
        return self.key.rpartition("_")[0]

    @property
    def share(self) -> float | None:
        """The share of requests that must be within it (0.99 of a p99); None for a limit on something else.

        Gaps are no requests: those of one answer go together, so a limit on ITL is none on a share.
        """
        latency, _, statistic = self.key.rpartition("_")
        return (
            float(statistic[1:]) / 100 if latency in PER_REQUEST and latency != "itl" and statistic != "mean" else None
        )

    @property
    def higher_is_better(self) -> bool:
        """Whether the bound is a lower one."""
        return self.column.better == "higher"

    def met_by(self, value: float) -> bool:
        """Whether a point with this value is within the limit."""
        return value >= self.bound if self.higher_is_better else value <= self.bound

    def excess(self, value: float) -> float:
        """How far beyond the limit, as a share of it; negative: how much room is left."""
        excess = (self.bound - value) if self.higher_is_better else (value - self.bound)
        return excess / self.bound

    def __str__(self) -> str:
        return f"{self.key} {'>=' if self.higher_is_better else '<='} {show(self.bound, self.column.unit)}"


def show(value: float, unit: str = "") -> str:
    """A figure for people: four significant digits, thousands separated, with its unit."""
    digits = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{digits} {unit}".rstrip()


def metric_key(name: str, option: str) -> str:
    """The name itself when it is a metric's key. Raises UsageError with the near miss."""
    if name in METRICS:
        return name
    close = difflib.get_close_matches(name, [*METRICS, *PER_REQUEST], n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise UsageError(f"{option}: {name!r} is no metric.{hint} Metrics are columns of points.csv without _ms.")


def parse_point_limits(text: str, option: str = "--slo") -> tuple[Limit, ...]:
    """Reads METRIC=LIMIT,.. as limits on points.

    A per-request limit (`ttft=1000ms`) is read as one on the 99th percentile: of 100 requests 99 meet it.
    Times are in ms, or s where it says so; `inf` is no limit. Raises UsageError for anything else.
    """
    limits: dict[str, Limit | None] = {}
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        match = _VALUE.match(value)
        if not equals or not match:
            raise UsageError(f"{option} {part!r}: give METRIC=LIMIT, e.g. ttft_p99=1000ms.")
        key = metric_key(f"{name}_p99" if name in PER_REQUEST else name, option)
        unit, bound = match[2], float(match[1])
        if unit and METRICS[key].unit != "ms":
            raise UsageError(f"{option} {part!r}: {key} is in {METRICS[key].unit}, not in {unit}.")
        if bound <= 0:
            raise UsageError(f"{option} {part!r}: the limit must be above 0.")
        if key in limits:
            raise UsageError(f"{option} {text!r}: {key} stands twice.")
        per_request = name if name in PER_REQUEST else None
        bound *= 1000 if unit == "s" else 1
        limits[key] = None if math.isinf(bound) else Limit(key, bound, per_request)
    return tuple(limit for limit in limits.values() if limit is not None)


def parse_weights(text: str, option: str = "--scenario") -> dict[str, float]:
    """Reads name=weight,..; a name alone weighs 1. Raises UsageError for weights that are not above 0."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        try:
            weight = float(value) if equals else 1.0
        except ValueError:
            weight = 0.0
        if not name or not 0 < weight < float("inf"):
            raise UsageError(f"{option} {part!r}: give NAME=WEIGHT with a weight above 0, e.g. math=2,code=1.")
        if name in weights:
            raise UsageError(f"{option} {text!r}: {name} stands twice.")
        weights[name] = weight
    return weights

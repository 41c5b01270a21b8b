"""Limits as users write them (`ttft_p99=1000ms,tpot_p50=25ms`): one reader for the command line's options, which must
not wait for numpy, and for limits.py, which judges them.
"""

from __future__ import annotations

import re

from qwenbench.analysis.columns import LATENCIES, METRICS
from qwenbench.errors import UsageError, near_miss

_VALUE = re.compile(r"(inf|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(ms|s)?\Z")


def metric_key(name: str, option: str) -> str:
    """The name itself when it is a metric's key. Raises UsageError with the near miss."""
    if name in METRICS:
        return name
    hint = near_miss(name, [*METRICS, *LATENCIES])
    raise UsageError(f"{option} {name}: no metric.{hint} Metrics are columns of points.csv without _ms.")


def point_key(name: str, option: str) -> str:
    """The metric of a point that a limit named so is on: a latency without a statistic is its 99th percentile."""
    return metric_key(f"{name}_p99" if name in LATENCIES else name, option)


def read_limits(text: str, option: str) -> dict[str, float]:
    """Metric, as it is named there, -> limit. Times are in ms, or s where it says so; `inf` is no limit.

    Raises UsageError for what is no METRIC=LIMIT,.., an unknown metric, a unit of another kind, or one named twice.
    """
    limits: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        match = _VALUE.match(value)
        if not equals or not match:
            raise UsageError(f"{option} {part!r}: give METRIC=LIMIT, e.g. ttft_p99=1000ms.")
        key = point_key(name, option)
        unit, bound = match[2], float(match[1])
        if unit and METRICS[key].unit != "ms":
            raise UsageError(f"{option} {part!r}: {key} is in {METRICS[key].unit}, not in {unit}.")
        if bound <= 0:
            raise UsageError(f"{option} {part!r}: the limit must be above 0.")
        if key in {point_key(known, option) for known in limits}:
            raise UsageError(f"{option} {text!r}: {key} stands twice.")
        limits[name] = bound * (1000 if unit == "s" else 1)
    return limits

"""Limits on metrics, as users write them (`ttft_p99=1000ms,tpot_p50=25ms`), and how they stand at measured load points:
shown, broken or open. See docs/statistics.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwenbench.analysis.columns import LATENCIES, METRICS, Column, figure
from qwenbench.analysis.intervals import Estimate, ShareTest, Verdict, share_test
from qwenbench.analysis.limit_text import point_key, read_limits
from qwenbench.analysis.request_arrays import RequestArrays
from qwenbench.analysis.run import Point
from qwenbench.analysis.statistics import RequestsOf, window_of_point
from qwenbench.errors import UsageError


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
        return float(statistic[1:]) / 100 if latency in LATENCIES and latency != "itl" and statistic != "mean" else None

    @property
    def higher_is_better(self) -> bool:
        return self.column.better == "higher"

    def met_by(self, value: float) -> bool:
        return value >= self.bound if self.higher_is_better else value <= self.bound

    def excess(self, value: float) -> float:
        """How far beyond the limit, as a share of it; negative: how much room is left."""
        excess = (self.bound - value) if self.higher_is_better else (value - self.bound)
        return excess / self.bound

    def __str__(self) -> str:
        return f"{self.key} {'>=' if self.higher_is_better else '<='} {show(self.bound, self.column.unit)}"


def show(value: float, unit: str = "") -> str:
    """A figure for people: four significant digits, thousands separated, with its unit."""
    return f"{figure(value)} {unit}".rstrip()


def parse_point_limits(text: str, option: str = "--slo") -> tuple[Limit, ...]:
    """Reads METRIC=LIMIT,.. as limits on points.

    A per-request limit (`ttft=1000ms`) is read as one on the 99th percentile: of 100 requests 99 meet it.
    Times are in ms, or s where it says so; `inf` is no limit. Raises UsageError for anything else.
    """
    return tuple(
        Limit(point_key(name, option), bound, name if name in LATENCIES else None)
        for name, bound in read_limits(text, option).items()
        if math.isfinite(bound)
    )


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


_KNOWN_SHARES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class LimitState:
    """One limit under one workload at the users asked for."""

    limit: Limit
    where: str
    """The workload and load, for people."""
    value: float | None
    """The metric there; None: not known."""
    verdict: Verdict
    test: ShareTest | None = None
    """The test of a share of requests; None where the limit is on a mean or a rate."""

    @property
    def further(self) -> int | None:
        """Further requests that would settle an open share; None: no number would, or it is no share."""
        return self.test.further if self.test is not None else None

    @property
    def misses(self) -> bool:
        """Whether the figure itself is beyond the limit."""
        return self.value is not None and not self.limit.met_by(self.value)

    def __str__(self) -> str:
        unit = self.limit.column.unit
        asked = show(self.limit.bound, unit)
        if self.value is not None and (self.misses or self.test is None):
            head = f"{self.limit.key} is {show(self.value, unit)} where {asked} is asked for ({self.where})"
        else:
            head = f"{self.limit} ({self.where})"
        if self.test is None:
            return head
        return f"{head}: {self.verdict}, {_share(self.test)}"


def _share(test: ShareTest) -> str:
    seen = f"{test.within:,}" if test.exact else f"{test.within:,} to {test.within_most:,}"
    words = f"{seen} of {test.trials:,} requests were within it, {test.needed:.0%} must be"
    if test.verdict != "open":
        return words
    if test.further is None:
        return f"{words}, and it lies too near the limit for any number of requests to settle"
    return f"{words}; {test.further:,} more would settle it if the share stays"


def estimate_verdict(limit: Limit, estimate: Estimate) -> Verdict:
    """A limit on a mean, a rate or a gap: shown or broken where the 95 % interval lies on one side of it."""
    low, high = estimate.low, estimate.high
    if estimate.value is None or low is None or high is None:
        return "open"
    if limit.met_by(low) and limit.met_by(high):
        return "shown"
    return "open" if limit.met_by(low) or limit.met_by(high) else "broken"


def pooled_test(limit: Limit, points: Sequence[Point], requests_of: RequestsOf) -> ShareTest | None:
    """The share of window requests of all these points (repeats of one load) that are within the limit.

    From the request records; of a point without them the percentiles of its row give a range. None where a point
    tells neither, or where the limit is on no share of requests.
    """
    if limit.share is None:
        return None
    parts = [_counted(limit, point, requests_of) or _from_percentiles(limit, point) for point in points]
    known = [(part.trials, part.within, part.within_most) for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    return ShareTest(limit.share, *map(sum, zip(*known, strict=True)))


def _counted(limit: Limit, point: Point, requests_of: RequestsOf) -> ShareTest | None:
    """A failed request, or an answer that never came, is beyond its limit; one too short to have a TPOT is no trial."""
    requests = requests_of(point.cell.cell_id)
    arrays = None if requests is None else RequestArrays.of(requests)
    window = None if arrays is None else window_of_point(arrays, point)
    if arrays is None or window is None or limit.share is None:
        return None
    started = window.holds_start(arrays.begin_ns)
    values = arrays.latencies_ms()[limit.latency][started]
    if limit.latency == "tpot":
        values = values[~np.isnan(values)]
        return share_test(int((values <= limit.bound).sum()), len(values), limit.share)
    within = (values <= limit.bound) & arrays.ok[started]
    return share_test(int(within.sum()), len(values), limit.share)


def _from_percentiles(limit: Limit, point: Point) -> ShareTest | None:
    """Of n ordered values the linear percentile at (n - 1) k lies between its neighbours, so one that is within the
    limit tells that floor((n - 1) k) + 1 are, and one beyond it that ceil((n - 1) k) are at most."""
    count = point.number("requests_in_window") or _completions(point)
    if count is None or count < 1 or limit.share is None:
        return None
    trials, within, most = int(count), 0, int(count)
    for share in _KNOWN_SHARES:
        value = point.number(f"{limit.latency}_ms_p{share * 100:.0f}")
        place = (trials - 1) * share
        if value is None:
            continue
        if value <= limit.bound:
            within = max(within, math.floor(place) + 1)
        else:
            most = min(most, math.ceil(place))
    return ShareTest(limit.share, trials, within, most)


def _completions(point: Point) -> float | None:
    """Requests that ended in the window: about as many as started in it, for runs of before those were counted."""
    rate, seconds = point.number("requests_per_s"), point.number("duration_s")
    return None if rate is None or seconds is None else float(round(rate * seconds))

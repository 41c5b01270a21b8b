"""Latency columns of a point: means and percentiles over requests, and over gaps for ITL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qwenbench.errors import UsageError

STATISTICS = ("mean", "p50", "p90", "p99")
MIN_P99_VALUES = 100
MAX_MERGED_SHARE = 0.01
"""Above this share of gaps with unknown times the ITL columns are empty."""
LIMITS = ("ttft", "ttfo", "tpot", "itl", "e2e")
"""Metrics that a per-request limit (--slo METRIC=LIMIT) may name."""

Floats = NDArray[np.float64]
Number = TypeVar("Number", bound=np.generic)


def latency_columns(name: str, values: NDArray[np.floating]) -> dict[str, float | None]:
    """NAME_ms_mean, _p50, _p90 and _p99 (None under 100 values) by numpy's linear method; NaN values are left out."""
    unknown = np.isnan(values)
    known = values[~unknown] if unknown.any() else values  # gaps have no NaN: 100 MB are not copied for nothing
    if len(known) == 0:
        return empty_columns(name)
    p50, p90, p99 = (float(value) for value in np.percentile(known, (50, 90, 99)))
    figures = (float(known.mean(dtype=np.float64)), p50, p90, p99 if len(known) >= MIN_P99_VALUES else None)
    return {f"{name}_ms_{statistic}": figure for statistic, figure in zip(STATISTICS, figures, strict=True)}


def empty_columns(name: str) -> dict[str, float | None]:
    """The four columns of a latency of which nothing is known."""
    return {f"{name}_ms_{statistic}": None for statistic in STATISTICS}


@dataclass(frozen=True, slots=True)
class Gaps:
    """Gaps between chunks with tokens, of some requests."""

    values_ms: NDArray[np.float32]
    per_request: NDArray[np.int64]
    """Number of gaps of each request, in order."""
    merged: int
    """Gaps left out because one read held several chunks."""

    @property
    def merged_share(self) -> float | None:
        """Share of gaps whose time is unknown; None when there was no gap at all."""
        total = len(self.values_ms) + self.merged
        return self.merged / total if total else None

    @property
    def usable(self) -> bool:
        """Whether few enough gaps are missing for the others to speak for all."""
        return (self.merged_share or 0.0) <= MAX_MERGED_SHARE

    def mean_per_request_ms(self) -> Floats:
        """Mean gap of each request; NaN where it has none."""
        ends = np.cumsum(self.per_request)
        sums = np.r_[0.0, np.cumsum(self.values_ms, dtype=np.float64)]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((sums[ends] - sums[ends - self.per_request]) / self.per_request)


def gaps_of(requests: pa.Table, chosen: NDArray[np.bool_]) -> Gaps:
    """The gaps of the chosen rows of a table with REQUEST_SCHEMA."""
    picked = requests.select(["itl_ms", "gaps_merged"])
    if not chosen.all():
        picked = picked.filter(pa.array(chosen))
    chunks = [chunk for chunk in picked["itl_ms"].chunks if len(chunk)]
    values = [np.asarray(chunk.flatten().to_numpy(zero_copy_only=False), dtype=np.float32) for chunk in chunks]
    lengths = [_lengths(chunk) for chunk in chunks]
    merged = picked["gaps_merged"].cast(pa.int64()).to_numpy()
    return Gaps(
        values_ms=_joined(values, np.float32),
        per_request=_joined(lengths, np.int64),
        merged=int(np.nansum(merged)) if len(merged) else 0,
    )


def _joined(parts: list[NDArray[Number]], dtype: type[Number]) -> NDArray[Number]:
    if len(parts) == 1:
        return parts[0]  # no copy: gaps are by far the largest column
    return np.concatenate(parts) if parts else np.array([], dtype=dtype)


def _lengths(chunk: pa.ListArray) -> NDArray[np.int64]:
    lengths = np.asarray(chunk.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
    return lengths.astype(np.int64)


def met_limits(limits: Mapping[str, float], latencies_ms: Mapping[str, Floats]) -> NDArray[np.bool_]:
    """For each request: whether it is within every limit (ms).

    An answer that never came (ttft, ttfo, e2e unknown) misses its limit; a request too short to have
    a TPOT or a gap cannot miss one. Raises UsageError for a limit on something that is no latency.
    """
    unknown = sorted(set(limits) - set(LIMITS))
    if unknown:
        raise UsageError(f"--slo {unknown[0]}: per-request limits are {', '.join(LIMITS)}, e.g. ttft=1000ms.")
    met = np.ones(len(next(iter(latencies_ms.values()))), dtype=np.bool_)
    for name, limit in limits.items():
        values = latencies_ms[name]
        within = values <= limit
        met &= within | np.isnan(values) if name in ("tpot", "itl") else within
    return met

"""What a long prompt does to others: gaps between their tokens while one was being read, and otherwise."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_COLUMNS = ("error", "sent_ns", "scheduled_ns", "ttft_ms", "itl_ms", "gaps_merged")


def interference(requests: pa.Table, beside: pa.Table) -> str | None:
    """One clause with the ITL of `requests` during and outside the prefills of `beside`; None where none was read.

    Both have REQUEST_SCHEMA. A prefill lasts from the sending of a request to its first token; a gap counts as during
    one when it ended within it or spanned its end. Streams with merged reads have no times for their gaps and are left
    out.
    """
    spans = np.array([(start, end) for start, end, _ in _streams(beside) if end > start], np.float64).reshape(-1, 2)
    tokens = [count for count in beside["input_tokens"].to_pylist() if count is not None]
    if not len(spans):
        return None
    starts, ends = np.sort(spans[:, 0]), np.sort(spans[:, 1])
    gaps: list[NDArray[np.float64]] = []
    hit: list[NDArray[np.bool_]] = []
    for _, first, itl in _streams(requests):
        close = first + np.cumsum(itl) * 1e6
        open_ = close - itl * 1e6
        gaps.append(itl)
        # spans that began before the gap's end, less those that ended before its beginning
        hit.append(np.searchsorted(starts, close) > np.searchsorted(ends, open_))
    if not gaps:
        return None
    every, during = np.concatenate(gaps), np.concatenate(hit)
    ttft = float(np.mean((spans[:, 1] - spans[:, 0]) / 1e6))
    length = f" of {round(np.mean(tokens))} tokens" if tokens else ""
    return (
        f"{len(spans)} prompts{length} beside (TTFT {ttft:.0f} ms): the others' ITL p50/p99 was "
        f"{_told(every[during])} while one was read, {_told(every[~during])} otherwise"
    )


def _streams(table: pa.Table) -> Iterator[tuple[float, float, NDArray[np.float64]]]:
    """Start, first token (ns of CLOCK_REALTIME) and gaps (ms) of each successful stream whose gaps have times."""
    for row in table.select(_COLUMNS).to_pylist():
        if row["error"] is None and row["ttft_ms"] is not None and not row["gaps_merged"]:
            begin = row["sent_ns"] if row["scheduled_ns"] is None else row["scheduled_ns"]
            yield float(row["sent_ns"]), begin + row["ttft_ms"] * 1e6, np.asarray(row["itl_ms"] or (), np.float64)


def _told(gaps: NDArray[np.float64]) -> str:
    return f"{np.percentile(gaps, 50):.1f}/{np.percentile(gaps, 99):.1f} ms" if len(gaps) else "unknown"

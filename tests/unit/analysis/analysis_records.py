"""Request records planted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from qwenbench.load.records import REQUEST_SCHEMA

BASE_NS = 1_790_000_000_000_000_000


def at_ms(milliseconds: float) -> int:
    """A CLOCK_REALTIME so long after the planted point's start."""
    return BASE_NS + round(milliseconds * 1e6)


def request(start_ms: float, end_ms: float, **fields: Any) -> dict[str, Any]:
    """A request in flight from start to end (ms after the point's start)."""
    return {
        "sent_ns": at_ms(start_ms),
        "ended_ns": at_ms(end_ms),
        "e2e_ms": end_ms - start_ms,
        "ttft_ms": 0.0,
        "decode_ms": end_ms - start_ms,
        "input_tokens": 10,
        "output_tokens": 2,
        "gaps_merged": 0,
        "itl_ms": [],
    } | fields


def table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """The rows with REQUEST_SCHEMA; names are made up where none are given, everything else is null."""
    filled = [{"request_id": f"r{i}", "session_id": f"s{i}"} | row for i, row in enumerate(rows)]
    return pa.Table.from_pylist(filled, schema=REQUEST_SCHEMA)

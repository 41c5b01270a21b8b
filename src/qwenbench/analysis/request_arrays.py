"""Request records as numpy columns: what windows, points and statistics compute with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

COLUMNS = (
    "session_id", "scheduled_ns", "sent_ns", "ended_ns", "ttft_ms", "ttfo_ms", "e2e_ms", "decode_ms",
    "input_tokens", "cached_tokens", "output_tokens", "error",
)  # fmt: skip
"""The columns of REQUEST_SCHEMA that are needed here; the gaps (`itl_ms`) stay in the table, they are large."""


@dataclass(frozen=True, slots=True)
class RequestArrays:
    """One entry per request sent, failures included. Unknown numbers are NaN."""

    session: Ints
    """A number per session."""
    begin_ns: Ints
    """CLOCK_REALTIME from which latencies count: scheduled in an open loop, else sent."""
    ended_ns: Ints
    ok: Bools
    ttft_ms: Floats
    ttfo_ms: Floats
    e2e_ms: Floats
    decode_ms: Floats
    """Last token - first token."""
    input_tokens: Floats
    cached_tokens: Floats
    output_tokens: Floats

    @property
    def count(self) -> int:
        """Requests sent."""
        return len(self.begin_ns)

    @property
    def tpot_ms(self) -> Floats:
        """(last token - first token) / (output tokens - 1); NaN under 2 tokens."""
        steps = np.where(self.output_tokens >= 2, self.output_tokens - 1, np.nan)
        return np.asarray(self.decode_ms / steps, dtype=np.float64)

    def latencies_ms(self) -> Mapping[str, Floats]:
        """The per-request latencies by metric name."""
        return {"ttft": self.ttft_ms, "ttfo": self.ttfo_ms, "tpot": self.tpot_ms, "e2e": self.e2e_ms}

    @classmethod
    def of(cls, requests: pa.Table) -> RequestArrays:
        """Reads COLUMNS from a table with REQUEST_SCHEMA."""
        begin = pc.coalesce(requests["scheduled_ns"], requests["sent_ns"])
        return cls(
            session=_session_numbers(requests["session_id"]),
            begin_ns=_ints(begin),
            # a record without an end (its client died) counts as over when it began
            ended_ns=_ints(pc.coalesce(requests["ended_ns"], begin)),
            ok=np.asarray(requests["error"].is_null().to_numpy(), dtype=np.bool_),
            ttft_ms=_floats(requests["ttft_ms"]),
            ttfo_ms=_floats(requests["ttfo_ms"]),
            e2e_ms=_floats(requests["e2e_ms"]),
            decode_ms=_floats(requests["decode_ms"]),
            input_tokens=_floats(requests["input_tokens"]),
            cached_tokens=_floats(requests["cached_tokens"]),
            output_tokens=_floats(requests["output_tokens"]),
        )

    def tokens_between(self, start_ns: int, end_ns: int) -> float:
        """Output tokens of successful requests that were generated in (start, end].

        Each request's first token counts at its TTFT; the others are spread evenly over its decode time.
        """
        known = self.ok & (self.output_tokens > 0)
        tokens = self.output_tokens[known]
        ended = (self.ended_ns[known] - start_ns) / 1e6  # all times in ms from the start: exact enough as floats
        first = (self.begin_ns[known] - start_ns) / 1e6 + self.ttft_ms[known]
        first = np.where(np.isnan(first), ended, first)
        decode = np.nan_to_num(self.decode_ms[known], nan=0.0)
        length = (end_ns - start_ns) / 1e6
        overlap = np.clip(np.minimum(first + decode, length) - np.maximum(first, 0.0), 0.0, None)
        inside = ((first > 0) & (first <= length)).astype(np.float64)
        share = np.divide(overlap, decode, out=inside.copy(), where=decode > 0)
        return float((inside + (tokens - 1) * share).sum())


def _ints(column: pa.ChunkedArray) -> Ints:
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _floats(column: pa.ChunkedArray) -> Floats:
    return np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)


def _session_numbers(column: pa.ChunkedArray) -> Ints:
    """Numbers for session names; a request without one is a session of its own."""
    encoded = pc.dictionary_encode(column.combine_chunks())
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    numbers = _ints(pa.chunked_array([pc.fill_null(encoded.indices.cast(pa.int64()), -1)]))
    alone = numbers < 0
    return np.where(alone, np.arange(len(numbers)) + len(encoded.dictionary), numbers)

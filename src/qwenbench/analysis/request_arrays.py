"""Request records as numpy columns, their gaps, the latency columns of a point, and why requests failed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qwenbench.analysis.columns import LATENCIES
from qwenbench.errors import UsageError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_NUMBERS_OF = ("ttft_ms", "ttfo_ms", "e2e_ms", "decode_ms", "input_tokens", "cached_tokens", "output_tokens")
COLUMNS = ("session_id", "scheduled_ns", "sent_ns", "ended_ns", *_NUMBERS_OF, "error")
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
            **{name: _floats(requests[name]) for name in _NUMBERS_OF},
        )

    def tokens_between(self, start_ns: int, end_ns: int) -> float | None:
        """Output tokens of successful requests that were generated in (start, end].

        Each request's first token counts at its TTFT; the others are spread evenly over its decode time. None: of a
        request that was under way then nobody knows how many tokens it had.
        """
        under_way = self.ok & (self.begin_ns < end_ns) & (self.ended_ns > start_ns)
        if not self.ok.any() or np.isnan(self.output_tokens[under_way]).any():
            return None
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


STATISTICS = ("mean", "p50", "p90", "p99")
MIN_P99_VALUES = 100
STALL = 2.5
"""A gap over so many times the point's median gap is a stall."""
MAX_MERGED_SHARE = 0.01
"""Above this share of gaps with unknown times the ITL columns are empty."""

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

    def stalls(self) -> tuple[float, float] | None:
        """(share of the time between chunks that went into stalls, median stall in ms).

        A stall is a gap over STALL x the median gap: another request's prefill, or a step of the host's, came between
        two tokens. Without any the median is NaN; None where too many gaps are missing, or there is none.
        """
        if not self.usable or len(self.values_ms) == 0:
            return None
        total = float(self.values_ms.sum(dtype=np.float64))
        stalls = self.values_ms[self.values_ms > STALL * float(np.median(self.values_ms))]
        if total <= 0:
            return None
        share = float(stalls.sum(dtype=np.float64)) / total
        return share, float(np.median(stalls)) if len(stalls) else float("nan")

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
    unknown = sorted(set(limits) - set(LATENCIES))
    if unknown:
        raise UsageError(f"--slo {unknown[0]}: per-request limits are {', '.join(LATENCIES)}, e.g. ttft=1000ms.")
    met = np.ones(len(next(iter(latencies_ms.values()))), dtype=np.bool_)
    for name, limit in limits.items():
        values = latencies_ms[name]
        within = values <= limit
        met &= within | np.isnan(values) if name in ("tpot", "itl") else within
    return met


MOST_REASONS = 3
_LONGEST_REASON = 160
_NUMBERS = re.compile(r"\d+")
_STATUS = re.compile(r"(HTTP \d{3})(?: \(Retry-After: [^)]*\))?: ?")


def failure_reasons(requests: pa.Table) -> str | None:
    """`HTTP 400 x 16: unrecognized request argument: top_k; timeout x 2: ...`; None when no request failed.

    `requests` has REQUEST_SCHEMA. The words are the server's own where it gave any; details that differ in numbers
    only count as one.
    """
    errors, details = (requests[name].to_pylist() for name in ("error", "error_detail"))
    reasons = (_reason(error, detail or "") for error, detail in zip(errors, details, strict=True) if error is not None)
    return _counted(reasons)


def tokens_from(requests: pa.Table) -> str | None:
    """Who counted the output tokens: usage, tokenize or both; None when nobody did (or the records are older)."""
    if "tokens_from" not in requests.column_names:
        return None
    return "+".join(sorted(requests["tokens_from"].drop_null().unique().to_pylist())) or None


def disagreements(requests: pa.Table) -> str | None:
    """The commonest contradictions within successful requests, as `usage and chunks x 4: ...`; None without any."""
    if "disagreement" not in requests.column_names:
        return None
    errors, found = (requests[name].to_pylist() for name in ("error", "disagreement"))
    told = (text.partition(": ") for error, text in zip(errors, found, strict=True) if error is None and text)
    return _counted((head, words) for head, _, words in told)


def _reason(error: str, detail: str) -> tuple[str, str]:
    status = _STATUS.match(detail) if error == "http_status" else None
    return (status[1], detail[status.end() :]) if status else (error, detail)


def _counted(reasons: Iterable[tuple[str, str]]) -> str | None:
    counts: Counter[tuple[str, str]] = Counter()
    shown: dict[tuple[str, str], str] = {}
    for head, words in reasons:
        kind = (head, _NUMBERS.sub("0", words))
        counts[kind] += 1
        shown.setdefault(kind, words[:_LONGEST_REASON])
    most = counts.most_common(MOST_REASONS)
    told = [f"{kind[0]} x {count}" + (f": {shown[kind]}" if shown[kind] else "") for kind, count in most]
    rest = counts.total() - sum(count for _, count in most)
    return "; ".join([*told, *([f"{rest} more of other kinds"] if rest else [])]) or None

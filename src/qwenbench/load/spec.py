"""What the load generator is told to do, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from qwenbench.workload.sessions import SessionPlan

ENDPOINT_PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


@dataclass(frozen=True, slots=True)
class Target:
    """A server under test. `headers` may hold secrets, so they never show in repr."""

    base_url: str
    endpoint: str = "chat"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    verify_tls: bool = True


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """`concurrency` streams; each starts its next session when its last one ended."""

    concurrency: int


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Sessions start at their own `start_s`, whatever the server does."""

    rate: float | None = None
    """Nominal sessions per second, for the record (None: a trace)."""
    ramp_s: float = 0.0
    """Seconds at the beginning of the schedule that do not count for the window."""


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """One load point, or its warm-up.

    `sessions` may be lazy (any picklable Sequence) and longer than what `duration_s` lets be sent.
    """

    target: Target
    shape: ClosedLoop | OpenLoop
    sessions: Sequence[SessionPlan]
    timeout_s: float = 600.0
    """Longest time for one request, from its (scheduled) start to its last byte."""
    duration_s: float | None = None
    """No new session starts after this many seconds; those under way are finished."""
    processes: int | None = None
    cpus: tuple[int, ...] = ()
    save_text: bool = False
    judge_text: bool = False
    """Run the broken-output checks on each answer when its stream has ended."""


@dataclass(frozen=True, slots=True)
class ClientHealth:
    """How well the client itself kept up during a point."""

    processes: int
    stamp_source: str
    """`kernel` (SO_TIMESTAMPNS) or `user` (clock read right after the read)."""
    cpu_share_max: float
    """Busiest client process: CPU seconds / wall seconds (1.0 = a whole core)."""
    loop_lag_p99_ms: float | None
    loop_lag_max_ms: float | None
    clock_step_ms: float
    """|real time elapsed - monotonic time elapsed| over the point."""
    cpu_us_per_token: float | None = None


@dataclass(frozen=True, slots=True)
class LoadResult:
    """`requests` has REQUEST_SCHEMA (load/records.py), one row per request sent, failures included."""

    requests: pa.Table
    started_ns: int
    """CLOCK_REALTIME, ns, right before the first stream was let go."""
    ended_ns: int
    health: ClientHealth
    texts: Mapping[str, str] = field(default_factory=dict)
    """request_id -> answer, only with save_text."""


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a point is, about once a second, for a live view. `output_tokens` is an estimate until the end."""

    sent: int
    done: int
    failed: int
    in_flight: int
    output_tokens: int
    ttft_sum_ms: float = 0.0
    """Over the requests decoded so far that got a token."""
    ttft_count: int = 0

    @property
    def ttft_ms(self) -> float | None:
        """Mean TTFT so far, or None before the first token was decoded."""
        return self.ttft_sum_ms / self.ttft_count if self.ttft_count else None

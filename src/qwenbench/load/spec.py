"""What the load generator is told to do, where its requests go, and what it gives back."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import pyarrow as pa

from qwenbench.bounded_http import server_base
from qwenbench.errors import UsageError
from qwenbench.load.http1 import request_head
from qwenbench.workload.sessions import SessionPlan

STREAMS_PER_PROCESS = 256
"""Above this many streams another process is used, where there are cores for it."""
ENDPOINT_PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


@dataclass(frozen=True, slots=True)
class Target:
    """A server under test. `headers` may hold secrets, so they never show in repr."""

    base_url: str
    endpoint: str = "chat"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    verify_tls: bool = True

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be shown: the headers' values, and of `Bearer abc` the second word alone."""
        values = list(self.headers.values())
        return tuple({*values, *(value.split()[-1] for value in values if value.split())})


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
class Enough:
    """When a closed loop has been full for long enough: both are reached. Then nothing new is sent."""

    completions: int
    """Requests that were answered."""
    median_requests: float
    """The time so far, in medians of their E2E."""


class RequestTimes(NamedTuple):
    """A finished request's latencies in ms, as they are known while a point runs. None: not known, or it failed."""

    ttft: float | None
    ttfo: float | None
    tpot: float | None
    e2e: float | None


Decided = Callable[[Sequence[RequestTimes]], bool]
"""Whether the requests finished so far are enough: then nothing new is sent."""


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """One load point, or its warm-up.

    `sessions` may be lazy (any picklable Sequence) and longer than what `duration_s` or `enough` lets be sent.
    """

    target: Target
    shape: ClosedLoop | OpenLoop
    sessions: Sequence[SessionPlan]
    timeout_s: float = 600.0
    """Longest time for one request, from its (scheduled) start to its last byte."""
    duration_s: float | None = None
    """No new session starts after this many seconds; those under way are finished."""
    enough: Enough | None = None
    """Closed loop: streams are given sessions until this is so (None: until there are no more), then what is in
    flight is finished."""
    processes: int | None = None
    """Client processes on each machine that sends; None: from the cores and streams of this one."""
    part: tuple[int, int] = (0, 1)
    """(k, n): of a load that n machines send together, the k-th machine's share, counted from 0."""
    cpus: tuple[int, ...] = ()
    save_text: bool = False
    judge_text: bool = False
    """Run the broken-output checks on each answer when its stream has ended."""
    tokenize_as: str | None = None
    """Model for which the server's /tokenize counts answers that came without usage, once the load has ended; None:
    their tokens stay unknown."""

    @property
    def open_loop(self) -> bool:
        return isinstance(self.shape, OpenLoop)

    @property
    def keeps_texts(self) -> bool:
        """Whether the answers' texts are needed once the load has ended."""
        return self.save_text or self.judge_text or self.tokenize_as is not None


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
    client_lost: str | None = None
    """Why a client process was lost during the point (its requests have error `client`); None: none was."""
    waited_s: float = 0.0
    """How long the last requests were waited for that got no whole answer, since the last one that did."""


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
    finished: tuple[RequestTimes, ...] = ()
    """The requests that ended since the last message, where somebody decides by them."""
    enough: bool = False
    """This part of the point has what LoadSpec.enough asks for."""
    waiting_since_ns: int = 0
    """CLOCK_REALTIME from which on no whole answer came although requests were under way; 0: nothing is waited for."""
    read_ns: int = 0
    """When the latest bytes of an answer under way came, its first ones (often the head alone) aside; 0: none."""

    @property
    def ttft_ms(self) -> float | None:
        """Mean TTFT so far, or None before the first token was decoded."""
        return self.ttft_sum_ms / self.ttft_count if self.ttft_count else None


@dataclass(frozen=True, slots=True)
class Address:
    """A target, taken apart. `path` is the whole request path; `proxied` says that the environment names a
    proxy for it."""

    scheme: str
    host: str
    port: int
    path: str
    proxied: bool

    @property
    def host_header(self) -> str:
        """Host header value; the port is left out where it is the scheme's own."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return name if self.port == default else f"{name}:{self.port}"

    @property
    def url(self) -> str:
        """The whole URL, without user name."""
        return f"{self.scheme}://{self.host_header}{self.path}"


def address_of(target: Target) -> Address:
    """Take a target's URL apart; `http://host:8000` and `http://host:8000/v1` mean the same.

    Raises UsageError for anything that is no http(s) URL of a host, or an endpoint that is not known.
    """
    try:
        parts = urlsplit(target.base_url)
        port = parts.port
    except ValueError:
        raise UsageError("the server's URL cannot be read; give one like http://127.0.0.1:8000") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError("the server's URL must begin with http:// or https:// and name a host")
    if target.endpoint not in ENDPOINT_PATHS:
        known = " or ".join(ENDPOINT_PATHS)
        raise UsageError(f"endpoint {target.endpoint!r} is not known; use {known}")
    prefix = server_base(parts.path)
    if port is None:
        port = 443 if parts.scheme == "https" else 80
    proxied = _has_proxy(parts.scheme, parts.hostname)
    return Address(parts.scheme, parts.hostname, port, prefix + ENDPOINT_PATHS[target.endpoint], proxied)


def _has_proxy(scheme: str, host: str) -> bool:
    if scheme not in getproxies():
        return False
    local = host in ("localhost", "::1") or host.startswith("127.")
    return not local and not proxy_bypass(host) and os.environ.get("no_proxy") != "*"


def check_spec(spec: LoadSpec) -> None:
    """Refuses what no process could do, before any is started. Raises UsageError."""
    address = address_of(spec.target)
    try:
        request_head(address.host_header, address.path, spec.target.headers)
    except (ValueError, UnicodeEncodeError) as problem:
        raise UsageError(str(problem).split(":", maxsplit=1)[0]) from None
    if isinstance(spec.shape, ClosedLoop) and spec.shape.concurrency < 1:
        raise UsageError(f"concurrency must be 1 or more, not {spec.shape.concurrency}")
    if spec.processes is not None and spec.processes < 1:
        raise UsageError(f"--client-processes must be 1 or more, not {spec.processes}")
    if spec.timeout_s <= 0:
        raise UsageError(f"the time-out must be more than 0 s, not {spec.timeout_s:g}")
    if hasattr(os, "sched_getaffinity"):
        missing = sorted(set(spec.cpus) - os.sched_getaffinity(0))
        if missing:
            raise UsageError(f"--client-cpus names CPUs that are not usable here: {missing}")


def streams_to_open(spec: LoadSpec) -> int:
    """Connections to open before a point starts. Open loop: enough for two seconds of arrivals, 8 to 256."""
    if isinstance(spec.shape, ClosedLoop):
        return max(1, min(spec.shape.concurrency, len(spec.sessions)))
    rate = spec.shape.rate or 32.0
    return max(1, min(len(spec.sessions), max(8, min(256, round(2 * rate)))))


def default_processes(streams: int, cores: int | None = None) -> int:
    """Client processes for a number of streams: one per 256, on half of the cores at most."""
    if cores is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(-(-streams // STREAMS_PER_PROCESS), cores // 2))

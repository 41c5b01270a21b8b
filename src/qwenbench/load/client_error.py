"""The client's own error, measured against streams whose timing is known, and whether it spoils a point."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from qwenbench import __version__
from qwenbench.errors import RunError
from qwenbench.load.clock import MAX_CLOCK_STEP_MS
from qwenbench.load.run import LoadClient, run_load
from qwenbench.load.spec import ClientHealth, ClosedLoop, LoadResult, LoadSpec, Target, default_processes
from qwenbench.load.truth.process import truth_server
from qwenbench.load.truth.timing import ServedRequest, Timing
from qwenbench.workload.sessions import SessionPlan, TurnPlan

_SECONDS = 2.0
_TTFT_MS = 30.0
_FASTEST_ITL_MS = 5.0
_CHUNKS_PER_S = 20_000
"""As many as the Python truth server sends without being late itself."""
_TOKENS = 30


RELATIVE_LIMIT = 0.05
TTFT_FLOOR_MS = 2.0
ITL_FLOOR_MS = 0.5
P99_FLOOR_MS = 10.0
P99_REQUESTS = 100
"""Fewer requests of a self-check say nothing of its 99th percentile."""
LONGEST_AGE_S = 24 * 3600.0
"""A good self-check holds for so long, on the same machine since the same boot."""
DOUBTFUL_AGE_S = 60.0
"""One in which the client was disturbed holds for so long."""
CPU_SATURATED = 0.9
"""CPU share of the busiest client process from which on it may have been what was measured."""
MERGED_LIMIT = 0.1
"""Share of merged gaps that, from a client that lagged, makes first-token times doubtful too."""


@dataclass(frozen=True, slots=True)
class ClientError:
    """How far the client's times were from the truth, in ms; absolute values, server lateness left out.

    TTFT: |measured - true| over requests, where true is from the kernel's stamp of the request at the server
    to the send of the first token. ITL: |measured gap - true gap| over gaps that were not merged.
    """

    concurrency: int
    mean_ms: float
    p99_ms: float
    itl_mean_ms: float | None
    itl_p99_ms: float | None
    server_late_mean_ms: float
    server_late_p99_ms: float
    merged_share: float
    requests: int
    processes: int
    stamp_source: str
    measured_at: float = 0.0
    """Unix time of the measurement, s."""
    cached: bool = False

    @property
    def doubtful(self) -> bool:
        """Large enough to spoil a fast point: what disturbed the check may be over by the next one."""
        return self.mean_ms > TTFT_FLOOR_MS or (self.itl_mean_ms or 0.0) > ITL_FLOOR_MS

    def valid_at(self, now: float) -> bool:
        """Whether it still holds at this Unix time: a good check for a day, a doubtful one for a minute."""
        return 0 <= now - self.measured_at < (DOUBTFUL_AGE_S if self.doubtful else LONGEST_AGE_S)


async def measure_client_error(
    concurrency: int,
    *,
    client: LoadClient | None = None,
    cache_dir: Path | None = None,
) -> ClientError:
    """Measure the client at `concurrency` streams: about 3 s.

    The result is kept in `cache_dir` (default: the user's cache folder) for this machine as it is now (`valid_at` says
    how long). Raises RunError when the truth server cannot start or every request failed.
    """
    count = default_processes(concurrency)
    path = (cache_dir or default_cache_dir()) / "client-error.json"
    key = "|".join([*_machine(), __version__, str(concurrency), str(count)])
    if (known := _load(path).get(key)) is not None and known.valid_at(time.time()):
        return replace(known, cached=True)
    timing = Timing(_TTFT_MS, max(_FASTEST_ITL_MS, concurrency / _CHUNKS_PER_S * 1000))
    async with truth_server(timing) as server:
        spec = LoadSpec(
            Target(server.base_url),
            ClosedLoop(concurrency),
            _sessions(concurrency, timing),
            timeout_s=10.0,
            duration_s=_SECONDS,
            processes=count,
        )
        result = await (run_load(spec) if client is None else client.run(spec))
        served = await server.take_served()
    error = compare(result.requests, served, timing, concurrency, result.health.stamp_source, count)
    error = replace(error, measured_at=time.time())
    _keep(path, key, error)
    return error


def _machine() -> list[str]:
    """What the client's speed depends on: another kernel, boot or number of usable cores is another machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return [platform.node(), platform.machine(), platform.release(), platform.python_version(), str(cores), boot]


def compare(
    requests: pa.Table,
    served: list[ServedRequest],
    timing: Timing,
    concurrency: int,
    stamp_source: str,
    processes: int,
) -> ClientError:
    """Hold the client's rows against what the server says it did. Raises RunError without a single pair."""
    truth = {one.request_id: one for one in served}
    columns = requests.select(["request_id", "error", "ttft_ms", "itl_ms", "gaps_merged", "chunks"]).to_pylist()
    pairs = [(row, truth[row["request_id"]]) for row in columns if row["error"] is None and row["request_id"] in truth]
    if not pairs:
        raise RunError("no request of the client's self-check succeeded; its own error is not known")
    ttft = np.array([abs(row["ttft_ms"] - one.ttft_ms) for row, one in pairs])
    whole = [(row, one) for row, one in pairs if row["gaps_merged"] == 0]
    itl = _concat([np.abs(np.asarray(row["itl_ms"]) - np.diff(one.sent_ns) / 1e6) for row, one in whole])
    late = _concat([np.asarray(one.lateness_ms(timing)) for _, one in pairs])
    gaps = sum(row["chunks"] - 1 for row, _ in pairs)
    return ClientError(
        concurrency=concurrency,
        mean_ms=float(ttft.mean()),
        p99_ms=float(np.percentile(ttft, 99)),
        itl_mean_ms=float(itl.mean()) if len(itl) else None,
        itl_p99_ms=float(np.percentile(itl, 99)) if len(itl) else None,
        server_late_mean_ms=float(late.mean()),
        server_late_p99_ms=float(np.percentile(late, 99)),
        merged_share=sum(row["gaps_merged"] for row, _ in pairs) / gaps if gaps else 0.0,
        requests=len(pairs),
        processes=processes,
        stamp_source=stamp_source,
    )


def default_cache_dir() -> Path:
    """Where results are kept: XDG_CACHE_HOME/qwenbench, or ~/.cache/qwenbench."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "qwenbench"


def _concat(parts: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    return np.concatenate([np.zeros(0), *parts])


def _sessions(concurrency: int, timing: Timing) -> list[SessionPlan]:
    request_s = (timing.ttft_ms + timing.itl_ms * (_TOKENS - 1)) / 1000
    rounds = int(_SECONDS / request_s) + 2
    return [_session(f"check-{index}") for index in range(rounds * concurrency)]


def _session(name: str) -> SessionPlan:
    payload = {
        "model": "truth",
        "messages": [{"role": "user", "content": "hi"}],
        "max_completion_tokens": _TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
        "request_id": name,
    }
    return SessionPlan(name, "self-check", (TurnPlan(name, 0, name, "en", payload, _TOKENS),))


def _load(path: Path) -> dict[str, ClientError]:
    """What was kept; a file that is missing, broken or of another version counts as empty."""
    try:
        document = json.loads(path.read_text())
        return {key: ClientError(**value) for key, value in document.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _keep(path: Path, key: str, error: ClientError) -> None:
    now = time.time()
    known = {name: one for name, one in _load(path).items() if one.valid_at(now)} | {key: error}
    text = json.dumps({name: asdict(one) for name, one in known.items()}, indent=1)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text)
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)  # a cache that cannot be written costs the next run 3 s, no more


def invalid_reason(
    health: ClientHealth,
    error: ClientError | None,
    ttft_p50_ms: float | None,
    itl_p50_ms: float | None,
    merged_share: float | None = None,
    ttft_p99_ms: float | None = None,
) -> str | None:
    """Why a point is invalid on the client's account, None when it is valid.

    The client's mean error (which leaves the truth server's own lateness out) must not exceed the larger of
    5 % of the point's median and 2 ms for TTFT, or 0.5 ms for ITL. Without a self-check (`error` None) only
    what was seen during the point is judged: a client that was kept from the CPU for longer than the gap
    between tokens reads several at once (`merged_share` of the gaps, 0 to 1), and then times the first ones
    too late. All times in ms.
    """
    if health.clock_step_ms > MAX_CLOCK_STEP_MS:
        return f"the clock stepped by {health.clock_step_ms:.1f} ms during the point"
    if health.cpu_share_max >= CPU_SATURATED:
        share = f"{health.cpu_share_max:.0%}"
        return f"a client process used {share} of a core; use more --client-processes or fewer streams"
    lag = health.loop_lag_p99_ms
    if health.stamp_source == "user" and lag is not None and lag > _limit(ttft_p50_ms, TTFT_FLOOR_MS):
        return f"the client's event loop lagged by {lag:.1f} ms (p99), and no kernel stamps were there"
    late = lag is not None and itl_p50_ms is not None and lag > itl_p50_ms
    if late and merged_share is not None and merged_share > MERGED_LIMIT:
        return f"the client came {lag:.1f} ms late to its sockets (p99) and read {merged_share:.0%} of the gaps merged"
    if error is None:
        return None
    limit = _limit(ttft_p50_ms, TTFT_FLOOR_MS)
    if error.mean_ms > limit:
        return f"the client's own TTFT error of {error.mean_ms:.2f} ms exceeds {limit:.2f} ms"
    limit = max(RELATIVE_LIMIT * (ttft_p99_ms or 0.0), limit, P99_FLOOR_MS)
    if error.requests >= P99_REQUESTS and error.p99_ms > limit:
        return f"the client's own TTFT error of {error.p99_ms:.1f} ms (p99) exceeds {limit:.1f} ms"
    limit = _limit(itl_p50_ms, ITL_FLOOR_MS)
    if error.itl_mean_ms is not None and error.itl_mean_ms > limit:
        return f"the client's own ITL error of {error.itl_mean_ms:.2f} ms exceeds {limit:.2f} ms"
    return None


def _limit(median_ms: float | None, floor_ms: float) -> float:
    return floor_ms if median_ms is None else max(RELATIVE_LIMIT * median_ms, floor_ms)


def client_verdict(result: LoadResult, error: ClientError | None) -> str | None:
    """Why the point is invalid on the client's account, None when it is valid. All times in ms."""
    ok = result.requests.filter(pc.is_null(result.requests["error"]))
    gaps = pc.list_flatten(ok["itl_ms"])
    merged = pc.sum(ok["gaps_merged"]).as_py() or 0
    share = merged / (merged + len(gaps)) if merged + len(gaps) else None
    ttft_p50, ttft_p99 = (_quantile(ok["ttft_ms"], one) for one in (0.5, 0.99))
    return invalid_reason(result.health, error, ttft_p50, _quantile(gaps, 0.5), share, ttft_p99)


def _quantile(values: pa.ChunkedArray, share: float) -> float | None:
    """A quantile of the known values, or None."""
    value = pc.quantile(values, share, skip_nulls=True)[0].as_py()
    return None if value is None else float(value)

"""When a point's latencies may not be trusted because of the client (and not of the server)."""

from __future__ import annotations

from qwenbench.load.clock import MAX_CLOCK_STEP_MS
from qwenbench.load.selfcheck import ClientError
from qwenbench.load.spec import ClientHealth

RELATIVE_LIMIT = 0.05
TTFT_FLOOR_MS = 2.0
ITL_FLOOR_MS = 0.5
CPU_SATURATED = 0.9
"""CPU share of the busiest client process from which on it may have been what was measured."""
MERGED_LIMIT = 0.1
"""Share of merged gaps that, from a client that lagged, makes first-token times doubtful too."""


def invalid_reason(
    health: ClientHealth,
    error: ClientError | None,
    ttft_p50_ms: float | None,
    itl_p50_ms: float | None,
    merged_share: float | None = None,
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
    limit = _limit(itl_p50_ms, ITL_FLOOR_MS)
    if error.itl_mean_ms is not None and error.itl_mean_ms > limit:
        return f"the client's own ITL error of {error.itl_mean_ms:.2f} ms exceeds {limit:.2f} ms"
    return None


def _limit(median_ms: float | None, floor_ms: float) -> float:
    return floor_ms if median_ms is None else max(RELATIVE_LIMIT * median_ms, floor_ms)

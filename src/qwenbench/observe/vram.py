"""VRAM before, at readiness, at its peak and after; and the wait until it is given back after a stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

MIB_PER_GIB = 1024
_POLL_S = 0.03
SLACK_MIB = 64.0
"""How far above the value before the launch still counts as given back: contexts of other programs come and go."""


@dataclass(frozen=True, slots=True)
class VramPhases:
    """Used VRAM of one card in MiB; None where the series does not show it."""

    before_mib: float | None = None
    ready_mib: float | None = None
    peak_mib: float | None = None
    after_mib: float | None = None


NOT_WATCHED = VramPhases()
"""No NVML, or nobody looked."""


def vram_phases(
    samples: Sequence[tuple[float, float]],
    *,
    kv_cache_gib: float | None = None,
    kv_to_ready_s: float | None = None,
) -> VramPhases:
    """Phases of a series of (seconds, used MiB) that spans a server's whole life.

    The moment of readiness is where the log puts it: the KV cache's allocation is the one jump of about its
    size, and `kv_to_ready_s` later the server answered. Without that jump it stays None. The last sample is
    `after` only when the KV cache is gone by then.
    """
    if not samples:
        return NOT_WATCHED
    used = [mib for _, mib in samples]
    peak = max(used)
    ready = None
    if kv_cache_gib is not None and kv_to_ready_s is not None:
        allocated_at = _jump_at(samples, kv_cache_gib * MIB_PER_GIB)
        if allocated_at is not None:
            since = [mib for at, mib in samples if at <= allocated_at + kv_to_ready_s]
            ready = since[-1] if samples[-1][0] >= allocated_at + kv_to_ready_s else None
    gone = kv_cache_gib is not None and used[-1] < peak - kv_cache_gib * MIB_PER_GIB
    return VramPhases(used[0], ready, peak, used[-1] if gone else None)


def _jump_at(samples: Sequence[tuple[float, float]], size_mib: float) -> float | None:
    """The end of the last rise of about this size (-10 % to +15 %) within 1.5 s.

    The last, because weights of the same size may be loaded as quickly before.
    """
    found = None
    start = 0
    for index, (at, mib) in enumerate(samples):
        while at - samples[start][0] > 1.5:
            start += 1
        rise = mib - min(value for _, value in samples[start : index + 1])
        fresh = index and mib - samples[index - 1][1] > 0.5 * size_mib
        if fresh and 0.9 * size_mib <= rise <= 1.15 * size_mib:
            found = at
    return found


@dataclass(frozen=True, slots=True)
class DrainReport:
    """How the wait went."""

    seconds: float
    drained: bool
    """False when the limit was reached with memory still held."""
    left_mib: Mapping[str, float]
    """Per card (UUID): what is used now above what was used before the launch, never negative."""


async def wait_drained(
    read_used_mib: Callable[[], Mapping[str, float]], before: Mapping[str, float], limit_s: float
) -> DrainReport:
    """Waits until every card uses no more than before the launch (+ 64 MiB), at most `limit_s` seconds.

    `read_used_mib` gives MiB in use per card UUID, now; cards that `before` does not know are passed over.
    """
    began = time.monotonic()
    while True:
        now = read_used_mib()
        left = {card: max(0.0, now[card] - used) for card, used in before.items() if card in now}
        seconds = time.monotonic() - began
        if all(mib <= SLACK_MIB for mib in left.values()):
            return DrainReport(seconds, True, left)
        if seconds >= limit_s:
            return DrainReport(seconds, False, left)
        await asyncio.sleep(_POLL_S)

"""The two clocks of a point, and how far they part.

Sends and receives are stamped with CLOCK_REALTIME because the kernel's receive stamps are real time. A step
of that clock (NTP, an administrator) would therefore look like latency: `ClockWatch` notices it by comparing
with CLOCK_MONOTONIC, which is slewed by the same amount but never stepped.
"""

from __future__ import annotations

import time
from collections.abc import Callable

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000
MAX_CLOCK_STEP_MS = 1.0
"""A point in which the clocks part by more than this is invalid (design, "Clock")."""


def now_ns() -> int:
    """CLOCK_REALTIME in nanoseconds since the epoch: the clock of every stamp in a request record."""
    return time.time_ns()


def clock_gap_ns(attempts: int = 5) -> int:
    """Real time minus monotonic time in ns, from the least disturbed of `attempts` readings.

    A process that loses the CPU between two clock calls would see a step that never was, so the pair whose
    two monotonic readings lie closest together is used.
    """
    best_width = best_gap = None
    for _ in range(attempts):
        before = time.monotonic_ns()
        real = time.time_ns()
        after = time.monotonic_ns()
        width = after - before
        if best_width is None or width < best_width:
            best_width, best_gap = width, real - (before + after) // 2
        if width < 2_000:
            break
    assert best_gap is not None
    return best_gap


class ClockWatch:
    """The largest difference between elapsed real time and elapsed monotonic time since it was made."""

    def __init__(self, gap_ns: Callable[[], int] = clock_gap_ns) -> None:
        self._gap_ns = gap_ns
        self._first = gap_ns()
        self._worst = 0

    def look(self) -> None:
        """Read both clocks once; called now and then so that a step back and forth is seen too."""
        self._worst = max(self._worst, abs(self._gap_ns() - self._first))

    @property
    def step_ms(self) -> float:
        """Largest difference seen so far, in ms."""
        return self._worst / NS_PER_MS

"""The clocks of a point: real time for stamps, a watch over steps of it, and calls at exact instants.

Sends and receives are stamped with CLOCK_REALTIME because the kernel's receive stamps are real time. A step
of that clock (NTP, an administrator) would therefore look like latency: `ClockWatch` notices it by comparing
with CLOCK_MONOTONIC, which is slewed by the same amount but never stepped.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np

from qwenbench.precise_timer import PreciseTimer

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000
_LOOK_EVERY_NS = 25 * NS_PER_MS
_GAP_READINGS = 5
MAX_CLOCK_STEP_MS = 1.0
"""A point in which the clocks part by more than this is invalid (design, "Clock")."""


def now_ns() -> int:
    """CLOCK_REALTIME in nanoseconds since the epoch: the clock of every stamp in a request record."""
    return time.time_ns()


def clock_gap_ns() -> int:
    """Real time minus monotonic time in ns, from the least disturbed of five readings.

    A process that loses the CPU between two clock calls would see a step that never was, so the pair whose
    two monotonic readings lie closest together is used.
    """
    best_width = best_gap = None
    for _ in range(_GAP_READINGS):
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


class TimedCalls:
    """A queue of calls, each at its CLOCK_REALTIME ns, run by the event loop of the thread that made it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._order = count()
        self._armed: int | None = None
        self._timer = PreciseTimer(loop, self._wake, real_time=True)

    def at(self, due_ns: int, call: Callable[[], None]) -> None:
        """Run `call` at `due_ns` (or as soon as possible when that has passed)."""
        heapq.heappush(self._queue, (due_ns, next(self._order), call))
        self._arm()

    @property
    def pending(self) -> bool:
        return bool(self._queue)

    def clear(self) -> None:
        self._queue.clear()

    def close(self) -> None:
        self._queue.clear()
        self._timer.close()

    def _arm(self) -> None:
        if self._queue and self._queue[0][0] != self._armed:
            self._armed = self._queue[0][0]
            self._timer.set(self._armed)

    def _wake(self) -> None:
        self._armed = None
        while self._queue and self._queue[0][0] <= now_ns():
            heapq.heappop(self._queue)[2]()
        self._arm()


@dataclass(frozen=True, slots=True)
class ProcessHealth:
    """One process's own measurements over a point; times in the unit of their names."""

    stamp_source: str
    cpu_s: float
    wall_s: float
    lag_ms: tuple[float, ...]
    clock_step_ms: float


class HealthWatch:
    """Measures the process that runs it, from `start` to `stop`, by waking 40 times a second."""

    def __init__(self, calls: TimedCalls) -> None:
        self._calls = calls
        self._clock = ClockWatch()
        self._lags: list[int] = []
        self._running = False
        self._cpu = self._wall = 0.0

    def start(self, at_ns: int) -> None:
        self._running = True
        self._cpu, self._wall = time.process_time(), time.monotonic()
        self._calls.at(at_ns, partial(self._look, at_ns))

    def stop(self, stamp_source: str) -> ProcessHealth:
        self._running = False
        self._clock.look()
        cpu, wall = time.process_time() - self._cpu, time.monotonic() - self._wall
        lags = tuple(np.asarray(self._lags, np.float64) / NS_PER_MS)
        return ProcessHealth(stamp_source, cpu, wall, lags, self._clock.step_ms)

    def _look(self, due_ns: int) -> None:
        if not self._running:
            return
        now = now_ns()
        # a clock that was set back would give a negative lag: the clock watch tells that, not this
        self._lags.append(max(0, now - due_ns))
        self._clock.look()
        following = max(due_ns + _LOOK_EVERY_NS, now)
        self._calls.at(following, partial(self._look, following))

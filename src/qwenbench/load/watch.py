"""How well a client process keeps up: loop lag, CPU share, clock steps."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

import numpy as np

from qwenbench.load.alarm import Alarm
from qwenbench.load.clock import NS_PER_MS, ClockWatch, now_ns

_EVERY_NS = 25 * NS_PER_MS


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

    def __init__(self, alarm: Alarm, clock: ClockWatch | None = None) -> None:
        self._alarm = alarm
        self._clock = clock or ClockWatch()
        self._lags: list[int] = []
        self._running = False
        self._cpu = self._wall = 0.0

    def start(self, at_ns: int) -> None:
        """Begin at `at_ns` (CLOCK_REALTIME)."""
        self._running = True
        self._cpu, self._wall = time.process_time(), time.monotonic()
        self._alarm.at(at_ns, partial(self._look, at_ns))

    def stop(self, stamp_source: str) -> ProcessHealth:
        """End, and tell what was seen."""
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
        following = max(due_ns + _EVERY_NS, now)
        self._alarm.at(following, partial(self._look, following))

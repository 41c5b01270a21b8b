"""A plain model of the card's power draw. It is not calibrated to better than a rough look and says SIMULATED."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from qwenbench.simulator.scheduler import Step


class EnergyMeter:
    """Power while a step runs follows its work; between steps the card idles."""

    def __init__(self, figures: Mapping[str, float], tdp_w: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._idle_w = figures["idle_w"]
        self._range_w = tdp_w - self._idle_w
        self._base = figures["busy_share"]
        self._per_sequence = figures["per_sequence_share"]
        self._prefill = figures["prefill_share"]
        self._clock = clock
        self._started = clock()
        self._busy_j = 0.0
        self._busy_s = 0.0
        self._last_w = self._idle_w
        self._last_end = self._started

    def step(self, step: Step) -> None:
        """Counts a step's energy."""
        share = self._prefill if step.prefill_tokens >= 512 else self._base + self._per_sequence * step.decodes
        watts = self._idle_w + self._range_w * min(share, 1.0)
        seconds = step.seconds
        self._busy_j += watts * seconds
        self._busy_s += seconds
        # NVML's figure is itself an average over about a tenth of a second.
        weight = min(seconds / 0.1, 1.0)
        self._last_w += (watts - self._last_w) * weight
        self._last_end = self._clock()

    @property
    def power_w(self) -> float:
        """Watts now."""
        return self._last_w if self._clock() - self._last_end < 0.1 else self._idle_w

    @property
    def energy_j(self) -> float:
        """Joules since the start."""
        idle_s = max(self._clock() - self._started - self._busy_s, 0.0)
        return self._busy_j + idle_s * self._idle_w

"""What follows the steps: power and energy, VRAM as NVML would show it, and how late tokens left. Rough, SIMULATED."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from qwenbench.capacity.cards import Card
from qwenbench.simulator.memory import MemoryPlan
from qwenbench.simulator.scheduler import Step

POWER_LIMIT_W = {
    "rtx-5090": 575.0, "rtx-5080": 360.0, "rtx-4090": 450.0, "rtx-3090": 350.0, "l4": 72.0, "l40s": 350.0,
    "a100-80g": 400.0, "h100": 700.0, "h200": 700.0,
}  # fmt: skip
"""Data sheets' board power."""
UNKNOWN_LIMIT_W = 400.0

DRAFTED_SHARE = 0.8
"""What each drafted token adds to VRAM beyond the budget: 4,390 MiB at 64 streams with three, 1,280 without."""


def power_limit_w(card: Card) -> float:
    """The board's power limit in W, 400 where it is not known (the power model is rough anyway)."""
    return POWER_LIMIT_W.get(card.name, UNKNOWN_LIMIT_W)


class EnergyMeter:
    """Power while a step runs follows its work; between steps the card idles."""

    def __init__(
        self, figures: Mapping[str, float], limit_w: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._idle_w = figures["idle_w"]
        self._range_w = limit_w - self._idle_w
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
        return self._last_w if self._clock() - self._last_end < 0.1 else self._idle_w

    @property
    def energy_j(self) -> float:
        idle_s = max(self._clock() - self._started - self._busy_s, 0.0)
        return self._busy_j + idle_s * self._idle_w


class VramGauge:
    """What NVML would show: it rises with the largest batch seen, by PyTorch's allocator, and never falls."""

    def __init__(self, plan: MemoryPlan, card: Card, overshoot: list[list[float]], drafted: int = 0) -> None:
        self._share = 1.0 + DRAFTED_SHARE * drafted
        self._ready = plan.ready_mib
        self._limit = card.vram_mib
        self._running, self._over = np.array(overshoot).T
        self._largest = 0
        self.used_mib = plan.ready_mib

    def saw(self, running: int) -> None:
        if running > self._largest:
            self._largest = running
            over = float(np.interp(running, self._running, self._over)) * self._share
            self.used_mib = min(self._ready + over, self._limit)


class Lateness:
    """How late tokens left this process, in ms after the instant at which the model had them due."""

    _STEP_MS = 0.05
    _SIZE = 4000

    def __init__(self) -> None:
        self._counts = [0] * (self._SIZE + 1)
        self._number = 0
        self._sum = 0.0

    def add(self, milliseconds: float, tokens: int) -> None:
        self._counts[min(int(max(milliseconds, 0.0) / self._STEP_MS), self._SIZE)] += tokens
        self._number += tokens
        self._sum += milliseconds * tokens

    @property
    def mean_ms(self) -> float:
        """Mean over all tokens since the start; 0 when there were none."""
        return self._sum / self._number if self._number else 0.0

    @property
    def p99_ms(self) -> float:
        """99th percentile since the start, rounded up to 0.05 ms, at most 200 ms."""
        left = self._number * 0.01
        for index in range(self._SIZE, -1, -1):
            left -= self._counts[index]
            if left < 0:
                return (index + 1) * self._STEP_MS
        return 0.0

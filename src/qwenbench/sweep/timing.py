"""Where a sweep's wall time went, and about how much of it is still to come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np

from qwenbench.runfolder.cells import LoadPoint
from qwenbench.sweep.plan import Plan

Phase = Literal["start", "stop", "vram_gate", "warm_up", "load", "self_check", "text_checks"]


class Timings:
    """Seconds by phase, added up over the run: what remains beside servers and load is qwenbench's own overhead."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Counts the block's wall time to this phase."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - began

    def to_json(self) -> dict[str, float]:
        """Seconds by phase, with `wall` and `overhead` = wall minus all phases (side by side runs: not below 0)."""
        wall = time.monotonic() - self._began
        overhead = max(0.0, wall - sum(self._seconds.values()))
        rounded = {name: round(seconds, 3) for name, seconds in self._seconds.items()}
        return {**rounded, "wall": round(wall, 3), "overhead": round(overhead, 3)}


# start + stop of one server, seconds: 134-222 s were recorded for new capture sizes
_LAUNCH_S = {"docker": 180.0, "process": 180.0, "sim": 2.0, "url": 0.0}
# ms per output token of one stream at so many streams, as recorded on an H200 (captured batches)
_STREAMS = (1, 16, 64, 128, 256)
_ITL_MS = (4.4, 5.2, 8.1, 13.0, 26.0)
_FIRST_TOKEN_S = 0.25


def estimated_seconds(plan: Plan, launcher: str) -> float:
    """Launches, warm-ups and load points together, in seconds."""
    launches = len(plan.configurations) * plan.options.relaunch_repeats
    points = sum(_point_seconds(plan, point) for point in plan.points)
    return launches * (_LAUNCH_S.get(launcher, 180.0) + points)


def _point_seconds(plan: Plan, point: LoadPoint) -> float:
    scenario = plan.scenarios[point.scenario].file.scenario
    lengths = scenario.output_tokens
    tokens = lengths.median or (lengths.min + lengths.max) / 2
    if plan.options.duration_s is not None:
        return plan.options.duration_s + 5.0
    if plan.trace:
        return plan.trace[-1].start_s + 10.0
    streams = point.concurrency or 16
    rounds = scenario.request_count(streams) / streams
    per_request = _FIRST_TOKEN_S + tokens * float(np.interp(streams, _STREAMS, _ITL_MS)) / 1000
    return rounds * per_request * 1.3 + 2.0

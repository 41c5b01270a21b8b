"""Where a sweep's wall time goes: what remains beside servers and load is qwenbench's own overhead."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Phase = Literal["start", "stop", "vram_gate", "warm_up", "load", "self_check", "text_checks"]


class Timings:
    """Seconds by phase, added up over the run."""

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

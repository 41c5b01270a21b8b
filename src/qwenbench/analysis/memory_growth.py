"""Whether a server under a load that is held takes more and more memory: a line through its samples, and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

SETTLE_SHARE = 0.25
"""The first part of the time is left out: caches and allocators fill up there on purpose."""
LEAST_S = 60.0
"""A line through less tells nothing."""
SMALL_MIB_PER_H = 64.0
"""Growth below is within what allocators and other programs move."""


@dataclass(frozen=True, slots=True)
class Growth:
    """How one kind of memory went."""

    name: str
    first_mib: float
    """At the beginning of what was looked at."""
    last_mib: float
    mib_per_hour: float | None
    """Slope of the line; None when the time was too short."""
    uncertainty: float | None
    """Half of its 95 % interval, MiB an hour (samples in a row are not independent: a tenth of them counts)."""
    hours_left: float | None
    """Until the rest is used up at that pace; None where it does not grow or the rest is not known."""

    @property
    def grows(self) -> bool:
        """Whether it grows by more than what the samples scatter and a small amount."""
        if self.mib_per_hour is None or self.uncertainty is None:
            return False
        return self.mib_per_hour - self.uncertainty > SMALL_MIB_PER_H

    def to_json(self) -> dict[str, Any]:
        """Its object in soak.json."""
        return {**asdict(self), "grows": self.grows, "verdict": self.verdict()}

    def verdict(self) -> str:
        """For people."""
        if self.mib_per_hour is None:
            return f"{self.name}: too short a time to tell (at least {LEAST_S / (1 - SETTLE_SHARE):.0f} s are needed)"
        pace = f"{self.mib_per_hour:+,.0f} MiB an hour (± {self.uncertainty:,.0f})"
        if not self.grows:
            return f"{self.name}: steady, {pace}"
        left = "" if self.hours_left is None else f"; what is left lasts {self.hours_left:,.1f} h"
        return f"{self.name}: GROWS by {pace}{left}"


def growth_of(
    name: str, times_s: Sequence[float], mib: Sequence[float], free_mib: float | None = None
) -> Growth | None:
    """The growth of a series of (seconds, MiB); None without samples. `free_mib` is what was left at its end."""
    times, values = np.asarray(times_s, dtype=np.float64), np.asarray(mib, dtype=np.float64)
    known = ~np.isnan(values)
    times, values = times[known], values[known]
    if not len(times):
        return None
    late = times >= times[0] + SETTLE_SHARE * (times[-1] - times[0])
    times, values = times[late], values[late]
    first, last = float(values[0]), float(values[-1])
    if times[-1] - times[0] < LEAST_S or len(times) < 20:
        return Growth(name, first, last, None, None, None)
    hours = (times - times.mean()) / 3600.0
    spread = float((hours**2).sum())
    slope = float((hours * (values - values.mean())).sum()) / spread
    rest = values - values.mean() - slope * hours
    effective = max(3.0, len(values) / 10)
    deviation = float(np.sqrt((rest**2).mean() * len(values) / (effective * spread)))
    left = free_mib / slope if free_mib is not None and slope > SMALL_MIB_PER_H else None
    return Growth(name, first, last, slope, 1.96 * deviation, left)

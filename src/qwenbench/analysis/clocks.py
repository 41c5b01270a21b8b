"""At what clocks a point was measured, and what held them back: from NVML's samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from qwenbench.analysis.server_samples import column_values, sample_times
from qwenbench.analysis.window import Window

REASONS = {
    0x4: "power limit",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "heat (software)",
    0x40: "heat (hardware)",
    0x80: "power brake",
}
"""Bits of NVML's clock event reasons that mean less speed than the card has; idleness and clocks that were set by a
user are none."""
HEAT = 0x8 | 0x20 | 0x40 | 0x80
"""Of them those that say that something is wrong with cooling or power supply."""
_LEAST_SHARE = 0.01


def clock_columns(nvml: pa.Table | None, window: Window | None) -> dict[str, Any]:
    """Columns of a point: mean SM clock (MHz), the enforced power limit (W, all cards), the share of samples in which
    something held the clocks back, and what it was. Over the window, or the whole point without one."""
    if nvml is None or nvml.num_rows == 0:
        return {}
    if window is not None:
        times = sample_times(nvml)
        inside = nvml.filter(pa.array((times >= window.start_ns) & (times <= window.end_ns)))
        nvml = inside if inside.num_rows else nvml
    return {"sm_clock_mhz_mean": _mean(column_values(nvml, "sm_clock_mhz")), **_power_limit(nvml), **_held_back(nvml)}


def throttle_note(point: dict[str, Any] | Any) -> str | None:
    """What people are told of a point that was held back by heat or a power brake; None when it was not.

    A power limit that is reached is a card at work, and stands in its column only.
    """
    reasons = point.get("throttle_reasons")
    hot = [name for bit, name in REASONS.items() if bit & HEAT and reasons and name in reasons]
    if not hot:
        return None
    return f"the card was slowed down during the point ({reasons}): check cooling and power before comparing it"


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _power_limit(nvml: pa.Table) -> dict[str, float | None]:
    limits = {}
    for gpu, watts in zip(nvml["gpu"].to_pylist(), column_values(nvml, "power_limit_w").tolist(), strict=True):
        limits[gpu] = watts  # the last sample's: a limit that was changed meanwhile holds from now on
    total = sum(limits.values())
    return {"power_limit_w": None if np.isnan(total) else float(total)}


def _held_back(nvml: pa.Table) -> dict[str, Any]:
    told = column_values(nvml, "throttle")
    known = told[~np.isnan(told)].astype(np.int64)
    if not len(known):
        return {"throttled_share": None, "throttle_reasons": None}
    shares = {name: float(((known & bit) != 0).mean()) for bit, name in REASONS.items()}
    any_of = int(np.bitwise_or.reduce(np.fromiter(REASONS, dtype=np.int64)))
    seen = [f"{name} {share:.0%}" for name, share in shares.items() if share >= _LEAST_SHARE]
    return {"throttled_share": float(((known & any_of) != 0).mean()), "throttle_reasons": ", ".join(seen) or None}

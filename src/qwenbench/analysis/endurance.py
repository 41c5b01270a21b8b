"""What was asked of a server beside its load points: whether memory grows under a load that is held, and what a step
costs that carries a prompt (the floor below which a shorter prompt saves nothing, the price of a token).

TTFT at one stream over a few prompt lengths: launching a step's kernels takes the host the same time however short
the prompt is, the GPU's part grows with its tokens, the greater of the two counts: TTFT(n) = max(floor, base + slope
n). (Measured on an H100 with vLLM 0.26: 70 to 95 ms of the host's, 6.3 ms + 0.038 ms a token of the GPU's.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_FLAT = 1.2
"""Lengths whose TTFT is at most so many times the least belong to the floor: single requests scatter by a tenth."""
_MOSTLY = 0.5
"""Of the least TTFT: beyond this share what does not depend on the length is most of a short prompt's cost."""
_LEAST_STRETCH = 3.0
"""A floor is one where the longest prompt on it has at least so many times the tokens of the shortest."""


@dataclass(frozen=True, slots=True)
class PrefillCost:
    lengths: tuple[int, ...]
    """Prompt tokens of the rungs, as the server counted them."""
    ttft_ms: tuple[float, ...]
    """Median TTFT of each."""
    floor_ms: float | None
    """What the shortest prompts cost; None when even they cost more with each token."""
    ms_per_token: float | None
    """Above the floor; None unless two lengths or more came above it."""
    same_cost_up_to_tokens: int | None
    """Prompts up to so many tokens cost the floor; None without a floor."""
    at_least: bool = False
    """The longest prompt tried was still on the floor: it reaches further than `same_cost_up_to_tokens`."""
    fixed_ms: float | None = None
    """Without a floor: what a prompt costs beside its tokens, where the line through all lengths meets zero tokens."""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "sentence": self.sentence()}

    def sentence(self) -> str:
        if self.floor_ms is None:
            if self.ms_per_token is None:
                return (
                    f"what a prompt costs by its length cannot be told: TTFT at one stream scattered from "
                    f"{min(self.ttft_ms):.0f} to {max(self.ttft_ms):.0f} ms without growing with the prompt"
                )
            each = f"{1000 * self.ms_per_token:.0f} ms per 1,000 tokens"
            if self.fixed_ms is not None and self.fixed_ms > _MOSTLY * min(self.ttft_ms):
                return (
                    f"a step that carries a prompt takes about {self.fixed_ms:.0f} ms on this machine and {each}: "
                    "short prompts cost mostly the host's time (up to which length cannot be told: the times scatter)"
                )
            return (
                f"from {self.lengths[0]:,} tokens on a longer prompt takes longer, {each}: no length is seen under "
                "which prompts cost the same (the device's time more than the host's)"
            )
        reach = f"{self.same_cost_up_to_tokens:,}"
        further = " (and perhaps further)" if self.at_least else ""
        text = (
            f"a step that carries a prompt takes {self.floor_ms:.0f} ms on this machine however short the prompt is: "
            f"the host's time; prompts up to {reach} tokens{further} cost the same"
        )
        return text if self.ms_per_token is None else f"{text}, then {1000 * self.ms_per_token:.0f} ms per 1,000 tokens"


def prefill_cost(measured: Sequence[tuple[int, float]]) -> PrefillCost | None:
    """From (prompt tokens, TTFT in ms) of requests that were alone on the server; None under two lengths.

    Requests whose lengths are within a quarter of each other are one rung.
    """
    rungs = _rungs(measured)
    if len(rungs) < 2:
        return None
    lengths = np.array([length for length, _ in rungs], dtype=np.float64)
    times = np.array([time for _, time in rungs])
    on_floor = _floor_of(times)
    above = ~on_floor
    slope = None
    if above.sum() >= 2:
        slope = float(np.polyfit(lengths[above], times[above], 1)[0])
    slope = slope if slope is not None and slope > 0 else None
    flat = lengths[on_floor]
    told = tuple(int(length) for length in lengths), tuple(round(float(time), 3) for time in times)
    if len(flat) < 2 or flat.max() < _LEAST_STRETCH * flat.min():
        everything, fixed = (float(number) for number in np.polyfit(lengths, times, 1))
        if everything <= 0:
            return PrefillCost(*told, None, None, None)
        return PrefillCost(*told, None, everything, None, fixed_ms=round(max(fixed, 0.0), 3))
    floor = float(np.median(times[on_floor]))
    return PrefillCost(*told, floor, slope, _reach(lengths, times, on_floor, floor, slope), at_least=not above.any())


def _rungs(measured: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """Median length and median TTFT of requests of about one length, shortest first."""
    groups: list[list[tuple[int, float]]] = []
    for length, time in sorted(measured):
        if groups and length <= 1.25 * groups[-1][0][0]:
            groups[-1].append((length, time))
        else:
            groups.append([(length, time)])
    return [
        (float(np.median([length for length, _ in group])), float(np.median([time for _, time in group])))
        for group in groups
    ]


def _floor_of(times: np.ndarray) -> np.ndarray:
    """Which rungs, from the shortest on, cost about the same."""
    last = int(np.flatnonzero(times <= _FLAT * times.min()).max())
    return np.asarray(np.arange(len(times)) <= last)  # a shorter prompt that took longer is the host's scatter


def _reach(lengths: np.ndarray, times: np.ndarray, on_floor: np.ndarray, floor: float, slope: float | None) -> int:
    """Tokens up to which the floor holds: where the line above meets it, within what was measured on both sides."""
    last = float(lengths[on_floor].max())
    if slope is None:
        return int(last)
    first_above = int(np.flatnonzero(~on_floor).min())
    meets = float(lengths[first_above]) - (float(times[first_above]) - floor) / slope
    return int(min(max(meets, last), float(lengths[first_above])))


SETTLE_SHARE = 0.25
"""The first part of the time is left out: caches and allocators fill up there on purpose."""
LEAST_S = 60.0
"""A line through less tells nothing."""
SMALL_MIB_PER_H = 64.0
"""Growth below is within what allocators and other programs move."""


@dataclass(frozen=True, slots=True)
class Growth:
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
        return {**asdict(self), "grows": self.grows, "verdict": self.verdict()}

    def verdict(self) -> str:
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

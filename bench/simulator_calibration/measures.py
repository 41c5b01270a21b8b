"""The same figures from a recorded and from a simulated load, and the rule that leaves one-off stalls out.

Rule: a load's first wave is its first `concurrency` requests. TTFT is taken from requests after it; the token
rate from the first completion (after which every request has been through the first wave's stalls) to the last;
ITL from all gaps (its median is not moved by a stall). Loads at one stream are judged by ITL only, since one
stall is a third of their requests. A first-wave stall is a gap between engine steps of the first wave that is
longer than STALL_FACTOR x the longest that the step model has for it.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np

from qwenbench.simulator.replay import Replayed

STALL_FACTOR = 1.4


@dataclass(frozen=True, slots=True)
class Figures:
    """One load's figures; None where the rule leaves nothing to take it from."""

    itl_p50_ms: float
    ttft_p50_ms: float | None
    tokens_per_s: float | None


def figures(requests: list[Replayed], concurrency: int) -> Figures:
    """ITL p50 over all gaps; TTFT p50 and tokens/s after the first wave."""
    gaps = np.concatenate([np.diff(request.token_times) for request in requests])
    itl = float(np.median(gaps)) * 1e3
    later = requests[concurrency:]
    if concurrency == 1 or not later:
        return Figures(itl, None, None)
    ttft = statistics.median(request.token_times[0] - request.start for request in later) * 1e3
    begin = min(request.token_times[-1] for request in requests)
    end = max(request.token_times[-1] for request in requests)
    tokens = sum(1 for request in requests for at in request.token_times if begin < at <= end)
    return Figures(itl, ttft, tokens / (end - begin))


@dataclass(frozen=True, slots=True)
class ObservedStep:
    """One engine step as a client saw it: the tokens of all streams that came together."""

    at: float
    milliseconds: float
    tokens: int
    firsts: int
    """Of them the first of their request."""


def engine_steps(requests: list[Replayed]) -> list[ObservedStep]:
    """Groups token times into engine steps: a pause of over 1.8 ms (3.5 above 64 streams) begins a new one."""
    events = sorted((at, index == 0) for request in requests for index, at in enumerate(request.token_times))
    widest = max_in_flight(requests)
    pause = 0.0018 if widest <= 64 else 0.0035
    steps: list[ObservedStep] = []
    begin, tokens, firsts, last = events[0][0], 0, 0, events[0][0]
    previous: float | None = None
    for at, first in [*events, (float("inf"), False)]:
        if at - last > pause:
            if previous is not None:
                steps.append(ObservedStep(begin, (begin - previous) * 1e3, tokens, firsts))
            previous, begin, tokens, firsts = begin, at, 0, 0
        tokens += 1
        firsts += first
        last = at
    return steps


def max_in_flight(requests: list[Replayed]) -> int:
    """Most requests that had a token at the same time."""
    events = sorted(
        [(request.token_times[0], 1) for request in requests] + [(request.token_times[-1], -1) for request in requests]
    )
    most = now = 0
    for _, change in events:
        now += change
        most = max(most, now)
    return most


def first_wave_end(requests: list[Replayed], concurrency: int) -> float:
    """When the last request of the first wave got its first token."""
    return max(request.token_times[0] for request in requests[:concurrency])

"""The same figures from a recorded and from a simulated load, and the rule that leaves one-off stalls out.

TTFT, ITL and tokens/s are those of the whole load, from the first request's start to the last token. A load in which
an engine step took over ONE_OFF_S holds a compilation or tuning that happens once in a server's life: if it lies in
the first wave (the first `concurrency` requests), the figures are taken from after it (TTFT of later requests, tokens
from the first completion on, on both sides); if it lies later, or there is only one stream, the load is left out.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np

from qwenbench.simulator.replay import Replayed

ONE_OFF_S = 0.5
STALL_FACTOR = 2.5
"""A gap over so many times the median gap is a stall (docs/metrics.md, itl_stall_share)."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One load's figures; None where the rule leaves nothing to take it from."""

    itl_p50_ms: float
    ttft_p50_ms: float | None
    tokens_per_s: float | None
    stall_share: float | None = None


def figures(requests: list[Replayed], concurrency: int, *, after_first_wave: bool = False) -> Figures:
    """A load's figures."""
    gaps = np.concatenate([np.diff(request.token_times) for request in requests])
    itl = float(np.median(gaps)) * 1e3 if len(gaps) else float("nan")
    stalls = float(gaps[gaps > STALL_FACTOR * np.median(gaps)].sum() / gaps.sum()) if len(gaps) else None
    if not after_first_wave:
        ttft = statistics.median(request.token_times[0] - request.start for request in requests) * 1e3
        end = max(request.token_times[-1] for request in requests)
        tokens = sum(request.planned.output_tokens for request in requests)
        return Figures(itl, ttft, tokens / (end - min(request.start for request in requests)), stalls)
    later = requests[concurrency:]
    if not later:
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


def one_off_stalls(requests: list[Replayed]) -> list[tuple[float, float]]:
    """(when, seconds) of the pauses over ONE_OFF_S in which no stream got a token, the wait for the first included."""
    times = sorted(at for request in requests for at in request.token_times)
    starts = min(request.start for request in requests)
    pauses = zip([starts, *times], times, strict=False)
    return [(at, at - before) for before, at in pauses if at - before > ONE_OFF_S]


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

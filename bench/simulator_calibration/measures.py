"""Engine steps as a client saw them."""

from __future__ import annotations

from dataclasses import dataclass

from qwenbench.simulator.replay import Replayed


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

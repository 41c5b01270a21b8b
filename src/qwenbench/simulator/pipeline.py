"""When steps run and when their tokens come out: vLLM's asynchronous scheduling, two steps deep.

The engine's thread plans a step and launches it while the one before still runs on the GPU, and hands out that
one's tokens only after the launch. A decode step inside a CUDA graph is launched in a few ms, so its tokens come
on time; a step with prefill keeps the thread busy for all its time, so the tokens of the step before it come as
late as its end. That is why a first token in a busy server comes one step later than its prefill.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwenbench.simulator.scheduler import Scheduler, Step


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the engine's loop. The next one begins at `at`, after `deliver` has been completed."""

    at: float
    deliver: Step | None
    """The step whose tokens come out at `at`; None when there is nothing to hand out yet."""


class Pipeline:
    """Virtual time over a scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._flying: Step | None = None
        self._flying_ends = 0.0
        """When the GPU is through with the step under way."""

    def turn(self, now: float) -> Turn | None:
        """Plans at `now`. None: nothing to do and nothing under way, until a request is added.

        The caller adds what has arrived by then to the scheduler before, and completes `deliver` after.
        """
        flying, flying_ends = self._flying, self._flying_ends
        step = self.scheduler.plan(now)
        if step is None:
            self._flying = None
            return Turn(max(flying_ends, now), flying) if flying is not None else None
        launched = now + step.host_s
        begins = max(flying_ends, now) if flying is not None else now
        self._flying = step
        self._flying_ends = max(launched, begins + step.device_s)
        if flying is None:
            return Turn(launched, None)
        return Turn(max(launched, flying_ends), flying)

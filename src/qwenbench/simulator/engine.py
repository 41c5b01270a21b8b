"""Runs the scheduler against the clock: every token leaves at the instant at which the model has it due."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from qwenbench.precise_timer import PreciseTimer
from qwenbench.simulator.meters import EnergyMeter, EngineMetrics, Lateness, VramGauge
from qwenbench.simulator.scheduler import Pipeline, Scheduler, SimRequest, Step, Turn

TURNS_AT_ONCE = 4
"""Overdue steps that are sent before the event loop may read sockets again."""
LATENESS_GROUP = 8
"""The clock is read once for so many tokens."""


class Sink(Protocol):
    def token(self, request: LiveRequest) -> None:
        """Token number `request.generated` is due; `request.ended` says whether it is the last."""

    def failed(self, message: str) -> None:
        """The engine died."""


@dataclass(slots=True, eq=False)
class LiveRequest(SimRequest):
    """A request of a client that waits."""

    sink: Sink | None = None
    received: float = 0.0
    """time.monotonic() when its last byte was read."""
    max_tokens: int = 0
    finish_reason: str = "length"


class Engine:
    """One engine core. Virtual time is time.monotonic(); a turn begins where the one before ended."""

    def __init__(self, scheduler: Scheduler, vram: VramGauge, energy: EnergyMeter) -> None:
        self.scheduler = scheduler
        self.vram = vram
        self.energy = energy
        self.metrics = EngineMetrics(scheduler.limits.settings.drafted)
        self.lateness = Lateness()
        self.dead = False
        self.on_step: Callable[[Step], None] | None = None
        """Called with each step before it is applied (failures are injected here)."""
        self._last_delivery = 0.0
        self._incoming: deque[LiveRequest] = deque()
        self._pipeline = Pipeline(scheduler)
        self._turn: Turn | None = None
        self._timer = PreciseTimer(asyncio.get_running_loop(), self._on_timer)

    def submit(self, request: LiveRequest) -> None:
        """Takes a request in; it reaches the scheduler after the time that the frontend takes."""
        frontend_ms = self.scheduler.model.frontend_ms(request.prompt_tokens, self.running)
        request.arrival = request.received + frontend_ms / 1000.0
        self._incoming.append(request)
        if self._turn is None:
            self._timer.set(round(self._incoming[0].arrival * 1e9))

    def abort(self, request: LiveRequest) -> None:
        if request.ended:
            return
        if request in self._incoming:
            self._incoming.remove(request)
            request.ended = True
        else:
            self.scheduler.abort(request)
        self.metrics.finished["abort"] += 1

    def die(self, message: str) -> None:
        """The engine core is gone: every request fails, nothing is scheduled any more."""
        self.dead = True
        self._timer.close()
        self._turn = None
        orphans = [*self._incoming, *self.scheduler.running, *self.scheduler.waiting]
        for request in orphans:
            if isinstance(request, LiveRequest) and request.sink is not None:
                request.sink.failed(message)

    def close(self) -> None:
        """Stops without a word to the clients."""
        self._timer.close()
        self._turn = None

    @property
    def running(self) -> int:
        return len(self.scheduler.running)

    @property
    def waiting(self) -> int:
        return len(self.scheduler.waiting)

    def _on_timer(self) -> None:
        turn = self._turn
        if turn is None:
            if self._incoming:
                self._advance(self._incoming[0].arrival)
            return
        for _ in range(TURNS_AT_ONCE):
            if turn.deliver is not None:
                self._deliver(turn.deliver, turn.at)
                if self.dead:
                    return
            self._advance(turn.at)
            if self._turn is None or self._turn.at > time.monotonic():
                return
            turn = self._turn
        self._timer.set(round(turn.at * 1e9))

    def _advance(self, now: float) -> None:
        """Takes the turn at `now`, or waits for the next request."""
        incoming = self._incoming
        while incoming and incoming[0].arrival <= now:
            self.scheduler.add(incoming.popleft())
        self._turn = turn = self._pipeline.turn(now)
        if turn is not None:
            self._timer.set(round(turn.at * 1e9))
        elif incoming:
            self._timer.set(round(incoming[0].arrival * 1e9))

    def _deliver(self, step: Step, now: float) -> None:
        scheduler, metrics = self.scheduler, self.metrics
        if self.on_step is not None:
            self.on_step(step)
            if self.dead:
                return
        self.vram.saw(len(scheduler.running))
        produced = scheduler.complete(step)
        self.energy.step(step)
        together = sent = tokens = prompts = 0
        before, self._last_delivery = self._last_delivery, now
        clock = time.monotonic
        drafted = scheduler.limits.settings.drafted
        for request in produced:
            assert isinstance(request, LiveRequest) and request.sink is not None
            tokens += request.brought
            if request.generated == request.brought:
                self._first_token(request, now)
                prompts += request.prompt_tokens
            elif request.last_token_at == before:
                together += 1
            else:
                metrics.itl.observe(now - request.last_token_at)
            if drafted and request.generated > request.brought:
                metrics.drafts += 1
                for position in range(request.brought - 1):
                    metrics.accepted_by_position[position] += 1
            request.last_token_at = now
            request.sink.token(request)
            if request.ended:
                self._ended(request)
            sent += 1
            if sent == LATENESS_GROUP:
                self.lateness.add((clock() - now) * 1000.0, sent)
                sent = 0
        if together:
            metrics.itl.observe(now - before, together)
        if sent:
            self.lateness.add((clock() - now) * 1000.0, sent)
        metrics.generation_tokens += tokens
        # vLLM counts a prompt when it is complete, whole, whatever the step's own share of it.
        metrics.prompt_tokens += prompts
        metrics.iteration_tokens.observe(prompts + tokens)

    def _first_token(self, request: LiveRequest, now: float) -> None:
        metrics = self.metrics
        request.first_token_at = now
        scheduled = request.scheduled_at if request.scheduled_at is not None else request.arrival
        metrics.ttft.observe(now - request.received)
        metrics.queue.observe(max(scheduled - request.arrival, 0.0))
        metrics.prefill.observe(now - scheduled)

    def _ended(self, request: LiveRequest) -> None:
        metrics = self.metrics
        now = request.last_token_at
        first = request.first_token_at if request.first_token_at is not None else now
        scheduled = request.scheduled_at if request.scheduled_at is not None else request.arrival
        metrics.finished[request.finish_reason] += 1
        metrics.prompt_tokens_cached += request.cached_tokens
        metrics.e2e.observe(now - request.received)
        metrics.inference.observe(now - scheduled)
        metrics.decode.observe(now - first)
        if request.generated > 1:
            metrics.tpot.observe((now - first) / (request.generated - 1))
        metrics.request_prompt.observe(request.prompt_tokens)
        metrics.request_generation.observe(request.generated)
        metrics.request_max_tokens.observe(request.max_tokens)
        metrics.request_computed.observe(request.prompt_tokens - request.cached_tokens)

"""vLLM's scheduler in virtual time: continuous batching, chunked prefill, preemption by recompute.

Nothing here knows of a clock or a socket. `plan(now)` decides what the step that begins at `now` does and how
long it takes; `complete(step)` applies it. All times are seconds on one axis of the caller's choice.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from qwenbench.simulator.blocks import BlockPool, BlockTable
from qwenbench.simulator.steptime import StepModel


@dataclass(slots=True, eq=False)
class SimRequest:
    """A request inside the engine."""

    request_id: str
    prompt_tokens: int
    output_tokens: int
    """Tokens it will generate."""
    arrival: float
    """When it reached the scheduler."""
    hashes: tuple[bytes, ...] = ()
    """One per full block of the prompt, each depending on all before it and on the cache salt."""
    table: BlockTable = field(default_factory=BlockTable)
    computed: int = 0
    """Tokens whose KV is in the cache."""
    generated: int = 0
    cached_tokens: int = 0
    """Prompt tokens that the prefix cache held when it was first scheduled."""
    preemptions: int = 0
    scheduled_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float = 0.0
    ended: bool = False
    """Finished or aborted: it holds no blocks any more."""


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """The flags that bind the scheduler."""

    max_num_seqs: int
    max_num_batched_tokens: int
    captured_size: int
    """Largest batch that has a CUDA graph; 0 with --enforce-eager."""


@dataclass(frozen=True, slots=True)
class Step:
    """One pass through the model."""

    start: float
    end: float
    work: list[tuple[SimRequest, int]]
    """Each request with the tokens that are computed for it."""
    prefill_tokens: int
    decodes: int


class Scheduler:
    """Waiting and running requests of one engine."""

    def __init__(self, limits: SchedulerLimits, pool: BlockPool, model: StepModel, seed: int = 0) -> None:
        self.limits = limits
        self.pool = pool
        self.model = model
        self.waiting: deque[SimRequest] = deque()
        self.running: list[SimRequest] = []
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self._random = random.Random(seed)

    def add(self, request: SimRequest) -> None:
        """Puts a request at the end of the queue."""
        self.waiting.append(request)

    def abort(self, request: SimRequest) -> None:
        """Takes a request out, wherever it is; nothing happens when it has ended."""
        if request.ended:
            return
        request.ended = True
        if request in self.running:
            self.running.remove(request)
            self.pool.release(request.table)
        else:
            self.waiting.remove(request)

    def plan(self, now: float) -> Step | None:
        """The step that begins at `now`; None when there is nothing to do.

        Running requests come first, then waiting ones while budget, sequences and blocks last: vLLM's order.
        """
        budget = self.limits.max_num_batched_tokens
        work, budget, preempted = self._schedule_running(budget)
        if not preempted:
            self._admit(work, budget, now)
        if not work:
            return None
        prefill = decodes = context = 0
        for request, tokens in work:
            context += request.computed
            if tokens == 1 and request.generated:
                decodes += 1
            else:
                prefill += tokens
        milliseconds = self.model.step_ms(decodes, prefill, context, self.limits.captured_size)
        jitter = min(max(self._random.gauss(0.0, self.model.jitter), -0.2), 0.2)
        return Step(now, now + milliseconds * (1.0 + jitter) / 1000.0, work, prefill, decodes)

    def complete(self, step: Step) -> list[SimRequest]:
        """Applies a step at its end. Returns the requests that got a token, in scheduling order.

        `last_token_at` still holds the time of the token before: the caller sets it once it has been used.
        """
        produced = []
        ended = False
        for request, tokens in step.work:
            if request.ended:
                continue
            before = request.computed
            request.computed = before + tokens
            if request.hashes:
                self._publish(request, before)
            if request.computed >= request.prompt_tokens + request.generated:
                request.generated += 1
                if request.first_token_at is None:
                    request.first_token_at = step.end
                produced.append(request)
                if request.generated >= request.output_tokens:
                    request.ended = ended = True
        if ended:
            self._drop_finished()
        return produced

    def _schedule_running(self, budget: int) -> tuple[list[tuple[SimRequest, int]], int, bool]:
        work: list[tuple[SimRequest, int]] = []
        preempted = False
        at = 0
        while at < len(self.running) and budget > 0:
            request = self.running[at]
            tokens = self._chunk(request, budget)
            target = request.computed + tokens
            while target > request.table.capacity and not self.pool.grow(request.table, target):
                preempted = True
                victim = self.running.pop()
                self._preempt(victim)
                if victim is request:
                    return work, budget, preempted
            if tokens:
                work.append((request, tokens))
                budget -= tokens
            at += 1
        return work, budget, preempted

    def _admit(self, work: list[tuple[SimRequest, int]], budget: int, now: float) -> None:
        while self.waiting and budget > 0 and len(self.running) < self.limits.max_num_seqs:
            request = self.waiting[0]
            # The last prompt token is always computed, since its logits give the first output token.
            possible = request.hashes[: (request.prompt_tokens + request.generated - 1) // self.pool.block_tokens]
            found = self.pool.lookup(possible) if self.pool.caching else 0
            request.computed = found * self.pool.block_tokens
            tokens = self._chunk(request, budget)
            if not tokens or not self.pool.take(request.table, request.hashes[:found], request.computed + tokens):
                request.computed = 0
                return
            self.waiting.popleft()
            self.running.append(request)
            if request.scheduled_at is None:
                request.scheduled_at = now
                request.cached_tokens = request.computed
                if self.pool.caching:
                    self.prefix_queries += request.prompt_tokens
                    self.prefix_hits += request.computed
            work.append((request, tokens))
            budget -= tokens

    def _chunk(self, request: SimRequest, budget: int) -> int:
        """Tokens to compute now. With caching on, a chunk that is not the last ends at a block's end."""
        left = request.prompt_tokens + request.generated - request.computed
        if left <= budget:
            return left
        if not self.pool.caching or self.limits.max_num_batched_tokens < self.pool.block_tokens:
            return budget
        end = (request.computed + budget) // self.pool.block_tokens * self.pool.block_tokens
        return max(end - request.computed, 0)

    def _preempt(self, victim: SimRequest) -> None:
        self.pool.release(victim.table)
        victim.computed = 0
        victim.preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(victim)

    def _publish(self, request: SimRequest, before: int) -> None:
        size = self.pool.block_tokens
        first = max(before // size, len(request.table.shared))
        for index in range(first, min(request.computed // size, len(request.hashes))):
            self.pool.publish(request.table, request.hashes[index])

    def _drop_finished(self) -> None:
        running = []
        for request in self.running:
            if request.ended:
                self.pool.release(request.table)
            else:
                running.append(request)
        self.running = running

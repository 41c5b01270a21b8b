"""vLLM's asynchronous scheduler in virtual time: continuous batching, chunked prefill, preemption by recompute.

Nothing here knows of a clock or a socket. `plan(now)` decides what the next step does while the one before may
still run, as vLLM does: a request whose token is under way is scheduled as if it had it. `complete(step)` takes
a step's tokens in. All times are seconds on one axis of the caller's choice.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from qwenbench.simulator.blocks import BlockPool, BlockTable
from qwenbench.simulator.steptime import StepModel, StepSettings, StepShape


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
    filtered: bool = False
    """Its tokens are drawn with top-k, top-p or min-p."""
    penalised: bool = False
    """Presence, frequency or repetition penalties apply."""
    table: BlockTable = field(default_factory=BlockTable)
    computed: int = 0
    """Tokens whose KV is in the cache, or will be when the steps under way have run."""
    generated: int = 0
    brought: int = 0
    """Tokens that its last completed step brought: one, or more with a drafter."""
    under_way: int = 0
    """Tokens that planned steps will still bring."""
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
    """The flags that bind the scheduler, and those on which a step's time depends."""

    max_num_seqs: int
    max_num_batched_tokens: int
    settings: StepSettings
    acceptance: float = 0.0
    """Chance that a drafted token is accepted, given that those before it were."""


@dataclass(slots=True)
class Work:
    """One request's share of a step."""

    request: SimRequest
    tokens: int
    """Tokens that are computed for it."""
    samples: int
    """Tokens that it gets at the end: none in the middle of a prompt, one, or more with a drafter."""
    decodes: bool
    """Whether it continues an answer, and does not prefill."""
    epoch: int
    """The request's number of preemptions when this was planned: a later preemption voids it."""


@dataclass(frozen=True, slots=True)
class Step:
    """One pass through the model."""

    work: list[Work]
    prefill_tokens: int
    decodes: int
    host_s: float
    """Time for which the engine's thread is busy launching it."""
    serial_s: float
    """Time for scheduling it and taking its tokens in."""
    device_s: float
    """Time on the GPU, which begins when the step before has left it."""
    whole: bool
    """Launched as one graph, at the end of the host's time; else kernel by kernel while the GPU already works."""

    @property
    def seconds(self) -> float:
        """How long the step takes in a row of like steps."""
        return max(self.host_s, self.device_s)

    @property
    def tokens(self) -> int:
        """Tokens that it computes, as vllm:iteration_tokens_total counts them."""
        return sum(part.tokens for part in self.work)


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
        self.host_pace = 1.0
        """The host's time is multiplied by this (how launches and points of one configuration differ)."""
        self.stall_s = 0.0
        """The next step's launch takes so much longer, once (a compilation at first use)."""
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
        """The next step, planned at `now`; None when there is nothing to compute.

        Running requests come first, then waiting ones while budget, sequences and blocks last: vLLM's order.
        """
        work, budget, preempted = self._schedule_running(self.limits.max_num_batched_tokens)
        if not preempted:
            self._admit(work, budget, now)
        if not work:
            return None
        prefill = decodes = prompts = context = filtered = penalised = 0
        attended = 0.0
        for part in work:
            request = part.request
            context += request.computed
            if part.decodes:
                decodes += 1
            else:
                prefill += part.tokens
                prompts += 1
                attended += part.tokens * (request.computed - part.tokens / 2)
            if part.samples:
                filtered += request.filtered
                penalised += request.penalised
        shape = StepShape(decodes, prefill, context, prompts, filtered, penalised, attended)
        host_ms, device_ms = self.model.step_ms(shape, self.limits.settings)
        serial_ms = self.model.serial_ms(shape)
        host_s = host_ms * self.host_pace * self._vary(self.model.host.jitter) / 1000.0 + self.stall_s
        self.stall_s = 0.0
        device_s = device_ms * self._vary(self.model.gpu.jitter) / 1000.0
        whole = not prefill and decodes * (1 + self.limits.settings.drafted) <= self.limits.settings.captured_full
        return Step(work, prefill, decodes, host_s, serial_ms * self.host_pace / 1000.0, device_s, whole)

    def _vary(self, jitter: float) -> float:
        return 1.0 + min(max(self._random.gauss(0.0, jitter), -3 * jitter), 3 * jitter)

    def complete(self, step: Step) -> list[SimRequest]:
        """Takes in a step's results. Returns the requests that got a token, in scheduling order."""
        produced = []
        for part in step.work:
            request = part.request
            if not part.samples or request.ended or request.preemptions != part.epoch:
                continue
            request.under_way -= part.samples
            request.generated += part.samples
            request.brought = part.samples
            produced.append(request)
            if request.generated >= request.output_tokens:
                request.ended = True
                self.running.remove(request)
                self.pool.release(request.table)
        return produced

    def _schedule_running(self, budget: int) -> tuple[list[Work], int, bool]:
        work: list[Work] = []
        preempted = False
        at = 0
        while at < len(self.running) and budget > 0:
            request = self.running[at]
            at += 1
            if request.generated + request.under_way >= request.output_tokens:
                continue  # its last token is under way
            tokens = self._chunk(request, budget)
            target = request.computed + tokens + self.limits.settings.drafted
            while target > request.table.capacity and not self.pool.grow(request.table, target):
                preempted = True
                victim = self.running.pop()
                self._preempt(victim)
                if victim is request:
                    return work, budget, preempted
            if tokens:
                work.append(self._begin(request, tokens))
                budget -= work[-1].tokens
        return work, budget, preempted

    def _admit(self, work: list[Work], budget: int, now: float) -> None:
        while self.waiting and budget > 0 and len(self.running) < self.limits.max_num_seqs:
            request = self.waiting[0]
            # The last prompt token is always computed, since its logits give the first output token.
            known = request.prompt_tokens + request.generated
            possible = request.hashes[: (known - 1) // self.pool.block_tokens]
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
            work.append(self._begin(request, tokens))
            budget -= tokens

    def _begin(self, request: SimRequest, tokens: int) -> Work:
        """Counts the tokens as computed from now on."""
        before = request.computed
        request.computed = before + tokens
        decodes = tokens == 1 and before >= request.prompt_tokens
        samples = 0
        if request.computed >= request.prompt_tokens + request.generated + request.under_way:
            samples = 1
            if decodes and self.limits.settings.drafted:
                samples += self._accepted(request)
                # the accepted drafts' keys and values are in the cache, too
                request.computed += samples - 1
                tokens += self.limits.settings.drafted
        request.under_way += samples
        if request.hashes:
            self._publish(request, before)
        return Work(request, tokens, samples, decodes, request.preemptions)

    def _accepted(self, request: SimRequest) -> int:
        """Drafted tokens that the model accepts, no more than the request still wants."""
        wanted = request.output_tokens - request.generated - request.under_way - 1
        accepted = 0
        while accepted < min(self.limits.settings.drafted, wanted) and self._random.random() < self.limits.acceptance:
            accepted += 1
        return accepted

    def _chunk(self, request: SimRequest, budget: int) -> int:
        """Tokens to compute now. With caching on, a chunk that is not the last ends at a block's end."""
        left = request.prompt_tokens + request.generated + request.under_way - request.computed
        if left <= budget:
            return left
        if not self.pool.caching or self.limits.max_num_batched_tokens < self.pool.block_tokens:
            return budget
        end = (request.computed + budget) // self.pool.block_tokens * self.pool.block_tokens
        return max(end - request.computed, 0)

    def _preempt(self, victim: SimRequest) -> None:
        self.pool.release(victim.table)
        victim.computed = 0
        victim.under_way = 0
        victim.preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(victim)

    def _publish(self, request: SimRequest, before: int) -> None:
        size = self.pool.block_tokens
        first = max(before // size, len(request.table.shared))
        for index in range(first, min(request.computed // size, len(request.hashes))):
            self.pool.publish(request.table, request.hashes[index])


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the engine's loop. The next one begins at `at`, after `deliver` has been completed."""

    at: float
    deliver: Step | None
    """The step whose tokens come out at `at`; None when there is nothing to hand out yet."""


class Pipeline:
    """Virtual time over a scheduler.

    Asynchronous scheduling is two steps deep: the engine's thread plans a step and launches it while the one before
    still runs on the GPU, and hands out that one's tokens only after the launch. A decode step inside a CUDA graph is
    launched in a few ms, so its tokens come on time; a step with prefill keeps the thread busy for long, so the
    tokens of the step before it come as late as the launch's end. That is why a first token in a busy server comes
    one step later than its prefill. Without it a step is planned, launched, waited for and handed out in turn.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._asynchronous = scheduler.limits.settings.async_scheduling
        self._flying: Step | None = None
        self._flying_ends = 0.0
        """When the GPU is through with the step under way."""

    def turn(self, now: float) -> Turn | None:
        """Plans at `now`. None: nothing to do and nothing under way, until a request is added.

        The caller adds what has arrived by then to the scheduler before, and completes `deliver` after.
        """
        step = self.scheduler.plan(now)
        if not self._asynchronous:
            return None if step is None else Turn(now + step.serial_s + step.seconds, step)
        flying, flying_ends = self._flying, self._flying_ends
        if step is None:
            self._flying = None
            return Turn(max(flying_ends, now), flying) if flying is not None else None
        launched = now + step.host_s
        begins = launched if step.whole else now
        if flying is not None:
            begins = max(flying_ends, begins)
        self._flying = step
        self._flying_ends = max(launched, begins + step.device_s)
        if flying is None:
            return Turn(launched, None)
        return Turn(max(launched, flying_ends), flying)

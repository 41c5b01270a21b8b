"""Closed loops against the scheduler in pure virtual time, within this process: no server, no clock, no sockets.

`simulate_point` takes a configuration as vLLM's flags and a load, and gives the point that a sweep would have
measured; calibration, tests and the benchmark of tuning call it (SIMULATED, like everything of this room).
"""

from __future__ import annotations

import heapq
import math
import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from qwenbench.capacity.cards import find_card
from qwenbench.errors import UsageError
from qwenbench.simulator.blocks import BlockPool
from qwenbench.simulator.failures import StartFailure, check_fits, check_free_memory
from qwenbench.simulator.memory import MemoryPlan, plan_memory, served_shape
from qwenbench.simulator.options import ServeOptions, parse
from qwenbench.simulator.scheduler import Pipeline, Scheduler, SchedulerLimits, SimRequest
from qwenbench.simulator.steptime import StepModel, StepSettings, calibration, step_model

_STAGGER_S = 0.0003
STALL_FACTOR = 2.5
"""A gap over so many times the median gap is a stall (docs/metrics.md)."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A request that a stream will send. `think_s`: seconds between the end of its last one and this."""

    prompt_tokens: int
    output_tokens: int
    think_s: float = 0.0
    filtered: bool = False
    penalised: bool = False


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of a request; seconds from the beginning of the load."""

    start: float
    planned: Planned
    token_times: list[float] = field(default_factory=list)
    """When each chunk came: one per token, or per step with a drafter."""


def closed_loop(
    scheduler: Scheduler,
    streams: int,
    next_request: Callable[[int], Planned | None],
    *,
    on_step: Callable[[int, int], None] | None = None,
) -> list[Replayed]:
    """Runs `streams` clients, each sending its next request when its last one ended; ordered by start.

    `next_request(stream)` gives what that stream sends next, None when it is done. The streams begin
    0.3 ms apart, as a single-threaded client writes its first requests one after the other.
    `on_step(running, waiting)` is called after each step.
    """
    arrivals: list[tuple[float, int, SimRequest]] = []
    owners: dict[str, tuple[int, Replayed]] = {}

    def send(stream: int, now: float) -> None:
        planned = next_request(stream)
        if planned is None:
            return
        start = now + planned.think_s
        number = len(owners)
        frontend_s = scheduler.model.frontend_ms(planned.prompt_tokens, len(scheduler.running)) / 1000.0
        request = SimRequest(
            str(number),
            planned.prompt_tokens,
            planned.output_tokens,
            start + frontend_s,
            filtered=planned.filtered,
            penalised=planned.penalised,
        )
        owners[request.request_id] = (stream, Replayed(start, planned))
        heapq.heappush(arrivals, (request.arrival, number, request))

    for stream in range(streams):
        send(stream, stream * _STAGGER_S)
    pipeline = Pipeline(scheduler)
    now = 0.0
    while True:
        while arrivals and arrivals[0][0] <= now:
            scheduler.add(heapq.heappop(arrivals)[2])
        turn = pipeline.turn(now)
        if turn is None:
            if not arrivals:
                break
            now = arrivals[0][0]
            continue
        now = turn.at
        if turn.deliver is None:
            continue
        for request in scheduler.complete(turn.deliver):
            stream, replayed = owners[request.request_id]
            replayed.token_times.append(now)
            if request.ended:
                send(stream, now)
        if on_step is not None:
            on_step(len(scheduler.running), len(scheduler.waiting))
    return sorted((replayed for _, replayed in owners.values()), key=lambda replayed: replayed.start)


@dataclass(frozen=True, slots=True)
class Figures:
    """One load's figures; None where the rule leaves nothing to take it from."""

    itl_p50_ms: float
    ttft_p50_ms: float | None
    tokens_per_s: float | None
    stall_share: float | None = None


def figures(requests: list[Replayed], concurrency: int, *, after_first_wave: bool = False) -> Figures:
    """A load's figures."""
    import numpy as np  # here, so that a simulated server, which replays nothing, starts without it

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
class LoadShape:
    """A closed loop: how many streams, and what each request asks for (lengths drawn evenly between the limits)."""

    streams: int
    input_tokens: tuple[int, int] = (200, 1200)
    output_tokens: tuple[int, int] = (64, 192)
    requests: int | None = None
    """None: four times the streams, at least 16, as a sweep does."""
    filtered: bool = True
    """Top-k, top-p or min-p, as all four profiles have."""
    penalised: bool = False


@dataclass(frozen=True, slots=True)
class SimulatedPoint:
    """What a sweep would have measured, of what is asked for here; ms, tokens per second, GiB. As in points.csv."""

    output_tokens_per_s: float
    ttft_ms_p50: float
    ttft_ms_p90: float
    ttft_ms_p99: float
    itl_ms_p50: float
    itl_stall_share: float
    kv_cache_gib: float
    running_peak: int


class CannotStart(Exception):
    """The configuration would be refused; the text is vLLM's reason."""


def options_of(flags: Mapping[str, str | int | float | None], environ: Mapping[str, str] | None = None) -> ServeOptions:
    """vLLM's flags (and sim-* ones) without dashes in front, None for those without a value, as a server's options.

    `model` is the built-in one unless it is given. Raises UsageError for what vLLM would refuse.
    """
    words = [str(flags.get("model", "ig1/Qwen3.5-9B-NVFP4"))]
    for name, value in flags.items():
        if name != "model":
            words += [f"--{name}"] if value is None else [f"--{name}={value}"]
    return parse(words, environ)


def core_of(options: ServeOptions, *, seed: int | None = None) -> tuple[MemoryPlan, Scheduler]:
    """The memory and the engine core of a configuration that a server would start with.

    Raises CannotStart where a server would not, UsageError for a model or card that is not known.
    """
    card, shape = find_card(options.card), served_shape(options.model)
    plan = plan_memory(options, card, calibration()["memory"], shape)
    try:
        check_free_memory(options, plan)
        check_fits(options, plan)
    except StartFailure as failure:
        raise CannotStart(failure.reason) from None
    return plan, scheduler_of(options, plan, seed=seed)


def scheduler_of(options: ServeOptions, plan: MemoryPlan, *, seed: int | None = None) -> Scheduler:
    """The engine core of a configuration, as fast as its card, its machine and its flags make it."""
    model = step_model(find_card(options.card), options.machine, served_shape(options.model), options.vllm_version)
    drafted = options.speculative_tokens
    rows = options.max_num_seqs * (1 + drafted)
    settings = StepSettings(
        captured_full=max((size for size in options.capture_sizes if size <= rows), default=0),
        captured_piecewise=max(options.capture_sizes, default=0),
        flashinfer_sampler=options.flashinfer_sampler,
        async_scheduling=options.async_scheduling,
        drafted=drafted,
    )
    limits = SchedulerLimits(options.max_num_seqs, options.max_num_batched_tokens, settings, options.acceptance)
    pool = BlockPool(
        plan.num_blocks,
        block_tokens=plan.layout.block_tokens,
        state_blocks=plan.layout.state_blocks,
        caching=options.enable_prefix_caching,
    )
    scheduler = Scheduler(limits, pool, model.stretched(options.time_scale), options.seed if seed is None else seed)
    scheduler.host_pace = options.host_pace
    return scheduler


def launch_pace(model: StepModel, seed: int) -> float:
    """By how much slower than usual the host is in one launch (--sim-spread)."""
    return _pace(model.host.launch_spread, f"launch {seed}")


def point_pace(model: StepModel, seed: int, point: int) -> float:
    """By how much slower than usual the host is at one point of a launch, beside `launch_pace`."""
    return _pace(model.host.point_spread, f"point {seed} {point}")


def _pace(spread: float, seed: str) -> float:
    return math.exp(random.Random(seed).gauss(0.0, spread))


def simulate_point(
    flags: Mapping[str, str | int | float | None],
    load: LoadShape,
    *,
    environ: Mapping[str, str] | None = None,
    launch: int = 1,
    point: int = 1,
    seed: int = 0,
) -> SimulatedPoint:
    """The point that a configuration would give under a load, in milliseconds of real time.

    `flags`: vLLM's, e.g. {"max-num-seqs": 64, "max-cudagraph-capture-size": 64, "gpu-memory-utilization": 0.95,
    "sim-card": "rtx-5090"}; with "sim-spread": None the host's speed differs from `launch` to `launch` and from
    `point` to `point`, otherwise equal arguments give equal points but for the draws of `seed`.
    Raises CannotStart for a configuration that a server would refuse at its start, UsageError for flags that make
    no sense.
    """
    options = options_of(flags, environ)
    plan, scheduler = core_of(options, seed=seed)
    if options.spread:
        number = 1000 * seed + launch
        scheduler.host_pace *= launch_pace(scheduler.model, number) * point_pace(scheduler.model, number, point)
    running = [0]
    queue = iter(planned_requests(load, seed))
    replayed = closed_loop(
        scheduler, load.streams, lambda _: next(queue, None), on_step=lambda now, _: running.append(now)
    )
    import numpy as np

    found = figures(replayed, load.streams)
    ttft = [1e3 * (request.token_times[0] - request.start) for request in replayed]
    p50, p90, p99 = (float(np.percentile(ttft, share)) for share in (50, 90, 99))
    return SimulatedPoint(
        output_tokens_per_s=found.tokens_per_s or 0.0,
        ttft_ms_p50=p50,
        ttft_ms_p90=p90,
        ttft_ms_p99=p99,
        itl_ms_p50=found.itl_p50_ms,
        itl_stall_share=found.stall_share or 0.0,
        kv_cache_gib=plan.kv_cache_gib,
        running_peak=max(running),
    )


def planned_requests(load: LoadShape, seed: int) -> list[Planned]:
    """The load's requests in the order in which streams take them. Raises UsageError for limits that make no sense."""
    if load.streams < 1 or load.input_tokens[0] < 1 or load.output_tokens[0] < 1:
        raise UsageError(f"a load needs at least one stream, one token in and one out: {load}")
    draw = random.Random(f"{seed} {load.input_tokens} {load.output_tokens}")
    count = load.requests if load.requests is not None else max(4 * load.streams, 16)
    blank = Planned(1, 1, 0.0, load.filtered, load.penalised)
    return [
        replace(blank, prompt_tokens=draw.randint(*load.input_tokens), output_tokens=draw.randint(*load.output_tokens))
        for _ in range(count)
    ]

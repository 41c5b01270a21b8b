"""Closed loops against the scheduler in pure virtual time, within this process: no server, no clock, no sockets.

`simulate_point` takes a configuration as vLLM's flags and a load, and gives the point that a sweep would have
measured; calibration, tests and the benchmark of tuning call it (SIMULATED, like everything of this room).
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from qwenbench.capacity.cards import find_card
from qwenbench.errors import UsageError
from qwenbench.simulator.blocks import BlockPool
from qwenbench.simulator.failures import StartFailure, check_fits, check_free_memory
from qwenbench.simulator.memory import MemoryPlan, plan_memory, served_shape
from qwenbench.simulator.meters import VramGauge
from qwenbench.simulator.options import ServeOptions, parse
from qwenbench.simulator.scheduler import Pipeline, Scheduler, SchedulerLimits, SimRequest
from qwenbench.simulator.steptime import StepModel, StepSettings, calibration, step_model

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
    stagger_s: float = 0.0003,
    on_step: Callable[[int, int], None] | None = None,
) -> list[Replayed]:
    """Runs `streams` clients, each sending its next request when its last one ended; ordered by start.

    `next_request(stream)` gives what that stream sends next, None when it is done. The streams begin
    `stagger_s` apart, as a single-threaded client writes its first requests one after the other.
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
        send(stream, stream * stagger_s)
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
    """What a sweep would have measured; ms, tokens per second, GiB. Keys are points.csv's."""

    output_tokens_per_s: float
    requests_per_s: float
    ttft_ms_p50: float
    ttft_ms_p90: float
    ttft_ms_p99: float
    itl_ms_p50: float
    itl_ms_p90: float
    itl_ms_p99: float
    tpot_ms_p50: float
    tpot_ms_p99: float
    e2e_ms_p50: float
    itl_stall_share: float
    duration_s: float
    kv_cache_gib: float
    kv_cache_blocks: int
    kv_cache_usage_peak: float
    preemptions: int
    running_peak: int
    waiting_peak: int
    vram_ready_mib: float
    vram_peak_mib: float
    startup_s: float


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


def scheduler_of(options: ServeOptions, plan: MemoryPlan, model: StepModel, *, seed: int | None = None) -> Scheduler:
    """The engine core of a configuration, with the host's pace of this launch where --sim-spread plays one."""
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
        block_tokens=plan.block_tokens,
        state_blocks=plan.state_blocks,
        caching=options.enable_prefix_caching,
    )
    scheduler = Scheduler(limits, pool, model, options.seed if seed is None else seed)
    scheduler.host_pace = options.host_pace
    return scheduler


def launch_pace(model: StepModel, seed: int) -> float:
    """By how much slower than usual the host is in one launch (--sim-spread)."""
    return _pace(model.host.launch_spread, f"launch {seed}")


def point_pace(model: StepModel, seed: int, point: int) -> float:
    """By how much slower than usual the host is at one point of a launch, beside `launch_pace`."""
    return _pace(model.host.point_spread, f"point {seed} {point}")


def _pace(spread: float, seed: str) -> float:
    return float(np.exp(random.Random(seed).gauss(0.0, spread)))


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
    card = find_card(options.card)
    figures = calibration()
    shape = served_shape(options.model)
    plan = plan_memory(options, card, figures["memory"], shape)
    try:
        check_free_memory(options, plan)
        check_fits(options, plan)
    except StartFailure as failure:
        raise CannotStart(failure.reason) from None
    model = step_model(card, options.machine, shape, options.vllm_version).stretched(options.time_scale)
    scheduler = scheduler_of(options, plan, model, seed=seed)
    if options.spread:
        scheduler.host_pace *= launch_pace(model, 1000 * seed + launch) * point_pace(model, 1000 * seed + launch, point)
    gauge = VramGauge(plan, card, figures["memory"]["overshoot_mib"], options.speculative_tokens)
    running_peak = waiting_peak = 0
    usage_peak = 0.0

    def watch(running: int, waiting: int) -> None:
        nonlocal running_peak, waiting_peak, usage_peak
        gauge.saw(running)
        running_peak, waiting_peak = max(running_peak, running), max(waiting_peak, waiting)
        usage_peak = max(usage_peak, scheduler.pool.usage)

    queue = iter(planned_requests(load, seed))
    replayed = closed_loop(scheduler, load.streams, lambda _: next(queue, None), on_step=watch)
    phases = figures["startup"]["warm" if options.warm else "cold"]
    return SimulatedPoint(
        **_latencies(replayed),
        kv_cache_gib=plan.kv_cache_gib,
        kv_cache_blocks=plan.num_blocks,
        kv_cache_usage_peak=usage_peak,
        preemptions=scheduler.preemptions,
        running_peak=running_peak,
        waiting_peak=waiting_peak,
        vram_ready_mib=plan.ready_mib,
        vram_peak_mib=gauge.used_mib,
        startup_s=options.startup_s if options.startup_s is not None else sum(phases.values()),
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


def _latencies(replayed: Sequence[Replayed]) -> dict[str, float]:
    """SimulatedPoint's figures of the requests."""
    ttft = np.array([1e3 * (item.token_times[0] - item.start) for item in replayed])
    gaps = 1e3 * np.concatenate([np.diff(item.token_times) for item in replayed])
    e2e = np.array([1e3 * (item.token_times[-1] - item.start) for item in replayed])
    lengths = np.array([item.planned.output_tokens for item in replayed])
    several = lengths > 1
    tpot = (e2e - ttft)[several] / (lengths[several] - 1)
    duration = max(item.token_times[-1] for item in replayed) - min(item.start for item in replayed)
    wanted = (("ttft", ttft, (50, 90, 99)), ("itl", gaps, (50, 90, 99)), ("tpot", tpot, (50, 99)), ("e2e", e2e, (50,)))
    return {
        "output_tokens_per_s": float(lengths.sum() / duration),
        "requests_per_s": len(replayed) / duration,
        **{
            f"{name}_ms_p{share}": float(np.percentile(values, share)) if len(values) else float("nan")
            for name, values, shares in wanted
            for share in shares
        },
        "itl_stall_share": float(gaps[gaps > STALL_FACTOR * np.median(gaps)].sum() / gaps.sum()) if len(gaps) else 0.0,
        "duration_s": float(duration),
    }

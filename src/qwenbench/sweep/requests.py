"""The sessions of one load point and of its warm-up."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qwenbench.analysis.window import MIN_COMPLETIONS_PER_STREAM, MIN_MEDIAN_E2E
from qwenbench.engine.config import Configuration
from qwenbench.load.spec import ClosedLoop, Enough, LoadSpec, OpenLoop, Target
from qwenbench.runfolder.cells import LoadPoint
from qwenbench.sweep.options import SweepOptions
from qwenbench.sweep.plan import Plan
from qwenbench.workload.arrivals import Shape, arrival_times
from qwenbench.workload.lengths import CHARS_PER_TOKEN, Lengths
from qwenbench.workload.planning import PlannedSessions, RequestOptions, SaltMode, point_seed

WARM_UP_OUTPUT = 32
"""Longest answer of a warm-up request in tokens: long enough for every stream to decode together."""
STEADY_COMPLETIONS = MIN_COMPLETIONS_PER_STREAM
"""Answers per stream that a steady window must hold at least."""
STEADY_MEDIANS = 1.2 * MIN_MEDIAN_E2E
"""Length of a point that ends when it was steady, in median E2E: a fifth more than its window needs, because the
answers that are still under way may be the longer ones."""
CEILING = 4
"""A point that does not become steady (all requests fail, few are long) ends after so many times the requests."""


@dataclass(frozen=True, slots=True)
class ServerTraits:
    """What was found out about a server once it was ready."""

    model: str
    """The name under which it serves."""
    salt_mode: SaltMode = "cache_salt"
    chars_per_token: float = CHARS_PER_TOKEN
    judge_text: bool = False


def load_shape_name(options: SweepOptions) -> str:
    """points.csv's load_shape."""
    if options.trace:
        return "trace"
    if not options.rate:
        return "closed"
    if options.burstiness == "constant":
        return "constant"
    return "poisson" if options.burstiness in (None, 1.0) else "gamma"


def request_options(
    plan: Plan, point: LoadPoint, traits: ServerTraits, salt: str, configuration: Configuration
) -> RequestOptions:
    """What every request of this point has in common."""
    options = plan.options
    return RequestOptions(
        model=traits.model or configuration.server.served_model_name,
        endpoint=options.endpoint,
        profile=point.profile,
        force_length=options.ignore_eos,
        salt_mode="off" if options.prefix_reuse == "natural" else traits.salt_mode,
        salt=salt,
        extra_body=options.extra_body,
        chars_per_token=traits.chars_per_token,
    )


def seed_of(plan: Plan, point: LoadPoint) -> int:
    """The seed that this point's requests are drawn from."""
    base = plan.options.seed + plan.scenarios[point.scenario].file.scenario.seed
    return point_seed(base, point.scenario, point.level, point.repeat)


def measured_load(
    plan: Plan, configuration: Configuration, point: LoadPoint, traits: ServerTraits, target: Target, salt: str
) -> LoadSpec:
    """The load that is measured."""
    options, loaded = plan.options, plan.scenarios[point.scenario]
    scenario, seed = loaded.file.scenario, seed_of(plan, point)
    common = request_options(plan, point, traits, salt, configuration)
    shape: ClosedLoop | OpenLoop
    enough = None
    if point.concurrency is not None:
        # until it was steady, or with --duration, the list is only an upper limit: it is lazy, so it costs little
        count = scenario.request_count(point.concurrency)
        if options.until_steady:
            enough = Enough(max(count, STEADY_COMPLETIONS * point.concurrency), STEADY_MEDIANS)
            count = CEILING * enough.completions
        elif options.duration_s is not None:
            count = max(count, most_requests(options.duration_s, point.concurrency))
        sessions = PlannedSessions(scenario, loaded.prompts, common, seed, count, streams=point.concurrency)
        shape = ClosedLoop(point.concurrency)
    else:
        starts = _starts(plan, point, seed)
        sessions = PlannedSessions(scenario, loaded.prompts, common, seed, len(starts), starts=starts, trace=plan.trace)
        shape = OpenLoop(rate=point.rate, ramp_s=options.ramp_s)
    return LoadSpec(
        target=target,
        shape=shape,
        sessions=sessions,
        timeout_s=options.timeout_s,
        duration_s=options.duration_s,
        enough=enough,
        processes=options.client_processes,
        cpus=options.client_cpus,
        save_text=options.save_text,
        judge_text=traits.judge_text and not options.ignore_eos,
    )


def most_requests(duration_s: float, streams: int) -> int:
    """More requests than so many streams can finish in the time: the clock shall end the point, not the list.

    20 a second and stream (8 tokens at an H200's 4.4 ms each and a short prompt), 4 where that would be over 100,000:
    so many streams are slower.
    """
    busy = duration_s * streams
    return math.ceil(max(4 * busy, min(20 * busy, 100_000)))


def _starts(plan: Plan, point: LoadPoint, seed: int) -> list[float]:
    options = plan.options
    if plan.trace:
        return [row.start_s for row in plan.trace]
    rate = point.rate or 1.0
    scenario = plan.scenarios[point.scenario].file.scenario
    if options.duration_s is not None:
        count = max(1, math.ceil(rate * options.duration_s))
    else:
        # Nx counts from the streams that a rate keeps busy is unknown beforehand: take it times ten seconds' worth
        count = scenario.request_count(max(1, math.ceil(rate * 10)))
    shape: Shape = "poisson"
    burstiness = 1.0
    if options.burstiness == "constant":
        shape = "constant"
    elif options.burstiness is not None:
        shape, burstiness = "gamma", float(options.burstiness)
    random = np.random.default_rng([seed, 1])
    return [float(time) for time in arrival_times(rate, count, shape, random, burstiness, options.ramp_s)]


def warm_up_load(
    plan: Plan, configuration: Configuration, point: LoadPoint, traits: ServerTraits, target: Target, salt: str
) -> LoadSpec:
    """A short load at the measured concurrency, with other prompts and salts; its records are not kept."""
    options, loaded = plan.options, plan.scenarios[point.scenario]
    lengths = loaded.file.scenario.output_tokens
    limit = min(WARM_UP_OUTPUT, lengths.max)
    scenario = loaded.file.scenario.model_copy(update={"output_tokens": Lengths(min=min(16, limit), max=limit)})
    streams = point.concurrency or max(1, math.ceil(point.rate or 4))
    base = options.seed + loaded.file.scenario.seed
    seed = point_seed(base, point.scenario, point.level, point.repeat, "warm-up")
    # single turns: a warm-up of whole conversations would take longer than the point
    prompts = [prompt.model_copy(update={"turns": prompt.turns[:1]}) for prompt in loaded.prompts]
    return LoadSpec(
        target=target,
        shape=ClosedLoop(streams),
        sessions=PlannedSessions(
            scenario, prompts, request_options(plan, point, traits, salt, configuration), seed, max(2, streams)
        ),
        timeout_s=options.timeout_s,
        processes=options.client_processes,
        cpus=options.client_cpus,
    )

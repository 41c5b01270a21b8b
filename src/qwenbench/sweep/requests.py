"""The sessions of one load point and of its warm-up, and the lengths of the requests that a configuration must hold."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np

from qwenbench.analysis.window import MIN_COMPLETIONS_PER_STREAM, MIN_MEDIAN_E2E
from qwenbench.bounded_http import NoReplyError, ask
from qwenbench.engine.config import Configuration
from qwenbench.load.spec import ClosedLoop, Decided, Enough, LoadSpec, OpenLoop, Target
from qwenbench.runfolder.cells import LoadPoint
from qwenbench.sweep.option_values import long_prompts
from qwenbench.sweep.options import SweepOptions
from qwenbench.sweep.plan import LoadedScenario, Plan
from qwenbench.workload.arrivals import Shape, arrival_times, arrivals_within, sessions_of
from qwenbench.workload.planning import PlannedSessions, RequestOptions, SaltMode, point_seed, request_body
from qwenbench.workload.profiles import REQUEST_PROFILES
from qwenbench.workload.scenario import CHARS_PER_TOKEN, Lengths, synthetic_scenario

_INTERFERING_OUTPUT = 8
_MOST_INTERFERING = 10_000
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
class Until:
    """When a point ends that is to decide a question."""

    most: int
    """Requests, whatever they decide."""
    decided: Decided


@dataclass(frozen=True, slots=True)
class ServerTraits:
    """What was found out about a server once it was ready."""

    model: str
    """The name under which it serves."""
    salt_mode: SaltMode = "cache_salt"
    chars_per_token: float = CHARS_PER_TOKEN
    judge_text: bool = False
    left_out: frozenset[str] = frozenset()
    """Fields of a request that it refuses."""
    length_field: str = "max_tokens"
    tokenize_as: str | None = None
    """Model for which its /tokenize counts answers, where it sends no usage."""


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
    plan: Plan,
    point: LoadPoint,
    traits: ServerTraits,
    salt: str,
    configuration: Configuration,
    *,
    measured: bool = True,
) -> RequestOptions:
    """What every request of this point has in common.

    Requests that are not measured (warm-up, natural-stop pass) are salted in every mode: under --prefix-reuse natural
    the measured ones must not find their prompts in the cache.
    """
    options = plan.options
    natural = options.prefix_reuse == "natural" and measured
    return RequestOptions(
        model=traits.model or configuration.server.served_model_name,
        endpoint=options.endpoint,
        profile=point.profile,
        force_length=options.ignore_eos,
        own_lengths=options.output_tokens is None,
        natural_factor=1 if options.output_tokens else 4,
        left_out=traits.left_out,
        length_field=traits.length_field,
        salt_mode="off" if natural else traits.salt_mode,
        salt=salt,
        extra_body=options.extra_body,
        chars_per_token=traits.chars_per_token,
    )


def probe_body(plan: Plan, traits: ServerTraits, configuration: Configuration) -> dict[str, Any]:
    """A request for one token with every field that the load will send."""
    point = max(plan.points, key=lambda one: len(REQUEST_PROFILES[one.profile].request_fields()))
    common = request_options(plan, point, traits, "probe", configuration, measured=False)
    return request_body(common, [{"role": "user", "content": "Say hello."}], 1, "probe")


def seed_of(plan: Plan, point: LoadPoint) -> int:
    base = plan.options.seed + plan.scenarios[point.scenario].file.scenario.seed
    return point_seed(base, point.scenario, point.level, point.repeat)


def measured_load(
    plan: Plan,
    configuration: Configuration,
    point: LoadPoint,
    traits: ServerTraits,
    target: Target,
    salt: str,
    until: Until | None = None,
) -> LoadSpec:
    options, loaded = plan.options, plan.scenarios[point.scenario]
    scenario, seed = loaded.file.scenario, seed_of(plan, point)
    common = request_options(plan, point, traits, salt, configuration)
    shape: ClosedLoop | OpenLoop
    enough = None
    if point.concurrency is not None:
        # until it was steady, or with --duration, the list is only an upper limit: it is lazy, so it costs little
        count = scenario.request_count(point.concurrency)
        if until is not None:
            count = until.most
        elif options.until_steady:
            enough = Enough(max(count, STEADY_COMPLETIONS * point.concurrency), STEADY_MEDIANS)
            count = CEILING * enough.completions
        elif options.duration_s is not None:
            count = max(count, most_requests(options.duration_s, point.concurrency))
        sessions = PlannedSessions(scenario, loaded.prompts, common, seed, count, streams=point.concurrency)
        shape = ClosedLoop(point.concurrency)
    else:
        trace = sessions_of(plan.trace)
        starts = (
            [rows[0].start_s for rows in trace] if trace else _starts(plan, point, seed, until.most if until else None)
        )
        sessions = PlannedSessions(scenario, loaded.prompts, common, seed, len(starts), starts=starts, trace=trace)
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
        tokenize_as=traits.tokenize_as,
    )


def most_requests(duration_s: float, streams: int) -> int:
    """More requests than so many streams can finish in the time: the clock shall end the point, not the list.

    20 a second and stream (8 tokens at an H200's 4.4 ms each and a short prompt), 4 where that would be over 100,000:
    so many streams are slower.
    """
    busy = duration_s * streams
    return math.ceil(max(4 * busy, min(20 * busy, 100_000)))


def _starts(plan: Plan, point: LoadPoint, seed: int, most: int | None = None) -> list[float]:
    options = plan.options
    rate = point.rate or 1.0
    shape: Shape = "poisson"
    burstiness = 1.0
    if options.burstiness == "constant":
        shape = "constant"
    elif options.burstiness is not None:
        shape, burstiness = "gamma", float(options.burstiness)
    random = np.random.default_rng([seed, 1])
    if options.duration_s is not None and most is None:
        times = arrivals_within(rate, options.duration_s, shape, random, burstiness, options.ramp_s)
    else:
        # how many streams a rate keeps busy is unknown beforehand, so Nx counts from ten seconds' worth of arrivals
        scenario = plan.scenarios[point.scenario].file.scenario
        count = most or scenario.request_count(max(1, math.ceil(rate * 10)))
        times = arrival_times(rate, count, shape, random, burstiness, options.ramp_s)
    return [float(time) for time in times]


def interfering_load(
    plan: Plan, configuration: Configuration, point: LoadPoint, traits: ServerTraits, target: Target, salt: str
) -> LoadSpec | None:
    """--interfere: long prompts at a constant rate, stopped with the load that they disturb; None: not asked for."""
    if plan.options.interfere is None:
        return None
    tokens, rate = long_prompts(plan.options.interfere)
    lengths = Lengths(min=tokens, max=tokens)
    file = synthetic_scenario(lengths, Lengths(min=_INTERFERING_OUTPUT, max=_INTERFERING_OUTPUT))
    common = request_options(plan, point, traits, salt, configuration, measured=False)
    starts = [number / rate for number in range(_MOST_INTERFERING)]
    sessions = PlannedSessions(file.scenario, (), common, seed_of(plan, point), len(starts), starts=starts)
    return LoadSpec(target, OpenLoop(rate=rate), sessions, timeout_s=plan.options.timeout_s, processes=1)


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
            scenario,
            prompts,
            request_options(plan, point, traits, salt, configuration, measured=False),
            seed,
            max(2, streams),
        ),
        timeout_s=options.timeout_s,
        processes=options.client_processes,
        cpus=options.client_cpus,
    )


ASKED = 96
"""Requests of a scenario whose prompts are tokenized, evenly spread over its draw."""
AT_A_TIME = 8
_TOKENIZED = ("model", "messages", "prompt", "chat_template_kwargs")
"""Fields of a request that its prompt's tokens come of."""


@dataclass(frozen=True, slots=True)
class RequestLengths:
    """Prompt and answer together, in tokens."""

    p95: int
    longest: int
    max_model_len: int | None
    """As the server tells it beside the tokens."""


def whole_draw(loaded: LoadedScenario, common: RequestOptions, seed: int) -> PlannedSessions:
    """Every prompt of the set once, with all its turns; of synthetic prompts as many as are asked about."""
    turns = sum(len(prompt.turns) for prompt in loaded.prompts) or ASKED
    return PlannedSessions(loaded.file.scenario, loaded.prompts, common, seed, turns)


async def request_lengths(
    session: aiohttp.ClientSession, target: Target, draw: PlannedSessions, timeout_s: float
) -> RequestLengths | None:
    """Asks /tokenize about an even sample of the draw. None where the server does not answer it."""
    turns = [turn for plan in (draw[index] for index in range(len(draw))) for turn in plan.turns]
    picked = [turns[index] for index in np.linspace(0, len(turns) - 1, min(ASKED, len(turns))).astype(int)]
    gate = asyncio.Semaphore(AT_A_TIME)

    async def tokens(payload: Mapping[str, Any]) -> tuple[int, int | None] | None:
        body = {name: payload[name] for name in _TOKENIZED if name in payload}
        async with gate:
            try:
                reply = await ask(
                    session, f"{target.base_url}/tokenize", headers=target.headers, body=body, timeout_s=timeout_s
                )
            except NoReplyError:
                return None
        document = reply.json() if reply.status == 200 else None
        if not isinstance(document, dict) or not _whole(document.get("count")):
            return None
        limit = document.get("max_model_len")
        return document["count"], limit if _whole(limit) else None

    if not picked:
        return None
    first = await tokens(picked[0].payload)  # one question to a server that has no such endpoint
    if first is None:
        return None
    rest = await asyncio.gather(*(tokens(turn.payload) for turn in picked[1:]))
    known = [
        found[0] + turn.output_tokens for found, turn in zip([first, *rest], picked, strict=True) if found is not None
    ]
    return _summed(known, first[1])


def _summed(lengths: Sequence[int], max_model_len: int | None) -> RequestLengths:
    return RequestLengths(int(np.ceil(np.percentile(lengths, 95))), max(lengths), max_model_len)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**9

"""The sessions of one load point and of its warm-up, and the lengths of the requests that a configuration must hold."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qwenbench.analysis.window import MIN_COMPLETIONS_PER_STREAM, MIN_MEDIAN_E2E
from qwenbench.bounded_http import NoReplyError, Questions, Reply
from qwenbench.load.spec import ClosedLoop, Decided, Enough, LoadSpec, OpenLoop, Target
from qwenbench.runfolder.cells import LoadPoint
from qwenbench.sweep.option_values import long_prompts
from qwenbench.sweep.options import SweepOptions
from qwenbench.sweep.plan import Plan
from qwenbench.workload.arrivals import Shape, arrival_times, arrivals_within, sessions_of
from qwenbench.workload.planning import PlannedSessions, RequestOptions, SaltMode, point_seed, request_body
from qwenbench.workload.profiles import REQUEST_PROFILES
from qwenbench.workload.scenario import CHARS_PER_TOKEN, Lengths, Scenario, synthetic_scenario

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


def seed_of(plan: Plan, point: LoadPoint, *names: str) -> int:
    base = plan.options.seed + plan.scenarios[point.scenario].file.scenario.seed
    return point_seed(base, point.scenario, point.level, point.repeat, *names)


@dataclass(frozen=True, slots=True)
class Loads:
    """What a plan sends to one server: the load of each of its points, and what goes before and beside it."""

    plan: Plan
    target: Target
    traits: ServerTraits

    def request_options(self, point: LoadPoint, salt: str, *, measured: bool = True) -> RequestOptions:
        """What every request of this point has in common.

        Requests that are not measured (warm-up, natural-stop pass) are salted in every mode: under --prefix-reuse
        natural the measured ones must not find their prompts in the cache.
        """
        options, traits = self.plan.options, self.traits
        natural = options.prefix_reuse == "natural" and measured
        return RequestOptions(
            model=traits.model,
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

    def probe_body(self) -> dict[str, Any]:
        """A request for one token with every field that the load will send."""
        point = max(self.plan.points, key=lambda one: len(REQUEST_PROFILES[one.profile].request_fields()))
        common = self.request_options(point, "probe", measured=False)
        return request_body(common, [{"role": "user", "content": "Say hello."}], 1, "probe")

    def measured(self, point: LoadPoint, salt: str, until: Until | None = None) -> LoadSpec:
        """A load point; `until` ends it by another rule than the options'."""
        options, scenario = self.plan.options, self.plan.scenarios[point.scenario].file.scenario
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
            shape = ClosedLoop(point.concurrency)
            sessions = self._sessions(point, salt, count, streams=point.concurrency)
        else:
            trace = sessions_of(self.plan.trace)
            starts = [rows[0].start_s for rows in trace] or self._starts(point, until)
            shape = OpenLoop(rate=point.rate, ramp_s=options.ramp_s)
            sessions = self._sessions(point, salt, len(starts), starts=starts, trace=trace)
        return replace(
            self._spec(shape, sessions),
            duration_s=options.duration_s,
            enough=enough,
            save_text=options.save_text,
            judge_text=self.traits.judge_text and not options.ignore_eos,
            tokenize_as=self.traits.tokenize_as,
        )

    def held(self, point: LoadPoint, salt: str, seconds: float) -> LoadSpec:
        """A closed loop's load for so long; an open loop's as it is measured."""
        load = self.measured(point, salt)
        if point.concurrency is None:
            return load
        sessions = self._sessions(point, salt, most_requests(seconds, point.concurrency), seed=7)
        return replace(load, sessions=sessions, duration_s=seconds, enough=None)

    def warm_up(self, point: LoadPoint, salt: str) -> LoadSpec:
        """A short load at the measured concurrency, with other prompts and salts; its records are not kept."""
        loaded = self.plan.scenarios[point.scenario]
        limit = min(WARM_UP_OUTPUT, loaded.file.scenario.output_tokens.max)
        lengths = Lengths(min=min(16, limit), max=limit)
        scenario = loaded.file.scenario.model_copy(update={"output_tokens": lengths})
        # single turns: a warm-up of whole conversations would take longer than the point
        prompts = [prompt.model_copy(update={"turns": prompt.turns[:1]}) for prompt in loaded.prompts]
        streams = point.concurrency or max(1, math.ceil(point.rate or 4))
        common, seed = self.request_options(point, salt, measured=False), seed_of(self.plan, point, "warm-up")
        return self._spec(ClosedLoop(streams), PlannedSessions(scenario, prompts, common, seed, max(2, streams)))

    def interfering(self, point: LoadPoint, salt: str) -> LoadSpec | None:
        """--interfere: long prompts at a constant rate, stopped with the load that they disturb; None: not wanted."""
        if self.plan.options.interfere is None:
            return None
        tokens, rate = long_prompts(self.plan.options.interfere)
        scenario = _fixed_lengths(tokens, _INTERFERING_OUTPUT)
        common = self.request_options(point, salt, measured=False)
        starts = [number / rate for number in range(_MOST_INTERFERING)]
        sessions = PlannedSessions(scenario, (), common, seed_of(self.plan, point), len(starts), starts=starts)
        return replace(self._spec(OpenLoop(rate=rate), sessions), processes=1, cpus=())

    def of_length(self, tokens: int, answer: int, together: int, count: int, salt: str) -> LoadSpec:
        """Requests with prompts of about so many tokens, `together` at a time."""
        point = replace(self.plan.points[0], concurrency=together, rate=None)
        common = replace(self.request_options(point, salt, measured=False), own_lengths=True, force_length=True)
        sessions = PlannedSessions(_fixed_lengths(tokens, answer), (), common, 1000 * tokens + together, count)
        return replace(self._spec(ClosedLoop(together), sessions), processes=None, cpus=())

    def whole_draw(self, point: LoadPoint) -> PlannedSessions:
        """Every prompt of a point's set once, with all its turns; of synthetic prompts as many as are asked about."""
        loaded = self.plan.scenarios[point.scenario]
        turns = sum(len(prompt.turns) for prompt in loaded.prompts) or ASKED
        common = self.request_options(point, "l", measured=False)
        seed = self.plan.options.seed + loaded.file.scenario.seed
        return PlannedSessions(loaded.file.scenario, loaded.prompts, common, seed, turns)

    def _spec(self, shape: ClosedLoop | OpenLoop, sessions: PlannedSessions) -> LoadSpec:
        options = self.plan.options
        processes, cpus = options.client_processes, options.client_cpus
        return LoadSpec(self.target, shape, sessions, options.timeout_s, processes=processes, cpus=cpus)

    def _sessions(
        self, point: LoadPoint, salt: str, count: int, seed: int | None = None, **more: Any
    ) -> PlannedSessions:
        loaded, common = self.plan.scenarios[point.scenario], self.request_options(point, salt)
        own = seed_of(self.plan, point) if seed is None else seed
        return PlannedSessions(loaded.file.scenario, loaded.prompts, common, own, count, **more)

    def _starts(self, point: LoadPoint, until: Until | None) -> list[float]:
        """When the sessions of an open loop start, s."""
        options, rate = self.plan.options, point.rate or 1.0
        shape: Shape = "constant" if options.burstiness == "constant" else "gamma" if options.burstiness else "poisson"
        burstiness = options.burstiness if isinstance(options.burstiness, float) else 1.0
        random = np.random.default_rng([seed_of(self.plan, point), 1])
        if options.duration_s is not None and until is None:
            times = arrivals_within(rate, options.duration_s, shape, random, burstiness, options.ramp_s)
        else:
            # how many streams a rate keeps busy is unknown beforehand, so Nx counts from ten seconds' worth of arrivals
            scenario = self.plan.scenarios[point.scenario].file.scenario
            count = until.most if until else scenario.request_count(max(1, math.ceil(rate * 10)))
            times = arrival_times(rate, count, shape, random, burstiness, options.ramp_s)
        return [float(time) for time in times]


def _fixed_lengths(prompt: int, answer: int) -> Scenario:
    return synthetic_scenario(Lengths(min=prompt, max=prompt), Lengths(min=answer, max=answer)).scenario


def most_requests(duration_s: float, streams: int) -> int:
    """More requests than so many streams can finish in the time: the clock shall end the point, not the list.

    20 a second and stream (8 tokens at an H200's 4.4 ms each and a short prompt), 4 where that would be over 100,000:
    so many streams are slower.
    """
    busy = duration_s * streams
    return math.ceil(max(4 * busy, min(20 * busy, 100_000)))


ASKED = 96
"""Requests of a scenario whose prompts are tokenized, evenly spread over its draw."""
_TOKENIZED = ("model", "messages", "prompt", "chat_template_kwargs")
"""Fields of a request that its prompt's tokens come of."""


@dataclass(frozen=True, slots=True)
class RequestLengths:
    """Prompt and answer together, in tokens."""

    p95: int
    longest: int
    max_model_len: int | None
    """As the server tells it beside the tokens."""


async def request_lengths(questions: Questions, draw: PlannedSessions) -> RequestLengths | None:
    """Asks /tokenize about an even sample of the draw. None where the server does not answer it."""
    turns = [turn for plan in (draw[index] for index in range(len(draw))) for turn in plan.turns]
    picked = [turns[index] for index in np.linspace(0, len(turns) - 1, min(ASKED, len(turns))).astype(int)]
    if not picked:
        return None
    bodies = [{name: turn.payload[name] for name in _TOKENIZED if name in turn.payload} for turn in picked]
    try:
        counted = [_prompt_tokens(reply) for reply in await questions.ask_many("/tokenize", bodies)]
    except NoReplyError:
        return None
    known = [found[0] + turn.output_tokens for found, turn in zip(counted, picked, strict=False) if found is not None]
    if counted[0] is None:
        return None
    return RequestLengths(int(np.ceil(np.percentile(known, 95))), max(known), counted[0][1])


def _prompt_tokens(reply: Reply | None) -> tuple[int, int | None] | None:
    """Tokens of a prompt, and the longest request that the server tells beside them."""
    document = reply.json() if reply is not None and reply.status == 200 else None
    if not isinstance(document, dict) or not _whole(document.get("count")):
        return None
    limit = document.get("max_model_len")
    return document["count"], limit if _whole(limit) else None


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**9

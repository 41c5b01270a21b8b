"""Fits the step model to recorded loads, each number from the place in the record where it shows alone.

captured curve     median length of steps in a row that only decode, at the load's full batch (c=1: median ITL)
eager              the same above the captured size, a straight line over the batch
mixed line         steps with prefill on both sides, after the first wave: they use the whole token budget, so
                   length = A + B x decodes, with A = first + budget x per_token and B = per_sequence - per_token
graph_launch       lower quartile of the gap after the last mixed step: its launch is over, the next one's is not
floor, frontend    TTFT of a single stream = frontend + floor + graph_launch; how it divides is searched for:
                   the frontend time with which the loads' TTFT after the first wave fit best
per_context_token  not fitted: a token's KV bytes over the card's bandwidth; taken off the captured points
per_token          the line through (a single stream's prompt, floor) and (budget, A)
"""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from qwenbench.simulator.steptime import StepModel
from simulator_calibration.compare import compare
from simulator_calibration.loads import Load
from simulator_calibration.measures import ObservedStep, engine_steps, figures, first_wave_end

PLATEAU_SHARE = 0.95
"""A decode step counts for a load's batch size when it holds at least this share of the largest one."""
FRONTEND_CANDIDATES_MS = tuple(float(value) for value in range(4, 34, 2))
STATED_CAPTURED = {128: 13.0}
"""Where no record is at hand: a server that captured 128 took 13 ms at 128 streams (told with the recordings)."""
KV_BYTES_PER_TOKEN = 8 * 4096
"""8 attention layers x 4 KV heads x 256 x (K and V) x BF16."""
MEASURED_BANDWIDTH = 4.8e12
"""Bytes per second, H200."""
BANDWIDTH_SHARE = 0.6
"""What an attention kernel gets of it: assumed, since no record holds long contexts."""
PER_CONTEXT_TOKEN_MS = KV_BYTES_PER_TOKEN / (MEASURED_BANDWIDTH * BANDWIDTH_SHARE) * 1e3
FIXED_MS = 2.0
"""A step of one sequence less the time in which its bandwidth reads 10.57 GiB of weights: 4.4 - 2.4 ms."""


def fit(loads: list[Load]) -> StepModel:
    """The step model of these loads (all from one kind of card)."""
    captured, eager = _decode_points(loads)
    for batch, milliseconds in STATED_CAPTURED.items():
        captured.setdefault(batch, milliseconds)
    sizes = sorted(captured)
    times = [captured[size] for size in sizes]
    slope = (times[-1] - times[-2]) / (sizes[-1] - sizes[-2])
    sizes.append(2 * sizes[-1])
    times.append(times[-1] + slope * (sizes[-1] - sizes[-2]))
    eager_ms, eager_slope = _line(eager)
    budget = loads[0].server.max_num_batched_tokens
    base, per_decode = _line(_mixed_points(loads))
    model = StepModel(
        captured_batch=tuple(sizes),
        captured_ms=tuple(round(value, 2) for value in times),
        fixed_ms=FIXED_MS,
        graph_launch_ms=round(_graph_launch(loads), 2),
        eager_ms=round(eager_ms, 2),
        eager_per_sequence_ms=round(max(eager_slope, 0.0), 4),
        mixed_floor_ms=0.0,
        mixed_first_ms=0.0,
        mixed_per_token_ms=0.0,
        mixed_per_sequence_ms=0.0,
        per_context_token_ms=round(PER_CONTEXT_TOKEN_MS, 8),
        frontend_ms=0.0,
        jitter=round(_jitter(loads), 3),
    )
    candidates = [_with_frontend(model, loads, value, budget, base, per_decode) for value in FRONTEND_CANDIDATES_MS]
    return min(candidates, key=lambda candidate: _worst_ttft(loads, candidate))


def _with_frontend(
    model: StepModel, loads: list[Load], frontend: float, budget: int, base: float, per_decode: float
) -> StepModel:
    single = [load for load in loads if load.concurrency == 1]
    ttft = statistics.median(
        (request.token_times[0] - request.start) * 1e3 for load in single for request in load.requests
    )
    prompt = statistics.median(request.planned.prompt_tokens for load in single for request in load.requests)
    floor = ttft - frontend - model.graph_launch_ms
    per_token = (base - floor) / (budget - prompt)
    return replace(
        model,
        frontend_ms=frontend,
        mixed_floor_ms=round(floor, 2),
        mixed_per_token_ms=round(per_token, 5),
        mixed_first_ms=round(base - budget * per_token, 2),
        mixed_per_sequence_ms=round(per_decode + per_token, 4),
    )


def _worst_ttft(loads: list[Load], model: StepModel) -> float:
    return max(abs(compare(load, model).residual("ttft_p50_ms") or 0.0) for load in loads)


def _plateau(load: Load) -> tuple[int, list[float]]:
    """The load's largest decode batch and the lengths of the steps that decode it and nothing else."""
    steps = engine_steps(load.requests)
    alone = [
        step
        for before, step in itertools.pairwise(steps)
        if not step.firsts and not before.firsts and _same(before, step)
    ]
    if not alone:
        return 0, []
    counts = defaultdict(list)
    for step in alone:
        counts[step.tokens].append(step.milliseconds)
    batch = max((size for size in counts if len(counts[size]) >= 20), default=0)
    return batch, [ms for size, values in counts.items() if size >= PLATEAU_SHARE * batch for ms in values]


def _same(before: ObservedStep, step: ObservedStep) -> bool:
    return abs(before.tokens - step.tokens) <= 0.05 * step.tokens


def _decode_points(loads: list[Load]) -> tuple[dict[int, float], list[tuple[float, float, int]]]:
    captured: dict[int, list[float]] = defaultdict(list)
    eager: list[tuple[float, float, int]] = []
    for load in loads:
        if load.concurrency == 1:
            captured[1].append(figures(load.requests, 1).itl_p50_ms)
            continue
        batch, lengths = _plateau(load)
        if not lengths:
            continue
        if batch <= min(load.server.capture, load.server.max_num_seqs):
            captured[batch].append(statistics.median(lengths) - PER_CONTEXT_TOKEN_MS * batch * _context(load))
        else:
            eager.append((batch, statistics.median(lengths), len(lengths)))
    return {size: statistics.median(values) for size, values in captured.items()}, eager


def _context(load: Load) -> float:
    """Tokens that a sequence of the load has behind it, halfway through its answer."""
    return statistics.mean(item.planned.prompt_tokens + item.planned.output_tokens / 2 for item in load.requests)


def _mixed_points(loads: list[Load]) -> list[tuple[float, float, int]]:
    """(decodes, milliseconds, number) of full-budget mixed steps after the first wave, one row per load."""
    rows = []
    for load in loads:
        if load.concurrency == 1:
            continue
        since = first_wave_end(load.requests, load.concurrency)
        inside = [
            step
            for before, step, after in _triples(engine_steps(load.requests))
            if before.at > since and before.firsts and step.firsts and after.firsts
        ]
        if len(inside) >= 10:
            decodes = statistics.median(step.tokens - step.firsts for step in inside)
            rows.append((decodes, statistics.median(step.milliseconds for step in inside), len(inside)))
    return rows


def _graph_launch(loads: list[Load]) -> float:
    gaps = []
    for load in loads:
        if load.concurrency == 1 or load.server.max_num_seqs > load.server.capture:
            continue
        steps = engine_steps(load.requests)
        gaps += [step.milliseconds for before, step in itertools.pairwise(steps) if before.firsts and not step.firsts]
    # Part of the longer gaps is the mixed step's own tail on the GPU, which grows with the batch.
    return float(np.percentile(gaps, 25))


def _jitter(loads: list[Load]) -> float:
    spreads = []
    for load in loads:
        _, lengths = _plateau(load)
        if len(lengths) >= 100 and load.concurrency > 1:
            low, middle, high = np.percentile(lengths, [15.9, 50, 84.1])
            spreads.append(float((high - low) / 2 / middle))
    return statistics.median(spreads)


def _triples(steps: list[ObservedStep]) -> Iterable[tuple[ObservedStep, ObservedStep, ObservedStep]]:
    return zip(steps, steps[1:], steps[2:], strict=False)


def _line(points: list[tuple[float, float, int]]) -> tuple[float, float]:
    """Weighted least squares: (value at 0, slope) of rows (x, y, weight); a level line through one row."""
    if len(points) == 1:
        return points[0][1], 0.0
    x, y, weight = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    slope, at_zero = np.polyfit(x, y, 1, w=np.sqrt(weight))
    return float(at_zero), float(slope)

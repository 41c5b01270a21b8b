"""What a configuration will hold on each card, predicted before any launch.

KV cache = utilisation x CUDA's total - weights - graphs (where vLLM's profiler counts them) - the rest, where the
rest (activations, CUDA context, libraries) is what a probe showed. docs/memory.md says how far that holds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from qwenbench.capacity.calibration import LANGUAGE_ERROR, Calibration, Load, activations_gib, language_gib
from qwenbench.capacity.graphs import capture_gain, capture_gain_words, graphs_gib, sequences_captured
from qwenbench.capacity.kv import GIB, KvLayout, blocks_for_gib, kv_cache_tokens, printed_tokens, requests_that_fit
from qwenbench.capacity.model_shape import ModelShape
from qwenbench.capacity.settings import Settings
from qwenbench.errors import UsageError

ROUNDING_GIB = 0.005
"""vLLM prints GiB with two decimals."""
OTHER_MACHINE_GIB = 0.25
"""What context and libraries may differ by between two machines (0.19 GiB between the seed's two)."""
GRAPHS_SHARE = 0.25
"""Share of a change of the graphs' estimate that an extrapolation may be off by (0.01 of 0.43 GiB was seen)."""
MORE_SEQS_GIB = 0.02
"""Activations that more sequences may add (none was seen from 64 to 256)."""
UNSEEN_TOKENS_GIB = 0.15 / 2048
"""What each batched token more or less than the probe's may change where the model's widths are not known."""
VISION_WEIGHTS_ERROR = 0.02
STARTUP_RESERVE_GIB = 0.35
"""Memory of a card on Linux that is taken before vLLM asks how much is free: the CUDA context."""
WSL_RESERVE_SHARE = 0.055
"""Share of a card under WSL that is taken before: 1.31 of 24 GiB (owners find 0.944 to be the ceiling)."""
LOAD_MIB_PER_SEQUENCE = 28.0
"""VRAM beyond the budget under load, per running sequence, while decode stays inside the graphs: the largest that
was recorded (67 and 331 MiB at 16 and 32 streams, 427 to 1,774 MiB at 64)."""
TEXT_ONLY_MIB = 1632
"""VRAM at ready by which a text-only server was above the one with its vision part, at the same budget (vLLM 0.26.0,
H200, recorded once): the budget does not hold there."""
OUTSIDE_GRAPHS_SEQUENCES = 64
"""Sequences that eager servers were seen to run without exceeding their budget by much."""


@dataclass(frozen=True, slots=True)
class Target:
    """The configuration that is asked about, vLLM's defaults filled in."""

    settings: Settings
    """As asked for."""
    load: Load
    """What its profiling run will hold."""
    cuda_total_gib: float
    utilization: float
    capture: int
    """--max-cudagraph-capture-size; 0 for eager mode."""
    version: str
    platform: str = "linux"
    nvml_mib: int | None = None
    request_tokens: int | None = None
    """Prompt and output of one request, for requests_that_fit."""
    same_machine: bool = True
    """Whether the calibration comes from the same card and platform."""

    def graphs_gib(self, capture: int, scale: float) -> float:
        """What vLLM's profiler would reckon for the graphs of a capture size, GiB; `scale` fits it to the model."""
        return graphs_gib(capture, self.load.max_num_seqs, scale, self.settings.rows_per_sequence)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Exactly plan's keys. Sizes in GiB on one card; None is not known or does not exist."""

    weights_gib: float | None = None
    graphs_gib: float | None = None
    kv_cache_gib: float | None = None
    kv_cache_gib_low: float | None = None
    kv_cache_gib_high: float | None = None
    kv_cache_blocks: int | None = None
    kv_cache_tokens: int | None = None
    kv_cache_tokens_printed: int | None = None
    requests_that_fit: int | None = None
    risk: str = "startup"
    """`none`, `startup` (may not start) or `load` (VRAM may run out under load)."""
    basis: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Parts:
    """The budget's parts on one card, GiB."""

    budget: float
    weights: float
    graphs: float
    counted: float
    """Of the graphs, what is taken off the cache."""
    rest: float
    kv: float
    low: float
    high: float

    @property
    def arithmetic(self) -> str:
        return (
            f"{self.budget:.2f} GiB budget - {self.weights:.2f} weights - {self.counted:.2f} graphs - "
            f"{self.rest:.2f} rest = {self.kv:.2f} GiB"
        )


def predict(target: Target, shape: ModelShape, layout: KvLayout, calibration: Calibration) -> Prediction:
    """Predicts the memory of a configuration. Raises UsageError for a target that makes no sense."""
    _check(target)
    parts = _parts(target, shape, calibration)
    arithmetic = f"{target.utilization:g} x {target.cuda_total_gib:.2f} = {parts.arithmetic}"
    if target.settings.kv_cache_bytes is not None:
        arithmetic = (
            f"--kv-cache-memory-bytes {target.settings.kv_cache_bytes} = {parts.kv:.2f} GiB whatever the utilisation"
        )
    weights, graphs = round(parts.weights, 2), round(parts.graphs, 3)
    if parts.high <= 0:
        basis = f"nothing is left for a KV cache: {arithmetic}; {calibration.basis}"
        return Prediction(weights, graphs, basis=basis)
    if parts.kv <= 0:
        basis = f"most likely nothing is left for a KV cache: {arithmetic}; {calibration.basis}"
        return Prediction(weights, graphs, None, 0.0, round(parts.high, 3), basis=basis)
    blocks = blocks_for_gib(parts.kv, layout)
    length = target.settings.max_model_len or shape.max_position
    tokens = kv_cache_tokens(blocks, layout, length)
    risk, reason = _risk(target, parts, layout)
    another = (
        f"another machine than the probe's: +-{OTHER_MACHINE_GIB:g} GiB for its CUDA context, libraries and kernels"
    )
    elsewhere = "" if target.same_machine else another
    fit = requests_that_fit(blocks, layout, target.request_tokens) if target.request_tokens else None
    return Prediction(
        weights_gib=weights,
        graphs_gib=graphs,
        kv_cache_gib=round(parts.kv, 3),
        kv_cache_gib_low=round(max(0.0, parts.low), 3),
        kv_cache_gib_high=round(parts.high, 3),
        kv_cache_blocks=blocks,
        kv_cache_tokens=tokens,
        kv_cache_tokens_printed=printed_tokens(target.version, blocks, layout, tokens) if tokens else None,
        requests_that_fit=fit,
        risk=risk,
        basis="; ".join(part for part in (arithmetic, calibration.basis, elsewhere, reason) if part),
    )


def capture_gain_of(target: Target, prompt_tokens: int, smaller: int, calibration: Calibration) -> str | None:
    """What this capture gives prompts that fit under it against its price in KV; None where none was measured."""
    if capture_gain(prompt_tokens, target.capture) is None or smaller >= min(prompt_tokens, target.capture):
        return None
    larger, less = (target.graphs_gib(capture, calibration.graphs_scale) for capture in (target.capture, smaller))
    words = capture_gain_words(larger - less)
    return (
        f"prompts of {prompt_tokens:,} tokens fit under capture {target.capture:,} and not under {smaller:,}: {words}"
    )


def _check(target: Target) -> None:
    if not 0 < target.utilization <= 1:
        raise UsageError(f"--gpu-memory-utilization {target.utilization:g} is no share of a card: give 0 < U <= 1")
    if target.cuda_total_gib <= 0:
        raise UsageError(f"a card of {target.cuda_total_gib:g} GiB does not exist: give its CUDA total with --vram-mib")
    if target.load.max_num_seqs < 1 or target.capture < 0:
        raise UsageError("--max-num-seqs must be at least 1 and --capture at least 0")


def _parts(target: Target, shape: ModelShape, calibration: Calibration) -> _Parts:
    budget = target.utilization * target.cuda_total_gib
    weights, weights_spread = _weights(target, shape, calibration)
    graphs = target.graphs_gib(target.capture, calibration.graphs_scale)
    counted = graphs if target.settings.estimate_graphs else 0.0
    change, activations_spread = _activations_change(target, shape, calibration)
    rest = calibration.other_gib + change
    if target.settings.kv_cache_bytes is not None:
        kv = target.settings.kv_cache_bytes / GIB
        return _Parts(budget, weights, graphs, counted, rest, kv, kv, kv)
    spread = ROUNDING_GIB + MORE_SEQS_GIB + weights_spread + activations_spread
    spread += GRAPHS_SHARE * abs(counted - calibration.graphs_gib) if counted else 0.0
    if not target.same_machine:
        spread += OTHER_MACHINE_GIB
    fixed = budget - weights - counted - change
    more_graphs = calibration.graphs_error * counted
    low = fixed - calibration.other_high_gib - spread - more_graphs
    high = fixed - calibration.other_low_gib + spread + counted * min(1.0, calibration.graphs_error) / 2
    return _Parts(budget, weights, graphs, counted, rest, fixed - calibration.other_gib, low, high)


def _weights(target: Target, shape: ModelShape, calibration: Calibration) -> tuple[float, float]:
    """Weights on one card, GiB, and half the interval around them: the calibration's, with the vision part and the
    drafter as the target has them."""
    weights, spread = calibration.weights_gib, calibration.weights_error * calibration.weights_gib
    seen, asked, mtp = calibration.load, target.load, target.settings.mtp
    if shape.weights is None:
        return weights, spread
    if asked.text_only != seen.text_only:
        part = shape.weights.vision_gib / asked.tensor_parallel
        weights += -part if asked.text_only else part
        spread += VISION_WEIGHTS_ERROR * part
    if mtp != seen.drafting:
        part = shape.weights.drafter_gib / asked.tensor_parallel
        weights += part if mtp else -part
        spread += 0.1 * part
    ratio = seen.tensor_parallel / asked.tensor_parallel
    return weights * ratio, spread * ratio


def _activations_change(target: Target, shape: ModelShape, calibration: Calibration) -> tuple[float, float]:
    """By how much the target's peak activations differ from the calibration's, GiB, and half the interval of that."""
    seen, asked = calibration.load, target.load
    if seen == asked:
        return 0.0, 0.0
    if shape.widths is None:
        return 0.0, UNSEEN_TOKENS_GIB * abs(asked.batched_tokens - seen.batched_tokens)
    before, after = activations_gib(shape.widths, seen), activations_gib(shape.widths, asked)
    most = (1 + LANGUAGE_ERROR) * language_gib(shape.widths, asked)
    spread = max(0.0, most - after) if most > before or after != before else 0.0
    return after - before, spread


def _risk(target: Target, parts: _Parts, layout: KvLayout) -> tuple[str, str]:
    settings, seqs = target.settings, target.load.max_num_seqs
    given, rows = settings.kv_cache_bytes is not None, settings.rows_per_sequence
    wsl = target.platform == "wsl"
    free = target.cuda_total_gib - (WSL_RESERVE_SHARE * target.cuda_total_gib if wsl else STARTUP_RESERVE_GIB)
    held = parts.weights + parts.graphs + parts.rest + parts.kv if given else parts.budget
    if held > free:
        what = "runs out of memory with" if given else "refuses a budget of"
        return "startup", (
            f"risk: vLLM {what} {held:.2f} GiB where about {free:.2f} of {target.cuda_total_gib:.2f} GiB are free"
        )
    least = layout.blocks_per_request(settings.max_model_len or 1) + 1
    if blocks_for_gib(max(0.0, parts.low), layout) < least:
        return "startup", f"risk: at the low end {parts.low:.2f} GiB hold fewer than the {least} blocks of one request"
    captured = sequences_captured(target.capture, rows)
    inside = captured if target.capture else OUTSIDE_GRAPHS_SEQUENCES
    if seqs > inside:
        drafted = f" ({captured} sequences of {rows} rows)" if rows > 1 else ""
        return "load", (
            f"risk: batches above the captured {target.capture}{drafted}, up to {seqs}, run outside the "
            "graphs: a recorded server then held 1.8 GiB (128 streams) to 19.5 GiB (256 streams) more than its budget"
        )
    total_mib = target.nvml_mib or target.cuda_total_gib * 1024
    text_only = TEXT_ONLY_MIB if settings.text_only else 0
    needed = held * 1024 + LOAD_MIB_PER_SEQUENCE * seqs + text_only
    more = f" + {text_only} MiB that a text-only server was seen to hold beyond its budget" if text_only else ""
    sum_words = f"budget {held * 1024:.0f} MiB + {LOAD_MIB_PER_SEQUENCE:g} MiB x {seqs} sequences{more}"
    if needed > total_mib:
        return "load", f"risk: {sum_words} = {needed:.0f} MiB of {total_mib:.0f} MiB"
    if text_only:
        return "none", f"text-only: {sum_words} = {needed:.0f} MiB of {total_mib:.0f} MiB (vLLM 0.26.0, recorded once)"
    return "none", ""

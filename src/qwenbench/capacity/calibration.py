"""What a server takes beside weights, graphs and KV cache, and what a server that was seen tells about another one.

vLLM runs one step of max-num-batched-tokens, one picture of the largest size (unless text-only) and the sampler at
max-num-seqs, and takes off the budget what the largest of them needed (gpu_worker.determine_available_memory).
"""

from __future__ import annotations

from dataclasses import dataclass

from qwenbench.capacity.cards import Card
from qwenbench.capacity.graphs import graphs_gib, graphs_scale
from qwenbench.capacity.kv import (
    KvLayout,
    blocks_from_printed_tokens,
    blocks_range_for_printed_gib,
    gib_for_blocks,
    kv_layout,
    release_of,
)
from qwenbench.capacity.model_shape import SEED_MODEL, SEED_SHAPE, LayerWidths, ModelShape
from qwenbench.capacity.settings import (
    Settings,
    default_batched_tokens,
    default_max_num_seqs,
    default_utilization,
    settings_of_log,
)
from qwenbench.engine.startup_log import StartupLog
from qwenbench.errors import UsageError

GIB = 1 << 30
ELEMENT_BYTES = 2
CHUNK_TOKENS = 64
"""Tokens of one chunk of the gated delta net's prefill kernels, each of which keeps a state (FLA_CHUNK_SIZE)."""
VISION_GIB = 1.92
VISION_HIDDEN = 1152
"""Peak of a vision encoder of this width at its largest picture (16,384 tokens): printed by vLLM 0.26 in six recorded
logs of the seed's model, whatever the batched tokens; a published 27B on 0.27 came to 1.84."""
VISION_SPLIT_SHARE = 0.34
"""Share of it that tensor parallelism splits: two RTX 5090 printed 1.59 GiB each (27B, 0.27)."""
SAMPLER_COPIES = 2.0
"""Copies of the logits in float32 that the sampler's profiling run holds. A published Llama 3.1 8B on an H100 with
1,024 sequences printed 1.2 GiB, which is 2.4 copies; a small Qwen with 256 sequences 1.6."""
DRAFTED_SAMPLER_COPIES = 7.5
"""The same with a drafter, whose rejection sampler is warmed up on top: random logits of two rows a sequence in
bfloat16, their bonus rows, the target's rows twice in float32, sorted for top-k and as probabilities (30 bytes;
counted in 0.26's gpu_model_runner._dummy_sampler_run and rejection_sampler)."""
LANGUAGE_ERROR = 0.5
"""Share by which the count for a step's tokens may be off: 0.27 counted for 0.27 printed (9B, 2,048 tokens), but 1.54
for 0.85 in a published log of a 27B on another kernel."""
VISION_ERROR = 0.1


@dataclass(frozen=True, slots=True)
class Load:
    batched_tokens: int
    max_num_seqs: int
    text_only: bool = False
    tensor_parallel: int = 1
    drafting: bool = False
    """With a drafter."""


def bytes_per_token(widths: LayerWidths, tensor_parallel: int = 1) -> float:
    """Bytes that each batched token takes while the widest layer computes.

    MLP: gate and up, their product, and four vectors of the residual stream. Gated delta net: the projections
    (2 keys + 2 values), the convolution's output, q, k and v laid out, q and k repeated to all value heads, w and u,
    the new values, the output, one state for each chunk of 64 tokens, two vectors of the residual stream.
    Counted from vLLM's layers (qwen3_next, fla/ops).
    """
    hidden = widths.hidden
    mlp = 3 * widths.mlp / tensor_parallel + 4 * hidden
    delta = 0.0
    if widths.values:
        conv = 2 * widths.keys + widths.values
        inner = conv + widths.values + 2 * conv + 2 * widths.values + 2 * widths.values + 2 * widths.values
        delta = (inner + widths.state / CHUNK_TOKENS) / tensor_parallel + 2 * hidden
    attention = (widths.attention + widths.hidden) / tensor_parallel + 4 * hidden
    return ELEMENT_BYTES * max(mlp, delta, attention)


def language_gib(widths: LayerWidths, load: Load) -> float:
    """Activations of one step of all batched tokens, GiB on one card."""
    return load.batched_tokens * bytes_per_token(widths, load.tensor_parallel) / GIB


def sampler_gib(widths: LayerWidths, load: Load) -> float:
    """Logits of all sequences in float32, GiB."""
    copies = DRAFTED_SAMPLER_COPIES if load.drafting else SAMPLER_COPIES
    return copies * 4 * widths.vocab * load.max_num_seqs / GIB


def vision_gib(widths: LayerWidths, load: Load) -> float:
    """The vision encoder at its largest picture, GiB; 0 for text-only servers."""
    share = 1 - VISION_SPLIT_SHARE + VISION_SPLIT_SHARE / load.tensor_parallel
    return 0.0 if load.text_only else VISION_GIB * share * widths.vision_hidden / VISION_HIDDEN


def activations_gib(widths: LayerWidths, load: Load) -> float:
    """Peak activations of the profiling run, GiB on one card: the largest of its parts."""
    return max(language_gib(widths, load), sampler_gib(widths, load), vision_gib(widths, load))


def activations_range_gib(widths: LayerWidths, load: Load) -> tuple[float, float]:
    """Least and most that the peak activations may be, GiB on one card."""
    vision, rest = vision_gib(widths, load), max(language_gib(widths, load), sampler_gib(widths, load))
    low = max(vision * (1 - VISION_ERROR), rest * (1 - LANGUAGE_ERROR))
    return low, max(vision * (1 + VISION_ERROR), rest * (1 + LANGUAGE_ERROR))


@dataclass(frozen=True, slots=True)
class NonTorch:
    """Memory outside PyTorch that servers' profiling runs came to, GiB: context, libraries, compiled kernels."""

    gib: float
    low_gib: float
    high_gib: float
    source: str


_UP_TO_0_17 = NonTorch(1.8, 1.0, 2.2, "a public report on 0.17")
_0_18 = NonTorch(1.9, 0.2, 3.9, "a public report on 0.18 says 3.8; what other cards took is not known")
_RTX50_UP_TO_0_20_1 = NonTorch(
    3.6, 0.1, 3.9,
    "0.18 on an RTX 5090: the model card's two figures less 1.92 activations; a public report says 3.8 and lays it to "
    "tensor memory accelerators of SM 12.x, which a later release leaves alone",
)  # fmt: skip
_LATER = NonTorch(
    0.24, 0.1, 0.6,
    "0.19 (L40S, published) 0.1, 0.20.2 (H200, H100) 0.23, 0.26.0 (H200, H100) 0.24, 0.28 (RTX 3090 and A100, "
    "published) 0.56, 0.33 (H100, published) 0.26",
)  # fmt: skip
TENSOR_PARALLEL_GIB = (0.1, 0.5, 2.3)
"""What communication between cards adds on each: least, middle, most (published: 2.7 in all on three cards)."""
WSL_GIB = 0.16
"""What WSL adds: 0.40 GiB was published for vLLM 0.27.1 on a 12 GB card."""


def non_torch(
    release: tuple[int, int, int], *, tensor_parallel: int = 1, rtx50: bool = False, platform: str = "linux"
) -> NonTorch:
    """What is known of a release's memory outside PyTorch on one card, GiB. `rtx50`: a card of SM 12.x."""
    if release < (0, 18, 0):
        known = _UP_TO_0_17
    elif rtx50 and release < (0, 20, 2):
        known = _RTX50_UP_TO_0_20_1
    else:
        known = _0_18 if release < (0, 19, 0) else _LATER
    least, middle, most = TENSOR_PARALLEL_GIB if tensor_parallel > 1 else (0.0, 0.0, 0.0)
    more = WSL_GIB if platform == "wsl" else 0.0
    return NonTorch(known.gib + middle + more, known.low_gib + least, known.high_gib + most + 2 * more, known.source)


UNSEEN_GRAPHS_ERROR = 2.0
"""Share by which the graphs' estimate may be larger where no server of this kind was seen: 0.78 GiB instead of 0.35
in a published log of an L40S, 1.94 instead of 0.89 in one of a GB10."""
UNKNOWN_REST_GIB = (2.0, 5.6)
"""Least and most of everything beside weights, graphs and KV cache that a server of the seed's model took."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The budget's parts on one card apart from the KV cache, in GiB, as one server showed them."""

    weights_gib: float
    other_gib: float
    """Budget - KV cache - weights - graphs that counted: activations, CUDA context, libraries, workspaces."""
    other_low_gib: float
    other_high_gib: float
    graphs_gib: float
    """The estimate for the graphs that the server captured."""
    graphs_scale: float
    basis: str
    load: Load
    """What the server's profiling run held: another load changes the activations, and the weights where it had another
    part of them (vision, drafter)."""
    weights_error: float = 0.0
    """Share by which the weights may be off; 0 where a server printed them."""
    graphs_error: float = 0.0
    """Share by which the graphs' estimate may be larger where no server of this kind was seen."""


def load_of(settings: Settings, cuda_total_gib: float) -> Load:
    """What the profiling run of these settings holds, vLLM's defaults for this card filled in."""
    return Load(
        batched_tokens=settings.batched_tokens or default_batched_tokens(cuda_total_gib),
        max_num_seqs=settings.max_num_seqs or default_max_num_seqs(cuda_total_gib),
        text_only=settings.text_only,
        tensor_parallel=settings.tensor_parallel,
        drafting=settings.drafter is not None,
    )


def calibrate(
    probe: StartupLog,
    shape: ModelShape,
    layout: KvLayout,
    *,
    cuda_total_gib: float,
    where: str = "the probe",
) -> Calibration:
    """Takes a server's start-up log apart.

    `cuda_total_gib` is the total of the card that the probe ran on. The utilisation is the log's, else its version's
    default. Raises UsageError naming what the log lacks.
    """
    settings = settings_of_log(probe)
    share, default = settings.utilization, ""
    if share is None and probe.vllm_version and settings.kv_cache_bytes is None:
        share, default = default_utilization(probe.vllm_version), ", its default"
    if share is None:
        raise UsageError(f"{where} does not say its --gpu-memory-utilization: it cannot calibrate a plan")
    low, high = _kv_range_gib(probe, layout, shape, where)
    rows = settings.rows_per_sequence
    scale, graphs = 1.0, 0.0
    if settings.capture:
        if probe.graphs_estimated_gib is not None:
            scale = graphs_scale(probe.graphs_estimated_gib, settings.capture, settings.max_num_seqs, rows)
        graphs = graphs_gib(settings.capture, settings.max_num_seqs, scale, rows)
    counted = 0.0 if probe.graphs_estimate_applied is False else graphs
    weights = probe.weights_gib
    if weights is None:  # what the count is off by stands in the rest, with the other sign
        weights, _ = weights_on_card(shape, settings)
    rest = float(share) * cuda_total_gib - weights - counted
    return Calibration(
        weights_gib=weights,
        other_gib=rest - (low + high) / 2,
        other_low_gib=rest - high,
        other_high_gib=rest - low,
        graphs_gib=graphs,
        graphs_scale=scale,
        basis=f"calibrated on {where} (vLLM {probe.vllm_version or 'of unknown version'}, "
        f"utilisation {float(share):g}{default} of {cuda_total_gib:.2f} GiB, KV cache {(low + high) / 2:.2f} GiB)",
        load=load_of(settings, cuda_total_gib),
    )


def weights_on_card(shape: ModelShape, settings: Settings) -> tuple[float, float]:
    """(GiB on one card, share by which that may be off). Tensor parallelism splits every layer, pipelines split the
    layers. Raises UsageError where the size is not known."""
    if shape.weights is None:
        why = shape.weights_unknown or "its config.json does not tell enough"
        raise UsageError(f"{shape.name}: the weights' size is not known: {why}; or give a start-up log with --probe")
    whole = shape.weights.total_gib(text_only=settings.text_only, drafter=settings.mtp)
    return whole / settings.tensor_parallel / settings.pipeline_parallel, shape.weights.error


def _kv_range_gib(probe: StartupLog, layout: KvLayout, shape: ModelShape, where: str) -> tuple[float, float]:
    """The KV memory of a probe: the printed GiB narrowed down by the blocks that the printed tokens imply."""
    ranges = []
    if probe.kv_cache_gib is not None:
        ranges.append((probe.kv_cache_gib - 0.005, probe.kv_cache_gib + 0.005))
        blocks = blocks_range_for_printed_gib(probe.kv_cache_gib, layout)
    else:
        blocks = (0, 1 << 62)
    formula = probe.kv_cache_tokens_formula
    length = probe.max_concurrency_tokens or probe.max_model_len_effective or shape.max_position
    if probe.kv_cache_tokens_logged is not None and formula is not None and length is not None:
        first, last = blocks_from_printed_tokens(probe.kv_cache_tokens_logged, formula, layout, length)
        first, last = max(first, blocks[0]), min(last, blocks[1])
        if first > last:
            raise UsageError(f"{where}: its KV memory and its tokens do not fit this model: check --model-config")
        ranges.append((gib_for_blocks(first, layout), gib_for_blocks(last + 1, layout)))
    if not ranges:
        raise UsageError(f"{where} says nothing about its KV cache: it was cut off too early to calibrate a plan")
    return max(low for low, _ in ranges), min(high for _, high in ranges)


def _seed_log(version: str, tokens: int, utilization: float) -> StartupLog:
    return StartupLog(
        vllm_version=version,
        requested={
            "gpu_memory_utilization": utilization, "max_cudagraph_capture_size": 64, "max_num_seqs": 64
        },
        kv_cache_tokens_logged=tokens,
        graphs_estimate_applied=True,
    )  # fmt: skip


CARD_PROBES: dict[tuple[str, str], tuple[StartupLog, float, str]] = {
    ("rtx-5090", "linux"): (
        _seed_log("0.18.0", 110_880, 0.95), 31.36, "the model card's headless RTX 5090 (110,880 tokens)"
    ),
    ("rtx-5090", "wsl"): (
        _seed_log("0.18.0", 77_088, 0.8), 31.84, "the model card's RTX 5090 under WSL (77,088 tokens)"
    ),
    ("h200", "linux"): (
        StartupLog(
            vllm_version="0.20.2",
            requested={
                "gpu_memory_utilization": 0.21546, "max_cudagraph_capture_size": 64, "max_num_seqs": 64
            },
            weights_gib=10.57, kv_cache_gib=17.29, graphs_estimated_gib=0.11, graphs_estimate_applied=True,
            kv_cache_tokens_logged=562_036, max_concurrency_logged=2.14, max_concurrency_tokens=262_144,
            max_num_batched_tokens=2048,
        ),
        139.80,
        "a recorded H200 with 2,048 batched tokens",
    ),
}  # fmt: skip
"""Servers of the seed's model that were seen: (card, platform) -> (log, CUDA total in GiB, words)."""


def built_in_calibration(
    shape: ModelShape, settings: Settings, card: Card | None, platform: str, version: str, cuda_total_gib: float
) -> Calibration:
    """The calibration where no probe was given.

    For the seed's model on a card that was seen, with the version that was seen, that card's. Otherwise the weights
    are counted, activations come from the model's widths and memory outside PyTorch from what servers of this version
    were seen to take; between versions that were seen on a card, its own figure stays the middle. Raises UsageError
    when the weights' size is not known.
    """
    weights, error = weights_on_card(shape, settings)
    seen = CARD_PROBES.get((card.name if card else "", platform)) if _is_seed(shape) else None
    own = None
    if seen is not None:
        log, total, words = seen
        own = calibrate(log, SEED_SHAPE, kv_layout(SEED_SHAPE), cuda_total_gib=total, where=words)
        if _same_release(log.vllm_version, version):
            return own
    load = load_of(settings, cuda_total_gib)
    middle, low, high, words = _rest_of(shape.widths, load, version, card, platform)
    if own is not None and own.load == load and low <= own.other_gib <= high:
        middle = own.other_gib
    rows = settings.rows_per_sequence
    return Calibration(
        weights_gib=weights,
        other_gib=middle,
        other_low_gib=low,
        other_high_gib=high,
        graphs_gib=graphs_gib(64, 64, rows_per_sequence=rows),
        graphs_scale=_graphs_scale_of(shape),
        basis=f"no probe: {words}; give a start-up log with --probe to narrow it",
        load=load,
        weights_error=error,
        graphs_error=0.0 if _is_seed(shape) and release_of(version) >= (0, 20, 0) else UNSEEN_GRAPHS_ERROR,
    )


def _is_seed(shape: ModelShape) -> bool:
    return shape.name.rstrip("/").split("/")[-1].lower() == SEED_MODEL.split("/")[-1].lower()


def _rest_of(
    widths: LayerWidths | None, load: Load, version: str, card: Card | None, platform: str
) -> tuple[float, float, float, str]:
    """Middle, least and most of what a server takes beside weights, graphs and KV cache, with its ground."""
    rtx50 = card is not None and card.capability.startswith("12.")
    outside = non_torch(release_of(version), tensor_parallel=load.tensor_parallel, rtx50=rtx50, platform=platform)
    if widths is None:
        low, high = UNKNOWN_REST_GIB
        return (low + high) / 2, low, high, f"everything else taken as {low:g} to {high:g} GiB, as servers were seen"
    middle = activations_gib(widths, load)
    least, most = activations_range_gib(widths, load)
    words = (
        f"peak activations counted as {middle:.2f} GiB ({least:.2f} to {most:.2f}) and memory outside PyTorch taken as "
        f"{outside.gib:.2f} GiB ({outside.low_gib:.2f} to {outside.high_gib:.2f}: {outside.source})"
    )
    return outside.gib + middle, outside.low_gib + least, outside.high_gib + most, words


def _graphs_scale_of(shape: ModelShape) -> float:
    """Graphs of a model with more and wider layers than the seed's are larger in proportion, as far as known."""
    widths, seed = shape.widths, SEED_SHAPE.widths
    return 1.0 if widths is None or seed is None else shape.layers * widths.hidden / (SEED_SHAPE.layers * seed.hidden)


def _same_release(seen: str | None, asked: str) -> bool:
    return (seen or "").split(".")[:2] == asked.lstrip("v").split(".")[:2]

"""What a server takes beside weights, graphs and KV cache: peak activations and memory outside PyTorch.

vLLM runs one step of max-num-batched-tokens, one picture of the largest size (unless text-only) and the sampler at
max-num-seqs, and takes off the budget what the largest of them needed (gpu_worker.determine_available_memory).
"""

from __future__ import annotations

from dataclasses import dataclass

from qwenbench.capacity.model_shape import LayerWidths

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
    """What the profiling run is asked to hold."""

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

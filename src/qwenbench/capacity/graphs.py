"""CUDA graphs by capture size: which sizes vLLM captures, what its profiler reckons for them, and what a larger capture
gives prompts that fit under it.

The profiler (0.20 to 0.33, gpu_model_runner.profile_cudagraph_memory) captures the two largest graphs of each kind.
Its estimate is the larger of the first captures, whose buffers grow with the captured tokens, and as many equal shares
as there are further graphs:

    estimate = shared + tokens x largest + piecewise x (PIECEWISE graphs - 1) + full x (FULL graphs - 1)

The four constants are fitted to eight recorded servers of the seed's model (capture 16 to 1,024: 0.08, 0.09, 0.11,
0.33 and 0.54 GiB), each met within the two decimals that vLLM prints.
"""

from __future__ import annotations

from dataclasses import dataclass

SHARED_GIB = 0.06
PER_TOKEN_GIB = 0.00025
"""Each token of the largest graph: its activations, kept in the graphs' pool."""
PIECEWISE_GIB = 0.0027
FULL_GIB = 0.0007


def capture_sizes(largest: int, rows_per_sequence: int = 1) -> tuple[int, ...]:
    """Batch sizes in tokens that --max-cudagraph-capture-size makes vLLM capture, in ascending order.

    1, 2, 4, 8 to 256 by 8, then by 16 (config/vllm.py); with a drafter rounded up to whole sequences of
    `rows_per_sequence` = 1 + drafted tokens (adjust_cudagraph_sizes_for_spec_decode).
    """
    sizes = {1, 2, 4, *range(8, 257, 8), *range(272, largest + 1, 16)}
    rounded = {-(-size // rows_per_sequence) * rows_per_sequence for size in sizes if size <= largest}
    return tuple(sorted(size for size in rounded if size <= largest))


def graph_counts(capture: int, max_num_seqs: int | None, rows_per_sequence: int = 1) -> tuple[int, int]:
    """PIECEWISE and FULL graphs; FULL decode graphs go no further than max-num-seqs sequences."""
    sizes = capture_sizes(capture, rows_per_sequence)
    most = None if max_num_seqs is None else max_num_seqs * rows_per_sequence
    return len(sizes), sum(1 for size in sizes if most is None or size <= most)


def graphs_gib(capture: int, max_num_seqs: int | None, scale: float = 1.0, rows_per_sequence: int = 1) -> float:
    """What vLLM's profiler would reckon for this capture size, GiB; `scale` fits it to another model."""
    piecewise, full = graph_counts(capture, max_num_seqs, rows_per_sequence)
    if not piecewise:
        return 0.0
    largest = capture_sizes(capture, rows_per_sequence)[-1]
    further = PIECEWISE_GIB * (piecewise - 1) + FULL_GIB * max(0, full - 1)
    return scale * (SHARED_GIB + PER_TOKEN_GIB * largest + further)


def graphs_scale(estimated_gib: float, capture: int, max_num_seqs: int | None, rows_per_sequence: int = 1) -> float:
    """The scale that makes `graphs_gib` give a probe's estimate.

    An estimate is printed with two decimals: where the model meets it within them, the scale is 1.
    """
    expected = graphs_gib(capture, max_num_seqs, rows_per_sequence=rows_per_sequence)
    if not expected or abs(expected - estimated_gib) <= 0.005:
        return 1.0
    return max(0.0, estimated_gib) / expected


def sequences_captured(capture: int, rows_per_sequence: int = 1) -> int:
    """Sequences whose decode step the graphs cover: with a drafter a step takes 1 + drafted rows of each.

    Recorded on vLLM 0.26.0 with MTP of 3 tokens: graphs of capture 64 held 16 sequences; 64 sequences ran outside.
    """
    sizes = capture_sizes(capture, rows_per_sequence)
    return sizes[-1] // rows_per_sequence if sizes else 0


@dataclass(frozen=True, slots=True)
class CaptureGain:
    """What a capture above the prompts' length gave on two machines, ranges of what was seen."""

    saved: tuple[float, float]
    """Share of TTFT that it saves, means of launches."""
    faster: tuple[float, float]
    """Share of tokens/s that it adds at 64 and at 16 streams, means of launches."""
    source: str


CAPTURE_GAIN = CaptureGain(
    (0.12, 0.35),
    (0.11, 0.39),
    "vLLM 0.26.0, Qwen3.5-9B-NVFP4, prompts of 98 to 804 tokens; capture 1,024 against 64 on one machine with an H100, "
    "512 against 64 on another: docs/gpu.md",
)
MEASURED_CAPTURES = (512, 1_024)
"""The larger captures that it was measured with."""
GAIN_UP_TO_TOKENS = 1_024
"""Prompts of 1,616 tokens gained nothing under any capture measured: by then a step is the GPU's."""


def capture_gain(prompt_tokens: int, capture: int) -> CaptureGain | None:
    """What prompts of this length gain from being inside the graphs; None where none was seen.

    A step with a prefill costs the host some 70 to 95 ms of launches whatever the prompt's length; graphs instead
    cost less. Two machines of one kind of card: the ranges are what was seen, no more.
    """
    return CAPTURE_GAIN if prompt_tokens <= min(capture, GAIN_UP_TO_TOKENS) else None


def capture_gain_words(price_gib: float) -> str:
    """The gain with its ranges, its price in KV cache and what is not known, for a line of plan or answer."""
    (least, most), (slower, faster) = CAPTURE_GAIN.saved, CAPTURE_GAIN.faster
    return (
        f"on H100s {least:.0%} to {most:.0%} off TTFT at one stream, {slower:.0%} to {faster:.0%} more tokens/s at 16 "
        f"and 64 streams, for {price_gib:.2f} GiB of KV cache; on another card or host anything from nothing to that"
    )

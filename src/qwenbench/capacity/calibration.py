"""What a server that was seen tells about one that was not: the calibration of a memory prediction."""

from __future__ import annotations

from dataclasses import dataclass

from qwenbench.capacity.graphs import graphs_gib, graphs_scale
from qwenbench.capacity.kv import (
    KvLayout,
    blocks_from_printed_tokens,
    blocks_range_for_printed_gib,
    gib_for_blocks,
    kv_layout,
)
from qwenbench.capacity.model_shape import SEED_MODEL, SEED_SHAPE, ModelShape
from qwenbench.engine.startup_log import StartupLog
from qwenbench.errors import UsageError


@dataclass(frozen=True, slots=True)
class Calibration:
    """The budget's parts apart from the KV cache, in GiB, as one server showed them."""

    weights_gib: float
    other_gib: float
    """Budget - KV cache - weights - graphs that counted: activations, CUDA context, libraries, workspaces."""
    other_low_gib: float
    other_high_gib: float
    graphs_gib: float
    """The estimate for the graphs that the server captured."""
    graphs_scale: float
    basis: str
    weights_known: bool = True
    """False: the weights were counted from config.json, not printed by a server."""
    graphs_error: float = 0.0
    """Share by which the graphs' estimate may be larger where no server of this kind was seen."""


def calibrate(
    probe: StartupLog,
    shape: ModelShape,
    layout: KvLayout,
    *,
    cuda_total_gib: float,
    utilization: float | None = None,
    where: str = "the probe",
) -> Calibration:
    """Takes a server's start-up log apart.

    `cuda_total_gib` is the total of the card that the probe ran on; `utilization` is needed where the log does
    not repeat it. Raises UsageError naming what the log lacks.
    """
    share = utilization if utilization is not None else probe.requested.get("gpu_memory_utilization")
    if share is None:
        raise UsageError(f"{where} does not say its --gpu-memory-utilization: it cannot calibrate a plan")
    low, high = _kv_range_gib(probe, layout, shape, where)
    capture = probe.capture_effective or probe.requested.get("max_cudagraph_capture_size")
    seqs = probe.requested.get("max_num_seqs")
    scale, graphs = 1.0, 0.0
    if capture:
        if probe.graphs_estimated_gib is not None:
            scale = graphs_scale(probe.graphs_estimated_gib, int(capture), seqs)
        graphs = graphs_gib(int(capture), seqs, scale)
    counted = 0.0 if probe.graphs_estimate_applied is False else graphs
    weights = probe.weights_gib if probe.weights_gib is not None else shape.weights_gib
    if weights is None:
        raise UsageError(f"{where} does not say the weights' size, and it cannot be counted from config.json")
    rest = float(share) * cuda_total_gib - weights - counted
    return Calibration(
        weights_gib=weights,
        other_gib=rest - (low + high) / 2,
        other_low_gib=rest - high,
        other_high_gib=rest - low,
        graphs_gib=graphs,
        graphs_scale=scale,
        basis=f"calibrated on {where} (vLLM {probe.vllm_version or 'of unknown version'}, "
        f"utilisation {float(share):g} of {cuda_total_gib:.2f} GiB, KV cache {(low + high) / 2:.2f} GiB)",
    )


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
        ),
        139.80,
        "a recorded H200 with 2,048 batched tokens",
    ),
}  # fmt: skip
"""Servers of the seed's model that were seen: (card, platform) -> (log, CUDA total in GiB, words)."""


PUBLIC_REST_GIB = 2.03
"""0.9 x 44.40 - 17.66 weights - 20.27 KV cache: a published log of vLLM 0.19.0, Qwen3.5-9B in BF16, on an L40S."""
UNSEEN_GRAPHS_ERROR = 2.0
"""That log's estimate for 51 + 35 graphs was 0.78 GiB, 2.9 times what the recorded servers' constants give."""


def built_in_calibration(shape: ModelShape, card: str | None, platform: str, version: str) -> Calibration:
    """The calibration where no probe was given.

    For the seed's model on a card that was seen, with the version that was seen, that card's; otherwise the
    range of all that were seen, which is wide. Raises UsageError when the weights' size is not known.
    """
    seed = shape.name == SEED_MODEL
    weights = SEED_SHAPE.weights_gib if seed else shape.weights_gib
    if weights is None:
        raise UsageError(
            f"{shape.name}: the weights' size cannot be counted from its config.json: give a start-up log with --probe"
        )
    seen = {
        key: calibrate(log, SEED_SHAPE, kv_layout(SEED_SHAPE), cuda_total_gib=total, where=words)
        for key, (log, total, words) in CARD_PROBES.items()
    }
    own = seen.get((card or "", platform))
    if seed and own is not None and _same_release(CARD_PROBES[(card or "", platform)][0].vllm_version, version):
        return own
    lowest = min(PUBLIC_REST_GIB, *(entry.other_low_gib for entry in seen.values()))
    highest = max(entry.other_high_gib for entry in seen.values())
    middle = own.other_gib if seed and own is not None else (lowest + highest) / 2
    return Calibration(
        weights_gib=weights,
        other_gib=middle,
        other_low_gib=lowest,
        other_high_gib=highest,
        graphs_gib=graphs_gib(64, 64),
        graphs_scale=1.0,
        basis=f"no probe: activations, context and libraries taken as {lowest:.1f} to {highest:.1f} GiB, the range of "
        f"the {len(seen) + 1} servers known of this architecture; give a start-up log with --probe to narrow it",
        weights_known=seed,
        graphs_error=UNSEEN_GRAPHS_ERROR,
    )


def _same_release(seen: str | None, asked: str) -> bool:
    return (seen or "").split(".")[:2] == asked.lstrip("v").split(".")[:2]

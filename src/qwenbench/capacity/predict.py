"""What a configuration will hold, predicted before any launch.

KV cache = utilisation x CUDA's total - weights - graphs (where vLLM's profiler counts them) - the rest, where the
rest (activations, CUDA context, libraries) is what a probe showed. docs/memory.md says how far that holds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from qwenbench.capacity.calibration import Calibration
from qwenbench.capacity.graphs import graphs_gib
from qwenbench.capacity.kv import KvLayout, blocks_for_gib, kv_cache_tokens, printed_tokens, requests_that_fit
from qwenbench.capacity.model_shape import ModelShape
from qwenbench.capacity.weights import UNCERTAINTY
from qwenbench.errors import UsageError

ROUNDING_GIB = 0.005
"""vLLM prints GiB with two decimals."""
OTHER_MACHINE_GIB = 0.25
"""What context and libraries may differ by between two machines (0.19 GiB between the seed's two)."""
GRAPHS_SHARE = 0.5
"""Share of a change of the graphs' estimate that an extrapolation may be off by."""
MORE_SEQS_GIB = 0.02
"""Activations that more sequences may add (none was seen from 64 to 256)."""
SEEN_BATCHED_TOKENS = 2048
"""--max-num-batched-tokens of the servers that the built-in calibration comes from."""
UNSEEN_TOKENS_GIB = 0.15 / 2048
"""What each batched token more or less than the probe's may change in activations: one MLP layer of the seed's model
(2 x 12,288 + 3 x 4,096 elements of 2 bytes)."""
STARTUP_RESERVE_GIB = {"linux": 0.35, "wsl": 1.31}
"""Memory of a card that is taken before vLLM asks how much is free: CUDA context, under WSL the desktop's share."""
LOAD_MIB_PER_SEQUENCE = 28.0
"""VRAM beyond the budget under load, per running sequence, while decode stays inside the graphs: the largest that
was recorded (67 and 331 MiB at 16 and 32 streams, 427 to 1,774 MiB at 64)."""


@dataclass(frozen=True, slots=True)
class PlanTarget:
    """The configuration that is asked about."""

    cuda_total_gib: float
    utilization: float
    capture: int
    """--max-cudagraph-capture-size; 0 for eager mode."""
    max_num_seqs: int
    version: str
    platform: str = "linux"
    nvml_mib: int | None = None
    max_model_len: int | None = None
    """Asked for; None leaves it to vLLM (`auto`)."""
    request_tokens: int | None = None
    """Prompt and output of one request, for requests_that_fit."""
    estimate_graphs: bool = True
    """VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS, the default from 0.20 on and set in the seed's deployments."""
    same_machine: bool = True
    """Whether the calibration comes from the same card and platform."""
    unseen_batched_tokens: int = 0
    """By how many --max-num-batched-tokens differ from the calibration's."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Exactly plan's keys. Sizes in GiB; None is not known or does not exist."""

    weights_gib: float | None
    graphs_gib: float | None
    kv_cache_gib: float | None
    kv_cache_gib_low: float | None
    kv_cache_gib_high: float | None
    kv_cache_blocks: int | None
    kv_cache_tokens: int | None
    kv_cache_tokens_printed: int | None
    requests_that_fit: int | None
    risk: str
    """`none`, `startup` (may not start) or `load` (VRAM may run out under load)."""
    basis: str

    def to_json(self) -> dict[str, Any]:
        """What `plan --json` prints."""
        return asdict(self)


def predict(target: PlanTarget, shape: ModelShape, layout: KvLayout, calibration: Calibration) -> Prediction:
    """Predicts the memory of a configuration. Raises UsageError for a target that makes no sense."""
    _check(target)
    budget = target.utilization * target.cuda_total_gib
    graphs = graphs_gib(target.capture, target.max_num_seqs, calibration.graphs_scale)
    counted = graphs if target.estimate_graphs else 0.0
    spread = _spread(target, calibration, graphs if target.estimate_graphs else calibration.graphs_gib)
    fixed = budget - calibration.weights_gib - counted
    kv = fixed - calibration.other_gib
    low = fixed - calibration.other_high_gib - spread
    high = fixed - calibration.other_low_gib + spread
    arithmetic = (
        f"{target.utilization:g} x {target.cuda_total_gib:.2f} = {budget:.2f} GiB budget - "
        f"{calibration.weights_gib:.2f} weights - {counted:.2f} graphs - {calibration.other_gib:.2f} rest "
        f"= {kv:.2f} GiB"
    )
    if high <= 0:
        basis = f"nothing is left for a KV cache: {arithmetic}; {calibration.basis}"
        return Prediction(
            round(calibration.weights_gib, 2),
            round(graphs, 3),
            None,
            None,
            None,
            None,
            None,
            None,
            None,
            "startup",
            basis,
        )
    if kv <= 0:
        basis = f"most likely nothing is left for a KV cache: {arithmetic}; {calibration.basis}"
        return Prediction(
            round(calibration.weights_gib, 2), round(graphs, 3), None, 0.0, round(high, 3), None, None, None, None,
            "startup", basis,
        )  # fmt: skip
    blocks = blocks_for_gib(kv, layout)
    length = target.max_model_len or shape.max_position
    tokens = kv_cache_tokens(blocks, layout, length)
    risk, reason = _risk(target, budget, kv, low, layout, shape)
    fit = requests_that_fit(blocks, layout, target.request_tokens) if target.request_tokens else None
    return Prediction(
        weights_gib=round(calibration.weights_gib, 2),
        graphs_gib=round(graphs, 3),
        kv_cache_gib=round(kv, 3),
        kv_cache_gib_low=round(max(0.0, low), 3),
        kv_cache_gib_high=round(high, 3),
        kv_cache_blocks=blocks,
        kv_cache_tokens=tokens,
        kv_cache_tokens_printed=printed_tokens(target.version, blocks, layout, tokens) if tokens else None,
        requests_that_fit=fit,
        risk=risk,
        basis="; ".join(part for part in (arithmetic, calibration.basis, _elsewhere(target), reason) if part),
    )


def _check(target: PlanTarget) -> None:
    if not 0 < target.utilization <= 1:
        raise UsageError(f"--gpu-memory-utilization {target.utilization:g} is no share of a card: give 0 < U <= 1")
    if target.cuda_total_gib <= 0:
        raise UsageError(f"a card of {target.cuda_total_gib:g} GiB does not exist: give its CUDA total with --vram-mib")
    if target.max_num_seqs < 1 or target.capture < 0:
        raise UsageError("--max-num-seqs must be at least 1 and --capture at least 0")


def _spread(target: PlanTarget, calibration: Calibration, graphs: float) -> float:
    """Half the interval that comes on top of the calibration's own, GiB."""
    spread = ROUNDING_GIB + GRAPHS_SHARE * abs(graphs - calibration.graphs_gib) + MORE_SEQS_GIB
    spread += UNSEEN_TOKENS_GIB * target.unseen_batched_tokens
    if not target.same_machine:
        spread += OTHER_MACHINE_GIB
    spread += calibration.graphs_error * graphs
    if not calibration.weights_known:
        spread += UNCERTAINTY * calibration.weights_gib
    return spread


def _elsewhere(target: PlanTarget) -> str:
    if target.same_machine:
        tokens = target.unseen_batched_tokens
        return f"{tokens:,} batched tokens more or less than calibrated widen the interval" if tokens else ""
    return f"another machine than the probe's: +-{OTHER_MACHINE_GIB:g} GiB for its CUDA context, libraries and kernels"


def _risk(
    target: PlanTarget, budget: float, kv: float, low: float, layout: KvLayout, shape: ModelShape
) -> tuple[str, str]:
    """The risk and its arithmetic in words."""
    free = target.cuda_total_gib - STARTUP_RESERVE_GIB[target.platform]
    if budget > free:
        return "startup", (
            f"risk: vLLM refuses a budget of {budget:.2f} GiB where about {free:.2f} of "
            f"{target.cuda_total_gib:.2f} GiB are free"
        )
    least = layout.blocks_per_request(target.max_model_len or 1) + 1
    if blocks_for_gib(max(0.0, low), layout) < least:
        return "startup", f"risk: at the low end {low:.2f} GiB hold fewer than the {least} blocks of one request"
    if target.max_num_seqs > target.capture:
        return "load", (
            f"risk: batches above the captured {target.capture} (up to {target.max_num_seqs}) run outside the graphs; "
            "a recorded server then held 1.8 GiB (128 streams) to 19.5 GiB (256 streams) more than its budget"
        )
    total_mib = target.nvml_mib or target.cuda_total_gib * 1024
    needed = budget * 1024 + LOAD_MIB_PER_SEQUENCE * target.max_num_seqs
    if needed > total_mib:
        return "load", (
            f"risk: budget {budget * 1024:.0f} MiB + {LOAD_MIB_PER_SEQUENCE:g} MiB x {target.max_num_seqs} sequences = "
            f"{needed:.0f} MiB of {total_mib:.0f} MiB"
        )
    return "none", ""

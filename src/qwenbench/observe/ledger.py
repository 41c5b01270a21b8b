"""The memory ledger of one server configuration: memory.json and `qwenbench ledger --json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qwenbench.capacity.kv import (
    KvLayout,
    blocks_from_printed_tokens,
    blocks_range_for_printed_gib,
    kv_cache_tokens,
)
from qwenbench.engine.startup_log import StartupLog
from qwenbench.errors import UsageError

MIB_PER_GIB = 1024


@dataclass(frozen=True, slots=True)
class MemoryLedger:
    """Exactly the keys of memory.json. Sizes in GiB or MiB as named, times in seconds; None is not known."""

    vllm_version: str | None = None
    budget_gib: float | None = None
    """--gpu-memory-utilization x CUDA's total."""
    weights_gib: float | None = None
    activations_gib: float | None = None
    graphs_estimated_gib: float | None = None
    graphs_actual_gib: float | None = None
    kv_cache_gib: float | None = None
    """As printed: rounded, and before --num-gpu-blocks-override."""
    rest_gib: float | None = None
    """Budget minus every part above that counts against it: CUDA context, libraries and, where vLLM prints
    no activations, those. Negative when the parts exceed the budget."""
    kv_cache_blocks: int | None = None
    attention_block_tokens: int | None = None
    kv_cache_tokens: int | None = None
    """Longest single request, this project's definition (docs/memory.md)."""
    kv_cache_tokens_logged: int | None = None
    kv_cache_tokens_formula: str | None = None
    max_concurrency_logged: float | None = None
    capture_effective: int | None = None
    capture_effective_full: int | None = None
    max_model_len_effective: int | None = None
    attention_backend: str | None = None
    quantization_backend: str | None = None
    compile_s: float | None = None
    profile_s: float | None = None
    capture_s: float | None = None
    init_s: float | None = None
    vram_before_mib: float | None = None
    vram_ready_mib: float | None = None
    vram_peak_mib: float | None = None
    vram_after_mib: float | None = None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The object that memory.json holds."""
        return {**asdict(self), "warnings": list(self.warnings)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MemoryLedger:
        """Reads a memory.json; keys of other versions are left out."""
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        return cls(**{**known, "warnings": tuple(data.get("warnings") or ())})

    @property
    def parts_gib(self) -> float | None:
        """Weights + captured graphs + KV cache, GiB: what vLLM says that it holds when it is ready.

        Activations are not held then; what PyTorch keeps of them shows in `nvml_minus_parts_mib`.
        """
        if self.weights_gib is None or self.kv_cache_gib is None:
            return None
        return self.weights_gib + (self.graphs_actual_gib or 0.0) + self.kv_cache_gib

    @property
    def nvml_minus_parts_mib(self) -> float | None:
        """What the server added on the card until it was ready (NVML) beyond its parts, MiB."""
        if self.vram_ready_mib is None or self.parts_gib is None:
            return None
        return self.vram_ready_mib - (self.vram_before_mib or 0.0) - self.parts_gib * MIB_PER_GIB

    @property
    def vram_over_budget_mib(self) -> float | None:
        """NVML peak minus the budget, MiB. A risk, no proof of an out-of-memory error: PyTorch's allocator
        can give cached memory back."""
        if self.vram_peak_mib is None or self.budget_gib is None:
            return None
        return self.vram_peak_mib - self.budget_gib * MIB_PER_GIB


def build_ledger(
    startup: StartupLog,
    *,
    vram_before_mib: float | None = None,
    vram_ready_mib: float | None = None,
    vram_peak_mib: float | None = None,
    vram_after_mib: float | None = None,
    cache_config: Mapping[str, str] | None = None,
    layout: KvLayout | None = None,
    cuda_total_gib: float | None = None,
    utilization: float | None = None,
) -> MemoryLedger:
    """Joins a start-up log with NVML's figures and the labels of `vllm:cache_config_info`.

    `layout` (capacity.kv_layout) makes blocks from printed tokens and gives kv_cache_tokens. `utilization` and
    `cuda_total_gib` make the budget; unset they come from the log, where it has them.
    """
    labels = {key: value for key, value in (cache_config or {}).items() if value not in ("None", "")}
    blocks = _blocks(startup, labels, layout)
    budget = _budget(startup, labels, cuda_total_gib, utilization)
    tokens = None
    if layout is not None and blocks is not None and startup.max_model_len_effective is not None:
        tokens = kv_cache_tokens(blocks, layout, startup.max_model_len_effective)
    return MemoryLedger(
        vllm_version=startup.vllm_version,
        budget_gib=budget,
        weights_gib=startup.weights_gib,
        activations_gib=startup.activations_gib,
        graphs_estimated_gib=startup.graphs_estimated_gib,
        graphs_actual_gib=startup.graphs_actual_gib,
        kv_cache_gib=startup.kv_cache_gib,
        rest_gib=_rest(startup, budget),
        kv_cache_blocks=blocks,
        attention_block_tokens=_block_tokens(startup, labels),
        kv_cache_tokens=tokens,
        kv_cache_tokens_logged=startup.kv_cache_tokens_logged,
        kv_cache_tokens_formula=startup.kv_cache_tokens_formula,
        max_concurrency_logged=startup.max_concurrency_logged,
        capture_effective=startup.capture_effective,
        capture_effective_full=startup.capture_effective_full,
        max_model_len_effective=startup.max_model_len_effective,
        attention_backend=startup.attention_backend,
        quantization_backend=startup.quantization_backend,
        compile_s=startup.compile_s,
        profile_s=startup.profile_s,
        capture_s=startup.capture_s,
        init_s=startup.init_s,
        vram_before_mib=vram_before_mib,
        vram_ready_mib=vram_ready_mib,
        vram_peak_mib=vram_peak_mib,
        vram_after_mib=vram_after_mib,
        warnings=startup.warnings,
    )


def _blocks(startup: StartupLog, labels: Mapping[str, str], layout: KvLayout | None) -> int | None:
    """From /metrics, else from the log, else from the printed tokens where only one number fits."""
    label = _int(labels.get("num_gpu_blocks"))
    if label is not None:
        return label
    if startup.kv_cache_blocks is not None:
        return startup.kv_cache_blocks
    formula = startup.kv_cache_tokens_formula
    length = startup.max_concurrency_tokens or startup.max_model_len_effective
    if layout is None or startup.kv_cache_tokens_logged is None or formula is None or length is None:
        return None
    try:
        low, high = blocks_from_printed_tokens(startup.kv_cache_tokens_logged, formula, layout, length)
    except UsageError:
        return None
    if startup.kv_cache_gib is not None:
        fewest, most = blocks_range_for_printed_gib(startup.kv_cache_gib, layout)
        low, high = max(low, fewest), min(high, most)
    return low if low == high else None


def _block_tokens(startup: StartupLog, labels: Mapping[str, str]) -> int | None:
    """The log's figure first: before `effective_attention_block_size` came, the label was wrong for hybrids,
    but every hybrid logs its block size."""
    if startup.attention_block_tokens is not None:
        return startup.attention_block_tokens
    return _int(labels.get("effective_attention_block_size")) or _int(labels.get("block_size"))


def _budget(
    startup: StartupLog,
    labels: Mapping[str, str],
    cuda_total_gib: float | None,
    utilization: float | None,
) -> float | None:
    total = cuda_total_gib if cuda_total_gib is not None else startup.cuda_total_gib
    share = utilization
    if share is None:
        asked = startup.requested.get("gpu_memory_utilization", labels.get("gpu_memory_utilization"))
        try:
            share = float(asked) if asked is not None else None
        except (TypeError, ValueError):
            share = None
    if total is None or share is None:
        return startup.budget_gib
    return round(total * share, 4)


def _rest(startup: StartupLog, budget: float | None) -> float | None:
    """Needs to know whether the graphs' estimate counted; without a printed estimate it is part of the rest."""
    if budget is None or startup.weights_gib is None or startup.kv_cache_gib is None:
        return None
    graphs = startup.graphs_estimated_gib
    if startup.activations_gib is not None:
        graphs = 0.0  # vLLM's printed activations hold the estimate that it applied
    elif graphs is not None:
        if startup.graphs_estimate_applied is None:
            return None
        if not startup.graphs_estimate_applied:
            graphs = 0.0
    parts = startup.weights_gib + (startup.activations_gib or 0.0) + (graphs or 0.0) + startup.kv_cache_gib
    return round(budget - parts, 4)


def _int(text: str | None) -> int | None:
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None

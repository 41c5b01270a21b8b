"""What a vLLM start-up log says about memory, as a value: vLLM 0.18 to 0.33."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """What one worker process printed, in GiB; None where it printed nothing."""

    name: str
    """Process name of the line's prefix (`Worker_TP0`), with pid and address where several share it; empty for
    lines without one."""
    weights_gib: float | None = None
    activations_gib: float | None = None
    """Peak activations as printed: from 0.28 on with the graphs' estimate in it."""
    non_torch_gib: float | None = None
    consumed_gib: float | None = None
    """Weights and non-torch memory in one figure, as 0.27 and later print it."""
    graphs_estimated_gib: float | None = None
    graphs_actual_gib: float | None = None
    kv_cache_gib: float | None = None
    """Negative where weights and activations alone exceed the budget."""


@dataclass(frozen=True, slots=True)
class StartupLog:
    """A start-up log's figures, as printed. Sizes in GiB, times in seconds, lengths in tokens."""

    vllm_version: str | None = None
    requested: Mapping[str, Any] = field(default_factory=dict)
    """`non-default args` as vLLM repeats them (underscores; `max_model_len` -1 is `auto`)."""
    model: str | None = None
    """The model's name or folder, as the engine says it."""
    workers: tuple[WorkerMemory, ...] = ()
    weights_gib: float | None = None
    activations_gib: float | None = None
    non_torch_gib: float | None = None
    consumed_gib: float | None = None
    graphs_estimated_gib: float | None = None
    graphs_estimate_applied: bool | None = None
    """Whether the estimate was taken off the KV cache (VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS)."""
    graphs_actual_gib: float | None = None
    kv_cache_gib: float | None = None
    """Of the tightest worker; negative where nothing is left for a cache."""
    kv_cache_blocks_profiled: int | None = None
    """Blocks that the memory held before --num-gpu-blocks-override replaced them."""
    kv_cache_blocks: int | None = None
    """Blocks, where the log says them (--num-gpu-blocks-override, and versions up to 0.11); otherwise /metrics does."""
    attention_block_tokens: int | None = None
    kv_cache_tokens_logged: int | None = None
    max_concurrency_logged: float | None = None
    max_concurrency_tokens: int | None = None
    """The request length that the concurrency is for."""
    capture_sizes: tuple[int, ...] = ()
    capture_effective: int | None = None
    """Largest PIECEWISE graph, in tokens; 0 when graphs are switched off on a GPU."""
    capture_effective_full: int | None = None
    """Largest FULL graph, in tokens; 0 when graphs are switched off on a GPU."""
    max_model_len_effective: int | None = None
    max_num_batched_tokens: int | None = None
    """The step budget in tokens, as asked for or as the engine says it."""
    enable_prefix_caching: bool | None = None
    mamba_cache_mode: str | None = None
    kv_cache_dtype: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    device: str | None = None
    """`cuda`, `cpu`, ..."""
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    speculative_method: str | None = None
    speculative_tokens: int | None = None
    """Drafted tokens a step; None without a drafter."""
    vision_profiled: bool | None = None
    """Whether the profiling run held a picture; False for text-only servers."""
    eager: bool | None = None
    async_scheduling: bool | None = None
    sampler: str | None = None
    """Top-k and top-p: `flashinfer`, `off: why` or `unavailable: why`."""
    graph_steps: Mapping[tuple[int, str], int] = field(default_factory=dict)
    """(tokens, NONE, PIECEWISE or FULL) -> steps so far, where the server runs with --cudagraph-metrics."""
    jit_kernels: Mapping[str, int] = field(default_factory=dict)
    """Kernels that were compiled during inference, each a stall, with how often."""
    other_speed_settings: Mapping[str, str] = field(default_factory=dict)
    """What vLLM warns about performance: name -> what it says (engine/speed_settings.py)."""
    attention_backend: str | None = None
    quantization_backend: str | None = None
    compile_s: float | None = None
    profile_s: float | None = None
    capture_s: float | None = None
    load_s: float | None = None
    setup_s: float | None = None
    """First line to the beginning of the load: imports, configuration (whole seconds, the log's clock)."""
    total_s: float | None = None
    """First line to readiness (whole seconds)."""
    init_s: float | None = None
    compiled_from_cache: bool | None = None
    """True: all compiled code came from the cache. None: nothing was compiled, or the log does not tell."""
    cuda_total_gib: float | None = None
    budget_gib: float | None = None
    """The memory that --gpu-memory-utilization stands for, where the log prints it."""
    ready: bool = False
    died: bool = False
    """The engine died: at its start, or later without having been told to stop."""
    kv_to_ready_s: float | None = None
    """Seconds from the KV cache's allocation to readiness, from the log's clock (whole seconds)."""
    warnings: tuple[str, ...] = ()
    """Warnings that change what the configuration means (capped captures, ignored flags), deduplicated."""

    @property
    def recognised(self) -> bool:
        """Whether anything in the text was a vLLM start-up line."""
        return self.vllm_version is not None or bool(self.workers) or self.kv_cache_tokens_logged is not None

    @property
    def kv_cache_tokens_formula(self) -> str | None:
        """How the printed token count came about: `blocks_per_group` or `max_concurrency`.

        Up to 0.20.0 vLLM prints blocks // groups x block tokens, then int(max_concurrency x max_model_len); builds
        between releases carry any number. So the printed numbers decide, and the version only where both formulas
        give what was printed (a model of one group), or where they are incomplete. None when neither tells.
        """
        if self.kv_cache_tokens_logged is None:
            return None
        by_version = tokens_formula(self.vllm_version)
        if self.max_concurrency_logged is None or not self.max_concurrency_tokens:
            return by_version
        ratio = self.kv_cache_tokens_logged / self.max_concurrency_tokens
        # The concurrency is printed with two decimals.
        if abs(ratio - self.max_concurrency_logged) > 0.0051:
            return "blocks_per_group"
        return by_version or "max_concurrency"

    @property
    def activations_hold_graphs(self) -> bool:
        """Whether the printed peak activations hold the graphs' estimate: so from 0.27 on and in 0.20, not in 0.26.

        Where the parts are all printed, what they leave of the budget decides: the estimate, or nothing.
        """
        estimate, kv_cache = self.graphs_estimated_gib, self.kv_cache_gib
        if self.activations_gib is None or not estimate or not self.graphs_estimate_applied:
            return False
        fixed = self.consumed_gib
        if fixed is None and self.weights_gib is not None and self.non_torch_gib is not None:
            fixed = self.weights_gib + self.non_torch_gib
        if self.budget_gib is None or fixed is None or kv_cache is None or len(self.workers) > 1:
            return self.non_torch_gib is None
        left = self.budget_gib - fixed - self.activations_gib - kv_cache
        return abs(left) < abs(left - estimate)

    @property
    def compile_cache(self) -> str | None:
        """`cold` where code was compiled, `warm` where all of it came from the cache; None where nothing tells."""
        return {True: "warm", False: "cold", None: None}[self.compiled_from_cache]

    @property
    def other_s(self) -> float | None:
        """What the told phases leave of the total: KV cache, graph profiling, warm-ups, the API server."""
        if self.total_s is None or self.setup_s is None:
            return None
        parts = (self.setup_s, self.load_s, self.compile_s, self.profile_s, self.capture_s)
        return max(0.0, self.total_s - sum(part or 0.0 for part in parts))


def tokens_formula(version: str | None) -> str | None:
    """The formula behind `KV cache size: N tokens` by version: the older one up to 0.20.0 (seen printed) and its
    builds before 0.20.1; None for builds that carry no release's number."""
    found = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?(rc|\.?dev|a|b)?", version or "")
    if found is None:
        return None
    # 0.20 without a patch number stands for its later releases
    release = (int(found[1]), int(found[2]), int(found[3]) if found[3] else 99 if found[2] == "20" else 0)
    if release < (0, 18, 0) and ("dev" in (version or "")):
        return None  # 0.1.dev1+g12ab: built without tags
    if release <= (0, 20, 0) or (release == (0, 20, 1) and found.group(4)):
        return "blocks_per_group"
    return "max_concurrency"

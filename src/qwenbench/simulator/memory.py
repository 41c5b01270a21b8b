"""Where the simulated card's memory goes: what is left for the KV cache, and what NVML would show when.

Figures are those of one recorded server (calibration.json, key `memory`), moved to another card's total.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwenbench.capacity.cards import Card
from qwenbench.capacity.graphs import graphs_gib
from qwenbench.simulator import blocks
from qwenbench.simulator.options import MODEL_LENGTH, ServeOptions

GIB = 2**30
BLOCK_BYTES = 17_301_504
"""One KV block: 8 layers of a group x 2,162,688 B (field notes, 3)."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The budget of one configuration, all GiB but where the name says otherwise."""

    total_gib: float
    free_gib: float
    """Free before the start (CUDA's view)."""
    requested_gib: float
    """Utilisation x total: what vLLM calls its budget."""
    weights_gib: float
    graphs_estimated_gib: float
    graphs_actual_gib: float
    kv_cache_gib: float
    num_blocks: int
    block_tokens: int
    state_blocks: int
    max_model_len: int
    """What is served; 0 when not even one token fits."""
    ready_mib: float
    """NVML's figure when the server is ready, other users of the card included."""

    @property
    def max_concurrency(self) -> float:
        """Requests of the full context length that the KV cache holds, as vLLM computes it."""
        if not self.max_model_len:
            return 0.0
        return self.num_blocks / blocks.blocks_of(self.max_model_len, self.state_blocks, self.block_tokens)

    @property
    def tokens_logged(self) -> int:
        """The `GPU KV cache size` that 0.20 prints: int(max_concurrency x max_model_len)."""
        return int(self.max_concurrency * self.max_model_len)

    @property
    def needed_gib(self) -> float:
        """KV cache that one request of the asked context length needs."""
        return blocks.blocks_of(self.max_model_len, self.state_blocks, self.block_tokens) * BLOCK_BYTES / GIB


def plan_memory(options: ServeOptions, card: Card, figures: Mapping[str, Any]) -> MemoryPlan:
    """What the configuration gets on the card. `figures` is the `memory` object of calibration.json."""
    requested = options.gpu_memory_utilization * card.cuda_gib()
    capture = max(options.capture_sizes, default=0)
    estimated = graphs_gib(capture, options.max_num_seqs)
    actual = _graphs_actual_gib(capture, figures["graphs_actual_gib"])
    extra_tokens = (options.max_num_batched_tokens - 2048) / 1024
    other = figures["activations_gib"] + figures["activations_gib_per_1024_tokens_guess"] * extra_tokens
    counted = estimated if options.count_graphs else 0.0
    kv_gib = requested - figures["weights_gib"] - other - counted
    if options.kv_cache_memory_bytes is not None:
        kv_gib = options.kv_cache_memory_bytes / GIB
    num_blocks = max(int(kv_gib * GIB // BLOCK_BYTES), 0)
    if options.num_gpu_blocks_override is not None:
        num_blocks = options.num_gpu_blocks_override
    state = blocks.STATE_BLOCKS_ALIGN if options.enable_prefix_caching else blocks.STATE_BLOCKS
    tokens = blocks.BLOCK_TOKENS * (2 if options.kv_cache_dtype.startswith("fp8") else 1)
    length = options.max_model_len or MODEL_LENGTH
    if length == -1:
        length = min(MODEL_LENGTH, max(num_blocks - state, 0) * tokens)
    ready = (
        figures["before_mib"]
        + figures["process_mib"]
        + figures["process_mib_per_seq"] * options.max_num_seqs
        + 1024 * (figures["weights_gib"] + actual)
        + num_blocks * BLOCK_BYTES / 2**20
    )
    return MemoryPlan(
        total_gib=card.cuda_gib(),
        free_gib=card.cuda_gib() - figures["context_gib"],
        requested_gib=requested,
        weights_gib=figures["weights_gib"],
        graphs_estimated_gib=estimated,
        graphs_actual_gib=actual,
        kv_cache_gib=kv_gib,
        num_blocks=num_blocks,
        block_tokens=tokens,
        state_blocks=state,
        max_model_len=length,
        ready_mib=min(ready, card.nvml_mib),
    )


def _graphs_actual_gib(capture: int, line: Mapping[str, float]) -> float:
    """GiB that graphs up to this batch size really take: a line through the recorded sizes; 0 when eager."""
    return line["base"] + line["per_size"] * capture if capture else 0.0


def interpolate(table: list[list[float]], at: float) -> float:
    """Straight lines between the rows [x, y] of a table; its ends are held."""
    xs = [row[0] for row in table]
    index = bisect_left(xs, at)
    if index == 0:
        return table[0][1]
    if index == len(table):
        return table[-1][1]
    (x0, y0), (x1, y1) = table[index - 1], table[index]
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)


class VramGauge:
    """What NVML would show: it rises with the largest batch seen, by PyTorch's allocator, and never falls."""

    def __init__(self, plan: MemoryPlan, card: Card, overshoot: list[list[float]]) -> None:
        self._ready = plan.ready_mib
        self._limit = card.nvml_mib
        self._overshoot = overshoot
        self._largest = 0
        self.used_mib = plan.ready_mib

    def saw(self, running: int) -> None:
        """A step ran with so many sequences."""
        if running > self._largest:
            self._largest = running
            over = interpolate(self._overshoot, running)
            self.used_mib = min(self._ready + over, self._limit)

"""Where the simulated card's memory goes: what is left for the KV cache, and what NVML would show when.

Figures are those of recorded servers (calibration.json, key `memory`), moved to another card's total; the cache's
layout comes from the model's shape (capacity/).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenbench.capacity.cards import Card
from qwenbench.capacity.graphs import graph_counts, graphs_gib
from qwenbench.capacity.kv import GIB, KvLayout, blocks_for_gib, kv_layout, parse_drafter
from qwenbench.capacity.model_shape import ModelShape, known_shape
from qwenbench.errors import UsageError
from qwenbench.input_files import MIB, read_json
from qwenbench.simulator.options import ServeOptions


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The budget of one configuration, all GiB but where the name says otherwise."""

    total_gib: float
    free_gib: float
    """Free before the start (CUDA's view)."""
    requested_gib: float
    """Utilisation x total: what vLLM calls its budget."""
    weights_gib: float
    activations_gib: float
    """What is neither weights, graphs nor cache: peak activation, CUDA context, libraries."""
    non_torch_gib: float
    """The part of it that PyTorch does not hold."""
    graphs_estimated_gib: float
    graphs_actual_gib: float
    kv_cache_gib: float
    profiled_blocks: int
    """Blocks that this memory holds."""
    num_blocks: int
    """Blocks that are used: --num-gpu-blocks-override goes first."""
    layout: KvLayout
    model_length: int
    """The model's own context limit, tokens."""
    max_model_len: int
    """What is served; 0 when not even one token fits."""
    ready_mib: float
    """NVML's figure when the server is ready, other users of the card included."""

    @property
    def max_concurrency(self) -> float:
        """Requests of the full context length that the KV cache holds, as vLLM computes it."""
        if not self.max_model_len:
            return 0.0
        return self.num_blocks / self.layout.blocks_per_request(self.max_model_len)

    @property
    def tokens_logged(self) -> int:
        """The `GPU KV cache size` that 0.20 and later print: int(max_concurrency x max_model_len)."""
        return int(self.max_concurrency * self.max_model_len)

    @property
    def needed_gib(self) -> float:
        """KV cache that one request of the asked context length needs."""
        return self.layout.blocks_per_request(self.max_model_len) * self.layout.bytes_per_block / GIB


def served_shape(model: str) -> ModelShape:
    """The shape of a model: the built-in one of its name, or its folder's config.json.

    Raises UsageError for a model whose shape is not known, since its figures would be another model's.
    """
    known = known_shape(model)
    if known is not None:
        return known
    config = Path(model) / "config.json"
    if config.is_file():
        return ModelShape.from_hf_config(read_json(config, "model", 64 * MIB), model)
    raise UsageError(
        f"SIMULATED: the shape of {model!r} is not known, and another model's figures would be wrong under its name: "
        "give ig1/Qwen3.5-9B-NVFP4, or a folder with the model's config.json"
    )


def plan_memory(options: ServeOptions, card: Card, figures: Mapping[str, Any], shape: ModelShape) -> MemoryPlan:
    """What the configuration gets on the card. `figures` is the `memory` object of calibration.json.

    Raises UsageError for a context length beyond the model's, in vLLM's words, and where the weights' size or the
    cache's layout cannot be known.
    """
    if shape.weights is None:
        raise UsageError(f"SIMULATED: the size of {shape.name}'s weights is not known: {shape.weights_unknown}")
    method = {"method": options.speculative_method, "num_speculative_tokens": options.speculative_tokens}
    drafter = parse_drafter(method) if options.speculative_tokens else None
    weights_gib = shape.weights.total_gib(
        text_only="language-model-only" in options.ignored, drafter=drafter is not None and drafter.method == "mtp"
    )
    rows = drafter.rows_per_sequence if drafter is not None else 1
    model_length = shape.max_position or 0
    if options.max_model_len is not None and options.max_model_len > model_length:
        raise UsageError(
            f"vllm serve: error: User-specified max_model_len ({options.max_model_len}) is greater than the derived "
            f"max_model_len (max_position_embeddings={model_length} or model_max_length=None in model's config.json)."
        )
    layout = kv_layout(
        shape,
        options.kv_cache_dtype,
        mamba_cache_mode="align" if options.enable_prefix_caching else "none",
        drafter=drafter,
        max_num_batched_tokens=options.max_num_batched_tokens,
    )
    requested = options.gpu_memory_utilization * card.cuda_gib()
    capture = max(options.capture_sizes, default=0)
    estimated = graphs_gib(capture, options.max_num_seqs, rows_per_sequence=rows)
    actual = figures["graphs_actual_gib_each"] * sum(graph_counts(capture, options.max_num_seqs, rows))
    counted = estimated if options.count_graphs else 0.0
    kv_gib = requested - weights_gib - figures["activations_gib"] - counted
    if options.kv_cache_memory_bytes is not None:
        kv_gib = options.kv_cache_memory_bytes / GIB
    profiled = max(blocks_for_gib(kv_gib, layout), 0)
    num_blocks = options.num_gpu_blocks_override or profiled
    length = options.max_model_len or model_length
    if length == -1:
        length = min(model_length, max(num_blocks - layout.state_blocks, 0) * layout.block_tokens)
    ready = (
        figures["before_mib"]
        + figures["process_mib"]
        + figures["process_mib_per_seq"] * options.max_num_seqs
        + 1024 * (weights_gib + actual)
        + num_blocks * layout.bytes_per_block / 2**20
    )
    return MemoryPlan(
        total_gib=card.cuda_gib(),
        free_gib=card.cuda_gib() - figures["context_gib"],
        requested_gib=requested,
        weights_gib=weights_gib,
        activations_gib=figures["activations_gib"],
        non_torch_gib=figures["non_torch_gib"],
        graphs_estimated_gib=estimated,
        graphs_actual_gib=actual,
        kv_cache_gib=kv_gib,
        profiled_blocks=profiled,
        num_blocks=num_blocks,
        layout=layout,
        model_length=model_length,
        max_model_len=length,
        ready_mib=min(ready, card.vram_mib),
    )

"""The KV layout of a server that is up, or was: the model's shape with what its log and its labels say."""

from __future__ import annotations

from collections.abc import Mapping

from qwenbench.capacity.kv import KvLayout, kv_layout
from qwenbench.capacity.model_shape import ModelShape
from qwenbench.engine.startup_log import StartupLog


def layout_of_server(shape: ModelShape, startup: StartupLog, cache_config: Mapping[str, str] | None = None) -> KvLayout:
    """`cache_config` holds the labels of vllm:cache_config_info. Raises UsageError where shape and log differ.

    The log's block size comes first, since older labels are wrong for hybrids; dense models never log theirs.
    """
    labels = {name: value for name, value in (cache_config or {}).items() if value not in ("", "None")}
    asked = startup.requested
    block = startup.attention_block_tokens or _int(labels.get("effective_attention_block_size"))
    if block is None and not shape.hybrid:
        block = _int(labels.get("block_size"))
    speculation = asked.get("speculative_config")
    speculated = speculation.get("num_speculative_tokens", 0) if isinstance(speculation, Mapping) else 0
    return kv_layout(
        shape,
        labels.get("cache_dtype") or startup.kv_cache_dtype or "auto",
        state_dtype=labels.get("mamba_ssm_cache_dtype") or asked.get("mamba_ssm_cache_dtype"),
        mamba_cache_mode=labels.get("mamba_cache_mode") or startup.mamba_cache_mode or "none",
        speculative_tokens=int(speculated or 0),
        base_block_tokens=128 if startup.device == "cpu" else 16,
        block_tokens=block,
        tensor_parallel=int(asked.get("tensor_parallel_size") or 1),
        max_num_batched_tokens=int(asked.get("max_num_batched_tokens") or 2048),
    )


def _int(text: str | None) -> int | None:
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None

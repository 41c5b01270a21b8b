"""KV arithmetic against figures that others published from their servers' logs, none of which it was fitted to.

Each row is what one log printed: version, model shape, KV GiB, tokens, concurrency and the length it is for.
"""

from __future__ import annotations

import pytest

from qwenbench.capacity.kv import KvLayout, blocks_range_for_printed_gib, kv_layout, printed_tokens
from qwenbench.capacity.model_shape import ModelShape


def qwen35(layers: int, kv_heads: int, value_heads: int) -> ModelShape:
    return ModelShape.from_hf_config(
        {
            "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": kv_heads, "head_dim": 256,
            "hidden_size": 4096, "full_attention_interval": 4, "linear_num_value_heads": value_heads,
            "linear_num_key_heads": 16, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
            "linear_conv_kernel_dim": 4, "mamba_ssm_dtype": "float32", "dtype": "bfloat16",
        }
    )  # fmt: skip


B9, B27, A3B = qwen35(32, 4, 32), qwen35(64, 4, 48), qwen35(40, 2, 32)
"""Qwen3.5-9B (and 4B, of the same cache), 27B, and 35B-A3B."""


@pytest.mark.parametrize(
    ("version", "shape", "mode", "block", "gib", "tokens", "concurrency", "length"),
    [
        ("0.18.1", A3B, "align", 1056, 55.72, 729_696, 10.85, 262_144),
        ("0.19.0", B9, "none", 528, 20.27, 165_792, 2.52, 262_144),
        ("0.19.0", B27, "align", 784, 48.80, 199_136, 11.32, 65_536),
        ("0.29.0", B9, "align", 528, 9.10, 267_842, 8.17, 32_768),
    ],
)
def test_published_logs(
    version: str, shape: ModelShape, mode: str, block: int, gib: float, tokens: int, concurrency: float, length: int
) -> None:
    layout = kv_layout(shape, mamba_cache_mode=mode)
    assert layout.block_tokens == block
    low, high = blocks_range_for_printed_gib(gib, layout)
    fitting = [
        blocks
        for blocks in range(low, high + 1)
        if printed_tokens(version, blocks, layout, length) == tokens
        and round(blocks / layout.blocks_per_request(length), 2) == concurrency
    ]
    assert len(fitting) == 1


@pytest.mark.parametrize(
    ("shape", "block", "blocks", "tokens"),
    # 0.18.1 capped its captures to `141 blocks available`.
    [(B27, 784, 141, 27_440)],
)
def test_published_block_counts(shape: ModelShape, block: int, blocks: int, tokens: int) -> None:
    layout: KvLayout = kv_layout(shape)
    assert layout.block_tokens == block
    assert printed_tokens("0.18.1", blocks, layout, 32_768) == tokens

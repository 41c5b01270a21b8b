"""KV arithmetic: exact on every recorded server, and its invariants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.capacity.kv import (
    Drafter,
    KvGroup,
    KvLayout,
    blocks_for_gib,
    blocks_from_printed_tokens,
    blocks_range_for_printed_gib,
    gib_for_blocks,
    kv_cache_tokens,
    kv_layout,
    printed_tokens,
    requests_that_fit,
)
from qwenbench.capacity.model_shape import SEED_SHAPE, ModelShape, known_shape
from qwenbench.errors import UsageError

DATA = Path(__file__).parents[2] / "data" / "memory"
SEED = kv_layout(SEED_SHAPE)


def shape(name: str) -> ModelShape:
    return ModelShape.from_hf_config(json.loads((DATA / f"{name}.config.json").read_text()), name)


def test_the_seeds_layout_from_its_config_json() -> None:
    assert kv_layout(shape("qwen3.5-9b-nvfp4")) == SEED
    assert SEED.block_tokens == 528
    assert SEED.bytes_per_block == 17_301_504
    assert SEED.state_blocks == 3
    assert kv_layout(SEED_SHAPE, mamba_cache_mode="align").state_blocks == 6
    assert kv_layout(SEED_SHAPE, drafter=Drafter("ngram", 2)).state_blocks == 9
    assert known_shape("ig1/Qwen3.5-9B-NVFP4") == SEED_SHAPE
    assert known_shape("meta-llama/Llama-2-7b") is None


def test_fp8_doubles_the_block_as_the_recorded_log_says() -> None:
    assert kv_layout(SEED_SHAPE, "fp8_e4m3").block_tokens == 1056


@pytest.mark.parametrize(
    ("gib", "blocks", "printed"),
    [(17.32, 1074, 563_085), (17.31, 1074, 563_085), (17.29, 1072, 562_036), (17.40, 1079, 565_706)],
)
def test_recorded_gpu_runs(gib: float, blocks: int, printed: int) -> None:
    low, high = blocks_range_for_printed_gib(gib, SEED)
    assert low <= blocks <= high <= low + 1
    assert printed_tokens("0.20.2", blocks, SEED, 262_144) == printed
    assert blocks_from_printed_tokens(printed, "max_concurrency", SEED, 262_144) == (blocks, blocks)


def test_the_same_memory_in_two_versions_words() -> None:
    assert printed_tokens("0.20.2", 1072, SEED, 262_144) == 562_036
    assert printed_tokens("0.18.0", 1072, SEED, 262_144) == 141_504
    assert printed_tokens("0.19.0", 1072, SEED, 262_144) == 141_504
    assert kv_cache_tokens(1072, SEED, 262_144) == 262_144
    assert kv_cache_tokens(1072, SEED, None) == 528 * (1072 - 1 - 3)


def test_the_seeds_two_figures_are_018s_formula() -> None:
    assert blocks_from_printed_tokens(110_880, "blocks_per_group", SEED, 262_144) == (840, 843)
    assert blocks_from_printed_tokens(77_088, "blocks_per_group", SEED, 262_144) == (584, 587)


def test_requests_that_fit_against_the_256_stream_run() -> None:
    """1072 blocks, 522 + 128 tokens: 208 ran and 48 waited."""
    assert abs(requests_that_fit(1072, SEED, 522 + 128) / 208 - 1) < 0.05


@pytest.mark.parametrize(
    ("model", "mode", "state", "gib", "length", "block", "blocks", "tokens"),
    [
        ("tiny-qwen35", "align", "float32", 0.0625, 4096, 640, 204, 64_275),
        ("tiny-qwen35", "align", "auto", 0.0625, 4096, 384, 341, 82_160),
        ("tiny-qwen35", "align", "float32", 1.0, 8192, 640, 3276, 1_412_473),
        ("tiny-qwen3", "none", None, 0.0625, 1024, 128, 256, 32_768),
        ("tiny-qwen3", "none", None, 1.0, 1024, 128, 4096, 524_288),
    ],
)
def test_tiny_models_on_the_cpu_engine(
    model: str, mode: str, state: str | None, gib: float, length: int, block: int, blocks: int, tokens: int
) -> None:
    layout = kv_layout(shape(model), state_dtype=state, mamba_cache_mode=mode, base_block_tokens=128)
    assert layout.block_tokens == block
    assert blocks_for_gib(gib, layout) == blocks
    assert printed_tokens("0.28.0", blocks, layout, length) == tokens
    assert printed_tokens("0.32.0", 16, layout, length) == int(16 / layout.blocks_per_request(length) * length)


def test_dense_and_sliding_window_models() -> None:
    dense = ModelShape.from_hf_config(
        {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}
    )
    layout = kv_layout(dense)
    assert (layout.block_tokens, layout.bytes_per_block, len(layout.groups)) == (16, 32 * 2 * 8 * 128 * 2 * 16, 1)
    assert kv_layout(dense, tensor_parallel=4).bytes_per_block * 4 == layout.bytes_per_block
    assert kv_layout(dense, "fp8").bytes_per_block * 2 == layout.bytes_per_block
    # 5 sliding-window layers to each full one: six groups of eight layers share one pool.
    gemma = ModelShape.from_hf_config(
        {
            "num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
            "sliding_window": 1024, "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 8,
        }
    )  # fmt: skip
    mixed = kv_layout(gemma)
    assert [group.kind for group in mixed.groups] == ["full"] + ["window"] * 5
    assert mixed.layers_per_group == 8
    # Beyond the window only the full group grows.
    assert mixed.blocks_per_request(100_000) - mixed.blocks_per_request(50_000) == 50_000 // 16
    mla = ModelShape.from_hf_config(
        {"num_hidden_layers": 2, "num_attention_heads": 16, "hidden_size": 2048, "kv_lora_rank": 512,
         "qk_rope_head_dim": 64}
    )  # fmt: skip
    assert kv_layout(mla, block_tokens=64).bytes_per_block == 2 * 576 * 2 * 64


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({}, "num_hidden_layers"),
        ({"num_hidden_layers": 4}, "num_attention_heads"),
        ({"num_hidden_layers": 4, "num_attention_heads": 4}, "hidden_size"),
        ({"num_hidden_layers": "4", "num_attention_heads": 4}, "num_hidden_layers"),
        ({"num_hidden_layers": 1, "layer_types": ["linear_attention"]}, "linear_key_head_dim"),
        ({"num_hidden_layers": 1, "layer_types": ["holographic"]}, "holographic"),
        ({"num_hidden_layers": 2, "layer_types": ["full_attention"]}, "1 layer types"),
    ],
)
def test_a_config_that_lacks_something_names_it(config: dict[str, Any], field: str) -> None:
    with pytest.raises(UsageError, match=field):
        ModelShape.from_hf_config(config, "m")


def test_values_that_are_not_known_are_refused() -> None:
    with pytest.raises(UsageError, match="mamba cache mode"):
        kv_layout(SEED_SHAPE, mamba_cache_mode="all")
    with pytest.raises(UsageError, match="fp6"):
        kv_layout(SEED_SHAPE, "fp6")
    with pytest.raises(UsageError, match="version"):
        printed_tokens("latest", 10, SEED, 100)
    with pytest.raises(UsageError, match="belong to no number of blocks"):
        blocks_from_printed_tokens(562_037, "max_concurrency", SEED, 262_144)


layouts = st.builds(
    lambda block, page, layers, states, fulls: KvLayout(
        block,
        page,
        layers,
        (KvGroup("full", block),) * fulls + (KvGroup("state", block, state_blocks=1, state_blocks_held=1),) * states,
    ),
    st.sampled_from([16, 128, 528, 640]),
    st.integers(1024, 1 << 22),
    st.integers(1, 64),
    st.integers(0, 8),
    st.integers(1, 2),
)


@given(layouts, st.integers(1, 20_000), st.integers(1, 300_000))
def test_the_longest_request_fits_and_one_more_token_does_not(layout: Any, blocks: Any, limit: Any) -> None:
    longest = kv_cache_tokens(blocks, layout, limit)
    assert longest <= limit
    if longest:
        assert requests_that_fit(blocks, layout, longest) >= 1
    if longest < limit:
        assert requests_that_fit(blocks, layout, longest + 1) == 0


@given(layouts, st.integers(1, 20_000), st.integers(1, 300_000))
def test_blocks_printed_and_read_again(layout: Any, blocks: Any, length: Any) -> None:
    newer = printed_tokens("0.20", blocks, layout, length)
    low, high = blocks_from_printed_tokens(newer, "max_concurrency", layout, length)
    assert low <= blocks <= high
    older = printed_tokens("0.18", blocks, layout, length)
    low, high = blocks_from_printed_tokens(older, "blocks_per_group", layout, length)
    assert low <= blocks <= high
    assert blocks_for_gib(gib_for_blocks(blocks, layout), layout) == blocks


@given(layouts, st.integers(1, 5_000), st.integers(1, 100_000), st.integers(0, 10_000))
def test_longer_requests_never_fit_more_often(layout: Any, blocks: Any, tokens: Any, more: Any) -> None:
    assert requests_that_fit(blocks, layout, tokens + more) <= requests_that_fit(blocks, layout, tokens)
